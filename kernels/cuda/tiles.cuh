// Work on a surface tile by tile: a block owns its tile, so that whatever overlaps in it is settled by one block.
#pragma once

#include "faces.cuh"

constexpr int kTileWidth = 128;
constexpr int kTileHeight = 64;
constexpr int kTileThreads = 256;
constexpr int kTileList = 256;

// Which shapes touch the tile, in no particular order; all of them where more do than the list holds.
struct TileList {
    int touching;
    int numbers[kTileList];
};

__device__ __forceinline__ PixelRange tile_of_block(const FrameDescriptor& frame) {
    const int x = static_cast<int>(blockIdx.x) * kTileWidth;
    const int y = static_cast<int>(blockIdx.y) * kTileHeight;
    return {x, y, min(x + kTileWidth, frame.width), min(y + kTileHeight, frame.height)};
}

// Shape needs a member `bounds`. Every thread of the block calls this.
template <typename Shape>
__device__ __forceinline__ void find_touching(const Shape* shapes, int count, const PixelRange& tile, TileList* list) {
    if (threadIdx.x == 0) {
        list->touching = 0;
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kTileThreads) {
        if (overlap(shapes[i].bounds, tile)) {
            const int entry = atomicAdd(&list->touching, 1);
            if (entry < kTileList) {
                list->numbers[entry] = i;
            }
        }
    }
    __syncthreads();
}

__device__ __forceinline__ int candidates(const TileList& list, int count) {
    return list.touching <= kTileList ? list.touching : count;
}

__device__ __forceinline__ int candidate(const TileList& list, int entry) {
    return list.touching <= kTileList ? list.numbers[entry] : entry;
}
