// contrastive.cu: CLIP's symmetric loss, local rows against gathered columns.
//
//   l[i,j] = s <rows[i], cols[j]>,  s = exp(logit_scale)
//   lse[i] = log sum_j exp(l[i,j])                              own[i] = l[i, offset + i]
//   col_lse[j] = log sum_i exp(l[i,j])
//   weights[i,j] = factor s/(2G)
//                  (exp(l[i,j] - row_lse[i]) + exp(l[i,j] - col_lse[j]) - 2 [j = offset+i])
//   where row_lse or col_lse is null, that exponential is 0 and one own pair is subtracted
//   dlogit_scale += sum_i <rows[i], drows[i]>,   drows = weights . cols, a matrix product
//
//   tensor        shape                dtype  role
//   rows          [N, D]               bf16   in   for `weights` a block of rows
//   cols          [G, D]               bf16   in   for `weights` a block of columns
//   logit_scale   [1]                  f32    in   natural log; read on the device
//   lse, own      [N]                  f32    out  own may be null
//   col_lse       [G]                  f32    out  may be null; in for `weights`, a block's
//   strip_*       [ROCLIP_STRIPS, N]   f32    scratch: every strip's largest product and sum; with
//                                             col_lse the larger of N and G
//   row_lse       [N]                  f32    in   for `weights`, a block's; may be null
//   weights       [N, G]               bf16   out  a block's
//   drows         [N, D]               bf16   in
//   dlogit_scale  [1]                  f32    added to
//   partial       [ROCLIP_PARTS]       f32    scratch
//
// Requires  N, G, D >= 1; offset + N <= G. Reads 16 bytes at a time where D % 8 == 0 and the
//           pointers are aligned (and, for `weights`, the block's columns even), else element by
//           element.
// Launch    similarity: ceil(N / 128) x strips blocks of 256; join: a thread per row; both again
//           for col_lse, rows and columns exchanged; scale: at most ROCLIP_PARTS blocks of 256,
//           then one.
// Mapping   block -> 128 rows and a strip of columns, swept in tiles of 128 (see
//           common/similarity.cuh); lane -> 4 rows, and of each tile 16 of its columns.
// Barriers  those of the sweep, and one before the warps' sums are joined.
// Numerics  the running maximum is that of the inner products (s > 0 keeps their order), and
//           exp(l - max) = 2^((x - max) s/ln 2): near the maximum the difference is exact. Sums f32
//           in a fixed order: lane, lanes, warps, strips; those of dlogit_scale f64. NaN stays in
//           its row, or in the rows of `weights` that see its column.
// Hopper    kernels/contrastive_hopper.cu, where sm_90a, D % 8 == 0 and alignment allow it: both
//           directions from one product. What that leaves as NaN is computed here.
// Cost      forward 2*N*G*D flop, twice with col_lse; weights 2*N*G*D, and it writes N*G elements.
// Twins     src/backend/{ops,cpu,cuda}/contrastive.rs, tests/ops/contrastive.rs
// Source    the loss of CLIP (Radford et al. 2021, figure 3)

#include "common/contrastive.cuh"
#include "common/similarity.cuh"

#include <cfloat>

