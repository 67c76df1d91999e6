// token_logprobs against plain float64: forward with all statistics, backward apart and in place, fused.
#include <type_traits>

#include "check.h"

namespace test {
namespace {

enum class Fill { kNormal, kPeaked, kHuge, kHoles };

struct Case {
    int rows, vocab, pad, shift;
    float temperature, cap;
    Fill fill;
    double skipped;
};

struct Exact {
    double lse, entropy, mean, log_sum_p2, max;
    std::vector<double> p, slope, z;
};

template <class T>
Exact exact_row(const T *row, const Case &c) {
    Exact e{};
    double top = -INFINITY;
    for (int v = 0; v < c.vocab; v++) {
        const double x = Of<T>::wide(row[v]), u = c.cap > 0 ? std::tanh(x / c.cap) : 0;
        e.mean += x / c.vocab;
        e.z.push_back((c.cap > 0 ? c.cap * u : x) / c.temperature);
        e.slope.push_back((c.cap > 0 ? 1 - u * u : 1) / c.temperature);
        top = std::max(top, e.z.back());
    }
    double sum = 0;
    for (double z : e.z) sum += top == -INFINITY ? 0 : std::exp(z - top);
    e.max = top;
    e.lse = top == -INFINITY ? top : top + std::log(sum);
    double p2 = 0;
    for (double z : e.z) {
        const double p = top == -INFINITY ? 0 : std::exp(z - e.lse);
        e.p.push_back(p);
        if (p > 0) e.entropy -= p * (z - e.lse);
        p2 += p * p;
    }
    e.log_sum_p2 = top == -INFINITY ? 0 : std::log(p2);
    if (top == -INFINITY) e.mean = 0;
    return e;
}

struct Outputs {
    Guarded<float> logps, lse, entropy, hit, mean, p2;
    Guarded<int> error;
    explicit Outputs(int rows) : logps(rows), lse(rows), entropy(rows), hit(rows), mean(rows), p2(rows), error(3) {}
    void clear() {
        for (auto *each : {&logps, &lse, &entropy, &hit, &mean, &p2}) each->fill(-7.5f);
        error.fill(0);
    }
    collimate_token_statistics statistics() { return {entropy.data(), hit.data(), mean.data(), p2.data()}; }
    std::string bytes(bool all) const {
        std::string text;
        for (auto *each : {&logps, &lse}) each->append_to(text);
        if (all) {
            for (auto *each : {&entropy, &hit, &mean, &p2}) each->append_to(text);
        }
        return text;
    }
    bool intact() const {
        return logps.intact() && lse.intact() && entropy.intact() && hit.intact() && mean.intact() && p2.intact() &&
               error.intact();
    }
};

template <class T>
class Check {
    const Case c;
    const int stride;
    Guarded<T> logits;
    Guarded<int> targets;
    Guarded<float> dlogps;
    std::vector<Exact> exact;
    std::string label;
    collimate_logits_map map;

    double cap_error() const { return c.cap > 0 ? 4e-7 * c.cap / c.temperature : 0; }

    void rows_of(const Outputs &got, const char *what) {
        for (int r = 0; r < c.rows; r++) {
            const Exact &e = exact[r];
            const bool scored = targets[r] != COLLIMATE_IGNORE;
            const double logp = scored ? e.lse == -INFINITY ? -INFINITY : e.z[targets[r]] - e.lse : 0;
            const double lse = scored ? e.lse : 0;
            const double tolerance = 2e-6 * std::max({1.0, std::fabs(lse), std::isinf(logp) ? 0 : std::fabs(logp)});
            auto near = [&](double a, double b, double t) { return a == b || std::fabs(a - b) <= t; };
            expect(near(got.logps[r], logp, tolerance), "%s %s row %d: logp %.9g, exact %.9g", label.c_str(), what, r,
                   got.logps[r], logp);
            expect(near(got.lse[r], lse, tolerance), "%s %s row %d: lse %.9g, exact %.9g", label.c_str(), what, r,
                   got.lse[r], lse);
        }
    }

