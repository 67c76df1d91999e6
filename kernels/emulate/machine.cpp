// The scheduler of machine.h. Never compiled with a sanitizer: it tells them what happened instead.
#include "machine.h"
#include "capture.h"
#include "fiber.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
asm(R"(
.text
.globl collimate_fiber_switch
.type collimate_fiber_switch, @function
collimate_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size collimate_fiber_switch, .-collimate_fiber_switch
)");
#endif

namespace collimate::emulate {

__thread Thread *current;

namespace {

#if COLLIMATE_SANITIZE_ADDRESS || COLLIMATE_SANITIZE_THREAD
constexpr size_t kStackBytes = 128 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
#if COLLIMATE_SANITIZE_THREAD
constexpr bool kRaces = true;
#else
constexpr bool kRaces = false;
#endif
constexpr size_t kColours = 32, kColourBytes = 192;
constexpr size_t kRaceFibers = 1024;  // of one block size: the thread sanitizer takes long to make one
constexpr int kTags = 4;  // with one tag a barrier would also order what its next use must order
constexpr int kLaunchFailure = 719;  // cudaErrorLaunchFailure
constexpr std::uint64_t kStackCanary = 0x5ca1ab1e0ddba11ull;

enum class State { kReady, kAtWarp, kAtBlock, kReturned };

struct Random {
    std::uint64_t state;
    bool shuffles;
    std::uint64_t next() {
        state += 0x9e3779b97f4a7c15ull;
        std::uint64_t z = state;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    template <class T>
    void order(std::vector<T> &items) {
        std::iota(items.begin(), items.end(), T(0));
        if (!shuffles) return;
        for (size_t i = items.size(); i > 1; i--) std::swap(items[i - 1], items[next() % i]);
    }
};

struct Warp {
    unsigned generation = 0;
    alignas(16) unsigned char slots[2][kWarp * kSlotBytes];
    char tags[kTags][8];
    unsigned product_generation = 0;
    float products[kWarp][4];
};

struct Fiber {
    Context context;
    Thread thread;
    State state;
    Site site;
    Warp *warp;
    struct Block *block;
};

struct Shared {  // by all host threads of a launch
    const Launch &launch;
    std::vector<std::uint64_t> block_order;
    std::atomic<size_t> next_block{0};
    std::atomic<bool> failed{false};
    std::uint64_t seed, number;
    const char *kernel;
    char start_tag[8], end_tag[8];
    explicit Shared(const Launch &launch) : launch(launch) {}
};

// The room that a block runs in, kept for other blocks with as many threads.
struct Block {
    Shared *shared = nullptr;
    Context scheduler{};
    unsigned generation = 0;
    char tags[kTags][8];
    char start_tag[8];
    char end_tags[2][8];  // in turn: a block acquires that of the one before it in this room
    unsigned uses = 0;
    std::string fault;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<PendingCopy> copies;  // kPendingCopies a fiber, apart from what the scheduler looks at
    unsigned char *stacks = nullptr;
    void *memory = nullptr;  // the block's shared memory
    size_t memory_bytes = 0;
    std::uint64_t last_launch = 0;
};

std::mutex lock;
std::map<size_t, std::deque<std::unique_ptr<Block>>> idle_blocks;  // by the number of threads
std::map<size_t, size_t> block_counts;
std::string last_report;
Kernel *first_kernel;
thread_local Kernel *next_kernel;
char fence_tag[8];

std::uint64_t initial_seed() {
    const char *text = std::getenv("COLLIMATE_EMULATE_SEED");
    return text ? std::strtoull(text, nullptr, 10) : 0;
}
std::atomic<std::uint64_t> current_seed{initial_seed()};

// Copies with no call of memcpy, which the sanitizers replace by one that they watch.
void copy_unseen(void *to, const void *from, size_t bytes) {
    switch (bytes) {
        case 2: __builtin_memcpy(to, from, 2); return;
        case 4: __builtin_memcpy(to, from, 4); return;
        case 8: __builtin_memcpy(to, from, 8); return;
        case 16: __builtin_memcpy(to, from, 16); return;
        case kSlotBytes: for (size_t i = 0; i < kSlotBytes; i += 16) {
                __builtin_memcpy(static_cast<char *>(to) + i, static_cast<const char *>(from) + i, 16);
                asm volatile("" ::: "memory");
            }
            return;
        default: for (size_t i = 0; i < bytes; i++) {
                static_cast<char *>(to)[i] = static_cast<const char *>(from)[i];
                asm volatile("" ::: "memory");
            }
    }
}

Fiber &running() {
    return *reinterpret_cast<Fiber *>(reinterpret_cast<char *>(current) - offsetof(Fiber, thread));
}

void yield(State state, Site site, bool ends = false) {
    Fiber &fiber = running();
    fiber.state = state;
    fiber.site = site;
    switch_to(fiber.context, fiber.block->scheduler, ends);
}

void fiber_main() {
    Fiber &fiber = running();
    Block &block = *fiber.block;
#if COLLIMATE_SANITIZE_ADDRESS
    __sanitizer_finish_switch_fiber(nullptr, &block.scheduler.bottom, &block.scheduler.size);
#endif
    acquire(block.shared->start_tag);
    acquire(block.start_tag);
    acquire(block.end_tags[(block.uses + 1) % 2]);
    block.shared->launch.body(block.shared->launch.arguments.get());
    release(block.shared->end_tag);
    release(block.end_tags[block.uses % 2]);
    yield(State::kReturned, {}, true);
    std::abort();
}

// Room that this launch has not used where there is some or the thread sanitizer wants it: what two blocks do in one
// room it sees as ordered.
std::unique_ptr<Block> take_room(const Shared &shared, size_t threads) {
    std::lock_guard<std::mutex> guard(lock);
    auto &idle = idle_blocks[threads];
    size_t &count = block_counts[threads];
    const bool wants_more = kRaces && (count + 1) * threads <= std::max(kRaceFibers, 2 * threads);
    if (!idle.empty() && !(wants_more && idle.front()->last_launch == shared.number)) {
        auto block = std::move(idle.front());
        idle.pop_front();
        return block;
    }
    count++;
    auto block = std::make_unique<Block>();
    block->fibers.resize(threads);
    block->warps.resize((threads + kWarp - 1) / kWarp);
    block->copies.resize(threads * kPendingCopies);
    void *memory = mmap(nullptr, threads * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    block->stacks = static_cast<unsigned char *>(memory);
#if COLLIMATE_SANITIZE_THREAD
    for (Fiber &fiber : block->fibers) fiber.context.race_fiber = __tsan_create_fiber(0);
#endif
    return block;
}

void give_room(std::unique_ptr<Block> block) {
    std::lock_guard<std::mutex> guard(lock);
    auto &idle = idle_blocks[block->fibers.size()];
    idle.push_back(std::move(block));
}

// Exactly the bytes asked for, so that the address sanitizer sees the end; for the thread sanitizer memory is never
// freed, since that would be an access by the scheduler.
void size_memory(Block &block, size_t bytes) {
    if (kRaces ? block.memory_bytes >= bytes : block.memory_bytes == bytes && block.memory) return;
    if (!kRaces) std::free(block.memory);
    if (posix_memalign(&block.memory, 128, std::max<size_t>(bytes, 1))) std::abort();
    block.memory_bytes = bytes;
}

std::string where(const Site &site) {
    const char *name = std::strrchr(site.file, '/');
    return std::string(name ? name + 1 : site.file) + ":" + std::to_string(site.line);
}

void report(Block &block, const dim3 &index, const std::string &what) {
    std::string text = "kernel " + std::string(block.shared->kernel) + ", block (" + std::to_string(index.x) + ", " +
                       std::to_string(index.y) + ", " + std::to_string(index.z) + "): " + what;
    std::lock_guard<std::mutex> guard(lock);
    if (last_report.empty()) last_report = text;
    block.shared->failed = true;
}

std::string divergence(const Block &block) {
    std::map<std::string, int> waiting;
    for (const Fiber &fiber : block.fibers) {
        if (fiber.state == State::kReturned) waiting["have returned"]++;
        if (fiber.state == State::kAtBlock) waiting["wait at the block barrier of " + where(fiber.site)]++;
        if (fiber.state == State::kAtWarp) waiting["wait at the warp collective of " + where(fiber.site)]++;
    }
    std::string text = "a barrier that some threads do not reach:";
    for (const auto &[place, count] : waiting) text += " " + std::to_string(count) + " threads " + place + ";";
    text.pop_back();
    return text;
}

bool same_site(const Site &a, const Site &b) { return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file)); }

// Runs the lanes of one warp until none can go further; false: the block must stop.
bool run_warp(Block &block, size_t warp, Random &random, std::vector<int> &order, bool &ran) {
    size_t first = warp * kWarp, lanes = std::min<size_t>(kWarp, block.fibers.size() - first);
    order.resize(lanes);
    for (;;) {
        random.order(order);
        for (int lane : order) {
            Fiber &fiber = block.fibers[first + lane];
            if (fiber.state != State::kReady) continue;
            ran = true;
            current = &fiber.thread;
            switch_to(block.scheduler, fiber.context);
            if (!block.fault.empty()) return false;
        }
        const Site *site = nullptr;
        for (size_t lane = 0; lane < lanes; lane++) {
            const Fiber &fiber = block.fibers[first + lane];
            if (fiber.state == State::kReturned) continue;
            if (fiber.state != State::kAtWarp || (site && !same_site(*site, fiber.site))) return true;
            site = &fiber.site;
        }
        if (!site) return true;
        Warp &state = block.warps[warp];
        unsigned char *slots = state.slots[state.generation++ & 1];
        for (size_t lane = 0; lane < kWarp; lane++) {
            if (lane < lanes && block.fibers[first + lane].state == State::kAtWarp) {
                block.fibers[first + lane].state = State::kReady;
            } else {
                std::memset(slots + lane * kSlotBytes, 0xff, kSlotBytes);
            }
        }
    }
}

// True once all fibers wait at one block barrier, which then opens.
bool open_barrier(Block &block) {
    for (const Fiber &fiber : block.fibers) {
        if (fiber.state != State::kAtBlock || !same_site(fiber.site, block.fibers[0].site)) return false;
    }
    for (Fiber &fiber : block.fibers) fiber.state = State::kReady;
    block.generation++;
    return true;
}

void start_fibers(Block &block, const dim3 &index) {
    const Launch &launch = block.shared->launch;
    for (size_t i = 0; i < block.fibers.size(); i++) {
        Fiber &fiber = block.fibers[i];
        unsigned x = i % launch.block.x, y = i / launch.block.x % launch.block.y,
                 z = i / launch.block.x / launch.block.y;
        fiber.thread = {{x, y, z}, index, launch.block, launch.grid, int(i % kWarp),
                        static_cast<unsigned char *>(block.memory), &block.copies[i * kPendingCopies], 0, 0};
        fiber.state = State::kReady;
        fiber.warp = &block.warps[i / kWarp];
        fiber.block = &block;
        unsigned char *stack = block.stacks + i * kStackBytes;
        std::memcpy(stack, &kStackCanary, sizeof kStackCanary);
        // Each begins elsewhere in its page: else all share the few places of the caches that one address has.
        prepare(fiber.context, stack, kStackBytes - i % kColours * kColourBytes, fiber_main);
    }
}

void finish_fibers(Block &block, const dim3 &index) {
    for (Fiber &fiber : block.fibers) {
        if (std::memcmp(fiber.context.bottom, &kStackCanary, sizeof kStackCanary)) {
            std::fprintf(stderr, "kernel %s: a thread used more than %zu bytes of stack\n", block.shared->kernel,
                         kStackBytes);
            std::abort();
        }
        if (fiber.thread.copy_count > 0 && block.fault.empty()) {
            report(block, index, "returned with asynchronous copies that nothing waited for");
        }
#if COLLIMATE_SANITIZE_ADDRESS
        __asan_unpoison_memory_region(fiber.context.bottom, fiber.context.size);
#endif
    }
}

void run_block(Block &block, std::uint64_t linear) {
    const Launch &launch = block.shared->launch;
    dim3 index(linear % launch.grid.x, linear / launch.grid.x % launch.grid.y, linear / launch.grid.x / launch.grid.y);
    Random random{block.shared->seed * 0x2545f4914f6cdd1dull + linear, block.shared->seed != 0};
    std::memset(block.memory, 0xff, launch.shared_bytes);
    block.fault.clear();
    block.uses++;
    release(block.start_tag);
    start_fibers(block, index);
    std::vector<size_t> warp_order(block.warps.size());
    std::vector<int> lane_order;
    for (bool goes_on = true; goes_on;) {
        bool ran = false;
        random.order(warp_order);
        for (size_t warp : warp_order) {
            if (!run_warp(block, warp, random, lane_order, ran)) goes_on = false;
            if (!goes_on) break;
        }
        if (!goes_on) {
            report(block, index, block.fault);
        } else if (!open_barrier(block) && !ran) {
            goes_on = false;
            for (const Fiber &fiber : block.fibers) {
                if (fiber.state == State::kReturned) continue;
                report(block, index, block.fault = divergence(block));
                break;
            }
        }
    }
    finish_fibers(block, index);
    current = nullptr;
}

// One host thread's share of the launch.
void work(Shared &shared) {
    const Launch &launch = shared.launch;
    const size_t threads = size_t(launch.block.x) * launch.block.y * launch.block.z;
#if COLLIMATE_SANITIZE_THREAD
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);  // fresh memory then starts with no history
#endif
    for (size_t next; (next = shared.next_block++) < shared.block_order.size() && !shared.failed;) {
        auto block = take_room(shared, threads);
        block->shared = &shared;
        block->last_launch = shared.number;
#if COLLIMATE_SANITIZE_THREAD
        block->scheduler.race_fiber = __tsan_get_current_fiber();
#endif
        size_memory(*block, launch.shared_bytes);
        run_block(*block, shared.block_order[next]);
        give_room(std::move(block));
    }
#if COLLIMATE_SANITIZE_THREAD
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
#endif
}

size_t host_threads() {
    const char *text = std::getenv("COLLIMATE_EMULATE_THREADS");
    return text ? std::max(1, std::atoi(text)) : std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

void block_barrier(Site site) {
    Block &block = *running().block;
    char *tag = block.tags[block.generation % kTags];
    release(tag);
    yield(State::kAtBlock, site);
    acquire(tag);
}

void warp_barrier(unsigned mask, Site site) {
    if (mask != 0xffffffffu) misuse("a warp barrier without a full mask", site);
    Warp &warp = *running().warp;
    char *tag = warp.tags[warp.generation % kTags];
    release(tag);
    yield(State::kAtWarp, site);
    acquire(tag);
}

const unsigned char *warp_exchange(const void *value, size_t bytes, unsigned mask, Site site) {
    if (mask != 0xffffffffu) misuse("a warp collective without a full mask", site);
    if (bytes > kSlotBytes) misuse("an exchange larger than a slot", site);
    Fiber &fiber = running();
    unsigned char *slots = fiber.warp->slots[fiber.warp->generation & 1];
    copy_unseen(slots + fiber.thread.lane * kSlotBytes, value, bytes);
    yield(State::kAtWarp, site);
    return slots;
}

void read_slot(void *to, const unsigned char *slots, int lane, size_t offset, size_t bytes) {
    copy_unseen(to, slots + lane * kSlotBytes + offset, bytes);
}

void warp_multiply_add(Product &product, Site site) {
    const unsigned char *slots = warp_exchange(&product, sizeof product, 0xffffffffu, site);
    Warp &warp = *running().warp;
    if (warp.product_generation != warp.generation) {
        warp.product_generation = warp.generation;
        float a[16][16], b[16][8];
        for (int lane = 0; lane < kWarp; lane++) {
            Product part;
            copy_unseen(&part, slots + lane * kSlotBytes, sizeof part);
            const int group = lane / 4, pair = lane % 4 * 2;
            for (int i = 0; i < 8; i++) a[group + i / 2 % 2 * 8][pair + i / 4 * 8 + i % 2] = part.a[i];
            for (int i = 0; i < 4; i++) b[pair + i / 2 * 8 + i % 2][group] = part.b[i];
            copy_unseen(warp.products[lane], part.c, sizeof part.c);
        }
        for (int row = 0; row < 16; row++) {
            float sums[8] = {};
            for (int k = 0; k < 16; k++) {
                for (int column = 0; column < 8; column++) sums[column] += a[row][k] * b[k][column];
            }
            for (int column = 0; column < 8; column++) {
                warp.products[row % 8 * 4 + column / 2][row / 8 * 2 + column % 2] += sums[column];
            }
        }
    }
    copy_unseen(product.c, warp.products[running().thread.lane], sizeof product.c);
}

void fence() {
    acquire(fence_tag);
    release(fence_tag);
}

void misuse(const char *what, Site site) {
    running().block->fault = std::string(what) + " at " + where(site);
    yield(State::kReturned, site, true);
    std::abort();
}

Kernel::Kernel(const char *pretty_function) : name(pretty_function) {
    size_t start = name.find("kernel = ");
    if (start != std::string::npos) name = name.substr(start + 9, name.size() - start - 10);
    next = first_kernel;
    first_kernel = this;
}

void name_next(Kernel &kernel) { next_kernel = &kernel; }

namespace {

// Runs a launch to its end.
int run(const Launch &launch, Kernel *kernel) {
    Shared shared(launch);
    static std::atomic<std::uint64_t> launches{0};
    shared.number = ++launches;
    shared.seed = current_seed;
    shared.kernel = kernel ? kernel->name.c_str() : "(not launched through launch())";
    if (kernel) {
        std::lock_guard<std::mutex> guard(lock);
        __atomic_add_fetch(&kernel->launches, 1, __ATOMIC_RELAXED);
        kernel->shared_bytes = std::max(kernel->shared_bytes, launch.shared_bytes);
    }
    shared.block_order.resize(size_t(launch.grid.x) * launch.grid.y * launch.grid.z);
    Random{shared.seed, shared.seed != 0}.order(shared.block_order);
    release(shared.start_tag);
    std::vector<std::thread> helpers;
    size_t count = std::min(host_threads(), shared.block_order.size());
    for (size_t i = 1; i < count; i++) helpers.emplace_back(work, std::ref(shared));
    work(shared);
    for (auto &helper : helpers) helper.join();
    acquire(shared.end_tag);
    if (!shared.failed) return 0;
    std::lock_guard<std::mutex> guard(lock);
    // threads that were left behind at a barrier have read them, and nothing orders their freeing after that
    static auto *abandoned = new std::vector<std::shared_ptr<const void>>;
    abandoned->push_back(launch.arguments);
    std::fprintf(stderr, "collimate, emulated: %s\n", last_report.c_str());
    return kLaunchFailure;
}

int run_or_capture(const Operation &operation) {
    bool held;
    const int status = capture(operation, held);
    return status != 0 || held ? status : operation.run();
}

}  // namespace

int launch(const Launch &launch, void *stream) {
    Kernel *kernel = std::exchange(next_kernel, nullptr);
    const int status = check_launch(launch);
    if (status != 0) return status;
    if (kernel && capturing.active) __atomic_add_fetch(&kernel->captures, 1, __ATOMIC_RELAXED);
    return run_or_capture({stream, kernel, launch, [=] { return run(launch, kernel); }});
}

int fill(void *memory, int value, size_t bytes, void *stream) {
    return run_or_capture({stream, nullptr, {}, [=] { return std::memset(memory, value, bytes), 0; }});
}

int replay(const Record &record) {
    for (const Operation &operation : record.operations) {
        const int status = operation.run();
        if (status != 0) return status;
    }
    return 0;
}

void set_seed(std::uint64_t seed) { current_seed = seed; }

std::string take_report() {
    std::lock_guard<std::mutex> guard(lock);
    return std::exchange(last_report, std::string());
}

const Kernel *kernels() { return first_kernel; }

Sanitizer sanitizer() {
#if COLLIMATE_SANITIZE_ADDRESS
    return Sanitizer::kAddress;
#elif COLLIMATE_SANITIZE_UNDEFINED
    return Sanitizer::kUndefined;
#elif COLLIMATE_SANITIZE_THREAD
    return Sanitizer::kThread;
#else
    return Sanitizer::kNone;
#endif
}

}  // namespace collimate::emulate
