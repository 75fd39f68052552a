// batchnorm: each channel to mean 0 and variance 1 over the rows, then gain and bias, a residual
// and the rectifier.
//
//   statistics  mean[c], var[c] of x[., c], var the biased one
//   merge       mean[c], var[c] of the rows of several ranks, from those of each
//   forward     y = f(x * scale + shift + residual),  scale = gain * rstd,
//               shift = bias - mean * scale,  rstd = 1 / sqrt(var + eps),  f the rectifier, or
//               nothing
//   backward    g = dy where the rectifier let y pass or was not there, else 0;  dresidual = g
//     sums      sums = (sum of g * xhat, sum of g),  xhat = (x - mean) * rstd;
//               dgain, dbias += sums
//     dx        dx = scale * (g - sums[1] / total - xhat * sums[0] / total), the sums, which may
//               be those of several ranks, only where the statistics are of the same rows
//   observe     observed += (mean, var * rows / (rows - 1))
//   update      running += momentum * (observed / passes - running)
//
// Tensors   in roclip.h; `partial` is scratch.
// Requires  rows >= 1, width >= 1; what is written overlaps no other tensor.
// Launch    statistics: about ROCLIP_PARTS blocks at most, then a kernel that merges their parts.
//           forward and dx: blocks of RUN rows a thread. sums: as statistics. 8 columns a
//           thread where width % 8 == 0 and pointers lie at 16 bytes, else one.
// Mapping   a block reads whole rows, `lanes` threads side by side and `groups` below each other;
//           a thread keeps its columns, so what belongs to a channel stays in registers. Rows wider
//           than MAX_LANES threads are cut into tiles of columns, of which sums have fewer parts.
// Order     the sums walk the rows upwards, forward and dx downwards: what was read last may still
//           be in L2.
// Barriers  every thread of a block comes to all of them.
// Numerics  f32, one rounding to bf16. Statistics: a thread keeps mean and sum of squared
//           deviations (`Moments`), those of threads and blocks are merged (Chan, Golub, LeVeque
//           1979), so no large sums are subtracted. The order of all additions is cut by the shape
//           alone. The rectifier keeps NaN, and where y is NaN the backward passes dy on.
// Cost      bytes an element: statistics 2; forward 4, with residual 6; backward 10, with rectifier
//           14, with rectifier and residual 14: the sums write dresidual, and dx is made from it.
// Twins     src/backend/{ops,cpu,cuda}/batchnorm.rs, tests/ops/batchnorm.rs
#include "common/add_parts.cuh"
#include "common/floats.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int THREADS = 256;
constexpr int MAX_LANES = 64;  // with 8 columns each 1 KB of a row
constexpr int MERGE_WARPS = 16;
// Kernels that sum over rows have two blocks an SM, at most, so a thread must have many loads in
// flight, and has the registers; the others have many blocks.
constexpr int SUM_BLOCKS = 2, SUM_UNROLL = 8, SUMS_UNROLL = 4;
constexpr int BLOCKS = 4, UNROLL = 4;
constexpr int LEAST = 16;  // rows of a thread that sums up, where it could have fewer
constexpr int RUN = 16;    // rows of a thread that does not

// How the threads of a block lie over rows.
template <int V>
struct Tiling {
    int tiles, lanes, groups;

    __host__ __device__ explicit Tiling(int width) {
        const int vectors = (width + V - 1) / V;
        tiles = (vectors + MAX_LANES - 1) / MAX_LANES;
        lanes = (vectors + tiles - 1) / tiles;
        groups = THREADS / lanes;
    }

    // Into how many parts a sum over rows is cut: no more than make ROCLIP_PARTS blocks of all
    // tiles together, for those all run at once.
    int parts(int64_t rows) const {
        const int64_t parts = ceil_div(rows, int64_t(LEAST) * groups);
        const int most = tiles < ROCLIP_PARTS ? ROCLIP_PARTS / tiles : 1;
        return parts < most ? int(parts) : most;
    }

    // Rows of part `part`: blocks of `groups` rows number part, part + parts, ...
    __device__ int64_t rows_of(int64_t rows, int part, int parts) const {
        const int64_t blocks = (rows + groups - 1) / groups, last = blocks - 1;
        const int64_t mine = (last - part) / parts + 1;
        return mine * groups - (last % parts == part ? blocks * groups - rows : 0);
    }
};

// Where a thread works; blockIdx.y is the tile. Its first element of each row is `column`.
template <int V>
struct Place : Tiling<V> {
    int lane, group;
    int64_t first, column;  // of the tile, of this thread
    int64_t width, end;     // where the last row ends; 0 where the thread has no columns

