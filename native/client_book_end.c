/*
 * What became of a call: from the server's reply, or from its absence. It may not do I/O or read a
 * clock; ends are counted from when the request was sent, never from now.
 */
#include "client_book.h"

enum { NS_PER_US = 1000, NS_PER_MS = 1000000, DRIFT_DIVISOR = 1000 };

/* The clocks' rates differ by less than one part in 1000: this much less is safe to believe. */
static uint64_t less_drift(uint64_t duration_ns)
{
    return duration_ns - (duration_ns + DRIFT_DIVISOR - 1) / DRIFT_DIVISOR;
}

/* ---- The session ---- */

/* Did the engine carry the request out, and thereby renew the session? */
static bool renews(uint32_t result)
{
    switch (result) {
    case DLK_RESULT_NOT_READY:
    case DLK_RESULT_NO_RESOURCE:
    case DLK_RESULT_INVALID:
    case DLK_RESULT_REMOVED:
    case DLK_RESULT_STOPPING:
    case DLK_RESULT_REFUSED:
        return false;
    default:
        return result < DLK_RESULT_ACTION;
    }
}

void dlk_book_renew(struct dlk_book *book, uint64_t sent_ns, uint32_t result, uint64_t now_ns)
{
    if (result == DLK_RESULT_REMOVED) {
        book->session_until_ns = 0;
        dlk_session_remove(book);
    } else if (renews(result) && sent_ns >= book->renewed_ns) {
        book->renewed_ns = sent_ns;
        book->session_until_ns =
            sent_ns + less_drift((uint64_t)book->session_ttl_ms * NS_PER_MS);
        if (book->session_suspended || book->confirm_later) {
            dlk_session_tell(book, now_ns);
        }
    }
}

/* ---- What a reply says of a hold ---- */

static void take_counts(struct dlk_belief *belief, const struct dlk_reply *reply)
{
    belief->readers = reply->readers;
    belief->n_exclusive = reply->n_exclusive;
    belief->n_shared = reply->n_shared;
    belief->m_exclusive = reply->m_exclusive;
    belief->m_shared = reply->m_shared;
}

/* Both the time that the server kept the request and the lease are durations by its clock. What
 * comes on a connection was said after that was asked for: a second limit, the later one only for a
 * wait that was sent again, of which it is not known from which sending on the server counts. */
static uint64_t lease_end_ns(const struct dlk_book *book, const struct dlk_pending *pending,
                             const struct dlk_reply *reply)
{
    uint64_t held_ns = reply->held_us * NS_PER_US;
    uint64_t lease_ns = (uint64_t)reply->lease_ms * NS_PER_MS;
    uint64_t counted_ns = pending->sent_ns + less_drift(held_ns + lease_ns);
    uint64_t attached_ns = book->attached_ns + less_drift(lease_ns);
    return counted_ns > attached_ns ? counted_ns : attached_ns;
}

static void take_asked_end(struct dlk_belief *belief, const struct dlk_pending *pending,
                           uint32_t lease_ms)
{
    uint64_t end_ns = pending->sent_ns + (uint64_t)lease_ms * NS_PER_MS;
    if (lease_ms != 0 && end_ns > belief->asked_end_ns) {
        belief->asked_end_ns = end_ns;
    }
}

static void take_grant(const struct dlk_book *book, struct dlk_hold *hold,
                       const struct dlk_pending *pending, const struct dlk_reply *reply)
{
    bool leased = pending->request.lease_ms != 0 || reply->lease_ms != 0;
    hold->now = (struct dlk_belief){
        .token = reply->token,
        .end_ns = leased ? lease_end_ns(book, pending, reply) : 0,
        .entry = reply->entry,
        .epoch = book->epoch,
        .count = 1,
        .renew_ms = pending->call->renew != 0 ? pending->request.lease_ms : 0,
        .state = DLK_ENTRY_HELD,
        .mode = pending->request.mode,
        .leased = leased,
        .echo_id = pending->resent_ns != 0 ? pending->request.request_id : 0,
        .final_expiry = (pending->request.flags & DLK_FLAG_FINAL_EXPIRY) != 0,
    };
    hold->lost = 0;
    take_counts(&hold->now, reply);
    if (hold->kind == DLK_KIND_RW) {
        take_asked_end(&hold->now, pending, pending->call->lease_ms);
    }
}