namespace ROCLIP_BUILD {
namespace {

using namespace similarity;

// ---------------------------------------------------------------------------------------- forward

// A sum of exponentials relative to the largest; `s2` is s / ln 2.
struct Sum {
    float max, sum;
};

// Nothing yet. Finite, so that no difference of two maxima is NaN.
__device__ __forceinline__ Sum nothing() { return {-FLT_MAX, 0.f}; }

__device__ __forceinline__ Sum join(Sum a, Sum b, float s2) {
    const float max = fmaxf(a.max, b.max);
    return {max, a.sum * exp2_approx((a.max - max) * s2) + b.sum * exp2_approx((b.max - max) * s2)};
}

// Takes a tile's products in.
__device__ __forceinline__ void update(Sum (&sums)[HALVES], Tile& tile, float s2) {
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
        float max = sums[h].max;
#pragma unroll
        for (int i = 0; i < 2 * PAIRS; ++i) {
            max = fmaxf(max, element(tile, h, i));
        }
        float sum = sums[h].sum * exp2_approx((sums[h].max - max) * s2);
#pragma unroll
        for (int i = 0; i < 2 * PAIRS; ++i) {
            sum += exp2_approx((element(tile, h, i) - max) * s2);
        }
        sums[h] = {max, sum};
    }
}

struct Forward {
    ContrastiveForward a;
    Operands operands;
    bool rest;  // only what the Hopper kernel has left: rows whose lse is NaN
};

// Whether none of the block's rows is left; every warp finds out for itself.
__device__ __forceinline__ bool nothing_left(const ContrastiveForward& a) {
    bool left = false;
    for (int i = int(threadIdx.x) % WARP; i < ROWS; i += WARP) {
        const int64_t row = int64_t(blockIdx.x) * ROWS + i;
        left |= row < a.rows_n && isnan(a.lse[row]);
    }
    return !__any_sync(ALL_LANES, left);
}

// The logits of rows with their own columns, where this tile holds them.
__device__ __forceinline__ void write_own(const ContrastiveForward& a, Tile& tile, int64_t col,
                                          float s) {
    const int64_t row = int64_t(blockIdx.x) * ROWS;
    const int64_t ahead = row + a.offset - col;  // column of the block's first row, in the tile
    if (a.own == nullptr || ahead <= -ROWS || ahead >= COLS) return;
    const int mine = int(ahead) + row_of(0) - col_of(0, 0), rows = rows_left(a.rows_n);
    float* const own = a.own + row + row_of(0);
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
#pragma unroll
        for (int i = 0; i < 2 * PAIRS; ++i) {
            const bool here = i / 2 * 8 + i % 2 == mine + h * 8 && h * 8 < rows;
            if (here) own[h * 8] = s * element(tile, h, i);
        }
    }
}

template <bool VECTOR>
__global__ void __launch_bounds__(THREADS, 2) contrastive_forward_kernel(Forward f) {
    __shared__ Sum by_warp[WARPS_ACROSS][ROWS];
    if (f.rest && nothing_left(f.a)) return;
    const float s = expf(*f.a.logit_scale), s2 = s * LOG2E;
    Sum sums[HALVES];
#pragma unroll
    for (int h = 0; h < HALVES; ++h) sums[h] = nothing();
    sweep<VECTOR>(f.operands, [&](Tile& tile, int64_t col) {
        mask(tile, col, f.a.cols_n, -INFINITY);
        update(sums, tile, s2);
        write_own(f.a, tile, col, s);
    });
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
        for (int step = 1; step < 4; step *= 2) {  // the four lanes that share a row
            const Sum other = {__shfl_xor_sync(ALL_LANES, sums[h].max, step),
                               __shfl_xor_sync(ALL_LANES, sums[h].sum, step)};
            sums[h] = join(sums[h], other, s2);
        }
        if (threadIdx.x % 4 == 0) {
            by_warp[threadIdx.x / WARP % WARPS_ACROSS][row_of(h)] = sums[h];
        }
    }
    __syncthreads();
    const int64_t row = int64_t(blockIdx.x) * ROWS + threadIdx.x;
    if (threadIdx.x >= ROWS || row >= f.a.rows_n) return;
    Sum of_strip = nothing();
    for (int w = 0; w < WARPS_ACROSS; ++w) of_strip = join(of_strip, by_warp[w][threadIdx.x], s2);
    f.a.strip_max[blockIdx.y * f.a.rows_n + row] = of_strip.max;
    f.a.strip_sum[blockIdx.y * f.a.rows_n + row] = of_strip.sum;
}

