/* Looking at the engine: who holds and waits, and whether its records are consistent. Changes
 * nothing. */
#include "engine_claim.h"

static void show(const struct dlk_engine *engine, const struct entry *entry,
                 struct dlk_entry_view *view)
{
    *view = (struct dlk_entry_view){
        .owner = entry->owner,
        .token = entry->token,
        .end_ns = entry->state == DLK_ENTRY_HELD ? entry->end_ns : DLK_NEVER,
        .since_ns = entry->since_ns,
        .session_end_ns = engine->sessions[entry->session].deadline_ns,
        .session = entry->session,
        .client_id = engine->sessions[entry->session].client_id,
        .request_id = entry->request_id,
        .entry = entry_index(engine, entry),
        .state = (uint8_t)entry->state,
        .mode = (uint8_t)entry->mode,
        .flags = (uint16_t)entry->flags,
    };
}

size_t dlk_engine_view(const struct dlk_engine *engine, uint32_t slot, struct dlk_entry_view *out,
                       size_t room)
{
    size_t count = 0;
    if (slot >= engine->limits.max_locks || engine->locks[slot].id == 0) {
        return 0;
    }
    const struct lock *lock = &engine->locks[slot];
    for (int list = 0; list < 2; list++) {
        uint32_t index = list == 0 ? lock->holders : lock->queue_head;
        while (index != DLK_NONE && count < room) {
            show(engine, &engine->entries[index], &out[count]);
            count++;
            index = engine->entries[index].lock_next;
        }
    }
    return (size_t)lock->n_exclusive + lock->n_shared + lock->n_queue;
}

/* What a command says of the sender's array: its address, or NULL if it is none. */
static void *array_of(const struct dlk_command *command)
{
    bool fits = command->size >= 1 && command->size <= DLK_LOOK_MAX;
    return fits ? (void *)(uintptr_t)command->value : NULL;
}

uint32_t dlk_view_command(const struct dlk_engine *engine, const struct dlk_command *command,
                          uint64_t *count)
{
    struct dlk_entry_view *out = array_of(command);
    if (out == NULL) {
        return DLK_RESULT_INVALID;
    }
    if (command->slot >= engine->limits.max_locks || command->id == 0
        || engine->locks[command->slot].id != command->id) {
        return DLK_RESULT_NO_LOCK;
    }
    *count = dlk_engine_view(engine, command->slot, out, command->size);
    return DLK_RESULT_DONE;
}

static struct dlk_lock_view in_short(const struct dlk_engine *engine, const struct lock *lock)
{
    static const struct entry nobody;
    bool held = lock->holders != DLK_NONE;
    const struct entry *holder = held ? &engine->entries[lock->holders] : &nobody;
    return (struct dlk_lock_view){
        .session = holder->session,
        .owner = holder->owner,
        .since_ns = holder->since_ns,
        .client_id = held ? engine->sessions[holder->session].client_id : 0,
        .slot = lock_index(engine, lock),
        .id = lock->id,
        .n_exclusive = lock->n_exclusive,
        .n_shared = lock->n_shared,
        .n_queue = lock->n_queue,
        .size = lock->size,
        .served = (uint16_t)(lock->served[DLK_MODE_EXCLUSIVE] + lock->served[DLK_MODE_SHARED]),
        .kind = lock->kind,
        .closing = lock->closing,
    };
}

uint32_t dlk_survey_command(const struct dlk_engine *engine, const struct dlk_command *command,
                            uint64_t *count, uint32_t *next)
{
    struct dlk_lock_view *out = array_of(command);
    uint32_t slot = command->slot;
    if (out == NULL) {
        return DLK_RESULT_INVALID;
    }
    for (uint32_t looked = 0; looked < DLK_LOOK_MAX && slot < engine->limits.max_locks; looked++) {
        const struct lock *lock = &engine->locks[slot];
        if (lock->id != 0 && *count == command->size) {
            break;
        }
        if (lock->id != 0) {
            out[(*count)++] = in_short(engine, lock);
        }
        slot++;
    }
    *next = slot < engine->limits.max_locks ? slot : DLK_NONE;
    return DLK_RESULT_DONE;
}

enum broken {
    BROKEN_HOLDER = 1, /* a holder in the wrong state, or on the wrong lock */
    BROKEN_LINK,       /* a list that does not link back */
    BROKEN_COUNT,      /* a count that is not the length of its list */
    BROKEN_EXCLUSION,  /* holders that the kind does not allow together */
    BROKEN_END,        /* min_end_ns after the end of a holder */
    BROKEN_ORDER,      /* stamps in the queue that do not grow */
    BROKEN_TIMER,      /* a lock with a queue that is due without a timer */
    BROKEN_WAIT,       /* a ticket or holder in the heap of waits */
    BROKEN_FREED,      /* an entry on no list, or a free lock with entries */
    BROKEN_SESSION,    /* a session's list or counts */
    BROKEN_BREAKING,   /* a breaking entry that is no hold, or is leased and has no timer */
    BROKEN_ACTOR,      /* the index of those who wait */
    BROKEN_CLAIM       /* a claimed hold that other claims speak against, or after all is ready */
};

