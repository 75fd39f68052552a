// The parts of `Machine` that switch between fibers, start blocks and tell what went wrong.
#pragma once

#include "machine.h"

namespace sim {

// Saves the caller's registers and stack, and goes on where `to` was saved.
__attribute__((naked, noinline)) inline void switch_stack(void**, void*) {
    __asm__ volatile(
        "push %rbp\n\tpush %rbx\n\tpush %r12\n\tpush %r13\n\tpush %r14\n\tpush %r15\n\t"
        "mov %rsp, (%rdi)\n\tmov %rsi, %rsp\n\t"
        "pop %r15\n\tpop %r14\n\tpop %r13\n\tpop %r12\n\tpop %rbx\n\tpop %rbp\n\tret");
}

SIM_UNCHECKED inline uint64_t Machine::random() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x9e3779b97f4a7c15u >> 32;
}

SIM_UNCHECKED inline bool Machine::early() {
    return mode == ROCLIP_SIM_EAGER || (mode == ROCLIP_SIM_MIXED && random() % 2);
}

inline bool Machine::is_shared(const void* p, size_t bytes) const {
    const auto at = static_cast<const unsigned char*>(p);
    return (at >= block->dynamic && at + bytes <= block->dynamic + dynamic_bytes) ||
           (cluster == 1 && at >= statics.begin && at + bytes <= statics.end);
}

// ---- fibers ----

// Its stack as it is before its first run.
inline void Machine::renew(Fiber& f) {
    void** at = reinterpret_cast<void**>(f.top);
    *--at = nullptr;  // the frame that nobody returns to
    *--at = reinterpret_cast<void*>(&Machine::fiber_main);
    at -= 6;
    f.stack_pointer = at;
}

// Sixteen more. Stacks lie far apart with a forbidden page below each; their tops differ in the low
// bits, or all of them would fight for the same lines of the cache.
inline void Machine::grow_fibers() {
    constexpr int MORE = 16;
    constexpr size_t bytes = MORE * STACK;
    void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) abort();
    stacks.push_back(static_cast<char*>(map));
    for (int i = 0; i < MORE; ++i) {
        char* bottom = static_cast<char*>(map) + i * STACK;
        mprotect(bottom, PAGE, PROT_NONE);
        const size_t colour = fibers.size() % 64 * 320;
        fibers.push_back(new Fiber{nullptr, bottom, bottom + STACK - colour});
        renew(*fibers.back());
        idle.push_back(fibers.back());
    }
}

inline Machine::~Machine() {
    for (Fiber* f : fibers) delete f;
    for (char* s : stacks) munmap(s, 16 * STACK);
    if (shared_memory) munmap(shared_memory, MAX_CLUSTER * SHARED_APART);
    this_machine = nullptr;
}

SIM_UNCHECKED inline void Machine::become(int i) {
    current = i;
    threadIdx = index[i];
    if (cluster > 1) {
        block = &blocks[i / threads];
        blockIdx = block->index;
    }
}

SIM_UNCHECKED inline Fiber* Machine::fiber_for(int i) {
    if (!thread[i].fiber) {
        if (idle.empty()) grow_fibers();
        thread[i].fiber = idle.back();
        idle.pop_back();
    }
    return thread[i].fiber;
}

// The thread that goes on next, or -1.
SIM_UNCHECKED inline int Machine::pick() {
    int w = current / WARP;
    if (!warp[w].ready) {
        if (!ready_warps) return -1;
        const int turn = seed ? random() % 32 : (w + 1) % 32;
        const uint32_t rotated = ready_warps >> turn | ready_warps << (32 - turn) % 32;
        w = (__builtin_ctz(rotated) + turn) % 32;
    }
    Warp& its = warp[w];
    const int turn = seed ? random() % 32 : 0;
    const uint32_t rotated = its.ready >> turn | its.ready << (32 - turn) % 32;
    const int l = (__builtin_ctz(rotated) + turn) % 32;
    its.ready &= ~(1u << l);
    if (!its.ready) ready_warps &= ~(1u << w);
    return w * WARP + l;
}

// As `pick`; while nobody can go on, loads that are under way arrive.
SIM_UNCHECKED inline int Machine::next_thread() {
    for (;;) {
        const int next = pick();
        if (next >= 0 || !alive || loads.empty()) return next;
        run_a_load();
    }
}

