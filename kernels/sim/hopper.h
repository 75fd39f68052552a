// sm_90a: mbarriers, TMA loads, wgmma, setmaxnreg. Signatures as in common/asm.cuh.
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

inline Barrier get_barrier(Machine& m, Site at, const uint64_t* p) {
    check_barrier_place(m, at, p);
    const uint64_t word = *p;
    if (word >> 49 != BARRIER_MARK) m.fail(at, "mbarrier: not initialised, or overwritten");
    return {uint32_t(word >> 24 & 0xfff), uint32_t(word >> 36 & 0xfff), uint32_t(word >> 48 & 1),
            int32_t(word << 8) >> 8};
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

inline void arrive(Site at, const char* op, uint64_t* p, uint32_t bytes) {
    Machine& m = *this_machine;
    Barrier b = get_barrier(m, at, p);
    if (b.pending == 0) m.fail(at, "%s: more arrivals than the mbarrier's count %u", op, b.count);
    --b.pending;
    b.bytes += int32_t(bytes);
    settle_barrier(m, p, b);
}

// ---- TMA ----

constexpr int BOX_COLUMNS = 64;  // 128 bytes, the width of the swizzle

SIM_UNCHECKED inline void do_load(Machine& m, const Load& load) {
    const CUtensorMap& map = load.map;
    for (int64_t r = 0; r < map.box_rows; ++r) {
        const int64_t row = load.c1 + r;
        const bool row_inside = row >= 0 && uint64_t(row) < map.rows;
        for (int chunk = 0; chunk < 8; ++chunk) {
            unsigned char* to = load.to + r * 128 + (chunk ^ r % 8) * 16;
            const int64_t column = load.c0 + chunk * 8;
            const unsigned char* from = map.base + row * int64_t(map.stride) + column * 2;
            if (row_inside && column >= 0 && uint64_t(column) + 8 <= map.columns) {
                memcpy(to, from, 16);
                continue;
            }
            memset(to, 0, 16);
            for (int e = 0; e < 8 && row_inside; ++e) {
                const bool inside = column + e >= 0 && uint64_t(column + e) < map.columns;
                if (inside) memcpy(to + e * 2, from + e * 2, 2);
            }
        }
    }
    Barrier b = get_barrier(m, {"", 0}, load.barrier);
    b.bytes -= int32_t(map.box_rows * BOX_COLUMNS * 2);
    settle_barrier(m, load.barrier, b);
}

// One of the loads under way, when nobody can go on without.
inline void Machine::run_a_load() {
    const size_t i = seed ? random() % loads.size() : 0;
    const Load load = loads[i];
    loads.erase(loads.begin() + ptrdiff_t(i));
    do_load(*this, load);
}

// ---- wgmma ----

// The eight elements from (row, 8 chunk) of the tile that a descriptor names.
SIM_UNCHECKED inline const unsigned char* tile_chunk(const Machine& m, uint64_t descriptor, int row,
                                                     int chunk) {
    const uint64_t start = (descriptor & 0x3fff) << 4, group = (descriptor >> 32 & 0x3fff) << 4;
    uint64_t address = start + uint64_t(row / 8) * group + uint64_t(row % 8) * 128 + chunk * 16;
    address ^= (address >> 7 & 7) << 4;
    return m.dynamic + address - 1024;
}

inline void check_tile(Machine& m, Site at, uint64_t descriptor, int rows) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) {
        m.fail(at, "wgmma: a descriptor without the 128-byte swizzle, or with a base offset");
    }
    if (!m.is_shared(tile_chunk(m, descriptor, 0, 0), 16) ||
        !m.is_shared(tile_chunk(m, descriptor, rows - 1, 1), 16)) {
        m.fail(at, "wgmma: the tile lies outside dynamic shared memory");
    }
}

