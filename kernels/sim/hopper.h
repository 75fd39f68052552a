// sm_90a: mbarriers, TMA loads, clusters, setmaxnreg. Signatures as in common/asm.cuh.
#pragma once

#include "tensor.h"

namespace sim {

// ---- mbarriers: 64 bits of shared memory, in a layout of ours ----

struct Barrier {
    uint32_t count, pending, phase;
    int32_t bytes;  // expected and not yet loaded; below 0 where loads came first
};

constexpr uint64_t BARRIER_MARK = 0x2b5d;  // an initialised barrier's upper 15 bits
constexpr uint32_t MAX_ARRIVALS = 4095;

inline void put_barrier(uint64_t* to, const Barrier& b) {
    *to = BARRIER_MARK << 49 | uint64_t(b.phase) << 48 | uint64_t(b.pending) << 36 |
          uint64_t(b.count) << 24 | (uint32_t(b.bytes) & 0xffffff);
}

inline void check_barrier_place(Machine& m, Site at, const uint64_t* p) {
    if (reinterpret_cast<uintptr_t>(p) % 8) m.fail(at, "mbarrier: misaligned");
    if (!m.is_shared(p, 8)) m.fail(at, "mbarrier: not in shared memory");
}

// For messages: which block of the cluster, unless it is the caller's own.
inline const char* of_rank(const Machine& m, const Block& b) {
    static const char* const words[MAX_CLUSTER] = {" of rank 0", " of rank 1", " of rank 2",
                                                   " of rank 3", " of rank 4", " of rank 5",
                                                   " of rank 6", " of rank 7"};
    return &b == m.block ? "" : words[b.rank];
}

// That of a block, at an aligned address in its shared memory.
inline Barrier get_barrier(Machine& m, Site at, const Block& b, const uint64_t* p) {
    const uint64_t word = *p;
    if (word >> 49 != BARRIER_MARK) {
        m.fail(at, "mbarrier%s: not initialised, or overwritten", of_rank(m, b));
    }
    return {uint32_t(word >> 24 & 0xfff), uint32_t(word >> 36 & 0xfff), uint32_t(word >> 48 & 1),
            int32_t(word << 8) >> 8};
}

inline Barrier get_barrier(Machine& m, Site at, const uint64_t* p) {
    check_barrier_place(m, at, p);
    return get_barrier(m, at, *m.block, p);
}

// Stores it, after the step to the next phase if this one is complete.
inline void settle_barrier(Machine& m, uint64_t* p, Barrier b) {
    if (b.pending == 0 && b.bytes == 0) {
        b.phase ^= 1;
        b.pending = b.count;
        auto& waiters = m.barrier_waiters;
        for (size_t i = 0; i < waiters.size();) {
            const Thread& t = m.thread[waiters[i]];
            if (t.barrier == p && t.parity != b.phase) {
                m.wake(waiters[i]);
                waiters[i] = waiters.back();
                waiters.pop_back();
            } else {
                ++i;
            }
        }
    }
    put_barrier(p, b);
}

inline void arrive(Machine& m, Site at, const char* op, const Block& to, uint64_t* p,
                   uint32_t bytes) {
    Barrier b = get_barrier(m, at, to, p);
    if (b.pending == 0) {
        m.fail(at, "%s: more arrivals than the count %u of the mbarrier%s", op, b.count,
               of_rank(m, to));
    }
    --b.pending;
    b.bytes += int32_t(bytes);
    settle_barrier(m, p, b);
}

inline void arrive(Site at, const char* op, uint64_t* p, uint32_t bytes) {
    Machine& m = *this_machine;
    check_barrier_place(m, at, p);
    arrive(m, at, op, *m.block, p, bytes);
}

// Whether TMA, or another block, may use the barrier of block `b`.
inline void check_published(Machine& m, Site at, const char* op, const Block& b,
                            const uint64_t* p) {
    get_barrier(m, at, b, p);
    for (const uint64_t* unfenced : b.unfenced) {
        if (unfenced != p) continue;
        m.fail(at, "%s: no mbarrier_init_fence() after mbarrier_init%s", op, of_rank(m, b));
    }
    if (&b == m.block) return;
    for (const uint64_t* unsynced : b.unsynced) {
        if (unsynced != p) continue;
        m.fail(at, "%s: no cluster_sync() after mbarrier_init_fence()%s", op, of_rank(m, b));
    }
}

// ---- TMA ----

constexpr int BOX_BYTES = 128;  // of a row of a box: the width of the swizzle

SIM_UNCHECKED inline void do_load(Machine& m, const Load& load) {
    const CUtensorMap& map = load.map;
    const int64_t size = map.element, per_chunk = 16 / size;
    for (int64_t r = 0; r < map.box_rows; ++r) {
        const int64_t row = load.c1 + r;
        const bool row_inside = row >= 0 && uint64_t(row) < map.rows;
        for (int chunk = 0; chunk < 8; ++chunk) {
            unsigned char* to = load.to + r * BOX_BYTES + (chunk ^ r % 8) * 16;
            const int64_t column = load.c0 + chunk * per_chunk;
            const unsigned char* from = map.base + row * int64_t(map.stride) + column * size;
            if (row_inside && column >= 0 && uint64_t(column + per_chunk) <= map.columns) {
                memcpy(to, from, 16);
                continue;
            }
            memset(to, 0, 16);
            for (int64_t e = 0; e < per_chunk && row_inside; ++e) {
                const bool inside = column + e >= 0 && uint64_t(column + e) < map.columns;
                if (inside) memcpy(to + e * size, from + e * size, size);
            }
        }
    }
    Barrier b = get_barrier(m, load.at, *load.block, load.barrier);
    b.bytes -= int32_t(map.box_rows * BOX_BYTES);
    settle_barrier(m, load.barrier, b);
}

// One of the loads under way, when nobody can go on without; on behalf of who issued it.
inline void Machine::run_a_load() {
    const size_t i = seed ? random() % loads.size() : 0;
    const Load load = loads[i];
    loads.erase(loads.begin() + ptrdiff_t(i));
    const int last = current;
    become(load.thread);
    do_load(*this, load);
    become(last);
}

inline void check_box(Machine& m, Site at, const unsigned char* to, const CUtensorMap* map) {
    if ((to - m.block->dynamic) % 1024) m.fail(at, "TMA: the tile is not aligned to 1024 bytes");
    if (!m.is_shared(to, map->box_rows * BOX_BYTES)) {
        m.fail(at, "TMA: the tile lies outside shared memory");
    }
}

inline void start_load(Machine& m, const Load& load) {
    check_published(m, load.at, "TMA", *load.block, load.barrier);
    if (m.early()) {
        do_load(m, load);
    } else {
        m.loads.push_back(load);
    }
}

// ---- clusters ----

// The block of that rank, which must still run.
inline Block& block_of_rank(Machine& m, Site at, const char* op, uint32_t rank) {
    if (rank >= uint32_t(m.cluster)) m.fail(at, "%s: no rank %u in a cluster of %d", op, rank,
                                            m.cluster);
    Block& b = m.blocks[rank];
    if (!b.alive) m.fail(at, "%s: the block of rank %u has ended", op, rank);
    return b;
}

// The same place in another block's shared memory.
template <class T>
inline T* at_block(const Machine& m, const Block& b, T* p) {
    return reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(p) - m.block->dynamic + b.dynamic);
}

