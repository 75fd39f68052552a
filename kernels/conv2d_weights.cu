// conv2d on tensor cores: the gradient of the weights, a product of pixels with pixels.
//
// Tensors   Correlation in common/conv2d.cuh.
// Requires  stride 1; channels and outputs multiples of 8; x, dy and partial at 16 bytes; fewer
//           than 2^31 pixels, pictures of more than 16 / width rows, and not so wide that the ring
//           does not fit shared memory. Else the launcher refuses.
// Launch    grid: tiles of OUT outputs and IN channels, parts of the pixels. A block has all nine
//           taps of its tile, so that it reads every pixel once.
// Mapping   each warp OUT outputs x 1024 / OUT channels x the three taps of one row of the kernel,
//           fragments of mma.m16n8k16; outputs are its rows, pixels its k.
// Shared    STAGES x PIXELS pixels of dy; a ring of pixels of x, with those of the stages and
//           width + 1 on either side; zeros. By cp.async, STAGES - 1 steps of PIXELS ahead. At the
//           end the sums go through it, so that they are stored as they lie in memory.
// Barriers  one a step, by all threads; two for every eight outputs of the sums.
// Numerics  products exact, sums f32 over pixels in rising order.
// Cost      18 operations a pixel, channel and output; a block reads 2 * (OUT + IN) bytes a pixel:
//           with 64 x 64, 288 operations a byte from L2. Partial sums: 4 bytes * parts a weight.
// Twins     src/backend/{ops,cpu,cuda}/conv2d.rs, tests/ops/conv2d.rs
#include "common/conv2d.cuh"

namespace ROCLIP_BUILD {
namespace conv2d {
namespace {

constexpr int PIXELS = 32, STAGES = 4;

template <int OUT, int IN>
struct Shape {
    static constexpr int SPAN = 1024 / OUT;  // channels of a warp: 96 sums a thread
    static constexpr int THREADS = IN / SPAN * SIDE * WARP;
    // Sums are stored eight outputs at a time.
    static constexpr int ROWS = 8, PITCH = IN * TAPS + 4;
    static constexpr size_t ROOM = sizeof(float) * ROWS * PITCH;
};

// Steps that loads of x are ahead of those of dy.
__host__ __device__ __forceinline__ int lead_of(int width) {
    return (PIXELS + 1 + 2 * width) / PIXELS;
}

// Pixels in the ring, a power of two.
inline int ring_of(int width) {
    int ring = PIXELS * STAGES;
    while (ring < PIXELS * (lead_of(width) + STAGES)) ring *= 2;
    return ring;
}

struct Args {
    Correlation p;
    int ring;
};

// Starts copying channels [col, col + 8 * CHUNKS) of PIXELS pixels from `pixel` on, zeros where it
// is not one of the `pixels`; the row of the first is `row`, rows are counted modulo `ring`.
template <int CHUNKS, int THREADS>
__device__ __forceinline__ void fetch(bf16* to, const bf16* from, int64_t pixel, int pixels,
                                      int col, int channels, int row, int ring) {
#pragma unroll
    for (int i = threadIdx.x; i < PIXELS * CHUNKS; i += THREADS) {
        const int r = i / CHUNKS, c = i % CHUNKS, at = col + c * CHUNK;
        const bool inside = at < channels && pixel + r >= 0 && pixel + r < pixels;
        cp_async16(to + place<CHUNKS>(row + r & ring - 1, c),
                   from + (inside ? (pixel + r) * channels + at : 0), inside);
    }
}

// Where a pixel is in its picture; moved on by 16 at a time, which is less than a picture.
struct Where {
    int x, y;

