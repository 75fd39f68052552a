// pool_int8.cu: `pool` on Hopper for large pools: most rows are ruled out in 8 bits, at twice the
// rate; the few that are left are scored as pool_hopper.cu scores, so the result is the same, bit
// for bit.
//
// With q = q' + dq, p = p' + dp, where q' and p' are what 8 bits and a scale a row can say,
//
//   |<q, p> - <q', p'>|  =  |<dq, p> + <q', dp>|  <=  |dq| |p| + |q'| |dp|      (Cauchy-Schwarz)
//
// <q', p'> is exact: integers, times two scales. So row j cannot win where its upper bound lies
// below another row's lower bound. Nothing is assumed about the data; what the data decides is how
// many candidates are left, some tens of a million for unit vectors.
//
//   tensor      shape              dtype  what (all scratch, `int8_scratch`)
//   quantized   [B + M, D']        s8     rows in 8 bits, D' = D rounded up to 16
//   facts       [B]; [M]           Fact; RowFact  a row's scale, and how wide its bounds are
//   counts      [B]                u32    candidates
//   bounds      [B]                u32    largest upper bound so far, as `ordered`
//   candidates  [B, CAPACITY]      Best   row and upper bound
//   left        [B]; [B, D]        u32; bf16  queries with too many candidates, and their vectors
//
// Kernels   clear; quantize (queries, pool): a warp per row; filter: as common/hopper.cuh; rescore:
//           a block per query, whose candidates wgmma scores in the order that pool_hopper.cu has.
//           Queries with more than CAPACITY candidates are collected, and pool_hopper.cu does them.
// Worth     the more directions the rows take. Of a million random unit vectors of 512, a query
//           takes down 360 on average and 900 at most, and 130 are left in the end (simulated);
//           where few directions hold most of the length, as in embeddings of trained models, the
//           bounds are wide beside the differences of scores, thousands are left, and all of this
//           was in vain. So it runs where it is asked for, and nowhere else.
// Numerics  bounds allow for the rounding of norms (SLACK), of the bf16 score, each of whose D
//           additions may lose two units, and of themselves: (D + 8) 2^-22 |q||p| (`rounding`).
//           Which candidates are found depends on the order of blocks; the result does not.
// Cost      2*B*M*D operations in 8 bits, M*D*3 bytes to quantize.

#include "common/hopper.cuh"
#include "common/pool.cuh"

