/*
 * Posted calls in the book alone: their order behind a hold and for want of a request slot, what a
 * cancelled one leaves to those behind it, the wheel of deadlines, and a refused cycle.
 */
#include <stdio.h>
#include <stdlib.h>

#include "book_world.h"

enum { TICK_NS = 1 << DLK_WHEEL_TICK_SHIFT, MANY = 3000, OBJECT = 9 };

/* As the shell does it. True: it was begun. */
static bool post(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns)
{
    const struct dlk_request *request;
    bool sent = false;
    dlk_book_prepare(call);
    if (dlk_posted_must_queue(book, call)) {
        dlk_book_put_off(book, call, now_ns);
    } else {
        sent = dlk_book_begin(book, call, now_ns, &request) == DLK_TURN_SEND;
    }
    dlk_posted_place(book, call);
    return sent;
}

/* Begins the next that was put off; NULL: none may. */
static struct dlk_call *go_on(struct dlk_book *book)
{
    const struct dlk_request *request;
    struct dlk_call *call = dlk_posted_next(book, true);
    if (call != NULL) {
        dlk_book_begin(book, call, T0, &request);
        if (call->phase == DLK_PHASE_ENDED) {
            dlk_posted_end(book, call);
        } else {
            dlk_posted_place(book, call);
        }
        dlk_posted_begun(book, call);
    }
    return call;
}

static void answer(struct dlk_book *book, struct dlk_call *call, uint32_t result)
{
    const struct dlk_request *request = &book->pending[call->slot].request;
    struct dlk_reply reply = {.request_id = request->request_id,
                              .op = request->op,
                              .result = (uint16_t)result,
                              .session = CLIENT,
                              .epoch = EPOCH,
                              .value = 31,
                              .token = 1000};
    assert(dlk_book_reply(book, &reply, T0) == call);
    dlk_posted_end(book, call);
}

static struct dlk_call of_lock(uint32_t verb, uint64_t cookie)
{
    return (struct dlk_call){.verb = verb,
                             .lock_id = LOCK,
                             .owner = OWNER,
                             .wait_ms = verb == WAIT ? 60000 : 0,
                             .cookie = cookie};
}

/* ---- Behind a hold ---- */

