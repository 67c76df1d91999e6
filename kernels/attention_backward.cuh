// Attention backward on the matrix units, for 16-bit elements and head dims 64, 96 and 128. Both kernels compute the
// probabilities anew from the lse: a block of 128 keys walks the queries that read it, a block of 128 queries the keys
// that it sees. Each warp owns 16 rows of the block's gradients; its probabilities go from one product into the next in
// registers, and the next tile arrives while one is worked on. 8 and 6 head_dim operations a pair of query and key.
#pragma once

#include "attention_mma.cuh"

namespace collimate::attention::mma {

constexpr int kBackwardThreads = 256;
static_assert(kBlock == kBackwardThreads / kWarpSize * kRows);

// Queries of a tile that a block of keys meets, and keys of one that a block of queries does. Of 128 columns the registers
// hold no more beside two gradients, nor does the shared memory of a GPU that gives a block 99 KiB.
template <int kDim>
constexpr int kBackwardTile = kDim == 128 ? 32 : 64;

template <class T, int kDim>
constexpr int kKeysBytes = (2 * kBlock + 4 * kBackwardTile<kDim>)*kDim * static_cast<int>(sizeof(T)) +
                           4 * kBackwardTile<kDim> * static_cast<int>(sizeof(float));
template <class T, int kDim>
constexpr int kQueriesBytes = (2 * kBlock + 4 * kBackwardTile<kDim>) * kDim * static_cast<int>(sizeof(T));

// p = exp(logit - lse), ds = p (dp - delta), in place; lse to base 2. Fused by name, so that both kernels have one p.
__device__ __forceinline__ void differentiate(float &logit, float &dp, float to_log2, float lse, float delta) {
    logit = exp2_approx(fmaf(logit, to_log2, -lse));
    dp = logit * (dp - delta);
}

// Where a block of keys is in its walk: query heads of its group, readers, tiles.
struct Walk {
    int head, reader, first;
};

template <class T, int kDim>
__global__ void __launch_bounds__(kBackwardThreads)
    dkv_kernel(Gradients<T> gradients, Inputs<T> inputs, const Keys *list, const Reader *readers) {
    constexpr int kTile = kBackwardTile<kDim>, kCount = kTile / 8;
    const int kv_heads = inputs.heads / inputs.group, kv_head = blockIdx.x % kv_heads;
    const Keys block = list[blockIdx.x / kv_heads];
    const Tile<T, kDim> keys = {shared<T>()}, values = {keys.elements + kBlock * kDim};
    T *tiles = values.elements + kBlock * kDim;
    auto *statistics = reinterpret_cast<float *>(tiles + 4 * kTile * kDim);
    const auto queries_of = [&](int buffer) { return Tile<T, kDim>{tiles + buffer * kTile * kDim}; };
    const auto douts_of = [&](int buffer) { return Tile<T, kDim>{tiles + (2 + buffer) * kTile * kDim}; };

    const int64_t kv_place = block.row * inputs.kv_stride + kv_head * kDim;
    const auto copy_block = [&](const Tile<T, kDim> &tile, const T *rows) {
        tile.template copy<kBlock, kBackwardThreads>(
            inputs.q, [&](int r) -> const T * { return r < block.count ? rows + r * inputs.kv_stride : nullptr; });
    };
    copy_block(keys, inputs.k + kv_place);
    copy_block(values, inputs.v + kv_place);
    // rows behind a reader's last are zeros, so that they add nothing
    const auto start = [&](const Walk &walk, int buffer) {
        const Reader reader = readers[walk.reader];
        const int64_t row = reader.row + walk.first;
        const int count = reader.count - walk.first;
        const T *q = inputs.q + row * inputs.q_stride + walk.head * kDim;
        const T *dout = gradients.dout + row * gradients.dout_stride + walk.head * kDim;
        queries_of(buffer).template copy<kTile, kBackwardThreads>(
            inputs.q, [&](int r) -> const T * { return r < count ? q + r * inputs.q_stride : nullptr; });
        douts_of(buffer).template copy<kTile, kBackwardThreads>(
            inputs.q, [&](int r) -> const T * { return r < count ? dout + r * gradients.dout_stride : nullptr; });
        copy_async_commit();
        const int r = threadIdx.x;
        if (r < kTile) {
            float *to = statistics + buffer * 2 * kTile + r;
            to[0] = r < count ? gradients.lse[(row + r) * gradients.lse_stride + walk.head] * kLog2e : 0.0f;
            to[kTile] = r < count ? gradients.delta[(row + r) * inputs.heads + walk.head] : 0.0f;
        }
    };

    const int lane = threadIdx.x % kWarpSize, row = threadIdx.x / kWarpSize * kRows;
    const float to_log2 = inputs.scale * kLog2e;
    const int last_head = kv_head * inputs.group + inputs.group, last_reader = block.first_reader + block.readers;
    float dk[1][kDim / 8][4], dv[1][kDim / 8][4];
    clear(dk[0]);
    clear(dv[0]);
    Walk walk = {kv_head * inputs.group, block.first_reader, 0};
    start(walk, 0);
    for (int buffer = 0; walk.head < last_head; buffer ^= 1) {
        const int first = walk.first;
        const bool causal = readers[walk.reader].causal != 0;
        walk.first += kTile;
        if (walk.first >= readers[walk.reader].count) {
            walk.first = 0;
            if (++walk.reader == last_reader) walk.reader = block.first_reader, walk.head++;
        }
        copy_async_wait<0>();
        __syncthreads();
        if (walk.head < last_head) start(walk, buffer ^ 1);
        // no query of the tile sees a key of the warp, or there is none
        if (row >= block.count || (causal && first + kTile <= row)) continue;
        const Tile<T, kDim> queries = queries_of(buffer), douts = douts_of(buffer);
        const float *lse = statistics + buffer * 2 * kTile, *delta = lse + kTile;
        float p[1][kCount][4], ds[1][kCount][4];
        inner(p, keys, row, queries);
        inner(ds, values, row, douts);
        const bool masks = causal && first < row + kRows - 1;
#pragma unroll
        for (int n = 0; n < kCount; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int query = n * 8 + lane % 4 * 2 + i % 2;
                if (masks && first + query < row + i / 2 * 8 + lane / 4) p[0][n][i] = -INFINITY;
                differentiate(p[0][n][i], ds[0][n][i], to_log2, lse[query], delta[query]);
            }
        }
        unsigned left[1][kCount / 2][4];
        as_left<T>(left[0], p[0]);
        add_outer(dv, left, douts);
        as_left<T>(left[0], ds[0]);
        add_outer(dk, left, queries);
    }
    if (row >= block.count) return;
    const int64_t to = block.row * gradients.dkv_stride + kv_head * kDim;
    store(gradients.dk + to, gradients.dkv_stride, keys, row, block.count, dk, [&](int, int) { return inputs.scale; });
    store(gradients.dv + to, gradients.dkv_stride, values, row, block.count, dv, [](int, int) { return 1.0f; });
}