static void take_ticket(const struct dlk_book *book, struct dlk_hold *hold,
                        const struct dlk_pending *pending, const struct dlk_reply *reply)
{
    hold->now = (struct dlk_belief){
        .token = reply->token,
        .entry = reply->entry,
        .epoch = book->epoch,
        .echo_id = pending->resent_ns != 0 ? pending->request.request_id : 0,
        .state = DLK_ENTRY_TICKET,
        .mode = pending->request.mode,
    };
    take_counts(&hold->now, reply);
}

/* A lease of less than a millisecond more reads as none, and adds nothing. */
void dlk_belief_extend(const struct dlk_book *book, struct dlk_belief *belief,
                       const struct dlk_pending *pending, const struct dlk_reply *reply)
{
    uint64_t end_ns = lease_end_ns(book, pending, reply);
    belief->entry = reply->entry;
    belief->epoch = book->epoch;
    belief->echo_id = 0; /* the repetition came before, and found the hold */
    belief->unverified = false;
    take_counts(belief, reply);
    if (belief->leased && end_ns > belief->end_ns) {
        belief->end_ns = end_ns;
    }
}

static void take_extension(struct dlk_book *book, struct dlk_hold *hold,
                           const struct dlk_pending *pending, const struct dlk_reply *reply,
                           uint64_t now_ns)
{
    const struct dlk_call *call = pending->call;
    dlk_belief_extend(book, &hold->now, pending, reply);
    if (hold->kind == DLK_KIND_RW) {
        take_asked_end(&hold->now, pending, call->lease_ms);
    }
    if (call->verb != DLK_VERB_EXTEND && call->renew != 0 && hold->now.leased
        && call->lease_ms > hold->now.renew_ms) {
        hold->now.renew_ms = call->lease_ms;
    }
    dlk_hold_confirm(book, hold, now_ns);
}

/* ---- The status of a call ---- */

int32_t dlk_status_of_refusal(uint32_t result)
{
    switch (result) {
    case DLK_RESULT_NO_LOCK:
        return DLK_STATUS_LOCK_NOT_GET;
    case DLK_RESULT_NO_OBJECT:
        return DLK_STATUS_OBJECT_NOT_GET;
    case DLK_RESULT_NOT_READY:
        return DLK_STATUS_NOT_READY;
    case DLK_RESULT_NO_RESOURCE:
        return DLK_STATUS_SERVER_NO_RESOURCE;
    case DLK_RESULT_INVALID:
        return DLK_STATUS_EINVAL;
    case DLK_RESULT_REMOVED:
        return DLK_STATUS_CLIENT_REMOVED_BY_SERVER;
    default:
        return DLK_STATUS_BAD_RESPONSE;
    }
}

static bool nothing_done(uint32_t result)
{
    return result == DLK_RESULT_NOT_READY || result == DLK_RESULT_NO_RESOURCE
           || result == DLK_RESULT_INVALID;
}

static int32_t end_acquire(struct dlk_book *book, struct dlk_hold *hold,
                           const struct dlk_pending *pending, const struct dlk_reply *reply)
{
    switch (reply->result) {
    case DLK_RESULT_GRANTED:
        take_grant(book, hold, pending, reply);
        return DLK_STATUS_SUCCESS;
    case DLK_RESULT_TICKETED:
        take_ticket(book, hold, pending, reply);
        return DLK_STATUS_EAGAIN;
    case DLK_RESULT_BUSY:
    case DLK_RESULT_TIMED_OUT:
    case DLK_RESULT_PASSED:
        dlk_belief_end(book, hold);
        return DLK_STATUS_FAIL;
    case DLK_RESULT_DEADLOCK:
        pending->call->value = reply->value;
        dlk_belief_end(book, hold);
        return DLK_STATUS_DEADLOCK;
    default:
        return dlk_status_of_refusal(reply->result);
    }
}

static int32_t end_release(struct dlk_book *book, struct dlk_hold *hold,
                           const struct dlk_pending *pending, const struct dlk_reply *reply)
{
    switch (reply->result) {
    case DLK_RESULT_RELEASED:
    case DLK_RESULT_DONE:
        take_counts(&hold->now, reply);
        return DLK_STATUS_SUCCESS;
    case DLK_RESULT_NOT_HELD:
        return DLK_STATUS_FAIL;
    case DLK_RESULT_NO_LOCK:
        return pending->before.state == DLK_ENTRY_HELD ? DLK_STATUS_FAIL
                                                       : DLK_STATUS_LOCK_NOT_GET;
    default:
        if (nothing_done(reply->result)) {
            hold->now = pending->before;
            if (pending->broken) {
                dlk_hold_break(book, hold);
            }
        }
        return dlk_status_of_refusal(reply->result);
    }
}

