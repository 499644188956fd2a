/*
 * Waits that outlive their connection, by the book alone: what is parked and what is not, what is
 * sent again and in which order, what each answer comes to, and until when a grant may be believed
 * in of which it is not known from when the server counts.
 */
#include "book_world.h"

static struct dlk_book keeping_book(uint32_t kind)
{
    struct dlk_book book;
    struct dlk_link link = link_of(EPOCH);
    dlk_book_init(&book, TIMEOUT_MS);
    book.keep_waits = true;
    dlk_book_attach(&book, &link, T0, T0);
    for (uint64_t owner = OWNER; owner < OWNER + 4; owner++) {
        assert(dlk_book_add_lock(&book, LOCK, 5, kind, owner) == S(SUCCESS));
    }
    return book;
}

static struct dlk_call *disconnect(struct dlk_book *book, bool over, uint64_t now_ns)
{
    struct dlk_call *last = NULL;
    for (uint32_t i = 0; i < book->pending_high; i++) {
        struct dlk_call *ended = dlk_book_disconnect(book, i, over, now_ns);
        last = ended != NULL ? ended : last;
    }
    return last;
}

static void attach_again(struct dlk_book *book, uint32_t epoch, uint64_t now_ns)
{
    struct dlk_link link = link_of(epoch);
    for (uint32_t i = 0; i < book->pending_high; i++) {
        dlk_book_sift(book, i, epoch, now_ns);
    }
    dlk_book_attach(book, &link, now_ns, now_ns);
}

static void a_wait_is_parked_and_sent_again(bool queued)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 8000, 60000);
    struct dlk_request asked = begin(&book, &call, T0);
    if (queued) {
        assert(reply(&book, &asked, R(QUEUED), T0 + MS) == NULL);
    }
    assert(disconnect(&book, false, T0 + 2 * MS) == NULL && call.status == S(PENDING));
    assert(call.deadline_ns == T0 + 60000 * MS && book.debts == 0);
    assert(disconnect(&book, false, T0 + 3 * MS) == NULL); /* and again: nothing changes */
    attach_again(&book, EPOCH, T0 + 10000 * MS);
    const struct dlk_request *again = dlk_book_next_parked(&book, T0 + 10001 * MS);
    assert(again->request_id == asked.request_id && again->op == DLK_OP_LOCK);
    assert(again->flags == (asked.flags | DLK_FLAG_RESEND) && again->wait_ms == 49999);
    assert(again->lease_ms == 8000 && again->owner == OWNER && again->slot == 5);
    assert(dlk_book_next_parked(&book, T0 + 10001 * MS) == NULL);
    assert(call.deadline_ns == T0 + (60000 + TIMEOUT_MS) * MS);
    struct dlk_request sent = *again;
    assert(reply(&book, &sent, R(QUEUED), T0 + 10002 * MS) == NULL);
    assert(reply(&book, &sent, R(GRANTED), T0 + 10003 * MS) == &call);
    assert(call.status == S(SUCCESS) && book.pending_used == 0);
    dlk_book_free(&book);
}

/* They have no place at the server yet: it is to get them in the old order. */
static void they_go_in_the_order_of_their_first_sending(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call calls[4];
    struct dlk_request asked[4];
    struct dlk_call before = ask_for(TRY, 0, 0);
    struct dlk_request first = begin(&book, &before, T0); /* its slot is used again by the last */
    for (uint32_t i = 0; i < 4; i++) {
        if (i == 3) {
            assert(reply(&book, &first, R(BUSY), T0) == &before);
        }
        calls[i] = ask_for(WAIT, 0, DLK_WAIT_FOREVER);
        calls[i].owner = OWNER + (i + 1) % 4;
        asked[i] = begin(&book, &calls[i], T0);
    }
    assert(asked[3].request_id % DLK_INFLIGHT_MAX < asked[0].request_id % DLK_INFLIGHT_MAX);
    disconnect(&book, false, T0);
    attach_again(&book, EPOCH, T0 + MS);
    for (uint32_t i = 0; i < 4; i++) {
        assert(dlk_book_next_parked(&book, T0 + MS)->request_id == asked[i].request_id);
        assert(calls[i].deadline_ns == DLK_NEVER_NS);
    }
    dlk_book_free(&book);
}

