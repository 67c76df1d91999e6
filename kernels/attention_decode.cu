// attention_decode: single queries against a cache. The keys are cut every 256, whatever the batch; a block computes one
// piece for the query heads of a group, four at a time so that keys and values are read once for all four, and a second
// kernel merges a query's pieces in their order. Floor: each seen key and value read once.
#include "attention.cuh"
#include "chunk.cuh"
#include "reduce.cuh"

namespace collimate::attention::decode {

constexpr int kThreads = 256;
constexpr int kPiece = kThreads;  // keys: a thread computes a key's logits
constexpr int kHeads = 4;
constexpr int kMostWidth = 8;  // elements of a pack
constexpr int kMergeThreads = 128;

// Loads of a thread in flight, as many as registers hold.
template <class T, Access access>
constexpr int kLoads = access == Access::kPacks ? 8 / sizeof(T) : 1;

// A piece's result: the largest logit to base 2, the sum of powers of 2 relative to it, and the unscaled outputs.
__host__ __device__ __forceinline__ int64_t piece_floats(int head_dim) { return 2 + head_dim; }

// A row of q, whole packs of any type.
__host__ __device__ __forceinline__ int padded(int head_dim) { return (head_dim + kMostWidth - 1) / kMostWidth * kMostWidth; }

// q, weights of the keys, sums of the groups of threads, scratch.
inline size_t shared_floats(int head_dim) {
    return kHeads * (padded(head_dim) + kPiece) + kThreads * kMostWidth + kThreads / kWarpSize;
}

template <class T, Access access>
__global__ void __launch_bounds__(kThreads, 2)
    piece_kernel(float *pieces, Inputs<T> inputs, const Queries *list) {
    constexpr int kWidth = Pack<T>::kSize;
    const int kv_heads = inputs.heads / inputs.group, kv_head = blockIdx.x % kv_heads, d = inputs.head_dim;
    const int64_t query = blockIdx.x / kv_heads;
    const Queries block = list[query];
    const int first = blockIdx.y * kPiece, keys = min(kPiece, keys_of(block) - first), key = threadIdx.x;
    if (keys <= 0) return;
    const int pitch = padded(d);
    auto *q = shared<float>(), *weights = q + kHeads * pitch, *sums = weights + kHeads * kPiece;
    float *scratch = sums + kThreads * kMostWidth;
    const int64_t kv_column = static_cast<int64_t>(kv_head) * d;
    const auto row_of = [&](const T *rows, int k) { return rows + key_row(block, first + k) * inputs.kv_stride + kv_column; };
    // threads that share a place of a row, and which keys each takes
    const int places = (d + kWidth - 1) / kWidth, across = min(places, kThreads), groups = kThreads / across;
    const int group = threadIdx.x / across;

    for (int start = 0; start < inputs.group; start += kHeads) {
        const int head = kv_head * inputs.group + start, heads = min(kHeads, inputs.group - start);
        __syncthreads();
        const T *from = inputs.q + block.row * inputs.q_stride + static_cast<int64_t>(head) * d;
        for (int i = threadIdx.x; i < kHeads * pitch; i += kThreads) {
            const int h = i / pitch, c = i % pitch;
            q[i] = h < heads && c < d ? to_float(from[h * d + c]) * (inputs.scale * kLog2e) : 0.0f;
        }
        __syncthreads();
        float logits[kHeads] = {};
        if (key < keys) {
            const T *row = row_of(inputs.k, key);
#pragma unroll(kLoads<T, access>)
            for (int c = 0; c < d; c += kWidth) {
                const auto values = unpack(load_pack<access>(row, c, d));
                for (int h = 0; h < kHeads; h++) {
                    for (int i = 0; i < kWidth; i++) logits[h] += q[h * pitch + c + i] * values.at[i];
                }
            }
        }
        for (int h = 0; h < heads; h++) {
            const float largest = reduce_block(key < keys ? logits[h] : -INFINITY, Max(), scratch);
            const float weight = key < keys ? exp2_approx(logits[h] - largest) : 0.0f;
            const float sum = reduce_block(weight, Sum(), scratch);
            weights[h * kPiece + key] = weight;
            if (key == 0) {
                float *to = pieces + ((query * inputs.heads + head + h) * gridDim.y + blockIdx.y) * piece_floats(d);
                to[0] = largest;
                to[1] = sum;
            }
        }
        __syncthreads();
        for (int base = 0; base < places; base += across) {
            const int place = base + static_cast<int>(threadIdx.x) % across, column = place * kWidth;
            const bool is_used = group < groups && place < places;
            float outputs[kHeads][kWidth] = {};
            if (is_used) {
#pragma unroll(kLoads<T, access>)
                for (int k = group; k < keys; k += groups) {
                    const auto values = unpack(load_pack<access>(row_of(inputs.v, k), column, d));
                    for (int h = 0; h < heads; h++) {
                        for (int i = 0; i < kWidth; i++) outputs[h][i] += weights[h * kPiece + k] * values.at[i];
                    }
                }
            }
#pragma unroll
            for (int h = 0; h < kHeads; h++) {
                if (h >= heads) break;
                __syncthreads();
                for (int i = 0; i < kWidth; i++) sums[i * kThreads + threadIdx.x] = outputs[h][i];
                __syncthreads();
                if (!is_used || group != 0) continue;
                float *to = pieces + ((query * inputs.heads + head + h) * gridDim.y + blockIdx.y) * piece_floats(d) + 2;
                for (int i = 0; i < kWidth; i++) {
                    float sum = 0.0f;
                    for (int g = 0; g < groups; g++) sum += sums[i * kThreads + g * across + threadIdx.x];
                    if (column + i < d) to[column + i] = sum;
                }
            }
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    merge_kernel(T *out, const float *pieces, const Queries *list, int heads, int head_dim, int most_pieces, int64_t out_stride) {
    const int head = blockIdx.x % heads;
    const int64_t query = blockIdx.x / heads;
    const Queries block = list[query];
    const int count = (keys_of(block) + kPiece - 1) / kPiece;
    const int64_t size = piece_floats(head_dim);
    const float *of = pieces + (query * heads + head) * most_pieces * size;
    float largest = -INFINITY, sum = 0.0f;
    for (int i = 0; i < count; i++) largest = fmaxf(largest, of[i * size]);
    for (int i = 0; i < count; i++) sum += of[i * size + 1] * exp2_approx(of[i * size] - largest);
    for (int column = threadIdx.x; column < head_dim; column += kMergeThreads) {
        float output = 0.0f;
        for (int i = 0; i < count; i++) output += of[i * size + 2 + column] * exp2_approx(of[i * size] - largest);
        out[block.row * out_stride + static_cast<int64_t>(head) * head_dim + column] = from_float<T>(output / sum);
    }
}

}  // namespace collimate::attention::decode

namespace op = collimate::attention::decode;

extern "C" int64_t collimate_attention_decode_workspace(int64_t queries, int64_t heads, int64_t head_dim, int64_t most_keys) {
    return queries * heads * collimate::ceil_div(most_keys, op::kPiece) * (2 + head_dim) * static_cast<int64_t>(sizeof(float));
}

extern "C" int32_t collimate_attention_decode(void *out, const collimate_attention_inputs *inputs,
                                              const collimate_attention_queries *queries, int64_t query_count,
                                              int64_t most_keys, int64_t out_stride, void *workspace,
                                              int64_t workspace_bytes, void *stream) {
    const int64_t heads = inputs->heads, pieces = collimate::ceil_div(most_keys, op::kPiece);
    if (!collimate::attention::is_valid(*inputs, query_count) || most_keys < 0 || pieces > 65535 ||
        inputs->head_dim > COLLIMATE_ATTENTION_DECODE_HEAD_DIM || out_stride < heads * inputs->head_dim) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    if (workspace_bytes < collimate_attention_decode_workspace(query_count, heads, inputs->head_dim, most_keys)) {
        return COLLIMATE_STATUS_WORKSPACE;
    }
    return collimate::dispatch_dtype(inputs->dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        const auto head_dim = static_cast<int>(inputs->head_dim);
        auto *partial = static_cast<float *>(workspace);
        const collimate::Grid grid = {
            {static_cast<unsigned>(query_count * inputs->kv_heads), static_cast<unsigned>(pieces)},
            {op::kThreads},
            op::shared_floats(head_dim) * sizeof(float)};
        const auto from = collimate::attention::typed<T>(*inputs);
        const bool packs = collimate::in_packs(from.k, from.kv_stride) && collimate::in_packs(from.v, head_dim);
        const int status = collimate::dispatch_access(packs, [&](auto access) {
            return collimate::launch<op::piece_kernel<T, access>>(grid, stream, partial, from, queries);
        });
        if (status != COLLIMATE_OK) return status;
        const collimate::Grid merge = {{static_cast<unsigned>(query_count * heads)}, {op::kMergeThreads}};
        return collimate::launch<op::merge_kernel<T>>(merge, stream, static_cast<T *>(out), partial, queries,
                                                      static_cast<int>(heads), head_dim, static_cast<int>(pieces), out_stride);
    });
}
