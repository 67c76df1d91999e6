// Attention for any head dim and element type, in float32 arithmetic on the CUDA cores. Blocks of 64 queries meet tiles
// of 64 keys; a head's columns go through shared memory in chunks, and a block owns at most 128 output columns, so that
// a wide head takes several blocks which each compute the logits anew.
#pragma once

#include "attention.cuh"
#include "reduce.cuh"

namespace collimate::attention::plain {

constexpr int kThreads = 256;
constexpr int kTile = 64;    // queries, and keys
constexpr int kChunk = 32;   // columns in shared memory at a time
constexpr int kPanel = 128;  // output columns of a block
constexpr int kChunks = kPanel / kChunk;
constexpr int kHalves = kBlock / kTile;  // of a list's block
constexpr int kChunkPitch = kChunk + 1, kTilePitch = kTile + 4;  // without bank conflicts
constexpr int kMicro = 4, kLanes = kTile / kMicro;

// A thread's part of a [kTile, kTile] product: rows row + i, columns column + kLanes j.
struct Place {
    int row, column;
    __device__ Place() : row(threadIdx.x / kLanes * kMicro), column(threadIdx.x % kLanes) {}
};

// A thread's part of [kTile, kPanel] outputs: rows row + i, columns chunk kChunk + column + kLanes j.
constexpr int kAcross = kChunk / kLanes;
using Outputs = float[kChunks][kAcross][kMicro];

__device__ __forceinline__ void clear(Outputs &outputs) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; chunk++) {
        for (int j = 0; j < kAcross; j++) {
            for (int i = 0; i < kMicro; i++) outputs[chunk][j][i] = 0.0f;
        }
    }
}

// Columns first .. first + columns of kTile rows; `row_of(r)` is the row's address, or NULL for a row of zeros.
template <class RowOf>
__device__ __forceinline__ void load_chunk(float *chunk, int first, int columns, RowOf row_of) {
    const int lane = threadIdx.x % kChunk;
    for (int r = threadIdx.x / kChunk; r < kTile; r += kThreads / kChunk) {
        const auto *row = row_of(r);
        if (lane < columns) chunk[r * kChunkPitch + lane] = row ? to_float(row[first + lane]) : 0.0f;
    }
}

// product += a b^T over the chunk's columns.
__device__ __forceinline__ void add_inner(float (&product)[kMicro][kMicro], const float *a, const float *b, int columns,
                                          Place place) {
#pragma unroll 4
    for (int c = 0; c < columns; c++) {
        float left[kMicro], right[kMicro];
        for (int i = 0; i < kMicro; i++) left[i] = a[(place.row + i) * kChunkPitch + c];
        for (int j = 0; j < kMicro; j++) right[j] = b[(place.column + kLanes * j) * kChunkPitch + c];
        for (int i = 0; i < kMicro; i++) {
            for (int j = 0; j < kMicro; j++) product[i][j] += left[i] * right[j];
        }
    }
}

// [kTile, kTile] product of the rows that two functions name, over all columns of a head.
template <class RowOfA, class RowOfB>
__device__ __forceinline__ void inner(float (&product)[kMicro][kMicro], float *a, float *b, int head_dim, Place place,
                                      RowOfA row_of_a, RowOfB row_of_b) {
    for (int i = 0; i < kMicro; i++) {
        for (int j = 0; j < kMicro; j++) product[i][j] = 0.0f;
    }
    for (int first = 0; first < head_dim; first += kChunk) {
        const int columns = min(kChunk, head_dim - first);
        __syncthreads();
        load_chunk(a, first, columns, row_of_a);
        load_chunk(b, first, columns, row_of_b);
        __syncthreads();
        add_inner(product, a, b, columns, place);
    }
}

// outputs[chunk] += weights rows, where weights(i, k) is that of output row i and row k of `rows`, which have so many
// columns.
template <class Weights>
__device__ __forceinline__ void add_outer(float (&outputs)[kAcross][kMicro], const float *rows, int count, int columns,
                                          Place place, Weights weights) {
    if (place.column >= columns) return;
#pragma unroll 4
    for (int k = 0; k < count; k++) {
        float left[kMicro], right[kAcross];
        for (int i = 0; i < kMicro; i++) left[i] = weights(place.row + i, k);
        for (int j = 0; j < kAcross; j++) right[j] = rows[k * kChunkPitch + place.column + kLanes * j];
        for (int i = 0; i < kMicro; i++) {
            for (int j = 0; j < kAcross; j++) outputs[j][i] += left[i] * right[j];
        }
    }
}

