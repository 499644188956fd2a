/*
 * What the client's book knows: locks, holds, the session. Told by the control plane and the user;
 * objects are in client_book_objects.c, requests and replies in client_book_begin.c,
 * client_book_end.c and client_book_debts.c. It may not do I/O or read a clock.
 */
#include "client_book.h"

#include <stdlib.h>
#include <string.h>

enum { HOLDS_FIRST = 64, NS_PER_MS = 1000000, NS_PER_S = 1000000000 };

void dlk_book_init(struct dlk_book *book, uint32_t reply_timeout_ms)
{
    *book = (struct dlk_book){
        .holds_free = DLK_NONE,
        .pending_free = DLK_NONE,
        .owed_first = DLK_NONE,
        .owed_last = DLK_NONE,
        .reply_timeout_ms = reply_timeout_ms,
    };
}

void dlk_book_free(struct dlk_book *book)
{
    dlk_map_free(&book->locks);
    dlk_map_free(&book->objects);
    dlk_map_free(&book->keys);
    free(book->holds);
    free(book->pending);
    dlk_heap_free(&book->ends);
    dlk_heap_free(&book->renewals);
    dlk_heap_free(&book->parked);
    dlk_map_free(&book->survivors);
    free(book->news.notices);
    *book = (struct dlk_book){0};
}

void dlk_book_attach(struct dlk_book *book, const struct dlk_link *link, uint64_t sent_ns,
                     uint64_t now_ns)
{
    if (book->epoch != link->epoch) {
        for (uint32_t i = 0; i < book->holds_high; i++) {
            struct dlk_belief *belief = &book->holds[i].now;
            book->holds[i].verify = false;
            if (belief->epoch == book->epoch) {
                belief->session_until_ns = book->session_until_ns;
            }
            belief->entry = DLK_NONE;
            belief->echo_id = 0;
        }
        for (uint32_t i = 0; i < book->pending_high; i++) {
            book->pending[i].request.entry = DLK_NONE;
        }
        book->session_until_ns = 0;
        book->renewed_ns = 0;
        dlk_map_free(&book->keys);
        dlk_book_begin_claims(book, 0);
    } else {
        dlk_waits_attach(book);
    }
    for (uint32_t i = 0; i < book->pending_high; i++) {
        book->pending[i].request.session = link->client_id;
    }
    book->client_id = link->client_id;
    book->epoch = link->epoch;
    book->session_ttl_ms = link->session_ttl_ms;
    book->max_lease_ms = link->max_lease_ms;
    book->removed = false;
    book->attached_ns = sent_ns;
    dlk_book_renew(book, sent_ns, DLK_RESULT_DONE, now_ns);
    dlk_holds_attach(book, now_ns);
}

/* ---- Holds ---- */

void dlk_belief_reset(struct dlk_belief *belief)
{
    *belief = (struct dlk_belief){.entry = DLK_NONE};
}

void dlk_belief_end(struct dlk_book *book, struct dlk_hold *hold)
{
    uint32_t echo_id = hold->now.echo_id;
    const struct dlk_request about = {.mode = hold->now.mode,
                                      .lock_id = hold->lock_id,
                                      .slot = hold->slot,
                                      .owner = hold->owner};
    dlk_belief_reset(&hold->now);
    if (echo_id != 0) {
        dlk_pending_cancel(book, &about, echo_id);
    }
}

static struct dlk_hold *hold_new(struct dlk_book *book)
{
    if (book->holds_free != DLK_NONE) {
        struct dlk_hold *hold = &book->holds[book->holds_free];
        book->holds_free = hold->running;
        return hold;
    }
    if (book->holds_high == book->holds_room) {
        uint32_t room = book->holds_room == 0 ? HOLDS_FIRST : 2 * book->holds_room;
        struct dlk_hold *wider = realloc(book->holds, room * sizeof(*wider));
        if (wider == NULL) {
            return NULL;
        }
        book->holds = wider;
        if (!dlk_heap_grow(&book->ends, room) || !dlk_heap_grow(&book->renewals, room)) {
            return NULL;
        }
        book->holds_room = room;
    }
    return &book->holds[book->holds_high++];
}

