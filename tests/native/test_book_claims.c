/*
 * A new primary, by the book alone: what is claimed, what each answer comes to, what is not got any
 * more, and which waits go on.
 */
#include "book_claim_world.h"

/* A wait with a place, its connection gone. */
static struct dlk_request parked(struct dlk_book *book, struct dlk_call *call, bool queued)
{
    struct dlk_request asked = begin(book, call, T0);
    if (queued) {
        reply(book, &asked, R(QUEUED), T0);
    }
    disconnect(book, T0 + 1000 * MS);
    return asked;
}

/* ---- Claims ---- */

static void a_hold_is_claimed_with_all_that_it_is(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_SEMAPHORE);
    struct dlk_call call = ask_for(TRY, 5000, 0);
    call.flags = DLK_FLAG_FINAL_EXPIRY;
    assert(run(&book, &call, R(GRANTED), T0) == S(SUCCESS));
    struct dlk_claim claim = claim_of(&book, T0 + 1000 * MS);
    assert(claim.state == DLK_ENTRY_HELD && claim.lock_id == LOCK && claim.slot == 5);
    assert(claim.kind == DLK_KIND_SEMAPHORE && claim.size == 0 && claim.owner == OWNER);
    assert(claim.token == 1000 && claim.stamp == 0 && claim.count == 1 && claim.leased == 1);
    assert(claim.remaining_ms == 3995 && claim.lapsed == 0);
    assert(claim.flags == DLK_FLAG_FINAL_EXPIRY && claim.request_id == 0 && claim.wait_ms == 0);
    claim = claim_of(&book, T0 + 4995 * MS);
    assert(claim.lapsed == 1 && claim.remaining_ms == 0);
    dlk_book_free(&book);
}

static void a_ticket_is_claimed_with_its_place(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_FAIR);
    struct dlk_call call = ask_for(TRY, 0, 0);
    assert(run(&book, &call, R(TICKETED), T0) == S(EAGAIN));
    struct dlk_claim claim = claim_of(&book, T0);
    assert(claim.state == DLK_ENTRY_TICKET && claim.stamp == 500 && claim.token == 0);
    assert(claim.size == 1 && claim.lapsed == 0 && claim.count == 0);
    dlk_book_free(&book);
}

static void a_wait_is_claimed_if_it_has_a_place(bool queued)
{
    struct dlk_book book = keeping_book(DLK_KIND_FAIR);
    struct dlk_call call = ask_for(WAIT, 8000, 60000);
    call.flags = DLK_FLAG_TICKET | DLK_FLAG_FINAL_EXPIRY | DLK_FLAG_DEADLOCK;
    struct dlk_request asked = parked(&book, &call, queued);
    struct dlk_claim claim = claim_of(&book, T0 + 10000 * MS);
    if (!queued) {
        assert(claim.state == DLK_ENTRY_FREE && claim.request_id == 0);
    } else {
        assert(claim.state == DLK_ENTRY_QUEUED && claim.stamp == 500 && claim.token == 0);
        assert(claim.request_id == asked.request_id && claim.wait_ms == 50000);
        assert(claim.remaining_ms == 8000 && claim.leased == 1 && claim.lapsed == 0);
        assert(claim.flags == (DLK_FLAG_TICKET | DLK_FLAG_FINAL_EXPIRY));
        assert(claim_of(&book, T0 + 60000 * MS).wait_ms == 1);
    }
    dlk_book_free(&book);
}

/* ---- Answers ---- */

static void what_was_taken_over_is_held(void)
{
    struct dlk_book book = holding_book(DLK_KIND_ATOMIC, 0);
    disconnect(&book, T0);
    struct dlk_claim claim = claim_of(&book, T0);
    dlk_book_claimed(&book, &claim, S(SUCCESS));
    seal(&book);
    attach_next(&book, NEXT, T0 + 1000 * MS);
    assert(belief_of(&book)->state == DLK_ENTRY_HELD && told(&book, DLK_NOTICE_LOST) == 0);
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    struct dlk_request asked = begin(&book, &unlock, T0 + 1000 * MS);
    assert(asked.token == 1000 && asked.entry == DLK_NONE);
    dlk_book_free(&book);
}

/* FAIL: held, and lost. LOCK_NOT_GET: another lock is there. DLK_STATUS_PENDING stands for no
 * answer at all. */