namespace ROCLIP_BUILD {
namespace {

using namespace hopper;

constexpr int COLS = 256;
constexpr int OF_ROW = COLS / 4;  // columns of a tile that a lane holds of each of its two rows
constexpr int CAPACITY = 1024;    // candidates of a query
constexpr float SLACK = 1.001f;   // covers the rounding of a norm and of a difference of bounds

// ------------------------------------------------------------------------------------- quantizing

// Bounds of a query's products are kept in units of its scale. With g the length of its integers,
//
//   upper[j] = product[j] scale[j] + g t[j]        t[j] = |dp[j]| + most |p[j]|
//
// where `most` is the largest |dq| / |q| of all queries plus the rounding of a score, so that g t
// covers |q'||dp| + |dq||p|. The lower bound is 2 g t below.
struct Fact {
    float scale;
    float reach;  // g of a query, t of a row of the pool
};

// A row's in 32 bits: the scale, which is bf16, lies where the reach has the lower half of its
// significand. That makes it no smaller than the reach rounded up to bf16, so bounds stay bounds.
typedef uint32_t RowFact;
constexpr RowFact NO_ROW = 0xff800000u;  // reaches -infinity

// Not below x >= 0, and bf16.
__device__ __forceinline__ float rounded_up(float x) {
    return __uint_as_float((__float_as_uint(x) + 0xffffu) & 0xffff0000u);
}

__device__ __forceinline__ RowFact packed(const Fact& fact) {
    return __float_as_uint(fact.reach) | __float_as_uint(fact.scale) >> 16;
}

__device__ __forceinline__ Fact unpacked(RowFact fact) {
    return {__uint_as_float(fact << 16), __uint_as_float(fact)};
}

struct Totals {
    // as bits of floats, which are not negative: the largest |dq| / |q| of a query, t of a row
    uint32_t query_error, widest;
    uint32_t odd;   // rows of the pool that 8 bits say nothing about
    uint32_t left;  // queries that have too many candidates
};

struct Scratch {
    Totals* totals;
    int8_t *queries, *rows;
    Fact* query_facts;
    RowFact* row_facts;
    uint32_t *counts, *bounds;
    Best* candidates;
    uint32_t* left;
    bf16* left_queries;
};

inline int32_t padded(int32_t width) { return (width + 15) / 16 * 16; }

// Lays the scratch memory out from `at` on; returns its bytes.
inline int64_t lay_out(Scratch* s, unsigned char* at, int64_t queries, int64_t rows,
                       int32_t width) {
    unsigned char* const begin = at;
    const auto next = [&at](auto** to, int64_t n) {
        *to = reinterpret_cast<std::remove_reference_t<decltype(*to)>>(at);
        at += ceil_div(n * int64_t(sizeof(**to)), 128) * 128;
    };
    next(&s->totals, 1);
    next(&s->queries, queries * padded(width));
    next(&s->rows, rows * padded(width));
    next(&s->query_facts, queries);
    next(&s->row_facts, ceil_div(rows, COLS) * COLS);
    next(&s->counts, queries);
    next(&s->bounds, queries);
    next(&s->candidates, queries * CAPACITY);
    next(&s->left, queries);
    next(&s->left_queries, queries * width);
    return at - begin;
}

constexpr int CLEAR_THREADS = 256;

struct Clear {
    Scratch s;
    int64_t queries_n, pool_n;
};

// Nothing is known yet; and rows past the last, up to a whole tile, win nothing.
__global__ void __launch_bounds__(CLEAR_THREADS) pool_clear_kernel(Clear c) {
    const int64_t i = int64_t(blockIdx.x) * CLEAR_THREADS + threadIdx.x;
    if (i == 0) *c.s.totals = {0, 0, 0, 0};
    if (i < c.queries_n) c.s.counts[i] = c.s.bounds[i] = 0;
    if ((c.pool_n + i) / COLS == c.pool_n / COLS) c.s.row_facts[c.pool_n + i] = NO_ROW;
}

struct Quantize {
    const bf16* from;
    int8_t* to;
    Fact* query_facts;  // null: these are the pool's rows
    RowFact* row_facts;
    Totals* totals;
    int64_t rows;
    int32_t width, padded;
    float rounding;
};

constexpr int QUANTIZE_THREADS = 256;

// A warp takes a row. 8 bits say nothing about one that holds what is no number, or is so large or
// small that the square of its scale is none.
__global__ void __launch_bounds__(QUANTIZE_THREADS) pool_quantize_kernel(Quantize q) {
    const int lane = int(threadIdx.x) % WARP;
    const int64_t row = (int64_t(blockIdx.x) * QUANTIZE_THREADS + threadIdx.x) / WARP;
    if (row >= q.rows) return;
    const bf16* const from = q.from + row * q.width;
    float most = 0, norm = 0;
    bool odd = false;
    for (int c = lane; c < q.width; c += WARP) {
        const float x = to_float(from[c]);
        most = fmaxf(most, fabsf(x));
        norm += x * x;
        odd |= !(fabsf(x) < 1e15f);
    }
    most = warp_max(most);
    odd = __any_sync(ALL_LANES, odd) || (most > 0 && most < 1e-15f);
    const float scale = odd ? 0.f : rounded_up(most / 127), inverse = scale > 0 ? 1 / scale : 0.f;
    float error = 0;
    for (int c = lane; c < q.padded; c += WARP) {
        const float x = c < q.width && !odd ? to_float(from[c]) : 0.f;
        const float whole = fminf(fmaxf(rintf(x * inverse), -127.f), 127.f);
        const float rest = fmaf(-scale, whole, x);
        error += rest * rest;
        q.to[row * q.padded + c] = int8_t(whole);
    }
    error = sqrtf(warp_sum(error)) * SLACK;
    norm = sqrtf(warp_sum(norm)) * SLACK;
    if (lane != 0) return;
    if (q.query_facts != nullptr) {
        q.query_facts[row] = {scale, odd ? INFINITY : scale > 0 ? (norm + error) / scale : 0.f};
        if (scale > 0) atomicMax(&q.totals->query_error, __float_as_uint(error / norm));
    } else {
        const float most_query = __uint_as_float(q.totals->query_error) + q.rounding;
        const float reach = odd ? 0.f : rounded_up(error + most_query * norm);
        const RowFact fact = packed({scale, reach});
        q.row_facts[row] = fact;
        atomicMax(&q.totals->widest, __float_as_uint(unpacked(fact).reach));
        if (odd) atomicAdd(&q.totals->odd, 1u);
    }
}

int32_t quantize(RoclipStream stream, const Quantize& q) {
    const int64_t blocks = ceil_div(q.rows, QUANTIZE_THREADS / WARP);
    return launch<pool_quantize_kernel>(stream, dim3(unsigned(blocks)), dim3(QUANTIZE_THREADS), 0,
                                        q);
}

// ---------------------------------------------------------------------------------------- filter

// Floats as integers of the same order; 0 is below all of them.
__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(uint32_t x) {
    return x == 0 ? -INFINITY : __uint_as_float(x >> 31 ? x & 0x7fffffffu : ~x);
}

// Below this no upper bound is a winner's, where `top` is the largest of all: a lower bound of that
// row, or less.
__device__ __forceinline__ float least_upper(float top, float g, const Totals& totals) {
    return top - 2 * SLACK * g * __uint_as_float(totals.widest);
}

struct Filter {
    Operands operands;
    Scratch s;
    int64_t queries_n;
    bool take;  // candidates, not only bounds
};

struct Candidates {
    const Filter& f;
    int query;     // this lane's first; the second is 8 rows on
    float top[2];  // of each the largest upper bound; infinity where nothing is a candidate

