/*
 * Recovery: what clients claim at a new primary, and what is served before all of them are back.
 * The command CLAIM takes holds (engine_merge.c decides which of them stand), places in queues, and
 * locks that are only got; a lock comes into being with the first claim of it. Until READY nothing
 * is granted but on locks whose holders are certain. docs/lock-kinds.md, "Recovery", is the law.
 *
 * This is the one place of the engine that takes memory after dlk_engine_new: the first claim takes
 * the two tables of engine_claim.h, READY gives them back.
 */
#include <stdlib.h>
#include <string.h>

#include "engine_claim.h"

enum { DRIFT_DIVISOR = 1000 }; /* clock rates differ by less than 0.1 % */

static struct claims *claims_new(const struct dlk_limits *limits)
{
    struct claims *claims = calloc(1, sizeof(*claims));
    if (claims == NULL) {
        return NULL;
    }
    claims->floors = calloc((size_t)limits->max_locks + 1, sizeof(*claims->floors));
    claims->claimed = calloc((size_t)limits->max_entries + 1, sizeof(*claims->claimed));
    if (claims->floors == NULL || claims->claimed == NULL) {
        dlk_claims_free(claims);
        return NULL;
    }
    return claims;
}

void dlk_claims_free(struct claims *claims)
{
    if (claims == NULL) {
        return;
    }
    free(claims->floors);
    free(claims->claimed);
    free(claims);
}

/* ---- Locks ---- */

/* Takes everything on the lock away, and with it the lock. */
void dlk_lock_displace(struct dlk_engine *engine, struct lock *lock, uint64_t now_ns)
{
    lock->closing = 0; /* it ends here, not with its last entry */
    while (lock->holders != DLK_NONE) {
        dlk_merge_displace(engine, &engine->entries[lock->holders], now_ns);
    }
    while (lock->queue_head != DLK_NONE) {
        struct entry *entry = &engine->entries[lock->queue_head];
        if (entry->state == DLK_ENTRY_QUEUED) {
            dlk_reply_entry(engine, entry, DLK_RESULT_NO_LOCK, now_ns);
        }
        dlk_entry_remove(engine, entry);
    }
    dlk_heap_remove(&engine->ends, lock_index(engine, lock));
    lock->id = 0;
}

/* The lock that the claim names, opened if it is not there. Of two locks that claim one slot the
 * higher id is the newer one: the other was closed before. */
static uint32_t lock_of(struct dlk_engine *engine, const struct dlk_claim *claim, uint64_t now_ns)
{
    const struct dlk_command open = {
        .slot = claim->slot, .id = claim->lock_id, .kind = claim->kind, .size = claim->size};
    if (claim->slot >= engine->limits.max_locks) {
        return DLK_RESULT_NO_RESOURCE;
    }
    struct lock *lock = &engine->locks[claim->slot];
    if (lock->id > claim->lock_id) {
        return DLK_RESULT_NO_LOCK;
    }
    if (lock->id == claim->lock_id
        && (lock->kind != claim->kind
            || (dlk_rules[lock->kind].slots && lock->size != claim->size))) {
        return DLK_RESULT_INVALID;
    }
    if (lock->id != 0 && lock->id < claim->lock_id) {
        dlk_event_push(engine, DLK_EVENT_LOCK_CLOSED, claim->slot, lock->id);
        dlk_lock_displace(engine, lock, now_ns);
    }
    struct floor *floor = &engine->claims->floors[claim->slot];
    if (floor->lock_id != claim->lock_id) {
        *floor = (struct floor){.lock_id = claim->lock_id};
    }
    return dlk_lock_open(engine, &open);
}

/* What is known of a lock that is certain; NULL: it is not. */
static struct floor *certain_floor(struct dlk_engine *engine, const struct lock *lock)
{
    if (engine->claims == NULL) {
        return NULL;
    }
    struct floor *floor = &engine->claims->floors[lock_index(engine, lock)];
    return floor->lock_id == lock->id && floor->certain != 0 ? floor : NULL;
}

/* ---- Places ---- */