// Hands over to that thread, or to `run_block` when there is none that can go on.
SIM_UNCHECKED inline void Machine::hand_over(int next) {
    Fiber* from = on;
    if (next < 0) {
        on = nullptr;
        switch_stack(&from->stack_pointer, main_stack);
        return;
    }
    Fiber* to = fiber_for(next);
    become(next);
    if (to == from) return;
    on = to;
    switch_stack(&from->stack_pointer, to->stack_pointer);
}

SIM_UNCHECKED inline void Machine::wait(const char* op, Site at) {
    Thread& t = self();
    t.op = op;
    t.at = at;
    hand_over(next_thread());
}

// The life of a fiber: one thread after another.
SIM_UNCHECKED inline void Machine::fiber_main() {
    for (;;) {
        Machine& m = *this_machine;
        m.body(m.arg);
        m.finish_thread();
        m.self().fiber = nullptr;
        const int next = m.next_thread();
        if (next >= 0 && !m.thread[next].fiber) {
            m.thread[next].fiber = m.on;
            m.become(next);
        } else {
            m.idle.push_back(m.on);
            m.hand_over(next);
        }
    }
}

// ---- blocks ----

inline void Machine::open_barrier() {
    block->waiting_at_barrier = 0;
    const int warps = (threads + WARP - 1) / WARP, first = block->rank * warps;
    for (int w = first; w < first + warps; ++w) {
        wake_lanes(w, warp[w].at_barrier);
        warp[w].at_barrier = 0;
    }
}

// What initialised and fenced barriers were before it is now known to all blocks.
inline void Machine::open_cluster_barrier() {
    waiting_at_cluster = 0;
    for (int r = 0; r < cluster; ++r) {
        blocks[r].unsynced.clear();
        blocks[r].unseen.clear();
    }
    for (int w = 0; w < cluster * threads / WARP; ++w) {
        wake_lanes(w, warp[w].at_barrier);
        warp[w].at_barrier = 0;
    }
}

// The blocks that run together begin.
inline void Machine::begin_blocks() {
    const int warps = (threads + WARP - 1) / WARP, all_warps = cluster * warps;
    for (int r = 0; r < cluster; ++r) {
        Block& b = blocks[r];
        memset(b.dynamic, poison(), dynamic_bytes);
        b.alive = threads;
        b.waiting_at_barrier = b.free_registers = 0;
        b.register_waiters.clear();
        b.unfenced.clear();
        b.unsynced.clear();
        b.unseen.clear();
    }
    if (statics.end - statics.begin > ptrdiff_t(GUARD)) {
        memset(statics.begin + GUARD, poison(), statics.end - statics.begin - GUARD);
    }
    for (int w = 0; w < all_warps; ++w) {
        const int left = threads - w % warps * WARP, lanes = left < WARP ? left : WARP;
        warp[w].ready = lanes == WARP ? ~0u : (1u << lanes) - 1;
        warp[w].exited = ~warp[w].ready;
        warp[w].at_barrier = 0;
        warp[w].meetings = 0;
        warp[w].fenced = false;
        warp[w].issued = 0;
        warpgroup[w / 4].products.clear();
        warpgroup[w / 4].done = 0;
        warpgroup[w / 4].waiters.clear();
    }
    ready_warps = all_warps == 32 ? ~0u : (1u << all_warps) - 1;
    alive = cluster * threads;
    waiting_at_cluster = 0;
    loads.clear();
    barrier_waiters.clear();
    current = seed ? int(random() % alive) : 0;
}

inline void Machine::run_blocks() {
    begin_blocks();
    running = true;
    while (!failed) {
        const int next = pick();
        if (next >= 0) {
            on = fiber_for(next);
            become(next);
            switch_stack(&main_stack, on->stack_pointer);
        } else if (alive == 0) {
            break;
        } else {
            describe_deadlock();
        }
    }
    running = false;
    if (failed) return;
    for (int r = 0; r < cluster; ++r) check_guards(blocks[r]);
}

// ---- a launch ----

