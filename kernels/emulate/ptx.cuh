// Host stand-in for device/ptx.cuh: the same functions with the same contracts, on the machine of machine.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace collimate {

// The dynamic shared memory of the block, filled with NaN before the block starts.
template <class T>
T *shared() {
    return reinterpret_cast<T *>(emulate::current->shared);
}

namespace emulate {
template <auto kernel>
const char *name_of() {
    return __PRETTY_FUNCTION__;
}
template <auto kernel>
struct Registered {
    static inline Kernel entry{name_of<kernel>()};
};
}  // namespace emulate

// Counts a launch: the tests ask which kernels of the program none of them launched.
template <auto kernel>
void note_launch() {
    emulate::name_next(emulate::Registered<kernel>::entry);
}

inline float exp2_approx(float x) { return std::exp2(x); }

// The larger of two pairs of 16-bit floats, each half on its own; a NaN loses to a number.
template <class T>
unsigned max_packed(unsigned a, unsigned b);

namespace emulate {
template <class T, class Widen>
unsigned max_halves(unsigned a, unsigned b, Widen widen) {
    unsigned result = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        const T left{static_cast<unsigned short>(a >> shift)}, right{static_cast<unsigned short>(b >> shift)};
        const float x = widen(left), y = widen(right);
        result |= unsigned(x >= y || y != y ? left.bits : right.bits) << shift;
    }
    return result;
}
}  // namespace emulate

template <>
inline unsigned max_packed<__nv_bfloat16>(unsigned a, unsigned b) {
    return emulate::max_halves<__nv_bfloat16>(a, b, __bfloat162float);
}
template <>
inline unsigned max_packed<__half>(unsigned a, unsigned b) {
    return emulate::max_halves<__half>(a, b, __half2float);
}

// Starts the copy of 16 bytes into shared memory, zeros instead where not `valid`; here it lands at its wait.
inline void copy_async_16(void *to_shared, const void *from_global, bool valid = true, COLLIMATE_SITE) {
    emulate::Thread &thread = *emulate::current;
    if (thread.copy_count == emulate::kPendingCopies) emulate::misuse("too many asynchronous copies in flight", site);
    thread.copies[thread.copy_count++] = {to_shared, from_global, 16, valid ? 16 : 0, thread.copy_group};
}
inline void copy_async_commit() { emulate::current->copy_group++; }

// Waits until at most `groups` of the thread's youngest committed groups are in flight.
template <int groups>
void copy_async_wait() {
    emulate::Thread &thread = *emulate::current;
    int kept = 0;
    for (int i = 0; i < thread.copy_count; i++) {
        const emulate::PendingCopy copy = thread.copies[i];
        if (copy.group >= thread.copy_group - groups) {
            thread.copies[kept++] = copy;
            continue;
        }
        const uint4 zero{};
        *static_cast<uint4 *>(copy.shared) = copy.copied ? *static_cast<const uint4 *>(copy.global) : zero;
    }
    thread.copy_count = kept;
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane l names row l % 8 of matrix l / 8, 16 bytes, and reads
// it. Lane l gets of each matrix row l / 4, columns 2 (l % 4) and the next.
inline void load_matrices(unsigned (&matrices)[4], const void *row, COLLIMATE_SITE) {
    const uint4 own = *static_cast<const uint4 *>(row);
    const unsigned char *rows = emulate::warp_exchange(&own, sizeof own, 0xffffffffu, site);
    const int lane = emulate::current->lane;
    for (int i = 0; i < 4; i++) {
        emulate::read_slot(&matrices[i], rows, 8 * i + lane / 4, lane % 4 * 4, 4);
    }
}

// The same, each matrix transposed.
inline void load_matrices_transposed(unsigned (&matrices)[4], const void *row, COLLIMATE_SITE) {
    const uint4 own = *static_cast<const uint4 *>(row);
    const unsigned char *rows = emulate::warp_exchange(&own, sizeof own, 0xffffffffu, site);
    const int lane = emulate::current->lane;
    for (int i = 0; i < 4; i++) {
        unsigned short halves[2];
        for (int j = 0; j < 2; j++) {
            emulate::read_slot(&halves[j], rows, 8 * i + lane % 4 * 2 + j, lane / 4 * 2, 2);
        }
        matrices[i] = halves[0] | unsigned(halves[1]) << 16;
    }
}

namespace emulate {
template <class T>
float widen(unsigned bits);
template <>
inline float widen<__nv_bfloat16>(unsigned bits) {
    return __uint_as_float(bits << 16);
}
template <>
inline float widen<__half>(unsigned bits) {
    return __half2float({static_cast<unsigned short>(bits)});
}
}  // namespace emulate

// c [16, 8] += a [16, 16] b [16, 8], spread over the warp. Lane l holds of c rows l / 4 and l / 4 + 8, columns 2 (l % 4)
// and the next; of a the same rows, columns 2 (l % 4), the next, and both + 8; of b the transpose of such columns of row l / 4.
template <class T>
void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, COLLIMATE_SITE) {
    emulate::Product product;
    std::memcpy(product.c, c, sizeof c);
    for (int i = 0; i < 4; i++) {
        for (int half = 0; half < 2; half++) product.a[2 * i + half] = emulate::widen<T>(a[i] >> (16 * half) & 0xffff);
    }
    for (int half = 0; half < 2; half++) {
        product.b[half] = emulate::widen<T>(b0 >> (16 * half) & 0xffff);
        product.b[2 + half] = emulate::widen<T>(b1 >> (16 * half) & 0xffff);
    }
    emulate::warp_multiply_add(product, site);
    std::memcpy(c, product.c, sizeof c);
}

// Two floats rounded to 16 bits, `low` in the low half.
template <class T>
unsigned pack(float low, float high);

template <>
inline unsigned pack<__nv_bfloat16>(float low, float high) {
    return __float2bfloat16_rn(low).bits | unsigned(__float2bfloat16_rn(high).bits) << 16;
}
template <>
inline unsigned pack<__half>(float low, float high) {
    return __float2half_rn(low).bits | unsigned(__float2half_rn(high).bits) << 16;
}

}  // namespace collimate