__global__ void __launch_bounds__(THREADS) contrastive_join_kernel(Forward f) {
    const ContrastiveForward& a = f.a;
    const int64_t row = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (row >= a.rows_n || (f.rest && !isnan(a.lse[row]))) return;
    const float s = expf(*a.logit_scale);
    const int64_t tiles = (a.cols_n + COLS - 1) / COLS;
    Sum all = nothing();
    for (int64_t strip = 0; strip < tiles && strip < ROCLIP_STRIPS; ++strip) {
        const int64_t at = strip * a.rows_n + row;
        all = join(all, {a.strip_max[at], a.strip_sum[at]}, s * LOG2E);
    }
    a.lse[row] = s * all.max + logf(all.sum);
}

// --------------------------------------------------------------------------------------- backward

struct Weights {
    ContrastiveWeights a;
    Operands operands;
    float half_inverse;  // factor / (2 G)
    float directions;
};

// The two probabilities of a pair, from its inner product; the differences are rounded once.
__device__ __forceinline__ float probabilities(float x, float s, float row_lse, float col_lse) {
    return exp2_approx(fmaf(x, s, -row_lse) * LOG2E) + exp2_approx(fmaf(x, s, -col_lse) * LOG2E);
}

// One that makes its exponential 0 where there is none.
__device__ __forceinline__ float lse_or_none(const float* lse, int64_t at, bool inside) {
    return lse == nullptr ? INFINITY : inside ? lse[at] : 0.f;
}

// VECTOR: two neighbouring weights may be stored at once.
template <bool VECTOR>
__device__ __forceinline__ void write_weights(const Weights& w, Tile& tile, int64_t col, float s,
                                              const float (&row_lse)[HALVES]) {
    const ContrastiveWeights& a = w.a;
    const float factor = s * w.half_inverse;
    const int64_t row = int64_t(blockIdx.x) * ROWS;
    const int rows = rows_left(a.rows_n), cols = int(min(a.cols_n - col, int64_t(COLS)));
    const int64_t ahead = row + a.offset - col;  // column of the block's first row, in the tile
    const bool diagonal = ahead > -ROWS && ahead < COLS;
    const int mine = diagonal ? int(ahead) + row_of(0) - col_of(0, 0) : 2 * COLS;
    bf16* const corner = a.weights + (row + row_of(0)) * a.cols_n + col + col_of(0, 0);
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) {
        const int left = cols - col_of(p, 0);  // columns from here on
        const int64_t at = col + col_of(p, 0);
        const float col_lse[2] = {lse_or_none(a.col_lse, at, left > 0),
                                  lse_or_none(a.col_lse, at + 1, left > 1)};
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
            if (h * 8 >= rows || left <= 0) continue;
            Vec<bf16, 2> pair;
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const float x = element(tile, h, 2 * p + e);
                const float own = p * 8 + e == mine + h * 8 ? w.directions : 0.f;
                pair[e] = to_bf16(factor * (probabilities(x, s, row_lse[h], col_lse[e]) - own));
            }
            bf16* const to = corner + h * 8 * a.cols_n + p * 8;
            if constexpr (VECTOR) {
                store(to, pair);
            } else {
                to[0] = pair[0];
                if (left > 1) to[1] = pair[1];
            }
        }
    }
}

template <bool VECTOR>
__global__ void __launch_bounds__(THREADS, 2) contrastive_weights_kernel(Weights w) {
    const float s = expf(*w.a.logit_scale);
    const int64_t row = int64_t(blockIdx.x) * ROWS + row_of(0);
    float row_lse[HALVES];
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
        row_lse[h] = lse_or_none(w.a.row_lse, row + h * 8, h * 8 < rows_left(w.a.rows_n));
    }
    sweep<VECTOR>(w.operands, [&](Tile& tile, int64_t col) {
        write_weights<VECTOR>(w, tile, col, s, row_lse);
    });
}

// Elements of one partial sum: a whole number of blocks' strides, the same on every device.
inline __host__ __device__ int64_t part_len(int64_t len) {
    const int64_t part = (len + ROCLIP_PARTS - 1) / ROCLIP_PARTS;
    return (part + THREADS - 1) / THREADS * THREADS;
}

