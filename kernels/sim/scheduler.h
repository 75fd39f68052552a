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
    return (at >= dynamic && at + bytes <= dynamic + dynamic_bytes) ||
           (at >= statics.begin && at + bytes <= statics.end);
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
    if (shared_memory) munmap(shared_memory - PAGE, MAX_SHARED + 1024 + 2 * PAGE);
    this_machine = nullptr;
}

SIM_UNCHECKED inline void Machine::become(int i) {
    current = i;
    threadIdx = index[i];
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
    waiting_at_barrier = 0;
    for (int w = 0; w < (threads + WARP - 1) / WARP; ++w) {
        wake_lanes(w, warp[w].at_barrier);
        warp[w].at_barrier = 0;
    }
}

inline void Machine::begin_block() {
    memset(dynamic, poison(), dynamic_bytes);
    if (statics.end - statics.begin > ptrdiff_t(GUARD)) {
        memset(statics.begin + GUARD, poison(), statics.end - statics.begin - GUARD);
    }
    const int warps = (threads + WARP - 1) / WARP;
    for (int w = 0; w < warps; ++w) {
        const int lanes = threads - w * WARP < WARP ? threads - w * WARP : WARP;
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
    ready_warps = warps == 32 ? ~0u : (1u << warps) - 1;
    free_registers = 0;
    register_waiters.clear();
    alive = threads;
    waiting_at_barrier = 0;
    loads.clear();
    unfenced.clear();
    barrier_waiters.clear();
    current = seed ? int(random() % threads) : 0;
}

inline void Machine::run_block() {
    begin_block();
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
    if (const char* what = unfinished()) report({"", 0}, "%s", what);
    check_guards();
}

inline int32_t Machine::launch(dim3 grid, dim3 block, size_t shared, void (*call)(const void*),
                               const void* argument, const char* kernel, Statics region) {
    error[0] = 0;
    bank_conflicts = 0;
    const uint64_t n = uint64_t(block.x) * block.y * block.z;
    if (n == 0 || n > MAX_THREADS || block.z > 64 || grid.x == 0 || grid.x > 0x7fffffff ||
        grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535) {
        snprintf(error, sizeof error, "no GPU takes grid (%u, %u, %u) of blocks (%u, %u, %u)",
                 grid.x, grid.y, grid.z, block.x, block.y, block.z);
        return ERROR_CONFIGURATION;
    }
    if (shared > MAX_SHARED) {
        snprintf(error, sizeof error, "%zu bytes of dynamic shared memory, at most %zu", shared,
                 MAX_SHARED);
        return ERROR_VALUE;
    }
    if (!shared_memory) {
        const size_t bytes = MAX_SHARED + 1024 + 2 * PAGE;
        void* map = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) abort();
        shared_memory = static_cast<unsigned char*>(map) + PAGE;
        mprotect(shared_memory, MAX_SHARED + 1024, PROT_READ | PROT_WRITE);
    }
    const size_t room = (shared + 1023) / 1024 * 1024;
    dynamic = shared_memory + MAX_SHARED + 1024 - room;
    dynamic_bytes = shared;
    statics = region;
    memset(dynamic - GUARD, GUARD_BYTE, GUARD);
    memset(dynamic + shared, GUARD_BYTE, room - shared);
    memset(statics.begin, GUARD_BYTE, GUARD);
    memset(statics.end, GUARD_BYTE, GUARD);
    body = call;
    arg = argument;
    name = kernel;
    threads = int(n);
    registers = 65536 / threads / 8 * 8 < 256 ? 65536 / threads / 8 * 8 : 248;
    for (int i = 0; i < threads; ++i) thread[i].registers = registers;
    state = seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
    failed = false;
    if (indexed.x != block.x || indexed.y != block.y || indexed.z != block.z) {
        for (unsigned i = 0; i < n; ++i) {
            index[i] = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
        }
        indexed = block;
    }
    gridDim = grid;
    blockDim = block;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x && !failed; ++x) {
                blockIdx = {x, y, z};
                run_block();
            }
        }
    }
    if (!failed) return 0;
    idle.clear();
    for (Fiber* f : fibers) {
        renew(*f);
        idle.push_back(f);
    }
    for (int i = 0; i < threads; ++i) {
        thread[i].fiber = nullptr;
        thread[i].copies.clear();
        thread[i].copies_done = thread[i].group = 0;
    }
    return ERROR_LAUNCH;
}

// ---- failures ----

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
    char text[512] = "";
    int n = 0, told = 0;
    const char* last = "";
    for (int i = 0; i < threads && told < 4 && n < 400; ++i) {
        const Thread& t = thread[i];
        if (!t.fiber || last == t.op) continue;
        n += snprintf(text + n, sizeof text - n, "%s thread %d in %s (%s:%d)", told++ ? "," : "", i,
                      t.op, t.at.file, t.at.line);
        last = t.op;
    }
    running = false;
    report({"", 0}, "deadlock, %d threads wait for ever:%s", alive, text);
}

inline void Machine::check_guards() {
    const size_t slack = (1024 - dynamic_bytes % 1024) % 1024;
    for (size_t i = 1; i <= GUARD; ++i) {
        if (dynamic[-ptrdiff_t(i)] != GUARD_BYTE) {
            return report({"", 0}, "wrote %zu bytes before dynamic shared memory", i);
        }
        if (statics.begin[i - 1] != GUARD_BYTE || statics.end[i - 1] != GUARD_BYTE) {
            return report({"", 0}, "wrote outside the static __shared__ arrays");
        }
    }
    for (size_t i = 0; i < slack; ++i) {
        if (dynamic[dynamic_bytes + i] != GUARD_BYTE) {
            return report({"", 0}, "wrote %zu bytes past the end of dynamic shared memory", i);
        }
    }
}

}  // namespace sim
