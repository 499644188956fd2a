/*
 * The client's book where time and order matter: ends of leases and sessions, serialised holds,
 * claims, debts, requests that are cancelled or answered late. No I/O, no clock.
 */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "client_book.h"

#define MS ((uint64_t)1000000)
#define T0 ((uint64_t)1000000000000)
#define S(name) DLK_STATUS_##name
#define R(name) DLK_RESULT_##name
#define TRY DLK_VERB_TRYLOCK
#define WAIT DLK_VERB_LOCK
#define UNLOCK DLK_VERB_UNLOCK
#define EXTEND DLK_VERB_EXTEND

enum { LOCK = 7, OWNER = 99, CLIENT = 42, EPOCH = 3, TTL_MS = 10000, TIMEOUT_MS = 5000 };

static struct dlk_link link_of(uint32_t epoch)
{
    return (struct dlk_link){.client_id = CLIENT,
                             .epoch = epoch,
                             .session_ttl_ms = TTL_MS,
                             .max_lease_ms = 3600000};
}

static struct dlk_book new_book(uint32_t kind)
{
    struct dlk_book book;
    struct dlk_link link = link_of(EPOCH);
    dlk_book_init(&book, TIMEOUT_MS);
    dlk_book_attach(&book, &link, T0);
    assert(dlk_book_add_lock(&book, LOCK, 5, kind, OWNER) == S(SUCCESS));
    return book;
}

static struct dlk_call ask_for(uint32_t verb, uint32_t lease_ms, uint32_t wait_ms)
{
    struct dlk_call call = {.verb = verb,
                            .lock_id = LOCK,
                            .owner = OWNER,
                            .lease_ms = lease_ms,
                            .wait_ms = wait_ms,
                            .flags = DLK_FLAG_TICKET};
    dlk_book_prepare(&call);
    return call;
}

static struct dlk_request begin(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns)
{
    const struct dlk_request *request = NULL;
    assert(dlk_book_begin(book, call, now_ns, &request) == DLK_TURN_SEND);
    return *request;
}

static enum dlk_turn turn_of(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns)
{
    const struct dlk_request *request = NULL;
    return dlk_book_begin(book, call, now_ns, &request);
}

static struct dlk_reply answer_to(const struct dlk_request *request, uint32_t result)
{
    return (struct dlk_reply){
        .request_id = request->request_id,
        .op = request->op,
        .result = (uint16_t)result,
        .session = CLIENT,
        .epoch = EPOCH,
        .token = result == R(TICKETED) || result == R(QUEUED) ? 500 : 1000,
        .lease_ms = request->lease_ms,
        .entry = 17,
    };
}

static struct dlk_call *reply(struct dlk_book *book, const struct dlk_request *request,
                              uint32_t result, uint64_t now_ns)
{
    struct dlk_reply answer = answer_to(request, result);
    return dlk_book_reply(book, &answer, now_ns);
}

static int run(struct dlk_book *book, struct dlk_call *call, uint32_t result, uint64_t now_ns)
{
    struct dlk_request request = begin(book, call, now_ns);
    assert(reply(book, &request, result, now_ns) == call);
    return call->status;
}

static const struct dlk_belief *belief_of(const struct dlk_book *book)
{
    return &book->holds[dlk_map_get(&book->locks, LOCK, OWNER)].now;
}

static const struct dlk_request *next_debt(struct dlk_book *book)
{
    uint32_t cursor = 0;
    return dlk_book_next_unsent(book, &cursor, T0);
}

/* ---- Time ---- */

