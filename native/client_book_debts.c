/*
 * Pending requests, and the debts that some of them become: unlocks and cancels that the server
 * has not confirmed. A debt keeps its slot, and with it its request id, until its answer is there,
 * so that no other request can be taken for it. It may not do I/O or read a clock.
 */
#include "client_book.h"

#include <stdlib.h>

enum { PENDING_FIRST = 64, GENERATIONS = 1 << 18 };

_Static_assert((uint64_t)GENERATIONS * DLK_INFLIGHT_MAX == (uint64_t)1 << 32,
               "a request id is an index and a generation");

static bool grow(struct dlk_book *book)
{
    uint32_t room = book->pending_room == 0 ? PENDING_FIRST : 2 * book->pending_room;
    struct dlk_pending *wider = realloc(book->pending, room * sizeof(*wider));
    if (wider == NULL) {
        return false;
    }
    for (uint32_t i = book->pending_room; i < room; i++) {
        wider[i] = (struct dlk_pending){0};
    }
    book->pending = wider;
    if (book->keep_waits && !dlk_heap_grow(&book->parked, room)) {
        return false;
    }
    book->pending_room = room;
    return true;
}

/* A slot with a request id of its own; DLK_NONE when at most room_kept slots are left. */
uint32_t dlk_pending_new(struct dlk_book *book, uint32_t room_kept)
{
    if (book->pending_used + room_kept >= DLK_INFLIGHT_MAX) {
        return DLK_NONE;
    }
    uint32_t index = book->pending_free;
    if (index != DLK_NONE) {
        book->pending_free = book->pending[index].next_free;
    } else if (book->pending_high < book->pending_room || grow(book)) {
        index = book->pending_high++;
    } else {
        return DLK_NONE;
    }
    struct dlk_pending *pending = &book->pending[index];
    pending->generation = (pending->generation + 1) % GENERATIONS;
    pending->request.request_id = pending->generation * DLK_INFLIGHT_MAX + index;
    pending->state = DLK_OP_STATE_ASKED;
    pending->broken = false;
    pending->kept = false;
    pending->resent_ns = 0;
    pending->verified = book->verified;
    pending->echo_id = 0;
    book->pending_used++;
    return index;
}

static void count_debt(struct dlk_book *book, uint8_t state, uint32_t change)
{
    book->debts += state >= DLK_OP_STATE_OWED ? change : 0;
    book->debts_unsent += state == DLK_OP_STATE_OWED ? change : 0;
    book->debts_under_way += state == DLK_OP_STATE_OWED_SENT ? change : 0;
}

/* The debts to be sent are a list, so that sending one does not look at every slot. */
static void link_owed(struct dlk_book *book, uint32_t index)
{
    struct dlk_pending *pending = &book->pending[index];
    pending->next_free = DLK_NONE;
    pending->previous = book->owed_last;
    if (book->owed_last != DLK_NONE) {
        book->pending[book->owed_last].next_free = index;
    } else {
        book->owed_first = index;
    }
    book->owed_last = index;
}

static void unlink_owed(struct dlk_book *book, uint32_t index)
{
    const struct dlk_pending *pending = &book->pending[index];
    if (pending->previous != DLK_NONE) {
        book->pending[pending->previous].next_free = pending->next_free;
    } else {
        book->owed_first = pending->next_free;
    }
    if (pending->next_free != DLK_NONE) {
        book->pending[pending->next_free].previous = pending->previous;
    } else {
        book->owed_last = pending->previous;
    }
}

void dlk_pending_set(struct dlk_book *book, uint32_t index, enum dlk_op_state state)
{
    struct dlk_pending *pending = &book->pending[index];
    count_debt(book, pending->state, (uint32_t)-1);
    if (pending->state == DLK_OP_STATE_OWED) {
        unlink_owed(book, index);
    } else if (pending->state == DLK_OP_STATE_PARKED) {
        dlk_heap_remove(&book->parked, index);
    }
    book->waits_kept -= pending->state == DLK_OP_STATE_PARKED_KEPT;
    pending->state = (uint8_t)state;
    book->waits_kept += pending->state == DLK_OP_STATE_PARKED_KEPT;
    count_debt(book, pending->state, 1);
    if (pending->state == DLK_OP_STATE_OWED) {
        link_owed(book, index);
    } else if (pending->state == DLK_OP_STATE_PARKED) {
        dlk_heap_set(&book->parked, index, pending->order);
    }
}

