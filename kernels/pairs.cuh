// What the kernels of losses on pairs share: a pair's log-ratios, the divergence that bends them, and its outputs.
#pragma once

#include "collimate.h"
#include "launch.cuh"
#include "preference_math.cuh"
#include "reduce.cuh"

namespace collimate {

using PairBatch = collimate_preference_batch;

struct LogRatios {
    float lw, ll, a, b;  // policy; policy - reference
};

__device__ __forceinline__ LogRatios load_ratios(const PairBatch &batch, int64_t i) {
    const float lw = batch.policy_chosen_logps[i * batch.stride], ll = batch.policy_rejected_logps[i * batch.stride];
    const int64_t at = i * batch.reference_stride;
    return {lw, ll, batch.reference_chosen_logps ? lw - batch.reference_chosen_logps[at] : lw,
            batch.reference_rejected_logps ? ll - batch.reference_rejected_logps[at] : ll};
}

// What stands for a log-ratio, and its derivative.
struct Bent {
    float value, slope;
};

// (1 - e^(-alpha a)) / alpha. Beyond the largest exponent it goes on along its tangent: no overflow, no lost gradient.
// Nothing is left to the compiler to fuse: aot_loss ranks what it computes again in other places.
__device__ __forceinline__ Bent bend_power(float alpha, float a) {
    constexpr float kLargestExponent = 40.0f;
    const float exponent = __fmul_rn(-alpha, a);
    if (exponent <= kLargestExponent) return {-expm1f(exponent) / alpha, expf(exponent)};
    const float e = expf(kLargestExponent);
    return {fmaf(-e, 1.0f + exponent - kLargestExponent, 1.0f) / alpha, e};
}

__device__ __forceinline__ Bent bend(const PairBatch &batch, float a) {
    switch (batch.divergence) {
        case COLLIMATE_DIVERGENCE_FORWARD_KL: return bend_power(1.0f, a);
        case COLLIMATE_DIVERGENCE_JENSEN_SHANNON: return {0.693147181f - softplus(-a), sigmoid(-a)};
        case COLLIMATE_DIVERGENCE_ALPHA: return bend_power(batch.divergence_alpha, a);
        default: return {a, 1.0f};
    }
}

__device__ __forceinline__ void put(const PairBatch &batch, float *to, double value) {
    *to = static_cast<float>(batch.adds ? *to + value : value);
}

// Writes what a pair gives, and adds it to the metrics; `loss` is the pair's own, `share` what of it the step counts.
__device__ inline void put_pair(const PairBatch &batch, int64_t i, double loss, double share, double dchosen,
                                double drejected, float chosen_reward, float rejected_reward,
                                double (&metrics)[COLLIMATE_PREFERENCE_METRICS]) {
    put(batch, &batch.dchosen[i * batch.stride], dchosen);
    put(batch, &batch.drejected[i * batch.stride], drejected);
    if (batch.losses) put(batch, &batch.losses[i], loss);
    metrics[COLLIMATE_PREFERENCE_LOSS] += share;
    if (batch.adds) return;
    const float accuracy = chosen_reward > rejected_reward ? 1.0f : 0.0f;
    if (batch.chosen_rewards) batch.chosen_rewards[i] = chosen_reward;
    if (batch.rejected_rewards) batch.rejected_rewards[i] = rejected_reward;
    if (batch.accuracies) batch.accuracies[i] = accuracy;
    metrics[COLLIMATE_PREFERENCE_CHOSEN_REWARD] += chosen_reward;
    metrics[COLLIMATE_PREFERENCE_REJECTED_REWARD] += rejected_reward;
    metrics[COLLIMATE_PREFERENCE_ACCURACY] += accuracy;
    metrics[COLLIMATE_PREFERENCE_CHOSEN_LOGP] += batch.policy_chosen_logps[i * batch.stride];
    metrics[COLLIMATE_PREFERENCE_REJECTED_LOGP] += batch.policy_rejected_logps[i * batch.stride];
    metrics[COLLIMATE_PREFERENCE_PAIRS] += 1.0;
}

// The metrics of a block that takes the whole call: sums in the order of its threads. Needs shared memory for a double a
// warp.
__device__ inline void put_metrics(const PairBatch &batch, double normaliser,
                                   double (&metrics)[COLLIMATE_PREFERENCE_METRICS]) {
    if (!batch.metrics) return;
    for (int m = 0; m < COLLIMATE_PREFERENCE_METRICS; m++) metrics[m] = reduce_block(metrics[m], Sum(), shared<double>());
    if (threadIdx.x != 0) return;
    metrics[COLLIMATE_PREFERENCE_LOSS] /= normaliser;
    for (int m = 0; m < COLLIMATE_PREFERENCE_METRICS; m++) batch.metrics[m] += metrics[m];
}

inline bool is_valid_batch(const PairBatch &batch) {
    const bool alpha = batch.divergence_alpha > 0.0f && batch.divergence_alpha < 1.0f;
    return batch.pairs >= 0 && batch.divergence >= 0 && batch.divergence <= COLLIMATE_DIVERGENCE_ALPHA &&
           (batch.divergence != COLLIMATE_DIVERGENCE_ALPHA || alpha);
}

}  // namespace collimate