static void test_lease_end(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(TRY, 10000, 0);
    struct dlk_request request = begin(&book, &call, T0 + 100 * MS);
    struct dlk_reply answer = answer_to(&request, R(GRANTED));
    answer.held_us = 2000000;
    book.unix_offset_ns = 5000 * 1000 * MS;
    assert(dlk_book_reply(&book, &answer, T0 + 9000 * MS) == &call);
    /* send + (held + lease), less 0.1 %; when the reply came does not matter. */
    assert(belief_of(&book)->end_ns == T0 + 100 * MS + 12000 * MS - 12 * MS);
    assert(call.left_ms == 12088 - 9000);
    assert(call.time_out == (T0 + 12088 * MS + book.unix_offset_ns) / (1000 * MS));
    /* An extension that says less than is known takes nothing away; one that says more counts
     * from when it was asked. */
    struct dlk_call extend = ask_for(EXTEND, 1, 0);
    assert(run(&book, &extend, R(EXTENDED), T0 + 200 * MS) == S(SUCCESS));
    assert(belief_of(&book)->end_ns == T0 + 12088 * MS);
    extend = ask_for(EXTEND, 20000, 0);
    request = begin(&book, &extend, T0 + 300 * MS);
    answer = answer_to(&request, R(EXTENDED));
    assert(dlk_book_reply(&book, &answer, T0 + 4000 * MS) == &extend);
    assert(belief_of(&book)->end_ns == T0 + 300 * MS + 20000 * MS - 20 * MS);
    struct dlk_call look = ask_for(DLK_VERB_LOOK, 0, 0);
    assert(turn_of(&book, &look, T0 + 30000 * MS) == DLK_TURN_DONE);
    assert(look.status == S(SUCCESS) && look.left_ms == 0 && look.token == 1000);
    dlk_book_free(&book);
}

static void test_hold_by_session(void)
{
    struct dlk_book book = new_book(DLK_KIND_RW);
    struct dlk_call call = ask_for(TRY, 3000, 0);
    assert(run(&book, &call, R(GRANTED), T0) == S(SUCCESS));
    assert(call.left_ms == TTL_MS - TTL_MS / 1000); /* the session, not what was asked for */
    assert(call.time_out == (T0 + 3000 * MS) / (1000 * MS));
    assert(!belief_of(&book)->leased);
    dlk_book_free(&book);
    book = new_book(DLK_KIND_ATOMIC);
    call = ask_for(TRY, 0, 0);
    assert(run(&book, &call, R(GRANTED), T0) == S(SUCCESS));
    assert(call.left_ms == TTL_MS - TTL_MS / 1000 && call.time_out == 0);
    dlk_book_free(&book);
}

static void test_session(void)
{
    static const uint32_t renewing[] = {R(GRANTED), R(BUSY), R(TICKETED), R(TIMED_OUT),
                                        R(NO_LOCK)};
    static const uint32_t not_renewing[] = {R(NOT_READY), R(NO_RESOURCE), R(INVALID),
                                            R(STOPPING)};
    for (size_t i = 0; i < sizeof(renewing) / sizeof(renewing[0]); i++) {
        struct dlk_book book = new_book(DLK_KIND_FAIR);
        struct dlk_call call = ask_for(TRY, 0, 0);
        run(&book, &call, renewing[i], T0 + 1000 * MS);
        assert(dlk_book_session_left_ms(&book, T0 + 1000 * MS) == TTL_MS - TTL_MS / 1000);
        dlk_book_free(&book);
    }
    for (size_t i = 0; i < sizeof(not_renewing) / sizeof(not_renewing[0]); i++) {
        struct dlk_book book = new_book(DLK_KIND_FAIR);
        struct dlk_call call = ask_for(TRY, 0, 0);
        run(&book, &call, not_renewing[i], T0 + 1000 * MS);
        assert(dlk_book_session_left_ms(&book, T0 + 1000 * MS) == TTL_MS - TTL_MS / 1000 - 1000);
        dlk_book_free(&book);
    }
    struct dlk_book book = new_book(DLK_KIND_FAIR);
    struct dlk_call call = ask_for(TRY, 0, 0);
    assert(run(&book, &call, R(REMOVED), T0) == S(CLIENT_REMOVED_BY_SERVER));
    assert(dlk_book_session_left_ms(&book, T0) == 0);
    dlk_book_free(&book);
}

/* A slow answer renews from when its request was sent, and never shortens what is known. */
static void test_late_answer_renews_little(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call ping = {.verb = DLK_VERB_PING};
    struct dlk_call second = {.verb = DLK_VERB_PING};
    dlk_book_prepare(&ping);
    dlk_book_prepare(&second);
    struct dlk_request slow = begin(&book, &ping, T0 + 1000 * MS);
    struct dlk_request fast = begin(&book, &second, T0 + 5000 * MS);
    assert(reply(&book, &fast, R(DONE), T0 + 5001 * MS) == &second);
    assert(second.status == S(SUCCESS) && book.renewed_ns == T0 + 5000 * MS);
    assert(reply(&book, &slow, R(DONE), T0 + 8000 * MS) == &ping);
    assert(book.renewed_ns == T0 + 5000 * MS);
    dlk_book_free(&book);
}

