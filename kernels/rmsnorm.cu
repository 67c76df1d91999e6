// rmsnorm: normalises groups of columns, alone or of the sum with a residual that it updates; backward with the
// gradient of the weight in two stages of fixed order.
//
// A team of threads takes a group: a part of a warp where the group is narrow (the heads of queries and keys), else a
// block. A thread keeps its first pack in registers, so that x is read once; of rows wider than 256 packs it reads the
// rest again. A team's size follows from width and dtype alone.
#include "chunk.cuh"
#include "partials.cuh"

namespace collimate::rmsnorm {

constexpr int kMaxThreads = 256;
constexpr int kTeamThreads = 256;       // of a block of teams
constexpr int64_t kBlocksWanted = 528;  // 4 for each multiprocessor of the largest GPUs, so that none is idle
constexpr int64_t kMaxTurns = 32;       // groups that a team takes one after the other

enum class Residual { kNone, kAdd };

// Who takes what: `team` threads a group, `teams` a block.
struct Plan {
    int32_t chunks, team, teams;
};

template <class T>
Plan plan_of(int64_t width) {
    const int32_t chunks = static_cast<int32_t>(ceil_div(width, Pack<T>::kSize));
    if (chunks > kWarpSize) {
        const int64_t threads = ceil_div(chunks, kWarpSize) * kWarpSize;
        return {chunks, static_cast<int32_t>(threads < kMaxThreads ? threads : kMaxThreads), 1};
    }
    int32_t team = 1;
    while (team < kWarpSize && team < chunks) team *= 2;
    return {chunks, team, kTeamThreads / team};
}

struct Strides {
    int64_t out, rstd, residual, x;
};

template <class T>
struct Forward {
    T *out;
    float *rstd;
    T *residual;
    const T *x, *weight;
    Strides strides;
    unsigned count, groups;  // groups of all rows, of one row
    int32_t width;
    float eps;
    Plan plan;
};

__device__ __forceinline__ float team_sum(float value, const Plan &plan) {
    if (plan.team <= kWarpSize) return reduce_team(value, Sum(), plan.team);
    return reduce_block(value, Sum(), shared<float>());
}

template <int size>
__device__ __forceinline__ float sum_squares(const Chunk<size> &chunk, float sum) {
    for (int i = 0; i < size; i++) sum = fmaf(chunk.at[i], chunk.at[i], sum);
    return sum;
}

// residual + x, rounded to T.
template <class T, int size>
__device__ __forceinline__ Chunk<size> rounded_sum(const Chunk<size> &a, const Chunk<size> &b) {
    Chunk<size> sum;
    for (int i = 0; i < size; i++) sum.at[i] = to_float(from_float<T>(a.at[i] + b.at[i]));
    return sum;
}

template <class T, Access access, Residual residual>
__global__ void __launch_bounds__(kMaxThreads, 4) forward_kernel(Forward<T> f) {
    constexpr int kSize = Pack<T>::kSize;
    const Plan plan = f.plan;
    const int lane = threadIdx.x % plan.team, width = f.width;
    const unsigned index = blockIdx.x * plan.teams + threadIdx.x / plan.team;
    const int chunks = index < f.count ? plan.chunks : 0;
    const unsigned row = index / f.groups, group = index % f.groups;
    const int64_t column = int64_t(group) * width;
    const T *x = f.x + row * f.strides.x + column;
    T *stream = residual == Residual::kAdd ? f.residual + row * f.strides.residual + column : nullptr;
    const auto read = [&](int i) {
        auto chunk = load_chunk<access, kSize>(x, i * kSize, width);
        if (residual == Residual::kAdd) {
            chunk = rounded_sum<T>(load_chunk<access, kSize>(stream, i * kSize, width), chunk);
            store_chunk<access>(stream, i * kSize, width, chunk);
        }
        return chunk;
    };
    Chunk<kSize> held = {};
    if (lane < chunks) held = read(lane);
    float sum = sum_squares(held, 0.0f);
    for (int i = lane + plan.team; i < chunks; i += plan.team) sum = sum_squares(read(i), sum);
    const float scale = 1.0f / sqrtf(team_sum(sum, plan) / width + f.eps);
    if (chunks != 0 && lane == 0) f.rstd[row * f.strides.rstd + group] = scale;
    T *out = f.out + row * f.strides.out + column;
    const auto write = [&](Chunk<kSize> chunk, int i) {
        const auto weight = load_chunk<access, kSize>(f.weight, i * kSize, width);
        for (int j = 0; j < kSize; j++) chunk.at[j] = chunk.at[j] * scale * weight.at[j];
        store_chunk<access>(out, i * kSize, width, chunk);
    };
    if (lane < chunks) write(held, lane);
    const T *again = residual == Residual::kAdd ? stream : x;
    for (int i = lane + plan.team; i < chunks; i += plan.team) {
        write(load_chunk<access, kSize>(again, i * kSize, width), i);
    }
}

template <class T>
struct Backward {
    T *dx;
    float *partials;
    const T *dout, *x, *weight;
    const float *rstd;
    int64_t dx_stride, dout_stride, x_stride, rstd_stride, partial_columns;
    unsigned count, groups;
    int32_t width, turns;
    bool add_to_dx;
    Plan plan;
};

// The shared memory holds the scratch of a reduction, then each team's gradient of the weight.
constexpr int kScratch = kMaxThreads / kWarpSize;

template <class T, Access access>
__global__ void __launch_bounds__(kMaxThreads, 2) backward_kernel(Backward<T> b) {
    constexpr int kSize = Pack<T>::kSize;
    const Plan plan = b.plan;
    const int team = threadIdx.x / plan.team, lane = threadIdx.x % plan.team, width = b.width;
    const int columns = plan.chunks * kSize;
    float *dweights = shared<float>() + kScratch, *dweight = dweights + team * columns;
    for (int i = threadIdx.x; i < plan.teams * columns; i += blockDim.x) dweights[i] = 0.0f;
    __syncthreads();
    for (int turn = 0; turn < b.turns; turn++) {
        const unsigned index = (blockIdx.x * b.turns + turn) * plan.teams + team;
        const int chunks = index < b.count ? plan.chunks : 0;
        const unsigned row = index / b.groups, group = index % b.groups;
        const int64_t column = int64_t(group) * width;
        const T *x = b.x + row * b.x_stride + column, *dout = b.dout + row * b.dout_stride + column;
        const float rstd = chunks != 0 ? b.rstd[row * b.rstd_stride + group] : 0.0f;
        Pack<T> held_x, held_dout;
        if (lane < chunks) {
            held_x = load_pack<access>(x, lane * kSize, width);
            held_dout = load_pack<access>(dout, lane * kSize, width);
        }
        float dot = 0.0f;  // sum of dout weight x
        const auto accumulate = [&](const Pack<T> &x, const Pack<T> &dout, int i) {
            const auto weight = load_pack<access>(b.weight, i * kSize, width);
#pragma unroll
            for (int j = 0; j < kSize; j += 4) {  // few at a time, to stay within the registers
                auto sums = load_chunk<Access::kPacks, 4>(dweight, i * kSize + j, columns);
                for (int k = 0; k < 4; k++) {
                    const float product = to_float(dout.elements[j + k]) * to_float(x.elements[j + k]);
                    sums.at[k] = fmaf(product, rstd, sums.at[k]);
                    dot = fmaf(product, to_float(weight.elements[j + k]), dot);
                }
                store_chunk<Access::kPacks>(dweight, i * kSize + j, columns, sums);
            }
        };
        if (lane < chunks) accumulate(held_x, held_dout, lane);
        for (int i = lane + plan.team; i < chunks; i += plan.team) {
            accumulate(load_pack<access>(x, i * kSize, width), load_pack<access>(dout, i * kSize, width), i);
        }
        dot = team_sum(dot, plan);
        // dx = rstd (dout weight - x rstd^2 dot / width)
        const float c = -(dot * rstd * rstd / width);
        T *dx = b.dx + row * b.dx_stride + column;
        const auto write = [&](const Pack<T> &x, const Pack<T> &dout, int i) {
            const auto weight = load_pack<access>(b.weight, i * kSize, width);
            Chunk<kSize> result = {};
            if (b.add_to_dx) result = load_chunk<access, kSize>(dx, i * kSize, width);
            for (int j = 0; j < kSize; j++) {
                const float dnorm = to_float(dout.elements[j]) * to_float(weight.elements[j]);
                result.at[j] = fmaf(fmaf(to_float(x.elements[j]), c, dnorm), rstd, result.at[j]);
            }
            store_chunk<access>(dx, i * kSize, width, result);
        };
        if (lane < chunks) write(held_x, held_dout, lane);
        for (int i = lane + plan.team; i < chunks; i += plan.team) {
            write(load_pack<access>(x, i * kSize, width), load_pack<access>(dout, i * kSize, width), i);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = dweights[i];
        for (int t = 1; t < plan.teams; t++) sum += dweights[t * columns + i];
        b.partials[blockIdx.x * b.partial_columns + i] = sum;
    }
}

inline bool is_valid(int64_t rows, int64_t groups, int64_t width) {
    return rows >= 0 && groups >= 0 && width >= 1 && width <= COLLIMATE_RMSNORM_WIDTH &&
           (groups == 0 || rows <= kMaxGridX / groups);
}

// How the groups are spread over blocks in backward: fixed by the shape.
struct Spread {
    int64_t turns, blocks;
};

inline Spread spread(int64_t count, const Plan &plan) {
    int64_t turns = ceil_div(count, plan.teams * kBlocksWanted);
    turns = turns < 1 ? 1 : turns > kMaxTurns ? kMaxTurns : turns;
    return {turns, ceil_div(count, plan.teams * turns)};
}

}  // namespace collimate::rmsnorm

namespace op = collimate::rmsnorm;

extern "C" int32_t collimate_rmsnorm_forward(void *out, float *rstd, void *residual, const void *x, const void *weight,
                                             int64_t rows, int64_t groups, int64_t width, int64_t out_stride,
                                             int64_t rstd_stride, int64_t residual_stride, int64_t x_stride, float eps,
                                             int32_t dtype, void *stream) {
    if (!op::is_valid(rows, groups, width)) return COLLIMATE_STATUS_ARGUMENT;
    const int64_t columns = groups * width;
    if (out_stride < columns || x_stride < columns || rstd_stride < groups || (residual && residual_stride < columns)) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        const op::Plan plan = op::plan_of<T>(width);
        const op::Forward<T> f = {static_cast<T *>(out),
                                  rstd,
                                  static_cast<T *>(residual),
                                  static_cast<const T *>(x),
                                  static_cast<const T *>(weight),
                                  {out_stride, rstd_stride, residual_stride, x_stride},
                                  static_cast<unsigned>(rows * groups),
                                  static_cast<unsigned>(groups),
                                  static_cast<int32_t>(width),
                                  eps,
                                  plan};
        const bool packs = width % collimate::Pack<T>::kSize == 0 && collimate::in_packs(f.out, out_stride) &&
                           collimate::in_packs(f.residual, residual ? residual_stride : 0) &&
                           collimate::in_packs(f.x, x_stride) && collimate::in_packs(f.weight, 0);
        const collimate::Grid grid = {{static_cast<unsigned>(collimate::ceil_div(rows * groups, plan.teams))},
                                      {static_cast<unsigned>(plan.team * plan.teams)},
                                      op::kScratch * sizeof(float)};
        return collimate::dispatch_access(packs, [&](auto access) {
            constexpr auto kAccess = decltype(access)::value;
            if (residual) return collimate::launch<op::forward_kernel<T, kAccess, op::Residual::kAdd>>(grid, stream, f);
            return collimate::launch<op::forward_kernel<T, kAccess, op::Residual::kNone>>(grid, stream, f);
        });
    });
}