template <class T, int kDim>
__global__ void __launch_bounds__(kBackwardThreads)
    dq_kernel(Gradients<T> gradients, Inputs<T> inputs, const Queries *list) {
    constexpr int kTile = kBackwardTile<kDim>, kCount = kTile / 8;
    const Queries block = list[blockIdx.x / inputs.heads];
    const int head = blockIdx.x % inputs.heads, total = keys_of(block);
    const Tile<T, kDim> queries = {shared<T>()}, douts = {queries.elements + kBlock * kDim};
    T *tiles = douts.elements + kBlock * kDim;
    const auto keys_of_buffer = [&](int buffer) { return Tile<T, kDim>{tiles + buffer * kTile * kDim}; };
    const auto values_of_buffer = [&](int buffer) { return Tile<T, kDim>{tiles + (2 + buffer) * kTile * kDim}; };

    const T *q = inputs.q + block.row * inputs.q_stride + head * kDim;
    const T *dout = gradients.dout + block.row * gradients.dout_stride + head * kDim;
    queries.template copy<kBlock, kBackwardThreads>(
        inputs.q, [&](int r) -> const T * { return r < block.count ? q + r * inputs.q_stride : nullptr; });
    douts.template copy<kBlock, kBackwardThreads>(
        inputs.q, [&](int r) -> const T * { return r < block.count ? dout + r * gradients.dout_stride : nullptr; });
    const auto copy_tile = [&](const Tile<T, kDim> &tile, const T *rows, int first) {
        tile.template copy<kTile, kBackwardThreads>(inputs.q, [&](int r) -> const T * {
            return first + r < total ? rows + key_row(block, first + r) * inputs.kv_stride : nullptr;
        });
    };
    const int64_t kv_column = head / inputs.group * kDim;
    const auto start = [&](int first, int buffer) {
        copy_tile(keys_of_buffer(buffer), inputs.k + kv_column, first);
        copy_tile(values_of_buffer(buffer), inputs.v + kv_column, first);
        copy_async_commit();
    };
    start(0, 0);

    const int lane = threadIdx.x % kWarpSize, row = threadIdx.x / kWarpSize * kRows;
    const float to_log2 = inputs.scale * kLog2e;
    // keys that the warp's first query sees, and its last one
    const int seen_first = total - block.count + 1 + row, seen_last = min(total, seen_first + kRows - 1);
    float lse[2] = {}, delta[2] = {}, dq[1][kDim / 8][4];
    clear(dq[0]);
    for (int half = 0; half < 2; half++) {
        const int r = row + half * 8 + lane / 4;
        if (r >= block.count) continue;
        lse[half] = gradients.lse[(block.row + r) * gradients.lse_stride + head] * kLog2e;
        delta[half] = gradients.delta[static_cast<int64_t>(block.row + r) * inputs.heads + head];
    }
    for (int first = 0, buffer = 0; first < total; first += kTile, buffer ^= 1) {
        copy_async_wait<0>();
        __syncthreads();
        if (first + kTile < total) start(first + kTile, buffer ^ 1);
        if (row >= block.count || first >= seen_last) continue;
        const Tile<T, kDim> keys = keys_of_buffer(buffer), values = values_of_buffer(buffer);
        float p[1][kCount][4], ds[1][kCount][4];
        inner(p, queries, row, keys);
        inner(ds, douts, row, values);
        const bool masks = first + kTile > seen_first;
#pragma unroll
        for (int n = 0; n < kCount; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = first + n * 8 + lane % 4 * 2 + i % 2;
                if (masks && key >= min(total, seen_first + i / 2 * 8 + lane / 4)) p[0][n][i] = -INFINITY;
                differentiate(p[0][n][i], ds[0][n][i], to_log2, lse[i / 2], delta[i / 2]);
            }
        }
        unsigned left[1][kCount / 2][4];
        as_left<T>(left[0], ds[0]);
        add_outer(dq, left, keys);
    }
    if (row >= block.count) return;
    store(gradients.dq + block.row * gradients.dq_stride + head * kDim, gradients.dq_stride, queries, row, block.count, dq,
          [&](int, int) { return inputs.scale; });
}

}  // namespace collimate::attention::mma
