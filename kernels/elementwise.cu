// elementwise: sums, scales, fills and conversions of matrices, and the gradient of a bias.
// All are bound by memory: each value is read and written once, 16 bytes at a time.
#include "chunk.cuh"
#include "partials.cuh"

namespace collimate::elementwise {

constexpr int kThreads = kTileThreads;
constexpr int kBiasThreads = 128;
constexpr int kBiasRows = 64;  // whose gradients are summed into one partial result

struct Shape {
    int64_t rows, columns, to_stride, from_stride;
};

// Rows without gaps are one row.
inline Shape flat(Shape shape) {
    if (shape.rows > 1 && shape.to_stride == shape.columns && shape.from_stride == shape.columns) {
        shape.columns *= shape.rows;
        shape.rows = 1;
    }
    if (shape.rows == 1) shape.to_stride = shape.from_stride = 0;
    return shape;
}

inline bool is_valid(int64_t rows, int64_t columns, int64_t stride) {
    return rows >= 0 && columns >= 0 && stride >= columns && (rows == 0 || columns <= kMaxColumns / rows);
}

template <class T, Access access>
__global__ void __launch_bounds__(kThreads) add_kernel(T *y, const T *x, Shape shape, Tiling tiling) {
    constexpr int kSize = Pack<T>::kSize;
    const Place at = place<kSize>(tiling);
    if (at.column >= shape.columns) return;
    for (int64_t row = at.row; row < shape.rows; row += at.row_step) {
        T *to = y + row * shape.to_stride;
        const auto given = load_chunk<access, kSize>(x + row * shape.from_stride, at.column, shape.columns);
        auto sum = load_chunk<access, kSize>(to, at.column, shape.columns);
        for (int i = 0; i < kSize; i++) sum.at[i] += given.at[i];
        store_chunk<access>(to, at.column, shape.columns, sum);
    }
}

template <class T, Access access>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(T *x, const float *factors, float factor, Shape shape, Tiling tiling) {
    constexpr int kSize = Pack<T>::kSize;
    const Place at = place<kSize>(tiling);
    if (at.column >= shape.columns) return;
    for (int64_t row = at.row; row < shape.rows; row += at.row_step) {
        T *to = x + row * shape.to_stride;
        const float by = factors ? factors[row] * factor : factor;
        auto values = load_chunk<access, kSize>(to, at.column, shape.columns);
        for (int i = 0; i < kSize; i++) values.at[i] *= by;
        store_chunk<access>(to, at.column, shape.columns, values);
    }
}

template <class T, Access access>
__global__ void __launch_bounds__(kThreads) fill_kernel(T *x, float value, Shape shape, Tiling tiling) {
    constexpr int kSize = Pack<T>::kSize;
    const Place at = place<kSize>(tiling);
    if (at.column >= shape.columns) return;
    Chunk<kSize> values;
    for (int i = 0; i < kSize; i++) values.at[i] = value;
    for (int64_t row = at.row; row < shape.rows; row += at.row_step) {
        store_chunk<access>(x + row * shape.to_stride, at.column, shape.columns, values);
    }
}

template <class T, class U, Access access>
__global__ void __launch_bounds__(kThreads) cast_kernel(U *out, const T *x, Shape shape, Tiling tiling) {
    constexpr int kSize = kChunkSize<T, U>;
    const Place at = place<kSize>(tiling);
    if (at.column >= shape.columns) return;
    for (int64_t row = at.row; row < shape.rows; row += at.row_step) {
        const auto values = load_chunk<access, kSize>(x + row * shape.from_stride, at.column, shape.columns);
        store_chunk<access>(out + row * shape.to_stride, at.column, shape.columns, values);
    }
}

template <class T, Access access>
__global__ void __launch_bounds__(kBiasThreads, 8)
    bias_partials_kernel(float *partials, const T *dy, int64_t rows, int64_t columns, int64_t stride,
                         int64_t partial_columns) {
    constexpr int kSize = Pack<T>::kSize;
    const int64_t column = (int64_t(blockIdx.y) * kBiasThreads + threadIdx.x) * kSize;
    if (column >= columns) return;
    const int64_t begin = int64_t(blockIdx.x) * kBiasRows, end = min(begin + kBiasRows, rows);
    Chunk<kSize> sums = {};
#pragma unroll 4
    for (int64_t row = begin; row < end; row++) {
        const auto given = load_chunk<access, kSize>(dy + row * stride, column, columns);
        for (int i = 0; i < kSize; i++) sums.at[i] += given.at[i];
    }
    store_chunk<Access::kPacks>(partials + blockIdx.x * partial_columns, column, partial_columns, sums);
}

}  // namespace collimate::elementwise

namespace op = collimate::elementwise;

extern "C" int32_t collimate_add(void *y, const void *x, int64_t rows, int64_t columns, int64_t y_stride,
                                 int64_t x_stride, int32_t dtype, void *stream) {
    if (!op::is_valid(rows, columns, y_stride) || (x_stride != 0 && x_stride < columns)) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    const op::Shape shape = op::flat({rows, columns, y_stride, x_stride});
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        auto *to = static_cast<T *>(y);
        const auto *from = static_cast<const T *>(x);
        const bool packs = collimate::in_packs(to, shape.to_stride) && collimate::in_packs(from, shape.from_stride);
        return collimate::dispatch_access(packs, [&](auto access) {
            collimate::Tiling tiling;
            const auto grid = collimate::tile(shape.rows, shape.columns, collimate::Pack<T>::kSize, tiling);
            return collimate::launch<op::add_kernel<T, decltype(access)::value>>(grid, stream, to, from, shape, tiling);
        });
    });
}

