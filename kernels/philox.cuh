// Random bits by counter.
#pragma once

#include <cstdint>

namespace collimate {

// 128 random bits of a counter, a stream and a seed: Philox4x32 with ten rounds (Salmon et al. 2011), as in src/rng.rs.
struct Random {
    uint32_t words[4];
};

__device__ __forceinline__ Random philox(uint64_t counter, uint64_t stream, uint64_t seed) {
    uint32_t a = uint32_t(counter), b = uint32_t(counter >> 32), c = uint32_t(stream), d = uint32_t(stream >> 32);
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t x = uint64_t(a) * 0xD2511F53u, y = uint64_t(c) * 0xCD9E8D57u;
        a = uint32_t(y >> 32) ^ b ^ k0, b = uint32_t(y), c = uint32_t(x >> 32) ^ d ^ k1, d = uint32_t(x);
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return {{a, b, c, d}};
}

}  // namespace collimate
