// rmsnorm: narrow groups that share a warp, rows of a block and wider ones, with gaps and unaligned, against float64.
#include "check.h"

namespace test {
namespace {

struct Shape {
    int rows, groups, width, pad, shift;
};

template <class T>
void check(const Shape &shape) {
    const int rows = shape.rows, groups = shape.groups, width = shape.width, columns = groups * width;
    const int stride = columns + shape.pad, rstd_stride = groups + shape.pad, dtype = Of<T>::dtype;
    const size_t count = size_t(rows) * stride;
    const float eps = 1e-5f;
    Guarded<T> x(count, shape.shift), before(count, shape.shift), residual(count, shape.shift), out(count, shape.shift),
        added(count, shape.shift), dout(count, shape.shift), dx(count, shape.shift), dx_added(count, shape.shift),
        weight(width, shape.shift);
    Guarded<float> rstd(size_t(rows) * rstd_stride), again(rstd.size()), dweight(width);
    Random random(rows + columns);
    for (auto *values : {&x, &before, &dout, &weight}) {
        for (size_t i = 0; i < values->size(); i++) (*values)[i] = Of<T>::from(random.normal());
    }
    Guarded<char> workspace(collimate_rmsnorm_backward_workspace(rows, groups, width, dtype));
    const T seven = Of<T>::from(7);
    in_all_orders("rmsnorm", [&] {
        std::memcpy(residual.data(), before.data(), count * sizeof(T));
        std::memcpy(dx_added.data(), before.data(), count * sizeof(T));
        for (auto *values : {&out, &added, &dx}) values->fill(seven);
        rstd.fill(7);
        again.fill(7);
        dweight.fill(0.5f);
        int status = collimate_rmsnorm_forward(out.data(), rstd.data(), nullptr, x.data(), weight.data(), rows, groups, width,
                                               stride, rstd_stride, 0, stride, eps, dtype, stream);
        status |= collimate_rmsnorm_forward(added.data(), again.data(), residual.data(), x.data(), weight.data(), rows, groups,
                                            width, stride, rstd_stride, stride, stride, eps, dtype, stream);
        for (auto *to : {&dx, &dx_added}) {
            status |= collimate_rmsnorm_backward(to->data(), dweight.data(), dout.data(), x.data(), weight.data(), rstd.data(),
                                                 rows, groups, width, stride, stride, stride, rstd_stride, to == &dx_added,
                                                 dtype, workspace.data(), workspace.size(), stream);
        }
        expect(status == 0, "rmsnorm returned %d", status);
        std::string bytes;
        for (auto *values : {&out, &added, &residual, &dx, &dx_added}) values->append_to(bytes);
        for (auto *values : {&rstd, &again, &dweight}) values->append_to(bytes);
        return bytes;
    });
    std::vector<double> dweights(width, 0.5), sizes(width, 0.5);
    const auto close = [&](const char *what, double got, double exact, double scale, size_t at) {
        const double allowed = 0.51 * ulp<T>(exact) + 2e-6 * (scale + std::fabs(exact));
        expect(std::fabs(got - exact) <= allowed, "rmsnorm %s %s at %zu: %.9g, exact %.9g", what, Of<T>::name, at, got, exact);
    };
    const auto wide = [](const Guarded<T> &values, size_t i) { return Of<T>::wide(values[i]); };
    for (int r = 0; r < rows; r++) {
        for (int g = 0; g < groups; g++) {
            const size_t at = size_t(r) * stride + size_t(g) * width;
            double squares = 0, sum_squares = 0, dot = 0;
            for (int c = 0; c < width; c++) {
                squares += wide(x, at + c) * wide(x, at + c);
                sum_squares += wide(residual, at + c) * wide(residual, at + c);
                dot += wide(dout, at + c) * wide(weight, c) * wide(x, at + c);
            }
            const double scale = 1 / std::sqrt(squares / width + eps), sum_scale = 1 / std::sqrt(sum_squares / width + eps);
            const double got = rstd[size_t(r) * rstd_stride + g];
            expect(std::fabs(got - scale) <= 1e-6 * scale, "rstd %.9g, exact %.9g", got, scale);
            for (int c = 0; c < width; c++) {
                const size_t i = at + c;
                const T sum = Of<T>::from(float(wide(before, i)) + float(wide(x, i)));
                expect(wide(residual, i) == Of<T>::wide(sum), "residual at %zu", i);
                close("out", wide(out, i), wide(x, i) * scale * wide(weight, c), 0, i);
                close("added", wide(added, i), wide(residual, i) * sum_scale * wide(weight, c), 0, i);
                const double d = scale * (wide(dout, i) * wide(weight, c) - wide(x, i) * scale * scale * dot / width);
                close("dx", wide(dx, i), d, 8, i);
                close("dx_added", wide(dx_added, i), wide(before, i) + d, 8, i);
                const double term = 2 * wide(dout, i) * wide(x, i) * scale;  // both calls
                dweights[c] += term, sizes[c] += std::fabs(term);
            }
        }
        for (int c = columns; c < stride; c++) {
            const size_t i = size_t(r) * stride + c;
            expect(wide(out, i) == 7 && wide(dx, i) == 7 && wide(residual, i) == wide(before, i), "wrote between rows");
        }
        for (int g = groups; g < rstd_stride; g++) expect(rstd[size_t(r) * rstd_stride + g] == 7, "wrote between rows of rstd");
    }
    for (int c = 0; c < width; c++) {
        expect(std::fabs(dweight[c] - dweights[c]) <= 2e-6 * sizes[c], "dweight %d: %.9g, exact %.9g", c, dweight[c], dweights[c]);
    }
    for (auto *values : {&out, &added, &residual, &dx, &dx_added}) expect(values->intact(), "rmsnorm wrote outside");
    expect(rstd.intact() && dweight.intact() && workspace.intact(), "rmsnorm wrote outside");
}

}  // namespace

void rmsnorm() {
    for (const Shape &shape : {Shape{0, 1, 4, 0, 0}, {1, 1, 1, 0, 0}, {3, 1, 37, 0, 0}, {33, 3, 16, 0, 0}, {5, 2, 128, 8, 0},
                               {600, 2, 8, 0, 0}, {3, 1, 900, 1, 1}, {2, 1, 2056, 0, 0}, {2, 1, 4100, 4, 0}}) {
        if (kFewCases && (shape.rows == 33 || shape.rows == 600 || shape.width == 2056)) continue;
        check<float>(shape);
        check<__nv_bfloat16>(shape);
        check<__half>(shape);
    }
    expect(collimate_rmsnorm_forward(nullptr, nullptr, nullptr, nullptr, nullptr, 1, 1, 0, 0, 1, 0, 0, 0, 0, nullptr) ==
               COLLIMATE_STATUS_ARGUMENT,
           "a width of 0");
}

}  // namespace test
