// Candidates: what the network says about one anchor, and the key that orders them.
//
// A frame may pass through the network several times (a pyramid); its candidates share one list, so that merging the
// passes is nothing but sorting. Coordinates are computed in single precision whatever the maps hold, in the order of
// the NumPy reference and without fused multiply-adds: its results then differ by the exponential only.
#pragma once

#include "anchors.cuh"

constexpr int kMaxPasses = 4;

enum Layout {
    kFused = 0,    // one map per level, (batch, sizes * 16, rows, columns): all scores, all boxes, all landmarks
    kClassic = 1,  // three tensors (batch, anchors, 4 | 2 | 10): offsets, probabilities, offsets
    kDecoded = 2,  // as classic, but boxes xyxy and landmarks are pixels of the network's input already
};

// One pass of all frames through the network, in one batch.
struct Pass {
    const void* maps[kMaxLevels];
    Level levels[kMaxLevels];
    int level_count;
    int anchors;  // of one frame
    int layout;
    int is_half;
    float threshold;  // the least logit (fused) or probability
    float near_variance;
    float size_variance;
    int number;  // among the passes; ties go to the lower
};

struct Passes {
    Pass pass[kMaxPasses];
};

// Where a frame lies in the batch of every pass, and how coordinates map back to its pixels.
struct Placed {
    int width, height;     // of the upright frame
    int item[kMaxPasses];  // -1: the frame is not in this pass
    float scale_x[kMaxPasses];
    float scale_y[kMaxPasses];
};

// Per frame, in this order.
enum Count { kFound = 0, kNotANumber = 1, kFaces = 2, kOverflow = 3, kCounts = 4 };

// Of the count kOverflow. What is lost beyond the first is arbitrary, beyond the others it is the worst.
enum OverflowFlag { kListFull = 1, kBeyondLimit = 2, kBeyondMaxFaces = 4 };

using Key = unsigned long long;
constexpr Key kNoKey = ~0ull;

__device__ inline float read_value(const void* values, size_t at, int is_half) {
    return is_half ? __half2float(static_cast<const half*>(values)[at]) : static_cast<const float*>(values)[at];
}

// Ascending keys are candidates from the best: by score, then pass, then anchor.
__device__ inline Key key_of(float score, int pass, int anchor) {
    const unsigned bits = __float_as_uint(score + 0.0f);  // -0 becomes 0
    const unsigned ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<Key>(~ascending) << 32 | static_cast<unsigned>(pass) << 28 | static_cast<unsigned>(anchor);
}

__device__ inline float score_of(Key key) {
    const unsigned ascending = ~static_cast<unsigned>(key >> 32);
    return __uint_as_float(ascending >> 31 ? ascending & 0x7fffffffu : ~ascending);
}

__device__ inline int pass_of(Key key) { return static_cast<int>(static_cast<unsigned>(key) >> 28); }
__device__ inline int anchor_of(Key key) { return static_cast<int>(static_cast<unsigned>(key) & 0x0fffffffu); }

// The values of one anchor: box offsets 0..3 and landmark offsets 4..13.
struct Reader {
    const void* boxes;
    const void* landmarks;
    size_t box, landmark, step;
    int is_half;

    __device__ float operator()(int k) const {
        return k < 4 ? read_value(boxes, box + k * step, is_half)
                     : read_value(landmarks, landmark + (k - 4) * step, is_half);
    }
};

__device__ inline Reader reader_of(const Pass& pass, const Anchor& anchor, int index, int item) {
    if (pass.layout != kFused) {
        const size_t row = static_cast<size_t>(item) * pass.anchors + index;
        return {pass.maps[0], pass.maps[2], row * 4, row * 10, 1, pass.is_half};
    }
    const size_t cells = static_cast<size_t>(anchor.level->rows) * anchor.level->columns;
    const size_t sizes = anchor.level->sizes;
    const size_t start = item * sizes * 16 * cells + anchor.cell;
    const void* map = pass.maps[anchor.number];
    return {map,   map, start + (2 * sizes + 4 * anchor.which) * cells, start + (6 * sizes + 10 * anchor.which) * cells,
            cells, pass.is_half};
}

// A candidate in pixels of its upright frame.
struct Candidate {
    float4 box;  // xyxy, not clipped
    float landmarks[10];
    bool is_number;
};

__device__ inline Candidate decode_candidate(const Passes& passes, const Placed& placed, Key key) {
    const int number = pass_of(key), index = anchor_of(key);
    const Pass& pass = passes.pass[number];
    const Anchor anchor = anchor_at(pass.levels, pass.level_count, index);
    const Reader value = reader_of(pass, anchor, index, placed.item[number]);
    const float scale_x = placed.scale_x[number], scale_y = placed.scale_y[number];
    Candidate found;
    found.is_number = true;
    float box[4];
    for (int k = 0; k < 4; ++k) {
        box[k] = value(k);
        found.is_number &= !isnan(box[k]);
    }
    if (pass.layout != kDecoded) {
        const float x = __fadd_rn(anchor.x, __fmul_rn(__fmul_rn(box[0], pass.near_variance), anchor.size));
        const float y = __fadd_rn(anchor.y, __fmul_rn(__fmul_rn(box[1], pass.near_variance), anchor.size));
        // exp(10) times the largest anchor is far beyond any picture; it keeps a wild offset from becoming infinite
        const float w = __fmul_rn(anchor.size, expf(fminf(__fmul_rn(box[2], pass.size_variance), 10.0f))) * 0.5f;
        const float h = __fmul_rn(anchor.size, expf(fminf(__fmul_rn(box[3], pass.size_variance), 10.0f))) * 0.5f;
        box[0] = __fsub_rn(x, w), box[1] = __fsub_rn(y, h), box[2] = __fadd_rn(x, w), box[3] = __fadd_rn(y, h);
    }
    found.box = make_float4(__fdiv_rn(box[0], scale_x), __fdiv_rn(box[1], scale_y), __fdiv_rn(box[2], scale_x),
                            __fdiv_rn(box[3], scale_y));
    const float unit = __fmul_rn(pass.near_variance, anchor.size);
#pragma unroll
    for (int k = 0; k < 10; ++k) {
        float v = value(4 + k);
        found.is_number &= !isnan(v);
        if (pass.layout != kDecoded) v = __fadd_rn(k % 2 == 0 ? anchor.x : anchor.y, __fmul_rn(v, unit));
        found.landmarks[k] = __fdiv_rn(v, k % 2 == 0 ? scale_x : scale_y);
    }
    return found;
}
