// gae: generalised advantage estimation over sequences of tokens, and the whitening of advantages.
// A warp takes a sequence from its right end, 32 tokens at a time; in float64, in an order fixed by the sequence's
// length. Launch-bound at training sizes.
#include "launch.cuh"
#include "reduce.cuh"

namespace collimate::gae {

constexpr int kThreads = 128;
constexpr int kSequences = kThreads / kWarpSize;  // of a block
constexpr int kWhitenThreads = 512;

__global__ void __launch_bounds__(kThreads)
    gae_kernel(float *advantages, float *returns, const float *rewards, const float *values, const int32_t *cu_tokens,
               int64_t sequences, double gamma, double lambda) {
    const int64_t sequence = int64_t(blockIdx.x) * kSequences + threadIdx.x / kWarpSize;
    if (sequence >= sequences) return;
    const int lane = threadIdx.x % kWarpSize, begin = cu_tokens[sequence], end = cu_tokens[sequence + 1];
    // decays over 1, 2, 4, 8 and 16 tokens, and over those from this lane to the last one before
    double decays[5] = {gamma * lambda}, since = 1.0;
    for (int bit = 1; bit < 5; bit++) decays[bit] = decays[bit - 1] * decays[bit - 1];
    for (int bit = 0; bit < 5; bit++) since *= lane >> bit & 1 ? decays[bit] : 1.0;
    since *= decays[0];
    double carried = 0.0;
    for (int last = end - 1; last >= begin; last -= kWarpSize) {
        const int token = last - lane;
        const bool inside = token >= begin;
        const double value = inside ? values[token] : 0.0;
        const double next = inside && token + 1 < end ? values[token + 1] : 0.0;
        double advantage = inside ? rewards[token] + gamma * next - value : 0.0;
        for (int bit = 0; bit < 5; bit++) {
            const double later = __shfl_up_sync(kFullWarp, advantage, 1 << bit);
            if (lane >= 1 << bit) advantage += decays[bit] * later;
        }
        advantage += since * carried;
        carried = __shfl_sync(kFullWarp, advantage, kWarpSize - 1);
        if (!inside) continue;
        advantages[token] = static_cast<float>(advantage);
        returns[token] = static_cast<float>(advantage + value);
    }
}

__global__ void __launch_bounds__(kWhitenThreads) whiten_kernel(float *x, int64_t count) {
    double *scratch = shared<double>();
    double sum = 0.0, squares = 0.0;
    for (int64_t i = threadIdx.x; i < count; i += kWhitenThreads) sum += x[i];
    const double mean = reduce_block(sum, Sum(), scratch) / double(count);
    for (int64_t i = threadIdx.x; i < count; i += kWhitenThreads) squares += (x[i] - mean) * (x[i] - mean);
    const double scale = 1.0 / sqrt(reduce_block(squares, Sum(), scratch) / double(count) + 1e-8);
    for (int64_t i = threadIdx.x; i < count; i += kWhitenThreads) x[i] = static_cast<float>((x[i] - mean) * scale);
}

}  // namespace collimate::gae

namespace op = collimate::gae;

extern "C" int32_t collimate_gae(float *advantages, float *returns, const float *rewards, const float *values,
                                 const int32_t *cu_tokens, int64_t sequences, double gamma, double lambda, void *stream) {
    const int64_t blocks = collimate::ceil_div(sequences, op::kSequences);
    if (sequences < 0 || blocks > collimate::kMaxGridX) return COLLIMATE_STATUS_ARGUMENT;
    return collimate::launch<op::gae_kernel>({{static_cast<unsigned>(blocks)}, {op::kThreads}}, stream, advantages, returns,
                                             rewards, values, cu_tokens, sequences, gamma, lambda);
}

extern "C" int32_t collimate_whiten(float *x, int64_t count, void *stream) {
    if (count < 0) return COLLIMATE_STATUS_ARGUMENT;
    if (count == 0) return COLLIMATE_OK;
    const size_t shared_bytes = op::kWhitenThreads / collimate::kWarpSize * sizeof(double);
    return collimate::launch<op::whiten_kernel>({{1}, {op::kWhitenThreads}, shared_bytes}, stream, x, count);
}
