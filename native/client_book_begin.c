/*
 * What a call asks: decided here at once, put off, or turned into a request. The rules of
 * docs/client.md about local state, in the order in which they are looked at. It may not do I/O or
 * read a clock.
 */
#include "client_book.h"

enum { NS_PER_MS = 1000000 };

void dlk_call_end(struct dlk_call *call, int32_t status)
{
    call->status = status;
    call->phase = DLK_PHASE_ENDED;
}

void dlk_book_prepare(struct dlk_call *call)
{
    call->status = DLK_STATUS_PENDING;
    call->result = DLK_RESULT_COUNT;
    call->value = 0;
    call->sent = 0;
    call->slot = DLK_NONE;
    call->phase = DLK_PHASE_NEW;
    call->deadline_ns = 0;
    call->waiter = NULL;
}

static uint64_t after_ms(uint64_t now_ns, uint32_t ms)
{
    return ms == DLK_WAIT_FOREVER ? DLK_NEVER_NS : now_ns + (uint64_t)ms * NS_PER_MS;
}

enum dlk_turn dlk_call_decide(const struct dlk_book *book, const struct dlk_hold *hold,
                              struct dlk_call *call, int32_t status, uint64_t now_ns)
{
    dlk_book_show(book, hold, call, now_ns);
    dlk_call_end(call, status);
    return DLK_TURN_DONE;
}

/* Put off until something else has ended; a `lock` for as long as it wants to wait. */
enum dlk_turn dlk_book_put_off(const struct dlk_book *book, struct dlk_call *call,
                               uint64_t now_ns)
{
    if (call->phase != DLK_PHASE_BLOCKED) {
        call->phase = DLK_PHASE_BLOCKED;
        call->deadline_ns = call->verb == DLK_VERB_LOCK && call->wait_ms != 0
                                ? after_ms(now_ns, call->wait_ms)
                                : after_ms(now_ns, book->reply_timeout_ms);
    }
    return DLK_TURN_LATER;
}

/* Of a call on a lock; NULL: none. */
static const struct dlk_hold *hold_of(const struct dlk_book *book, const struct dlk_call *call)
{
    bool of_lock = call->verb >= DLK_VERB_TRYLOCK && call->verb <= DLK_VERB_EXTEND;
    uint32_t index =
        of_lock ? dlk_map_get(&book->locks, call->lock_id, call->owner) : DLK_NONE;
    return index != DLK_NONE ? &book->holds[index] : NULL;
}

void dlk_book_expire_blocked(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns)
{
    const struct dlk_hold *hold = hold_of(book, call);
    int32_t status = DLK_STATUS_BAD_RESPONSE;
    if (hold != NULL && call->verb == DLK_VERB_LOCK && call->wait_ms != 0) {
        status = hold->kind == DLK_KIND_FAIR ? DLK_STATUS_EAGAIN : DLK_STATUS_FAIL;
    }
    dlk_call_decide(book, hold, call, status, now_ns);
}

void dlk_book_lose_blocked(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns)
{
    dlk_call_decide(book, hold_of(book, call), call, DLK_STATUS_BAD_RESPONSE, now_ns);
}

/* What a `lock` that was put off has still to wait. */
static uint32_t wait_left_ms(const struct dlk_call *call, uint64_t now_ns)
{
    if (call->verb != DLK_VERB_LOCK) {
        return 0;
    }
    if (call->phase != DLK_PHASE_BLOCKED || call->wait_ms == DLK_WAIT_FOREVER
        || call->wait_ms == 0) {
        return call->wait_ms;
    }
    return call->deadline_ns > now_ns ? (uint32_t)((call->deadline_ns - now_ns) / NS_PER_MS) : 0;
}

