// What the tests of the kernels share: guarded buffers, runs in several orders, element types, failures.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../collimate.h"
#include "machine.h"

namespace test {

inline int failures = 0, checks = 0;
inline int orders = 8;  // COLLIMATE_TEST_ORDERS
#if COLLIMATE_SANITIZE_THREAD
constexpr bool kFewCases = true;  // races do not hang on the numbers, and the thread sanitizer is slow: every kernel still runs
#else
constexpr bool kFewCases = false;
#endif

// One line per failure, and no more than a screenful.
__attribute__((format(printf, 2, 3))) inline bool expect(bool holds, const char *format, ...) {
    checks++;
    if (holds) return true;
    if (++failures <= 40) {
        va_list arguments;
        va_start(arguments, format);
        std::fprintf(stderr, "FAILED ");
        std::vfprintf(stderr, format, arguments);
        std::fprintf(stderr, "\n");
        va_end(arguments);
    }
    return false;
}

struct Random {
    std::uint64_t state;
    explicit Random(std::uint64_t seed) : state(seed * 0x9e3779b97f4a7c15ull + 1) {}
    std::uint64_t bits() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state * 0x2545f4914f6cdd1dull >> 11;
    }
    double uniform() { return double(bits() % (1ull << 40)) / double(1ull << 40); }
    int below(int end) { return int(bits() % std::uint64_t(end)); }
    double normal() {
        const double radius = std::sqrt(-2 * std::log(1 - uniform()));
        return radius * std::cos(6.283185307179586 * uniform());
    }
};

template <class T>
struct Of;
template <>
struct Of<float> {
    static constexpr int dtype = COLLIMATE_F32, mantissa = 23, smallest = -126;
    static constexpr const char *name = "f32";
    static float from(double x) { return float(x); }
    static double wide(float x) { return x; }
};
template <>
struct Of<__nv_bfloat16> {
    static constexpr int dtype = COLLIMATE_BF16, mantissa = 7, smallest = -126;
    static constexpr const char *name = "bf16";
    static __nv_bfloat16 from(double x) { return __float2bfloat16_rn(float(x)); }
    static double wide(__nv_bfloat16 x) { return __bfloat162float(x); }
};
template <>
struct Of<__half> {
    static constexpr int dtype = COLLIMATE_F16, mantissa = 10, smallest = -14;
    static constexpr const char *name = "f16";
    static __half from(double x) { return __float2half_rn(float(x)); }
    static double wide(__half x) { return __half2float(x); }
};

// The distance between neighbours of T around x.
template <class T>
double ulp(double x) {
    const int exponent = x == 0 ? Of<T>::smallest : std::max(std::ilogb(x), Of<T>::smallest);
    return std::ldexp(1.0, exponent - Of<T>::mantissa);
}

// Elements between sentinels; `shift` elements past an aligned address. Under the address sanitizer its red zones
// take the place of the sentinels, so that reads outside are seen as well.
template <class T>
class Guarded {
#if COLLIMATE_SANITIZE_ADDRESS
    static constexpr size_t kGuard = 0;
#else
    static constexpr size_t kGuard = 64;
#endif
    std::vector<unsigned char> fill_;
    unsigned char *memory_;
    size_t before_, count_;

  public:
    explicit Guarded(size_t count, size_t shift = 0) : before_(kGuard + shift * sizeof(T)), count_(count) {
        void *memory;
        if (posix_memalign(&memory, 64, before_ + count * sizeof(T) + kGuard + (kGuard == 0 && count == 0))) abort();
        memory_ = static_cast<unsigned char *>(memory);
        std::memset(memory_, 0xa5, before_ + count * sizeof(T) + kGuard);
    }
    Guarded(const Guarded &) = delete;
    ~Guarded() { std::free(memory_); }
    T *data() { return reinterpret_cast<T *>(memory_ + before_); }
    const T *data() const { return reinterpret_cast<const T *>(memory_ + before_); }
    size_t size() const { return count_; }
    T &operator[](size_t i) { return data()[i]; }
    const T &operator[](size_t i) const { return data()[i]; }
    void fill(T value) {
        for (size_t i = 0; i < count_; i++) data()[i] = value;
    }
    bool intact() const {
        for (size_t i = 0; i < before_; i++) {
            if (memory_[i] != 0xa5) return false;
        }
        for (size_t i = 0; i < kGuard; i++) {
            if (memory_[before_ + count_ * sizeof(T) + i] != 0xa5) return false;
        }
        return true;
    }
    void append_to(std::string &bytes) const {
        bytes.append(reinterpret_cast<const char *>(data()), count_ * sizeof(T));
    }
};

// Runs `body`, which returns the bytes of its outputs, in the given orders of blocks, warps and lanes.
template <class Body>
void in_all_orders(const char *what, Body body) {
    std::string first;
    for (int seed = 0; seed < orders; seed++) {
        collimate::emulate::set_seed(std::uint64_t(seed));
        std::string bytes = body();
        const std::string report = collimate::emulate::take_report();
        expect(report.empty(), "%s: %s", what, report.c_str());
        if (seed == 0) first = bytes;
        if (!expect(bytes == first, "%s: order %d gives other bits than order 0", what, seed)) break;
    }
    collimate::emulate::set_seed(0);
}

void token_logprobs();
void sequence_sum();
void preference_loss();
void kto_loss();
void aot_loss();
void gather_rows();
void kv_cache();
void attention();
void elementwise();
void rmsnorm();
void rope();
void swiglu();
void adamw();
void sampling();
void ppo_loss();
void planted_right_forms();
void planted_reports();
// Runs the wrong kernel of that name; 0 if nothing was seen.
int planted(const std::string &name);

}  // namespace test
