// Runs the tests named on the command line, or all; then asks which kernels none of them launched.
#include "check.h"

#include <chrono>

int main(int count, char **arguments) {
    const struct {
        const char *name;
        void (*run)();
    } tests[] = {
        {"machine", test::planted_reports},         {"right_forms", test::planted_right_forms},
        {"launches", test::launches},
        {"sequence_sum", test::sequence_sum},       {"preference_loss", test::preference_loss},
        {"kto_loss", test::kto_loss},               {"gather_rows", test::gather_rows},
        {"token_logprobs", test::token_logprobs},     {"attention", test::attention},
        {"elementwise", test::elementwise},         {"rmsnorm", test::rmsnorm},
        {"rope", test::rope},                       {"swiglu", test::swiglu},
        {"adamw", test::adamw},                     {"sampling", test::sampling},
        {"ppo_loss", test::ppo_loss},               {"aot_loss", test::aot_loss},
        {"kv_cache", test::kv_cache},               {"dropout", test::dropout},
    };
    if (count == 3 && !std::strcmp(arguments[1], "planted")) return test::planted(arguments[2]);
    if (const char *text = std::getenv("COLLIMATE_TEST_ORDERS")) test::orders = std::atoi(text);
    test::captures = std::getenv("COLLIMATE_TEST_CAPTURE") != nullptr;
    for (const auto &each : tests) {
        bool wanted = count < 2;
        for (int i = 1; i < count; i++) wanted |= !std::strcmp(arguments[i], each.name);
        if (!wanted) continue;
        const auto start = std::chrono::steady_clock::now();
        const int before = test::failures, checks = test::checks;
        each.run();
        const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
        std::printf("%-16s %9d checks, %d failed, %.1f s\n", each.name, test::checks - checks, test::failures - before,
                    spent.count());
        std::fflush(stdout);
    }
    if (count < 2) {
        for (const auto *kernel = collimate::emulate::kernels(); kernel; kernel = kernel->next) {
            test::expect(kernel->launches > 0, "no test launched %s", kernel->name.c_str());
            const bool ours = kernel->name.rfind("test::", 0) != 0;  // not one of the tests' own
            test::expect(!test::captures || !ours || kernel->captures > 0, "no capture recorded %s", kernel->name.c_str());
        }
    }
    // for scripts/kernel-resources.sh: the dynamic shared memory of each kernel
    if (const char *path = std::getenv("COLLIMATE_TEST_KERNELS")) {
        std::FILE *file = std::fopen(path, "w");
        if (!test::expect(file != nullptr, "cannot write %s", path)) return 1;
        for (const auto *kernel = collimate::emulate::kernels(); kernel; kernel = kernel->next) {
            std::fprintf(file, "%s\t%zu\n", kernel->name.c_str(), kernel->shared_bytes);
        }
        std::fclose(file);
    }
    return test::failures != 0;
}