static void test_strangers_are_ignored(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(TRY, 0, 0);
    struct dlk_request request = begin(&book, &call, T0 + 50 * MS);
    struct dlk_reply good = answer_to(&request, R(GRANTED));
    struct dlk_reply bad[5] = {good, good, good, good, good};
    bad[0].session = CLIENT + 1;
    bad[1].epoch = EPOCH - 1;
    bad[2].request_id += DLK_INFLIGHT_MAX; /* another generation */
    bad[3].request_id = 16000;             /* no such slot */
    bad[4].op = DLK_OP_EXTEND;
    for (int i = 0; i < 5; i++) {
        assert(dlk_book_reply(&book, &bad[i], T0) == NULL);
    }
    assert(book.ignored == 5 && call.phase == DLK_PHASE_SENT && book.renewed_ns == T0);
    assert(dlk_book_reply(&book, &good, T0) == &call);
    assert(dlk_book_reply(&book, &good, T0) == NULL && book.ignored == 6);
    dlk_book_free(&book);
}

/* ---- One operation a hold ---- */

static void test_serialised(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call first = ask_for(TRY, 0, 0);
    struct dlk_call behind = ask_for(TRY, 0, 0);
    struct dlk_request request = begin(&book, &first, T0);
    assert(turn_of(&book, &behind, T0) == DLK_TURN_LATER && behind.phase == DLK_PHASE_BLOCKED);
    assert(behind.deadline_ns == T0 + TIMEOUT_MS * MS);
    assert(reply(&book, &request, R(GRANTED), T0) == &first);
    assert(run(&book, &behind, R(EXTENDED), T0) == S(ALREADY_LOCKED) && behind.count == 2);
    dlk_book_free(&book);
}

static void test_behind_a_waiter(void)
{
    struct dlk_book book = new_book(DLK_KIND_FAIR);
    struct dlk_call waiter = ask_for(WAIT, 0, 60000);
    struct dlk_request request = begin(&book, &waiter, T0);
    assert(waiter.deadline_ns == T0 + TIMEOUT_MS * MS);
    assert(reply(&book, &request, R(QUEUED), T0) == NULL);
    assert(waiter.deadline_ns == T0 + (60000 + TIMEOUT_MS) * MS);
    struct dlk_call call = ask_for(TRY, 0, 0);
    assert(turn_of(&book, &call, T0) == DLK_TURN_DONE && call.status == S(EAGAIN));
    call = ask_for(UNLOCK, 0, 0);
    assert(turn_of(&book, &call, T0) == DLK_TURN_DONE && call.status == S(ALREADY_UNLOCKED));
    call = ask_for(EXTEND, 0, 0);
    assert(turn_of(&book, &call, T0) == DLK_TURN_DONE && call.status == S(EINVAL));
    /* Another lock waits here, and asks the server for no longer than it has left. */
    struct dlk_call second = ask_for(WAIT, 0, 3000);
    assert(turn_of(&book, &second, T0 + 100 * MS) == DLK_TURN_LATER);
    assert(second.deadline_ns == T0 + 3100 * MS);
    assert(reply(&book, &request, R(TICKETED), T0) == &waiter && waiter.status == S(EAGAIN));
    request = begin(&book, &second, T0 + 1100 * MS);
    assert(request.op == DLK_OP_REDEEM && request.wait_ms == 2000);
    assert(reply(&book, &request, R(GRANTED), T0) == &second && second.status == S(SUCCESS));
    dlk_book_free(&book);

    book = new_book(DLK_KIND_ATOMIC);
    waiter = ask_for(WAIT, 0, DLK_WAIT_FOREVER);
    request = begin(&book, &waiter, T0);
    reply(&book, &request, R(QUEUED), T0);
    assert(waiter.deadline_ns == DLK_NEVER_NS);
    call = ask_for(TRY, 0, 0);
    assert(turn_of(&book, &call, T0) == DLK_TURN_DONE && call.status == S(FAIL));
    second = ask_for(WAIT, 0, 3000);
    assert(turn_of(&book, &second, T0) == DLK_TURN_LATER);
    dlk_book_expire_blocked(&book, &second, T0 + 3000 * MS);
    assert(second.phase == DLK_PHASE_ENDED && second.status == S(FAIL));
    dlk_book_free(&book);
}

