// Names for the PTX instructions that kernels use; the only file with inline assembly. The
// emulation has functions of the same names in sim/tensor.h, sim/hopper.h and sim/wgmma.h.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <cstdint>

struct CUtensorMap_st;
typedef struct CUtensorMap_st CUtensorMap;

// Dynamic shared memory: `unsigned char* name`, aligned to 1024 bytes.
#define DYNAMIC_SHARED(name)                                                     \
    extern __shared__ __align__(1024) unsigned char roclip_dynamic_shared[];     \
    unsigned char* name = roclip_dynamic_shared

// The address within the block's shared memory, as instructions want it.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- sm_80 and later: a warp ----

// Starts to copy 16 bytes into shared memory; zeros, and no look at `global`, where not `valid`.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}

// The thread's copies since the last commit become a group.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most N of the thread's groups are under way.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8x8 matrices of bf16 from shared memory, 16 bytes a row: lane l gives row l % 8 of matrix l
// / 8 and gets elements (l / 4, l % 4 * 2) and the next of each; `trans` swaps rows and columns.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Two matrices; lanes 0 to 15 give the rows.
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// d[16, 8] += a[16, 16] b[16, 8], bf16 into f32. With g = lane / 4 and t = lane % 4 * 2:
// d: (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1); a: pairs from (g, t), (g + 8, t), (g, t + 8),
// (g + 8, t + 8); b: pairs down a column from (t, g), (t + 8, g).
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two values as a register of bf16, `low` in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// Stores 16 bytes at once. Stores of values that it could share the compiler may take apart.
__device__ __forceinline__ void store16(void* global, const uint32_t (&words)[4]) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
}

// 2^x to 2 units in the last place; a result below 2^-126 is 0. One instruction: exp2f adds those
// that keep such results.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1/x to 1 unit in the last place; 0 where |x| > 2^126.
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Starts to bring memory nearer, into L2.
__device__ __forceinline__ void prefetch(const void* global) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// ---- sm_90a only: elsewhere these trap, and a launcher must not start a kernel that has them ----

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SM90A_ASM(...) asm volatile(__VA_ARGS__)
#else
#define SM90A_ASM(...) __trap()
#endif

// A barrier in shared memory that `count` arrivals and the expected bytes complete, phase by phase.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t count) {
    SM90A_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
              : "memory");
}

// Makes initialised barriers visible to TMA; then the block must synchronise. In a cluster
// `cluster_sync` must follow before another block arrives at them or loads to this one.
__device__ __forceinline__ void mbarrier_init_fence() {
    SM90A_ASM("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
    SM90A_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and the phase waits for that many bytes of TMA loads too.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
    SM90A_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
              :
              : "r"(shared_address(barrier)), "r"(bytes)
              : "memory");
}

// Arrives at the barrier at the same place in the block of that rank of the cluster, which must not
// have ended: see `cluster_sync`. It says that this thread has read, and does not publish what it
// wrote: a release to the whole cluster would be a fence of the whole GPU.
__device__ __forceinline__ void mbarrier_arrive_at(uint64_t* barrier, uint32_t rank) {
    SM90A_ASM(
        "{\n.reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(
            shared_address(barrier)),
        "r"(rank)
        : "memory");
}

// Waits for the end of the phase of that parity: 0 for the first, 1 for the second, 0 for the
// third. On a new barrier a wait for parity 1 returns at once.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    uint32_t done = 1;
    do {
        SM90A_ASM(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (!done);
}

// Starts to load the box at column c0, row c1 of a map that `tensor_map_2d` made. The tile in
// shared memory is aligned to 1024 bytes, 128 bytes a row, 128-byte swizzle; out-of-range elements
// are zero.
__device__ __forceinline__ void tma_load_2d(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                            int c0, int c1) {
    SM90A_ASM(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)),
        "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1)
        : "memory");
}

// As `tma_load_2d`, to the same place in every block of the cluster whose bit is set in `blocks`;
// the barrier at the same place in each of them gets the bytes.
__device__ __forceinline__ void tma_load_2d_multicast(void* shared, const CUtensorMap* map,
                                                      uint64_t* barrier, int c0, int c1,
                                                      uint16_t blocks) {
    SM90A_ASM(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(shared)),
        "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "h"(blocks)
        : "memory");
}

