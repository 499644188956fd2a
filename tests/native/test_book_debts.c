/*
 * What a request leaves behind that was not answered, was answered late, or was cancelled. No I/O,
 * no clock.
 */
#include <stdio.h>

#include "book_world.h"

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

/* The lock was dropped by force while its unlock was under way, and the server did nothing. */
static void test_dropped_while_it_is_given_back(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(TRY, 0, 0);
    run(&book, &call, R(GRANTED), T0);
    call = ask_for(UNLOCK, 0, 0);
    struct dlk_request request = begin(&book, &call, T0);
    assert(dlk_book_drop_lock(&book, LOCK, OWNER, true) == S(SUCCESS));
    assert(reply(&book, &request, R(NOT_READY), T0) == &call);
    assert(call.status == S(LOCK_NOT_GET));
    const struct dlk_request *debt = next_debt(&book);
    assert(debt != NULL && debt->op == DLK_OP_UNLOCK && debt->token == 1000);
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
    test_debt_of_an_unlock();
    test_debt_of_a_lock();
    test_never_sent();
    test_dropped_while_it_is_given_back();
    test_cancel_of_a_waiter();
    test_cancel_of_a_grant();
    test_cancel_of_the_rest();
    test_full();
    printf("done\n");
    return 0;
}
