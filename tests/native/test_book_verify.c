/*
 * Holds at a new primary, by the book alone: how they are verified, when they are told to be
 * confirmed, and how a newer claim displaces one.
 */
#include "book_claim_world.h"

static struct dlk_book taken_over(uint32_t lease_ms, uint64_t now_ns)
{
    struct dlk_book book = holding_book(DLK_KIND_ATOMIC, lease_ms);
    disconnect(&book, T0);
    struct dlk_claim claim = claim_of(&book, T0);
    dlk_book_claimed(&book, &claim, S(SUCCESS));
    seal(&book);
    dlk_book_pass(&book, now_ns);
    attach_next(&book, NEXT, now_ns);
    return book;
}

static void every_hold_is_asked_for_once(uint32_t lease_ms)
{
    struct dlk_book book = taken_over(lease_ms, T0 + 20000 * MS);
    assert(told(&book, DLK_NOTICE_SUSPENDED) == 1);
    assert(dlk_book_next_renewal(&book, false, T0 + 20000 * MS) == NULL);
    dlk_book_verify(&book);
    assert(dlk_book_due_ns(&book, true) == 0);
    struct dlk_request asked = *dlk_book_next_renewal(&book, false, T0 + 20000 * MS);
    assert(asked.op == DLK_OP_EXTEND && asked.token == 1000 && asked.lease_ms == 0);
    assert(asked.entry == DLK_NONE);
    assert(dlk_book_next_renewal(&book, true, T0 + 20000 * MS) == NULL);
    dlk_book_verify(&book);
    assert(dlk_book_next_renewal(&book, true, T0 + 20000 * MS) == NULL); /* it is under way */
    asked.lease_ms = lease_ms;
    assert(reply_next(&book, &asked, R(EXTENDED), T0 + 20001 * MS) == NULL);
    assert(told(&book, DLK_NOTICE_CONFIRMED) == 1);
    dlk_book_verify(&book);
    assert(dlk_book_next_renewal(&book, true, T0 + 40000 * MS) == NULL);
    dlk_book_free(&book);
}

static void what_the_server_was_not_ready_for_is_asked_with_the_next_verify(void)
{
    struct dlk_book book = taken_over(0, T0 + 20000 * MS);
    for (uint32_t i = 0; i < 3; i++) {
        dlk_book_verify(&book);
        struct dlk_request asked = *dlk_book_next_renewal(&book, false, T0 + 20000 * MS);
        reply_next(&book, &asked, R(NOT_READY), T0 + 20000 * MS);
        assert(dlk_book_next_renewal(&book, false, T0 + 90000 * MS) == NULL);
    }
    dlk_book_verify(&book);
    struct dlk_request asked = *dlk_book_next_renewal(&book, false, T0 + 20000 * MS);
    told(&book, DLK_NOTICE_LOST);
    reply_next(&book, &asked, R(NOT_HELD), T0 + 20000 * MS);
    assert(told(&book, DLK_NOTICE_LOST) == 1 && belief_of(&book)->state == DLK_ENTRY_FREE);
    dlk_book_free(&book);
}

/* The server became ready, and said so on another connection, while "not ready" was under way. */
static void an_answer_that_the_next_verify_has_overtaken_does_not_count(void)
{
    struct dlk_book book = taken_over(0, T0);
    dlk_book_verify(&book);
    struct dlk_request asked = *dlk_book_next_renewal(&book, false, T0);
    dlk_book_verify(&book);
    assert(reply_next(&book, &asked, R(NOT_READY), T0) == NULL);
    const struct dlk_request *again = dlk_book_next_renewal(&book, false, T0);
    assert(again != NULL && again->op == DLK_OP_EXTEND && again->token == 1000);
    asked = *again;
    assert(reply_next(&book, &asked, R(NOT_READY), T0) == NULL); /* this one does */
    assert(dlk_book_next_renewal(&book, false, T0 + 90000 * MS) == NULL);
    dlk_book_free(&book);
}

static void nor_does_that_to_an_unlock_which_is_owed(void)
{
    struct dlk_book book = taken_over(0, T0);
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    begin(&book, &unlock, T0);
    assert(dlk_book_lose(&book, unlock.slot, false, T0) == &unlock);
    struct dlk_request debt = *next_debt(&book);
    dlk_book_verify(&book);
    assert(reply_next(&book, &debt, R(NOT_READY), T0) == NULL);
    const struct dlk_request *again = next_debt(&book);
    assert(again != NULL && again->op == DLK_OP_UNLOCK && again->token == 1000);
    debt = *again;
    assert(reply_next(&book, &debt, R(NOT_READY), T0) == NULL && next_debt(&book) == NULL);
    assert(book.debts == 1);
    dlk_book_free(&book);
}

