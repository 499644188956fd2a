/*
 * Waits that outlive their connection. A `lock` that waits has a place in the server's queue, which
 * the server keeps for as long as the session lives. So when the connection fails it does not end:
 * it is parked, its own time and its cancellation go on, and over the next connection of the same
 * epoch its request is sent again, with the same id: the server finds its place, or its grant. At a
 * server of another epoch its place must have been claimed (client_book_claims.c). It may not do
 * I/O or read a clock.
 */
#include "client_book.h"

enum { NS_PER_MS = 1000000 };

/* Without a connection no answer can come: it ends with its own time. */
static void park(struct dlk_book *book, uint32_t index, enum dlk_op_state state, uint64_t now_ns)
{
    struct dlk_pending *pending = &book->pending[index];
    struct dlk_call *call = pending->call;
    dlk_pending_set(book, index, state);
    pending->parked = true;
    book->holds[pending->hold].waits = true;
    call->deadline_ns = pending->wait_until_ns > now_ns ? pending->wait_until_ns : now_ns;
    if (call->place == DLK_PLACE_RUNNING) {
        dlk_posted_place(book, call);
    }
}

/* Its own wait decides how long an answer may take. */
static void await_answer(const struct dlk_book *book, const struct dlk_pending *pending,
                         uint64_t from_ns)
{
    uint64_t until_ns = pending->wait_until_ns;
    if (until_ns != DLK_NEVER_NS) {
        until_ns = until_ns > from_ns ? until_ns : from_ns;
        until_ns += (uint64_t)book->reply_timeout_ms * NS_PER_MS;
    }
    pending->call->deadline_ns = until_ns;
}

struct dlk_call *dlk_book_disconnect(struct dlk_book *book, uint32_t index, bool over,
                                     uint64_t now_ns)
{
    const struct dlk_pending *pending = &book->pending[index];
    bool parks = !over && index < book->pending_high && pending->kept;
    if (parks && dlk_pending_parked(pending)) {
        return NULL;
    }
    if (parks && pending->state == DLK_OP_STATE_ASKED) {
        park(book, index, DLK_OP_STATE_PARKED, now_ns);
        return NULL;
    }
    return dlk_book_lose(book, index, false, now_ns);
}

struct dlk_call *dlk_wait_end(struct dlk_book *book, uint32_t index, int32_t status,
                              uint64_t now_ns)
{
    struct dlk_pending *pending = &book->pending[index];
    struct dlk_call *call = pending->call;
    struct dlk_hold *hold = &book->holds[pending->hold];
    dlk_pending_free(book, index);
    return dlk_call_finish(book, call, hold, status, now_ns);
}

/* One that was accepted has its place there, and waits for its grant. The server counts from when
 * it was claimed. */
struct dlk_call *dlk_book_sift(struct dlk_book *book, uint32_t index, uint32_t epoch,
                               uint64_t now_ns)
{
    struct dlk_pending *pending = &book->pending[index];
    if (index >= book->pending_high || !dlk_pending_parked(pending) || epoch == book->epoch) {
        return NULL;
    }
    if (pending->accepted) {
        dlk_pending_set(book, index, DLK_OP_STATE_ASKED);
        pending->accepted = false;
        pending->epoch = epoch;
        pending->sent_ns = book->claims_ns;
        pending->resent_ns = 0;
        await_answer(book, pending, now_ns);
        return NULL;
    }
    if (pending->fresh) {
        pending->fresh = false;
        dlk_pending_set(book, index, DLK_OP_STATE_PARKED_KEPT);
        return NULL;
    }
    return dlk_wait_end(book, index, DLK_STATUS_BAD_RESPONSE, now_ns);
}

void dlk_waits_attach(struct dlk_book *book)
{
    for (uint32_t i = 0; book->waits_kept != 0 && i < book->pending_high; i++) {
        if (book->pending[i].state == DLK_OP_STATE_PARKED_KEPT) {
            dlk_pending_set(book, i, DLK_OP_STATE_PARKED);
        }
    }
}

/* Less than a millisecond more is a try. */
uint32_t dlk_wait_left_ms(const struct dlk_pending *pending, uint64_t now_ns)
{
    if (pending->wait_until_ns == DLK_NEVER_NS) {
        return DLK_WAIT_FOREVER;
    }
    return pending->wait_until_ns > now_ns
               ? (uint32_t)((pending->wait_until_ns - now_ns) / NS_PER_MS)
               : 0;
}

const struct dlk_request *dlk_book_next_parked(struct dlk_book *book, uint64_t now_ns)
{
    if (book->parked.count == 0) {
        return NULL;
    }
    uint32_t index = dlk_heap_first_id(&book->parked);
    struct dlk_pending *pending = &book->pending[index];
    struct dlk_request *asked = &pending->request;
    dlk_pending_set(book, index, DLK_OP_STATE_ASKED);
    pending->verified = book->verified;
    asked->wait_ms = dlk_wait_left_ms(pending, now_ns);
    if (pending->epoch == book->epoch) {
        asked->flags = (uint16_t)(asked->flags | DLK_FLAG_RESEND);
        pending->resent_ns = now_ns;
    } else {
        asked->flags = (uint16_t)(asked->flags & ~DLK_FLAG_RESEND);
        pending->sent_ns = now_ns;
        pending->resent_ns = 0;
        pending->stamp = 0;
        pending->epoch = book->epoch;
    }
    await_answer(book, pending, now_ns);
    return asked;
}

bool dlk_wait_goes_on(struct dlk_book *book, uint32_t index, const struct dlk_reply *reply,
                      uint64_t now_ns)
{
    struct dlk_pending *pending = &book->pending[index];
    switch (reply->result) {
    case DLK_RESULT_QUEUED:
        dlk_pending_set(book, index, DLK_OP_STATE_ASKED);
        pending->stamp = reply->token;
        book->holds[pending->hold].waits = true;
        await_answer(book, pending, pending->sent_ns);
        return true;
    case DLK_RESULT_NOT_READY:
        if (!pending->parked) {
            return false; /* nothing of it was there before: its caller hears of it */
        }
        park(book, index,
             dlk_pending_outdated(book, pending) ? DLK_OP_STATE_PARKED : DLK_OP_STATE_PARKED_KEPT,
             now_ns);
        return true;
    case DLK_RESULT_STOPPING:
        park(book, index, DLK_OP_STATE_PARKED_KEPT, now_ns);
        return true;
    default:
        return false;
    }
}
