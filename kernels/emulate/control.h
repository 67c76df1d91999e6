/* What a test steers in the emulator, for any language that can call C. */
#ifndef COLLIMATE_EMULATE_CONTROL_H
#define COLLIMATE_EMULATE_CONTROL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Order of blocks, warps and lanes: 0 is ascending, anything else shuffles. */
void collimate_emulate_set_seed(uint64_t seed);

/* The name and the number of launches of the kernel at `index`, 0 where there is none. The name lives as long as the
 * program. */
int32_t collimate_emulate_kernel(int64_t index, const char **name, int64_t *launches);

#ifdef __cplusplus
}
#endif

#endif
