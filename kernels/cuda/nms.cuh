// Overlap of boxes, the greedy choice among 64 of them, and the row that a face becomes.
#pragma once

#include "candidates.cuh"

constexpr int kTile = 64;
constexpr int kRow = 16;  // box 4, score, landmarks 10, anchor (an integer: pass * 2^28 + index)

using Bits = unsigned long long;

// What the caller chose.
struct NmsSettings {
    int capacity;   // keys that a frame's list holds
    int limit;      // candidates that are compared, the best
    int max_faces;  // at most kMaxFaces
    int fast_limit;  // up to so many candidates one block does all, at most kFastCandidates
    float iou;
    int plus_one;  // a box of x1..x2 is x2 - x1 + 1 wide
    int clip;
};

// Exactly the reference's comparison: each operation rounds by itself, so that both decide equally at the threshold.
__device__ inline bool overlaps(const float4& a, const float4& b, const NmsSettings& settings) {
    const float extra = settings.plus_one ? 1.0f : 0.0f;
    const float width = __fadd_rn(__fsub_rn(fminf(a.z, b.z), fmaxf(a.x, b.x)), extra);
    const float height = __fadd_rn(__fsub_rn(fminf(a.w, b.w), fmaxf(a.y, b.y)), extra);
    if (!(width > 0.0f && height > 0.0f)) return false;
    const float shared = __fmul_rn(width, height);
    const float area_a = __fmul_rn(__fadd_rn(__fsub_rn(a.z, a.x), extra), __fadd_rn(__fsub_rn(a.w, a.y), extra));
    const float area_b = __fmul_rn(__fadd_rn(__fsub_rn(b.z, b.x), extra), __fadd_rn(__fsub_rn(b.w, b.y), extra));
    // without a division: a union of zero suppresses nothing
    return shared > __fmul_rn(settings.iou, __fsub_rn(__fadd_rn(area_a, area_b), shared));
}

__device__ inline float4 clipped(const float4& box, const Placed& placed) {
    const float width = static_cast<float>(placed.width), height = static_cast<float>(placed.height);
    return make_float4(fminf(fmaxf(box.x, 0.0f), width), fminf(fmaxf(box.y, 0.0f), height),
                       fminf(fmaxf(box.z, 0.0f), width), fminf(fmaxf(box.w, 0.0f), height));
}

// A box without area within the frame lies in the padding: it neither suppresses a face nor counts as one.
__device__ inline bool has_area(const float4& box, const Placed& placed) {
    const float4 inside = clipped(box, placed);
    return inside.z > inside.x && inside.w > inside.y;
}

// Chooses among a tile's candidates from the best; near[i] says which of the tile candidate i overlaps. What it says of
// better ones changes nothing: they are decided.
__device__ inline Bits choose(Bits pending, const Bits* near, int at_most) {
    Bits kept = 0;
    for (; pending != 0 && at_most > 0; --at_most) {
        const int best = __ffsll(static_cast<long long>(pending)) - 1;
        kept |= 1ull << best;
        pending &= ~(1ull << best) & ~near[best];
    }
    return kept;
}

// Notes a tile's chosen candidates in order; `before` were chosen in the tiles before it.
__device__ inline void note_chosen(Bits kept, int tile, int before, unsigned short* chosen) {
    for (int i = threadIdx.x; i < kTile; i += blockDim.x) {
        if (kept >> i & 1u) chosen[before + __popcll(kept & ((1ull << i) - 1ull))] = tile * kTile + i;
    }
}

// Writes all rows of a frame, zeros after the last face, and its counts.
__device__ inline void write_faces(const Passes& passes, const Placed& placed, const NmsSettings& settings,
                                   const Key* keys, const unsigned short* chosen, int found, float* rows, int* counts) {
    const int faces = min(found, settings.max_faces);
    for (int i = threadIdx.x; i < settings.max_faces; i += blockDim.x) {
        float4* row = reinterpret_cast<float4*>(rows + static_cast<size_t>(i) * kRow);
        if (i >= faces) {
            for (int k = 0; k < 4; ++k) row[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            continue;
        }
        const Key key = keys[chosen[i]];
        const Candidate face = decode_candidate(passes, placed, key);
        const float* p = face.landmarks;
        row[0] = settings.clip ? clipped(face.box, placed) : face.box;
        row[1] = make_float4(score_of(key), p[0], p[1], p[2]);
        row[2] = make_float4(p[3], p[4], p[5], p[6]);
        row[3] = make_float4(p[7], p[8], p[9], __uint_as_float(static_cast<unsigned>(key)));
    }
    if (threadIdx.x == 0) {
        const int total = counts[kFound];
        counts[kFaces] = faces;
        counts[kOverflow] = (total > settings.capacity ? kListFull : 0) | (total > settings.limit ? kBeyondLimit : 0) |
                            (found > settings.max_faces ? kBeyondMaxFaces : 0);
    }
}
