// conv2d of pictures on tensor cores: stride 2, three planes in f32, 27 values for an output.
//
// Tensors   Conv2dForwardPictures, Conv2dBackwardWeightPictures in roclip.h.
// Requires  stride 2; a width that is a multiple of 4; outputs a multiple of 8; images, y and dy at
//           16 bytes; pictures of which ROWS rows fit shared memory. Else the launcher refuses.
// Launch    the work is cut into units: ROWS rows of a picture's result, over its whole width.
//           forward: a block a unit. backward: tiles of OUT outputs, parts of the units; the next
//           unit comes in while this one is multiplied. Then `add_parts`.
// Mapping   warps take 16 pixels of a unit at a time; the 27 values are padded to 32 by zeros.
//           forward: pixels x values x outputs; backward: outputs x pixels x values.
// Shared    a unit's rows of the picture as they are in memory, zeros around, by cp.async; rounded
//           as they are read. backward: twice that and dy; at the end the warps' sums.
// Barriers  one for a unit's arrival; backward one more before the next overwrites it.
// Numerics  products exact, sums f32; over pixels of a warp, then over warps, then over parts.
// Cost      bytes: forward 48 a pixel of the result and 2 * O, backward the same once for each OUT.
// Twins     src/backend/{ops,cpu,cuda}/conv2d.rs, tests/ops/conv2d.rs
#include "common/conv2d.cuh"

namespace ROCLIP_BUILD {
namespace conv2d {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int STRIDE = 2, PLANES = 3, VALUES = PLANES * TAPS;
constexpr int ROWS = 4, LINES = STRIDE * ROWS + 1;  // of a unit; of a plane of its picture
constexpr int OUT = 32;
constexpr int QUAD = 4;  // pixels that are copied at once

// Pictures and how they are cut; a line begins with QUAD zeros and ends with as many.
struct Pictures {
    const float* at;
    int height, width;

    __host__ __device__ int down() const { return (height + STRIDE - 1) / STRIDE; }
    __host__ __device__ int across() const { return (width + STRIDE - 1) / STRIDE; }
    __host__ __device__ int units() const { return (down() + ROWS - 1) / ROWS; }
    __host__ __device__ int pitch() const { return width + 2 * QUAD; }
    __host__ __device__ int elements() const { return PLANES * LINES * pitch(); }
};

struct Unit {
    int64_t first;  // pixel of all results
    int64_t image;
    int row, pixels;
};

__device__ __forceinline__ Unit unit_of(const Pictures& p, int64_t i) {
    const int row = int(i % p.units()) * ROWS, image_rows = p.down();
    const int rows = image_rows - row < ROWS ? image_rows - row : ROWS;
    const int64_t image = i / p.units();
    return {(image * image_rows + row) * p.across(), image, row, rows * p.across()};
}

// Starts copying a unit's part of its picture, zeros outside.
__device__ __forceinline__ void fetch_picture(float* to, const Pictures& p, const Unit& unit) {
    const int quads = p.pitch() / QUAD;
#pragma unroll 4
    for (int i = threadIdx.x; i < PLANES * LINES * quads; i += THREADS) {
        const int line = i / quads, x = (i % quads - 1) * QUAD;
        const int y = unit.row * STRIDE - 1 + line % LINES;
        const bool inside = x >= 0 && x < p.width && y >= 0 && y < p.height;
        const int64_t from = ((unit.image * PLANES + line / LINES) * p.height + y) * p.width + x;
        cp_async16(to + i * QUAD, p.at + (inside ? from : 0), inside);
    }
}

// Where the value at the first tap of the unit's pixel lies; that of the first pixel beyond it.
__device__ __forceinline__ int place_of(const Pictures& p, const Unit& unit, int pixel) {
    if (pixel >= unit.pixels) pixel = 0;
    return pixel / p.across() * STRIDE * p.pitch() + pixel % p.across() * STRIDE + QUAD - 1;
}

// How much further value k of a pixel lies; negative where there is none.
__device__ __forceinline__ int offset_of(const Pictures& p, int k) {
    if (k >= VALUES) return -1;
    return (k / TAPS * LINES + k % TAPS / SIDE) * p.pitch() + k % SIDE;
}

__device__ __forceinline__ float value(const float* picture, int place, int offset) {
    return offset < 0 ? 0.f : picture[place + offset];
}

// ---------------------------------------------------------------------------------------- forward

__global__ void __launch_bounds__(THREADS, 3) conv2d_pictures_kernel(Conv2dForwardPictures a) {
    DYNAMIC_SHARED(shared);
    float* const picture = reinterpret_cast<float*>(shared);
    const Pictures p = {a.images, a.height, a.width};
    const Unit unit = unit_of(p, blockIdx.x);
    fetch_picture(picture, p, unit);
    cp_async_commit();
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int offsets[8];  // of values 2 t, 2 t + 1, 2 t + 8, ...
#pragma unroll
    for (int i = 0; i < 8; ++i) offsets[i] = offset_of(p, lane % 4 * 2 + i / 2 * 8 + i % 2);
    for (int output = 0; output < a.outputs; output += OUT) {
        uint32_t weights[OUT / 8][4];  // fragments of both halves of the values
#pragma unroll
        for (int j = 0; j < OUT / 8; ++j) {
            const int o = output + j * 8 + lane / 4;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float two[2];
                for (int e = 0; e < 2; ++e) {
                    const int k = lane % 4 * 2 + i * 8 + e;
                    const bool some = o < a.outputs && k < VALUES;
                    two[e] = some ? to_float(a.w[int64_t(o) * VALUES + k]) : 0.f;
                }
                weights[j][i] = pack_bf16(two[0], two[1]);
            }
        }
        cp_async_wait<0>();  // the picture came while weights were read
        __syncthreads();
        for (int first = warp * 16; first < unit.pixels; first += WARPS * 16) {
            uint32_t pixels[2][4];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int place = place_of(p, unit, first + h * 8 + lane / 4);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    pixels[i / 2][i % 2 * 2 + h] =
                        pack_bf16(value(picture, place, offsets[2 * i]),
                                  value(picture, place, offsets[2 * i + 1]));
                }
            }
            float tile[OUT / 8][4] = {};
#pragma unroll
            for (int j = 0; j < OUT / 8; ++j) {
                mma_m16n8k16(tile[j], pixels[0], weights[j][0], weights[j][1]);
                mma_m16n8k16(tile[j], pixels[1], weights[j][2], weights[j][3]);
            }
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                Vec<uint32_t, 4> packed;
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    packed[j] = pack_bf16(tile[j][2 * h], tile[j][2 * h + 1]);
                }
                transpose_quad(packed);
                const int pixel = first + h * 8 + lane / 4, o = output + lane % 4 * 8;
                if (pixel >= unit.pixels || o >= a.outputs) continue;
                bf16* const to = a.y + (unit.first + pixel) * a.outputs + o;
                store16(to, packed.at);
            }
        }
    }
}

