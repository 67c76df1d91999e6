// global_norm and adamw: parts, gaps and unaligned values; ranges of all shapes, a clip, a broken norm.
#include <type_traits>

#include "check.h"

namespace test {
namespace {

template <class T>
void check_norm(int rows, int columns, int pad, int shift) {
    const int stride = columns + pad;
    Guarded<T> x(size_t(rows) * stride, shift);
    Guarded<double> norm(1);
    Random random(rows + columns);
    double squares = 0;
    for (size_t i = 0; i < x.size(); i++) {
        const bool inside = int(i % stride) < columns;
        x[i] = Of<T>::from(inside ? random.normal() : NAN);
        if (inside) squares += Of<T>::wide(x[i]) * Of<T>::wide(x[i]);
    }
    Guarded<char> workspace(collimate_global_norm_workspace(rows, columns, stride));
    in_all_orders("global_norm", [&] {
        const int status = collimate_global_norm(norm.data(), x.data(), rows, columns, stride, Of<T>::dtype, workspace.data(),
                                                 workspace.size(), stream);
        expect(status == 0, "global_norm returned %d", status);
        std::string bytes;
        norm.append_to(bytes);
        return bytes;
    });
    const double exact = std::sqrt(squares);
    expect(std::fabs(norm[0] - exact) <= 1e-13 * exact, "norm %.17g, exact %.17g", norm[0], exact);
    expect(norm.intact() && workspace.intact(), "global_norm wrote outside");
}

// A step of one value with the roundings of the CPU's code, one after the other.
void step_by_hand(const collimate_adamw_config &c, float scale, bool decays, float grad, float &weight, float &m, float &v) {
    const double correction1 = 1 - std::pow(c.beta1, double(c.step)), correction2 = 1 - std::pow(c.beta2, double(c.step));
    const float keep = decays ? float(1 - c.lr * c.weight_decay) : 1.0f, root2 = float(std::sqrt(correction2));
    const float g = grad * scale, lerp2_g = float(1 - c.beta2) * g, kept_v = v * float(c.beta2);
    m = std::fma(float(1 - c.beta1), g - m, m);
    v = std::fma(lerp2_g, g, kept_v);
    const float denominator = std::sqrt(v) / root2 + float(c.eps), kept = weight * keep;
    const float rise = float(-(c.lr / correction1)) * m;
    weight = kept + rise / denominator;
}

template <class T>
void check_step(int count, int shift, double max_grad_norm, bool narrow, double given_norm = 3) {
    Guarded<float> master(count, shift), m(count, shift), v(count, shift), grads(count, shift);
    Guarded<T> weights(count, shift);
    Guarded<double> norm(1);
    Guarded<int> error(3);
    std::vector<collimate_adamw_range> ranges;
    for (int at = 2, i = 0; at < count; i++) {  // some touch, some leave a gap
        const int end = std::min(count, at + 1 + i * 7 % 41);
        ranges.push_back({at, end, i % 2});
        at = end + (i % 3 == 0 ? 3 : 0);
    }
    const int begin = ranges.empty() ? 0 : int(ranges.front().start), end = ranges.empty() ? 0 : int(ranges.back().end);
    Random random(count);
    for (int i = 0; i < count; i++) grads[i] = float(random.normal());
    norm[0] = given_norm;
    const collimate_adamw_config config = {1e-2, 0.9, 0.999, 1e-8, 0.1, max_grad_norm, 3};
    const auto reset = [&] {
        Random again(count + 1);
        for (int i = 0; i < count; i++) {
            master[i] = float(again.normal()), m[i] = float(again.normal()), v[i] = float(again.uniform());
        }
        weights.fill(Of<T>::from(7));
        error.fill(0);
    };
    const auto run = [&] {
        return collimate_adamw(narrow ? weights.data() : nullptr, master.data(), m.data(), v.data(), grads.data(), norm.data(),
                               ranges.data(), &config, ranges.size(), begin, end, Of<T>::dtype, error.data(), stream);
    };
    const auto bytes_of_all = [&] {
        std::string bytes;
        for (auto *values : {&master, &m, &v}) values->append_to(bytes);
        weights.append_to(bytes);
        return bytes;
    };
    reset();
    const std::string before = bytes_of_all();
    const Guarded<float> *all[] = {&master, &m, &v};
    std::vector<double> old[3];
    for (int k = 0; k < 3; k++) old[k].assign(all[k]->data(), all[k]->data() + count);
    in_all_orders("adamw", [&] {
        reset();
        const int status = run();
        expect(status == 0, "adamw returned %d", status);
        return bytes_of_all();
    });
    std::vector<int> decays(count, -1);
    for (const auto &range : ranges) {
        for (int64_t i = range.start; i < range.end; i++) decays[i] = int(range.decay);
    }
    const double scale = max_grad_norm == 0 ? 1 : std::min(1.0, max_grad_norm / (norm[0] + 1e-6));
    for (int i = 0; i < count; i++) {
        const bool outside = decays[i] < 0;
        float bits[3] = {float(old[0][i]), float(old[1][i]), float(old[2][i])};
        if (!outside) step_by_hand(config, float(scale), decays[i] == 1, grads[i], bits[0], bits[1], bits[2]);
        expect(master[i] == bits[0] && m[i] == bits[1] && v[i] == bits[2], "value %d has not the CPU's bits: %.9g %.9g %.9g", i,
               master[i] - bits[0], m[i] - bits[1], v[i] - bits[2]);
        const double g = grads[i] * scale, exact_m = outside ? old[1][i] : 0.9 * old[1][i] + 0.1 * g;
        const double exact_v = outside ? old[2][i] : 0.999 * old[2][i] + 0.001 * g * g;
        const double root = std::sqrt(exact_v / (1 - std::pow(0.999, 3))) + 1e-8, kept = decays[i] == 1 ? 1 - 1e-3 : 1;
        const double exact = outside ? old[0][i] : old[0][i] * kept - 1e-2 * exact_m / (1 - std::pow(0.9, 3)) / root;
        expect(std::fabs(m[i] - exact_m) <= 3e-7 && std::fabs(v[i] - exact_v) <= 3e-7, "moments at %d", i);
        expect(std::fabs(master[i] - exact) <= 1e-6 * (1 + std::fabs(exact)), "weight %d: %.9g, exact %.9g", i, master[i], exact);
        const double want = outside || !narrow ? 7 : Of<T>::wide(Of<T>::from(master[i]));
        expect(Of<T>::wide(weights[i]) == want, "rounded weight %d", i);
        expect(!outside || (master[i] == old[0][i] && m[i] == old[1][i]), "moved %d, which is in no range", i);
    }
    for (auto *values : {&master, &m, &v}) expect(values->intact(), "adamw wrote outside");
    expect(weights.intact() && error[0] == 0, "adamw wrote outside");
    if (ranges.empty()) return;
    for (const double broken : {double(NAN), double(INFINITY)}) {
        reset();
        norm[0] = broken;
        expect(run() == 0 && bytes_of_all() == before, "a broken norm moved something");
        expect(error[0] == COLLIMATE_ERROR_NORM && error[1] == 3, "error word of a broken norm");
    }
}

// Ranges that meet, or leave a gap of one, at every place that a thread's chunk, a chunk's inside, and a block end at; the
// weights of neighbours decay differently, and each must have its own range's bits.
template <class T>
void meeting_ranges() {
    const int chunk = std::is_same_v<T, float> ? 4 : 8, block = 256 * chunk, count = 3 * block + chunk + 3;
    for (const int gap : {0, 1, chunk}) {
        std::vector<collimate_adamw_range> ranges;
        const int ends[] = {chunk - 1, chunk, 3 * chunk, 3 * chunk + 1, block - chunk, block - 1, block, block + 1,
                            2 * block, 2 * block + chunk, 3 * block, 3 * block + chunk, count};
        int start = 0;
        for (const int end : ends) {
            if (end > start) ranges.push_back({start, end, int(ranges.size() % 2)});
            start = end + gap;
        }
        Guarded<float> master(count), m(count), v(count), grads(count);
        Guarded<T> weights(count);
        const double norm = 0.5;
        const collimate_adamw_config config = {1e-2, 0.9, 0.999, 1e-8, 0.5, 1, 2};
        Random random(count + gap);
        for (int i = 0; i < count; i++) {
            master[i] = float(1 + random.uniform()), grads[i] = float(random.normal());
            m[i] = float(random.normal()), v[i] = float(random.uniform());
        }
        std::vector<float> want[3];
        const Guarded<float> *all[] = {&master, &m, &v};
        for (int k = 0; k < 3; k++) want[k].assign(all[k]->data(), all[k]->data() + count);
        for (const auto &range : ranges) {
            for (int64_t i = range.start; i < range.end; i++) {
                step_by_hand(config, 1, range.decay != 0, grads[i], want[0][i], want[1][i], want[2][i]);
            }
        }
        const int status = collimate_adamw(weights.data(), master.data(), m.data(), v.data(), grads.data(), &norm, ranges.data(),
                                           &config, ranges.size(), 0, count, Of<T>::dtype, nullptr, nullptr);
        expect(status == 0, "adamw of meeting ranges returned %d", status);
        for (int k = 0; k < 3; k++) {
            for (int i = 0; i < count; i++) {
                if (!expect((*all[k])[i] == want[k][i], "%s ranges with gaps of %d: value %d of arena %d", Of<T>::name, gap, i, k)) break;
            }
        }
    }
}

template <class T>
void all_cases() {
    check_norm<T>(0, 3, 0, 0);
    check_norm<T>(3, 5, 0, 0);
    check_norm<T>(9, 64, 8, 0);
    check_norm<T>(9, 24, 1, 1);
    check_norm<T>(1, 2 * 65536 + 5, 0, 0);
    for (const int count : {0, 3, 100, 5000}) {
        check_step<T>(count, 0, 1, true);
        check_step<T>(count, 1, 0, true);
    }
    check_step<T>(3000, 0, 10, false);
    check_step<T>(100, 0, 2e-6, true, 3e-6);  // where what keeps the clip from a division by 0 is seen
    meeting_ranges<T>();
}

}  // namespace

void adamw() {
    all_cases<float>();
    all_cases<__nv_bfloat16>();
    all_cases<__half>();
}

}  // namespace test
