// global_norm: the Euclidean norm of a matrix, in two stages of fixed order and in float64. Reads each value once.
#include "chunk.cuh"
#include "reduce.cuh"

namespace collimate::global_norm {

constexpr int kThreads = 256;
constexpr int64_t kPart = 1 << 16;  // columns whose squares one block sums
constexpr size_t kSharedBytes = kThreads / kWarpSize * sizeof(double);

template <class T, Access access>
__global__ void __launch_bounds__(kThreads)
    squares_kernel(double *partials, const T *x, int64_t columns, int64_t stride, int64_t parts) {
    constexpr int kSize = Pack<T>::kSize;
    const int64_t row = blockIdx.x / parts, part = blockIdx.x % parts;
    const int64_t begin = part * kPart, end = min(begin + kPart, columns);
    const T *from = x + row * stride;
    double sum = 0.0;
#pragma unroll 4
    for (int64_t column = begin + threadIdx.x * kSize; column < end; column += kThreads * kSize) {
        const auto values = load_chunk<access, kSize>(from, column, columns);
        for (int i = 0; i < kSize; i++) sum = fma(double(values.at[i]), double(values.at[i]), sum);
    }
    sum = reduce_block(sum, Sum(), shared<double>());
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) norm_kernel(double *norm, const double *partials, int64_t count) {
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partials[i];
    sum = reduce_block(sum, Sum(), shared<double>());
    if (threadIdx.x == 0) *norm = sqrt(sum);
}

// Rows without gaps are one row.
inline void flatten(int64_t &rows, int64_t &columns, int64_t stride) {
    if (rows <= 1 || stride != columns) return;
    columns *= rows;
    rows = 1;
}

}  // namespace collimate::global_norm

namespace op = collimate::global_norm;

extern "C" int64_t collimate_global_norm_workspace(int64_t rows, int64_t columns, int64_t stride) {
    op::flatten(rows, columns, stride);
    return rows * collimate::ceil_div(columns, op::kPart) * int64_t(sizeof(double));
}

extern "C" int32_t collimate_global_norm(double *norm, const void *x, int64_t rows, int64_t columns, int64_t stride,
                                         int32_t dtype, void *workspace, int64_t workspace_bytes, void *stream) {
    if (rows < 0 || columns < 0 || stride < columns) return COLLIMATE_STATUS_ARGUMENT;
    if (workspace_bytes < collimate_global_norm_workspace(rows, columns, stride)) return COLLIMATE_STATUS_WORKSPACE;
    op::flatten(rows, columns, stride);
    const int64_t parts = collimate::ceil_div(columns, op::kPart);
    if (parts > 0 && rows > collimate::kMaxGridX / parts) return COLLIMATE_STATUS_ARGUMENT;
    auto *partials = static_cast<double *>(workspace);
    const int32_t status = collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        const auto *from = static_cast<const T *>(x);
        const collimate::Grid grid = {{static_cast<unsigned>(rows * parts)}, {op::kThreads}, op::kSharedBytes};
        return collimate::dispatch_access(collimate::in_packs(from, rows == 1 ? 0 : stride), [&](auto access) {
            return collimate::launch<op::squares_kernel<T, decltype(access)::value>>(grid, stream, partials, from, columns,
                                                                                    stride, parts);
        });
    });
    if (status != COLLIMATE_OK) return status;
    return collimate::launch<op::norm_kernel>({{1}, {op::kThreads}, op::kSharedBytes}, stream, norm, partials, rows * parts);
}