static int32_t end_extend(struct dlk_book *book, struct dlk_hold *hold,
                          const struct dlk_pending *pending, const struct dlk_reply *reply,
                          uint64_t now_ns)
{
    if (hold->now.state != DLK_ENTRY_HELD || hold->now.token != pending->request.token) {
        pending->call->result = hold->lost; /* meanwhile: a notice, or an answer to a renewal */
        hold->refused = false;
        return DLK_STATUS_FAIL;
    }
    switch (reply->result) {
    case DLK_RESULT_EXTENDED:
        take_extension(book, hold, pending, reply, now_ns);
        if (pending->call->verb == DLK_VERB_EXTEND) {
            return DLK_STATUS_SUCCESS;
        }
        hold->now.count++;
        return DLK_STATUS_ALREADY_LOCKED;
    case DLK_RESULT_NOT_HELD:
    case DLK_RESULT_NO_LOCK:
        dlk_hold_lose(book, hold, reply->result);
        return DLK_STATUS_FAIL;
    default:
        return dlk_status_of_refusal(reply->result);
    }
}

/* What the answer to somebody who has meanwhile dropped the lock comes to: a grant is given back,
 * and what the server did not take back now it must take later. */
static int32_t end_gone(struct dlk_book *book, const struct dlk_hold *hold,
                        const struct dlk_request *asked, bool repeated,
                        const struct dlk_reply *reply)
{
    bool releases = asked->op == DLK_OP_UNLOCK || asked->op == DLK_OP_GIVE_UP;
    bool granted = reply->result == DLK_RESULT_GRANTED;
    bool ticketed = reply->result == DLK_RESULT_TICKETED;
    if (repeated && (granted || ticketed)) {
        dlk_pending_cancel(book, asked, asked->request_id);
    } else if (granted) {
        dlk_pending_undo(book, hold, DLK_OP_UNLOCK, reply->token, reply->entry);
    } else if (ticketed) {
        dlk_pending_undo(book, hold, DLK_OP_GIVE_UP, reply->token, reply->entry);
    } else if (releases && nothing_done(reply->result)) {
        dlk_pending_undo(book, hold, asked->op, asked->token, DLK_NONE);
    }
    return DLK_STATUS_LOCK_NOT_GET;
}

static int32_t status_of_reply(struct dlk_book *book, struct dlk_hold *hold,
                               const struct dlk_pending *pending, const struct dlk_reply *reply,
                               uint64_t now_ns)
{
    switch (pending->request.op) {
    case DLK_OP_LOCK:
    case DLK_OP_REDEEM:
        return end_acquire(book, hold, pending, reply);
    case DLK_OP_UNLOCK:
    case DLK_OP_GIVE_UP:
        return end_release(book, hold, pending, reply);
    case DLK_OP_EXTEND:
        return end_extend(book, hold, pending, reply, now_ns);
    case DLK_OP_PING:
        return reply->result == DLK_RESULT_DONE ? DLK_STATUS_SUCCESS
                                                : dlk_status_of_refusal(reply->result);
    default:
        return dlk_object_reply(book, pending->call, reply, now_ns);
    }
}

/* The call is over and its request's slot free; the hold is free for the next operation. */
struct dlk_call *dlk_call_finish(struct dlk_book *book, struct dlk_call *call,
                                 struct dlk_hold *hold, int32_t status, uint64_t now_ns)
{
    if (hold != NULL) {
        dlk_hold_release(book, hold);
    }
    dlk_book_show(book, hold != NULL && !hold->gone ? hold : NULL, call, now_ns);
    dlk_call_end(call, status);
    return call;
}

/* It waits in the server's queue: from now on its own wait decides how long an answer may take. */
static void queued(struct dlk_book *book, struct dlk_pending *pending)
{
    if (pending->hold == DLK_NONE || pending->request.wait_ms == 0) {
        return;
    }
    uint64_t wait_ms = pending->request.wait_ms;
    book->holds[pending->hold].waits = true;
    pending->call->deadline_ns =
        wait_ms == DLK_WAIT_FOREVER
            ? DLK_NEVER_NS
            : pending->sent_ns + (wait_ms + book->reply_timeout_ms) * NS_PER_MS;
}

