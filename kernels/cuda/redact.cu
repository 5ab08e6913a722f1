// Faces made unrecognisable in place, in three launches: where the regions are, the means of their cells, the writing.
// The definition is kernels/redact.py.
//
// All means are taken before anything is written, and a block that writes owns its tile: where regions overlap, the
// result does not depend on who comes first.

#include "device.cuh"

#include "surface_writing.cuh"
#include "tiles.cuh"

enum RedactMethod { kFill = 0, kMosaic = 1, kBlur = 2 };

// The stored pixels of a face, enlarged, and the grid of cells whose means are all that is left of it.
struct Region {
    PixelRange bounds;  // within the picture; empty where there is nothing to do
    int cell;           // side of a cell in luma pixels, even
    int grid_x;         // the grid's corner, even
    int grid_y;
    int columns;
    int rows;
    int reserved;
    double centre_x;
    double centre_y;
    double squared_half_width;
    double squared_half_height;
};

static_assert(sizeof(Region) == 72, "launch_shapes.py counts on this size");

__device__ __forceinline__ int cells_along(int begin, int end, int cell) { return (end - begin + cell - 1) / cell; }

__device__ __forceinline__ Region no_region() {
    return {{0, 0, 0, 0}, 2, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0};
}

__device__ __forceinline__ Region region_of(const FrameDescriptor& frame, const float* face, float enlarge, int cells) {
    const Box box = stored_box(frame, face);
    const double half_width = (box.right - box.left) * 0.5 * enlarge;
    const double half_height = (box.bottom - box.top) * 0.5 * enlarge;
    if (!is_finite(box) || !(half_width > 0.0) || !(half_height > 0.0)) {
        return no_region();
    }
    Region region = no_region();
    region.centre_x = (box.left + box.right) * 0.5;
    region.centre_y = (box.top + box.bottom) * 0.5;
    region.squared_half_width = half_width * half_width;
    region.squared_half_height = half_height * half_height;
    const PixelRange whole = pixels_of({region.centre_x - half_width, region.centre_y - half_height,
                                        region.centre_x + half_width, region.centre_y + half_height});
    region.bounds = {max(whole.x0, 0), max(whole.y0, 0), min(whole.x1, frame.width), min(whole.y1, frame.height)};
    if (region.bounds.x0 >= region.bounds.x1 || region.bounds.y0 >= region.bounds.y1) {
        return no_region();
    }
    const int longest = max(whole.x1 - whole.x0, whole.y1 - whole.y0);
    region.cell = max(2, ((longest + cells - 1) / cells + 1) & ~1);
    region.grid_x = region.bounds.x0 & ~1;
    region.grid_y = region.bounds.y0 & ~1;
    region.columns = cells_along(region.grid_x, region.bounds.x1, region.cell);
    region.rows = cells_along(region.grid_y, region.bounds.y1, region.cell);
    return region;
}

// (batch, most) regions from the faces: one thread per face.
extern "C" __global__ void __launch_bounds__(256)
    find_regions(const FrameDescriptor* frames, const float* faces, const int* counts, int step, int most,
                 float enlarge, int cells, Region* regions) {
    const FaceBatch batch = {faces, counts, step, most};
    const int picture = static_cast<int>(blockIdx.z);
    const int face = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (face < face_count(batch, picture)) {
        regions[static_cast<long long>(picture) * most + face] =
            region_of(frames[picture], face_row(batch, picture, face), enlarge, cells);
    }
}
KERNEL(find_regions);

// Sums over a warp; whole numbers, so that the order does not matter.
__device__ __forceinline__ unsigned long long warp_sum(unsigned long long value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}

__device__ __forceinline__ float mean_of(unsigned long long sum, int count) {
    return static_cast<float>(static_cast<double>(sum) / count);
}

__device__ __forceinline__ float luma_mean(const FrameDescriptor& frame, const PixelRange& cell, int lane) {
    const int width = cell.x1 - cell.x0;
    const int count = width * (cell.y1 - cell.y0);
    unsigned long long sum = 0;
    for (int i = lane; i < count; i += 32) {
        sum += read_code(frame, 0, cell.x0 + i % width, cell.y0 + i / width);
    }
    return mean_of(warp_sum(sum), count);
}

__device__ __forceinline__ void chroma_means(
    const FrameDescriptor& frame, const PixelRange& cell, int lane, float& u_mean, float& v_mean) {
    const int x0 = cell.x0 >> frame.shift_x;
    const int y0 = cell.y0 >> frame.shift_y;
    const int width = ((cell.x1 - 1) >> frame.shift_x) + 1 - x0;
    const int count = width * (((cell.y1 - 1) >> frame.shift_y) + 1 - y0);
    unsigned long long u_sum = 0;
    unsigned long long v_sum = 0;
    for (int i = lane; i < count; i += 32) {
        unsigned u;
        unsigned v;
        read_chroma(frame, x0 + i % width, y0 + i / width, u, v);
        u_sum += u;
        v_sum += v;
    }
    u_mean = mean_of(warp_sum(u_sum), count);
    v_mean = mean_of(warp_sum(v_sum), count);
}

