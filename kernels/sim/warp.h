// What threads of a warp and of a block do together, and atomics.
#pragma once

#include "scheduler.h"

namespace sim {

SIM_UNCHECKED inline void Machine::complete(Warp& w, int k) {
    const Meeting meeting = w.meeting[k];
    w.meeting[k] = w.meeting[--w.meetings];
    meeting.act(*this, w.slot, meeting.arrived);
    uint32_t others = meeting.arrived;
    if (&w == &my_warp()) others &= ~(1u << lane());
    wake_lanes(int(&w - warp), others);
}

// Waits until every lane of the mask that has not exited is here; `act` then serves them all.
SIM_UNCHECKED inline void meet(const char* op, Site at, uint32_t mask, void* mine,
                 void (*act)(Machine&, void**, uint32_t)) {
    Machine& m = *this_machine;
    Warp& w = m.my_warp();
    const uint32_t me = 1u << m.lane();
    if (!(mask & me)) m.fail(at, "%s: the mask %08x lacks the calling lane", op, mask);
    w.slot[m.lane()] = mine;
    int mine_at = -1;
    for (int k = 0; k < w.meetings; ++k) {
        Meeting& other = w.meeting[k];
        if (other.mask == mask && other.at.line == at.line && other.act == act) {
            mine_at = k;
        } else if (other.arrived & mask && other.mask & me) {
            m.fail(at, "divergent: %s with mask %08x meets lanes %08x in %s with mask %08x (%s:%d)",
                   op, mask, other.arrived, other.op, other.mask, other.at.file, other.at.line);
        }
    }
    if (mine_at < 0) {
        mine_at = w.meetings++;
        w.meeting[mine_at] = {op, at, mask, 0, act};
    }
    Meeting& meeting = w.meeting[mine_at];
    meeting.arrived |= me;
    if (!(mask & ~w.exited & ~meeting.arrived)) return m.complete(w, mine_at);
    m.wait(op, at);
}

// As `meet`, for instructions that the whole warp must execute.
inline void meet_all(const char* op, Site at, void* mine, void (*act)(Machine&, void**, uint32_t)) {
    Machine& m = *this_machine;
    if (m.my_warp().exited) {
        m.fail(at, "%s needs all 32 lanes; %08x have exited or never were", op, m.my_warp().exited);
    }
    meet(op, at, ~0u, mine, act);
}

void do_copy(const Copy& c);

SIM_UNCHECKED inline void Machine::finish_thread() {
    Warp& w = my_warp();
    Thread& t = self();
    for (; t.copies_done < t.copies.size(); ++t.copies_done) do_copy(t.copies[t.copies_done]);
    t.copies.clear();
    t.copies_done = t.group = t.products_group = 0;
    t.registers = registers;
    w.exited |= 1u << lane();
    --alive;
    --block->alive;
    for (int k = 0; k < w.meetings;) {
        const Meeting& meeting = w.meeting[k];
        if (meeting.mask & ~w.exited & ~meeting.arrived) {
            ++k;
        } else {
            complete(w, k);
        }
    }
    if (block->alive && block->waiting_at_barrier == block->alive) open_barrier();
    if (alive && waiting_at_cluster == alive) open_cluster_barrier();
    if (block->alive) return;
    if (const char* what = unfinished(*block)) {
        running = false;
        fail({"", 0}, "%s", what);
    }
}

inline void Machine::wait_at_barrier(bool of_cluster, Site at) {
    Warp& w = my_warp();
    const auto op = [](bool cluster) { return cluster ? "cluster_sync" : "__syncthreads"; };
    if (w.at_barrier && (w.at_cluster != of_cluster || w.barrier_at.line != at.line)) {
        fail(at, "divergent: lanes %08x of the warp are in %s at %s:%d", w.at_barrier,
             op(w.at_cluster), w.barrier_at.file, w.barrier_at.line);
    }
    w.barrier_at = at;
    w.at_cluster = of_cluster;
    if (of_cluster) {
        if (++waiting_at_cluster == alive) return open_cluster_barrier();
    } else if (++block->waiting_at_barrier == block->alive) {
        return open_barrier();
    }
    w.at_barrier |= 1u << lane();
    wait(op(of_cluster), at);
}

struct Exchange {
    uint64_t given, got;
    int source;
};

SIM_UNCHECKED inline void exchange(Machine&, void** slot, uint32_t lanes) {
    for (int l = 0; l < WARP; ++l) {
        if (!(lanes >> l & 1)) continue;
        auto* mine = static_cast<Exchange*>(slot[l]);
        const bool there = lanes >> mine->source & 1;
        mine->got = there ? static_cast<Exchange*>(slot[mine->source])->given : ~uint64_t(0);
    }
}

template <class T>
inline T shuffle(const char* op, Site at, uint32_t mask, T value, int source) {
    static_assert(sizeof(T) <= 8, "a shuffle moves 4 or 8 bytes");
    Exchange mine = {0, 0, source};
    memcpy(&mine.given, &value, sizeof value);
    meet(op, at, mask, &mine, exchange);
    memcpy(&value, &mine.got, sizeof value);
    return value;
}

inline void gather_votes(Machine&, void** slot, uint32_t lanes) {
    uint32_t votes = 0;
    for (int l = 0; l < WARP; ++l) {
        if (lanes >> l & 1 && *static_cast<uint32_t*>(slot[l])) votes |= 1u << l;
    }
    for (int l = 0; l < WARP; ++l) {
        if (lanes >> l & 1) *static_cast<uint32_t*>(slot[l]) = votes;
    }
}

inline uint32_t ballot(const char* op, Site at, uint32_t mask, bool vote) {
    uint32_t mine = vote;
    meet(op, at, mask, &mine, gather_votes);
    return mine;
}

inline int last_of_segment(int lane, int width) { return lane | (width - 1); }

}  // namespace sim

