// patch_embedding: pictures to patch rows, and patch rows to the token sequence of a ViT.
//
//   unfold    out[n, (i, j), (channel, y, x)] = images[n, channel, i*patch + y, j*patch + x]
//   forward   out[n, 0] = cls + positions[0],  out[n, 1 + i] = patches[n, i] + positions[1 + i]
//   backward  dpatches[n, i] = dout[n, 1 + i],  dpositions += sum over n of dout[n],
//             dclass += sum over n of dout[n, 0]
//
// Tensors   in roclip.h; T tokens, one more than patches.
// Requires  images_n >= 1, patch >= 1 divides side, tokens * width < 2^31. The launcher refuses
//           more than 65535 * IMAGES images, and pictures with more than 2^31 rows of patches.
// Launch    unfold: grid of rows of patches and blocks of elements of such a row, V elements a
//           thread, V the largest of 8, 2, 1 that divides patch. forward: blocks of the elements of
//           a picture, IMAGES pictures each, for which a thread keeps its positions. backward:
//           tiles of the T*C columns, all pictures; the class the same with C columns. 8 columns a
//           thread where width % 8 == 0 and pointers lie at 16 bytes, else one.
// Barriers  one in `sum_columns`, for every thread of the block.
// Numerics  f32, one rounding to bf16; sums over pictures in a fixed order.
// Cost      bytes: unfold 6 a pixel, forward 4 an element and the positions once for every IMAGES
//           pictures, backward 4.
// Twins     src/backend/{ops,cpu,cuda}/patch_embedding.rs, tests/ops/patch_embedding.rs
#include "common/columns.cuh"

