// From code values to whole levels of blue, green and red, 0 to 255.
#pragma once

#include "surface.cuh"

// To the nearest whole number, ties to even, for values below 4 million: two additions, where a conversion would run at
// a quarter of their rate.
__device__ __forceinline__ float nearest_whole(float value) {
    const float shift = 12582912.0f;  // 1.5 * 2^23: the sum has no fraction bits left
    return (value + shift) - shift;
}

__device__ __forceinline__ float to_level(float value) {
    return nearest_whole(fminf(fmaxf(value, 0.0f), 255.0f));
}

// The parenthesis is what two by two pixels of 4:2:0 share.
__device__ __forceinline__ float apply_row(const float* row, const Channels& pixel) {
    return row[0] * pixel.first + (row[1] * pixel.second + row[2] * pixel.third + row[3]);
}

// Whole levels of blue, green and red; packed pictures have them already, but for the rounding of a resampling.
__device__ __forceinline__ Channels bgr_levels(const FrameDescriptor& frame, const Channels& pixel) {
    if (frame.layout == kPackedBgr) {
        return {to_level(pixel.first), to_level(pixel.second), to_level(pixel.third)};
    }
    return {to_level(apply_row(frame.to_bgr, pixel)), to_level(apply_row(frame.to_bgr + 4, pixel)),
            to_level(apply_row(frame.to_bgr + 8, pixel))};
}
