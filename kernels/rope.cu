// rope: turns the pairs of every head in place by the angles of the row's position, which all heads and layers of a
// batch read from one table. Traffic: each value once in, once out; the table comes from cache.
#include "chunk.cuh"

namespace collimate::rope {

constexpr int kThreads = kTileThreads;

__global__ void __launch_bounds__(kThreads)
    table_kernel(float *table, const int32_t *positions, const double *inv_freq, int64_t rows, int64_t half,
                 Tiling tiling) {
    const Place at = place<1>(tiling);
    if (at.column >= half) return;
    for (int64_t row = at.row; row < rows; row += at.row_step) {
        const double angle = positions[row] * inv_freq[at.column];
        table[row * 2 * half + at.column] = static_cast<float>(cos(angle));
        table[row * 2 * half + half + at.column] = static_cast<float>(sin(angle));
    }
}

struct Shape {
    int64_t rows, items, stride;
    int32_t half, chunks;  // columns of half a head, and chunks of them
    float sign;
};

template <class T, Access access>
__global__ void __launch_bounds__(kThreads, 4) rope_kernel(T *x, const float *table, Shape shape, Tiling tiling) {
    constexpr int kSize = Pack<T>::kSize;
    const Place at = place<1>(tiling);
    if (at.column >= shape.items) return;
    const unsigned item = static_cast<unsigned>(at.column), chunks = shape.chunks;
    const int64_t head = item / chunks, first = item % chunks * kSize;
    const int64_t half = shape.half;
    for (int64_t row = at.row; row < shape.rows; row += at.row_step) {
        T *to = x + row * shape.stride + head * 2 * half;
        const float *angles = table + row * 2 * half;
        auto a = load_chunk<access, kSize>(to, first, half), b = load_chunk<access, kSize>(to + half, first, half);
        const auto cosines = load_chunk<access, kSize>(angles, first, half);
        const auto sines = load_chunk<access, kSize>(angles + half, first, half);
        for (int i = 0; i < kSize; i++) {
            const float u = a.at[i], v = b.at[i], c = cosines.at[i], s = shape.sign * sines.at[i];
            a.at[i] = fmaf(u, c, -(v * s));
            b.at[i] = fmaf(v, c, u * s);
        }
        store_chunk<access>(to, first, half, a);
        store_chunk<access>(to + half, first, half, b);
    }
}

constexpr int64_t kMaxItems = 1 << 30;

}  // namespace collimate::rope

namespace op = collimate::rope;

extern "C" int32_t collimate_rope_table(float *table, const int32_t *positions, const double *inv_freq, int64_t rows,
                                        int64_t half, void *stream) {
    if (rows < 0 || half < 1 || half > op::kMaxItems) return COLLIMATE_STATUS_ARGUMENT;
    collimate::Tiling tiling;
    const auto grid = collimate::tile(rows, half, 1, tiling);
    return collimate::launch<op::table_kernel>(grid, stream, table, positions, inv_freq, rows, half, tiling);
}

extern "C" int32_t collimate_rope(void *x, const float *table, int64_t rows, int64_t heads, int64_t half, int64_t stride,
                                  int32_t backwards, int32_t dtype, void *stream) {
    if (rows < 0 || heads < 0 || half < 1 || half > op::kMaxItems || heads > op::kMaxItems / half ||
        stride < heads * 2 * half) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        constexpr int kSize = collimate::Pack<T>::kSize;
        auto *to = static_cast<T *>(x);
        const int64_t chunks = collimate::ceil_div(half, kSize);
        const op::Shape shape = {rows, heads * chunks, stride, static_cast<int32_t>(half), static_cast<int32_t>(chunks),
                                 backwards ? -1.0f : 1.0f};
        const bool packs = half % kSize == 0 && collimate::in_packs(to, stride) && collimate::in_packs(table, half);
        return collimate::dispatch_access(packs, [&](auto access) {
            collimate::Tiling tiling;
            const auto grid = collimate::tile(rows, shape.items, 1, tiling);
            return collimate::launch<op::rope_kernel<T, decltype(access)::value>>(grid, stream, to, table, shape, tiling);
        });
    });
}
