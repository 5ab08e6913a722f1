// Sorting keys by one thread block: bitonic, so that the order of threads never shows.
#pragma once

#include "candidates.cuh"

// The least power of two that is not below n.
__device__ inline int power_of_two(int n) {
    int size = 1;
    while (size < n) size *= 2;
    return size;
}

__device__ inline void order_pair(Key* keys, int first, int second, bool ascending) {
    const Key a = keys[first], b = keys[second];
    if ((a > b) == ascending) {
        keys[first] = b;
        keys[second] = a;
    }
}

// Merges `count` keys, which begin at place `start` of the whole, at the distances `distance`, `distance` / 2, ..., 1.
__device__ inline void merge_runs(Key* keys, int count, int start, int run, int distance) {
    for (; distance > 0; distance /= 2) {
        __syncthreads();
        for (int i = threadIdx.x; i < count / 2; i += blockDim.x) {
            const int first = 2 * i - (i & (distance - 1));
            order_pair(keys, first, first + distance, ((start + first) & run) == 0);
        }
    }
}

// Sorts `count` keys, a power of two, in shared or global memory; begins and ends with a barrier.
__device__ inline void sort_keys(Key* keys, int count, int start = 0) {
    for (int run = 2; run <= count; run *= 2) merge_runs(keys, count, start, run, run / 2);
    __syncthreads();
}

// Sorts `count` keys in global memory, a power of two, with a chunk of `size` keys in shared memory, a power of two.
__device__ inline void sort_by_chunks(Key* keys, int count, Key* chunk, int size) {
    if (count < size) size = count;
    for (int run = size; run <= count; run *= 2) {
        for (int distance = run / 2; distance >= size; distance /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < count / 2; i += blockDim.x) {
                const int first = 2 * i - (i & (distance - 1));
                order_pair(keys, first, first + distance, (first & run) == 0);
            }
        }
        for (int start = 0; start < count; start += size) {
            __syncthreads();
            for (int i = threadIdx.x; i < size; i += blockDim.x) chunk[i] = keys[start + i];
            if (run == size) {
                sort_keys(chunk, size, start);
            } else {
                merge_runs(chunk, size, start, run, size / 2);
                __syncthreads();
            }
            for (int i = threadIdx.x; i < size; i += blockDim.x) keys[start + i] = chunk[i];
        }
    }
    __syncthreads();
}

// What select_best needs in shared memory.
struct Selection {
    int histogram[256];
    int digit, remaining, whole, taken;
};

// Copies the `wanted` least of `count` different keys, in no order, where more than that are given.
__device__ inline void select_best(const Key* keys, int count, Key* best, int wanted, Selection& shared) {
    Key prefix = 0, mask = 0;
    int remaining = wanted;
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < 256; i += blockDim.x) shared.histogram[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            if ((keys[i] & mask) == prefix) atomicAdd(shared.histogram + (keys[i] >> shift & 255u), 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int digit = 0;
            while (shared.histogram[digit] < remaining) remaining -= shared.histogram[digit++];
            shared.digit = digit;
            shared.remaining = remaining;
            shared.whole = shared.histogram[digit] == remaining;
            shared.taken = 0;
        }
        __syncthreads();
        remaining = shared.remaining;
        prefix |= static_cast<Key>(shared.digit) << shift;
        mask |= 255ull << shift;
        if (shared.whole) break;
    }
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        if ((keys[i] & mask) > prefix) continue;
        const int place = atomicAdd(&shared.taken, 1);
        if (place < wanted) best[place] = keys[i];
    }
    __syncthreads();
}
