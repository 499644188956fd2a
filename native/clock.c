/*
 * The one clock: it counts while the machine sleeps, so that a lease does not outlive its end. Who
 * runs both ends under a time of his own sets it; nothing here decides whose time it is.
 */
#include "clock.h"

#include <stdatomic.h>
#include <time.h>

static _Atomic uint64_t set_ns; /* 0: nobody has set it */

void dlk_clock_set(uint64_t now_ns)
{
    atomic_store_explicit(&set_ns, now_ns, memory_order_relaxed);
}

uint64_t dlk_now_ns(void)
{
    uint64_t now_ns = atomic_load_explicit(&set_ns, memory_order_relaxed);
    struct timespec now;

    if (now_ns != 0) {
        return now_ns;
    }
    clock_gettime(CLOCK_BOOTTIME, &now); /* cannot fail: the clock exists since Linux 2.6.39 */
    return (uint64_t)now.tv_sec * DLK_NS_PER_S + (uint64_t)now.tv_nsec;
}