    __device__ __forceinline__ Place(int64_t rows, int width)
        : Tiling<V>(width), width(width) {
        lane = threadIdx.x % this->lanes;
        group = threadIdx.x / this->lanes;
        first = int64_t(blockIdx.y) * this->lanes * V;
        column = first + lane * V;
        end = group < this->groups && column < width ? rows * width : 0;
    }

    // The tile's columns c, from its first one on, divided among the threads.
    template <class Use>
    __device__ __forceinline__ void for_columns(Use use) const {
        for (int c = threadIdx.x; c < this->lanes * V && first + c < width; c += THREADS) use(c);
    }

    // Calls use(n, at, step): n rows, a constant of its type, N or 1, begin at elements at,
    // at + step, ...; from element `at` on, before element `end`.
    template <int N, class Use>
    __device__ __forceinline__ static void walk(int64_t at, int64_t step, int64_t end, Use use) {
#pragma unroll 1
        for (; at + (N - 1) * step < end; at += N * step) {
            use(std::integral_constant<int, N>{}, at, step);
        }
#pragma unroll 1
        for (; at < end; at += step) use(std::integral_constant<int, 1>{}, at, step);
    }

    // All rows, divided among the blocks, upwards.
    template <int N, class Use>
    __device__ __forceinline__ void upwards(Use use) const {
        const int64_t row = int64_t(blockIdx.x) * this->groups + group;
        walk<N>(row * width + column, int64_t(gridDim.x) * this->groups * width, end, use);
    }

    // All rows, at most RUN of them to a thread; the first blocks have the last ones.
    template <int N, class Use>
    __device__ __forceinline__ void downwards(Use use) const {
        const int64_t run = RUN * this->groups * width;
        const int64_t begin = (gridDim.x - 1 - int64_t(blockIdx.x)) * run;
        const int64_t stop = begin + run < end ? begin + run : end;
        walk<N>(begin + group * width + column, this->groups * width, stop, use);
    }
};

// V elements each of N rows.
template <int N, int V>
struct Rows {
    Vec<bf16, V> row[N];

    __device__ __forceinline__ void load(const bf16* from, int64_t at, int64_t step) {
#pragma unroll
        for (int u = 0; u < N; ++u) row[u] = ROCLIP_BUILD::load<V>(from + at + u * step);
    }
};

// ------------------------------------------------------------------------------------- statistics

// Number, means and sums of squared deviations of what a thread has seen.
template <int V>
struct Moments {
    float count = 0, mean[V] = {}, squares[V] = {};

    // Deviations d of the new rows are from the mean so far, at first from the first row. What is
    // subtracted, (sum of d)^2 / total, is at most half of sum of d^2 but at first, and then d^2 is
    // at most twice the result, as the first row is one of those seen.
    template <int N>
    __device__ __forceinline__ void add(const Rows<N, V>& x) {
        if (count == 0) to_floats(x.row[0], mean);
        count += N;
        const float share = 1 / count;
#pragma unroll
        for (int i = 0; i < V; ++i) {
            float sum = 0, square = 0;
#pragma unroll
            for (int u = 0; u < N; ++u) {
                const float d = to_float(x.row[u][i]) - mean[i];
                sum += d;
                square += d * d;
            }
            mean[i] += sum * share;
            squares[i] += square - sum * sum * share;
        }
    }
};

template <int V>
__global__ void __launch_bounds__(THREADS, SUM_BLOCKS)
    batchnorm_statistics_kernel(BatchnormStatistics a) {
    __shared__ __align__(16) float means[THREADS * V], squares[THREADS * V];
    __shared__ float counts[THREADS];
    const Place<V> place(a.rows, a.width);
    Moments<V> seen;
    place.template upwards<SUM_UNROLL>([&](auto n, int64_t at, int64_t step) {
        constexpr int N = decltype(n)::value;
        Rows<N, V> x;
        x.load(a.x, at, step);
        seen.add(x);
    });
    if (place.group < place.groups) {
        const int at = (place.group * place.lanes + place.lane) * V;
        store_floats(means + at, seen.mean);
        store_floats(squares + at, seen.squares);
        if (place.lane == 0) counts[place.group] = seen.count;
    }
    __syncthreads();
    const int columns = place.lanes * V;
    place.for_columns([&](int c) {
        float count = 0, mean = 0, square = 0;
        for (int g = 0; g < place.groups; ++g) {
            count += counts[g];
            mean += counts[g] * means[g * columns + c];
        }
        mean /= count;
        for (int g = 0; g < place.groups; ++g) {
            const float apart = means[g * columns + c] - mean;
            square += squares[g * columns + c] + counts[g] * apart * apart;
        }
        float* to = a.partial + int64_t(blockIdx.x) * 2 * a.width + place.first + c;
        to[0] = mean;
        to[a.width] = square;
    });
}

