// Scalar functions that preference and KTO losses are made of, stable over the whole range of float.
#pragma once

#include <cuda_runtime.h>

namespace collimate {

// ln(1 + e^x)
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

// 1 / (1 + e^-x)
__device__ __forceinline__ float sigmoid(float x) {
    const float e = expf(-fabsf(x));
    return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

// sigmoid(x) sigmoid(-x)
__device__ __forceinline__ float sigmoid_slope(float x) {
    const float e = expf(-fabsf(x));
    return e / ((1.0f + e) * (1.0f + e));
}

// ln(1 - e^x) for x < 0
__device__ __forceinline__ float log1mexp(float x) {
    return x > -0.693147181f ? logf(-expm1f(x)) : log1pf(-expf(x));
}

__device__ __forceinline__ float square(float x) { return x * x; }

}  // namespace collimate