// Writes a thread's outputs to the panel's columns of `count` rows at `to`.
template <class T>
__device__ __forceinline__ void store(T *to, int64_t stride, const Outputs &outputs, int count, int columns, float scale,
                                      Place place) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; chunk++) {
        for (int j = 0; j < kAcross; j++) {
            const int column = chunk * kChunk + place.column + kLanes * j;
            for (int i = 0; i < kMicro; i++) {
                const int row = place.row + i;
                if (row < count && column < columns) {
                    to[row * stride + column] = from_float<T>(outputs[chunk][j][i] * scale);
                }
            }
        }
    }
}

// The half of a list's block that a CUDA block works on; without queries where the list's block ends before.
__device__ __forceinline__ Queries half_of(Queries block, int half) {
    const int start = half * kTile;
    block.row += start;
    block.first += start;
    block.count = min(block.count - start, kTile);
    return block;
}

constexpr int kForwardFloats = 2 * kTile * kChunkPitch + kTile * kTilePitch + kTile;
constexpr int kBackwardFloats = 2 * kTile * kChunkPitch + 2 * kTile * kTilePitch + 2 * kTile;

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(T *out, float *lse, Inputs<T> inputs, const Queries *list, int64_t out_stride, int64_t lse_stride) {
    const int head = blockIdx.x % inputs.heads, d = inputs.head_dim, panel = blockIdx.y * kPanel;
    const int half = blockIdx.x / inputs.heads % kHalves;
    const Queries block = half_of(list[blockIdx.x / inputs.heads / kHalves], half);
    if (block.count <= 0) return;
    auto *a = shared<float>(), *b = a + kTile * kChunkPitch, *p = b + kTile * kChunkPitch;
    float *shrinks = p + kTile * kTilePitch;
    const Place place;
    const T *q = inputs.q + block.row * inputs.q_stride + static_cast<int64_t>(head) * d;
    const int64_t kv_column = static_cast<int64_t>(head / inputs.group) * d;
    const float to_log2 = inputs.scale * kLog2e;
    const int total = keys_of(block), panel_columns = min(kPanel, d - panel);

    // four threads share a row's statistics
    const int row = threadIdx.x / 4, quarter = threadIdx.x % 4;
    float largest = -INFINITY, sum = 0.0f;
    Outputs outputs;
    clear(outputs);
    for (int first = 0; first < total; first += kTile) {
        const auto row_of = [&](const T *rows, int r) -> const T * {
            return first + r < total ? rows + key_row(block, first + r) * inputs.kv_stride + kv_column : nullptr;
        };
        float logits[kMicro][kMicro];
        inner(logits, a, b, d, place,
              [&](int r) { return r < block.count ? q + r * inputs.q_stride : nullptr; },
              [&](int r) { return row_of(inputs.k, r); });
        for (int i = 0; i < kMicro; i++) {
            const int seen = total - (block.count - 1 - (place.row + i)) - first;
            for (int j = 0; j < kMicro; j++) {
                const int key = place.column + kLanes * j;
                p[(place.row + i) * kTilePitch + key] = key < seen ? logits[i][j] * to_log2 : -INFINITY;
            }
        }
        __syncthreads();
        float *mine = p + row * kTilePitch + quarter;
        float best = largest;
        for (int i = 0; i < kTile; i += 4) best = fmaxf(best, mine[i]);
        best = fmaxf(best, __shfl_xor_sync(kFullWarp, best, 1));
        best = fmaxf(best, __shfl_xor_sync(kFullWarp, best, 2));
        const float base = best == -INFINITY ? 0.0f : best, shrink = exp2_approx(largest - base);
        float added = 0.0f;
        for (int i = 0; i < kTile; i += 4) {
            mine[i] = exp2_approx(mine[i] - base);
            added += mine[i];
        }
        added += __shfl_xor_sync(kFullWarp, added, 1);
        added += __shfl_xor_sync(kFullWarp, added, 2);
        sum = sum * shrink + added;
        largest = best;
        if (quarter == 0) shrinks[row] = shrink;
#pragma unroll
        for (int chunk = 0; chunk < kChunks; chunk++) {
            const int columns = min(kChunk, panel_columns - chunk * kChunk);
            if (columns <= 0) break;
            __syncthreads();
            load_chunk(b, panel + chunk * kChunk, columns, [&](int r) { return row_of(inputs.v, r); });
            __syncthreads();
            for (int i = 0; i < kMicro; i++) {
                for (int j = 0; j < kAcross; j++) outputs[chunk][j][i] *= shrinks[place.row + i];
            }
            add_outer(outputs[chunk], b, min(kTile, total - first), columns, place,
                      [&](int r, int k) { return p[r * kTilePitch + k]; });
        }
    }
    __syncthreads();
    if (quarter == 0) {
        shrinks[row] = 1.0f / sum;
        if (lse && panel == 0 && row < block.count) {
            lse[(block.row + row) * lse_stride + head] = (largest + log2f(sum)) * kLn2;
        }
    }
    __syncthreads();
    for (int i = 0; i < kMicro; i++) {
        const float inverse = shrinks[place.row + i];
#pragma unroll
        for (int chunk = 0; chunk < kChunks; chunk++) {
            for (int j = 0; j < kAcross; j++) outputs[chunk][j][i] *= inverse;
        }
    }
    store(out + block.row * out_stride + static_cast<int64_t>(head) * d + panel, out_stride, outputs, block.count,
          panel_columns, 1.0f, place);
}

