// Reading samples of a surface of any layout, in 8-bit code values, and turning coordinates.
#pragma once

#include "frame_descriptor.cuh"

// Y, U, V, or B, G, R where the samples are stored so; 8-bit code values, whatever the depth.
struct Channels {
    float first;
    float second;
    float third;
};

__device__ __forceinline__ float mix(float first, float second, float share) {
    return first + share * (second - first);
}

__device__ __forceinline__ Channels mix(const Channels& first, const Channels& second, float share) {
    return {mix(first.first, second.first, share), mix(first.second, second.second, share),
            mix(first.third, second.third, share)};
}

struct Position {
    int x;
    int y;
};

__device__ __forceinline__ unsigned long long sample_address(
    const FrameDescriptor& frame, int plane, int index, int row) {
    return frame.planes[plane] + static_cast<unsigned long long>(row) * frame.pitches[plane] +
           static_cast<unsigned long long>(index) * frame.sample_bytes;
}

// No kernel reads samples that it writes. Saying so also tells the compiler that these addresses are global.
__device__ __forceinline__ unsigned stored_sample(const FrameDescriptor& frame, int plane, int index, int row) {
    const unsigned long long address = sample_address(frame, plane, index, row);
    if (frame.sample_bytes == 1) {
        return __ldg(reinterpret_cast<const unsigned char*>(address));
    }
    return __ldg(reinterpret_cast<const unsigned short*>(address));
}

__device__ __forceinline__ float sample(const FrameDescriptor& frame, int plane, int index, int row) {
    return static_cast<float>(stored_sample(frame, plane, index, row)) * frame.code_values;
}

// The channel with a value for every pixel: luma, or blue of a packed picture.
__device__ __forceinline__ float first_channel(const FrameDescriptor& frame, int x, int y) {
    return sample(frame, 0, frame.layout == kPackedBgr ? 3 * x : x, y);
}

// The other two channels of a cell: chroma at its own resolution, or green and red of a packed picture.
__device__ __forceinline__ void other_channels(
    const FrameDescriptor& frame, int cell_x, int cell_y, float& second, float& third) {
    switch (frame.layout) {
        case kPackedBgr:
            second = sample(frame, 0, 3 * cell_x + 1, cell_y);
            third = sample(frame, 0, 3 * cell_x + 2, cell_y);
            break;
        case kPlanarChroma:
            second = sample(frame, 1, cell_x, cell_y);
            third = sample(frame, 2, cell_x, cell_y);
            break;
        case kInterleavedChroma:
            second = sample(frame, 1, 2 * cell_x, cell_y);
            third = sample(frame, 1, 2 * cell_x + 1, cell_y);
            break;
        default:
            second = 128.0f;
            third = 128.0f;
    }
}

__device__ __forceinline__ Channels stored_pixel(const FrameDescriptor& frame, int x, int y) {
    Channels pixel;
    pixel.first = first_channel(frame, x, y);
    other_channels(frame, x >> frame.shift_x, y >> frame.shift_y, pixel.second, pixel.third);
    return pixel;
}

__device__ __forceinline__ bool lies_on_its_side(const FrameDescriptor& frame) {
    return (frame.quarter_turns & 1) != 0;
}

// Which pixel of a stored picture of width x height is seen at (x, y) once it stands upright.
__device__ __forceinline__ Position stored_position(int quarter_turns, int width, int height, int x, int y) {
    switch (quarter_turns) {
        case 1:
            return {width - 1 - y, x};
        case 2:
            return {width - 1 - x, height - 1 - y};
        case 3:
            return {y, height - 1 - x};
        default:
            return {x, y};
    }
}
