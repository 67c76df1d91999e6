// What the tests of the kernels share: guarded buffers, runs in several orders, element types, failures.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
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
inline int orders = 8;        // COLLIMATE_TEST_ORDERS
inline bool captures = false;  // COLLIMATE_TEST_CAPTURE: every case runs once more, from the record of a capture
inline void *stream = nullptr;  // what launchers are given: another one while a capture is under way
// Addresses and races do not hang on the numbers, and the sanitizers are slow: every kernel and every edge still runs, at
// smaller sizes, and with the thread sanitizer at few of them. Asked at run time, so that one build of the tests serves all.
inline const bool kSmallCases = collimate::emulate::sanitizer() != collimate::emulate::Sanitizer::kNone;
inline const bool kFewCases = collimate::emulate::sanitizer() == collimate::emulate::Sanitizer::kThread;

// While it lives tests run in fewer orders: for what another case runs in all of them, at another size or type.
class FewerOrders {
    const int kept_ = orders;
    const bool captured_ = captures;

  public:
    explicit FewerOrders(int most, bool capture = true) {
        orders = std::min(orders, most);
        captures &= capture;
    }
    FewerOrders(const FewerOrders &) = delete;
    ~FewerOrders() { orders = kept_, captures = captured_; }
};

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

// Ends the capture that is under way, if there is one, and runs what it recorded: outputs are there then.
inline void run_captured() {
    if (!stream) return;
    collimate::emulate::Record record;
    const int status = collimate::emulate::end_capture(stream, &record);
    stream = nullptr;
    expect(status == 0 && record.fault.empty(), "no graph can hold %s (%d)", record.fault.c_str(), status);
    const int replayed = collimate::emulate::replay(record);
    expect(replayed == 0, "a record returned %d", replayed);
}

// Elements between sentinels; `shift` elements past an aligned address. Under the address sanitizer its red zones
// take the place of the sentinels, so that reads outside are seen as well.
template <class T>
class Guarded {
    static size_t guard() { return collimate::emulate::sanitizer() == collimate::emulate::Sanitizer::kAddress ? 0 : 64; }
    unsigned char *memory_;
    size_t before_, count_, after_;

  public:
    explicit Guarded(size_t count, size_t shift = 0)
        : before_(guard() + shift * sizeof(T)), count_(count), after_(guard()) {
        const size_t bytes = before_ + count * sizeof(T) + after_;
        void *memory;
        if (posix_memalign(&memory, 64, std::max<size_t>(bytes, 1))) abort();
        memory_ = static_cast<unsigned char *>(memory);
        std::memset(memory_, 0xa5, bytes);
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
        for (size_t i = 0; i < after_; i++) {
            if (memory_[before_ + count_ * sizeof(T) + i] != 0xa5) return false;
        }
        return true;
    }
    void append_to(std::string &bytes) const {
        run_captured();
        bytes.append(reinterpret_cast<const char *>(data()), count_ * sizeof(T));
    }
};

// Runs `body`, which sets its outputs, launches and returns the outputs' bytes, in the given orders of blocks, warps and
// lanes; and once more with its launches held back in a capture until the first output is asked for.
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
    if (!captures) return;
    int handle;
    stream = &handle;
    expect(collimate::emulate::begin_capture(stream, collimate::emulate::CaptureMode::kHold) == 0, "%s: no capture", what);
    const std::string bytes = body();
    run_captured();
    expect(bytes == first, "%s: other bits from a capture's record", what);
}

void token_logprobs();
void sequence_sum();
void preference_loss();
void kto_loss();
void aot_loss();
void gather_rows();
void kv_cache();
void dropout();
void attention();
void elementwise();
void rmsnorm();
void rope();
void swiglu();
void adamw();
void sampling();
void ppo_loss();
void launches();
void planted_right_forms();
void planted_reports();
// Runs the wrong kernel of that name; 0 if nothing was seen.
int planted(const std::string &name);

}  // namespace test