    void statistics_of(const Outputs &got) {
        for (int r = 0; r < c.rows; r++) {
            const Exact &e = exact[r];
            const bool scored = targets[r] != COLLIMATE_IGNORE;
            const bool hit = scored && e.lse != -INFINITY && e.z[targets[r]] == e.max;
            const double tolerance = 4e-6 * std::max(1.0, std::fabs(e.entropy)) + 10 * cap_error();
            const double mean = scored ? e.mean : 0, spread = c.fill == Fill::kHuge ? 1e4 : 10;
            expect(std::fabs(got.entropy[r] - (scored ? e.entropy : 0)) <= tolerance, "%s row %d: entropy %.9g, exact %.9g",
                   label.c_str(), r, got.entropy[r], e.entropy);
            // where tanh rounds two logits to one, either may be the largest
            expect(c.cap > 0 || got.hit[r] == (hit ? 1.0f : 0.0f), "%s row %d: hit %g", label.c_str(), r, got.hit[r]);
            expect(got.mean[r] == mean || std::fabs(got.mean[r] - mean) <= 1e-6 * spread, "%s row %d: mean %.9g, exact %.9g",
                   label.c_str(), r, got.mean[r], mean);
            expect(std::fabs(got.p2[r] - (scored ? e.log_sum_p2 : 0)) <= tolerance, "%s row %d: ln sum p^2 %.9g, exact %.9g",
                   label.c_str(), r, got.p2[r], e.log_sum_p2);
        }
    }

    // `from_lse`: made of a saved, rounded lse.
    void gradient_of(const Guarded<T> &got, int got_stride, const float *g, bool from_lse, const char *what) {
        for (int r = 0; r < c.rows; r++) {
            const Exact &e = exact[r];
            const bool scored = targets[r] != COLLIMATE_IGNORE && e.lse != -INFINITY;
            const double scale = g ? g[r] : 1;
            for (int v = 0; v < c.vocab; v++) {
                const double onehot = v == targets[r], chain = e.slope[v];
                double want = scored ? scale * (onehot - e.p[v]) * chain : 0;
                if (scored && onehot == 1) want = scale * -std::expm1(e.z[v] - e.lse) * chain;
                const double value = Of<T>::wide(got[size_t(r) * got_stride + v]);
                const double size = std::fabs(scale) / c.temperature;
                double tolerance = (cap_error() + (from_lse ? 1.2e-7 * std::fabs(e.lse) : 0)) * size;
                if (sizeof(T) == 4) {
                    tolerance += 1e-6 * size;
                } else {
                    want = Of<T>::wide(Of<T>::from(want));
                    tolerance += ulp<T>(want) + 1e-7 * size;
                }
                if (scored && e.p[v] < 1e-3) tolerance = std::min(tolerance, 2e-3 * size);
                if (!scored) tolerance = 0;
                if (!expect(std::fabs(value - want) <= tolerance, "%s %s row %d column %d: gradient %.9g, exact %.9g (p %.9g)",
                            label.c_str(), what, r, v, value, want, e.p[v])) {
                    break;
                }
            }
            for (int v = c.vocab; v < got_stride && r + 1 < c.rows; v++) {
                expect(Of<T>::wide(got[size_t(r) * got_stride + v]) == 3.0, "%s %s row %d: wrote column %d beyond the vocabulary",
                       label.c_str(), what, r, v);
            }
        }
        expect(got.intact(), "%s %s: wrote outside the gradient", label.c_str(), what);
    }

    size_t elements(int s) const { return c.rows ? size_t(c.rows - 1) * s + c.vocab : 0; }

  public:
    explicit Check(const Case &given)
        : c(given), stride(c.vocab + c.pad), logits(elements(stride), c.shift), targets(c.rows), dlogps(c.rows),
          map{c.temperature, c.cap} {
        Random random(c.rows * 131 + c.vocab * 7 + c.pad + c.shift + int(c.fill) * 1009);
        logits.fill(Of<T>::from(3.0));
        for (int r = 0; r < c.rows; r++) {
            T *row = logits.data() + size_t(r) * stride;
            for (int v = 0; v < c.vocab; v++) {
                double x = random.normal() * 2;
                if (c.fill == Fill::kPeaked && v == r % c.vocab) x += 18;
                if (c.fill == Fill::kHuge) x = v % 3 == 0 ? 1e4 - x : v % 3 == 1 ? -1e4 : x;
                if (c.fill == Fill::kHoles && (random.below(3) == 0 || r == 1)) x = -INFINITY;  // row 1: nothing else
                row[v] = Of<T>::from(x);
            }
            targets[r] = r % 3 == 0 ? 0 : r % 3 == 1 ? c.vocab - 1 : random.below(c.vocab);
            if (c.fill == Fill::kPeaked) targets[r] = r % c.vocab;
            if (random.uniform() < c.skipped) targets[r] = COLLIMATE_IGNORE;
            dlogps[r] = float(random.normal());
            exact.push_back(exact_row(row, c));
        }
        char text[160];
        std::snprintf(text, sizeof text, "%s N=%d V=%d pad=%d shift=%d T=%g cap=%g fill=%d", Of<T>::name, c.rows, c.vocab,
                      c.pad, c.shift, c.temperature, c.cap, int(c.fill));
        label = text;
    }

