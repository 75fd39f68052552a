// grad_norm: the Euclidean norm of all gradients together.
//
//   norm = sqrt(sum of grads[i]^2)
//
// Tensors   in roclip.h; `partial` is scratch.
// Requires  len >= 1.
// Launch    at most ROCLIP_PARTS blocks of 512 threads, as many as `len` needs; then one block of
//           ROCLIP_PARTS threads for their sums.
// Mapping   part p takes blocks p, p + parts, ... of THREADS*UNROLL groups of 4 elements; a thread
//           has UNROLL 16-byte loads on their way.
// Barriers  one in `block_sum`, for every thread of the block.
// Numerics  squares and sums in f64, where neither can overflow; the order depends on `len` alone.
//           A non-finite gradient gives a non-finite norm.
// Cost      4 bytes an element, read once; two f64 instructions an element, a quarter of what a
//           data-centre GPU can do in that time.
// Twins     src/backend/{ops,cpu,cuda}/grad_norm.rs, tests/ops/grad_norm.rs
#include "common/floats.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int THREADS = 512;
constexpr int UNROLL = 4;

template <int V>
__global__ void __launch_bounds__(THREADS) squares_kernel(GradNorm a) {
    constexpr int64_t APART = THREADS * V;  // groups of a thread
    __shared__ double room[THREADS / WARP];
    double sum = 0;
    for (int64_t block = blockIdx.x; block * UNROLL * APART < a.len; block += gridDim.x) {
        const int64_t first = block * UNROLL * APART + threadIdx.x * V;
        Vec<float, V> x[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            x[u] = {};
            if (first + u * APART + V <= a.len) x[u] = load<V>(a.grads + first + u * APART);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
            for (int i = 0; i < V; ++i) sum += double(x[u][i]) * x[u][i];
        }
    }
    // the last len % V elements
    const int64_t rest = a.len / V * V + threadIdx.x;
    if (blockIdx.x == 0 && rest < a.len) sum += double(a.grads[rest]) * a.grads[rest];
    sum = block_sum<THREADS>(sum, room);
    if (threadIdx.x == 0) a.partial[blockIdx.x] = sum;
}

struct Root {
    const double* partial;
    float* norm;
    int parts;
};

__global__ void __launch_bounds__(ROCLIP_PARTS) root_kernel(Root a) {
    __shared__ double room[ROCLIP_PARTS / WARP];
    const int part = threadIdx.x;
    const double sum = block_sum<ROCLIP_PARTS>(part < a.parts ? a.partial[part] : 0., room);
    if (part == 0) a.norm[0] = float(sqrt(sum));
}

}  // namespace

int32_t grad_norm(RoclipStream stream, const GradNorm* a) {
    const int64_t blocks = ceil_div(a->len, int64_t(THREADS) * UNROLL * 4);
    const int parts = blocks < ROCLIP_PARTS ? int(blocks) : int(ROCLIP_PARTS);
    const int32_t error = aligned(16, a->grads)
                              ? launch<squares_kernel<4>>(stream, parts, THREADS, 0, *a)
                              : launch<squares_kernel<1>>(stream, parts, THREADS, 0, *a);
    if (error != 0) return error;
    return launch<root_kernel>(stream, 1, ROCLIP_PARTS, 0, Root{a->partial, a->norm, parts});
}

}  // namespace ROCLIP_BUILD
