// The threads of a block as fibers. A thread runs until it waits; then another goes on, or the next is started.
#pragma once

#include <unordered_map>

#include "fibers.h"

namespace cuda_on_host {

// Of use to ThreadSanitizer only.
struct Unseen {
    Unseen() {}
};
inline void publish(bool*) {}
inline void receive(bool*) {}

static void (*body)();
static std::vector<int> order;  // in which threads start
static size_t started;
static std::vector<Fiber*> fiber_of_thread;
static std::vector<Fiber*> idle;
static std::deque<int> ready;
static std::unordered_map<const void*, std::vector<int>> waiting;  // what for, and which threads
static Fiber main_fiber;
static Fiber* running = nullptr;

inline void go_on_with(Fiber* next) {
    Fiber* const from = running;
    if (next == from) return;
    running = next;
    switch_fiber(from, next);
}

inline void wake(const void* what) {
    auto& threads = waiting[what];
    ready.insert(ready.end(), threads.begin(), threads.end());
    threads.clear();
}

inline void wake_all() {
    for (auto& entry : waiting) wake(entry.first);
}

void fiber_main();

inline Fiber* idle_fiber() {
    if (idle.empty()) return new_fiber(fiber_main);
    Fiber* fiber = idle.back();
    idle.pop_back();
    return fiber;
}

// Hands over to a thread that can run: one not yet started, or one that was woken. Null where there is none.
inline Fiber* next_fiber() {
    if (started < order.size() && failure.empty()) return idle_fiber();
    if (ready.empty()) return nullptr;
    Fiber* fiber = fiber_of_thread[static_cast<size_t>(ready.front())];
    ready.pop_front();
    return fiber;
}

inline void wait(const void* what) {
    const int self = current;
    const uint3 index = threadIdx;
    const char* const why = doing;
    waiting[what].push_back(self);
    Fiber* next = next_fiber();
    if (next == nullptr) {
        failure = never_released(why);
        wake_all();
        next = next_fiber();
    }
    go_on_with(next);
    current = self;
    threadIdx = index;
    if (!failure.empty()) throw Abandoned();
}

void leave_block();

// One stack runs thread after thread as long as none of them has to wait on it.
inline void fiber_main() {
    arrived(running);
    for (;;) {
        if (started < order.size() && failure.empty()) {
            current = order[started++];
            threadIdx = thread_index(current);
            fiber_of_thread[static_cast<size_t>(current)] = running;
            try {
                body();
            } catch (const Abandoned&) {
            }
            leave_block();
            continue;
        }
        idle.push_back(running);
        Fiber* next = next_fiber();
        if (next == nullptr) next = &main_fiber;
        go_on_with(next);
    }
}

// Runs the threads of one block, which start in the order given.
inline void run_threads(void (*kernel)(), const std::vector<int>& threads) {
    body = kernel;
    order = threads;
    started = 0;
    fiber_of_thread.assign(threads.size(), nullptr);
    ready.clear();
    waiting.clear();
    running = &main_fiber;
    go_on_with(idle_fiber());
    running = &main_fiber;
}

}  // namespace cuda_on_host
