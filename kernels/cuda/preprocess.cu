// From decoded planes to network input, a whole batch in one launch. The definition is kernels/preprocess.py.
//
// A block fills a tile of one picture's input. Pictures in 4:2:0 that are neither turned nor resized, which is what a
// detector at native size reads, take native_tile: a thread reads a group of neighbouring samples of two rows and the
// chroma they share, once, and writes whole groups. All others take general_tile: a lane computes pixels that lie a
// warp's width apart, so that lanes read and write next to each other.

#include "device.cuh"

#include "network_input.cuh"
#include "resample.cuh"
#include "vectors.cuh"

constexpr int kBlockWidth = 32;
constexpr int kBlockHeight = 8;

// As many neighbouring pixels per thread as fill a store of 16 bytes, of 8 for int8.
template <typename Value>
struct Group {
    static constexpr int kSize = sizeof(Value) == 4 ? 4 : 8;
};

// The slot of one picture in the batch.
template <typename Value>
struct Slot {
    Value* values;
    int width;
    int height;
    long long plane;  // values per channel
};

__device__ __forceinline__ bool is_native_420(const FrameDescriptor& frame) {
    return frame.quarter_turns == 0 && frame.left == 0 && frame.top == 0 && frame.placed_width == frame.width &&
           frame.placed_height == frame.height && frame.shift_x == 1 && frame.shift_y == 1;
}

template <typename Sample, int Count>
__device__ __forceinline__ void load_chroma(
    const FrameDescriptor& frame, int x, int y, float (&u)[Count / 2], float (&v)[Count / 2]) {
    const int cells = (frame.width + 1) / 2;
    const int row = y / 2;
    if (frame.layout == kInterleavedChroma) {
        float both[Count];
        load_samples<Sample, Count>(sample_address(frame, 1, 0, row), x, 2 * cells, frame.code_values, both);
#pragma unroll
        for (int i = 0; i < Count / 2; ++i) {
            u[i] = both[2 * i];
            v[i] = both[2 * i + 1];
        }
    } else {
        load_samples<Sample, Count / 2>(sample_address(frame, 1, 0, row), x / 2, cells, frame.code_values, u);
        load_samples<Sample, Count / 2>(sample_address(frame, 2, 0, row), x / 2, cells, frame.code_values, v);
    }
}

// One channel of one row of a group: luma's part is its own, chroma's part is shared by two columns and two rows.
template <typename Value, int Count>
__device__ __forceinline__ void store_row(const Slot<Value>& slot, int channel, int x, int y, int inside,
                                          float luma_gain, const float (&luma)[Count],
                                          const float (&chroma)[Count / 2], float mean, float scale) {
    Value values[Count];
#pragma unroll
    for (int i = 0; i < Count; ++i) {
        const float level = to_level(luma_gain * luma[i] + chroma[i / 2]);
        convert(i < inside ? (level - mean) * scale : 0.0f, values[i]);
    }
    const long long pixel = static_cast<long long>(y) * slot.width + x;
    store_values<Value, Count>(slot.values + channel * slot.plane + pixel, values, slot.width - x);
}

template <typename Sample, typename Value>
__device__ __forceinline__ void native_group(
    const FrameDescriptor& frame, const Slot<Value>& slot, const Normalisation& norm, int x, int y) {
    const int count = Group<Value>::kSize;
    float luma[2][count];
    float u[count / 2];
    float v[count / 2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int limit = y + row < frame.height ? frame.width : 0;
        load_samples<Sample, count>(sample_address(frame, 0, 0, min(y + row, frame.height - 1)), x, limit,
                                    frame.code_values, luma[row]);
    }
    load_chroma<Sample, count>(frame, x, min(y, frame.height - 1), u, v);
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
        const float* gains = frame.to_bgr + 4 * (norm.rgb ? 2 - channel : channel);
        float chroma[count / 2];
#pragma unroll
        for (int i = 0; i < count / 2; ++i) {
            chroma[i] = gains[1] * u[i] + gains[2] * v[i] + gains[3];
        }
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            if (y + row < slot.height) {
                const int inside = y + row < frame.height ? frame.width - x : 0;
                store_row<Value, count>(slot, channel, x, y + row, inside, gains[0], luma[row], chroma,
                                        norm.mean[channel], norm.scale);
            }
        }
    }
}

template <typename Value>
__device__ __forceinline__ void padding_group(const Slot<Value>& slot, int x, int y) {
    const int count = Group<Value>::kSize;
    Value zeros[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
        convert(0.0f, zeros[i]);
    }
    for (int row = y; row < min(y + 2, slot.height); ++row) {
        for (int channel = 0; channel < 3; ++channel) {
            const long long pixel = channel * slot.plane + static_cast<long long>(row) * slot.width + x;
            store_values<Value, count>(slot.values + pixel, zeros, slot.width - x);
        }
    }
}