// What no GPU takes, and for clusters what this emulation does not.
inline int32_t Machine::refused(dim3 grid, dim3 shape, size_t shared) {
    const uint64_t n = uint64_t(shape.x) * shape.y * shape.z;
    if (n == 0 || n > MAX_THREADS || shape.z > 64 || grid.x == 0 || grid.x > 0x7fffffff ||
        grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535) {
        snprintf(error, sizeof error, "no GPU takes grid (%u, %u, %u) of blocks (%u, %u, %u)",
                 grid.x, grid.y, grid.z, shape.x, shape.y, shape.z);
        return ERROR_CONFIGURATION;
    }
    if (cluster < 1 || cluster > MAX_CLUSTER || grid.x % cluster) {
        snprintf(error, sizeof error, "no GPU takes clusters of %d in a grid of %u blocks", cluster,
                 grid.x);
        return ERROR_CONFIGURATION;
    }
    if (cluster > 1 && (n % WARPGROUP || n * cluster > MAX_THREADS)) {
        snprintf(error, sizeof error,
                 "the emulation wants clusters of whole warpgroups, %d threads at most, not %d x "
                 "%d",
                 MAX_THREADS, cluster, int(n));
        return ERROR_CONFIGURATION;
    }
    if (shared > MAX_SHARED) {
        snprintf(error, sizeof error, "%zu bytes of dynamic shared memory, at most %zu", shared,
                 MAX_SHARED);
        return ERROR_VALUE;
    }
    return 0;
}

// Each block's dynamic shared memory, which ends where a forbidden page begins.
inline void Machine::lay_out_shared() {
    if (!shared_memory) {
        void* map = mmap(nullptr, MAX_CLUSTER * SHARED_APART, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED) abort();
        shared_memory = static_cast<unsigned char*>(map);
        for (int r = 0; r < MAX_CLUSTER; ++r) {
            unsigned char* const from = shared_memory + r * SHARED_APART + PAGE;
            mprotect(from, MAX_SHARED + 1024, PROT_READ | PROT_WRITE);
        }
    }
    const size_t room = (dynamic_bytes + 1023) / 1024 * 1024;
    for (int r = 0; r < cluster; ++r) {
        unsigned char* const end = shared_memory + (r + 1) * SHARED_APART - PAGE;
        blocks[r].rank = r;
        blocks[r].dynamic = end - room;
        memset(end - room - GUARD, GUARD_BYTE, GUARD);
        memset(end - room + dynamic_bytes, GUARD_BYTE, room - dynamic_bytes);
    }
    memset(statics.begin, GUARD_BYTE, GUARD);
    memset(statics.end, GUARD_BYTE, GUARD);
}

inline void Machine::number_threads(dim3 shape) {
    const bool same = indexed.x == shape.x && indexed.y == shape.y && indexed.z == shape.z;
    if (same && blocks_indexed >= cluster) return;
    for (unsigned i = 0; i < unsigned(cluster * threads); ++i) {
        const unsigned t = i % threads;
        index[i] = {t % shape.x, t / shape.x % shape.y, t / (shape.x * shape.y)};
    }
    indexed = shape;
    blocks_indexed = cluster;
}

// After a failure: what threads left behind.
inline void Machine::forget_threads() {
    idle.clear();
    for (Fiber* f : fibers) {
        renew(*f);
        idle.push_back(f);
    }
    for (int i = 0; i < cluster * threads; ++i) {
        thread[i].fiber = nullptr;
        thread[i].copies.clear();
        thread[i].copies_done = thread[i].group = thread[i].products_group = 0;
    }
}

inline int32_t Machine::launch(dim3 grid, dim3 shape, int blocks_together, size_t shared,
                               void (*call)(const void*), const void* argument, const char* kernel,
                               Statics region) {
    error[0] = 0;
    bank_conflicts = 0;
    cluster = blocks_together;
    if (const int32_t code = refused(grid, shape, shared)) return code;
    threads = int(shape.x * shape.y * shape.z);
    dynamic_bytes = shared;
    statics = region;
    body = call;
    arg = argument;
    name = kernel;
    lay_out_shared();
    number_threads(shape);
    registers = 65536 / threads / 8 * 8 < 256 ? 65536 / threads / 8 * 8 : 248;
    for (int i = 0; i < cluster * threads; ++i) thread[i].registers = registers;
    state = seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
    failed = false;
    gridDim = grid;
    blockDim = shape;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x && !failed; x += cluster) {
                for (int r = 0; r < cluster; ++r) blocks[r].index = {x + r, y, z};
                block = blocks;
                blockIdx = block->index;
                run_blocks();
            }
        }
    }
    if (!failed) return 0;
    forget_threads();
    return ERROR_LAUNCH;
}

