// Attention forward on the matrix units, for 16-bit elements and head dims 64, 96 and 128, in the form of
// FlashAttention-2: 128 queries stay in shared memory and meet tiles of 64 keys; while a tile's logits are computed its
// values arrive, and while its values are added up the next keys do. Warps have 32 queries each, so that a fragment of
// keys or values feeds four products. Floor: 4 head_dim operations a pair of query and key.
#pragma once

#include "attention_mma.cuh"

namespace collimate::attention::mma {

constexpr int kForwardThreads = 128;
constexpr int kForwardTiles = kBlock / (kForwardThreads / kWarpSize) / kRows;  // of 16 queries, a warp
constexpr int kForwardKeys = 64;

template <class T, int kDim>
constexpr int kForwardBytes = (kBlock + 2 * kForwardKeys) * kDim * static_cast<int>(sizeof(T));

template <class T, int kDim>
__global__ void __launch_bounds__(kForwardThreads)
    forward_kernel(T *out, float *lse, Inputs<T> inputs, const Queries *list, int64_t out_stride, int64_t lse_stride) {
    constexpr int kCount = kForwardKeys / 8;
    const Queries block = list[blockIdx.x / inputs.heads];
    const int head = blockIdx.x % inputs.heads, total = keys_of(block);
    const Tile<T, kDim> queries = {shared<T>()}, keys = {queries.elements + kBlock * kDim};
    const Tile<T, kDim> values = {keys.elements + kForwardKeys * kDim};
    const T *q = inputs.q + block.row * inputs.q_stride + head * kDim;
    const int64_t kv_column = head / inputs.group * kDim;
    const T *k = inputs.k + kv_column, *v = inputs.v + kv_column;
    const auto copy_keys = [&](const Tile<T, kDim> &tile, const T *rows, int first) {
        tile.template copy<kForwardKeys, kForwardThreads>(inputs.q, [&](int r) -> const T * {
            return first + r < total ? rows + key_row(block, first + r) * inputs.kv_stride : nullptr;
        });
        copy_async_commit();
    };
    queries.template copy<kBlock, kForwardThreads>(
        inputs.q, [&](int r) -> const T * { return r < block.count ? q + r * inputs.q_stride : nullptr; });
    copy_keys(keys, k, 0);

    const int lane = threadIdx.x % kWarpSize, row = threadIdx.x / kWarpSize * kForwardTiles * kRows;
    const float to_log2 = inputs.scale * kLog2e;
    // keys that the warp's first query sees, and its last one
    const int seen_first = total - block.count + 1 + row, seen_last = min(total, seen_first + kForwardTiles * kRows - 1);
    const bool is_used = row < block.count;
    float outputs[kForwardTiles][kDim / 8][4], largest[kForwardTiles][2], sums[kForwardTiles][2];
#pragma unroll
    for (int m = 0; m < kForwardTiles; m++) {
        clear(outputs[m]);
        for (int half = 0; half < 2; half++) largest[m][half] = -INFINITY, sums[m][half] = 0.0f;
    }
    for (int first = 0; first < total; first += kForwardKeys) {
        const bool meets = is_used && first < seen_last;
        copy_async_wait<0>();
        __syncthreads();
        copy_keys(values, v, first);
        unsigned weights[kForwardTiles][kCount / 2][4];
        if (meets) {
            float logits[kForwardTiles][kCount][4];
            inner(logits, queries, row, keys);
            if (first + kForwardKeys > seen_first) {
#pragma unroll
                for (int m = 0; m < kForwardTiles; m++) {
#pragma unroll
                    for (int n = 0; n < kCount; n++) {
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            const int key = first + n * 8 + lane % 4 * 2 + i % 2;
                            const int seen = min(total, seen_first + m * kRows + i / 2 * 8 + lane / 4);
                            if (key >= seen) logits[m][n][i] = -INFINITY;
                        }
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < kForwardTiles; m++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float best = largest[m][half];
#pragma unroll
                    for (int n = 0; n < kCount; n++) {
                        best = fmaxf(best, fmaxf(logits[m][n][2 * half], logits[m][n][2 * half + 1]));
                    }
                    best = fmaxf(best, __shfl_xor_sync(kFullWarp, best, 1));
                    best = fmaxf(best, __shfl_xor_sync(kFullWarp, best, 2));
                    // rounded alone: fused, the shrink would be beside 1 where the largest stays, tile after tile
                    const float base = __fmul_rn(best, to_log2);
                    const float shrink = exp2_approx(__fmul_rn(largest[m][half], to_log2) - base);
                    largest[m][half] = best;
                    float sum = sums[m][half] * shrink;
#pragma unroll
                    for (int n = 0; n < kCount; n++) {
#pragma unroll
                        for (int i = 2 * half; i < 2 * half + 2; i++) {
                            logits[m][n][i] = exp2_approx(fmaf(logits[m][n][i], to_log2, -base));
                            sum += logits[m][n][i];
                        }
                    }
                    sums[m][half] = sum;
#pragma unroll
                    for (int n = 0; n < kDim / 8; n++) {
                        outputs[m][n][2 * half] *= shrink;
                        outputs[m][n][2 * half + 1] *= shrink;
                    }
                }
                as_left<T>(weights[m], logits[m]);
            }
        }
        copy_async_wait<0>();
        __syncthreads();
        if (first + kForwardKeys < total) copy_keys(keys, k, first + kForwardKeys);
        if (meets) add_outer(outputs, weights, values);
    }
    if (!is_used) return;
#pragma unroll
    for (int m = 0; m < kForwardTiles; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = sums[m][half];
            sum += __shfl_xor_sync(kFullWarp, sum, 1);
            sum += __shfl_xor_sync(kFullWarp, sum, 2);
            const int r = row + m * kRows + half * 8 + lane / 4;
            if (lse && lane % 4 == 0 && r < block.count) {
                lse[(block.row + r) * lse_stride + head] = (__fmul_rn(largest[m][half], to_log2) + log2f(sum)) * kLn2;
            }
            sums[m][half] = 1.0f / sum;
        }
    }
    store(out + block.row * out_stride + head * kDim, out_stride, queries, row, block.count, outputs,
          [&](int m, int half) { return sums[m][half]; });
}

}  // namespace collimate::attention::mma