    __device__ __forceinline__ void next(const Correlation& p) {
        x += 16 % p.width;
        y += 16 / p.width;
        if (x >= p.width) x -= p.width, ++y;
        if (y >= p.height) y -= p.height;
    }
};

// A warp's sums: [tap of its row][16 outputs][8 channels][fragment of mma.m16n8].
template <int OUT, int IN>
using Sums = float[SIDE][OUT / 16][Shape<OUT, IN>::SPAN / 8][4];

// sums += dy^T . x over the 16 pixels at `dy`; `row` is that of the lane's pixel in x, moved by the
// first tap; bit t of `inside` says whether its tap t is in the picture.
template <int OUT, int IN>
__device__ __forceinline__ void multiply(Sums<OUT, IN>& sums, const bf16* dy, const bf16* x,
                                         int row, int ring, const bf16* zeros, uint32_t inside,
                                         int channel) {
    const int lane = threadIdx.x % WARP;
    uint32_t a[OUT / 16][4];
#pragma unroll
    for (int i = 0; i < OUT / 16; ++i) {
        const int chunk = 2 * i + lane / 8 % 2;
        ldmatrix_x4_trans(a[i], dy + place<OUT / CHUNK>(lane % 8 + lane / 16 * 8, chunk));
    }
#pragma unroll
    for (int tap = 0; tap < SIDE; ++tap) {
#pragma unroll
        for (int j = 0; j < Shape<OUT, IN>::SPAN / 16; ++j) {
            const int chunk = channel / CHUNK + 2 * j + lane / 16;
            const int at = place<IN / CHUNK>(row + tap & ring - 1, chunk);
            uint32_t b[4];
            ldmatrix_x4_trans(b, inside >> tap & 1 ? x + at : zeros + at % ZEROS);
#pragma unroll
            for (int i = 0; i < OUT / 16; ++i) {
                mma_m16n8k16(sums[tap][i][2 * j], a[i], b[0], b[1]);
                mma_m16n8k16(sums[tap][i][2 * j + 1], a[i], b[2], b[3]);
            }
        }
    }
}

// Stores the sums of all warps as this part's, eight outputs at a time; `mine` is the warp's first
// channel of the tile, and the first tap of its row.
template <int OUT, int IN>
__device__ __forceinline__ void store_sums(const Sums<OUT, IN>& sums, const Correlation& p,
                                           float* room, int output, int channel, int2 mine) {
    typedef Shape<OUT, IN> S;
    const int lane = threadIdx.x % WARP;
    const int run = (p.channels - channel < IN ? p.channels - channel : IN) * TAPS;
    const int64_t line = int64_t(p.channels) * TAPS;
    float* const to = p.partial + blockIdx.y * p.outputs * line + int64_t(channel) * TAPS;
    float* const at = room + lane / 4 * S::PITCH + (mine.x + lane % 4 * 2) * TAPS + mine.y;
#pragma unroll
    for (int h = 0; h < OUT / S::ROWS; ++h) {
        __syncthreads();  // what was here is read
#pragma unroll
        for (int tap = 0; tap < SIDE; ++tap) {
#pragma unroll
            for (int j = 0; j < S::SPAN / 8; ++j) {
                const float* const two = sums[tap][h / 2][j] + h % 2 * 2;
                at[j * 8 * TAPS + tap] = two[0];
                at[(j * 8 + 1) * TAPS + tap] = two[1];
            }
        }
        __syncthreads();
        for (int i = threadIdx.x * 4; i < S::ROWS * run; i += S::THREADS * 4) {
            const int o = output + h * S::ROWS + i / run;
            if (o >= p.outputs) break;
            store(to + o * line + i % run, load<4>(room + i / run * S::PITCH + i % run));
        }
    }
}

template <int OUT, int IN>
__global__ void __launch_bounds__(Shape<OUT, IN>::THREADS) conv2d_weight_kernel(Args args) {
    typedef Shape<OUT, IN> S;
    const Correlation& p = args.p;
    DYNAMIC_SHARED(shared);
    bf16* const zeros = reinterpret_cast<bf16*>(shared);
    bf16* const dys = zeros + ZEROS;
    bf16* const xs = dys + STAGES * PIXELS * OUT;
    const int pixels = int(p.images * p.height * p.width), ring = args.ring;
    const int tiles = (p.channels + IN - 1) / IN;
    const int channel = int(blockIdx.x % tiles) * IN, output = int(blockIdx.x / tiles) * OUT;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int tap_row = warp % SIDE, warp_channel = warp / SIDE * S::SPAN;

    const int64_t all = (int64_t(pixels) + PIXELS - 1) / PIXELS;
    const int64_t first = all * blockIdx.y / gridDim.y * PIXELS;
    const int steps = int(all * (blockIdx.y + 1) / gridDim.y - first / PIXELS);
    const int lead = lead_of(p.width);
    const auto fetch_x = [&](int step) {
        fetch<IN / CHUNK, S::THREADS>(xs, p.x, first - p.width - 1 + int64_t(step) * PIXELS, pixels,
                                      channel, p.channels, step * PIXELS, ring);
    };
    const auto fetch_next = [&](int step) {
        if (step < steps) {
            fetch_x(step + lead);
            fetch<OUT / CHUNK, S::THREADS>(dys, p.dy, first + int64_t(step) * PIXELS, pixels,
                                           output, p.outputs, step * PIXELS, STAGES * PIXELS);
        }
        cp_async_commit();  // an empty group keeps the count of groups
    };
    if (threadIdx.x < ZEROS) zeros[threadIdx.x] = to_bf16(0.f);
    for (int step = 0; step < lead; ++step) fetch_x(step);
    for (int step = 0; step < STAGES - 1; ++step) fetch_next(step);

    // The lane's pixel, as ldmatrix wants it of the lanes.
    const int pixel = int(first) + lane % 16;
    Where where = {pixel % p.width, pixel / p.width % p.height};
    Sums<OUT, IN> sums = {};
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // this step is there for all, and nobody reads the one before it
        fetch_next(step + STAGES - 1);
#pragma unroll
        for (int k = 0; k < PIXELS; k += 16) {
            const int y = where.y + tap_row - 1;
            uint32_t inside = (where.x > 0 ? 1 : 0) | 2 | (where.x + 1 < p.width ? 4 : 0);
            if (y < 0 || y >= p.height) inside = 0;  // beyond the pixels dy is zero
            const int row = step * PIXELS + k + lane % 16 + tap_row * p.width;
            const bf16* const dy = dys + (step % STAGES * PIXELS + k) * OUT;
            multiply<OUT, IN>(sums, dy, xs, row, ring, zeros, inside, warp_channel);
            where.next(p);
        }
    }
    cp_async_wait<0>();
    const int2 mine = {warp_channel, tap_row * SIDE};
    store_sums<OUT, IN>(sums, p, reinterpret_cast<float*>(shared), output, channel, mine);
}

template <int OUT, int IN>
int32_t start_weights(RoclipStream stream, const Correlation& p) {
    const Args args = {p, ring_of(p.width)};
    const size_t held = sizeof(bf16) * (ZEROS + STAGES * PIXELS * OUT + size_t(args.ring) * IN);
    const size_t shared = held > Shape<OUT, IN>::ROOM ? held : Shape<OUT, IN>::ROOM;
    if (shared > max_shared()) return ROCLIP_REFUSED;
    const dim3 grid(ceil_div(p.outputs, OUT) * ceil_div(p.channels, IN), p.parts);
    return launch<conv2d_weight_kernel<OUT, IN>>(stream, grid, Shape<OUT, IN>::THREADS, shared,
                                                 args);
}

}  // namespace

int32_t start(RoclipStream stream, const Correlation& p) {
    const bool vector = p.channels % CHUNK == 0 && p.outputs % CHUNK == 0;
    const bool few = p.images * p.height * p.width < INT32_MAX / 2;
    const bool tall = 16 / p.width < p.height;
    if (!vector || !few || !tall || !aligned(16, p.x, p.dy, p.partial)) return ROCLIP_REFUSED;
    if (p.outputs <= 32 && p.channels <= 32) return start_weights<32, 32>(stream, p);
    if (p.channels <= 32) return start_weights<64, 32>(stream, p);
    return start_weights<64, 64>(stream, p);
}

}  // namespace conv2d
}  // namespace ROCLIP_BUILD
