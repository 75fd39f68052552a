// conv2d on tensor cores: forward, and backward by the input, which is the forward of dy with taps
// and channels of the weights exchanged.
//
// Tensors   Product in common/conv2d.cuh. First the weights are brought to the order
//           [channels / DEPTH][tap][outputs][DEPTH], zeros behind the last channel.
// Requires  stride 1; channels and outputs multiples of 8; x, y and packed at 16 bytes; fewer than
//           2^31 pixels; a width whose run of pixels fits shared memory. Else the launcher refuses.
// Launch    blocks of THREADS; a block has ROWS pixels and COLS outputs, those of one run of pixels
//           follow each other, so that the run is in L2.
// Mapping   each warp 64 pixels x WARP_COLS outputs, fragments of mma.m16n8k16.
// Shared    STAGES x COLS rows of weights of one tap, by cp.async STAGES - 1 ahead; two runs of
//           ROWS + 2 * width + 2 pixels, the next DEPTH channels coming in during nine taps; zeros.
// Barriers  one per tap, by all threads.
// Numerics  products exact, sums f32 over DEPTH channels, in each over taps; rounded once.
// Cost      18 operations a pixel, channel and output. A block reads (ROWS + 2 * width + 2) * 64
//           bytes of pixels and 9 * COLS * 64 of weights for 18 * ROWS * COLS * 32 operations: at
//           256 x 128 and a width of 28 some 200 operations a byte from L2.
// Twins     src/backend/{ops,cpu,cuda}/conv2d.rs, tests/ops/conv2d.rs
#include "common/conv2d.cuh"

