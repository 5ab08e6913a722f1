// The threads of a block as threads of the operating system, for ThreadSanitizer.
//
// It must see exactly the order that CUDA promises: what barriers and __syncwarp publish, and nothing from the locks
// that make this work. So they are hidden from it, and `publish` and `receive` tell it the order that holds.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

extern "C" {
void AnnotateIgnoreSyncBegin(const char* file, int line);
void AnnotateIgnoreSyncEnd(const char* file, int line);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}

namespace cuda_on_host {

struct Queue {
    std::condition_variable wake;
    unsigned long long times = 0;  // that it was woken
    int threads = 0;               // that wait
};

static std::mutex lock;
static std::map<const void*, Queue> queues;
static int blocked;

// While one lives, the thread holds the lock and ThreadSanitizer sees nothing of what it does.
struct Unseen {
    Unseen() {
        AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
        lock.lock();
    }
    ~Unseen() {
        lock.unlock();
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
        AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
    }
    Unseen(const Unseen&) = delete;
    Unseen& operator=(const Unseen&) = delete;
};

inline void publish(bool* edge) {
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
    __tsan_release(edge);
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
}
inline void receive(bool* edge) {
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
    __tsan_acquire(edge);
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
}

inline void wake(const void* what) {
    Queue& queue = queues[what];
    ++queue.times;
    blocked -= queue.threads;
    queue.threads = 0;
    queue.wake.notify_all();
}

inline void wake_all() {
    for (auto& entry : queues) wake(entry.first);
}

inline void wait(const void* what) {
    Queue& queue = queues[what];
    const unsigned long long before = queue.times;
    ++queue.threads;
    if (++blocked == alive && failure.empty()) {
        failure = never_released(doing);
        wake_all();
    }
    std::unique_lock<std::mutex> held(lock, std::adopt_lock);
    queue.wake.wait(held, [&] { return queue.times != before || !failure.empty(); });
    held.release();
    if (!failure.empty()) throw Abandoned();
}

void leave_block();

inline void run_threads(void (*kernel)(), const std::vector<int>& threads) {
    queues.clear();
    blocked = 0;
    std::vector<std::thread> running;
    for (const int number : threads) {
        running.emplace_back([=] {
            current = number;
            threadIdx = thread_index(number);
            try {
                kernel();
            } catch (const Abandoned&) {
            }
            const Unseen unseen;
            leave_block();
            if (alive > 0 && blocked == alive && failure.empty()) {
                failure = never_released("a barrier or warp function");
                wake_all();
            }
        });
    }
    for (auto& thread : running) thread.join();
}

}  // namespace cuda_on_host
