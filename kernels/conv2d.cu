// conv2d: convolutions of 3 x 3 with a border of one pixel, channels last.
//
//   forward          y[n, i, j, o] = sum over c, a, b of W[o, c, a, b] x[n, s*i+a-1, s*j+b-1, c]
//   backward_input   dx[n, i, j, c] = sum over o, a, b of W[o, c, 2-a, 2-b] dy[n, i+a-1, j+b-1, o]
//   backward_weight  dW[o, c, a, b] += sum over n, i, j of dy[n, i, j, o] x[n, s*i+a-1, s*j+b-1, c]
//
// What lies outside a picture is zero; `pictures` read x as [N, 3, H, W] in f32, rounded to bf16.
//
// Tensors   in roclip.h; `packed` and `partial` are scratch.
// Requires  extents of at least 1, stride 1 or 2, 1 <= parts <= ROCLIP_PARTS.
// Launch    a thread an element of the result; of a gradient of weights also a part of the pixels,
//           which `add_parts` adds up.
// Numerics  products exact, sums f32, one rounding; the sum over pixels is cut by `parts`.
// Twins     src/backend/{ops,cpu,cuda}/conv2d.rs, tests/ops/conv2d.rs
#include "common/add_parts.cuh"
#include "common/conv2d.cuh"

namespace ROCLIP_BUILD {
namespace {

using conv2d::SIDE, conv2d::TAPS;
constexpr int THREADS = 256;

// The other side of a product, whose pixels are the result's times the stride; Element is what
// memory holds.
template <class Element>
struct Source {
    const Element* at;
    int height, width, channels, stride;
};

// Channels last.
__device__ __forceinline__ float pixel(const Source<bf16>& s, int64_t n, int y, int x, int c) {
    return to_float(s.at[((n * s.height + y) * s.width + x) * s.channels + c]);
}

// Planes.
__device__ __forceinline__ float pixel(const Source<float>& s, int64_t n, int y, int x, int c) {
    const float value = s.at[((n * s.channels + c) * s.height + y) * s.width + x];
    return to_float(to_bf16(value));
}

// What tap t of pixel p of the result reads: calls use(n, y, x), unless that is outside.
template <class Element, class Use>
__device__ __forceinline__ void at_tap(const Source<Element>& s, int64_t p, int t, Use use) {
    const int across = (s.width + s.stride - 1) / s.stride;
    const int down = (s.height + s.stride - 1) / s.stride;
    const int x = int(p % across) * s.stride + t % SIDE - 1;
    const int y = int(p / across % down) * s.stride + t / SIDE - 1;
    if (x >= 0 && y >= 0 && x < s.width && y < s.height) use(p / across / down, y, x);
}

// ------------------------------------------------------------------------ forward, backward_input

template <class Element>
struct Gather {
    Source<Element> x;
    const bf16* w;
    bf16* y;  // [pixels, outputs]
    int64_t pixels;
    int outputs;
};

// FLIPPED: w is [channels of x, outputs, 3, 3], and read backwards.
template <class Element, bool FLIPPED>
__global__ void __launch_bounds__(THREADS) conv2d_any_kernel(Gather<Element> g) {
    const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= g.pixels * g.outputs) return;
    const int64_t o = i % g.outputs;
    float sum = 0;
    for (int t = 0; t < TAPS; ++t) {
        at_tap(g.x, i / g.outputs, t, [&](int64_t n, int y, int x) {
            for (int c = 0; c < g.x.channels; ++c) {
                const int64_t w = FLIPPED ? (c * int64_t(g.outputs) + o) * TAPS + TAPS - 1 - t
                                          : (o * g.x.channels + c) * TAPS + t;
                sum += to_float(g.w[w]) * pixel(g.x, n, y, x, c);
            }
        });
    }
    g.y[i] = to_bf16(sum);
}

template <bool FLIPPED, class Element>
int32_t start_any(RoclipStream stream, const Gather<Element>& g) {
    const int64_t blocks = ceil_div(g.pixels * g.outputs, THREADS);
    return launch<conv2d_any_kernel<Element, FLIPPED>>(stream, blocks, THREADS, 0, g);
}

// -------------------------------------------------------------------------------- backward_weight

template <class Element>
struct Correlate {
    Source<Element> x;
    const bf16* dy;  // [pixels, outputs]
    float* partial;
    int64_t pixels;
    int outputs;
};

// Grid: elements of dW, parts of the pixels.
template <class Element>
__global__ void __launch_bounds__(THREADS) conv2d_weight_any_kernel(Correlate<Element> g) {
    const int64_t elements = int64_t(g.outputs) * g.x.channels * TAPS;
    const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= elements) return;
    const int64_t o = i / TAPS / g.x.channels;
    const int c = int(i / TAPS % g.x.channels);
    const int64_t end = g.pixels * (blockIdx.y + 1) / gridDim.y;
    float sum = 0;
    for (int64_t p = g.pixels * blockIdx.y / gridDim.y; p < end; ++p) {
        at_tap(g.x, p, int(i % TAPS), [&](int64_t n, int y, int x) {
            sum += to_float(g.dy[p * g.outputs + o]) * pixel(g.x, n, y, x, c);
        });
    }
    g.partial[blockIdx.y * elements + i] = sum;
}

