// From a C entry point to a kernel: dtype dispatch, the launch, the status, the device error word.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <ptx.cuh>

#include "collimate.h"

namespace collimate {

constexpr int64_t kMaxGridX = 0x7fffffff;
constexpr size_t kSharedWithoutAsking = 48 << 10;

struct Grid {
    dim3 blocks, threads;
    size_t shared_bytes = 0;
};

// Lets blocks of `kernel` have as much shared memory as the current device gives one. The same number whatever the
// launch, so that no thread lowers what another has just asked for; and told anew each time, since a device's context
// that is closed forgets it.
template <auto kernel>
cudaError_t allow_most_shared_memory() {
    int device = 0, most = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (status != cudaSuccess) return status;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
}

// Launches `kernel` on the stream; nothing to do is no launch. Returns a status of the contract.
template <auto kernel, class... Arguments>
int launch(const Grid &grid, void *stream, Arguments... arguments) {
    if (grid.blocks.x == 0 || grid.blocks.y == 0) return COLLIMATE_OK;
    if (grid.shared_bytes > kSharedWithoutAsking) {
        const cudaError_t status = allow_most_shared_memory<kernel>();
        if (status != cudaSuccess) return static_cast<int>(status);
    }
    note_launch<kernel>();
    const cudaLaunchConfig_t config = {grid.blocks,  grid.threads, grid.shared_bytes, static_cast<cudaStream_t>(stream),
                                       nullptr, 0};
    return static_cast<int>(cudaLaunchKernelEx(&config, kernel, arguments...));
}

template <class T>
struct Type {
    using Element = T;
};

// Calls `body` with the Type that the tag names.
template <class Body>
int dispatch_dtype(int32_t dtype, Body body) {
    switch (dtype) {
        case COLLIMATE_F32: return body(Type<float>());
        case COLLIMATE_BF16: return body(Type<__nv_bfloat16>());
        case COLLIMATE_F16: return body(Type<__half>());
        default: return COLLIMATE_STATUS_DTYPE;
    }
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The first failure of the stream wins; `error` may be NULL.
__device__ __forceinline__ void report_error(int32_t *error, int32_t code, int64_t row, int32_t value) {
    if (error == nullptr || atomicCAS(&error[0], 0, code) != 0) return;
    error[1] = static_cast<int32_t>(row);
    error[2] = value;
}

}  // namespace collimate