static void what_does_not_wait_ends_with_the_connection(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_FAIR);
    struct dlk_call try = ask_for(TRY, 0, 0);
    begin(&book, &try, T0);
    assert(disconnect(&book, false, T0) == &try && try.status == S(BAD_RESPONSE));
    assert(book.debts == 1);
    struct dlk_request cancel = *next_debt(&book);
    assert(reply(&book, &cancel, R(CANCELLED), T0) == NULL);
    /* A ticket is kept anyway. */
    struct dlk_call ticket = ask_for(TRY, 0, 0);
    assert(run(&book, &ticket, R(TICKETED), T0) == S(EAGAIN));
    struct dlk_call redeem = ask_for(WAIT, 0, 60000);
    assert(begin(&book, &redeem, T0).op == DLK_OP_REDEEM);
    assert(disconnect(&book, false, T0) == &redeem && redeem.status == S(BAD_RESPONSE));
    assert(book.debts == 0 && belief_of(&book)->state == DLK_ENTRY_TICKET);
    dlk_book_free(&book);
}

static void a_client_that_keeps_no_waits_parks_none(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, 60000);
    begin(&book, &call, T0);
    assert(disconnect(&book, false, T0) == &call && call.status == S(BAD_RESPONSE));
    assert(book.debts_unsent == 1);
    dlk_book_free(&book);
}

static void given_up_for_good_all_end(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, DLK_WAIT_FOREVER);
    begin(&book, &call, T0);
    disconnect(&book, false, T0);
    assert(disconnect(&book, true, T0) == &call && call.status == S(BAD_RESPONSE));
    assert(book.debts_unsent == 1 && next_debt(&book)->op == DLK_OP_CANCEL);
    attach_again(&book, EPOCH, T0);
    assert(dlk_book_next_parked(&book, T0) == NULL);
    dlk_book_free(&book);
}

static void its_own_time_and_its_cancellation_go_on(bool cancelled)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, 60000);
    struct dlk_request asked = begin(&book, &call, T0);
    disconnect(&book, false, T0);
    if (cancelled) {
        dlk_book_cancel(&book, &call, T0 + MS);
        assert(call.phase == DLK_PHASE_SEEN);
    } else {
        assert(dlk_book_lose(&book, call.slot, false, T0 + 60000 * MS) == &call);
        assert(call.status == S(BAD_RESPONSE));
    }
    attach_again(&book, EPOCH, T0 + 60000 * MS);
    assert(dlk_book_next_parked(&book, T0 + 60000 * MS) == NULL);
    const struct dlk_request *debt = next_debt(&book);
    assert(debt->op == DLK_OP_CANCEL && debt->value == asked.request_id);
    assert((debt->flags & DLK_FLAG_RESEND) == 0);
    struct dlk_call next = ask_for(WAIT, 0, 60000);
    begin(&book, &next, T0 + 60000 * MS); /* the hold is free for it */
    dlk_book_free(&book);
}

/* Only another `lock` waits for one that may take long; a posted one also without a connection. */
static void others_of_the_hold_are_answered_as_before(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, 60000);
    begin(&book, &call, T0);
    disconnect(&book, false, T0);
    struct dlk_call try = ask_for(TRY, 0, 0);
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    struct dlk_call other = ask_for(WAIT, 0, 60000);
    assert(turn_of(&book, &try, T0) == DLK_TURN_DONE && try.status == S(FAIL));
    assert(turn_of(&book, &unlock, T0) == DLK_TURN_DONE);
    assert(unlock.status == S(ALREADY_UNLOCKED));
    assert(turn_of(&book, &other, T0) == DLK_TURN_LATER);
    assert(dlk_posted_behind_parked(&book, &other));
    dlk_book_free(&book);
}

/* NOT_READY, while the server becomes ready again; STOPPING, when its end is near. */
static void a_server_that_is_not_ready_is_asked_again(uint32_t result)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, 60000);
    struct dlk_request asked = begin(&book, &call, T0);
    disconnect(&book, false, T0);
    attach_again(&book, EPOCH, T0);
    assert(dlk_book_next_parked(&book, T0) != NULL);
    assert(reply(&book, &asked, result, T0 + MS) == NULL);
    assert(call.deadline_ns == T0 + 60000 * MS);
    assert(dlk_book_next_parked(&book, T0 + MS) == NULL);
    dlk_book_retry_kept(&book);
    assert(dlk_book_next_parked(&book, T0 + MS) != NULL);
    assert(reply(&book, &asked, result, T0 + MS) == NULL);
    /* A grant of what was in its queue all the time. */
    assert(reply(&book, &asked, R(GRANTED), T0 + 2 * MS) == &call);
    assert(call.status == S(SUCCESS) && book.waits_kept == 0);
    dlk_book_free(&book);
}

