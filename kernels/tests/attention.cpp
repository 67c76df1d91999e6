// attention: segments with and without a shared prefix, any head dim, forward and backward, against float64; lists of
// blocks made here, from the contract alone.
#include "check.h"

namespace test {
namespace {

using Queries = collimate_attention_queries;
using Keys = collimate_attention_keys;
using Reader = collimate_attention_reader;

struct Segment {
    int row, count, prefix_row, prefix_count;
};

struct Lists {
    std::vector<Queries> queries;
    std::vector<Keys> keys;
    std::vector<Reader> readers;
};

// Prefixes are whole segments here, so that blocks of keys end where they do.
Lists lists_of(const std::vector<Segment> &segments) {
    Lists lists;
    for (const Segment &own : segments) {
        for (int first = 0; first < own.count; first += COLLIMATE_ATTENTION_BLOCK) {
            const int count = std::min(own.count - first, COLLIMATE_ATTENTION_BLOCK);
            lists.queries.push_back({own.row + first, count, first, own.row, own.prefix_row, own.prefix_count});
            const int before = int(lists.readers.size());
            for (const Segment &other : segments) {
                if (&other == &own) lists.readers.push_back({own.row + first, own.count - first, 1});
                if (other.prefix_count > 0 && other.prefix_row == own.row) lists.readers.push_back({other.row, other.count, 0});
            }
            lists.keys.push_back({own.row + first, count, before, int(lists.readers.size()) - before});
        }
    }
    return lists;
}

struct Shape {
    int heads, kv_heads, head_dim, pad;
};

struct Exact {
    std::vector<double> out, lse, dq, dk, dv;
};

// By the definition. q, dout, out [rows, heads d]; k, v [rows, kv_heads d].
Exact exact(const std::vector<Segment> &segments, int rows, const Shape &shape, double scale, const std::vector<double> &q,
            const std::vector<double> &k, const std::vector<double> &v, const std::vector<double> &dout) {
    const int d = shape.head_dim, q_columns = shape.heads * d, kv_columns = shape.kv_heads * d;
    Exact to;
    to.out.assign(size_t(rows) * q_columns, 0);
    to.lse.assign(size_t(rows) * shape.heads, 0);
    to.dq = to.out;
    to.dk.assign(size_t(rows) * kv_columns, 0);
    to.dv = to.dk;
    std::vector<double> p;
    std::vector<size_t> places;
    for (const Segment &segment : segments) {
        for (int i = 0; i < segment.count; i++) {
            for (int head = 0; head < shape.heads; head++) {
                const size_t row = segment.row + i, at = row * q_columns + size_t(head) * d;
                const size_t column = size_t(head / (shape.heads / shape.kv_heads)) * d;
                places.clear(), p.clear();
                for (int j = 0; j < segment.prefix_count; j++) places.push_back(size_t(segment.prefix_row + j) * kv_columns + column);
                for (int j = 0; j <= i; j++) places.push_back(size_t(segment.row + j) * kv_columns + column);
                double largest = -INFINITY, sum = 0, delta = 0;
                for (size_t place : places) {
                    double logit = 0;
                    for (int c = 0; c < d; c++) logit += q[at + c] * k[place + c];
                    p.push_back(scale * logit);
                    largest = std::max(largest, p.back());
                }
                for (double &x : p) sum += x = std::exp(x - largest);
                to.lse[row * shape.heads + head] = largest + std::log(sum);
                for (size_t j = 0; j < p.size(); j++) {
                    p[j] /= sum;
                    for (int c = 0; c < d; c++) to.out[at + c] += p[j] * v[places[j] + c];
                }
                for (int c = 0; c < d; c++) delta += dout[at + c] * to.out[at + c];
                for (size_t j = 0; j < p.size(); j++) {
                    double dp = 0;
                    for (int c = 0; c < d; c++) dp += dout[at + c] * v[places[j] + c];
                    const double ds = p[j] * (dp - delta) * scale;
                    for (int c = 0; c < d; c++) {
                        to.dq[at + c] += ds * k[places[j] + c];
                        to.dk[places[j] + c] += ds * q[at + c];
                        to.dv[places[j] + c] += p[j] * dout[at + c];
                    }
                }
            }
        }
    }
    return to;
}

// A matrix with `pad` columns of sentinels behind each row.
template <class T>
struct Matrix {
    Guarded<T> memory;
    int rows, columns, stride;
    static constexpr double kSentinel = 7;
    Matrix(int rows, int columns, int pad)
        : memory(size_t(rows) * (columns + pad)), rows(rows), columns(columns), stride(columns + pad) {
        memory.fill(Of<T>::from(kSentinel));
    }
    std::vector<double> randomise(Random &random) {
        std::vector<double> values;
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < columns; c++) {
                T &x = memory[size_t(r) * stride + c] = Of<T>::from(random.normal());
                values.push_back(Of<T>::wide(x));
            }
        }
        return values;
    }
    void compare(const char *what, const std::vector<double> &want, double tolerance) const {
        double worst = 0;
        size_t place = 0;
        bool beside = true;
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < stride; c++) {
                const double got = Of<T>::wide(memory[size_t(r) * stride + c]);
                if (c >= columns) {
                    beside &= got == kSentinel;
                    continue;
                }
                const size_t at = size_t(r) * columns + c;
                const double error = std::fabs(got - want[at]) / std::max(1.0, std::fabs(want[at]));
                if (!(error <= worst)) worst = error, place = at;
            }
        }
        expect(worst <= tolerance, "attention %s %s: error %g at row %zu column %zu", Of<T>::name, what, worst,
               place / size_t(columns), place % size_t(columns));
        expect(beside && memory.intact(), "attention %s %s: wrote outside", Of<T>::name, what);
    }
};

