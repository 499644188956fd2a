/*
 * How long a thread that waits for a message spins before it sleeps.
 *
 * BLOCK never spins, POLL never sleeps (but returns to its caller every DLK_WAIT_SLICE_MS).
 * ADAPTIVE spins for a budget that it learns: a message that came while spinning, or so soon after
 * falling asleep that a longer spin would have caught it, raises the budget to what was needed; a
 * spin in vain halves it. While there are more runnable threads than cores it does not spin at all.
 *
 * Pure: now is an argument. Only dlk_overload_* (overload.c) looks at the machine.
 */
#ifndef DLOCK_ADAPTIVE_H
#define DLOCK_ADAPTIVE_H

#include <stdbool.h>

#include "dlock_abi.h"

struct dlk_adaptive {
    uint32_t wait_mode; /* enum dlk_wait_mode */
    uint64_t budget_ns; /* of the next spin */
    uint64_t max_ns;
};

void dlk_adaptive_init(struct dlk_adaptive *adaptive, uint32_t wait_mode, uint32_t spin_us);
/* 0: sleep at once; UINT64_MAX: never sleep. */
uint64_t dlk_adaptive_budget_ns(const struct dlk_adaptive *adaptive, bool overloaded);
/* The wait is over: it took waited_ns in all; slept says whether the thread went to sleep. */
void dlk_adaptive_learn(struct dlk_adaptive *adaptive, uint64_t waited_ns, bool slept);

/* True while the machine has more runnable threads than cores this process may use. Sampled at
 * most every 10 ms, every 100 ms once it was so (one pread of /proc/loadavg); any thread. */
bool dlk_overloaded(uint64_t now_ns);

#endif
