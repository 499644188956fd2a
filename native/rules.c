/* The table of lock kinds; rules.h says what may be asked of it. */
#include "rules.h"

const struct dlk_rule dlk_rules[DLK_KIND_COUNT] = {
    [DLK_KIND_ATOMIC] = {.shared = false, .leases = true, .tickets = false, .slots = false},
    [DLK_KIND_RW] = {.shared = true, .leases = false, .tickets = false, .slots = false},
    [DLK_KIND_FAIR] = {.shared = true, .leases = true, .tickets = true, .slots = false},
    [DLK_KIND_SEMAPHORE] = {.shared = false, .leases = true, .tickets = false, .slots = true},
};

static const enum dlk_counter busy_counters[DLK_KIND_COUNT][DLK_MODE_COUNT] = {
    [DLK_KIND_ATOMIC] = {DLK_COUNT_ATOMIC_TRYLOCK_FAIL, DLK_COUNT_ATOMIC_TRYLOCK_FAIL},
    [DLK_KIND_RW] = {DLK_COUNT_RW_TRYLOCK_EX_FAIL, DLK_COUNT_RW_TRYLOCK_SH_FAIL},
    [DLK_KIND_FAIR] = {DLK_COUNT_EAGAIN, DLK_COUNT_EAGAIN},
    [DLK_KIND_SEMAPHORE] = {DLK_COUNT_SEMAPHORE_FAIL, DLK_COUNT_SEMAPHORE_FAIL},
};

static const enum dlk_counter unlock_counters[DLK_KIND_COUNT][DLK_MODE_COUNT] = {
    [DLK_KIND_ATOMIC] = {DLK_COUNT_ATOMIC_UNLOCK_FAIL, DLK_COUNT_ATOMIC_UNLOCK_FAIL},
    [DLK_KIND_RW] = {DLK_COUNT_RW_UNLOCK_EX_FAIL, DLK_COUNT_RW_UNLOCK_SH_FAIL},
    [DLK_KIND_FAIR] = {DLK_COUNT_FAIR_UNLOCK_EX_FAIL, DLK_COUNT_FAIR_UNLOCK_SH_FAIL},
    [DLK_KIND_SEMAPHORE] = {DLK_COUNT_SEMAPHORE_FAIL, DLK_COUNT_SEMAPHORE_FAIL},
};

bool dlk_rule_request_valid(uint32_t kind, uint32_t mode, uint32_t flags, uint32_t lease_ms)
{
    const struct dlk_rule *rule = &dlk_rules[kind];
    if (mode == DLK_MODE_SHARED && !rule->shared) {
        return false;
    }
    if (lease_ms != 0 && !rule->leases) {
        return false;
    }
    return (flags & DLK_FLAG_TICKET) == 0 || rule->tickets;
}

enum dlk_counter dlk_rule_busy_counter(uint32_t kind, uint32_t mode)
{
    return busy_counters[kind][mode];
}

enum dlk_counter dlk_rule_unlock_counter(uint32_t kind, uint32_t mode)
{
    return unlock_counters[kind][mode];
}
