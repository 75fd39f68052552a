// layernorm: each row to mean 0 and variance 1, then a gain and a bias.
//
//   y = (x - mean) * rstd * gain + bias,  rstd = 1 / sqrt(var + eps), var the biased variance
//   dx = rstd * (g - mean(g) - xhat * mean(g * xhat)),  g = dy * gain,  xhat = (x - mean) * rstd
//   dgain += sum over rows of dy * xhat,  dbias += sum over rows of dy
//
// Tensors   in roclip.h. dx is set or added to; dgain_dbias is added to.
// Requires  rows >= 1, width >= 1; dx overlaps no other tensor.
// Launch    in registers (width % 8 == 0, width <= 2048, pointers at 16 bytes): blocks of 8 warps,
//           forward a row a warp, backward at most ROCLIP_PARTS blocks whose warps walk the rows;
//           any other width and alignment: the same over memory, and the gradients of gain and bias
//           in a kernel of their own. Then `add_parts`.
// Mapping   warp -> row; lane -> 8 neighbouring columns in every 256, one 16-byte access each.
// Barriers  none over rows: warps have different numbers of them. Around the combination of the
//           warps' sums, every thread of the block.
// Numerics  f32, mean and variance in two passes over registers, one rounding to bf16; a sum over
//           rows is cut by the number of rows alone, so equal shapes give equal bits on every GPU;
//           the sums of a row run in another order where pointers are not at 16 bytes.
// Cost      bytes: forward 4 an element, backward 6 (8 where dx is added to). The row stays in
//           registers, gain lies in shared memory: one pass over x and dy.
// Twins     src/backend/{ops,cpu,cuda}/layernorm.rs, tests/ops/layernorm.rs
#include "common/add_parts.cuh"
#include "common/columns.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

// ---------------------------------------------------------------------------------------- forward

template <int CHUNKS>
__global__ void __launch_bounds__(THREADS) layernorm_forward_kernel(LayernormForward a) {
    const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (row >= a.rows) return;  // a warp as a whole
    const int width = a.width;
    float x[CHUNKS][LANE];
    Row<CHUNKS> raw;
    raw.load(a.x + row * width, width);
    float sum = 0;
    for_chunks<CHUNKS>(width, [&](int k, int) {
        to_floats(raw.at[k], x[k]);
#pragma unroll
        for (int i = 0; i < LANE; ++i) sum += x[k][i];
    });
    const float mean = warp_sum(sum) / width;
    float squares = 0;
    for_chunks<CHUNKS>(width, [&](int k, int) {
#pragma unroll
        for (int i = 0; i < LANE; ++i) squares += (x[k][i] - mean) * (x[k][i] - mean);
    });
    const float rstd = 1 / sqrtf(warp_sum(squares) / width + a.eps);
    for_chunks<CHUNKS>(width, [&](int k, int column) {
        float gain[LANE], bias[LANE], y[LANE];
        load_floats(a.gain_bias + column, gain);
        load_floats(a.gain_bias + width + column, bias);
#pragma unroll
        for (int i = 0; i < LANE; ++i) y[i] = (x[k][i] - mean) * rstd * gain[i] + bias[i];
        store_floats(a.y + row * width + column, y);
    });
    if (threadIdx.x % WARP == 0) {
        a.mean[row] = mean;
        a.rstd[row] = rstd;
    }
}

__global__ void __launch_bounds__(THREADS) layernorm_forward_any_kernel(LayernormForward a) {
    const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (row >= a.rows) return;
    const int width = a.width, lane = threadIdx.x % WARP;
    const bf16* x = a.x + row * width;
    float sum = 0, squares = 0;
    for (int c = lane; c < width; c += WARP) sum += to_float(x[c]);
    const float mean = warp_sum(sum) / width;
    for (int c = lane; c < width; c += WARP) {
        const float d = to_float(x[c]) - mean;
        squares += d * d;
    }
    const float rstd = 1 / sqrtf(warp_sum(squares) / width + a.eps);
    for (int c = lane; c < width; c += WARP) {
        const float y = (to_float(x[c]) - mean) * rstd * a.gain_bias[c] + a.gain_bias[width + c];
        a.y[row * width + c] = to_bf16(y);
    }
    if (lane == 0) {
        a.mean[row] = mean;
        a.rstd[row] = rstd;
    }
}

// --------------------------------------------------------------------------------------- backward

// Where a warp works: the columns that it has of each row, and rows every TEAMS blocks.
template <int CHUNKS, int TEAM>
struct Place {
    static constexpr int TEAMS = WARPS / TEAM;
    static constexpr int COLUMNS = TEAM * CHUNKS * CHUNK;
    const int warp = threadIdx.x / WARP, team = warp / TEAM;
    const int first = warp % TEAM * CHUNKS * CHUNK;
};