// -------------------------------------------------------------------------------- backward_weight

constexpr int CHUNKS = OUT / CHUNK;
constexpr size_t ROOM = sizeof(float) * WARPS * OUT * 32;

// Pixels of dy in shared memory: whole sixteens.
__host__ __device__ __forceinline__ int padded(int pixels) { return (pixels + 15) / 16 * 16; }

// Bytes of one unit.
__host__ __device__ __forceinline__ int unit_bytes(const Pictures& p) {
    const int pixels = padded(ROWS * p.across());
    return (p.elements() * 4 + pixels * OUT * 2 + 127) / 128 * 128;
}

__device__ __forceinline__ bf16* dy_of(unsigned char* room, const Pictures& p) {
    return reinterpret_cast<bf16*>(room + unit_bytes(p) - padded(ROWS * p.across()) * OUT * 2);
}

// Starts copying a unit's outputs [output, output + OUT) of dy, zeros beyond its pixels.
__device__ __forceinline__ void fetch_dy(bf16* to, const Conv2dBackwardWeightPictures& a,
                                         const Unit& unit, int output) {
    const int c = threadIdx.x % CHUNKS;
#pragma unroll 4
    for (int r = threadIdx.x / CHUNKS; r < padded(unit.pixels); r += THREADS / CHUNKS) {
        const bool inside = r < unit.pixels && output + c * CHUNK < a.outputs;
        const int64_t from = (unit.first + r) * a.outputs + output + c * CHUNK;
        cp_async16(to + place<CHUNKS>(r, c), a.dy + (inside ? from : 0), inside);
    }
}