// Means of one face's cells, (most, cells + 1, cells + 1, 3) per picture.
__device__ __forceinline__ float* means_of_face(float* means, int picture, int most, int face, int cells) {
    return means + (static_cast<long long>(picture) * most + face) * (cells + 1) * (cells + 1) * 3;
}

// (batch, most, cells + 1, cells + 1, 3) means of Y, U, V in code values. Block (x, y, z): row x of the grid of face y
// of picture z, a warp per cell.
extern "C" __global__ void __launch_bounds__(256, 3)
    cell_means(const FrameDescriptor* frames, const int* counts, int step, int most, int cells, const Region* regions,
               float* means) {
    const int picture = static_cast<int>(blockIdx.z);
    const int face = static_cast<int>(blockIdx.y);
    const int row = static_cast<int>(blockIdx.x);
    if (face >= face_count({nullptr, counts, step, most}, picture)) {
        return;
    }
    const Region& region = regions[static_cast<long long>(picture) * most + face];
    if (row >= region.rows) {
        return;
    }
    const FrameDescriptor& frame = frames[picture];
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float* const row_means = means_of_face(means, picture, most, face, cells) + row * (cells + 1) * 3;
    for (int column = static_cast<int>(threadIdx.x) / 32; column < region.columns; column += kTileThreads / 32) {
        const int x = region.grid_x + column * region.cell;
        const int y = region.grid_y + row * region.cell;
        const PixelRange cell = {x, y, min(x + region.cell, frame.width), min(y + region.cell, frame.height)};
        const float luma = luma_mean(frame, cell, lane);
        float u = 0.0f;
        float v = 0.0f;
        if (has_chroma(frame)) {
            chroma_means(frame, cell, lane, u, v);
        }
        if (lane == 0) {
            row_means[3 * column] = luma;
            row_means[3 * column + 1] = u;
            row_means[3 * column + 2] = v;
        }
    }
}
KERNEL(cell_means);

// What the threads of a block write with.
struct Redaction {
    const Region* regions;  // of this picture
    float* means;           // of all pictures
    const TileList* list;
    int picture;
    int most;
    int count;
    int cells;
    int method;
    int ellipse;
    Codes fill;
};

__device__ __forceinline__ bool covers(const Region& region, int x, int y, int ellipse) {
    if (!contains(region.bounds, x, y)) {
        return false;
    }
    if (!ellipse) {
        return true;
    }
    const double dx = x + 0.5 - region.centre_x;
    const double dy = y + 0.5 - region.centre_y;
    return dx * dx * region.squared_half_height + dy * dy * region.squared_half_width <=
           region.squared_half_width * region.squared_half_height;
}

// Of two regions, the one with the larger cells, then the first; -1 is none.
__device__ __forceinline__ int coarser(const Region* regions, int a, int b) {
    if (a < 0 || b < 0) {
        return max(a, b);
    }
    if (regions[a].cell != regions[b].cell) {
        return regions[a].cell > regions[b].cell ? a : b;
    }
    return min(a, b);
}

__device__ __forceinline__ int region_at(const Redaction& redaction, int x, int y) {
    int found = -1;
    const int entries = candidates(*redaction.list, redaction.count);
    for (int entry = 0; entry < entries; ++entry) {
        const int number = candidate(*redaction.list, entry);
        if (covers(redaction.regions[number], x, y, redaction.ellipse)) {
            found = coarser(redaction.regions, found, number);
        }
    }
    return found;
}

// Weights of the three cells around a position, in cells from the middle one's centre: a quadratic B-spline.
__device__ __forceinline__ void spline_weights(float offset, float (&weights)[3]) {
    weights[0] = 0.5f * (0.5f - offset) * (0.5f - offset);
    weights[1] = 0.75f - offset * offset;
    weights[2] = 0.5f * (0.5f + offset) * (0.5f + offset);
}

