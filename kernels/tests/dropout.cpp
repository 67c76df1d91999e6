// dropout: against the definition, with Philox written a second time; rows with and without gaps, unaligned, set and added.
#include "check.h"

namespace test {
namespace {

struct Shape {
    int rows, columns, pad, shift;
};

// The 16 random bits of a value.
uint32_t draw(uint64_t seed, uint64_t stream, uint64_t block, int at) {
    uint32_t words[4] = {uint32_t(block), uint32_t(block >> 32), uint32_t(stream), uint32_t(stream >> 32)};
    uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        const uint64_t first = 0xD2511F53ull * words[0], third = 0xCD9E8D57ull * words[2];
        const uint32_t next[4] = {uint32_t(third >> 32) ^ words[1] ^ key[0], uint32_t(third),
                                  uint32_t(first >> 32) ^ words[3] ^ key[1], uint32_t(first)};
        std::memcpy(words, next, sizeof words);
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return words[at / 2] >> (at % 2 * 16) & 0xFFFFu;
}

template <class T>
void check(const Shape &shape, int threshold, bool add) {
    const int rows = shape.rows, columns = shape.columns, stride = columns + shape.pad;
    const uint64_t seed = 0x123456789abcdefull, number = 0xfedcba9876543210ull;
    Guarded<T> x(size_t(rows) * stride, shape.shift), y(x.size(), shape.shift), before(x.size());
    Random random(rows + columns);
    for (size_t i = 0; i < x.size(); i++) {
        x[i] = Of<T>::from(random.normal());
        before[i] = Of<T>::from(random.normal());
    }
    in_all_orders("dropout", [&] {
        std::memcpy(y.data(), before.data(), y.size() * sizeof(T));
        const int status = collimate_dropout(y.data(), x.data(), seed, number, threshold, rows, columns, stride, stride, add,
                                             Of<T>::dtype, stream);
        expect(status == 0, "dropout returned %d", status);
        std::string bytes;
        y.append_to(bytes);
        return bytes;
    });
    int64_t left_out = 0;
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < stride; c++) {
            const size_t at = size_t(r) * stride + c;
            const float old = Of<T>::wide(before[at]);
            float exact = old;
            if (c < columns) {
                const bool out = int(draw(seed, number, uint64_t(r) * ((columns + 7) / 8) + c / 8, c % 8)) < threshold;
                const float kept = out ? 0.0f : float(Of<T>::wide(x[at])) * (65536.0f / float(65536 - threshold));
                exact = Of<T>::wide(Of<T>::from(add ? kept + old : kept));
                left_out += out;
            }
            expect(Of<T>::wide(y[at]) == exact, "dropout %s row %d column %d: %g, exact %g", Of<T>::name, r, c,
                   double(Of<T>::wide(y[at])), double(exact));
        }
    }
    expect(y.intact(), "dropout wrote outside");
    const double n = double(rows) * columns, p = threshold / 65536.0;
    if (n > 1000) expect(std::fabs(left_out / n - p) < 5 * std::sqrt(p * (1 - p) / n) + 1e-9, "dropout left out %g", left_out / n);
}

}  // namespace

void dropout() {
    for (const Shape &shape : {Shape{0, 5, 0, 0}, {1, 1, 0, 0}, {3, 17, 0, 0}, {9, 64, 8, 0}, {4, 41, 1, 1}, {2, 2300, 4, 0}}) {
        for (const int threshold : {0, 3277, 32768, 65535}) {
            for (const bool add : {false, true}) {
                check<float>(shape, threshold, add);
                check<__nv_bfloat16>(shape, threshold, add);
                check<__half>(shape, threshold, add);
            }
        }
    }
    expect(collimate_dropout(nullptr, nullptr, 1, 1, 1 << 16, 1, 4, 4, 4, 0, COLLIMATE_F32, nullptr) ==
               COLLIMATE_STATUS_ARGUMENT,
           "a threshold of 1");
}

}  // namespace test
