/* The emulation's controls, in C: bindgen reads this. Everything is of the calling OS thread. */
#ifndef ROCLIP_SIM_API_H
#define ROCLIP_SIM_API_H

#include <stdint.h>

enum {
    /* Asynchronous work is done as late as the waits allow: shows a missing wait. */
    ROCLIP_SIM_LAZY = 0,
    /* At once: shows memory that is used again too early. */
    ROCLIP_SIM_EAGER = 1,
    /* Each piece by a throw of the seed: shows what needs one early and one late. */
    ROCLIP_SIM_MIXED = 2
};

#ifdef __cplusplus
extern "C" {
#endif

/* How the launches that follow run. Seed 0 runs threads in their natural order; every other seed
 * shuffles warps and lanes. An odd seed fills fresh memory with large numbers instead of NaN; bit 1
 * guards the start of an allocation instead of its end. A thread begins with (lazy, 0). */
void roclip_sim_configure(int32_t mode, uint64_t seed);

/* How many multiprocessors the launches that follow find: 1 or more, 6 at first. What persistent
 * kernels compute must not depend on it. */
void roclip_sim_set_multiprocessors(int32_t count);

/* What this thread's last launch did wrong, and where; "" if nothing. Valid until the next. */
const char *roclip_sim_last_error(void);

/* Bank conflicts of ldmatrix, in rows that had to be read again, in the last launch. */
uint64_t roclip_sim_bank_conflicts(void);

/* Memory for kernels' tensors, filled with a poison; a null pointer when there is none. */
void *roclip_sim_alloc(uint64_t bytes);

/* Gives it back, from any thread; null does nothing. Returns 0, or 1 when bytes beside the buffer
 * were written, which a launch could not see (`roclip_sim_last_error` says so). */
int32_t roclip_sim_free(void *memory);

#ifdef __cplusplus
}
#endif

#endif
