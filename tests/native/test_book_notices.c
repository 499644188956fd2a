/*
 * The client's book: what it tells of holds and sessions without being asked. No I/O, no clock.
 */
#include <stdio.h>

#include "telling_world.h"

/* ---- Suspended, confirmed, lost ---- */

/* Told in the moment in which left_ms is 0, once, and again when it is confirmed. */
static void test_suspended(void)
{
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(TRY, 3000, 0);
    run(&book, &call, R(GRANTED), T0);
    uint64_t gone_ns = dlk_book_due_ns(&book, false);
    struct dlk_call look = ask_for(DLK_VERB_LOOK, 0, 0);
    turn_of(&book, &look, gone_ns - 1);
    assert(look.left_ms == 1);
    dlk_book_pass(&book, gone_ns - 1);
    expect_nothing(&book);
    dlk_book_prepare(&look);
    turn_of(&book, &look, gone_ns);
    assert(look.left_ms == 0 && look.token == 1000);
    dlk_book_pass(&book, gone_ns);
    expect_one(&book, N(SUSPENDED));
    dlk_book_pass(&book, gone_ns + MS);
    expect_nothing(&book);
    struct dlk_call extend = ask_for(EXTEND, 3000, 0);
    assert(run(&book, &extend, R(EXTENDED), gone_ns + 10 * MS) == S(SUCCESS));
    expect_one(&book, N(CONFIRMED));
    dlk_book_pass(&book, gone_ns + 2000 * MS);
    expect_nothing(&book);
    dlk_book_pass(&book, gone_ns + 3010 * MS);
    expect_one(&book, N(SUSPENDED));
    dlk_book_free(&book);
}

/* The link was down over the end: then a renewal says which. One that comes too late to be
 * believed confirms nothing. */
static void test_renewed_after_the_end(void)
{
    static const struct {
        uint32_t result;
        uint32_t kind;
    } rows[] = {{R(EXTENDED), N(CONFIRMED)}, {R(NOT_HELD), N(LOST)}, {R(NO_LOCK), N(LOST)}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
        struct dlk_link link = link_of(EPOCH);
        hold(&book);
        dlk_book_pass(&book, T0 + 7000 * MS);
        expect_one(&book, N(SUSPENDED));
        dlk_book_attach(&book, &link, T0 + 7000 * MS, T0 + 7000 * MS);
        struct dlk_request request = renewal(&book, T0 + 7000 * MS);
        reply(&book, &request, rows[i].result, T0 + 7001 * MS);
        expect_one(&book, rows[i].kind);
        dlk_book_pass(&book, T0 + 8000 * MS);
        expect_nothing(&book);
        dlk_book_free(&book);
    }
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    hold(&book);
    struct dlk_request request = renewal(&book, FIRST_DUE);
    dlk_book_pass(&book, T0 + 9000 * MS);
    expect_one(&book, N(SUSPENDED));
    reply(&book, &request, R(EXTENDED), FIRST_DUE + LEASE_MS * MS);
    expect_nothing(&book);
    dlk_book_free(&book);
}

/* Lost by the answer to a renewal while its user asks too: told once, and the user learns of it. */
static void test_lost(void)
{
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    hold(&book);
    struct dlk_request asked = renewal(&book, FIRST_DUE);
    struct dlk_call extend = ask_for(EXTEND, LEASE_MS, 0);
    struct dlk_request request = begin(&book, &extend, FIRST_DUE);
    reply(&book, &asked, R(NOT_HELD), FIRST_DUE + MS);
    expect_one(&book, N(LOST));
    assert(belief_of(&book)->state == DLK_ENTRY_FREE);
    assert(reply(&book, &request, R(NOT_HELD), FIRST_DUE + MS) == &extend);
    assert(extend.status == S(FAIL) && extend.result == R(NOT_HELD) && extend.token == 0);
    expect_nothing(&book);
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    assert(turn_of(&book, &unlock, T0) == DLK_TURN_DONE);
    assert(unlock.status == S(ALREADY_UNLOCKED) && unlock.result == R(NOT_HELD));
    dlk_book_free(&book);
    /* By the user's own extension. */
    book = telling_book(DLK_KIND_ATOMIC);
    hold(&book);
    extend = ask_for(EXTEND, LEASE_MS, 0);
    assert(run(&book, &extend, R(NOT_HELD), T0) == S(FAIL));
    expect_one(&book, N(LOST));
    dlk_book_free(&book);
}

/* ---- Broken by an operator ---- */

static struct dlk_reply broken(uint64_t token)
{
    return (struct dlk_reply){.op = DLK_OP_NOTICE,
                              .result = R(BROKEN),
                              .session = CLIENT,
                              .epoch = EPOCH,
                              .token = token,
                              .entry = 17};
}

