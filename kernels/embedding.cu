// embedding: token vector plus position vector, for packed captions.
//
//   out[s] = table[tokens[s]] + positions[s - cu_seqlens[q]], q the sequence in which s lies
//   dtable[v] += sum over s with tokens[s] = v of dout[s]
//   dpositions[p] += sum over sequences longer than p of dout[start + p]
//
// Tensors   in roclip.h. `order` sorts the positions by token, equal ones by position: all of a
//           token lie together in it, a run.
// Requires  tokens below V, sequences no longer than the context, cu_seqlens ascending from 0 to S.
//           The launcher refuses more than 65535 tiles of columns.
// Launch    forward: a warp a position. backward_table: a warp for each place in `order`, which
//           returns unless a short run starts there, and a block of COLUMN_THREADS for every
//           MARK-th place and tile of columns, which returns unless it is the first such place of a
//           long run; a run is long if it has two of these places. backward_positions: a block for
//           each position and tile of columns. 8 columns a thread where width % 8 == 0 and pointers
//           lie at 16 bytes, else one.
// Mapping   lane -> neighbouring columns; common/columns.cuh for blocks.
// Barriers  one in `sum_columns`, for every thread of the block; the tests before it are uniform.
// Numerics  f32, one rounding to bf16; every row of a gradient is summed by one warp or block, in
//           an order that depends on the shape and the tokens alone.
// Cost      forward 10 bytes an element, 8 of them from tables that the L2 cache holds in part;
//           backward 2 bytes an element, and 8 of every row of a table that occurs.
// Twins     src/backend/{ops,cpu,cuda}/embedding.rs, tests/ops/embedding.rs
#include "common/columns.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;
constexpr int MARK = 64;
constexpr int MAX_GRID_Y = 65535;

// ---------------------------------------------------------------------------------------- forward

// The last i below `count` that holds, where 0 does and all that hold come first. A warp looks at
// 32 of them at once.
template <class Holds>
__device__ __forceinline__ int64_t last_that_holds(int64_t count, Holds holds) {
    int64_t first = 0;  // it is one of first .. first + count
    while (count > 1) {
        const int64_t step = (count + WARP - 1) / WARP, at = int64_t(threadIdx.x % WARP) * step;
        const unsigned held = __ballot_sync(ALL_LANES, at < count && holds(first + at));
        const int64_t skip = (__popc(held) - 1) * step;
        first += skip;
        count = step < count - skip ? step : count - skip;
    }
    return first;
}

template <int V>
__global__ void __launch_bounds__(THREADS) embedding_forward_kernel(EmbeddingForward a) {
    const int64_t s = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (s >= a.rows) return;  // a warp as a whole
    const int64_t sequence =
        last_that_holds(a.sequences, [&](int64_t q) { return a.cu_seqlens[q] <= s; });
    const int64_t position = s - a.cu_seqlens[sequence];
    const float* token_row = a.table + int64_t(a.tokens[s]) * a.width;
    const float* position_row = a.positions + position * a.width;
    for (int c = threadIdx.x % WARP * V; c < a.width; c += WARP * V) {
        float token[V], sum[V];
        load_floats(token_row + c, token);
        load_floats(position_row + c, sum);
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] += token[i];
        store_floats(a.out + s * a.width + c, sum);
    }
}

// ------------------------------------------------------------------------------ backward of tokens

__device__ __forceinline__ uint32_t token_at(const EmbeddingBackwardTable& a, int64_t place) {
    return a.tokens[a.order[place]];
}

// Whether that place exists and holds that token.
__device__ __forceinline__ bool holds(
    const EmbeddingBackwardTable& a, int64_t place, uint32_t token) {
    return place >= 0 && place < a.rows && token_at(a, place) == token;
}

template <int V>
__global__ void __launch_bounds__(THREADS) short_runs_kernel(EmbeddingBackwardTable a) {
    const int64_t place = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (place >= a.rows) return;
    const uint32_t token = token_at(a, place);
    if (holds(a, place - 1, token)) return;
    const int64_t mark = (place + MARK - 1) / MARK * MARK;
    if (holds(a, mark, token) && holds(a, mark + MARK, token)) return;
    const int lane = threadIdx.x % WARP;
    // a short run is not as long as two marks; the lanes look where it ends, and keep its positions
    int length = 0;
    uint32_t positions[2 * MARK / WARP] = {};
#pragma unroll
    for (int k = 0; k < 2 * MARK / WARP; ++k) {
        if (length < k * WARP) break;
        const int64_t at = place + k * WARP + lane;
        positions[k] = at < a.rows ? a.order[at] : 0;
        length += __popc(__ballot_sync(ALL_LANES, at < a.rows && a.tokens[positions[k]] == token));
    }
    for (int first = 0; first < a.width; first += WARP * V) {
        const int c = first + lane * V;
        float sum[1][V] = {};
#pragma unroll
        for (int k = 0; k < 2 * MARK / WARP; ++k) {
#pragma unroll 4
            for (int j = 0; j < WARP && k * WARP + j < length; ++j) {
                const int64_t s = __shfl_sync(ALL_LANES, positions[k], j);
                if (c < a.width) AddFloats<V>{}(s, load<V>(a.dout + s * a.width + c), sum);
            }
        }
        if (c < a.width) add_floats(a.dtable + int64_t(token) * a.width + c, sum[0]);
    }
}

