// Fibers: many stacks on one thread, switched between by name.
//
// On x86-64 by ten instructions, elsewhere by ucontext, which is portable but makes a system call per switch: a block
// of 1,024 threads switches a thousand times per barrier.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <vector>

#if !defined(__x86_64__) && !defined(CUDA_ON_HOST_UCONTEXT)
#define CUDA_ON_HOST_UCONTEXT
#endif
#ifdef CUDA_ON_HOST_UCONTEXT
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_host {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 4 << 10;

struct Fiber {
#ifdef CUDA_ON_HOST_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer = nullptr;
#endif
    const void* stack = nullptr;
    size_t stack_bytes = 0;
    void* fake_stack = nullptr;
};

#ifndef CUDA_ON_HOST_UCONTEXT
// Saves the registers that a function must preserve on the present stack, and goes on with those of another.
extern "C" void cuda_on_host_switch(void** save, void* resume) __attribute__((visibility("hidden")));
asm(R"(
.text
.p2align 4
.hidden cuda_on_host_switch
.globl cuda_on_host_switch
.type cuda_on_host_switch, @function
cuda_on_host_switch:
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
.size cuda_on_host_switch, .-cuda_on_host_switch
)");
#endif

// The fiber that the last switch came from; the first arrival on a fiber learns the bounds of the main stack from it.
static Fiber* left = nullptr;

inline void arrived(Fiber* fiber) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fiber->fake_stack, &left->stack, &left->stack_bytes);
#else
    (void)fiber;
#endif
}

inline void switch_fiber(Fiber* from, Fiber* to) {
    left = from;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
#ifdef CUDA_ON_HOST_UCONTEXT
    swapcontext(&from->context, &to->context);
#else
    cuda_on_host_switch(&from->stack_pointer, to->stack_pointer);
#endif
    arrived(from);
}

// Makes a fiber whose first switch enters `entry`, which never returns and calls `arrived` first.
inline Fiber* new_fiber(void (*entry)()) {
    auto* fiber = new Fiber;
    void* pages = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages, kGuardBytes, PROT_NONE) != 0) std::abort();
    char* stack = static_cast<char*>(pages) + kGuardBytes;
    fiber->stack = stack;
    fiber->stack_bytes = kStackBytes;
#ifdef CUDA_ON_HOST_UCONTEXT
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = stack;
    fiber->context.uc_stack.ss_size = kStackBytes;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, entry, 0);
#else
    // The first switch pops six registers and returns into `entry`, its stack as a call would have left it.
    auto** top = reinterpret_cast<void**>(stack + kStackBytes);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    fiber->stack_pointer = top;
#endif
    return fiber;
}

}  // namespace cuda_on_host
