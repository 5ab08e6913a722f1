// Boxes and landmarks drawn in place, in two launches: where the marks are, the writing. The definition is
// kernels/draw_surface.py.

#include "device.cuh"

#include "surface_writing.cuh"
#include "tiles.cuh"

constexpr int kMarks = 6;  // of a face, topmost first: five landmarks and the box
constexpr int kBoxMark = 5;
constexpr int kNoMark = 0x7fffffff;

// The outline of a face's box and the discs of its landmarks, in pixels as stored.
struct Marks {
    PixelRange bounds;  // all of them; need not be within the picture
    PixelRange outer;   // the outline is what lies in outer but not in inner
    PixelRange inner;
    double points[10];
};

static_assert(sizeof(Marks) == 128, "launch_shapes.py counts on this size");

__device__ __forceinline__ PixelRange around(const PixelRange& range, const Box& box) {
    const PixelRange more = pixels_of(box);
    if (range.x0 >= range.x1 || range.y0 >= range.y1) {
        return more;
    }
    return {min(range.x0, more.x0), min(range.y0, more.y0), max(range.x1, more.x1), max(range.y1, more.y1)};
}

__device__ __forceinline__ Marks marks_of(
    const FrameDescriptor& frame, const float* face, double thickness, double radius) {
    Marks marks = {{0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}, {}};
    const Box box = stored_box(frame, face);
    const double half = thickness * 0.5;
    if (is_finite(box) && box.left < box.right && box.top < box.bottom) {
        marks.outer = pixels_of({box.left - half, box.top - half, box.right + half, box.bottom + half});
        marks.inner = pixels_of({box.left + half, box.top + half, box.right - half, box.bottom - half});
        marks.bounds = marks.outer;
    }
    for (int i = 0; i < 5; ++i) {
        const Point point = stored_point(frame, face[kFaceLandmarks + 2 * i], face[kFaceLandmarks + 2 * i + 1]);
        const double reach = radius + 1.0;
        const Box disc = {point.x - reach, point.y - reach, point.x + reach, point.y + reach};
        marks.points[2 * i] = point.x;
        marks.points[2 * i + 1] = point.y;
        if (is_finite(disc)) {
            marks.bounds = around(marks.bounds, disc);
        }
    }
    return marks;
}

// (batch, most) marks from the faces: one thread per face.
extern "C" __global__ void __launch_bounds__(256)
    find_marks(const FrameDescriptor* frames, const float* faces, const int* counts, int step, int most,
               float thickness, float radius, Marks* marks) {
    const FaceBatch batch = {faces, counts, step, most};
    const int picture = static_cast<int>(blockIdx.z);
    const int face = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (face < face_count(batch, picture)) {
        marks[static_cast<long long>(picture) * most + face] =
            marks_of(frames[picture], face_row(batch, picture, face), thickness, radius);
    }
}
KERNEL(find_marks);

// The topmost mark of one face at a pixel, from 0 to 5, or kNoMark.
__device__ __forceinline__ int mark_of_face(const Marks& marks, int x, int y, double squared_radius) {
    if (!contains(marks.bounds, x, y)) {
        return kNoMark;
    }
    for (int i = 0; i < 5; ++i) {
        const double dx = x + 0.5 - marks.points[2 * i];
        const double dy = y + 0.5 - marks.points[2 * i + 1];
        if (dx * dx + dy * dy <= squared_radius) {
            return i;
        }
    }
    return contains(marks.outer, x, y) && !contains(marks.inner, x, y) ? kBoxMark : kNoMark;
}

// The topmost mark of all faces: the first face is above the second. Its number is 6 * face + mark.
__device__ __forceinline__ int mark_at(
    const Marks* marks, const TileList& list, int count, int x, int y, double squared_radius) {
    int topmost = kNoMark;
    const int entries = candidates(list, count);
    for (int entry = 0; entry < entries; ++entry) {
        const int face = candidate(list, entry);
        const int mark = mark_of_face(marks[face], x, y, squared_radius);
        if (mark != kNoMark) {
            topmost = min(topmost, kMarks * face + mark);
        }
    }
    return topmost;
}

// A square of 2x2 pixels from the tile, whose marks are found, and the chroma samples of its cells: a chroma sample
// takes the topmost mark of the pixels that it stands for.
__device__ __forceinline__ void draw_square(
    const FrameDescriptor& frame, const int (&found)[2][2], const int* colours, int x, int y) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int mark = found[i >> 1][i & 1];
        if (mark != kNoMark) {
            write_code(frame, 0, x + (i & 1), y + (i >> 1), colours[3 * (mark % kMarks)]);
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
        int topmost = found[dy][dx];
        topmost = wide ? min(topmost, found[dy][1]) : topmost;
        topmost = high ? min(topmost, found[1][dx]) : topmost;
        topmost = wide && high ? min(topmost, found[1][1]) : topmost;
        if (topmost != kNoMark) {
            const int* colour = colours + 3 * (topmost % kMarks);
            write_chroma(frame, (x + dx) >> frame.shift_x, (y + dy) >> frame.shift_y, colour[1], colour[2]);
        }
    }
}

// Draw the marks. colours, (batch, 6, 3) int32, are the code values of the five landmarks and the box at the pictures'
// depths. Block (x, y, z) owns tile (x, y) of picture z.
extern "C" __global__ void __launch_bounds__(256, 3)
    draw(const FrameDescriptor* frames, const int* counts, int step, int most, float radius, const Marks* marks,
         const int* colours) {
    __shared__ TileList list;
    const int picture = static_cast<int>(blockIdx.z);
    const FrameDescriptor& frame = frames[picture];
    const PixelRange tile = tile_of_block(frame);
    const int count = face_count({nullptr, counts, step, most}, picture);
    const Marks* of_picture = marks + static_cast<long long>(picture) * most;
    find_touching(of_picture, count, tile, &list);
    if (list.touching == 0) {
        return;
    }
    const double squared_radius = static_cast<double>(radius) * radius;
    const int across = kTileWidth / 2;
    for (int i = static_cast<int>(threadIdx.x); i < across * kTileHeight / 2; i += kTileThreads) {
        const int x = tile.x0 + i % across * 2;
        const int y = tile.y0 + i / across * 2;
        int found[2][2];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
            const int px = x + (corner & 1);
            const int py = y + (corner >> 1);
            const bool inside = px < tile.x1 && py < tile.y1;
            found[corner >> 1][corner & 1] =
                inside ? mark_at(of_picture, list, count, px, py, squared_radius) : kNoMark;
        }
        draw_square(frame, found, colours + 3 * kMarks * picture, x, y);
    }
}
KERNEL(draw);
