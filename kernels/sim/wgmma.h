// sm_90a: wgmma, the products of warpgroups. Signatures as in common/asm.cuh.
#pragma once

#include "tensor.h"

namespace sim {

// The 16 bytes at (row, 16 chunk) of the tile that a descriptor names.
SIM_UNCHECKED inline const unsigned char* tile_chunk(const Machine& m, uint64_t descriptor, int row,
                                                     int chunk) {
    const uint64_t start = (descriptor & 0x3fff) << 4, group = (descriptor >> 32 & 0x3fff) << 4;
    uint64_t address = start + uint64_t(row / 8) * group + uint64_t(row % 8) * 128 + chunk * 16;
    address ^= (address >> 7 & 7) << 4;
    return m.block->dynamic + address - 1024;
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

// What a tile's elements are: of bf16 16 along K, of int8 32, 32 bytes in either case.
template <class Sum>
struct Element;
template <>
struct Element<float> {
    typedef uint16_t Bits;
    SIM_UNCHECKED static float value(uint16_t bits) { return bf16_bits(bits); }
};
template <>
struct Element<int32_t> {
    typedef int8_t Bits;
    SIM_UNCHECKED static int32_t value(int8_t bits) { return bits; }
};

template <class Sum, int COLUMNS>
SIM_UNCHECKED inline void do_product(const Machine& m, const Wgmma& p) {
    typedef typename Element<Sum>::Bits Bits;
    constexpr int ROWS = 64, CHUNK = 16 / sizeof(Bits), K = 2 * CHUNK;
    Sum a[ROWS][K], b[K][COLUMNS], sum[COLUMNS];
    const auto row_of = [&](uint64_t descriptor, int row, Sum* to, int step) {
        for (int chunk = 0; chunk < 2; ++chunk) {
            Bits bits[CHUNK];
            memcpy(bits, tile_chunk(m, descriptor, row, chunk), 16);
            for (int e = 0; e < CHUNK; ++e) {
                to[(chunk * CHUNK + e) * step] = Element<Sum>::value(bits[e]);
            }
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
            Sum& d = static_cast<Sum*>(p.d[thread])[c / 8 * 4 + r % 16 / 8 * 2 + c % 2];
            d = (p.accumulate ? d : Sum(0)) + sum[c];
        }
    }
}

// Does the products before `end` that all four warps have issued.
inline void do_products(Machine& m, Warpgroup& group, size_t end) {
    while (group.done < end && group.products[group.done].warps == 15) {
        const Wgmma& next = group.products[group.done++];
        next.run(m, next);
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
    void* d;
    uint64_t a, b;
    void (*run)(const Machine&, const Wgmma&);
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
        group.products.push_back({{}, first.a, first.b, first.run, first.accumulate, 0, {}});
    }
    Wgmma& product = group.products[n];
    product.warps |= 1u << w % 4;
    product.group[w % 4] = m.self().products_group;
    for (int l = 0; l < WARP; ++l) {
        const auto& mine = *static_cast<WgmmaArgs*>(slot[l]);
        if (mine.a != product.a || mine.b != product.b || mine.run != product.run ||
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

template <class Sum, int COLUMNS>
inline void wgmma(Site at, Sum* d, uint64_t a, uint64_t b, bool accumulate) {
    Machine& m = *this_machine;
    if (m.threads % WARPGROUP) m.fail(at, "wgmma: the last warpgroup is not complete");
    if (!m.my_warp().fenced) m.fail(at, "wgmma: no wgmma_fence() before the first");
    check_tile(m, at, a, 64);
    check_tile(m, at, b, COLUMNS);
    WgmmaArgs mine = {d, a, b, do_product<Sum, COLUMNS>, accumulate, at};
    meet_all("wgmma", at, &mine, issue_product);
}

}  // namespace sim

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

// The widths that common/asm.cuh has names for.
#define SIM_WGMMA(T, N)                                                              \
    inline void wgmma(T (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate,        \
                      sim::Site at = sim::Site::here()) {                            \
        sim::wgmma<T, N>(at, d, a, b, accumulate);                                   \
    }
SIM_WGMMA(float, 96)
SIM_WGMMA(float, 128)
SIM_WGMMA(float, 208)
SIM_WGMMA(float, 256)
SIM_WGMMA(int32_t, 128)
SIM_WGMMA(int32_t, 256)
#undef SIM_WGMMA
