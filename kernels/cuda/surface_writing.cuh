// Writing samples of a surface in its own code values, such as 0 to 1023 for 10 bits.
#pragma once

#include "surface.cuh"

// Codes of luma and both chroma channels.
struct Codes {
    int y;
    int u;
    int v;
};

__device__ __forceinline__ void write_code(const FrameDescriptor& frame, int plane, int index, int row, int code) {
    const unsigned long long address = sample_address(frame, plane, index, row);
    const int stored = code << frame.low_bits;
    if (frame.sample_bytes == 1) {
        *reinterpret_cast<unsigned char*>(address) = static_cast<unsigned char>(stored);
    } else {
        *reinterpret_cast<unsigned short*>(address) = static_cast<unsigned short>(stored);
    }
}

__device__ __forceinline__ unsigned read_code(const FrameDescriptor& frame, int plane, int index, int row) {
    return stored_sample(frame, plane, index, row) >> frame.low_bits;
}

__device__ __forceinline__ bool has_chroma(const FrameDescriptor& frame) {
    return frame.layout == kPlanarChroma || frame.layout == kInterleavedChroma;
}

__device__ __forceinline__ void write_chroma(const FrameDescriptor& frame, int cell_x, int cell_y, int u, int v) {
    if (frame.layout == kInterleavedChroma) {
        write_code(frame, 1, 2 * cell_x, cell_y, u);
        write_code(frame, 1, 2 * cell_x + 1, cell_y, v);
    } else {
        write_code(frame, 1, cell_x, cell_y, u);
        write_code(frame, 2, cell_x, cell_y, v);
    }
}

__device__ __forceinline__ void read_chroma(
    const FrameDescriptor& frame, int cell_x, int cell_y, unsigned& u, unsigned& v) {
    if (frame.layout == kInterleavedChroma) {
        u = read_code(frame, 1, 2 * cell_x, cell_y);
        v = read_code(frame, 1, 2 * cell_x + 1, cell_y);
    } else {
        u = read_code(frame, 1, cell_x, cell_y);
        v = read_code(frame, 2, cell_x, cell_y);
    }
}
