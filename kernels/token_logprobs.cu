// token_logprobs: log softmax(z)[target] of every row of the logits, its gradient, and both at once.
//
// A row is cut into units of 1024 columns (512 in float32). One warp reduces a unit to its maximum and its sums relative to it, in an
// order fixed by the unit; one warp merges a row's units in an order fixed by their number. Who reduces which unit
// changes no bit: many rows take a block each, few rows spread their units over blocks.
// Traffic: forward reads each scored row once, backward and fused read and write it once (fused reads it twice, the
// second time from L2). Per element: one exp2, a subtraction, a product, a sum.
#include <type_traits>

#include "token_logprobs.cuh"

namespace collimate::token_logprobs {

constexpr int kUnitsPerBlock = 8;  // where few rows are spread
constexpr int kThreads = 256, kBlocksPerMultiprocessor = 4;  // 64 registers a thread
constexpr int kFusedThreads = 1024;  // one row a multiprocessor at a time, so that its second reading comes from L2
constexpr int kPacksPerBlock = kUnitsPerBlock * kWarpSize * kLoadsInFlight;
constexpr int64_t kFewRows = 128;    // fewer rows than this are spread
constexpr int64_t kWideVocab = 8192;  // narrower rows are not spread
constexpr int64_t kMaxVocab = 1 << 21;

// --- many rows: a block each

template <class T, Cap cap, Statistics statistics>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) forward_kernel(Rows<T> rows) {
    const int64_t row = blockIdx.x;
    if (skip_row(rows, row, true)) return;
    Partial *partials = shared<Partial>();
    reduce_units<T, cap, statistics>(rows, row, partials, 0, rows.units);
    __syncthreads();
    if (threadIdx.x >= kWarpSize) return;
    const Partial total = merge<statistics>(partials, rows.units, rows.map);
    if (threadIdx.x != 0) return;
    write_row<cap, statistics>(rows, row, total, to_float(rows.logits[row * rows.stride + rows.targets[row]]));
}

template <class T, Cap cap, Statistics statistics>
__global__ void __launch_bounds__(kFusedThreads, 1) fused_kernel(Rows<T> rows) {
    const int64_t row = blockIdx.x;
    Gradient *gradient = shared<Gradient>();
    Partial *partials = reinterpret_cast<Partial *>(gradient + 1);
    const bool skipped = skip_row(rows, row, true);
    if (!skipped) {
        reduce_units<T, cap, statistics>(rows, row, partials, 0, rows.units);
        __syncthreads();
        if (threadIdx.x < kWarpSize) {
            const Partial total = merge<statistics>(partials, rows.units, rows.map);
            if (threadIdx.x == 0) {
                const float x = to_float(rows.logits[row * rows.stride + rows.targets[row]]);
                write_row<cap, statistics>(rows, row, total, x);
                *gradient = gradient_of(total, rows.map);
            }
        }
        __syncthreads();
    }
    write_gradient<T, cap>(rows, row, skipped ? Gradient{} : *gradient, skipped, 0, gradient_packs<T>(rows.vocab));
}

// --- few rows: their units over blocks, then whoever needs a row merges it

template <class T, Cap cap>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) partials_kernel(Rows<T> rows) {
    const int64_t row = blockIdx.y;
    if (skip_row(rows, row, false)) return;
    Partial *partials = rows.partials + row * (rows.units + 1);
    const int begin = blockIdx.x * kUnitsPerBlock, end = min(begin + kUnitsPerBlock, rows.units);
    reduce_units<T, cap, Statistics::kAll>(rows, row, partials, begin, end);
    if (blockIdx.x != 0 || threadIdx.x != 0) return;
    partials[rows.units] = {to_float(rows.logits[row * rows.stride + rows.targets[row]]), 0, 0, 0, 0, 0};
}

template <class T, Cap cap>
__global__ void __launch_bounds__(kWarpSize) merge_kernel(Rows<T> rows) {
    const int64_t row = blockIdx.x;
    if (skip_row(rows, row, true)) return;
    const Partial *partials = rows.partials + row * (rows.units + 1);
    const Partial total = merge<Statistics::kAll>(partials, rows.units, rows.map);
    if (threadIdx.x == 0) write_row<cap, Statistics::kAll>(rows, row, total, partials[rows.units].max);
}

