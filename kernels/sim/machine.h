// How a launch runs: blocks, or clusters of them, one after another, every CUDA thread a fiber of
// the calling OS thread.
//
// A fiber runs one thread until it must wait (at a barrier, for its warp); then it hands over to
// another. A thread that ends leaves its fiber to the next one, so threads that never wait run
// through a plain loop. A warp runs ahead of the others as far as its waits let it: the widest gap
// that a missing barrier can have.
#pragma once

#include "sim_api.h"
#include "types.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifndef __x86_64__
#error "the emulation's fibers are written for x86-64"
#endif

// The calling thread's place; set whenever another thread goes on.
inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;

// Where this file's static __shared__ arrays begin and end: they lie in its zero-initialised
// thread-local data, between these two labels.
__asm__(
    ".pushsection .tbss,\"awT\",@nobits\n"
    ".balign 64\n"
    ".type roclip_sim_statics,@tls_object\n"
    "roclip_sim_statics: .zero 64\n"
    ".subsection 8191\n"
    ".type roclip_sim_statics_end,@tls_object\n"
    "roclip_sim_statics_end: .zero 64\n"
    ".popsection\n");
extern "C" {
extern __thread unsigned char roclip_sim_statics[] __asm__("roclip_sim_statics");
extern __thread unsigned char roclip_sim_statics_end[] __asm__("roclip_sim_statics_end");
}

namespace sim {

constexpr int WARP = 32, WARPGROUP = 128;
constexpr int MAX_THREADS = 1024;  // of a block, and of a cluster together
constexpr int MAX_CLUSTER = 8;     // that every GPU with clusters takes
constexpr int32_t ERROR_VALUE = 1, ERROR_CONFIGURATION = 9, ERROR_LAUNCH = 719;  // cudaError_t
constexpr size_t PAGE = 4096;
constexpr size_t MAX_SHARED = 227 * 1024;  // of sm_90 and sm_100
constexpr size_t SHARED_APART = MAX_SHARED + 1024 + 2 * PAGE;  // a forbidden page before and after
constexpr size_t GUARD = 64;               // bytes around shared memory that nobody may write
constexpr unsigned char GUARD_BYTE = 0xff;
constexpr size_t STACK = 128 * 1024;

// A line of a kernel.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

struct Fiber {
    void* stack_pointer;
    char *bottom, *top;  // the lowest page is forbidden
};

struct Copy {  // a cp.async under way
    void* to;
    const void* from;
    uint32_t group;
    bool valid;
};

struct Thread {
    Fiber* fiber = nullptr;  // null until it begins
    const char* op = "";     // what it waits for, and where
    Site at = {"", 0};
    uint64_t* barrier = nullptr;  // the mbarrier it waits for
    uint32_t parity = 0;
    std::vector<Copy> copies;  // in order of issue
    size_t copies_done = 0;
    uint32_t group = 0;           // groups of copies committed
    uint32_t products_group = 0;  // groups of wgmma committed
    int registers = 0;
};

class Machine;

// Lanes of a warp that meet for one instruction; the last one to come does the work of all.
struct Meeting {
    const char* op;
    Site at;
    uint32_t mask, arrived;
    void (*act)(Machine&, void** slot, uint32_t lanes);
};

// A product of a warpgroup. It begins when all four warps have issued it.
struct Wgmma {
    void* d[WARPGROUP];
    uint64_t a, b;
    void (*run)(const Machine&, const Wgmma&);  // by type and width
    bool accumulate;
    uint32_t warps;     // that have issued it, as bits
    uint32_t group[4];  // of each warp
};

struct Warp {
    uint32_t ready, exited, at_barrier;
    Site barrier_at;
    bool at_cluster;  // the barrier is the cluster's
    int meetings;
    Meeting meeting[WARP];
    void* slot[WARP];  // what each lane brought
    bool fenced;       // by wgmma_fence
    size_t issued;     // products
};

struct Warpgroup {
    std::vector<Wgmma> products;  // of the block, in order
    size_t done;
    std::vector<int> waiters;
};

struct Block;

struct Load {  // a TMA load under way to one block
    unsigned char* to;
    CUtensorMap map;  // a copy: the thread may end, and its arguments with it
    uint64_t* barrier;
    int c0, c1;
    const Block* block;  // whose memory it writes
    int thread;          // that issued it, and where
    Site at;
};

struct Arrival {  // from another block, in the phase of that parity
    const uint64_t* barrier;
    uint32_t phase;
};

// One of the blocks that run together.
struct Block {
    int rank = 0;
    uint3 index = {0, 0, 0};
    unsigned char* dynamic = nullptr;
    int alive = 0, waiting_at_barrier = 0;
    int free_registers = 0;  // that setmaxnreg gave back
    std::vector<int> register_waiters;
    std::vector<uint64_t*> unfenced;  // mbarriers that TMA may not use yet
    std::vector<uint64_t*> unsynced;  // nor other blocks
    std::vector<Arrival> unseen;      // which no thread of this block has waited for
};

struct Statics {
    unsigned char *begin, *end;
};

class Machine {
public:
    ~Machine();
    int32_t launch(dim3 grid, dim3 shape, int cluster, size_t shared, void (*body)(const void*),
                   const void* arg, const char* name, Statics statics);

