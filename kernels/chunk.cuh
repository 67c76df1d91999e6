// A row's columns as float32, some neighbours a thread: 16 bytes at a time where rows are aligned, else element by
// element. Which thread takes which columns is the same either way, so that no result depends on an address.
#pragma once

#include <type_traits>

#include "launch.cuh"
#include "vec.cuh"

namespace collimate {

// Rows whose bases and strides are all multiples of a pack go pack by pack.
enum class Access { kPacks, kElements };

template <int size>
struct Chunk {
    float at[size];
};

// A pack of a row from column `first`, as it lies there; columns from `columns` on read as 0.
template <Access access, class T>
__device__ __forceinline__ Pack<T> load_pack(const T *row, int64_t first, int64_t columns) {
    if (access == Access::kPacks && first + Pack<T>::kSize <= columns) {
        return pack_of<T>(*reinterpret_cast<const uint4 *>(row + first));
    }
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) {
        pack.elements[i] = first + i < columns ? row[first + i] : from_float<T>(0.0f);
    }
    return pack;
}

template <class T>
__device__ __forceinline__ Chunk<Pack<T>::kSize> unpack(const Pack<T> &pack) {
    Chunk<Pack<T>::kSize> chunk;
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) chunk.at[i] = to_float(pack.elements[i]);
    return chunk;
}

// Columns first .. first + size of a row; those from `columns` on read as 0.
template <Access access, int size, class T>
__device__ __forceinline__ Chunk<size> load_chunk(const T *row, int64_t first, int64_t columns) {
    constexpr int kSize = Pack<T>::kSize;
    static_assert(size % kSize == 0);
    Chunk<size> chunk;
    if (access == Access::kPacks && first + size <= columns) {
        Pack<T> packs[size / kSize];
#pragma unroll
        for (int p = 0; p < size / kSize; p++) {
            packs[p] = pack_of<T>(reinterpret_cast<const uint4 *>(row + first)[p]);
        }
#pragma unroll
        for (int i = 0; i < size; i++) chunk.at[i] = to_float(packs[i / kSize].elements[i % kSize]);
        return chunk;
    }
#pragma unroll
    for (int i = 0; i < size; i++) chunk.at[i] = first + i < columns ? to_float(row[first + i]) : 0.0f;
    return chunk;
}

// Stores columns first .. first + size, leaving alone those from `columns` on.
template <Access access, int size, class T>
__device__ __forceinline__ void store_chunk(T *row, int64_t first, int64_t columns, const Chunk<size> &chunk) {
    constexpr int kSize = Pack<T>::kSize;
    static_assert(size % kSize == 0);
    if (access == Access::kPacks && first + size <= columns) {
#pragma unroll
        for (int p = 0; p < size / kSize; p++) {
            Pack<T> pack;
#pragma unroll
            for (int j = 0; j < kSize; j++) pack.elements[j] = from_float<T>(chunk.at[p * kSize + j]);
            *reinterpret_cast<Pack<T> *>(row + first + p * kSize) = pack;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < size; i++) {
        if (first + i < columns) row[first + i] = from_float<T>(chunk.at[i]);
    }
}

// Columns that a thread takes of rows of these types: a pack of the narrower one.
template <class T, class U>
constexpr int kChunkSize = Pack<T>::kSize > Pack<U>::kSize ? Pack<T>::kSize : Pack<U>::kSize;

// Whether every row starts at a pack; a single row has no stride: 0.
template <class T>
bool in_packs(const T *base, int64_t stride) {
    return reinterpret_cast<uintptr_t>(base) % kPackBytes == 0 && stride % Pack<T>::kSize == 0;
}

// Calls `body` with the Access as a type.
template <class Body>
int dispatch_access(bool packs, Body body) {
    return packs ? body(std::integral_constant<Access, Access::kPacks>())
                 : body(std::integral_constant<Access, Access::kElements>());
}

// A grid over a matrix, a chunk a thread: narrow rows share a block.
struct Tiling {
    int32_t log2_lanes;  // threads side by side in a row
};

constexpr int kTileThreads = 256;

inline Grid tile(int64_t rows, int64_t columns, int size, Tiling &tiling) {
    const int64_t chunks = ceil_div(columns, size);
    tiling.log2_lanes = 0;
    while (tiling.log2_lanes < 8 && int64_t(1) << tiling.log2_lanes < chunks) tiling.log2_lanes++;
    const int64_t across = ceil_div(chunks, int64_t(1) << tiling.log2_lanes);
    const int64_t down = ceil_div(rows, kTileThreads >> tiling.log2_lanes);
    return {{static_cast<unsigned>(across), static_cast<unsigned>(down < 65535 ? down : 65535)}, {kTileThreads}};
}

// The largest number of columns that `tile` has blocks for.
constexpr int64_t kMaxColumns = kMaxGridX * kTileThreads;

// A thread's column, its first row, and how far apart its rows are.
struct Place {
    int64_t row, row_step, column;
};

template <int size>
__device__ __forceinline__ Place place(Tiling tiling) {
    const unsigned lanes = 1u << tiling.log2_lanes, rows = kTileThreads >> tiling.log2_lanes;
    const unsigned row = threadIdx.x >> tiling.log2_lanes, lane = threadIdx.x & (lanes - 1);
    return {int64_t(blockIdx.y) * rows + row, int64_t(gridDim.y) * rows, (int64_t(blockIdx.x) * lanes + lane) * size};
}

}  // namespace collimate
