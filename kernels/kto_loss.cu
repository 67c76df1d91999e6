// kto_loss: KTO on single examples with its KL estimate, and the article's form of it on pairs.
// One block takes the whole call, since the pairs' form needs the batch's KL before any gradient: sums are in float64,
// in the order of the block's threads. Launch-bound at training sizes.
#include "launch.cuh"
#include "pairs.cuh"
#include "reduce.cuh"

namespace collimate::kto {

constexpr int kThreads = 512;
constexpr size_t kSharedBytes = kThreads / kWarpSize * sizeof(double);

__global__ void __launch_bounds__(kThreads)
    kl_sum_kernel(double *kl, const float *policy_logps, const float *reference_logps, int64_t count) {
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += policy_logps[i] - reference_logps[i];
    sum = reduce_block(sum, Sum(), shared<double>());
    if (threadIdx.x != 0) return;
    kl[0] += sum;
    kl[1] += static_cast<double>(count);
}

__device__ __forceinline__ float clamped_mean(double sum, double count) {
    return count > 0.0 && sum > 0.0 ? static_cast<float>(sum / count) : 0.0f;
}

struct Examples {
    float *dlogps, *losses, *rewards;
    double *metrics;
    const float *policy_logps, *reference_logps;
    const int32_t *desirable;
    const float *weights;
    const double *kl;
    collimate_kto_config config;
    int64_t count;
};

__global__ void __launch_bounds__(kThreads) kto_loss_kernel(Examples examples) {
    const collimate_kto_config &config = examples.config;
    const float z0 = examples.kl ? clamped_mean(examples.kl[0], examples.kl[1]) : 0.0f;
    double metrics[COLLIMATE_KTO_METRICS] = {};
    for (int64_t i = threadIdx.x; i < examples.count; i += kThreads) {
        const float logp = examples.policy_logps[i];
        const float ratio = examples.reference_logps ? logp - examples.reference_logps[i] : logp;
        const float x = config.beta * (ratio - z0), slope = config.beta * sigmoid_slope(x);
        const bool good = examples.desirable[i] != 0;
        const float loss = good ? config.desirable_weight * sigmoid(-x) : config.undesirable_weight * sigmoid(x);
        const float dlogp = good ? -config.desirable_weight * slope : config.undesirable_weight * slope;
        const double weight = examples.weights ? examples.weights[i] : 1.0;
        const float reward = config.beta * ratio;
        examples.dlogps[i] = static_cast<float>(dlogp * weight / config.normaliser);
        if (examples.losses) examples.losses[i] = loss;
        if (examples.rewards) examples.rewards[i] = reward;
        metrics[COLLIMATE_KTO_LOSS] += weight * loss;
        // no index known at run time: the metrics stay in registers
        metrics[COLLIMATE_KTO_DESIRABLE_REWARD] += good ? reward : 0.0f;
        metrics[COLLIMATE_KTO_UNDESIRABLE_REWARD] += good ? 0.0f : reward;
        metrics[COLLIMATE_KTO_DESIRABLE_LOGP] += good ? logp : 0.0f;
        metrics[COLLIMATE_KTO_UNDESIRABLE_LOGP] += good ? 0.0f : logp;
        metrics[COLLIMATE_KTO_DESIRABLE] += good ? 1.0 : 0.0;
        metrics[COLLIMATE_KTO_UNDESIRABLE] += good ? 0.0 : 1.0;
    }
    if (!examples.metrics) return;
    for (int m = 0; m < COLLIMATE_KTO_METRICS; m++) metrics[m] = reduce_block(metrics[m], Sum(), shared<double>());
    if (threadIdx.x != 0) return;
    metrics[COLLIMATE_KTO_LOSS] /= config.normaliser;
    metrics[COLLIMATE_KTO_KL] = z0;
    for (int m = 0; m < COLLIMATE_KTO_METRICS; m++) examples.metrics[m] += metrics[m];
}

using Batch = PairBatch;
using PairedConfig = collimate_kto_paired_config;

// The log-ratios as the divergence bends them.
struct BentRatios {
    Bent a, b;
};

__device__ __forceinline__ BentRatios load_bent(const Batch &batch, int64_t i) {
    const LogRatios pair = load_ratios(batch, i);
    return {bend(batch, pair.a), bend(batch, pair.b)};
}

// What each pair's gradient takes from the batch.
struct Coupling {
    float kl_chosen, kl_rejected;       // clamped
    double through_chosen, through_rejected;  // the gradient by each log-ratio that flows through the KL
};

__device__ Coupling couple(const Batch &batch, const double *kl, const PairedConfig &config, double *scratch) {
    double chosen = 0.0, rejected = 0.0, count = static_cast<double>(batch.pairs);
    if (kl) {
        chosen = kl[0], rejected = kl[1], count = kl[2];
    } else {
        for (int64_t i = threadIdx.x; i < batch.pairs; i += kThreads) {
            const BentRatios pair = load_bent(batch, i);
            chosen += pair.a.value;
            rejected += pair.b.value;
        }
        chosen = reduce_block(chosen, Sum(), scratch);
        rejected = reduce_block(rejected, Sum(), scratch);
    }
    Coupling coupling = {clamped_mean(chosen, count), clamped_mean(rejected, count), 0.0, 0.0};
    if (config.detach_kl) return coupling;
    double of_chosen = 0.0, of_rejected = 0.0;
    for (int64_t i = threadIdx.x; i < batch.pairs; i += kThreads) {
        const BentRatios pair = load_bent(batch, i);
        const double weight = batch.weights ? batch.weights[i] : 1.0;
        of_chosen += weight * sigmoid_slope(config.desirable_beta * (pair.a.value - coupling.kl_rejected));
        of_rejected += weight * sigmoid_slope(config.undesirable_beta * (coupling.kl_chosen - pair.b.value));
    }
    of_chosen = reduce_block(of_chosen, Sum(), scratch);
    of_rejected = reduce_block(of_rejected, Sum(), scratch);
    if (chosen > 0.0) coupling.through_chosen = -config.undesirable_beta * of_rejected / count;
    if (rejected > 0.0) coupling.through_rejected = config.desirable_beta * of_chosen / count;
    return coupling;
}

__global__ void __launch_bounds__(kThreads) kto_paired_kernel(Batch batch, const double *kl, PairedConfig config) {
    const Coupling coupling = couple(batch, kl, config, shared<double>());
    const double share = 0.5 * config.weight / config.normaliser;
    double metrics[COLLIMATE_PREFERENCE_METRICS] = {};
    for (int64_t i = threadIdx.x; i < batch.pairs; i += kThreads) {
        const BentRatios bent = load_bent(batch, i);
        const float u = config.desirable_beta * (bent.a.value - coupling.kl_rejected);
        const float v = config.undesirable_beta * (coupling.kl_chosen - bent.b.value);
        const float loss = 0.5f * (sigmoid(-u) + sigmoid(-v));
        const double weight = batch.weights ? batch.weights[i] : 1.0;
        const double da = -weight * config.desirable_beta * sigmoid_slope(u) + coupling.through_chosen;
        const double db = weight * config.undesirable_beta * sigmoid_slope(v) + coupling.through_rejected;
        const LogRatios pair = load_ratios(batch, i);
        put_pair(batch, i, config.weight * loss, config.weight * weight * loss, share * da * bent.a.slope,
                 share * db * bent.b.slope, config.reward_scale * pair.a, config.reward_scale * pair.b, metrics);
    }
    put_metrics(batch, config.normaliser, metrics);
}

inline Grid one_block(int64_t count) { return {{count > 0 ? 1u : 0u}, {kThreads}, kSharedBytes}; }

}  // namespace collimate::kto

