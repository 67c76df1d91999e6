// A CUDA block on a host thread: every thread of the block is a fiber, and barriers are where fibers switch.
// The kernels see this file through the stand-in <cuda_runtime.h>; tests steer it through the functions at the end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace collimate::emulate {

// Where in a kernel a barrier or a collective stands.
struct Site {
    const char *file;
    int line;
};

// An asynchronous copy that its thread has not waited for.
struct PendingCopy {
    void *shared;
    const void *global;
    int bytes;
    int copied;  // the rest is filled with zeros
    int group;
};

constexpr int kWarp = 32;
constexpr int kSlotBytes = 64;
constexpr int kPendingCopies = 128;

// What a kernel may ask about the thread it runs in.
struct Thread {
    dim3 thread, block, block_size, grid_size;
    int lane;
    unsigned char *shared;
    PendingCopy *copies;
    int copy_count, copy_group;
};

extern __thread Thread *current;

// Every fiber of the block arrives here before one goes on.
void block_barrier(Site site);

// Each lane leaves `bytes` bytes; returns the warp's 32 slots of kSlotBytes once all living lanes have come.
// A lane that has returned leaves a slot of NaN.
const unsigned char *warp_exchange(const void *value, size_t bytes, unsigned mask, Site site);

// A lane's part of c [16, 8] += a [16, 16] b [16, 8], as mma.sync spreads it.
struct Product {
    float c[4], a[8], b[4];
};

// Once all lanes have come, the first to go on computes the tile for all of them.
void warp_multiply_add(Product &product, Site site);

// What __threadfence means to the thread sanitizer.
void fence();

// Stops the launch with a message: for misuse that the hardware would answer with undefined behaviour.
[[noreturn]] void misuse(const char *what, Site site);

// A kernel that some launch() names, linked into the program; `launches` counts its launches, `shared_bytes` is the
// most dynamic shared memory that one of them asked for.
struct Kernel {
    std::string name;
    std::int64_t launches = 0;
    size_t shared_bytes = 0;
    Kernel *next;
    explicit Kernel(const char *pretty_function);
};

struct Launch {
    dim3 grid, block;
    size_t shared_bytes;
    void (*body)(const void *);
    const void *arguments;
};

// The kernel that the next run() on this host thread launches.
void name_next(Kernel &kernel);
// Runs the launch to its end; 0, or the number of a cudaError.
int run(const Launch &launch);

// For tests. Order of blocks, warps and lanes: 0 is ascending, anything else shuffles. COLLIMATE_EMULATE_SEED sets the first.
void set_seed(std::uint64_t seed);
// The last report of a barrier that some threads did not reach, or of a misuse; empty if none since the last call.
std::string take_report();
// All kernels of the program, a linked list.
const Kernel *kernels();

}  // namespace collimate::emulate
