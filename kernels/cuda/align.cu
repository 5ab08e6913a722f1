// Aligned crops straight from the surfaces: all faces of a batch in one launch. The definition is kernels/align.py.
//
// Crops lie one behind the other, picture by picture, in the order of the faces. Every pixel of a crop mixes four
// pixels of the upright picture, each converted to whole levels of BGR first, as if all of it had been converted.

#include "device.cuh"

#include "faces.cuh"
#include "network_input.cuh"

// The template of kernels/align.py at 112 pixels: x, y of both eyes, the nose and both corners of the mouth.
__device__ __forceinline__ Point template_point(int landmark, int size) {
    const double points[5][2] = {
        {38.2946, 51.6963}, {73.5318, 51.5014}, {56.0252, 71.7366}, {41.5493, 92.3655}, {70.7299, 92.2041}};
    const double scale = size / 112.0;
    return {points[landmark][0] * scale, points[landmark][1] * scale};
}

// A crop's pixel q shows the picture at whole + part + turn * (q - middle), products as of complex numbers. The whole
// pixels are kept apart because a float is too coarse for positions in a large picture.
struct CropView {
    int usable;
    int whole_x;
    int whole_y;
    float part_x;
    float part_y;
    float turn_x;
    float turn_y;
    float middle_x;
    float middle_y;
};

struct Similarity {
    bool usable;
    Point turn;    // crop = turn * picture + shift
    Point source;  // mean of the landmarks
    Point goal;    // mean of the template
};

__device__ __forceinline__ Similarity similarity_of(const float* landmarks, int size) {
    Similarity found = {false, {0.0, 0.0}, {0.0, 0.0}, {0.0, 0.0}};
    for (int i = 0; i < 5; ++i) {
        const Point target = template_point(i, size);
        found.source.x += landmarks[2 * i] * 0.2;
        found.source.y += landmarks[2 * i + 1] * 0.2;
        found.goal.x += target.x * 0.2;
        found.goal.y += target.y * 0.2;
    }
    double spread = 0.0;
    double goal_spread = 0.0;
    double farthest = 0.0;
    Point product = {0.0, 0.0};
    for (int i = 0; i < 5; ++i) {
        const Point target = template_point(i, size);
        const double px = landmarks[2 * i];
        const double py = landmarks[2 * i + 1];
        const double zx = px - found.source.x;
        const double zy = py - found.source.y;
        const double wx = target.x - found.goal.x;
        const double wy = target.y - found.goal.y;
        spread += zx * zx + zy * zy;
        goal_spread += wx * wx + wy * wy;
        product.x += zx * wx + zy * wy;
        product.y += zx * wy - zy * wx;
        farthest = fmax(farthest, px * px + py * py);
    }
    const double rounding = 1e-6;
    const double strength = product.x * product.x + product.y * product.y;
    found.usable = isfinite(spread) && spread > rounding * rounding * farthest &&
                   strength > rounding * rounding * spread * goal_spread;
    if (found.usable) {
        const double share = 1.0 / spread;
        found.turn = {product.x * share, product.y * share};
    }
    return found;
}

// The whole pixels of a position; none where it is so far out that a float will do.
__device__ __forceinline__ int whole_pixels(double position) {
    return fabs(position) < 1e6 ? static_cast<int>(floor(position)) : 0;
}