template <class Element>
int32_t start_any(RoclipStream stream, const Correlate<Element>& g, int parts, float* dw) {
    const int64_t elements = int64_t(g.outputs) * g.x.channels * TAPS;
    const dim3 grid(ceil_div(elements, THREADS), parts);
    const int32_t error =
        launch<conv2d_weight_any_kernel<Element>>(stream, grid, THREADS, 0, g);
    return error == 0 ? start_add_parts(stream, {g.partial, dw, elements, parts}) : error;
}

template <class Args>
int64_t pixels_out(const Args& a) {
    return a.images_n * ceil_div(a.height, a.stride) * ceil_div(a.width, a.stride);
}

}  // namespace

int32_t conv2d_forward(RoclipStream stream, const Conv2dForward* a) {
    if (a->kernel != ROCLIP_PLAIN && a->stride == 1) {
        const int32_t error = conv2d::start(
            stream, {a->x, a->w, a->packed, a->y, a->images_n, a->height, a->width, a->inputs,
                     a->outputs, false});
        if (error != ROCLIP_REFUSED) return error;
    }
    const Source<bf16> x = {a->x, a->height, a->width, a->inputs, a->stride};
    return start_any<false, bf16>(stream, {x, a->w, a->y, pixels_out(*a), a->outputs});
}

int32_t conv2d_backward_input(RoclipStream stream, const Conv2dBackwardInput* a) {
    if (a->kernel != ROCLIP_PLAIN) {
        const int32_t error = conv2d::start(
            stream, {a->dy, a->w, a->packed, a->dx, a->images_n, a->height, a->width, a->outputs,
                     a->inputs, true});
        if (error != ROCLIP_REFUSED) return error;
    }
    const Source<bf16> dy = {a->dy, a->height, a->width, a->outputs, 1};
    const int64_t pixels = a->images_n * a->height * a->width;
    return start_any<true, bf16>(stream, {dy, a->w, a->dx, pixels, a->inputs});
}

int32_t conv2d_backward_weight(RoclipStream stream, const Conv2dBackwardWeight* a) {
    if (a->kernel != ROCLIP_PLAIN && a->stride == 1) {
        const int32_t error = conv2d::start(
            stream, {a->x, a->dy, a->partial, a->images_n, a->height, a->width, a->inputs,
                     a->outputs, a->parts});
        const int64_t elements = int64_t(a->outputs) * a->inputs * TAPS;
        if (error == 0) return start_add_parts(stream, {a->partial, a->dw, elements, a->parts});
        if (error != ROCLIP_REFUSED) return error;
    }
    const Source<bf16> x = {a->x, a->height, a->width, a->inputs, a->stride};
    const Correlate<bf16> product = {x, a->dy, a->partial, pixels_out(*a), a->outputs};
    return start_any(stream, product, a->parts, a->dw);
}

int32_t conv2d_forward_pictures(RoclipStream stream, const Conv2dForwardPictures* a) {
    if (a->kernel != ROCLIP_PLAIN) {
        const int32_t error = conv2d::start(stream, *a);
        if (error != ROCLIP_REFUSED) return error;
    }
    const Source<float> x = {a->images, a->height, a->width, 3, a->stride};
    return start_any<false, float>(stream, {x, a->w, a->y, pixels_out(*a), a->outputs});
}

int32_t conv2d_backward_weight_pictures(
    RoclipStream stream, const Conv2dBackwardWeightPictures* a) {
    if (a->kernel != ROCLIP_PLAIN) {
        const int32_t error = conv2d::start(stream, *a);
        const int64_t elements = int64_t(a->outputs) * 3 * TAPS;
        if (error == 0) return start_add_parts(stream, {a->partial, a->dw, elements, a->parts});
        if (error != ROCLIP_REFUSED) return error;
    }
    const Source<float> x = {a->images, a->height, a->width, 3, a->stride};
    const Correlate<float> product = {x, a->dy, a->partial, pixels_out(*a), a->outputs};
    return start_any(stream, product, a->parts, a->dw);
}

}  // namespace ROCLIP_BUILD
