// global_norm and adamw: parts, gaps and unaligned values; ranges of all shapes, a clip, a broken norm.
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
                                                 workspace.size(), nullptr);
        expect(status == 0, "global_norm returned %d", status);
        std::string bytes;
        norm.append_to(bytes);
        return bytes;
    });
    const double exact = std::sqrt(squares);
    expect(std::fabs(norm[0] - exact) <= 1e-13 * exact, "norm %.17g, exact %.17g", norm[0], exact);
    expect(norm.intact() && workspace.intact(), "global_norm wrote outside");
}

template <class T>
void check_step(int count, int shift, double max_grad_norm, bool narrow) {
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
    norm[0] = 3;
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
                               ranges.data(), &config, ranges.size(), begin, end, Of<T>::dtype, error.data(), nullptr);
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
}

}  // namespace

void adamw() {
    all_cases<float>();
    all_cases<__nv_bfloat16>();
    all_cases<__half>();
}

}  // namespace test