__device__ __forceinline__ float smooth_value(
    const Region& region, const float* means, int cells, int channel, float x, float y) {
    const float column = (x - region.grid_x) / region.cell;
    const float row = (y - region.grid_y) / region.cell;
    const float middle_column = floorf(column);
    const float middle_row = floorf(row);
    float across[3];
    float down[3];
    spline_weights(column - middle_column - 0.5f, across);
    spline_weights(row - middle_row - 0.5f, down);
    float value = 0.0f;
    for (int i = 0; i < 3; ++i) {
        const int r = min(max(static_cast<int>(middle_row) + i - 1, 0), region.rows - 1);
        for (int j = 0; j < 3; ++j) {
            const int c = min(max(static_cast<int>(middle_column) + j - 1, 0), region.columns - 1);
            value += down[i] * across[j] * means[(r * (cells + 1) + c) * 3 + channel];
        }
    }
    return value;
}

// The code that replaces a sample: channel 0 is luma; (x, y) is the first pixel of its cell, which is span_x x span_y.
__device__ __forceinline__ int replacement(
    const Redaction& redaction, int number, int channel, int x, int y, int span_x, int span_y) {
    if (redaction.method == kFill) {
        return channel == 0 ? redaction.fill.y : channel == 1 ? redaction.fill.u : redaction.fill.v;
    }
    const Region& region = redaction.regions[number];
    const float* means =
        means_of_face(redaction.means, redaction.picture, redaction.most, number, redaction.cells);
    if (redaction.method == kMosaic) {
        const int column = (x - region.grid_x) / region.cell;
        const int row = (y - region.grid_y) / region.cell;
        return __float2int_rn(means[(row * (redaction.cells + 1) + column) * 3 + channel]);
    }
    return __float2int_rn(
        smooth_value(region, means, redaction.cells, channel, x + 0.5f * span_x, y + 0.5f * span_y));
}

// A square of 2x2 pixels from (x, y) on, both even, and the chroma samples of its cells.
__device__ __forceinline__ void redact_square(
    const FrameDescriptor& frame, const Redaction& redaction, const PixelRange& tile, int x, int y) {
    int found[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int dx = i & 1;
        const int dy = i >> 1;
        const bool inside = x + dx < tile.x1 && y + dy < tile.y1;
        const int number = inside ? region_at(redaction, x + dx, y + dy) : -1;
        found[dy][dx] = number;
        if (number >= 0) {
            write_code(frame, 0, x + dx, y + dy, replacement(redaction, number, 0, x + dx, y + dy, 1, 1));
        }
    }
    if (!has_chroma(frame)) {
        return;
    }
    const bool wide = frame.shift_x == 1;
    const bool high = frame.shift_y == 1;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int dx = i & 1;
        const int dy = i >> 1;
        if ((wide && dx == 1) || (high && dy == 1)) {
            continue;
        }
        int number = found[dy][dx];
        number = wide ? coarser(redaction.regions, number, found[dy][1]) : number;
        number = high ? coarser(redaction.regions, number, found[1][dx]) : number;
        number = wide && high ? coarser(redaction.regions, number, found[1][1]) : number;
        if (number >= 0) {
            const int u = replacement(redaction, number, 1, x + dx, y + dy, 1 << frame.shift_x, 1 << frame.shift_y);
            const int v = replacement(redaction, number, 2, x + dx, y + dy, 1 << frame.shift_x, 1 << frame.shift_y);
            write_chroma(frame, (x + dx) >> frame.shift_x, (y + dy) >> frame.shift_y, u, v);
        }
    }
}

// Replace what the regions cover: by the means of their cells (method 1), these smoothly joined (2) or one colour (0).
//
// fills, (batch, 3) int32, are code values at the pictures' depths. Block (x, y, z) owns tile (x, y) of picture z.
extern "C" __global__ void __launch_bounds__(256, 3)
    redact(const FrameDescriptor* frames, const int* counts, int step, int most, int cells, const Region* regions,
           float* means, int method, int ellipse, const int* fills) {
    __shared__ TileList list;
    const int picture = static_cast<int>(blockIdx.z);
    const FrameDescriptor& frame = frames[picture];
    const PixelRange tile = tile_of_block(frame);
    const int count = face_count({nullptr, counts, step, most}, picture);
    const Region* of_picture = regions + static_cast<long long>(picture) * most;
    find_touching(of_picture, count, tile, &list);
    if (list.touching == 0) {
        return;
    }
    const Codes fill = {fills[3 * picture], fills[3 * picture + 1], fills[3 * picture + 2]};
    const Redaction redaction = {of_picture, means, &list, picture, most, count, cells, method, ellipse, fill};
    const int across = kTileWidth / 2;
    for (int i = static_cast<int>(threadIdx.x); i < across * kTileHeight / 2; i += kTileThreads) {
        const int x = tile.x0 + i % across * 2;
        const int y = tile.y0 + i / across * 2;
        if (x < tile.x1 && y < tile.y1) {
            redact_square(frame, redaction, tile, x, y);
        }
    }
}
KERNEL(redact);