template <int COLUMNS>
SIM_UNCHECKED inline void do_product(Machine& m, const Wgmma& p) {
    constexpr int ROWS = 64, K = 16;
    float a[ROWS][K], b[K][COLUMNS], sum[COLUMNS];
    const auto row_of = [&](uint64_t descriptor, int row, float* to, int step) {
        for (int chunk = 0; chunk < 2; ++chunk) {
            uint16_t bits[8];
            memcpy(bits, tile_chunk(m, descriptor, row, chunk), 16);
            for (int e = 0; e < 8; ++e) to[(chunk * 8 + e) * step] = bf16_bits(bits[e]);
        }
    };
    for (int r = 0; r < ROWS; ++r) row_of(p.a, r, a[r], 1);
    for (int c = 0; c < COLUMNS; ++c) row_of(p.b, c, &b[0][c], COLUMNS);
    for (int r = 0; r < ROWS; ++r) {
        memset(sum, 0, sizeof sum);
        for (int k = 0; k < K; ++k) {
            for (int c = 0; c < COLUMNS; ++c) sum[c] += a[r][k] * b[k][c];
        }
        for (int c = 0; c < COLUMNS; ++c) {
            const int thread = r / 16 * WARP + r % 8 * 4 + c % 8 / 2;
            float& d = p.d[thread][c / 8 * 4 + r % 16 / 8 * 2 + c % 2];
            d = (p.accumulate ? d : 0.0f) + sum[c];
        }
    }
}

// Does the products before `end` that all four warps have issued.
inline void do_products(Machine& m, Warpgroup& group, size_t end) {
    while (group.done < end && group.products[group.done].warps == 15) {
        const Wgmma& next = group.products[group.done++];
        next.columns == 256 ? do_product<256>(m, next) : do_product<128>(m, next);
    }
}

// Waits until at most `left` groups of the calling warp are under way. They need the other warps:
// wgmma is one instruction of four warps, which is how one of them can speak for all when it is
// done.
inline void wait_products(Site at, uint32_t left) {
    Machine& m = *this_machine;
    const int w = m.current / WARP;
    Warpgroup& group = m.warpgroup[w / 4];
    const uint32_t committed = m.self().products_group;
    size_t end = group.done;
    while (end < m.warp[w].issued && group.products[end].group[w % 4] + left < committed) ++end;
    for (;;) {
        do_products(m, group, end);
        if (group.done >= end) return;
        group.waiters.push_back(m.current);
        m.wait("wgmma_wait", at);
    }
}

struct WgmmaArgs {
    float* d;
    uint64_t a, b;
    int columns;
    bool accumulate;
    Site at;
};

inline void issue_product(Machine& m, void** slot, uint32_t) {
    const auto& first = *static_cast<WgmmaArgs*>(slot[0]);
    const int w = m.current / WARP;
    // The n-th product of each warp is one instruction of the warpgroup.
    Warpgroup& group = m.warpgroup[w / 4];
    const size_t n = m.warp[w].issued++;
    if (n == group.products.size()) {
        group.products.push_back({{}, first.a, first.b, first.columns, first.accumulate, 0, {}});
    }
    Wgmma& product = group.products[n];
    product.warps |= 1u << w % 4;
    product.group[w % 4] = m.self().products_group;
    for (int l = 0; l < WARP; ++l) {
        const auto& mine = *static_cast<WgmmaArgs*>(slot[l]);
        if (mine.a != product.a || mine.b != product.b || mine.columns != product.columns ||
            mine.accumulate != product.accumulate) {
            m.fail(first.at, "wgmma: descriptors differ within the warpgroup");
        }
        product.d[w % 4 * WARP + l] = mine.d;
    }
    if (product.warps != 15) return;
    if (m.early()) do_products(m, group, n + 1);
    for (int waiter : group.waiters) m.wake(waiter);
    group.waiters.clear();
}

inline void wgmma(Site at, int columns, float* d, uint64_t a, uint64_t b, bool accumulate) {
    Machine& m = *this_machine;
    if (m.threads % WARPGROUP) m.fail(at, "wgmma: the last warpgroup is not complete");
    if (!m.my_warp().fenced) m.fail(at, "wgmma: no wgmma_fence() before the first");
    check_tile(m, at, a, 64);
    check_tile(m, at, b, columns);
    WgmmaArgs mine = {d, a, b, columns, accumulate, at};
    meet_all("wgmma", at, &mine, issue_product);
}

