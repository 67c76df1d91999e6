// sampling: the next token of every row of logits, by temperature, top-k, top-p and min-p, from a counter.
//
// Probabilities are counted in whole shares of 2^-45 of the likeliest token's, so that their sums are exact and the same
// in any order. Each filter keeps a prefix of the tokens sorted by logit, so what it keeps is a number of shares, and no
// sort is needed: the token in whose shares a number falls is found by bisection, two bits of its logit and then of its
// index at a time. One block a row; the row is read from cache again for each step.
#include "chunk.cuh"
#include "philox.cuh"
#include "reduce.cuh"

namespace collimate::sampling {

constexpr int kThreads = 512;
constexpr size_t kSharedBytes = kThreads / kWarpSize * sizeof(unsigned long long);
constexpr float kShares = 35184372088832.0f;  // 2^45: 2^19 tokens add up to less than 2^64
constexpr int64_t kMaxVocab = 1 << 19;
constexpr int kIndexBits = 20;

using Shares = unsigned long long;

// A number in [0, 1): src/rng.rs has the same.
__device__ __forceinline__ double uniform(uint64_t seed, uint64_t sequence, uint64_t draw) {
    const Random block = philox(draw / 2, sequence, seed);
    const int at = draw % 2 * 2;
    const uint64_t bits = block.words[at] | uint64_t(block.words[at + 1]) << 32;
    return double(bits >> 11) * (1.0 / 9007199254740992.0);
}

// Rises with the logit.
__device__ __forceinline__ uint32_t key_of(float logit) {
    const uint32_t bits = __float_as_uint(logit);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Low bits of a key that are the same for all logits of one sign.
template <class T>
constexpr int kIdleBits = 0;
template <>
constexpr int kIdleBits<__nv_bfloat16> = 16;
template <>
constexpr int kIdleBits<__half> = 12;

struct Minimum {
    __device__ __forceinline__ int operator()(int a, int b) const { return a < b ? a : b; }
};

template <class T>
struct Row {
    const T *logits;
    int vocab;
    float top, scale;

    __device__ __forceinline__ float logit(int i) const { return to_float(logits[i]); }
    // The probability over that of the likeliest token. Computed in many places, so never fused with what follows.
    __device__ __forceinline__ float odds(int i) const { return expf(__fmul_rn(logit(i) - top, scale)); }
    __device__ __forceinline__ Shares shares(int i) const { return static_cast<Shares>(odds(i) * kShares); }
    __device__ __forceinline__ uint32_t key(int i) const { return key_of(logit(i)) >> kIdleBits<T>; }
};

template <class Value>
__device__ __forceinline__ Shares block_sum(int count, Value value) {
    Shares sum = 0;
    for (int i = threadIdx.x; i < count; i += kThreads) sum += value(i);
    return reduce_block(sum, Sum(), shared<Shares>());
}

struct Found {
    uint32_t key;
    Shares above;  // sum of the weights of larger keys
};

// The largest key with which the weights of that key and of larger ones sum to more than `target`.
template <class Key, class Weight>
__device__ __forceinline__ Found search(int count, int bits, Shares target, Key key_at, Weight weight_at) {
    Found found = {0, 0};
    for (int shift = (bits + 1) / 2 * 2 - 2; shift >= 0; shift -= 2) {
        Shares sums[3] = {};
        for (int i = threadIdx.x; i < count; i += kThreads) {
            const uint32_t key = key_at(i);
            if (key <= found.key) continue;
            const Shares weight = weight_at(i);
            for (uint32_t j = 0; j < 3; j++) {
                if ((key - found.key) >> shift > j) sums[j] += weight;
            }
        }
        for (int j = 0; j < 3; j++) sums[j] = reduce_block(sums[j], Sum(), shared<Shares>());
        const uint32_t step = (sums[0] > target) + (sums[1] > target) + (sums[2] > target);
        if (step < 3) found.above = step == 0 ? sums[0] : step == 1 ? sums[1] : sums[2];
        found.key += step << shift;
    }
    return found;
}

// The tokens of one logit.
template <class T>
__device__ __forceinline__ Found by_logit(const Row<T> &row, Shares target) {
    return search(row.vocab, 32 - kIdleBits<T>, target, [&](int i) { return row.key(i); }, [&](int i) { return row.shares(i); });
}

// The first token in the order of the vocabulary with which the weights sum to more than `target`.
template <class Weight>
__device__ __forceinline__ int by_index(int vocab, Shares target, Weight weight_at) {
    constexpr uint32_t kLast = (1u << kIndexBits) - 1;
    const auto key = [&](int i) { return kLast - uint32_t(i); };
    return static_cast<int>(kLast - search(vocab, kIndexBits, target, key, weight_at).key);
}

// The shares of a token of that key.
template <class T>
__device__ __forceinline__ Shares shares_of_key(const Row<T> &row, uint32_t key) {
    const auto index = [&](int i) { return Shares(row.key(i) == key); };
    return row.shares(by_index(row.vocab, 0, index));
}

__device__ __forceinline__ Shares within(double target, Shares total) {
    const Shares floor = static_cast<Shares>(target);
    return floor < total ? floor : total - 1;
}

// The shares that the filters leave, which are those of the likeliest tokens.
template <class T>
__device__ Shares kept_shares(const Row<T> &row, Shares total, const collimate_sampling &sampling) {
    Shares kept = total;
    if (sampling.top_k > 0 && sampling.top_k < row.vocab) {
        const Shares last = sampling.top_k - 1;
        const Found found = search(row.vocab, 32 - kIdleBits<T>, last, [&](int i) { return row.key(i); },
                                   [](int) { return Shares(1); });
        kept = block_sum(row.vocab, [&](int i) { return row.key(i) > found.key ? row.shares(i) : Shares(0); });
        kept += (last - found.above + 1) * shares_of_key(row, found.key);
    }
    if (sampling.top_p < 1.0) {
        // the last token kept is the one that reaches the goal
        const Shares target = within(ceil(sampling.top_p * double(kept)) - 1.0, kept);
        const Found found = by_logit(row, target);
        const Shares each = shares_of_key(row, found.key), reached = found.above + ((target - found.above) / each + 1) * each;
        kept = reached < kept ? reached : kept;
    }
    if (sampling.min_p > 0.0) {
        const Shares likely =
            block_sum(row.vocab, [&](int i) { return row.odds(i) >= sampling.min_p ? row.shares(i) : Shares(0); });
        kept = likely < kept ? likely : kept;
    }
    return kept;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(int32_t *tokens, const T *logits, const int64_t *sequences, const int64_t *draws, int64_t vocab,
                  int64_t stride, collimate_sampling sampling, int32_t *error) {
    Row<T> row = {logits + blockIdx.x * stride, static_cast<int>(vocab), -INFINITY,
                  sampling.temperature > 0.0 ? static_cast<float>(1.0 / sampling.temperature) : 1.0f};
    float broken = 0.0f;
    for (int i = threadIdx.x; i < row.vocab; i += kThreads) {
        const float logit = row.logit(i);
        row.top = fmaxf(row.top, logit);
        broken = isfinite(logit) || logit == -INFINITY ? broken : 1.0f;
    }
    float *scratch = shared<float>();
    row.top = reduce_block(row.top, Max(), scratch);
    broken = reduce_block(broken, Max(), scratch);
    if (broken != 0.0f || row.top == -INFINITY) {
        if (threadIdx.x != 0) return;
        tokens[blockIdx.x] = -1;
        report_error(error, COLLIMATE_ERROR_LOGITS, blockIdx.x, __float_as_int(row.top));
        return;
    }
    int token = row.vocab;
    if (sampling.temperature == 0.0) {
        for (int i = threadIdx.x; i < row.vocab && token == row.vocab; i += kThreads) {
            if (row.logit(i) == row.top) token = i;
        }
        token = reduce_block(token, Minimum(), shared<int>());
    } else {
        const double drawn = uniform(sampling.seed, sequences[blockIdx.x], draws[blockIdx.x]);
        const Shares total = block_sum(row.vocab, [&](int i) { return row.shares(i); });
        if (sampling.top_k == 0 && sampling.top_p == 1.0 && sampling.min_p == 0.0) {
            token = by_index(row.vocab, within(drawn * double(total), total), [&](int i) { return row.shares(i); });
        } else {
            const Shares kept = kept_shares(row, total, sampling), target = within(drawn * double(kept), kept);
            const Found found = by_logit(row, target);
            const Shares rank = (target - found.above) / shares_of_key(row, found.key);
            token = by_index(row.vocab, rank, [&](int i) { return Shares(row.key(i) == found.key); });
        }
    }
    if (threadIdx.x == 0) tokens[blockIdx.x] = token;
}

}  // namespace collimate::sampling

namespace op = collimate::sampling;

extern "C" int32_t collimate_sample(int32_t *tokens, const void *logits, const int64_t *sequences, const int64_t *draws,
                                    const collimate_sampling *sampling, int64_t rows, int64_t vocab, int64_t row_stride,
                                    int32_t dtype, int32_t *error, void *stream) {
    if (rows < 0 || rows > collimate::kMaxGridX || vocab < 1 || vocab > op::kMaxVocab || row_stride < vocab ||
        !(sampling->temperature >= 0.0) || sampling->top_k < 0 || !(sampling->top_p > 0.0)) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        const collimate::Grid grid = {{static_cast<unsigned>(rows)}, {op::kThreads}, op::kSharedBytes};
        return collimate::launch<op::sample_kernel<T>>(grid, stream, tokens, static_cast<const T *>(logits), sequences, draws,
                                                       vocab, row_stride, *sampling, error);
    });
}
