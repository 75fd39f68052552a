// What the compiler's checks call (-fsanitize=bounds,alignment,...): an index outside its array or
// a misaligned access in a kernel becomes a failure of the launch, with file and line. The names
// and the layouts are the compiler's.
#pragma once

#include "scheduler.h"

namespace sim {

struct CheckSite {
    const char* file;
    uint32_t line, column;
};
struct CheckMisaligned {
    CheckSite at;
    const void* type;
    unsigned char log_alignment, access;
};

[[noreturn]] inline void check_failed(const CheckSite& at, const char* what, uint64_t value) {
    Machine* m = this_machine;
    if (m && m->running) m->fail({at.file, int(at.line)}, "%s (%lld)", what, (long long)value);
    fprintf(stderr, "%s:%u: %s (%lld) in a launcher\n", at.file, at.line, what, (long long)value);
    abort();
}

}  // namespace sim

#define SIM_CHECK(name, what, value, ...)                                                       \
    __attribute__((used)) inline void __ubsan_handle_##name(const sim::CheckSite* at,           \
                                                            __VA_ARGS__) {                      \
        sim::check_failed(*at, what, value);                                                    \
    }

extern "C" {
SIM_CHECK(out_of_bounds, "an index outside its array", index, uint64_t index)
SIM_CHECK(add_overflow, "a sum passes its integer type", a, uint64_t a, uint64_t)
SIM_CHECK(sub_overflow, "a difference passes its integer type", a, uint64_t a, uint64_t)
SIM_CHECK(mul_overflow, "a product passes its integer type", a, uint64_t a, uint64_t)
SIM_CHECK(negate_overflow, "a negation passes its integer type", a, uint64_t a)
SIM_CHECK(divrem_overflow, "integer division by zero", a, uint64_t a, uint64_t)
SIM_CHECK(shift_out_of_bounds, "a shift by too much", by, uint64_t, uint64_t by)

__attribute__((used)) inline void __ubsan_handle_type_mismatch_v1(const sim::CheckMisaligned* check,
                                                                  uint64_t address) {
    char what[80];
    snprintf(what, sizeof what, "an access that wants %d-byte alignment, at %#llx",
             1 << check->log_alignment, (unsigned long long)address);
    sim::check_failed(check->at, what, address & ((uint64_t(1) << check->log_alignment) - 1));
}
}
#undef SIM_CHECK
