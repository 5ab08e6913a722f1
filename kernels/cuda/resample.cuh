// One pixel of a picture resampled to another size, by the definition in kernels/preprocess.py.
//
// Positions are fractions with the target's size as denominator, kept as whole numbers: a 32-bit float has 1/4096 pixel
// left at the far end of a 4K row, which shows in the weights. Sides are at most 32,767, so that products fit.
#pragma once

#include "surface.cuh"

// The two nearest pixel centres of one axis, edges replicated, and the weight of the second.
struct Neighbours {
    int first;
    int second;
    float share;
};

// What an output pixel covers of one axis: [begin, end) in 1/target of a sample, which touches samples first to last.
struct Footprint {
    int begin;
    int end;
    int first;
    int last;
};

__device__ __forceinline__ Neighbours neighbours(int index, int source, int target) {
    const int twice = (2 * index + 1) * source - target;  // the position of the centre, times 2 * target
    const int whole = twice < 0 ? -1 : twice / (2 * target);
    const float share = static_cast<float>(twice - whole * 2 * target) / static_cast<float>(2 * target);
    return {max(whole, 0), min(whole + 1, source - 1), share};
}

__device__ __forceinline__ Footprint footprint(int index, int source, int target) {
    const int begin = index * source;
    const int end = begin + source;
    return {begin, end, begin / target, (end - 1) / target};
}

// Length of samples [first, last) inside the footprint, in 1/target of a sample.
__device__ __forceinline__ float covered(const Footprint& print, int first, int last, int target) {
    return static_cast<float>(min(print.end, last * target) - max(print.begin, first * target));
}

__device__ __forceinline__ Channels bilinear(
    const FrameDescriptor& frame, int x, int y, int target_width, int target_height) {
    const Neighbours across = neighbours(x, frame.width, target_width);
    const Neighbours down = neighbours(y, frame.height, target_height);
    const Channels upper = mix(stored_pixel(frame, across.first, down.first),
                               stored_pixel(frame, across.second, down.first), across.share);
    const Channels lower = mix(stored_pixel(frame, across.first, down.second),
                               stored_pixel(frame, across.second, down.second), across.share);
    return mix(upper, lower, down.share);
}

__device__ __forceinline__ float first_channel_mean(const FrameDescriptor& frame, const Footprint& across,
                                                    const Footprint& down, int target_width, int target_height) {
    float sum = 0.0f;
    for (int row = down.first; row <= down.last; ++row) {
        float row_sum = 0.0f;
        for (int column = across.first; column <= across.last; ++column) {
            row_sum += covered(across, column, column + 1, target_width) * first_channel(frame, column, row);
        }
        sum += covered(down, row, row + 1, target_height) * row_sum / static_cast<float>(frame.width);
    }
    return sum / static_cast<float>(frame.height);
}

// Every chroma sample is read once and weighted by what the footprint covers of its cell: the mean of the replicated
// samples, without replicating them.
__device__ __forceinline__ void other_channel_means(const FrameDescriptor& frame, const Footprint& across,
                                                    const Footprint& down, int target_width, int target_height,
                                                    float& second, float& third) {
    const int wide = frame.shift_x;
    const int high = frame.shift_y;
    second = 0.0f;
    third = 0.0f;
    for (int row = down.first >> high; row <= down.last >> high; ++row) {
        float second_sum = 0.0f;
        float third_sum = 0.0f;
        for (int column = across.first >> wide; column <= across.last >> wide; ++column) {
            const float weight = covered(across, column << wide, (column + 1) << wide, target_width);
            float u;
            float v;
            other_channels(frame, column, row, u, v);
            second_sum += weight * u;
            third_sum += weight * v;
        }
        const float weight = covered(down, row << high, (row + 1) << high, target_height) /
                             static_cast<float>(frame.width);
        second += weight * second_sum;
        third += weight * third_sum;
    }
    second /= static_cast<float>(frame.height);
    third /= static_cast<float>(frame.height);
}

__device__ __forceinline__ Channels mean_of_footprint(
    const FrameDescriptor& frame, int x, int y, int target_width, int target_height) {
    const Footprint across = footprint(x, frame.width, target_width);
    const Footprint down = footprint(y, frame.height, target_height);
    Channels mean;
    mean.first = first_channel_mean(frame, across, down, target_width, target_height);
    other_channel_means(frame, across, down, target_width, target_height, mean.second, mean.third);
    return mean;
}

// Pixel (x, y) of the stored picture at target_width x target_height.
__device__ __forceinline__ Channels resampled_pixel(
    const FrameDescriptor& frame, int x, int y, int target_width, int target_height) {
    if (frame.width == target_width && frame.height == target_height) {
        return stored_pixel(frame, x, y);
    }
    if (frame.width >= 2 * target_width || frame.height >= 2 * target_height) {
        return mean_of_footprint(frame, x, y, target_width, target_height);
    }
    return bilinear(frame, x, y, target_width, target_height);
}
