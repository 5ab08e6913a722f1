// Groups of neighbouring samples and values, moved by one instruction of up to 16 bytes where addresses allow.
#pragma once

#include "device.cuh"

template <int Bytes>
struct Words;

template <>
struct Words<2> {
    typedef unsigned short type;
};
template <>
struct Words<4> {
    typedef unsigned type;
};
template <>
struct Words<8> {
    typedef uint2 type;
};
template <>
struct Words<16> {
    typedef uint4 type;
};

__device__ __forceinline__ void split(unsigned short words, unsigned* parts) { parts[0] = words; }
__device__ __forceinline__ void split(unsigned words, unsigned* parts) { parts[0] = words; }
__device__ __forceinline__ void split(uint2 words, unsigned* parts) {
    parts[0] = words.x;
    parts[1] = words.y;
}
__device__ __forceinline__ void split(uint4 words, unsigned* parts) {
    parts[0] = words.x;
    parts[1] = words.y;
    parts[2] = words.z;
    parts[3] = words.w;
}

__device__ __forceinline__ void join(const unsigned* parts, uint2& words) { words = make_uint2(parts[0], parts[1]); }
__device__ __forceinline__ void join(const unsigned* parts, uint4& words) {
    words = make_uint4(parts[0], parts[1], parts[2], parts[3]);
}

template <int Bytes>
__device__ __forceinline__ bool is_aligned(unsigned long long address) {
    return (address & (Bytes - 1)) == 0;
}

// Read Count samples from index on; those from limit on are not touched and come out as 0.
template <typename Sample, int Count>
__device__ __forceinline__ void load_samples(
    unsigned long long row, int index, int limit, float factor, float (&samples)[Count]) {
    const int bytes = Count * static_cast<int>(sizeof(Sample));
    const int per_word = 4 / static_cast<int>(sizeof(Sample));
    const unsigned long long address = row + static_cast<unsigned long long>(index) * sizeof(Sample);
    if (index + Count <= limit && is_aligned<bytes>(address)) {
        unsigned parts[(bytes + 3) / 4];
        split(__ldg(reinterpret_cast<const typename Words<bytes>::type*>(address)), parts);
#pragma unroll
        for (int i = 0; i < Count; ++i) {
            const Sample sample = static_cast<Sample>(parts[i / per_word] >> (8 * sizeof(Sample) * (i % per_word)));
            samples[i] = static_cast<float>(sample) * factor;
        }
        return;
    }
    const Sample* stored = reinterpret_cast<const Sample*>(address);
#pragma unroll
    for (int i = 0; i < Count; ++i) {
        samples[i] = index + i < limit ? static_cast<float>(__ldg(stored + i)) * factor : 0.0f;
    }
}

__device__ __forceinline__ unsigned bits_of(float value) { return __float_as_uint(value); }
__device__ __forceinline__ unsigned bits_of(__half value) { return __half_as_ushort(value); }
__device__ __forceinline__ unsigned bits_of(signed char value) { return static_cast<unsigned char>(value); }

// Write Count values; those from limit on are left out.
template <typename Value, int Count>
__device__ __forceinline__ void store_values(Value* out, const Value (&values)[Count], int limit) {
    const int bytes = Count * static_cast<int>(sizeof(Value));
    const int per_word = 4 / static_cast<int>(sizeof(Value));
    if (limit >= Count && is_aligned<bytes>(reinterpret_cast<unsigned long long>(out))) {
        unsigned parts[bytes / 4];
#pragma unroll
        for (int i = 0; i < bytes / 4; ++i) {
            parts[i] = 0;
        }
#pragma unroll
        for (int i = 0; i < Count; ++i) {
            parts[i / per_word] |= bits_of(values[i]) << (8 * sizeof(Value) * (i % per_word));
        }
        join(parts, *reinterpret_cast<typename Words<bytes>::type*>(out));
        return;
    }
#pragma unroll
    for (int i = 0; i < Count; ++i) {
        if (i < limit) {
            out[i] = values[i];
        }
    }
}
