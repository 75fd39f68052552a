// adamw: gradients to parameters, with decoupled weight decay and gradient clipping.
//
//   g' = g * min(1, max_norm / (norm + 1e-6))
//   m = beta1 m + (1 - beta1) g'     v = beta2 v + (1 - beta2) g'^2
//   w = w (1 - lr wd) - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//
// Tensors   in roclip.h; row group[i / ROCLIP_SLOT_ALIGN] of `rates` says how element i is updated.
//           `copy` becomes the weights rounded to bf16.
// Requires  group entries are rows of `rates`, also those of elements that belong to no parameter
//           (they hold 0, and stay 0).
// Launch    one launch over everything: blocks of 256 threads; one element a thread where a pointer
//           is not at 16 bytes.
// Mapping   thread -> 4 neighbouring elements, which share their row of rates: four 16-byte loads
//           on their way, three such stores and one of 8 bytes.
// Barriers  none.
// Numerics  f32, in the order of src/backend/cpu/adamw.rs. Where the norm is not finite nothing is
//           written.
// Cost      30 bytes a parameter.
// Twins     src/backend/{ops,cpu,cuda}/adamw.rs, tests/ops/adamw.rs
#include "common/floats.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int THREADS = 256;
constexpr int WIDE = 4;
static_assert(ROCLIP_SLOT_ALIGN % WIDE == 0, "the elements of a thread share their rates");

enum Rate {
    MAX_NORM,
    BETA1,
    ONE_MINUS_BETA1,
    BETA2,
    ONE_MINUS_BETA2,
    KEEP,
    STEP_SIZE,
    INV_ROOT_CORRECTION,
    EPS,
    UPDATED
};

template <int V>
__device__ __forceinline__ void update_at(const AdamW& a, float norm, int64_t at) {
    float g[V], m[V], v[V], w[V];
    load_floats(a.grads + at, g);
    load_floats(a.exp_avg + at, m);
    load_floats(a.exp_avg_sq + at, v);
    load_floats(a.weights + at, w);
    const float* r = a.rates + int64_t(a.group[at / ROCLIP_SLOT_ALIGN]) * ROCLIP_RATES;
    if (r[UPDATED] == 0) return;
    const float clip = fminf(r[MAX_NORM] / (norm + 1e-6f), 1.f);
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const float clipped = g[i] * clip;
        m[i] = r[BETA1] * m[i] + r[ONE_MINUS_BETA1] * clipped;
        v[i] = r[BETA2] * v[i] + r[ONE_MINUS_BETA2] * (clipped * clipped);
        const float denominator = sqrtf(v[i]) * r[INV_ROOT_CORRECTION] + r[EPS];
        w[i] = w[i] * r[KEEP] - r[STEP_SIZE] * m[i] / denominator;
    }
    store_floats(a.exp_avg + at, m);
    store_floats(a.exp_avg_sq + at, v);
    store_floats(a.weights + at, w);
    store_floats(a.copy + at, w);
}

template <int V>
__global__ void __launch_bounds__(THREADS) adamw_kernel(AdamW a) {
    const int64_t at = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * V;
    const float norm = a.norm[0];
    if (!(fabsf(norm) < INFINITY)) return;
    if (at + V <= a.len) {
        update_at<V>(a, norm, at);
    } else {
        for (int64_t i = at; i < a.len; ++i) update_at<1>(a, norm, i);
    }
}

__global__ void __launch_bounds__(THREADS) clamp_kernel(AdamWClamp a) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= a.len) return;
    float w = a.weights[at];
    if (w < a.low) w = a.low;  // NaN is neither, and stays
    if (w > a.high) w = a.high;
    a.weights[at] = w;
    a.copy[at] = to_bf16(w);
}

}  // namespace

int32_t adamw(RoclipStream stream, const AdamW* a) {
    if (!aligned(16, a->grads, a->weights, a->copy, a->exp_avg, a->exp_avg_sq)) {
        return launch<adamw_kernel<1>>(stream, ceil_div(a->len, THREADS), THREADS, 0, *a);
    }
    return launch<adamw_kernel<WIDE>>(stream, ceil_div(a->len, THREADS * WIDE), THREADS, 0, *a);
}

int32_t adamw_clamp(RoclipStream stream, const AdamWClamp* a) {
    return launch<clamp_kernel>(stream, ceil_div(a->len, THREADS), THREADS, 0, *a);
}

}  // namespace ROCLIP_BUILD
