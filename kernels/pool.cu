// pool.cu: for every query the nearest row of the pool; the similarities are never stored.
//
//   index[b] = the smallest m that attains  max_m <queries[b], pool[m]>     score[b] = that maximum
//
//   tensor      shape                dtype  role
//   queries     [B, D]               bf16   in
//   pool        [M, D]               bf16   in
//   index       [B]                  u32    out  below M; 0 where every score is NaN
//   score       [B]                  f32    out  NaN where every score is NaN
//   best_*      [ROCLIP_STRIPS, B]          scratch: the best of every strip of the pool
//
// Requires  B, M, D >= 1; M < 2^32. Reads 16 bytes at a time where D % 8 == 0 and the pointers are
//           aligned, else element by element.
// Launch    similarity: ceil(B / 128) x strips blocks of 256; join: a thread per query.
// Mapping   block -> 128 queries and a strip of the pool, swept in tiles of 128 rows (see
//           common/similarity.cuh); lane -> 4 queries, and of each tile 16 of its columns.
// Barriers  those of the sweep, and one before the warps' candidates are compared.
// Numerics  scores as in similarity.cuh. `better` is associative and commutative, so no order of
//           comparisons can change the winner. A tile's largest is found first and its column only
//           where it wins, which is rare: about log(tiles) times.
// Cost      2*B*M*D flop.
// Twins     src/backend/{ops,cpu,cuda}/pool.rs, tests/ops/pool.rs
// Source    the matching step of RoCLIP (Yang, Gao, Mirzasoleiman; NeurIPS 2023)

#include "common/similarity.cuh"

namespace ROCLIP_BUILD {
namespace {

using namespace similarity;

struct Best {
    float score;
    uint32_t index;
};

__device__ __forceinline__ Best none() { return {NAN, 0}; }

// The larger score; of equal ones the lower row. NaN loses to everything.
__device__ __forceinline__ Best better(Best a, Best b) {
    const bool wins = b.score > a.score || (b.score == a.score && b.index < a.index) ||
                      (isnan(a.score) && !isnan(b.score));
    return wins ? b : a;
}

// Takes a tile's candidates in. Columns come in rising order: a tie does not displace.
__device__ __forceinline__ void update(Best (&best)[HALVES], Tile& tile, int64_t col, int64_t n) {
    mask(tile, col, n, NAN);  // what lies past the pool must not win
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
        float top = NAN;  // fmaxf prefers a number
#pragma unroll
        for (int i = 0; i < 2 * PAIRS; ++i) top = fmaxf(top, element(tile, h, i));
        if (top <= best[h].score || isnan(top)) continue;
        int first = 0;
#pragma unroll
        for (int i = 2 * PAIRS - 1; i >= 0; --i) {  // the lowest column is the last to be seen
            if (element(tile, h, i) == top) first = i / 2 * 8 + i % 2;
        }
        const uint32_t index = uint32_t(col) + uint32_t(col_of(0, 0) + first);
        best[h] = {top, index};
    }
}

struct Match {
    PoolMatch a;
    Operands operands;
};

template <bool VECTOR>
__global__ void __launch_bounds__(THREADS, 2) pool_match_kernel(Match m) {
    __shared__ Best by_warp[WARPS_ACROSS][ROWS];
    Best best[HALVES];
#pragma unroll
    for (int h = 0; h < HALVES; ++h) best[h] = none();
    sweep<VECTOR>(m.operands, [&](Tile& tile, int64_t col) {
        update(best, tile, col, m.a.pool_n);
    });
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
        for (int step = 1; step < 4; step *= 2) {  // the four lanes that share a query
            best[h] = better(best[h], {__shfl_xor_sync(ALL_LANES, best[h].score, step),
                                       __shfl_xor_sync(ALL_LANES, best[h].index, step)});
        }
        if (threadIdx.x % 4 == 0) {
            by_warp[threadIdx.x / WARP % WARPS_ACROSS][row_of(h)] = best[h];
        }
    }
    __syncthreads();
    const int64_t query = int64_t(blockIdx.x) * ROWS + threadIdx.x;
    if (threadIdx.x >= ROWS || query >= m.a.queries_n) return;
    Best of_strip = none();
    for (int w = 0; w < WARPS_ACROSS; ++w) {
        of_strip = better(of_strip, by_warp[w][threadIdx.x]);
    }
    const int64_t at = blockIdx.y * m.a.queries_n + query;
    m.a.best_score[at] = of_strip.score;
    m.a.best_index[at] = of_strip.index;
}

__global__ void __launch_bounds__(THREADS) pool_join_kernel(PoolMatch a) {
    const int64_t query = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (query >= a.queries_n) return;
    const int64_t tiles = (a.pool_n + COLS - 1) / COLS;
    Best best = none();
    for (int64_t strip = 0; strip < tiles && strip < ROCLIP_STRIPS; ++strip) {
        const int64_t at = strip * a.queries_n + query;
        best = better(best, {a.best_score[at], a.best_index[at]});
    }
    a.score[query] = best.score;
    a.index[query] = best.index;
}

}  // namespace

int32_t pool_match(RoclipStream stream, const PoolMatch* a) {
    const Operands o = {a->queries, a->pool, a->queries_n, a->pool_n, a->width};
    const auto start = vector(o) ? launch<pool_match_kernel<true>, Match>
                                 : launch<pool_match_kernel<false>, Match>;
    const int32_t error = start(stream, grid(o), dim3(THREADS), SHARED, {*a, o});
    if (error != 0) return error;
    const unsigned blocks = unsigned(ceil_div(a->queries_n, THREADS));
    return launch<pool_join_kernel>(stream, dim3(blocks), dim3(THREADS), 0, *a);
}

}  // namespace ROCLIP_BUILD
