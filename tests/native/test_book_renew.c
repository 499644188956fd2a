/*
 * The client's book: when leases are renewed, and what comes of it. No I/O, no clock.
 */
#include <stdio.h>

#include "telling_world.h"

static void test_renewal(void)
{
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    hold(&book);
    assert(dlk_book_due_ns(&book, true) == FIRST_DUE && book.news.any);
    assert(!has_renewal(&book, FIRST_DUE - 1));
    struct dlk_request request = renewal(&book, FIRST_DUE);
    assert(request.lock_id == LOCK && request.slot == 5 && request.owner == OWNER);
    assert(request.token == 1000 && request.entry == 17 && request.lease_ms == LEASE_MS);
    assert(!has_renewal(&book, FIRST_DUE));
    struct dlk_reply answer = answer_to(&request, R(EXTENDED));
    assert(dlk_book_reply(&book, &answer, FIRST_DUE + 900 * MS) == NULL);
    assert(book.ignored == 0 && book.renewals_under_way == 0 && book.pending_used == 0);
    /* Counted from when it was sent. */
    uint64_t end_ns = FIRST_DUE + (LEASE_MS - LEASE_MS / 1000) * MS;
    assert(belief_of(&book)->end_ns == end_ns && belief_of(&book)->count == 1);
    assert(dlk_book_due_ns(&book, true) == end_ns - 4000 * MS);
    expect_nothing(&book);
    dlk_book_free(&book);
}

/* Only a leased hold that asked for it; the session's holds need none, and rw locks have no
 * lease. */
static void test_who_is_renewed(void)
{
    static const struct {
        uint32_t kind;
        uint32_t lease_ms;
        uint32_t renew;
        bool renewed;
    } rows[] = {
        {DLK_KIND_ATOMIC, LEASE_MS, 1, true}, {DLK_KIND_FAIR, LEASE_MS, 1, true},
        {DLK_KIND_SEMAPHORE, LEASE_MS, 1, true}, {DLK_KIND_ATOMIC, LEASE_MS, 0, false},
        {DLK_KIND_ATOMIC, 0, 1, false}, {DLK_KIND_RW, LEASE_MS, 1, false},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct dlk_book book = new_book(rows[i].kind); /* without a number as well */
        struct dlk_call call = ask_for(TRY, rows[i].lease_ms, 0);
        call.renew = rows[i].renew;
        run(&book, &call, R(GRANTED), T0);
        assert(has_renewal(&book, T0 + LEASE_MS * MS) == rows[i].renewed);
        dlk_book_free(&book);
    }
}

/* An unlock does not wait for a renewal, whose answer then means nothing; not even when the lock
 * has been taken again. */
static void test_unlock_during_renewal(void)
{
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    hold(&book);
    struct dlk_request request = renewal(&book, FIRST_DUE);
    assert(run(&book, &unlock, R(RELEASED), FIRST_DUE) == S(SUCCESS));
    assert(!has_renewal(&book, T0 + 10 * LEASE_MS * MS));
    struct dlk_call again = leased(LEASE_MS);
    struct dlk_request lock = begin(&book, &again, FIRST_DUE + 10 * MS);
    struct dlk_reply grant = answer_to(&lock, R(GRANTED));
    grant.token = 1001;
    assert(dlk_book_reply(&book, &grant, FIRST_DUE + 20 * MS) == &again);
    reply(&book, &request, R(NOT_HELD), FIRST_DUE + 30 * MS);
    assert(belief_of(&book)->state == DLK_ENTRY_HELD && belief_of(&book)->token == 1001);
    assert(book.renewals_under_way == 0 && book.pending_used == 0 && book.ignored == 0);
    expect_nothing(&book);
    /* The new hold is renewed in its own time. */
    assert(dlk_book_next_renewal(&book, false, FIRST_DUE + 2100 * MS)->token == 1001);
    dlk_book_free(&book);
}