// Remembers an arrival from afar until somebody has waited for it: a block that may end before it
// comes is wrong in every order, not just in that which shows it.
inline void note_arrival(Block& to, const uint64_t* p, uint32_t phase) {
    for (const Arrival& a : to.unseen) {
        if (a.barrier == p && a.phase == phase) return;
    }
    to.unseen.push_back({p, phase});
}

// A thread of the block has waited: `phase` is not over yet, what came before it is seen.
inline void see_arrivals(Block& b, const uint64_t* p, uint32_t phase) {
    for (size_t i = b.unseen.size(); i-- > 0;) {
        if (b.unseen[i].barrier != p || b.unseen[i].phase == phase) continue;
        b.unseen[i] = b.unseen.back();
        b.unseen.pop_back();
    }
}

// ---- registers ----

inline void set_registers(Site at, int registers, bool release) {
    Machine& m = *this_machine;
    Thread& t = m.self();
    if (release ? registers > t.registers : registers < t.registers) {
        m.fail(at, "setmaxnreg: the thread has %d registers, wants %d", t.registers, registers);
    }
    Block& b = *m.block;
    while (b.free_registers < registers - t.registers) {
        b.register_waiters.push_back(m.current);
        m.wait("registers_claim", at);
    }
    b.free_registers -= registers - t.registers;
    t.registers = registers;
    if (!release) return;
    for (int waiter : b.register_waiters) m.wake(waiter);
    b.register_waiters.clear();
}

// What is wrong with the way a block ended; null if nothing.
inline const char* Machine::unfinished(const Block& b) const {
    for (const Load& load : loads) {
        if (load.block == &b) return "the block ended with TMA loads under way";
    }
    if (!b.unseen.empty()) {
        return "the block may end before another one arrives at its mbarriers: no cluster_sync() "
               "or mbarrier_wait() after that";
    }
    const int groups = threads / WARPGROUP;
    for (int g = b.rank * groups; g < (b.rank + 1) * groups; ++g) {
        for (const Wgmma& product : warpgroup[g].products) {
            if (product.warps != 15) return "not all warps of a warpgroup issued the same wgmma";
        }
        if (warpgroup[g].done < warpgroup[g].products.size()) {
            return "the block ended with wgmma under way";
        }
    }
    return nullptr;
}

}  // namespace sim

