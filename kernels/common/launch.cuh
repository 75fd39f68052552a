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

// Starts `Kernel(args)`; `shared` bytes of dynamic shared memory. An empty grid is nothing to do.
template <auto Kernel, class Args>
inline int32_t launch(RoclipStream stream, dim3 grid, dim3 block, size_t shared, const Args& args) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
#ifdef __CUDACC__
    if (shared > 48 * 1024) {
        const cudaError_t error =
            cudaFuncSetAttribute(Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
        if (error != cudaSuccess) return error;
    }
    Kernel<<<grid, block, shared, stream>>>(args);
    return cudaGetLastError();
#else
    (void)stream;
    return sim::launch(grid, block, shared, [args] { Kernel(args); });
#endif
}

}  // namespace ROCLIP_BUILD
