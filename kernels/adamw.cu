// adamw: one step over the ranges of an arena, with the clip of the gradients folded in: its factor comes from a norm in
// device memory, so that nothing waits. Traffic with 16-bit weights: 30 bytes a parameter, 28 where the model computes
// with the master weights themselves.
#include <cmath>

#include "chunk.cuh"

namespace collimate::adamw {

constexpr int kThreads = 256;

struct Coefficients {
    float keep, lerp1, beta2, lerp2, root2, eps, rate;
    double max_grad_norm;
    int64_t step;
};

template <class T>
struct Arenas {
    T *weights;
    float *master, *m, *v;
    const float *grads;
};

// The first range that ends after `at`.
__device__ __forceinline__ int64_t find(const collimate_adamw_range *ranges, int64_t count, int64_t at) {
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (ranges[middle].end > at) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

struct Value {
    float weight, m, v;
};

// The roundings are those of torch on a processor with FMA, and of the CPU's code: nothing else may be fused.
__device__ __forceinline__ Value update(Value value, float grad, float scale, float keep, const Coefficients &c) {
    const float g = __fmul_rn(grad, scale);
    const float m = fmaf(c.lerp1, g - value.m, value.m), v = fmaf(__fmul_rn(c.lerp2, g), g, __fmul_rn(value.v, c.beta2));
    const float denominator = sqrtf(v) / c.root2 + c.eps;
    return {__fadd_rn(__fmul_rn(value.weight, keep), __fmul_rn(c.rate, m) / denominator), m, v};
}

template <class T, Access access>
__global__ void __launch_bounds__(kThreads, 3)
    step_kernel(Arenas<T> arenas, const double *norm, const collimate_adamw_range *ranges, int64_t count, int64_t begin,
                int64_t length, Coefficients c, int32_t *error) {
    constexpr int kSize = kChunkSize<T, float>;
    const double total = *norm;
    if (!isfinite(total)) {
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            report_error(error, COLLIMATE_ERROR_NORM, c.step, __float_as_int(static_cast<float>(total)));
        }
        return;
    }
    const double clip = c.max_grad_norm == 0.0 ? 1.0 : c.max_grad_norm / (total + 1e-6);
    const float scale = static_cast<float>(clip < 1.0 ? clip : 1.0);
    const int64_t block = begin + int64_t(blockIdx.x) * kThreads * kSize, first = block + threadIdx.x * kSize;
    int64_t r = find(ranges, count, block);
    while (r < count && ranges[r].end <= first) r++;
    if (r == count || ranges[r].start >= first + kSize) return;
    if (ranges[r].start <= first && first + kSize <= ranges[r].end) {
        const float keep = ranges[r].decay ? c.keep : 1.0f;
        const auto grads = load_chunk<access, kSize>(arenas.grads, first, length);
        auto weights = load_chunk<access, kSize>(arenas.master, first, length);
        auto m = load_chunk<access, kSize>(arenas.m, first, length);
        auto v = load_chunk<access, kSize>(arenas.v, first, length);
        for (int i = 0; i < kSize; i++) {
            const Value value = update({weights.at[i], m.at[i], v.at[i]}, grads.at[i], scale, keep, c);
            weights.at[i] = value.weight, m.at[i] = value.m, v.at[i] = value.v;
        }
        store_chunk<access>(arenas.master, first, length, weights);
        store_chunk<access>(arenas.m, first, length, m);
        store_chunk<access>(arenas.v, first, length, v);
        if (arenas.weights) store_chunk<access>(arenas.weights, first, length, weights);
        return;
    }
    for (int64_t at = first; at < first + kSize; at++) {
        while (r < count && ranges[r].end <= at) r++;
        if (r == count) return;
        if (at < ranges[r].start) continue;
        const float keep = ranges[r].decay ? c.keep : 1.0f;
        const Value value = update({arenas.master[at], arenas.m[at], arenas.v[at]}, arenas.grads[at], scale, keep, c);
        arenas.master[at] = value.weight, arenas.m[at] = value.m, arenas.v[at] = value.v;
        if (arenas.weights) arenas.weights[at] = from_float<T>(value.weight);
    }
}

inline Coefficients coefficients_of(const collimate_adamw_config &config) {
    const double correction1 = 1.0 - std::pow(config.beta1, static_cast<double>(config.step));
    const double correction2 = 1.0 - std::pow(config.beta2, static_cast<double>(config.step));
    return {static_cast<float>(1.0 - config.lr * config.weight_decay),
            static_cast<float>(1.0 - config.beta1),
            static_cast<float>(config.beta2),
            static_cast<float>(1.0 - config.beta2),
            static_cast<float>(std::sqrt(correction2)),
            static_cast<float>(config.eps),
            static_cast<float>(-(config.lr / correction1)),
            config.max_grad_norm,
            config.step};
}

}  // namespace collimate::adamw

namespace op = collimate::adamw;

extern "C" int32_t collimate_adamw(void *weights, float *master, float *m, float *v, const float *grads, const double *norm,
                                   const collimate_adamw_range *ranges, const collimate_adamw_config *config,
                                   int64_t range_count, int64_t begin, int64_t end, int32_t dtype, int32_t *error,
                                   void *stream) {
    if (range_count < 0 || begin < 0 || end < begin || config->step < 1) return COLLIMATE_STATUS_ARGUMENT;
    if (range_count == 0) return COLLIMATE_OK;
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        constexpr int kSize = collimate::kChunkSize<T, float>;
        const op::Arenas<T> arenas = {static_cast<T *>(weights), master, m, v, grads};
        const int64_t first = begin / kSize * kSize;  // chunks lie where packs do
        const int64_t blocks = collimate::ceil_div(end - first, op::kThreads * kSize);
        if (blocks > collimate::kMaxGridX) return static_cast<int>(COLLIMATE_STATUS_ARGUMENT);
        const bool packs = collimate::in_packs(arenas.weights, 0) && collimate::in_packs(master, 0) &&
                           collimate::in_packs(m, 0) && collimate::in_packs(v, 0) && collimate::in_packs(grads, 0);
        const collimate::Grid grid = {{static_cast<unsigned>(blocks)}, {op::kThreads}};
        return collimate::dispatch_access(packs, [&](auto access) {
            return collimate::launch<op::step_kernel<T, decltype(access)::value>>(
                grid, stream, arenas, norm, ranges, range_count, first, end, op::coefficients_of(*config), error);
        });
    });
}
