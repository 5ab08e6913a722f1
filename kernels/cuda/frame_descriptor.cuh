// One decoded picture: where its samples lie, how they become BGR, and where it is placed in the network's input.
//
// kernels/descriptors.py mirrors this struct as a NumPy dtype; a test holds the two together byte by byte.
#pragma once

#include "device.cuh"

enum SampleLayout {
    kPackedBgr = 0,          // one plane of B, G, R
    kLumaOnly = 1,           // one plane; chroma is neutral
    kPlanarChroma = 2,       // planes Y, U, V
    kInterleavedChroma = 3,  // planes Y and UV
};

struct FrameDescriptor {
    unsigned long long planes[3];  // addresses, aligned to the sample
    int pitches[3];                // bytes from one row to the next
    int width;                     // of the picture as stored, at most 32,767, as is its height
    int height;
    unsigned char layout;  // a SampleLayout
    unsigned char shift_x;  // a chroma sample stands for 1 << shift_x luma columns, cropped at an odd edge
    unsigned char shift_y;
    unsigned char sample_bytes;   // 1 or 2
    unsigned char bits;           // depth of a sample
    unsigned char low_bits;       // unused bits below it in its container: 6 in P010
    unsigned char quarter_turns;  // counter-clockwise, that bring the stored picture upright
    unsigned char reserved;
    float code_values;   // 8-bit code values per stored unit: 1, 1/4 or 1/256
    float to_bgr[12];    // rows B, G, R of an affine map from (Y, U, V, 1), in 8-bit code values
    int left;            // the upright picture's place in the network's input, in pixels of the input
    int top;
    int placed_width;
    int placed_height;
    int unused[2];  // to 128 bytes: one cache line per frame
};

static_assert(sizeof(FrameDescriptor) == 128, "kernels/descriptors.py counts on this size");
