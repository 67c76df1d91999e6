// Host stand-in for CUDA's header of this name: what the kernels use of it, on the machine of machine.h.
#pragma once

#include "machine.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict

#define threadIdx (::collimate::emulate::current->thread)
#define blockIdx (::collimate::emulate::current->block)
#define blockDim (::collimate::emulate::current->block_size)
#define gridDim (::collimate::emulate::current->grid_size)

// The caller's place, as a default argument.
#define COLLIMATE_SITE \
    ::collimate::emulate::Site site = { __builtin_FILE(), __builtin_LINE() }

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// --- barriers and collectives

inline void __syncthreads(COLLIMATE_SITE) { ::collimate::emulate::block_barrier(site); }

inline void __syncwarp(unsigned mask = 0xffffffffu, COLLIMATE_SITE) {
    ::collimate::emulate::warp_barrier(mask, site);
}

namespace collimate::emulate {

template <class T>
T exchange(unsigned mask, T value, int source, Site site) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kSlotBytes);
    const unsigned char *slots = warp_exchange(&value, sizeof value, mask, site);
    if (source < 0 || source >= kWarp) return value;
    T other;
    read_slot(&other, slots, source, 0, sizeof other);
    return other;
}

}  // namespace collimate::emulate

template <class T>
T __shfl_sync(unsigned mask, T value, int source, COLLIMATE_SITE) {
    return ::collimate::emulate::exchange(mask, value, source & 31, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, COLLIMATE_SITE) {
    return ::collimate::emulate::exchange(mask, value, ::collimate::emulate::current->lane ^ bits, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int distance, COLLIMATE_SITE) {
    return ::collimate::emulate::exchange(mask, value, ::collimate::emulate::current->lane - distance, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int distance, COLLIMATE_SITE) {
    return ::collimate::emulate::exchange(mask, value, ::collimate::emulate::current->lane + distance, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, COLLIMATE_SITE) {
    const int value = predicate != 0;
    const unsigned char *slots = ::collimate::emulate::warp_exchange(&value, sizeof value, mask, site);
    unsigned votes = 0;
    for (int lane = 0; lane < ::collimate::emulate::kWarp; lane++) {
        int vote;
        ::collimate::emulate::read_slot(&vote, slots, lane, 0, sizeof vote);
        votes |= unsigned(vote == 1) << lane;
    }
    return votes;
}

// --- atomics and fences; relaxed, as on the device

inline int atomicAdd(int *address, int value) { return __atomic_fetch_add(address, value, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned *address, unsigned value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline int atomicCAS(int *address, int expected, int value) {
    __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
inline void __threadfence() { ::collimate::emulate::fence(); }

// --- bits and arithmetic

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline int __float_as_int(float value) { return int(__float_as_uint(value)); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((std::uint64_t(high) << 32) | low) >> (shift & 31));
}
namespace collimate::emulate {

// The value, hidden from the compiler's contractions where they are switched on.
inline float apart(float value) {
#if defined(__x86_64__)
    asm("" : "+x"(value));
    return value;
#elif defined(__aarch64__)
    asm("" : "+w"(value));
    return value;
#else
    volatile float kept = value;
    return kept;
#endif
}

}  // namespace collimate::emulate

// Never a part of a fused multiply-add.
inline float __fadd_rn(float a, float b) { return ::collimate::emulate::apart(a) + ::collimate::emulate::apart(b); }
inline float __fmul_rn(float a, float b) { return ::collimate::emulate::apart(a * b); }
using std::isfinite;
using std::max;
using std::min;

// --- the host's side

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
constexpr cudaError_t cudaErrorInvalidValue = 1;
using cudaStream_t = void *;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
// The fields of the real one in its order; two of their names are macros here.
struct cudaLaunchConfig_t {
    dim3 blocks, threads;
    size_t shared_bytes;
    cudaStream_t stream;
    void *attributes;
    unsigned attribute_count;
};

inline cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
    return ::collimate::emulate::fill(memory, value, bytes, stream);
}
inline cudaError_t cudaGetDevice(int *device) {
    *device = ::collimate::emulate::device();
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int) {
    *value = ::collimate::emulate::kSharedBytesOfBlock;
    return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
    return ::collimate::emulate::set_shared_limit(reinterpret_cast<const void *>(kernel), bytes);
}

// No launcher may call these: they are here so that the test of graph capture finds one that does.
inline cudaError_t cudaMallocAsync(void **memory, size_t bytes, cudaStream_t) {
    if (const int status = ::collimate::emulate::outside_capture("cudaMallocAsync")) return status;
    *memory = std::malloc(bytes);
    return cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void *memory, cudaStream_t) {
    if (const int status = ::collimate::emulate::outside_capture("cudaFreeAsync")) return status;
    std::free(memory);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    if (const int status = ::collimate::emulate::outside_capture("a copy of the host's memory")) return status;
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return ::collimate::emulate::outside_capture("cudaStreamSynchronize");
}

// Runs the kernel to its end on the calling thread and its helpers, or records it where the thread captures.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Parameters...),
                               Arguments &&...arguments) {
    using Call = std::tuple<void (*)(Parameters...), std::tuple<Parameters...>>;
    const auto body = [](const void *erased) {
        const Call &call = *static_cast<const Call *>(erased);
        std::apply(std::get<0>(call), std::get<1>(call));
    };
    const auto call = std::make_shared<const Call>(kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...));
    return ::collimate::emulate::launch({config->blocks, config->threads, config->shared_bytes,
                                         reinterpret_cast<const void *>(kernel), body, call},
                                        config->stream);
}
