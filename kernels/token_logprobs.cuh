// One row of logits: its reduction to a logsumexp and statistics, and its gradient. Shared by the kernels of
// token_logprobs.cu.
#pragma once

#include "launch.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace collimate::token_logprobs {

enum class Cap { kNone, kTanh };
enum class Statistics { kLse, kAll };

constexpr int kLoadsInFlight = 4;  // 16 bytes each, of a thread
constexpr float kLog2e = 1.44269504088896340736f, kLn2 = 0.69314718055994530942f;
constexpr float kMinExponent = -1e30f;  // stands for -inf where it is multiplied by 0

// The columns that one warp reduces: 1024 in 16 bits, 512 in 32.
template <class T>
constexpr int kUnit = kWarpSize * kLoadsInFlight * Pack<T>::kSize;

// z = cap(x) * inverse_temperature.
struct Map {
    float inverse_temperature, exp2_scale, cap, inverse_cap;
};

// Of some columns x of a row, with t = (x - max) * exp2_scale and e = 2^t.
// The largest ones are counted apart, so that no rounding of 1 + rest hides how near to 1 a probability is.
struct Partial {
    float max, ones, rest;  // max x, the count of x = max, sum e over all others
    float dot, squares;     // sum e t, sum e^2
    float logits;           // sum x, before the cap
};

template <class T>
struct Rows {
    const T *logits;
    T *gradient;
    const int32_t *targets;
    float *logps, *lse;
    collimate_token_statistics statistics;
    Partial *partials;  // [rows, units + 1]; the last one's max is the target's logit
    int32_t *error;
    int64_t stride, gradient_stride;
    int vocab, units;
    Map map;
};

// Rounded alone: fused with the subtraction of the maximum, the product would leave the largest logit beside 0.
template <Cap cap>
__device__ __forceinline__ float capped(float x, const Map &map) {
    return cap == Cap::kNone ? x : __fmul_rn(map.cap, tanhf(__fmul_rn(x, map.inverse_cap)));
}

template <class T, Cap cap, Statistics statistics>
__device__ __forceinline__ Partial reduce_unit(const T *row, int vocab, int unit, const Map &map) {
    constexpr int kSize = Pack<T>::kSize, kPacks = kLoadsInFlight;
    const int begin = unit * kUnit<T>, lane_begin = begin + threadIdx.x % kWarpSize * kSize;
    const int past = bytes_past_alignment(row);
    const bool inside = past == 0 ? begin + kUnit<T> <= vocab : begin > 0 && begin + kUnit<T> + kSize <= vocab;
    Pack<T> packs[kPacks];
    if (inside) {
        load_inside(packs, row, lane_begin, kWarpSize * kSize, past);
    } else {
        const T nothing = from_float<T>(-INFINITY);
        for (int i = 0; i < kPacks; i++) {
            packs[i] = load_edge(row, vocab, lane_begin + i * kWarpSize * kSize, past, nothing);
        }
    }
    Partial partial = {reduce_warp(capped<cap>(max_of(packs), map), Max()), 0, 0, 0, 0, 0};
    const float origin = partial.max == -INFINITY ? 0.0f : partial.max;
    for (int i = 0; i < kPacks; i++) {
        for (int j = 0; j < kSize; j++) {
            const float x = to_float(packs[i].elements[j]);
            const bool exists = inside || lane_begin + i * kWarpSize * kSize + j < vocab;
            if (cap == Cap::kTanh && !exists) continue;  // the cap of -inf is finite
            const float t = (capped<cap>(x, map) - origin) * map.exp2_scale, e = exp2_approx(t);
            if (t == 0.0f) {
                partial.ones += 1.0f;
            } else {
                partial.rest += e;
            }
            if (statistics == Statistics::kAll) {
                partial.dot = fmaf(e, fmaxf(t, kMinExponent), partial.dot);
                partial.squares = fmaf(e, e, partial.squares);
                if (exists) partial.logits += x;
            }
        }
    }
    partial.ones = reduce_warp(partial.ones, Sum());
    partial.rest = reduce_warp(partial.rest, Sum());
    if (statistics == Statistics::kAll) {
        partial.dot = reduce_warp(partial.dot, Sum());
        partial.squares = reduce_warp(partial.squares, Sum());
        partial.logits = reduce_warp(partial.logits, Sum());
    }
    return partial;
}

