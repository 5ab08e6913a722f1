// The faces of a batch as detection leaves them, in pixels of the upright pictures, and where they lie as stored.
#pragma once

#include "frame_descriptor.cuh"

constexpr int kFaceFloats = 16;  // x1, y1, x2, y2, score, five landmarks x y, the anchor (not used here)
constexpr int kFaceLandmarks = 5;

// (batch, most, 16) floats, best first, as detection writes them, and how many of each picture are meant.
struct FaceBatch {
    const float* faces;
    const int* counts;
    int step;  // from one picture's count to the next one's
    int most;
};

// Borders in pixels; a pixel belongs to a box where its centre does.
struct Box {
    double left;
    double top;
    double right;
    double bottom;
};

struct Point {
    double x;
    double y;
};

// Whole pixels [x0, x1) x [y0, y1).
struct PixelRange {
    int x0;
    int y0;
    int x1;
    int y1;
};

__device__ __forceinline__ int face_count(const FaceBatch& batch, int picture) {
    return max(0, min(batch.counts[picture * batch.step], batch.most));
}

__device__ __forceinline__ const float* face_row(const FaceBatch& batch, int picture, int face) {
    return batch.faces + (static_cast<long long>(picture) * batch.most + face) * kFaceFloats;
}

__device__ __forceinline__ Point stored_point(const FrameDescriptor& frame, double x, double y) {
    switch (frame.quarter_turns) {
        case 1:
            return {frame.width - y, x};
        case 2:
            return {frame.width - x, frame.height - y};
        case 3:
            return {y, frame.height - x};
        default:
            return {x, y};
    }
}

__device__ __forceinline__ Box stored_box(const FrameDescriptor& frame, const float* face) {
    const Point a = stored_point(frame, face[0], face[1]);
    const Point b = stored_point(frame, face[2], face[3]);
    switch (frame.quarter_turns) {
        case 1:
            return {b.x, a.y, a.x, b.y};
        case 2:
            return {b.x, b.y, a.x, a.y};
        case 3:
            return {a.x, b.y, b.x, a.y};
        default:
            return {a.x, a.y, b.x, b.y};
    }
}

__device__ __forceinline__ bool is_finite(const Box& box) {
    return isfinite(box.left) && isfinite(box.top) && isfinite(box.right) && isfinite(box.bottom);
}

// The first pixel whose centre is not before this border; far enough outside of any picture is as good as farther.
__device__ __forceinline__ int first_pixel(double border) {
    return static_cast<int>(ceil(fmin(fmax(border, -1e6), 1e6) - 0.5));
}

__device__ __forceinline__ PixelRange pixels_of(const Box& box) {
    return {first_pixel(box.left), first_pixel(box.top), first_pixel(box.right), first_pixel(box.bottom)};
}

__device__ __forceinline__ bool contains(const PixelRange& range, int x, int y) {
    return x >= range.x0 && x < range.x1 && y >= range.y0 && y < range.y1;
}

__device__ __forceinline__ bool overlap(const PixelRange& a, const PixelRange& b) {
    return a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1;
}
