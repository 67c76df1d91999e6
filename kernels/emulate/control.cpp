#include "control.h"

#include "machine.h"

void collimate_emulate_set_seed(uint64_t seed) { collimate::emulate::set_seed(seed); }

int32_t collimate_emulate_kernel(int64_t index, const char **name, int64_t *launches) {
    const collimate::emulate::Kernel *kernel = collimate::emulate::kernels();
    while (kernel && index-- > 0) kernel = kernel->next;
    if (!kernel) return 0;
    *name = kernel->name.c_str();
    *launches = __atomic_load_n(&kernel->launches, __ATOMIC_RELAXED);
    return 1;
}
