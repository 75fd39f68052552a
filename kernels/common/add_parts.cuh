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

// to[c] += partial[0][c] + partial[1][c] + ...; a block has WARP columns, warp w takes parts w,
// w + WARPS, ..., and the warps are added in their order.
template <int WARPS>
__global__ void __launch_bounds__(WARPS* WARP) add_parts_kernel(AddParts a) {
    __shared__ float room[WARPS][WARP];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int64_t column = int64_t(blockIdx.x) * WARP + lane;
    float sum = 0;
    if (column < a.width) {
#pragma unroll 8
        for (int p = warp; p < a.parts; p += WARPS) sum += a.partial[p * a.width + column];
    }
    room[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= a.width) return;
    for (int w = 1; w < WARPS; ++w) sum += room[w][lane];
    a.to[column] += sum;
}

inline int32_t start_add_parts(RoclipStream stream, const AddParts& a) {
    return launch<add_parts_kernel<16>>(stream, ceil_div(a.width, WARP), 16 * WARP, 0, a);
}

}  // namespace
}  // namespace ROCLIP_BUILD
