/*
 * What an operator takes away. A hold that is broken is not given to the next at once: its client
 * still believes in it. It is told (NOTICE), nothing extends the hold any more, and the lock passes
 * on when the hold ends: with its UNLOCK, its lease or its session, each of which comes after the
 * client has stopped believing. docs/lock-kinds.md, "Breaking a hold".
 */
#include "engine_internal.h"

static void ask_for(struct dlk_engine *engine, struct entry *entry)
{
    if (entry_breaking(entry)) {
        return;
    }
    entry->flags |= DLK_ENTRY_BREAKING;
    engine->sessions[entry->session].n_breaking++;
    dlk_hold_time(engine, entry);
}

/* A lapsed hold needs no answer: its client has stopped believing in it already. */
static void break_hold(struct dlk_engine *engine, struct entry *entry, bool at_once,
                       uint64_t now_ns)
{
    dlk_reply_notice(engine, entry, DLK_RESULT_BROKEN, now_ns);
    if (at_once || entry->end_ns <= now_ns) {
        dlk_entry_remove(engine, entry);
    } else {
        ask_for(engine, entry);
    }
}

/* The hold of this token where its entry is said to be. NULL: not there. */
static struct entry *hold_at(struct dlk_engine *engine, const struct dlk_command *command)
{
    if (command->value == 0 || command->attach >= engine->entries_high) {
        return NULL;
    }
    struct entry *entry = &engine->entries[command->attach];
    bool meant = entry->state == DLK_ENTRY_HELD && entry->lock == command->slot
                 && entry->token == command->value;
    return meant ? entry : NULL;
}

uint32_t dlk_break(struct dlk_engine *engine, const struct dlk_command *command, uint64_t now_ns,
                   uint64_t *met)
{
    if (command->slot >= engine->limits.max_locks || command->id == 0
        || engine->locks[command->slot].id != command->id) {
        return DLK_RESULT_NO_LOCK;
    }
    struct lock *lock = &engine->locks[command->slot];
    bool at_once = command->size != 0;
    struct entry *known = hold_at(engine, command);
    if (known != NULL) {
        break_hold(engine, known, at_once, now_ns);
        *met = 1;
    }
    uint32_t index = known != NULL ? DLK_NONE : lock->holders;
    while (index != DLK_NONE) {
        struct entry *entry = &engine->entries[index];
        index = entry->lock_next;
        if (command->value == 0 || command->value == entry->token) {
            break_hold(engine, entry, at_once, now_ns);
            (*met)++;
        }
    }
    dlk_lock_settle(engine, lock, now_ns);
    return DLK_RESULT_DONE;
}

void dlk_engine_attached(struct dlk_engine *engine, uint32_t slot, uint64_t now_ns)
{
    if (slot >= engine->limits.max_sessions) {
        return;
    }
    const struct session *session = &engine->sessions[slot];
    if (engine->claims != NULL && session->state == SESSION_OPEN) {
        dlk_claim_attached(engine, slot, now_ns);
    }
    uint32_t left = session->state == SESSION_OPEN ? session->n_breaking : 0;
    for (uint32_t index = session->entries; left > 0;) {
        const struct entry *entry = &engine->entries[index];
        if (entry_breaking(entry)) {
            dlk_reply_notice(engine, entry, DLK_RESULT_BROKEN, now_ns);
            left--;
        }
        index = entry->session_next;
    }
}
