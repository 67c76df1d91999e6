// elementwise: rows with and without gaps, aligned and not, narrower than a pack and wider than a block.
#include "check.h"

namespace test {
namespace {

struct Shape {
    int rows, columns, pad, shift;
};

template <class T>
std::string bytes_of(const Guarded<T> &values) {
    std::string bytes;
    values.append_to(bytes);
    return bytes;
}

template <class T>
void fill_random(Guarded<T> &values, int seed) {
    Random random(seed);
    for (size_t i = 0; i < values.size(); i++) values[i] = Of<T>::from(random.normal());
}

// Every element in a row is `want` of its old value, row and column; those between the rows are as they were.
template <class T, class Want>
void expect_rows(const char *what, const Guarded<T> &got, const Guarded<T> &before, const Shape &shape, Want want) {
    const int stride = shape.columns + shape.pad;
    for (size_t i = 0; i < got.size(); i++) {
        const int row = int(i / stride), column = int(i % stride);
        const double old = Of<T>::wide(before[i]);
        const double exact = column < shape.columns ? Of<T>::wide(Of<T>::from(want(old, row, column))) : old;
        expect(Of<T>::wide(got[i]) == exact, "%s %s row %d column %d: %g, exact %g", what, Of<T>::name, row, column,
               Of<T>::wide(got[i]), exact);
    }
    expect(got.intact(), "%s wrote outside", what);
}

template <class T>
void in_place(const Shape &shape) {
    const int rows = shape.rows, columns = shape.columns, stride = columns + shape.pad, dtype = Of<T>::dtype;
    const size_t count = size_t(rows) * stride;
    Guarded<T> before(count), x(count, shape.shift), y(count, shape.shift), row(columns);
    Guarded<float> factors(rows);
    fill_random(before, 1);
    fill_random(x, 2);
    fill_random(row, 3);
    fill_random(factors, 4);
    const auto run = [&](const char *what, auto launch) {
        in_all_orders(what, [&] {
            std::memcpy(y.data(), before.data(), count * sizeof(T));
            const int status = launch();
            expect(status == 0, "%s returned %d", what, status);
            return bytes_of(y);
        });
    };
    const auto wide = [](T value) { return float(Of<T>::wide(value)); };
    run("add", [&] { return collimate_add(y.data(), x.data(), rows, columns, stride, stride, dtype, stream); });
    expect_rows("add", y, before, shape, [&](float old, int r, int c) { return old + wide(x[size_t(r) * stride + c]); });
    run("add_bias", [&] { return collimate_add(y.data(), row.data(), rows, columns, stride, 0, dtype, stream); });
    expect_rows("add_bias", y, before, shape, [&](float old, int, int c) { return old + wide(row[c]); });
    run("scale", [&] { return collimate_scale(y.data(), nullptr, 0.3f, rows, columns, stride, dtype, stream); });
    expect_rows("scale", y, before, shape, [&](float old, int, int) { return old * 0.3f; });
    run("scale_rows", [&] { return collimate_scale(y.data(), factors.data(), 1, rows, columns, stride, dtype, stream); });
    expect_rows("scale_rows", y, before, shape, [&](float old, int r, int) { return old * factors[r]; });
    run("fill", [&] { return collimate_fill(y.data(), 0.1f, rows, columns, stride, dtype, stream); });
    expect_rows("fill", y, before, shape, [&](float, int, int) { return 0.1f; });
}

template <class T, class U>
void cast(const Shape &shape) {
    const int rows = shape.rows, columns = shape.columns, stride = columns + shape.pad, x_stride = columns + 2 * shape.pad;
    Guarded<T> x(size_t(rows) * x_stride, shape.shift);
    Guarded<U> before(size_t(rows) * stride), out(size_t(rows) * stride, shape.shift);
    fill_random(x, 5);
    fill_random(before, 6);
    in_all_orders("cast", [&] {
        std::memcpy(out.data(), before.data(), before.size() * sizeof(U));
        const int status = collimate_cast(out.data(), x.data(), rows, columns, stride, x_stride, Of<U>::dtype, Of<T>::dtype,
                                          stream);
        expect(status == 0, "cast returned %d", status);
        return bytes_of(out);
    });
    expect_rows("cast", out, before, shape, [&](float, int r, int c) { return Of<T>::wide(x[size_t(r) * x_stride + c]); });
}

template <class T>
void bias_backward(const Shape &shape) {
    const int rows = shape.rows, columns = shape.columns, stride = columns + shape.pad;
    Guarded<T> dy(size_t(rows) * stride, shape.shift);
    Guarded<float> dbias(columns, shape.shift);
    fill_random(dy, 7);
    Guarded<char> workspace(collimate_bias_backward_workspace(rows, columns));
    in_all_orders("bias_backward", [&] {
        for (int c = 0; c < columns; c++) dbias[c] = float(c % 3);
        const int status = collimate_bias_backward(dbias.data(), dy.data(), rows, columns, stride, Of<T>::dtype,
                                                   workspace.data(), workspace.size(), stream);
        expect(status == 0, "bias_backward returned %d", status);
        return bytes_of(dbias);
    });
    for (int c = 0; c < columns; c++) {
        double sum = c % 3, size = sum;
        for (int r = 0; r < rows; r++) {
            const double value = Of<T>::wide(dy[size_t(r) * stride + c]);
            sum += value, size += std::fabs(value);
        }
        expect(std::fabs(dbias[c] - sum) <= 1e-6 * size, "bias %d: %.9g, exact %.9g", c, dbias[c], sum);
    }
    expect(dbias.intact() && workspace.intact(), "bias_backward wrote outside");
    if (rows == 0) return;
    expect(collimate_bias_backward(dbias.data(), dy.data(), rows, columns, stride, Of<T>::dtype, workspace.data(),
                                   workspace.size() - 1, nullptr) == COLLIMATE_STATUS_WORKSPACE,
           "a small workspace");
}

template <class T>
void all_types(const Shape &shape) {
    in_place<T>(shape);
    cast<T, float>(shape);
    cast<T, __nv_bfloat16>(shape);
    cast<T, __half>(shape);
    bias_backward<T>(shape);
}

}  // namespace

void elementwise() {
    for (const Shape &shape : {Shape{0, 5, 0, 0}, {1, 1, 0, 0}, {3, 5, 0, 0}, {70, 16, 0, 0}, {65, 24, 8, 0}, {5, 24, 1, 0},
                               {4, 40, 0, 1}, {2, 2300, 0, 0}, {3, 2300, 4, 0}, {200, 3, 2, 1}}) {
        if (kFewCases && (shape.columns == 16 || shape.columns == 3 || shape.rows == 2)) continue;
        all_types<float>(shape);
        all_types<__nv_bfloat16>(shape);
        all_types<__half>(shape);
    }
    expect(collimate_add(nullptr, nullptr, 2, 3, 2, 3, COLLIMATE_F32, nullptr) == COLLIMATE_STATUS_ARGUMENT, "a stride of 2");
    expect(collimate_fill(nullptr, 0, -1, 3, 3, COLLIMATE_F32, nullptr) == COLLIMATE_STATUS_ARGUMENT, "-1 rows");
    expect(collimate_cast(nullptr, nullptr, 2, 3, 3, 3, 7, COLLIMATE_F32, nullptr) == COLLIMATE_STATUS_DTYPE, "a dtype of 7");
}

}  // namespace test
