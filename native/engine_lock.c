/* The requests on locks: LOCK, REDEEM, UNLOCK, EXTEND, CANCEL, GIVE_UP. The table in
 * docs/lock-kinds.md, "Requests", line by line. */
#include "engine_internal.h"

static void refuse(struct dlk_engine *engine, const struct dlk_request *request, uint32_t result,
                   enum dlk_counter counter)
{
    dlk_count(engine, counter, 1);
    dlk_reply_push(engine, request, result);
}

/* Of a hold whose lease does not run yet, and of one that is breaking: who hears of it hears of its
 * end. Seldom, so it is kept out of every answer's way. */
__attribute__((noinline)) static void answer_more(struct dlk_engine *engine,
                                                  struct dlk_reply *reply,
                                                  const struct entry *entry, uint64_t now_ns)
{
    if (entry_claimed(entry)) {
        reply->lease_ms = dlk_claim_lease_ms(engine, entry);
    }
    if (entry_breaking(entry)) {
        dlk_reply_notice(engine, entry, DLK_RESULT_BROKEN, now_ns);
    }
}

static void answer(struct dlk_engine *engine, const struct dlk_request *request, uint32_t result,
                   const struct entry *entry, uint64_t now_ns)
{
    struct dlk_reply *reply = dlk_reply_push(engine, request, result);
    reply->token = entry->token;
    reply->entry = entry_index(engine, entry);
    if (entry->state == DLK_ENTRY_HELD) {
        reply->lease_ms = lease_left_ms(entry, now_ns);
    }
    if ((entry->flags & (DLK_ENTRY_BREAKING | DLK_ENTRY_CLAIMED)) != 0) {
        answer_more(engine, reply, entry, now_ns);
    }
}

static const uint32_t result_of_state[] = {
    [DLK_ENTRY_FREE] = DLK_RESULT_COUNT, /* never: a live entry answers */
    [DLK_ENTRY_HELD] = DLK_RESULT_GRANTED,
    [DLK_ENTRY_QUEUED] = DLK_RESULT_QUEUED,
    [DLK_ENTRY_TICKET] = DLK_RESULT_TICKETED,
};

static void no_resource(struct dlk_engine *engine, const struct dlk_request *request)
{
    if (engine->locks[request->slot].kind == DLK_KIND_FAIR) {
        dlk_count(engine, DLK_COUNT_FAIR_QUEUE_LIMIT, 1);
    }
    refuse(engine, request, DLK_RESULT_NO_RESOURCE, DLK_COUNT_NO_RESOURCE);
}

void dlk_wait_set(struct dlk_engine *engine, const struct entry *entry, uint32_t wait_ms,
                  uint64_t now_ns)
{
    if (wait_ms != DLK_WAIT_FOREVER) {
        dlk_heap_set(&engine->waits, entry_index(engine, entry),
                     now_ns + (uint64_t)wait_ms * 1000000u);
    } else {
        dlk_heap_remove(&engine->waits, entry_index(engine, entry));
    }
}

static void count_ticketed(struct dlk_engine *engine)
{
    dlk_count(engine, DLK_COUNT_EAGAIN, 1);
}

/* The entry, which stands in the queue, waits there from now on; unless the request wants to know
 * of a cycle and its waiting would close one: then nothing of it is left, and this is false. */
static bool wait_in_queue(struct dlk_engine *engine, const struct dlk_request *request,
                          struct lock *lock, struct entry *entry, uint64_t now_ns)
{
    dlk_wait_set(engine, entry, request->wait_ms, now_ns);
    dlk_wait_link(engine, entry);
    uint64_t cycle = 0;
    if ((request->flags & DLK_FLAG_DEADLOCK) != 0) {
        cycle = dlk_deadlock_closed(engine, entry, now_ns);
    }
    if (cycle == 0) {
        answer(engine, request, DLK_RESULT_QUEUED, entry, now_ns);
        return true;
    }
    dlk_entry_remove(engine, entry);
    dlk_lock_settle(engine, lock, now_ns);
    dlk_reply_push(engine, request, DLK_RESULT_DEADLOCK)->value = cycle;
    return false;
}