__device__ __forceinline__ CropView view_of(const Similarity& similarity) {
    CropView view = {similarity.usable ? 1 : 0, 0, 0, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    if (!similarity.usable) {
        return view;
    }
    const Point& turn = similarity.turn;
    const double share = 1.0 / (turn.x * turn.x + turn.y * turn.y);
    view.whole_x = whole_pixels(similarity.source.x);
    view.whole_y = whole_pixels(similarity.source.y);
    view.part_x = static_cast<float>(similarity.source.x - view.whole_x);
    view.part_y = static_cast<float>(similarity.source.y - view.whole_y);
    view.turn_x = static_cast<float>(turn.x * share);
    view.turn_y = static_cast<float>(-turn.y * share);
    view.middle_x = static_cast<float>(similarity.goal.x);
    view.middle_y = static_cast<float>(similarity.goal.y);
    return view;
}

// Rows of the 2x3 matrix from picture to crop; not a number where there is none.
__device__ __forceinline__ void write_transform(const Similarity& similarity, float* out) {
    const Point& turn = similarity.turn;
    const float none = __int_as_float(0x7fc00000);
    const double shift_x = similarity.goal.x - (turn.x * similarity.source.x - turn.y * similarity.source.y);
    const double shift_y = similarity.goal.y - (turn.y * similarity.source.x + turn.x * similarity.source.y);
    const double rows[6] = {turn.x, -turn.y, shift_x, turn.y, turn.x, shift_y};
    for (int i = 0; i < 6; ++i) {
        out[i] = similarity.usable ? static_cast<float>(rows[i]) : none;
    }
}

// Levels of the upright picture at a whole pixel; black outside.
__device__ __forceinline__ Channels upright_levels(const FrameDescriptor& frame, int x, int y) {
    const int width = lies_on_its_side(frame) ? frame.height : frame.width;
    const int height = lies_on_its_side(frame) ? frame.width : frame.height;
    if (x < 0 || y < 0 || x >= width || y >= height) {
        return {0.0f, 0.0f, 0.0f};
    }
    const Position stored = stored_position(frame.quarter_turns, frame.width, frame.height, x, y);
    return bgr_levels(frame, stored_pixel(frame, stored.x, stored.y));
}

__device__ __forceinline__ Channels crop_pixel(const FrameDescriptor& frame, const CropView& view, int x, int y) {
    if (!view.usable) {
        return {0.0f, 0.0f, 0.0f};
    }
    const float dx = static_cast<float>(x) - view.middle_x;
    const float dy = static_cast<float>(y) - view.middle_y;
    const float reach = 1e8f;
    const float at_x = fminf(fmaxf(view.part_x + view.turn_x * dx - view.turn_y * dy, -reach), reach);
    const float at_y = fminf(fmaxf(view.part_y + view.turn_y * dx + view.turn_x * dy, -reach), reach);
    const float left = floorf(at_x);
    const float top = floorf(at_y);
    const int column = view.whole_x + static_cast<int>(left);
    const int row = view.whole_y + static_cast<int>(top);
    const Channels upper = mix(upright_levels(frame, column, row), upright_levels(frame, column + 1, row), at_x - left);
    const Channels lower =
        mix(upright_levels(frame, column, row + 1), upright_levels(frame, column + 1, row + 1), at_x - left);
    const Channels mixed = mix(upper, lower, at_y - top);
    return {to_level(mixed.first), to_level(mixed.second), to_level(mixed.third)};
}

// Number of the crop of this block's face, or -1 where the picture has no such face or the output no such crop.
__device__ __forceinline__ int crop_of_block(const FaceBatch& batch, int capacity) {
    const int picture = static_cast<int>(blockIdx.z);
    const int face = static_cast<int>(blockIdx.y);
    if (face >= face_count(batch, picture)) {
        return -1;
    }
    int crop = face;
    for (int before = 0; before < picture; ++before) {
        crop += face_count(batch, before);
    }
    return crop < capacity ? crop : -1;
}

// What all threads of a block need to know about its crop, worked out by one of them; returns the crop's number or -1.
__device__ __forceinline__ int begin_crop(
    const FaceBatch& batch, int size, int capacity, float* transforms, CropView* view) {
    const int crop = crop_of_block(batch, capacity);
    if (crop < 0) {
        return crop;
    }
    if (threadIdx.x == 0) {
        const float* face = face_row(batch, static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.y));
        const Similarity similarity = similarity_of(face + kFaceLandmarks, size);
        *view = view_of(similarity);
        if (blockIdx.x == 0) {
            write_transform(similarity, transforms + 6 * crop);
        }
    }
    __syncthreads();
    return crop;
}

__device__ __forceinline__ int first_pixel_of_thread() {
    return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

__device__ __forceinline__ int step_of_grid() { return static_cast<int>(gridDim.x * blockDim.x); }

// (capacity, size, size, 3) bytes of blue, green and red. Blocks (x, y, z) share the crop of face y of picture z.
//
// transforms, (capacity, 2, 3) float32, receives the matrix from the picture to each crop: not a number, and the crop
// black, where the landmarks do not define one. launch_shapes.align gives the grid and the block.
extern "C" __global__ void __launch_bounds__(256, 2)
    align_u8(const FrameDescriptor* __restrict__ frames, const float* faces, const int* counts, int step, int most,
             int size, int capacity, unsigned char* __restrict__ out, float* transforms) {
    __shared__ CropView view;
    const int crop = begin_crop({faces, counts, step, most}, size, capacity, transforms, &view);
    if (crop < 0) {
        return;
    }
    unsigned char* const pixels = out + static_cast<long long>(crop) * size * size * 3;
    for (int i = first_pixel_of_thread(); i < size * size; i += step_of_grid()) {
        const Channels bgr = crop_pixel(frames[blockIdx.z], view, i % size, i / size);
        pixels[3 * i] = static_cast<unsigned char>(bgr.first);
        pixels[3 * i + 1] = static_cast<unsigned char>(bgr.second);
        pixels[3 * i + 2] = static_cast<unsigned char>(bgr.third);
    }
}
KERNEL(align_u8);

template <typename Value>
__device__ __forceinline__ void fill_planes(
    const FrameDescriptor& frame, const CropView& view, int size, Value* crop, const Normalisation& norm) {
    const long long plane = static_cast<long long>(size) * size;
    for (int i = first_pixel_of_thread(); i < size * size; i += step_of_grid()) {
        write_pixel(crop, plane, i, norm, crop_pixel(frame, view, i % size, i / size));
    }
}

// The same as the input of a network: (capacity, 3, size, size), channels in its order, (level - mean) * scale.
#define ALIGN(name, Value)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                        \
        name(const FrameDescriptor* __restrict__ frames, const float* faces, const int* counts, int step,       \
             int most, int size, int capacity, Value* __restrict__ out, float* transforms, float mean_first,    \
             float mean_second, float mean_third, float scale, int rgb) {                                       \
        __shared__ CropView view;                                                                               \
        const int crop = begin_crop({faces, counts, step, most}, size, capacity, transforms, &view);            \
        if (crop >= 0) {                                                                                        \
            fill_planes(frames[blockIdx.z], view, size, out + static_cast<long long>(crop) * 3 * size * size,   \
                        {{mean_first, mean_second, mean_third}, scale, rgb});                                   \
        }                                                                                                       \
    }                                                                                                           \
    KERNEL(name)

ALIGN(align_f32, float);
ALIGN(align_f16, __half);
