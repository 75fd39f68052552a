// Tensor-core work of a warp: cp.async, ldmatrix, mma.sync. Signatures as in common/asm.cuh.
#pragma once

#include "warp.h"

#define DYNAMIC_SHARED(name) unsigned char* name = sim::this_machine->block->dynamic

namespace sim {

// The address within the block's shared memory: dynamic from 1024, as after what the hardware
// keeps.
inline uint32_t shared_offset(Site at, const void* p) {
    Machine& m = *this_machine;
    if (!m.is_shared(p, 0)) m.fail(at, "%p is not shared memory of this block", p);
    const auto byte = static_cast<const unsigned char*>(p);
    const unsigned char* const dynamic = m.block->dynamic;
    if (byte >= dynamic && byte <= dynamic + m.dynamic_bytes) {
        return uint32_t(byte - dynamic) + 1024;
    }
    return uint32_t(byte - m.statics.begin + (m.dynamic_bytes + 2047) / 1024 * 1024);
}

inline void do_copy(const Copy& c) {
    if (c.valid) {
        memcpy(c.to, c.from, 16);
    } else {
        memset(c.to, 0, 16);
    }
}

// Completes the oldest groups, so that at most `left` stay open.
inline void complete_copies(Thread& t, size_t left) {
    while (t.copies_done < t.copies.size()) {
        const Copy& next = t.copies[t.copies_done];
        if (next.group + left >= t.group) break;
        do_copy(next);
        ++t.copies_done;
    }
    if (t.copies_done == t.copies.size()) {
        t.copies.clear();
        t.copies_done = 0;
    }
}

SIM_UNCHECKED inline float bf16_bits(uint32_t bits) { return __uint_as_float(bits << 16); }

struct MatrixRow {
    uint32_t* r;
    const unsigned char* row;
};

// Rows of one 8x8 matrix that lie in the same banks are read one after another.
SIM_UNCHECKED inline uint64_t conflicts(void** slot, int matrix) {
    uintptr_t rows[8];
    unsigned banks = 0;
    for (int i = 0; i < 8; ++i) {
        const auto row = static_cast<MatrixRow*>(slot[matrix * 8 + i])->row;
        rows[i] = reinterpret_cast<uintptr_t>(row) / 16;
        banks |= 1u << rows[i] % 8;
    }
    if (banks == 0xff) return 0;
    uint64_t found = 0;
    for (int i = 1; i < 8; ++i) {
        bool conflict = false;
        for (int j = 0; j < i; ++j) conflict |= rows[i] != rows[j] && (rows[i] - rows[j]) % 8 == 0;
        found += conflict;
    }
    return found;
}

template <int MATRICES, bool TRANS>
SIM_UNCHECKED inline void load_matrices(Machine& m, void** slot, uint32_t) {
    for (int k = 0; k < MATRICES; ++k) {
        m.bank_conflicts += conflicts(slot, k);
        for (int l = 0; l < WARP; ++l) {
            uint16_t pair[2];
            for (int e = 0; e < 2; ++e) {
                const int row = TRANS ? l % 4 * 2 + e : l / 4;
                const int column = TRANS ? l / 4 : l % 4 * 2 + e;
                memcpy(&pair[e], static_cast<MatrixRow*>(slot[k * 8 + row])->row + column * 2, 2);
            }
            static_cast<MatrixRow*>(slot[l])->r[k] = pair[0] | uint32_t(pair[1]) << 16;
        }
    }
}

template <int MATRICES, bool TRANS>
inline void ldmatrix(Site at, uint32_t* r, const void* row) {
    Machine& m = *this_machine;
    if (m.lane() < MATRICES * 8) {
        if (reinterpret_cast<uintptr_t>(row) % 16) m.fail(at, "ldmatrix: misaligned row %p", row);
        if (!m.is_shared(row, 16)) m.fail(at, "ldmatrix: the row is not in shared memory");
    }
    MatrixRow mine = {r, static_cast<const unsigned char*>(row)};
    meet_all(TRANS ? "ldmatrix.trans" : "ldmatrix", at, &mine, load_matrices<MATRICES, TRANS>);
}

struct MmaArgs {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
};

SIM_UNCHECKED inline void mma(Machine&, void** slot, uint32_t) {
    float a[16][16], b[16][8], d[16][8];
    for (int l = 0; l < WARP; ++l) {
        const auto& s = *static_cast<MmaArgs*>(slot[l]);
        const int g = l / 4, t = l % 4 * 2;
        for (int e = 0; e < 2; ++e) {
            for (int q = 0; q < 4; ++q) {
                a[g + q % 2 * 8][t + q / 2 * 8 + e] = bf16_bits(s.a[q] >> (16 * e) & 0xffff);
            }
            for (int h = 0; h < 2; ++h) {
                b[t + h * 8 + e][g] = bf16_bits(s.b[h] >> (16 * e) & 0xffff);
            }
        }
        for (int q = 0; q < 4; ++q) d[g + q / 2 * 8][t + q % 2] = s.d[q];
    }
    for (int i = 0; i < 16; ++i) {
        for (int k = 0; k < 16; ++k) {
            for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
        }
    }
    for (int l = 0; l < WARP; ++l) {
        const auto& s = *static_cast<MmaArgs*>(slot[l]);
        for (int q = 0; q < 4; ++q) s.d[q] = d[l / 4 + q / 2 * 8][l % 4 * 2 + q % 2];
    }
}

}  // namespace sim

inline uint32_t shared_address(const void* p, sim::Site at = sim::Site::here()) {
    return sim::shared_offset(at, p);
}

inline void cp_async16(void* shared, const void* global, bool valid = true,
                       sim::Site at = sim::Site::here()) {
    sim::Machine& m = *sim::this_machine;
    if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16) {
        m.fail(at, "cp.async: misaligned, from %p to %p", global, shared);
    }
    if (!m.is_shared(shared, 16)) m.fail(at, "cp.async: the 16 bytes at %p are not shared", shared);
    const sim::Copy copy = {shared, global, m.self().group, valid};
    if (m.early()) {
        sim::do_copy(copy);
    } else {
        m.self().copies.push_back(copy);
    }
}
inline void cp_async_commit() { ++sim::this_machine->self().group; }
template <int N>
inline void cp_async_wait() {
    sim::complete_copies(sim::this_machine->self(), N);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, sim::Site at = sim::Site::here()) {
    sim::ldmatrix<4, false>(at, r, row);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, sim::Site at = sim::Site::here()) {
    sim::ldmatrix<4, true>(at, r, row);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, sim::Site at = sim::Site::here()) {
    sim::ldmatrix<2, false>(at, r, row);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, sim::Site at = sim::Site::here()) {
    sim::ldmatrix<2, true>(at, r, row);
}

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         sim::Site at = sim::Site::here()) {
    sim::MmaArgs mine = {d, a, {b0, b1}};
    sim::meet_all("mma.m16n8k16", at, &mine, sim::mma);
}

inline void store16(void* global, const uint32_t (&words)[4], sim::Site at = sim::Site::here()) {
    if (reinterpret_cast<uintptr_t>(global) % 16) {
        sim::this_machine->fail(at, "store16 to %p, which is not aligned", global);
    }
    memcpy(global, words, 16);
}

inline uint32_t pack_bf16(float low, float high) {
    return __float2bfloat16(low).bits | uint32_t(__float2bfloat16(high).bits) << 16;
}