    // The calling thread waits until somebody wakes it.
    void wait(const char* op, Site at);
    SIM_UNCHECKED void wake(int i) {
        warp[i / WARP].ready |= 1u << (i % WARP);
        ready_warps |= 1u << (i / WARP);
    }
    SIM_UNCHECKED void wake_lanes(int w, uint32_t lanes) {
        warp[w].ready |= lanes;
        if (lanes) ready_warps |= 1u << w;
    }
    // Ends the launch, from within a thread; the first failure is the one that is told.
    [[noreturn]] void fail(Site at, const char* format, ...) __attribute__((format(printf, 3, 4)));
    // What fresh memory holds: NaN, or 3.4e38 in f32 and bf16.
    unsigned char poison() const { return seed % 2 ? 0x7f : 0xff; }
    SIM_UNCHECKED bool early();  // whether an asynchronous operation is done at once
    SIM_UNCHECKED uint64_t random();
    bool is_shared(const void* p, size_t bytes) const;
    void wait_at_barrier(bool of_cluster, Site at);
    void open_barrier();
    void open_cluster_barrier();
    void complete(Warp& w, int meeting);

    SIM_UNCHECKED Thread& self() { return thread[current]; }
    SIM_UNCHECKED Warp& my_warp() { return warp[current / WARP]; }
    SIM_UNCHECKED int lane() const { return current % WARP; }

    // settings
    int mode = ROCLIP_SIM_LAZY;
    uint64_t seed = 0;
    int multiprocessors = 6;
    // results
    char error[1024] = "";
    uint64_t bank_conflicts = 0;
    // the launch
    int current = 0;
    int threads = 0, cluster = 1;               // of each block; blocks that run together
    int alive = 0, waiting_at_cluster = 0;      // threads of all of them
    Block* block = blocks;                      // of the current thread
    Block blocks[MAX_CLUSTER];
    uint32_t ready_warps = 0;
    int registers = 0;  // of each thread at the start
    size_t dynamic_bytes = 0;
    Statics statics = {nullptr, nullptr};
    std::vector<Load> loads;
    std::vector<int> barrier_waiters;
    Thread thread[MAX_THREADS];
    Warp warp[MAX_THREADS / WARP];
    Warpgroup warpgroup[MAX_THREADS / WARPGROUP];
    bool running = false;  // inside a kernel
    char* stack_top() const { return on->top; }
    char* stack_bottom() const { return on->bottom; }

private:
    static void fiber_main();
    int pick();
    int next_thread();
    void run_a_load();
    const char* unfinished(const Block& b) const;
    Fiber* fiber_for(int i);
    void become(int i);
    void hand_over(int next);
    void finish_thread();
    int32_t refused(dim3 grid, dim3 shape, size_t shared);
    void lay_out_shared();
    void number_threads(dim3 shape);
    void forget_threads();
    void run_blocks();
    void begin_blocks();
    void check_guards(const Block& b);
    bool statics_are_written() const;
    void describe_deadlock();
    void grow_fibers();
    void renew(Fiber& f);
    void report(Site at, const char* format, ...) __attribute__((format(printf, 3, 4)));
    void set_error(Site at, const char* format, va_list args);

    void (*body)(const void*) = nullptr;
    const void* arg = nullptr;
    const char* name = "";
    uint3 index[MAX_THREADS];           // threadIdx of each thread
    dim3 indexed = dim3(0, 0, 0);       // for blocks of that shape
    int blocks_indexed = 0;
    uint64_t state = 1;  // of random()
    bool failed = false;
    void* main_stack = nullptr;
    Fiber* on = nullptr;  // the fiber that runs
    std::vector<Fiber*> idle;
    std::vector<Fiber*> fibers;
    std::vector<char*> stacks;
    unsigned char* shared_memory = nullptr;  // mapped, SHARED_APART for each block
};

struct MachineOwner {
    Machine* machine = nullptr;
    ~MachineOwner() { delete machine; }
};

// The OS thread's machine; a bare pointer, so that reading it costs one instruction.
inline thread_local Machine* this_machine = nullptr;

void catch_faults();

inline Machine& machine() {
    if (__builtin_expect(!this_machine, 0)) {
        static thread_local MachineOwner owner;
        owner.machine = this_machine = new Machine;
        catch_faults();
    }
    return *this_machine;
}

}  // namespace sim

#include "scheduler.h"

namespace sim {

template <class Body>
inline int32_t launch(dim3 grid, dim3 block, int cluster, size_t shared, const Body& body) {
    const auto call = [](const void* b) { (*static_cast<const Body*>(b))(); };
    return machine().launch(grid, block, cluster, shared, call, &body, __PRETTY_FUNCTION__,
                            {roclip_sim_statics, roclip_sim_statics_end});
}

}  // namespace sim
