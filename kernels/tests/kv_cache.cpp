// kv_cache: rows in any order to places of their own, widths with and without whole packs, unaligned; nothing else is written.
#include "check.h"

namespace test {
namespace {

struct Shape {
    int rows, columns, cache_rows, pad, shift;
};

template <class T>
void check(const Shape &shape) {
    const int rows = shape.rows, columns = shape.columns, cache_rows = shape.cache_rows;
    // as a layer has them: queries before the keys and values of a row
    const int queries = columns + shape.pad, kv_stride = queries + 2 * columns, stride = columns + shape.pad;
    Guarded<T> qkv(size_t(rows) * kv_stride, shape.shift), keys(size_t(cache_rows) * stride), values(keys.size());
    Guarded<int> places(rows), error(3);
    Random random(rows + columns);
    for (size_t i = 0; i < qkv.size(); i++) qkv[i] = Of<T>::from(random.normal());
    std::vector<int> from(cache_rows, -1);
    for (int r = 0; r < rows; r++) {
        int place = random.below(cache_rows);
        while (from[place] >= 0) place = (place + 1) % cache_rows;
        from[place] = r, places[r] = place;
    }
    error.fill(0);
    const auto write = [&] {
        return collimate_kv_cache_write(keys.data(), values.data(), qkv.data() + queries, places.data(), rows, columns,
                                        cache_rows, stride, kv_stride, Of<T>::dtype, error.data(), stream);
    };
    in_all_orders("kv_cache", [&] {
        keys.fill(Of<T>::from(3.0)), values.fill(Of<T>::from(5.0));
        const int status = write();
        expect(status == 0, "kv_cache returned %d", status);
        std::string bytes;
        keys.append_to(bytes), values.append_to(bytes);
        return bytes;
    });
    const auto same = [&](int skipped) {
        for (int place = 0; place < cache_rows; place++) {
            for (int c = 0; c < stride; c++) {
                const bool written = from[place] >= 0 && from[place] != skipped && c < columns;
                const T *row = qkv.data() + size_t(from[place]) * kv_stride + queries;
                const size_t at = size_t(place) * stride + c;
                const double key = written ? Of<T>::wide(row[c]) : 3.0, value = written ? Of<T>::wide(row[columns + c]) : 5.0;
                expect(Of<T>::wide(keys[at]) == key, "kv_cache %s key %d column %d", Of<T>::name, place, c);
                expect(Of<T>::wide(values[at]) == value, "kv_cache %s value %d column %d", Of<T>::name, place, c);
            }
        }
        expect(keys.intact() && values.intact(), "kv_cache wrote outside");
    };
    same(-2);
    expect(error[0] == 0, "error word of good places");
    if (rows < 2) return;
    for (const int bad : {-1, cache_rows}) {
        keys.fill(Of<T>::from(3.0)), values.fill(Of<T>::from(5.0)), error.fill(0);
        places[1] = bad;
        write();
        expect(error[0] == COLLIMATE_ERROR_INDEX && error[1] == 1 && error[2] == bad, "error word of a bad place");
        same(1);
    }
}

template <class T>
void all_cases() {
    for (const Shape &shape : {Shape{0, 64, 5, 0, 0}, {1, 64, 3, 0, 0}, {9, 7, 40, 1, 0}, {17, 128, 23, 8, 0}, {3, 64, 3, 0, 1},
                               {5, 2056, 6, 8, 0}, {300, 8, 301, 0, 0}}) {
        check<T>(shape);
    }
}

}  // namespace

void kv_cache() {
    all_cases<float>();
    all_cases<__nv_bfloat16>();
    all_cases<__half>();
    expect(collimate_kv_cache_write(nullptr, nullptr, nullptr, nullptr, 1, 8, 1, 8, 15, COLLIMATE_F32, nullptr, nullptr) ==
               COLLIMATE_STATUS_ARGUMENT,
           "rows that overlap are refused");
}

}  // namespace test
