// Convolutions of 3 x 3 and stride 1 on tensor cores: what their kernels have in common.
//
// Pixels are numbered through all pictures, so the neighbour of pixel p by tap (a, b) is pixel
// p + (a - 1) * width + b - 1, wherever that neighbour is inside the picture. A block keeps a run
// of such pixels in shared memory, which every tap reads at another place; instead of neighbours
// outside the picture ldmatrix is pointed at zeros that lie in the same banks.
#pragma once

#include "launch.cuh"

namespace ROCLIP_BUILD {
namespace conv2d {

constexpr int SIDE = 3, TAPS = SIDE * SIDE;
constexpr int CHUNK = 8;   // channels that are copied at once
constexpr int ZEROS = 64;  // elements: all banks

// A product of pixels with weights: forward, and backward by the input.
struct Product {
    const bf16* x;  // [pixels, channels]
    const bf16* w;  // [outputs, channels, 3, 3]; flipped [channels, outputs, 3, 3], read backwards
    bf16* packed;   // as in roclip.h
    bf16* y;        // [pixels, outputs]
    int64_t images;
    int height, width, channels, outputs;
    bool flipped;
};

// A product of pixels with pixels: backward by the weights.
struct Correlation {
    const bf16* x;   // [pixels, channels]
    const bf16* dy;  // [pixels, outputs]
    float* partial;  // [parts, outputs, channels, 3, 3]
    int64_t images;
    int height, width, channels, outputs, parts;
};

// ROCLIP_REFUSED where the tensor cores cannot do it.
int32_t start(RoclipStream stream, const Product& product);
int32_t start(RoclipStream stream, const Correlation& product);
int32_t start(RoclipStream stream, const Conv2dForwardPictures& args);
int32_t start(RoclipStream stream, const Conv2dBackwardWeightPictures& args);

// Where chunk c of row r lies in rows of CHUNKS chunks: eight rows that follow each other, from any
// one on, meet no bank conflict. Eight rows further it is 8*CHUNKS*CHUNK elements behind.
template <int CHUNKS>
__device__ __forceinline__ int place(int r, int c) {
    static_assert(CHUNKS == 4 || CHUNKS == 8, "64 or 128 bytes a row");
    return (r * CHUNKS + (c ^ (CHUNKS == 8 ? r % 8 : r / 2 % 4))) * CHUNK;
}

}  // namespace conv2d
}  // namespace ROCLIP_BUILD
