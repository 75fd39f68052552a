// attention.cu: softmax(Q K^T / sqrt(d)) V of every sequence and head; no score leaves the chip.
//
//   forward   P = exp(S - lse), S = Q K^T / sqrt(d), out = P V,  lse = log sum_j exp(S[i,j])
//   backward  delta[i] = <dout[i], out[i]>,  dS = P (dout V^T - delta)
//             dQ = dS K / sqrt(d),  dK = dS^T Q / sqrt(d),  dV = P^T dout
//
//   tensor      shape              dtype  role
//   cu_seqlens  [sequences + 1]    u32    in   rising by 1 to max_len
//   qkv         [S, 3, H*d]        bf16   in
//   out, dout   [S, H*d]           bf16   out of the forward; both into the backward
//   lse         [S, H]             f32    out of the forward, into the backward
//   dqkv        [S, 3, H*d]        bf16   out
//
// Requires  1 <= d <= ROCLIP_MAX_HEAD_DIM, sequences*H < 2^31, and that two arrays of max_len rows
//           of d elements fit in a block's shared memory: 784 tokens for d = 64, 416 for 128 in
//           227 KB. Reads 16 bytes at a time where d % 8 == 0 and the pointers are aligned, else
//           element by element. d is padded with zeros to HD: 32, 64, 96 or 128.
// Launch    forward sequences*H blocks; backward twice that: role 0 makes dQ, role 1 dK and dV.
// Mapping   block -> a sequence and as many of its heads as fit: one of max_len tokens, several if
//           it is shorter; the blocks left over end at once. The other side's rows (keys and
//           values; in role 1 queries and dout) lie in shared memory; warp -> 16 rows at a time of
//           its own side, in registers, against all others. Role 1 is role 0 with queries and keys
//           exchanged.
// Barriers  one, behind the copies.
// Numerics  products exact, sums f32 in a fixed order. Forward: running maximum over steps of 64
//           keys. P and dS are rounded to bf16 for the second product, the softmax's sum is not.
//           No atomics: every gradient has one owner.
// Cost      4*T^2*d flop a head forward, 14*T^2*d backward (S and dP are made in both roles); half
//           if causal, to whole tiles.
// Twins     src/backend/{ops,cpu,cuda}/attention.rs, tests/ops/attention.rs
// Source    FlashAttention (Dao et al. 2022; Dao 2023), for sequences that fit in shared memory

#include "common/head.cuh"
#include "common/launch.cuh"

#include <algorithm>
#include <type_traits>

namespace ROCLIP_BUILD {
namespace {

constexpr int KEYS = 64;      // keys of one step of the forward
constexpr int MAX_WARPS = 6;  // of a block; two such blocks have 168 registers a thread
constexpr int MIN_ROWS = 64;  // that shared memory has room for, so that short sequences share it
// Beyond what fits in shared memory, and few enough that 32 bits number a sequence's elements.
constexpr int MAX_ROWS = 4096, MAX_HEADS = 1024;

// A launcher's arguments and what it decided.
template <class Args>
struct Call {
    Args a;
    int32_t rows;            // room in shared memory, a multiple of TILE
    uint32_t width, packed;  // elements of a token in out, in qkv
    float scale, scale2;     // 1 / sqrt(d); the same for exponents of 2
};

// The part of the work that a block does: some heads of a sequence.
struct Part {
    int64_t begin;    // first token
    int len, padded;  // tokens; to whole tiles
    int head, heads;  // first head; how many
};

__device__ __forceinline__ Part part(const uint32_t* cu_seqlens, int heads, int rows) {
    const int sequence = int(blockIdx.x) / heads, turn = int(blockIdx.x) % heads;
    const int64_t begin = cu_seqlens[sequence];
    const int len = int(cu_seqlens[sequence + 1] - begin), padded = (len + TILE - 1) / TILE * TILE;
    const int fit = rows / padded, turns = (heads + fit - 1) / fit;
    const int each = (heads + turns - 1) / turns, head = turn * each;
    return {begin, len, padded, head, head < heads ? min(each, heads - head) : 0};
}

// Hides scores from rows that do not see them: rows from `row`, others from `col`, of `len`.
template <bool OWN_KEYS, int N>
__device__ __forceinline__ void mask(float (&s)[N][4], int row, int col, int len, bool causal) {
    const int lane = int(threadIdx.x % WARP), first = col + lane % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int i = row + lane / 4 + h * 8;
        const int low = causal && OWN_KEYS ? i - first : 0;  // a query sees its own key
        const int high = (causal && !OWN_KEYS ? min(len, i + 1) : len) - first;
#pragma unroll
        for (int j = 0; j < N; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int c = j * 8 + e;
                if (c < low || c >= high) s[j][2 * h + e] = -INFINITY;
            }
        }
    }
}

