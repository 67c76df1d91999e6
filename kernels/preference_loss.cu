// preference_loss: every loss on pairs, mixtures of them, their gradients, rewards and metrics in one launch.
// A loss is a functor from a pair to its value and gradient. A thread takes a pair; the metrics are summed in float64
// by a block in the order of its threads, and over blocks, in their order, by the one that finishes last.
#include "launch.cuh"
#include "pairs.cuh"
#include "reduce.cuh"

namespace collimate::preference_loss {

constexpr int kThreads = 256;
constexpr int kMetrics = COLLIMATE_PREFERENCE_METRICS;

struct Pair {
    float lw, ll;    // policy
    float a, b;      // policy - reference, as the divergence bends them
    float n_w, n_l;  // at least 1
    float label;
    float psi_target;
    float target;  // log-probability of SLiC-HF's target
    bool has_label;
};

// A loss and its derivatives by lw, ll and the target's log-probability.
struct Value {
    float loss, dlw, dll;
    float dtarget = 0.0f;
};

// A loss of the margin h = beta (a - b).
__device__ __forceinline__ Value of_margin(float loss, float slope, float beta) {
    return {loss, beta * slope, -beta * slope};
}

using Term = collimate_preference_term;

struct Sigmoid {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float h = term.beta * (pair.a - pair.b), p = pair.has_label ? pair.label : 1.0f - term.label_smoothing;
        const float loss = p == 1.0f ? softplus(-h) : p * softplus(-h) + (1.0f - p) * softplus(h);
        return of_margin(loss, p == 1.0f ? -sigmoid(-h) : sigmoid(h) - p, term.beta);
    }
};

struct Robust {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float h = term.beta * (pair.a - pair.b), e = term.label_smoothing, scale = 1.0f / (1.0f - 2.0f * e);
        return of_margin(scale * ((1.0f - e) * softplus(-h) - e * softplus(h)),
                         -scale * ((1.0f - e) * sigmoid(-h) + e * sigmoid(h)), term.beta);
    }
};

struct Hinge {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float gap = 1.0f - term.beta * (pair.a - pair.b);
        return of_margin(fmaxf(gap, 0.0f), gap > 0.0f ? -1.0f : 0.0f, term.beta);
    }
};

struct IpoSum {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float gap = pair.a - pair.b - 0.5f / term.beta;
        return of_margin(square(gap), 2.0f * gap, 1.0f);
    }
};

struct IpoMean {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float gap = pair.a / pair.n_w - pair.b / pair.n_l - 0.5f / term.beta;
        return {square(gap), 2.0f * gap / pair.n_w, -2.0f * gap / pair.n_l};
    }
};

struct PsiPo {
    __device__ Value operator()(const Pair &pair, const Term &) const {
        const float gap = pair.a - pair.b - pair.psi_target;
        return of_margin(square(gap), 2.0f * gap, 1.0f);
    }
};

struct Exo {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float h = term.beta * (pair.a - pair.b), e = term.label_smoothing;
        const float likely = log1pf(-e), unlikely = logf(e);
        return of_margin(sigmoid(h) * (-softplus(-h) - likely) + sigmoid(-h) * (-softplus(h) - unlikely),
                         sigmoid_slope(h) * (h - (likely - unlikely)), term.beta);
    }
};

struct ApoZero {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float u = term.beta * pair.a, v = term.beta * pair.b;
        return {sigmoid(-u) + sigmoid(v), -term.beta * sigmoid_slope(u), term.beta * sigmoid_slope(v)};
    }
};

struct ApoDown {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float u = term.beta * pair.a, h = term.beta * (pair.a - pair.b), slope = sigmoid_slope(h);
        return {sigmoid(u) + sigmoid(-h), term.beta * (sigmoid_slope(u) - slope), term.beta * slope};
    }
};

struct Nca {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float u = term.beta * pair.a, v = term.beta * pair.b;
        return {softplus(-u) + 0.5f * (softplus(u) + softplus(v)), term.beta * (0.5f * sigmoid(u) - sigmoid(-u)),
                0.5f * term.beta * sigmoid(v)};
    }
};