template <int V>
__global__ void __launch_bounds__(COLUMN_THREADS) long_runs_kernel(EmbeddingBackwardTable a) {
    const int64_t mark = int64_t(blockIdx.x) * MARK, column = my_column<V>(blockIdx.y);
    const uint32_t token = token_at(a, mark);
    if (holds(a, mark - MARK, token) || !holds(a, mark + MARK, token)) return;
    const int64_t before =
        last_that_holds(MARK, [&](int64_t i) { return holds(a, mark - i, token); });
    const int64_t start = mark - before;
    const int64_t last =
        last_that_holds(a.rows - mark, [&](int64_t i) { return holds(a, mark + i, token); });
    float sums[1][V];
    const bool mine = sum_columns<V, 1>(
        column < a.width, before + 1 + last, 0, 1,
        [&](int64_t i) { return load<V>(a.dout + int64_t(a.order[start + i]) * a.width + column); },
        AddFloats<V>{}, sums);
    if (mine) add_floats(a.dtable + int64_t(token) * a.width + column, sums[0]);
}

// --------------------------------------------------------------------------- backward of positions

template <int V>
__global__ void __launch_bounds__(COLUMN_THREADS) positions_kernel(EmbeddingBackwardPositions a) {
    const int64_t position = blockIdx.x, column = my_column<V>(blockIdx.y);
    float sums[1][V];
    const bool mine = sum_columns<V, 1>(
        column < a.width, a.sequences, 0, 1,
        [&](int64_t q) {
            const int64_t s = a.cu_seqlens[q] + position;
            Vec<bf16, V> none;
#pragma unroll
            for (int i = 0; i < V; ++i) none[i] = to_bf16(0);
            return s < a.cu_seqlens[q + 1] ? load<V>(a.dout + s * a.width + column) : none;
        },
        AddFloats<V>{}, sums);
    if (mine) add_floats(a.dpositions + position * a.width + column, sums[0]);
}

}  // namespace

int32_t embedding_forward(RoclipStream stream, const EmbeddingForward* a) {
    const int64_t blocks = ceil_div(a->rows, WARPS);
    return a->width % LANE == 0 && aligned(16, a->table, a->positions, a->out)
               ? launch<embedding_forward_kernel<LANE>>(stream, blocks, THREADS, 0, *a)
               : launch<embedding_forward_kernel<1>>(stream, blocks, THREADS, 0, *a);
}

int32_t embedding_backward_table(RoclipStream stream, const EmbeddingBackwardTable* a) {
    const auto start = [&](auto v) {
        const dim3 marks(ceil_div(a->rows, MARK), ceil_div(a->width, COLUMN_TILE<v>));
        if (marks.y > MAX_GRID_Y) return int32_t(ROCLIP_REFUSED);
        const int32_t error =
            launch<short_runs_kernel<v>>(stream, ceil_div(a->rows, WARPS), THREADS, 0, *a);
        if (error != 0) return error;
        return launch<long_runs_kernel<v>>(stream, marks, COLUMN_THREADS, 0, *a);
    };
    return a->width % LANE == 0 && aligned(16, a->dout, a->dtable)
               ? start(std::integral_constant<int, LANE>{})
               : start(std::integral_constant<int, 1>{});
}

int32_t embedding_backward_positions(RoclipStream stream, const EmbeddingBackwardPositions* a) {
    const auto start = [&](auto v) {
        const dim3 grid(a->context, ceil_div(a->width, COLUMN_TILE<v>));
        if (grid.y > MAX_GRID_Y) return int32_t(ROCLIP_REFUSED);
        return launch<positions_kernel<v>>(stream, grid, COLUMN_THREADS, 0, *a);
    };
    return a->width % LANE == 0 && aligned(16, a->dout, a->dpositions)
               ? start(std::integral_constant<int, LANE>{})
               : start(std::integral_constant<int, 1>{});
}

}  // namespace ROCLIP_BUILD
