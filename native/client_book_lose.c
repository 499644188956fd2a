/*
 * What becomes of a call without a reply: its answer is not waited for any longer, its connection
 * is gone, or its user has given it up. It may not do I/O or read a clock.
 */
#include "client_book.h"

/* ---- Without a reply ---- */

/* What a request without an answer leaves behind: an unlock must still reach the server, a lock
 * that may yet be granted must be undone. A ticket is kept (to redeem it again is the same), an
 * extension and a cell operation are simply unknown. */
static void leave_behind(struct dlk_book *book, uint32_t index, bool alive)
{
    struct dlk_pending *pending = &book->pending[index];
    switch (pending->request.op) {
    case DLK_OP_UNLOCK:
    case DLK_OP_GIVE_UP:
        dlk_pending_owe(book, index, alive ? DLK_OP_STATE_OWED_SENT : DLK_OP_STATE_OWED);
        break;
    case DLK_OP_LOCK:
        pending->request.op = DLK_OP_CANCEL;
        pending->request.value = pending->request.request_id;
        pending->request.flags = 0;
        pending->request.lease_ms = 0;
        pending->request.wait_ms = 0;
        dlk_pending_owe(book, index, DLK_OP_STATE_OWED);
        break;
    default:
        dlk_pending_free(book, index);
        break;
    }
}

struct dlk_call *dlk_book_lose(struct dlk_book *book, uint32_t index, bool alive, uint64_t now_ns)
{
    if (index >= book->pending_high || book->pending[index].state == DLK_OP_STATE_FREE) {
        return NULL;
    }
    struct dlk_pending *pending = &book->pending[index];
    if (pending->state == DLK_OP_STATE_RENEWAL) {
        dlk_renewal_lose(book, index);
        return NULL;
    }
    if (!dlk_pending_of_call(pending)) {
        if (!alive && pending->state == DLK_OP_STATE_OWED_SENT) {
            dlk_pending_owe(book, index, DLK_OP_STATE_OWED);
        }
        return NULL;
    }
    struct dlk_call *call = pending->call;
    struct dlk_hold *hold = pending->hold != DLK_NONE ? &book->holds[pending->hold] : NULL;
    leave_behind(book, index, alive);
    return dlk_call_finish(book, call, hold, DLK_STATUS_BAD_RESPONSE, now_ns);
}

void dlk_book_unsent(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns)
{
    struct dlk_pending *pending = &book->pending[call->slot];
    struct dlk_hold *hold = pending->hold != DLK_NONE ? &book->holds[pending->hold] : NULL;
    if (pending->request.op == DLK_OP_UNLOCK || pending->request.op == DLK_OP_GIVE_UP) {
        dlk_pending_owe(book, call->slot, DLK_OP_STATE_OWED);
    } else {
        dlk_pending_free(book, call->slot);
    }
    dlk_call_finish(book, call, hold, DLK_STATUS_BAD_RESPONSE, now_ns);
}

/* ---- Given up by the user ---- */

static void cancel_sent(struct dlk_book *book, struct dlk_call *call)
{
    uint32_t index = call->slot;
    struct dlk_pending *pending = &book->pending[index];
    struct dlk_hold *hold = pending->hold != DLK_NONE ? &book->holds[pending->hold] : NULL;
    if (pending->request.op == DLK_OP_REDEEM) {
        pending->request.op = DLK_OP_GIVE_UP;
        pending->request.flags = 0;
        pending->request.lease_ms = 0;
        pending->request.wait_ms = 0;
        pending->echo_id = hold->now.echo_id;
        dlk_belief_reset(&hold->now);
        dlk_pending_owe(book, index, DLK_OP_STATE_OWED);
    } else {
        leave_behind(book, index, true);
    }
    if (hold != NULL) {
        dlk_hold_release(book, hold);
    }
}

/* The answer came: undo what it gave, unless something has happened to the hold since. */
static void cancel_ended(struct dlk_book *book, const struct dlk_call *call)
{
    uint32_t index = dlk_map_get(&book->locks, call->lock_id, call->owner);
    bool acquires = call->verb == DLK_VERB_TRYLOCK || call->verb == DLK_VERB_LOCK;
    if (!acquires || index == DLK_NONE) {
        return;
    }
    struct dlk_hold *hold = &book->holds[index];
    bool taken = call->status == DLK_STATUS_SUCCESS || call->status == DLK_STATUS_ALREADY_LOCKED;
    if (taken && hold->now.state == DLK_ENTRY_HELD && hold->now.token == call->token
        && hold->now.count > 0) {
        hold->now.count--;
        if (hold->running == DLK_NONE) {
            dlk_hold_release(book, hold);
        }
    } else if (call->status == DLK_STATUS_EAGAIN && call->result == DLK_RESULT_TICKETED
               && hold->now.state == DLK_ENTRY_TICKET && hold->running == DLK_NONE) {
        dlk_pending_undo(book, hold, DLK_OP_GIVE_UP, hold->now.token, hold->now.entry);
        dlk_belief_end(book, hold);
    }
}

void dlk_book_cancel(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns)
{
    dlk_posted_remove(book, call);
    if (call->phase == DLK_PHASE_SENT) {
        cancel_sent(book, call);
    } else if (call->phase == DLK_PHASE_ENDED || call->phase == DLK_PHASE_SEEN) {
        cancel_ended(book, call);
    }
    dlk_book_show(book, NULL, call, now_ns);
    call->status = DLK_STATUS_FAIL;
    call->phase = DLK_PHASE_SEEN;
}