__global__ void __launch_bounds__(THREADS) contrastive_scale_kernel(ContrastiveScale a) {
    __shared__ double room[THREADS / WARP];
    const int64_t part = part_len(a.len), end = (blockIdx.x + 1) * part;
    double sum = 0.0;
    for (int64_t i = blockIdx.x * part + threadIdx.x; i < end && i < a.len; i += THREADS) {
        sum += double(to_float(a.rows[i]) * to_float(a.drows[i]));  // exact in f32
    }
    sum = block_sum<THREADS>(sum, room);
    if (threadIdx.x == 0) a.partial[blockIdx.x] = float(sum);
}

__global__ void __launch_bounds__(THREADS) contrastive_scale_join_kernel(ContrastiveScale a) {
    __shared__ double room[THREADS / WARP];
    const int64_t part = part_len(a.len);
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i * part < a.len; i += THREADS) sum += double(a.partial[i]);
    sum = block_sum<THREADS>(sum, room);
    if (threadIdx.x == 0) *a.dlogit_scale += float(sum);
}

// lse and, where it is wanted, own; `rest`: only where lse is NaN.
int32_t one_direction(RoclipStream stream, const ContrastiveForward& a, bool rest) {
    const Operands o = {a.rows, a.cols, a.rows_n, a.cols_n, a.width};
    const Forward f = {a, o, rest};
    const auto start = vector(o) ? launch<contrastive_forward_kernel<true>, 1, Forward>
                                 : launch<contrastive_forward_kernel<false>, 1, Forward>;
    const int32_t error = start(stream, grid(o), dim3(THREADS), SHARED, f);
    if (error != 0) return error;
    const unsigned blocks = unsigned(ceil_div(a.rows_n, THREADS));
    return launch<contrastive_join_kernel>(stream, dim3(blocks), dim3(THREADS), 0, f);
}

inline bool hopper_wanted(int32_t kernel) {
    return kernel == ROCLIP_AUTO || kernel == ROCLIP_HOPPER;
}

}  // namespace

// -------------------------------------------------------------------------------------- launchers

int32_t contrastive_forward(RoclipStream stream, const ContrastiveForward* a) {
    int32_t error = ROCLIP_REFUSED;
    if (hopper_wanted(a->kernel)) error = contrastive_forward_hopper(stream, *a);
    if (error != 0 && error != ROCLIP_REFUSED) return error;
    const bool rest = error == 0;
    error = one_direction(stream, *a, rest);
    if (error != 0 || a->col_lse == nullptr) return error;
    ContrastiveForward turned = *a;
    turned.rows = a->cols, turned.rows_n = a->cols_n;
    turned.cols = a->rows, turned.cols_n = a->rows_n;
    turned.lse = a->col_lse, turned.own = nullptr;
    return one_direction(stream, turned, rest);
}

int32_t contrastive_weights(RoclipStream stream, const ContrastiveWeights* a) {
    if (hopper_wanted(a->kernel)) {
        const int32_t error = contrastive_weights_hopper(stream, *a);
        if (error != ROCLIP_REFUSED) return error;
    }
    const Operands o = {a->rows, a->cols, a->rows_n, a->cols_n, a->width};
    const bool pairs = a->cols_n % 2 == 0 && aligned(4, a->weights);
    const auto start = pairs && vector(o) ? launch<contrastive_weights_kernel<true>, 1, Weights>
                                          : launch<contrastive_weights_kernel<false>, 1, Weights>;
    const Weights w = {*a, o, a->factor * 0.5f / float(a->total), directions(*a)};
    return start(stream, grid(o), dim3(THREADS), SHARED, w);
}

int32_t contrastive_scale(RoclipStream stream, const ContrastiveScale* a) {
    const unsigned parts = unsigned(ceil_div(a->len, part_len(a->len)));
    const int32_t error =
        launch<contrastive_scale_kernel>(stream, dim3(parts), dim3(THREADS), 0, *a);
    if (error != 0) return error;
    return launch<contrastive_scale_join_kernel>(stream, dim3(1), dim3(THREADS), 0, *a);
}

}  // namespace ROCLIP_BUILD
