// contrastive_hopper.cu: `contrastive` on Hopper. Formulas, tensors, twins are in contrastive.cu.
//
// Forward   One product serves both directions: with an offset b that rows and columns share,
//           e[i,j] = exp(l[i,j] - b) adds up to row_lse[i] = b + log sum_j e and, down the columns,
//           to col_lse[j] = b + log sum_i e: one exponential a pair.
//   offset  b = s - 70. Of rows of length 1 no logit exceeds s, so e <= exp(70) = 2.5e30, and 2^18
//           of them stay below f32's 3.4e38. What is below exp(-87) becomes 0: at most 2^18 times
//           that of a sum. A sum of at least exp(-60) has lost less than 5e-7 of itself; any other
//           (a row whose every logit is below s - 130, rows that are longer than 1, NaN) becomes
//           NaN here, and contrastive.cu computes that row or column with its own maximum.
//   sums    An item is a group of bands and a strip of columns. Down a tile of columns, a lane
//           keeps the sums of 8 columns over the bands in registers; across tiles, the sums of
//           rows stay in shared memory, each with the one lane that adds to it. So every sum has
//           one order, and the partial sums in memory are ROCLIP_STRIPS per row and per column.
// Weights   A tile's weights leave 16 bytes a lane: four lanes exchange their pairs of columns.
//
// Requires  sm_90a, D % 8 == 0, rows and cols aligned to 16 bytes.
// Launch    as common/hopper.cuh; forward in slices of at most MAX_BANDS * GROUPS bands.
// Cost      2*N*G*D flop each. Beside a tile's 16 D cycles, each warpgroup looks at its half for
//           some 1,150 (forward) or 2,300 (weights), of which the other's lead hides 1,024.

#include "common/contrastive.cuh"
#include "common/hopper.cuh"

namespace ROCLIP_BUILD {
namespace {

using namespace hopper;

constexpr int COLS = 256;
constexpr int OF_ROW = COLS / 4;  // columns of a tile that a lane holds of each of its two rows

typedef hopper::Tile<bf16, COLS> Products;

// ---------------------------------------------------------------------------------------- forward

constexpr float HEADROOM = 70.f;  // of exponents, above 0

// Every warp of a cluster has a partial sum of each column of its group.
constexpr int WARPS = CONSUMERS * WARPGROUP / WARP;
constexpr int GROUPS = ROCLIP_STRIPS / (CLUSTER * WARPS);
// Strips are balanced for an H100 or H200 wherever this runs: sums have one order everywhere.
constexpr int CLUSTERS = 66;

// Of a group: as many as have room for their sums of rows beside the ring; few where it takes small
// shapes to see more slices than one.
constexpr int MAX_BANDS = EMULATED ? 2 : 64;
constexpr size_t ROW_SUMS = sizeof(float) * MAX_BANDS * ROWS;

struct Forward {
    hopper::Operands operands;
    ContrastiveForward a;
    bool add;  // to the columns' partial sums: this is not the first slice of rows
};

// A step of adding up over the eight rows that lanes hold of each column: of two columns, a lane
// keeps the one that its bit says, with what its partner has of it.
__device__ __forceinline__ float keep_one(float first, float second, int bit) {
    const bool upper = threadIdx.x & bit;
    return (upper ? second : first) +
           __shfl_xor_sync(ALL_LANES, upper ? first : second, bit);
}

// Three steps leave a lane 8 of its 64 columns: the first of them, as an element of a row.
__device__ __forceinline__ int first_kept() {
    const int lane = int(threadIdx.x) % WARP;
    return (lane & 16 ? 32 : 0) + (lane & 8 ? 16 : 0) + (lane & 4 ? 8 : 0);
}

template <bool COLUMNS>
struct Sums {
    const Forward& f;
    float s, s2, offset2;  // exp(logit_scale); that and the offset, over ln 2
    float* row_sums;       // [bands of the item, ROWS]
    float col_sums[8];
    Item item;

    __device__ __forceinline__ void begin(const Item& next) {
        item = next;
        if constexpr (COLUMNS) clear_columns();
    }

    __device__ __forceinline__ void clear_columns() {
#pragma unroll
        for (int i = 0; i < 8; ++i) col_sums[i] = 0;
    }