/* The lock is not free: join the queue, and see what that makes of it. */
static void lock_by_queue(struct dlk_engine *engine, const struct dlk_request *request,
                          struct lock *lock, uint64_t now_ns)
{
    bool waits = request->wait_ms != 0;
    struct entry *entry = NULL;
    if (!waits || engine->sessions[request->session].n_queued < DLK_INFLIGHT_MAX) {
        entry = dlk_entry_new(engine, request);
    }
    if (entry == NULL) {
        no_resource(engine, request);
        return;
    }
    entry->since_ns = now_ns;
    dlk_entry_enqueue(engine, entry);
    dlk_lock_settle(engine, lock, now_ns);
    if (entry->state == DLK_ENTRY_HELD) {
        return; /* settling has sent GRANTED */
    }
    if (waits) {
        dlk_count(engine, DLK_COUNT_WAITS, wait_in_queue(engine, request, lock, entry, now_ns));
    } else if ((request->flags & DLK_FLAG_TICKET) != 0) {
        dlk_entry_to_ticket(engine, entry);
        count_ticketed(engine);
        answer(engine, request, DLK_RESULT_TICKETED, entry, now_ns);
    } else {
        dlk_entry_remove(engine, entry);
        dlk_lock_settle(engine, lock, now_ns);
        refuse(engine, request, DLK_RESULT_BUSY,
               dlk_rule_busy_counter(lock->kind, request->mode));
    }
}

/* A hold that ends with its lease, and its lease has ended. */
static bool over_at_its_end(const struct entry *entry, uint64_t now_ns)
{
    return entry->state == DLK_ENTRY_HELD && entry->end_ns <= now_ns
           && (entry->flags & (DLK_FLAG_FINAL_EXPIRY | DLK_ENTRY_BREAKING)) != 0;
}

/* The request was sent before. True if an entry of it is there, and has answered. */
static bool answer_again(struct dlk_engine *engine, const struct dlk_request *request,
                         uint64_t now_ns)
{
    struct entry *known = dlk_entry_by_request(engine, request, request->request_id);
    if (known == NULL) {
        return false;
    }
    if (over_at_its_end(known, now_ns)) {
        dlk_entry_remove(engine, known);
        return false;
    }
    if (known->state == DLK_ENTRY_QUEUED) {
        known->since_ns = now_ns; /* its client may count from this sending on */
    }
    answer(engine, request, result_of_state[known->state], known, now_ns);
    return true;
}

static void request_lock(struct dlk_engine *engine, const struct dlk_request *request,
                         struct lock *lock, uint64_t now_ns)
{
    if ((request->flags & DLK_FLAG_RESEND) != 0 && answer_again(engine, request, now_ns)) {
        return;
    }
    if (lock->closing) {
        refuse(engine, request, DLK_RESULT_NO_LOCK, DLK_COUNT_EINVAL_LOCK_OFFSET);
        return;
    }
    if (lock->queue_head != DLK_NONE) {
        lock_by_queue(engine, request, lock, now_ns);
        return;
    }
    if (!lock_compatible(lock, request->mode) && lock->min_end_ns <= now_ns) {
        dlk_lock_purge(engine, lock, now_ns); /* what it frees may be the only free entry */
    }
    if (lock_compatible(lock, request->mode)) {
        struct entry *entry = dlk_entry_new(engine, request);
        if (entry == NULL) {
            no_resource(engine, request);
            return;
        }
        dlk_entry_hold(engine, entry, now_ns);
        answer(engine, request, DLK_RESULT_GRANTED, entry, now_ns);
        return;
    }
    bool only_tries = request->wait_ms == 0 && (request->flags & DLK_FLAG_TICKET) == 0;
    if (only_tries && engine->entries_used < engine->limits.max_entries) {
        /* What joining and leaving the queue would come to. */
        engine->token++;
        lock->handed[request->mode]++;
        lock->served[request->mode]++;
        refuse(engine, request, DLK_RESULT_BUSY,
               dlk_rule_busy_counter(lock->kind, request->mode));
        return;
    }
    lock_by_queue(engine, request, lock, now_ns);
}

static void grow_lease(struct dlk_engine *engine, struct entry *entry, uint32_t lease_ms,
                       uint64_t now_ns)
{
    uint64_t end_ns = lease_end_ns(now_ns, lease_ms);
    if (lease_ms == 0 || entry_breaking(entry)) {
        return;
    }
    if (entry_claimed(entry)) {
        dlk_claim_grow(engine, entry, lease_ms);
    } else if (entry->end_ns < end_ns) {
        entry->end_ns = end_ns;
    }
}

