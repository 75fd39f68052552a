// Sums of columns, by one block, in one fixed order.
#pragma once

#include "floats.cuh"

namespace ROCLIP_BUILD {

// A block of COLUMN_THREADS has COLUMN_LANES threads side by side, V columns each, and
// COLUMN_GROUPS of these below each other, which share the rows.
constexpr int COLUMN_THREADS = 512;
constexpr int COLUMN_LANES = 8;
constexpr int COLUMN_GROUPS = COLUMN_THREADS / COLUMN_LANES;
constexpr int COLUMN_WARPS = COLUMN_THREADS / WARP;

// Rows that a thread has in flight, where each is a vector or two.
constexpr int COLUMN_UNROLL = 4;

// Columns of a block.
template <int V>
constexpr int COLUMN_TILE = COLUMN_LANES * V;

// This thread's first column, within all columns, in tile `tile`.
template <int V>
__device__ __forceinline__ int64_t my_column(int64_t tile) {
    return tile * COLUMN_TILE<V> + threadIdx.x % COLUMN_LANES * V;
}

// Calls add(row, load(row), sums), V columns of SUMS matrices, for rows in blocks part,
// part + parts, ... of COLUMN_GROUPS. Returns whether this thread got the sums: one thread for V
// columns does.
// `inside`: whether its columns exist. Every thread of the block calls: there is a barrier in here.
template <int V, int SUMS, int UNROLL = COLUMN_UNROLL, class Load, class Add>
__device__ __forceinline__ bool sum_columns(
    bool inside, int64_t rows, int part, int parts, Load load, Add add, float (&sums)[SUMS][V]) {
    __shared__ float room[COLUMN_WARPS][SUMS][COLUMN_TILE<V>];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int64_t step = int64_t(parts) * COLUMN_GROUPS;
#pragma unroll
    for (int s = 0; s < SUMS; ++s) {
#pragma unroll
        for (int i = 0; i < V; ++i) sums[s][i] = 0;
    }
    const int64_t end = inside ? rows : 0;
    int64_t row = int64_t(part) * COLUMN_GROUPS + threadIdx.x / COLUMN_LANES;
    for (; row < end; row += UNROLL * step) {
        decltype(load(row)) loaded[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            if (row + u * step < end) loaded[u] = load(row + u * step);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            if (row + u * step < end) add(row + u * step, loaded[u], sums);
        }
    }
    // the groups of a warp, then the warps
#pragma unroll
    for (int s = 0; s < SUMS; ++s) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            float sum = sums[s][i];
            for (int lanes = COLUMN_LANES; lanes < WARP; lanes *= 2) {
                sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
            }
            if (lane < COLUMN_LANES) room[warp][s][lane * V + i] = sum;
        }
    }
    __syncthreads();
    if (threadIdx.x >= COLUMN_LANES) return false;
#pragma unroll
    for (int s = 0; s < SUMS; ++s) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            float sum = 0;
            for (int w = 0; w < COLUMN_WARPS; ++w) sum += room[w][s][lane * V + i];
            sums[s][i] = sum;
        }
    }
    return inside;
}

// For sum_columns: the loaded elements are the terms.
template <int V>
struct AddFloats {
    __device__ __forceinline__ void operator()(
        int64_t, const Vec<bf16, V>& loaded, float (&sums)[1][V]) const {
#pragma unroll
        for (int i = 0; i < V; ++i) sums[0][i] += to_float(loaded[i]);
    }
};

// to[0..V] += from
template <int V>
__device__ __forceinline__ void add_floats(float* to, const float (&from)[V]) {
    float sum[V];
    load_floats(to, sum);
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] += from[i];
    store_floats(to, sum);
}

// Parts into which sums over that many rows are cut: enough for every thread to have two loads of
// COLUMN_UNROLL rows, and no more than ROCLIP_PARTS.
inline int column_parts(int64_t rows) {
    const int64_t parts = ceil_div(rows, 2 * COLUMN_UNROLL * COLUMN_GROUPS);
    return parts < ROCLIP_PARTS ? int(parts) : ROCLIP_PARTS;
}

}  // namespace ROCLIP_BUILD
