// KERNEL(name) gives a kernel a plain C entry point, name_launch, and name_arguments, which tells its arguments' sizes.
#pragma once

#include <algorithm>
#include <random>
#include <tuple>
#include <utility>

#include "block.h"

// All __shared__ variables of the source; the linker names the ends of their section.
extern "C" {
extern unsigned char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
}

#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(cuda_on_host::dynamic_shared)

namespace cuda_on_host {

constexpr unsigned char kPattern = 0xa5;

static void* dynamic_shared;
static size_t dynamic_shared_bytes;

// Writes over AddressSanitizer's red zones between the variables too, and so is hidden from it.
__attribute__((no_sanitize("address", "thread"), noinline)) inline void fill_shared() {
    for (volatile unsigned char* byte = __start_cuda_shared; byte != __stop_cuda_shared; ++byte) *byte = kPattern;
    if (dynamic_shared != nullptr) std::memset(dynamic_shared, kPattern, dynamic_shared_bytes);
}

inline void reset_block(int threads) {
    warps.assign(static_cast<size_t>((threads + 31) / 32), Warp());
    for (int number = 0; number < threads; ++number) {
        warps[static_cast<size_t>(number / 32)].alive |= 1u << (number % 32);
    }
    barrier = Barrier();
    alive = threads;
    fill_shared();
}

inline dim3 to_dim3(const unsigned* sizes) {
    dim3 result;
    result.x = sizes[0];
    result.y = sizes[1];
    result.z = sizes[2];
    return result;
}

// Runs all blocks; with a seed other than 0, blocks and threads in a random order. Returns whether all went well.
inline bool run_grid(void (*kernel)(), const unsigned* grid, const unsigned* block, size_t shared, unsigned seed) {
    failure.clear();
    gridDim = to_dim3(grid);
    blockDim = to_dim3(block);
    const unsigned long long threads = 1ull * block[0] * block[1] * block[2];
    const unsigned long long blocks = 1ull * grid[0] * grid[1] * grid[2];
    if (threads < 1 || threads > 1024 || block[2] > 64) failure = "a block has 1 to 1024 threads, at most 64 along z";
    if (blocks < 1 || grid[1] > 65535 || grid[2] > 65535) failure = "a grid has 1 to 65535 blocks along y and z";
    if (shared > 227 << 10) failure = "a block has at most 227 KiB of shared memory";
    if (!failure.empty()) return false;
    std::vector<int> order(threads);
    for (size_t k = 0; k < threads; ++k) order[k] = static_cast<int>(k);
    std::vector<unsigned long long> turn(blocks);
    for (size_t k = 0; k < blocks; ++k) turn[k] = k;
    std::mt19937 random(seed);
    if (seed != 0) std::shuffle(turn.begin(), turn.end(), random);
    dynamic_shared = shared == 0 ? nullptr : std::malloc(shared);
    dynamic_shared_bytes = shared;
    for (size_t k = 0; k < blocks && failure.empty(); ++k) {
        if (seed != 0) std::shuffle(order.begin(), order.end(), random);
        const unsigned long long row = turn[k] / grid[0];
        blockIdx = {static_cast<unsigned>(turn[k] % grid[0]), static_cast<unsigned>(row % grid[1]),
                    static_cast<unsigned>(row / grid[1])};
        reset_block(static_cast<int>(threads));
        run_threads(kernel, order);
    }
    std::free(dynamic_shared);
    return failure.empty();
}

// The kernel being launched and pointers to its arguments, as cuLaunchKernel takes them.
template <auto kernel>
struct Launch;

template <class... Arguments, void (*kernel)(Arguments...)>
struct Launch<kernel> {
    inline static void** arguments = nullptr;

    template <size_t... k>
    static void call(std::index_sequence<k...>) {
        kernel(*static_cast<std::remove_const_t<Arguments>*>(arguments[k])...);
    }
    static void thread() { call(std::index_sequence_for<Arguments...>()); }
    static int sizes(size_t* out) {
        size_t all[] = {sizeof(Arguments)..., 0};
        std::memcpy(out, all, sizeof all);
        return static_cast<int>(sizeof...(Arguments));
    }
};

}  // namespace cuda_on_host

extern "C" __attribute__((visibility("default"))) const char* cuda_on_host_failure() {
    return cuda_on_host::failure.c_str();
}

#define KERNEL(name)                                                                                               \
    extern "C" __attribute__((visibility("default"))) int name##_launch(const unsigned* grid, const unsigned* block, \
                                                                        size_t shared, void** arguments,           \
                                                                        unsigned seed) {                           \
        cuda_on_host::Launch<name>::arguments = arguments;                                                         \
        return cuda_on_host::run_grid(cuda_on_host::Launch<name>::thread, grid, block, shared, seed);              \
    }                                                                                                              \
    extern "C" __attribute__((visibility("default"))) int name##_arguments(size_t* sizes) {                        \
        return cuda_on_host::Launch<name>::sizes(sizes);                                                           \
    }                                                                                                              \
    static_assert(true, "")
