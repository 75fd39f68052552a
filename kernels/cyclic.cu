// cyclic: weights and squares of a block of differences of inner products.
//
//   weights = 4 weight differences
//   loss[i] += weight sum_j differences[i,j]^2
//
//   tensor       shape         dtype  role
//   differences  [rows, cols]  f32    in
//   weights      [rows, cols]  bf16   out
//   loss         [rows]        f32    added to
//
// Requires  rows >= 0, cols >= 1.
// Launch    blocks of 8 warps, a row a warp. 8 elements an access where cols % 8 == 0 and pointers
//           lie at 16 bytes, else one.
// Mapping   lane -> neighbouring elements.
// Barriers  none.
// Numerics  squares in f32, in a fixed order: lane, lanes, blocks of columns as they are launched.
//           One rounding to bf16. NaN stays in its element, and in its row's loss.
// Cost      6 bytes an element.
// Twins     src/backend/{ops,cpu,cuda}/cyclic.rs, tests/ops/cyclic.rs
// Source    CyCLIP (Goel et al. 2022), sections 2.2 and 2.3
#include "common/floats.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

template <int V>
__global__ void __launch_bounds__(THREADS) cyclic_weights_kernel(CyclicWeights a) {
    const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (row >= a.rows) return;  // a warp as a whole
    const int lane = threadIdx.x % WARP;
    const float* const from = a.differences + row * a.cols;
    bf16* const to = a.weights + row * a.cols;
    const float factor = 4 * a.weight;
    float squares = 0;
    for (int c = lane * V; c < a.cols; c += WARP * V) {
        float x[V];
        load_floats(from + c, x);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            squares += x[i] * x[i];
            x[i] *= factor;
        }
        store_floats(to + c, x);
    }
    squares = warp_sum(squares);
    if (lane == 0) a.loss[row] += a.weight * squares;
}

}  // namespace

int32_t cyclic_weights(RoclipStream stream, const CyclicWeights* a) {
    const int64_t blocks = ceil_div(a->rows, WARPS);
    return a->cols % LANE == 0 && aligned(16, a->differences, a->weights)
               ? launch<cyclic_weights_kernel<LANE>>(stream, blocks, THREADS, 0, *a)
               : launch<cyclic_weights_kernel<1>>(stream, blocks, THREADS, 0, *a);
}

}  // namespace ROCLIP_BUILD