static bool same_place(const struct entry *entry, const struct dlk_request *as, bool waits)
{
    bool waited = waits && !entry_claimed(entry) && entry->request_id == as->request_id;
    return entry->session == as->session && entry->owner == as->owner && entry->lock == as->slot
           && (waited || (entry->state != DLK_ENTRY_HELD && entry->token == as->token));
}

/* The same place, claimed before: by its request, which may have been granted since, or its stamp,
 * which it has until then. Sought on the shorter of the lists that it must be on. */
static struct entry *known_place(struct dlk_engine *engine, const struct dlk_request *as,
                                 bool waits)
{
    const struct lock *lock = &engine->locks[as->slot];
    const struct session *session = &engine->sessions[as->session];
    bool by_session = session->n_entries <= lock->n_queue + lock->n_exclusive + lock->n_shared;
    uint32_t index = by_session ? session->entries : lock->queue_head;
    bool holders_too = !by_session;
    while (index != DLK_NONE || holders_too) {
        if (index == DLK_NONE) {
            holders_too = false;
            index = lock->holders;
            continue;
        }
        struct entry *entry = &engine->entries[index];
        if (same_place(entry, as, waits)) {
            return entry;
        }
        index = by_session ? entry->session_next : entry->lock_next;
    }
    return NULL;
}

static void wait_again(struct dlk_engine *engine, const struct dlk_request *as,
                       struct entry *entry, uint64_t now_ns)
{
    entry->flags = (uint16_t)(as->flags | DLK_ENTRY_AWAITED);
    entry->request_id = as->request_id;
    entry->end_ns = as->lease_ms;
    entry->since_ns = now_ns;
    dlk_wait_set(engine, entry, as->wait_ms, now_ns);
    dlk_wait_link(engine, entry);
}

/* Where the state is certain, a ticket behind a place that comes back may have had its turn. */
static void wait_for_turns(struct dlk_engine *engine, const struct entry *place)
{
    if (certain_floor(engine, &engine->locks[place->lock]) == NULL) {
        return;
    }
    for (uint32_t index = place->lock_next; index != DLK_NONE;) {
        struct entry *entry = &engine->entries[index];
        index = entry->lock_next;
        if (entry->state == DLK_ENTRY_TICKET) {
            entry->end_ns = 0;
        }
    }
}

static uint32_t take_place(struct dlk_engine *engine, const struct dlk_request *as, bool waits,
                           uint64_t now_ns)
{
    struct lock *lock = &engine->locks[as->slot];
    struct entry *entry = known_place(engine, as, waits);
    bool new_waiter = waits && (entry == NULL || entry->state == DLK_ENTRY_TICKET);
    bool full = new_waiter && engine->sessions[as->session].n_queued >= DLK_INFLIGHT_MAX;
    if (entry == NULL && !full) {
        entry = dlk_entry_new(engine, as);
        if (entry != NULL) {
            entry->end_ns = 0;
            entry->since_ns = now_ns;
            dlk_entry_take_place(engine, entry, as->token, waits);
            wait_for_turns(engine, entry);
        }
    } else if (new_waiter && !full && entry->request_id != as->request_id) {
        dlk_entry_to_waiter(engine, entry);
    } else if (!full) {
        return entry->state == DLK_ENTRY_TICKET ? DLK_RESULT_TICKETED : DLK_RESULT_QUEUED;
    }
    if (full || entry == NULL) {
        dlk_count(engine, DLK_COUNT_CLAIMS_LOST, 1);
        dlk_count(engine, DLK_COUNT_NO_RESOURCE, 1);
        return DLK_RESULT_NO_RESOURCE;
    }
    if (waits) {
        wait_again(engine, as, entry, now_ns);
    }
    dlk_lock_settle(engine, lock, now_ns);
    return waits ? DLK_RESULT_QUEUED : DLK_RESULT_TICKETED;
}

/* ---- The command ---- */