template <class Args>
struct Merge {
    Args a;
    int parts;
};

template <int V>
__global__ void __launch_bounds__(MERGE_WARPS* WARP)
    merge_statistics_kernel(Merge<BatchnormStatistics> call) {
    __shared__ float room[2][MERGE_WARPS][WARP];
    const BatchnormStatistics& a = call.a;
    const Tiling<V> tiling(a.width);
    const int64_t column = int64_t(blockIdx.x) * WARP + threadIdx.x % WARP, width = a.width;
    const bool inside = column < width;
    const int parts = inside ? call.parts : 0;
    const auto share = [&](int p) {
        return float(tiling.rows_of(a.rows, p, call.parts)) / float(a.rows);
    };
    const float mean = sum_parts<MERGE_WARPS>(parts, room[0], [&](int p) {
        return share(p) * a.partial[p * 2 * width + column];
    });
    const float var = sum_parts<MERGE_WARPS>(parts, room[1], [&](int p) {
        const float* part = a.partial + p * 2 * width + column;
        const float apart = part[0] - mean;
        return part[width] / float(a.rows) + share(p) * apart * apart;
    });
    if (!inside || threadIdx.x >= WARP) return;
    a.mean[column] = mean;
    a.var[column] = var;
}

// Deviations from the mean of means; all have equally many rows.
__global__ void __launch_bounds__(THREADS) merge_ranks_kernel(BatchnormMerge a) {
    const int64_t c = int64_t(blockIdx.x) * THREADS + threadIdx.x, width = a.width;
    if (c >= width) return;
    const float* all = a.all + c;
    float mean = 0, var = 0;
    for (int r = 0; r < a.ranks; ++r) mean += all[r * 2 * width];
    mean /= float(a.ranks);
    for (int r = 0; r < a.ranks; ++r) {
        const float apart = all[r * 2 * width] - mean;
        var += all[(r * 2 + 1) * width] + apart * apart;
    }
    a.mean[c] = mean;
    a.var[c] = var / float(a.ranks);
}

// ---------------------------------------------------------------------------------------- forward

template <int V, bool RESIDUAL>
__global__ void __launch_bounds__(THREADS, BLOCKS) batchnorm_forward_kernel(BatchnormForward a) {
    __shared__ __align__(16) float scales[MAX_LANES * V], shifts[MAX_LANES * V];
    const Place<V> place(a.rows, a.width);
    place.for_columns([&](int c) {
        const int64_t column = place.first + c;
        const float scale = a.gain_bias[column] / sqrtf(a.var[column] + a.eps);
        scales[c] = scale;
        shifts[c] = a.gain_bias[a.width + column] - a.mean[column] * scale;
    });
    __syncthreads();
    const float floor = a.relu ? 0.f : -INFINITY;
    float scale[V], shift[V];
    load_floats(scales + place.lane * V, scale);
    load_floats(shifts + place.lane * V, shift);
    place.template downwards<RESIDUAL ? UNROLL / 2 : UNROLL>([&](auto n, int64_t at, int64_t step) {
        constexpr int N = decltype(n)::value;
        Rows<N, V> x, residual;
        x.load(a.x, at, step);
        if (RESIDUAL) residual.load(a.residual, at, step);
#pragma unroll
        for (int u = 0; u < N; ++u) {
            float y[V];
#pragma unroll
            for (int i = 0; i < V; ++i) {
                y[i] = to_float(x.row[u][i]) * scale[i] + shift[i];
                if (RESIDUAL) y[i] += to_float(residual.row[u][i]);
                y[i] = y[i] <= floor ? floor : y[i];  // NaN stays
            }
            store_together(a.y + at + u * step, y);
        }
    });
}

// --------------------------------------------------------------------------------------- backward

// What passed the rectifier. y is 0 where it did not, and NaN is no reason to stop dy.
template <int V>
__device__ __forceinline__ void rectify(Vec<bf16, V>& dy, const Vec<bf16, V>& y) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
        if (to_float(y[i]) <= 0) dy[i] = to_bf16(0);
    }
}