template <class T>
void check(const std::vector<Segment> &segments, const Shape &shape, double forward, double backward) {
    int rows = 0;
    for (const Segment &segment : segments) rows = std::max(rows, segment.row + segment.count);
    const int q_columns = shape.heads * shape.head_dim, kv_columns = shape.kv_heads * shape.head_dim;
    Matrix<T> q(rows, q_columns, shape.pad), k(rows, kv_columns, shape.pad), v(rows, kv_columns, shape.pad);
    Matrix<T> dout(rows, q_columns, 0), out(rows, q_columns, 2 * shape.pad);
    Matrix<float> lse(rows, shape.heads, shape.pad);
    Matrix<T> dq(rows, q_columns, shape.pad), dk(rows, kv_columns, shape.pad), dv(rows, kv_columns, shape.pad);
    Random random(rows + q_columns);
    const auto q_values = q.randomise(random), k_values = k.randomise(random), v_values = v.randomise(random);
    const auto dout_values = dout.randomise(random);
    const double scale = 1 / std::sqrt(double(shape.head_dim));
    const Lists lists = lists_of(segments);
    const collimate_attention_inputs inputs = {q.memory.data(), k.memory.data(), v.memory.data(), q.stride, k.stride,
                                               shape.heads, shape.kv_heads, shape.head_dim, float(scale), Of<T>::dtype};
    const collimate_attention_gradients gradients = {
        dq.memory.data(), dk.memory.data(), dv.memory.data(), dout.memory.data(), out.memory.data(), lse.memory.data(),
        dq.stride, dk.stride, dout.stride, out.stride, lse.stride};
    Guarded<unsigned char> workspace(size_t(collimate_attention_backward_workspace(rows, shape.heads)));
    in_all_orders("attention", [&] {
        int status = collimate_attention_forward(out.memory.data(), lse.memory.data(), &inputs, lists.queries.data(),
                                                 int64_t(lists.queries.size()), out.stride, lse.stride, stream);
        expect(status == 0, "attention forward returned %d", status);
        status = collimate_attention_backward(&gradients, &inputs, lists.queries.data(), lists.keys.data(),
                                              lists.readers.data(), rows, int64_t(lists.queries.size()),
                                              int64_t(lists.keys.size()), workspace.data(), int64_t(workspace.size()), stream);
        expect(status == 0, "attention backward returned %d", status);
        std::string bytes;
        for (const auto *matrix : {&out, &dq, &dk, &dv}) matrix->memory.append_to(bytes);
        lse.memory.append_to(bytes);
        return bytes;
    });
    const Exact want = exact(segments, rows, shape, scale, q_values, k_values, v_values, dout_values);
    out.compare("out", want.out, forward);
    lse.compare("lse", want.lse, forward);
    dq.compare("dq", want.dq, backward);
    dk.compare("dk", want.dk, backward);
    dv.compare("dv", want.dv, backward);
    expect(workspace.intact(), "attention wrote outside its workspace");
}

