// Kernels that are wrong on purpose, each beside its right form: what the machine and the sanitizers must catch.
// `test planted NAME` runs the wrong one. The right ones run with the other tests.
#include "check.h"
#include "launch.cuh"
#include "reduce.cuh"

namespace test {
namespace {

using collimate::launch;
using collimate::shared;

constexpr int kThreads = 64;

__global__ void neighbour_kernel(float *out, bool right) {
    float *scratch = shared<float>();
    scratch[threadIdx.x] = float(threadIdx.x);
    if (right) __syncthreads();
    out[threadIdx.x] = scratch[(threadIdx.x + 32) % kThreads];
}

__global__ void reuse_kernel(float *out, bool right) {
    float *scratch = shared<float>();
    for (int round = 0; round < 3; round++) {
        scratch[threadIdx.x] = float(threadIdx.x * round);
        __syncthreads();
        out[threadIdx.x] = scratch[(threadIdx.x + 32) % kThreads];
        if (right) __syncthreads();
    }
}

__global__ void two_blocks_kernel(float *out, bool right) {
    if (threadIdx.x == 0) out[right ? blockIdx.x : 0] = float(blockIdx.x);
}

__global__ void last_block_kernel(float *out, float *partials, unsigned *done, bool right) {
    if (threadIdx.x != 0) return;
    partials[blockIdx.x] = 1.0f;
    if (right) __threadfence();
    if (atomicAdd(done, 1u) != gridDim.x - 1) return;
    if (right) __threadfence();
    *out = 0;
    for (unsigned block = 0; block < gridDim.x; block++) *out += partials[block];
}

__global__ void global_overrun_kernel(float *out, bool right) { out[threadIdx.x + (right ? 0 : 1)] = 1.0f; }

__global__ void shared_overrun_kernel(float *out, bool right) {
    float *scratch = shared<float>();
    scratch[threadIdx.x + (right ? 0 : 1)] = 1.0f;
    out[threadIdx.x] = scratch[threadIdx.x];
}

__global__ void misaligned_kernel(float *out, bool right) {
    if (threadIdx.x == 0) *reinterpret_cast<float4 *>(out + (right ? 4 : 1)) = make_float4(1, 2, 3, 4);
}

__global__ void divergent_kernel(float *out, bool right) {
    if (right || threadIdx.x < 32) __syncthreads();
    out[threadIdx.x] = 1.0f;
}

__global__ void divergent_warp_kernel(float *out, bool right) {
    float value = 1.0f;
    if (right || threadIdx.x % 32 < 16) {
        value = __shfl_xor_sync(collimate::kFullWarp, value, 1);
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = value;
}

__global__ void partial_mask_kernel(float *out, bool right) {
    out[threadIdx.x] = __shfl_xor_sync(right ? collimate::kFullWarp : 0xffffu, 1.0f, 1);
}

__global__ void unset_kernel(float *out, bool right) {
    float *scratch = shared<float>();
    if (right) scratch[threadIdx.x] = 1.0f;
    out[threadIdx.x] = scratch[threadIdx.x];
}

__global__ void unwaited_copy_kernel(float *out, const float *in, bool right) {
    float *scratch = shared<float>();
    if (threadIdx.x < kThreads / 4) collimate::copy_async_16(scratch + threadIdx.x * 4, in + threadIdx.x * 4);
    collimate::copy_async_commit();
    if (right) collimate::copy_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = scratch[threadIdx.x];
    if (!right) collimate::copy_async_wait<0>();
}

__global__ void missing_warp_barrier_kernel(float *out, bool right) {
    float *scratch = shared<float>();
    scratch[threadIdx.x] = float(threadIdx.x);
    if (right) {
        __syncwarp();
    } else {
        __shfl_xor_sync(collimate::kFullWarp, 1.0f, 1);  // waits for the others, but orders none of their writes
    }
    out[threadIdx.x] = scratch[threadIdx.x ^ 1];
}

// in in - out, as NaN where the product has more than its own rounding. Each form reads its factors, so that the compiler
// does not give both one product.
__global__ void fused_product_kernel(float *out, const float *in, const float *same, bool right) {
    const int i = threadIdx.x;
    const float rest = right ? __fmul_rn(same[i], same[i]) - out[i] : in[i] * in[i] - out[i];
    out[i] = rest == 0.0f ? 0.0f : NAN;
}

// Runs one; true: what came out is right.
bool run(const std::string &name, bool right) {
    Guarded<float> out(kThreads), in(kThreads), partials(8);
    Guarded<unsigned> done(1);
    done.fill(0);
    out.fill(0);
    in.fill(2.5f);
    const collimate::Grid one = {{1}, {kThreads}, kThreads * sizeof(float)}, many = {{8}, {kThreads}, kThreads * sizeof(float)};
    int status = 1;
    if (name == "missing_barrier") status = launch<neighbour_kernel>(one, nullptr, out.data(), right);
    if (name == "missing_barrier_before_reuse") status = launch<reuse_kernel>(one, nullptr, out.data(), right);
    if (name == "two_blocks_one_word") status = launch<two_blocks_kernel>(many, nullptr, out.data(), right);
    if (name == "missing_fence") status = launch<last_block_kernel>(many, nullptr, out.data(), partials.data(), done.data(), right);
    if (name == "global_overrun") status = launch<global_overrun_kernel>(one, nullptr, out.data(), right);
    if (name == "shared_overrun") status = launch<shared_overrun_kernel>(one, nullptr, out.data(), right);
    if (name == "misaligned") status = launch<misaligned_kernel>(one, nullptr, out.data(), right);
    if (name == "divergent_barrier") status = launch<divergent_kernel>(one, nullptr, out.data(), right);
    if (name == "divergent_warp") status = launch<divergent_warp_kernel>(one, nullptr, out.data(), right);
    if (name == "partial_mask") status = launch<partial_mask_kernel>(one, nullptr, out.data(), right);
    if (name == "unset_shared") status = launch<unset_kernel>(one, nullptr, out.data(), right);
    if (name == "unwaited_copy") status = launch<unwaited_copy_kernel>(one, nullptr, out.data(), in.data(), right);
    if (name == "missing_warp_barrier") status = launch<missing_warp_barrier_kernel>(one, nullptr, out.data(), right);
    if (name == "fused_product") {
        for (size_t i = 0; i < out.size(); i++) in[i] = 0.1f * float(i + 1), out[i] = in[i] * in[i];
        status = launch<fused_product_kernel>(one, nullptr, out.data(), in.data(), in.data(), right);
    }
    bool numbers = true;
    for (size_t i = 0; i < out.size(); i++) numbers &= out[i] == out[i];
    return status == 0 && numbers && out.intact();
}

const char *const kNames[] = {"missing_barrier", "missing_barrier_before_reuse", "two_blocks_one_word", "missing_fence",
                              "global_overrun", "shared_overrun", "misaligned", "divergent_barrier", "divergent_warp",
                              "partial_mask", "unset_shared", "unwaited_copy", "missing_warp_barrier", "fused_product"};

}  // namespace

void planted_right_forms() {
    for (const char *name : kNames) {
        for (int seed = 0; seed < orders; seed++) {
            collimate::emulate::set_seed(std::uint64_t(seed));
            expect(run(name, true), "the right form of %s fails", name);
        }
    }
    collimate::emulate::set_seed(0);
}

// The machine itself sees these, with no sanitizer, and names kernel and line.
void planted_reports() {
    const struct {
        const char *name, *says;
    } cases[] = {{"divergent_barrier", "divergent_kernel"}, {"divergent_warp", "planted.cpp:"},
                 {"partial_mask", "full mask at planted.cpp:"}};
    for (const auto &each : cases) {
        expect(!run(each.name, false), "%s went unseen", each.name);
        const std::string report = collimate::emulate::take_report();
        expect(report.find(each.says) != std::string::npos, "%s: the report is '%s'", each.name, report.c_str());
    }
}

int planted(const std::string &name) {
    if (run(name, false)) return 0;
    std::printf("%s: a failed launch or wrong numbers\n", name.c_str());
    return 1;
}

}  // namespace test
