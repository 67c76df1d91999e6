// aot_loss: both forms against a sort in long double, alone and as a further loss of a mixture.
#include "check.h"

#include <algorithm>
#include <numeric>

namespace test {
namespace {

using Real = long double;

Real softplus(Real x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }
Real sigmoid(Real x) { return 1 / (1 + std::exp(-x)); }

bool near(double got, Real want, double relative, double absolute) {
    return std::fabs(got - want) <= relative * std::fabs(want) + absolute;
}

std::vector<int> order(const std::vector<Real> &values) {
    std::vector<int> places(values.size());
    std::iota(places.begin(), places.end(), 0);
    std::stable_sort(places.begin(), places.end(), [&](int i, int j) { return values[i] < values[j]; });
    return places;
}

void check(int count, bool unpaired, bool adds) {
    Guarded<float> logps(count * 2), reference(count * 2), weights(count), d(count * 2), losses(count), rewards(count);
    Guarded<double> metrics(COLLIMATE_PREFERENCE_METRICS);
    Random random(count * 4 + unpaired * 2 + adds);
    std::vector<Real> upper, lower;
    for (int i = 0; i < count; i++) {
        for (int side = 0; side < 2; side++) {
            // quarters, and few of them: ranks have ties, and differences are exact
            logps[2 * i + side] = -0.25f * float(random.below(400));
            reference[2 * i + side] = logps[2 * i + side] + 0.25f * float(random.below(80)) - 10.0f;
        }
        weights[i] = float(random.uniform());
        const Real lw = logps[2 * i], ll = logps[2 * i + 1], rw = reference[2 * i], rl = reference[2 * i + 1];
        upper.push_back(unpaired ? lw - rw : lw - ll);
        lower.push_back(unpaired ? ll - rl : rw - rl);
    }
    collimate_preference_batch batch{};
    batch.policy_chosen_logps = logps.data(), batch.policy_rejected_logps = logps.data() + 1;
    batch.reference_chosen_logps = reference.data(), batch.reference_rejected_logps = reference.data() + 1;
    batch.weights = weights.data(), batch.dchosen = d.data(), batch.drejected = d.data() + 1;
    batch.losses = losses.data(), batch.chosen_rewards = rewards.data(), batch.metrics = metrics.data();
    batch.pairs = count, batch.stride = batch.reference_stride = 2, batch.adds = adds;
    const collimate_aot_config config = {0.2f, 0.1f, 0.7f, unpaired, 40};
    const int64_t bytes = collimate_aot_loss_workspace(count);
    Guarded<float> workspace(bytes / 4);
    in_all_orders("aot_loss", [&] {
        for (auto *each : {&d, &losses, &rewards}) each->fill(0.5f);
        metrics.fill(0.5);
        const int status = collimate_aot_loss(&batch, &config, workspace.data(), bytes, stream);
        expect(status == 0, "aot_loss returned %d", status);
        std::string text;
        for (auto *each : {&d, &losses, &rewards}) each->append_to(text);
        metrics.append_to(text);
        return text;
    });
    std::vector<Real> want(2 * count), loss(count);
    const std::vector<int> above = order(upper), below = order(lower);
    const Real step = Real(config.weight) / 40, beta = config.beta;
    Real total = 0;
    for (int k = 0; k < count; k++) {
        const int i = above[k], j = below[k];
        const Real h = beta * (upper[i] - lower[j]), slope = step * weights[i] * beta * sigmoid(-h);
        loss[i] = config.weight * softplus(-h);
        total += step * weights[i] * softplus(-h);
        want[2 * i] -= slope;
        want[2 * (unpaired ? j : i) + 1] += slope;
    }
    const Real before = adds ? 0.5 : 0;
    for (int i = 0; i < 2 * count; i++) {
        expect(near(d[i], want[i] + before, 1e-5, 1e-8), "aot P=%d unpaired=%d value %d: %.9g", count, unpaired, i, d[i]);
    }
    for (int i = 0; i < count; i++) {
        expect(near(losses[i], loss[i] + before, 1e-5, 1e-6), "aot P=%d pair %d: loss %.9g", count, i, losses[i]);
        const Real reward = Real(config.reward_scale) * (Real(logps[2 * i]) - reference[2 * i]);
        expect(near(rewards[i], adds ? 0.5L : reward, 1e-6, 1e-6), "aot pair %d: reward %.9g", i, rewards[i]);
    }
    if (count) {
        expect(near(metrics[COLLIMATE_PREFERENCE_LOSS] - 0.5, total, 1e-5, 1e-6), "aot loss metric %.9g", metrics[0]);
        expect(metrics[COLLIMATE_PREFERENCE_PAIRS] == 0.5 + (adds ? 0 : count), "aot counts pairs");
    }
    expect(d.intact() && losses.intact() && rewards.intact() && metrics.intact() && workspace.intact(), "aot wrote outside");
}

}  // namespace

void aot_loss() {
    for (int count : {0, 1, 3, 17, 530}) {
        for (bool unpaired : {false, true}) {
            check(count, unpaired, false);
            check(count, unpaired, true);
        }
    }
}

}  // namespace test
