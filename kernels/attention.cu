// attention: causal over segments with shared prefixes and grouped queries, as in FlashAttention-2 (Dao 2023,
// arXiv:2307.08691). Forward keeps one running maximum and sum a query; backward recomputes the probabilities from the
// saved lse, once by blocks of keys for dk and dv, once by blocks of queries for dq, so that nothing is added by atomics.
// Which form a call takes hangs on its type, head dim and alignment alone.
#include "attention_backward.cuh"
#include "attention_forward.cuh"
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

// A list's blocks for each of `heads`, in the plain form.
inline Grid plain_grid(int64_t blocks, int64_t heads, int64_t head_dim, int floats) {
    return {{static_cast<unsigned>(blocks * heads * plain::kHalves), static_cast<unsigned>(ceil_div(head_dim, plain::kPanel))},
            {plain::kThreads},
            floats * sizeof(float)};
}

template <class T>
bool has_mma(const collimate_attention_inputs &inputs) {
    return !std::is_same_v<T, float> && inputs.scale > 0 &&
           mma::is_aligned({inputs.q, inputs.k, inputs.v}, {inputs.q_stride, inputs.kv_stride});
}

// The form on the matrix units where it has the call; false where it has not.
template <class T>
bool forward_mma(int &status, T *out, float *lse, const collimate_attention_inputs &inputs, const Queries *queries,
                 int64_t blocks, int64_t out_stride, int64_t lse_stride, void *stream) {
    if (!has_mma<T>(inputs) || !mma::is_aligned({out}, {out_stride})) return false;
    return mma::with_head_dim(inputs.head_dim, [&](auto head_dim) {
        if constexpr (!std::is_same_v<T, float>) {
            constexpr int kDim = decltype(head_dim)::value;
            const Grid grid = {{static_cast<unsigned>(blocks * inputs.heads)}, {mma::kForwardThreads}, mma::kForwardBytes<T, kDim>};
            status = launch<mma::forward_kernel<T, kDim>>(grid, stream, out, lse, typed<T>(inputs), queries, out_stride, lse_stride);
        }
    });
}

template <class T>
bool backward_mma(int &status, const Gradients<T> &gradients, const collimate_attention_inputs &inputs,
                  const Queries *queries, const Keys *keys, const Reader *readers, int64_t query_blocks,
                  int64_t key_blocks, void *stream) {
    // Named, since nvcc's front end writes lists of a template's members out wrongly as arguments.
    const std::initializer_list<const void *> bases = {gradients.dq, gradients.dk, gradients.dv, gradients.dout};
    const std::initializer_list<int64_t> strides = {gradients.dq_stride, gradients.dkv_stride, gradients.dout_stride};
    if (!has_mma<T>(inputs) || !mma::is_aligned(bases, strides)) return false;
    return mma::with_head_dim(inputs.head_dim, [&](auto head_dim) {
        if constexpr (!std::is_same_v<T, float>) {
            constexpr int kDim = decltype(head_dim)::value;
            const auto grid = [](int64_t blocks, int bytes) {
                return Grid{{static_cast<unsigned>(blocks)}, {mma::kBackwardThreads}, static_cast<size_t>(bytes)};
            };
            const Inputs<T> from = typed<T>(inputs);
            status = launch<mma::dkv_kernel<T, kDim>>(grid(key_blocks * inputs.kv_heads, mma::kKeysBytes<T, kDim>), stream,
                                                      gradients, from, keys, readers);
            if (status != COLLIMATE_OK) return;
            status = launch<mma::dq_kernel<T, kDim>>(grid(query_blocks * inputs.heads, mma::kQueriesBytes<T, kDim>), stream,
                                                     gradients, from, queries);
        }
    });
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
        int status = COLLIMATE_OK;
        if (op::forward_mma(status, static_cast<T *>(out), lse, *inputs, queries, query_blocks, out_stride, lse_stride, stream)) {
            return status;
        }
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
        if (op::backward_mma(status, outputs, *inputs, queries, keys, readers, query_blocks, key_blocks, stream)) return status;
        const auto from = op::typed<T>(*inputs);
        status = collimate::launch<op::plain::dkv_kernel<T>>(
            op::plain_grid(key_blocks, inputs->kv_heads, head_dim, op::plain::kBackwardFloats), stream, outputs, from, keys,
            readers);
        if (status != COLLIMATE_OK) return status;
        return collimate::launch<op::plain::dq_kernel<T>>(
            op::plain_grid(query_blocks, inputs->heads, head_dim, op::plain::kBackwardFloats), stream, outputs, from, queries);
    });
}
