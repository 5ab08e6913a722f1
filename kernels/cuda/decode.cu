// From head maps to the keys of candidates: every anchor's score is read once, nothing else is read here.
//
// Grid: (blocks of one pass, frames); block: a multiple of 32 threads. The reference is decode.py.
#include "candidates.cuh"

// Anchors per thread; reads of a warp lie next to each other, so that both precisions are read in whole sectors.
constexpr int kPerThread = 4;

// A warp's passing anchors get consecutive places of the frame's list by one atomic addition.
__device__ inline void append(const bool* passes, const Key* keys, int* counts, Key* list, int capacity) {
    const unsigned all = 0xffffffffu;
    const unsigned lane = threadIdx.x % 32;
    unsigned votes[kPerThread];
    int total = 0, before = 0;
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
        votes[k] = __ballot_sync(all, passes[k]);
        before += __popc(votes[k] & ((1u << lane) - 1u));
        total += __popc(votes[k]);
    }
    if (total == 0) return;
    int place = 0;
    if (lane == 0) place = atomicAdd(counts + kFound, total);
    place = __shfl_sync(all, place, 0) + before;
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
        if (!passes[k]) continue;
        if (place < capacity) list[place] = keys[k];
        ++place;
    }
}

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(half value) { return __half2float(value); }

template <class Value>
__device__ void find_fused(const Pass& pass, const Placed* placed, int* counts, Key* lists, int capacity) {
    const int frame = blockIdx.y;
    const int item = placed[frame].item[pass.number];
    if (item < 0) return;
    // Each block reads a run of cells of one level's one size.
    const int per_block = kPerThread * blockDim.x;
    int number = 0, block = blockIdx.x, blocks;
    for (;; ++number) {
        if (number == pass.level_count) return;
        const Level& level = pass.levels[number];
        blocks = (level.rows * level.columns + per_block - 1) / per_block;
        if (block < blocks * level.sizes) break;
        block -= blocks * level.sizes;
    }
    const Level& level = pass.levels[number];
    const int cells = level.rows * level.columns;
    const int which = block / blocks;
    const Value* background = static_cast<const Value*>(pass.maps[number]) +
                              (static_cast<size_t>(item) * level.sizes * 16 + 2 * which) * cells;
    const Value* face = background + cells;
    const int start = (block - which * blocks) * per_block + threadIdx.x;
    float margins[kPerThread];
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
        const int cell = start + k * blockDim.x;
        // below any threshold, where there is no such cell
        margins[k] = cell < cells ? __fsub_rn(to_float(__ldg(face + cell)), to_float(__ldg(background + cell)))
                                  : -__uint_as_float(0x7f800000u);
    }
    bool passes[kPerThread];
    Key keys[kPerThread];
    int not_numbers = 0;
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
        const int cell = start + k * blockDim.x;
        passes[k] = cell < cells && margins[k] >= pass.threshold;
        not_numbers += isnan(margins[k]);
        keys[k] = kNoKey;
        if (!passes[k]) continue;
        // in double precision as in the reference, so that ties are the same: a handful of anchors come here
        const float score = static_cast<float>(1.0 / (1.0 + exp(-static_cast<double>(margins[k]))));
        keys[k] = key_of(score, pass.number, level.first_anchor + cell * level.sizes + which);
    }
    if (not_numbers > 0) atomicAdd(counts + frame * kCounts + kNotANumber, not_numbers);
    append(passes, keys, counts + frame * kCounts, lists + static_cast<size_t>(frame) * capacity, capacity);
}

template <class Value>
__device__ void find_classic(const Pass& pass, const Placed* placed, int* counts, Key* lists, int capacity) {
    const int frame = blockIdx.y;
    const int item = placed[frame].item[pass.number];
    if (item < 0) return;
    const Value* scores = static_cast<const Value*>(pass.maps[1]) + static_cast<size_t>(item) * pass.anchors * 2;
    const int start = blockIdx.x * kPerThread * blockDim.x + threadIdx.x;
    bool passes[kPerThread];
    Key keys[kPerThread];
    int not_numbers = 0;
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
        const int anchor = start + k * blockDim.x;
        const float score = anchor < pass.anchors ? to_float(__ldg(scores + 2 * anchor + 1)) : 0.0f;
        passes[k] = anchor < pass.anchors && score >= pass.threshold;
        not_numbers += isnan(score);
        keys[k] = key_of(score, pass.number, anchor);
    }
    if (not_numbers > 0) atomicAdd(counts + frame * kCounts + kNotANumber, not_numbers);
    append(passes, keys, counts + frame * kCounts, lists + static_cast<size_t>(frame) * capacity, capacity);
}

#define FIND(name, find, Value)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        name(const __grid_constant__ Pass pass, const Placed* placed, int* counts, Key* lists, const int capacity) { \
        find<Value>(pass, placed, counts, lists, capacity);                                                           \
    }                                                                                                                 \
    KERNEL(name)

FIND(find_fused_float, find_fused, float);
FIND(find_fused_half, find_fused, half);
FIND(find_classic_float, find_classic, float);
FIND(find_classic_half, find_classic, half);