// ---------------------------------------------------------------------------------------- forward

// One step of the running softmax: scores become probabilities relative to the new maximum, and
// what was summed before is scaled to it.
template <int HD>
__device__ __forceinline__ void softmax(float (&s)[KEYS / 8][4], float (&out)[HD / 8][4],
                                        float (&max)[2], float (&sum)[2], float scale2) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float top = max[h];
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) top = fmaxf(top, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
        const float before = exp2_approx((max[h] - top) * scale2);
        max[h] = top;
        sum[h] *= before;
#pragma unroll
        for (int j = 0; j < HD / 8; ++j) out[j][2 * h] *= before, out[j][2 * h + 1] *= before;
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
            for (int e = 2 * h; e < 2 * h + 2; ++e) {
                s[j][e] = exp2_approx(fmaf(s[j][e], scale2, -top * scale2));
                sum[h] += s[j][e];
            }
        }
    }
}

// Queries [own, own + 16) of a head against the keys and values in shared memory.
template <int HD, bool VECTOR>
__device__ __forceinline__ void forward_tile(const Call<AttentionForward>& call, const Part& p,
                                             int head, int own, const bf16* k, const bf16* v) {
    const AttentionForward& a = call.a;
    const int lane = int(threadIdx.x % WARP), rows = p.len - own;
    const int64_t first = p.begin + own;
    uint32_t q[HD / 16][4];
    load_rows<HD, VECTOR>(q, a.qkv + first * call.packed + head * a.head_dim, call.packed, rows,
                          a.head_dim);
    float out[HD / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
    const int end = a.causal ? own + TILE : p.padded;
    for (int at = 0; at < end; at += KEYS) {
        float s[KEYS / 8][4];
        const int tiles = (end - at) / TILE;
        scores<HD, KEYS / TILE>(s, q, k + at * STRIDE<HD>, tiles);
        if (at + KEYS > (a.causal ? own + 1 : p.len)) {  // not every row sees all of them
            mask<false>(s, own, at, p.len, a.causal);
        }
        softmax<HD>(s, out, max, sum, call.scale2);
#pragma unroll
        for (int n = 0; n < KEYS / TILE; ++n) {
            if (n >= tiles) continue;
            accumulate<HD>(out, s[2 * n], s[2 * n + 1], v + (at + n * TILE) * STRIDE<HD>);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        sum[h] += __shfl_xor_sync(ALL_LANES, sum[h], 1);
        sum[h] += __shfl_xor_sync(ALL_LANES, sum[h], 2);
        const int row = lane / 4 + h * 8;
        if (lane % 4 == 0 && row < rows) {
            a.lse[(first + row) * a.heads + head] = max[h] * call.scale + logf(sum[h]);
        }
    }
    const float inverse[2] = {1.f / sum[0], 1.f / sum[1]};
    store_rows<HD, VECTOR>(a.out + first * call.width + head * a.head_dim, call.width, out, inverse,
                           rows, a.head_dim);
}

template <int HD, bool VECTOR>
__global__ void __launch_bounds__(MAX_WARPS * WARP, HD <= 64 ? 2 : 1)
    attention_forward_kernel(Call<AttentionForward> call) {
    DYNAMIC_SHARED(shared);
    const AttentionForward& a = call.a;
    const Part p = part(a.cu_seqlens, a.heads, call.rows);
    if (p.heads == 0) return;
    bf16* const k = reinterpret_cast<bf16*>(shared);
    bf16* const v = k + call.rows * STRIDE<HD>;
    for (int h = 0; h < p.heads; ++h) {
        const bf16* from = a.qkv + p.begin * call.packed + call.width + (p.head + h) * a.head_dim;
        const int at = h * p.padded * STRIDE<HD>;
        copy_rows<HD, VECTOR>(k + at, from, call.packed, p.len, p.padded, a.head_dim);
        copy_rows<HD, VECTOR>(v + at, from + call.width, call.packed, p.len, p.padded, a.head_dim);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    const int warp = int(threadIdx.x / WARP), warps = int(blockDim.x / WARP);
#pragma unroll 1
    for (int at = warp * TILE; at < p.heads * p.padded; at += warps * TILE) {
        const int h = at / p.padded, base = h * p.padded * STRIDE<HD>;
        forward_tile<HD, VECTOR>(call, p, p.head + h, at % p.padded, k + base, v + base);
    }
}

// --------------------------------------------------------------------------------------- backward

// What the backward has in shared memory, of one head.
struct Others {
    const bf16* first;   // keys, or queries
    const float* lse2;   // of the queries, in base 2
    int second, delta;   // how far behind those lie values, or dout; delta of the queries
};

// Reads lse and computes delta of all queries of a head: eight lanes a row.
template <bool VECTOR>
__device__ __forceinline__ void load_statistics(float* lse2, float* delta,
                                                const Call<AttentionBackward>& call, const Part& p,
                                                int head) {
    const AttentionBackward& a = call.a;
    const int lane = int(threadIdx.x % 8);
    for (int row = int(threadIdx.x / 8); row < p.padded; row += int(blockDim.x / 8)) {
        const int64_t at = ((p.begin + row) * a.heads + head) * a.head_dim;
        float sum = 0.f;
        for (int col = lane * CHUNK; row < p.len && col < a.head_dim; col += 8 * CHUNK) {
            if constexpr (VECTOR) {
                const auto out = load<CHUNK>(a.out + at + col);
                const auto dout = load<CHUNK>(a.dout + at + col);
#pragma unroll
                for (int e = 0; e < CHUNK; ++e) sum += to_float(out[e]) * to_float(dout[e]);
            } else {
#pragma unroll 1
                for (int c = col; c < min(col + CHUNK, a.head_dim); ++c) {
                    sum += to_float(a.out[at + c]) * to_float(a.dout[at + c]);
                }
            }
        }
        for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
        if (lane == 0) {
            delta[row] = sum;
            lse2[row] = row < p.len ? a.lse[(p.begin + row) * a.heads + head] * LOG2E : 0.f;
        }
    }
}

// From scores and dP of 16 x 16: P and dS.
template <bool OWN_KEYS>
__device__ __forceinline__ void softmax_backward(float (&s)[2][4], float (&dp)[2][4],
                                                 const Others& o, int own, int at, float scale2) {
    const int lane = int(threadIdx.x % WARP);
    const int first = OWN_KEYS ? at + lane % 4 * 2 : own + lane / 4;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int query = first + (OWN_KEYS ? j * 8 + e % 2 : e / 2 * 8);
            s[j][e] = exp2_approx(fmaf(s[j][e], scale2, -o.lse2[query]));
            dp[j][e] = s[j][e] * (dp[j][e] - o.lse2[o.delta + query]);
        }
    }
}

// Rows [own, own + 16) of a head against all others: queries, whose dQ it makes, or keys, whose dK
// and dV.
template <int HD, bool VECTOR, bool OWN_KEYS>
__device__ __forceinline__ void backward_tile(const Call<AttentionBackward>& call, const Part& p,
                                              int head, int own, const Others& o) {
    const AttentionBackward& a = call.a;
    const int rows = p.len - own, d = a.head_dim;
    const int64_t token = p.begin + own;
    const int64_t packed = token * call.packed + head * d;  // its query; key and value follow
    const bf16* const second = OWN_KEYS ? a.qkv + packed + 2 * call.width
                                        : a.dout + token * call.width + head * d;
    uint32_t x[HD / 16][4], y[HD / 16][4];
    load_rows<HD, VECTOR>(x, a.qkv + packed + (OWN_KEYS ? call.width : 0), call.packed, rows, d);
    load_rows<HD, VECTOR>(y, second, OWN_KEYS ? call.packed : call.width, rows, d);
    float dx[HD / 8][4] = {}, dy[HD / 8][4] = {};
    const int begin = a.causal && OWN_KEYS ? own : 0;
    const int end = a.causal && !OWN_KEYS ? own + TILE : p.padded;
#pragma unroll 1
    for (int at = begin; at < end; at += TILE) {
        float s[2][4], dp[2][4];
        scores<HD, 1>(s, x, o.first + at * STRIDE<HD>, 1);
        scores<HD, 1>(dp, y, o.first + o.second + at * STRIDE<HD>, 1);
        if (at + TILE > p.len || (a.causal && at == own)) {
            mask<OWN_KEYS>(s, own, at, p.len, a.causal);
        }
        softmax_backward<OWN_KEYS>(s, dp, o, own, at, call.scale2);
        if (OWN_KEYS) accumulate<HD>(dy, s[0], s[1], o.first + o.second + at * STRIDE<HD>);
        accumulate<HD>(dx, dp[0], dp[1], o.first + at * STRIDE<HD>);
    }
    bf16* const to = a.dqkv + packed;
    const float factor[2] = {call.scale, call.scale}, one[2] = {1.f, 1.f};
    store_rows<HD, VECTOR>(to + (OWN_KEYS ? call.width : 0), call.packed, dx, factor, rows, d);
    if (OWN_KEYS) store_rows<HD, VECTOR>(to + 2 * call.width, call.packed, dy, one, rows, d);
}

template <int HD, bool VECTOR, bool OWN_KEYS>
__device__ __forceinline__ void backward(const Call<AttentionBackward>& call, const Part& p,
                                         unsigned char* shared) {
    const AttentionBackward& a = call.a;
    bf16* const first = reinterpret_cast<bf16*>(shared);
    bf16* const second = first + call.rows * STRIDE<HD>;
    float* const lse2 = reinterpret_cast<float*>(second + call.rows * STRIDE<HD>);
    float* const delta = lse2 + call.rows;
    const uint32_t stride = OWN_KEYS ? call.width : call.packed;
    for (int h = 0; h < p.heads; ++h) {
        const int at = h * p.padded * STRIDE<HD>, col = (p.head + h) * a.head_dim;
        const bf16* const q = a.qkv + p.begin * call.packed + col;  // key and value follow
        const bf16* const dout = a.dout + p.begin * call.width + col;
        copy_rows<HD, VECTOR>(first + at, OWN_KEYS ? q : q + call.width, call.packed, p.len,
                              p.padded, a.head_dim);
        copy_rows<HD, VECTOR>(second + at, OWN_KEYS ? dout : q + 2 * call.width, stride, p.len,
                              p.padded, a.head_dim);
    }
    cp_async_commit();
    for (int h = 0; h < p.heads; ++h) {
        load_statistics<VECTOR>(lse2 + h * p.padded, delta + h * p.padded, call, p, p.head + h);
    }
    cp_async_wait<0>();
    __syncthreads();
    const int warp = int(threadIdx.x / WARP), warps = int(blockDim.x / WARP);
#pragma unroll 1
    for (int at = warp * TILE; at < p.heads * p.padded; at += warps * TILE) {
        const int h = at / p.padded, row = h * p.padded;
        const Others o = {first + row * STRIDE<HD>, lse2 + row, call.rows * STRIDE<HD>, call.rows};
        backward_tile<HD, VECTOR, OWN_KEYS>(call, p, p.head + h, at % p.padded, o);
    }
}

template <int HD, bool VECTOR>
__global__ void __launch_bounds__(MAX_WARPS * WARP, HD <= 64 ? 2 : 1)
    attention_backward_kernel(Call<AttentionBackward> call) {
    DYNAMIC_SHARED(shared);
    __shared__ Part p;  // rather than in every thread's registers, which are scarce
    if (threadIdx.x == 0) p = part(call.a.cu_seqlens, call.a.heads, call.rows);
    __syncthreads();
    if (p.heads == 0) return;
    if (blockIdx.y == 0) {
        backward<HD, VECTOR, false>(call, p, shared);
    } else {
        backward<HD, VECTOR, true>(call, p, shared);
    }
}

// -------------------------------------------------------------------------------------- launchers

// Decides how to launch and calls `start(HD, VECTOR, grid, block, bytes, call)`, or refuses.
// `aligned`: whether pointers allow CHUNK elements to be moved at once; `extra`: bytes of shared
// memory a token.
template <class Args, class Start>
int32_t prepare(const Args& a, bool aligned, size_t extra, Start start) {
    const bool some = a.sequences > 0 && a.heads > 0 && a.max_len > 0 && a.head_dim > 0;
    const bool few = int64_t(a.sequences) * a.heads <= INT32_MAX && a.max_len <= MAX_ROWS;
    const bool narrow = a.head_dim <= ROCLIP_MAX_HEAD_DIM && a.heads <= MAX_HEADS;
    if (!some || !few || !narrow) return ROCLIP_REFUSED;
    const uint32_t width = uint32_t(a.heads) * uint32_t(a.head_dim);
    const float scale = 1.f / std::sqrt(float(a.head_dim));
    const int rows = std::max(int(ceil_div(a.max_len, TILE)) * TILE, MIN_ROWS);
    const Call<Args> call = {a, rows, width, 3 * width, scale, scale * LOG2E};
    const int tiles = rows / TILE, rounds = int(ceil_div(tiles, MAX_WARPS));
    const dim3 grid(unsigned(a.sequences) * unsigned(a.heads));
    const dim3 block(unsigned(ceil_div(tiles, rounds) * WARP));
    const auto go = [&](auto hd) -> int32_t {
        const size_t row = 2 * sizeof(bf16) * STRIDE<decltype(hd)::value> + extra;
        const size_t bytes = size_t(rows) * row;
        if (bytes + sizeof(Part) > max_shared()) return ROCLIP_REFUSED;
        return aligned && a.head_dim % CHUNK == 0
                   ? start(hd, std::true_type(), grid, block, bytes, call)
                   : start(hd, std::false_type(), grid, block, bytes, call);
    };
    if (a.head_dim <= 32) return go(std::integral_constant<int, 32>());
    if (a.head_dim <= 64) return go(std::integral_constant<int, 64>());
    if (a.head_dim <= 96) return go(std::integral_constant<int, 96>());
    return go(std::integral_constant<int, 128>());
}

}  // namespace

int32_t attention_forward(RoclipStream stream, const AttentionForward* a) {
    const auto start = [&](auto hd, auto vector, dim3 grid, dim3 block, size_t bytes, auto call) {
        constexpr int HD = decltype(hd)::value;
        constexpr bool VECTOR = decltype(vector)::value;
        return launch<attention_forward_kernel<HD, VECTOR>>(stream, grid, block, bytes, call);
    };
    return prepare(*a, aligned(16, a->qkv, a->out), 0, start);
}

int32_t attention_backward(RoclipStream stream, const AttentionBackward* a) {
    const auto start = [&](auto hd, auto vector, dim3 grid, dim3 block, size_t bytes, auto call) {
        constexpr int HD = decltype(hd)::value;
        constexpr bool VECTOR = decltype(vector)::value;
        const dim3 roles(grid.x, 2);
        return launch<attention_backward_kernel<HD, VECTOR>>(stream, roles, block, bytes, call);
    };
    const bool pointers = aligned(16, a->qkv, a->out, a->dout, a->dqkv);
    return prepare(*a, pointers, 2 * sizeof(float), start);
}

}  // namespace ROCLIP_BUILD
