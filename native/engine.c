/* The engine's tables, its outbox, and the dispatch of a batch. engine.h says what each call
 * promises, docs/lock-kinds.md what the requests mean. */
#include "engine_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* How far ahead of its request, in requests, memory is asked for: the records that a request names,
 * and then, when those are there, what they point at. Huge pages where a table is large enough that
 * looking up its pages would cost as much as the memory itself. */
enum { FETCH_AHEAD = 16, FETCH_NEAR = 6, HUGE_PAGE = 2 << 20, HUGE_TABLE_BYTES = 4 * HUGE_PAGE };

static size_t replies_room(const struct dlk_limits *limits)
{
    /* A waiter is answered once, a request at once or by becoming a waiter (then twice), or with
     * a notice behind it; a holder is told once in a call that it is broken, and before that, at a
     * new connection, that it was granted. */
    return 2 * (size_t)limits->max_entries + 2 * DLK_STEP_MAX + 1;
}

static size_t events_room(const struct dlk_limits *limits)
{
    /* In one call: a session ends and is freed, a lock closes, one DONE and one EPOCH_LOW, and a
     * cycle for each request. */
    return 2 * (size_t)limits->max_sessions + limits->max_locks + 2
           + (size_t)DLK_CYCLE_EDGES_MAX * DLK_STEP_MAX;
}

/* A zeroed table of cache lines. calloc of a large one is memory that the kernel commits when it
 * is touched; `raw` is what to free. */
static void *lines_new(size_t count, void **raw)
{
    size_t bytes = count * 64;
    bool huge = bytes >= HUGE_TABLE_BYTES;
    size_t alignment = huge ? HUGE_PAGE : 64;
    *raw = calloc(1, bytes + alignment);
    if (*raw == NULL) {
        return NULL;
    }
    void *lines = (void *)(((uintptr_t)*raw + alignment - 1) & ~(uintptr_t)(alignment - 1));
    if (huge) {
        (void)madvise(lines, bytes, MADV_HUGEPAGE); /* only advice */
    }
    return lines;
}

struct dlk_engine *dlk_engine_new(const struct dlk_limits *limits, uint32_t epoch)
{
    struct dlk_engine *engine = calloc(1, sizeof(*engine));
    if (engine == NULL) {
        return NULL;
    }
    engine->limits = *limits;
    engine->locks = lines_new(limits->max_locks, &engine->locks_raw);
    engine->entries = lines_new(limits->max_entries, &engine->entries_raw);
    engine->sessions = calloc((size_t)limits->max_sessions + 1, sizeof(struct session));
    engine->cells = calloc((size_t)limits->max_cells + 1, sizeof(uint32_t));
    engine->replies = calloc(replies_room(limits), sizeof(struct dlk_reply));
    engine->events = calloc(events_room(limits), sizeof(struct dlk_event));
    bool heaps = dlk_heap_init(&engine->ends, limits->max_locks + limits->max_entries);
    heaps = dlk_heap_init(&engine->expiries, limits->max_sessions) && heaps;
    heaps = dlk_heap_init(&engine->waits, limits->max_entries) && heaps;
    engine->deadlocks = dlk_deadlocks_new(limits->max_entries);
    engine->entries_free = DLK_NONE;
    engine->epoch = epoch;
    engine->token = (uint64_t)epoch << DLK_COUNTER_BITS;
    if (engine->locks == NULL || engine->entries == NULL || engine->sessions == NULL
        || engine->cells == NULL || engine->replies == NULL || engine->events == NULL || !heaps
        || engine->deadlocks == NULL) {
        dlk_engine_free(engine);
        return NULL;
    }
    return engine;
}

void dlk_engine_free(struct dlk_engine *engine)
{
    if (engine == NULL) {
        return;
    }
    free(engine->locks_raw);
    free(engine->entries_raw);
    free(engine->sessions);
    free(engine->cells);
    free(engine->replies);
    free(engine->events);
    dlk_heap_free(&engine->ends);
    dlk_heap_free(&engine->expiries);
    dlk_heap_free(&engine->waits);
    dlk_deadlocks_free(engine->deadlocks);
    dlk_claims_free(engine->claims);
    free(engine);
}

/* ---- Outbox ---- */

static void fill_lock(struct dlk_reply *reply, const struct lock *lock)
{
    reply->readers = lock->n_shared;
    reply->n_exclusive = lock->served[DLK_MODE_EXCLUSIVE];
    reply->n_shared = lock->served[DLK_MODE_SHARED];
    reply->m_exclusive = lock->handed[DLK_MODE_EXCLUSIVE];
    reply->m_shared = lock->handed[DLK_MODE_SHARED];
}

static bool is_lock_op(uint32_t op)
{
    return op >= DLK_OP_LOCK && op <= DLK_OP_GIVE_UP;
}

