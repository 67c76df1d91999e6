// rope: the table, and pairs turned there and back; odd halves, rows with gaps, unaligned.
#include "check.h"

namespace test {
namespace {

struct Shape {
    int rows, heads, half, pad, shift;
};

template <class T>
void check(const Shape &shape) {
    const int rows = shape.rows, heads = shape.heads, half = shape.half, columns = heads * 2 * half, stride = columns + shape.pad;
    Guarded<T> before(size_t(rows) * stride, shape.shift), x(before.size(), shape.shift);
    Guarded<float> table(size_t(rows) * 2 * half);
    Guarded<int> positions(rows);
    Guarded<double> inv_freq(half);
    Random random(rows + columns);
    for (size_t i = 0; i < before.size(); i++) before[i] = Of<T>::from(random.normal());
    for (int r = 0; r < rows; r++) positions[r] = random.below(1 << 20);
    for (int i = 0; i < half; i++) inv_freq[i] = std::pow(10000.0, -double(i) / half);
    for (const bool backwards : {false, true}) {
        in_all_orders("rope", [&] {
            std::memcpy(x.data(), before.data(), before.size() * sizeof(T));
            table.fill(7);
            int status = collimate_rope_table(table.data(), positions.data(), inv_freq.data(), rows, half, stream);
            status |= collimate_rope(x.data(), table.data(), rows, heads, half, stride, backwards, Of<T>::dtype, stream);
            expect(status == 0, "rope returned %d", status);
            std::string bytes;
            x.append_to(bytes);
            table.append_to(bytes);
            return bytes;
        });
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < stride; c++) {
                const size_t at = size_t(r) * stride + c;
                const double old = Of<T>::wide(before[at]), got = Of<T>::wide(x[at]);
                if (c >= columns) {
                    expect(got == old, "wrote between rows");
                    continue;
                }
                const int i = c % (2 * half) % half;
                const bool second = c % (2 * half) >= half;
                const double angle = positions[r] * inv_freq[i] * (backwards ? -1 : 1);
                const double other = second ? Of<T>::wide(before[at - half]) : -Of<T>::wide(before[at + half]);
                const double exact = old * std::cos(angle) + other * std::sin(angle);
                const double allowed = 0.51 * ulp<T>(exact) + 2e-7 * (std::fabs(old) + std::fabs(other));
                expect(std::fabs(got - exact) <= allowed, "rope %s row %d column %d: %.9g, exact %.9g", Of<T>::name, r, c, got,
                       exact);
            }
        }
    }
    expect(x.intact() && table.intact(), "rope wrote outside");
}

}  // namespace

void rope() {
    for (const Shape &shape : {Shape{0, 2, 4, 0, 0}, {1, 1, 1, 0, 0}, {5, 3, 3, 0, 0}, {7, 2, 8, 8, 0}, {3, 5, 32, 1, 1},
                               {2, 40, 64, 0, 0}}) {
        check<float>(shape);
        check<__nv_bfloat16>(shape);
        check<__half>(shape);
    }
    expect(collimate_rope(nullptr, nullptr, 1, 1, 0, 4, 0, COLLIMATE_F32, nullptr) == COLLIMATE_STATUS_ARGUMENT, "no pairs");
}

}  // namespace test