// ---- registers ----

inline void set_registers(Site at, int registers, bool release) {
    Machine& m = *this_machine;
    Thread& t = m.self();
    if (release ? registers > t.registers : registers < t.registers) {
        m.fail(at, "setmaxnreg: the thread has %d registers, wants %d", t.registers, registers);
    }
    while (m.free_registers < registers - t.registers) {
        m.register_waiters.push_back(m.current);
        m.wait("registers_claim", at);
    }
    m.free_registers -= registers - t.registers;
    t.registers = registers;
    if (!release) return;
    for (int waiter : m.register_waiters) m.wake(waiter);
    m.register_waiters.clear();
}

// What is wrong with the way the block ended; null if nothing.
inline const char* Machine::unfinished() const {
    if (!loads.empty()) return "the block ended with TMA loads under way";
    for (int g = 0; g < threads / WARPGROUP; ++g) {
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
    m.unfenced.push_back(barrier);
}
inline void mbarrier_init_fence() { sim::this_machine->unfenced.clear(); }
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
}

inline void tma_load_2d(void* shared, const CUtensorMap* map, uint64_t* barrier, int c0, int c1,
                        sim::Site at = sim::Site::here()) {
    sim::Machine& m = *sim::this_machine;
    const auto to = static_cast<unsigned char*>(shared);
    if ((to - m.dynamic) % 1024) m.fail(at, "TMA: the tile is not aligned to 1024 bytes");
    if (!m.is_shared(to, map->box_rows * sim::BOX_COLUMNS * 2)) {
        m.fail(at, "TMA: the tile lies outside shared memory");
    }
    sim::get_barrier(m, at, barrier);
    for (const uint64_t* unfenced : m.unfenced) {
        if (unfenced == barrier) m.fail(at, "TMA: no mbarrier_init_fence() after mbarrier_init");
    }
    const sim::Load load = {to, *map, barrier, c0, c1};
    if (m.early()) {
        sim::do_load(m, load);
    } else {
        m.loads.push_back(load);
    }
}

inline void async_proxy_fence() {}

inline uint64_t wgmma_descriptor(const void* tile, sim::Site at = sim::Site::here()) {
    const uint64_t address = sim::shared_offset(at, tile);
    return (address & 0x3ffff) >> 4 | uint64_t(1) << 16 | uint64_t(64) << 32 | uint64_t(1) << 62;
}
inline void wgmma_fence() { sim::this_machine->my_warp().fenced = true; }
inline void wgmma_commit() { ++sim::this_machine->self().products_group; }
template <int N>
inline void wgmma_wait(sim::Site at = sim::Site::here()) {
    sim::wait_products(at, N);
}
inline void wgmma_m64n128k16(float (&d)[64], uint64_t a, uint64_t b, bool accumulate,
                             sim::Site at = sim::Site::here()) {
    sim::wgmma(at, 128, d, a, b, accumulate);
}
inline void wgmma_m64n256k16(float (&d)[128], uint64_t a, uint64_t b, bool accumulate,
                             sim::Site at = sim::Site::here()) {
    sim::wgmma(at, 256, d, a, b, accumulate);
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
inline int32_t tensor_map_2d(CUtensorMap* map, const __nv_bfloat16* base, uint64_t rows,
                             uint64_t columns, uint64_t stride, uint32_t box_rows) {
    constexpr uint64_t MAX = uint64_t(1) << 32;
    const bool fits = reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride * 2 % 16 == 0 &&
                      rows > 0 && rows <= MAX && columns > 0 && columns <= MAX && box_rows > 0 &&
                      box_rows <= 256;
    if (!fits) return sim::ERROR_VALUE;
    map->base = reinterpret_cast<const unsigned char*>(base);
    map->rows = rows;
    map->columns = columns;
    map->stride = stride * 2;
    map->box_rows = box_rows;
    return 0;
}
inline bool has_sm90a() { return true; }
