// Anchors from their indices, by the detector's spec. Counted in the classic order: level, row, column, size.
#pragma once

#include "device.cuh"

constexpr int kMaxLevels = 5;
constexpr int kMaxSizes = 3;

struct Level {
    int stride;
    int sizes;
    int rows;
    int columns;
    int first_anchor;
    float size[kMaxSizes];
};

struct Anchor {
    const Level* level;
    int number;  // of the level
    int cell;    // row * columns + column
    int which;   // of the level's sizes
    float x, y, size;
};

__device__ inline Anchor anchor_at(const Level* levels, int count, int index) {
    Anchor anchor;
    anchor.number = 0;
    while (anchor.number + 1 < count && index >= levels[anchor.number + 1].first_anchor) ++anchor.number;
    anchor.level = levels + anchor.number;
    const int within = index - anchor.level->first_anchor;
    anchor.cell = within / anchor.level->sizes;
    anchor.which = within - anchor.cell * anchor.level->sizes;
    const int row = anchor.cell / anchor.level->columns;
    const int column = anchor.cell - row * anchor.level->columns;
    const float stride = static_cast<float>(anchor.level->stride);
    anchor.x = (static_cast<float>(column) + 0.5f) * stride;
    anchor.y = (static_cast<float>(row) + 0.5f) * stride;
    anchor.size = anchor.level->size[anchor.which];
    return anchor;
}
