// A stack and a place in it: the switch between two, and what the sanitizers must be told about it.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if COLLIMATE_SANITIZE_ADDRESS
extern "C" void __sanitizer_start_switch_fiber(void **fake_stack, const void *bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void *fake_stack, const void **bottom, size_t *size);
extern "C" void __asan_unpoison_memory_region(const volatile void *address, size_t size);
#endif
#if COLLIMATE_SANITIZE_THREAD
extern "C" void *__tsan_get_current_fiber();
extern "C" void *__tsan_create_fiber(unsigned flags);
extern "C" void __tsan_switch_to_fiber(void *fiber, unsigned flags);
extern "C" void __tsan_acquire(void *address);
extern "C" void __tsan_release(void *address);
extern "C" void AnnotateIgnoreWritesBegin(const char *file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char *file, int line);
#endif

namespace collimate::emulate {

#if COLLIMATE_SANITIZE_THREAD
inline void acquire(void *tag) { __tsan_acquire(tag); }
inline void release(void *tag) { __tsan_release(tag); }
#else
inline void acquire(void *) {}
inline void release(void *) {}
#endif

struct Context {
#if defined(__x86_64__)
    void *stack_pointer;
#else
    ucontext_t machine;
#endif
    const void *bottom;  // of its stack
    size_t size;
    void *fake_stack;  // the address sanitizer's
    void *race_fiber;  // the thread sanitizer's
};

#if defined(__x86_64__)
// Saves what the calling convention preserves, leaves the stack pointer in *from, and goes on where `to` was left.
extern "C" void collimate_fiber_switch(void **from, void *to);
#endif

// Prepares `context` to start in `entry`, which never returns.
inline void prepare(Context &context, unsigned char *stack, size_t size, void (*entry)()) {
    context.bottom = stack;
    context.size = size;
    context.fake_stack = nullptr;
#if defined(__x86_64__)
    auto **top = reinterpret_cast<void **>(stack + size);
    *--top = nullptr;  // where a return address would be: the entry finds its stack aligned as after a call
    *--top = reinterpret_cast<void *>(entry);
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    context.stack_pointer = top;
#else
    getcontext(&context.machine);
    context.machine.uc_stack.ss_sp = stack;
    context.machine.uc_stack.ss_size = size;
    context.machine.uc_link = nullptr;
    makecontext(&context.machine, entry, 0);
#endif
}

// Goes from one context to another; `ends`: the first is never entered again.
inline void switch_to(Context &from, Context &to, bool ends = false) {
#if COLLIMATE_SANITIZE_ADDRESS
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
#if COLLIMATE_SANITIZE_THREAD
    __tsan_switch_to_fiber(to.race_fiber, 1);  // 1: no synchronisation
#endif
    (void)ends;
#if defined(__x86_64__)
    collimate_fiber_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.machine, &to.machine);
#endif
#if COLLIMATE_SANITIZE_ADDRESS
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace collimate::emulate
