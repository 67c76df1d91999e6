// swiglu: widths with and without whole packs, rows with gaps, unaligned, extremes, against float64.
#include "check.h"

namespace test {
namespace {

struct Shape {
    int rows, columns, pad, shift;
};

template <class T>
void check(const Shape &shape) {
    const int rows = shape.rows, columns = shape.columns, stride = columns + shape.pad, wide_stride = 2 * columns + shape.pad;
    Guarded<T> gate_up(size_t(rows) * wide_stride, shape.shift), dgate_up(gate_up.size(), shape.shift),
        dout(size_t(rows) * stride, shape.shift), out(dout.size(), shape.shift);
    Random random(rows + columns);
    for (size_t i = 0; i < gate_up.size(); i++) gate_up[i] = Of<T>::from(6 * random.normal());
    for (size_t i = 0; i < dout.size(); i++) dout[i] = Of<T>::from(random.normal());
    const double extremes[] = {-1e4, 1e4, -89, 0};
    for (int i = 0; i < 4 && i < columns && rows > 0; i++) gate_up[i] = Of<T>::from(extremes[i]);
    in_all_orders("swiglu", [&] {
        out.fill(Of<T>::from(7));
        dgate_up.fill(Of<T>::from(7));
        int status = collimate_swiglu_forward(out.data(), gate_up.data(), rows, columns, stride, wide_stride, Of<T>::dtype, stream);
        status |= collimate_swiglu_backward(dgate_up.data(), dout.data(), gate_up.data(), rows, columns, wide_stride, stride,
                                            wide_stride, Of<T>::dtype, stream);
        expect(status == 0, "swiglu returned %d", status);
        std::string bytes;
        out.append_to(bytes);
        dgate_up.append_to(bytes);
        return bytes;
    });
    const auto close = [](const char *what, double got, double exact, double size) {
        // exp(89) is infinite in float32, so a sigmoid below 1e-38 is 0
        const double allowed = 0.51 * ulp<T>(exact) + 1e-6 * (size + std::fabs(exact)) + 1e-34;
        expect(std::fabs(got - exact) <= allowed || got == Of<T>::wide(Of<T>::from(exact)), "swiglu %s %s: %.9g, exact %.9g",
               what, Of<T>::name, got, exact);
    };
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < columns; c++) {
            const size_t at = size_t(r) * wide_stride + c;
            const double gate = Of<T>::wide(gate_up[at]), up = Of<T>::wide(gate_up[at + columns]);
            const double given = Of<T>::wide(dout[size_t(r) * stride + c]), s = 1 / (1 + std::exp(-gate));
            close("out", Of<T>::wide(out[size_t(r) * stride + c]), gate * s * up, 0);
            close("dgate", Of<T>::wide(dgate_up[at]), given * up * s * (1 + gate * (1 - s)), std::fabs(given * up));
            close("dup", Of<T>::wide(dgate_up[at + columns]), given * gate * s, 0);
        }
        for (int c = columns; c < stride; c++) expect(Of<T>::wide(out[size_t(r) * stride + c]) == 7, "wrote between rows");
        for (int c = 2 * columns; c < wide_stride; c++) {
            expect(Of<T>::wide(dgate_up[size_t(r) * wide_stride + c]) == 7, "wrote between rows");
        }
    }
    expect(out.intact() && dgate_up.intact(), "swiglu wrote outside");
}

}  // namespace

void swiglu() {
    for (const Shape &shape : {Shape{0, 5, 0, 0}, {1, 1, 0, 0}, {3, 17, 0, 0}, {9, 64, 8, 0}, {4, 40, 1, 1}, {2, 2300, 4, 0}}) {
        check<float>(shape);
        check<__nv_bfloat16>(shape);
        check<__half>(shape);
    }
    expect(collimate_swiglu_forward(nullptr, nullptr, 1, 4, 4, 7, COLLIMATE_F32, nullptr) == COLLIMATE_STATUS_ARGUMENT,
           "a stride of 7 for 8 columns");
}

}  // namespace test
