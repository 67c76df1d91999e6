// kto_loss: single examples with a KL estimate, and the pairs' form with its KL detached and not.
#include "check.h"

namespace test {
namespace {

using Real = long double;

Real sigmoid(Real x) { return 1 / (1 + std::exp(-x)); }

bool near(double got, Real want, double relative, double absolute) {
    return std::fabs(got - want) <= relative * std::fabs(want) + absolute;
}

void singles(int count, double shift) {
    Guarded<float> policy(count), reference(count), weights(count), d(count), losses(count), rewards(count);
    Guarded<int> desirable(count);
    Guarded<double> metrics(COLLIMATE_KTO_METRICS), kl(2);
    Random random(count);
    Real sum = 0;
    for (int i = 0; i < count; i++) {
        policy[i] = float(-100 * random.uniform());
        reference[i] = float(policy[i] - 9 * random.normal() - shift);
        weights[i] = float(random.uniform());
        desirable[i] = random.below(2) * 5;
        sum += Real(policy[i]) - reference[i];
    }
    const collimate_kto_config config = {0.2f, 0.8f, 1.3f, 50};
    in_all_orders("kto_loss", [&] {
        for (auto *each : {&d, &losses, &rewards}) each->fill(-7);
        metrics.fill(0.5);
        kl[0] = 3, kl[1] = 2;
        int status = collimate_kto_kl_sum(kl.data(), policy.data(), reference.data(), count, stream);
        status |= collimate_kto_loss(d.data(), losses.data(), rewards.data(), metrics.data(), policy.data(), reference.data(),
                                     desirable.data(), weights.data(), kl.data(), &config, count, stream);
        expect(status == 0, "kto_loss returned %d", status);
        std::string text;
        for (auto *each : {&d, &losses, &rewards}) each->append_to(text);
        metrics.append_to(text);
        kl.append_to(text);
        return text;
    });
    expect(near(kl[0], sum + 3, 1e-6, 1e-5) && kl[1] == count + 2, "kto KL %.9g over %g", kl[0], kl[1]);
    const Real z0 = std::max<Real>(0, (sum + 3) / (count + 2)), beta = config.beta;
    Real total = 0;
    for (int i = 0; i < count; i++) {
        const Real r = Real(policy[i]) - reference[i], x = beta * (r - z0), slope = beta * sigmoid(x) * sigmoid(-x);
        const Real value = desirable[i] ? config.desirable_weight * sigmoid(-x) : config.undesirable_weight * sigmoid(x);
        const Real by = desirable[i] ? -config.desirable_weight * slope : config.undesirable_weight * slope;
        expect(near(losses[i], value, 1e-5, 1e-6), "kto example %d: loss %.9g, exact %.9Lg", i, losses[i], value);
        expect(near(d[i], by * weights[i] / 50, 1e-5, 1e-9), "kto example %d: dlogp %.9g", i, d[i]);
        expect(near(rewards[i], beta * r, 1e-6, 1e-6), "kto example %d: reward %.9g", i, rewards[i]);
        total += value * weights[i] / 50;
    }
    if (count) {
        expect(near(metrics[COLLIMATE_KTO_LOSS] - 0.5, total, 1e-5, 1e-6), "kto loss metric %.9g", metrics[COLLIMATE_KTO_LOSS]);
        expect(near(metrics[COLLIMATE_KTO_KL] - 0.5, z0, 1e-5, 1e-6), "kto KL metric %.9g", metrics[COLLIMATE_KTO_KL]);
        expect(metrics[COLLIMATE_KTO_DESIRABLE] + metrics[COLLIMATE_KTO_UNDESIRABLE] - 1 == count, "kto counts");
    }
    expect(d.intact() && losses.intact() && rewards.intact() && metrics.intact() && kl.intact(), "kto_loss wrote outside");
}

struct Paired {
    std::vector<Real> a, b, weights;
    collimate_kto_paired_config config;
    // With the KLs as given, or of a and b where they are NULL.
    Real loss(const Real *fixed) const {
        Real kl_w = 0, kl_l = 0, sum = 0;
        for (size_t i = 0; i < a.size(); i++) kl_w += a[i] / a.size(), kl_l += b[i] / b.size();
        kl_w = std::max<Real>(0, fixed ? fixed[0] : kl_w), kl_l = std::max<Real>(0, fixed ? fixed[1] : kl_l);
        for (size_t i = 0; i < a.size(); i++) {
            sum += weights[i] * (sigmoid(-config.desirable_beta * (a[i] - kl_l)) + sigmoid(-config.undesirable_beta * (kl_w - b[i])));
        }
        return sum / (2 * a.size());
    }
};

void pairs(int count, bool detach, bool given, double shift) {
    Guarded<float> lw(count * 2), rw(count), rl(count), weights(count), dw(count * 2), losses(count);
    Guarded<double> metrics(COLLIMATE_PREFERENCE_METRICS);
    Random random(count + detach);
    Paired exact;
    exact.config = {0.2f, 0.45f, 0.1f, 1, detach, double(std::max(count, 1))};
    Real fixed[2] = {};
    for (int i = 0; i < count; i++) {
        lw[2 * i] = float(-100 * random.uniform());
        lw[2 * i + 1] = float(-100 * random.uniform());
        rw[i] = float(lw[2 * i] - 5 * random.normal() - shift);
        rl[i] = float(lw[2 * i + 1] - 5 * random.normal() + shift);
        weights[i] = float(random.uniform());
        exact.a.push_back(Real(lw[2 * i]) - rw[i]);
        exact.b.push_back(Real(lw[2 * i + 1]) - rl[i]);
        exact.weights.push_back(weights[i]);
        fixed[0] += exact.a[i] / count, fixed[1] += exact.b[i] / count;
    }
    collimate_preference_batch batch{};
    batch.policy_chosen_logps = lw.data(), batch.policy_rejected_logps = lw.data() + 1;
    batch.reference_chosen_logps = rw.data(), batch.reference_rejected_logps = rl.data(), batch.weights = weights.data();
    batch.dchosen = dw.data(), batch.drejected = dw.data() + 1, batch.losses = losses.data(), batch.metrics = metrics.data();
    batch.pairs = count, batch.stride = 2, batch.reference_stride = 1;
    const double sums[3] = {double(fixed[0] * 7), double(fixed[1] * 7), 7};
    in_all_orders("kto_paired", [&] {
        dw.fill(-7);
        metrics.fill(0.5);
        const int status = collimate_kto_paired_loss(&batch, given ? sums : nullptr, &exact.config, stream);
        expect(status == 0, "kto_paired returned %d", status);
        std::string text;
        dw.append_to(text);
        metrics.append_to(text);
        return text;
    });
    const Real step = 1e-6L;
    // a difference takes as many steps as there are pairs: of many pairs some are asked
    for (int i = 0; i < 2 * count; i += count > 100 ? 37 : 1) {
        Paired up = exact, down = exact;
        (i % 2 ? up.b : up.a)[i / 2] += step;
        (i % 2 ? down.b : down.a)[i / 2] -= step;
        const Real want = (up.loss(detach ? fixed : nullptr) - down.loss(detach ? fixed : nullptr)) / (2 * step);
        expect(near(dw[i], want, 1e-5, 1e-8), "kto_paired P=%d detach=%d value %d: %.9g, exact %.9Lg", count, detach, i, dw[i], want);
    }
    if (count) expect(near(metrics[0] - 0.5, exact.loss(nullptr), 1e-5, 1e-6), "kto_paired loss %.9g", metrics[0] - 0.5);
    expect(dw.intact() && losses.intact() && metrics.intact(), "kto_paired wrote outside");
}

}  // namespace

void kto_loss() {
    for (int count : {0, 1, 3, 17, 513, 1100}) {
        singles(count, 4);
        singles(count, -4);
    }
    for (int count : {0, 1, 3, 17, 600}) {
        for (double shift : {-3.0, 0.0, 3.0}) {
            pairs(count, true, false, shift);
            pairs(count, true, true, shift);
            pairs(count, false, false, shift);
        }
    }
}

}  // namespace test