// Sums over rows of g * (x - mean) and of g, and dresidual.
template <int V, bool RELU>
__global__ void __launch_bounds__(THREADS, SUM_BLOCKS)
    batchnorm_sums_kernel(BatchnormBackwardSums a) {
    __shared__ __align__(16) float room[THREADS * V];
    const Place<V> place(a.rows, a.width);
    float sums[2][V] = {}, mean[V] = {};
    if (place.end) load_floats(a.mean + place.column, mean);
    place.template upwards<SUMS_UNROLL>([&](auto n, int64_t at, int64_t step) {
        constexpr int N = decltype(n)::value;
        Rows<N, V> x, dy, y;
        x.load(a.x, at, step);
        dy.load(a.dy, at, step);
        if (RELU) y.load(a.y, at, step);
#pragma unroll
        for (int u = 0; u < N; ++u) {
            if (RELU) rectify(dy.row[u], y.row[u]);
            float g[V];
            to_floats(dy.row[u], g);
            if (a.dresidual) store_together(a.dresidual + at + u * step, g);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                sums[0][i] += g[i] * (to_float(x.row[u][i]) - mean[i]);
                sums[1][i] += g[i];
            }
        }
    });
    const int columns = place.lanes * V;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
        if (s > 0) __syncthreads();
        if (place.group < place.groups) {
            store_floats(room + (place.group * place.lanes + place.lane) * V, sums[s]);
        }
        __syncthreads();
        place.for_columns([&](int c) {
            float sum = 0;
            for (int g = 0; g < place.groups; ++g) sum += room[g * columns + c];
            a.partial[(int64_t(blockIdx.x) * 2 + s) * a.width + place.first + c] = sum;
        });
    }
}

// Adds up the parts.
__global__ void __launch_bounds__(MERGE_WARPS* WARP)
    merge_sums_kernel(Merge<BatchnormBackwardSums> call) {
    __shared__ float room[MERGE_WARPS][WARP];
    const BatchnormBackwardSums& a = call.a;
    const int64_t at = int64_t(blockIdx.x) * WARP + threadIdx.x % WARP, width = a.width;
    const bool inside = at < 2 * width;
    float sum = sum_parts<MERGE_WARPS>(
        inside ? call.parts : 0, room, [&](int p) { return a.partial[p * 2 * width + at]; });
    if (!inside || threadIdx.x >= WARP) return;
    if (at < width) sum *= 1 / sqrtf(a.var[at] + a.eps);
    a.sums[at] = sum;
    a.dgain_dbias[at] += sum;
}

// dx = by_g * g + by_x * x + rest, channel by channel; g is made from dy and y.
template <int V, bool RELU>
__global__ void __launch_bounds__(THREADS, BLOCKS) batchnorm_dx_kernel(BatchnormBackward a) {
    __shared__ __align__(16) float by_gs[MAX_LANES * V], by_xs[MAX_LANES * V], rests[MAX_LANES * V];
    const Place<V> place(a.rows, a.width);
    place.for_columns([&](int c) {
        const int64_t column = place.first + c;
        const float rstd = 1 / sqrtf(a.var[column] + a.eps), scale = a.gain_bias[column] * rstd;
        float along = 0, mean = 0;
        if (a.own) {
            along = a.sums[column] / float(a.total);
            mean = a.sums[a.width + column] / float(a.total);
        }
        by_gs[c] = scale;
        by_xs[c] = -scale * along * rstd;
        rests[c] = -scale * mean + scale * along * rstd * a.mean[column];
    });
    __syncthreads();
    float by_g[V], by_x[V], rest[V];
    load_floats(by_gs + place.lane * V, by_g);
    load_floats(by_xs + place.lane * V, by_x);
    load_floats(rests + place.lane * V, rest);
    place.template downwards<UNROLL / 2>([&](auto n, int64_t at, int64_t step) {
        constexpr int N = decltype(n)::value;
        Rows<N, V> x, dy, y;
        x.load(a.x, at, step);
        dy.load(a.dy, at, step);
        if (RELU) y.load(a.y, at, step);
#pragma unroll
        for (int u = 0; u < N; ++u) {
            if (RELU) rectify(dy.row[u], y.row[u]);
            float dx[V];
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const float xs = to_float(x.row[u][i]) * by_x[i] + rest[i];
                dx[i] = to_float(dy.row[u][i]) * by_g[i] + xs;
            }
            store_together(a.dx + at + u * step, dx);
        }
    });
}

// ----------------------------------------------------------------------------- running statistics

__global__ void __launch_bounds__(THREADS) observe_kernel(BatchnormObserve a) {
    const int64_t c = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (c >= a.width) return;
    const float unbiased = a.rows > 1 ? float(a.rows) / float(a.rows - 1) : 1;
    a.observed[c] += a.mean[c];
    a.observed[a.width + c] += a.var[c] * unbiased;
}

