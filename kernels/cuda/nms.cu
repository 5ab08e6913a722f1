// From each frame's list of candidates to its faces, in rows of fixed number. The reference is postprocess.final_faces.
//
// All five kernels are queued for every batch and no count travels to the host: a frame with up to `fast_limit`
// candidates is done wholly by one block of faces_of_few, any other by the four kernels after it, and where a kernel
// has nothing to do its blocks return at once. Buffers of the second way hold per frame, with n = limit: `ordered`
// power_of_two(n) keys, `boxes` and `alive` n rounded up to 64 (32 per word of `alive`), `overlap_bits`
// n * ceil(n / 64) words.
#include "nms.cuh"
#include "sort.cuh"

constexpr int kFastCandidates = 1024;
constexpr int kMaxCandidates = 16384;
constexpr int kMaxFaces = 4096;
constexpr int kChunk = 4096;

__device__ inline int tiles_of(int count) { return (count + kTile - 1) / kTile; }

// How many candidates a frame's list holds.
__device__ inline int listed(const int* counts, const NmsSettings& settings) {
    return min(counts[blockIdx.y * kCounts + kFound], settings.capacity);
}

// The words of a frame's matrix of overlaps: one per candidate and tile.
__device__ inline size_t overlap_words(const NmsSettings& settings) {
    return static_cast<size_t>(settings.limit) * tiles_of(settings.limit);
}

// Decodes candidate `i` of `count` by its warp, writes its box, and returns the votes of the warp for those alive.
__device__ inline unsigned decode_box(const Passes& passes, const Placed& placed, const Key* keys, int i, int count,
                                      float4* boxes, int* counts) {
    bool alive = false;
    if (i < count) {
        const Candidate found = decode_candidate(passes, placed, keys[i]);
        boxes[i] = found.box;
        alive = found.is_number && has_area(found.box, placed);
        if (!found.is_number) atomicAdd(counts + kNotANumber, 1);
    }
    return __ballot_sync(0xffffffffu, alive);
}

// Grid: (1, frames); block: a multiple of 32.
extern "C" __global__ void __launch_bounds__(1024)
    faces_of_few(const __grid_constant__ Passes passes, const Placed* placed, const Key* lists, int* counts,
                 float* rows, const NmsSettings settings) {
    __shared__ Key keys[kFastCandidates];
    __shared__ float4 boxes[kFastCandidates];
    __shared__ unsigned alive[kFastCandidates / 32];
    __shared__ Bits near[kTile];
    __shared__ unsigned short chosen[kFastCandidates];
    const int frame = blockIdx.y;
    const int total = listed(counts, settings);
    if (total > settings.fast_limit) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;

    const int size = power_of_two(total);
    const Key* list = lists + static_cast<size_t>(frame) * settings.capacity;
    for (int i = threadIdx.x; i < size; i += blockDim.x) keys[i] = i < total ? list[i] : kNoKey;
    sort_keys(keys, size);

    const int count = min(total, settings.limit);
    for (int i = threadIdx.x; i < tiles_of(count) * kTile; i += blockDim.x) {
        const unsigned votes = decode_box(passes, placed[frame], keys, i, count, boxes, counts + frame * kCounts);
        if (lane == 0) alive[i / 32] = votes;
    }
    __syncthreads();

    int found = 0;
    for (int tile = 0; tile < tiles_of(count) && found <= settings.max_faces; ++tile) {
        const int first = tile * kTile;
        const Bits pending = alive[2 * tile] | static_cast<Bits>(alive[2 * tile + 1]) << 32;
        for (int i = warp; i < kTile; i += warps) {
            if ((pending >> i & 1u) == 0) continue;
            const bool low = pending >> lane & 1u, high = pending >> (lane + 32) & 1u;
            const unsigned votes_low =
                __ballot_sync(0xffffffffu, low && overlaps(boxes[first + i], boxes[first + lane], settings));
            const unsigned votes_high =
                __ballot_sync(0xffffffffu, high && overlaps(boxes[first + i], boxes[first + lane + 32], settings));
            if (lane == 0) near[i] = votes_low | static_cast<Bits>(votes_high) << 32;
        }
        __syncthreads();
        // one more than wanted, so that reaching the limit can be told from exceeding it
        const Bits kept = choose(pending, near, settings.max_faces + 1 - found);
        note_chosen(kept, tile, found, chosen);
        found += __popcll(kept);
        for (int i = first + kTile + threadIdx.x; i < tiles_of(count) * kTile; i += blockDim.x) {
            bool covered = false;
            if (alive[i / 32] >> lane & 1u) {
                for (Bits left = kept; left != 0 && !covered; left &= left - 1) {
                    covered = overlaps(boxes[first + __ffsll(static_cast<long long>(left)) - 1], boxes[i], settings);
                }
            }
            const unsigned votes = __ballot_sync(0xffffffffu, covered);
            __syncwarp();  // all lanes have read the word
            if (lane == 0) alive[i / 32] &= ~votes;
        }
        __syncthreads();
    }
    write_faces(passes, placed[frame], settings, keys, chosen, found,
                rows + static_cast<size_t>(frame) * settings.max_faces * kRow, counts + frame * kCounts);
}
KERNEL(faces_of_few);

