// Tiles of 16-bit rows in shared memory, and their products on the matrix units. A row's 16-byte packs are permuted so
// that ldmatrix, which reads 8 rows at one place, meets every bank once.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "attention.cuh"
#include "reduce.cuh"

namespace collimate::attention::mma {

constexpr int kPack = 8;   // elements of 16 bytes
constexpr int kRows = 16;  // of a product's tile
constexpr int kDepth = 16;

// A tile of rows of kDim elements in shared memory.
template <class T, int kDim>
struct Tile {
    static constexpr int kPacks = kDim / kPack;
    T *elements;

    __device__ __forceinline__ T *at(int row, int pack) const {
        // 96 columns are one and a half rounds of the banks
        const int permuted = kDim % 64 == 0 ? pack ^ (row & 7) : pack ^ (row >> 1 & 3);
        return elements + row * kDim + permuted * kPack;
    }

    // Starts the copy of kTileRows rows; `row_of(r)` is the row's address, or NULL for a row of zeros. `any` may be read.
    template <int kTileRows, int kThreads, class RowOf>
    __device__ __forceinline__ void copy(const T *any, RowOf row_of) const {
        static_assert(kTileRows * kPacks % kThreads == 0);
#pragma unroll 2
        for (int i = 0; i < kTileRows * kPacks / kThreads; i++) {
            const int place = i * kThreads + threadIdx.x, row = place / kPacks, pack = place % kPacks;
            const T *from = row_of(row);
            copy_async_16(at(row, pack), from ? from + pack * kPack : any, from != nullptr);
        }
    }

    // The tile's rows row .. row + 16, columns depth .. depth + 16, as a left operand.
    __device__ __forceinline__ void left(unsigned (&a)[4], int row, int depth) const {
        const int lane = threadIdx.x % kWarpSize;
        load_matrices(a, at(row + lane % 16, depth / kPack + lane / 16));
    }

    // Rows row .. row + 16 as columns of a right operand, from depth .. depth + 16: two operands of 8 columns each.
    __device__ __forceinline__ void right(unsigned (&b)[4], int row, int depth) const {
        const int lane = threadIdx.x % kWarpSize;
        load_matrices(b, at(row + lane / 16 * 8 + lane % 8, depth / kPack + lane / 8 % 2));
    }

    // Columns column .. column + 16 as columns of a right operand, from rows row .. row + 16: two operands.
    __device__ __forceinline__ void right_transposed(unsigned (&b)[4], int row, int column) const {
        const int lane = threadIdx.x % kWarpSize;
        load_matrices_transposed(b, at(row + lane % 16, column / kPack + lane / 16));
    }
};

// Results [16, kCount * 8] as left operands of depth 16, rounded to 16 bits: two neighbouring results are one.
template <class T, int kCount>
__device__ __forceinline__ void as_left(unsigned (&a)[kCount / 2][4], const float (&results)[kCount][4]) {
#pragma unroll
    for (int n = 0; n < kCount; n++) {
        a[n / 2][n % 2 * 2] = pack<T>(results[n][0], results[n][1]);
        a[n / 2][n % 2 * 2 + 1] = pack<T>(results[n][2], results[n][3]);
    }
}

template <int kCount>
__device__ __forceinline__ void clear(float (&results)[kCount][4]) {
#pragma unroll
    for (int n = 0; n < kCount; n++) {
        for (int i = 0; i < 4; i++) results[n][i] = 0.0f;
    }
}

// results [kTiles * 16, kCount * 8] = rows of `a` from a_row times rows of `b` from 0, over all columns.
template <class T, int kDim, int kTiles, int kCount>
__device__ __forceinline__ void inner(float (&results)[kTiles][kCount][4], const Tile<T, kDim> &a, int a_row,
                                      const Tile<T, kDim> &b) {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) clear(results[tile]);
#pragma unroll
    for (int depth = 0; depth < kDim; depth += kDepth) {
        unsigned left[kTiles][4];
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++) a.left(left[tile], a_row + tile * kRows, depth);
#pragma unroll
        for (int n = 0; n < kCount; n += 2) {
            unsigned right[4];
            b.right(right, n * 8, depth);
#pragma unroll
            for (int tile = 0; tile < kTiles; tile++) {
                multiply_add<T>(results[tile][n], left[tile], right[0], right[1]);
                multiply_add<T>(results[tile][n + 1], left[tile], right[2], right[3]);
            }
        }
    }
}

// results [kTiles * 16, kDim] += left [kTiles * 16, kDepths * 16] times the first kDepths * 16 rows of `b`.
template <class T, int kDim, int kTiles, int kDepths>
__device__ __forceinline__ void add_outer(float (&results)[kTiles][kDim / 8][4],
                                          const unsigned (&left)[kTiles][kDepths][4], const Tile<T, kDim> &b) {
#pragma unroll
    for (int k = 0; k < kDepths; k++) {
#pragma unroll
        for (int n = 0; n < kDim / 8; n += 2) {
            unsigned right[4];
            b.right_transposed(right, k * kDepth, n * 8);
#pragma unroll
            for (int tile = 0; tile < kTiles; tile++) {
                multiply_add<T>(results[tile][n], left[tile][k], right[0], right[1]);
                multiply_add<T>(results[tile][n + 1], left[tile][k], right[2], right[3]);
            }
        }
    }
}

// Writes a warp's results, times `scales(tile, half)`, to rows row .. of the tile, then on to memory, 16 bytes a lane:
// those rows below `count`, at `to`. The warp alone uses these rows of the tile.
template <class T, int kDim, int kTiles, class Scales>
__device__ __forceinline__ void store(T *to, int64_t stride, const Tile<T, kDim> &tile, int row, int count,
                                      const float (&results)[kTiles][kDim / 8][4], Scales scales) {
    constexpr int kPacks = Tile<T, kDim>::kPacks;
    const int lane = threadIdx.x % kWarpSize;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float scale = scales(m, half);
#pragma unroll
            for (int n = 0; n < kDim / 8; n++) {
                const unsigned packed = pack<T>(results[m][n][2 * half] * scale, results[m][n][2 * half + 1] * scale);
                T *place = tile.at(row + m * kRows + half * 8 + lane / 4, n) + lane % 4 * 2;
                memcpy(place, &packed, sizeof packed);
            }
        }
    }
    __syncwarp();
    for (int place = lane; place < kTiles * kRows * kPacks; place += kWarpSize) {
        const int r = row + place / kPacks, pack = place % kPacks;
        if (r < count) {
            *reinterpret_cast<uint4 *>(to + r * stride + pack * kPack) = *reinterpret_cast<const uint4 *>(tile.at(r, pack));
        }
    }
}

// Whether all rows start at 16 bytes.
inline bool is_aligned(std::initializer_list<const void *> pointers, std::initializer_list<int64_t> strides) {
    for (const void *pointer : pointers) {
        if (reinterpret_cast<uintptr_t>(pointer) % kPackBytes != 0) return false;
    }
    for (const int64_t stride : strides) {
        if (stride % kPack != 0) return false;
    }
    return true;
}

// Calls `body` with the head dim as a constant; false where these kernels do not have it.
template <class Body>
bool with_head_dim(int64_t head_dim, Body body) {
    switch (head_dim) {
        case 64: return body(std::integral_constant<int, 64>()), true;
        case 96: return body(std::integral_constant<int, 96>()), true;
        case 128: return body(std::integral_constant<int, 128>()), true;
        default: return false;
    }
}

}  // namespace collimate::attention::mma
