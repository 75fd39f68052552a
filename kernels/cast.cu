// cast: f32 to bf16, to nearest even; NaN stays NaN.
//
// Tensors   in roclip.h.
// Requires  len >= 0.
// Launch    blocks of 256 threads; one element a thread where a pointer is not at 16 bytes.
// Mapping   thread -> 8 neighbouring elements: two loads and a store of 16 bytes.
// Barriers  none.
// Cost      6 bytes an element.
// Twins     src/backend/cuda/mod.rs (`set_weights`), tests/ops/cast.rs
#include "common/floats.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int THREADS = 256;

template <int V>
__global__ void __launch_bounds__(THREADS) cast_kernel(CastBf16 a) {
    const int64_t at = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * V;
    if (at + V <= a.len) {
        float x[V];
        load_floats(a.x + at, x);
        store_floats(a.y + at, x);
    } else {
        for (int64_t i = at; i < a.len; ++i) a.y[i] = to_bf16(a.x[i]);
    }
}

}  // namespace

int32_t cast_bf16(RoclipStream stream, const CastBf16* a) {
    return aligned(16, a->x, a->y)
               ? launch<cast_kernel<LANE>>(stream, ceil_div(a->len, THREADS * LANE), THREADS, 0, *a)
               : launch<cast_kernel<1>>(stream, ceil_div(a->len, THREADS), THREADS, 0, *a);
}

}  // namespace ROCLIP_BUILD