/* What an unlock clears cannot come back by a claim while its answer is awaited. */
static void test_unlock_clears_first(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(TRY, 5000, 0);
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    struct dlk_claim claim;
    run(&book, &call, R(GRANTED), T0);
    struct dlk_request request = begin(&book, &unlock, T0);
    assert(dlk_book_claims(&book, &claim, 1, T0) == 1 && claim.state == DLK_ENTRY_FREE);
    assert(reply(&book, &request, R(NOT_READY), T0) == &unlock);
    assert(unlock.status == S(NOT_READY) && unlock.token == 1000);
    assert(dlk_book_claims(&book, &claim, 1, T0) == 1 && claim.state == DLK_ENTRY_HELD);
    dlk_book_free(&book);
}

/* ---- Claims ---- */

static void test_claims(void)
{
    struct dlk_book book = new_book(DLK_KIND_FAIR);
    struct dlk_claim claim[3];
    struct dlk_call call = ask_for(TRY, 5000, 0);
    assert(dlk_book_add_lock(&book, 8, 6, DLK_KIND_RW, 1) == S(SUCCESS));
    assert(dlk_book_claims(&book, NULL, 0, T0) == 2);
    run(&book, &call, R(TICKETED), T0);
    assert(dlk_book_claims(&book, claim, 3, T0) == 2);
    assert(claim[0].state == DLK_ENTRY_TICKET && claim[0].stamp == 500 && claim[0].token == 0);
    assert(claim[0].lapsed == 0 && claim[1].state == DLK_ENTRY_FREE && claim[1].lock_id == 8);
    run(&book, &call, R(GRANTED), T0);
    run(&book, &call, R(EXTENDED), T0);
    assert(dlk_book_claims(&book, claim, 3, T0 + 1000 * MS) == 2);
    assert(claim[0].state == DLK_ENTRY_HELD && claim[0].token == 1000 && claim[0].stamp == 0);
    assert(claim[0].count == 2 && claim[0].remaining_ms == 3995 && claim[0].lapsed == 0);
    assert(claim[0].kind == DLK_KIND_FAIR && claim[0].owner == OWNER && claim[0].leased == 1);
    dlk_book_claims(&book, claim, 3, T0 + 4995 * MS);
    assert(claim[0].remaining_ms == 0 && claim[0].lapsed == 1 && claim[0].leased == 1);
    dlk_book_free(&book);
}

/* The session of an earlier epoch goes on ending while the client talks to a new primary. */
static void test_claim_of_an_earlier_epoch(void)
{
    struct dlk_book book = new_book(DLK_KIND_RW);
    struct dlk_call call = ask_for(TRY, 0, 0);
    struct dlk_link next = link_of(EPOCH + 1);
    struct dlk_claim claim;
    run(&book, &call, R(GRANTED), T0);
    dlk_book_attach(&book, &next, T0 + 9000 * MS);
    assert(dlk_book_session_left_ms(&book, T0 + 9000 * MS) == TTL_MS - TTL_MS / 1000);
    assert(dlk_book_claims(&book, &claim, 1, T0 + 9500 * MS) == 1 && claim.lapsed == 0);
    dlk_book_claims(&book, &claim, 1, T0 + 10000 * MS);
    assert(claim.lapsed == 1 && claim.leased == 0 && claim.state == DLK_ENTRY_HELD);
    /* Confirmed by the new primary, it is as good as the new session. The old handle is void. */
    dlk_book_unverify(&book);
    struct dlk_request request = begin(&book, &call, T0 + 9600 * MS);
    assert(request.op == DLK_OP_EXTEND && request.entry == DLK_NONE && request.token == 1000);
    struct dlk_reply answer = answer_to(&request, R(EXTENDED));
    answer.epoch = EPOCH + 1;
    assert(dlk_book_reply(&book, &answer, T0) == &call && call.status == S(ALREADY_LOCKED));
    dlk_book_claims(&book, &claim, 1, T0 + 10000 * MS);
    assert(claim.lapsed == 0);
    dlk_book_free(&book);
}

/* ---- Debts ---- */

