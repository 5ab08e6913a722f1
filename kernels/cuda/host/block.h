// One block at a time: its threads, its barrier, and how a thread waits for others.
#pragma once

#include <cstdio>
#include <deque>
#include <string>
#include <vector>

#include "vector_types.h"

#ifdef CUDA_ON_HOST_THREADS
#define CUDA_ON_HOST_LOCAL static thread_local
#else
#define CUDA_ON_HOST_LOCAL static
#endif

CUDA_ON_HOST_LOCAL uint3 threadIdx;
static uint3 blockIdx;
static dim3 blockDim;
static dim3 gridDim;
constexpr int warpSize = 32;

namespace cuda_on_host {

// Ends a thread of a launch that has failed.
struct Abandoned {};

// Threads that exchange 64-bit values within a warp under one mask. Two sets of values in turn: a thread reads its
// results before it can arrive at the meeting after the next, so nobody overwrites what another still has to read.
struct Meeting {
    unsigned mask = 0;
    unsigned arrived = 0;
    const char* what = nullptr;
    int turn = 0;
    unsigned present[2] = {0, 0};
    unsigned long long values[2][32] = {};
    bool edge[2] = {false, false};
};

struct Warp {
    unsigned alive = 0;
    std::deque<Meeting> meetings;  // one per mask, and they stay where they are
};

struct Barrier {
    int arrived = 0;
    int turn = 0;
    int votes = 0;
    int result[2] = {0, 0};
    bool edge[2] = {false, false};
};

// What the threads of the block share about themselves.
static std::vector<Warp> warps;
static Barrier barrier;
static int alive;
static std::string failure;

CUDA_ON_HOST_LOCAL int current;  // the running thread's number in its block
CUDA_ON_HOST_LOCAL const char* doing;

inline uint3 thread_index(int number) {
    const unsigned n = static_cast<unsigned>(number);
    return {n % blockDim.x, n / blockDim.x % blockDim.y, n / (blockDim.x * blockDim.y)};
}

inline std::string name_of_thread() {
    char text[96];
    std::snprintf(text, sizeof text, "thread (%u, %u, %u) of block (%u, %u, %u)", threadIdx.x, threadIdx.y, threadIdx.z,
                  blockIdx.x, blockIdx.y, blockIdx.z);
    return text;
}

inline std::string never_released(const char* what) {
    return name_of_thread() + " waits in " + what + " for threads that wait elsewhere";
}

}  // namespace cuda_on_host

#ifdef CUDA_ON_HOST_THREADS
#include "block_of_threads.h"
#else
#include "block_of_fibers.h"
#endif

namespace cuda_on_host {

[[noreturn]] inline void fail(const std::string& why) {
    if (failure.empty()) failure = name_of_thread() + ": " + why;
    wake_all();
    throw Abandoned();
}

inline void complete(Barrier& b) {
    b.result[b.turn] = b.votes;
    b.votes = b.arrived = 0;
    b.turn ^= 1;
    wake(&b);
}

inline void complete(Meeting& m) {
    m.present[m.turn] = m.arrived;
    m.arrived = 0;
    m.turn ^= 1;
    wake(&m);
}

// Waits at the block's barrier for every thread that has not returned; returns the sum of the votes.
inline int meet_block(const char* what, int vote) {
    const Unseen unseen;
    doing = what;
    const int turn = barrier.turn;
    publish(&barrier.edge[turn]);
    barrier.votes += vote;
    if (++barrier.arrived == alive) {
        complete(barrier);
    } else {
        wait(&barrier);
    }
    receive(&barrier.edge[turn]);
    return barrier.result[turn];
}

// A thread has returned: whoever waited only for it goes on.
inline void leave_block() {
    const unsigned lane = 1u << (current % 32);
    Warp& warp = warps[static_cast<size_t>(current / 32)];
    warp.alive &= ~lane;
    --alive;
    if (!failure.empty()) return;
    if (barrier.arrived > 0 && barrier.arrived == alive) complete(barrier);
    for (auto& m : warp.meetings) {
        if (m.arrived != 0 && (m.mask & warp.alive & ~m.arrived) == 0) complete(m);
    }
}

}  // namespace cuda_on_host

inline void __syncthreads() { cuda_on_host::meet_block("__syncthreads", 0); }
inline int __syncthreads_count(int predicate) {
    return cuda_on_host::meet_block("__syncthreads_count", predicate != 0);
}
inline int __syncthreads_or(int predicate) { return cuda_on_host::meet_block("__syncthreads_or", predicate != 0) > 0; }
inline int __syncthreads_and(int predicate) {
    return cuda_on_host::meet_block("__syncthreads_and", predicate == 0) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __trap() {
    const cuda_on_host::Unseen unseen;
    cuda_on_host::fail("__trap");
}
