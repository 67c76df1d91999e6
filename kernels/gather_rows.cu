// gather_rows: rows of a matrix by index; backward adds the gradients of rows gathered from one place in a given order,
// so that no atomic decides the result. Traffic: each row once in, once out.
#include "launch.cuh"
#include "vec.cuh"

namespace collimate::gather_rows {

constexpr int kThreads = 256;

// Rows whose bases, strides and width are all multiples of a pack go pack by pack, others element by element.
enum class Access { kPacks, kElements };

template <class T, Access access>
struct Chunk {
    static constexpr int kSize = access == Access::kPacks ? Pack<T>::kSize : 1;
    T elements[kSize];
};

template <class T, Access access>
__device__ __forceinline__ Chunk<T, access> load(const T *from) {
    Chunk<T, access> chunk;
    if (access == Access::kPacks) {
        const uint4 bits = *reinterpret_cast<const uint4 *>(from);
        memcpy(&chunk, &bits, sizeof chunk);
    } else {
        chunk.elements[0] = *from;
    }
    return chunk;
}

template <class T, Access access>
__device__ __forceinline__ void store(T *to, const Chunk<T, access> &chunk) {
    if (access == Access::kPacks) {
        uint4 bits;
        memcpy(&bits, &chunk, sizeof chunk);
        *reinterpret_cast<uint4 *>(to) = bits;
    } else {
        *to = chunk.elements[0];
    }
}

struct Shape {
    int64_t columns, source_rows, out_stride, source_stride;
};

template <class T, Access access>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(T *out, const T *source, const int32_t *indices, Shape shape, int32_t *error) {
    constexpr int kSize = Chunk<T, access>::kSize;
    const int64_t row = blockIdx.x, index = indices[row];
    const bool inside = index >= 0 && index < shape.source_rows;
    if (!inside && threadIdx.x == 0) report_error(error, COLLIMATE_ERROR_INDEX, row, static_cast<int32_t>(index));
    for (int64_t column = threadIdx.x * kSize; column < shape.columns; column += kThreads * kSize) {
        Chunk<T, access> chunk;
        if (inside) {
            chunk = load<T, access>(source + index * shape.source_stride + column);
        } else {
            for (int j = 0; j < kSize; j++) chunk.elements[j] = from_float<T>(0.0f);
        }
        store<T, access>(out + row * shape.out_stride + column, chunk);
    }
}

template <class T, Access access>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(T *dsource, const T *dout, const int32_t *destinations, const int32_t *offsets,
                    const int32_t *order, Shape shape, int32_t *error) {
    constexpr int kSize = Chunk<T, access>::kSize;
    const int64_t group = blockIdx.x, index = destinations[group];
    if (index < 0 || index >= shape.source_rows) {
        if (threadIdx.x == 0) report_error(error, COLLIMATE_ERROR_INDEX, group, static_cast<int32_t>(index));
        return;
    }
    const int begin = offsets[group], end = offsets[group + 1];
    for (int64_t column = threadIdx.x * kSize; column < shape.columns; column += kThreads * kSize) {
        T *to = dsource + index * shape.source_stride + column;
        Chunk<T, access> chunk = load<T, access>(to);
        float sums[kSize];
        for (int j = 0; j < kSize; j++) sums[j] = to_float(chunk.elements[j]);
        for (int i = begin; i < end; i++) {
            const Chunk<T, access> given = load<T, access>(dout + order[i] * shape.out_stride + column);
            for (int j = 0; j < kSize; j++) sums[j] += to_float(given.elements[j]);
        }
        for (int j = 0; j < kSize; j++) chunk.elements[j] = from_float<T>(sums[j]);
        store<T, access>(to, chunk);
    }
}

template <class T>
bool in_packs(const void *a, const void *b, const Shape &shape) {
    const auto bytes = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b);
    const int64_t elements = shape.columns | shape.out_stride | shape.source_stride;
    return bytes % kPackBytes == 0 && elements % Pack<T>::kSize == 0;
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
        if (op::in_packs<T>(out, source, shape)) {
            return collimate::launch<op::forward_kernel<T, op::Access::kPacks>>(grid, stream, to, from, indices, shape, error);
        }
        return collimate::launch<op::forward_kernel<T, op::Access::kElements>>(grid, stream, to, from, indices, shape, error);
    });
}

extern "C" int32_t collimate_gather_rows_backward(void *dsource, const void *dout, const int32_t *destinations,
                                                  const int32_t *offsets, const int32_t *order, int64_t groups,
                                                  int64_t columns, int64_t source_rows, int64_t out_stride,
                                                  int64_t source_stride, int32_t dtype, int32_t *error, void *stream) {
    const op::Shape shape = {columns, source_rows, out_stride, source_stride};
    if (!op::is_valid(groups, shape)) return COLLIMATE_STATUS_ARGUMENT;
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        const collimate::Grid grid = {{static_cast<unsigned>(groups)}, {op::kThreads}};
        auto *to = static_cast<T *>(dsource);
        const auto *from = static_cast<const T *>(dout);
        if (op::in_packs<T>(dsource, dout, shape)) {
            return collimate::launch<op::backward_kernel<T, op::Access::kPacks>>(grid, stream, to, from, destinations,
                                                                                offsets, order, shape, error);
        }
        return collimate::launch<op::backward_kernel<T, op::Access::kElements>>(grid, stream, to, from, destinations,
                                                                               offsets, order, shape, error);
    });
}