// Adds up the teams' gradients of gain and bias, one team after the other, into this block's part.
template <int CHUNKS, int TEAM>
__device__ __forceinline__ void combine_teams(
    const LayernormBackward& a,
    const float (&dgain)[CHUNKS][LANE],
    const float (&dbias)[CHUNKS][LANE],
    float (&sums)[2][TEAM * CHUNKS * CHUNK]) {
    const Place<CHUNKS, TEAM> at;
    for (int team = 0; team < at.TEAMS; ++team) {
        if (at.team == team) {
            for_chunks<CHUNKS>(a.width - at.first, [&](int k, int column) {
                float gain[LANE] = {}, bias[LANE] = {};
                if (team > 0) {
                    load_floats(sums[0] + at.first + column, gain);
                    load_floats(sums[1] + at.first + column, bias);
                }
#pragma unroll
                for (int i = 0; i < LANE; ++i) {
                    gain[i] += dgain[k][i];
                    bias[i] += dbias[k][i];
                }
                store_floats(sums[0] + at.first + column, gain);
                store_floats(sums[1] + at.first + column, bias);
            });
        }
        __syncthreads();
    }
    float* to = a.partial + int64_t(blockIdx.x) * 2 * a.width;
    for (int c = threadIdx.x; c < a.width; c += THREADS) {
        to[c] = sums[0][c];
        to[a.width + c] = sums[1][c];
    }
}

// The sum over a row, of which every warp of the team has a part; `room` must be another one in the
// next call.
template <int TEAM>
__device__ __forceinline__ float2 team_sum(float x, float y, float2 (&room)[WARPS]) {
    x = warp_sum(x);
    y = warp_sum(y);
    if (TEAM == 1) return {x, y};
    const int warp = threadIdx.x / WARP;
    if (threadIdx.x % WARP == 0) room[warp] = {x, y};
    __syncthreads();
    float2 sum = {0, 0};
#pragma unroll
    for (int w = 0; w < TEAM; ++w) {
        sum.x += room[warp / TEAM * TEAM + w].x;
        sum.y += room[warp / TEAM * TEAM + w].y;
    }
    return sum;
}

// TEAM warps share a row: one cannot hold the sums of more than 4 chunks. Two blocks an SM, where
// registers suffice, are what keeps enough loads in flight.
template <int CHUNKS, int TEAM>
__global__ void __launch_bounds__(THREADS, CHUNKS * TEAM <= 3 ? 2 : 1)
    layernorm_backward_kernel(LayernormBackward a) {
    const Place<CHUNKS, TEAM> at;
    __shared__ __align__(16) float gains[at.COLUMNS], sums[2][at.COLUMNS];
    __shared__ float2 room[2][WARPS];
    for (int c = threadIdx.x; c < a.width; c += THREADS) gains[c] = a.gain_bias[c];
    __syncthreads();
    float dgain[CHUNKS][LANE] = {}, dbias[CHUNKS][LANE] = {};
    int turn = 0;
    // every warp comes to the barrier of team_sum, also one whose team has run out of rows
    for (int64_t top = int64_t(blockIdx.x) * at.TEAMS; top < a.rows;
         top += int64_t(gridDim.x) * at.TEAMS, turn ^= 1) {
        const int64_t row = top + at.team < a.rows ? top + at.team : a.rows - 1;
        const int width = top + at.team < a.rows ? a.width - at.first : 0;
        const int64_t start = row * a.width + at.first;
        const float mean = a.mean[row], rstd = a.rstd[row];
        Row<CHUNKS> row_x, row_dy;
        row_x.load(a.x + start, width);
        row_dy.load(a.dy + start, width);
        float sum = 0, along = 0;
        for_chunks<CHUNKS>(width, [&](int k, int column) {
            if (a.add) prefetch(a.dx + start + column);
            float xs[LANE], dys[LANE], gain[LANE];
            to_floats(row_x.at[k], xs);
            to_floats(row_dy.at[k], dys);
            load_floats(gains + at.first + column, gain);
#pragma unroll
            for (int i = 0; i < LANE; ++i) {
                const float xhat = (xs[i] - mean) * rstd;
                dgain[k][i] += dys[i] * xhat;
                dbias[k][i] += dys[i];
                sum += dys[i] * gain[i];
                along += dys[i] * gain[i] * xhat;
            }
        });
        const float2 means = team_sum<TEAM>(sum / a.width, along / a.width, room[turn]);
        __syncwarp();  // x and dy are loaded again, from L1: kept as floats they would not fit
        for_chunks<CHUNKS>(width, [&](int, int column) {
            float xs[LANE], dys[LANE], gain[LANE], d[LANE] = {};
            load_floats(a.x + start + column, xs);
            load_floats(a.dy + start + column, dys);
            load_floats(gains + at.first + column, gain);
            if (a.add) load_floats(a.dx + start + column, d);
#pragma unroll
            for (int i = 0; i < LANE; ++i) {
                const float xhat = (xs[i] - mean) * rstd;
                d[i] += rstd * (dys[i] * gain[i] - means.x - xhat * means.y);
            }
            store_floats(a.dx + start + column, d);
        });
    }
    combine_teams<CHUNKS, TEAM>(a, dgain, dbias, sums);
}