    __device__ __forceinline__ void tile(Products& values, int band, int tile) {
        const int row = first_row(band), col = tile * COLS;
        write_own(values, row, col);
        const int rows = min(int(f.a.rows_n) - row, ROWS);
        const int cols = min(int(f.a.cols_n) - col, COLS);
        if (rows < ROWS || cols < COLS) clear_outside(values, rows, cols);
        float of_row[2] = {0, 0}, of_column[OF_ROW / 2];
        // both rows' exponentials of a column
        const auto exponentials = [&](int i) {
            const float e0 = exp2_approx(fmaf(element(values, 0, i), s2, -offset2));
            const float e1 = exp2_approx(fmaf(element(values, 1, i), s2, -offset2));
            of_row[0] += e0;
            of_row[1] += e1;
            return e0 + e1;
        };
#pragma unroll
        for (int i = 0; i < OF_ROW / 2; ++i) {
            const float first = exponentials(i), second = exponentials(i + OF_ROW / 2);
            if constexpr (COLUMNS) of_column[i] = keep_one(first, second, 16);
        }
        add_rows(of_row, band, tile);
        if constexpr (COLUMNS) {
            add_columns(of_column);
            if (band + 1 == item.band_end) {
                store_columns(col, cols);
                clear_columns();
            }
        }
    }

    __device__ __forceinline__ void add_columns(float (&of_column)[OF_ROW / 2]) {
#pragma unroll
        for (int i = 0; i < 16; ++i) of_column[i] = keep_one(of_column[i], of_column[i + 16], 8);
#pragma unroll
        for (int i = 0; i < 8; ++i) col_sums[i] += keep_one(of_column[i], of_column[i + 8], 4);
    }

    // Exponentials of what lies past the last row or column shall be 0.
    __device__ __forceinline__ void clear_outside(Products& values, int rows, int cols) {
#pragma unroll
        for (int i = 0; i < OF_ROW; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if (row_of(h) >= rows || col_of(i) >= cols) element(values, h, i) = -INFINITY;
            }
        }
    }

    // The logits of rows with their own columns, where this tile holds them.
    __device__ __forceinline__ void write_own(Products& values, int row, int col) {
        const int64_t ahead = row + f.a.offset - col;  // column of the block's first row
        if (f.a.own == nullptr || ahead <= -ROWS || ahead >= COLS) return;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int own = int(ahead) + row_of(h);
#pragma unroll
            for (int i = 0; i < OF_ROW; ++i) {
                const bool here = col_of(i) == own && row + row_of(h) < int(f.a.rows_n);
                if (here) f.a.own[row + row_of(h)] = s * element(values, h, i);
            }
        }
    }

    __device__ __forceinline__ void add_rows(float (&of_row)[2], int band, int tile) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            for (int step = 1; step < 4; step *= 2) {
                of_row[h] += __shfl_xor_sync(ALL_LANES, of_row[h], step);
            }
            if (threadIdx.x % 4 != 0) continue;
            float& sum = row_sums[(band - item.band) * ROWS + row_of(h)];
            sum = tile == item.tile ? of_row[h] : sum + of_row[h];
        }
    }

    __device__ __forceinline__ void store_columns(int col, int cols) {
        const int part = (item.group * CLUSTER + int(cluster_rank())) * WARPS + threadIdx.x / WARP;
        float* const to = f.a.strip_sum + part * f.a.cols_n + col;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int at = col_of(first_kept() + i);
            if (at < cols) to[at] = col_sums[i] + (f.add ? to[at] : 0.f);
        }
    }

    __device__ __forceinline__ void end(const Item&) {
        if (threadIdx.x % 4 != 0) return;
        for (int band = item.band; band < item.band_end; ++band) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = first_row(band) + row_of(h);
                if (row >= int(f.a.rows_n)) continue;
                f.a.strip_max[item.strip * f.a.rows_n + row] =
                    row_sums[(band - item.band) * ROWS + row_of(h)];
            }
        }
    }
};

template <bool COLUMNS>
__global__ void __launch_bounds__(THREADS, 1)
    contrastive_forward_hopper_kernel(const __grid_constant__ Forward f) {
    DYNAMIC_SHARED(shared);
    const float s = expf(*f.a.logit_scale);
    float* const row_sums = reinterpret_cast<float*>(shared + Stage<COLS>::END);
    Sums<COLUMNS> consumer = {f, s, s * LOG2E, (s - HEADROOM) * LOG2E, row_sums};
    run<bf16, COLS>(f.operands, f.operands.work, consumer);
}