namespace ROCLIP_BUILD {
namespace conv2d {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int DEPTH = ROCLIP_CONV_DEPTH, CHUNKS = DEPTH / CHUNK, STAGES = 4;
constexpr int BLOCKS = 4;             // of 16 pixels that a warp has
constexpr int STEP = THREADS / CHUNKS;  // rows that all threads copy at once

template <int COLS>
struct Shape {
    static constexpr int WARP_COLS = COLS < 64 ? COLS : 64, ACROSS = COLS / WARP_COLS;
    static constexpr int ROWS = WARPS / ACROSS * BLOCKS * 16;
};

// Pixels of a run: those of the block, a row and a pixel before and behind.
template <int COLS>
__host__ __device__ __forceinline__ int run_of(int width) {
    return Shape<COLS>::ROWS + 2 * width + 2;
}

template <int COLS>
size_t shared_bytes(int width) {
    const size_t elements = ZEROS + STAGES * COLS * DEPTH + size_t(2) * run_of<COLS>(width) * DEPTH;
    return elements * sizeof(bf16);
}

// ------------------------------------------------------------------------------------------- pack

constexpr int PACK_ROWS = 32, PACK_PITCH = DEPTH * TAPS + 2;
static_assert(PACK_ROWS == DEPTH, "a tile of weights has a square of channels");

// Grid: groups of DEPTH channels, tiles of PACK_ROWS outputs. The second index of w comes with its
// taps: what is read together lies together.
__global__ void __launch_bounds__(THREADS) conv2d_pack_kernel(Product p) {
    __shared__ bf16 room[PACK_ROWS][PACK_PITCH];
    const int channel = blockIdx.x * DEPTH, output = blockIdx.y * PACK_ROWS;
    const int first = p.flipped ? channel : output, firsts = p.flipped ? p.channels : p.outputs;
    const int second = p.flipped ? output : channel, seconds = p.flipped ? p.outputs : p.channels;
    for (int i = threadIdx.x; i < PACK_ROWS * DEPTH * TAPS; i += THREADS) {
        const int row = i / (DEPTH * TAPS), col = i % (DEPTH * TAPS);
        const bool inside = first + row < firsts && second + col / TAPS < seconds;
        const int64_t from = (int64_t(first + row) * seconds + second) * TAPS + col;
        room[row][col] = inside ? p.w[from] : to_bf16(0.f);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TAPS * PACK_ROWS * DEPTH; i += THREADS) {
        const int tap = i / (PACK_ROWS * DEPTH), row = i / DEPTH % PACK_ROWS, k = i % DEPTH;
        if (output + row >= p.outputs) continue;
        const int64_t line = (int64_t(blockIdx.x) * TAPS + tap) * p.outputs + output + row;
        p.packed[line * DEPTH + k] =
            p.flipped ? room[k][row * TAPS + TAPS - 1 - tap] : room[row][k * TAPS + tap];
    }
}

// --------------------------------------------------------------------------------------- products

// Bit t: whether tap t of the pixel is inside its picture.
__device__ __forceinline__ uint32_t taps_inside(const Product& p, int pixel) {
    const int x = pixel % p.width, y = pixel / p.width % p.height;
    const uint32_t row = (x > 0 ? 1 : 0) | 2 | (x + 1 < p.width ? 4 : 0);
    return (y > 0 ? row : 0) | row << 3 | (y + 1 < p.height ? row << 6 : 0);
}

// Starts copying the run's channels [channel, channel + DEPTH), zeros beyond the pictures.
template <int COLS>
__device__ __forceinline__ void fetch_run(bf16* to, const Product& p, int64_t first, int pixels,
                                          int channel) {
    const int c = threadIdx.x % CHUNKS;
    const bool wanted = channel + c * CHUNK < p.channels;
#pragma unroll 4
    for (int r = threadIdx.x / CHUNKS; r < run_of<COLS>(p.width); r += STEP) {
        const int64_t pixel = first + r;
        const bool inside = wanted && pixel >= 0 && pixel < pixels;
        const bf16* const from = p.x + (inside ? pixel * p.channels + channel + c * CHUNK : 0);
        cp_async16(to + place<CHUNKS>(r, c), from, inside);
    }
}

// Starts copying the weights of one group and tap.
template <int COLS>
__device__ __forceinline__ void fetch_weights(bf16* to, const Product& p, int step, int col) {
    const int c = threadIdx.x % CHUNKS;
    const bf16* const from = p.packed + int64_t(step) * p.outputs * DEPTH + c * CHUNK;
#pragma unroll
    for (int r = threadIdx.x / CHUNKS; r < COLS; r += STEP) {
        const bool inside = col + r < p.outputs;
        cp_async16(to + place<CHUNKS>(r, c), from + int64_t(inside ? col + r : 0) * DEPTH, inside);
    }
}

// A warp's tile: [16 pixels][8 outputs][fragment of mma.m16n8].
template <int COLS>
using Tile = float[BLOCKS][Shape<COLS>::WARP_COLS / 8][4];

// tile += run . weights^T at one tap, over `depth` channels or DEPTH. `row` is the lane's first
// pixel in the run, moved by the tap; bit i of `inside` says whether its i-th is in the picture.
template <int COLS>
__device__ __forceinline__ void multiply(Tile<COLS>& tile, const bf16* run, const bf16* zeros,
                                         const bf16* weights, int row, uint32_t inside, int depth) {
    const int lane = threadIdx.x % WARP;
    const int left = place<CHUNKS>(row, lane / 16);
    const int right = place<CHUNKS>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        if (k >= depth) break;
        uint32_t a[BLOCKS][4];
#pragma unroll
        for (int i = 0; i < BLOCKS; ++i) {
            const int at = (left ^ k) + i * 16 * DEPTH;
            ldmatrix_x4(a[i], inside >> i & 1 ? run + at : zeros + at % ZEROS);
        }
#pragma unroll
        for (int j = 0; j < Shape<COLS>::WARP_COLS / 16; ++j) {
            uint32_t b[4];
            ldmatrix_x4(b, weights + (right ^ k) + j * 16 * DEPTH);
#pragma unroll
            for (int i = 0; i < BLOCKS; ++i) {
                mma_m16n8k16(tile[i][2 * j], a[i], b[0], b[1]);
                mma_m16n8k16(tile[i][2 * j + 1], a[i], b[2], b[3]);
            }
        }
    }
}

// Stores a warp's tile, whose first element is (row, col); of 32 outputs, the four lanes of a pixel
// hold two of every eight, and each stores eight.
template <int COLS>
__device__ __forceinline__ void store_tile(const Tile<COLS>& tile, const Product& p, int64_t row,
                                           int col, int pixels) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int h = 0; h < 2 * BLOCKS; ++h) {
        const int64_t pixel = row + h * 8 + lane / 4;
#pragma unroll
        for (int j = 0; j < Shape<COLS>::WARP_COLS / 8; j += 4) {
            Vec<uint32_t, 4> packed;
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const float* const two = tile[h / 2][j + k] + h % 2 * 2;
                packed[k] = pack_bf16(two[0], two[1]);
            }
            transpose_quad(packed);
            const int output = col + j * 8 + lane % 4 * 8;
            if (pixel >= pixels || output >= p.outputs) continue;
            store(reinterpret_cast<uint32_t*>(p.y + pixel * p.outputs + output), packed);
        }
    }
}

