// gelu: the Gaussian error linear unit, exact or as OpenAI approximated it, element by element.
//
//   erf    y = x * Phi(x)              dx = dy * (Phi(x) + x * phi(x))
//   quick  y = x * s, s = sigmoid(1.702 x)  dx = dy * (s + 1.702 x * s * (1 - s))
//
// Tensors   in roclip.h.
// Requires  len >= 0. y may be x, and dx may be x or dy.
// Launch    blocks of 256 threads; one element at a time where a pointer is not at 16 bytes.
// Mapping   thread -> UNROLL times 8 neighbouring elements, a block's width apart.
// Barriers  none.
// Numerics  f32, one rounding to bf16. The tail of Phi below 0 is bell(x) * P(1 / (1 + 0.3 |x|))
//           with bell(x) = exp(-x^2 / 2): P is fitted so that the largest relative error over
//           0 <= |x| <= 13.4 is least (2^-19); the argument of the exponential (x^2 is exact) adds
//           x^2 / 2 * 2^-23. So Phi is right to a relative 2^-17 where it is at least 2^-126, a
//           256th of the rounding of the result; a tail below that is 0. The quick sigmoid is right
//           to (4 + 2 |x|) * 2^-23.
// Cost      4 bytes an element forward, 6 backward. At an H200's copy speed an SM has room for 27
//           instructions an element forward; these are about 20, erfcf would be 45 and more. That
//           is why the function is its own.
// Twins     src/backend/{ops,cpu,cuda}/gelu.rs, tests/ops/gelu.rs
#include "common/floats.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int THREADS = 256;
constexpr int UNROLL = 2;
constexpr int BLOCKS = 5;  // an SM: 40 KB of loads on their way

struct Erf {
    // The tail Phi(-|x|) is bell times this.
    static __device__ __forceinline__ float over_bell(float t) {
        const float u = reciprocal_approx(1 + 0.3f * t);
        float p = -0.0845932066f;
        p = p * u + 0.240572706f;
        p = p * u - 0.0486442968f;
        p = p * u + 0.164764389f;
        p = p * u + 0.10670457f;
        p = p * u + 0.121274695f;
        return p * u - 7.9788515e-05f;
    }

    static __device__ __forceinline__ float bell(float x) {
        return exp2_approx(x * x * (-0.5f * LOG2E));
    }

    static __device__ __forceinline__ float value(float x) {
        const float tail = bell(x) * over_bell(fabsf(x));
        return x * (x > 0 ? 1 - tail : tail);
    }

    static __device__ __forceinline__ float slope(float x) {
        const float t = fabsf(x);
        const float below = bell(x) * (over_bell(t) - 0.398942280f * t);
        return x > 0 ? 1 - below : below;
    }
};

struct Quick {
    static __device__ __forceinline__ float sigmoid(float x) {
        return reciprocal_approx(1 + exp2_approx(x * (-1.702f * LOG2E)));
    }

    static __device__ __forceinline__ float value(float x) { return x * sigmoid(x); }

    static __device__ __forceinline__ float slope(float x) {
        const float s = sigmoid(x);
        return s + 1.702f * (x * s * (1 - s));  // in this order nothing overflows
    }
};

// This thread's first element, and how far apart its UNROLL groups of V are.
template <int V>
__device__ __forceinline__ int64_t first() {
    return (int64_t(blockIdx.x) * UNROLL * THREADS + threadIdx.x) * V;
}
template <int V>
constexpr int64_t APART = THREADS * V;

template <class Gelu, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS) gelu_forward_kernel(GeluForward a) {
    Vec<bf16, V> x[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const int64_t at = first<V>() + u * APART<V>;
        if (at + V <= a.len) x[u] = load<V>(a.x + at);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const int64_t at = first<V>() + u * APART<V>;
        if (at + V <= a.len) {
            float y[V];
#pragma unroll
            for (int i = 0; i < V; ++i) y[i] = Gelu::value(to_float(x[u][i]));
            store_floats(a.y + at, y);
        } else {
            for (int64_t i = at; i < a.len; ++i) a.y[i] = to_bf16(Gelu::value(to_float(a.x[i])));
        }
    }
}

template <class Gelu, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS) gelu_backward_kernel(GeluBackward a) {
    Vec<bf16, V> x[UNROLL], dy[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const int64_t at = first<V>() + u * APART<V>;
        if (at + V > a.len) continue;
        x[u] = load<V>(a.x + at);
        dy[u] = load<V>(a.dy + at);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const int64_t at = first<V>() + u * APART<V>;
        if (at + V <= a.len) {
            float dx[V];
#pragma unroll
            for (int i = 0; i < V; ++i) {
                dx[i] = to_float(dy[u][i]) * Gelu::slope(to_float(x[u][i]));
            }
            store_floats(a.dx + at, dx);
        } else {
            for (int64_t i = at; i < a.len; ++i) {
                a.dx[i] = to_bf16(to_float(a.dy[i]) * Gelu::slope(to_float(a.x[i])));
            }
        }
    }
}

template <auto Kernel, int V, class Args>
int32_t start(RoclipStream stream, const Args* a) {
    return launch<Kernel>(stream, ceil_div(a->len, UNROLL * APART<V>), THREADS, 0, *a);
}

}  // namespace

int32_t gelu_forward(RoclipStream stream, const GeluForward* a) {
    const auto with = [&](auto gelu) {
        using Gelu = decltype(gelu);
        return aligned(16, a->x, a->y) ? start<gelu_forward_kernel<Gelu, LANE>, LANE>(stream, a)
                                       : start<gelu_forward_kernel<Gelu, 1>, 1>(stream, a);
    };
    return a->quick ? with(Quick{}) : with(Erf{});
}

int32_t gelu_backward(RoclipStream stream, const GeluBackward* a) {
    const auto with = [&](auto gelu) {
        using Gelu = decltype(gelu);
        return aligned(16, a->x, a->dy, a->dx)
                   ? start<gelu_backward_kernel<Gelu, LANE>, LANE>(stream, a)
                   : start<gelu_backward_kernel<Gelu, 1>, 1>(stream, a);
    };
    return a->quick ? with(Quick{}) : with(Erf{});
}

}  // namespace ROCLIP_BUILD