struct Join {
    ContrastiveForward a;
    int64_t rows_n;  // of the slice
    int32_t strips, parts;
};

// From the partial sums, `stride` apart; NaN where the offset does not suit them.
__device__ __forceinline__ float log_sum(const float* sums, int64_t stride, int n, float offset) {
    constexpr float LEAST = 8.7565108e-27f, MOST = 1e38f;  // exp(-60)
    float sum = 0;
    for (int i = 0; i < n; ++i) sum += sums[i * stride];
    return sum >= LEAST && sum <= MOST ? offset + logf(sum) : NAN;
}

constexpr int JOIN_THREADS = 256;

// Rows first, then columns, where there are any.
__global__ void __launch_bounds__(JOIN_THREADS) contrastive_join_hopper_kernel(Join j) {
    const int64_t at = int64_t(blockIdx.x) * JOIN_THREADS + threadIdx.x;
    const float offset = expf(*j.a.logit_scale) - HEADROOM;
    const ContrastiveForward& a = j.a;
    if (at < j.rows_n) {
        a.lse[at] = log_sum(a.strip_max + at, j.rows_n, j.strips, offset);
    } else if (at - j.rows_n < a.cols_n && j.parts > 0) {
        const int64_t col = at - j.rows_n;
        a.col_lse[col] = log_sum(a.strip_sum + col, a.cols_n, j.parts, offset);
    }
}

// The rows [first, first + rows_n).
template <bool COLUMNS>
int32_t forward_slice(RoclipStream stream, ContrastiveForward a, int64_t first, int64_t rows_n) {
    const bool last = first + rows_n == a.rows_n;
    a.rows += first * a.width;
    a.lse += first;
    if (a.own != nullptr) a.own += first;
    a.offset += first;
    a.rows_n = rows_n;
    Forward f = {};
    f.a = a;
    f.add = first > 0;
    int32_t error =
        describe<bf16, COLS>(&f.operands, a.rows, rows_n, a.cols, a.cols_n, a.width);
    if (error) return error;
    Work& work = f.operands.work;
    work.groups = GROUPS < work.bands ? GROUPS : work.bands;
    balance(&work, COLS, ROCLIP_STRIPS, CLUSTERS);
    error = launch<contrastive_forward_hopper_kernel<COLUMNS>, CLUSTER>(
        stream, grid(work), dim3(THREADS), shared_bytes<COLS>(ROW_SUMS), f);
    if (error) return error;
    const int64_t groups = first > 0 ? GROUPS : work.groups;  // of the first slice
    const int parts = COLUMNS && last ? int(groups) * CLUSTER * WARPS : 0;
    const Join join = {a, rows_n, work.strips, parts};
    const int64_t results = rows_n + (parts ? a.cols_n : 0);
    return launch<contrastive_join_hopper_kernel>(
        stream, dim3(unsigned(ceil_div(results, JOIN_THREADS))), dim3(JOIN_THREADS), 0, join);
}

// --------------------------------------------------------------------------------------- backward

struct Weights {
    hopper::Operands operands;
    ContrastiveWeights a;
    float directions;
    bool vector;  // whether 16 bytes of weights may be stored at once
};

struct WriteWeights {
    const Weights& w;
    float s2, factor;

    __device__ __forceinline__ void begin(const Item&) {}
    __device__ __forceinline__ void end(const Item&) {}