/* The engine answers what waited in its queue as LOCK, whether it was asked as LOCK or REDEEM. */
static bool answers(const struct dlk_pending *pending, const struct dlk_reply *reply)
{
    return reply->op == pending->request.op
           || (pending->request.op == DLK_OP_REDEEM && reply->op == DLK_OP_LOCK);
}

/* Does it answer a request that is under way, to this client, in this epoch? */
static bool expected(const struct dlk_book *book, uint32_t index, const struct dlk_reply *reply)
{
    return index < book->pending_high && book->pending[index].state != DLK_OP_STATE_FREE
           && book->pending[index].request.request_id == reply->request_id
           && answers(&book->pending[index], reply) && reply->session == book->client_id
           && reply->epoch == book->epoch;
}

/* A repetition that the server has not read yet may ask anew for what it has ended: then it is to
 * be cancelled, after it. What was granted, or given a ticket, meanwhile is the client's; nothing
 * is cancelled before that has ended. The request id, or 0. */
static uint32_t echo_of(const struct dlk_pending *pending, const struct dlk_reply *reply)
{
    if (pending->echo_id != 0) {
        return nothing_done(reply->result) ? 0 : pending->echo_id;
    }
    bool taken =
        reply->result == DLK_RESULT_GRANTED || reply->result == DLK_RESULT_TICKETED;
    return pending->resent_ns != 0 && !taken ? pending->request.request_id : 0;
}

/* The request is answered for good; its slot is free. */
static int32_t end_request(struct dlk_book *book, uint32_t index, struct dlk_hold *hold,
                           const struct dlk_reply *reply, uint64_t now_ns)
{
    const struct dlk_pending *pending = &book->pending[index];
    const struct dlk_request asked = pending->request;
    bool repeated = pending->resent_ns != 0;
    uint32_t echo_id = echo_of(pending, reply);
    int32_t status;
    if (hold != NULL && hold->gone) {
        dlk_pending_free(book, index);
        status = end_gone(book, hold, &asked, repeated, reply);
    } else {
        status = status_of_reply(book, hold, pending, reply, now_ns);
        dlk_pending_free(book, index);
    }
    if (echo_id != 0) {
        dlk_pending_cancel(book, &asked, echo_id);
    }
    return status;
}

struct dlk_call *dlk_book_reply(struct dlk_book *book, const struct dlk_reply *reply,
                                uint64_t now_ns)
{
    uint32_t index = reply->request_id % DLK_INFLIGHT_MAX;
    if (!expected(book, index, reply)) {
        book->ignored += !dlk_book_noticed(book, reply);
        return NULL;
    }
    struct dlk_pending *pending = &book->pending[index];
    if (reply->result == DLK_RESULT_QUEUED && pending->resent_ns != 0) {
        pending->sent_ns = pending->resent_ns; /* the server has it, and counts from it */
        pending->resent_ns = 0;
    }
    if ((reply->reserved & DLK_REPLY_ONE_SIDED) == 0) {
        dlk_book_renew(book, pending->sent_ns, reply->result, now_ns);
    }
    if (pending->state == DLK_OP_STATE_RENEWAL) {
        dlk_renewal_reply(book, index, reply, now_ns);
        return NULL;
    }
    if (!dlk_pending_of_call(pending)) {
        dlk_pending_reply(book, index, reply);
        return NULL;
    }
    if (pending->kept && dlk_wait_goes_on(book, index, reply, now_ns)) {
        return NULL;
    }
    if (reply->result == DLK_RESULT_QUEUED) {
        queued(book, pending);
        return NULL;
    }
    struct dlk_call *call = pending->call;
    struct dlk_hold *hold = pending->hold != DLK_NONE ? &book->holds[pending->hold] : NULL;
    call->result = reply->result;
    int32_t status = end_request(book, index, hold, reply, now_ns);
    if (hold != NULL && reply->result == DLK_RESULT_NO_LOCK) {
        dlk_hold_forget(book, hold);
    }
    return dlk_call_finish(book, call, hold, status, now_ns);
}
