// The K best of the scores that a thread has seen, best first: what the kernels of `pool` keep
// instead of the scores.
//
// Scores come as `Values`: some of a row's columns, in rising order, element i of them `i / 2 * 8 +
// i % 2` columns behind the first. That is how the fragments of mma.sync and of wgmma lie.
#pragma once

#include "cuda.cuh"

namespace ROCLIP_BUILD {

struct Best {
    float score;
    uint32_t index;
};

__device__ __forceinline__ Best none() { return {NAN, 0}; }

// Whether `a` comes before `b`: the larger score; of equal ones the lower row. NaN comes last.
__device__ __forceinline__ bool before(Best a, Best b) {
    return a.score > b.score || (a.score == b.score && a.index < b.index) ||
           (isnan(b.score) && !isnan(a.score));
}

template <int K>
struct Nearest {
    Best best[K];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int k = 0; k < K; ++k) best[k] = none();
    }

    // Takes one in, if it is among the K best.
    __device__ __forceinline__ void insert(Best candidate) {
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const bool ahead = before(candidate, best[k]);
            const Best behind = ahead ? best[k] : candidate;
            if (ahead) best[k] = candidate;
            candidate = behind;
        }
    }

    // Takes N values in, the first of which is column `first`. Most tiles hold none of the best:
    // a maximum, one instruction a value, says so, and only where it wins is its column looked up.
    // The values that were taken are NaN afterwards.
    template <int N, class Values>
    __device__ __forceinline__ void take(Values values, uint32_t first) {
        bool more;
        do {
            float top = NAN;  // fmaxf prefers a number
#pragma unroll
            for (int i = 0; i < N; ++i) top = fmaxf(top, values(i));
            // columns rise: a tie does not displace
            more = !isnan(top) && !(top <= best[K - 1].score);
            if (!more) break;
            int at = 0;
#pragma unroll
            for (int i = N - 1; i >= 0; --i) {  // the lowest column is the last to be seen
                if (values(i) == top) at = i;
            }
            insert({top, first + uint32_t(at / 2 * 8 + at % 2)});
            if constexpr (K > 1) {
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    if (i == at) values(i) = NAN;
                }
            }
        } while (K > 1 && more);
    }

    __device__ __forceinline__ void join(const Nearest& other) {
#pragma unroll
        for (int k = 0; k < K; ++k) insert(other.best[k]);
    }

    // The four lanes that share a row all get the best of all four.
    __device__ __forceinline__ void join_quad() {
#pragma unroll
        for (int step = 1; step < 4; step *= 2) {
            Nearest other;
#pragma unroll
            for (int k = 0; k < K; ++k) {
                other.best[k] = {__shfl_xor_sync(ALL_LANES, best[k].score, step),
                                 __shfl_xor_sync(ALL_LANES, best[k].index, step)};
            }
            join(other);
        }
    }
};

}  // namespace ROCLIP_BUILD
