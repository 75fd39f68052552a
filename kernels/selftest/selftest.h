/* Kernels that check the emulation, and on a GPU the helpers of common/asm.cuh: small, each with
 * faults that can be planted by number. Their results are exact on small integers.
 *
 * In the build for GPUs no fault is compiled in, and a `bug` other than 0 is refused. */
#ifndef ROCLIP_SELFTEST_H
#define ROCLIP_SELFTEST_H

#include "../roclip.h"

/* out[0] = sum of x, out[1] = its maximum, out[2] = how many are negative; of every 256 values. */
typedef struct SelftestReduce {
    const float *x; /* [blocks, 256] */
    float *out;     /* [blocks, 3] */
    int32_t blocks, bug;
} SelftestReduce;

/* out = a b^T, or a b where `b` is stored [k, n]; every pointer and k (or n) allow 16 bytes. */
typedef struct SelftestProduct {
    const bf16 *a; /* [m, k] */
    const bf16 *b; /* [n, k], or [k, n] */
    float *out;    /* [m, n] */
    int32_t m, n, k, bug;
} SelftestProduct;

/* out = a b^T of integers, exact while it stays below 2^24; k a multiple of 16. */
typedef struct SelftestProductS8 {
    const int8_t *a; /* [m, k] */
    const int8_t *b; /* [n, k] */
    float *out;      /* [m, n] */
    int32_t m, n, k, bug;
} SelftestProductS8;

#define ROCLIP_SELFTESTS(X)                                                                    \
    X(SelftestReduce, selftest_reduce)                                                         \
    X(SelftestProduct, selftest_product)       /* cp.async, ldmatrix, mma.sync */              \
    X(SelftestProduct, selftest_product_trans) /* with ldmatrix.trans, b is [k, n] */          \
    X(SelftestProduct, selftest_wgmma_128)     /* TMA, mbarrier, wgmma, setmaxnreg: sm_90a */  \
    X(SelftestProduct, selftest_wgmma_256)     /* a wider tile */                              \
    X(SelftestProduct, selftest_cluster_96)    /* and multicast, arrivals from other blocks */ \
    X(SelftestProduct, selftest_cluster_208)   /* a wider tile */                              \
    X(SelftestProductS8, selftest_cluster_s8_128) /* of int8 */                                \
    X(SelftestProductS8, selftest_cluster_s8_256)

typedef struct RoclipSelftests {
#define X(Args, name) int32_t (*name)(RoclipStream stream, const Args *args);
    ROCLIP_SELFTESTS(X)
#undef X
} RoclipSelftests;

#ifdef __cplusplus
extern "C" {
#endif
extern const RoclipSelftests roclip_selftests_cuda;
extern const RoclipSelftests roclip_selftests_sim;
#ifdef __cplusplus
}
#endif

#endif