template <typename Value>
__device__ __forceinline__ void native_tile(
    const FrameDescriptor& frame, const Slot<Value>& slot, const Normalisation& norm, int tile_x, int tile_y) {
    const int x = tile_x + static_cast<int>(threadIdx.x) * Group<Value>::kSize;
    const int y = tile_y + static_cast<int>(threadIdx.y) * 2;
    if (x >= slot.width || y >= slot.height) {
        return;
    }
    if (x >= frame.width || y >= frame.height) {
        padding_group(slot, x, y);
    } else if (frame.sample_bytes == 1) {
        native_group<unsigned char>(frame, slot, norm, x, y);
    } else {
        native_group<unsigned short>(frame, slot, norm, x, y);
    }
}

template <typename Value>
__device__ __forceinline__ void general_pixel(
    const FrameDescriptor& frame, const Slot<Value>& slot, const Normalisation& norm, int x, int y) {
    const long long pixel = static_cast<long long>(y) * slot.width + x;
    const int upright_x = x - frame.left;
    const int upright_y = y - frame.top;
    if (upright_x < 0 || upright_y < 0 || upright_x >= frame.placed_width || upright_y >= frame.placed_height) {
        write_padding(slot.values, slot.plane, pixel);
        return;
    }
    const bool turned = lies_on_its_side(frame);
    const int width = turned ? frame.placed_height : frame.placed_width;
    const int height = turned ? frame.placed_width : frame.placed_height;
    const Position stored = stored_position(frame.quarter_turns, width, height, upright_x, upright_y);
    const Channels resampled = resampled_pixel(frame, stored.x, stored.y, width, height);
    write_pixel(slot.values, slot.plane, pixel, norm, bgr_levels(frame, resampled));
}

template <typename Value>
__device__ __forceinline__ void general_tile(
    const FrameDescriptor& frame, const Slot<Value>& slot, const Normalisation& norm, int tile_x, int tile_y) {
    const int last_x = min(tile_x + kBlockWidth * Group<Value>::kSize, slot.width);
    const int last_y = min(tile_y + kBlockHeight * 2, slot.height);
#pragma unroll 1
    for (int y = tile_y + static_cast<int>(threadIdx.y); y < last_y; y += kBlockHeight) {
#pragma unroll 1
        for (int x = tile_x + static_cast<int>(threadIdx.x); x < last_x; x += kBlockWidth) {
            general_pixel(frame, slot, norm, x, y);
        }
    }
}

// Block (x, y, z) fills tile (x, y) of picture z.
template <typename Value>
__device__ __forceinline__ void preprocess(
    const FrameDescriptor* frames, Value* out, int width, int height, const Normalisation& norm) {
    const FrameDescriptor& frame = frames[blockIdx.z];
    Slot<Value> slot;
    slot.width = width;
    slot.height = height;
    slot.plane = static_cast<long long>(width) * height;
    slot.values = out + 3 * slot.plane * blockIdx.z;
    const int tile_x = static_cast<int>(blockIdx.x) * kBlockWidth * Group<Value>::kSize;
    const int tile_y = static_cast<int>(blockIdx.y) * kBlockHeight * 2;
    if (is_native_420(frame)) {
        native_tile(frame, slot, norm, tile_x, tile_y);
    } else {
        general_tile(frame, slot, norm, tile_x, tile_y);
    }
}

// Fill a batch of network input, (batch, 3, height, width), from frames of any format.
//
// Means are in the order of the network's channels, red first where rgb is not 0. Padding is 0, the mean. For int8 the
// scale includes the division by the size of one step. launch_shapes.preprocess gives the grid and the block.
#define PREPROCESS(name, Value)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256, 3)                                                            \
        name(const FrameDescriptor* __restrict__ frames, Value* __restrict__ out, int width, int height,            \
             float mean_first, float mean_second, float mean_third, float scale, int rgb) {                         \
        preprocess(frames, out, width, height, {{mean_first, mean_second, mean_third}, scale, rgb});                \
    }                                                                                                               \
    KERNEL(name)

PREPROCESS(preprocess_f32, float);
PREPROCESS(preprocess_f16, __half);
PREPROCESS(preprocess_i8, signed char);

// Size of a descriptor and the offset of each of its fields, in the order of declaration, as the compiler has them.
extern "C" __global__ void describe_layout(int* out) {
    FrameDescriptor frame;
    const unsigned long long start = reinterpret_cast<unsigned long long>(&frame);
    int entry = 0;
    out[entry++] = static_cast<int>(sizeof(FrameDescriptor));
#define OFFSET(field) out[entry++] = static_cast<int>(reinterpret_cast<unsigned long long>(&frame.field) - start)
    OFFSET(planes);
    OFFSET(pitches);
    OFFSET(width);
    OFFSET(height);
    OFFSET(layout);
    OFFSET(shift_x);
    OFFSET(shift_y);
    OFFSET(sample_bytes);
    OFFSET(bits);
    OFFSET(low_bits);
    OFFSET(quarter_turns);
    OFFSET(reserved);
    OFFSET(code_values);
    OFFSET(to_bgr);
    OFFSET(left);
    OFFSET(top);
    OFFSET(placed_width);
    OFFSET(placed_height);
    OFFSET(unused);
#undef OFFSET
}
KERNEL(describe_layout);
