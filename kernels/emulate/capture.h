// What a CUDA graph's capture sees, and what attributes kernels have: the part of machine.cpp that knows streams and
// devices, and no threads of a block. Included there alone.
#pragma once

#include "machine.h"

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace collimate::emulate {

constexpr int kInvalidValue = 1, kInvalidConfiguration = 9, kInvalidDevice = 101;  // of cudaError_t
constexpr int kCaptureUnsupported = 900, kCaptureInvalidated = 901, kCaptureUnmatched = 903;

// The capture of a host thread; only that thread's calls belong to it.
struct Capturing {
    bool active = false;
    CaptureMode mode{};
    void *stream = nullptr;
    Record record;
};
thread_local Capturing capturing;

int begin_capture(void *stream, CaptureMode mode) {
    if (capturing.active || (stream == nullptr && mode == CaptureMode::kHold)) return kCaptureUnsupported;
    capturing.active = true;
    capturing.mode = mode;
    capturing.stream = stream;
    capturing.record = {};
    return 0;
}

int end_capture(void *stream, Record *record) {
    if (!capturing.active || stream != capturing.stream) return kCaptureUnmatched;
    capturing.active = false;
    *record = std::exchange(capturing.record, {});
    return record->fault.empty() ? 0 : kCaptureInvalidated;
}

int outside_capture(const char *call) {
    if (!capturing.active) return 0;
    if (capturing.record.fault.empty()) capturing.record.fault = call;
    return kCaptureUnsupported;
}

// Adds an operation to the thread's capture. `held`: it must not run now. 0, or a cudaError.
int capture(const Operation &operation, bool &held) {
    held = false;
    if (!capturing.active) return 0;
    Record &record = capturing.record;
    if (operation.stream != capturing.stream) outside_capture("work on a stream that is not the captured one");
    held = capturing.mode == CaptureMode::kHold;
    if (held && !record.fault.empty()) return kCaptureInvalidated;
    record.operations.push_back(operation);
    return 0;
}

// cudaFuncSetAttribute's limits of dynamic shared memory: of a device's context, kernel by kernel.
class SharedLimits {
    std::mutex lock_;
    std::map<std::pair<int, const void *>, int> bytes_;

  public:
    int of(int device, const void *function) {
        std::lock_guard<std::mutex> guard(lock_);
        const auto found = bytes_.find({device, function});
        return found == bytes_.end() ? kSharedWithoutAttribute : found->second;
    }
    int set(int device, const void *function, int bytes) {
        if (bytes < 0 || bytes > kSharedBytesOfBlock) return kInvalidValue;
        std::lock_guard<std::mutex> guard(lock_);
        bytes_[{device, function}] = bytes;
        return 0;
    }
    // A context that is destroyed takes them with it.
    void forget(int device) {
        std::lock_guard<std::mutex> guard(lock_);
        for (auto it = bytes_.begin(); it != bytes_.end();) it = it->first.first == device ? bytes_.erase(it) : std::next(it);
    }
};
SharedLimits shared_limits;
thread_local int current_device;

int set_device(int device) {
    if (device < 0 || device >= kDevices) return kInvalidDevice;
    current_device = device;
    return 0;
}

int device() { return current_device; }

void reset_device() { shared_limits.forget(current_device); }

int set_shared_limit(const void *function, int bytes) { return shared_limits.set(current_device, function, bytes); }

int shared_limit(const void *function) { return shared_limits.of(current_device, function); }

// What a GPU refuses to launch.
int check_launch(const Launch &launch) {
    const auto is_within = [](const dim3 &size, unsigned x, unsigned y, unsigned z) {
        return size.x >= 1 && size.y >= 1 && size.z >= 1 && size.x <= x && size.y <= y && size.z <= z;
    };
    const bool grid = is_within(launch.grid, 0x7fffffff, 0xffff, 0xffff), block = is_within(launch.block, 1024, 1024, 64);
    if (!grid || !block || size_t(launch.block.x) * launch.block.y * launch.block.z > 1024) return kInvalidConfiguration;
    const int limit = shared_limit(launch.function);
    return launch.shared_bytes <= size_t(limit) ? 0 : kInvalidValue;
}

}  // namespace collimate::emulate