void dlk_pending_free(struct dlk_book *book, uint32_t index)
{
    struct dlk_pending *pending = &book->pending[index];
    dlk_pending_set(book, index, DLK_OP_STATE_FREE);
    pending->call = NULL;
    pending->next_free = book->pending_free;
    book->pending_free = index;
    book->pending_used--;
}

/* Nobody waits for the answer any more, but the server must have the request. */
void dlk_pending_owe(struct dlk_book *book, uint32_t index, enum dlk_op_state state)
{
    struct dlk_pending *pending = &book->pending[index];
    pending->call = NULL;
    pending->hold = DLK_NONE;
    dlk_pending_set(book, index, state);
}

/* A new debt: give back what was granted to nobody. Without memory for it, it stays with the
 * session, and ends with it. */
void dlk_pending_undo(struct dlk_book *book, const struct dlk_hold *hold, uint32_t op,
                      uint64_t token, uint32_t entry)
{
    uint32_t index = dlk_pending_new(book, 0);
    if (index == DLK_NONE) {
        return;
    }
    struct dlk_pending *pending = &book->pending[index];
    pending->request = (struct dlk_request){
        .request_id = pending->request.request_id,
        .op = (uint8_t)op,
        .mode = hold->now.mode,
        .session = book->client_id,
        .lock_id = hold->lock_id,
        .slot = hold->slot,
        .entry = entry,
        .owner = hold->owner,
        .token = token,
    };
    dlk_pending_owe(book, index, DLK_OP_STATE_OWED);
}

void dlk_pending_cancel(struct dlk_book *book, const struct dlk_request *about,
                        uint32_t request_id)
{
    const struct dlk_request asked = *about; /* the slots may move */
    uint32_t index = dlk_pending_new(book, 0);
    if (index == DLK_NONE) {
        return;
    }
    struct dlk_pending *pending = &book->pending[index];
    pending->request = (struct dlk_request){
        .request_id = pending->request.request_id,
        .op = DLK_OP_CANCEL,
        .mode = asked.mode,
        .session = book->client_id,
        .lock_id = asked.lock_id,
        .slot = asked.slot,
        .entry = DLK_NONE,
        .owner = asked.owner,
        .value = request_id,
    };
    dlk_pending_owe(book, index, DLK_OP_STATE_OWED);
}

/* The answer to a debt. Anything final strikes it; a server that has not looked at it must be told
 * again, and by then the handle may be another's. */
void dlk_pending_reply(struct dlk_book *book, uint32_t index, const struct dlk_reply *reply)
{
    if (reply->result == DLK_RESULT_NOT_READY || reply->result == DLK_RESULT_NO_RESOURCE) {
        struct dlk_pending *pending = &book->pending[index];
        bool again = reply->result == DLK_RESULT_NOT_READY && dlk_pending_outdated(book, pending);
        pending->request.entry = DLK_NONE;
        dlk_pending_set(book, index, again ? DLK_OP_STATE_OWED : DLK_OP_STATE_OWED_KEPT);
    } else {
        const struct dlk_request asked = book->pending[index].request;
        uint32_t echo_id = book->pending[index].echo_id;
        dlk_pending_free(book, index);
        if (echo_id != 0) {
            dlk_pending_cancel(book, &asked, echo_id);
        }
    }
}

void dlk_book_retry_kept(struct dlk_book *book)
{
    if (!dlk_book_has_kept(book)) {
        return;
    }
    for (uint32_t i = 0; i < book->pending_high; i++) {
        if (book->pending[i].state == DLK_OP_STATE_OWED_KEPT) {
            dlk_pending_set(book, i, DLK_OP_STATE_OWED);
        } else if (book->pending[i].state == DLK_OP_STATE_PARKED_KEPT) {
            dlk_pending_set(book, i, DLK_OP_STATE_PARKED);
        }
    }
}

const struct dlk_request *dlk_book_next_unsent(struct dlk_book *book, uint64_t now_ns)
{
    uint32_t index = book->owed_first;
    if (index == DLK_NONE) {
        return NULL;
    }
    dlk_pending_set(book, index, DLK_OP_STATE_OWED_SENT);
    book->pending[index].sent_ns = now_ns;
    book->pending[index].verified = book->verified;
    return &book->pending[index].request;
}
