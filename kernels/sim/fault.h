// Faults of kernel code become failures of the launch: a signal on a fiber continues in
// `Machine::fail`.
#pragma once

#include "scheduler.h"

#include <signal.h>
#include <ucontext.h>

namespace sim {

struct Fault {
    int signal;
    const void *address, *stack_bottom;
};
inline thread_local Fault fault;

[[noreturn]] inline void tell_fault() {
    Machine& m = *this_machine;
    const auto at = static_cast<const char*>(fault.address);
    const auto stack = static_cast<const char*>(fault.stack_bottom);
    if (fault.signal == SIGFPE) m.fail({"", 0}, "integer division by zero");
    if (at >= stack && at < stack + PAGE) m.fail({"", 0}, "the thread's stack is full");
    const auto past = at - reinterpret_cast<const char*>(m.block->dynamic);
    if (past >= 0 && past < ptrdiff_t(m.dynamic_bytes + 1024 + PAGE)) {
        m.fail({"", 0}, "byte %td of %zu of dynamic shared memory", past, m.dynamic_bytes);
    }
    m.fail({"", 0}, "read or wrote %p, which is no tensor's memory, or misaligned if null", at);
}

// Handlers that were there before ours, by signal.
inline struct sigaction former_handler[32];

inline void on_signal(int signal, siginfo_t* info, void* context) {
    Machine* m = this_machine;
    if (m && m->running) {
        fault = {signal, info->si_addr, m->stack_bottom()};
        // The thread does not come back: its stack serves to tell.
        auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
        registers[REG_RSP] = reinterpret_cast<greg_t>(m->stack_top()) - 8;
        registers[REG_RIP] = reinterpret_cast<greg_t>(&tell_fault);
        return;
    }
    const struct sigaction& former = former_handler[signal];
    if (former.sa_flags & SA_SIGINFO) {
        former.sa_sigaction(signal, info, context);
    } else if (former.sa_handler != SIG_DFL && former.sa_handler != SIG_IGN) {
        former.sa_handler(signal);
    } else {
        sigaction(signal, &former, nullptr);  // happens again, and ends the process
    }
}

inline bool install_handlers() {
    struct sigaction ours = {};
    ours.sa_sigaction = on_signal;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int signal : {SIGSEGV, SIGBUS, SIGFPE}) sigaction(signal, &ours, &former_handler[signal]);
    return true;
}

// Handlers once a process; a stack for them once a thread, unless it has one.
inline void catch_faults() {
    static const bool installed = install_handlers();
    (void)installed;
    stack_t stack;
    sigaltstack(nullptr, &stack);
    if (stack.ss_flags & SS_DISABLE) {
        static thread_local char room[16384];
        stack = {room, 0, sizeof room};
        sigaltstack(&stack, nullptr);
    }
}

}  // namespace sim
