#include "control.h"

#include "machine.h"

namespace emulate = collimate::emulate;

namespace {

thread_local emulate::Record last_record;

}  // namespace

void collimate_emulate_set_seed(uint64_t seed) { emulate::set_seed(seed); }

int32_t collimate_emulate_kernel(int64_t index, const char **name, int64_t *launches) {
    const emulate::Kernel *kernel = emulate::kernels();
    while (kernel && index-- > 0) kernel = kernel->next;
    if (!kernel) return 0;
    *name = kernel->name.c_str();
    *launches = __atomic_load_n(&kernel->launches, __ATOMIC_RELAXED);
    return 1;
}

int32_t collimate_emulate_capture_begin(void *stream) {
    const int status = emulate::begin_capture(stream, emulate::CaptureMode::kRun);
    if (status == 0) last_record = {};
    return status;
}

void collimate_emulate_capture_forbids(const char *what) { emulate::outside_capture(what); }

int32_t collimate_emulate_capture_end(void *stream, int64_t *operations, const char **fault) {
    *operations = 0;
    *fault = nullptr;
    const int status = emulate::end_capture(stream, &last_record);
    if (status == COLLIMATE_EMULATE_NO_CAPTURE) return status;
    *operations = int64_t(last_record.operations.size());
    if (!last_record.fault.empty()) *fault = last_record.fault.c_str();
    return status;
}

int32_t collimate_emulate_captured(int64_t index, collimate_emulate_operation *operation) {
    if (index < 0 || index >= int64_t(last_record.operations.size())) return 0;
    const emulate::Operation &from = last_record.operations[size_t(index)];
    *operation = {};
    if (!from.kernel) return 1;
    const dim3 &grid = from.launch.grid, &block = from.launch.block;
    *operation = {from.kernel->name.c_str(), {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, int64_t(from.launch.shared_bytes)};
    return 1;
}
