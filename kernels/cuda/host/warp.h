// Warp functions: votes, shuffles, reductions and __syncwarp, for the threads of a warp that a mask names.
//
// As in CUDA, every thread named that has not returned must call the same function with the same mask. Only __syncwarp
// orders memory.
#pragma once

#include <type_traits>

#include "block.h"

namespace cuda_on_host {

inline Meeting& meeting_of(Warp& warp, unsigned mask) {
    for (auto& m : warp.meetings) {
        if (m.mask == mask) return m;
    }
    warp.meetings.emplace_back().mask = mask;
    return warp.meetings.back();
}

// Gives a value, waits for the others of the mask, and returns read(values, who came).
template <class Read>
auto meet_warp(const char* what, unsigned mask, unsigned long long value, Read read, bool orders_memory = false) {
    const Unseen unseen;
    const unsigned lane = static_cast<unsigned>(current % 32);
    if ((mask >> lane & 1u) == 0) fail(std::string(what) + " with a mask that does not name the calling thread");
    Warp& warp = warps[static_cast<size_t>(current / 32)];
    Meeting& m = meeting_of(warp, mask);
    if (m.arrived != 0 && std::string(m.what) != what) {
        fail(std::string("meets ") + m.what + " of its warp in " + what);
    }
    m.what = doing = what;
    const int turn = m.turn;
    if (orders_memory) publish(&m.edge[turn]);
    m.values[turn][lane] = value;
    m.arrived |= 1u << lane;
    if ((mask & warp.alive & ~m.arrived) == 0) {
        complete(m);
    } else {
        wait(&m);
    }
    if (orders_memory) receive(&m.edge[turn]);
    return read(m.values[turn], m.present[turn]);
}

template <class T>
unsigned long long pack(T value) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "shuffles move at most eight bytes");
    unsigned long long bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

template <class T>
T unpack(unsigned long long bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// `source` is a lane of the warp, or this one where it lies outside of the segment.
template <class T>
T shuffle(const char* what, unsigned mask, T value, int source, int width) {
    if (width <= 0 || width > 32 || (width & (width - 1)) != 0) {
        const Unseen unseen;
        fail(std::string(what) + " with a width that is not a power of two up to 32");
    }
    int missing = 0;
    const unsigned long long bits =
        meet_warp(what, mask, pack(value), [&](const unsigned long long* values, unsigned present) {
            missing = (present >> source & 1u) == 0;
            return missing ? 0ull : values[source];
        });
    if (missing) {
        const Unseen unseen;
        fail(std::string(what) + " reads lane " + std::to_string(source) + ", which takes no part");
    }
    return unpack<T>(bits);
}

inline int lane_number() { return current % 32; }

}  // namespace cuda_on_host

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    cuda_on_host::meet_warp("__syncwarp", mask, 0, [](const unsigned long long*, unsigned) { return 0; }, true);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return cuda_on_host::meet_warp("__ballot_sync", mask, predicate != 0,
                                   [](const unsigned long long* values, unsigned present) {
                                       unsigned result = 0;
                                       for (int lane = 0; lane < 32; ++lane) {
                                           if ((present >> lane & 1u) != 0 && values[lane] != 0) result |= 1u << lane;
                                       }
                                       return result;
                                   });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate == 0) == 0; }

template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
    return cuda_on_host::meet_warp("__match_any_sync", mask, cuda_on_host::pack(value),
                                   [=](const unsigned long long* values, unsigned present) {
                                       unsigned result = 0;
                                       for (int lane = 0; lane < 32; ++lane) {
                                           if ((present >> lane & 1u) != 0 && values[lane] == cuda_on_host::pack(value))
                                               result |= 1u << lane;
                                       }
                                       return result;
                                   });
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const int lane = cuda_on_host::lane_number();
    return cuda_on_host::shuffle("__shfl_sync", mask, value, (lane & ~(width - 1)) | (source & (width - 1)), width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = cuda_on_host::lane_number(), source = lane - static_cast<int>(delta);
    return cuda_on_host::shuffle("__shfl_up_sync", mask, value, source < (lane & ~(width - 1)) ? lane : source, width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = cuda_on_host::lane_number(), source = lane + static_cast<int>(delta);
    return cuda_on_host::shuffle("__shfl_down_sync", mask, value, source > (lane | (width - 1)) ? lane : source, width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    const int lane = cuda_on_host::lane_number(), source = lane ^ lanes;
    return cuda_on_host::shuffle("__shfl_xor_sync", mask, value, source > (lane | (width - 1)) ? lane : source, width);
}

// __reduce_*_sync is left out: it needs sm_80, and the kernels run on sm_75.