static int check_holders(const struct dlk_engine *engine, const struct lock *lock, uint32_t *seen)
{
    uint32_t n[DLK_MODE_COUNT] = {0, 0};
    uint32_t prev = DLK_NONE;
    for (uint32_t i = lock->holders; i != DLK_NONE; i = engine->entries[i].lock_next) {
        const struct entry *entry = &engine->entries[i];
        if (entry->state != DLK_ENTRY_HELD || entry->lock != lock_index(engine, lock)) {
            return BROKEN_HOLDER;
        }
        if (entry->lock_prev != prev) {
            return BROKEN_LINK;
        }
        if (entry->end_ns < lock->min_end_ns) {
            return BROKEN_END;
        }
        if (dlk_heap_has(&engine->waits, i)) {
            return BROKEN_WAIT;
        }
        bool leaving = engine->sessions[entry->session].state == SESSION_LEAVING;
        bool timed = entry->end_ns != DLK_NEVER && (leaving || entry_breaking(entry));
        if (dlk_heap_has(&engine->ends, engine->limits.max_locks + i) != timed) {
            return BROKEN_BREAKING;
        }
        n[entry->mode]++;
        prev = i;
    }
    if (n[DLK_MODE_EXCLUSIVE] != lock->n_exclusive || n[DLK_MODE_SHARED] != lock->n_shared) {
        return BROKEN_COUNT;
    }
    uint32_t capacity = lock->kind == DLK_KIND_SEMAPHORE ? lock->size : 1;
    if (lock->n_exclusive > capacity || (lock->n_exclusive != 0 && lock->n_shared != 0)) {
        return BROKEN_EXCLUSION;
    }
    *seen += lock->n_exclusive + lock->n_shared;
    return dlk_merge_check(engine, lock) ? 0 : BROKEN_CLAIM;
}

static int check_queue(const struct dlk_engine *engine, const struct lock *lock, uint32_t *seen)
{
    uint32_t count = 0;
    uint32_t prev = DLK_NONE;
    uint64_t stamp = 0;
    for (uint32_t i = lock->queue_head; i != DLK_NONE; i = engine->entries[i].lock_next) {
        const struct entry *entry = &engine->entries[i];
        if (entry->lock_prev != prev) {
            return BROKEN_LINK;
        }
        bool former = entry->token >> DLK_COUNTER_BITS < engine->epoch; /* claimed: may be twice */
        if (entry->token < stamp || (entry->token == stamp && !former)) {
            return BROKEN_ORDER;
        }
        if (entry->state == DLK_ENTRY_TICKET && dlk_heap_has(&engine->waits, i)) {
            return BROKEN_WAIT;
        }
        if (entry_breaking(entry)) {
            return BROKEN_BREAKING;
        }
        stamp = entry->token;
        prev = i;
        count++;
    }
    if (lock->queue_tail != prev || lock->n_queue != count) {
        return BROKEN_COUNT;
    }
    if (!dlk_waits_check(engine, lock)) {
        return BROKEN_ACTOR;
    }
    bool timed = dlk_heap_has(&engine->ends, lock_index(engine, lock));
    if (timed != (count != 0 && lock->due_ns != DLK_NEVER)) {
        return BROKEN_TIMER;
    }
    *seen += count;
    return 0;
}

static int check_session(const struct dlk_engine *engine, const struct session *session,
                         uint32_t *seen)
{
    uint32_t count = 0;
    uint32_t queued = 0;
    uint32_t breaking = 0;
    if (session->state == SESSION_FREE) {
        return 0;
    }
    for (uint32_t i = session->entries; i != DLK_NONE; i = engine->entries[i].session_next) {
        const struct entry *entry = &engine->entries[i];
        bool lasting = entry->state == DLK_ENTRY_HELD
                       && (entry->end_ns != DLK_NEVER || dlk_claim_lease_ms(engine, entry) != 0);
        if ((session->state == SESSION_LEAVING && !lasting)
            || (session->state == SESSION_ENDED && entry->state == DLK_ENTRY_QUEUED)) {
            return BROKEN_SESSION;
        }
        queued += entry->state == DLK_ENTRY_QUEUED;
        breaking += entry_breaking(entry);
        count++;
    }
    *seen += count;
    bool counted = count == session->n_entries && queued == session->n_queued
                   && breaking == session->n_breaking;
    return counted ? 0 : BROKEN_SESSION;
}

int dlk_engine_check(const struct dlk_engine *engine)
{
    uint32_t on_locks = 0;
    uint32_t on_sessions = 0;
    for (uint32_t slot = 0; slot < engine->limits.max_locks; slot++) {
        const struct lock *lock = &engine->locks[slot];
        if (lock->id == 0) {
            continue;
        }
        int broken = check_holders(engine, lock, &on_locks);
        if (broken == 0) {
            broken = check_queue(engine, lock, &on_locks);
        }
        if (broken != 0) {
            return broken;
        }
    }
    for (uint32_t slot = 0; slot < engine->limits.max_sessions; slot++) {
        if (check_session(engine, &engine->sessions[slot], &on_sessions) != 0) {
            return BROKEN_SESSION;
        }
    }
    if (engine->claims != NULL && engine->readiness == DLK_READY_ALL) {
        return BROKEN_CLAIM;
    }
    bool all = on_locks == engine->entries_used && on_sessions == engine->entries_used;
    return all ? 0 : BROKEN_FREED;
}