static void test_broken(uint64_t number)
{
    struct dlk_book book = new_book(DLK_KIND_RW);
    struct dlk_call call = ask_for(TRY, 0, 0);
    struct dlk_reply notice = broken(1000);
    book.number = number;
    run(&book, &call, R(GRANTED), T0);
    call = ask_for(TRY, 0, 0);
    assert(turn_of(&book, &call, T0) == DLK_TURN_DONE && call.count == 2);
    uint64_t renewed_ns = book.renewed_ns;
    assert(dlk_book_reply(&book, &notice, T0 + 1000 * MS) == NULL);
    assert(belief_of(&book)->state == DLK_ENTRY_FREE && book.ignored == 0);
    assert(book.renewed_ns == renewed_ns); /* it answers nothing */
    const struct dlk_request *debt = next_debt(&book);
    assert(debt->op == DLK_OP_UNLOCK && debt->token == 1000 && debt->entry == 17);
    assert(debt->lock_id == LOCK && debt->owner == OWNER && next_debt(&book) == NULL);
    assert(book.news.count == (number != 0));
    if (number != 0) {
        expect_one(&book, N(BROKEN));
    }
    /* Told again at the next attach: nothing is left to give up. */
    assert(dlk_book_reply(&book, &notice, T0 + 1000 * MS) == NULL && book.debts == 1);
    assert(book.news.count == 0 && book.ignored == 0);
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    assert(turn_of(&book, &unlock, T0) == DLK_TURN_DONE);
    assert(unlock.status == S(ALREADY_UNLOCKED) && unlock.result == R(BROKEN));
    call = ask_for(TRY, 0, 0); /* and it can be had again */
    assert(run(&book, &call, R(GRANTED), T0) == S(SUCCESS));
    unlock = ask_for(UNLOCK, 0, 0);
    assert(run(&book, &unlock, R(RELEASED), T0) == S(SUCCESS) && unlock.result == R(RELEASED));
    unlock = ask_for(UNLOCK, 0, 0);
    assert(turn_of(&book, &unlock, T0) == DLK_TURN_DONE);
    assert(unlock.status == S(ALREADY_UNLOCKED) && unlock.result == R(COUNT));
    dlk_book_free(&book);
}

/* While its unlock is under way: the server may not have carried that out. */
static void test_broken_during_an_unlock(void)
{
    for (int ready = 0; ready < 2; ready++) {
        struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
        struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
        struct dlk_reply notice = broken(1000);
        hold(&book);
        struct dlk_request request = begin(&book, &unlock, T0);
        dlk_book_reply(&book, &notice, T0);
        expect_nothing(&book);
        reply(&book, &request, ready ? R(RELEASED) : R(NOT_READY), T0);
        assert(unlock.status == (ready ? S(SUCCESS) : S(NOT_READY)));
        assert(belief_of(&book)->state == DLK_ENTRY_FREE && book.debts == (ready ? 0 : 1));
        if (ready) {
            expect_nothing(&book);
        } else {
            expect_one(&book, N(BROKEN));
            assert(next_debt(&book)->op == DLK_OP_UNLOCK);
        }
        dlk_book_free(&book);
    }
}

/* While an extension is under way, whose answer then revives nothing; and strangers' notices. */
static void test_broken_during_an_extension(void)
{
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    struct dlk_call extend = ask_for(EXTEND, LEASE_MS, 0);
    struct dlk_reply notice = broken(1000);
    hold(&book);
    struct dlk_reply strange[4] = {notice, notice, notice, notice};
    strange[0].session++;
    strange[1].epoch--;
    strange[2].result = R(DONE);
    strange[3].token = 999;
    for (int i = 0; i < 4; i++) {
        dlk_book_reply(&book, &strange[i], T0);
    }
    assert(book.ignored == 3 && book.debts == 0);
    struct dlk_request asked = renewal(&book, FIRST_DUE);
    struct dlk_request request = begin(&book, &extend, FIRST_DUE);
    dlk_book_reply(&book, &notice, FIRST_DUE);
    expect_one(&book, N(BROKEN));
    reply(&book, &asked, R(EXTENDED), FIRST_DUE);
    assert(reply(&book, &request, R(EXTENDED), FIRST_DUE) == &extend);
    assert(extend.status == S(FAIL) && extend.result == R(BROKEN));
    assert(belief_of(&book)->state == DLK_ENTRY_FREE && book.renewals.count == 0);
    expect_nothing(&book);
    dlk_book_free(&book);
}

/* ---- The session ---- */