struct Sppo {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float w = pair.a - 0.5f / term.beta, l = pair.b + 0.5f / term.beta;
        return {square(w) + square(l), 2.0f * w, 2.0f * l};
    }
};

struct LengthNormalised {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float h = term.beta * (pair.a / pair.n_w - pair.b / pair.n_l), slope = term.beta * sigmoid(-h);
        return {softplus(-h), -slope / pair.n_w, slope / pair.n_l};
    }
};

struct SimPo {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float m = term.beta * (pair.lw / pair.n_w - pair.ll / pair.n_l) - term.gamma;
        const float slope = term.beta * sigmoid(-m);
        return {softplus(-m), -slope / pair.n_w, slope / pair.n_l};
    }
};

struct Orpo {
    static constexpr float kNearestToZero = -1e-6f;  // where the odds are still finite
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float x = pair.lw / pair.n_w, y = pair.ll / pair.n_l;
        const float cx = fminf(x, kNearestToZero), cy = fminf(y, kNearestToZero);
        const float z = (cx - log1mexp(cx)) - (cy - log1mexp(cy)), slope = term.beta * sigmoid(-z);
        const float dx = x > kNearestToZero ? 0.0f : slope / -expm1f(x);
        const float dy = y > kNearestToZero ? 0.0f : slope / -expm1f(y);
        return {term.beta * softplus(-z) - x, (-1.0f - dx) / pair.n_w, dy / pair.n_l};
    }
};

struct Cpo {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float h = term.beta * (pair.lw - pair.ll), slope = term.beta * sigmoid(-h);
        return {softplus(-h) - term.alpha * pair.lw / pair.n_w, -slope - term.alpha / pair.n_w, slope};
    }
};

struct SlicHf {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float gap = term.delta - pair.lw + pair.ll, on = gap > 0.0f ? 1.0f : 0.0f;
        return {fmaxf(gap, 0.0f) - term.lambda * pair.target, -on, on, -term.lambda};
    }
};

struct DiscoPop {
    __device__ Value operator()(const Pair &pair, const Term &term) const {
        const float h = term.beta * (pair.a - pair.b), x = h / term.tau, rest = sigmoid(-x);
        // sigmoid(x) e^-h as one exponential: the two factors leave the range of numbers apart
        const float exponential = expf(-h - softplus(-x));
        const float slope =
            exponential * (rest / term.tau - 1.0f) - rest * sigmoid(-h) - softplus(-h) * sigmoid_slope(x) / term.tau;
        return of_margin(rest * softplus(-h) + exponential, slope, term.beta);
    }
};

__device__ Value evaluate(const Pair &pair, const Term &term) {
    switch (term.kind) {
        case COLLIMATE_PREFERENCE_SIGMOID: return Sigmoid()(pair, term);
        case COLLIMATE_PREFERENCE_ROBUST: return Robust()(pair, term);
        case COLLIMATE_PREFERENCE_HINGE: return Hinge()(pair, term);
        case COLLIMATE_PREFERENCE_IPO_SUM: return IpoSum()(pair, term);
        case COLLIMATE_PREFERENCE_IPO_MEAN: return IpoMean()(pair, term);
        case COLLIMATE_PREFERENCE_PSI_PO: return PsiPo()(pair, term);
        case COLLIMATE_PREFERENCE_EXO: return Exo()(pair, term);
        case COLLIMATE_PREFERENCE_APO_ZERO: return ApoZero()(pair, term);
        case COLLIMATE_PREFERENCE_APO_DOWN: return ApoDown()(pair, term);
        case COLLIMATE_PREFERENCE_NCA: return Nca()(pair, term);
        case COLLIMATE_PREFERENCE_SPPO: return Sppo()(pair, term);
        case COLLIMATE_PREFERENCE_LENGTH_NORMALISED: return LengthNormalised()(pair, term);
        case COLLIMATE_PREFERENCE_SIMPO: return SimPo()(pair, term);
        case COLLIMATE_PREFERENCE_ORPO: return Orpo()(pair, term);
        case COLLIMATE_PREFERENCE_CPO: return Cpo()(pair, term);
        case COLLIMATE_PREFERENCE_SLIC_HF: return SlicHf()(pair, term);
        default: return DiscoPop()(pair, term);
    }
}