// The best `limit` keys of a frame, sorted. Grid: (1, frames); block: any.
extern "C" __global__ void __launch_bounds__(1024)
    order_candidates(const Key* lists, const int* counts, Key* ordered, const NmsSettings settings) {
    __shared__ Key chunk[kChunk];
    __shared__ Selection selection;
    const int frame = blockIdx.y;
    const int total = listed(counts, settings);
    if (total <= settings.fast_limit) return;
    const int count = min(total, settings.limit);
    const Key* list = lists + static_cast<size_t>(frame) * settings.capacity;
    Key* keys = ordered + static_cast<size_t>(frame) * power_of_two(settings.limit);
    if (total > count) {
        select_best(list, total, keys, count, selection);
    } else {
        for (int i = threadIdx.x; i < count; i += blockDim.x) keys[i] = list[i];
    }
    const int size = power_of_two(count);
    for (int i = count + threadIdx.x; i < size; i += blockDim.x) keys[i] = kNoKey;
    sort_by_chunks(keys, size, chunk, kChunk);
}
KERNEL(order_candidates);

// Boxes of the sorted candidates. Grid: (any, frames), block: a multiple of 32.
extern "C" __global__ void __launch_bounds__(256)
    decode_candidates(const __grid_constant__ Passes passes, const Placed* placed, const Key* ordered, int* counts,
                      float4* boxes, unsigned* alive, const NmsSettings settings) {
    const int frame = blockIdx.y;
    const int total = listed(counts, settings);
    if (total <= settings.fast_limit) return;
    const int count = min(total, settings.limit);
    const size_t pitch = static_cast<size_t>(tiles_of(settings.limit)) * kTile;
    const Key* keys = ordered + static_cast<size_t>(frame) * power_of_two(settings.limit);
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < tiles_of(count) * kTile; i += gridDim.x * blockDim.x) {
        const unsigned votes =
            decode_box(passes, placed[frame], keys, i, count, boxes + frame * pitch, counts + frame * kCounts);
        if (threadIdx.x % 32 == 0) alive[(frame * pitch + i) / 32] = votes;
    }
}
KERNEL(decode_candidates);

// Which candidates overlap which of their own and later tiles. Grid: (any, frames); block: a multiple of 64, at most
// 256. A block takes tiles of 64 candidates in turn, and compares each with as many tiles at once as it has 64 threads.
extern "C" __global__ void __launch_bounds__(256)
    overlap_candidates(const float4* boxes, const int* counts, Bits* overlap_bits, const NmsSettings settings) {
    __shared__ float4 others[256];
    const int frame = blockIdx.y;
    const int total = listed(counts, settings);
    if (total <= settings.fast_limit) return;
    const int count = min(total, settings.limit);
    const int tiles = tiles_of(count), at_once = blockDim.x / kTile;
    const float4* frame_boxes = boxes + static_cast<size_t>(frame) * tiles_of(settings.limit) * kTile;
    Bits* bits = overlap_bits + frame * overlap_words(settings);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int row = tile * kTile + threadIdx.x % kTile;
        const float4 box = frame_boxes[min(row, count - 1)];
        for (int start = tile; start < tiles; start += at_once) {
            __syncthreads();
            others[threadIdx.x] = frame_boxes[min(start * kTile + static_cast<int>(threadIdx.x), count - 1)];
            __syncthreads();
            const int column = start + threadIdx.x / kTile;
            if (row >= count || column >= tiles) continue;
            const float4* other = others + threadIdx.x / kTile * kTile;
            Bits word = 0;
            for (int k = 0; k < kTile; ++k) {
                if (overlaps(box, other[k], settings)) word |= 1ull << k;
            }
            bits[static_cast<size_t>(row) * tiles_of(settings.limit) + column] = word;
        }
    }
}
KERNEL(overlap_candidates);

// The greedy choice, tile by tile. Grid: (1, frames); block: any.
extern "C" __global__ void __launch_bounds__(1024)
    faces_of_many(const __grid_constant__ Passes passes, const Placed* placed, const Key* ordered,
                  const unsigned* alive, const Bits* overlap_bits, int* counts, float* rows,
                  const NmsSettings settings) {
    __shared__ Bits left[kMaxCandidates / kTile];
    __shared__ Bits near[kTile];
    __shared__ unsigned short chosen[kMaxFaces + 1];
    const int frame = blockIdx.y;
    const int total = listed(counts, settings);
    if (total <= settings.fast_limit) return;
    const int pitch = tiles_of(settings.limit);
    const int tiles = tiles_of(min(total, settings.limit));
    const unsigned* words = alive + static_cast<size_t>(frame) * pitch * 2;
    const Bits* bits = overlap_bits + frame * overlap_words(settings);
    for (int i = threadIdx.x; i < tiles; i += blockDim.x) {
        left[i] = words[2 * i] | static_cast<Bits>(words[2 * i + 1]) << 32;
    }
    __syncthreads();

    int found = 0;
    for (int tile = 0; tile < tiles && found <= settings.max_faces; ++tile) {
        const Bits pending = left[tile];
        const Bits* tile_rows = bits + static_cast<size_t>(tile) * kTile * pitch;
        for (int i = threadIdx.x; i < kTile; i += blockDim.x) {
            if (pending >> i & 1u) near[i] = tile_rows[static_cast<size_t>(i) * pitch + tile];
        }
        __syncthreads();
        const Bits kept = choose(pending, near, settings.max_faces + 1 - found);
        note_chosen(kept, tile, found, chosen);
        found += __popcll(kept);
        for (int i = tile + 1 + threadIdx.x; i < tiles; i += blockDim.x) {
            Bits covered = 0;
            for (Bits more = kept; more != 0; more &= more - 1) {
                const size_t row = __ffsll(static_cast<long long>(more)) - 1;
                covered |= tile_rows[row * pitch + i];
            }
            left[i] &= ~covered;
        }
        __syncthreads();
    }
    write_faces(passes, placed[frame], settings, ordered + static_cast<size_t>(frame) * power_of_two(settings.limit),
                chosen, found, rows + static_cast<size_t>(frame) * settings.max_faces * kRow, counts + frame * kCounts);
}
KERNEL(faces_of_many);