inline void mbarrier_init(uint64_t* barrier, uint32_t count, sim::Site at = sim::Site::here()) {
    sim::Machine& m = *sim::this_machine;
    sim::check_barrier_place(m, at, barrier);
    if (count == 0 || count > sim::MAX_ARRIVALS) m.fail(at, "mbarrier: count %u", count);
    sim::put_barrier(barrier, {count, count, 0, 0});
    m.block->unfenced.push_back(barrier);
}
inline void mbarrier_init_fence() {
    sim::Block& b = *sim::this_machine->block;
    b.unsynced.insert(b.unsynced.end(), b.unfenced.begin(), b.unfenced.end());
    b.unfenced.clear();
}
inline void mbarrier_arrive(uint64_t* barrier, sim::Site at = sim::Site::here()) {
    sim::arrive(at, "mbarrier_arrive", barrier, 0);
}
inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes,
                                   sim::Site at = sim::Site::here()) {
    sim::arrive(at, "mbarrier_arrive_expect", barrier, bytes);
}
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity, sim::Site at = sim::Site::here()) {
    sim::Machine& m = *sim::this_machine;
    while (sim::get_barrier(m, at, barrier).phase == parity) {
        m.self().barrier = barrier;
        m.self().parity = parity;
        m.barrier_waiters.push_back(m.current);
        m.wait("mbarrier_wait", at);
    }
    if (!m.block->unseen.empty()) sim::see_arrivals(*m.block, barrier, !parity);
}

inline void tma_load_2d(void* shared, const CUtensorMap* map, uint64_t* barrier, int c0, int c1,
                        sim::Site at = sim::Site::here()) {
    sim::Machine& m = *sim::this_machine;
    const auto to = static_cast<unsigned char*>(shared);
    sim::check_box(m, at, to, map);
    sim::check_barrier_place(m, at, barrier);
    sim::start_load(m, {to, *map, barrier, c0, c1, m.block, m.current, at});
}

inline void async_proxy_fence() {}

inline uint32_t cluster_rank() { return uint32_t(sim::this_machine->block->rank); }

inline void cluster_sync(sim::Site at = sim::Site::here()) {
    sim::this_machine->wait_at_barrier(true, at);
}

inline void mbarrier_arrive_at(uint64_t* barrier, uint32_t rank,
                               sim::Site at = sim::Site::here()) {
    sim::Machine& m = *sim::this_machine;
    const char* const op = "mbarrier_arrive_at";
    sim::check_barrier_place(m, at, barrier);
    sim::Block& to = sim::block_of_rank(m, at, op, rank);
    uint64_t* const there = sim::at_block(m, to, barrier);
    sim::check_published(m, at, op, to, there);
    if (&to != m.block) sim::note_arrival(to, there, sim::get_barrier(m, at, to, there).phase);
    sim::arrive(m, at, op, to, there, 0);
}

inline void tma_load_2d_multicast(void* shared, const CUtensorMap* map, uint64_t* barrier, int c0,
                                  int c1, uint16_t blocks, sim::Site at = sim::Site::here()) {
    sim::Machine& m = *sim::this_machine;
    const auto to = static_cast<unsigned char*>(shared);
    sim::check_box(m, at, to, map);
    sim::check_barrier_place(m, at, barrier);
    if (!blocks) m.fail(at, "TMA: a multicast to no block");
    for (uint32_t rank = 0; rank < 16; ++rank) {
        if (!(blocks >> rank & 1)) continue;
        sim::Block& b = sim::block_of_rank(m, at, "TMA", rank);
        sim::start_load(m, {sim::at_block(m, b, to), *map, sim::at_block(m, b, barrier), c0, c1, &b,
                            m.current, at});
    }
}

template <int N>
inline void registers_release(sim::Site at = sim::Site::here()) {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "what setmaxnreg takes");
    sim::set_registers(at, N, true);
}
template <int N>
inline void registers_claim(sim::Site at = sim::Site::here()) {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "what setmaxnreg takes");
    sim::set_registers(at, N, false);
}

// Host: as in common/tensor_map.cuh.
template <class T>
inline int32_t tensor_map_2d(CUtensorMap* map, const T* base, uint64_t rows, uint64_t columns,
                             uint64_t stride, uint32_t box_rows) {
    static_assert(sizeof(T) <= 2, "bf16 or int8_t");
    constexpr uint64_t MAX = uint64_t(1) << 32;
    const bool fits = reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride * sizeof(T) % 16 == 0 &&
                      rows > 0 && rows <= MAX && columns > 0 && columns <= MAX && box_rows > 0 &&
                      box_rows <= 256;
    if (!fits) return sim::ERROR_VALUE;
    map->base = reinterpret_cast<const unsigned char*>(base);
    map->rows = rows;
    map->columns = columns;
    map->stride = stride * sizeof(T);
    map->box_rows = box_rows;
    map->element = sizeof(T);
    return 0;
}
inline bool has_sm90a() { return true; }
