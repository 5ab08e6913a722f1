// CUDA's arithmetic, bit and memory functions that need no other thread.
#pragma once

#include <cmath>
#include <cstring>

using std::isfinite;
using std::isinf;
using std::isnan;

template <class To, class From>
inline To cuda_on_host_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline unsigned __float_as_uint(float v) { return cuda_on_host_bits<unsigned>(v); }
inline int __float_as_int(float v) { return cuda_on_host_bits<int>(v); }
inline float __uint_as_float(unsigned v) { return cuda_on_host_bits<float>(v); }
inline float __int_as_float(int v) { return cuda_on_host_bits<float>(v); }

inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline long long min(long long a, long long b) { return b < a ? b : a; }
inline long long max(long long a, long long b) { return a < b ? b : a; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return b < a ? b : a; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a < b ? b : a; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return std::exp(a); }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }

// As cvt.rni and cvt.rzi: out of range saturates and NaN becomes 0, where C++ leaves both undefined.
inline int cuda_on_host_to_int(float v) {
    if (std::isnan(v)) return 0;
    if (v >= 2147483648.0f) return 2147483647;
    return v <= -2147483648.0f ? -2147483647 - 1 : static_cast<int>(v);
}
inline unsigned cuda_on_host_to_uint(float v) {
    if (!(v > 0.0f)) return 0;
    return v >= 4294967296.0f ? 4294967295u : static_cast<unsigned>(v);
}
inline int __float2int_rn(float v) { return cuda_on_host_to_int(std::nearbyint(v)); }
inline int __float2int_rz(float v) { return cuda_on_host_to_int(v); }
inline int __float2int_rd(float v) { return cuda_on_host_to_int(std::floor(v)); }
inline int __float2int_ru(float v) { return cuda_on_host_to_int(std::ceil(v)); }
inline unsigned __float2uint_rn(float v) { return cuda_on_host_to_uint(std::nearbyint(v)); }
inline unsigned __float2uint_rz(float v) { return cuda_on_host_to_uint(v); }
inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline float __uint2float_rn(unsigned v) { return static_cast<float>(v); }
inline float __double2float_rn(double v) { return static_cast<float>(v); }

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int __clzll(long long v) { return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v)); }
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned __brev(unsigned v) {
    unsigned result = 0;
    for (int bit = 0; bit < 32; ++bit) result |= (v >> bit & 1u) << (31 - bit);
    return result;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const unsigned long long bytes = static_cast<unsigned long long>(high) << 32 | low;
    unsigned result = 0;
    for (int k = 0; k < 4; ++k) {
        const unsigned pick = selector >> (4 * k) & 0xfu;
        unsigned byte = static_cast<unsigned>(bytes >> (8 * (pick & 7u))) & 0xffu;
        if (pick & 8u) byte = byte & 0x80u ? 0xffu : 0u;
        result |= byte << (8 * k);
    }
    return result;
}

// Cache hints change nothing here.
template <class T> inline T __ldg(const T* address) { return *address; }
template <class T> inline T __ldcs(const T* address) { return *address; }
template <class T> inline T __ldcg(const T* address) { return *address; }
template <class T> inline T __ldca(const T* address) { return *address; }
template <class T> inline void __stcs(T* address, T value) { *address = value; }
template <class T> inline void __stcg(T* address, T value) { *address = value; }

// CUDA's atomics order nothing but themselves, and so do these: ThreadSanitizer then sees a missing barrier too.
template <class T> inline T cuda_on_host_update(T* address, T (*change)(T, T), T value) {
    T old;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    for (;;) {
        T wanted = change(old, value);
        if (__atomic_compare_exchange(address, &old, &wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return old;
    }
}

#define CUDA_ON_HOST_ATOMICS(type)                                                                                 \
    inline type atomicAdd(type* p, type v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }                  \
    inline type atomicSub(type* p, type v) { return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED); }                  \
    inline type atomicOr(type* p, type v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }                    \
    inline type atomicAnd(type* p, type v) { return __atomic_fetch_and(p, v, __ATOMIC_RELAXED); }                  \
    inline type atomicXor(type* p, type v) { return __atomic_fetch_xor(p, v, __ATOMIC_RELAXED); }                  \
    inline type atomicExch(type* p, type v) { return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }                \
    inline type atomicCAS(type* p, type expected, type v) {                                                        \
        __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                   \
        return expected;                                                                                           \
    }                                                                                                              \
    inline type atomicMax(type* p, type v) {                                                                       \
        return cuda_on_host_update<type>(p, [](type a, type b) { return a < b ? b : a; }, v);                      \
    }                                                                                                              \
    inline type atomicMin(type* p, type v) {                                                                       \
        return cuda_on_host_update<type>(p, [](type a, type b) { return b < a ? b : a; }, v);                      \
    }

CUDA_ON_HOST_ATOMICS(int)
CUDA_ON_HOST_ATOMICS(unsigned)
CUDA_ON_HOST_ATOMICS(unsigned long long)

#undef CUDA_ON_HOST_ATOMICS

inline float atomicAdd(float* p, float v) {
    return cuda_on_host_update<float>(p, [](float a, float b) { return a + b; }, v);
}
