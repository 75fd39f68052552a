// Inner products of rows with columns, tile by tile: what `pool` and `contrastive` have in common.
//
//   tile[i, j] = <rows[row + i], cols[col + j]>        bf16 in, f32 out, never stored
//
// A block of THREADS takes ROWS rows and sweeps a range of column tiles. Operands come by cp.async,
// DEPTH elements of D at a time, STAGES - 1 steps ahead, across tiles: while one tile is evaluated
// the next one's loads are under way.
//
// Mapping   warps 4 x 2, each 32 rows x 64 columns; a lane holds `Tile`, see `row_of`, `col_of`.
// Barriers  one per step of DEPTH, by all threads.
// Shared    STAGES x (ROWS + COLS) rows of DEPTH elements: 64 bytes, whose four 16-byte chunks are
//           permuted by row, so that ldmatrix meets no bank conflict.
// Numerics  products exact, sums f32 over D in one order, the same for every row and column:
//           equal vectors give equal bits wherever they stand. What lies past an extent is zero.
#pragma once

#include "launch.cuh"

namespace ROCLIP_BUILD {
namespace similarity {

constexpr int ROWS = 128, COLS = 128, DEPTH = 32, STAGES = 4, THREADS = 256;
constexpr int CHUNK = 8;                      // elements that are copied at once
constexpr int CHUNKS = DEPTH / CHUNK;         // of one row of one stage
constexpr int STAGE = (ROWS + COLS) * DEPTH;  // elements of one stage
constexpr size_t SHARED = sizeof(bf16) * STAGES * STAGE;
constexpr int WARP_ROWS = 32, WARP_COLS = 64, WARPS_ACROSS = COLS / WARP_COLS;
constexpr int HALVES = WARP_ROWS / 8;  // rows that a lane holds a part of
constexpr int PAIRS = WARP_COLS / 8;   // pairs of columns that a lane holds of each of them

static_assert(THREADS / WARP * WARP_ROWS * WARP_COLS == ROWS * COLS, "the warps make the tile");
static_assert(CHUNKS == 4, "the permutation of chunks is made for four");

// A lane's part of a tile: [16 rows][8 columns][fragment of mma.m16n8].
typedef float Tile[HALVES / 2][PAIRS][4];

struct Operands {
    const bf16 *rows, *cols;  // [rows_n, width], [cols_n, width]
    int64_t rows_n, cols_n;
    int32_t width;
};

// Whether both may be read CHUNK elements at a time.
inline bool vector(const Operands& o) {
    return o.width % CHUNK == 0 && aligned(16, o.rows, o.cols);
}

// A search over all columns is cut into strips, by extents alone: never by what GPU it is.
inline int64_t strips(int64_t cols_n) {
    const int64_t tiles = ceil_div(cols_n, COLS);
    return tiles < ROCLIP_STRIPS ? tiles : int64_t(ROCLIP_STRIPS);
}

inline dim3 grid(const Operands& o) {
    return dim3(unsigned(ceil_div(o.rows_n, ROWS)), unsigned(strips(o.cols_n)));
}

// The row, within the block's, of half h of a lane's tile: 0 <= h < HALVES.
__device__ __forceinline__ int row_of(int h) {
    return int(threadIdx.x / WARP / WARPS_ACROSS) * WARP_ROWS + int(threadIdx.x % WARP / 4) + h * 8;
}

// The rows from a lane's first to the block's last, at most a tile's: of n.
__device__ __forceinline__ int rows_left(int64_t n) {
    const int64_t left = n - int64_t(blockIdx.x) * ROWS;
    return int(left < ROWS ? left : ROWS) - row_of(0);
}

// The column, within the tile's, of element e of pair p.
__device__ __forceinline__ int col_of(int p, int e) {
    const int warp = int(threadIdx.x / WARP % WARPS_ACROSS);
    return warp * WARP_COLS + int(threadIdx.x % 4) * 2 + p * 8 + e;
}

// Element i, in order of columns, of half h of a lane's tile.
__device__ __forceinline__ float& element(Tile& tile, int h, int i) {
    return tile[h / 2][i / 2][h % 2 * 2 + i % 2];
}

// Replaces what lies past the last of n columns.
__device__ __forceinline__ void mask(Tile& tile, int64_t col, int64_t n, float with) {
    if (col + COLS <= n) return;
    const int inside = int(n - col) - col_of(0, 0);
#pragma unroll
    for (int i = 0; i < 2 * PAIRS; ++i) {
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
            if (i / 2 * 8 + i % 2 >= inside) element(tile, h, i) = with;
        }
    }
}

// Where chunk c of row r lies in a stage's operand; eight rows further, the same 8*DEPTH behind.
__device__ __forceinline__ int place(int r, int c) {
    return r * DEPTH + (c ^ (r / 2 % CHUNKS)) * CHUNK;
}

// Starts copying elements [k, k + DEPTH) of `COUNT` rows that begin at `first`, of n.
template <bool VECTOR, int COUNT>
__device__ __forceinline__ void fetch(bf16* to, const bf16* from, int64_t first, int64_t n, int k,
                                      const Operands& o) {
    constexpr int STEP = THREADS / CHUNKS;  // rows that all threads copy at once
    static_assert(COUNT % STEP == 0, "every thread copies as many chunks");
    const int row = int(threadIdx.x / CHUNKS), c = int(threadIdx.x % CHUNKS);
    const int64_t left = n - first - row;
    const int cols = o.width - k - c * CHUNK;
    const bf16* const at = from + (first + row) * o.width + k + c * CHUNK;
    to += place(row, c);
#pragma unroll
    for (int i = 0; i < COUNT; i += STEP) {
        const bool inside = i < left && cols > 0;
        const bf16* const chunk = inside ? at + int64_t(i) * o.width : from;
        if (VECTOR) {
            cp_async16(to + i * DEPTH, chunk, inside);
        } else {
            for (int e = 0; e < CHUNK; ++e) {
                to[i * DEPTH + e] = inside && e < cols ? chunk[e] : to_bf16(0.f);
            }
        }
    }
}

// tile += rows . cols^T over the DEPTH elements of one stage.
__device__ __forceinline__ void multiply(Tile& tile, const bf16* rows, const bf16* cols) {
    const int lane = int(threadIdx.x % WARP), warp = int(threadIdx.x / WARP);
    rows += warp / WARPS_ACROSS * WARP_ROWS * DEPTH;
    cols += warp % WARPS_ACROSS * WARP_COLS * DEPTH;
#pragma unroll
    for (int k = 0; k < DEPTH / 16; ++k) {
        const bf16* const left = rows + place(lane % 16, 2 * k + lane / 16);
        const bf16* const right = cols + place(lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2);
        uint32_t a[WARP_ROWS / 16][4];
#pragma unroll
        for (int i = 0; i < WARP_ROWS / 16; ++i) ldmatrix_x4(a[i], left + i * 16 * DEPTH);
#pragma unroll
        for (int j = 0; j < WARP_COLS / 16; ++j) {
            uint32_t b[4];
            ldmatrix_x4(b, right + j * 16 * DEPTH);
#pragma unroll
            for (int i = 0; i < WARP_ROWS / 16; ++i) {
                mma_m16n8k16(tile[i][2 * j], a[i], b[0], b[1]);
                mma_m16n8k16(tile[i][2 * j + 1], a[i], b[2], b[3]);
            }
        }
    }
}

// Computes the block's tiles of its strip (blockIdx: tile of rows, strip) and calls
// `each(tile, first column)` for every one, in order of columns.
template <bool VECTOR, class Each>
__device__ __forceinline__ void sweep(const Operands& o, Each each) {
    DYNAMIC_SHARED(shared);
    bf16* const stages = reinterpret_cast<bf16*>(shared);
    const int64_t row = int64_t(blockIdx.x) * ROWS, tiles = (o.cols_n + COLS - 1) / COLS;
    const int first = int(tiles * blockIdx.y / gridDim.y);
    const int end = int(tiles * (blockIdx.y + 1) / gridDim.y);
    int ahead = first, ahead_k = 0;  // what is fetched next: tile, and element of D
    const auto fetch_next = [&](int stage) {
        if (ahead < end) {
            bf16* const to = stages + stage * STAGE;
            fetch<VECTOR, ROWS>(to, o.rows, row, o.rows_n, ahead_k, o);
            const int64_t col = int64_t(ahead) * COLS;
            fetch<VECTOR, COLS>(to + ROWS * DEPTH, o.cols, col, o.cols_n, ahead_k, o);
            ahead_k += DEPTH;
            if (ahead_k >= o.width) ahead_k = 0, ++ahead;
        }
        cp_async_commit();  // an empty group keeps the count of groups
    };
    for (int stage = 0; stage < STAGES - 1; ++stage) fetch_next(stage);
    int stage = 0;
    for (int at = first; at < end; ++at) {
        Tile tile = {};
#pragma unroll 1
        for (int k = 0; k < o.width; k += DEPTH) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();  // this stage is there for all, and nobody reads the one before it
            fetch_next((stage + STAGES - 1) % STAGES);
            const bf16* const rows = stages + stage * STAGE;
            multiply(tile, rows, rows + ROWS * DEPTH);
            stage = (stage + 1) % STAGES;
        }
        each(tile, int64_t(at) * COLS);
    }
    cp_async_wait<0>();
}

}  // namespace similarity
}  // namespace ROCLIP_BUILD