static void nor_does_that_to_a_wait(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, DLK_WAIT_FOREVER);
    struct dlk_request asked = begin(&book, &call, T0);
    reply(&book, &asked, R(QUEUED), T0);
    disconnect(&book, T0);
    struct dlk_claim claim = claim_of(&book, T0);
    dlk_book_claimed(&book, &claim, S(SERVER_NO_RESOURCE));
    claim.state = DLK_ENTRY_FREE;
    dlk_book_claimed(&book, &claim, S(SUCCESS)); /* another owner's */
    seal(&book);
    attach_next(&book, NEXT, T0);
    dlk_book_verify(&book);
    asked = *dlk_book_next_parked(&book, T0);
    dlk_book_verify(&book);
    assert(reply_next(&book, &asked, R(NOT_READY), T0) == NULL);
    const struct dlk_request *again = dlk_book_next_parked(&book, T0);
    assert(again != NULL && again->op == DLK_OP_LOCK);
    asked = *again;
    assert(reply_next(&book, &asked, R(NOT_READY), T0) == NULL);
    assert(dlk_book_next_parked(&book, T0) == NULL && book.waits_kept == 1);
    dlk_book_free(&book);
}

static void without_an_answer_it_is_asked_again(void)
{
    struct dlk_book book = taken_over(0, T0);
    dlk_book_verify(&book);
    struct dlk_request asked = *dlk_book_next_renewal(&book, false, T0);
    assert(dlk_book_next_renewal(&book, false, T0 + (TIMEOUT_MS - 1) * MS) == NULL);
    assert(dlk_book_next_renewal(&book, false, T0 + TIMEOUT_MS * MS)->request_id
           == asked.request_id);
    for (uint32_t i = 0; i < book.pending_high; i++) {
        dlk_book_disconnect(&book, i, false, T0);
    }
    attach_next(&book, NEXT, T0);
    assert(dlk_book_next_renewal(&book, false, T0) != NULL);
    dlk_book_free(&book);
}

/* An answer so late that the new session is over, too: it is told with the session. */
static void a_hold_that_is_confirmed_after_its_sessions_end_is_told_with_the_session(void)
{
    struct dlk_book book = taken_over(0, T0 + 20000 * MS);
    dlk_book_verify(&book);
    struct dlk_request asked = *dlk_book_next_renewal(&book, false, T0 + 20000 * MS);
    dlk_book_pass(&book, T0 + 40000 * MS);
    told(&book, 0);
    reply_next(&book, &asked, R(EXTENDED), T0 + 40000 * MS);
    assert(told(&book, DLK_NOTICE_CONFIRMED) == 0);
    struct dlk_call ping = {.verb = DLK_VERB_PING};
    dlk_book_prepare(&ping);
    asked = begin(&book, &ping, T0 + 40000 * MS);
    assert(reply_next(&book, &asked, R(DONE), T0 + 40001 * MS) == &ping);
    assert(book.news.count == 2 && book.news.notices[0].kind == DLK_NOTICE_SESSION_CONFIRMED);
    assert(told(&book, DLK_NOTICE_CONFIRMED) == 1 && !belief_of(&book)->suspended);
    dlk_book_free(&book);
}

static void a_newer_claim_displaces_a_hold(void)
{
    struct dlk_book book = taken_over(0, T0);
    struct dlk_reply notice = {.op = DLK_OP_NOTICE,
                               .result = R(NOT_HELD),
                               .session = CLIENT,
                               .epoch = NEXT,
                               .token = 1000};
    told(&book, 0);
    assert(dlk_book_reply(&book, &notice, T0) == NULL && book.ignored == 0);
    assert(told(&book, DLK_NOTICE_LOST) == 1 && book.debts == 0);
    assert(status_of(&book, EXTEND) == S(FAIL) && status_of(&book, UNLOCK) == S(ALREADY_UNLOCKED));
    assert(dlk_book_reply(&book, &notice, T0) == NULL && told(&book, DLK_NOTICE_LOST) == 0);
    dlk_book_free(&book);
}

int main(void)
{
    every_hold_is_asked_for_once(0);
    every_hold_is_asked_for_once(8000);
    what_the_server_was_not_ready_for_is_asked_with_the_next_verify();
    an_answer_that_the_next_verify_has_overtaken_does_not_count();
    nor_does_that_to_an_unlock_which_is_owed();
    nor_does_that_to_a_wait();
    without_an_answer_it_is_asked_again();
    a_hold_that_is_confirmed_after_its_sessions_end_is_told_with_the_session();
    a_newer_claim_displaces_a_hold();
    return 0;
}
