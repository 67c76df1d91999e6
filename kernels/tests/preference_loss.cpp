// preference_loss: every kind against its formula in long double, gradients by central differences of that formula.
#include "check.h"

namespace test {
namespace {

using Real = long double;
using Term = collimate_preference_term;

Real softplus(Real x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }
Real sigmoid(Real x) { return 1 / (1 + std::exp(-x)); }
Real square(Real x) { return x * x; }

struct Pair {
    Real lw, ll, rw, rl, target, n_w, n_l, label, psi;
    bool labelled;
    int divergence;
};

constexpr float kAlpha = 0.4f;

// What stands for a log-ratio.
Real bend(int divergence, Real a) {
    const Real alpha = divergence == COLLIMATE_DIVERGENCE_FORWARD_KL ? 1 : Real(kAlpha), x = -alpha * a;
    switch (divergence) {
        case COLLIMATE_DIVERGENCE_REVERSE_KL: return a;
        case COLLIMATE_DIVERGENCE_JENSEN_SHANNON: return std::log(Real(2)) - softplus(-a);
        default: return x > 40 ? (1 - std::exp(Real(40)) * (1 + x - 40)) / alpha : -std::expm1(x) / alpha;
    }
}

Real odds(Real x) { return x - std::log(-std::expm1(x)); }

Real loss(const Pair &p, const Term &t) {
    const Real a = bend(p.divergence, p.lw - p.rw), b = bend(p.divergence, p.ll - p.rl), d = a - b, h = t.beta * d, e = t.label_smoothing;
    const Real x = p.lw / p.n_w, y = p.ll / p.n_l, q = p.labelled ? p.label : 1 - e;
    switch (t.kind) {
        case COLLIMATE_PREFERENCE_SIGMOID: return q * softplus(-h) + (1 - q) * softplus(h);
        case COLLIMATE_PREFERENCE_ROBUST: return ((1 - e) * softplus(-h) - e * softplus(h)) / (1 - 2 * e);
        case COLLIMATE_PREFERENCE_HINGE: return std::max<Real>(0, 1 - h);
        case COLLIMATE_PREFERENCE_IPO_SUM: return square(d - 1 / (2 * Real(t.beta)));
        case COLLIMATE_PREFERENCE_IPO_MEAN: return square(a / p.n_w - b / p.n_l - 1 / (2 * Real(t.beta)));
        case COLLIMATE_PREFERENCE_PSI_PO: return square(d - p.psi);
        case COLLIMATE_PREFERENCE_DISCOPOP:
            return sigmoid(-h / t.tau) * softplus(-h) + sigmoid(h / t.tau) * std::exp(-h);
        case COLLIMATE_PREFERENCE_EXO:
            return sigmoid(h) * (-softplus(-h) - std::log1p(-e)) + sigmoid(-h) * (-softplus(h) - std::log(e));
        case COLLIMATE_PREFERENCE_APO_ZERO: return 1 - sigmoid(t.beta * a) + sigmoid(t.beta * b);
        case COLLIMATE_PREFERENCE_APO_DOWN: return sigmoid(t.beta * a) + 1 - sigmoid(h);
        case COLLIMATE_PREFERENCE_NCA:
            return softplus(-t.beta * a) + (softplus(t.beta * a) + softplus(t.beta * b)) / 2;
        case COLLIMATE_PREFERENCE_SPPO: return square(a - 1 / (2 * Real(t.beta))) + square(b + 1 / (2 * Real(t.beta)));
        case COLLIMATE_PREFERENCE_LENGTH_NORMALISED: return softplus(-t.beta * (a / p.n_w - b / p.n_l));
        case COLLIMATE_PREFERENCE_SIMPO: return softplus(-(t.beta * (x - y) - t.gamma));
        case COLLIMATE_PREFERENCE_ORPO:
            return -x + t.beta * softplus(-(odds(std::min<Real>(x, -1e-6f)) - odds(std::min<Real>(y, -1e-6f))));
        case COLLIMATE_PREFERENCE_CPO: return softplus(-t.beta * (p.lw - p.ll)) - t.alpha * x;
        case COLLIMATE_PREFERENCE_SLIC_HF: return std::max<Real>(0, t.delta - p.lw + p.ll) - t.lambda * p.target;
        default: return 0;
    }
}

struct Gradient {
    Real dlw, dll, dtarget;
};

Gradient gradient(const Pair &p, const Term &t) {
    const Real step = 1e-6L;
    auto by = [&](Real Pair::*field) {
        Pair up = p, down = p;
        up.*field += step;
        down.*field -= step;
        return (loss(up, t) - loss(down, t)) / (2 * step);
    };
    return {by(&Pair::lw), by(&Pair::ll), by(&Pair::target)};
}

struct Case {
    int pairs, stride;
    bool reference, labels, weights, target, extreme;
    std::vector<Term> terms;
    int divergence = COLLIMATE_DIVERGENCE_REVERSE_KL;
};

bool near(double got, Real want, double relative, double absolute) {
    return std::fabs(got - want) <= relative * std::fabs(want) + absolute;
}

void check(const Case &c) {
    const size_t size = c.pairs ? size_t(c.pairs - 1) * c.stride + 1 : 0;
    Guarded<float> lw(size), ll(size), rw(c.pairs), rl(c.pairs), target(c.pairs), labels(c.pairs), weights(c.pairs);
    Guarded<float> dw(size), dl(size), dt(c.pairs), losses(c.pairs), cr(c.pairs), rr(c.pairs), hits(c.pairs);
    Guarded<int> n_w(size), n_l(size);
    Guarded<double> metrics(COLLIMATE_PREFERENCE_METRICS);
    Random random(c.pairs * 31 + c.terms[0].kind);
    for (int i = 0; i < c.pairs; i++) {
        const int at = i * c.stride;
        n_w[at] = i == 1 ? 0 : 1 + random.below(200);
        n_l[at] = i == 2 ? 0 : 1 + random.below(200);
        lw[at] = float(-n_w[at] * (0.2 + random.uniform()) - 0.01);
        ll[at] = float(-n_l[at] * (0.2 + random.uniform()) - 0.01);
        rw[i] = float(lw[at] + 8 * random.normal());
        rl[i] = float(ll[at] + 8 * random.normal());
        if (c.extreme) rw[i] = lw[at] + (i % 2 ? 900.0f : -900.0f);
        target[i] = float(-50 * random.uniform());
        labels[i] = float(random.uniform());
        weights[i] = float(2 * random.uniform());
    }
    collimate_preference_config config{};
    for (size_t k = 0; k < c.terms.size(); k++) config.terms[k] = c.terms[k];
    config.term_count = int(c.terms.size());
    config.reward_scale = 0.25f;
    config.reward_per_token = c.stride > 1;
    config.normaliser = 64;
    config.sft_tokens = 321;
    const collimate_preference_batch batch = {
        lw.data(), ll.data(), c.reference ? rw.data() : nullptr, c.reference ? rl.data() : nullptr, n_w.data(), n_l.data(),
        c.target ? target.data() : nullptr, c.labels ? labels.data() : nullptr, labels.data(),
        c.weights ? weights.data() : nullptr,
        dw.data(), dl.data(), c.target ? dt.data() : nullptr, losses.data(), cr.data(), rr.data(), hits.data(),
        metrics.data(), c.pairs, c.stride, 1, c.divergence, kAlpha, 0};
    const int64_t bytes = collimate_preference_loss_workspace(c.pairs);
    Guarded<double> workspace(bytes / 8);
    char label[80];
    std::snprintf(label, sizeof label, "preference kind %d (%zu terms) P=%d stride=%d", c.terms[0].kind, c.terms.size(),
                  c.pairs, c.stride);
    in_all_orders(label, [&] {
        for (auto *each : {&dw, &dl, &dt, &losses, &cr, &rr, &hits}) each->fill(-7);
        metrics.fill(0.5);
        const int status = collimate_preference_loss(&batch, &config, workspace.data(), bytes, stream);
        expect(status == 0, "%s returned %d", label, status);
        std::string text;
        for (auto *each : {&dw, &dl, &dt, &losses, &cr, &rr, &hits}) each->append_to(text);
        metrics.append_to(text);
        return text;
    });
    Real sums[COLLIMATE_PREFERENCE_METRICS] = {};
    for (int i = 0; i < c.pairs; i++) {
        const int at = i * c.stride;
        const Pair pair = {lw[at], ll[at], c.reference ? rw[i] : 0, c.reference ? rl[i] : 0, c.target ? target[i] : lw[at],
                           Real(std::max(n_w[at], 1)), Real(std::max(n_l[at], 1)), labels[i], labels[i], c.labels,
                           c.divergence};
        Real value = 0, sft = 0;
        Gradient g = {0, 0, 0};
        for (const Term &term : c.terms) {
            value += term.weight * loss(pair, term);
            const Gradient own = gradient(pair, term);
            g.dlw += term.weight * own.dlw, g.dll += term.weight * own.dll, g.dtarget += term.weight * own.dtarget;
            if (term.kind == COLLIMATE_PREFERENCE_SFT) sft += term.weight / Real(config.sft_tokens);
        }
        if (!c.target) g.dlw += g.dtarget;
        const Real weight = c.weights ? weights[i] : 1, share = weight / 64;
        expect(near(losses[i], value, 1e-5, 1e-5), "%s pair %d: loss %.9g, exact %.9Lg", label, i, losses[i], value);
        expect(near(dw[at], g.dlw * share - sft, 1e-5, 1e-7), "%s pair %d: dchosen %.9g, exact %.9Lg", label, i, dw[at],
               g.dlw * share - sft);
        expect(near(dl[at], g.dll * share, 1e-5, 1e-7), "%s pair %d: drejected %.9g, exact %.9Lg", label, i, dl[at], g.dll * share);
        expect(c.target ? near(dt[i], g.dtarget * share, 1e-5, 1e-9) : dt[i] == -7, "%s pair %d: dtarget %.9g", label, i, dt[i]);
        const Real a = (pair.lw - pair.rw) / (config.reward_per_token ? pair.n_w : 1) / 4;
        const Real b = (pair.ll - pair.rl) / (config.reward_per_token ? pair.n_l : 1) / 4;
        expect(near(cr[i], a, 1e-6, 1e-6) && near(rr[i], b, 1e-6, 1e-6), "%s pair %d: rewards %g %g", label, i, cr[i], rr[i]);
        expect(hits[i] == (cr[i] > rr[i]), "%s pair %d: accuracy", label, i);
        sums[COLLIMATE_PREFERENCE_LOSS] += value * share - sft * pair.lw;
        sums[COLLIMATE_PREFERENCE_CHOSEN_REWARD] += a;
        sums[COLLIMATE_PREFERENCE_REJECTED_REWARD] += b;
        sums[COLLIMATE_PREFERENCE_ACCURACY] += hits[i];
        sums[COLLIMATE_PREFERENCE_CHOSEN_LOGP] += pair.lw;
        sums[COLLIMATE_PREFERENCE_REJECTED_LOGP] += pair.ll;
        sums[COLLIMATE_PREFERENCE_PAIRS] += 1;
    }
    for (int m = 0; m < COLLIMATE_PREFERENCE_METRICS; m++) {
        expect(near(metrics[m] - 0.5, sums[m], 1e-5, 1e-5 * (1 + c.pairs)), "%s metric %d: %.9g, exact %.9Lg", label, m,
               metrics[m] - 0.5, sums[m]);
    }
    for (size_t i = 0; i < size; i++) {
        if (i % c.stride) expect(dw[i] == -7 && dl[i] == -7, "%s wrote between the strides", label);
    }
    expect(dw.intact() && dl.intact() && dt.intact() && losses.intact() && metrics.intact() && workspace.intact(),
           "%s wrote outside", label);
}

// Policy and reference equal: every loss is ln 2 to the last bit, and so is their mean.
void first_step() {
    const int pairs = 777;
    Guarded<float> logps(pairs), dw(pairs), dl(pairs), losses(pairs);
    for (int i = 0; i < pairs; i++) logps[i] = -0.37f * float(i);
    Guarded<double> metrics(COLLIMATE_PREFERENCE_METRICS);
    metrics.fill(0);
    collimate_preference_config config{};
    config.terms[0] = {COLLIMATE_PREFERENCE_SIGMOID, 1, 0.1f, 0, 0, 0, 0, 0, 0};
    config.term_count = 1;
    config.normaliser = pairs;
    collimate_preference_batch batch{};
    batch.policy_chosen_logps = batch.policy_rejected_logps = logps.data();
    batch.reference_chosen_logps = batch.reference_rejected_logps = logps.data();
    batch.dchosen = dw.data(), batch.drejected = dl.data(), batch.losses = losses.data(), batch.metrics = metrics.data();
    batch.pairs = pairs, batch.stride = batch.reference_stride = 1;
    const int64_t bytes = collimate_preference_loss_workspace(pairs);
    Guarded<double> workspace(bytes / 8);
    collimate_preference_loss(&batch, &config, workspace.data(), bytes, nullptr);
    for (int i = 0; i < pairs; i++) expect(losses[i] == 0.693147181f, "first step: pair %d has loss %.9g", i, losses[i]);
    expect(metrics[COLLIMATE_PREFERENCE_LOSS] == double(0.693147181f), "first step: mean %.17g", metrics[0]);
    config.terms[0].kind = COLLIMATE_PREFERENCE_SIMPO;
    expect(collimate_preference_loss(&batch, &config, workspace.data(), bytes, nullptr) == COLLIMATE_STATUS_ARGUMENT,
           "SimPO without lengths");
    config.terms[0] = {COLLIMATE_PREFERENCE_ROBUST, 1, 0.1f, 0.5f, 0, 0, 0, 0, 0};
    expect(collimate_preference_loss(&batch, &config, workspace.data(), bytes, nullptr) == COLLIMATE_STATUS_ARGUMENT,
           "robust with e = 1/2");
    config.terms[0].kind = COLLIMATE_PREFERENCE_SIGMOID;
    expect(collimate_preference_loss(&batch, &config, nullptr, 0, nullptr) == COLLIMATE_STATUS_WORKSPACE, "no workspace");
}

}  // namespace

void preference_loss() {
    for (int kind = 0; kind <= COLLIMATE_PREFERENCE_DISCOPOP; kind++) {
        if (kind == COLLIMATE_PREFERENCE_SFT) continue;
        const float smoothing = kind == COLLIMATE_PREFERENCE_SIGMOID ? 0.0f : 0.1f;
        const Term term = {kind, 1, 0.1f, smoothing, 0.5f, 0.8f, 1.0f, 0.1f, 0.3f};
        const bool slic = kind == COLLIMATE_PREFERENCE_SLIC_HF;
        for (int pairs : {0, 1, 3, 17, 300}) {
            if (kFewCases && kind % 4 != 0 && pairs > 3) continue;
            check({pairs, 1 + pairs % 2, true, false, pairs > 3, slic && pairs > 3, false, {term}});
        }
        check({17, 1, false, false, true, false, false, {term}});
        // e^90 is no float's
        if (kind != COLLIMATE_PREFERENCE_DISCOPOP) check({6, 1, true, false, false, false, true, {term}});
    }
    check({17, 1, true, true, true, false, false, {{COLLIMATE_PREFERENCE_SIGMOID, 1, 0.3f, 0, 0, 0, 0, 0, 0}}});
    check({600, 2, true, false, true, true, false,
           {{COLLIMATE_PREFERENCE_SIGMOID, 1, 0.3f, 0.2f, 0, 0, 0, 0, 0},
            {COLLIMATE_PREFERENCE_SFT, 0.2f, 0, 0, 0, 0, 0, 0, 0},
            {COLLIMATE_PREFERENCE_NCA, 0.5f, 0.05f, 0, 0, 0, 0, 0, 0},
            {COLLIMATE_PREFERENCE_SLIC_HF, 0.5f, 0, 0, 0, 0, 2, 0.3f, 0}}});
    for (int divergence = 1; divergence <= COLLIMATE_DIVERGENCE_ALPHA; divergence++) {
        // a and b reach 30: their exponentials 1e13, whose sums with a sigmoid's are no longer exact to 1e-5
        const Term apo = {COLLIMATE_PREFERENCE_APO_ZERO, 1, 0.1f, 0, 0, 0, 0, 0, 0};
        check({17, 1, true, true, true, false, false,
               {{COLLIMATE_PREFERENCE_SIGMOID, 1, 0.1f, 0, 0, 0, 0, 0, 0}, {COLLIMATE_PREFERENCE_SFT, 0.2f, 0, 0, 0, 0, 0, 0, 0}},
               divergence});
        check({5, 1, true, false, false, false, false, {apo}, divergence});
    }
    first_step();
}

}  // namespace test