uint32_t dlk_call_ask(struct dlk_book *book, struct dlk_call *call, uint32_t op, uint32_t slot,
                      bool waits, uint64_t now_ns)
{
    uint32_t index = dlk_pending_new(book, dlk_pending_kept(waits));
    if (index == DLK_NONE) {
        return DLK_NONE;
    }
    struct dlk_pending *pending = &book->pending[index];
    uint32_t request_id = pending->request.request_id;
    pending->request = (struct dlk_request){
        .request_id = request_id,
        .op = (uint8_t)op,
        .mode = (uint8_t)call->mode,
        .session = book->client_id,
        .lock_id = call->lock_id,
        .slot = slot,
        .entry = DLK_NONE,
        .owner = call->owner,
    };
    pending->call = call;
    pending->sent_ns = now_ns;
    pending->hold = DLK_NONE;
    call->slot = index;
    return index;
}

enum dlk_turn dlk_call_sent(const struct dlk_book *book, struct dlk_call *call, uint64_t now_ns,
                            const struct dlk_request **request)
{
    call->phase = DLK_PHASE_SENT;
    call->deadline_ns = after_ms(now_ns, book->reply_timeout_ms);
    *request = &book->pending[call->slot].request;
    return DLK_TURN_SEND;
}

static enum dlk_turn ask_about_hold(struct dlk_book *book, struct dlk_hold *hold,
                                    struct dlk_call *call, uint32_t op, uint64_t now_ns,
                                    const struct dlk_request **request)
{
    bool acquires = op == DLK_OP_LOCK || op == DLK_OP_REDEEM;
    uint32_t wait_ms = acquires ? wait_left_ms(call, now_ns) : 0;
    uint32_t index = dlk_call_ask(book, call, op, hold->slot, wait_ms != 0, now_ns);
    if (index == DLK_NONE) {
        return dlk_book_put_off(book, call, now_ns);
    }
    struct dlk_pending *pending = &book->pending[index];
    struct dlk_request *asked = &pending->request;
    bool leases = hold->kind != DLK_KIND_RW;
    asked->entry = hold->now.entry;
    asked->token = hold->now.token;
    if (acquires) {
        uint32_t flags = call->flags & DLK_FLAG_DEADLOCK;
        flags |= call->flags & (leases ? DLK_FLAG_FINAL_EXPIRY : 0u);
        flags |= hold->kind == DLK_KIND_FAIR ? call->flags & DLK_FLAG_TICKET : 0u;
        flags |= op == DLK_OP_REDEEM ? DLK_FLAG_TICKET : 0u;
        asked->flags = (uint16_t)flags;
        asked->wait_ms = wait_ms;
        pending->kept = book->keep_waits && op == DLK_OP_LOCK && wait_ms != 0;
    }
    if (pending->kept) {
        pending->wait_until_ns = after_ms(now_ns, wait_ms);
        pending->order = book->waits_begun++;
        pending->stamp = 0;
        pending->epoch = book->epoch;
        pending->parked = false;
        pending->accepted = false;
        pending->fresh = false;
    }
    if (acquires || op == DLK_OP_EXTEND) {
        asked->lease_ms = leases ? call->lease_ms : 0;
    } else {
        /* The value goes before the request does: a lost reply can never bring it back. */
        asked->mode = hold->now.mode;
        call->value = dlk_book_left_ms(book, &hold->now, now_ns);
        pending->before = hold->now;
        pending->echo_id = hold->now.echo_id;
        dlk_belief_reset(&hold->now);
        dlk_hold_watch(book, hold);
    }
    pending->hold = (uint32_t)(hold - book->holds);
    hold->running = index;
    return dlk_call_sent(book, call, now_ns, request);
}

