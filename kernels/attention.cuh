// What the attention kernels share: how a block of queries finds its keys, and where a head's columns start.
#pragma once

#include "launch.cuh"
#include "vec.cuh"

namespace collimate::attention {

using Queries = collimate_attention_queries;
using Keys = collimate_attention_keys;
using Reader = collimate_attention_reader;

constexpr int kBlock = COLLIMATE_ATTENTION_BLOCK;
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// The inputs of a call, with their element type.
template <class T>
struct Inputs {
    const T *q, *k, *v;
    int64_t q_stride, kv_stride;
    int heads, group, head_dim;  // group: query heads of one key head
    float scale;
};

template <class T>
Inputs<T> typed(const collimate_attention_inputs &inputs) {
    return {static_cast<const T *>(inputs.q),
            static_cast<const T *>(inputs.k),
            static_cast<const T *>(inputs.v),
            inputs.q_stride,
            inputs.kv_stride,
            static_cast<int>(inputs.heads),
            static_cast<int>(inputs.heads / inputs.kv_heads),
            static_cast<int>(inputs.head_dim),
            inputs.scale};
}

inline bool is_valid(const collimate_attention_inputs &inputs, int64_t blocks) {
    const int64_t most = 1 << 20, blocks_of_cuda = 2;  // for a block of the list and a head
    const bool sizes = inputs.heads > 0 && inputs.heads <= most && inputs.kv_heads > 0 && inputs.head_dim > 0 &&
                       inputs.head_dim <= most && inputs.heads % inputs.kv_heads == 0;
    return sizes && blocks >= 0 && blocks <= kMaxGridX / blocks_of_cuda / inputs.heads &&
           inputs.q_stride >= inputs.heads * inputs.head_dim && inputs.kv_stride >= inputs.kv_heads * inputs.head_dim;
}

// The outputs and what forward left, with their element type.
template <class T>
struct Gradients {
    T *dq, *dk, *dv;
    const T *dout;
    const float *lse, *delta;  // delta [rows, heads] = rowsum(dout out)
    int64_t dq_stride, dkv_stride, dout_stride, lse_stride;
};

template <class T>
Gradients<T> typed(const collimate_attention_gradients &gradients, const float *delta) {
    return {static_cast<T *>(gradients.dq),
            static_cast<T *>(gradients.dk),
            static_cast<T *>(gradients.dv),
            static_cast<const T *>(gradients.dout),
            gradients.lse,
            delta,
            gradients.dq_stride,
            gradients.dkv_stride,
            gradients.dout_stride,
            gradients.lse_stride};
}

// Keys that the last query of the block sees; query i sees count - 1 - i fewer.
__device__ __forceinline__ int keys_of(const Queries &block) {
    return block.prefix_len + block.first + block.count;
}

// The row of the block's key `key`: the prefix comes first.
__device__ __forceinline__ int64_t key_row(const Queries &block, int key) {
    return key < block.prefix_len ? block.prefix_start + key : block.kv_start + (key - block.prefix_len);
}

}  // namespace collimate::attention