extern "C" int64_t collimate_rmsnorm_backward_workspace(int64_t rows, int64_t groups, int64_t width, int32_t dtype) {
    if (!op::is_valid(rows, groups, width)) return 0;
    const op::Plan plan = dtype == COLLIMATE_F32 ? op::plan_of<float>(width) : op::plan_of<__half>(width);
    return op::spread(rows * groups, plan).blocks * collimate::partial_stride(width) * int64_t(sizeof(float));
}

extern "C" int32_t collimate_rmsnorm_backward(void *dx, float *dweight, const void *dout, const void *x,
                                              const void *weight, const float *rstd, int64_t rows, int64_t groups,
                                              int64_t width, int64_t dx_stride, int64_t dout_stride, int64_t x_stride,
                                              int64_t rstd_stride, int32_t add_to_dx, int32_t dtype, void *workspace,
                                              int64_t workspace_bytes, void *stream) {
    if (!op::is_valid(rows, groups, width)) return COLLIMATE_STATUS_ARGUMENT;
    const int64_t columns = groups * width, count = rows * groups;
    if (dx_stride < columns || dout_stride < columns || x_stride < columns || rstd_stride < groups) {
        return COLLIMATE_STATUS_ARGUMENT;
    }
    if (workspace_bytes < collimate_rmsnorm_backward_workspace(rows, groups, width, dtype)) {
        return COLLIMATE_STATUS_WORKSPACE;
    }
    auto *partials = static_cast<float *>(workspace);
    const int64_t partial_columns = collimate::partial_stride(width);
    return collimate::dispatch_dtype(dtype, [&](auto type) {
        using T = typename decltype(type)::Element;
        const op::Plan plan = op::plan_of<T>(width);
        const op::Spread spread = op::spread(count, plan);
        const op::Backward<T> b = {static_cast<T *>(dx),
                                   partials,
                                   static_cast<const T *>(dout),
                                   static_cast<const T *>(x),
                                   static_cast<const T *>(weight),
                                   rstd,
                                   dx_stride,
                                   dout_stride,
                                   x_stride,
                                   rstd_stride,
                                   partial_columns,
                                   static_cast<unsigned>(count),
                                   static_cast<unsigned>(groups),
                                   static_cast<int32_t>(width),
                                   static_cast<int32_t>(spread.turns),
                                   add_to_dx != 0,
                                   plan};
        const bool packs = width % collimate::Pack<T>::kSize == 0 && collimate::in_packs(b.dx, dx_stride) &&
                           collimate::in_packs(b.dout, dout_stride) && collimate::in_packs(b.x, x_stride) &&
                           collimate::in_packs(b.weight, 0);
        const size_t accumulators = size_t(plan.teams) * plan.chunks * collimate::Pack<T>::kSize;
        const collimate::Grid grid = {{static_cast<unsigned>(spread.blocks)},
                                      {static_cast<unsigned>(plan.team * plan.teams)},
                                      (op::kScratch + accumulators) * sizeof(float)};
        const int status = collimate::dispatch_access(packs, [&](auto access) {
            return collimate::launch<op::backward_kernel<T, decltype(access)::value>>(grid, stream, b);
        });
        if (status != COLLIMATE_OK) return status;
        return collimate::add_partials(dweight, partials, spread.blocks, width, partial_columns, stream);
    });
}