static void test_order_behind_a_hold(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call calls[4] = {of_lock(TRY, 0), of_lock(UNLOCK, 1), of_lock(TRY, 2),
                                of_lock(UNLOCK, 3)};
    static const uint32_t results[] = {R(GRANTED), R(RELEASED), R(GRANTED), R(RELEASED)};
    for (int i = 0; i < 4; i++) {
        assert(post(&book, &calls[i], T0) == (i == 0));
    }
    assert(dlk_book_may_drop_lock(&book, LOCK, OWNER) == S(EASYNC));
    for (int i = 0; i < 4; i++) {
        assert(calls[i].phase == DLK_PHASE_SENT && go_on(&book) == NULL);
        answer(&book, &calls[i], results[i]);
        assert(i == 3 || go_on(&book) == &calls[i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        assert(dlk_posted_take(&book) == &calls[i] && calls[i].status == S(SUCCESS));
    }
    assert(dlk_posted_take(&book) == NULL && go_on(&book) == NULL);
    dlk_book_free(&book);
}

/* The middle one of three is withdrawn, and then the one whose turn it is. */
static void test_withdrawn_behind_a_hold(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call first = of_lock(TRY, 0);
    struct dlk_call calls[3] = {of_lock(UNLOCK, 1), of_lock(TRY, 2), of_lock(UNLOCK, 3)};
    assert(post(&book, &first, T0));
    for (int i = 0; i < 3; i++) {
        assert(!post(&book, &calls[i], T0));
    }
    dlk_book_cancel(&book, &calls[1], T0);
    assert(calls[1].place == DLK_PLACE_NONE && calls[1].status == S(FAIL));
    answer(&book, &first, R(GRANTED));
    assert(calls[0].place == DLK_PLACE_AGAIN);
    dlk_book_cancel(&book, &calls[0], T0);
    assert(go_on(&book) == &calls[2] && calls[2].phase == DLK_PHASE_SENT);
    answer(&book, &calls[2], R(RELEASED));
    assert(dlk_posted_take(&book) == &first && dlk_posted_take(&book) == &calls[2]);
    assert(dlk_posted_take(&book) == NULL);
    dlk_book_free(&book);
}

/* A forgotten lock frees all who stand behind it. */
static void test_behind_a_forgotten_hold(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    struct dlk_call calls[3] = {of_lock(TRY, 0), of_lock(UNLOCK, 1), of_lock(TRY, 2)};
    for (int i = 0; i < 3; i++) {
        post(&book, &calls[i], T0);
    }
    assert(dlk_book_drop_lock(&book, LOCK, OWNER, true) == S(SUCCESS));
    answer(&book, &calls[0], R(BUSY));
    for (int i = 1; i < 3; i++) {
        assert(go_on(&book) == &calls[i] && calls[i].status == S(LOCK_NOT_GET));
    }
    dlk_book_free(&book);
}

/* ---- No request slot ---- */

static struct dlk_call reads[DLK_INFLIGHT_MAX];

static uint32_t fill(struct dlk_book *book)
{
    uint32_t sent = 0;
    assert(dlk_book_add_object(book, OBJECT, 0) == S(SUCCESS));
    for (;; sent++) {
        reads[sent] = (struct dlk_call){.verb = DLK_VERB_READ, .lock_id = OBJECT};
        if (!post(book, &reads[sent], T0)) {
            return sent;
        }
    }
}

/* Waits leave slots for what the server answers at once, and stand in a queue of their own. */
static void test_short_ones_pass_waits(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    static struct dlk_call waits[DLK_INFLIGHT_MAX];
    uint32_t sent = 0;
    for (bool go = true; go; sent += go) {
        waits[sent] = of_lock(WAIT, sent);
        waits[sent].owner = 1000 + sent;
        assert(dlk_book_add_lock(&book, LOCK, 5, DLK_KIND_ATOMIC, 1000 + sent) == S(SUCCESS));
        go = post(&book, &waits[sent], T0);
    }
    assert(sent >= 16000 && waits[sent].place == DLK_PLACE_CROWDED_WAIT);
    assert(dlk_book_may_drop_lock(&book, LOCK, 1000 + sent) == S(EASYNC));
    /* What follows on the same hold stays behind it; another short one goes. */
    struct dlk_call behind = of_lock(UNLOCK, 0);
    struct dlk_call unlock = of_lock(TRY, 0);
    behind.owner = 1000 + sent;
    assert(!post(&book, &behind, T0) && behind.phase == DLK_PHASE_BLOCKED);
    assert(post(&book, &unlock, T0) && go_on(&book) == NULL);
    /* With the last slot of its kind free, the first wait gets it, and not one that comes now. */
    answer(&book, &unlock, R(BUSY));
    answer(&book, &waits[7], R(TIMED_OUT));
    struct dlk_call late = of_lock(WAIT, 0);
    late.owner = 1007;
    assert(!post(&book, &late, T0));
    assert(go_on(&book) == &waits[sent] && waits[sent].phase == DLK_PHASE_SENT);
    assert(go_on(&book) == NULL && late.place == DLK_PLACE_CROWDED_WAIT);
    answer(&book, &waits[sent], R(GRANTED));
    assert(go_on(&book) == &behind && go_on(&book) == NULL);
    answer(&book, &behind, R(RELEASED));
    assert(go_on(&book) == &late && go_on(&book) == NULL);
    dlk_book_free(&book);
}

static void test_no_slot(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    uint32_t sent = fill(&book);
    struct dlk_call lock = of_lock(TRY, 0);
    struct dlk_call unlock = of_lock(UNLOCK, 1);
    assert(!post(&book, &lock, T0) && !post(&book, &unlock, T0));
    assert(lock.place == DLK_PLACE_CROWDED_SHORT && unlock.place == DLK_PLACE_BEHIND);
    assert(go_on(&book) == NULL);
    answer(&book, &reads[3], R(DONE));
    assert(go_on(&book) == &reads[sent] && go_on(&book) == NULL);
    /* Withdrawn, it leaves its turn to the one behind it, which finds nothing to unlock. */
    dlk_book_cancel(&book, &lock, T0);
    assert(go_on(&book) == &unlock && unlock.status == S(ALREADY_UNLOCKED));
    assert(dlk_book_may_drop_lock(&book, LOCK, OWNER) == S(SUCCESS));
    dlk_book_free(&book);
}

/* ---- Deadlines ---- */

/* Against the plain definition: due is what is watched and whose deadline has come, one tick late
 * at most; a deadline may have moved on since. */
static void test_wheel(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    static struct dlk_call calls[MANY];
    static bool seen[MANY];
    uint64_t now_ns = T0;
    srand(1);
    for (int i = 0; i < MANY; i++) {
        uint64_t after_ns = (uint64_t)(rand() % 30000) * MS;
        calls[i] = (struct dlk_call){
            .cookie = (uint64_t)i,
            .phase = DLK_PHASE_SENT,
            .deadline_ns = i % 50 == 0 ? DLK_NEVER_NS : T0 + after_ns};
        dlk_posted_place(&book, &calls[i]);
    }
    for (int i = 0; i < MANY; i += 3) {
        calls[i].deadline_ns = i % 2 == 0 ? DLK_NEVER_NS : calls[i].deadline_ns + 20000 * MS;
    }
    for (int i = 1; i < MANY; i += 7) {
        dlk_posted_remove(&book, &calls[i]);
    }
    for (int step = 0; now_ns < T0 + 60000 * MS; step++) {
        struct dlk_call *due;
        now_ns += (uint64_t)(rand() % (step % 40 == 0 ? 12000 : 300)) * MS;
        while ((due = dlk_posted_due(&book, now_ns)) != NULL) {
            assert(due->deadline_ns <= now_ns && !seen[due->cookie]);
            seen[due->cookie] = true;
        }
        for (int i = 0; i < MANY; i++) {
            bool watched = i % 7 != 1 && calls[i].deadline_ns != DLK_NEVER_NS;
            assert(!seen[i] || watched);
            assert(seen[i] || !watched || calls[i].deadline_ns + TICK_NS > now_ns);
        }
    }
    dlk_book_free(&book);
}

/* ---- A refused cycle ---- */

static void test_deadlock(void)
{
    struct dlk_book book = new_book(DLK_KIND_FAIR);
    struct dlk_call call = of_lock(WAIT, 0);
    call.flags = DLK_FLAG_DEADLOCK | DLK_FLAG_TICKET;
    dlk_book_prepare(&call);
    struct dlk_request request = begin(&book, &call, T0);
    assert(request.flags == (DLK_FLAG_DEADLOCK | DLK_FLAG_TICKET));
    answer(&book, &call, R(DEADLOCK));
    assert(dlk_posted_take(&book) == &call && call.status == S(DEADLOCK) && call.value == 31);
    assert(call.token == 0 && book.debts == 0);
    assert(belief_of(&book)->state == DLK_ENTRY_FREE);
    /* With a ticket: refused, it is gone. */
    call.verb = TRY;
    dlk_book_prepare(&call);
    begin(&book, &call, T0);
    answer(&book, &call, R(TICKETED));
    call.verb = WAIT;
    dlk_book_prepare(&call);
    request = begin(&book, &call, T0);
    assert(request.op == DLK_OP_REDEEM && (request.flags & DLK_FLAG_DEADLOCK) != 0);
    answer(&book, &call, R(DEADLOCK));
    assert(call.status == S(DEADLOCK) && belief_of(&book)->state == DLK_ENTRY_FREE);
    dlk_book_free(&book);
}

int main(void)
{
    test_order_behind_a_hold();
    test_withdrawn_behind_a_hold();
    test_behind_a_forgotten_hold();
    test_short_ones_pass_waits();
    test_no_slot();
    test_wheel();
    test_deadlock();
    puts("book_posted: ok");
    return 0;
}
