// sequence_sum: the log-probability of a sequence from those of its tokens, and a sequence's gradient to its tokens.
// One block a sequence, in an order fixed by the sequence's length. Launch-bound at training sizes.
#include "launch.cuh"
#include "reduce.cuh"

namespace collimate::sequence_sum {

constexpr int kThreads = 256;

__device__ __forceinline__ bool is_scored(const int32_t *targets, int row) {
    return targets == nullptr || targets[row] != COLLIMATE_IGNORE;
}

__global__ void __launch_bounds__(kThreads)
    forward_kernel(float *sums, int32_t *counts, const float *logps, const float *weights, const int32_t *targets,
                   const int32_t *cu_scored) {
    const int sequence = blockIdx.x, end = cu_scored[sequence + 1];
    float own = 0.0f;
    int scored = 0;
    for (int row = cu_scored[sequence] + static_cast<int>(threadIdx.x); row < end; row += kThreads) {
        if (!is_scored(targets, row)) continue;
        own += weights ? weights[row] * logps[row] : logps[row];
        scored++;
    }
    float *scratch = shared<float>();
    const float sum = reduce_block(own, Sum(), scratch);
    const int count = reduce_block(scored, Sum(), reinterpret_cast<int *>(scratch));
    if (threadIdx.x != 0) return;
    sums[sequence] = sum;
    if (counts) counts[sequence] = count;
}

__global__ void __launch_bounds__(kThreads)
    backward_kernel(float *dlogps, const float *dsums, const float *weights, const int32_t *targets,
                    const int32_t *cu_scored) {
    const int sequence = blockIdx.x, end = cu_scored[sequence + 1];
    const float dsum = dsums[sequence];
    for (int row = cu_scored[sequence] + static_cast<int>(threadIdx.x); row < end; row += kThreads) {
        dlogps[row] = !is_scored(targets, row) ? 0.0f : weights ? weights[row] * dsum : dsum;
    }
}

inline Grid grid(int64_t sequences) {
    return {{static_cast<unsigned>(sequences)}, {kThreads}, kThreads / kWarpSize * sizeof(float)};
}

}  // namespace collimate::sequence_sum

namespace op = collimate::sequence_sum;

extern "C" int32_t collimate_sequence_sum_forward(float *sums, int32_t *counts, const float *logps,
                                                  const float *weights, const int32_t *targets,
                                                  const int32_t *cu_scored, int64_t sequences, void *stream) {
    if (sequences < 0 || sequences > collimate::kMaxGridX) return COLLIMATE_STATUS_ARGUMENT;
    return collimate::launch<op::forward_kernel>(op::grid(sequences), stream, sums, counts, logps, weights, targets,
                                                 cu_scored);
}

extern "C" int32_t collimate_sequence_sum_backward(float *dlogps, const float *dsums, const float *weights,
                                                   const int32_t *targets, const int32_t *cu_scored,
                                                   int64_t sequences, void *stream) {
    if (sequences < 0 || sequences > collimate::kMaxGridX) return COLLIMATE_STATUS_ARGUMENT;
    return collimate::launch<op::backward_kernel>(op::grid(sequences), stream, dlogps, dsums, weights, targets,
                                                  cu_scored);
}
