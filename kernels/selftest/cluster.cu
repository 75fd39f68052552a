// A tile product by clusters of two blocks, each of which loads half of the tile of b for both.
//
//   out[i, j] = sum_l a[i, l] b[j, l]          bf16 into f32, or int8 into int32 (stored as f32)
//
// Requires  sm_90a; rows of a and b that are multiples of 16 bytes; m, n and k need not fill tiles.
// Launch    clusters of 2, as many as the GPU has multiprocessors for: cluster c has tiles c, c +
//           clusters, ... of 256 rows x N columns. Block 384, shared stages * (128 + N) * 128 + 64.
// Mapping   the block of rank r has rows 128 r to 128 r + 127 of the tile and loads rows r N / 2 to
//           (r + 1) N / 2 - 1 of b's tile. Warpgroup 0 loads; 1 and 2 have 64 rows each.
// Barriers  full[s]: one arrival and the bytes of the stage, half of b's from the other block.
//           empty[s]: one arrival of each consumer warpgroup of both blocks, for the producer
//           writes to both.
// Faults    1 a stage is given back to the own block only
//           2 only the bytes of the own loads are expected
//           3 no cluster_sync before the first multicast    4 none at the end
//           5 b's half goes to the own block only           6 it goes to a block too many
//           7 the own block gets both releases              8 a release to a rank that is not there
//           9 both halves to one place                     10 both blocks load the first half
//          11 no fence after the barriers' start           12 a static shared array
//          13 the block of rank 1 ends one step early
#include "selftest.cuh"

#include <type_traits>

namespace ROCLIP_BUILD {
namespace {

constexpr int THREADS = 384, BLOCKS = 2, ROWS = 128, ROW_BYTES = 128, CONSUMERS = 2;

struct Arguments {
    CUtensorMap a, b;
    float* out;
    int32_t m, n, steps, tiles, bug;
};

template <class Element, int N>
struct Tile {
    typedef std::conditional_t<sizeof(Element) == 1, int32_t, float> Sum;
    static constexpr int DEPTH = ROW_BYTES / int(sizeof(Element));
    static constexpr int STAGES = N > 200 ? 3 : 4;
    static constexpr int A = ROWS * ROW_BYTES, HALF = N / BLOCKS * ROW_BYTES;
    static constexpr int STAGE = A + BLOCKS * HALF;
    static constexpr int SHARED = STAGES * STAGE + 2 * STAGES * int(sizeof(uint64_t));
    static_assert(HALF % 1024 == 0, "where a box may begin");
};

// Where tile number t lies: tiles of one column of tiles follow each other.
struct Place {
    int row, column;
};
template <int N>
__device__ Place place(const Arguments& args, int tile) {
    const int down = (args.m + BLOCKS * ROWS - 1) / (BLOCKS * ROWS);
    const int rank = int(blockIdx.x) % BLOCKS;
    return {(tile % down * BLOCKS + rank) * ROWS, tile / down * N};
}

__device__ int first_tile() { return int(blockIdx.x) / BLOCKS; }
__device__ int clusters() { return int(gridDim.x) / BLOCKS; }

template <class Element, int N>
__device__ void produce(const Arguments& args, unsigned char* stages, uint64_t* full,
                        uint64_t* empty) {
    using T = Tile<Element, N>;
    const int rank = int(cluster_rank());
    const int both = PLANTED(5) ? 1 << rank : PLANTED(6) ? 7 : 3;
    int turn = 0;
    for (int tile = first_tile(); tile < args.tiles; tile += clusters()) {
        const Place at = place<N>(args, tile);
        for (int step = 0; step < args.steps; ++step, ++turn) {
            const int s = turn % T::STAGES;
            mbarrier_wait(empty + s, (turn / T::STAGES + 1) % 2);
            mbarrier_arrive_expect(full + s, PLANTED(2) ? T::A + T::HALF : T::STAGE);
            unsigned char* stage = stages + s * T::STAGE;
            const int half = PLANTED(10) ? 0 : rank;
            unsigned char* b = stage + T::A + (PLANTED(9) ? 0 : rank) * T::HALF;
            tma_load_2d(stage, &args.a, full + s, step * T::DEPTH, at.row);
            tma_load_2d_multicast(b, &args.b, full + s, step * T::DEPTH,
                                  at.column + half * (N / BLOCKS), uint16_t(both));
        }
    }
}

// Gives a stage back to both producers.
__device__ void release(const Arguments& args, uint64_t* empty) {
    const uint32_t rank = cluster_rank();
    mbarrier_arrive_at(empty, rank);
    if (PLANTED(1)) return;
    mbarrier_arrive_at(empty, PLANTED(7) ? rank : PLANTED(8) ? rank + 1 : 1 - rank);
}

template <class Element, int N>
__device__ void consume(const Arguments& args, const unsigned char* stages, uint64_t* full,
                        uint64_t* empty) {
    using T = Tile<Element, N>;
    const int group = threadIdx.x / 128 - 1, warp = threadIdx.x % 128 / WARP;
    const int lane = threadIdx.x % WARP;
    const int steps = PLANTED(13) && cluster_rank() == 1 ? args.steps - 1 : args.steps;
    int turn = 0;
    for (int tile = first_tile(); tile < args.tiles; tile += clusters()) {
        typename T::Sum d[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; ++i) d[i] = 0;
        for (int step = 0; step < steps; ++step, ++turn) {
            const int s = turn % T::STAGES;
            mbarrier_wait(full + s, turn / T::STAGES % 2);
            const unsigned char* stage = stages + s * T::STAGE;
            const uint64_t a = wgmma_descriptor(stage + group * 64 * ROW_BYTES);
            const uint64_t b = wgmma_descriptor(stage + T::A);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < ROW_BYTES / 32; ++k) wgmma(d, a + k * 2, b + k * 2, true);
            wgmma_commit();
            wgmma_wait<0>();
            if (threadIdx.x % 128 == 0) release(args, empty + s);
        }
        const Place at = place<N>(args, tile);
        const int64_t row0 = at.row + group * 64 + warp * 16 + lane / 4;
        const int64_t column0 = at.column + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const int64_t row = row0 + i / 2 % 2 * 8, column = column0 + i / 4 * 8 + i % 2;
            if (row < args.m && column < args.n) args.out[row * args.n + column] = float(d[i]);
        }
    }
}