static void who_asks_first_hears_that_the_server_is_not_ready(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, 60000);
    assert(run(&book, &call, R(NOT_READY), T0) == S(NOT_READY));
    dlk_book_free(&book);
}

static void a_connection_that_fails_again_changes_nothing(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, 60000);
    struct dlk_request asked = begin(&book, &call, T0);
    for (uint64_t i = 1; i < 6; i++) {
        disconnect(&book, false, T0 + i * MS);
        attach_again(&book, EPOCH, T0 + i * MS);
        const struct dlk_request *again = dlk_book_next_parked(&book, T0 + i * MS);
        assert(again->request_id == asked.request_id && again->wait_ms == 60000 - i);
        if (i == 3) {
            assert(reply(&book, &asked, R(STOPPING), T0 + i * MS) == NULL);
        }
    }
    assert(reply(&book, &asked, R(TIMED_OUT), T0 + 60000 * MS) == &call);
    assert(call.status == S(FAIL));
    dlk_book_free(&book);
}

static void a_server_of_another_epoch_does_not_know_it(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, DLK_WAIT_FOREVER);
    struct dlk_request asked = begin(&book, &call, T0);
    reply(&book, &asked, R(QUEUED), T0);
    disconnect(&book, false, T0);
    assert(dlk_book_sift(&book, call.slot, EPOCH, T0) == NULL);
    assert(dlk_book_sift(&book, call.slot, EPOCH + 1, T0) == &call);
    assert(call.status == S(BAD_RESPONSE) && book.debts == 0 && book.pending_used == 0);
    dlk_book_free(&book);
}

/* ---- A repetition that comes after the end of what it repeats ---- */

/* The wait has been sent again, and is granted or over before the server has read that. */
static struct dlk_request sent_again(struct dlk_book *book, struct dlk_call *call)
{
    struct dlk_request asked = begin(book, call, T0);
    reply(book, &asked, R(QUEUED), T0);
    disconnect(book, false, T0);
    attach_again(book, EPOCH, T0);
    return *dlk_book_next_parked(book, T0);
}

static void expect_cancel(struct dlk_book *book, const struct dlk_request *asked)
{
    assert(book->debts_unsent == 1);
    const struct dlk_request *debt = next_debt(book);
    assert(debt->op == DLK_OP_CANCEL && debt->value == asked->request_id);
    assert(debt->lock_id == LOCK && debt->owner == OWNER && debt->slot == 5);
}

static void what_ended_before_its_repetition_came_is_undone_after_it(uint32_t result)
{
    struct dlk_book book = keeping_book(DLK_KIND_FAIR);
    struct dlk_call call = ask_for(WAIT, 0, 60000);
    struct dlk_request asked = sent_again(&book, &call);
    assert(reply(&book, &asked, result, T0) == &call);
    expect_cancel(&book, &asked);
    dlk_book_free(&book);
}

/* A cancel names the request, and so would end the hold that came from it: it comes afterwards. */
static void a_hold_is_undone_with_its_repetition_only_when_it_has_ended(bool answered)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, 60000);
    struct dlk_request asked = sent_again(&book, &call);
    assert(reply(&book, &asked, R(GRANTED), T0) == &call && book.debts == 0);
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    struct dlk_request given_back = begin(&book, &unlock, T0);
    assert(book.debts == 0);
    if (!answered) {
        disconnect(&book, false, T0);
        attach_again(&book, EPOCH, T0);
        given_back = *next_debt(&book);
    } else {
        assert(reply(&book, &given_back, R(NOT_READY), T0) == &unlock && book.debts == 0);
        given_back = begin(&book, &unlock, T0);
    }
    reply(&book, &given_back, R(RELEASED), T0);
    expect_cancel(&book, &asked);
    dlk_book_free(&book);
}

static void a_hold_that_was_found_since_leaves_nothing(bool queued)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, 60000);
    struct dlk_request asked = sent_again(&book, &call);
    if (queued) {
        reply(&book, &asked, R(QUEUED), T0);
    }
    assert(reply(&book, &asked, R(GRANTED), T0) == &call);
    struct dlk_call extend = ask_for(EXTEND, 0, 0);
    if (!queued) {
        assert(run(&book, &extend, R(EXTENDED), T0) == S(SUCCESS));
    }
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    assert(run(&book, &unlock, R(RELEASED), T0) == S(SUCCESS));
    assert(book.debts == 0 && book.pending_used == 0);
    dlk_book_free(&book);
}

