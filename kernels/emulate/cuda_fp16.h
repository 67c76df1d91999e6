// Host stand-in for CUDA's header of this name: storage and conversions.
#pragma once

#include "cuda_runtime.h"

struct __half {
    unsigned short bits;
};

inline float __half2float(__half value) {
    const unsigned sign = unsigned(value.bits & 0x8000) << 16, exponent = (value.bits >> 10) & 31,
                   mantissa = value.bits & 0x3ff;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent > 0) return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
    const float magnitude = std::ldexp(float(mantissa), -24);
    return sign ? -magnitude : magnitude;
}

// To nearest, ties to even.
inline __half __float2half_rn(float value) {
    const unsigned bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
    const auto sign = static_cast<unsigned short>((bits >> 16) & 0x8000u);
    if (magnitude > 0x7f800000u) return {0x7fff};
    if (magnitude >= 0x477ff000u) return {static_cast<unsigned short>(sign | 0x7c00u)};  // 65520 and above
    if (magnitude < 0x38800000u) {  // below the smallest normal: a multiple of 2^-24
        const float scaled = std::nearbyint(std::ldexp(__uint_as_float(magnitude), 24));
        return {static_cast<unsigned short>(sign | static_cast<unsigned short>(scaled))};
    }
    const unsigned rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
    return {static_cast<unsigned short>(sign | rounded >> 13)};
}