// By one warp; every lane gets the row's.
template <Statistics statistics>
__device__ __forceinline__ Partial merge(const Partial *partials, int units, const Map &map) {
    const int lane = threadIdx.x % kWarpSize;
    Partial row = {-INFINITY, 0, 0, 0, 0, 0};
    for (int i = lane; i < units; i += kWarpSize) row.max = fmaxf(row.max, partials[i].max);
    row.max = reduce_warp(row.max, Max());
    const float origin = row.max == -INFINITY ? 0.0f : row.max;
    for (int i = lane; i < units; i += kWarpSize) {
        const Partial &unit = partials[i];
        const float t = fmaxf((unit.max - origin) * map.exp2_scale, kMinExponent), scale = exp2_approx(t);
        const float sum = unit.ones + unit.rest;
        if (t == 0.0f) {
            row.ones += unit.ones;
            row.rest += unit.rest;
        } else {
            row.rest = fmaf(sum, scale, row.rest);
        }
        if (statistics == Statistics::kAll) {
            row.dot = fmaf(fmaf(sum, t, unit.dot), scale, row.dot);
            row.squares = fmaf(unit.squares * scale, scale, row.squares);
            row.logits += unit.logits;
        }
    }
    row.ones = reduce_warp(row.ones, Sum());
    row.rest = reduce_warp(row.rest, Sum());
    if (statistics == Statistics::kAll) {
        row.dot = reduce_warp(row.dot, Sum());
        row.squares = reduce_warp(row.squares, Sum());
        row.logits = reduce_warp(row.logits, Sum());
    }
    return row;
}

// The gradient of a row. With s = x a - b: -scale 2^(s c), and for the target, where no 1 - p may cancel,
// -slope expm1(s log_scale - log_sum); both times the cap's slope.
struct Gradient {
    float a, b, c, scale;
    float slope, log_scale, log_sum;
};

// All -inf.
__device__ __forceinline__ bool is_nothing(const Partial &total) {
    return total.max == -INFINITY && total.rest == 0.0f;
}
__device__ __forceinline__ float log_sum_of(const Partial &total) { return log1pf(total.ones - 1.0f + total.rest); }

// Writes a row's outputs, by one thread. `target_logit` is before the cap.
template <Cap cap, Statistics statistics, class T>
__device__ __forceinline__ void write_row(const Rows<T> &rows, int64_t row, const Partial &total, float target_logit) {
    const bool nothing = is_nothing(total);
    const float log_sum = log_sum_of(total);
    const float lse = nothing ? -INFINITY : fmaf(total.max, rows.map.inverse_temperature, log_sum);
    const float x = capped<cap>(target_logit, rows.map);
    rows.lse[row] = lse;
    rows.logps[row] = nothing ? -INFINITY : fmaf(x - total.max, rows.map.inverse_temperature, -log_sum);
    if (!(fabsf(lse) < INFINITY)) report_error(rows.error, COLLIMATE_ERROR_LOGITS, row, __float_as_int(lse));
    if (statistics != Statistics::kAll) return;
    const collimate_token_statistics &to = rows.statistics;
    if (to.entropy) to.entropy[row] = nothing ? 0.0f : fmaf(-kLn2, total.dot / (total.ones + total.rest), log_sum);
    if (to.hit) to.hit[row] = !nothing && x >= total.max ? 1.0f : 0.0f;
    if (to.mean_logit) to.mean_logit[row] = nothing ? 0.0f : total.logits / static_cast<float>(rows.vocab);
    if (to.log_sum_p2) to.log_sum_p2[row] = nothing ? 0.0f : logf(total.squares) - 2.0f * log_sum;
}

