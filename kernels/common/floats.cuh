// Neighbouring elements as floats, and rows held in the registers of a warp.
#pragma once

#include "launch.cuh"

#include <type_traits>

namespace ROCLIP_BUILD {

// Columns of a lane, 16 bytes of bf16, and those of a warp: lane l of chunk k has columns
// k*CHUNK + l*LANE and the next ones.
constexpr int LANE = 8;
constexpr int CHUNK = WARP * LANE;

// Widest row that is held in registers.
constexpr int MAX_CHUNKS = 8;

template <int V>
__device__ __forceinline__ void to_floats(const Vec<bf16, V>& from, float (&to)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = to_float(from[i]);
}

template <int V>
__device__ __forceinline__ void load_floats(const bf16* from, float (&to)[V]) {
    to_floats(load<V>(from), to);
}

// In loads of at most 16 bytes.
template <int V>
__device__ __forceinline__ void load_floats(const float* from, float (&to)[V]) {
    constexpr int PART = V < 4 ? V : 4;
#pragma unroll
    for (int i = 0; i < V; i += PART) {
        const Vec<float, PART> part = load<PART>(from + i);
#pragma unroll
        for (int j = 0; j < PART; ++j) to[i + j] = part[j];
    }
}

template <int V>
__device__ __forceinline__ void store_floats(bf16* to, const float (&from)[V]) {
    Vec<bf16, V> all;
#pragma unroll
    for (int i = 0; i < V; ++i) all[i] = to_bf16(from[i]);
    store(to, all);
}

template <int V>
__device__ __forceinline__ void store_floats(float* to, const float (&from)[V]) {
    constexpr int PART = V < 4 ? V : 4;
#pragma unroll
    for (int i = 0; i < V; i += PART) {
        Vec<float, PART> part;
#pragma unroll
        for (int j = 0; j < PART; ++j) part[j] = from[i + j];
        store(to + i, part);
    }
}

// To global memory, 16 bytes at once where V is 8, whatever the compiler knows of the values.
template <int V>
__device__ __forceinline__ void store_together(bf16* to, const float (&from)[V]) {
    if constexpr (V == LANE) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = pack_bf16(from[2 * i], from[2 * i + 1]);
        store16(to, words);
    } else {
        store_floats(to, from);
    }
}

// A row of at most CHUNKS*CHUNK columns, a multiple of LANE of them, as it lies in memory; beyond
// its end 0. All loads are on their way before the first is waited for.
template <int CHUNKS>
struct Row {
    Vec<bf16, LANE> at[CHUNKS];

    __device__ __forceinline__ void load(const bf16* row, int width) {
#pragma unroll
        for (int k = 0; k < CHUNKS; ++k) {
            const int column = k * CHUNK + int(threadIdx.x % WARP) * LANE;
            at[k] = {};  // else what was there would stay alive, and take registers
            if (column < width) at[k] = ROCLIP_BUILD::load<LANE>(row + column);
        }
    }
};

// Calls use(k, column) for the chunks of which this lane has columns.
template <int CHUNKS, class Use>
__device__ __forceinline__ void for_chunks(int width, Use use) {
#pragma unroll
    for (int k = 0; k < CHUNKS; ++k) {
        const int column = k * CHUNK + int(threadIdx.x % WARP) * LANE;
        if (column < width) use(k, column);
    }
}

// Host: whether rows of that width at these pointers can be held in registers.
template <class... Pointers>
inline bool fits_registers(int width, Pointers... pointers) {
    return width % LANE == 0 && width <= MAX_CHUNKS * CHUNK && aligned(16, pointers...);
}

// Host: start(n), n a constant of its type, for the smallest n of which n*CHUNK columns hold a row.
template <class Start>
inline int32_t with_chunks(int width, Start start) {
    switch (ceil_div(width, CHUNK)) {
        case 1: return start(std::integral_constant<int, 1>{});
        case 2: return start(std::integral_constant<int, 2>{});
        case 3: return start(std::integral_constant<int, 3>{});
        case 4: return start(std::integral_constant<int, 4>{});
        case 5:
        case 6: return start(std::integral_constant<int, 6>{});
        case 7:
        case 8: return start(std::integral_constant<int, 8>{});
        default: return ROCLIP_REFUSED;
    }
}

}  // namespace ROCLIP_BUILD
