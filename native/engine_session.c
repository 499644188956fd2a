/* Sessions, the commands of the control plane, and what time ends. */
#include "engine_internal.h"

#include <string.h>

static bool session_is(const struct dlk_engine *engine, const struct dlk_command *command,
                       enum session_state state)
{
    if (command->slot >= engine->limits.max_sessions) {
        return false;
    }
    const struct session *session = &engine->sessions[command->slot];
    return session->state == state && session->client_id == command->id;
}

static void renew(struct dlk_engine *engine, uint32_t slot, uint64_t now_ns)
{
    struct session *session = &engine->sessions[slot];
    session->deadline_ns = now_ns + session->ttl_ns;
}

static void set_secret(struct session *session, const struct dlk_command *command)
{
    session->attach = command->attach;
    memcpy(session->secret, command->secret, sizeof(session->secret));
}

static uint32_t session_open(struct dlk_engine *engine, const struct dlk_command *command,
                             uint64_t now_ns)
{
    if (command->slot >= engine->limits.max_sessions || command->id == 0
        || command->id > DLK_CLIENT_ID_MAX || command->ttl_ms == 0
        || command->kind > DLK_SESSION_EARLY
        || command->lease_ms > engine->limits.max_lease_ms
        || engine->sessions[command->slot].state != SESSION_FREE) {
        return DLK_RESULT_INVALID;
    }
    struct session *session = &engine->sessions[command->slot];
    memset(session, 0, sizeof(*session));
    session->client_id = command->id;
    session->state = SESSION_OPEN;
    session->early = command->kind == DLK_SESSION_EARLY;
    session->entries = DLK_NONE;
    session->ttl_ns = (uint64_t)command->ttl_ms * 1000000u;
    session->lease_limit_ms = command->lease_ms;
    set_secret(session, command);
    renew(engine, command->slot, now_ns);
    dlk_heap_set(&engine->expiries, command->slot, session->deadline_ns);
    return DLK_RESULT_DONE;
}

static uint32_t session_supersede(struct dlk_engine *engine, const struct dlk_command *command,
                                  uint64_t now_ns)
{
    if (!session_is(engine, command, SESSION_OPEN)) {
        return DLK_RESULT_REMOVED;
    }
    set_secret(&engine->sessions[command->slot], command);
    renew(engine, command->slot, now_ns);
    return DLK_RESULT_DONE;
}

/* The slot is free again once nothing is left of a session that is leaving. */
void dlk_session_entry_gone(struct dlk_engine *engine, uint32_t slot)
{
    struct session *session = &engine->sessions[slot];
    if (session->state == SESSION_LEAVING && session->n_entries == 0) {
        dlk_event_push(engine, DLK_EVENT_SESSION_FREED, slot, session->client_id);
        session->state = SESSION_FREE;
        session->client_id = 0;
    }
}

/* Nobody is there any more to be told of a grant. */
static void end_waits(struct dlk_engine *engine, uint32_t slot, uint64_t now_ns)
{
    const struct session *session = &engine->sessions[slot];
    for (uint32_t index = session->entries; session->n_queued != 0 && index != DLK_NONE;) {
        struct entry *entry = &engine->entries[index];
        struct lock *lock = &engine->locks[entry->lock];
        index = entry->session_next;
        if (entry->state == DLK_ENTRY_QUEUED) {
            dlk_reply_entry(engine, entry, DLK_RESULT_REMOVED, now_ns);
            dlk_entry_remove(engine, entry);
            dlk_lock_settle_later(engine, lock, now_ns);
        }
    }
}

/* It is over for both planes. What it had stays until SESSION_END: before anything of it is given
 * to others, the state directory says that nobody waits for it any more. */
void dlk_session_expire(struct dlk_engine *engine, uint32_t slot, uint64_t now_ns)
{
    struct session *session = &engine->sessions[slot];
    dlk_heap_remove(&engine->expiries, slot);
    dlk_count(engine, DLK_COUNT_SESSIONS_EXPIRED, 1);
    dlk_event_push(engine, DLK_EVENT_SESSION_ENDED, slot, session->client_id);
    end_waits(engine, slot, now_ns);
    session->state = SESSION_ENDED;
}

/* The hold ends with its lease by timer, whether anybody waits for it or not. */
void dlk_hold_time(struct dlk_engine *engine, const struct entry *entry)
{
    if (entry->end_ns != DLK_NEVER) {
        dlk_heap_set(&engine->ends, engine->limits.max_locks + entry_index(engine, entry),
                     entry->end_ns);
    }
}

