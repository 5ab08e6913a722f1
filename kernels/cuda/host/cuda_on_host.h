// Runs CUDA sources on the CPU: compiled as C++17, they execute block by block, so that a machine without a GPU, and
// AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, see every line of a kernel.
//
// The threads of a block are fibers (the default: fast, deterministic, any order by a seed), or, with
// CUDA_ON_HOST_THREADS defined, threads of the operating system for ThreadSanitizer. Blocks run one after another, so
// races between blocks are not found. Shared memory is filled with a pattern before every block, as nothing may rely
// on what it held. What has no meaning here is refused at compile time: no cooperative groups, no textures.
#pragma once

#ifdef __CUDACC__
#error "cuda_on_host.h stands in for the CUDA compiler; do not include it where that compiles"
#endif

// Before the macros below, which are words of the standard library's headers too.
#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
// One section, so that all of it can be filled before a block starts.
#define __shared__ static __attribute__((section("cuda_shared")))

#include "vector_types.h"
#include "half.h"
#include "arithmetic.h"
#include "block.h"
#include "warp.h"
#include "launch.h"