struct dlk_reply *dlk_reply_push(struct dlk_engine *engine, const struct dlk_request *request,
                                 uint32_t result)
{
    struct dlk_reply *reply = &engine->replies[engine->n_replies++];
    *reply = (struct dlk_reply){
        .request_id = request->request_id,
        .op = request->op,
        .mode = request->mode,
        .result = (uint16_t)result,
        .session = request->session,
        .epoch = engine->epoch,
        .entry = DLK_NONE,
    };
    if (is_lock_op(request->op) && request->slot < engine->limits.max_locks
        && result != DLK_RESULT_NO_LOCK) {
        fill_lock(reply, &engine->locks[request->slot]);
    }
    return reply;
}

/* To a waiter: what became of its request. For GRANTED `time_ns` is when the request came. */
void dlk_reply_entry(struct dlk_engine *engine, const struct entry *entry, uint32_t result,
                     uint64_t time_ns)
{
    struct dlk_reply *reply = &engine->replies[engine->n_replies++];
    *reply = (struct dlk_reply){
        .request_id = entry->request_id,
        .op = DLK_OP_LOCK,
        .mode = entry->mode,
        .result = (uint16_t)result,
        .session = entry->session,
        .epoch = engine->epoch,
        .entry = DLK_NONE,
    };
    fill_lock(reply, &engine->locks[entry->lock]);
    if (result == DLK_RESULT_GRANTED) {
        reply->token = entry->token;
        reply->entry = entry_index(engine, entry);
        if (entry->end_ns != DLK_NEVER) {
            reply->lease_ms = (uint32_t)((entry->end_ns - entry->since_ns) / 1000000u);
        }
        reply->held_us = (entry->since_ns - time_ns) / 1000u;
    } else if (result == DLK_RESULT_TICKETED) {
        reply->token = entry->token;
        reply->entry = entry_index(engine, entry);
    }
}

/* To a holder, unasked: the hold is taken away. Nobody reads for a session that has ended. */
void dlk_reply_notice(struct dlk_engine *engine, const struct entry *entry, uint32_t result,
                      uint64_t now_ns)
{
    if (engine->sessions[entry->session].state != SESSION_OPEN) {
        return;
    }
    struct dlk_reply *reply = &engine->replies[engine->n_replies++];
    *reply = (struct dlk_reply){
        .op = DLK_OP_NOTICE,
        .mode = entry->mode,
        .result = (uint16_t)result,
        .session = entry->session,
        .epoch = engine->epoch,
        .token = entry->token,
        .entry = entry_index(engine, entry),
    };
    if (result != DLK_RESULT_BROKEN) {
        reply->lease_ms = 0; /* nothing is left */
    } else if (entry_claimed(entry)) {
        reply->lease_ms = dlk_claim_lease_ms(engine, entry);
    } else {
        reply->lease_ms = lease_left_ms(entry, now_ns);
    }
    fill_lock(reply, &engine->locks[entry->lock]);
}

void dlk_event_push(struct dlk_engine *engine, uint32_t op, uint32_t slot, uint32_t id)
{
    engine->events[engine->n_events++] = (struct dlk_event){.op = op, .slot = slot, .id = id};
}

size_t dlk_engine_replies(const struct dlk_engine *engine, struct dlk_reply **replies)
{
    *replies = engine->replies;
    return engine->n_replies;
}

size_t dlk_engine_events(const struct dlk_engine *engine, struct dlk_event **events)
{
    *events = engine->events;
    return engine->n_events;
}

void dlk_engine_clear(struct dlk_engine *engine)
{
    engine->n_replies = 0;
    engine->n_events = 0;
}

/* ---- A batch ---- */

/* Are there tokens enough for all that one step, and the ticks until the next, could give out?
 * Takes the next epoch when this one's counter comes to its end and the control plane has written
 * that one down. */
static bool tokens_left(struct dlk_engine *engine)
{
    const uint64_t counter_end = ((uint64_t)1 << DLK_COUNTER_BITS) - 1;
    uint64_t counter = engine->token & counter_end;
    if (counter < counter_end / 2) {
        return true;
    }
    if (!engine->epoch_low_told) {
        engine->epoch_low_told = true;
        dlk_event_push(engine, DLK_EVENT_EPOCH_LOW, 0, 0);
        engine->events[engine->n_events - 1].value = engine->token >> DLK_COUNTER_BITS;
    }
    if (counter + engine->limits.max_entries + 2 * DLK_STEP_MAX < counter_end) {
        return true;
    }
    if (engine->next_epoch == 0) {
        return false;
    }
    engine->token = (uint64_t)engine->next_epoch << DLK_COUNTER_BITS;
    engine->next_epoch = 0;
    engine->epoch_low_told = false;
    return true;
}

static void cell_request(struct dlk_engine *engine, const struct dlk_request *request)
{
    if (request->slot >= engine->limits.max_cells || request->lock_id == 0
        || engine->cells[request->slot] != request->lock_id) {
        dlk_count(engine, DLK_COUNT_OBJECT_NOT_GET, 1);
        dlk_reply_push(engine, request, DLK_RESULT_NO_OBJECT);
        return;
    }
    struct dlk_reply *reply = dlk_reply_push(engine, request, DLK_RESULT_ACTION);
    reply->entry = request->slot;
    reply->token = request->token;
    reply->value = request->value;
}

