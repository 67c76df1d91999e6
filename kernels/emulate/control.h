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

/* One operation of a record: a kernel's launch, or memory that is filled. */
typedef struct {
    const char *kernel; /* its name, which lives as long as the program; NULL: memory is filled, and the rest is 0 */
    uint32_t grid[3], block[3];
    int64_t shared_bytes;
} collimate_emulate_operation;

/* Begins to record what the calling thread queues on `stream`, as a CUDA graph's capture would, while it runs as ever.
 * 0, or a cudaError where this thread records already. */
int32_t collimate_emulate_capture_begin(void *stream);

/* Tells the calling thread's record of a call that CUDA forbids during a capture: an allocation, a wait, a copy from or
 * to the host's unlocked memory. `what` is copied; the first one stays. Nothing where the thread records nothing. */
void collimate_emulate_capture_forbids(const char *what);

#define COLLIMATE_EMULATE_BROKEN_CAPTURE 901 /* cudaErrorStreamCaptureInvalidated */
#define COLLIMATE_EMULATE_NO_CAPTURE 903     /* cudaErrorStreamCaptureUnmatched */

/* Ends the record and writes the number of its operations. 0; COLLIMATE_EMULATE_NO_CAPTURE where this thread records
 * nothing on `stream`; or COLLIMATE_EMULATE_BROKEN_CAPTURE where CUDA would have given up: the operations are there all the
 * same, and *fault names the first call that was forbidden. *fault is NULL otherwise, and lives until this thread begins
 * another record. */
int32_t collimate_emulate_capture_end(void *stream, int64_t *operations, const char **fault);

/* The operation at `index` of the record that this thread ended last, in the order of the calls; 0 where there is none. */
int32_t collimate_emulate_captured(int64_t index, collimate_emulate_operation *operation);

#ifdef __cplusplus
}
#endif

#endif
