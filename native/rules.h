/*
 * What each lock kind allows: one table, and the few questions that the engine asks of it.
 * Pure; knows of no sessions, time or memory. docs/lock-kinds.md is the law.
 */
#ifndef DLOCK_RULES_H
#define DLOCK_RULES_H

#include <stdbool.h>

#include "dlock_abi.h"

struct dlk_rule {
    bool shared;  /* has a shared mode */
    bool leases;  /* a hold may have a lease */
    bool tickets; /* a busy trylock may take a ticket */
    bool slots;   /* capacity is the lock's size, not one writer or many readers */
};

extern const struct dlk_rule dlk_rules[DLK_KIND_COUNT];

static inline bool dlk_rule_compatible(uint32_t kind, uint32_t mode, uint32_t n_exclusive,
                                       uint32_t n_shared, uint32_t size)
{
    if (kind == DLK_KIND_SEMAPHORE) {
        return n_exclusive < size;
    }
    if (mode == DLK_MODE_SHARED) {
        return n_exclusive == 0;
    }
    return n_exclusive == 0 && n_shared == 0;
}

/* Is a request for a new hold or a ticket well-formed for this kind? */
bool dlk_rule_request_valid(uint32_t kind, uint32_t mode, uint32_t flags, uint32_t lease_ms);

/* The counter of a refusal: what failed (LOCK or UNLOCK), on which kind, in which mode. */
enum dlk_counter dlk_rule_busy_counter(uint32_t kind, uint32_t mode);
enum dlk_counter dlk_rule_unlock_counter(uint32_t kind, uint32_t mode);

#endif