static void test_debt_of_an_unlock(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(TRY, 0, 0);
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    run(&book, &call, R(GRANTED), T0);
    begin(&book, &unlock, T0);
    assert(dlk_book_lose(&book, unlock.slot, true, T0) == &unlock);
    assert(unlock.status == S(BAD_RESPONSE));
    /* On a living connection it is under way; when that breaks, it must be sent again. */
    assert(book.debts == 1 && book.debts_under_way == 1 && next_debt(&book) == NULL);
    assert(dlk_book_lose(&book, unlock.slot, false, T0) == NULL && book.debts_unsent == 1);
    /* Its repetition by the user has nothing to send. */
    struct dlk_call again = ask_for(UNLOCK, 0, 0);
    assert(turn_of(&book, &again, T0) == DLK_TURN_DONE && again.status == S(ALREADY_UNLOCKED));
    struct dlk_request debt = *next_debt(&book);
    assert(debt.op == DLK_OP_UNLOCK && debt.token == 1000 && debt.lock_id == LOCK);
    assert(next_debt(&book) == NULL && book.debts == 1);
    /* A server that is not ready is told again later, without a handle that could be another's. */
    assert(debt.entry == 17 && reply(&book, &debt, R(NOT_READY), T0) == NULL);
    assert(book.debts == 1 && book.debts_unsent == 0 && book.debts_under_way == 0);
    dlk_book_retry_kept(&book);
    debt = *next_debt(&book);
    assert(debt.entry == DLK_NONE && reply(&book, &debt, R(NOT_HELD), T0) == NULL);
    assert(book.debts == 0 && book.pending_used == 0);
    dlk_book_free(&book);
}

static void test_debt_of_a_lock(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, 1000);
    struct dlk_request lock = begin(&book, &call, T0);
    assert(dlk_book_lose(&book, call.slot, true, T0) == &call && call.status == S(BAD_RESPONSE));
    struct dlk_request cancel = *next_debt(&book);
    assert(cancel.op == DLK_OP_CANCEL && cancel.value == lock.request_id);
    assert(cancel.lock_id == LOCK && cancel.owner == OWNER && cancel.slot == 5);
    /* The grant that crosses it is not believed; the cancel undoes it. */
    uint64_t renewed_ns = book.renewed_ns;
    assert(reply(&book, &lock, R(GRANTED), T0) == NULL && book.ignored == 1);
    assert(belief_of(&book)->state == DLK_ENTRY_FREE && book.renewed_ns == renewed_ns);
    assert(book.debts == 1);
    /* Its request id is not given out while the debt lasts. */
    struct dlk_call next = ask_for(TRY, 0, 0);
    struct dlk_request other = begin(&book, &next, T0);
    assert(other.request_id % DLK_INFLIGHT_MAX != lock.request_id % DLK_INFLIGHT_MAX);
    assert(reply(&book, &cancel, R(CANCELLED), T0) == NULL && book.debts == 0);
    dlk_book_free(&book);
}

static void test_never_sent(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(TRY, 0, 0);
    begin(&book, &call, T0);
    dlk_book_unsent(&book, &call, T0);
    assert(call.status == S(BAD_RESPONSE) && book.debts == 0 && book.pending_used == 0);
    run(&book, &call, R(GRANTED), T0);
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    begin(&book, &unlock, T0);
    dlk_book_unsent(&book, &unlock, T0);
    assert(unlock.status == S(BAD_RESPONSE) && book.debts_unsent == 1);
    dlk_book_free(&book);
}

/* ---- Cancelling ---- */

static void test_cancel_of_a_waiter(void)
{
    struct dlk_book book = new_book(DLK_KIND_FAIR);
    struct dlk_call call = ask_for(WAIT, 0, 1000);
    struct dlk_request request = begin(&book, &call, T0);
    reply(&book, &request, R(QUEUED), T0);
    dlk_book_cancel(&book, &call, T0);
    assert(next_debt(&book)->op == DLK_OP_CANCEL && call.phase == DLK_PHASE_SEEN);
    assert(book.holds[0].running == DLK_NONE && !book.holds[0].waits);
    dlk_book_cancel(&book, &call, T0);
    assert(book.debts == 1);
    dlk_book_free(&book);

    /* A ticket that was being redeemed goes with it. */
    book = new_book(DLK_KIND_FAIR);
    call = ask_for(WAIT, 0, 1000);
    run(&book, &call, R(TICKETED), T0);
    call = ask_for(WAIT, 0, 1000);
    begin(&book, &call, T0);
    dlk_book_cancel(&book, &call, T0);
    const struct dlk_request *debt = next_debt(&book);
    assert(debt->op == DLK_OP_GIVE_UP && debt->token == 500 && debt->entry == 17);
    assert(belief_of(&book)->state == DLK_ENTRY_FREE);
    dlk_book_free(&book);
}

