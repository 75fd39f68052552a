// Matrix products on Hopper (sm_90a): tiles of inner products at the speed of the tensor cores.
//
//   tile[i, j] = <rows[row + i], cols[col + j]>        bf16 in, f32 out; or int8 in, int32 out
//
// `pool` and `contrastive` have this core in common. It hands every finished tile to a consumer
// while it lies in registers, so what they make of it (a maximum, a sum) costs no memory.
//
//   +-- cluster: two blocks, one per SM -----------------------------------------------------+
//   |  block 0: rows 0 to 127 of a band          block 1: rows 128 to 255                    |
//   |  producer: one thread; loads its rows and HALF of the columns, which both blocks get   |
//   |        |  full[s]: the stage's bytes are there                                         |
//   |        v                                                                               |
//   |  ring of STAGES:   [ rows 128 x 128 B | columns COLS x 128 B ]                         |
//   |        |                                        ^                                      |
//   |        v                                        |  empty[s]: both blocks' consumers    |
//   |  consumers: two warpgroups of 64 rows each -----+            are done with the stage   |
//   +----------------------------------------------------------------------------------------+
//
// Why so. A tensor core takes 1024 cycles for a step (128 x 256 products of 64 elements), and the
// step's operands are 48 KiB, more than L2 delivers to every SM in that time. A column tile that
// two SMs share is fetched once and multicast to both: 32 KiB. TMA moves boxes of any matrix into
// shared memory without a register or an address computed by anyone, and wgmma reads them from
// there. So one thread suffices to load, and the consumers only multiply; `setmaxnreg` gives them
// the registers that the producer does not need, for 128 accumulators a thread. There are two of
// them so that one multiplies while the other looks at its finished tile. Blocks stay for the whole
// kernel and take one item of work after another: the ring runs on across tiles, and loads of the
// next tile are under way while this one is looked at.
//
// Launch    2 x clusters blocks of THREADS, in clusters of 2, `shared_bytes` of shared memory.
// Mapping   of a consumer's tile of 64 x COLS, warp w has rows 16 w to 16 w + 15; see `row_of`,
//           `col_of`.
// Barriers  full[s]   one arrival, the producer's, and the bytes of the stage.
//           empty[s]  one arrival of each consumer warpgroup of both blocks: what multicast
//                     overwrites is the neighbour's stage, too.
//           The producer's n-th pass over a stage waits for the end of empty's phase n - 1, the
//           consumers' for the end of full's phase n.
//           lead      one arrival, of the first consumer after LEAD steps: the second one begins
//                     only then, and stays that far behind. While one looks at its tile the other
//                     has products left to do, and the tensor cores never wait.
// Shared    a stage's rows are 128 bytes, in the 128-byte swizzle that TMA writes and wgmma reads.
// Numerics  sums f32 over D in steps of 16 in rising order, the same for every row and column:
//           equal vectors give equal bits wherever they stand. int32 is exact. What lies past an
//           extent is zero.
// Order     items with one strip of columns and different rows follow each other, so clusters that
//           run at the same time read the same columns, from L2.
#pragma once

#include "launch.cuh"
#include "tensor_map.cuh"