/* Frees what the session has, leased holds only if asked to: those that stay end by timer from now
 * on. The locks settle afterwards, so that nothing is granted to the session on its way out. */
static void leave(struct dlk_engine *engine, uint32_t slot, bool leased_too, uint64_t now_ns)
{
    struct session *session = &engine->sessions[slot];
    dlk_heap_remove(&engine->expiries, slot);
    end_waits(engine, slot, now_ns);
    for (uint32_t index = session->entries; index != DLK_NONE;) {
        struct entry *entry = &engine->entries[index];
        struct lock *lock = &engine->locks[entry->lock];
        index = entry->session_next;
        bool leased = entry->state == DLK_ENTRY_HELD
                      && (entry->end_ns != DLK_NEVER || dlk_claim_lease_ms(engine, entry) != 0);
        if (leased && !leased_too) {
            dlk_hold_time(engine, entry);
        } else {
            dlk_entry_remove(engine, entry);
            dlk_lock_settle_later(engine, lock, now_ns);
        }
    }
    session->state = SESSION_LEAVING;
    dlk_session_entry_gone(engine, slot);
    dlk_run_ends(engine, now_ns);
}

/* With the last of it the session is free. */
static void drop_what_is_left(struct dlk_engine *engine, uint32_t slot, uint64_t now_ns)
{
    for (uint32_t index = engine->sessions[slot].entries; index != DLK_NONE;) {
        struct entry *entry = &engine->entries[index];
        struct lock *lock = &engine->locks[entry->lock];
        index = entry->session_next;
        dlk_entry_remove(engine, entry);
        dlk_lock_settle_later(engine, lock, now_ns);
    }
    dlk_run_ends(engine, now_ns);
}

/* Also of a session that has ended meanwhile, whose client has said that it holds nothing; and of
 * one of which leased holds are left, whose role another client has taken. */
static uint32_t session_close(struct dlk_engine *engine, const struct dlk_command *command,
                              uint64_t now_ns)
{
    if (session_is(engine, command, SESSION_LEAVING)) {
        drop_what_is_left(engine, command->slot, now_ns);
        return DLK_RESULT_DONE;
    }
    if (!session_is(engine, command, SESSION_OPEN)
        && !session_is(engine, command, SESSION_ENDED)) {
        return DLK_RESULT_REMOVED;
    }
    leave(engine, command->slot, true, now_ns);
    return DLK_RESULT_DONE;
}

static uint32_t session_end(struct dlk_engine *engine, const struct dlk_command *command,
                            uint64_t now_ns, uint64_t *stay)
{
    if (!session_is(engine, command, SESSION_ENDED)) {
        return DLK_RESULT_REMOVED;
    }
    leave(engine, command->slot, false, now_ns);
    *stay = engine->sessions[command->slot].n_entries;
    return DLK_RESULT_DONE;
}

uint32_t dlk_lock_open(struct dlk_engine *engine, const struct dlk_command *command)
{
    if (command->slot >= engine->limits.max_locks || command->id == 0
        || command->kind >= DLK_KIND_COUNT
        || (dlk_rules[command->kind].slots && command->size == 0)) {
        return DLK_RESULT_INVALID;
    }
    struct lock *lock = &engine->locks[command->slot];
    if (lock->id == command->id) {
        lock->closing = 0;
        return DLK_RESULT_DONE;
    }
    if (lock->id != 0) {
        return DLK_RESULT_INVALID;
    }
    memset(lock, 0, sizeof(*lock));
    lock->id = command->id;
    lock->kind = (uint8_t)command->kind;
    lock->size = dlk_rules[command->kind].slots ? command->size : 1;
    lock->holders = DLK_NONE;
    lock->queue_head = DLK_NONE;
    lock->queue_tail = DLK_NONE;
    lock->min_end_ns = DLK_NEVER;
    lock->due_ns = DLK_NEVER;
    return DLK_RESULT_DONE;
}