template <class Element, int N>
__global__ void __launch_bounds__(THREADS, 1)
    cluster_kernel(const __grid_constant__ Arguments args) {
    using T = Tile<Element, N>;
    DYNAMIC_SHARED(stages);
    uint64_t* full = reinterpret_cast<uint64_t*>(stages + T::STAGES * T::STAGE);
    uint64_t* empty = full + T::STAGES;
    if (PLANTED(12)) {
        __shared__ int room[THREADS];
        room[threadIdx.x] = args.steps;
        __syncthreads();
        if (room[0] == 0) return;
    }
    if (threadIdx.x == 0) {
        for (int s = 0; s < T::STAGES; ++s) {
            mbarrier_init(full + s, 1);
            mbarrier_init(empty + s, CONSUMERS * BLOCKS);
        }
        if (!PLANTED(11)) mbarrier_init_fence();
    }
    if (PLANTED(3)) {
        __syncthreads();
    } else {
        cluster_sync();
    }
    if (threadIdx.x < 128) {
        registers_release<40>();
        if (threadIdx.x == 0) produce<Element, N>(args, stages, full, empty);
        __syncwarp();
    } else {
        registers_claim<232>();
        consume<Element, N>(args, stages, full, empty);
    }
    if (!PLANTED(4) && !PLANTED(13)) cluster_sync();
}

template <class Element, int N, class Args>
int32_t start(RoclipStream stream, const Args* args) {
    const int bug = args->bug;
    if (bug < 0 || bug > MAX_BUG(13) || !has_sm90a()) return ROCLIP_REFUSED;
    using T = Tile<Element, N>;
    Arguments arguments = {};
    arguments.out = args->out;
    arguments.m = args->m;
    arguments.n = args->n;
    arguments.steps = int32_t(ceil_div(args->k, T::DEPTH));
    arguments.tiles = int32_t(ceil_div(args->m, BLOCKS * ROWS) * ceil_div(args->n, N));
    arguments.bug = bug;
    int32_t error = tensor_map_2d(&arguments.a, args->a, args->m, args->k, args->k, ROWS);
    if (error) return error;
    error = tensor_map_2d(&arguments.b, args->b, args->n, args->k, args->k, N / BLOCKS);
    if (error) return error;
    const int room = multiprocessors() / BLOCKS > 0 ? multiprocessors() / BLOCKS : 1;
    const int clusters = arguments.tiles < room ? arguments.tiles : room;
    const dim3 grid(unsigned(clusters * BLOCKS));
    return launch<cluster_kernel<Element, N>, BLOCKS>(stream, grid, dim3(THREADS), T::SHARED,
                                                      arguments);
}

}  // namespace

int32_t selftest_cluster_96(RoclipStream stream, const SelftestProduct* args) {
    return start<bf16, 96>(stream, args);
}

int32_t selftest_cluster_208(RoclipStream stream, const SelftestProduct* args) {
    return start<bf16, 208>(stream, args);
}

int32_t selftest_cluster_s8_128(RoclipStream stream, const SelftestProductS8* args) {
    return start<int8_t, 128>(stream, args);
}

int32_t selftest_cluster_s8_256(RoclipStream stream, const SelftestProductS8* args) {
    return start<int8_t, 256>(stream, args);
}

}  // namespace ROCLIP_BUILD