// Single queries against a cache whose prefix lies elsewhere, alone and together: the same bits.
template <class T>
void check_decode(const std::vector<int> &lengths, const Shape &shape) {
    const int queries = int(lengths.size()), cache = 40 + *std::max_element(lengths.begin(), lengths.end());
    const int d = shape.head_dim, prefix = 11;
    Matrix<T> q(queries, shape.heads * d, shape.pad), out(queries, shape.heads * d, shape.pad);
    Matrix<T> k(cache, shape.kv_heads * d, shape.pad), v(cache, shape.kv_heads * d, shape.pad);
    Random random(queries + d);
    const auto q_values = q.randomise(random), k_values = k.randomise(random), v_values = v.randomise(random);
    const double scale = 1 / std::sqrt(double(d));
    std::vector<Queries> list;
    std::vector<double> want;
    for (int i = 0; i < queries; i++) {
        const int shared = std::min(prefix, lengths[i] - 1), own = lengths[i] - shared;
        list.push_back({i, 1, own - 1, 30, 3, shared});
        for (int head = 0; head < shape.heads; head++) {
            std::vector<double> p;
            std::vector<size_t> places;
            double largest = -INFINITY, sum = 0;
            for (int j = 0; j < lengths[i]; j++) {
                const int row = j < shared ? 3 + j : 30 + j - shared;
                places.push_back((size_t(row) * shape.kv_heads + head / (shape.heads / shape.kv_heads)) * d);
                double logit = 0;
                for (int c = 0; c < d; c++) logit += q_values[(size_t(i) * shape.heads + head) * d + c] * k_values[places[j] + c];
                p.push_back(scale * logit);
                largest = std::max(largest, p.back());
            }
            for (double &x : p) sum += x = std::exp(x - largest);
            for (int c = 0; c < d; c++) {
                double output = 0;
                for (size_t j = 0; j < p.size(); j++) output += p[j] / sum * v_values[places[j] + c];
                want.push_back(output);
            }
        }
    }
    const collimate_attention_inputs inputs = {q.memory.data(), k.memory.data(), v.memory.data(), q.stride, k.stride,
                                               shape.heads, shape.kv_heads, d, float(scale), Of<T>::dtype};
    const auto room_for = [&](int count, int most_keys) {
        return size_t(collimate_attention_decode_workspace(count, shape.heads, d, most_keys));
    };
    const auto run = [&](const Queries *blocks, int count, int most_keys, Guarded<unsigned char> &workspace) {
        const int status = collimate_attention_decode(out.memory.data(), &inputs, blocks, count, most_keys, out.stride,
                                                      workspace.data(), int64_t(workspace.size()), stream);
        expect(status == 0, "attention decode returned %d", status);
    };
    std::string together, alone;
    Guarded<unsigned char> all(room_for(queries, cache));
    in_all_orders("attention decode", [&] {
        run(list.data(), queries, cache, all);
        together.clear();
        out.memory.append_to(together);
        return together;
    });
    out.compare("decode", want, std::max(std::ldexp(1.0, -Of<T>::mantissa), 4e-6));
    expect(all.intact(), "attention decode wrote outside its workspace");
    for (int i = 0; i < queries; i++) {
        Guarded<unsigned char> workspace(room_for(1, lengths[i]));
        run(&list[i], 1, lengths[i], workspace);
        expect(workspace.intact(), "attention decode of one query wrote outside its workspace");
    }
    out.memory.append_to(alone);
    expect(alone == together, "attention decode hangs on the batch");
}

