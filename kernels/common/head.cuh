// Rows of one attention head on their way to the tensor cores: in shared memory, in registers, and
// the products of the two.
//
// A head has up to HD columns, HD a multiple of 16; what lies past its real width or a sequence
// is zero. Sixteen rows make a tile: a warp holds them as the left operands of mma.m16n8k16, for
// every 16 columns four registers a lane, rows lane / 4 and lane / 4 + 8. In shared memory rows lie
// HD + 8 elements apart, so that ldmatrix meets no bank conflict. VECTOR: whether width and
// alignment allow CHUNK elements to be moved at once.
#pragma once

#include "cuda.cuh"

#include <cstring>

namespace ROCLIP_BUILD {

constexpr int TILE = 16;  // rows that a warp holds
constexpr int CHUNK = 8;  // elements that are copied at once

// Elements from row to row in shared memory.
template <int HD>
constexpr int STRIDE = HD + CHUNK;

// Starts copying `len` rows to shared memory, and zeros up to `padded` rows.
template <int HD, bool VECTOR>
__device__ __forceinline__ void copy_rows(bf16* to, const bf16* from, uint32_t stride,
                                          int len, int padded, int head_dim) {
    constexpr int CHUNKS = HD / CHUNK;
    for (int i = threadIdx.x; i < padded * CHUNKS; i += blockDim.x) {
        const int row = i / CHUNKS, col = i % CHUNKS * CHUNK;
        const bool inside = row < len && col < head_dim;
        const bf16* at = inside ? from + row * stride + col : from;
        bf16* there = to + row * STRIDE<HD> + col;
        if constexpr (VECTOR) {
            cp_async16(there, at, inside);
        } else {
            for (int e = 0; e < CHUNK; ++e) {
                there[e] = inside && col + e < head_dim ? at[e] : to_bf16(0.f);
            }
        }
    }
}

// Reads a tile, of which `rows` rows exist; zeros for the others.
template <int HD, bool VECTOR>
__device__ __forceinline__ void load_rows(uint32_t (&x)[HD / 16][4], const bf16* from,
                                          uint32_t stride, int rows, int head_dim) {
    const int lane = int(threadIdx.x % WARP), first = lane % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = lane / 4 + h * 8, cols = row < rows ? head_dim - (VECTOR ? 0 : first) : 0;
        const bf16* const at = from + (row * stride + first);
#pragma unroll
        for (int j = 0; j < HD / 8; ++j) {
            uint32_t& pair = x[j / 2][j % 2 * 2 + h];
            pair = 0;
            if (j * 8 >= cols) continue;
            if constexpr (VECTOR) {
                const Vec<bf16, 2> both = load<2>(at + j * 8);
                memcpy(&pair, &both, sizeof pair);
            } else {
                const float right = j * 8 + 1 < cols ? to_float(at[j * 8 + 1]) : 0.f;
                pair = pack_bf16(to_float(at[j * 8]), right);
            }
        }
    }
}

// Writes the first `rows` rows of a tile of sums, rows lane / 4 + 8 h times factor[h].
template <int HD, bool VECTOR>
__device__ __forceinline__ void store_rows(bf16* to, uint32_t stride, const float (&x)[HD / 8][4],
                                           const float (&factor)[2], int rows, int head_dim) {
    const int lane = int(threadIdx.x % WARP), first = lane % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = lane / 4 + h * 8, cols = row < rows ? head_dim - (VECTOR ? 0 : first) : 0;
        bf16* const at = to + (row * stride + first);
#pragma unroll
        for (int j = 0; j < HD / 8; ++j) {
            if (j * 8 >= cols) continue;
            const Vec<bf16, 2> pair = {to_bf16(x[j][2 * h] * factor[h]),
                                       to_bf16(x[j][2 * h + 1] * factor[h])};
            if constexpr (VECTOR) {
                store(at + j * 8, pair);
            } else {
                at[j * 8] = pair[0];
                if (j * 8 + 1 < cols) at[j * 8 + 1] = pair[1];
            }
        }
    }
}

// s = x y^T for the first `tiles` of N tiles of rows of y; zero for the others.
template <int HD, int N>
__device__ __forceinline__ void scores(float (&s)[2 * N][4], const uint32_t (&x)[HD / 16][4],
                                       const bf16* y, int tiles) {
    const int lane = int(threadIdx.x % WARP);
    y += (lane % 8 + lane / 16 * 8) * STRIDE<HD> + lane / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[2 * n][e] = s[2 * n + 1][e] = 0.f;
        if (n >= tiles) continue;
#pragma unroll
        for (int k = 0; k < HD / 16; ++k) {
            uint32_t b[4];
            ldmatrix_x4(b, y + n * TILE * STRIDE<HD> + k * 16);
            mma_m16n8k16(s[2 * n], x[k], b[0], b[1]);
            mma_m16n8k16(s[2 * n + 1], x[k], b[2], b[3]);
        }
    }
}

// sum += p y, where p is 16 x 16 and y 16 rows in shared memory.
template <int HD>
__device__ __forceinline__ void accumulate(float (&sum)[HD / 8][4], const float (&left)[4],
                                           const float (&right)[4], const bf16* y) {
    const int lane = int(threadIdx.x % WARP);
    const uint32_t p[4] = {pack_bf16(left[0], left[1]), pack_bf16(left[2], left[3]),
                           pack_bf16(right[0], right[1]), pack_bf16(right[2], right[3])};
    y += lane % 16 * STRIDE<HD> + lane / 16 * 8;
#pragma unroll
    for (int j = 0; j < HD / 16; ++j) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, y + j * 16);
        mma_m16n8k16(sum[2 * j], p, b[0], b[1]);
        mma_m16n8k16(sum[2 * j + 1], p, b[2], b[3]);
    }
}

}  // namespace ROCLIP_BUILD
