// aot_loss: alignment by optimal transport over a batch of pairs. One block takes the call, since every pair needs the
// ranks of all: they are counted, O(pairs^2) comparisons of keys that order like the values. Launch-bound at training
// sizes.
#include "launch.cuh"
#include "pairs.cuh"
#include "reduce.cuh"

namespace collimate::aot {

constexpr int kThreads = 512;
constexpr size_t kSharedBytes = kThreads / kWarpSize * sizeof(double);

using Config = collimate_aot_config;

// Of every pair its ranks, and at every rank the values that meet there; [pairs] each.
struct Order {
    float *upper, *lower, *weights;  // weights are those of the pairs of `upper`
    int32_t *upper_rank, *lower_rank;
};

// Rises with the value; a NaN has its place too, so that ranks are a permutation.
__device__ __forceinline__ int32_t key_of(float value) {
    const int32_t bits = __float_as_int(value);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

// What the loss wants above, and what below: margins under policy and reference, or chosen and rejected log-ratios.
struct Sides {
    float upper, lower;
};

__device__ __forceinline__ Sides sides_of(const PairBatch &batch, const Config &config, int64_t i) {
    const LogRatios pair = load_ratios(batch, i);
    if (config.unpaired) return {bend(batch, pair.a).value, bend(batch, pair.b).value};
    const int64_t at = i * batch.reference_stride;
    const float rw = batch.reference_chosen_logps ? batch.reference_chosen_logps[at] : 0.0f;
    const float rl = batch.reference_rejected_logps ? batch.reference_rejected_logps[at] : 0.0f;
    return {pair.lw - pair.ll, rw - rl};
}

__global__ void __launch_bounds__(kThreads) aot_loss_kernel(PairBatch batch, Config config, Order order) {
    for (int64_t i = threadIdx.x; i < batch.pairs; i += kThreads) {
        const Sides own = sides_of(batch, config, i);
        int32_t upper_rank = 0, lower_rank = 0;
        for (int64_t j = 0; j < batch.pairs; j++) {
            const Sides other = sides_of(batch, config, j);
            const bool before = j < i;
            upper_rank += key_of(other.upper) < key_of(own.upper) || (before && key_of(other.upper) == key_of(own.upper));
            lower_rank += key_of(other.lower) < key_of(own.lower) || (before && key_of(other.lower) == key_of(own.lower));
        }
        order.upper_rank[i] = upper_rank;
        order.lower_rank[i] = lower_rank;
        order.upper[upper_rank] = own.upper;
        order.lower[lower_rank] = own.lower;
        order.weights[upper_rank] = batch.weights ? batch.weights[i] : 1.0f;
    }
    __syncthreads();
    double metrics[COLLIMATE_PREFERENCE_METRICS] = {};
    const double step = config.weight / config.normaliser;
    for (int64_t i = threadIdx.x; i < batch.pairs; i += kThreads) {
        const Sides own = sides_of(batch, config, i);
        const int32_t upper_rank = order.upper_rank[i], lower_rank = order.lower_rank[i];
        const float h = config.beta * (own.upper - order.lower[upper_rank]), loss = softplus(-h);
        const double weight = order.weights[upper_rank];
        const LogRatios pair = load_ratios(batch, i);
        double dchosen = -step * weight * config.beta * sigmoid(-h), drejected = -dchosen;
        if (config.unpaired) {
            const float g = config.beta * (order.upper[lower_rank] - own.lower);
            dchosen *= bend(batch, pair.a).slope;
            drejected = step * order.weights[lower_rank] * config.beta * sigmoid(-g) * bend(batch, pair.b).slope;
        }
        put_pair(batch, i, config.weight * loss, config.weight * weight * loss, dchosen, drejected,
                 config.reward_scale * pair.a, config.reward_scale * pair.b, metrics);
    }
    put_metrics(batch, config.normaliser, metrics);
}

}  // namespace collimate::aot

namespace op = collimate::aot;

extern "C" int64_t collimate_aot_loss_workspace(int64_t pairs) { return pairs * int64_t(3 * sizeof(float) + 2 * sizeof(int32_t)); }

extern "C" int32_t collimate_aot_loss(const collimate_preference_batch *batch, const collimate_aot_config *config,
                                      void *workspace, int64_t workspace_bytes, void *stream) {
    if (!collimate::is_valid_batch(*batch) || batch->pairs > INT32_MAX || !(config->normaliser > 0.0)) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    if (workspace_bytes < collimate_aot_loss_workspace(batch->pairs)) return COLLIMATE_STATUS_WORKSPACE;
    const int64_t n = batch->pairs;
    auto *values = static_cast<float *>(workspace);
    auto *ranks = reinterpret_cast<int32_t *>(values + 3 * n);
    const op::Order order = {values, values + n, values + 2 * n, ranks, ranks + n};
    const collimate::Grid grid = {{n > 0 ? 1u : 0u}, {op::kThreads}, op::kSharedBytes};
    return collimate::launch<op::aot_loss_kernel>(grid, stream, *batch, *config, order);
}
