/*
 * The client's book in time: ends of leases and sessions, serialised holds, claims. No I/O, no
 * clock.
 */
#include <stdio.h>

#include "book_world.h"

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
    dlk_book_attach(&book, &next, T0 + 9000 * MS, T0 + 9000 * MS);
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
    printf("done\n");
    return 0;
}
