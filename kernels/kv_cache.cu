// kv_cache: the new keys and values of all sequences to their rows of a layer's caches, in one launch.
// Traffic: each value once in, once out.
#include "chunk.cuh"

namespace collimate::kv_cache {

struct Shape {
    int64_t rows, columns, cache_rows, cache_stride, kv_stride;
};

// Moves bits. A pack lies in the keys or in the values, never in both.
template <class T, Access access>
__global__ void __launch_bounds__(kTileThreads)
    write_kernel(T *keys, T *values, const T *kv, const int32_t *places, Shape shape, Tiling tiling, int32_t *error) {
    constexpr bool kPacks = access == Access::kPacks;
    const Place at = place<kPacks ? Pack<T>::kSize : 1>(tiling);
    if (at.column >= 2 * shape.columns) return;
    T *cache = at.column < shape.columns ? keys + at.column : values + (at.column - shape.columns);
    for (int64_t row = at.row; row < shape.rows; row += at.row_step) {
        const int64_t index = places[row];
        if (index < 0 || index >= shape.cache_rows) {
            if (at.column == 0) report_error(error, COLLIMATE_ERROR_INDEX, row, static_cast<int32_t>(index));
            continue;
        }
        T *to = cache + index * shape.cache_stride;
        const T *from = kv + row * shape.kv_stride + at.column;
        if (kPacks) {
            *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(from);
        } else {
            *to = *from;
        }
    }
}

inline bool is_valid(const Shape &shape) {
    return shape.rows >= 0 && shape.columns >= 0 && shape.columns <= kMaxColumns / 2 && shape.cache_rows >= 0 &&
           shape.cache_stride >= shape.columns && shape.kv_stride >= 2 * shape.columns;
}

}  // namespace collimate::kv_cache

namespace op = collimate::kv_cache;

extern "C" int32_t collimate_kv_cache_write(void *keys, void *values, const void *kv, const int32_t *places, int64_t rows,
                                            int64_t columns, int64_t cache_rows, int64_t cache_stride, int64_t kv_stride,
                                            int32_t dtype, int32_t *error, void *stream) {
    const op::Shape shape = {rows, columns, cache_rows, cache_stride, kv_stride};
    if (!op::is_valid(shape)) return COLLIMATE_STATUS_ARGUMENT;
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        auto *key = static_cast<T *>(keys), *value = static_cast<T *>(values);
        const auto *from = static_cast<const T *>(kv);
        constexpr int kSize = collimate::Pack<T>::kSize;
        const bool packs = columns % kSize == 0 && collimate::in_packs(key, cache_stride) &&
                           collimate::in_packs(value, cache_stride) && collimate::in_packs(from, kv_stride);
        return collimate::dispatch_access(packs, [&](auto access) {
            collimate::Tiling tiling;
            const auto grid = collimate::tile(rows, 2 * columns, packs ? kSize : 1, tiling);
            return collimate::launch<op::write_kernel<T, decltype(access)::value>>(grid, stream, key, value, from, places,
                                                                                  shape, tiling, error);
        });
    });
}
