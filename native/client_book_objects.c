/*
 * What the client's book knows of objects: slots, keys, and what becomes of an operation on a cell.
 *
 * With a key, the connection can carry an operation out by itself, past the server's processor. It
 * is asked to only while the session is live, and its answer counts only while it is: after that a
 * new primary may serve, where the number is another one. A completion is no word of the server's
 * and renews nothing. It may not do I/O or read a clock.
 */
#include "client_book.h"

enum { KEY_REFUSED = 0 };

/* ---- What is known ---- */

/* A key that was refused stays so: ids are given out once in an epoch. */
static void forget_key(struct dlk_book *book, uint32_t object_id)
{
    if (dlk_map_get(&book->keys, object_id, 0) != KEY_REFUSED) {
        dlk_map_remove(&book->keys, object_id, 0);
    }
}

int dlk_book_add_object(struct dlk_book *book, uint32_t object_id, uint32_t slot)
{
    forget_key(book, object_id);
    dlk_map_remove(&book->objects, object_id, 0);
    return dlk_map_put(&book->objects, object_id, 0, slot) ? DLK_STATUS_SUCCESS
                                                           : DLK_STATUS_ENOMEM;
}

int dlk_book_object_key(struct dlk_book *book, uint32_t object_id, uint32_t key)
{
    if (dlk_map_get(&book->objects, object_id, 0) == DLK_NONE) {
        return DLK_STATUS_OBJECT_NOT_GET;
    }
    forget_key(book, object_id);
    bool usable = key != 0 && key != DLK_NONE
                  && dlk_map_get(&book->keys, object_id, 0) != KEY_REFUSED;
    bool kept = !usable || dlk_map_put(&book->keys, object_id, 0, key);
    return kept ? DLK_STATUS_SUCCESS : DLK_STATUS_ENOMEM;
}

int dlk_book_drop_object(struct dlk_book *book, uint32_t object_id)
{
    if (dlk_map_get(&book->objects, object_id, 0) == DLK_NONE) {
        return DLK_STATUS_OBJECT_NOT_GET;
    }
    forget_key(book, object_id);
    dlk_map_remove(&book->objects, object_id, 0);
    return DLK_STATUS_SUCCESS;
}

bool dlk_book_operates(const struct dlk_book *book, uint32_t object_id)
{
    for (uint32_t i = 0; i < book->pending_high; i++) {
        const struct dlk_pending *pending = &book->pending[i];
        if (pending->state == DLK_OP_STATE_ASKED && dlk_book_keyed(&pending->request)
            && pending->request.lock_id == object_id) {
            return true;
        }
    }
    return false;
}

/* ---- An operation ---- */

static uint64_t key_of(const struct dlk_book *book, uint32_t object_id, uint64_t now_ns)
{
    if (!book->one_sided || now_ns >= book->session_until_ns) {
        return 0;
    }
    uint32_t key = dlk_map_get(&book->keys, object_id, 0);
    return key != DLK_NONE && key != KEY_REFUSED ? DLK_BOOK_KEYED | key : 0;
}

enum dlk_turn dlk_object_begin(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns,
                               const struct dlk_request **request)
{
    uint32_t slot = dlk_map_get(&book->objects, call->lock_id, 0);
    bool stale = call->epoch != 0 && call->epoch != book->epoch;
    if (slot == DLK_NONE || stale) {
        return dlk_call_decide(book, NULL, call, DLK_STATUS_OBJECT_NOT_GET, now_ns);
    }
    uint32_t op = call->verb == DLK_VERB_FETCH_ADD     ? DLK_OP_FETCH_ADD
                  : call->verb == DLK_VERB_COMPARE_SWAP ? DLK_OP_COMPARE_SWAP
                                                        : DLK_OP_READ;
    uint32_t index = dlk_call_ask(book, call, op, slot, false, now_ns);
    if (index == DLK_NONE) {
        return dlk_book_put_off(book, call, now_ns);
    }
    struct dlk_request *asked = &book->pending[index].request;
    asked->mode = DLK_MODE_EXCLUSIVE;
    asked->owner = 0;
    asked->reserved = key_of(book, call->lock_id, now_ns);
    if (op == DLK_OP_FETCH_ADD) {
        asked->value = call->operand;
    } else if (op == DLK_OP_COMPARE_SWAP) {
        asked->token = call->operand;
        asked->value = call->swap;
    }
    return dlk_call_sent(book, call, now_ns, request);
}

/* Refused: its key is not valid any more, so the object is gone. Too late: the session could have
 * ended, and who knows whose number that was. */
static int32_t end_one_sided(struct dlk_book *book, const struct dlk_call *call,
                             const struct dlk_reply *reply, uint64_t now_ns)
{
    book->operated_ns = now_ns;
    if (reply->result == DLK_RESULT_NO_OBJECT) {
        dlk_map_remove(&book->keys, call->lock_id, 0);
        (void)dlk_map_put(&book->keys, call->lock_id, 0, KEY_REFUSED);
        return DLK_STATUS_OBJECT_NOT_GET;
    }
    return now_ns < book->session_until_ns ? DLK_STATUS_SUCCESS : DLK_STATUS_BAD_RESPONSE;
}

int32_t dlk_object_reply(struct dlk_book *book, struct dlk_call *call,
                         const struct dlk_reply *reply, uint64_t now_ns)
{
    if ((reply->reserved & DLK_REPLY_ONE_SIDED) != 0) {
        int32_t status = end_one_sided(book, call, reply, now_ns);
        if (status != DLK_STATUS_SUCCESS) {
            return status;
        }
    }
    switch (reply->result) {
    case DLK_RESULT_DONE:
        call->value = call->verb == DLK_VERB_COMPARE_SWAP ? call->swap : reply->value;
        return DLK_STATUS_SUCCESS;
    case DLK_RESULT_CAS_FAILED:
        call->value = reply->value;
        return DLK_STATUS_OBJECT_CAS_FAILED;
    default:
        return dlk_status_of_refusal(reply->result);
    }
}