// p and ds of a tile from its two products: p = exp(logit - lse), ds = p (dp - delta), both 0 where not seen.
template <class Seen>
__device__ __forceinline__ void differentiate(float *p, float *ds, const float (&logits)[kMicro][kMicro],
                                              const float (&dp)[kMicro][kMicro], const float *lse, const float *delta,
                                              float to_log2, Place place, Seen seen) {
    for (int i = 0; i < kMicro; i++) {
        const int row = place.row + i;
        for (int j = 0; j < kMicro; j++) {
            const int key = place.column + kLanes * j, at = row * kTilePitch + key;
            const float y = seen(row, key) ? exp2_approx(fmaf(logits[i][j], to_log2, -lse[row])) : 0.0f;
            p[at] = y;
            ds[at] = y * (dp[i][j] - delta[row]);
        }
    }
}

// The statistics of `count` queries, to base 2; zeros behind them.
__device__ __forceinline__ void load_statistics(float *lse, float *delta, const float *lse_rows, int64_t lse_stride,
                                                const float *delta_rows, int64_t delta_stride, int count) {
    for (int r = threadIdx.x; r < kTile; r += kThreads) {
        lse[r] = r < count ? lse_rows[r * lse_stride] * kLog2e : 0.0f;
        delta[r] = r < count ? delta_rows[r * delta_stride] : 0.0f;
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    dq_kernel(Gradients<T> gradients, Inputs<T> inputs, const Queries *list) {
    const int head = blockIdx.x % inputs.heads, d = inputs.head_dim, panel = blockIdx.y * kPanel;
    const int half = blockIdx.x / inputs.heads % kHalves;
    const Queries block = half_of(list[blockIdx.x / inputs.heads / kHalves], half);
    if (block.count <= 0) return;
    auto *a = shared<float>(), *b = a + kTile * kChunkPitch, *p = b + kTile * kChunkPitch;
    float *ds = p + kTile * kTilePitch, *lse = ds + kTile * kTilePitch, *delta = lse + kTile;
    const Place place;
    const int64_t row = block.row, column = static_cast<int64_t>(head) * d;
    const int64_t kv_column = static_cast<int64_t>(head / inputs.group) * d;
    const T *q = inputs.q + row * inputs.q_stride + column;
    const T *dout = gradients.dout + row * gradients.dout_stride + column;
    load_statistics(lse, delta, gradients.lse + row * gradients.lse_stride + head, gradients.lse_stride,
                    gradients.delta + row * inputs.heads + head, inputs.heads, block.count);
    const int total = keys_of(block), panel_columns = min(kPanel, d - panel);
    Outputs outputs;
    clear(outputs);
    for (int first = 0; first < total; first += kTile) {
        const auto row_of = [&](const T *rows, int r) -> const T * {
            return first + r < total ? rows + key_row(block, first + r) * inputs.kv_stride + kv_column : nullptr;
        };
        const auto query = [&](const T *rows, int64_t stride, int r) -> const T * {
            return r < block.count ? rows + r * stride : nullptr;
        };
        float logits[kMicro][kMicro], dp[kMicro][kMicro];
        inner(logits, a, b, d, place, [&](int r) { return query(q, inputs.q_stride, r); },
              [&](int r) { return row_of(inputs.k, r); });
        inner(dp, a, b, d, place, [&](int r) { return query(dout, gradients.dout_stride, r); },
              [&](int r) { return row_of(inputs.v, r); });
        differentiate(p, ds, logits, dp, lse, delta, inputs.scale * kLog2e, place, [&](int r, int key) {
            return r < block.count && key < total - (block.count - 1 - r) - first;
        });
#pragma unroll
        for (int chunk = 0; chunk < kChunks; chunk++) {
            const int columns = min(kChunk, panel_columns - chunk * kChunk);
            if (columns <= 0) break;
            __syncthreads();
            load_chunk(b, panel + chunk * kChunk, columns, [&](int r) { return row_of(inputs.k, r); });
            __syncthreads();
            add_outer(outputs[chunk], b, min(kTile, total - first), columns, place,
                      [&](int r, int k) { return ds[r * kTilePitch + k]; });
        }
    }
    store(gradients.dq + row * gradients.dq_stride + column + panel, gradients.dq_stride, outputs, block.count,
          panel_columns, inputs.scale, place);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    dkv_kernel(Gradients<T> gradients, Inputs<T> inputs, const Keys *list, const Reader *readers) {
    const int kv_heads = inputs.heads / inputs.group, kv_head = blockIdx.x % kv_heads, d = inputs.head_dim;
    const int start = blockIdx.x / kv_heads % kHalves * kTile, panel = blockIdx.y * kPanel;
    const Keys block = list[blockIdx.x / kv_heads / kHalves];
    const int keys = min(block.count - start, kTile);
    if (keys <= 0) return;
    auto *a = shared<float>(), *b = a + kTile * kChunkPitch, *p = b + kTile * kChunkPitch;
    float *ds = p + kTile * kTilePitch, *lse = ds + kTile * kTilePitch, *delta = lse + kTile;
    const Place place;
    const int64_t key_row = block.row + start, kv_column = static_cast<int64_t>(kv_head) * d;
    const T *k = inputs.k + key_row * inputs.kv_stride + kv_column;
    const T *v = inputs.v + key_row * inputs.kv_stride + kv_column;
    const int panel_columns = min(kPanel, d - panel);
    Outputs dk, dv;
    clear(dk);
    clear(dv);
    for (int head = kv_head * inputs.group; head < (kv_head + 1) * inputs.group; head++) {
        for (int r = block.first_reader; r < block.first_reader + block.readers; r++) {
            const Reader reader = readers[r];
            // of the queries before `start` none sees a key of this half
            for (int first = reader.causal ? start : 0; first < reader.count; first += kTile) {
                const int count = min(kTile, reader.count - first);
                const int64_t row = reader.row + first, column = static_cast<int64_t>(head) * d;
                const T *q = inputs.q + row * inputs.q_stride + column;
                const T *dout = gradients.dout + row * gradients.dout_stride + column;
                const auto query = [&](const T *rows, int64_t stride, int r) -> const T * {
                    return r < count ? rows + r * stride : nullptr;
                };
                const auto key = [&](const T *rows, int r) -> const T * {
                    return r < keys ? rows + r * inputs.kv_stride : nullptr;
                };
                float logits[kMicro][kMicro], dp[kMicro][kMicro];
                inner(logits, a, b, d, place, [&](int r) { return query(q, inputs.q_stride, r); },
                      [&](int r) { return key(k, r); });
                load_statistics(lse, delta, gradients.lse + row * gradients.lse_stride + head, gradients.lse_stride,
                                gradients.delta + row * inputs.heads + head, inputs.heads, count);
                inner(dp, a, b, d, place, [&](int r) { return query(dout, gradients.dout_stride, r); },
                      [&](int r) { return key(v, r); });
                const int shift = first - start;
                differentiate(p, ds, logits, dp, lse, delta, inputs.scale * kLog2e, place, [&](int r, int key) {
                    return r < count && key < keys && (!reader.causal || r + shift >= key);
                });
#pragma unroll
                for (int chunk = 0; chunk < kChunks; chunk++) {
                    const int columns = min(kChunk, panel_columns - chunk * kChunk);
                    if (columns <= 0) break;
                    const int at = panel + chunk * kChunk;
                    __syncthreads();
                    load_chunk(a, at, columns, [&](int r) { return query(dout, gradients.dout_stride, r); });
                    load_chunk(b, at, columns, [&](int r) { return query(q, inputs.q_stride, r); });
                    __syncthreads();
                    add_outer(dv[chunk], a, count, columns, place, [&](int r, int k) { return p[k * kTilePitch + r]; });
                    add_outer(dk[chunk], b, count, columns, place, [&](int r, int k) { return ds[k * kTilePitch + r]; });
                }
            }
        }
    }
    const int64_t to = key_row * gradients.dkv_stride + kv_column + panel;
    store(gradients.dk + to, gradients.dkv_stride, dk, keys, panel_columns, inputs.scale, place);
    store(gradients.dv + to, gradients.dkv_stride, dv, keys, panel_columns, 1.0f, place);
}

}  // namespace collimate::attention::plain
