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

}  // namespace collimate