static enum dlk_turn begin_held(struct dlk_book *book, struct dlk_hold *hold,
                                struct dlk_call *call, uint64_t now_ns,
                                const struct dlk_request **request)
{
    if (call->verb == DLK_VERB_UNLOCK) {
        if (hold->now.count > 1) {
            hold->now.count--;
            return dlk_call_decide(book, hold, call, DLK_STATUS_ALREADY_LOCKED, now_ns);
        }
        return ask_about_hold(book, hold, call, DLK_OP_UNLOCK, now_ns, request);
    }
    bool other = call->verb == DLK_VERB_EXTEND && call->operand != 0
                 && call->operand != hold->now.token;
    if (call->mode != hold->now.mode || other) {
        return dlk_call_decide(book, hold, call, DLK_STATUS_EINVAL, now_ns);
    }
    if (call->verb != DLK_VERB_EXTEND && hold->kind == DLK_KIND_SEMAPHORE) {
        /* Each acquire is a slot, and a slot has an owner of its own. */
        return dlk_call_decide(book, hold, call, DLK_STATUS_EINVAL, now_ns);
    }
    if (hold->kind == DLK_KIND_RW && !hold->now.unverified) {
        uint64_t end_ns = after_ms(now_ns, call->lease_ms);
        hold->now.count++;
        if (call->lease_ms != 0 && end_ns > hold->now.asked_end_ns) {
            hold->now.asked_end_ns = end_ns;
        }
        return dlk_call_decide(book, hold, call, DLK_STATUS_ALREADY_LOCKED, now_ns);
    }
    return ask_about_hold(book, hold, call, DLK_OP_EXTEND, now_ns, request);
}

static enum dlk_turn begin_free(struct dlk_book *book, struct dlk_hold *hold,
                                struct dlk_call *call, uint64_t now_ns,
                                const struct dlk_request **request)
{
    if (hold->lost != 0 && (call->verb == DLK_VERB_UNLOCK || call->verb == DLK_VERB_EXTEND)) {
        call->result = hold->lost;
    }
    switch (call->verb) {
    case DLK_VERB_UNLOCK:
        return dlk_call_decide(book, hold, call, DLK_STATUS_ALREADY_UNLOCKED, now_ns);
    case DLK_VERB_EXTEND:
        return dlk_call_decide(book, hold, call, DLK_STATUS_EINVAL, now_ns);
    default:
        return ask_about_hold(book, hold, call, DLK_OP_LOCK, now_ns, request);
    }
}

static enum dlk_turn begin_ticket(struct dlk_book *book, struct dlk_hold *hold,
                                  struct dlk_call *call, uint64_t now_ns,
                                  const struct dlk_request **request)
{
    if (call->verb == DLK_VERB_UNLOCK) {
        return ask_about_hold(book, hold, call, DLK_OP_GIVE_UP, now_ns, request);
    }
    if (call->verb == DLK_VERB_EXTEND) {
        return dlk_call_decide(book, hold, call, DLK_STATUS_EINVAL, now_ns);
    }
    if (call->mode != hold->now.mode) {
        return dlk_call_decide(book, hold, call, DLK_STATUS_ETICKET, now_ns);
    }
    return ask_about_hold(book, hold, call, DLK_OP_REDEEM, now_ns, request);
}

/* Another operation of the same owner runs on the hold. One that waits in the server's queue may
 * take long: only another `lock` waits for it, the rest is answered as if nothing were held. */
static enum dlk_turn begin_behind(const struct dlk_book *book, const struct dlk_hold *hold,
                                  struct dlk_call *call, uint64_t now_ns)
{
    if (!hold->waits || (call->verb == DLK_VERB_LOCK && call->wait_ms != 0)) {
        return dlk_book_put_off(book, call, now_ns);
    }
    int32_t status = DLK_STATUS_EINVAL;
    if (call->verb == DLK_VERB_TRYLOCK || call->verb == DLK_VERB_LOCK) {
        status = hold->kind == DLK_KIND_FAIR ? DLK_STATUS_EAGAIN : DLK_STATUS_FAIL;
    } else if (call->verb == DLK_VERB_UNLOCK) {
        status = DLK_STATUS_ALREADY_UNLOCKED;
    }
    return dlk_call_decide(book, hold, call, status, now_ns);
}