    __device__ __forceinline__ float reach(int h) const {
        const int at = query + 8 * h;
        return at < f.queries_n ? f.s.query_facts[at].reach : INFINITY;
    }

    __device__ __forceinline__ void begin(const Item& item) {
        query = first_row(item.band) + row_of(0);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            top[h] = reach(h) < INFINITY ? unordered(f.s.bounds[query + 8 * h]) : INFINITY;
        }
    }

    __device__ __forceinline__ void tile(hopper::Tile<int8_t, COLS>& products, int, int tile) {
        const int col = tile * COLS;
        const RowFact* const facts = f.s.row_facts + col + col_of(0);
        const float g[2] = {reach(0), reach(1)};
        float upper[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int i = 0; i < OF_ROW; i += 2) {
            const Vec<RowFact, 2> two = load<2>(facts + col_of(i) - col_of(0));
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const Fact fact = unpacked(two[e]);
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    int32_t& product = element(products, h, i + e);
                    const float bound = fmaf(g[h], fact.reach, float(product) * fact.scale);
                    product = int32_t(__float_as_uint(bound));
                    upper[h] = fmaxf(upper[h], bound);
                }
            }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            for (int step = 1; step < 4; step *= 2) {
                upper[h] = fmaxf(upper[h], __shfl_xor_sync(ALL_LANES, upper[h], step));
            }
            top[h] = fmaxf(top[h], upper[h]);
            const float least = least_upper(top[h], g[h], *f.s.totals);
            const bool may = f.take && top[h] < INFINITY && upper[h] >= least;
            if (may) take_down(products, h, col, least);
        }
    }

    __device__ __forceinline__ void take_down(hopper::Tile<int8_t, COLS>& products, int h, int col,
                                              float least) {
#pragma unroll
        for (int i = 0; i < OF_ROW; ++i) {
            const float bound = __uint_as_float(uint32_t(element(products, h, i)));
            if (!(bound >= least)) continue;
            const uint32_t slot = atomicAdd(f.s.counts + query + 8 * h, 1u);
            if (slot >= CAPACITY) continue;
            f.s.candidates[int64_t(query + 8 * h) * CAPACITY + slot] =
                {bound, uint32_t(col + col_of(i))};
        }
    }

    __device__ __forceinline__ void end(const Item&) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if (threadIdx.x % 4 == 0 && top[h] < INFINITY) {
                atomicMax(f.s.bounds + query + 8 * h, ordered(top[h]));
            }
        }
    }
};

