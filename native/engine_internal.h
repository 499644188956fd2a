/*
 * The engine's records and the functions that its files share. Nothing outside native/engine*.c
 * includes this file.
 *
 * Records refer to each other by index, never by pointer. A lock and an entry are one cache line
 * each. Lists are doubly linked through the entries: a lock's holders and its queue (both through
 * lock_prev, lock_next) and a session's entries (session_prev, session_next).
 */
#ifndef DLOCK_ENGINE_INTERNAL_H
#define DLOCK_ENGINE_INTERNAL_H

#include <stdalign.h>

#include "engine.h"
#include "heap.h"
#include "rules.h"

#define DLK_NEVER UINT64_MAX

struct lock {
    alignas(64) uint32_t id; /* 0: the slot is free */
    uint32_t holders;        /* newest first */
    uint32_t queue_head;
    uint32_t queue_tail;
    uint32_t n_exclusive; /* holders */
    uint32_t n_shared;
    uint32_t n_queue; /* QUEUED and TICKET entries */
    uint32_t size;    /* semaphores */
    uint64_t min_end_ns; /* no holder's lease ends before this */
    uint64_t due_ns;     /* with a queue: when settling may change something */
    uint16_t served[DLK_MODE_COUNT];
    uint16_t handed[DLK_MODE_COUNT];
    uint8_t kind;
    uint8_t closing; /* nobody has got it; it ends with its last entry */
    uint32_t n_plural; /* waiters whose actor has had several waits: engine_deadlock.h */
};

struct entry {
    alignas(64) uint64_t owner;
    uint64_t token;    /* HELD: token; QUEUED, TICKET: stamp */
    uint64_t end_ns;   /* HELD: end of the lease; TICKET: claim end, 0: its turn has not come;
                        * new and QUEUED: the lease asked for, in ms */
    uint64_t since_ns; /* HELD: the grant; QUEUED: the arrival of the request */
    uint32_t request_id;
    uint32_t session;
    uint32_t lock;
    uint32_t lock_prev;
    uint32_t lock_next; /* also links the free entries */
    uint32_t session_prev;
    uint32_t session_next;
    uint8_t state; /* enum dlk_entry_state */
    uint8_t mode;
    uint16_t flags;
};

_Static_assert(sizeof(struct lock) == 64, "a lock is one cache line");
_Static_assert(sizeof(struct entry) == 64, "an entry is one cache line");

enum session_state {
    SESSION_FREE = 0,
    SESSION_OPEN,
    SESSION_ENDED,  /* keeps what it had, until the control plane has written that it is gone */
    SESSION_LEAVING /* only leased holds are left, each until its end */
};

struct session {
    uint64_t deadline_ns;
    uint64_t ttl_ns;
    uint32_t client_id;
    uint16_t state;
    uint16_t early;   /* served before all is ready, where the state is certain */
    uint32_t entries; /* newest first */
    uint32_t n_entries;
    uint32_t n_queued;
    uint32_t lease_limit_ms;
    uint32_t attach;
    uint32_t n_breaking; /* holds that an operator has asked for */
    uint8_t secret[DLK_SECRET_BYTES];
};

struct dlk_engine {
    struct dlk_limits limits;
    struct lock *locks;
    struct entry *entries;
    struct session *sessions;
    uint32_t *cells; /* object ids; 0: free */
    void *locks_raw; /* what to free: the tables are aligned in it */
    void *entries_raw;
    uint32_t entries_free;
    uint32_t entries_high; /* entries from here on were never used */
    uint32_t entries_used;
    uint32_t readiness;    /* enum dlk_readiness */
    bool has_served;       /* it has been ready */
    bool epoch_low_told;
    uint32_t epoch;      /* of this start, in replies */
    uint32_t next_epoch; /* may be taken when this one's counter ends; 0: not yet known */
    uint64_t token;      /* the last one given */
    uint64_t grace_ns;   /* no session ends before this */
    struct dlk_heap ends;     /* ids: locks, then entries: of leaving sessions, and breaking ones */
    struct dlk_heap expiries; /* ids: sessions; a key may be early, never late */
    struct dlk_heap waits;    /* ids: entries */
    struct deadlocks *deadlocks;
    struct claims *claims; /* while it recovers, from the first claim on; else NULL */
    struct dlk_reply *replies;
    struct dlk_event *events;
    size_t n_replies;
    size_t n_events;
    uint64_t counters[DLK_COUNT_MAX];
};

/* Anyone may read a counter meanwhile (plane_control.c): one writer, so that nothing but the store
 * has to be whole. */
static inline void dlk_count(struct dlk_engine *engine, enum dlk_counter counter, uint64_t more)
{
    uint64_t count = engine->counters[counter] + more;
    __atomic_store_n(&engine->counters[counter], count, __ATOMIC_RELAXED);
}

static inline uint32_t lock_index(const struct dlk_engine *engine, const struct lock *lock)
{
    return (uint32_t)(lock - engine->locks);
}

static inline uint32_t entry_index(const struct dlk_engine *engine, const struct entry *entry)
{
    return (uint32_t)(entry - engine->entries);
}

static inline uint64_t lease_end_ns(uint64_t now_ns, uint32_t lease_ms)
{
    return lease_ms == 0 ? DLK_NEVER : now_ns + (uint64_t)lease_ms * 1000000u;
}

/* What a lease has still to run, rounded down; 0 also where there is none. */
static inline uint32_t lease_left_ms(const struct entry *entry, uint64_t now_ns)
{
    bool runs = entry->end_ns != DLK_NEVER && entry->end_ns > now_ns;
    return runs ? (uint32_t)((entry->end_ns - now_ns) / 1000000u) : 0;
}

