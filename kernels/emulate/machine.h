// A CUDA block on a host thread: every thread of the block is a fiber, and barriers are where fibers switch.
// The kernels see this file through the stand-in <cuda_runtime.h>; tests steer it through the functions at the end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

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

// All living lanes come to one place. What they wrote before is then ordered before what any of them reads after.
void warp_barrier(unsigned mask, Site site);

// Each lane leaves `bytes` bytes; returns the warp's 32 slots of kSlotBytes once all living lanes have come.
// A lane that has returned leaves a slot of NaN. As on the device it orders no memory: a kernel that counts on that races.
const unsigned char *warp_exchange(const void *value, size_t bytes, unsigned mask, Site site);

// Bytes of a lane's slot, from `offset` on. The machine's own memory, so that no sanitizer may watch who reads it.
void read_slot(void *to, const unsigned char *slots, int lane, size_t offset, size_t bytes);

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

// A kernel that some launch() names, linked into the program; `launches` counts its launches, `captures` those that a
// capture recorded, `shared_bytes` is the most dynamic shared memory that one of them asked for.
struct Kernel {
    std::string name;
    std::int64_t launches = 0, captures = 0;
    size_t shared_bytes = 0;
    Kernel *next;
    explicit Kernel(const char *pretty_function);
};

struct Launch {
    dim3 grid, block;
    size_t shared_bytes;
    const void *function;  // the kernel's address, which its attributes hang on
    void (*body)(const void *);
    std::shared_ptr<const void> arguments;  // by value, so that a record outlives the call
};

// The kernel that the next launch() on this host thread launches.
void name_next(Kernel &kernel);
// Runs the launch to its end, or records it where the thread captures; 0, or the number of a cudaError.
int launch(const Launch &launch, void *stream);
// The same for memory that is filled with a byte.
int fill(void *memory, int value, size_t bytes, void *stream);

// --- graph capture, for tests. Stricter than CUDA: only the thread that began it may add to it, and on one stream.

enum class CaptureMode {
    kHold,  // recorded and not run, as CUDA does; the stream must not be the default one, which CUDA cannot capture
    kRun,   // recorded, and run at once as well
};

struct Operation {
    void *stream;
    Kernel *kernel;  // NULL: memory that is filled
    Launch launch;
    std::function<int()> run;
};

// What a capture recorded; `fault` names the first call that CUDA forbids during one, or that its graph would lose.
struct Record {
    std::vector<Operation> operations;
    std::string fault;
};

int begin_capture(void *stream, CaptureMode mode);
int end_capture(void *stream, Record *record);
// Runs what was recorded, in its order.
int replay(const Record &record);
// Tells of a call that a capture forbids: an allocation, a wait, a copy from or to memory that is not locked. 0 where
// this thread captures nothing, else the cudaError to return.
int outside_capture(const char *call);

// --- devices: a thread's current one, and the limits of dynamic shared memory that each keeps for each kernel

constexpr int kDevices = 2;
constexpr int kSharedWithoutAttribute = 48 << 10;
// A block may have no more than this of the GPUs of compute capability 8.6, 8.9 and 12.0, which have the least.
constexpr int kSharedBytesOfBlock = 99 << 10;

int set_device(int device);
int device();
// The device's context begins anew: its kernels have no attributes any more.
void reset_device();
int set_shared_limit(const void *function, int bytes);
int shared_limit(const void *function);

// The sanitizer that the kernels are compiled with, for tests that differ by it.
enum class Sanitizer { kNone, kAddress, kUndefined, kThread };
Sanitizer sanitizer();

// For tests. Order of blocks, warps and lanes: 0 is ascending, anything else shuffles. COLLIMATE_EMULATE_SEED sets the first.
void set_seed(std::uint64_t seed);
// The last report of a barrier that some threads did not reach, or of a misuse; empty if none since the last call.
std::string take_report();
// All kernels of the program, a linked list.
const Kernel *kernels();

}  // namespace collimate::emulate
