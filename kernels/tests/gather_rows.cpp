// gather_rows: widths with and without whole packs, duplicates in order, gradients added to what is there.
#include "check.h"

namespace test {
namespace {

template <class T>
void check(int rows, int columns, int source_rows, int pad) {
    const int stride = columns + pad, out_stride = columns + 2 * pad;
    Guarded<T> source(size_t(source_rows) * stride), out(size_t(rows) * out_stride);
    Guarded<int> indices(rows), error(3);
    Random random(rows + columns);
    for (size_t i = 0; i < source.size(); i++) source[i] = Of<T>::from(random.normal());
    for (int r = 0; r < rows; r++) indices[r] = random.below(source_rows);
    if (rows > 3) indices[1] = indices[3] = indices[0];
    error.fill(0);
    in_all_orders("gather_rows", [&] {
        out.fill(Of<T>::from(3.0));
        const int status = collimate_gather_rows_forward(out.data(), source.data(), indices.data(), rows, columns, source_rows,
                                                         out_stride, stride, Of<T>::dtype, error.data(), stream);
        expect(status == 0, "gather_rows returned %d", status);
        std::string bytes;
        out.append_to(bytes);
        return bytes;
    });
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < out_stride; c++) {
            const double want = c < columns ? Of<T>::wide(source[size_t(indices[r]) * stride + c]) : 3.0;
            expect(Of<T>::wide(out[size_t(r) * out_stride + c]) == want, "gather_rows row %d column %d", r, c);
        }
    }
    std::vector<int> starts, order, places;
    for (int s = 0; s < source_rows; s++) {
        const size_t before = order.size();
        for (int r = 0; r < rows; r++) {
            if (indices[r] == s) order.push_back(r);
        }
        if (order.size() > before) starts.push_back(int(before)), places.push_back(s);
    }
    starts.push_back(int(order.size()));
    Guarded<T> dsource(source.size());
    in_all_orders("gather_rows backward", [&] {
        std::memcpy(dsource.data(), source.data(), source.size() * sizeof(T));
        const int status = collimate_gather_rows_backward(dsource.data(), out.data(), places.data(), starts.data(), order.data(),
                                                          places.size(), columns, source_rows, out_stride, stride,
                                                          Of<T>::dtype, Of<T>::dtype, error.data(), stream);
        expect(status == 0, "gather_rows backward returned %d", status);
        std::string bytes;
        dsource.append_to(bytes);
        return bytes;
    });
    for (int s = 0; s < source_rows; s++) {
        for (int c = 0; c < stride; c++) {
            float sum = float(Of<T>::wide(source[size_t(s) * stride + c]));
            for (int r = 0; r < rows && c < columns; r++) {
                if (indices[r] == s) sum += float(Of<T>::wide(out[size_t(r) * out_stride + c]));
            }
            expect(Of<T>::wide(dsource[size_t(s) * stride + c]) == Of<T>::wide(Of<T>::from(sum)), "dsource row %d column %d", s, c);
        }
    }
    Guarded<float> wide(source.size());
    in_all_orders("gather_rows backward in f32", [&] {
        for (size_t i = 0; i < wide.size(); i++) wide[i] = float(i % 5);
        const int status = collimate_gather_rows_backward(wide.data(), out.data(), places.data(), starts.data(), order.data(),
                                                          places.size(), columns, source_rows, out_stride, stride,
                                                          COLLIMATE_F32, Of<T>::dtype, error.data(), stream);
        expect(status == 0, "gather_rows backward in f32 returned %d", status);
        std::string bytes;
        wide.append_to(bytes);
        return bytes;
    });
    for (int s = 0; s < source_rows; s++) {
        for (int c = 0; c < stride; c++) {
            float sum = float((size_t(s) * stride + c) % 5);
            for (int r = 0; r < rows && c < columns; r++) {
                if (indices[r] == s) sum += float(Of<T>::wide(out[size_t(r) * out_stride + c]));
            }
            expect(wide[size_t(s) * stride + c] == sum, "dsource in f32 row %d column %d", s, c);
        }
    }
    expect(out.intact() && dsource.intact() && wide.intact() && error[0] == 0, "gather_rows wrote outside");
    if (rows < 2) return;
    indices[1] = source_rows;
    collimate_gather_rows_forward(out.data(), source.data(), indices.data(), rows, columns, source_rows, out_stride, stride,
                                  Of<T>::dtype, error.data(), nullptr);
    expect(error[0] == COLLIMATE_ERROR_INDEX && error[1] == 1 && error[2] == source_rows, "error word of a bad index");
    expect(Of<T>::wide(out[size_t(out_stride)]) == 0, "a bad index gathers zeros");
}

template <class T>
void all_cases() {
    for (int rows : {0, 1, 17}) {
        check<T>(rows, 64, 5, 0);
        check<T>(rows, 2080, 3, 8);
        check<T>(rows, 7, 4, 1);
    }
}

}  // namespace

void gather_rows() {
    all_cases<float>();
    all_cases<__nv_bfloat16>();
    all_cases<__half>();
}

}  // namespace test
