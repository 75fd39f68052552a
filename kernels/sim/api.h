// The C functions of sim_api.h. Every file that includes this brings them; the linker keeps one.
#pragma once

#include "scheduler.h"

extern "C" {

__attribute__((used)) inline void roclip_sim_configure(int32_t mode, uint64_t seed) {
    sim::machine().mode = mode;
    sim::machine().seed = seed;
}

__attribute__((used)) inline void roclip_sim_set_multiprocessors(int32_t count) {
    sim::machine().multiprocessors = count < 1 ? 1 : count;
}

__attribute__((used)) inline const char* roclip_sim_last_error(void) {
    return sim::machine().error;
}

__attribute__((used)) inline uint64_t roclip_sim_bank_conflicts(void) {
    return sim::machine().bank_conflicts;
}
}