/* An unlock that a server was not ready for gives the hold back, and with it its renewals. */
static void test_unlock_taken_back(void)
{
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    hold(&book);
    renewal(&book, FIRST_DUE);
    assert(run(&book, &unlock, R(NOT_READY), FIRST_DUE + MS) == S(NOT_READY));
    assert(renewal(&book, FIRST_DUE + MS).token == 1000);
    dlk_book_pass(&book, T0 + LEASE_MS * MS);
    expect_one(&book, N(SUSPENDED));
    dlk_book_free(&book);
}

/* Without an answer it is asked again after a sixth of the lease, in the same request slot. */
static void test_unanswered(void)
{
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    hold(&book);
    struct dlk_request first = renewal(&book, FIRST_DUE);
    assert(!has_renewal(&book, FIRST_DUE + 999 * MS));
    struct dlk_request second = renewal(&book, FIRST_DUE + 1000 * MS);
    assert(second.request_id == first.request_id && book.renewals_under_way == 1);
    reply(&book, &first, R(EXTENDED), FIRST_DUE + 1100 * MS);
    uint64_t end_ns = FIRST_DUE + (LEASE_MS - LEASE_MS / 1000) * MS;
    assert(belief_of(&book)->end_ns == end_ns); /* from when it was sent first */
    reply(&book, &second, R(EXTENDED), FIRST_DUE + 1200 * MS);
    assert(book.ignored == 1 && belief_of(&book)->end_ns == end_ns);
    dlk_book_free(&book);
    /* A long lease: after the reply timeout. */
    book = telling_book(DLK_KIND_ATOMIC);
    struct dlk_call call = leased(600000);
    run(&book, &call, R(GRANTED), T0);
    uint64_t due_ns = dlk_book_due_ns(&book, true);
    uint64_t session_ns = T0 + (TTL_MS - TTL_MS / 1000) * MS;
    assert(due_ns <= session_ns);
    dlk_book_pass(&book, session_ns);
    due_ns = dlk_book_due_ns(&book, true);
    renewal(&book, due_ns);
    assert(dlk_book_due_ns(&book, true) == due_ns + TIMEOUT_MS * MS);
    dlk_book_free(&book);
}

/* Refusals, and an extension that extends nothing (a hold that is being broken; a rest of less than
 * a millisecond, which reads as 0), do not make it spin. */
static void test_no_growth(void)
{
    static const uint32_t results[] = {R(EXTENDED), R(NOT_READY), R(NO_RESOURCE), R(INVALID),
                                       R(STOPPING)};
    for (size_t i = 0; i < sizeof(results) / sizeof(results[0]); i++) {
        struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
        hold(&book);
        uint64_t end_ns = belief_of(&book)->end_ns;
        for (uint64_t now_ns = FIRST_DUE; now_ns < end_ns; now_ns += 1000 * MS) {
            struct dlk_request request = renewal(&book, now_ns);
            struct dlk_reply answer = answer_to(&request, results[i]);
            answer.lease_ms = 0;
            dlk_book_reply(&book, &answer, now_ns + MS);
            assert(belief_of(&book)->end_ns == end_ns);
            assert(!has_renewal(&book, now_ns + 999 * MS));
        }
        dlk_book_told(&book);
        dlk_book_pass(&book, end_ns);
        assert(book.news.notices[0].kind == N(SUSPENDED));
        dlk_book_free(&book);
    }
}

/* The connection goes: what was asked is void, and is asked at once when there is a new one. */
static void test_reattach(void)
{
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    struct dlk_link link = link_of(EPOCH);
    hold(&book);
    renewal(&book, FIRST_DUE);
    for (uint32_t i = 0; i < book.pending_high; i++) {
        assert(dlk_book_lose(&book, i, false, FIRST_DUE + 10 * MS) == NULL);
    }
    assert(book.renewals_under_way == 0 && book.pending_used == 0 && book.debts == 0);
    assert(dlk_book_due_ns(&book, false) > FIRST_DUE + 1000 * MS); /* without one: the end */
    dlk_book_attach(&book, &link, FIRST_DUE + 20 * MS, FIRST_DUE + 20 * MS);
    assert(dlk_book_due_ns(&book, true) <= FIRST_DUE + 20 * MS);
    assert(renewal(&book, FIRST_DUE + 20 * MS).token == 1000);
    dlk_book_free(&book);
}

