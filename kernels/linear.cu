// linear: what is not a matrix product, the gradient of the bias.
//
//   db[c] += sum over rows of dy[row, c]
//
// Tensors   in roclip.h; `partial` is scratch.
// Requires  rows >= 1, width >= 1.
// Launch    grid: tiles of columns, at most ROCLIP_PARTS parts of the rows; then `add_parts`. 8
//           columns a thread where width % 8 == 0 and dy lies at 16 bytes, else one.
// Mapping   common/columns.cuh.
// Barriers  one in `sum_columns`, for every thread of the block.
// Numerics  f32; the order of the additions is cut by the number of rows alone.
// Cost      2 bytes an element, read once; partial sums are 1/128 of that or less.
// Twins     src/backend/{ops,cpu,cuda}/linear.rs, tests/ops/linear.rs
#include "common/add_parts.cuh"
#include "common/columns.cuh"

namespace ROCLIP_BUILD {
namespace {

template <int V>
__global__ void __launch_bounds__(COLUMN_THREADS) backward_bias_kernel(LinearBackwardBias a) {
    const int64_t column = my_column<V>(blockIdx.x);
    float sums[1][V];
    const bool mine = sum_columns<V, 1>(
        column < a.width, a.rows, blockIdx.y, gridDim.y,
        [&](int64_t row) { return load<V>(a.dy + row * a.width + column); }, AddFloats<V>{}, sums);
    if (mine) store_floats(a.partial + int64_t(blockIdx.y) * a.width + column, sums[0]);
}

}  // namespace

int32_t linear_backward_bias(RoclipStream stream, const LinearBackwardBias* a) {
    const AddParts parts = {a->partial, a->db, a->width, column_parts(a->rows)};
    const auto start = [&](auto v) {
        const dim3 grid(ceil_div(a->width, COLUMN_TILE<v>), parts.parts);
        return launch<backward_bias_kernel<v>>(stream, grid, COLUMN_THREADS, 0, *a);
    };
    const int32_t error = a->width % LANE == 0 && aligned(16, a->dy, a->partial)
                              ? start(std::integral_constant<int, LANE>{})
                              : start(std::integral_constant<int, 1>{});
    return error == 0 ? start_add_parts(stream, parts) : error;
}

}  // namespace ROCLIP_BUILD