static bool well_formed(const struct dlk_engine *engine, uint32_t session,
                        const struct dlk_claim *claim)
{
    if (claim->lock_id == 0 || claim->kind >= DLK_KIND_COUNT || claim->mode >= DLK_MODE_COUNT
        || claim->state > DLK_ENTRY_TICKET || (claim->flags & ~(uint32_t)DLK_FLAG_ALL) != 0
        || (dlk_rules[claim->kind].slots && claim->size == 0)) {
        return false;
    }
    if (claim->state == DLK_ENTRY_FREE) {
        return true;
    }
    bool held = claim->state == DLK_ENTRY_HELD;
    uint64_t number = held ? claim->token : claim->stamp;
    uint32_t lease_ms = held ? claim->leased : claim->remaining_ms;
    return number != 0 && number >> DLK_COUNTER_BITS < engine->epoch
           && dlk_rule_request_valid(claim->kind, claim->mode, claim->flags, lease_ms)
           && (held || lease_ms <= engine->sessions[session].lease_limit_ms)
           && (claim->state != DLK_ENTRY_TICKET || dlk_rules[claim->kind].tickets);
}

static uint32_t take(struct dlk_engine *engine, const struct dlk_command *command,
                     const struct dlk_claim *claim, uint64_t now_ns)
{
    if (!well_formed(engine, command->slot, claim)) {
        return DLK_RESULT_INVALID;
    }
    uint32_t result = lock_of(engine, claim, now_ns);
    bool waits = claim->state == DLK_ENTRY_QUEUED;
    const struct dlk_request as = {
        .request_id = claim->request_id,
        .mode = (uint8_t)claim->mode,
        .flags = waits ? (uint16_t)(claim->flags & ~(uint32_t)DLK_FLAG_RESEND) : 0,
        .session = command->slot,
        .lock_id = claim->lock_id,
        .slot = claim->slot,
        .entry = DLK_NONE,
        .owner = claim->owner,
        .token = claim->state == DLK_ENTRY_HELD ? claim->token : claim->stamp,
        .lease_ms = waits ? claim->remaining_ms : 0,
        .wait_ms = claim->wait_ms,
    };
    if (result != DLK_RESULT_DONE || claim->state == DLK_ENTRY_FREE) {
        return result;
    }
    if (claim->state == DLK_ENTRY_HELD) {
        return dlk_merge_hold(engine, &as, claim, command->kind == 1, now_ns);
    }
    return take_place(engine, &as, waits, now_ns);
}

uint32_t dlk_claim_command(struct dlk_engine *engine, const struct dlk_command *command,
                           uint64_t now_ns)
{
    struct dlk_claim *claims = (struct dlk_claim *)(uintptr_t)command->value;
    if (engine->readiness != DLK_READY_RECOVERING || command->kind > 1 || command->size == 0
        || command->size > DLK_BATCH_MAX || claims == NULL) {
        return DLK_RESULT_INVALID;
    }
    if (command->slot >= engine->limits.max_sessions
        || engine->sessions[command->slot].state != SESSION_OPEN
        || engine->sessions[command->slot].client_id != command->id) {
        return DLK_RESULT_REMOVED;
    }
    if (engine->claims == NULL) {
        engine->claims = claims_new(&engine->limits);
    }
    if (engine->claims == NULL) {
        return DLK_RESULT_NO_RESOURCE;
    }
    for (uint32_t i = 0; i < command->size; i++) {
        claims[i].result = take(engine, command, &claims[i], now_ns);
    }
    return DLK_RESULT_DONE;
}

/* ---- Before all is ready ---- */

/* Is a request carried out though not all is ready? What frees and grants nothing always is. */
bool dlk_claim_serves(struct dlk_engine *engine, const struct dlk_request *request)
{
    if (engine->sessions[request->session].early == 0 || request->op > DLK_OP_GIVE_UP) {
        return false;
    }
    if (request->op == DLK_OP_CANCEL || request->op == DLK_OP_GIVE_UP) {
        return true;
    }
    if (request->slot >= engine->limits.max_locks || request->lock_id == 0
        || engine->locks[request->slot].id != request->lock_id) {
        return false; /* it may be claimed yet */
    }
    const struct lock *lock = &engine->locks[request->slot];
    struct floor *floor = certain_floor(engine, lock);
    if (floor != NULL && request->op == DLK_OP_LOCK && lock->queue_head == DLK_NONE
        && lock_compatible(lock, request->mode)) {
        floor->moved = 1;
    }
    return floor != NULL;
}