static void step_one(struct dlk_engine *engine, const struct dlk_request *request, uint64_t now_ns,
                     uint32_t readiness)
{
    if (request->session >= engine->limits.max_sessions
        || engine->sessions[request->session].state != SESSION_OPEN) {
        dlk_reply_push(engine, request, DLK_RESULT_REMOVED);
        return;
    }
    struct session *session = &engine->sessions[request->session];
    session->deadline_ns = now_ns + session->ttl_ns;
    if (request->op == DLK_OP_PING) {
        dlk_reply_push(engine, request, DLK_RESULT_DONE);
    } else if (readiness != DLK_READY_ALL
               && (readiness == DLK_READY_NONE || !dlk_claim_serves(engine, request))) {
        dlk_count(engine, DLK_COUNT_NOT_READY, 1);
        dlk_reply_push(engine, request, DLK_RESULT_NOT_READY);
    } else if (is_lock_op(request->op)) {
        dlk_lock_request(engine, request, now_ns);
    } else {
        cell_request(engine, request);
    }
}

/* What the request names, so that it is on its way while earlier ones are carried out. Inlined by
 * force: a compiler takes a function that only prefetches for one without any effect, and drops the
 * calls of it. */
__attribute__((always_inline)) static inline void fetch(const struct dlk_engine *engine,
                                                        const struct dlk_request *request)
{
    if (request->slot < engine->limits.max_locks) {
        __builtin_prefetch(&engine->locks[request->slot], 1);
    }
    if (request->entry < engine->limits.max_entries) {
        __builtin_prefetch(&engine->entries[request->entry], 1);
    }
}

/* The neighbours in the session's list of the entry that the request names, which has come. */
__attribute__((always_inline)) static inline void fetch_near(const struct dlk_engine *engine,
                                                             const struct dlk_request *request)
{
    if (request->entry < engine->entries_high) {
        const struct entry *entry = &engine->entries[request->entry];
        if (entry->session_prev != DLK_NONE) {
            __builtin_prefetch(&engine->entries[entry->session_prev], 1);
        }
        if (entry->session_next != DLK_NONE) {
            __builtin_prefetch(&engine->entries[entry->session_next], 1);
        }
    }
}

void dlk_engine_step(struct dlk_engine *engine, const struct dlk_request *requests, size_t count,
                     uint64_t now_ns)
{
    uint32_t readiness = engine->readiness;
    if (readiness != DLK_READY_NONE && !tokens_left(engine)) {
        readiness = DLK_READY_NONE;
    }
    for (size_t i = 0; i < count && i < FETCH_AHEAD; i++) {
        fetch(engine, &requests[i]);
    }
    for (size_t i = 0; i < count; i++) {
        if (i + FETCH_AHEAD < count) {
            fetch(engine, &requests[i + FETCH_AHEAD]);
        }
        if (i + FETCH_NEAR < count) {
            fetch_near(engine, &requests[i + FETCH_NEAR]);
        }
        step_one(engine, &requests[i], now_ns, readiness);
    }
    dlk_count(engine, DLK_COUNT_REQUESTS, count);
}

void dlk_engine_stop(struct dlk_engine *engine)
{
    engine->readiness = DLK_READY_NONE;
    for (uint32_t index = 0; index < engine->entries_high; index++) {
        struct entry *entry = &engine->entries[index];
        if (entry->state == DLK_ENTRY_QUEUED) {
            struct lock *lock = &engine->locks[entry->lock];
            dlk_reply_entry(engine, entry, DLK_RESULT_STOPPING, 0);
            dlk_entry_remove(engine, entry);
            dlk_lock_settle(engine, lock, 0); /* grants nothing any more: takes its timer away */
        }
    }
}

uint64_t dlk_engine_next_deadline(const struct dlk_engine *engine)
{
    uint64_t first_ns = dlk_heap_first_ns(&engine->ends);
    bool recovers = engine->readiness == DLK_READY_RECOVERING; /* then no session ends */
    uint64_t expiry_ns = recovers ? DLK_NEVER : dlk_heap_first_ns(&engine->expiries);
    uint64_t wait_ns = dlk_heap_first_ns(&engine->waits);
    first_ns = expiry_ns < first_ns ? expiry_ns : first_ns;
    return wait_ns < first_ns ? wait_ns : first_ns;
}

const uint64_t *dlk_engine_counters(const struct dlk_engine *engine)
{
    return engine->counters;
}

uint32_t dlk_engine_entries_in_use(const struct dlk_engine *engine)
{
    return engine->entries_used;
}

uint32_t dlk_engine_epoch(const struct dlk_engine *engine)
{
    return engine->epoch;
}

bool dlk_engine_attach_allowed(const struct dlk_engine *engine, const struct dlk_attach *attach)
{
    if (attach->session_slot >= engine->limits.max_sessions) {
        return false;
    }
    const struct session *session = &engine->sessions[attach->session_slot];
    uint8_t difference = 0;
    for (size_t i = 0; i < DLK_SECRET_BYTES; i++) {
        difference |= (uint8_t)(session->secret[i] ^ attach->secret[i]);
    }
    return session->state == SESSION_OPEN && session->client_id == attach->client_id
           && session->attach == attach->attach && difference == 0;
}
