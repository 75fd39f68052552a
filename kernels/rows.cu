// rows: picks rows by index, spreads them back, and multiplies them row by row.
//
//   gather   out[i] = x[index[i]]
//   scatter  dx[index[i]] = dout[i]; the caller has zeroed dx
//   dot      out[i] = <a[i], b[i]>
//
// Tensors   in roclip.h.
// Requires  rows >= 0, width >= 1; indices inside the tensor that they point into, for scatter all
//           different.
// Launch    blocks of 8 warps, a row a warp. 8 elements an access where width % 8 == 0 and pointers
//           lie at 16 bytes, else one.
// Mapping   warp -> row of `index`, of `out`; lane -> neighbouring elements.
// Barriers  none.
// Numerics  copies; dot: f32, a sum a lane, then those of the lanes, in one order.
// Cost      4 bytes an element, each read once.
// Twins     src/backend/{ops,cpu,cuda}/rows.rs, tests/ops/rows.rs
#include "common/floats.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

template <int V>
__device__ __forceinline__ void copy_row(const bf16* from, bf16* to, int width) {
#pragma unroll 2
    for (int c = threadIdx.x % WARP * V; c < width; c += WARP * V) store(to + c, load<V>(from + c));
}

__device__ __forceinline__ int64_t my_row() {
    return int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
}

template <int V>
__global__ void __launch_bounds__(THREADS) gather_kernel(RowsGather a) {
    const int64_t row = my_row();
    if (row >= a.rows) return;
    copy_row<V>(a.x + int64_t(a.index[row]) * a.width, a.out + row * a.width, a.width);
}

template <int V>
__global__ void __launch_bounds__(THREADS) scatter_kernel(RowsScatter a) {
    const int64_t row = my_row();
    if (row >= a.rows) return;
    copy_row<V>(a.dout + row * a.width, a.dx + int64_t(a.index[row]) * a.width, a.width);
}

template <int V>
__global__ void __launch_bounds__(THREADS) dot_kernel(RowsDot d) {
    const int64_t row = my_row();
    if (row >= d.rows) return;  // a warp as a whole
    const bf16 *a = d.a + row * d.width, *b = d.b + row * d.width;
    float sum = 0;
#pragma unroll 2
    for (int c = threadIdx.x % WARP * V; c < d.width; c += WARP * V) {
        const Vec<bf16, V> x = load<V>(a + c), y = load<V>(b + c);
#pragma unroll
        for (int i = 0; i < V; ++i) sum += to_float(x[i]) * to_float(y[i]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) d.out[row] = sum;
}

}  // namespace

int32_t rows_gather(RoclipStream stream, const RowsGather* a) {
    const int64_t blocks = ceil_div(a->rows, WARPS);
    return a->width % LANE == 0 && aligned(16, a->x, a->out)
               ? launch<gather_kernel<LANE>>(stream, blocks, THREADS, 0, *a)
               : launch<gather_kernel<1>>(stream, blocks, THREADS, 0, *a);
}

int32_t rows_scatter(RoclipStream stream, const RowsScatter* a) {
    const int64_t blocks = ceil_div(a->rows, WARPS);
    return a->width % LANE == 0 && aligned(16, a->dout, a->dx)
               ? launch<scatter_kernel<LANE>>(stream, blocks, THREADS, 0, *a)
               : launch<scatter_kernel<1>>(stream, blocks, THREADS, 0, *a);
}

int32_t rows_dot(RoclipStream stream, const RowsDot* d) {
    const int64_t blocks = ceil_div(d->rows, WARPS);
    return d->width % LANE == 0 && aligned(16, d->a, d->b)
               ? launch<dot_kernel<LANE>>(stream, blocks, THREADS, 0, *d)
               : launch<dot_kernel<1>>(stream, blocks, THREADS, 0, *d);
}

}  // namespace ROCLIP_BUILD