namespace op = collimate::kto;

extern "C" int32_t collimate_kto_kl_sum(double *kl, const float *policy_logps, const float *reference_logps,
                                        int64_t count, void *stream) {
    if (count < 0) return COLLIMATE_STATUS_ARGUMENT;
    return collimate::launch<op::kl_sum_kernel>(op::one_block(count), stream, kl, policy_logps, reference_logps, count);
}

extern "C" int32_t collimate_kto_loss(float *dlogps, float *losses, float *rewards, double *metrics,
                                      const float *policy_logps, const float *reference_logps, const int32_t *desirable,
                                      const float *weights, const double *kl, const collimate_kto_config *config,
                                      int64_t examples, void *stream) {
    if (examples < 0 || !(config->normaliser > 0.0)) return COLLIMATE_STATUS_ARGUMENT;
    const op::Examples given = {dlogps,    losses,  rewards, metrics, policy_logps, reference_logps,
                                desirable, weights, kl,      *config, examples};
    return collimate::launch<op::kto_loss_kernel>(op::one_block(examples), stream, given);
}

extern "C" int32_t collimate_kto_paired_loss(const collimate_preference_batch *batch, const double *kl,
                                             const collimate_kto_paired_config *config, void *stream) {
    if (!collimate::is_valid_batch(*batch) || !(config->normaliser > 0.0)) return COLLIMATE_STATUS_ARGUMENT;
    return collimate::launch<op::kto_paired_kernel>(op::one_block(batch->pairs), stream, *batch, kl, *config);
}