__global__ void __launch_bounds__(THREADS) layernorm_backward_any_kernel(LayernormBackward a) {
    const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (row >= a.rows) return;
    const int width = a.width, lane = threadIdx.x % WARP;
    const bf16 *x = a.x + row * width, *dy = a.dy + row * width;
    bf16* dx = a.dx + row * width;
    const float mean = a.mean[row], rstd = a.rstd[row];
    float sum = 0, along = 0;
    for (int c = lane; c < width; c += WARP) {
        const float g = to_float(dy[c]) * a.gain_bias[c];
        sum += g;
        along += g * ((to_float(x[c]) - mean) * rstd);
    }
    sum = warp_sum(sum) / width;
    along = warp_sum(along) / width;
    for (int c = lane; c < width; c += WARP) {
        const float xhat = (to_float(x[c]) - mean) * rstd;
        const float d = rstd * (to_float(dy[c]) * a.gain_bias[c] - sum - xhat * along);
        dx[c] = to_bf16(a.add ? to_float(dx[c]) + d : d);
    }
}

// Grid: tiles of columns, parts of rows.
__global__ void __launch_bounds__(COLUMN_THREADS)
    layernorm_columns_any_kernel(LayernormBackward a) {
    const int64_t column = my_column<1>(blockIdx.x);
    float sums[2][1];
    struct Term {
        float dgain, dbias;
    };
    const bool mine = sum_columns<1, 2>(
        column < a.width, a.rows, blockIdx.y, gridDim.y,
        [&](int64_t row) {
            const float x = to_float(a.x[row * a.width + column]);
            const float dy = to_float(a.dy[row * a.width + column]);
            return Term{dy * ((x - a.mean[row]) * a.rstd[row]), dy};
        },
        [](int64_t, const Term& term, float (&sums)[2][1]) {
            sums[0][0] += term.dgain;
            sums[1][0] += term.dbias;
        },
        sums);
    if (!mine) return;
    float* to = a.partial + int64_t(blockIdx.y) * 2 * a.width + column;
    to[0] = sums[0][0];
    to[a.width] = sums[1][0];
}

}  // namespace

int32_t layernorm_forward(RoclipStream stream, const LayernormForward* a) {
    const int64_t blocks = ceil_div(a->rows, WARPS);
    if (!fits_registers(a->width, a->x, a->y, a->gain_bias)) {
        return launch<layernorm_forward_any_kernel>(stream, blocks, THREADS, 0, *a);
    }
    return with_chunks(a->width, [&](auto n) {
        return launch<layernorm_forward_kernel<n>>(stream, blocks, THREADS, 0, *a);
    });
}

int32_t layernorm_backward(RoclipStream stream, const LayernormBackward* a) {
    const int64_t blocks = ceil_div(a->rows, WARPS);
    AddParts parts = {a->partial, a->dgain_dbias, int64_t(2) * a->width, 0};
    int32_t error;
    if (fits_registers(a->width, a->x, a->dy, a->dx)) {
        error = with_chunks(a->width, [&](auto n) {
            constexpr int TEAM = n <= 4 ? 1 : 2;
            const int64_t blocks = ceil_div(a->rows, WARPS / TEAM);
            parts.parts = blocks < ROCLIP_PARTS ? int(blocks) : int(ROCLIP_PARTS);
            return launch<layernorm_backward_kernel<n / TEAM, TEAM>>(
                stream, parts.parts, THREADS, 0, *a);
        });
    } else {
        parts.parts = column_parts(a->rows);
        const dim3 grid(ceil_div(a->width, COLUMN_TILE<1>), parts.parts);
        error = launch<layernorm_backward_any_kernel>(stream, blocks, THREADS, 0, *a);
        if (error == 0) {
            error = launch<layernorm_columns_any_kernel>(stream, grid, COLUMN_THREADS, 0, *a);
        }
    }
    return error == 0 ? start_add_parts(stream, parts) : error;
}

}  // namespace ROCLIP_BUILD
