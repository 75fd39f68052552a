// Host side of a kernel file: how kernels are started.
#pragma once

#include "cuda.cuh"

namespace ROCLIP_BUILD {

// Whether every pointer may be read and written `bytes` at a time.
template <class... Pointers>
inline bool aligned(uintptr_t bytes, Pointers... pointers) {
    return ((reinterpret_cast<uintptr_t>(pointers) % bytes == 0) && ...);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Bytes of shared memory that one block may have.
inline size_t max_shared() {
#ifdef __CUDACC__
    int device = 0, bytes = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return 0;
    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return size_t(bytes);
#else
    return 227 * 1024;
#endif
}

// Multiprocessors of the current GPU: a persistent kernel wants a block on each.
inline int multiprocessors() {
#ifdef __CUDACC__
    int device = 0, count = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return 1;
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return count > 0 ? count : 1;
#else
    return sim::machine().multiprocessors;
#endif
}

// Starts `Kernel(args)` in clusters of CLUSTER blocks, neighbours in x; `shared` bytes of dynamic
// shared memory for each block. An empty grid is nothing to do; one that the clusters do not divide
// is refused.
template <auto Kernel, int CLUSTER, class Args>
inline int32_t launch(RoclipStream stream, dim3 grid, dim3 block, size_t shared, const Args& args) {
    static_assert(CLUSTER >= 1 && CLUSTER <= 8, "what every GPU with clusters takes");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
    if (grid.x % CLUSTER) return ROCLIP_REFUSED;
#ifdef __CUDACC__
    if (shared > 48 * 1024) {
        const cudaError_t error =
            cudaFuncSetAttribute(Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
        if (error != cudaSuccess) return error;
    }
    if constexpr (CLUSTER == 1) {
        Kernel<<<grid, block, shared, stream>>>(args);
        return cudaGetLastError();
    } else {
        cudaLaunchAttribute cluster = {};
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim = {CLUSTER, 1, 1};
        cudaLaunchConfig_t config = {};
        config.gridDim = grid;
        config.blockDim = block;
        config.dynamicSmemBytes = shared;
        config.stream = stream;
        config.attrs = &cluster;
        config.numAttrs = 1;
        return cudaLaunchKernelEx(&config, Kernel, args);
    }
#else
    (void)stream;
    return sim::launch(grid, block, CLUSTER, shared, [args] { Kernel(args); });
#endif
}

// As above, each block by itself.
template <auto Kernel, class Args>
inline int32_t launch(RoclipStream stream, dim3 grid, dim3 block, size_t shared, const Args& args) {
    return launch<Kernel, 1>(stream, grid, block, shared, args);
}

}  // namespace ROCLIP_BUILD
