/* The one clock: it counts while the machine sleeps, so that a lease does not outlive its end. */
#include "clock.h"

#include <time.h>

uint64_t dlk_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_BOOTTIME, &now); /* cannot fail: the clock exists since Linux 2.6.39 */
    return (uint64_t)now.tv_sec * DLK_NS_PER_S + (uint64_t)now.tv_nsec;
}