static void what_was_refused_is_lost_and_heard_of_once(int32_t status)
{
    struct dlk_book book = holding_book(DLK_KIND_ATOMIC, 0);
    disconnect(&book, T0);
    struct dlk_claim claim = claim_of(&book, T0);
    if (status != S(PENDING)) {
        dlk_book_claimed(&book, &claim, status);
        assert(told(&book, DLK_NOTICE_LOST) == 1);
    }
    seal(&book);
    assert(told(&book, DLK_NOTICE_LOST) == (status == S(PENDING)));
    attach_next(&book, NEXT, T0);
    assert(status_of(&book, DLK_VERB_LOOK) == S(SUCCESS));
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    assert(turn_of(&book, &unlock, T0) == DLK_TURN_DONE);
    assert(unlock.status == S(FAIL) && unlock.result == R(NOT_HELD));
    assert(status_of(&book, UNLOCK) == S(LOCK_NOT_GET));
    assert(dlk_book_claims(&book, NULL, 0, T0) == 0 && book.pending_used == 0);
    dlk_book_free(&book);
}

/* Another owner of this client has the lock still. */
static void a_lost_hold_of_a_lock_that_survives_can_be_taken_again(void)
{
    struct dlk_book book = holding_book(DLK_KIND_RW, 0);
    assert(dlk_book_add_lock(&book, LOCK, 5, DLK_KIND_RW, OWNER + 1) == S(SUCCESS));
    disconnect(&book, T0);
    struct dlk_claim claims[2];
    assert(dlk_book_claims(&book, claims, 2, T0) == 2 && claims[1].state == DLK_ENTRY_FREE);
    dlk_book_claimed(&book, &claims[0], S(FAIL));
    dlk_book_claimed(&book, &claims[1], S(SUCCESS));
    seal(&book);
    attach_next(&book, NEXT, T0);
    assert(status_of(&book, UNLOCK) == S(FAIL) && status_of(&book, UNLOCK) == S(ALREADY_UNLOCKED));
    struct dlk_call again = ask_for(TRY, 0, 0);
    begin(&book, &again, T0);
    dlk_book_free(&book);
}

/* Its id may be another lock's by now. */
static void what_was_not_claimed_is_never_named_again(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    disconnect(&book, T0);
    seal(&book);
    attach_next(&book, NEXT, T0);
    assert(dlk_book_claims(&book, NULL, 0, T0) == 0);
    assert(dlk_book_add_lock(&book, OTHER, 6, DLK_KIND_ATOMIC, OWNER) == S(SUCCESS));
    assert(status_of(&book, TRY) == S(LOCK_NOT_GET));
    assert(dlk_map_get(&book.locks, LOCK, OWNER) == DLK_NONE);
    /* Got again, it is one like any other, whatever it was. */
    assert(dlk_book_add_lock(&book, LOCK, 7, DLK_KIND_RW, OWNER) == S(SUCCESS));
    disconnect(&book, T0);
    seal(&book);
    assert(dlk_book_add_lock(&book, LOCK, 8, DLK_KIND_FAIR, OWNER) == S(SUCCESS));
    struct dlk_call call = ask_for(TRY, 0, 0);
    assert(begin(&book, &call, T0).slot == 8);
    dlk_book_free(&book);
}

/* Who wants to release it hears the same, once. */
static void a_release_hears_of_it_too(void)
{
    struct dlk_book book = holding_book(DLK_KIND_ATOMIC, 0);
    assert(dlk_book_add_lock(&book, OTHER, 6, DLK_KIND_ATOMIC, OWNER) == S(SUCCESS));
    disconnect(&book, T0);
    seal(&book);
    attach_next(&book, NEXT, T0);
    assert(dlk_book_may_drop_lock(&book, LOCK, OWNER) == S(FAIL));
    assert(dlk_book_drop_lock(&book, LOCK, OWNER, false) == S(FAIL));
    assert(dlk_book_drop_lock(&book, LOCK, OWNER, false) == S(LOCK_NOT_GET));
    assert(dlk_book_may_drop_lock(&book, OTHER, OWNER) == S(LOCK_NOT_GET));
    assert(dlk_book_drop_lock(&book, OTHER, OWNER, true) == S(SUCCESS));
    assert(dlk_map_get(&book.locks, LOCK, OWNER) == DLK_NONE);
    assert(dlk_map_get(&book.locks, OTHER, OWNER) == DLK_NONE);
    dlk_book_free(&book);
}

