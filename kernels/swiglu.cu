// swiglu: silu(gate) up, and its gradient, which computes the activation again instead of reading it.
// Traffic in 16 bits: 6 bytes forward, 10 backward per element of the output.
#include "chunk.cuh"

namespace collimate::swiglu {

constexpr int kThreads = kTileThreads;

struct Shape {
    int64_t rows, columns, out_stride, gate_up_stride, dgate_up_stride;
};

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <class T, Access access>
__global__ void __launch_bounds__(kThreads, 6) forward_kernel(T *out, const T *gate_up, Shape shape, Tiling tiling) {
    constexpr int kSize = Pack<T>::kSize;
    const Place at = place<kSize>(tiling);
    if (at.column >= shape.columns) return;
    for (int64_t row = at.row; row < shape.rows; row += at.row_step) {
        const T *from = gate_up + row * shape.gate_up_stride;
        const auto gate = load_chunk<access, kSize>(from, at.column, shape.columns);
        auto up = load_chunk<access, kSize>(from + shape.columns, at.column, shape.columns);
        for (int i = 0; i < kSize; i++) up.at[i] = gate.at[i] * sigmoid(gate.at[i]) * up.at[i];
        store_chunk<access>(out + row * shape.out_stride, at.column, shape.columns, up);
    }
}

template <class T, Access access>
__global__ void __launch_bounds__(kThreads, 4)
    backward_kernel(T *dgate_up, const T *dout, const T *gate_up, Shape shape, Tiling tiling) {
    constexpr int kSize = Pack<T>::kSize;
    const Place at = place<kSize>(tiling);
    if (at.column >= shape.columns) return;
    for (int64_t row = at.row; row < shape.rows; row += at.row_step) {
        const T *from = gate_up + row * shape.gate_up_stride;
        auto gate = load_chunk<access, kSize>(from, at.column, shape.columns);
        auto up = load_chunk<access, kSize>(from + shape.columns, at.column, shape.columns);
        const auto given = load_chunk<access, kSize>(dout + row * shape.out_stride, at.column, shape.columns);
        for (int i = 0; i < kSize; i++) {
            const float s = sigmoid(gate.at[i]), silu = gate.at[i] * s;
            // silu' = s (1 + gate (1 - s)) = s + silu (1 - s)
            const float slope = fmaf(silu, 1.0f - s, s);
            gate.at[i] = given.at[i] * up.at[i] * slope;
            up.at[i] = given.at[i] * silu;
        }
        T *to = dgate_up + row * shape.dgate_up_stride;
        store_chunk<access>(to, at.column, shape.columns, gate);
        store_chunk<access>(to + shape.columns, at.column, shape.columns, up);
    }
}

// Both halves of every row start at a pack.
template <class T>
bool halves_in_packs(const T *base, int64_t columns, int64_t stride) {
    return in_packs(base, stride) && in_packs(base, columns);
}

}  // namespace collimate::swiglu

namespace op = collimate::swiglu;

extern "C" int32_t collimate_swiglu_forward(void *out, const void *gate_up, int64_t rows, int64_t columns,
                                            int64_t out_stride, int64_t gate_up_stride, int32_t dtype, void *stream) {
    if (rows < 0 || columns < 0 || columns > collimate::kMaxColumns || out_stride < columns || gate_up_stride < 2 * columns) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    const op::Shape shape = {rows, columns, out_stride, gate_up_stride, 0};
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        auto *to = static_cast<T *>(out);
        const auto *from = static_cast<const T *>(gate_up);
        const bool packs = collimate::in_packs(to, out_stride) && op::halves_in_packs(from, columns, gate_up_stride);
        return collimate::dispatch_access(packs, [&](auto access) {
            collimate::Tiling tiling;
            const auto grid = collimate::tile(rows, columns, collimate::Pack<T>::kSize, tiling);
            return collimate::launch<op::forward_kernel<T, decltype(access)::value>>(grid, stream, to, from, shape, tiling);
        });
    });
}

extern "C" int32_t collimate_swiglu_backward(void *dgate_up, const void *dout, const void *gate_up, int64_t rows,
                                             int64_t columns, int64_t dgate_up_stride, int64_t dout_stride,
                                             int64_t gate_up_stride, int32_t dtype, void *stream) {
    if (rows < 0 || columns < 0 || columns > collimate::kMaxColumns || dout_stride < columns ||
        gate_up_stride < 2 * columns || dgate_up_stride < 2 * columns) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    const op::Shape shape = {rows, columns, dout_stride, gate_up_stride, dgate_up_stride};
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        auto *to = static_cast<T *>(dgate_up);
        const auto *given = static_cast<const T *>(dout);
        const auto *from = static_cast<const T *>(gate_up);
        const bool packs = op::halves_in_packs(to, columns, dgate_up_stride) && collimate::in_packs(given, dout_stride) &&
                           op::halves_in_packs(from, columns, gate_up_stride);
        return collimate::dispatch_access(packs, [&](auto access) {
            collimate::Tiling tiling;
            const auto grid = collimate::tile(rows, columns, collimate::Pack<T>::kSize, tiling);
            return collimate::launch<op::backward_kernel<T, decltype(access)::value>>(grid, stream, to, given, from, shape,
                                                                                     tiling);
        });
    });
}