// sums += dy^T . values over 16 pixels of a unit.
__device__ __forceinline__ void multiply(float (&sums)[OUT / 16][4][4], const bf16* dy,
                                         const float* picture, const Pictures& p, const Unit& unit,
                                         int first, const int (&offsets)[4]) {
    const int lane = threadIdx.x % WARP;
    uint32_t a[OUT / 16][4];
#pragma unroll
    for (int i = 0; i < OUT / 16; ++i) {
        const int row = first + lane % 8 + lane / 16 * 8;
        ldmatrix_x4_trans(a[i], dy + place<CHUNKS>(row, 2 * i + lane / 8 % 2));
    }
    int places[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        places[i] = place_of(p, unit, first + lane % 4 * 2 + i / 2 * 8 + i % 2);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        uint32_t b[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            b[h] = pack_bf16(value(picture, places[2 * h], offsets[j]),
                             value(picture, places[2 * h + 1], offsets[j]));
        }
#pragma unroll
        for (int i = 0; i < OUT / 16; ++i) mma_m16n8k16(sums[i][j], a[i], b[0], b[1]);
    }
}

// Grid: tiles of OUT outputs, parts of the units.
__global__ void __launch_bounds__(THREADS, 2)
    conv2d_pictures_weight_kernel(Conv2dBackwardWeightPictures a) {
    DYNAMIC_SHARED(shared);
    const Pictures p = {a.images, a.height, a.width};
    const int64_t all = a.images_n * p.units();
    const int64_t begin = all * blockIdx.y / gridDim.y, end = all * (blockIdx.y + 1) / gridDim.y;
    const int output = blockIdx.x * OUT, bytes = unit_bytes(p);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int offsets[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) offsets[j] = offset_of(p, j * 8 + lane / 4);
    const auto room = [&](int64_t i) { return shared + (i - begin) % 2 * bytes; };
    const auto fetch = [&](int64_t i) {
        if (i < end) {
            const Unit unit = unit_of(p, i);
            fetch_picture(reinterpret_cast<float*>(room(i)), p, unit);
            fetch_dy(dy_of(room(i), p), a, unit, output);
        }
        cp_async_commit();
    };
    float sums[OUT / 16][4][4] = {};
    fetch(begin);
    for (int64_t i = begin; i < end; ++i) {
        fetch(i + 1);
        cp_async_wait<1>();
        __syncthreads();
        const Unit unit = unit_of(p, i);
        const float* const picture = reinterpret_cast<const float*>(room(i));
        for (int first = warp * 16; first < unit.pixels; first += WARPS * 16) {
            multiply(sums, dy_of(room(i), p), picture, p, unit, first, offsets);
        }
        __syncthreads();  // what the next unit but one overwrites is read
    }
    cp_async_wait<0>();
    float(*const parts)[OUT][32] = reinterpret_cast<float(*)[OUT][32]>(shared);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
            for (int i = 0; i < OUT / 16; ++i) {
                const int o = i * 16 + e / 2 * 8 + lane / 4;
                parts[warp][o][j * 8 + lane % 4 * 2 + e % 2] = sums[i][j][e];
            }
        }
    }
    __syncthreads();
    float* const to = a.partial + int64_t(blockIdx.y) * a.outputs * VALUES;
    for (int i = threadIdx.x; i < OUT * VALUES; i += THREADS) {
        const int o = i / VALUES;
        if (output + o >= a.outputs) break;
        float sum = 0;
        for (int w = 0; w < WARPS; ++w) sum += parts[w][o][i % VALUES];
        to[int64_t(output) * VALUES + i] = sum;
    }
}

// Whether the pictures and the other tensor are as the kernels want them.
template <class Args>
bool fits(const Args& a, const bf16* other) {
    return a.stride == STRIDE && a.width % QUAD == 0 && a.outputs % CHUNK == 0 &&
           aligned(16, a.images, other);
}

}  // namespace

int32_t start(RoclipStream stream, const Conv2dForwardPictures& a) {
    const Pictures p = {a.images, a.height, a.width};
    const size_t shared = sizeof(float) * p.elements();
    const int64_t blocks = a.images_n * p.units();
    if (!fits(a, a.y) || shared > max_shared() || blocks > INT32_MAX) return ROCLIP_REFUSED;
    return launch<conv2d_pictures_kernel>(stream, dim3(unsigned(blocks)), THREADS, shared, a);
}

int32_t start(RoclipStream stream, const Conv2dBackwardWeightPictures& a) {
    const Pictures p = {a.images, a.height, a.width};
    const size_t units = size_t(2) * unit_bytes(p), shared = units > ROOM ? units : ROOM;
    if (!fits(a, a.dy) || shared > max_shared()) return ROCLIP_REFUSED;
    const dim3 grid(ceil_div(a.outputs, OUT), a.parts);
    return launch<conv2d_pictures_weight_kernel>(stream, grid, THREADS, shared, a);
}

}  // namespace conv2d
}  // namespace ROCLIP_BUILD