/* A breaking hold with a lease that has less to run than an answer can say. To a REDEEM without a
 * lease such an answer would say that the hold has none. */
static bool ends_unsaid(const struct entry *entry, const struct dlk_request *request,
                        uint64_t now_ns)
{
    return entry->state == DLK_ENTRY_HELD && entry_breaking(entry) && request->lease_ms == 0
           && entry->end_ns != DLK_NEVER && entry->end_ns < now_ns + 1000000u;
}

/* Not inlined: it would cost every other request on its way. */
__attribute__((noinline)) static void request_redeem(struct dlk_engine *engine,
                                                     const struct dlk_request *request,
                                                     struct lock *lock, uint64_t now_ns)
{
    struct entry *entry = dlk_entry_meant(engine, request);
    if (entry != NULL && entry->mode != request->mode) {
        refuse(engine, request, DLK_RESULT_INVALID, DLK_COUNT_EINVAL_LOCK_OP);
        return;
    }
    if (entry != NULL
        && (over_at_its_end(entry, now_ns) || ends_unsaid(entry, request, now_ns))) {
        dlk_entry_remove(engine, entry);
        dlk_lock_settle(engine, lock, now_ns);
        entry = NULL;
    }
    if (entry == NULL) {
        refuse(engine, request, DLK_RESULT_PASSED,
               request->mode == DLK_MODE_SHARED ? DLK_COUNT_FAIR_SH_TICKET_PASSED
                                                : DLK_COUNT_FAIR_EX_TICKET_PASSED);
        return;
    }
    if (entry->state == DLK_ENTRY_HELD) {
        entry->request_id = request->request_id; /* so that cancelling this one undoes it */
        if (request->lease_ms == 0 && !entry_breaking(entry)) {
            entry->end_ns = DLK_NEVER; /* its client will take it for a hold without a lease */
        }
        grow_lease(engine, entry, request->lease_ms, now_ns);
        answer(engine, request, DLK_RESULT_GRANTED, entry, now_ns);
        return;
    }
    if (entry->state == DLK_ENTRY_TICKET && request->wait_ms != 0
        && engine->sessions[request->session].n_queued >= DLK_INFLIGHT_MAX) {
        no_resource(engine, request);
        return;
    }
    entry->request_id = request->request_id;
    entry->end_ns = request->lease_ms;
    entry->flags = request->flags;
    entry->since_ns = now_ns;
    dlk_entry_to_waiter(engine, entry);
    dlk_lock_settle(engine, lock, now_ns);
    if (entry->state == DLK_ENTRY_HELD) {
        return;
    }
    if (request->wait_ms != 0) {
        wait_in_queue(engine, request, lock, entry, now_ns);
    } else {
        dlk_entry_to_ticket(engine, entry);
        count_ticketed(engine);
        answer(engine, request, DLK_RESULT_TICKETED, entry, now_ns);
    }
}

static struct entry *held_meant(struct dlk_engine *engine, const struct dlk_request *request)
{
    struct entry *entry = dlk_entry_meant(engine, request);
    if (entry == NULL || entry->state != DLK_ENTRY_HELD || entry->token != request->token) {
        return NULL;
    }
    return entry;
}

static void request_unlock(struct dlk_engine *engine, const struct dlk_request *request,
                           struct lock *lock, uint64_t now_ns)
{
    struct entry *entry = held_meant(engine, request);
    if (entry == NULL) {
        refuse(engine, request, DLK_RESULT_NOT_HELD,
               dlk_rule_unlock_counter(lock->kind, request->mode));
        return;
    }
    bool lapsed = over_at_its_end(entry, now_ns);
    dlk_entry_remove(engine, entry);
    if (lock->queue_head != DLK_NONE) {
        dlk_lock_settle(engine, lock, now_ns);
    }
    if (lapsed) {
        refuse(engine, request, DLK_RESULT_NOT_HELD,
               dlk_rule_unlock_counter(lock->kind, request->mode));
    } else {
        dlk_reply_push(engine, request, DLK_RESULT_RELEASED);
    }
}