static void test_cancel_of_a_grant(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, 1000);
    run(&book, &call, R(GRANTED), T0);
    dlk_book_cancel(&book, &call, T0);
    const struct dlk_request *debt = next_debt(&book);
    assert(debt->op == DLK_OP_UNLOCK && debt->token == 1000 && debt->entry == 17);
    assert(belief_of(&book)->state == DLK_ENTRY_FREE && call.status == S(FAIL));
    dlk_book_cancel(&book, &call, T0);
    assert(book.debts == 1);
    dlk_book_free(&book);

    /* Of a re-entry only the count is undone. */
    book = new_book(DLK_KIND_ATOMIC);
    run(&book, &call, R(GRANTED), T0);
    struct dlk_call again = ask_for(TRY, 0, 0);
    run(&book, &again, R(EXTENDED), T0);
    dlk_book_cancel(&book, &again, T0);
    assert(belief_of(&book)->count == 1 && book.debts == 0);
    /* The first is cancelled while another thread re-enters: the hold is that thread's. */
    again = ask_for(TRY, 0, 0);
    struct dlk_request request = begin(&book, &again, T0);
    dlk_book_cancel(&book, &call, T0);
    assert(book.debts == 0);
    assert(reply(&book, &request, R(EXTENDED), T0) == &again);
    assert(again.status == S(ALREADY_LOCKED) && belief_of(&book)->count == 1);
    /* In vain: then nobody's. */
    call = again;
    again = ask_for(TRY, 0, 0);
    begin(&book, &again, T0);
    dlk_book_cancel(&book, &call, T0);
    assert(dlk_book_lose(&book, again.slot, false, T0) == &again);
    assert(belief_of(&book)->state == DLK_ENTRY_FREE && next_debt(&book)->op == DLK_OP_UNLOCK);
    dlk_book_free(&book);
}

static void test_cancel_of_the_rest(void)
{
    struct dlk_book book = new_book(DLK_KIND_FAIR);
    struct dlk_call call = ask_for(TRY, 0, 0);
    run(&book, &call, R(TICKETED), T0);
    dlk_book_cancel(&book, &call, T0);
    assert(next_debt(&book)->op == DLK_OP_GIVE_UP && belief_of(&book)->state == DLK_ENTRY_FREE);
    run(&book, &call, R(GRANTED), T0);
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    begin(&book, &unlock, T0);
    dlk_book_cancel(&book, &unlock, T0);
    assert(book.debts == 2 && book.debts_unsent == 0 && book.debts_under_way == 2);
    struct dlk_call zeroed = {0};
    dlk_book_cancel(&book, &zeroed, T0);
    assert(book.debts == 2);
    dlk_book_free(&book);
}

/* Every slot in use: the next call is put off, but what must be undone still finds one. */
static void test_full(void)
{
    static struct dlk_call calls[DLK_INFLIGHT_MAX];
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    uint32_t sent = 0;
    assert(dlk_book_add_object(&book, 3, 0) == S(SUCCESS));
    for (; sent < DLK_INFLIGHT_MAX; sent++) {
        calls[sent] = (struct dlk_call){.verb = DLK_VERB_READ, .lock_id = 3};
        dlk_book_prepare(&calls[sent]);
        if (turn_of(&book, &calls[sent], T0) == DLK_TURN_LATER) {
            break;
        }
    }
    assert(sent > DLK_INFLIGHT_MAX / 2 && sent < DLK_INFLIGHT_MAX);
    dlk_pending_undo(&book, &book.holds[0], DLK_OP_UNLOCK, 1000, DLK_NONE);
    assert(book.debts == 1);
    struct dlk_request request = book.pending[calls[0].slot].request;
    assert(reply(&book, &request, R(DONE), T0) == &calls[0]);
    assert(reply(&book, &request, R(DONE), T0) == NULL);
    dlk_book_free(&book);
}

int main(void)
{
    test_lease_end();
    test_hold_by_session();
    test_session();
    test_late_answer_renews_little();
    test_strangers_are_ignored();
    test_serialised();
    test_behind_a_waiter();
    test_unlock_clears_first();
    test_claims();
    test_claim_of_an_earlier_epoch();
    test_debt_of_an_unlock();
    test_debt_of_a_lock();
    test_never_sent();
    test_cancel_of_a_waiter();
    test_cancel_of_a_grant();
    test_cancel_of_the_rest();
    test_full();
    printf("done\n");
    return 0;
}
