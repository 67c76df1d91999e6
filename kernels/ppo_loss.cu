// ppo_loss: the clipped losses of policy and value on every token, their gradients and the batch's metrics in one launch;
// either of the two, or both. RLOO's and GRPO's are the policy's, with completions for tokens, or with a KL term.
// One block takes the whole call: sums are in float64, in the order of the block's threads.
#include "launch.cuh"
#include "reduce.cuh"

namespace collimate::ppo {

constexpr int kThreads = 512;
constexpr size_t kSharedBytes = kThreads / kWarpSize * sizeof(double);
constexpr float kLargestLogRatio = 20.0f;

__device__ __forceinline__ float clamp(float x, float low, float high) { return fminf(fmaxf(x, low), high); }

struct Term {
    float loss, gradient;
    bool clipped;
};

// max(-A ratio, -A clip(ratio)): flat where the clip pays, and where the log-ratio is out of bounds.
__device__ __forceinline__ Term policy_term(float log_ratio, float ratio, float advantage, float clip) {
    const float low = 1.0f - clip, high = 1.0f + clip;
    const bool flat = (advantage >= 0.0f && ratio > high) || (advantage < 0.0f && ratio < low);
    const float plain = -advantage * ratio, limited = -advantage * clamp(ratio, low, high);
    const bool bound = fabsf(log_ratio) > kLargestLogRatio;
    return {flat ? limited : plain, flat || bound ? 0.0f : plain, limited > plain};
}

// exp(-k) - 1 + k of the log-ratio k to the reference, flat far below it. expm1: both ends of a small k are kept.
__device__ __forceinline__ Term reference_term(float k) {
    const float held = fmaxf(k, -kLargestLogRatio), rest = expm1f(-held);
    return {rest + held, k < -kLargestLogRatio ? 0.0f : -rest, false};
}

// max((V - R)^2, (clip(V) - R)^2) / 2: beyond the clip the limited value is a constant.
__device__ __forceinline__ Term value_term(float value, float old_value, float target, float clip) {
    const float error = value - target, moved = value - old_value;
    const float limited = old_value + clamp(moved, -clip, clip) - target;
    const bool clipped = fabsf(moved) > clip && limited * limited > error * error;
    return {0.5f * (clipped ? limited * limited : error * error), clipped ? 0.0f : error, clipped};
}

__global__ void __launch_bounds__(kThreads) ppo_loss_kernel(collimate_ppo_batch batch, collimate_ppo_config config) {
    double metrics[COLLIMATE_PPO_METRICS] = {};
    for (int64_t i = threadIdx.x; i < batch.tokens; i += kThreads) {
        metrics[COLLIMATE_PPO_TOKENS] += 1.0;
        if (batch.logps) {
            const float log_ratio = batch.logps[i] - batch.old_logps[i];
            const float ratio = expf(clamp(log_ratio, -kLargestLogRatio, kLargestLogRatio));
            Term policy = policy_term(log_ratio, ratio, batch.advantages[i], config.clip);
            if (batch.reference_logps) {
                const Term kl = reference_term(batch.logps[i] - batch.reference_logps[i]);
                policy.loss += config.beta * kl.loss;
                policy.gradient += config.beta * kl.gradient;
            }
            const double weight = batch.weights ? batch.weights[i] : 1.0;
            batch.dlogps[i] = static_cast<float>(weight * policy.gradient / config.normaliser);
            metrics[COLLIMATE_PPO_POLICY_LOSS] += weight * policy.loss;
            metrics[COLLIMATE_PPO_RATIO] += ratio;
            metrics[COLLIMATE_PPO_POLICY_CLIPPED] += policy.clipped ? 1.0 : 0.0;
        }
        if (batch.values) {
            const Term value = value_term(batch.values[i], batch.old_values[i], batch.returns[i], config.value_clip);
            batch.dvalues[i] = static_cast<float>(config.value_coefficient * value.gradient / config.normaliser);
            metrics[COLLIMATE_PPO_VALUE_LOSS] += value.loss;
            metrics[COLLIMATE_PPO_VALUE_CLIPPED] += value.clipped ? 1.0 : 0.0;
        }
    }
    if (!batch.metrics) return;
    for (int m = 0; m < COLLIMATE_PPO_METRICS; m++) metrics[m] = reduce_block(metrics[m], Sum(), shared<double>());
    if (threadIdx.x != 0) return;
    for (int m = 0; m < COLLIMATE_PPO_METRICS; m++) batch.metrics[m] += metrics[m];
}

}  // namespace collimate::ppo

namespace op = collimate::ppo;

extern "C" int32_t collimate_ppo_loss(const collimate_ppo_batch *batch, const collimate_ppo_config *config, void *stream) {
    if (batch->tokens < 0 || !(config->normaliser > 0.0)) return COLLIMATE_STATUS_ARGUMENT;
    if (batch->tokens == 0) return COLLIMATE_OK;
    return collimate::launch<op::ppo_loss_kernel>({{1}, {op::kThreads}, op::kSharedBytes}, stream, *batch, *config);
}
