/* How long to spin before sleeping: a function of what earlier waits were worth. Reads no clock. */
#include "adaptive.h"

enum {
    SPIN_MAX_US_DEFAULT = 50, /* about what one sleep and wake-up of both ends costs */
    SPIN_MIN_NS = 1000,       /* a shorter spin than one look at the socket is none */
    NS_PER_US = 1000
};

void dlk_adaptive_init(struct dlk_adaptive *adaptive, uint32_t wait_mode, uint32_t spin_us)
{
    adaptive->wait_mode = wait_mode;
    adaptive->max_ns = (uint64_t)(spin_us != 0 ? spin_us : SPIN_MAX_US_DEFAULT) * NS_PER_US;
    adaptive->budget_ns = adaptive->max_ns;
}

uint64_t dlk_adaptive_budget_ns(const struct dlk_adaptive *adaptive, bool overloaded)
{
    if (adaptive->wait_mode == DLK_WAIT_POLL) {
        return UINT64_MAX;
    }
    if (adaptive->wait_mode == DLK_WAIT_BLOCK || overloaded) {
        return 0;
    }
    return adaptive->budget_ns;
}

void dlk_adaptive_learn(struct dlk_adaptive *adaptive, uint64_t waited_ns, bool slept)
{
    uint64_t needed_ns = 2 * waited_ns; /* the next one may be as much later again */
    /* What came after a sleep is late by the wake-up itself, and at the other end by that of the
     * thread that would not have slept either: half as much again still counts as soon. */
    bool worth_it = !slept || waited_ns < adaptive->max_ns + adaptive->max_ns / 2;

    if (adaptive->wait_mode != DLK_WAIT_ADAPTIVE) {
        return;
    }
    if (worth_it) {
        if (needed_ns > adaptive->max_ns) {
            needed_ns = adaptive->max_ns;
        }
        if (needed_ns > adaptive->budget_ns) {
            adaptive->budget_ns = needed_ns;
        }
    } else {
        adaptive->budget_ns /= 2;
        if (adaptive->budget_ns < SPIN_MIN_NS) {
            adaptive->budget_ns = 0;
        }
    }
}
