// The second half of a sum over rows: adds up the blocks' partial sums.
#pragma once

#include "launch.cuh"

namespace ROCLIP_BUILD {
namespace {

struct AddParts {
    const float* partial;  // [parts, width]
    float* to;             // [width]
    int64_t width;
    int parts;
};

// The sum of term(0), term(1), ... in a block of WARPS warps and one column a lane: warp w adds the
// terms w, w + WARPS, ..., and then the warps are added in their order. Every thread of the block
// calls, gets the sum, and must come to a barrier before the next call.
template <int WARPS, class Term>
__device__ __forceinline__ float sum_parts(int parts, float (&room)[WARPS][WARP], Term term) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float sum = 0;
#pragma unroll 8
    for (int p = warp; p < parts; p += WARPS) sum += term(p);
    room[warp][lane] = sum;
    __syncthreads();
    sum = room[0][lane];
    for (int w = 1; w < WARPS; ++w) sum += room[w][lane];
    return sum;
}

// to[c] += partial[0][c] + partial[1][c] + ...; a block has WARP columns.
template <int WARPS>
__global__ void __launch_bounds__(WARPS* WARP) add_parts_kernel(AddParts a) {
    __shared__ float room[WARPS][WARP];
    const int64_t column = int64_t(blockIdx.x) * WARP + threadIdx.x % WARP;
    const bool inside = column < a.width;
    const float sum = sum_parts<WARPS>(inside ? a.parts : 0, room, [&](int p) {
        return a.partial[p * a.width + column];
    });
    if (inside && threadIdx.x < WARP) a.to[column] += sum;
}

inline int32_t start_add_parts(RoclipStream stream, const AddParts& a) {
    return launch<add_parts_kernel<16>>(stream, ceil_div(a.width, WARP), 16 * WARP, 0, a);
}

}  // namespace
}  // namespace ROCLIP_BUILD