namespace ROCLIP_BUILD {
namespace hopper {

constexpr int CLUSTER = 2;
constexpr int ROWS = 128;                 // of a block's tile
constexpr int BAND = CLUSTER * ROWS;      // of a cluster's
constexpr int WARPGROUP = 128;
constexpr int CONSUMERS = 2;              // warpgroups
constexpr int GROUP_ROWS = ROWS / CONSUMERS;
constexpr int THREADS = (CONSUMERS + 1) * WARPGROUP;
constexpr int ROW_BYTES = 128;            // of one row in one stage
constexpr int STAGES = 4;
constexpr int LEAD = 2;                   // steps that the first consumer is ahead
static_assert(LEAD < STAGES, "it needs no stage that the second one would have to give back");

// Registers a thread, of 65,536: a launch of THREADS gives each 168.
constexpr int PRODUCER_REGISTERS = 24, CONSUMER_REGISTERS = 240;
static_assert(PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS <= 3 * 168, "they exist");

// Elements of a row in one stage, and what their products add up to.
template <class E>
struct Element;
template <>
struct Element<bf16> {
    typedef float Sum;
    static constexpr int DEPTH = ROW_BYTES / 2;
};
template <>
struct Element<int8_t> {
    typedef int32_t Sum;
    static constexpr int DEPTH = ROW_BYTES;
};

template <int COLS>
struct Stage {
    static constexpr int COLS_AT = ROWS * ROW_BYTES, BYTES = COLS_AT + COLS * ROW_BYTES;
    static constexpr int HALF = COLS / CLUSTER;  // columns that one block loads
    static_assert(HALF % 8 == 0, "halves begin where the swizzle does");
    static constexpr int BARRIERS_AT = STAGES * BYTES;
    static constexpr int END = BARRIERS_AT + (2 * STAGES + 1) * int(sizeof(uint64_t));
};

// A consumer's part of a tile: [COLS / 8 columns of eight][half of the rows][2 columns].
template <class E, int COLS>
using Tile = typename Element<E>::Sum[COLS / 2];

// The work: bands of BAND rows times tiles of COLS columns, cut into groups of bands and strips of
// tiles. An item is one group with one strip.
struct Work {
    int32_t bands, tiles;
    int32_t groups, strips;
    int32_t steps;  // along D
};

struct Item {
    int group, strip;
    int band, band_end, tile, tile_end;
};

__device__ __forceinline__ Item item_of(const Work& w, int i) {
    const int group = i % w.groups, strip = i / w.groups;
    // the first parts have one more, where there is a rest
    const auto cut = [](int n, int part, int parts, int* end) {
        const int each = n / parts, more = n % parts;
        const int begin = part * each + min(part, more);
        *end = begin + each + (part < more);
        return begin;
    };
    Item item = {group, strip};
    item.band = cut(w.bands, group, w.groups, &item.band_end);
    item.tile = cut(w.tiles, strip, w.strips, &item.tile_end);
    return item;
}

// Calls each(item) for the items of this cluster, in order.
template <class Each>
__device__ __forceinline__ void for_items(const Work& w, Each each) {
    const int clusters = int(gridDim.x) / CLUSTER, items = w.groups * w.strips;
    for (int i = int(blockIdx.x) / CLUSTER; i < items; i += clusters) each(item_of(w, i));
}

struct Operands {
    CUtensorMap rows, cols;
    Work work;
};

// The place in the ring: the stage, and the parity of the pass over it.
struct Place {
    int stage = 0;
    uint32_t parity = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// First row of this block in a band.
__device__ __forceinline__ int first_row(int band) {
    return band * BAND + int(cluster_rank()) * ROWS;
}

// The row, within the block's, of half h of a consumer's tile.
__device__ __forceinline__ int row_of(int h) {
    return int(threadIdx.x) / WARP * 16 + int(threadIdx.x) % WARP / 4 + h * 8;
}

// The column, within the tile's, of element i of a row: see `element`.
__device__ __forceinline__ int col_of(int i) {
    return int(threadIdx.x) % 4 * 2 + i / 2 * 8 + i % 2;
}

// Element i, in order of columns, of half h: 0 <= i < COLS / 4.
template <class Sum, int N>
__device__ __forceinline__ Sum& element(Sum (&tile)[N], int h, int i) {
    return tile[i / 2 * 4 + h * 2 + i % 2];
}

struct Barriers {
    uint64_t *full, *empty, *lead;
};

// ---- producer: one thread ----

template <class E, int COLS>
__device__ __forceinline__ void produce(const Operands& o, const Work& work,
                                        unsigned char* stages, const Barriers& b) {
    using S = Stage<COLS>;
    constexpr int DEPTH = Element<E>::DEPTH;
    constexpr uint16_t BOTH = (1 << CLUSTER) - 1;
    const int half = int(cluster_rank()) * S::HALF;
    Place at;
    for_items(work, [&](const Item& item) {
        for (int tile = item.tile; tile < item.tile_end; ++tile) {
            for (int band = item.band; band < item.band_end; ++band) {
                const int row = first_row(band), col = tile * COLS + half;
                for (int step = 0; step < work.steps; ++step, at.advance()) {
                    // the first pass waits for nothing
                    mbarrier_wait(b.empty + at.stage, at.parity ^ 1);
                    uint64_t* const full = b.full + at.stage;
                    mbarrier_arrive_expect(full, S::BYTES);
                    unsigned char* const to = stages + at.stage * S::BYTES;
                    tma_load_2d(to, &o.rows, full, step * DEPTH, row);
                    tma_load_2d_multicast(to + S::COLS_AT + half * ROW_BYTES, &o.cols, full,
                                          step * DEPTH, col, BOTH);
                }
            }
        }
    });
}

// ---- consumers: two warpgroups ----

// tile = rows . cols^T over all of D; the ring moves on by `steps`. `ahead`: the steps after which
// the other consumer may begin, 0 where it has; below 0 for that one until it has.
template <int COLS, class Sum>
__device__ __forceinline__ void multiply(Sum (&tile)[COLS / 2], int steps, Place& at, int& ahead,
                                         const unsigned char* stages, const Barriers& b) {
    using S = Stage<COLS>;
    const int group = int(threadIdx.x) / WARPGROUP;
    // one thread for each block of the cluster
    const auto give_back = [&](int stage) {
        const uint32_t block = threadIdx.x % WARPGROUP;
        if (block < CLUSTER) mbarrier_arrive_at(b.empty + stage, block);
    };
    int before = 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        mbarrier_wait(b.full + at.stage, at.parity);
        const unsigned char* const stage = stages + at.stage * S::BYTES;
        const uint64_t rows = wgmma_descriptor(stage + group * GROUP_ROWS * ROW_BYTES);
        const uint64_t cols = wgmma_descriptor(stage + S::COLS_AT);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < ROW_BYTES / 32; ++k) {
            wgmma(tile, rows + 2 * k, cols + 2 * k, step > 0 || k > 0);
        }
        wgmma_commit();
        if (step > 0) {  // the step before is done; this one goes on
            wgmma_wait<1>();
            give_back(before);
        }
        if (ahead > 0 && --ahead == 0 && threadIdx.x == 0) mbarrier_arrive(b.lead);
        before = at.stage;
        at.advance();
    }
    wgmma_wait<0>();
    give_back(before);
}

// Runs the kernel: `consumer` sees begin(item), tile(values, band, tile) for the item's tiles,
// bands within tiles, and end(item). Called by consumer threads only: there are CONSUMERS *
// WARPGROUP, and __syncthreads is not for them. Thread 0 may have written `work` to shared memory
// just before.
template <class E, int COLS, class Consumer>
__device__ __forceinline__ void run(const Operands& o, const Work& work, Consumer& consumer) {
    using S = Stage<COLS>;
    DYNAMIC_SHARED(stages);
    uint64_t* const first = reinterpret_cast<uint64_t*>(stages + S::BARRIERS_AT);
    const Barriers b = {first, first + STAGES, first + 2 * STAGES};
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(b.full + s, 1);
            mbarrier_init(b.empty + s, CONSUMERS * CLUSTER);
        }
        mbarrier_init(b.lead, 1);
        mbarrier_init_fence();
    }
    cluster_sync();
    if (threadIdx.x >= CONSUMERS * WARPGROUP) {
        registers_release<PRODUCER_REGISTERS>();
        if (threadIdx.x == CONSUMERS * WARPGROUP) produce<E, COLS>(o, work, stages, b);
        __syncwarp();
    } else {
        registers_claim<CONSUMER_REGISTERS>();
        int ahead = threadIdx.x < WARPGROUP ? min(LEAD, work.steps) : -1;
        Place at;
        for_items(work, [&](const Item& item) {
            if (ahead < 0) mbarrier_wait(b.lead, 0);
            ahead = max(ahead, 0);
            consumer.begin(item);
            for (int tile = item.tile; tile < item.tile_end; ++tile) {
                for (int band = item.band; band < item.band_end; ++band) {
                    Tile<E, COLS> values;
                    multiply<COLS>(values, work.steps, at, ahead, stages, b);
                    consumer.tile(values, band, tile);
                }
            }
            consumer.end(item);
        });
    }
    cluster_sync();  // the neighbour may still load into this block, or arrive at its barriers
}