using Batch = PairBatch;
using Config = collimate_preference_config;

__device__ Pair load_pair(const Batch &batch, int64_t i, const LogRatios &ratios, const Bent &a, const Bent &b) {
    const int64_t at = i * batch.stride;
    Pair pair;
    pair.lw = ratios.lw, pair.ll = ratios.ll, pair.a = a.value, pair.b = b.value;
    pair.n_w = batch.chosen_lengths ? static_cast<float>(max(batch.chosen_lengths[at], 1)) : 1.0f;
    pair.n_l = batch.rejected_lengths ? static_cast<float>(max(batch.rejected_lengths[at], 1)) : 1.0f;
    pair.has_label = batch.labels != nullptr;
    pair.label = pair.has_label ? batch.labels[i] : 0.0f;
    pair.psi_target = batch.psi_targets ? batch.psi_targets[i] : 0.0f;
    pair.target = batch.policy_target_logps ? batch.policy_target_logps[i] : pair.lw;
    return pair;
}

// Writes the pair's outputs and adds it to the metrics.
__device__ void take_pair(const Batch &batch, const Config &config, int64_t i, double (&metrics)[kMetrics]) {
    const LogRatios ratios = load_ratios(batch, i);
    const Bent a = bend(batch, ratios.a), b = bend(batch, ratios.b);
    const Pair pair = load_pair(batch, i, ratios, a, b);
    Value mixture = {0.0f, 0.0f, 0.0f};
    double sft = 0.0;  // the weight of -lw, the normaliser included
    for (int k = 0; k < config.term_count; k++) {
        const Term &term = config.terms[k];
        if (term.kind == COLLIMATE_PREFERENCE_SFT) {
            sft += term.weight / config.sft_tokens;
            continue;
        }
        const Value value = evaluate(pair, term);
        mixture.loss += term.weight * value.loss;
        mixture.dlw += term.weight * value.dlw;
        mixture.dll += term.weight * value.dll;
        mixture.dtarget += term.weight * value.dtarget;
    }
    if (!batch.policy_target_logps) mixture.dlw += mixture.dtarget;
    const double weight = batch.weights ? batch.weights[i] : 1.0, share = weight / config.normaliser;
    if (batch.dtarget) put(batch, &batch.dtarget[i], mixture.dtarget * share);
    const float chosen = config.reward_scale * (config.reward_per_token ? ratios.a / pair.n_w : ratios.a);
    const float rejected = config.reward_scale * (config.reward_per_token ? ratios.b / pair.n_l : ratios.b);
    // the normaliser divides the sum, once: equal losses then have exactly their value as mean
    put_pair(batch, i, mixture.loss, weight * mixture.loss - sft * config.normaliser * pair.lw,
             mixture.dlw * share * a.slope - sft, mixture.dll * share * b.slope, chosen, rejected, metrics);
}

// `partials` [blocks, kMetrics] and `done`, a zero, are used where there is more than one block.
__global__ void __launch_bounds__(kThreads)
    preference_loss_kernel(Batch batch, Config config, double *partials, unsigned *done) {
    double metrics[kMetrics] = {};
    const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
    if (i < batch.pairs) take_pair(batch, config, i, metrics);
    if (!batch.metrics) return;
    double *scratch = shared<double>();
    for (int m = 0; m < kMetrics; m++) metrics[m] = reduce_block(metrics[m], Sum(), scratch);
    if (threadIdx.x != 0) return;
    if (gridDim.x > 1) {
        for (int m = 0; m < kMetrics; m++) partials[blockIdx.x * kMetrics + m] = metrics[m];
        __threadfence();
        if (atomicAdd(done, 1u) != gridDim.x - 1) return;
        __threadfence();
        for (int m = 0; m < kMetrics; m++) {
            metrics[m] = 0.0;
            for (unsigned block = 0; block < gridDim.x; block++) metrics[m] += partials[block * kMetrics + m];
        }
    }
    metrics[COLLIMATE_PREFERENCE_LOSS] /= config.normaliser;
    for (int m = 0; m < kMetrics; m++) batch.metrics[m] += metrics[m];
}

