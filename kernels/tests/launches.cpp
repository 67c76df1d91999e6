// Launches themselves: shared memory that two threads, two devices and a new context ask for, and what graph capture
// allows. The operations' own tests run every launcher of the contract under a capture.
#include <atomic>
#include <thread>

#include "check.h"
#include "../emulate/control.h"
#include "launch.cuh"
#include "reduce.cuh"

namespace test {
namespace {

using collimate::launch;
using collimate::shared;
namespace emulate = collimate::emulate;

constexpr size_t kLarge = 96 << 10, kMiddle = 64 << 10;

// Writes the last word of its shared memory, and what it read there.
__global__ void last_word_kernel(int *out, int words) {
    int *scratch = shared<int>();
    if (threadIdx.x == 0) scratch[words - 1] = words;
    __syncwarp();
    if (threadIdx.x == 0) *out = scratch[words - 1];
}

__global__ void add_kernel(int *out, int value) {
    if (threadIdx.x == 0) atomicAdd(out, value);
}

int launch_last_word(size_t bytes, int *out) {
    return launch<last_word_kernel>({{1}, {32}, bytes}, nullptr, out, int(bytes / sizeof(int)));
}

const void *address(void (*kernel)(int *, int)) { return reinterpret_cast<const void *>(kernel); }

void shared_memory() {
    int out = 0;
    const emulate::Launch unasked = {{1}, {32}, kMiddle, address(add_kernel), nullptr, nullptr};
    expect(emulate::launch(unasked, nullptr) == cudaErrorInvalidValue, "64 KiB without the attribute");
    expect(launch_last_word(emulate::kSharedBytesOfBlock + 4, &out) == cudaErrorInvalidValue, "more than a block may have");
    for (int device = 0; device < emulate::kDevices; device++) {
        emulate::set_device(device);
        for (const size_t bytes : {kLarge, kMiddle, size_t(64)}) {
            expect(launch_last_word(bytes, &out) == 0 && out == int(bytes / 4), "%zu bytes on device %d", bytes, device);
            // a limit that follows the launch's own size would fall here, under the feet of other threads
            expect(emulate::shared_limit(address(last_word_kernel)) >= int(kLarge), "a launch lowered the kernel's limit");
        }
        emulate::reset_device();
        expect(launch_last_word(kLarge, &out) == 0, "a launch after the context of device %d began anew", device);
    }
    emulate::set_device(0);
}

// Two threads launch one kernel with different shared memory: neither takes the other's away.
void two_threads() {
    std::atomic<int> refused{0};
    const auto many = [&](size_t bytes) {
        int out = 0;
        for (int i = 0; i < (kFewCases ? 50 : 3000); i++) refused += launch_last_word(bytes, &out) != 0 || out != int(bytes / 4);
    };
    std::thread other(many, kMiddle);
    many(kLarge);
    other.join();
    expect(refused == 0, "%d launches were refused beside another thread's", refused.load());
}

void sizes() {
    int out = 0;
    const auto status = [&](dim3 grid, dim3 block) {
        const cudaLaunchConfig_t config = {grid, block, 0, nullptr, nullptr, 0};
        return cudaLaunchKernelEx(&config, add_kernel, &out, 1);
    };
    expect(status({1}, {1025}) == 9 && status({1, 65536}, {32}) == 9 && status({1}, {0}) == 9, "sizes that no GPU launches");
    expect(out == 0 && status({1}, {1024}) == 0 && out == 1, "the largest block");
}

// Each does one thing that a graph cannot hold.
int allocates(void *stream) {
    void *memory = nullptr;
    const int status = cudaMallocAsync(&memory, 16, stream);
    return status ? status : cudaFreeAsync(memory, stream);
}
int frees(void *stream) { return cudaFreeAsync(nullptr, stream); }
int copies(void *stream) {
    int to, from = 1;
    return cudaMemcpyAsync(&to, &from, sizeof to, cudaMemcpyHostToDevice, stream);
}
int waits(void *stream) { return cudaStreamSynchronize(stream); }
int loses_its_stream(void *) {
    static int out;
    return launch<add_kernel>({{1}, {32}}, nullptr, &out, 1);
}

void forbidden() {
    const struct {
        const char *says;
        int (*call)(void *);
    } cases[] = {{"cudaMallocAsync", allocates},
                 {"cudaFreeAsync", frees},
                 {"a copy of the host's memory", copies},
                 {"cudaStreamSynchronize", waits},
                 {"a stream that is not the captured one", loses_its_stream}};
    for (const auto &each : cases) {
        int handle, out = 0;
        emulate::Record record;
        expect(each.call(&handle) == 0, "%s fails outside a capture", each.says);
        expect(emulate::begin_capture(&handle, emulate::CaptureMode::kHold) == 0, "no capture");
        expect(each.call(&handle) != 0, "%s passes in a capture", each.says);
        expect(launch<add_kernel>({{1}, {32}}, &handle, &out, 1) == 901, "a launch after the capture broke");
        expect(emulate::end_capture(&handle, &record) == 901 && out == 0, "a broken capture ends well");
        expect(record.fault.find(each.says) != std::string::npos, "the fault of %s is '%s'", each.says, record.fault.c_str());
    }
}

// What is captured runs once for each replay, with the arguments of the capture, and not before.
void replays() {
    int handle, out = 7;
    emulate::Record record;
    expect(emulate::begin_capture(nullptr, emulate::CaptureMode::kHold) != 0, "the default stream was captured");
    expect(emulate::begin_capture(&handle, emulate::CaptureMode::kHold) == 0, "no capture");
    expect(emulate::begin_capture(&handle, emulate::CaptureMode::kHold) != 0, "a capture in a capture");
    int value = 3;
    expect(cudaMemsetAsync(&out, 0, sizeof out, &handle) == 0, "a fill in a capture");
    expect(launch<add_kernel>({{1}, {32}}, &handle, &out, value) == 0, "a launch in a capture");
    value = 100;
    std::thread([&] { launch<add_kernel>({{1}, {32}}, &handle, &value, 1); }).join();
    expect(out == 7 && value == 101, "a capture ran its launches, or took another thread's");
    expect(emulate::end_capture(nullptr, &record) != 0, "a capture of another stream ended");
    expect(emulate::end_capture(&handle, &record) == 0 && record.operations.size() == 2, "the end of a capture");
    for (int i = 0; i < 2; i++) {
        expect(emulate::replay(record) == 0 && out == 3, "a replay gives %d", out);
    }
}

// What other languages see of it.
void control() {
    int out = 0;
    int64_t count = -1;
    const char *fault = "";
    expect(collimate_emulate_capture_end(nullptr, &count, &fault) == COLLIMATE_EMULATE_NO_CAPTURE && count == 0, "no record");
    collimate_emulate_capture_forbids("a wait that nobody records");
    expect(collimate_emulate_capture_begin(nullptr) == 0, "no record");
    expect(collimate_emulate_capture_begin(nullptr) != 0, "a record in a record");
    launch<add_kernel>({{2, 3}, {64}, 128}, nullptr, &out, 1);
    expect(out == 6, "a recorded launch ran %d blocks", out);
    cudaMemsetAsync(&out, 0, sizeof out, nullptr);
    expect(out == 0, "a recorded fill did not run");
    expect(collimate_emulate_capture_end(nullptr, &count, &fault) == 0 && count == 2 && !fault, "a record of %d", int(count));
    collimate_emulate_operation first, second, none;
    expect(collimate_emulate_captured(0, &first) && collimate_emulate_captured(1, &second), "the record's operations");
    expect(!collimate_emulate_captured(2, &none) && !collimate_emulate_captured(-1, &none), "operations outside the record");
    expect(std::strstr(first.kernel, "add_kernel") && first.grid[0] == 2 && first.grid[1] == 3 && first.grid[2] == 1 &&
               first.block[0] == 64 && first.block[1] == 1 && first.shared_bytes == 128,
           "the first operation is %s", first.kernel);
    expect(!second.kernel && second.grid[0] == 0, "the second operation is a fill");
    collimate_emulate_capture_begin(nullptr);
    launch<add_kernel>({{1}, {32}}, nullptr, &out, 1);
    collimate_emulate_capture_forbids("a wait");
    collimate_emulate_capture_forbids("a copy");
    expect(collimate_emulate_capture_end(nullptr, &count, &fault) == COLLIMATE_EMULATE_BROKEN_CAPTURE && count == 1 && fault &&
               !std::strcmp(fault, "a wait"),
           "a record with a wait");
}

}  // namespace

void launches() {
    shared_memory();
    two_threads();
    sizes();
    forbidden();
    replays();
    control();
}

}  // namespace test
