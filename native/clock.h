/*
 * The clock of both ends, dlk_now_ns (declared in dlock_abi.h), and the pause between two looks of
 * a spinning thread. Only the shells (plane, client, keeper) include this: engine, rules and book
 * take now as an argument.
 */
#ifndef DLOCK_CLOCK_H
#define DLOCK_CLOCK_H

#include "dlock_abi.h"

enum { DLK_NS_PER_US = 1000, DLK_NS_PER_MS = 1000000, DLK_NS_PER_S = 1000000000 };

/* Tells the core that this thread spins, so that its sibling and the power budget profit. */
/* Who spins reads the clock, and lets the core rest, each time that it has looked so often: a look
 * at a completion queue takes less time than either. */
enum { DLK_LOOKS_A_CLOCK = 8 };

static inline void dlk_cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield" ::: "memory");
#endif
}

#endif