extern "C" int32_t collimate_scale(void *x, const float *factors, float factor, int64_t rows, int64_t columns,
                                   int64_t stride, int32_t dtype, void *stream) {
    if (!op::is_valid(rows, columns, stride)) return COLLIMATE_STATUS_ARGUMENT;
    const op::Shape given = {rows, columns, stride, stride}, shape = factors ? given : op::flat(given);
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        auto *to = static_cast<T *>(x);
        return collimate::dispatch_access(collimate::in_packs(to, shape.to_stride), [&](auto access) {
            collimate::Tiling tiling;
            const auto grid = collimate::tile(shape.rows, shape.columns, collimate::Pack<T>::kSize, tiling);
            return collimate::launch<op::scale_kernel<T, decltype(access)::value>>(grid, stream, to, factors, factor,
                                                                                  shape, tiling);
        });
    });
}

extern "C" int32_t collimate_fill(void *x, float value, int64_t rows, int64_t columns, int64_t stride, int32_t dtype,
                                  void *stream) {
    if (!op::is_valid(rows, columns, stride)) return COLLIMATE_STATUS_ARGUMENT;
    const op::Shape shape = op::flat({rows, columns, stride, stride});
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        auto *to = static_cast<T *>(x);
        return collimate::dispatch_access(collimate::in_packs(to, shape.to_stride), [&](auto access) {
            collimate::Tiling tiling;
            const auto grid = collimate::tile(shape.rows, shape.columns, collimate::Pack<T>::kSize, tiling);
            return collimate::launch<op::fill_kernel<T, decltype(access)::value>>(grid, stream, to, value, shape, tiling);
        });
    });
}

extern "C" int32_t collimate_cast(void *out, const void *x, int64_t rows, int64_t columns, int64_t out_stride,
                                  int64_t x_stride, int32_t out_dtype, int32_t x_dtype, void *stream) {
    if (!op::is_valid(rows, columns, out_stride) || x_stride < columns) return COLLIMATE_STATUS_ARGUMENT;
    const op::Shape shape = op::flat({rows, columns, out_stride, x_stride});
    return collimate::dispatch_dtype(x_dtype, [&](auto from_type) {
        return collimate::dispatch_dtype(out_dtype, [&](auto to_type) {
            using T = typename decltype(from_type)::Element;
            using U = typename decltype(to_type)::Element;
            auto *to = static_cast<U *>(out);
            const auto *from = static_cast<const T *>(x);
            const bool packs = collimate::in_packs(to, shape.to_stride) && collimate::in_packs(from, shape.from_stride);
            return collimate::dispatch_access(packs, [&](auto access) {
                constexpr int kSize = collimate::kChunkSize<T, U>;
                collimate::Tiling tiling;
                const auto grid = collimate::tile(shape.rows, shape.columns, kSize, tiling);
                return collimate::launch<op::cast_kernel<T, U, decltype(access)::value>>(grid, stream, to, from, shape,
                                                                                        tiling);
            });
        });
    });
}

extern "C" int64_t collimate_bias_backward_workspace(int64_t rows, int64_t columns) {
    return collimate::ceil_div(rows, op::kBiasRows) * collimate::partial_stride(columns) * int64_t(sizeof(float));
}

extern "C" int32_t collimate_bias_backward(float *dbias, const void *dy, int64_t rows, int64_t columns,
                                           int64_t dy_stride, int32_t dtype, void *workspace, int64_t workspace_bytes,
                                           void *stream) {
    if (!op::is_valid(rows, columns, dy_stride)) return COLLIMATE_STATUS_ARGUMENT;
    if (workspace_bytes < collimate_bias_backward_workspace(rows, columns)) return COLLIMATE_STATUS_WORKSPACE;
    auto *partials = static_cast<float *>(workspace);
    const int64_t blocks = collimate::ceil_div(rows, op::kBiasRows), partial_columns = collimate::partial_stride(columns);
    const int32_t status = collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        const auto *from = static_cast<const T *>(dy);
        const int64_t across = collimate::ceil_div(columns, op::kBiasThreads * collimate::Pack<T>::kSize);
        if (across > 65535) return static_cast<int>(COLLIMATE_STATUS_ARGUMENT);
        const collimate::Grid grid = {{static_cast<unsigned>(blocks), static_cast<unsigned>(across)}, {op::kBiasThreads}};
        return collimate::dispatch_access(collimate::in_packs(from, rows == 1 ? 0 : dy_stride), [&](auto access) {
            return collimate::launch<op::bias_partials_kernel<T, decltype(access)::value>>(grid, stream, partials, from,
                                                                                          rows, columns, dy_stride, partial_columns);
        });
    });
    if (status != COLLIMATE_OK) return status;
    return collimate::add_partials(dbias, partials, blocks, columns, partial_columns, stream);
}