static void request_extend(struct dlk_engine *engine, const struct dlk_request *request,
                           struct lock *lock, uint64_t now_ns)
{
    struct entry *entry = held_meant(engine, request);
    if (entry != NULL && entry->mode != request->mode) {
        refuse(engine, request, DLK_RESULT_INVALID, DLK_COUNT_EINVAL_LOCK_OP);
        return;
    }
    if (entry != NULL && over_at_its_end(entry, now_ns)) {
        dlk_entry_remove(engine, entry);
        dlk_lock_settle(engine, lock, now_ns);
        entry = NULL;
    }
    if (entry == NULL) {
        refuse(engine, request, DLK_RESULT_NOT_HELD,
               lock->kind == DLK_KIND_ATOMIC
                   ? DLK_COUNT_ATOMIC_EXTEND_FAIL
                   : dlk_rule_unlock_counter(lock->kind, request->mode));
        return;
    }
    grow_lease(engine, entry, request->lease_ms, now_ns);
    answer(engine, request, DLK_RESULT_EXTENDED, entry, now_ns);
}

static void request_undo(struct dlk_engine *engine, const struct dlk_request *request,
                         struct lock *lock, uint64_t now_ns)
{
    bool cancel = request->op == DLK_OP_CANCEL;
    struct entry *entry = cancel
                              ? dlk_entry_by_request(engine, request, (uint32_t)request->value)
                              : dlk_entry_meant(engine, request);
    if (entry != NULL) {
        dlk_entry_remove(engine, entry);
        dlk_lock_settle(engine, lock, now_ns);
    }
    dlk_reply_push(engine, request, cancel ? DLK_RESULT_CANCELLED : DLK_RESULT_DONE);
}

/* A lease over what the session may ask for, or a shape that the kind does not know. */
static bool valid(const struct dlk_engine *engine, const struct dlk_request *request,
                  const struct lock *lock)
{
    switch (request->op) {
    case DLK_OP_LOCK:
    case DLK_OP_REDEEM:
        return (request->op == DLK_OP_LOCK || dlk_rules[lock->kind].tickets)
               && request->lease_ms <= engine->sessions[request->session].lease_limit_ms
               && dlk_rule_request_valid(lock->kind, request->mode, request->flags,
                                         request->lease_ms);
    case DLK_OP_EXTEND:
        return request->lease_ms <= engine->sessions[request->session].lease_limit_ms;
    default:
        return true;
    }
}

void dlk_lock_request(struct dlk_engine *engine, const struct dlk_request *request,
                      uint64_t now_ns)
{
    if (request->slot >= engine->limits.max_locks || request->lock_id == 0
        || engine->locks[request->slot].id != request->lock_id) {
        refuse(engine, request, DLK_RESULT_NO_LOCK, DLK_COUNT_EINVAL_LOCK_OFFSET);
        return;
    }
    struct lock *lock = &engine->locks[request->slot];
    if (lock->queue_head != DLK_NONE && lock->due_ns <= now_ns) {
        dlk_lock_settle(engine, lock, now_ns);
    }
    if (!valid(engine, request, lock)) {
        refuse(engine, request, DLK_RESULT_INVALID, DLK_COUNT_EINVAL_LOCK_OP);
        return;
    }
    switch (request->op) {
    case DLK_OP_LOCK:
        request_lock(engine, request, lock, now_ns);
        break;
    case DLK_OP_REDEEM:
        request_redeem(engine, request, lock, now_ns);
        break;
    case DLK_OP_UNLOCK:
        request_unlock(engine, request, lock, now_ns);
        break;
    case DLK_OP_EXTEND:
        request_extend(engine, request, lock, now_ns);
        break;
    default:
        request_undo(engine, request, lock, now_ns);
        break;
    }
}

/* The wait of a QUEUED entry is over. The lock settles when all waits that are due have ended. */
void dlk_wait_over(struct dlk_engine *engine, struct entry *entry, uint64_t now_ns)
{
    struct lock *lock = &engine->locks[entry->lock];
    dlk_count(engine, dlk_rule_busy_counter(lock->kind, entry->mode), 1);
    if ((entry->flags & DLK_FLAG_TICKET) != 0) {
        dlk_entry_to_ticket(engine, entry);
        dlk_reply_entry(engine, entry, DLK_RESULT_TICKETED, now_ns);
    } else {
        dlk_reply_entry(engine, entry, DLK_RESULT_TIMED_OUT, now_ns);
        dlk_entry_remove(engine, entry);
    }
    dlk_lock_settle_later(engine, lock, now_ns);
}