/* While its release is under way it is there for nobody; if it fails, it is as it was. */
static void a_lock_that_is_set_aside_comes_back_as_it_was(void)
{
    struct dlk_book book = holding_book(DLK_KIND_FAIR, 0);
    assert(dlk_book_set_lock_aside(&book, LOCK, OWNER) == S(ERROR));
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    assert(run(&book, &unlock, R(RELEASED), T0) == S(SUCCESS));
    book.holds[dlk_map_get(&book.locks, LOCK, OWNER)].now.m_shared = 7;
    assert(dlk_book_set_lock_aside(&book, LOCK, OWNER) == S(SUCCESS));
    assert(dlk_book_set_lock_aside(&book, LOCK, OWNER + 1) == S(LOCK_NOT_GET));
    assert(dlk_book_claims(&book, NULL, 0, T0) == 0);
    assert(dlk_book_add_lock(&book, LOCK, 5, DLK_KIND_FAIR, OWNER) == S(SUCCESS));
    assert(belief_of(&book)->m_shared == 7 && status_of(&book, UNLOCK) == S(ALREADY_UNLOCKED));
    assert(dlk_book_set_lock_aside(&book, LOCK, OWNER) == S(SUCCESS));
    assert(status_of(&book, UNLOCK) == S(LOCK_NOT_GET));
    assert(dlk_book_drop_lock(&book, LOCK, OWNER, true) == S(LOCK_NOT_GET));
    dlk_book_free(&book);
}

static void who_gave_it_up_meanwhile_is_left_alone(void)
{
    struct dlk_book book = holding_book(DLK_KIND_ATOMIC, 0);
    disconnect(&book, T0);
    struct dlk_claim claim = claim_of(&book, T0);
    struct dlk_call unlock = ask_for(UNLOCK, 0, 0);
    begin(&book, &unlock, T0);
    dlk_book_unsent(&book, &unlock, T0);
    dlk_book_claimed(&book, &claim, S(FAIL));
    assert(told(&book, DLK_NOTICE_LOST) == 0 && book.debts_unsent == 1);
    dlk_book_claimed(&book, &claim, S(SUCCESS));
    seal(&book);
    attach_next(&book, NEXT, T0);
    assert(next_debt(&book)->op == DLK_OP_UNLOCK); /* the server has taken it over */
    assert(status_of(&book, UNLOCK) == S(ALREADY_UNLOCKED));
    dlk_book_free(&book);
}

static void what_was_said_to_earlier_claims_counts_no_more(void)
{
    struct dlk_book book = holding_book(DLK_KIND_ATOMIC, 0);
    disconnect(&book, T0);
    struct dlk_claim claim = claim_of(&book, T0);
    dlk_book_claimed(&book, &claim, S(SUCCESS));
    disconnect(&book, T0); /* and that primary died, too */
    seal(&book);
    assert(told(&book, DLK_NOTICE_LOST) == 1 && status_of(&book, UNLOCK) == S(FAIL));
    dlk_book_free(&book);
}

static void a_ticket_that_was_refused_is_gone(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_FAIR);
    struct dlk_call ticket = ask_for(TRY, 0, 0);
    assert(run(&book, &ticket, R(TICKETED), T0) == S(EAGAIN));
    disconnect(&book, T0);
    struct dlk_claim claim = claim_of(&book, T0);
    dlk_book_claimed(&book, &claim, S(SERVER_NO_RESOURCE));
    seal(&book);
    assert(belief_of(&book)->state == DLK_ENTRY_FREE);
    assert(status_of(&book, TRY) == S(LOCK_NOT_GET));
    dlk_book_free(&book);
}

/* ---- Waits ---- */

static void a_wait_with_a_place_awaits_its_grant_there(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 8000, DLK_WAIT_FOREVER);
    struct dlk_request asked = parked(&book, &call, true);
    struct dlk_claim claim = claim_of(&book, T0 + 2000 * MS);
    dlk_book_claimed(&book, &claim, S(SUCCESS));
    seal(&book);
    attach_next(&book, NEXT, T0 + 3000 * MS);
    assert(dlk_book_next_parked(&book, T0 + 3000 * MS) == NULL && call.status == S(PENDING));
    dlk_book_retry_kept(&book);
    assert(dlk_book_next_parked(&book, T0 + 3000 * MS) == NULL);
    struct dlk_reply grant = answer_to(&asked, R(GRANTED));
    grant.epoch = NEXT;
    grant.held_us = 60 * 1000000;
    uint64_t until_ns = book.session_until_ns;
    assert(dlk_book_reply(&book, &grant, T0 + 70000 * MS) == &call && call.status == S(SUCCESS));
    uint64_t counted_ns = 68000 * MS - 68000 * MS / 1000; /* from when the claims were made */
    assert(belief_of(&book)->end_ns == T0 + 1000 * MS + counted_ns);
    assert(book.session_until_ns == until_ns);
    dlk_book_free(&book);
}