static uint32_t lock_close(struct dlk_engine *engine, const struct dlk_command *command,
                           uint64_t now_ns, uint64_t *closed_now)
{
    if (command->slot >= engine->limits.max_locks || command->id == 0
        || engine->locks[command->slot].id != command->id) {
        return DLK_RESULT_NO_LOCK;
    }
    struct lock *lock = &engine->locks[command->slot];
    if (command->size == 1 || (lock->holders == DLK_NONE && lock->queue_head == DLK_NONE)) {
        dlk_lock_displace(engine, lock, now_ns);
        *closed_now = 1;
    } else {
        lock->closing = 1;
    }
    return DLK_RESULT_DONE;
}

static uint32_t cell_command(struct dlk_engine *engine, const struct dlk_command *command)
{
    if (command->slot >= engine->limits.max_cells || command->id == 0) {
        return DLK_RESULT_INVALID;
    }
    bool open = command->op == DLK_COMMAND_CELL_OPEN;
    if (engine->cells[command->slot] != (open ? 0 : command->id)) {
        return open ? DLK_RESULT_INVALID : DLK_RESULT_NO_OBJECT;
    }
    engine->cells[command->slot] = open ? command->id : 0;
    return DLK_RESULT_DONE;
}

static uint32_t set_epoch(struct dlk_engine *engine, uint64_t epoch)
{
    if (epoch <= engine->token >> DLK_COUNTER_BITS || epoch >= 1u << DLK_EPOCH_BITS) {
        return DLK_RESULT_INVALID;
    }
    engine->next_epoch = (uint32_t)epoch;
    return DLK_RESULT_DONE;
}

static uint32_t set_token_floor(struct dlk_engine *engine, uint64_t token)
{
    if (token >> (DLK_EPOCH_BITS + DLK_COUNTER_BITS) != 0) {
        return DLK_RESULT_INVALID;
    }
    engine->token = token > engine->token ? token : engine->token;
    return DLK_RESULT_DONE;
}

static void give_grace(struct dlk_engine *engine, uint64_t grace_ms, uint64_t now_ns)
{
    uint64_t grace_ns = now_ns + grace_ms * 1000000u;
    engine->grace_ns = grace_ns > engine->grace_ns ? grace_ns : engine->grace_ns;
}

static uint32_t session_lease(struct dlk_engine *engine, const struct dlk_command *command)
{
    if (!session_is(engine, command, SESSION_OPEN)) {
        return DLK_RESULT_REMOVED;
    }
    if (command->lease_ms > engine->limits.max_lease_ms) {
        return DLK_RESULT_INVALID;
    }
    engine->sessions[command->slot].lease_limit_ms = command->lease_ms;
    return DLK_RESULT_DONE;
}

/* Nothing was granted while the engine was not ready, and no session ended while it recovered: so
 * none ends at once now. */
static uint32_t set_readiness(struct dlk_engine *engine, const struct dlk_command *command,
                              uint64_t now_ns)
{
    bool all = command->value == DLK_READY_ALL;
    bool recovers = command->value == DLK_READY_RECOVERING;
    if (command->value > DLK_READY_RECOVERING || (recovers && engine->has_served)) {
        return DLK_RESULT_INVALID;
    }
    if (engine->readiness == DLK_READY_RECOVERING && !recovers) {
        give_grace(engine, command->ttl_ms, now_ns);
    }
    engine->readiness = (uint32_t)command->value;
    engine->has_served = engine->has_served || all;
    if (all && engine->claims != NULL) {
        dlk_claims_end(engine, command->ttl_ms, now_ns);
    }
    bool grants = engine->readiness != DLK_READY_NONE && engine->entries_used != 0;
    uint32_t locks = grants ? engine->limits.max_locks : 0;
    for (uint32_t slot = 0; slot < locks; slot++) {
        if (engine->locks[slot].id != 0) {
            dlk_lock_settle_later(engine, &engine->locks[slot], now_ns);
        }
    }
    dlk_run_ends(engine, now_ns);
    return DLK_RESULT_DONE;
}