/* Wrong whatever is held. */
static bool impossible(const struct dlk_book *book, const struct dlk_hold *hold,
                       const struct dlk_call *call)
{
    if (call->verb == DLK_VERB_UNLOCK) {
        return false;
    }
    bool no_shared = hold->kind == DLK_KIND_ATOMIC || hold->kind == DLK_KIND_SEMAPHORE;
    return call->mode >= DLK_MODE_COUNT || (no_shared && call->mode == DLK_MODE_SHARED)
           || (hold->kind == DLK_KIND_RW && call->verb == DLK_VERB_EXTEND)
           || (hold->kind != DLK_KIND_RW && call->lease_ms > book->max_lease_ms);
}

/* Its claim was refused, or the primary does not know the lock. This is the call that hears so. */
static enum dlk_turn begin_refused(struct dlk_book *book, struct dlk_hold *hold,
                                   struct dlk_call *call, uint64_t now_ns)
{
    int32_t status = DLK_STATUS_LOCK_NOT_GET;
    if (hold->refused) {
        status = DLK_STATUS_FAIL;
        call->result = hold->lost;
        hold->refused = false;
    }
    dlk_call_decide(book, hold, call, status, now_ns);
    if (hold->unknown) {
        dlk_hold_forget(book, hold);
    }
    return DLK_TURN_DONE;
}

static enum dlk_turn begin_lock(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns,
                                const struct dlk_request **request)
{
    uint32_t index = dlk_map_get(&book->locks, call->lock_id, call->owner);
    if (index == DLK_NONE) {
        return dlk_call_decide(book, NULL, call, DLK_STATUS_LOCK_NOT_GET, now_ns);
    }
    struct dlk_hold *hold = &book->holds[index];
    if (call->verb == DLK_VERB_LOOK) {
        return dlk_call_decide(book, hold, call, DLK_STATUS_SUCCESS, now_ns);
    }
    if (hold->refused || hold->unknown) {
        return begin_refused(book, hold, call, now_ns);
    }
    if (impossible(book, hold, call)) {
        return dlk_call_decide(book, hold, call, DLK_STATUS_EINVAL, now_ns);
    }
    if (hold->running != DLK_NONE) {
        return begin_behind(book, hold, call, now_ns);
    }
    switch (hold->now.state) {
    case DLK_ENTRY_HELD:
        return begin_held(book, hold, call, now_ns, request);
    case DLK_ENTRY_TICKET:
        return begin_ticket(book, hold, call, now_ns, request);
    default:
        return begin_free(book, hold, call, now_ns, request);
    }
}

static enum dlk_turn begin_ping(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns,
                                const struct dlk_request **request)
{
    uint32_t index = dlk_call_ask(book, call, DLK_OP_PING, DLK_NONE, false, now_ns);
    if (index == DLK_NONE) {
        return dlk_book_put_off(book, call, now_ns);
    }
    struct dlk_request *asked = &book->pending[index].request;
    asked->mode = DLK_MODE_EXCLUSIVE;
    asked->lock_id = 0;
    asked->owner = 0;
    asked->slot = 0;
    return dlk_call_sent(book, call, now_ns, request);
}

enum dlk_turn dlk_book_begin(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns,
                             const struct dlk_request **request)
{
    switch (call->verb) {
    case DLK_VERB_TRYLOCK:
    case DLK_VERB_LOCK:
    case DLK_VERB_UNLOCK:
    case DLK_VERB_EXTEND:
    case DLK_VERB_LOOK:
        return begin_lock(book, call, now_ns, request);
    case DLK_VERB_FETCH_ADD:
    case DLK_VERB_COMPARE_SWAP:
    case DLK_VERB_READ:
        return dlk_object_begin(book, call, now_ns, request);
    case DLK_VERB_PING:
        return begin_ping(book, call, now_ns, request);
    default:
        return dlk_call_decide(book, NULL, call, DLK_STATUS_EINVAL, now_ns);
    }
}