    __device__ __forceinline__ void tile(Products& values, int band, int tile) {
        const ContrastiveWeights& a = w.a;
        const int row = first_row(band), col = tile * COLS;
        const int rows = min(int(a.rows_n) - row, ROWS);
        const int cols = min(int(a.cols_n) - col, COLS);
        const int64_t ahead = row + a.offset - col;  // column of the block's first row
        const bool diagonal = ahead > -ROWS && ahead < COLS;
        float row_lse2[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            row_lse2[h] = lse2(a.row_lse, row + row_of(h), row_of(h) < rows);
        }
        const float* const lse = a.col_lse == nullptr ? nullptr : a.col_lse + col + col_of(0);
        bf16* to[2];  // where this lane's first vector goes, of each row; null past the last
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            bf16* const begin = a.weights + int64_t(row + row_of(h)) * a.cols_n + col;
            to[h] = row_of(h) < rows ? begin : nullptr;
        }
#pragma unroll
        for (int first = 0; first < OF_ROW; first += 8) {
            probabilities(values, first, lse, row_lse2, cols - col_of(0));
            if (diagonal) subtract_own(values, first, int(ahead));
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if (w.vector) {
                    store_vectors(values, first, h, to[h], cols);
                } else {
                    store_each(values, first, h, to[h], cols - col_of(0));
                }
            }
        }
    }

    // Over ln 2; one that makes its exponential 0 where there is none.
    __device__ __forceinline__ static float lse2(const float* lse, int at, bool inside) {
        return lse == nullptr ? INFINITY : inside ? lse[at] * LOG2E : 0.f;
    }

    // factor (exp(l - row_lse) + exp(l - col_lse)) of 32 columns, from inner products; `left`:
    // columns from this lane's first on.
    __device__ __forceinline__ void probabilities(Products& values, int first, const float* lse,
                                                  const float (&row_lse2)[2], int left) {
#pragma unroll
        for (int i = first; i < first + 8; ++i) {
            const int at = col_of(i) - col_of(0);
            const float col_lse2 = lse2(lse, at, at < left);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float& x = element(values, h, i);
                x = factor * (exp2_approx(fmaf(x, s2, -row_lse2[h])) +
                              exp2_approx(fmaf(x, s2, -col_lse2)));
            }
        }
    }

    __device__ __forceinline__ void subtract_own(Products& values, int first, int ahead) {
#pragma unroll
        for (int i = first; i < first + 8; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if (col_of(i) == ahead + row_of(h)) element(values, h, i) -= w.directions * factor;
            }
        }
    }

    __device__ __forceinline__ void store_each(Products& values, int first, int h, bf16* to,
                                               int left) {
#pragma unroll
        for (int i = first; i < first + 8; ++i) {
            const int at = col_of(i) - col_of(0);
            if (to && at < left) to[col_of(i)] = to_bf16(element(values, h, i));
        }
    }

    // Of 32 columns, the four lanes of a row hold two of every eight; each stores eight.
    __device__ __forceinline__ void store_vectors(Products& values, int first, int h, bf16* to,
                                                  int cols) {
        const int lane = int(threadIdx.x) % 4, col = first * 4 + lane * 8;
        Vec<uint32_t, 4> packed;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            packed[k] = pack_bf16(element(values, h, first + 2 * k),
                                  element(values, h, first + 2 * k + 1));
        }
        transpose_quad(packed);
        if (to && col < cols) store(reinterpret_cast<uint32_t*>(to + col), packed);
    }
};

__global__ void __launch_bounds__(THREADS, 1)
    contrastive_weights_hopper_kernel(const __grid_constant__ Weights w) {
    const float s = expf(*w.a.logit_scale);
    WriteWeights consumer = {w, s * LOG2E, s * (w.a.factor * 0.5f) / float(w.a.total)};
    run<bf16, COLS>(w.operands, w.operands.work, consumer);
}

}  // namespace

int32_t contrastive_forward_hopper(RoclipStream stream, const ContrastiveForward& a) {
    constexpr int64_t SLICE = int64_t(MAX_BANDS) * GROUPS * BAND;
    if (!fits<bf16>(a.rows_n, a.cols_n, a.width, a.rows, a.cols)) return ROCLIP_REFUSED;
    const auto slice = a.col_lse ? forward_slice<true> : forward_slice<false>;
    for (int64_t first = 0; first < a.rows_n; first += SLICE) {
        const int64_t left = a.rows_n - first;
        const int32_t error = slice(stream, a, first, left < SLICE ? left : SLICE);
        if (error) return error;
    }
    return 0;
}

int32_t contrastive_weights_hopper(RoclipStream stream, const ContrastiveWeights& a) {
    if (!fits<bf16>(a.rows_n, a.cols_n, a.width, a.rows, a.cols)) return ROCLIP_REFUSED;
    Weights w = {};
    w.a = a;
    w.directions = directions(a);
    w.vector = a.cols_n % 8 == 0 && aligned(16, a.weights);
    const int32_t error =
        describe<bf16, COLS>(&w.operands, a.rows, a.rows_n, a.cols, a.cols_n, a.width);
    if (error) return error;
    Work& work = w.operands.work;
    work.groups = work.bands;
    work.strips = work.tiles;
    return launch<contrastive_weights_hopper_kernel, CLUSTER>(stream, grid(work), dim3(THREADS),
                                                             shared_bytes<COLS>(), w);
}

}  // namespace ROCLIP_BUILD