template <class T, Cap cap>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) merge_gradient_kernel(Rows<T> rows) {
    const int64_t row = blockIdx.y;
    Gradient *gradient = shared<Gradient>();
    const bool skipped = skip_row(rows, row, blockIdx.x == 0);
    if (!skipped && threadIdx.x < kWarpSize) {
        const Partial *partials = rows.partials + row * (rows.units + 1);
        const Partial total = merge<Statistics::kAll>(partials, rows.units, rows.map);
        if (threadIdx.x == 0) {
            const float x = partials[rows.units].max;
            if (blockIdx.x == 0) write_row<cap, Statistics::kAll>(rows, row, total, x);
            *gradient = gradient_of(total, rows.map);
        }
    }
    __syncthreads();
    const int first = blockIdx.x * kPacksPerBlock, end = min(first + kPacksPerBlock, gradient_packs<T>(rows.vocab));
    write_gradient<T, cap>(rows, row, skipped ? Gradient{} : *gradient, skipped, first, end);
}

// --- backward

template <class T, Cap cap>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) backward_kernel(Rows<T> rows, const float *dlogps, int blocks_per_row) {
    const int64_t row = blockIdx.x / blocks_per_row;
    const int target = rows.targets[row];
    const float slope = dlogps[row] * rows.map.inverse_temperature, lse = rows.lse[row];
    const bool zero = target < 0 || target >= rows.vocab || slope == 0.0f || lse == -INFINITY;
    const Gradient gradient = {rows.map.inverse_temperature, lse, kLog2e, slope, slope, 1.0f, 0.0f};
    const int packs = gradient_packs<T>(rows.vocab), share = (packs + blocks_per_row - 1) / blocks_per_row;
    const int first = blockIdx.x % blocks_per_row * share;
    write_gradient<T, cap>(rows, row, gradient, zero, first, min(first + share, packs));
}

// --- launchers

inline bool spreads(int64_t rows, int64_t vocab) { return rows < kFewRows && vocab > kWideVocab; }

template <class T>
int units_of(int64_t vocab) {
    return static_cast<int>(ceil_div(vocab, kUnit<T>));
}

inline bool read_map(const collimate_logits_map *map, Map *out) {
    const collimate_logits_map given = map ? *map : collimate_logits_map{1.0f, 0.0f};
    if (!(given.temperature > 0.0f) || !(given.soft_cap >= 0.0f)) return false;
    const float inverse = 1.0f / given.temperature;
    *out = {inverse, static_cast<float>(1.44269504088896340736 / given.temperature), given.soft_cap,
            given.soft_cap > 0.0f ? 1.0f / given.soft_cap : 0.0f};
    return true;
}

inline bool fits(int64_t rows, int64_t vocab, int64_t stride) {
    return rows >= 0 && rows <= kMaxGridX && vocab > 0 && vocab <= kMaxVocab && stride >= vocab;
}

// Calls `body` with the instance's Cap and Statistics as integral constants.
template <class Body>
int dispatch_instance(const Map &map, bool all, Body body) {
    using None = std::integral_constant<Cap, Cap::kNone>;
    using Tanh = std::integral_constant<Cap, Cap::kTanh>;
    using Lse = std::integral_constant<Statistics, Statistics::kLse>;
    using All = std::integral_constant<Statistics, Statistics::kAll>;
    if (map.cap > 0.0f) return all ? body(Tanh(), All()) : body(Tanh(), Lse());
    return all ? body(None(), All()) : body(None(), Lse());
}

// What forward and fused have in common: `logits` is read, and replaced by the gradient where `fuse`.
struct Request {
    void *logits;
    float *logps, *lse;
    const collimate_token_statistics *statistics;
    const int32_t *targets;
    const collimate_logits_map *map;
    int64_t rows, vocab, stride;
    int32_t dtype;
    void *workspace;
    int64_t workspace_bytes;
    int32_t *error;
    void *stream;
};

enum class Pass { kForward, kFused };

template <class T, Cap cap>
int launch_spread(Pass pass, const Rows<T> &rows, int64_t count, void *stream) {
    const auto blocks = static_cast<unsigned>(ceil_div(rows.units, kUnitsPerBlock)), y = static_cast<unsigned>(count);
    const int status = launch<partials_kernel<T, cap>>({{blocks, y}, {kThreads}}, stream, rows);
    if (status != COLLIMATE_OK) return status;
    if (pass == Pass::kForward) return launch<merge_kernel<T, cap>>({{y}, {kWarpSize}}, stream, rows);
    const int64_t packs = gradient_packs<T>(rows.vocab);
    return launch<merge_gradient_kernel<T, cap>>(
        {{static_cast<unsigned>(ceil_div(packs, kPacksPerBlock)), y}, {kThreads}, sizeof(Gradient)}, stream, rows);
}