__global__ void __launch_bounds__(THREADS, 1)
    pool_filter_kernel(const __grid_constant__ Filter f) {
    if (f.s.totals->odd) return;  // all queries are left
    Candidates consumer = {f, 0, {}};
    run<int8_t, COLS>(f.operands, f.operands.work, consumer);
}

// --------------------------------------------------------------------------------------- rescore

struct Rescore {
    Scratch s;
    PoolMatch a;
};

constexpr int DEPTH = hopper::Element<bf16>::DEPTH, VECTORS = DEPTH / 8;
constexpr int RESCORE_STAGES = 2;
constexpr int QUERY_BYTES = GROUP_ROWS * ROW_BYTES;  // wgmma takes 64 rows; the first is the query
constexpr int RESCORE_STAGE = QUERY_BYTES + COLS * ROW_BYTES;

// Starts copying DEPTH elements of a row to row `r` of a tile in the 128-byte swizzle.
__device__ __forceinline__ void fetch_row(unsigned char* tile, int r, int vector, const bf16* from,
                                          int left) {
    cp_async16(tile + r * ROW_BYTES + (vector ^ r % 8) * 16, left > 0 ? from : nullptr, left > 0);
}

// The query goes to the list of those that are left.
__device__ __forceinline__ void leave(const Rescore& r, int query) {
    __shared__ uint32_t slot;
    if (threadIdx.x == 0) {
        slot = atomicAdd(&r.s.totals->left, 1u);
        r.s.left[slot] = uint32_t(query);
    }
    __syncthreads();
    const int64_t width = r.a.width;
    for (int c = int(threadIdx.x); c < width; c += WARPGROUP) {
        r.s.left_queries[slot * width + c] = r.a.queries[query * width + c];
    }
}

// Candidates whose upper bound the final one does not rule out; returns how many.
__device__ __forceinline__ int keep(const Rescore& r, int query, uint32_t found, uint32_t* kept) {
    __shared__ uint32_t n;
    if (threadIdx.x == 0) n = 0;
    __syncthreads();
    const float top = unordered(r.s.bounds[query]), g = r.s.query_facts[query].reach;
    const float least = least_upper(top, g, *r.s.totals);
    for (uint32_t i = threadIdx.x; i < found; i += WARPGROUP) {
        const Best candidate = r.s.candidates[int64_t(query) * CAPACITY + i];
        if (candidate.score >= least) kept[atomicAdd(&n, 1u)] = candidate.index;
    }
    __syncthreads();
    return int(n);
}

