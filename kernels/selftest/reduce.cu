// Shuffles, ballots, barriers, static shared memory. The table of all self-tests stands here too.
//
// Launch    grid blocks, block 256.
// Faults    1 no barrier before the sums of warps are read    2 half of a warp skips a shuffle
//           3 a barrier in a branch                           4 an index past a static array
//           5 trusts that the former block has cleared     6 a mask without the caller
//           7 sums overwritten before all have read them      8 memory that nobody clears
//           9 a result before the buffer
#include "selftest.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP;

__global__ void __launch_bounds__(THREADS) reduce_kernel(const SelftestReduce args) {
    __shared__ float room[WARPS];
    __shared__ int negative;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const float x = args.x[int64_t(blockIdx.x) * THREADS + threadIdx.x];
    float* out = args.out + int64_t(blockIdx.x) * 3;

    float sum = x, most = x;
    for (int step = WARP / 2; step > 0; step /= 2) {
        if (PLANTED(2) && lane >= WARP / 2) break;
        const unsigned mask = PLANTED(6) && lane == 0 ? ALL_LANES - 1 : ALL_LANES;
        sum += __shfl_xor_sync(mask, sum, step);
        most = fmaxf(most, __shfl_down_sync(ALL_LANES, most, step));
    }
    if (lane == 0) room[PLANTED(4) ? warp + 1 : warp] = sum;
    if (threadIdx.x == 0 && !PLANTED(8) && !(PLANTED(5) && blockIdx.x > 0)) negative = 0;
    if (PLANTED(3) && lane < 7) {
        __syncthreads();
    } else if (!PLANTED(1)) {
        __syncthreads();
    }
    sum = 0;
    for (int w = 0; w < WARPS; ++w) sum += room[w];

    if (!PLANTED(7)) __syncthreads();
    const unsigned votes = __ballot_sync(ALL_LANES, x < 0);
    if (lane == 0) {
        room[warp] = most;
        atomicAdd(&negative, __popc(votes));
    }
    __syncthreads();
    if (threadIdx.x != THREADS - 1) return;
    for (int w = 0; w < WARPS; ++w) most = fmaxf(most, room[w]);
    out[PLANTED(9) ? -1 : 0] = sum;
    out[1] = most;
    out[2] = float(negative);
    if (PLANTED(5)) negative = 0;
}

}  // namespace

int32_t selftest_reduce(RoclipStream stream, const SelftestReduce* args) {
    if (args->bug < 0 || args->bug > MAX_BUG(9)) return ROCLIP_REFUSED;
    return launch<reduce_kernel>(stream, dim3(args->blocks), dim3(THREADS), 0, *args);
}

}  // namespace ROCLIP_BUILD

extern "C" const RoclipSelftests ROCLIP_SELFTEST_TABLE = {
#define X(Args, name) ROCLIP_BUILD::name,
    ROCLIP_SELFTESTS(X)
#undef X
};
