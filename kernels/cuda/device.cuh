// What every kernel source includes first: the CUDA dialect, on a GPU or on the host.
//
// A kernel is `extern "C" __global__`, followed by KERNEL(name). Shared memory is declared in kernels only, not in
// templates or device functions, which get a pointer to it.
#pragma once

#ifdef __CUDACC__

#include <cuda_fp16.h>

// On the host this makes a kernel callable from the tests.
#define KERNEL(name)

// Shared memory whose size is given at launch, as a pointer: extern arrays of two types clash in one source.
#define DYNAMIC_SHARED(type, name)                                   \
    extern __shared__ __align__(16) unsigned char name##_bytes[];    \
    type* const name = reinterpret_cast<type*>(name##_bytes)

#else

#include "host/cuda_on_host.h"

#endif
