/*
 * What the engine knows only while it recovers: how high the claims of a lock reach, and the lease
 * of a claimed hold, which does not run yet. Two tables beside those of the locks and entries, so
 * that a server that serves pays nothing for them: the first claim takes their memory, and they are
 * given back when all is ready. docs/lock-kinds.md, "Recovery", is the law. For the engine's own
 * files only.
 */
#ifndef DLOCK_ENGINE_CLAIM_H
#define DLOCK_ENGINE_CLAIM_H

#include "engine_internal.h"

/* Beside each lock. All zero: nothing has been claimed. */
struct floor {
    uint64_t exclusive; /* the highest exclusive token that was claimed, believed or not, */
    uint64_t owner;     /* and whose it is: two claims of one token cannot both be right */
    uint64_t shared;    /* the highest shared token */
    uint32_t client_id;
    uint32_t lock_id; /* whose floor this is: the slot may have had another lock */
    uint8_t certain;  /* nobody can hold it whom we do not know: it is served to early sessions */
    uint8_t moved;    /* it may have been granted since: what is claimed now is lost */
};

/* Beside each entry that is DLK_ENTRY_CLAIMED. */
struct claimed {
    uint32_t lease_ms; /* what remains of it, from when all is ready; 0: the hold has none */
    uint32_t live;     /* its client could still believe in it when it claimed it */
};

struct claims {
    struct floor *floors;
    struct claimed *claimed;
};

/* engine_merge.c: what is held of a lock, as far as the claims up to now tell. */
uint32_t dlk_merge_hold(struct dlk_engine *engine, const struct dlk_request *as,
                        const struct dlk_claim *claim, bool believed, uint64_t now_ns);
void dlk_merge_displace(struct dlk_engine *engine, struct entry *entry, uint64_t now_ns);
bool dlk_merge_check(const struct dlk_engine *engine, const struct lock *lock);

#endif