// Scores of a query with n <= COLS rows of the pool, in the first row of the tile.
__device__ __forceinline__ void score(const Rescore& r, int query, const uint32_t* rows, int n,
                                      unsigned char* stages, float (&scores)[COLS / 2]) {
    const int width = r.a.width, steps = (width + DEPTH - 1) / DEPTH;
    const auto fetch = [&](int step) {
        unsigned char* const stage = stages + step % RESCORE_STAGES * RESCORE_STAGE;
        for (int i = int(threadIdx.x); i < (n + 1) * VECTORS; i += WARPGROUP) {
            const int row = i / VECTORS, vector = i % VECTORS, at = step * DEPTH + vector * 8;
            if (row == n) {
                fetch_row(stage, 0, vector, r.a.queries + int64_t(query) * width + at, width - at);
            } else {
                const bf16* const from = r.a.pool + int64_t(rows[row]) * width + at;
                fetch_row(stage + QUERY_BYTES, row, vector, from, width - at);
            }
        }
    };
    fetch(0);
    cp_async_commit();
    for (int step = 0; step < steps; ++step) {
        if (step + 1 < steps) fetch(step + 1);
        cp_async_commit();
        cp_async_wait<1>();
        async_proxy_fence();
        __syncthreads();
        const unsigned char* const stage = stages + step % RESCORE_STAGES * RESCORE_STAGE;
        const uint64_t a = wgmma_descriptor(stage), b = wgmma_descriptor(stage + QUERY_BYTES);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < ROW_BYTES / 32; ++k) {
            wgmma(scores, a + 2 * k, b + 2 * k, step > 0 || k > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        __syncthreads();  // the stage may be overwritten
    }
}

__global__ void __launch_bounds__(WARPGROUP) pool_rescore_kernel(Rescore r) {
    DYNAMIC_SHARED(stages);
    __shared__ uint32_t kept[CAPACITY];
    const int query = int(blockIdx.x);
    const uint32_t found = r.s.counts[query];
    const bool knows = !r.s.totals->odd && r.s.query_facts[query].reach < INFINITY;
    if (!knows || found > CAPACITY) return leave(r, query);
    const int n = keep(r, query, found, kept);
    Nearest<1> nearest;
    nearest.clear();
    for (int first = 0; first < n; first += COLS) {
        float scores[COLS / 2];
        score(r, query, kept + first, min(n - first, COLS), stages, scores);
        if (threadIdx.x / 4 != 0) continue;  // row 0 lies in the first four lanes
#pragma unroll
        for (int i = 0; i < OF_ROW; ++i) {
            const int at = first + col_of(i);
            if (at < n) nearest.insert({element(scores, 0, i), kept[at]});
        }
    }
    if (threadIdx.x >= WARP) return;
    nearest.join_quad();
    if (threadIdx.x == 0) store_result(r.a, query, nearest);
}

// Bounds that a part of the pool gives keep most of the rest from being candidates.
int32_t filter(RoclipStream stream, Filter f) {
    constexpr int PART = 16;
    Work& work = f.operands.work;
    const int tiles = work.tiles;
    work.groups = work.bands;
    for (const bool take : {false, true}) {
        work.tiles = take ? tiles : tiles / PART;
        if (work.tiles == 0) continue;
        balance(&work, COLS, ROCLIP_STRIPS, clusters());
        f.take = take;
        const int32_t error = launch<pool_filter_kernel, CLUSTER>(stream, grid(work), dim3(THREADS),
                                                                  shared_bytes<COLS>(), f);
        if (error) return error;
    }
    return 0;
}

}  // namespace

int32_t pool_int8_bytes(RoclipStream, const PoolInt8Bytes* args) {
    Scratch s;
    *args->bytes = lay_out(&s, nullptr, args->queries_n, args->pool_n, args->width);
    return 0;
}

int32_t pool_match_int8(RoclipStream stream, const PoolMatch& a) {
    const bool fit = fits<bf16>(a.queries_n, a.pool_n, a.width, a.queries, a.pool);
    if (!fit || a.k != 1 || !a.int8_scratch) return ROCLIP_REFUSED;
    Scratch s;
    lay_out(&s, static_cast<unsigned char*>(a.int8_scratch), a.queries_n, a.pool_n, a.width);
    const int64_t clear = a.queries_n > COLS ? a.queries_n : COLS;
    const dim3 blocks(unsigned(ceil_div(clear, CLEAR_THREADS)));
    int32_t error = launch<pool_clear_kernel>(stream, blocks, dim3(CLEAR_THREADS), 0,
                                              Clear{s, a.queries_n, a.pool_n});
    const int32_t width = padded(a.width);
    const float rounding = float(a.width + 8) / float(1 << 22);
    const Quantize queries = {a.queries, s.queries,   s.query_facts, nullptr, s.totals,
                              a.queries_n, a.width, width,         rounding};
    const Quantize pool = {a.pool,   s.rows,  nullptr, s.row_facts, s.totals,
                           a.pool_n, a.width, width,   rounding};
    if (!error) error = quantize(stream, queries);
    if (!error) error = quantize(stream, pool);
    Filter f = {};
    f.s = s;
    f.queries_n = a.queries_n;
    if (!error) {
        error = describe<int8_t, COLS>(&f.operands, s.queries, a.queries_n, s.rows, a.pool_n,
                                       width);
    }
    if (error) return error;
    error = filter(stream, f);
    if (error) return error;
    error = launch<pool_rescore_kernel>(stream, dim3(unsigned(a.queries_n)), dim3(WARPGROUP),
                                        RESCORE_STAGES * RESCORE_STAGE, Rescore{s, a});
    if (error) return error;
    PoolMatch left = a;
    left.queries = s.left_queries;
    return pool_match_left(stream, left, s.left, &s.totals->left);
}

}  // namespace ROCLIP_BUILD
