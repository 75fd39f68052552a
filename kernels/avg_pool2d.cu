// avg_pool2d: each 2 x 2 pixels to their mean, channels last.
//
//   forward   y[line, j, c] = (x[line, 0, j, 0, c] + x[line, 0, j, 1, c]
//                              + x[line, 1, j, 0, c] + x[line, 1, j, 1, c]) / 4
//   backward  a quarter of dy for each of the four
//
// Tensors   in roclip.h: as H and W are even, a line of y is two whole lines of x.
// Requires  every extent >= 1; y overlaps not x. The launcher refuses more than 2^31 pixels of y.
// Launch    blocks of 256 threads over y; 8 channels a thread where width % 8 == 0 and pointers lie
//           at 16 bytes, else one.
// Mapping   thread -> V neighbouring channels of a pixel of y, four loads or stores of them in x.
// Barriers  none.
// Numerics  f32, (upper pair + lower pair) / 4, one rounding to bf16.
// Cost      bytes an element of y: 10; backward 10, and 18 where dx is added to.
// Twins     src/backend/{ops,cpu,cuda}/avg_pool2d.rs, tests/ops/avg_pool2d.rs
#include "common/floats.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int THREADS = 256;

// Calls use(element of y, element of x that is its upper left, elements in a line of x).
template <int V, class Args, class Use>
__device__ __forceinline__ void with_pixel(const Args& a, Use use) {
    const int64_t at = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * V;
    if (at >= a.lines * a.across * a.width) return;
    const uint32_t pixel = uint32_t(at / a.width), line = pixel / uint32_t(a.across);
    const int64_t across = int64_t(2) * a.across * a.width;
    // pixel (line, j) of y is (2*line, 2*j) of x, whose lines are twice as long
    const int64_t corner = 2 * (int64_t(pixel) * a.width + line * (across / 2));
    use(at, corner + at % a.width, across);
}

template <int V>
__global__ void __launch_bounds__(THREADS) avg_pool2d_forward_kernel(AvgPool2dForward a) {
    with_pixel<V>(a, [&](int64_t at, int64_t corner, int64_t across) {
        Vec<bf16, V> x[2][2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[i / 2][i % 2] = load<V>(a.x + corner + i / 2 * across + i % 2 * a.width);
        }
        float y[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const float upper = to_float(x[0][0][i]) + to_float(x[0][1][i]);
            const float lower = to_float(x[1][0][i]) + to_float(x[1][1][i]);
            y[i] = (upper + lower) * 0.25f;
        }
        store_floats(a.y + at, y);
    });
}

template <int V, bool ADD>
__global__ void __launch_bounds__(THREADS) avg_pool2d_backward_kernel(AvgPool2dBackward a) {
    with_pixel<V>(a, [&](int64_t at, int64_t corner, int64_t across) {
        const auto place = [&](int i) { return corner + i / 2 * across + i % 2 * a.width; };
        const Vec<bf16, V> dy = load<V>(a.dy + at);
        Vec<bf16, V> old[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (ADD) old[i] = load<V>(a.dx + place(i));
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float dx[V];
#pragma unroll
            for (int c = 0; c < V; ++c) {
                const float quarter = to_float(dy[c]) * 0.25f;
                dx[c] = ADD ? to_float(old[i][c]) + quarter : quarter;
            }
            store_together(a.dx + place(i), dx);
        }
    });
}

// start(V), a constant of its type, for the widest V that shape and pointers allow.
template <class Args, class Start, class... Pointers>
int32_t with_channels(const Args& a, Start start, Pointers... pointers) {
    if (a.lines * a.across > INT32_MAX) return ROCLIP_REFUSED;
    const bool wide = a.width % LANE == 0 && aligned(16, pointers...);
    return wide ? start(std::integral_constant<int, LANE>{})
                : start(std::integral_constant<int, 1>{});
}

}  // namespace

int32_t avg_pool2d_forward(RoclipStream stream, const AvgPool2dForward* a) {
    const auto start = [&](auto v) {
        const int64_t blocks = ceil_div(a->lines * a->across * a->width, THREADS * v);
        return launch<avg_pool2d_forward_kernel<v>>(stream, blocks, THREADS, 0, *a);
    };
    return with_channels(*a, start, a->x, a->y);
}

int32_t avg_pool2d_backward(RoclipStream stream, const AvgPool2dBackward* a) {
    const auto start = [&](auto v) {
        const int64_t blocks = ceil_div(a->lines * a->across * a->width, THREADS * v);
        return a->add
                   ? launch<avg_pool2d_backward_kernel<v, true>>(stream, blocks, THREADS, 0, *a)
                   : launch<avg_pool2d_backward_kernel<v, false>>(stream, blocks, THREADS, 0, *a);
    };
    return with_channels(*a, start, a->dy, a->dx);
}

}  // namespace ROCLIP_BUILD
