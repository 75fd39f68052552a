// pool_hopper.cu: `pool` on Hopper. The formula, the tensors and the twins are in pool.cu.
//
// Requires  sm_90a, D % 8 == 0, queries and pool aligned to 16 bytes.
// Launch    as common/hopper.cuh, one item per strip of the pool and band of 256 queries.
// Mapping   a consumer's lane -> 2 queries, and of each tile a quarter of its columns. It keeps the
//           best across the strip's tiles; the four lanes of a query compare theirs at its end.
// Balance   all clusters should end together. The host tries all numbers of strips and two widths
//           of tile, and takes what leaves the busiest cluster least to do: at 20,000 rows, 33
//           strips of 606 columns are three tiles of 208, where 256 would compute a quarter for
//           nothing. Narrow tiles want more of L2, so they must gain something. Neither choice
//           changes a score or an index.
// Cost      2*B*M*D flop. Beside a tile's 16 D cycles (COLS = 256), each warpgroup looks for the
//           maximum of its half for some 300, while the other multiplies.

#include "common/hopper.cuh"
#include "common/pool.cuh"

namespace ROCLIP_BUILD {
namespace {

using namespace hopper;

struct Match {
    Operands operands;
    PoolMatch a;
    const uint32_t* left_n;  // only so many queries, where it is not null
};

template <int COLS, int K>
struct NearestOfStrip {
    const PoolMatch& a;
    Nearest<K> nearest[2];

    __device__ __forceinline__ void begin(const Item&) {
        nearest[0].clear();
        nearest[1].clear();
    }

    __device__ __forceinline__ void tile(hopper::Tile<bf16, COLS>& values, int, int tile) {
        const int64_t col = int64_t(tile) * COLS;
        if (col + COLS > a.pool_n) {  // what lies past the pool must not win
            const int inside = int(a.pool_n - col);
#pragma unroll
            for (int i = 0; i < COLS / 4; ++i) {
                if (col_of(i) >= inside) element(values, 0, i) = element(values, 1, i) = NAN;
            }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            nearest[h].template take<COLS / 4>(
                [&](int i) -> float& { return element(values, h, i); },
                uint32_t(col) + uint32_t(col_of(0)));
        }
    }

    __device__ __forceinline__ void end(const Item& item) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            nearest[h].join_quad();
            const int64_t query = first_row(item.band) + row_of(h);
            if (threadIdx.x % 4 == 0 && query < a.queries_n) {
                store_candidates(a, item.strip, query, nearest[h]);
            }
        }
    }
};

template <int COLS, int K>
__global__ void __launch_bounds__(THREADS, 1)
    pool_match_hopper_kernel(const __grid_constant__ Match m) {
    NearestOfStrip<COLS, K> consumer = {m.a, {}};
    DYNAMIC_SHARED(shared);
    Work& work = *reinterpret_cast<Work*>(shared + Stage<COLS>::END);
    if (threadIdx.x == 0) {
        work = m.operands.work;
        if (m.left_n) work.bands = work.groups = int((*m.left_n + BAND - 1) / BAND);
    }
    run<bf16, COLS>(m.operands, work, consumer);
}

template <int COLS>
struct Search {
    Operands operands = {};
    int64_t cycles = 0;
};

template <int COLS>
int32_t plan(const PoolMatch& a, Search<COLS>* search) {
    Work& work = search->operands.work;
    const int32_t error = describe<bf16, COLS>(&search->operands, a.queries, a.queries_n, a.pool,
                                               a.pool_n, a.width);
    work.groups = work.bands;
    search->cycles = balance(&work, COLS, ROCLIP_STRIPS, clusters());
    return error;
}

template <int COLS, int K>
int32_t start(RoclipStream stream, const PoolMatch& a, const Search<COLS>& search,
              const uint32_t* left, const uint32_t* left_n) {
    const Match m = {search.operands, a, left_n};
    const Work& work = search.operands.work;
    const int32_t error = launch<pool_match_hopper_kernel<COLS, K>, CLUSTER>(
        stream, grid(work), dim3(THREADS), shared_bytes<COLS>(sizeof(Work)), m);
    return error ? error : pool_join<K>(stream, {a, work.strips, left, left_n});
}

template <int K>
int32_t match(RoclipStream stream, const PoolMatch& a, const uint32_t* left,
              const uint32_t* left_n) {
    if (!fits<bf16>(a.queries_n, a.pool_n, a.width, a.queries, a.pool)) return ROCLIP_REFUSED;
    Search<256> wide;
    Search<208> narrow;
    int32_t error = plan(a, &wide);
    if (!error) error = plan(a, &narrow);
    if (error) return error;
    const bool gains = narrow.cycles + narrow.cycles / 32 < wide.cycles;
    return gains ? start<208, K>(stream, a, narrow, left, left_n)
                 : start<256, K>(stream, a, wide, left, left_n);
}

}  // namespace

template <int K>
int32_t pool_match_hopper(RoclipStream stream, const PoolMatch& a) {
    return match<K>(stream, a, nullptr, nullptr);
}
template int32_t pool_match_hopper<1>(RoclipStream, const PoolMatch&);
template int32_t pool_match_hopper<ROCLIP_TOP_K>(RoclipStream, const PoolMatch&);

int32_t pool_match_left(RoclipStream stream, const PoolMatch& a, const uint32_t* left,
                        const uint32_t* left_n) {
    return match<1>(stream, a, left, left_n);
}

}  // namespace ROCLIP_BUILD
