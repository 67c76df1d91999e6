// attention: causal over segments with shared prefixes and grouped queries, as in FlashAttention-2 (Dao 2023,
// arXiv:2307.08691). Forward keeps one running maximum and sum a query; backward recomputes the probabilities from the
// saved lse, once by blocks of keys for dk and dv, once by blocks of queries for dq, so that nothing is added by atomics.
#include "attention_plain.cuh"

namespace collimate::attention {

constexpr int kDeltaThreads = 128;

// delta = rowsum(dout out), a block a row and a warp a head.
template <class T>
__global__ void __launch_bounds__(kDeltaThreads)
    delta_kernel(float *delta, const T *dout, const T *out, int64_t dout_stride, int64_t out_stride, int heads,
                 int head_dim) {
    const int64_t row = blockIdx.x;
    const int lane = threadIdx.x % kWarpSize;
    for (int head = threadIdx.x / kWarpSize; head < heads; head += kDeltaThreads / kWarpSize) {
        const T *a = dout + row * dout_stride + static_cast<int64_t>(head) * head_dim;
        const T *b = out + row * out_stride + static_cast<int64_t>(head) * head_dim;
        float sum = 0.0f;
        for (int i = lane; i < head_dim; i += kWarpSize) sum += to_float(a[i]) * to_float(b[i]);
        sum = reduce_warp(sum, Sum());
        if (lane == 0) delta[row * heads + head] = sum;
    }
}

inline bool is_valid(const collimate_attention_inputs &inputs, int64_t blocks) {
    const int64_t most = 1 << 20;
    const bool sizes = inputs.heads > 0 && inputs.heads <= most && inputs.kv_heads > 0 && inputs.head_dim > 0 &&
                       inputs.head_dim <= most && inputs.heads % inputs.kv_heads == 0;
    return sizes && blocks >= 0 && blocks <= kMaxGridX / plain::kHalves / inputs.heads &&
           inputs.q_stride >= inputs.heads * inputs.head_dim && inputs.kv_stride >= inputs.kv_heads * inputs.head_dim;
}

// A list's blocks for each of `heads`, in the plain form.
inline Grid plain_grid(int64_t blocks, int64_t heads, int64_t head_dim, int floats) {
    return {{static_cast<unsigned>(blocks * heads * plain::kHalves), static_cast<unsigned>(ceil_div(head_dim, plain::kPanel))},
            {plain::kThreads},
            floats * sizeof(float)};
}

}  // namespace collimate::attention

namespace op = collimate::attention;

extern "C" int32_t collimate_attention_forward(void *out, float *lse, const collimate_attention_inputs *inputs,
                                               const collimate_attention_queries *queries, int64_t query_blocks,
                                               int64_t out_stride, int64_t lse_stride, void *stream) {
    if (!op::is_valid(*inputs, query_blocks) || out_stride < inputs->heads * inputs->head_dim ||
        (lse && lse_stride < inputs->heads)) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    return collimate::dispatch_dtype(inputs->dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        const collimate::Grid grid =
            op::plain_grid(query_blocks, inputs->heads, inputs->head_dim, op::plain::kForwardFloats);
        return collimate::launch<op::plain::forward_kernel<T>>(grid, stream, static_cast<T *>(out), lse, op::typed<T>(*inputs),
                                                               queries, out_stride, lse_stride);
    });
}

extern "C" int64_t collimate_attention_backward_workspace(int64_t rows, int64_t heads) {
    return rows * heads * static_cast<int64_t>(sizeof(float));
}

extern "C" int32_t collimate_attention_backward(const collimate_attention_gradients *gradients,
                                                const collimate_attention_inputs *inputs,
                                                const collimate_attention_queries *queries,
                                                const collimate_attention_keys *keys,
                                                const collimate_attention_reader *readers, int64_t rows,
                                                int64_t query_blocks, int64_t key_blocks, void *workspace,
                                                int64_t workspace_bytes, void *stream) {
    const int64_t q_columns = inputs->heads * inputs->head_dim, kv_columns = inputs->kv_heads * inputs->head_dim;
    if (!op::is_valid(*inputs, query_blocks) || !op::is_valid(*inputs, key_blocks) || rows < 0 ||
        rows > collimate::kMaxGridX || gradients->dq_stride < q_columns || gradients->dkv_stride < kv_columns ||
        gradients->dout_stride < q_columns || gradients->out_stride < q_columns || gradients->lse_stride < inputs->heads) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    if (workspace_bytes < collimate_attention_backward_workspace(rows, inputs->heads)) return COLLIMATE_STATUS_WORKSPACE;
    auto *delta = static_cast<float *>(workspace);
    return collimate::dispatch_dtype(inputs->dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        const auto head_dim = static_cast<int>(inputs->head_dim);
        const collimate::Grid by_row = {{static_cast<unsigned>(rows)}, {op::kDeltaThreads}};
        int status = collimate::launch<op::delta_kernel<T>>(
            by_row, stream, delta, static_cast<const T *>(gradients->dout), static_cast<const T *>(gradients->out),
            gradients->dout_stride, gradients->out_stride, static_cast<int>(inputs->heads), head_dim);
        if (status != COLLIMATE_OK) return status;
        const auto outputs = op::typed<T>(*gradients, delta);
        const auto from = op::typed<T>(*inputs);
        status = collimate::launch<op::plain::dkv_kernel<T>>(
            op::plain_grid(key_blocks, inputs->kv_heads, head_dim, op::plain::kBackwardFloats), stream, outputs, from, keys,
            readers);
        if (status != COLLIMATE_OK) return status;
        return collimate::launch<op::plain::dq_kernel<T>>(
            op::plain_grid(query_blocks, inputs->heads, head_dim, op::plain::kBackwardFloats), stream, outputs, from, queries);
    });
}