int run(Pass pass, const Request &request) {
    Map map;
    if (!fits(request.rows, request.vocab, request.stride) || !read_map(request.map, &map)) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    if (request.workspace_bytes < collimate_token_logprobs_workspace(request.rows, request.vocab)) {
        return COLLIMATE_STATUS_WORKSPACE;
    }
    const collimate_token_statistics none = {}, statistics = request.statistics ? *request.statistics : none;
    const bool all = statistics.entropy || statistics.hit || statistics.mean_logit || statistics.log_sum_p2;
    return dispatch_dtype(request.dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        const int units = units_of<T>(request.vocab);
        const size_t shared_bytes = sizeof(Partial) * units;
        const Rows<T> rows = {static_cast<const T *>(request.logits), static_cast<T *>(request.logits), request.targets,
                              request.logps, request.lse, statistics, static_cast<Partial *>(request.workspace),
                              request.error, request.stride, request.stride, static_cast<int>(request.vocab), units, map};
        return dispatch_instance(map, all, [&](auto cap, auto kept) {
            if (spreads(request.rows, request.vocab)) {
                return launch_spread<T, cap.value>(pass, rows, request.rows, request.stream);
            }
            const dim3 blocks(static_cast<unsigned>(request.rows));
            if (pass == Pass::kForward) {
                return launch<forward_kernel<T, cap.value, kept.value>>({blocks, {kThreads}, shared_bytes},
                                                                       request.stream, rows);
            }
            return launch<fused_kernel<T, cap.value, kept.value>>(
                {blocks, {kFusedThreads}, sizeof(Gradient) + shared_bytes}, request.stream, rows);
        });
    });
}

}  // namespace collimate::token_logprobs

namespace op = collimate::token_logprobs;

extern "C" int64_t collimate_token_logprobs_workspace(int64_t rows, int64_t vocab) {
    return op::spreads(rows, vocab) ? rows * (op::units_of<float>(vocab) + 1) * int64_t(sizeof(op::Partial)) : 0;
}

extern "C" int32_t collimate_token_logprobs_forward(float *logps, float *lse,
                                                    const collimate_token_statistics *statistics, const void *logits,
                                                    const int32_t *targets, const collimate_logits_map *map,
                                                    int64_t rows, int64_t vocab, int64_t row_stride, int32_t dtype,
                                                    void *workspace, int64_t workspace_bytes, int32_t *error,
                                                    void *stream) {
    return op::run(op::Pass::kForward, {const_cast<void *>(logits), logps, lse, statistics, targets, map, rows, vocab,
                                        row_stride, dtype, workspace, workspace_bytes, error, stream});
}

extern "C" int32_t collimate_token_logprobs_fused(void *logits_to_gradient, float *logps, float *lse,
                                                  const collimate_token_statistics *statistics, const int32_t *targets,
                                                  const collimate_logits_map *map, int64_t rows, int64_t vocab,
                                                  int64_t row_stride, int32_t dtype, void *workspace,
                                                  int64_t workspace_bytes, int32_t *error, void *stream) {
    return op::run(op::Pass::kFused, {logits_to_gradient, logps, lse, statistics, targets, map, rows, vocab, row_stride,
                                      dtype, workspace, workspace_bytes, error, stream});
}

extern "C" int32_t collimate_token_logprobs_backward(void *dlogits, const float *dlogps, const float *lse,
                                                     const void *logits, const int32_t *targets,
                                                     const collimate_logits_map *map, int64_t rows, int64_t vocab,
                                                     int64_t logits_stride, int64_t dlogits_stride, int32_t dtype,
                                                     void *stream) {
    op::Map constants;
    const int64_t blocks_per_row = op::spreads(rows, vocab) ? collimate::ceil_div(vocab, op::kWideVocab) : 1;
    if (!op::fits(rows, vocab, logits_stride) || dlogits_stride < vocab || !op::read_map(map, &constants) ||
        (dlogits == logits && logits_stride != dlogits_stride)) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        op::Rows<T> task = {};
        task.logits = static_cast<const T *>(logits);
        task.gradient = static_cast<T *>(dlogits);
        task.targets = targets;
        task.lse = const_cast<float *>(lse);
        task.stride = logits_stride;
        task.gradient_stride = dlogits_stride;
        task.vocab = static_cast<int>(vocab);
        task.map = constants;
        const collimate::Grid grid = {{static_cast<unsigned>(rows * blocks_per_row)}, {op::kThreads}};
        const int blocks = static_cast<int>(blocks_per_row);
        if (constants.cap > 0.0f) {
            return collimate::launch<op::backward_kernel<T, op::Cap::kTanh>>(grid, stream, task, dlogps, blocks);
        }
        return collimate::launch<op::backward_kernel<T, op::Cap::kNone>>(grid, stream, task, dlogps, blocks);
    });
}