// ---- failures ----

constexpr const char* STATICS_IN_CLUSTER =
    "a static __shared__ array in a cluster, whose blocks share it here; use dynamic shared memory";

// "gelu_kernel<8>" of what the compiler says about `launch<gelu_kernel<8>, ...>`.
inline void kernel_name(const char* from, char* to, size_t room) {
    const char* c = strstr(from, "::launch<");
    c = c ? c + strlen("::launch<") : "a kernel";
    const char* const anonymous = "{anonymous}::";
    size_t n = 0;
    for (int depth = 0; *c && n + 1 < room && (depth > 0 || (*c != ',' && *c != '>'));) {
        if (!strncmp(c, anonymous, strlen(anonymous))) {
            c += strlen(anonymous);
            continue;
        }
        depth += (*c == '<' || *c == '(') - (*c == '>' || *c == ')');
        to[n++] = *c++;
    }
    to[n] = 0;
}

inline void Machine::set_error(Site at, const char* format, va_list args) {
    if (failed) return;
    failed = true;
    int n = vsnprintf(error, sizeof error, format, args);
    const auto add = [&](const char* more, auto... values) {
        if (n < int(sizeof error)) n += snprintf(error + n, sizeof error - n, more, values...);
    };
    const uint3 t = index[current];
    if (running) add("; thread (%u, %u, %u)", t.x, t.y, t.z);
    if (at.line) add(" at %s:%d", at.file, at.line);
    char kernel[160];
    kernel_name(name, kernel, sizeof kernel);
    add("; block (%u, %u, %u) of %s", blockIdx.x, blockIdx.y, blockIdx.z, kernel);
}

inline void Machine::report(Site at, const char* format, ...) {
    va_list args;
    va_start(args, format);
    set_error(at, format, args);
    va_end(args);
}

inline void Machine::fail(Site at, const char* format, ...) {
    va_list args;
    va_start(args, format);
    set_error(at, format, args);
    va_end(args);
    void* abandoned;
    switch_stack(&abandoned, main_stack);
    __builtin_unreachable();
}

inline void Machine::describe_deadlock() {
    char text[800] = "";
    int n = 0, told = 0;
    const char* last = "";
    for (int i = 0; i < cluster * threads && told < 8 && n < 640; ++i) {
        const Thread& t = thread[i];
        if (i % threads == 0) last = "";
        if (!t.fiber || last == t.op) continue;
        n += snprintf(text + n, sizeof text - n, "%s thread %d", told++ ? "," : "", i % threads);
        if (cluster > 1) n += snprintf(text + n, sizeof text - n, " of rank %d", i / threads);
        n += snprintf(text + n, sizeof text - n, " in %s (%s:%d)", t.op, t.at.file, t.at.line);
        last = t.op;
    }
    running = false;
    blockIdx = blocks[0].index;
    if (statics_are_written()) return report({"", 0}, STATICS_IN_CLUSTER);
    report({"", 0}, "deadlock, %d threads wait for ever:%s", alive, text);
}

// By a kernel that runs as a cluster: its blocks share them here, and nowhere else.
inline bool Machine::statics_are_written() const {
    if (cluster == 1) return false;
    const unsigned char* at = statics.begin + GUARD;
    while (at < statics.end && *at == poison()) ++at;
    return at < statics.end;
}

inline void Machine::check_guards(const Block& b) {
    const size_t slack = (1024 - dynamic_bytes % 1024) % 1024;
    block = &blocks[b.rank];
    blockIdx = b.index;
    for (size_t i = 1; i <= GUARD; ++i) {
        if (b.dynamic[-ptrdiff_t(i)] != GUARD_BYTE) {
            return report({"", 0}, "wrote %zu bytes before dynamic shared memory", i);
        }
        if (statics.begin[i - 1] != GUARD_BYTE || statics.end[i - 1] != GUARD_BYTE) {
            return report({"", 0}, "wrote outside the static __shared__ arrays");
        }
    }
    for (size_t i = 0; i < slack; ++i) {
        if (b.dynamic[dynamic_bytes + i] != GUARD_BYTE) {
            return report({"", 0}, "wrote %zu bytes past the end of dynamic shared memory", i);
        }
    }
    if (statics_are_written()) report({"", 0}, STATICS_IN_CLUSTER);
}

}  // namespace sim
