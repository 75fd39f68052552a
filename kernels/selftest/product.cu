// A tile product by warps: cp.async in three stages, ldmatrix with and without .trans, mma.sync.
//
//   out[i, j] = sum_l a[i, l] b[j, l]            out[i, j] = sum_l a[i, l] b[l, j]  (trans)
//
// Requires  rows of a and b that are multiples of 16 bytes; m, n and k need not fill tiles.
// Launch    grid (n / 64, m / 64), block 128, dynamic shared memory 24 KiB.
// Mapping   warp w has 32 x 32 of the tile's 64 x 64: rows w / 2 * 32, columns w % 2 * 32.
// Faults    1 waits for one copy too few            2 no barrier after the wait
//           3 a stage refilled before the barrier   4 a copy to a misaligned place
//           5 stages that do not come round         6 a misaligned row
//           7 copies past the matrix                8 no swizzle: right, with bank conflicts
//           9 stale registers: one fragment is loaded once
#include "selftest.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int THREADS = 128, TILE = 64, DEPTH = 32, STAGES = 3;
constexpr int TILE_BYTES = TILE * DEPTH * 2, STAGE_BYTES = 2 * TILE_BYTES;

// Where 16 bytes of a tile of rows of 64 or 128 bytes lie: eight rows of one chunk in eight banks.
__device__ int place(bool wide, bool plain, int row, int chunk) {
    if (wide) return row * 128 + (plain ? chunk : chunk ^ row % 8) * 16;
    return row * 64 + (plain ? chunk : chunk ^ row / 2 % 4) * 16;
}

// Starts the copies of one stage; zeros past the end.
template <bool TRANS>
__device__ void fetch(const SelftestProduct& args, unsigned char* stage, int step) {
    const bool plain = PLANTED(8);
    const int row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE, k0 = step * DEPTH;
    for (int i = threadIdx.x; i < TILE * DEPTH / 8; i += THREADS) {
        const int row = i / 4, chunk = i % 4, k = k0 + chunk * 8;
        const bool in = (row0 + row < args.m && k < args.k) || PLANTED(7);
        unsigned char* to = stage + place(false, plain, row, chunk);
        cp_async16(PLANTED(4) ? to + 8 : to, args.a + int64_t(row0 + row) * args.k + k, in);
    }
    for (int i = threadIdx.x; i < TILE * DEPTH / 8; i += THREADS) {
        const int row = TRANS ? i / 8 : i / 4, chunk = TRANS ? i % 8 : i % 4;
        const int k = k0 + (TRANS ? row : chunk * 8), column = column0 + (TRANS ? chunk * 8 : row);
        const int64_t from = TRANS ? int64_t(k) * args.n + column : int64_t(column) * args.k + k;
        cp_async16(stage + TILE_BYTES + place(TRANS, plain, row, chunk), args.b + from,
                   column < args.n && k < args.k);
    }
}

// sum += the product of one stage.
template <bool TRANS>
__device__ void multiply(const SelftestProduct& args, const unsigned char* stage, int step,
                         uint32_t (&a)[2][4], float (&sum)[2][4][4]) {
    const bool plain = PLANTED(8);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int row0 = warp / 2 * 32, column0 = warp % 2 * 32;
    for (int k = 0; k < DEPTH; k += 16) {
        for (int i = 0; i < 2; ++i) {
            const int at = place(false, plain, row0 + i * 16 + lane % 16, k / 8 + lane / 16);
            if (PLANTED(9) && i == 1 && step > 0) continue;
            ldmatrix_x4(a[i], stage + at + (PLANTED(6) ? 2 : 0));
        }
        for (int j = 0; j < 4; ++j) {
            uint32_t b[2];
            const unsigned char* tile = stage + TILE_BYTES;
            if (TRANS) {
                const int chunk = (column0 + j * 8) / 8;
                ldmatrix_x2_trans(b, tile + place(true, plain, k + lane % 16, chunk));
            } else {
                const int row = column0 + j * 8 + lane % 8, chunk = k / 8 + lane / 8 % 2;
                ldmatrix_x2(b, tile + place(false, plain, row, chunk));
            }
            for (int i = 0; i < 2; ++i) mma_m16n8k16(sum[i][j], a[i], b[0], b[1]);
        }
    }
}

template <bool TRANS>
__global__ void __launch_bounds__(THREADS) product_kernel(const SelftestProduct args) {
    DYNAMIC_SHARED(shared);
    const int steps = (args.k + DEPTH - 1) / DEPTH;
    const auto stage = [&](int step) {
        return shared + (PLANTED(5) ? step : step % STAGES) * STAGE_BYTES;
    };
    uint32_t a[2][4] = {};
    float sum[2][4][4] = {};
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) fetch<TRANS>(args, stage(step), step);
        cp_async_commit();
    }
    for (int step = 0; step < steps; ++step) {
        const int next = step + STAGES - 1;
        if (PLANTED(3) && next < steps) fetch<TRANS>(args, stage(next), next);
        if (PLANTED(1)) {
            cp_async_wait<STAGES - 1>();
        } else {
            cp_async_wait<STAGES - 2>();
        }
        if (!PLANTED(2)) __syncthreads();
        if (!PLANTED(3) && next < steps) fetch<TRANS>(args, stage(next), next);
        cp_async_commit();
        multiply<TRANS>(args, stage(step), step, a, sum);
    }
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
            for (int e = 0; e < 4; ++e) {
                const int row = blockIdx.y * TILE + warp / 2 * 32 + i * 16 + lane / 4 + e / 2 * 8;
                const int column =
                    blockIdx.x * TILE + warp % 2 * 32 + j * 8 + lane % 4 * 2 + e % 2;
                if (row < args.m && column < args.n) {
                    args.out[int64_t(row) * args.n + column] = sum[i][j][e];
                }
            }
        }
    }
}

template <bool TRANS>
int32_t start(RoclipStream stream, const SelftestProduct* args) {
    if (args->bug < 0 || args->bug > MAX_BUG(9)) return ROCLIP_REFUSED;
    const int row = TRANS ? args->n : args->k;
    if (args->k % 8 || row % 8 || !aligned(16, args->a, args->b)) return ROCLIP_REFUSED;
    const dim3 grid(unsigned(ceil_div(args->n, TILE)), unsigned(ceil_div(args->m, TILE)));
    return launch<product_kernel<TRANS>>(stream, grid, dim3(THREADS), STAGES * STAGE_BYTES, *args);
}

}  // namespace

int32_t selftest_product(RoclipStream stream, const SelftestProduct* args) {
    return start<false>(stream, args);
}

int32_t selftest_product_trans(RoclipStream stream, const SelftestProduct* args) {
    return start<true>(stream, args);
}

}  // namespace ROCLIP_BUILD
