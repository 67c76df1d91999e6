// The second stage of sums over the rows of a matrix: partial sums of blocks of rows are added block by block.
#pragma once

#include "launch.cuh"
#include "reduce.cuh"

namespace collimate {

constexpr int kPartialThreads = 256;
constexpr int kPartialGroups = kPartialThreads / kWarpSize;

// out[c] += sum over p of partials[p][c]: each warp takes every 8th p in float64, then the warps are added in order.
template <class T>
__global__ void __launch_bounds__(kPartialThreads)
    add_partials_kernel(T *out, const T *partials, int64_t count, int64_t columns, int64_t stride) {
    const int lane = threadIdx.x % kWarpSize, group = threadIdx.x / kWarpSize;
    const int64_t column = int64_t(blockIdx.x) * kWarpSize + lane;
    double *sums = shared<double>();
    double sum = 0.0;
    if (column < columns) {
#pragma unroll 8
        for (int64_t p = group; p < count; p += kPartialGroups) sum += partials[p * stride + column];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (group != 0 || column >= columns) return;
    for (int g = 1; g < kPartialGroups; g++) sum += sums[g * kWarpSize + lane];
    out[column] += static_cast<T>(sum);
}

// Queues it; `partials` is [count, columns] with a stride.
template <class T>
int add_partials(T *out, const T *partials, int64_t count, int64_t columns, int64_t stride, void *stream) {
    if (count == 0) return COLLIMATE_OK;
    const Grid grid = {{static_cast<unsigned>(ceil_div(columns, kWarpSize))},
                       {kPartialThreads},
                       kPartialThreads * sizeof(double)};
    return launch<add_partials_kernel<T>>(grid, stream, out, partials, count, columns, stride);
}

// The stride of partial sums, whose rows start at a pack.
constexpr int64_t partial_stride(int64_t columns) { return ceil_div(columns, 8) * 8; }

}  // namespace collimate
