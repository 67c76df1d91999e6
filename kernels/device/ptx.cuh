// What only the device can say: inline PTX, the block's shared memory, the launch's name. Include with <>:
// emulate/ptx.cuh is its stand-in on the host, chosen by the include path.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace collimate {

// The dynamic shared memory of the block.
template <class T>
__device__ __forceinline__ T *shared() {
    extern __shared__ __align__(128) unsigned char collimate_shared[];
    return reinterpret_cast<T *>(collimate_shared);
}

// Counts a launch in emulation; nothing here.
template <auto kernel>
inline void note_launch() {}

// 2^x with 2 ulp of error, denormal results flushed to 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The larger of two pairs of 16-bit floats, each half on its own; a NaN loses to a number.
template <class T>
__device__ __forceinline__ unsigned max_packed(unsigned a, unsigned b);

template <>
__device__ __forceinline__ unsigned max_packed<__nv_bfloat16>(unsigned a, unsigned b) {
    unsigned c;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    return c;
}
template <>
__device__ __forceinline__ unsigned max_packed<__half>(unsigned a, unsigned b) {
    unsigned c;
    asm("max.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    return c;
}

__device__ __forceinline__ unsigned shared_address(const void *pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Starts the copy of 16 bytes into shared memory, zeros instead where not `valid`.
__device__ __forceinline__ void copy_async_16(void *to_shared, const void *from_global, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)), "l"(from_global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `groups` of the thread's youngest committed groups are in flight.
template <int groups>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

}  // namespace collimate
