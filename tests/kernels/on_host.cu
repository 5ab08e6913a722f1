// Kernels that show how CUDA sources run on the host: what must work, and faults that must be found.
#include "device.cuh"

extern "C" __global__ void where(int* out) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int* row = out + 6 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
    row[0] = blockIdx.x, row[1] = blockIdx.y, row[2] = blockIdx.z;
    row[3] = threadIdx.x, row[4] = threadIdx.y, row[5] = threadIdx.z;
}
KERNEL(where);

// Sums blockDim.x numbers per block; leaves out the first of its barriers if told to.
extern "C" __global__ void block_sum(const int* in, int* out, const int careless) {
    DYNAMIC_SHARED(int, part);
    part[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
    if (!careless) __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}
KERNEL(block_sum);

// Turns each warp's numbers round through shared memory, ordered by __syncwarp or, wrongly, by a shuffle only.
extern "C" __global__ void warp_reverse(const int* in, int* out, const int careless) {
    __shared__ int cell[128];
    const unsigned lane = threadIdx.x % 32;
    cell[threadIdx.x] = in[threadIdx.x];
    if (careless) {
        __shfl_sync(0xffffffffu, 0, 0);
    } else {
        __syncwarp();
    }
    out[threadIdx.x] = cell[threadIdx.x - lane + 31 - lane];
}
KERNEL(warp_reverse);

extern "C" __global__ void warp_functions(const int* in, int* out) {
    const unsigned all = 0xffffffffu;
    const int value = in[threadIdx.x];
    int* row = out + 10 * threadIdx.x;
    row[0] = __shfl_sync(all, value, 5);
    row[1] = __shfl_sync(all, value, 5, 8);
    row[2] = __shfl_up_sync(all, value, 3, 16);
    row[3] = __shfl_down_sync(all, value, 9);
    row[4] = __shfl_xor_sync(all, value, 12);
    row[5] = static_cast<int>(__ballot_sync(all, value & 1));
    row[6] = __any_sync(all, value > 90);
    row[7] = __all_sync(all, value < 99);
    row[8] = static_cast<int>(__match_any_sync(all, value / 10));
    row[9] = static_cast<int>(__shfl_xor_sync(all, 3.5 * value, 1));
}
KERNEL(warp_functions);

// The two halves of a warp vote apart, the upper half twice as often; odd warps lose a thread first.
extern "C" __global__ void half_warps(int* out) {
    if (threadIdx.x == 33) {
        out[threadIdx.x] = -1;
        return;
    }
    const unsigned lane = threadIdx.x % 32;
    const unsigned mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    unsigned result = 0;
    for (unsigned round = 0; round < (lane < 16 ? 2u : 4u); ++round) result += __ballot_sync(mask, lane % 4 == round);
    out[threadIdx.x] = static_cast<int>(result);
    __syncthreads();
}
KERNEL(half_warps);

extern "C" __global__ void votes(const int* in, int* out) {
    const int value = in[threadIdx.x];
    out[3 * threadIdx.x] = __syncthreads_count(value > 1);
    out[3 * threadIdx.x + 1] = __syncthreads_or(value > 3);
    out[3 * threadIdx.x + 2] = __syncthreads_and(value > 0);
}
KERNEL(votes);

struct Extremes {
    int sum, least, most;
    unsigned bits;
    unsigned long long count;
    float total;
    int swaps;
};

extern "C" __global__ void atomics(const int* in, Extremes* out, int* ticket_of, const int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    ticket_of[i] = static_cast<int>(atomicAdd(&out->count, 1ull));
    atomicAdd(&out->sum, in[i]);
    atomicMin(&out->least, in[i]);
    atomicMax(&out->most, in[i]);
    atomicOr(&out->bits, 1u << (in[i] & 31));
    atomicAdd(&out->total, 0.5f);
    int seen = out->swaps, before;
    do {
        before = seen;
        seen = atomicCAS(&out->swaps, before, before + 2);
    } while (seen != before);
}
KERNEL(atomics);

extern "C" __global__ void to_float(const half* in, float* out) {
    out[blockIdx.x * blockDim.x + threadIdx.x] = __half2float(in[blockIdx.x * blockDim.x + threadIdx.x]);
}
KERNEL(to_float);

extern "C" __global__ void to_half(const float* in, half* out) {
    out[blockIdx.x * blockDim.x + threadIdx.x] = __float2half_rn(in[blockIdx.x * blockDim.x + threadIdx.x]);
}
KERNEL(to_half);

extern "C" __global__ void bits(const int* in, int* out) {
    const int value = in[threadIdx.x];
    int* row = out + 6 * threadIdx.x;
    row[0] = __popc(value), row[1] = __ffs(value), row[2] = __clz(value), row[3] = static_cast<int>(__brev(value));
    row[4] = __float2int_rn(static_cast<float>(value) * 0.5f), row[5] = static_cast<int>(__umulhi(value, value));
}
KERNEL(bits);

// Writes what shared memory holds at the start of a block.
extern "C" __global__ void fresh_shared(unsigned* out) {
    __shared__ unsigned fixed[32];
    DYNAMIC_SHARED(unsigned, sized);
    out[2 * threadIdx.x] = fixed[threadIdx.x];
    out[2 * threadIdx.x + 1] = sized[threadIdx.x];
    fixed[threadIdx.x] = sized[threadIdx.x] = 7;
}
KERNEL(fresh_shared);

extern "C" __global__ void copy_to(const int* in, int* out, const int offset) {
    const int lane = threadIdx.x;
    out[lane + offset] = in[lane];
}
KERNEL(copy_to);

extern "C" __global__ void write_shared(int* out, const int at, const int dynamic) {
    __shared__ int fixed[32];
    DYNAMIC_SHARED(int, sized);
    int* cells = dynamic ? sized : fixed;
    cells[at] = 1;
    out[0] = cells[at];
}
KERNEL(write_shared);

extern "C" __global__ void read_vector(const float* in, float* out, const int at) {
    const float4 v = *reinterpret_cast<const float4*>(in + at);
    out[0] = v.x + v.y + v.z + v.w;
}
KERNEL(read_vector);

extern "C" __global__ void misuse(int* out, const int which) {
    const unsigned all = 0xffffffffu;
    const int lane = threadIdx.x;
    if (which == 0) {
        if (lane == 3) __syncthreads();
        out[lane] = static_cast<int>(__ballot_sync(all, 1));
    } else if (which == 1) {
        out[lane] = static_cast<int>(__ballot_sync(1u, 1));
    } else if (which == 2) {
        if (lane == 7) return;
        out[lane] = __shfl_sync(all, lane, 7);
    } else if (which == 3) {
        out[lane] = lane < 4 ? __shfl_sync(all, lane, 0) : static_cast<int>(__ballot_sync(all, 1));
    } else if (lane == 5) {
        __trap();
    }
}
KERNEL(misuse);