inline int64_t blocks_of(int64_t pairs) { return ceil_div(pairs, kThreads); }

inline bool needs_lengths(int kind) {
    switch (kind) {
        case COLLIMATE_PREFERENCE_IPO_MEAN:
        case COLLIMATE_PREFERENCE_LENGTH_NORMALISED:
        case COLLIMATE_PREFERENCE_SIMPO:
        case COLLIMATE_PREFERENCE_ORPO:
        case COLLIMATE_PREFERENCE_CPO: return true;
        default: return false;
    }
}

inline bool is_valid(const Batch &batch, const Term &term, double sft_tokens) {
    const float e = term.label_smoothing;
    const bool lengths = batch.chosen_lengths && batch.rejected_lengths;
    if (term.kind < 0 || term.kind > COLLIMATE_PREFERENCE_DISCOPOP || (needs_lengths(term.kind) && !lengths)) return false;
    switch (term.kind) {
        case COLLIMATE_PREFERENCE_SIGMOID: return e >= 0.0f && e <= 1.0f;
        case COLLIMATE_PREFERENCE_ROBUST: return e >= 0.0f && e < 0.5f;
        case COLLIMATE_PREFERENCE_EXO: return e > 0.0f && e < 1.0f;
        case COLLIMATE_PREFERENCE_PSI_PO: return batch.psi_targets != nullptr;
        case COLLIMATE_PREFERENCE_SFT: return sft_tokens > 0.0;
        case COLLIMATE_PREFERENCE_DISCOPOP: return term.tau > 0.0f && term.tau <= 1.0f;
        default: return true;
    }
}

inline bool is_valid(const Batch &batch, const Config &config) {
    if (!is_valid_batch(batch) || blocks_of(batch.pairs) > kMaxGridX || !(config.normaliser > 0.0)) return false;
    if (config.term_count < 1 || config.term_count > COLLIMATE_PREFERENCE_TERMS) return false;
    if ((batch.policy_target_logps == nullptr) != (batch.dtarget == nullptr)) return false;
    if (config.reward_per_token && !(batch.chosen_lengths && batch.rejected_lengths)) return false;
    for (int k = 0; k < config.term_count; k++) {
        if (!is_valid(batch, config.terms[k], config.sft_tokens)) return false;
    }
    return true;
}

}  // namespace collimate::preference_loss

namespace op = collimate::preference_loss;

extern "C" int64_t collimate_preference_loss_workspace(int64_t pairs) {
    const int64_t blocks = op::blocks_of(pairs);
    return blocks > 1 ? (blocks * op::kMetrics + 1) * int64_t(sizeof(double)) : 0;
}

extern "C" int32_t collimate_preference_loss(const collimate_preference_batch *batch,
                                             const collimate_preference_config *config, void *workspace,
                                             int64_t workspace_bytes, void *stream) {
    if (!op::is_valid(*batch, *config)) return COLLIMATE_STATUS_ARGUMENT;
    if (workspace_bytes < collimate_preference_loss_workspace(batch->pairs)) return COLLIMATE_STATUS_WORKSPACE;
    const int64_t blocks = op::blocks_of(batch->pairs);
    auto *partials = static_cast<double *>(workspace);
    unsigned *done = nullptr;
    if (blocks > 1) {
        done = reinterpret_cast<unsigned *>(partials + blocks * op::kMetrics);
        const cudaError_t status = cudaMemsetAsync(done, 0, sizeof(double), static_cast<cudaStream_t>(stream));
        if (status != cudaSuccess) return static_cast<int32_t>(status);
    }
    const collimate::Grid grid = {{static_cast<unsigned>(blocks)},
                                  {op::kThreads},
                                  op::kThreads / collimate::kWarpSize * sizeof(double)};
    return collimate::launch<op::preference_loss_kernel>(grid, stream, *batch, *config, partials, done);
}