namespace ROCLIP_BUILD {
namespace {

constexpr int THREADS = 256;
constexpr int IMAGES = 8;
constexpr int UNROLL = 4;
constexpr int MAX_GRID_Y = 65535;

// ----------------------------------------------------------------------------------------- unfold

// A row of patches: `patch` rows of each channel of a picture, neighbours in `out`.
template <int V>
__global__ void __launch_bounds__(THREADS) unfold_kernel(PatchEmbeddingUnfold a) {
    const unsigned side = a.side, patch = a.patch, across = side / patch;
    const unsigned at = (blockIdx.y * THREADS + threadIdx.x) * V;
    if (at >= 3 * patch * side) return;
    const unsigned image = blockIdx.x / across, i = blockIdx.x % across;
    const unsigned j = at / (3 * patch * patch), line = at / patch % (3 * patch), x = at % patch;
    const unsigned channel = line / patch, y = i * patch + line % patch;
    const int64_t row = (int64_t(image) * 3 + channel) * side + y;
    float pixels[V];
    load_floats(a.images + row * side + j * patch + x, pixels);
    store_floats(a.out + int64_t(blockIdx.x) * 3 * patch * side + at, pixels);
}

// ---------------------------------------------------------------------------------------- forward

template <int V>
__global__ void __launch_bounds__(THREADS) patch_forward_kernel(PatchEmbeddingForward a) {
    const int elements = a.tokens * a.width;
    const int64_t at = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * V;
    if (at >= elements) return;
    const bool is_class = at < a.width;
    float position[V], patch[V] = {};
    load_floats(a.positions + at, position);
    if (is_class) load_floats(a.cls + at, patch);
    const int64_t end = int64_t(blockIdx.y + 1) * IMAGES;
    int64_t n = int64_t(blockIdx.y) * IMAGES;
    for (; n < end; n += UNROLL) {
        Vec<bf16, V> patches[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            if (is_class || n + u >= a.images_n) continue;
            patches[u] = load<V>(a.patches + (n + u) * (elements - a.width) + at - a.width);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            if (n + u >= a.images_n) return;
            if (!is_class) to_floats(patches[u], patch);
            float out[V];
#pragma unroll
            for (int i = 0; i < V; ++i) out[i] = patch[i] + position[i];
            store_floats(a.out + (n + u) * elements + at, out);
        }
    }
}

// --------------------------------------------------------------------------------------- backward

template <int V>
__global__ void __launch_bounds__(COLUMN_THREADS) patch_backward_kernel(PatchEmbeddingBackward a) {
    const int elements = a.tokens * a.width;
    const int64_t column = my_column<V>(blockIdx.x);
    float sums[1][V];
    const bool mine = sum_columns<V, 1>(
        column < elements, a.images_n, 0, 1,
        [&](int64_t n) { return load<V>(a.dout + n * elements + column); },
        [&](int64_t n, const Vec<bf16, V>& dout, float(&sums)[1][V]) {
            if (column >= a.width) {
                store(a.dpatches + n * (elements - a.width) + column - a.width, dout);
            }
            AddFloats<V>{}(n, dout, sums);
        },
        sums);
    if (mine) add_floats(a.dpositions + column, sums[0]);
}

template <int V>
__global__ void __launch_bounds__(COLUMN_THREADS)
    backward_class_kernel(PatchEmbeddingBackwardClass a) {
    const int64_t elements = int64_t(a.tokens) * a.width, column = my_column<V>(blockIdx.x);
    float sums[1][V];
    const bool mine = sum_columns<V, 1>(
        column < a.width, a.images_n, 0, 1,
        [&](int64_t n) { return load<V>(a.dout + n * elements + column); }, AddFloats<V>{}, sums);
    if (mine) add_floats(a.dclass + column, sums[0]);
}

}  // namespace

int32_t patch_embedding_unfold(RoclipStream stream, const PatchEmbeddingUnfold* a) {
    const int64_t rows = a->images_n * (a->side / a->patch);
    const int64_t values = int64_t(3) * a->patch * a->side;
    const auto start = [&](auto v) {
        const int64_t blocks = ceil_div(values, THREADS * v);
        if (rows > INT32_MAX || blocks > MAX_GRID_Y) return int32_t(ROCLIP_REFUSED);
        return launch<unfold_kernel<v>>(stream, dim3(rows, blocks), THREADS, 0, *a);
    };
    if (a->patch % 8 == 0 && aligned(16, a->images, a->out)) {
        return start(std::integral_constant<int, 8>{});
    }
    if (a->patch % 2 == 0 && aligned(8, a->images) && aligned(4, a->out)) {
        return start(std::integral_constant<int, 2>{});
    }
    return start(std::integral_constant<int, 1>{});
}

int32_t patch_embedding_forward(RoclipStream stream, const PatchEmbeddingForward* a) {
    const int64_t elements = int64_t(a->tokens) * a->width, groups = ceil_div(a->images_n, IMAGES);
    if (elements > INT32_MAX || groups > MAX_GRID_Y) return ROCLIP_REFUSED;
    const auto start = [&](auto v) {
        return launch<patch_forward_kernel<v>>(
            stream, dim3(ceil_div(elements, THREADS * v), groups), THREADS, 0, *a);
    };
    const bool wide =
        a->width % LANE == 0 && aligned(16, a->patches, a->cls, a->positions, a->out);
    return wide ? start(std::integral_constant<int, LANE>{})
                : start(std::integral_constant<int, 1>{});
}

int32_t patch_embedding_backward(RoclipStream stream, const PatchEmbeddingBackward* a) {
    const int64_t elements = int64_t(a->tokens) * a->width;
    if (elements > INT32_MAX) return ROCLIP_REFUSED;
    const auto start = [&](auto v) {
        const int64_t blocks = ceil_div(elements, COLUMN_TILE<v>);
        return launch<patch_backward_kernel<v>>(stream, blocks, COLUMN_THREADS, 0, *a);
    };
    const bool wide = a->width % LANE == 0 && aligned(16, a->dout, a->dpatches, a->dpositions);
    return wide ? start(std::integral_constant<int, LANE>{})
                : start(std::integral_constant<int, 1>{});
}

int32_t patch_embedding_backward_class(RoclipStream stream, const PatchEmbeddingBackwardClass* a) {
    const auto start = [&](auto v) {
        const int64_t blocks = ceil_div(a->width, COLUMN_TILE<v>);
        return launch<backward_class_kernel<v>>(stream, blocks, COLUMN_THREADS, 0, *a);
    };
    const bool wide = a->width % LANE == 0 && aligned(16, a->dout, a->dclass);
    return wide ? start(std::integral_constant<int, LANE>{})
                : start(std::integral_constant<int, 1>{});
}

}  // namespace ROCLIP_BUILD
