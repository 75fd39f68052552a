// A tile product by specialised warpgroups: one loads by TMA, two multiply by wgmma.
//
//   out[i, j] = sum_l a[i, l] b[j, l]
//
// Requires  sm_90a; k a multiple of 8, a and b aligned to 16 bytes; m, n and k need not fill tiles,
//           TMA reads zeros past the end.
// Launch    grid (n / N, m / 128), block 384, dynamic shared memory stages * (128 + N) * 128 + 64.
// Mapping   warpgroup 0 loads; 1 and 2 have 64 rows each. Warp w of them: rows 16 w to 16 w + 15.
// Barriers  full[s]: one arrival and the bytes of the stage. empty[s]: one arrival of each consumer
//           warpgroup, whose other warps have read the stage when wgmma_wait returns.
// Faults    1 no wait for the loads               2 the producer's first wait has the wrong parity
//           3 the phase changes at every step     4 a stage is given back before its wgmma is done
//           5 no bytes are expected               6 every consumer thread arrives
//           7 K advances by too much              8 no wait for wgmma
//           9 no fence after the barriers' start  10 no barrier after it
//          11 one warp's descriptor differs       12 more registers than there are
//          13 no wgmma_fence                      14 a tile off the alignment
//          15 more bytes expected than come       16 the producer does not wait at all
#include "selftest.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int THREADS = 384, ROWS = 128, DEPTH = 64, ROW_BYTES = DEPTH * 2;

struct Arguments {
    CUtensorMap a, b;
    float* out;
    int32_t m, n, steps, bug;
};

template <int N>
struct Tile {
    static constexpr int STAGES = N == 256 ? 3 : 4;
    static constexpr int A = ROWS * ROW_BYTES, B = N * ROW_BYTES, STAGE = A + B;
    static constexpr int SHARED = STAGES * STAGE + 2 * STAGES * int(sizeof(uint64_t));
};

template <int N>
__device__ void produce(const Arguments& args, unsigned char* stages, uint64_t* full,
                        uint64_t* empty) {
    using T = Tile<N>;
    for (int step = 0; step < args.steps; ++step) {
        const int s = step % T::STAGES, round = PLANTED(3) ? step : step / T::STAGES;
        if (!PLANTED(16)) mbarrier_wait(empty + s, (PLANTED(2) ? round : round + 1) % 2);
        if (PLANTED(5)) {
            mbarrier_arrive(full + s);
        } else {
            mbarrier_arrive_expect(full + s, PLANTED(15) ? T::STAGE + 16 : T::STAGE);
        }
        unsigned char* tile = stages + s * T::STAGE + (PLANTED(14) ? 16 : 0);
        tma_load_2d(tile, &args.a, full + s, step * DEPTH, blockIdx.y * ROWS);
        tma_load_2d(tile + T::A, &args.b, full + s, step * DEPTH, blockIdx.x * N);
    }
}

template <int N>
__device__ void consume(const Arguments& args, const unsigned char* stages, uint64_t* full,
                        uint64_t* empty) {
    using T = Tile<N>;
    const int group = threadIdx.x / 128 - 1, warp = threadIdx.x % 128 / WARP;
    const int lane = threadIdx.x % WARP;
    const bool arrives = threadIdx.x % 128 == 0 || PLANTED(6);
    float d[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] = 0.0f;
    for (int step = 0; step < args.steps; ++step) {
        const int s = step % T::STAGES;
        if (!PLANTED(1)) mbarrier_wait(full + s, step / T::STAGES % 2);
        const unsigned char* tile = stages + s * T::STAGE;
        const uint64_t a = wgmma_descriptor(tile + group * 64 * ROW_BYTES) +
                           (PLANTED(11) && warp == 3 ? 64 : 0);
        const uint64_t b = wgmma_descriptor(tile + T::A);
        if (!PLANTED(13)) wgmma_fence();
#pragma unroll
        for (int k = 0; k < DEPTH / 16; ++k) {
            wgmma(d, a + k * 2, b + k * (PLANTED(7) ? 4 : 2), true);
        }
        wgmma_commit();
        if (arrives && PLANTED(4)) mbarrier_arrive(empty + s);
        if (!PLANTED(8)) wgmma_wait<0>();
        if (arrives && !PLANTED(4)) mbarrier_arrive(empty + s);
    }
    const int64_t row0 = int64_t(blockIdx.y) * ROWS + group * 64 + warp * 16 + lane / 4;
    const int64_t column0 = int64_t(blockIdx.x) * N + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        const int64_t row = row0 + i / 2 % 2 * 8, column = column0 + i / 4 * 8 + i % 2;
        if (row < args.m && column < args.n) args.out[row * args.n + column] = d[i];
    }
    if (PLANTED(8)) wgmma_wait<0>();
}

template <int N>
__global__ void __launch_bounds__(THREADS, 1)
    wgmma_kernel(const __grid_constant__ Arguments args) {
    using T = Tile<N>;
    DYNAMIC_SHARED(stages);
    uint64_t* full = reinterpret_cast<uint64_t*>(stages + T::STAGES * T::STAGE);
    uint64_t* empty = full + T::STAGES;
    if (threadIdx.x == 0) {
        for (int s = 0; s < T::STAGES; ++s) {
            mbarrier_init(full + s, 1);
            mbarrier_init(empty + s, 2);
        }
        if (!PLANTED(9)) mbarrier_init_fence();
    }
    if (!PLANTED(10)) __syncthreads();
    if (threadIdx.x < 128) {
        registers_release<40>();
        if (threadIdx.x == 0) produce<N>(args, stages, full, empty);
    } else if (PLANTED(12)) {
        registers_claim<256>();
    } else {
        registers_claim<232>();
        consume<N>(args, stages, full, empty);
    }
}

template <int N>
int32_t start(RoclipStream stream, const SelftestProduct* args) {
    if (args->bug < 0 || args->bug > MAX_BUG(16) || !has_sm90a()) return ROCLIP_REFUSED;
    Arguments arguments = {};
    arguments.out = args->out;
    arguments.m = args->m;
    arguments.n = args->n;
    arguments.steps = int32_t(ceil_div(args->k, DEPTH));
    arguments.bug = args->bug;
    int32_t error = tensor_map_2d(&arguments.a, args->a, args->m, args->k, args->k, ROWS);
    if (error) return error;
    error = tensor_map_2d(&arguments.b, args->b, args->n, args->k, args->k, N);
    if (error) return error;
    const dim3 grid(unsigned(ceil_div(args->n, N)), unsigned(ceil_div(args->m, ROWS)));
    return launch<wgmma_kernel<N>>(stream, grid, dim3(THREADS), Tile<N>::SHARED, arguments);
}

}  // namespace

int32_t selftest_wgmma_128(RoclipStream stream, const SelftestProduct* args) {
    return start<128>(stream, args);
}

int32_t selftest_wgmma_256(RoclipStream stream, const SelftestProduct* args) {
    return start<256>(stream, args);
}

}  // namespace ROCLIP_BUILD