// ---- host ----

// Bytes of shared memory, with `own` of the consumer's behind the ring.
template <int COLS>
constexpr size_t shared_bytes(size_t own = 0) {
    return Stage<COLS>::END + own;
}

// Whether TMA can read matrices of these extents and alignments, on this GPU.
template <class E>
inline bool fits(int64_t rows_n, int64_t cols_n, int32_t width, const void* rows,
                 const void* cols) {
    constexpr int64_t MOST = INT32_MAX - BAND;  // coordinates are int32
    return has_sm90a() && rows_n <= MOST && cols_n <= MOST && width * sizeof(E) % 16 == 0 &&
           aligned(16, rows, cols);
}

inline int clusters() {
    const int fit = multiprocessors() / CLUSTER;
    return fit > 0 ? fit : 1;
}

// Describes the operands; returns a cudaError_t.
template <class E, int COLS>
inline int32_t describe(Operands* o, const E* rows, int64_t rows_n, const E* cols, int64_t cols_n,
                        int32_t width) {
    const int32_t error = tensor_map_2d(&o->rows, rows, rows_n, width, width, ROWS);
    if (error) return error;
    o->work.bands = int32_t(ceil_div(rows_n, BAND));
    o->work.tiles = int32_t(ceil_div(cols_n, COLS));
    o->work.steps = int32_t(ceil_div(width, Element<E>::DEPTH));
    return tensor_map_2d(&o->cols, cols, cols_n, width, width, Stage<COLS>::HALF);
}

// Chooses the strips, at most `most`, with which the busiest of `clusters` has least to do; returns
// about how many cycles. What a tile and an item cost beyond products need not be known well.
inline int64_t balance(Work* w, int cols, int most, int clusters) {
    constexpr int64_t TILE = 100, ITEM = 1000;
    const int64_t cycles_of_tile = int64_t(w->steps) * cols * 4 + TILE;
    int64_t least = INT64_MAX;
    for (int strips = 1; strips <= most && strips <= w->tiles; ++strips) {
        const int64_t tiles = ceil_div(w->bands, w->groups) * ceil_div(w->tiles, strips);
        const int64_t rounds = ceil_div(int64_t(w->groups) * strips, clusters);
        const int64_t cycles = rounds * (tiles * cycles_of_tile + ITEM);
        if (cycles < least) least = cycles, w->strips = strips;
    }
    return least;
}

inline dim3 grid(const Work& w) {
    const int items = w.groups * w.strips;
    return dim3(unsigned(CLUSTER * (items < clusters() ? items : clusters())));
}

}  // namespace hopper
}  // namespace ROCLIP_BUILD
