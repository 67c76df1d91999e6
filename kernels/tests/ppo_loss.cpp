// gae, whiten and ppo_loss against float64: sequences around a warp's length, both sides of every clip.
#include "check.h"

namespace test {
namespace {

void check_gae(double gamma, double lambda) {
    std::vector<int> cu = {2};
    for (const int length : {0, 1, 31, 32, 33, 0, 64, 65, 500}) cu.push_back(cu.back() + length);
    const int tokens = cu.back() + 3, sequences = int(cu.size()) - 1;
    Guarded<float> rewards(tokens), values(tokens), advantages(tokens), returns(tokens);
    Random random(5);
    for (int t = 0; t < tokens; t++) rewards[t] = float(random.normal()), values[t] = float(random.normal());
    in_all_orders("gae", [&] {
        advantages.fill(7);
        returns.fill(7);
        const int status = collimate_gae(advantages.data(), returns.data(), rewards.data(), values.data(), cu.data(), sequences,
                                         gamma, lambda, stream);
        expect(status == 0, "gae returned %d", status);
        std::string bytes;
        advantages.append_to(bytes);
        returns.append_to(bytes);
        return bytes;
    });
    for (int s = 0; s < sequences; s++) {
        double next_value = 0, next = 0;
        for (int t = cu[s + 1] - 1; t >= cu[s]; t--) {
            next = rewards[t] + gamma * next_value - values[t] + gamma * lambda * next;
            next_value = values[t];
            expect(std::fabs(advantages[t] - next) <= 1e-7 * (1 + std::fabs(next)), "advantage %d: %g, exact %g", t, advantages[t], next);
            const double exact = next + values[t];
            expect(std::fabs(returns[t] - exact) <= 1e-7 * (1 + std::fabs(exact)), "return %d: %g, exact %g", t, returns[t], exact);
        }
    }
    expect(advantages[0] == 7 && returns[tokens - 1] == 7, "wrote a token of no sequence");
    expect(advantages.intact() && returns.intact(), "gae wrote outside");
}

void check_whiten(int count) {
    Guarded<float> x(count), before(count);
    Random random(count);
    double mean = 0, variance = 0;
    for (int i = 0; i < count; i++) mean += before[i] = float(3 + random.normal());
    mean /= count;
    for (int i = 0; i < count; i++) variance += (before[i] - mean) * (before[i] - mean) / count;
    in_all_orders("whiten", [&] {
        std::memcpy(x.data(), before.data(), count * sizeof(float));
        expect(collimate_whiten(x.data(), count, stream) == 0, "whiten failed");
        std::string bytes;
        x.append_to(bytes);
        return bytes;
    });
    for (int i = 0; i < count; i++) {
        const double exact = (before[i] - mean) / std::sqrt(variance + 1e-8);
        expect(std::fabs(x[i] - exact) <= 1e-6 * (1 + std::fabs(exact)), "white %d: %g, exact %g", i, x[i], exact);
    }
    expect(x.intact(), "whiten wrote outside");
}

// What a call of the loss is of.
struct Parts {
    bool policy, reference, weights, values;
};

void check_loss(int tokens, Parts parts) {
    Guarded<float> columns[8] = {Guarded<float>(tokens), Guarded<float>(tokens), Guarded<float>(tokens), Guarded<float>(tokens),
                                 Guarded<float>(tokens), Guarded<float>(tokens), Guarded<float>(tokens), Guarded<float>(tokens)};
    auto &[logps, old_logps, advantages, reference, weights, values, old_values, returns] = columns;
    Guarded<float> dlogps(tokens), dvalues(tokens);
    Guarded<double> metrics(COLLIMATE_PPO_METRICS);
    Random random(tokens);
    for (auto &column : columns) {
        for (int i = 0; i < tokens; i++) column[i] = float(0.3 * random.normal());
    }
    if (tokens > 6) logps[5] = 25, advantages[5] = -1, reference[6] = 30;
    const collimate_ppo_config config = {0.2f, 0.07f, 0.2f, 0.3f, 40};
    const auto given = [](Guarded<float> &column, bool is) { return is ? column.data() : nullptr; };
    const collimate_ppo_batch batch = {given(logps, parts.policy),
                                       given(old_logps, parts.policy),
                                       given(advantages, parts.policy),
                                       given(reference, parts.policy && parts.reference),
                                       given(weights, parts.policy && parts.weights),
                                       given(values, parts.values),
                                       given(old_values, parts.values),
                                       given(returns, parts.values),
                                       given(dlogps, parts.policy),
                                       given(dvalues, parts.values),
                                       metrics.data(),
                                       tokens};
    in_all_orders("ppo_loss", [&] {
        metrics.fill(0.5);
        dlogps.fill(7);
        dvalues.fill(7);
        const int status = collimate_ppo_loss(&batch, &config, stream);
        expect(status == 0, "ppo_loss returned %d", status);
        std::string bytes;
        dlogps.append_to(bytes);
        dvalues.append_to(bytes);
        metrics.append_to(bytes);
        return bytes;
    });
    double exact[COLLIMATE_PPO_METRICS] = {0.5, 0.5, 0.5, 0.5, 0.5, 0.5};
    const auto clip = [](double x, double low, double high) { return std::min(std::max(x, low), high); };
    for (int i = 0; i < tokens; i++) {
        exact[COLLIMATE_PPO_TOKENS] += 1;
        if (parts.policy) {
            const double log_ratio = double(logps[i]) - old_logps[i], a = advantages[i];
            const double ratio = std::exp(clip(log_ratio, -20, 20)), plain = -a * ratio, limited = -a * clip(ratio, 0.8, 1.2);
            double loss = std::max(plain, limited), dlogp = limited > plain || std::fabs(log_ratio) > 20 ? 0 : plain;
            if (parts.reference) {
                const double k = double(logps[i]) - reference[i], held = std::max(k, -20.0);
                loss += 0.07 * (std::expm1(-held) + held);
                dlogp += 0.07 * (k < -20 ? 0 : -std::expm1(-k));
            }
            const double weight = parts.weights ? weights[i] : 1;
            const double want = weight * dlogp / 40;
            expect(std::fabs(dlogps[i] - want) <= 1e-6 * (1 + std::fabs(dlogp)), "dlogp %d: %g, exact %g", i, dlogps[i], want);
            exact[COLLIMATE_PPO_POLICY_LOSS] += weight * loss;
            exact[COLLIMATE_PPO_RATIO] += ratio;
            exact[COLLIMATE_PPO_POLICY_CLIPPED] += limited > plain;
        } else {
            expect(dlogps[i] == 7, "wrote to what was not given");
        }
        if (parts.values) {
            const double error = double(values[i]) - returns[i], moved = double(values[i]) - old_values[i];
            const double held = old_values[i] + clip(moved, -0.2, 0.2) - returns[i];
            const bool clipped = std::fabs(moved) > 0.2 && held * held > error * error;
            const double dvalue = 0.3 * (clipped ? 0 : error);
            expect(std::fabs(dvalues[i] - dvalue / 40) <= 1e-7, "dvalue %d: %g, exact %g", i, dvalues[i], dvalue / 40);
            exact[COLLIMATE_PPO_VALUE_LOSS] += 0.5 * std::max(error * error, held * held);
            exact[COLLIMATE_PPO_VALUE_CLIPPED] += clipped;
        } else {
            expect(dvalues[i] == 7, "wrote to what was not given");
        }
    }
    for (int m = 0; m < COLLIMATE_PPO_METRICS; m++) {
        expect(std::fabs(metrics[m] - exact[m]) <= 1e-6 * (tokens + std::fabs(exact[m])), "metric %d: %g, exact %g", m, metrics[m],
               exact[m]);
    }
    expect(dlogps.intact() && dvalues.intact() && metrics.intact(), "ppo_loss wrote outside");
}

}  // namespace

void ppo_loss() {
    check_gae(1, 0.95);
    check_gae(0.9, 1);
    check_gae(0.99, 0);
    for (const int count : {1, 7, 1500}) check_whiten(count);
    for (const int tokens : {0, 1, 17, 513, 1100}) {
        check_loss(tokens, {true, false, false, true});
        check_loss(tokens, {true, true, true, false});
    }
    check_loss(33, {true, false, true, false});
    check_loss(33, {false, false, false, true});
    expect(collimate_whiten(nullptr, 0, nullptr) == 0, "nothing to whiten");
}

}  // namespace test