inline void __syncthreads(sim::Site at = sim::Site::here()) {
    sim::this_machine->wait_at_barrier(false, at);
}

inline void __syncwarp(unsigned mask = ~0u, sim::Site at = sim::Site::here()) {
    sim::meet("__syncwarp", at, mask, nullptr, [](sim::Machine&, void**, uint32_t) {});
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
                     sim::Site at = sim::Site::here()) {
    const int me = sim::this_machine->lane();
    return sim::shuffle("__shfl_sync", at, mask, value, (me & ~(width - 1)) | (lane & (width - 1)));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                        sim::Site at = sim::Site::here()) {
    const int me = sim::this_machine->lane(), from = me - int(by);
    return sim::shuffle("__shfl_up_sync", at, mask, value, from < (me & ~(width - 1)) ? me : from);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                          sim::Site at = sim::Site::here()) {
    const int me = sim::this_machine->lane(), from = me + int(by);
    const bool beyond = from > sim::last_of_segment(me, width);
    return sim::shuffle("__shfl_down_sync", at, mask, value, beyond ? me : from);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32,
                         sim::Site at = sim::Site::here()) {
    const int me = sim::this_machine->lane(), from = me ^ by;
    const bool beyond = from > sim::last_of_segment(me, width);
    return sim::shuffle("__shfl_xor_sync", at, mask, value, beyond ? me : from);
}

inline unsigned __ballot_sync(unsigned mask, int vote, sim::Site at = sim::Site::here()) {
    return sim::ballot("__ballot_sync", at, mask, vote);
}
inline int __any_sync(unsigned mask, int vote, sim::Site at = sim::Site::here()) {
    return sim::ballot("__any_sync", at, mask, vote) != 0;
}
inline int __all_sync(unsigned mask, int vote, sim::Site at = sim::Site::here()) {
    return sim::ballot("__all_sync", at, mask, !vote) == 0;
}

// Threads change places only where they wait, so a plain update is atomic. There is none for
// floats: their sums would depend on the order.
#define SIM_ATOMIC(name, result)                                   \
    template <class T>                                             \
    inline T name(T* p, decltype(T{}) value) {                     \
        static_assert(T(1) / T(2) == T(0), #name " of integers");  \
        const T old = *p;                                          \
        *p = (result);                                             \
        return old;                                                \
    }
SIM_ATOMIC(atomicAdd, T(old + value))
SIM_ATOMIC(atomicSub, T(old - value))
SIM_ATOMIC(atomicMax, old < value ? value : old)
SIM_ATOMIC(atomicMin, value < old ? value : old)
SIM_ATOMIC(atomicOr, T(old | value))
SIM_ATOMIC(atomicAnd, T(old & value))
SIM_ATOMIC(atomicExch, value)
#undef SIM_ATOMIC
template <class T>
inline T atomicCAS(T* p, decltype(T{}) compare, decltype(T{}) value) {
    const T old = *p;
    if (old == compare) *p = value;
    return old;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