__global__ void __launch_bounds__(THREADS) update_running_kernel(BatchnormUpdateRunning a) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= a.len || !(fabsf(a.norm[0]) < INFINITY)) return;
    float running = a.weights[at];
    running += a.momentum * (a.observed[at] / a.passes - running);
    a.weights[at] = running;
    a.copy[at] = to_bf16(running);
}

// start(V), a constant of its type, for the widest V that shape and pointers allow.
template <class Start, class... Pointers>
int32_t with_columns(int width, Start start, Pointers... pointers) {
    const bool wide = width % LANE == 0 && aligned(16, pointers...);
    return wide ? start(std::integral_constant<int, LANE>{})
                : start(std::integral_constant<int, 1>{});
}

// The grid of a kernel that goes over all rows and sums nothing up.
template <int V>
dim3 grid_of_runs(int64_t rows, int width) {
    const Tiling<V> tiling(width);
    return dim3(ceil_div(rows, int64_t(RUN) * tiling.groups), tiling.tiles);
}

}  // namespace

int32_t batchnorm_statistics(RoclipStream stream, const BatchnormStatistics* a) {
    const auto start = [&](auto v) {
        const Tiling<v> tiling(a->width);
        const Merge<BatchnormStatistics> merge = {*a, tiling.parts(a->rows)};
        const dim3 grid(merge.parts, tiling.tiles);
        const int32_t error = launch<batchnorm_statistics_kernel<v>>(stream, grid, THREADS, 0, *a);
        if (error != 0) return error;
        return launch<merge_statistics_kernel<v>>(
            stream, ceil_div(a->width, WARP), MERGE_WARPS * WARP, 0, merge);
    };
    return with_columns(a->width, start, a->x);
}

int32_t batchnorm_merge(RoclipStream stream, const BatchnormMerge* a) {
    return launch<merge_ranks_kernel>(stream, ceil_div(a->width, THREADS), THREADS, 0, *a);
}

int32_t batchnorm_forward(RoclipStream stream, const BatchnormForward* a) {
    const auto start = [&](auto v) {
        const dim3 grid = grid_of_runs<v>(a->rows, a->width);
        return a->residual
                   ? launch<batchnorm_forward_kernel<v, true>>(stream, grid, THREADS, 0, *a)
                   : launch<batchnorm_forward_kernel<v, false>>(stream, grid, THREADS, 0, *a);
    };
    return with_columns(a->width, start, a->x, a->residual, a->y);
}

int32_t batchnorm_backward_sums(RoclipStream stream, const BatchnormBackwardSums* a) {
    const auto start = [&](auto v) {
        const Tiling<v> tiling(a->width);
        const Merge<BatchnormBackwardSums> merge = {*a, tiling.parts(a->rows)};
        const dim3 grid(merge.parts, tiling.tiles);
        const int32_t error =
            a->y ? launch<batchnorm_sums_kernel<v, true>>(stream, grid, THREADS, 0, *a)
                 : launch<batchnorm_sums_kernel<v, false>>(stream, grid, THREADS, 0, *a);
        if (error != 0) return error;
        const int64_t blocks = ceil_div(int64_t(2) * a->width, WARP);
        return launch<merge_sums_kernel>(stream, blocks, MERGE_WARPS * WARP, 0, merge);
    };
    return with_columns(a->width, start, a->x, a->mean, a->y, a->dy, a->dresidual);
}

int32_t batchnorm_backward(RoclipStream stream, const BatchnormBackward* a) {
    const auto start = [&](auto v) {
        const dim3 grid = grid_of_runs<v>(a->rows, a->width);
        return a->y ? launch<batchnorm_dx_kernel<v, true>>(stream, grid, THREADS, 0, *a)
                    : launch<batchnorm_dx_kernel<v, false>>(stream, grid, THREADS, 0, *a);
    };
    return with_columns(a->width, start, a->x, a->y, a->dy, a->dx);
}

int32_t batchnorm_observe(RoclipStream stream, const BatchnormObserve* a) {
    return launch<observe_kernel>(stream, ceil_div(a->width, THREADS), THREADS, 0, *a);
}

int32_t batchnorm_update_running(RoclipStream stream, const BatchnormUpdateRunning* a) {
    return launch<update_running_kernel>(stream, ceil_div(a->len, THREADS), THREADS, 0, *a);
}

}  // namespace ROCLIP_BUILD
