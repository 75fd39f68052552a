// l2norm: rows to length 1.
//
//   y = x * inv_norm,  inv_norm = 1 / max(|x|, eps)
//   dx = (dy - <dy, y> * y) * inv_norm, or added to dx; exact where |x| > eps
//
// Tensors   in roclip.h.
// Requires  rows >= 1, width >= 1. y may be x, and dx may be y or dy.
// Launch    blocks of 8 warps, a row a warp; in registers where width % 8 == 0, width <= 2048 and
//           pointers lie at 16 bytes, else over memory. Where dx is added to, it is read last.
// Mapping   lane -> 8 neighbouring columns in every 256, one 16-byte access each.
// Barriers  none.
// Numerics  f32: the squares of a row must not overflow, |x| < 10^19. One rounding to bf16. NaN in
//           a row makes inv_norm and all of y NaN.
// Cost      bytes an element: 4 forward, 6 backward; one pass.
// Twins     src/backend/{ops,cpu,cuda}/l2norm.rs, tests/ops/l2norm.rs
#include "common/floats.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

__device__ __forceinline__ int64_t my_row() {
    return int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
}

__device__ __forceinline__ float inverse(float squares, float eps) {
    const float norm = sqrtf(squares);
    return 1 / (norm < eps ? eps : norm);  // NaN is not below eps, and stays
}

template <int CHUNKS>
__global__ void __launch_bounds__(THREADS) l2norm_forward_kernel(L2normForward a) {
    const int64_t row = my_row();
    if (row >= a.rows) return;  // a warp as a whole
    Row<CHUNKS> x;
    x.load(a.x + row * a.width, a.width);
    float squares = 0;
    for_chunks<CHUNKS>(a.width, [&](int k, int) {
#pragma unroll
        for (int i = 0; i < LANE; ++i) squares += to_float(x.at[k][i]) * to_float(x.at[k][i]);
    });
    const float inv = inverse(warp_sum(squares), a.eps);
    for_chunks<CHUNKS>(a.width, [&](int k, int column) {
        float y[LANE];
#pragma unroll
        for (int i = 0; i < LANE; ++i) y[i] = to_float(x.at[k][i]) * inv;
        store_floats(a.y + row * a.width + column, y);
    });
    if (threadIdx.x % WARP == 0) a.inv_norm[row] = inv;
}

__global__ void __launch_bounds__(THREADS) l2norm_forward_any_kernel(L2normForward a) {
    const int64_t row = my_row();
    if (row >= a.rows) return;
    const int lane = threadIdx.x % WARP;
    const bf16* x = a.x + row * a.width;
    float squares = 0;
    for (int c = lane; c < a.width; c += WARP) squares += to_float(x[c]) * to_float(x[c]);
    const float inv = inverse(warp_sum(squares), a.eps);
    for (int c = lane; c < a.width; c += WARP) {
        a.y[row * a.width + c] = to_bf16(to_float(x[c]) * inv);
    }
    if (lane == 0) a.inv_norm[row] = inv;
}

template <int CHUNKS>
__global__ void __launch_bounds__(THREADS, CHUNKS <= 6 ? 2 : 1)
    l2norm_backward_kernel(L2normBackward a) {
    const int64_t row = my_row();
    if (row >= a.rows) return;
    Row<CHUNKS> y, dy;
    y.load(a.y + row * a.width, a.width);
    dy.load(a.dy + row * a.width, a.width);
    const float inv = a.inv_norm[row];
    float along = 0;
    for_chunks<CHUNKS>(a.width, [&](int k, int) {
#pragma unroll
        for (int i = 0; i < LANE; ++i) along += to_float(dy.at[k][i]) * to_float(y.at[k][i]);
    });
    along = warp_sum(along);
    for_chunks<CHUNKS>(a.width, [&](int k, int column) {
        float dx[LANE] = {};
        if (a.add) load_floats(a.dx + row * a.width + column, dx);
#pragma unroll
        for (int i = 0; i < LANE; ++i) {
            dx[i] += (to_float(dy.at[k][i]) - along * to_float(y.at[k][i])) * inv;
        }
        store_floats(a.dx + row * a.width + column, dx);
    });
}

__global__ void __launch_bounds__(THREADS) l2norm_backward_any_kernel(L2normBackward a) {
    const int64_t row = my_row();
    if (row >= a.rows) return;
    const int lane = threadIdx.x % WARP;
    const bf16 *y = a.y + row * a.width, *dy = a.dy + row * a.width;
    const float inv = a.inv_norm[row];
    float along = 0;
    for (int c = lane; c < a.width; c += WARP) along += to_float(dy[c]) * to_float(y[c]);
    along = warp_sum(along);
    for (int c = lane; c < a.width; c += WARP) {
        bf16* const dx = a.dx + row * a.width + c;
        const float before = a.add ? to_float(*dx) : 0.f;
        *dx = to_bf16(before + (to_float(dy[c]) - along * to_float(y[c])) * inv);
    }
}

}  // namespace

int32_t l2norm_forward(RoclipStream stream, const L2normForward* a) {
    const int64_t blocks = ceil_div(a->rows, WARPS);
    if (!fits_registers(a->width, a->x, a->y)) {
        return launch<l2norm_forward_any_kernel>(stream, blocks, THREADS, 0, *a);
    }
    return with_chunks(a->width, [&](auto n) {
        return launch<l2norm_forward_kernel<n>>(stream, blocks, THREADS, 0, *a);
    });
}

int32_t l2norm_backward(RoclipStream stream, const L2normBackward* a) {
    const int64_t blocks = ceil_div(a->rows, WARPS);
    if (!fits_registers(a->width, a->y, a->dy, a->dx)) {
        return launch<l2norm_backward_any_kernel>(stream, blocks, THREADS, 0, *a);
    }
    return with_chunks(a->width, [&](auto n) {
        return launch<l2norm_backward_kernel<n>>(stream, blocks, THREADS, 0, *a);
    });
}

}  // namespace ROCLIP_BUILD