    void run() {
        const int64_t bytes = collimate_token_logprobs_workspace(c.rows, c.vocab);
        Guarded<unsigned char> workspace(bytes);
        Outputs got(c.rows), plain(c.rows), fused(c.rows);
        const auto statistics = got.statistics();
        in_all_orders(label.c_str(), [&] {
            got.clear();
            plain.clear();
            int status = collimate_token_logprobs_forward(got.logps.data(), got.lse.data(), &statistics, logits.data(),
                                                          targets.data(), &map, c.rows, c.vocab, stride, Of<T>::dtype,
                                                          workspace.data(), bytes, got.error.data(), stream);
            status |= collimate_token_logprobs_forward(plain.logps.data(), plain.lse.data(), nullptr, logits.data(),
                                                       targets.data(), &map, c.rows, c.vocab, stride, Of<T>::dtype,
                                                       workspace.data(), bytes, nullptr, stream);
            expect(status == 0, "%s: forward returned %d", label.c_str(), status);
            return got.bytes(true);
        });
        expect(got.intact() && plain.intact() && workspace.intact(), "%s: forward wrote outside", label.c_str());
        expect(got.bytes(false) == plain.bytes(false), "%s: statistics change the bits", label.c_str());
        rows_of(got, "forward");
        statistics_of(got);
        bool empty_row = false;
        for (int r = 0; r < c.rows; r++) empty_row |= targets[r] != COLLIMATE_IGNORE && exact[r].lse == -INFINITY;
        expect(got.error[0] == (empty_row ? COLLIMATE_ERROR_LOGITS : 0), "%s: error word %d", label.c_str(), got.error[0]);

        const int other = stride + 3;
        Guarded<T> apart(elements(other), 1), in_place(elements(stride), c.shift), both(elements(stride), c.shift);
        in_all_orders(label.c_str(), [&] {
            apart.fill(Of<T>::from(3.0));
            int status = collimate_token_logprobs_backward(apart.data(), dlogps.data(), got.lse.data(), logits.data(),
                                                           targets.data(), &map, c.rows, c.vocab, stride, other,
                                                           Of<T>::dtype, stream);
            std::memcpy(in_place.data(), logits.data(), logits.size() * sizeof(T));
            status |= collimate_token_logprobs_backward(in_place.data(), dlogps.data(), got.lse.data(), in_place.data(),
                                                        targets.data(), &map, c.rows, c.vocab, stride, stride,
                                                        Of<T>::dtype, stream);
            std::memcpy(both.data(), logits.data(), logits.size() * sizeof(T));
            fused.clear();
            const auto extra = fused.statistics();
            status |= collimate_token_logprobs_fused(both.data(), fused.logps.data(), fused.lse.data(),
                                                     c.vocab % 2 ? &extra : nullptr,
                                                     targets.data(), &map, c.rows, c.vocab, stride, Of<T>::dtype,
                                                     workspace.data(), bytes, nullptr, stream);
            expect(status == 0, "%s: backward or fused returned %d", label.c_str(), status);
            std::string text = fused.bytes(false);
            for (auto *each : {&apart, &in_place, &both}) each->append_to(text);
            return text;
        });
        gradient_of(apart, other, dlogps.data(), true, "backward");
        gradient_of(in_place, stride, dlogps.data(), true, "backward in place");
        gradient_of(both, stride, nullptr, false, "fused");
        expect(fused.intact(), "%s: fused wrote outside", label.c_str());
        const bool all = c.vocab % 2;
        expect(fused.bytes(all) == got.bytes(all), "%s: fused and forward differ in bits", label.c_str());
    }
};

// A row's bits do not depend on the rows around it: few rows spread over blocks, many take one each.
template <class T>
void batch_invariance() {
    const int many = 130, vocab = 8193 + 64, stride = vocab;
    Guarded<T> logits(size_t(many) * stride), one(vocab, 3);
    Guarded<int> targets(many);
    Random random(5);
    for (size_t i = 0; i < logits.size(); i++) logits[i] = Of<T>::from(random.normal() * 3);
    for (int r = 0; r < many; r++) targets[r] = random.below(vocab);
    const int64_t bytes = collimate_token_logprobs_workspace(1, vocab);
    expect(bytes > 0 && collimate_token_logprobs_workspace(many, vocab) == 0, "the case does not cross the threshold");
    Guarded<unsigned char> workspace(bytes);
    Outputs all(many), single(1);
    const auto statistics = all.statistics(), statistics_one = single.statistics();
    Guarded<T> gradient(logits.size());
    std::memcpy(gradient.data(), logits.data(), logits.size() * sizeof(T));
    collimate_token_logprobs_fused(gradient.data(), all.logps.data(), all.lse.data(), &statistics, targets.data(), nullptr,
                                   many, vocab, stride, Of<T>::dtype, nullptr, 0, nullptr, nullptr);
    for (int r = 0; r < many; r += 43) {
        std::memcpy(one.data(), logits.data() + size_t(r) * stride, vocab * sizeof(T));
        collimate_token_logprobs_fused(one.data(), single.logps.data(), single.lse.data(), &statistics_one,
                                       targets.data() + r, nullptr, 1, vocab, vocab, Of<T>::dtype, workspace.data(), bytes,
                                       nullptr, nullptr);
        expect(single.logps[0] == all.logps[r] && single.lse[0] == all.lse[r] && single.entropy[0] == all.entropy[r] &&
                   single.p2[0] == all.p2[r] && single.mean[0] == all.mean[r],
               "%s row %d alone has other bits", Of<T>::name, r);
        expect(!std::memcmp(one.data(), gradient.data() + size_t(r) * stride, vocab * sizeof(T)),
               "%s row %d alone has another gradient", Of<T>::name, r);
    }
}

// A soft cap and a probability so near to 1 that only what all others sum to tells it from 1: the largest logit must lie
// exactly at 0 of the row's own scale, and the target's gradient must be that sum.
template <class T>
void capped_peak(int rows, int vocab, float temperature) {
    const collimate_logits_map map{temperature, 30};
    Guarded<T> logits(size_t(rows) * vocab, 1);
    Guarded<float> logps(rows), lse(rows);
    Guarded<int> targets(rows);
    Random random(vocab);
    std::vector<double> z(logits.size()), slopes(logits.size());
    for (int r = 0; r < rows; r++) {
        targets[r] = random.below(vocab);
        for (int v = 0; v < vocab; v++) {
            const size_t at = size_t(r) * vocab + v;
            logits[at] = Of<T>::from((v == targets[r] ? 14 : -14) + 2 * random.uniform());
            const double u = std::tanh(Of<T>::wide(logits[at]) / map.soft_cap);
            z[at] = map.soft_cap * u / temperature, slopes[at] = (1 - u * u) / temperature;
        }
    }
    const int64_t bytes = collimate_token_logprobs_workspace(rows, vocab);
    Guarded<unsigned char> workspace(bytes);
    const int status = collimate_token_logprobs_fused(logits.data(), logps.data(), lse.data(), nullptr, targets.data(), &map, rows,
                                                      vocab, vocab, Of<T>::dtype, workspace.data(), bytes, nullptr, nullptr);
    expect(status == 0, "a capped peak returned %d", status);
    for (int r = 0; r < rows; r++) {
        const size_t target = size_t(r) * vocab + targets[r];
        double others = 0;
        for (int v = 0; v < vocab; v++) others += v == targets[r] ? 0 : std::exp(z[size_t(r) * vocab + v] - z[target]);
        // the rounding of two tanh of 30 lies in the exponent
        const double logp = -std::log1p(others), gradient = others / (1 + others) * slopes[target];
        expect(std::fabs(logps[r] - logp) <= 1e-4 * -logp, "%s N=%d V=%d capped peak: logp %.9g, exact %.9g", Of<T>::name, rows,
               vocab, logps[r], logp);
        const double got = Of<T>::wide(logits[target]);
        expect(std::fabs(got - gradient) <= 1e-4 * gradient + ulp<T>(gradient), "%s N=%d V=%d capped peak: gradient %.9g, exact %.9g",
               Of<T>::name, rows, vocab, got, gradient);
    }
}

template <class T>
void capped_peaks() {
    for (const float temperature : {1.0f, 0.7f}) {
        capped_peak<T>(3, 515, temperature);
        capped_peak<T>(2, 9001, temperature);  // spread over blocks
        if (kFewCases) return;
        capped_peak<T>(130, 67, temperature);
    }
}

void errors() {
    Guarded<float> logits(4 * 9), logps(4), lse(4);
    Guarded<int> targets(4), error(3);
    logits.fill(1.0f);
    error.fill(0);
    const int given[] = {3, 9, COLLIMATE_IGNORE, 0};
    for (int r = 0; r < 4; r++) targets[r] = given[r];
    collimate_token_logprobs_fused(logits.data(), logps.data(), lse.data(), nullptr, targets.data(), nullptr, 4, 9, 9,
                                   COLLIMATE_F32, nullptr, 0, error.data(), nullptr);
    expect(error[0] == COLLIMATE_ERROR_TOKEN && error[1] == 1 && error[2] == 9, "error word %d %d %d", error[0], error[1],
           error[2]);
    expect(std::isnan(logps[1]) && logits[9] == 0 && logits[17] == 0, "row with a bad target");
    auto status = [&](int64_t vocab, int64_t stride, int dtype, float temperature) {
        const collimate_logits_map map{temperature, 0};
        return collimate_token_logprobs_forward(logps.data(), lse.data(), nullptr, logits.data(), targets.data(), &map, 1,
                                                vocab, stride, dtype, nullptr, 0, nullptr, nullptr);
    };
    expect(status(9, 9, 7, 1) == COLLIMATE_STATUS_DTYPE, "dtype tag 7");
    expect(status(9, 8, COLLIMATE_F32, 1) == COLLIMATE_STATUS_ARGUMENT, "stride below the vocabulary");
    expect(status(9, 9, COLLIMATE_F32, 0) == COLLIMATE_STATUS_ARGUMENT, "temperature 0");
    expect(status(32000, 32000, COLLIMATE_F32, 1) == COLLIMATE_STATUS_WORKSPACE, "no workspace");
}

template <class T>
void all_cases() {
    // f16 is bf16 with other conversions
    const FewerOrders of_type(std::is_same_v<T, __half> ? 2 : orders);
    for (int vocab : {1, 7, 31, 512, 1024, 1031}) {
        if (kFewCases && vocab != 512 && vocab != 1031) continue;
        for (int rows : {0, 1, 3, 17}) {
            if (kFewCases && rows > 3) continue;  // 1024 threads a row
            Check<T>({rows, vocab, 0, 0, 1, 0, Fill::kNormal, 0.3}).run();
            Check<T>({rows, vocab, 5, 1, 1, 0, Fill::kHoles, 0}).run();
        }
        Check<T>({3, vocab, 8, 0, 0.7f, 0, Fill::kHuge, 0}).run();
        Check<T>({4, vocab, 1, 3, 1.3f, 30, Fill::kNormal, 0.2}).run();
        Check<T>({5, vocab, 2, 0, 1, 0, Fill::kPeaked, 0}).run();
        Check<T>({3, vocab, 0, 2, 1, 0, Fill::kNormal, 1}).run();
    }
    // so many words that several blocks share a row
    for (int vocab : kSmallCases ? std::vector{9001} : std::vector{9001, 32000, 50257}) {
        const FewerOrders of_size(vocab == 9001 ? orders : 2, vocab == 9001);
        Check<T>({2, vocab, 0, 0, 1, 0, Fill::kNormal, 0}).run();
        Check<T>({3, vocab, 7, 1, 0.9f, 0, Fill::kHoles, 0}).run();
        Check<T>({1, vocab, 0, 1, 1, 50, Fill::kPeaked, 0}).run();
    }
    if (kFewCases) return;
    // enough rows that a block takes each
    Check<T>({130, 67, 2, 1, 1, 0, Fill::kNormal, 0.9}).run();
    Check<T>({130, 67, 0, 0, 1, 0, Fill::kNormal, 0.2}).run();
    if (kSmallCases) return;
    const FewerOrders large(2, false);
    Check<T>({2, 128256, 0, 0, 1, 0, Fill::kNormal, 0}).run();
    Check<T>({129, 9001, 0, 0, 1, 0, Fill::kPeaked, 0.9}).run();
    batch_invariance<T>();
}

}  // namespace

void token_logprobs() {
    all_cases<float>();
    all_cases<__nv_bfloat16>();
    all_cases<__half>();
    capped_peaks<float>();
    capped_peaks<__nv_bfloat16>();
    errors();
}

}  // namespace test
