// pool.cu: for every query the nearest rows of the pool; the similarities are never stored.
//
//   index[b, k] = the row m with the k-th largest  <queries[b], pool[m]>,    score[b, k] = that
//
//   tensor      shape                  dtype  role
//   queries     [B, D]                 bf16   in
//   pool        [M, D]                 bf16   in   only rows that are filled
//   index       [B, k]                 u32    out  below M; 0 where no score is left but NaN
//   score       [B, k]                 f32    out  NaN there
//   best_*      [ROCLIP_STRIPS, B, k']        scratch: the best of every strip of the pool; k' is 1
//                                             or ROCLIP_TOP_K
//   int8_scratch                              scratch of the int8 kernel, or null
//
// Requires  B, M, D >= 1; M < 2^31; k <= M and k <= ROCLIP_TOP_K.
// Kernels   int8      as hopper, for k = 1, where scratch memory was given: kernels/pool_int8.cu
//           hopper    sm_90a, D % 8 == 0, pointers aligned: kernels/pool_hopper.cu
//           portable  any: reads 16 bytes at a time where D % 8 == 0 and pointers are aligned, else
//                     element by element
//           plain     the definition, for tests
// Launch    portable: ceil(B / 128) x strips blocks of 256; join: a thread per query; plain: a
//           block per query.
// Mapping   portable: block -> 128 queries and a strip of the pool, swept in tiles of 128 rows (see
//           common/similarity.cuh); lane -> 4 queries, and of each tile 16 of its columns.
// Barriers  those of the sweep, and one before the warps' candidates are compared.
// Numerics  scores as in similarity.cuh. Of equal scores the lower row comes first, NaN after
//           everything: an order without ties, so no order of comparisons changes the result.
// Cost      2*B*M*D flop.
// Twins     src/backend/{ops,cpu,cuda}/pool.rs, tests/ops/pool.rs
// Source    the matching step of RoCLIP (Yang, Gao, Mirzasoleiman; NeurIPS 2023)

#include "common/pool.cuh"
#include "common/similarity.cuh"

namespace ROCLIP_BUILD {
namespace {

using namespace similarity;

struct Match {
    PoolMatch a;
    Operands operands;
};

template <bool VECTOR, int K>
__global__ void __launch_bounds__(THREADS, K == 1 ? 2 : 1) pool_match_kernel(Match m) {
    __shared__ Nearest<K> by_warp[WARPS_ACROSS][ROWS];
    Nearest<K> nearest[HALVES];
#pragma unroll
    for (int h = 0; h < HALVES; ++h) nearest[h].clear();
    sweep<VECTOR>(m.operands, [&](Tile& tile, int64_t col) {
        mask(tile, col, m.a.pool_n, NAN);  // what lies past the pool must not win
        const uint32_t first = uint32_t(col) + uint32_t(col_of(0, 0));
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
            nearest[h].template take<2 * PAIRS>(
                [&](int i) -> float& { return element(tile, h, i); }, first);
        }
    });
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
        nearest[h].join_quad();
        if (threadIdx.x % 4 == 0) {
            by_warp[threadIdx.x / WARP % WARPS_ACROSS][row_of(h)] = nearest[h];
        }
    }
    __syncthreads();
    const int64_t query = int64_t(blockIdx.x) * ROWS + threadIdx.x;
    if (threadIdx.x >= ROWS || query >= m.a.queries_n) return;
    Nearest<K> of_strip = by_warp[0][threadIdx.x];
    for (int w = 1; w < WARPS_ACROSS; ++w) of_strip.join(by_warp[w][threadIdx.x]);
    store_candidates(m.a, int(blockIdx.y), query, of_strip);
}

template <int K>
__global__ void __launch_bounds__(THREADS) pool_join_kernel(PoolJoin j) {
    const int64_t query = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (query >= (j.left_n ? int64_t(*j.left_n) : j.a.queries_n)) return;
    Nearest<K> nearest;
    nearest.clear();
    for (int strip = 0; strip < j.strips; ++strip) {
        const int64_t at = (strip * j.a.queries_n + query) * K;
        for (int k = 0; k < K; ++k) {
            nearest.insert({j.a.best_score[at + k], j.a.best_index[at + k]});
        }
    }
    store_result(j.a, j.left ? j.left[query] : query, nearest);
}

// A warp takes one row of the pool after another.
template <int K>
__global__ void __launch_bounds__(THREADS) pool_plain_kernel(PoolMatch a) {
    constexpr int WARPS = THREADS / WARP;
    __shared__ Nearest<K> by_warp[WARPS];
    const int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP;
    const bf16* const query = a.queries + int64_t(blockIdx.x) * a.width;
    Nearest<K> nearest;
    nearest.clear();
    for (int64_t m = warp; m < a.pool_n; m += WARPS) {
        const bf16* const row = a.pool + m * a.width;
        float sum = 0;
        for (int c = lane; c < a.width; c += WARP) sum += to_float(query[c]) * to_float(row[c]);
        nearest.insert({warp_sum(sum), uint32_t(m)});
    }
    if (lane == 0) by_warp[warp] = nearest;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < WARPS; ++w) nearest.join(by_warp[w]);
    store_result(a, blockIdx.x, nearest);
}

template <int K>
int32_t portable(RoclipStream stream, const PoolMatch& a) {
    const Operands o = {a.queries, a.pool, a.queries_n, a.pool_n, a.width};
    const auto start = vector(o) ? launch<pool_match_kernel<true, K>, 1, Match>
                                 : launch<pool_match_kernel<false, K>, 1, Match>;
    const int32_t error = start(stream, grid(o), dim3(THREADS), SHARED, {a, o});
    return error ? error : pool_join<K>(stream, {a, int32_t(strips(a.pool_n)), nullptr, nullptr});
}

template <int K>
int32_t plain(RoclipStream stream, const PoolMatch& a) {
    const dim3 grid(unsigned(a.queries_n));
    return launch<pool_plain_kernel<K>>(stream, grid, dim3(THREADS), 0, a);
}

template <int K>
int32_t match(RoclipStream stream, const PoolMatch& a) {
    int32_t error = ROCLIP_REFUSED;
    switch (a.kernel) {
        case ROCLIP_PLAIN: return plain<K>(stream, a);
        case ROCLIP_PORTABLE: return portable<K>(stream, a);
        case ROCLIP_INT8: error = pool_match_int8(stream, a);
    }
    if (error == ROCLIP_REFUSED) error = pool_match_hopper<K>(stream, a);
    return error == ROCLIP_REFUSED ? portable<K>(stream, a) : error;
}

}  // namespace

template <int K>
int32_t pool_join(RoclipStream stream, const PoolJoin& j) {
    const unsigned blocks = unsigned(ceil_div(j.a.queries_n, THREADS));
    return launch<pool_join_kernel<K>>(stream, dim3(blocks), dim3(THREADS), 0, j);
}
template int32_t pool_join<1>(RoclipStream, const PoolJoin&);
template int32_t pool_join<ROCLIP_TOP_K>(RoclipStream, const PoolJoin&);

int32_t pool_match(RoclipStream stream, const PoolMatch* a) {
    if (a->k < 1 || a->k > ROCLIP_TOP_K) return ROCLIP_REFUSED;
    return a->k == 1 ? match<1>(stream, *a) : match<ROCLIP_TOP_K>(stream, *a);
}

}  // namespace ROCLIP_BUILD
