// dropout: leaves out a share of the values of a matrix and scales up the rest; the same call with the gradient is its own
// backward. Which values stay is a function of a counter, so that no mask is stored.
#include "chunk.cuh"
#include "philox.cuh"

namespace collimate::dropout {

constexpr int kThreads = kTileThreads;
constexpr int kDraws = 8;  // values of one block of random bits

struct Noise {
    uint64_t seed, stream;
    uint32_t threshold;  // of 2^16: a value whose draw is below it is left out
    float scale;
};

struct Shape {
    int64_t rows, columns, to_stride, from_stride;
    int64_t blocks;  // of random bits, of a row
};

template <class T, Access access>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(T *y, const T *x, Noise noise, Shape shape, bool add, Tiling tiling) {
    constexpr int kSize = Pack<T>::kSize;
    static_assert(kDraws % kSize == 0);
    const Place at = place<kSize>(tiling);
    if (at.column >= shape.columns) return;
    for (int64_t row = at.row; row < shape.rows; row += at.row_step) {
        T *to = y + row * shape.to_stride;
        auto values = load_chunk<access, kSize>(x + row * shape.from_stride, at.column, shape.columns);
        const Random random = philox(uint64_t(row * shape.blocks + at.column / kDraws), noise.stream, noise.seed);
#pragma unroll
        for (int i = 0; i < kSize; i++) {
            // Selected by a constant index: an array indexed at run time would lie in local memory.
            const int first = kSize == kDraws ? 0 : at.column % kDraws;
            const uint32_t word = first == 0 ? random.words[i / 2] : random.words[(i + kDraws - kSize) / 2 % 4];
            const uint32_t draw = i % 2 == 0 ? word & 0xFFFFu : word >> 16;
            values.at[i] = draw < noise.threshold ? 0.0f : values.at[i] * noise.scale;
        }
        if (add) {
            const auto before = load_chunk<access, kSize>(to, at.column, shape.columns);
#pragma unroll
            for (int i = 0; i < kSize; i++) values.at[i] += before.at[i];
        }
        store_chunk<access>(to, at.column, shape.columns, values);
    }
}

}  // namespace collimate::dropout

namespace op = collimate::dropout;

extern "C" int32_t collimate_dropout(void *y, const void *x, uint64_t seed, uint64_t random_stream, int32_t threshold,
                                     int64_t rows, int64_t columns, int64_t y_stride, int64_t x_stride, int32_t add,
                                     int32_t dtype, void *stream) {
    if (rows < 0 || columns < 0 || columns > collimate::kMaxColumns || y_stride < columns || x_stride < columns ||
        threshold < 0 || threshold >= 1 << 16) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    const op::Shape shape = {rows, columns, y_stride, x_stride, collimate::ceil_div(columns, op::kDraws)};
    const op::Noise noise = {seed, random_stream, uint32_t(threshold), 65536.0f / float(65536 - threshold)};
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        auto *to = static_cast<T *>(y);
        const auto *from = static_cast<const T *>(x);
        const bool packs = collimate::in_packs(to, y_stride) && collimate::in_packs(from, x_stride);
        return collimate::dispatch_access(packs, [&](auto access) {
            collimate::Tiling tiling;
            const auto grid = collimate::tile(rows, columns, collimate::Pack<T>::kSize, tiling);
            return collimate::launch<op::dropout_kernel<T, decltype(access)::value>>(grid, stream, to, from, noise, shape,
                                                                                    add != 0, tiling);
        });
    });
}
