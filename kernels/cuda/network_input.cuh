// The planes of a network's input: levels become values (level - mean) * scale of the type that the network takes.
#pragma once

#include "colour.cuh"

// How levels become values. For int8 the scale includes the division by the size of one step.
struct Normalisation {
    float mean[3];  // in the order of the network's channels
    float scale;
    int rgb;  // whether the network takes red first
};

__device__ __forceinline__ void convert(float value, float& out) { out = value; }

__device__ __forceinline__ void convert(float value, __half& out) { out = __float2half_rn(value); }

__device__ __forceinline__ void convert(float value, signed char& out) {
    out = static_cast<signed char>(static_cast<int>(nearest_whole(fminf(fmaxf(value, -128.0f), 127.0f))));
}

// Write one pixel of three planes.
template <typename Value>
__device__ __forceinline__ void write_pixel(
    Value* out, long long plane, long long pixel, const Normalisation& norm, const Channels& bgr) {
    const float first = norm.rgb ? bgr.third : bgr.first;
    const float third = norm.rgb ? bgr.first : bgr.third;
    convert((first - norm.mean[0]) * norm.scale, out[pixel]);
    convert((bgr.second - norm.mean[1]) * norm.scale, out[pixel + plane]);
    convert((third - norm.mean[2]) * norm.scale, out[pixel + 2 * plane]);
}

template <typename Value>
__device__ __forceinline__ void write_padding(Value* out, long long plane, long long pixel) {
    for (int channel = 0; channel < 3; ++channel) {
        convert(0.0f, out[pixel + channel * plane]);
    }
}