/* `value` and `slot` are those of the DONE event. */
static uint32_t carry_out(struct dlk_engine *engine, const struct dlk_command *command,
                          uint64_t now_ns, uint64_t *value, uint32_t *slot)
{
    switch (command->op) {
    case DLK_COMMAND_SESSION_OPEN:
        return session_open(engine, command, now_ns);
    case DLK_COMMAND_SESSION_SUPERSEDE:
        return session_supersede(engine, command, now_ns);
    case DLK_COMMAND_SESSION_RENEW:
        if (!session_is(engine, command, SESSION_OPEN)) {
            return DLK_RESULT_REMOVED;
        }
        renew(engine, command->slot, now_ns);
        return DLK_RESULT_DONE;
    case DLK_COMMAND_SESSION_LEASE:
        return session_lease(engine, command);
    case DLK_COMMAND_SESSION_CLOSE:
        return session_close(engine, command, now_ns);
    case DLK_COMMAND_SESSION_END:
        return session_end(engine, command, now_ns, value);
    case DLK_COMMAND_LOCK_OPEN:
        return dlk_lock_open(engine, command);
    case DLK_COMMAND_LOCK_CLOSE:
        return lock_close(engine, command, now_ns, value);
    case DLK_COMMAND_CELL_OPEN:
    case DLK_COMMAND_CELL_CLOSE:
        return cell_command(engine, command);
    case DLK_COMMAND_READY:
        return set_readiness(engine, command, now_ns);
    case DLK_COMMAND_CLAIM:
        return dlk_claim_command(engine, command, now_ns);
    case DLK_COMMAND_EPOCH:
        return set_epoch(engine, command->value);
    case DLK_COMMAND_TOKEN_FLOOR:
        return set_token_floor(engine, command->value);
    case DLK_COMMAND_GRACE:
        give_grace(engine, command->value, now_ns);
        return DLK_RESULT_DONE;
    case DLK_COMMAND_BREAK:
        return dlk_break(engine, command, now_ns, value);
    case DLK_COMMAND_VIEW:
        return dlk_view_command(engine, command, value);
    case DLK_COMMAND_SURVEY:
        return dlk_survey_command(engine, command, value, slot);
    default:
        return DLK_RESULT_INVALID;
    }
}

void dlk_engine_command(struct dlk_engine *engine, const struct dlk_command *command,
                        uint64_t now_ns)
{
    uint64_t value = 0;
    uint32_t slot = command->slot;
    uint32_t result = carry_out(engine, command, now_ns, &value, &slot);
    dlk_event_push(engine, DLK_EVENT_DONE, slot, command->id);
    struct dlk_event *event = &engine->events[engine->n_events - 1];
    event->result = result;
    event->cookie = command->cookie;
    event->value = value;
}

/* Every lock that is due, and every hold whose lease is over and that ends with it whether anybody
 * waits or not: of a session that is leaving, or breaking. */
void dlk_run_ends(struct dlk_engine *engine, uint64_t now_ns)
{
    while (dlk_heap_first_ns(&engine->ends) <= now_ns) {
        uint32_t id = dlk_heap_first_id(&engine->ends);
        if (id < engine->limits.max_locks) {
            dlk_lock_settle(engine, &engine->locks[id], now_ns);
            continue;
        }
        struct entry *entry = &engine->entries[id - engine->limits.max_locks];
        struct lock *lock = &engine->locks[entry->lock];
        dlk_count(engine, DLK_COUNT_LEASES_EXPIRED, 1);
        dlk_entry_remove(engine, entry);
        dlk_lock_settle_later(engine, lock, now_ns);
    }
}

static void run_expiries(struct dlk_engine *engine, uint64_t now_ns, uint64_t sessions_now_ns)
{
    while (dlk_heap_first_ns(&engine->expiries) <= sessions_now_ns) {
        uint32_t slot = dlk_heap_first_id(&engine->expiries);
        uint64_t deadline_ns = engine->sessions[slot].deadline_ns;
        if (deadline_ns < engine->grace_ns) {
            deadline_ns = engine->grace_ns;
        }
        if (deadline_ns > sessions_now_ns) {
            dlk_heap_set(&engine->expiries, slot, deadline_ns);
        } else {
            dlk_session_expire(engine, slot, now_ns);
        }
    }
}

/* Nothing is granted to a session that ends now, and no wait ends whose lock has just come free.
 * What ends together ends before anything is granted: the order of equal times means nothing. */
void dlk_engine_tick(struct dlk_engine *engine, uint64_t now_ns, uint64_t sessions_now_ns)
{
    if (engine->readiness != DLK_READY_RECOVERING) {
        run_expiries(engine, now_ns, sessions_now_ns);
    }
    dlk_run_ends(engine, now_ns);
    while (dlk_heap_first_ns(&engine->waits) <= now_ns) {
        dlk_wait_over(engine, &engine->entries[dlk_heap_first_id(&engine->waits)], now_ns);
    }
    dlk_run_ends(engine, now_ns);
}