// Not scored: the block's business with the row ends with zeros. `writes`: this block is the one to write statistics.
template <class T>
__device__ __forceinline__ bool skip_row(const Rows<T> &rows, int64_t row, bool writes) {
    const int target = rows.targets[row];
    if (target >= 0 && target < rows.vocab) return false;
    if (!writes || threadIdx.x != 0) return true;
    const float value = target == COLLIMATE_IGNORE ? 0.0f : NAN;
    rows.logps[row] = rows.lse[row] = value;
    const collimate_token_statistics &to = rows.statistics;
    if (to.entropy) to.entropy[row] = 0.0f;
    if (to.hit) to.hit[row] = 0.0f;
    if (to.mean_logit) to.mean_logit[row] = 0.0f;
    if (to.log_sum_p2) to.log_sum_p2[row] = 0.0f;
    if (target != COLLIMATE_IGNORE) report_error(rows.error, COLLIMATE_ERROR_TOKEN, row, target);
    return true;
}

__device__ __forceinline__ Gradient gradient_of(const Partial &total, const Map &map) {
    if (is_nothing(total)) return {1, 0, 1, 0, 0, 1, 0};
    const float slope = map.inverse_temperature;
    return {1.0f, total.max, map.exp2_scale, slope / (total.ones + total.rest), slope, slope, log_sum_of(total)};
}

// Packs first_pack, first_pack + 1, .. < end_pack of the gradient's row, by the whole block. Pack k holds the columns
// from k * kSize - (columns between the row and the aligned address before it). `zero`: zeros, and reads nothing.
template <class T, Cap cap>
__device__ __forceinline__ void write_gradient(const Rows<T> &rows, int64_t row, const Gradient &gradient, bool zero,
                                               int first_pack, int end_pack) {
    constexpr int kSize = Pack<T>::kSize;
    const T *logits = rows.logits + row * rows.stride;
    T *out = rows.gradient + row * rows.gradient_stride;
    const int before = bytes_past_alignment(out) / static_cast<int>(sizeof(T)), target = rows.targets[row];
    const int past = bytes_past_alignment(logits - before);
    const int threads = blockDim.x;
    for (int pack = first_pack + threadIdx.x; pack < end_pack; pack += kLoadsInFlight * threads) {
        Pack<T> packs[kLoadsInFlight];
#pragma unroll
        for (int i = 0; i < kLoadsInFlight; i++) {
            const int first = (pack + i * threads) * kSize - before;
            if (!zero && pack + i * threads < end_pack) {
                packs[i] = load_edge(logits, rows.vocab, first, past, from_float<T>(0.0f));
            }
        }
#pragma unroll
        for (int i = 0; i < kLoadsInFlight; i++) {
            const int first = (pack + i * threads) * kSize - before;
#pragma unroll
            for (int j = 0; j < kSize; j++) {
                float value = 0.0f;
                if (!zero) {
                    const float x = capped<cap>(to_float(packs[i].elements[j]), rows.map);
                    const float s = fmaf(x, gradient.a, -gradient.b);
                    value = -gradient.scale * exp2_approx(s * gradient.c);
                    if (first + j == target) {
                        value = -gradient.slope * expm1f(fmaf(s, gradient.log_scale, -gradient.log_sum));
                    }
                    if (cap == Cap::kTanh) {
                        const float tanh = __fmul_rn(x, rows.map.inverse_cap);
                        value *= fmaf(-tanh, tanh, 1.0f);
                    }
                }
                packs[i].elements[j] = from_float<T>(value);
            }
            if (pack + i * threads < end_pack) store_edge(out, rows.vocab, first, packs[i]);
        }
    }
}

// One more than needed where the row is aligned: a pack outside the row stores nothing.
template <class T>
__host__ __device__ __forceinline__ int gradient_packs(int vocab) {
    return vocab / Pack<T>::kSize + 2;
}

template <class T, Cap cap, Statistics statistics>
__device__ __forceinline__ void reduce_units(const Rows<T> &rows, int64_t row, Partial *partials, int begin, int end) {
    const int warp = threadIdx.x / kWarpSize, warps = blockDim.x / kWarpSize;
    for (int unit = begin + warp; unit < end; unit += warps) {
        const Partial partial =
            reduce_unit<T, cap, statistics>(rows.logits + row * rows.stride, rows.vocab, unit, rows.map);
        if (threadIdx.x % kWarpSize == 0) partials[unit] = partial;
    }
}

}  // namespace collimate::token_logprobs