// The block's rank in its cluster; 0 where it was started without one.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank = 0;
    SM90A_ASM("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Waits for all threads of all blocks of the cluster, by whole warps as __syncthreads does; their
// writes before it are then visible. Before the first `mbarrier_arrive_at` or multicast it makes
// sure that the barriers of the other blocks are there, and at the end that no block is gone while
// another one still writes to its shared memory.
__device__ __forceinline__ void cluster_sync() {
    SM90A_ASM(
        "barrier.cluster.arrive.release.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
}

// Makes the thread's ordinary writes to shared memory visible to wgmma and TMA.
__device__ __forceinline__ void async_proxy_fence() {
    SM90A_ASM("fence.proxy.async.shared::cta;" ::: "memory");
}

// A tile for wgmma: K along the row of 128 bytes (64 bf16 or 128 int8), 128-byte swizzle, groups of
// eight rows 1024 bytes apart. One wgmma takes 32 bytes of K: add 2 for the next.
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* tile) {
    const uint64_t address = shared_address(tile);
    return (address & 0x3ffff) >> 4 | uint64_t(1) << 16 | uint64_t(64) << 32 | uint64_t(1) << 62;
}

// Before the first wgmma on registers that other instructions wrote.
__device__ __forceinline__ void wgmma_fence() {
    SM90A_ASM("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    SM90A_ASM("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most N of the warpgroup's groups are under way.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    SM90A_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Lists of registers, as operands and as the assembly's words; t is a number's leading digits.
#define D4(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define D8(c, i) D4(c, i), D4(c, i + 4)
#define D16(c, i) D8(c, i), D8(c, i + 8)
#define D48(c) D16(c, 0), D16(c, 16), D16(c, 32)
#define D64(c) D48(c), D16(c, 48)
#define D104(c) D64(c), D16(c, 64), D16(c, 80), D8(c, 96)
#define D128(c) D64(c), D16(c, 64), D16(c, 80), D16(c, 96), D16(c, 112)
#define WORDS4(t) "%" t "0, %" t "1, %" t "2, %" t "3"
#define WORDS8(t) WORDS4(t) ", %" t "4, %" t "5, %" t "6, %" t "7"
#define WORDS10(t) WORDS8(t) ", %" t "8, %" t "9, "
#define WORDS40 WORDS10("") WORDS10("1") WORDS10("2") WORDS10("3")
#define WORDS48 WORDS40 WORDS8("4")
#define WORDS60 WORDS40 WORDS10("4") WORDS10("5")
#define WORDS64 WORDS60 WORDS4("6")
#define WORDS100 WORDS60 WORDS10("6") WORDS10("7") WORDS10("8") WORDS10("9")
#define WORDS104 WORDS100 WORDS4("10")
#define WORDS128 WORDS100 WORDS10("10") WORDS10("11") WORDS8("12")

// d[64, N] = or += a[64, K] b[N, K]^T, by a warpgroup: warp w has rows 16 w to 16 w + 15, and of
// every eight columns what mma_m16n8k16's d has: d[j * 4 + i] is element i of columns 8 j to 8 j
// + 7. HALF is N / 2, the registers of a thread; `second` and `third` are the two numbers after it.
#define WGMMA(T, constraint, N, HALF, second, third, shape, more)                      \
    __device__ __forceinline__ void wgmma(T (&d)[HALF], uint64_t a, uint64_t b,       \
                                          bool accumulate) {                          \
        SM90A_ASM("{\n.reg .pred p;\nsetp.ne.b32 p, %" #third                         \
                  ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N shape                  \
                  " {" WORDS##HALF "}, %" #HALF ", %" #second ", p" more ";\n}"       \
                  : D##HALF(constraint)                                               \
                  : "l"(a), "l"(b), "r"(int(accumulate)));                            \
    }
#define WGMMA_BF16(N, HALF, second, third) \
    WGMMA(float, "+f", N, HALF, second, third, "k16.f32.bf16.bf16", ", 1, 1, 0, 0")
#define WGMMA_S8(N, HALF, second, third) \
    WGMMA(int32_t, "+r", N, HALF, second, third, "k32.s32.s8.s8", "")

// bf16 into f32: K is 16.
WGMMA_BF16(96, 48, 49, 50)
WGMMA_BF16(128, 64, 65, 66)
WGMMA_BF16(208, 104, 105, 106)
WGMMA_BF16(256, 128, 129, 130)
// int8 into int32: K is 32.
WGMMA_S8(128, 64, 65, 66)
WGMMA_S8(256, 128, 129, 130)

#undef D4
#undef D8
#undef D16
#undef D48
#undef D64
#undef D104
#undef D128
#undef WORDS4
#undef WORDS8
#undef WORDS10
#undef WORDS40
#undef WORDS48
#undef WORDS60
#undef WORDS64
#undef WORDS100
#undef WORDS104
#undef WORDS128
#undef WGMMA
#undef WGMMA_BF16
#undef WGMMA_S8

// The warpgroup keeps N registers a thread; N is a multiple of 8 from 24 to 256.
template <int N>
__device__ __forceinline__ void registers_release() {
    SM90A_ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// The warpgroup waits until it has N registers a thread.
template <int N>
__device__ __forceinline__ void registers_claim() {
    SM90A_ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

#undef SM90A_ASM
#endif