static void hold_free(struct dlk_book *book, struct dlk_hold *hold)
{
    dlk_posted_promote(book, hold, true);
    hold->in_use = false;
    hold->running = book->holds_free;
    book->holds_free = (uint32_t)(hold - book->holds);
}

/* The owner has it no longer. A running operation still refers to the record. */
void dlk_hold_forget(struct dlk_book *book, struct dlk_hold *hold)
{
    if (hold->gone) {
        return;
    }
    dlk_map_remove(&book->locks, hold->lock_id, hold->owner);
    dlk_belief_reset(&hold->now);
    dlk_hold_watch(book, hold);
    hold->gone = true;
    if (hold->running == DLK_NONE) {
        hold_free(book, hold);
    }
}

/* The running operation is over. */
void dlk_hold_release(struct dlk_book *book, struct dlk_hold *hold)
{
    hold->running = DLK_NONE;
    hold->waits = false;
    if (hold->gone) {
        hold_free(book, hold);
    } else if (hold->now.state == DLK_ENTRY_HELD && hold->now.count == 0) {
        /* Its only acquisition was cancelled while another thread tried to re-enter in vain. */
        dlk_pending_undo(book, hold, DLK_OP_UNLOCK, hold->now.token, hold->now.entry);
        dlk_belief_end(book, hold);
    }
    dlk_hold_watch(book, hold);
    if (hold->behind.first != NULL && !hold->crowded) {
        dlk_posted_promote(book, hold, false);
    }
}

int dlk_book_add_lock(struct dlk_book *book, uint32_t lock_id, uint32_t slot, uint32_t kind,
                      uint64_t owner)
{
    if (kind >= DLK_KIND_COUNT) {
        return DLK_STATUS_EINVAL;
    }
    uint32_t known = dlk_map_get(&book->locks, lock_id, owner);
    if (known != DLK_NONE) {
        struct dlk_hold *hold = &book->holds[known];
        if (hold->kind != kind && !hold->unknown) {
            return DLK_STATUS_ERROR;
        }
        hold->kind = (uint8_t)kind;
        hold->slot = slot;
        hold->unknown = false;
        return DLK_STATUS_SUCCESS;
    }
    struct dlk_hold *hold = hold_new(book);
    if (hold == NULL) {
        return DLK_STATUS_ENOMEM;
    }
    *hold = (struct dlk_hold){
        .owner = owner,
        .lock_id = lock_id,
        .slot = slot,
        .running = DLK_NONE,
        .renewal = DLK_NONE,
        .kind = (uint8_t)kind,
        .in_use = true,
    };
    dlk_belief_reset(&hold->now);
    if (!dlk_map_put(&book->locks, lock_id, owner, (uint32_t)(hold - book->holds))) {
        hold_free(book, hold);
        return DLK_STATUS_ENOMEM;
    }
    return DLK_STATUS_SUCCESS;
}

int dlk_book_may_drop_lock(const struct dlk_book *book, uint32_t lock_id, uint64_t owner)
{
    uint32_t index = dlk_map_get(&book->locks, lock_id, owner);
    if (index == DLK_NONE) {
        return DLK_STATUS_LOCK_NOT_GET;
    }
    const struct dlk_hold *hold = &book->holds[index];
    if (hold->running != DLK_NONE || hold->crowded) {
        return DLK_STATUS_EASYNC;
    }
    if (hold->unknown) {
        return hold->refused ? DLK_STATUS_FAIL : DLK_STATUS_LOCK_NOT_GET;
    }
    switch (hold->now.state) {
    case DLK_ENTRY_HELD:
        return DLK_STATUS_ERROR;
    case DLK_ENTRY_TICKET:
        return DLK_STATUS_TICKET_TO_UNLOCK;
    default:
        return DLK_STATUS_SUCCESS;
    }
}