/* May a lock with a queue be settled though not all is ready? */
bool dlk_claim_settles(struct dlk_engine *engine, const struct lock *lock)
{
    struct floor *floor =
        engine->readiness == DLK_READY_RECOVERING ? certain_floor(engine, lock) : NULL;
    if (floor != NULL && lock_compatible(lock, engine->entries[lock->queue_head].mode)) {
        floor->moved = 1;
    }
    return floor != NULL;
}

/* What remains of the lease of a claimed hold; 0: it has none, or runs, or is none. */
uint32_t dlk_claim_lease_ms(const struct dlk_engine *engine, const struct entry *entry)
{
    return entry_claimed(entry) ? engine->claims->claimed[entry_index(engine, entry)].lease_ms
                                : 0;
}

/* A lease only ever grows; a hold without a lease stays without. */
void dlk_claim_grow(struct dlk_engine *engine, const struct entry *entry, uint32_t lease_ms)
{
    struct claimed *claimed = &engine->claims->claimed[entry_index(engine, entry)];
    if (claimed->lease_ms != 0 && claimed->lease_ms < lease_ms) {
        claimed->lease_ms = lease_ms;
    }
}

/* A session claims before it has its first data connection: what its waiters were told meanwhile is
 * lost, and told again, once: with what is left of a lease that runs since then, for its client
 * counts from the connection. Later it asks itself for what a lost connection has swallowed. */
void dlk_claim_attached(struct dlk_engine *engine, uint32_t session, uint64_t now_ns)
{
    for (uint32_t index = engine->sessions[session].entries; index != DLK_NONE;) {
        struct entry *entry = &engine->entries[index];
        index = entry->session_next;
        if ((entry->flags & DLK_ENTRY_AWAITED) == 0) {
            continue;
        }
        entry->flags &= (uint16_t)~DLK_ENTRY_AWAITED;
        if (entry->state == DLK_ENTRY_HELD) {
            dlk_reply_entry(engine, entry, DLK_RESULT_GRANTED, entry->since_ns);
            engine->replies[engine->n_replies - 1].lease_ms = lease_left_ms(entry, now_ns);
        } else if (entry->state == DLK_ENTRY_TICKET) {
            dlk_reply_entry(engine, entry, DLK_RESULT_TICKETED, 0);
        }
    }
}

/* What was left of a claimed lease was said by its client's clock, which may be slower than ours:
 * it runs for as long by either. */
static uint32_t by_any_clock_ms(uint32_t lease_ms)
{
    return lease_ms + lease_ms / DRIFT_DIVISOR + 1;
}

static void run_lease(struct dlk_engine *engine, struct entry *entry, uint32_t lease_ms,
                      uint64_t now_ns)
{
    struct lock *lock = &engine->locks[entry->lock];
    bool leaving = engine->sessions[entry->session].state == SESSION_LEAVING;
    entry->end_ns = lease_end_ns(now_ns, lease_ms);
    if (entry->end_ns < lock->min_end_ns) {
        lock->min_end_ns = entry->end_ns;
    }
    if (leaving || entry_breaking(entry)) {
        dlk_hold_time(engine, entry);
    }
}

/* All is ready: the leases of claimed holds run, at least so long that their clients hear of it. */
void dlk_claims_end(struct dlk_engine *engine, uint32_t least_ms, uint64_t now_ns)
{
    for (uint32_t index = 0; index < engine->entries_high; index++) {
        struct entry *entry = &engine->entries[index];
        if (entry->state == DLK_ENTRY_FREE) {
            continue;
        }
        uint32_t lease_ms = dlk_claim_lease_ms(engine, entry);
        entry->flags &= (uint16_t)~(DLK_ENTRY_CLAIMED | DLK_ENTRY_AWAITED);
        if (lease_ms != 0) {
            lease_ms = by_any_clock_ms(lease_ms);
            run_lease(engine, entry, lease_ms > least_ms ? lease_ms : least_ms, now_ns);
        }
    }
    dlk_claims_free(engine->claims);
    engine->claims = NULL;
}