static void a_hold_that_is_lost_leaves_no_repetition(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, 60000);
    struct dlk_request asked = sent_again(&book, &call);
    assert(reply(&book, &asked, R(GRANTED), T0) == &call);
    struct dlk_call extend = ask_for(EXTEND, 0, 0);
    assert(run(&book, &extend, R(NOT_HELD), T0) == S(FAIL));
    expect_cancel(&book, &asked);
    dlk_book_free(&book);
}

static void nobody_who_has_dropped_the_lock_is_left_with_a_grant(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, 60000);
    struct dlk_request asked = sent_again(&book, &call);
    assert(dlk_book_drop_lock(&book, LOCK, OWNER, true) == S(SUCCESS));
    assert(reply(&book, &asked, R(GRANTED), T0) == &call);
    expect_cancel(&book, &asked);
    dlk_book_free(&book);
}

/* ---- Until when ---- */

enum { LEASE_MS = 8000 };

/* What is believed after a grant that says that it was held for so long. */
static uint64_t end_after(bool queued_again, uint64_t held_ms, uint64_t *session_until_ns)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, LEASE_MS, DLK_WAIT_FOREVER);
    struct dlk_request asked = begin(&book, &call, T0 + 1000 * MS);
    reply(&book, &asked, R(QUEUED), T0 + 1001 * MS);
    disconnect(&book, false, T0 + 2000 * MS);
    attach_again(&book, EPOCH, T0 + 3000 * MS);
    asked = *dlk_book_next_parked(&book, T0 + 4000 * MS);
    if (queued_again) {
        reply(&book, &asked, R(QUEUED), T0 + 4001 * MS);
    }
    struct dlk_reply grant = answer_to(&asked, R(GRANTED));
    grant.held_us = held_ms * 1000;
    assert(dlk_book_reply(&book, &grant, T0 + 20000 * MS) == &call);
    uint64_t end_ns = belief_of(&book)->end_ns;
    *session_until_ns = book.session_until_ns;
    dlk_book_free(&book);
    return end_ns;
}

/* The grant may have been sent before the repetition came, and counts from the first sending then;
 * but it was said after the connection was asked for. */
static void an_end_is_never_counted_from_a_sending_that_may_not_have_come(void)
{
    const uint64_t session_ns = TTL_MS * MS - TTL_MS * MS / 1000;
    uint64_t until_ns;
    uint64_t lease_ns = LEASE_MS * MS - LEASE_MS * MS / 1000;
    assert(end_after(false, 0, &until_ns) == T0 + 3000 * MS + lease_ns);
    assert(until_ns == T0 + 3000 * MS + session_ns);
    uint64_t long_ns = 13000 * MS - 13000 * MS / 1000;
    assert(end_after(false, 5000, &until_ns) == T0 + 1000 * MS + long_ns);
    assert(until_ns == T0 + 3000 * MS + session_ns);
    /* Said to be queued anew, it counts from then on. */
    assert(end_after(true, 5000, &until_ns) == T0 + 4000 * MS + long_ns);
    assert(until_ns == T0 + 4000 * MS + session_ns);
}

int main(void)
{
    a_wait_is_parked_and_sent_again(false);
    a_wait_is_parked_and_sent_again(true);
    they_go_in_the_order_of_their_first_sending();
    what_does_not_wait_ends_with_the_connection();
    a_client_that_keeps_no_waits_parks_none();
    given_up_for_good_all_end();
    its_own_time_and_its_cancellation_go_on(false);
    its_own_time_and_its_cancellation_go_on(true);
    others_of_the_hold_are_answered_as_before();
    a_server_that_is_not_ready_is_asked_again(R(NOT_READY));
    a_server_that_is_not_ready_is_asked_again(R(STOPPING));
    who_asks_first_hears_that_the_server_is_not_ready();
    a_connection_that_fails_again_changes_nothing();
    a_server_of_another_epoch_does_not_know_it();
    what_ended_before_its_repetition_came_is_undone_after_it(R(TIMED_OUT));
    what_ended_before_its_repetition_came_is_undone_after_it(R(NO_RESOURCE));
    a_hold_is_undone_with_its_repetition_only_when_it_has_ended(true);
    a_hold_is_undone_with_its_repetition_only_when_it_has_ended(false);
    a_hold_that_was_found_since_leaves_nothing(true);
    a_hold_that_was_found_since_leaves_nothing(false);
    a_hold_that_is_lost_leaves_no_repetition();
    nobody_who_has_dropped_the_lock_is_left_with_a_grant();
    an_end_is_never_counted_from_a_sending_that_may_not_have_come();
    return 0;
}
