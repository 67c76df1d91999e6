// gather_rows: rows of a matrix by index; backward adds the gradients of rows gathered from one place in a given order,
// so that no atomic decides the result. Traffic: each row once in, once out.
#include "chunk.cuh"

namespace collimate::gather_rows {

constexpr int kThreads = 256;

struct Shape {
    int64_t columns, source_rows, out_stride, source_stride;
};

// Moves bits: what is gathered need not be a float.
template <class T, Access access>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(T *out, const T *source, const int32_t *indices, Shape shape, int32_t *error) {
    constexpr bool kPacks = access == Access::kPacks;
    constexpr int kSize = kPacks ? Pack<T>::kSize : 1;
    const int64_t row = blockIdx.x, index = indices[row];
    const bool inside = index >= 0 && index < shape.source_rows;
    if (!inside && threadIdx.x == 0) report_error(error, COLLIMATE_ERROR_INDEX, row, static_cast<int32_t>(index));
    for (int64_t column = threadIdx.x * kSize; column < shape.columns; column += kThreads * kSize) {
        T *to = out + row * shape.out_stride + column;
        const T *from = source + (inside ? index : 0) * shape.source_stride + column;
        if (kPacks) {
            *reinterpret_cast<uint4 *>(to) = inside ? *reinterpret_cast<const uint4 *>(from) : make_uint4(0, 0, 0, 0);
        } else {
            *to = inside ? *from : from_float<T>(0.0f);
        }
    }
}

template <class D, class T, Access access>
__global__ void __launch_bounds__(kThreads, 4)
    backward_kernel(D *dsource, const T *dout, const int32_t *destinations, const int32_t *offsets,
                    const int32_t *order, Shape shape, int32_t *error) {
    constexpr int kSize = kChunkSize<D, T>;
    const int64_t group = blockIdx.x, index = destinations[group];
    const int64_t column = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * kSize;
    if (index < 0 || index >= shape.source_rows) {
        if (column == 0) report_error(error, COLLIMATE_ERROR_INDEX, group, static_cast<int32_t>(index));
        return;
    }
    if (column >= shape.columns) return;
    D *to = dsource + index * shape.source_stride;
    auto sums = load_chunk<access, kSize>(to, column, shape.columns);
    const int begin = offsets[group], end = offsets[group + 1];
#pragma unroll 4
    for (int i = begin; i < end; i++) {
        const auto given = load_chunk<access, kSize>(dout + order[i] * shape.out_stride, column, shape.columns);
        for (int j = 0; j < kSize; j++) sums.at[j] += given.at[j];
    }
    store_chunk<access>(to, column, shape.columns, sums);
}

inline bool is_valid(int64_t rows, const Shape &shape) {
    return rows >= 0 && rows <= kMaxGridX && shape.columns >= 0 && shape.source_rows >= 0 &&
           shape.out_stride >= shape.columns && shape.source_stride >= shape.columns;
}

}  // namespace collimate::gather_rows

namespace op = collimate::gather_rows;

extern "C" int32_t collimate_gather_rows_forward(void *out, const void *source, const int32_t *indices, int64_t rows,
                                                 int64_t columns, int64_t source_rows, int64_t out_stride,
                                                 int64_t source_stride, int32_t dtype, int32_t *error, void *stream) {
    const op::Shape shape = {columns, source_rows, out_stride, source_stride};
    if (!op::is_valid(rows, shape)) return COLLIMATE_STATUS_ARGUMENT;
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        const collimate::Grid grid = {{static_cast<unsigned>(rows)}, {op::kThreads}};
        auto *to = static_cast<T *>(out);
        const auto *from = static_cast<const T *>(source);
        const bool packs = columns % collimate::Pack<T>::kSize == 0 && collimate::in_packs(to, out_stride) &&
                           collimate::in_packs(from, source_stride);
        return collimate::dispatch_access(packs, [&](auto access) {
            return collimate::launch<op::forward_kernel<T, decltype(access)::value>>(grid, stream, to, from, indices, shape,
                                                                                    error);
        });
    });
}

extern "C" int32_t collimate_gather_rows_backward(void *dsource, const void *dout, const int32_t *destinations,
                                                  const int32_t *offsets, const int32_t *order, int64_t groups,
                                                  int64_t columns, int64_t source_rows, int64_t out_stride,
                                                  int64_t source_stride, int32_t dsource_dtype, int32_t dtype,
                                                  int32_t *error, void *stream) {
    const op::Shape shape = {columns, source_rows, out_stride, source_stride};
    if (!op::is_valid(groups, shape)) return COLLIMATE_STATUS_ARGUMENT;
    if (dsource_dtype != dtype && dsource_dtype != COLLIMATE_F32) return COLLIMATE_STATUS_DTYPE;
    const auto run = [&](auto *to, const auto *from) {
        using D = std::remove_reference_t<decltype(*to)>;
        using T = std::remove_const_t<std::remove_reference_t<decltype(*from)>>;
        const int64_t across = collimate::ceil_div(columns, op::kThreads * collimate::kChunkSize<D, T>);
        if (across > 65535) return static_cast<int>(COLLIMATE_STATUS_ARGUMENT);
        const collimate::Grid grid = {{static_cast<unsigned>(groups), static_cast<unsigned>(across)}, {op::kThreads}};
        const bool packs = collimate::in_packs(to, source_stride) && collimate::in_packs(from, out_stride);
        return collimate::dispatch_access(packs, [&](auto access) {
            return collimate::launch<op::backward_kernel<D, T, decltype(access)::value>>(
                grid, stream, to, from, destinations, offsets, order, shape, error);
        });
    };
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        const auto *from = static_cast<const T *>(dout);
        if (dsource_dtype == COLLIMATE_F32) return run(static_cast<float *>(dsource), from);
        return run(static_cast<T *>(dsource), from);
    });
}
