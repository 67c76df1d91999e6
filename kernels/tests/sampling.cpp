// sampling: every filter against a sort in float64, ties, rows that cannot be drawn from.
#include <algorithm>

#include "check.h"

namespace test {
namespace {

// Philox4x32 with ten rounds, from the paper.
double uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t draw) {
    std::uint32_t c[4] = {std::uint32_t(draw / 2), std::uint32_t(draw / 2 >> 32), std::uint32_t(stream), std::uint32_t(stream >> 32)};
    std::uint32_t k[2] = {std::uint32_t(seed), std::uint32_t(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        const std::uint64_t x = std::uint64_t(c[0]) * 0xD2511F53, y = std::uint64_t(c[2]) * 0xCD9E8D57;
        const std::uint32_t next[4] = {std::uint32_t(y >> 32) ^ c[1] ^ k[0], std::uint32_t(y),
                                       std::uint32_t(x >> 32) ^ c[3] ^ k[1], std::uint32_t(x)};
        std::memcpy(c, next, sizeof c);
        k[0] += 0x9E3779B9, k[1] += 0xBB67AE85;
    }
    const int at = int(draw % 2 * 2);
    const std::uint64_t bits = c[at] | std::uint64_t(c[at + 1]) << 32;
    return double(bits >> 11) / 9007199254740992.0;
}

int draw_by_sorting(const std::vector<double> &logits, const collimate_sampling &s, double u) {
    std::vector<int> ids(logits.size());
    for (size_t i = 0; i < ids.size(); i++) ids[i] = int(i);
    const auto likelier = [&](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
    const double top = *std::max_element(logits.begin(), logits.end());
    if (s.temperature == 0) return *std::min_element(ids.begin(), ids.end(), likelier);
    const auto odds = [&](int i) { return std::exp((logits[i] - top) / s.temperature); };
    const auto sum = [&] {
        double sum = 0;
        for (const int id : ids) sum += odds(id);
        return sum;
    };
    if (s.top_k > 0 || s.top_p < 1 || s.min_p > 0) {
        std::sort(ids.begin(), ids.end(), likelier);
        if (s.top_k > 0 && size_t(s.top_k) < ids.size()) ids.resize(s.top_k);
        if (s.top_p < 1) {
            const double goal = s.top_p * sum();
            double reached = 0;
            size_t kept = 0;
            for (; kept < ids.size() && reached < goal; kept++) reached += odds(ids[kept]);
            ids.resize(kept);
        }
        while (odds(ids.back()) < s.min_p) ids.pop_back();
    }
    double rest = u * sum();
    for (const int id : ids) {
        if ((rest -= odds(id)) < 0) return id;
    }
    return ids.back();
}

// A row is dear to emulate, so that few cases run in all orders.
template <class T>
void check(int rows, int vocab, double spread, const collimate_sampling &sampling, bool all_orders = false) {
    const int stride = vocab + 3;
    Guarded<T> logits(size_t(rows) * stride, 1);
    Guarded<std::int64_t> sequences(rows), draws(rows);
    Guarded<int> tokens(rows), error(3);
    Random random(vocab + rows);
    for (size_t i = 0; i < logits.size(); i++) {
        logits[i] = Of<T>::from(int(i % stride) < vocab ? spread * random.normal() + 0.0 : NAN);
    }
    for (int r = 0; r < rows; r++) sequences[r] = r % 2 ? r : -r, draws[r] = r * 7 + 1;
    error.fill(0);
    const FewerOrders fewer(all_orders ? orders : 1, all_orders);
    in_all_orders("sample", [&] {
        tokens.fill(-7);
        const int status = collimate_sample(tokens.data(), logits.data(), sequences.data(), draws.data(), &sampling, rows, vocab,
                                            stride, Of<T>::dtype, error.data(), stream);
        expect(status == 0, "sample returned %d", status);
        std::string bytes;
        tokens.append_to(bytes);
        return bytes;
    });
    for (int r = 0; r < rows; r++) {
        std::vector<double> row(vocab);
        for (int c = 0; c < vocab; c++) row[c] = Of<T>::wide(logits[size_t(r) * stride + c]);
        const int want = draw_by_sorting(row, sampling, uniform(sampling.seed, sequences[r], draws[r]));
        expect(tokens[r] == want, "row %d of %d %s: token %d, want %d", r, vocab, Of<T>::name, tokens[r], want);
    }
    expect(tokens.intact() && error[0] == 0, "sample wrote outside");
}

template <class T>
void all_cases() {
    const std::uint64_t seed = 0x123456789abcdef0;
    const collimate_sampling samplings[] = {
        {0, 1, 0, 0, seed},      {0.8, 1, 0, 0, seed},    {0.8, 1, 0, 1, seed},         {0.8, 1, 0, 6, seed},
        {0.8, 0.7, 0, 0, seed},  {0.8, 1, 0.2, 0, seed},  {2, 0.9, 0.05, 40, seed},     {1, 0.001, 0, 1000000, seed},
    };
    for (const auto &sampling : samplings) {
        const bool all_filters = sampling.top_k == 40, no_filter = &sampling < samplings + 2;
        if ((kFewCases && !all_filters) || (kSmallCases && !all_filters && !no_filter)) continue;
        const bool all_orders = Of<T>::dtype == COLLIMATE_F32 && (sampling.temperature == 0 || sampling.top_k == 40);
        check<T>(0, 5, 1, sampling, captures && sampling.top_k == 40);
        check<T>(kSmallCases ? 1 : 2, kSmallCases ? 600 : 1500, 3, sampling, all_orders || (captures && sampling.top_k == 40));
        if (kFewCases) continue;
        check<T>(1, 1, 1, sampling);
        check<T>(4, 7, 2, sampling);
        check<T>(2, 40, 0, sampling);  // all tie
    }
    if (kFewCases) return;
    for (const double broken : {double(NAN), double(INFINITY), -double(INFINITY)}) {
        for (const auto &sampling : {samplings[0], samplings[1]}) {
            T logits[4] = {Of<T>::from(1), Of<T>::from(-INFINITY), Of<T>::from(broken > 0 ? 0 : broken), Of<T>::from(broken)};
            const std::int64_t zeros[2] = {};
            int tokens[2], error[3] = {};
            collimate_sample(tokens, logits, zeros, zeros, &sampling, 2, 2, 2, Of<T>::dtype, error, nullptr);
            expect(tokens[0] == 0 && tokens[1] == -1, "a row of %g: tokens %d and %d", broken, tokens[0], tokens[1]);
            expect(error[0] == COLLIMATE_ERROR_LOGITS && error[1] == 1, "error word of a row of %g", broken);
        }
    }
}

}  // namespace

void sampling() {
    all_cases<float>();
    all_cases<__nv_bfloat16>();
    all_cases<__half>();
}

}  // namespace test