/* Over the next connection to that primary it is a repetition, as ever. */
static void an_accepted_wait_is_parked_like_any_other(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, DLK_WAIT_FOREVER);
    struct dlk_request asked = parked(&book, &call, true);
    struct dlk_claim claim = claim_of(&book, T0);
    dlk_book_claimed(&book, &claim, S(SUCCESS));
    seal(&book);
    attach_next(&book, NEXT, T0);
    for (uint32_t i = 0; i < book.pending_high; i++) {
        dlk_book_disconnect(&book, i, false, T0);
    }
    attach_next(&book, NEXT, T0);
    const struct dlk_request *again = dlk_book_next_parked(&book, T0);
    assert(again->request_id == asked.request_id && (again->flags & DLK_FLAG_RESEND) != 0);
    dlk_book_free(&book);
}

static void a_wait_without_a_place_is_asked_anew(bool queued)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, 60000);
    struct dlk_request asked = parked(&book, &call, queued);
    struct dlk_claim claim = claim_of(&book, T0);
    claim.state = DLK_ENTRY_FREE; /* the lock is there; a place was refused, or none was claimed */
    dlk_book_claimed(&book, &claim, S(SUCCESS));
    seal(&book);
    attach_next(&book, NEXT, T0 + 2000 * MS);
    assert(dlk_book_next_parked(&book, T0 + 2000 * MS) == NULL && call.status == S(PENDING));
    for (uint32_t i = 0; i < 3; i++) {
        dlk_book_verify(&book);
        const struct dlk_request *anew = dlk_book_next_parked(&book, T0 + 3000 * MS);
        assert(anew->request_id == asked.request_id && anew->wait_ms == 57000);
        assert(((anew->flags & DLK_FLAG_RESEND) != 0) == (i != 0));
        asked = *anew;
        assert(reply_next(&book, &asked, R(NOT_READY), T0 + 3000 * MS) == NULL);
        assert(dlk_book_next_parked(&book, T0 + 3000 * MS) == NULL);
    }
    dlk_book_verify(&book);
    asked = *dlk_book_next_parked(&book, T0 + 3000 * MS);
    assert(reply_next(&book, &asked, R(GRANTED), T0 + 4000 * MS) == &call);
    assert(call.status == S(SUCCESS));
    dlk_book_free(&book);
}

static void a_wait_for_a_lock_that_is_unknown_ends(int32_t status)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, DLK_WAIT_FOREVER);
    parked(&book, &call, true);
    struct dlk_claim claim = claim_of(&book, T0);
    dlk_book_claimed(&book, &claim, status);
    seal(&book);
    assert(call.status == S(LOCK_NOT_GET) && book.pending_used == 0 && book.debts == 0);
    assert(status_of(&book, TRY) == S(LOCK_NOT_GET));
    dlk_book_free(&book);
}

static void a_wait_that_is_cancelled_after_its_claim_is_undone_there(void)
{
    struct dlk_book book = keeping_book(DLK_KIND_ATOMIC);
    struct dlk_call call = ask_for(WAIT, 0, DLK_WAIT_FOREVER);
    struct dlk_request asked = parked(&book, &call, true);
    struct dlk_claim claim = claim_of(&book, T0);
    dlk_book_cancel(&book, &call, T0);
    dlk_book_claimed(&book, &claim, S(SUCCESS));
    seal(&book);
    attach_next(&book, NEXT, T0);
    const struct dlk_request *debt = next_debt(&book);
    assert(debt->op == DLK_OP_CANCEL && debt->value == asked.request_id);
    dlk_book_free(&book);
}

int main(void)
{
    a_hold_is_claimed_with_all_that_it_is();
    a_ticket_is_claimed_with_its_place();
    a_wait_is_claimed_if_it_has_a_place(false);
    a_wait_is_claimed_if_it_has_a_place(true);
    what_was_taken_over_is_held();
    what_was_refused_is_lost_and_heard_of_once(S(FAIL));
    what_was_refused_is_lost_and_heard_of_once(S(LOCK_NOT_GET));
    what_was_refused_is_lost_and_heard_of_once(S(PENDING));
    a_lost_hold_of_a_lock_that_survives_can_be_taken_again();
    what_was_not_claimed_is_never_named_again();
    a_release_hears_of_it_too();
    a_lock_that_is_set_aside_comes_back_as_it_was();
    who_gave_it_up_meanwhile_is_left_alone();
    what_was_said_to_earlier_claims_counts_no_more();
    a_ticket_that_was_refused_is_gone();
    a_wait_with_a_place_awaits_its_grant_there();
    an_accepted_wait_is_parked_like_any_other();
    a_wait_without_a_place_is_asked_anew(false);
    a_wait_without_a_place_is_asked_anew(true);
    a_wait_for_a_lock_that_is_unknown_ends(S(FAIL));
    a_wait_for_a_lock_that_is_unknown_ends(S(LOCK_NOT_GET));
    a_wait_that_is_cancelled_after_its_claim_is_undone_there();
    return 0;
}