/* An operator has asked its client for this hold. */
static inline bool entry_breaking(const struct entry *entry)
{
    return (entry->flags & DLK_ENTRY_BREAKING) != 0;
}

/* Got back by a claim, while not all is ready: its end is DLK_NEVER, its lease lies beside it. */
static inline bool entry_claimed(const struct entry *entry)
{
    return (entry->flags & DLK_ENTRY_CLAIMED) != 0;
}

static inline bool lock_compatible(const struct lock *lock, uint32_t mode)
{
    return dlk_rule_compatible(lock->kind, mode, lock->n_exclusive, lock->n_shared, lock->size);
}

/* engine_entry.c: one entry's life. */
struct entry *dlk_entry_new(struct dlk_engine *engine, const struct dlk_request *request);
void dlk_entry_enqueue(struct dlk_engine *engine, struct entry *entry);
void dlk_entry_take_place(struct dlk_engine *engine, struct entry *entry, uint64_t stamp,
                          bool waits);
void dlk_entry_hold(struct dlk_engine *engine, struct entry *entry, uint64_t now_ns);
void dlk_entry_take_hold(struct dlk_engine *engine, struct entry *entry, uint64_t token,
                         uint64_t now_ns);
void dlk_entry_remove(struct dlk_engine *engine, struct entry *entry);
void dlk_entry_to_ticket(struct dlk_engine *engine, struct entry *entry);
void dlk_entry_to_waiter(struct dlk_engine *engine, struct entry *entry);
struct entry *dlk_entry_meant(struct dlk_engine *engine, const struct dlk_request *request);
struct entry *dlk_entry_by_request(struct dlk_engine *engine, const struct dlk_request *request,
                                   uint32_t request_id);

/* engine_queue.c: purge and settle. */
void dlk_lock_purge(struct dlk_engine *engine, struct lock *lock, uint64_t now_ns);
void dlk_lock_settle(struct dlk_engine *engine, struct lock *lock, uint64_t now_ns);
void dlk_lock_settle_later(struct dlk_engine *engine, struct lock *lock, uint64_t now_ns);

/* engine_lock.c: the requests on locks. */
void dlk_lock_request(struct dlk_engine *engine, const struct dlk_request *request,
                      uint64_t now_ns);
void dlk_wait_set(struct dlk_engine *engine, const struct entry *entry, uint32_t wait_ms,
                  uint64_t now_ns);
void dlk_wait_over(struct dlk_engine *engine, struct entry *entry, uint64_t now_ns);

/* engine_break.c: what an operator takes away. */
uint32_t dlk_break(struct dlk_engine *engine, const struct dlk_command *command, uint64_t now_ns,
                   uint64_t *met);

/* engine_view.c: what an operator sees. */
uint32_t dlk_view_command(const struct dlk_engine *engine, const struct dlk_command *command,
                          uint64_t *count);
uint32_t dlk_survey_command(const struct dlk_engine *engine, const struct dlk_command *command,
                            uint64_t *count, uint32_t *next);

/* engine_waits.c: those who wait, by actor. */
struct deadlocks *dlk_deadlocks_new(uint32_t max_entries);
void dlk_deadlocks_free(struct deadlocks *deadlocks);
void dlk_wait_link(struct dlk_engine *engine, const struct entry *entry);
void dlk_wait_unlink(struct dlk_engine *engine, const struct entry *entry);
void dlk_wait_mark_plural(struct dlk_engine *engine, uint32_t index);
bool dlk_waits_check(const struct dlk_engine *engine, const struct lock *lock);

/* engine_deadlock.c: the number of the cycle that the waiting entry closes, which is told in
 * events; 0: none. */
uint64_t dlk_deadlock_closed(struct dlk_engine *engine, const struct entry *entry,
                             uint64_t now_ns);

/* engine_claim.c: while the engine recovers. */
void dlk_claims_free(struct claims *claims);
uint32_t dlk_claim_command(struct dlk_engine *engine, const struct dlk_command *command,
                           uint64_t now_ns);
bool dlk_claim_serves(struct dlk_engine *engine, const struct dlk_request *request);
bool dlk_claim_settles(struct dlk_engine *engine, const struct lock *lock);
uint32_t dlk_claim_lease_ms(const struct dlk_engine *engine, const struct entry *entry);
void dlk_claim_grow(struct dlk_engine *engine, const struct entry *entry, uint32_t lease_ms);
void dlk_claim_attached(struct dlk_engine *engine, uint32_t session, uint64_t now_ns);
void dlk_claims_end(struct dlk_engine *engine, uint32_t least_ms, uint64_t now_ns);
void dlk_lock_displace(struct dlk_engine *engine, struct lock *lock, uint64_t now_ns);

/* engine_session.c */
uint32_t dlk_lock_open(struct dlk_engine *engine, const struct dlk_command *command);
void dlk_session_expire(struct dlk_engine *engine, uint32_t session, uint64_t now_ns);
void dlk_session_entry_gone(struct dlk_engine *engine, uint32_t session);
void dlk_hold_time(struct dlk_engine *engine, const struct entry *entry);
void dlk_run_ends(struct dlk_engine *engine, uint64_t now_ns);

/* engine.c: the outbox. */
struct dlk_reply *dlk_reply_push(struct dlk_engine *engine, const struct dlk_request *request,
                                 uint32_t result);
void dlk_reply_entry(struct dlk_engine *engine, const struct entry *entry, uint32_t result,
                     uint64_t now_ns);
void dlk_reply_notice(struct dlk_engine *engine, const struct entry *entry, uint32_t result,
                      uint64_t now_ns);
void dlk_event_push(struct dlk_engine *engine, uint32_t op, uint32_t slot, uint32_t id);

#endif
