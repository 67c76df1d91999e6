// Reductions of a warp and of a block. Their order is fixed by the number of threads alone.
#pragma once

#include <cuda_runtime.h>

namespace collimate {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

struct Sum {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a + b;
    }
};

// A NaN loses to a number, as in fmaxf.
struct Max {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Every lane gets the result of its team: `lanes` neighbours, a power of two up to a warp. All lanes of the warp call it.
template <class Combine, class T>
__device__ __forceinline__ T reduce_team(T value, Combine combine, int lanes) {
    for (int bits = lanes / 2; bits > 0; bits /= 2) {
        value = combine(value, __shfl_xor_sync(kFullWarp, value, bits));
    }
    return value;
}

// Every lane gets the result.
template <class Combine, class T>
__device__ __forceinline__ T reduce_warp(T value, Combine combine) {
    return reduce_team(value, combine, kWarpSize);
}

// Every thread gets the result. `scratch` holds one T per warp; it may be used again after the call.
template <class Combine, class T>
__device__ __forceinline__ T reduce_block(T value, Combine combine, T *scratch) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, warps = blockDim.x / kWarpSize;
    value = reduce_warp(value, combine);
    __syncthreads();
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    T result = scratch[0];
    for (int i = 1; i < warps; i++) result = combine(result, scratch[i]);
    __syncthreads();
    return result;
}

}  // namespace collimate
