// Host side of TMA: the description of a matrix that `tma_load_2d` reads. The emulation has its own
// in sim/hopper.h.
#pragma once

#include "cuda.cuh"

#ifdef __CUDACC__
#include <cuda.h>

inline int32_t tensor_map_2d(CUtensorMap* map, CUtensorMapDataType type, uint32_t element,
                             const void* base, uint64_t rows, uint64_t columns, uint64_t stride,
                             uint32_t box_rows) {
    // Through the runtime, so that nothing links to the driver.
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    if (error != cudaSuccess) return error;
    if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
    const cuuint64_t extents[] = {columns, rows}, strides[] = {stride * element};
    const cuuint32_t box[] = {128 / element, box_rows}, steps[] = {1, 1};
    const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
        map, type, 2, const_cast<void*>(base), extents, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// A row-major matrix of bf16, `stride` elements from row to row, read in boxes of `box_rows` x 64
// that lie in shared memory with the 128-byte swizzle. Returns a cudaError_t: it wants base and
// stride to be multiples of 16 bytes, and at most 256 rows in a box.
inline int32_t tensor_map_2d(CUtensorMap* map, const __nv_bfloat16* base, uint64_t rows,
                             uint64_t columns, uint64_t stride, uint32_t box_rows) {
    return tensor_map_2d(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, base, rows, columns, stride,
                         box_rows);
}

// Of int8, in boxes of `box_rows` x 128.
inline int32_t tensor_map_2d(CUtensorMap* map, const int8_t* base, uint64_t rows, uint64_t columns,
                             uint64_t stride, uint32_t box_rows) {
    return tensor_map_2d(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, base, rows, columns, stride,
                         box_rows);
}

// Whether the current GPU runs the code that is made for sm_90a.
inline bool has_sm90a() {
    int device = 0, major = 0, minor = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return false;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    return major == 9 && minor == 0;
}
#endif