static void test_session(void)
{
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    struct dlk_link link = link_of(EPOCH);
    uint64_t gone_ns = T0 + (TTL_MS - TTL_MS / 1000) * MS - MS + 1;
    assert(dlk_book_due_ns(&book, false) == gone_ns);
    dlk_book_pass(&book, gone_ns - 1);
    expect_nothing(&book);
    assert(dlk_book_session_left_ms(&book, gone_ns) == 0);
    dlk_book_pass(&book, gone_ns);
    dlk_book_pass(&book, gone_ns);
    expect_one(&book, N(SESSION_SUSPENDED));
    assert(dlk_book_due_ns(&book, false) == DLK_NEVER_NS);
    dlk_book_attach(&book, &link, gone_ns + 5000 * MS, gone_ns + 5000 * MS);
    expect_one(&book, N(SESSION_CONFIRMED));
    /* An answer that comes too late to be believed confirms nothing. */
    struct dlk_call ping = {.verb = DLK_VERB_PING};
    dlk_book_prepare(&ping);
    struct dlk_request request = begin(&book, &ping, gone_ns + 5001 * MS);
    dlk_book_pass(&book, gone_ns + 20000 * MS);
    expect_one(&book, N(SESSION_SUSPENDED));
    reply(&book, &request, R(DONE), gone_ns + 20001 * MS);
    expect_nothing(&book);
    dlk_book_free(&book);
}

static void test_removed(void)
{
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    hold(&book);
    struct dlk_request request = renewal(&book, FIRST_DUE);
    reply(&book, &request, R(REMOVED), FIRST_DUE);
    expect_one(&book, N(REMOVED));
    assert(!has_renewal(&book, FIRST_DUE + 2000 * MS)); /* nobody there to ask */
    struct dlk_call call = ask_for(EXTEND, LEASE_MS, 0);
    assert(run(&book, &call, R(REMOVED), FIRST_DUE) == S(CLIENT_REMOVED_BY_SERVER));
    expect_nothing(&book);
    dlk_book_pass(&book, T0 + 6000 * MS); /* the lease outlives the session */
    expect_one(&book, N(SUSPENDED));
    dlk_book_free(&book);
}

/* A new primary: what stood on the old session ends with it unless it is confirmed, and the new
 * session says nothing of it. */
static void test_new_epoch(bool late)
{
    struct dlk_book book = telling_book(DLK_KIND_RW);
    struct dlk_link link = link_of(EPOCH + 1);
    struct dlk_call call = ask_for(TRY, 0, 0);
    uint64_t gone_ns = T0 + (TTL_MS - TTL_MS / 1000) * MS - MS + 1;
    run(&book, &call, R(GRANTED), T0);
    if (late) {
        const uint32_t kinds[] = {N(SESSION_SUSPENDED), N(SESSION_CONFIRMED), N(SUSPENDED)};
        dlk_book_pass(&book, gone_ns);
        dlk_book_attach(&book, &link, gone_ns + 100 * MS, gone_ns + 100 * MS);
        expect_told(&book, kinds, 3);
    } else {
        dlk_book_attach(&book, &link, gone_ns - 100 * MS, gone_ns - 100 * MS);
        expect_nothing(&book);
        dlk_book_pass(&book, gone_ns);
        expect_one(&book, N(SUSPENDED));
    }
    dlk_book_unverify(&book);
    call = ask_for(TRY, 0, 0);
    struct dlk_request request = begin(&book, &call, gone_ns + 200 * MS);
    struct dlk_reply answer = answer_to(&request, R(EXTENDED));
    answer.epoch = EPOCH + 1;
    assert(dlk_book_reply(&book, &answer, gone_ns + 201 * MS) == &call);
    expect_one(&book, N(CONFIRMED));
    assert(book.ends.count == 0); /* it stands on the new session */
    dlk_book_free(&book);
}

static void test_nobody_to_tell(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    hold(&book);
    dlk_book_pass(&book, T0 + 100000 * MS);
    struct dlk_request request = renewal(&book, T0 + 100000 * MS);
    reply(&book, &request, R(REMOVED), T0 + 100000 * MS);
    assert(book.news.count == 0 && book.ends.count == 0);
    assert(dlk_book_due_ns(&book, false) == DLK_NEVER_NS);
    dlk_book_free(&book);
}

int main(void)
{
    test_suspended();
    test_renewed_after_the_end();
    test_lost();
    test_broken(NUMBER);
    test_broken(0);
    test_broken_during_an_unlock();
    test_broken_during_an_extension();
    test_session();
    test_removed();
    test_new_epoch(false);
    test_new_epoch(true);
    test_nobody_to_tell();
    printf("done\n");
    return 0;
}
