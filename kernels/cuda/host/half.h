// Half precision as two bytes and its conversions, rounding to nearest even as cvt.rn.f16.f32 does.
#pragma once

#include <cmath>
#include <cstring>

#include "vector_types.h"

struct alignas(2) __half {
    unsigned short bits;
};

struct alignas(4) __half2 {
    __half x, y;
};

using half = __half;
using half2 = __half2;

inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }

inline float __half2float(__half value) {
    const unsigned magnitude = value.bits & 0x7fffu;
    unsigned bits;
    if (magnitude >= 0x7c00u) {
        bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
    } else if (magnitude >= 0x0400u) {
        bits = (magnitude << 13) + (112u << 23);
    } else {
        const float small = std::ldexp(static_cast<float>(magnitude), -24);
        std::memcpy(&bits, &small, 4);
    }
    bits |= (value.bits & 0x8000u) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

inline __half __float2half_rn(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    const unsigned sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    unsigned magnitude;
    if (bits > 0x7f800000u) {
        magnitude = 0x7fffu;
    } else if (bits >= 0x477ff000u) {  // 65520 and above round to infinity
        magnitude = 0x7c00u;
    } else if (bits >= 0x38800000u) {
        magnitude = (bits - (112u << 23) + 0xfffu + (bits >> 13 & 1u)) >> 13;
    } else {
        float small;
        std::memcpy(&small, &bits, 4);
        magnitude = static_cast<unsigned>(std::lrintf(std::ldexp(small, 24)));
    }
    return {static_cast<unsigned short>(sign | magnitude)};
}

inline __half __float2half(float value) { return __float2half_rn(value); }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float22half2_rn(float2 value) { return __floats2half2_rn(value.x, value.y); }
inline float2 __half22float2(__half2 value) { return {__half2float(value.x), __half2float(value.y)}; }
inline __half __low2half(__half2 value) { return value.x; }
inline __half __high2half(__half2 value) { return value.y; }
inline float __low2float(__half2 value) { return __half2float(value.x); }
inline float __high2float(__half2 value) { return __half2float(value.y); }
