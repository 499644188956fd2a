/* Purge and settle: who holds next. The rules are in docs/lock-kinds.md, "Purge" and "Settle". */
#include "engine_internal.h"

/* Removes every holder whose lease is over, and learns when the next one ends. */
void dlk_lock_purge(struct dlk_engine *engine, struct lock *lock, uint64_t now_ns)
{
    uint64_t min_end_ns = DLK_NEVER;
    uint32_t index = lock->holders;
    while (index != DLK_NONE) {
        struct entry *entry = &engine->entries[index];
        index = entry->lock_next;
        if (entry->end_ns <= now_ns) {
            dlk_entry_remove(engine, entry);
            dlk_count(engine, DLK_COUNT_LEASES_EXPIRED, 1);
        } else if (entry->end_ns < min_end_ns) {
            min_end_ns = entry->end_ns;
        }
    }
    lock->min_end_ns = min_end_ns;
}

static void pass_ticket(struct dlk_engine *engine, struct entry *entry)
{
    engine->counters[entry->mode == DLK_MODE_SHARED ? DLK_COUNT_FAIR_SH_TICKET_PASSED
                                                    : DLK_COUNT_FAIR_EX_TICKET_PASSED]++;
    dlk_entry_remove(engine, entry);
}

/* A ticket whose turn has come: is it passed, because its claim is over and somebody stands
 * behind it? */
static bool ticket_overdue(const struct dlk_engine *engine, struct entry *entry, uint64_t now_ns)
{
    if (entry->end_ns == 0) {
        entry->end_ns = now_ns + (uint64_t)engine->limits.ticket_claim_ms * 1000000u;
    }
    return entry->end_ns <= now_ns && entry->lock_next != DLK_NONE;
}

/* Walks the queue; returns the earliest claim end of the places that stay reserved. */
static uint64_t walk_queue(struct dlk_engine *engine, struct lock *lock, uint64_t now_ns)
{
    uint64_t claim_ns = DLK_NEVER;
    bool reserved = false;
    uint32_t index = lock->queue_head;
    while (index != DLK_NONE) {
        struct entry *entry = &engine->entries[index];
        if ((entry->mode == DLK_MODE_EXCLUSIVE && reserved)
            || !lock_compatible(lock, entry->mode)) {
            break;
        }
        index = entry->lock_next;
        if (entry->state == DLK_ENTRY_QUEUED) {
            uint64_t held_since_ns = entry->since_ns;
            dlk_entry_hold(engine, entry, now_ns);
            dlk_reply_entry(engine, entry, DLK_RESULT_GRANTED, held_since_ns);
        } else if (ticket_overdue(engine, entry, now_ns)) {
            pass_ticket(engine, entry);
        } else {
            reserved = true;
            if (entry->end_ns > now_ns && entry->end_ns < claim_ns) {
                claim_ns = entry->end_ns;
            }
            if (entry->mode == DLK_MODE_EXCLUSIVE) {
                break;
            }
        }
    }
    return claim_ns;
}

void dlk_lock_settle(struct dlk_engine *engine, struct lock *lock, uint64_t now_ns)
{
    if (lock->queue_head == DLK_NONE
        || (engine->readiness != DLK_READY_ALL && !dlk_claim_settles(engine, lock))) {
        lock->due_ns = DLK_NEVER; /* getting ready settles every lock */
        dlk_heap_remove(&engine->ends, lock_index(engine, lock));
        return;
    }
    if (lock->min_end_ns <= now_ns) {
        dlk_lock_purge(engine, lock, now_ns);
    }
    uint64_t claim_ns = walk_queue(engine, lock, now_ns);
    uint64_t end_ns = lock->holders != DLK_NONE ? lock->min_end_ns : DLK_NEVER;
    lock->due_ns = claim_ns < end_ns ? claim_ns : end_ns;
    if (lock->queue_head == DLK_NONE || lock->due_ns == DLK_NEVER) {
        dlk_heap_remove(&engine->ends, lock_index(engine, lock));
    } else {
        dlk_heap_set(&engine->ends, lock_index(engine, lock), lock->due_ns);
    }
}

/* Settles with the next run of due ends, which the caller has promised to make. */
void dlk_lock_settle_later(struct dlk_engine *engine, struct lock *lock, uint64_t now_ns)
{
    if (lock->queue_head != DLK_NONE) {
        lock->due_ns = now_ns;
        dlk_heap_set(&engine->ends, lock_index(engine, lock), now_ns);
    } else {
        dlk_heap_remove(&engine->ends, lock_index(engine, lock));
    }
}