/* A user's own extension moves the renewal on, and a re-entry with a longer lease lengthens it. */
static void test_extended_by_its_user(void)
{
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    struct dlk_call extend = ask_for(EXTEND, 60000, 0);
    hold(&book);
    assert(run(&book, &extend, R(EXTENDED), T0) == S(SUCCESS));
    assert(!has_renewal(&book, T0 + 55900 * MS));
    assert(renewal(&book, T0 + 55990 * MS).lease_ms == LEASE_MS);
    struct dlk_call again = leased(90000);
    assert(run(&book, &again, R(EXTENDED), T0) == S(ALREADY_LOCKED));
    assert(renewal(&book, T0 + 80000 * MS).lease_ms == 90000);
    dlk_book_free(&book);
}

/* Once one is due, those go along that are due within a sixth of their lease; one that was sent is
 * not sent twice. */
static void test_batch(void)
{
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    for (uint32_t i = 0; i < 5; i++) {
        struct dlk_call call = leased(LEASE_MS);
        call.owner = i;
        assert(dlk_book_add_lock(&book, LOCK, 5, DLK_KIND_ATOMIC, i) == S(SUCCESS));
        assert(run(&book, &call, R(GRANTED), T0 + 400 * i * MS) == S(SUCCESS));
    }
    assert(dlk_book_next_renewal(&book, false, FIRST_DUE - 1) == NULL);
    for (uint64_t i = 0; i < 3; i++) { /* due after 0, 400 and 800 ms */
        assert(dlk_book_next_renewal(&book, i != 0, FIRST_DUE)->owner == i);
    }
    assert(dlk_book_next_renewal(&book, true, FIRST_DUE) == NULL);
    assert(dlk_book_due_ns(&book, true) == FIRST_DUE + 1000 * MS); /* again, if unanswered */
    dlk_book_free(&book);
}

/* However many are due, request slots are left for others. */
static void test_room_for_others(void)
{
    enum { MANY = 20000 };
    struct dlk_book book = telling_book(DLK_KIND_ATOMIC);
    for (uint32_t i = 0; i < MANY; i++) {
        struct dlk_call call = leased(LEASE_MS);
        call.owner = 1000 + i;
        assert(dlk_book_add_lock(&book, LOCK, 5, DLK_KIND_ATOMIC, 1000 + i) == S(SUCCESS));
        struct dlk_request lock = begin(&book, &call, T0);
        struct dlk_reply grant = answer_to(&lock, R(GRANTED));
        grant.token = 1000 + i;
        assert(dlk_book_reply(&book, &grant, T0) == &call);
    }
    uint32_t sent = 0;
    uint32_t done = 0;
    while (done < MANY) {
        const struct dlk_request *request = dlk_book_next_renewal(&book, true, FIRST_DUE + MS);
        if (request != NULL && ++sent < MANY) {
            assert(book.pending_used < DLK_INFLIGHT_MAX / 2);
            continue;
        }
        for (uint32_t index = 0; index < book.pending_high; index++) {
            if (book.pending[index].state == DLK_OP_STATE_RENEWAL) {
                struct dlk_request asked = book.pending[index].request;
                struct dlk_reply answer = answer_to(&asked, R(EXTENDED));
                answer.token = asked.token;
                dlk_book_reply(&book, &answer, FIRST_DUE + 2 * MS);
                done++;
            }
        }
    }
    assert(done == MANY && sent == MANY && book.pending_used == 0);
    expect_nothing(&book);
    dlk_book_free(&book);
}

int main(void)
{
    test_renewal();
    test_who_is_renewed();
    test_unlock_during_renewal();
    test_unlock_taken_back();
    test_unanswered();
    test_no_growth();
    test_reattach();
    test_extended_by_its_user();
    test_batch();
    test_room_for_others();
    printf("done\n");
    return 0;
}