// Equal logits over many tiles: every key weighs the same, however far back it lies. Values of 1 and then of -1 add up to
// nothing, where a maximum that stays must not scale what came before.
template <class T>
void check_level(int head_dim) {
    const int keys = kSmallCases ? 512 : 4096;
    Matrix<T> q(keys, head_dim, 0), k(keys, head_dim, 0), v(keys, head_dim, 0), out(1, head_dim, 0);
    Matrix<float> lse(1, 1, 0);
    const float entry = float(Of<T>::wide(Of<T>::from(3.3)));
    for (int i = 0; i < keys * head_dim; i++) {
        q.memory[size_t(i)] = k.memory[size_t(i)] = Of<T>::from(entry);
        v.memory[size_t(i)] = Of<T>::from(i < keys / 2 * head_dim ? 1 : -1);
    }
    const float scale = 0.0837f;
    const collimate_attention_inputs inputs = {q.memory.data(), k.memory.data(), v.memory.data(), head_dim, head_dim, 1, 1,
                                               head_dim, scale, Of<T>::dtype};
    const Queries last = {0, 1, keys - 1, 0, 0, 0};
    const int status = collimate_attention_forward(out.memory.data(), lse.memory.data(), &inputs, &last, 1, head_dim, 1, nullptr);
    expect(status == 0, "attention forward returned %d", status);
    const double logit = double(entry) * entry * head_dim * scale, exact = logit + std::log(keys);
    expect(std::fabs(lse.memory[0] - exact) <= 2e-6 * exact, "level logits %s %d: lse %.9g, exact %.9g", Of<T>::name, head_dim,
           lse.memory[0], exact);
    for (int c = 0; c < head_dim; c++) {
        const double sum = Of<T>::wide(out.memory[size_t(c)]);
        expect(std::fabs(sum) <= 2e-7, "level logits %s %d: column %d is %g, exact 0", Of<T>::name, head_dim, c, sum);
    }
}

// Half an ulp of the output; backward also reads the rounded output.
template <class T>
void check(const std::vector<Segment> &segments, const Shape &shape) {
    const double ulp = std::ldexp(1.0, -Of<T>::mantissa);
    check<T>(segments, shape, std::max(ulp, 2e-6), std::max(16 * ulp, 2e-5));
}

// Rows in 16-byte packs, on the matrix units: head dims, blocks around their sizes, a prefix that ends inside a tile.
template <class T>
void mma_cases() {
    const std::vector<Segment> shared = {{0, 70, 0, 0}, {70, 3, 0, 70}, {73, 66, 0, 70}};
    check<T>(shared, {2, 1, 64, 8});
    if (kFewCases) {
        for (int head_dim : {96, 128}) check<T>({{0, 18, 0, 0}, {18, 3, 0, 18}}, {2, 1, head_dim, 0});
        return;
    }
    check<T>({{0, 131, 0, 0}, {131, 2, 0, 131}}, {2, 2, 96, 0});
    check<T>({{0, 129, 0, 0}, {129, 1, 0, 0}, {130, 17, 0, 129}}, {2, 1, 128, 0});
}

template <class T>
void all_cases() {
    const std::vector<Segment> shared = {{0, 70, 0, 0}, {70, 3, 0, 70}, {73, 66, 0, 70}};
    check<T>(shared, {2, 1, 5, 1});
    check_decode<T>({1, 300}, {2, 1, 5, 1});
    if (kFewCases) return check_decode<T>({12, 257}, {2, 1, 64, 8});
    check_decode<T>({255, 256, 257, 12}, {5, 1, 64, 8});
    check_decode<T>({20, 513}, {2, 2, 300, 0});
    check<T>({{0, 63, 0, 0}, {63, 64, 0, 0}, {127, 65, 0, 0}}, {2, 2, 8, 0});
    check<T>({{0, 131, 0, 0}, {131, 2, 0, 131}}, {1, 1, 34, 0});
    check<T>({{0, 3, 0, 0}, {3, 1, 0, 3}}, {1, 1, 130, 3});
}

}  // namespace

void attention() {
    check_level<float>(34);
    check_level<__nv_bfloat16>(64);
    check_level<__half>(128);
    all_cases<float>();
    all_cases<__nv_bfloat16>();
    all_cases<__half>();
    mma_cases<__nv_bfloat16>();
    mma_cases<__half>();
}

}  // namespace test