template <int COLS>
__global__ void __launch_bounds__(THREADS, COLS == 32 ? 2 : 1) conv2d_product_kernel(Product p) {
    constexpr int WARP_COLS = Shape<COLS>::WARP_COLS, ACROSS = Shape<COLS>::ACROSS;
    DYNAMIC_SHARED(shared);
    bf16* const weights = reinterpret_cast<bf16*>(shared);
    bf16* const zeros = weights + STAGES * COLS * DEPTH;
    bf16* const runs = zeros + ZEROS;
    const int pixels = int(p.images * p.height * p.width);
    const int tiles = (p.outputs + COLS - 1) / COLS, col = int(blockIdx.x % tiles) * COLS;
    const int64_t row = int64_t(blockIdx.x / tiles) * Shape<COLS>::ROWS;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int warp_row = warp / ACROSS * BLOCKS * 16, warp_col = warp % ACROSS * WARP_COLS;

    if (threadIdx.x < ZEROS) zeros[threadIdx.x] = to_bf16(0.f);
    uint32_t inside[BLOCKS];
#pragma unroll
    for (int i = 0; i < BLOCKS; ++i) {
        inside[i] = taps_inside(p, int(row) + warp_row + i * 16 + lane % 16);
    }

    const int groups = (p.channels + DEPTH - 1) / DEPTH, steps = groups * TAPS;
    const int run_elements = run_of<COLS>(p.width) * DEPTH;
    const int64_t first = row - p.width - 1;
    const auto fetch_next = [&](int step) {
        if (step < steps) {
            fetch_weights<COLS>(weights + step % STAGES * COLS * DEPTH, p, step, col);
        }
        cp_async_commit();  // an empty group keeps the count of groups
    };
    fetch_run<COLS>(runs, p, first, pixels, 0);
    for (int step = 0; step < STAGES - 1; ++step) fetch_next(step);

    Tile<COLS> tile = {};
    int step = 0;
    for (int group = 0; group < groups; ++group) {
        bf16* const run = runs + group % 2 * run_elements;
#pragma unroll 1
        for (int tap = 0; tap < TAPS; ++tap, ++step) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();  // this step is there for all, and nobody reads the one before it
            if (tap == 0 && group + 1 < groups) {
                bf16* const next = runs + (group + 1) % 2 * run_elements;
                fetch_run<COLS>(next, p, first, pixels, (group + 1) * DEPTH);
            }
            fetch_next(step + STAGES - 1);
            uint32_t now = 0;
#pragma unroll
            for (int i = 0; i < BLOCKS; ++i) now |= (inside[i] >> tap & 1) << i;
            const int moved = warp_row + lane % 16 + tap / SIDE * p.width + tap % SIDE;
            const bf16* const w = weights + (step % STAGES * COLS + warp_col) * DEPTH;
            multiply<COLS>(tile, run, zeros, w, moved, now, p.channels - group * DEPTH);
        }
    }
    cp_async_wait<0>();
    store_tile<COLS>(tile, p, row + warp_row, col + warp_col, pixels);
}

template <int COLS>
int32_t start_product(RoclipStream stream, const Product& p) {
    const size_t shared = shared_bytes<COLS>(p.width);
    if (shared > max_shared()) return ROCLIP_REFUSED;
    const int64_t rows = ceil_div(p.images * p.height * p.width, Shape<COLS>::ROWS);
    const int64_t blocks = rows * ceil_div(p.outputs, COLS);
    if (blocks > INT32_MAX) return ROCLIP_REFUSED;
    const dim3 grid(ceil_div(p.channels, DEPTH), ceil_div(p.outputs, PACK_ROWS));
    const int32_t error = launch<conv2d_pack_kernel>(stream, grid, THREADS, 0, p);
    if (error) return error;
    return launch<conv2d_product_kernel<COLS>>(stream, dim3(unsigned(blocks)), THREADS, shared, p);
}

}  // namespace

int32_t start(RoclipStream stream, const Product& p) {
    const bool vector = p.channels % CHUNK == 0 && p.outputs % CHUNK == 0;
    const bool few = p.images * p.height * p.width < INT32_MAX / 2;
    if (!vector || !few || !aligned(16, p.x, p.y, p.packed)) return ROCLIP_REFUSED;
    if (p.outputs <= 32) return start_product<32>(stream, p);
    if (p.outputs <= 64) return start_product<64>(stream, p);
    return start_product<128>(stream, p);
}

}  // namespace conv2d
}  // namespace ROCLIP_BUILD