int dlk_book_drop_lock(struct dlk_book *book, uint32_t lock_id, uint64_t owner, bool force)
{
    int status = dlk_book_may_drop_lock(book, lock_id, owner);
    uint32_t index = dlk_map_get(&book->locks, lock_id, owner);
    if (index == DLK_NONE) {
        return status;
    }
    /* The primary does not know it: this is the call that hears so. */
    bool unknown = book->holds[index].unknown && status != DLK_STATUS_EASYNC;
    if (status != DLK_STATUS_SUCCESS && !unknown && !force) {
        return status;
    }
    dlk_hold_forget(book, &book->holds[index]);
    return force ? DLK_STATUS_SUCCESS : status;
}

/* What it shows stays, for when it is added again. */
int dlk_book_set_lock_aside(struct dlk_book *book, uint32_t lock_id, uint64_t owner)
{
    int status = dlk_book_may_drop_lock(book, lock_id, owner);
    if (status != DLK_STATUS_SUCCESS) {
        return dlk_book_drop_lock(book, lock_id, owner, false);
    }
    book->holds[dlk_map_get(&book->locks, lock_id, owner)].unknown = true;
    return DLK_STATUS_SUCCESS;
}

void dlk_book_unverify(struct dlk_book *book)
{
    for (uint32_t i = 0; i < book->holds_high; i++) {
        struct dlk_hold *hold = &book->holds[i];
        if (hold->in_use && hold->kind == DLK_KIND_RW && hold->now.state == DLK_ENTRY_HELD) {
            hold->now.unverified = true;
        }
    }
}

/* ---- Until when ---- */

uint64_t dlk_belief_until_ns(const struct dlk_book *book, const struct dlk_belief *belief)
{
    if (belief->state == DLK_ENTRY_HELD && belief->leased) {
        return belief->end_ns;
    }
    return belief->epoch == book->epoch ? book->session_until_ns : belief->session_until_ns;
}

uint64_t dlk_book_session_left_ms(const struct dlk_book *book, uint64_t now_ns)
{
    return dlk_ms_until(book->session_until_ns, now_ns);
}

/* How long the authority of a hold still runs. */
uint64_t dlk_book_left_ms(const struct dlk_book *book, const struct dlk_belief *belief,
                          uint64_t now_ns)
{
    bool held = belief->state == DLK_ENTRY_HELD;
    return held ? dlk_ms_until(dlk_belief_until_ns(book, belief), now_ns) : 0;
}

/* The state of the hold as results show it; NULL: of nothing. */
void dlk_book_show(const struct dlk_book *book, const struct dlk_hold *hold,
                   struct dlk_call *call, uint64_t now_ns)
{
    static const struct dlk_belief nothing = {.entry = DLK_NONE};
    const struct dlk_belief *belief = hold != NULL ? &hold->now : &nothing;
    bool held = belief->state == DLK_ENTRY_HELD;
    uint64_t shown_end_ns = belief->leased ? belief->end_ns : belief->asked_end_ns;
    call->kind = hold != NULL ? hold->kind : DLK_KIND_COUNT;
    call->token = held ? belief->token : 0;
    call->time_out = held && shown_end_ns != 0
                         ? (shown_end_ns + book->unix_offset_ns) / NS_PER_S
                         : 0;
    call->holder = held ? book->client_id : 0;
    call->count = belief->count;
    call->held_mode = belief->mode;
    call->readers = belief->readers;
    call->n_exclusive = belief->n_exclusive;
    call->n_shared = belief->n_shared;
    call->m_exclusive = belief->m_exclusive;
    call->m_shared = belief->m_shared;
    call->left_ms = dlk_book_left_ms(book, belief, now_ns);
}
