// What kernels are written with, under nvcc and under the emulation alike: no kernel file contains
// an #ifdef. Device code here; `launch.cuh` starts kernels.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_runtime.h>
// The two builds of one kernel must not share a symbol.
#define ROCLIP_BUILD cuda_build
constexpr bool EMULATED = false;
#else
#include "sim/sim.h"
#define ROCLIP_BUILD sim_build
constexpr bool EMULATED = true;
#endif

#include "asm.cuh"
#include "roclip.h"

#include <cmath>
#include <cstdint>

namespace ROCLIP_BUILD {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr float LOG2E = 1.4426950408889634f;

// V neighbouring elements, moved by one instruction; V*sizeof(T) is at most 16.
template <class T, int V>
struct alignas(sizeof(T) * V) Vec {
    T at[V];
    __device__ T& operator[](int i) { return at[i]; }
    __device__ const T& operator[](int i) const { return at[i]; }
};

template <int V, class T>
__device__ __forceinline__ Vec<T, V> load(const T* from) {
    return *reinterpret_cast<const Vec<T, V>*>(from);
}

template <int V, class T>
__device__ __forceinline__ void store(T* to, const Vec<T, V>& value) {
    *reinterpret_cast<Vec<T, V>*>(to) = value;
}

__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ bf16 to_bf16(float x) { return __float2bfloat16(x); }  // to nearest even

// Every lane gets the sum or maximum over the warp, added in one fixed order.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    }
    return x;
}

// Four values of each of four neighbouring lanes: the i-th lane gets the i-th of each.
__device__ __forceinline__ void transpose_quad(Vec<uint32_t, 4>& v) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
        const bool upper = threadIdx.x & step;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (k & step) continue;
            const uint32_t given = upper ? v[k] : v[k + step];
            const uint32_t got = __shfl_xor_sync(ALL_LANES, given, step);
            if (upper) {
                v[k] = got;
            } else {
                v[k + step] = got;
            }
        }
    }
}

// The sum over a block of THREADS, in one fixed order; thread 0 gets it. `room` is shared memory
// for THREADS / WARP values.
template <int THREADS, class T>
__device__ __forceinline__ T block_sum(T x, T* room) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    x = warp_sum(x);
    if (lane == 0) room[warp] = x;
    __syncthreads();
    T sum = 0;
    if (threadIdx.x == 0) {
        for (int w = 0; w < THREADS / WARP; ++w) sum += room[w];
    }
    return sum;
}

}  // namespace ROCLIP_BUILD
