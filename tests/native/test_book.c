/*
 * The client's book as a function: every rule about local state, one row each, then what rows
 * cannot say: leases, sessions, serialised holds, claims, debts, cancelling. No I/O, no clock.
 */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "client_book.h"

#define MS ((uint64_t)1000000)
#define LOCK 7u
#define OWNER 99u
#define T0 ((uint64_t)1000000000000)

enum { CLIENT = 42, EPOCH = 3, TTL_MS = 10000, MAX_LEASE_MS = 60000 };

static const struct dlk_link LINK = {
    .client_id = CLIENT,
    .epoch = EPOCH,
    .session_ttl_ms = TTL_MS,
    .max_lease_ms = MAX_LEASE_MS,
};

/* ---- Small words ---- */

static struct dlk_book new_book(uint32_t kind)
{
    struct dlk_book book;
    dlk_book_init(&book, 5000);
    dlk_book_attach(&book, &LINK, T0, T0);
    assert(dlk_book_add_lock(&book, LOCK, 5, kind, OWNER) == DLK_STATUS_SUCCESS);
    return book;
}

static struct dlk_call ask_for(uint32_t verb, uint32_t mode, uint32_t lease_ms, uint32_t wait_ms)
{
    struct dlk_call call = {
        .verb = verb,
        .lock_id = LOCK,
        .owner = OWNER,
        .mode = mode,
        .lease_ms = lease_ms,
        .wait_ms = wait_ms,
        .flags = DLK_FLAG_TICKET,
    };
    dlk_book_prepare(&call);
    return call;
}

static const struct dlk_request *begin(struct dlk_book *book, struct dlk_call *call,
                                       uint64_t now_ns)
{
    const struct dlk_request *request = NULL;
    enum dlk_turn turn = dlk_book_begin(book, call, now_ns, &request);
    assert(turn != DLK_TURN_LATER);
    return turn == DLK_TURN_SEND ? request : NULL;
}

static struct dlk_reply answer_to(const struct dlk_request *request, uint32_t result)
{
    return (struct dlk_reply){
        .request_id = request->request_id,
        .op = request->op,
        .mode = request->mode,
        .result = (uint16_t)result,
        .session = CLIENT,
        .epoch = EPOCH,
        .token = result == DLK_RESULT_TICKETED ? 500 : 1000,
        .lease_ms = request->lease_ms,
        .entry = 17,
        .n_exclusive = 1,
        .m_exclusive = 2,
    };
}

static int reply_at(struct dlk_book *book, struct dlk_call *call,
                    const struct dlk_request *request, uint32_t result, uint64_t now_ns)
{
    struct dlk_reply reply = answer_to(request, result);
    assert(dlk_book_reply(book, &reply, now_ns) == call);
    assert(call->phase == DLK_PHASE_ENDED && call->result == result);
    return call->status;
}

static int run(struct dlk_book *book, struct dlk_call call, uint32_t result)
{
    struct dlk_call copy = call;
    const struct dlk_request *request = begin(book, &copy, T0);
    return request == NULL ? copy.status : reply_at(book, &copy, request, result, T0 + MS);
}

static const struct dlk_belief *belief_of(const struct dlk_book *book)
{
    uint32_t index = dlk_map_get(&book->locks, LOCK, OWNER);
    return index == DLK_NONE ? NULL : &book->holds[index].now;
}

/* ---- One row a rule ---- */

enum start { FREE, HELD, HELD_TWICE, TICKET, UNVERIFIED, UNVERIFIED_TWICE };
enum { LOCAL = 1000, LOST }; /* in the place of a result */
enum { EX = DLK_MODE_EXCLUSIVE, SH = DLK_MODE_SHARED };
enum { GONE = 9 }; /* in the place of a state */

struct row {
    uint32_t kind;
    enum start start;
    uint32_t verb;
    uint32_t mode;
    uint32_t op;     /* 0: decided locally */
    uint32_t result; /* of the reply, or LOST */
    int32_t status;
    uint32_t state; /* afterwards */
    uint32_t count;
};

#define ATOMIC DLK_KIND_ATOMIC
#define RW DLK_KIND_RW
#define FAIR DLK_KIND_FAIR
#define SEM DLK_KIND_SEMAPHORE
#define TRY DLK_VERB_TRYLOCK
#define WAIT DLK_VERB_LOCK
#define UNLOCK DLK_VERB_UNLOCK
#define EXTEND DLK_VERB_EXTEND
#define LOOK DLK_VERB_LOOK
#define R(name) DLK_RESULT_##name
#define S(name) DLK_STATUS_##name
#define O(name) DLK_OP_##name
#define IS_FREE DLK_ENTRY_FREE
#define IS_HELD DLK_ENTRY_HELD
#define IS_TICKET DLK_ENTRY_TICKET

static const struct row rows[] = {
    /* Nothing held. */
    {ATOMIC, FREE, TRY, EX, O(LOCK), R(GRANTED), S(SUCCESS), IS_HELD, 1},
    {RW, FREE, TRY, SH, O(LOCK), R(GRANTED), S(SUCCESS), IS_HELD, 1},
    {FAIR, FREE, TRY, SH, O(LOCK), R(GRANTED), S(SUCCESS), IS_HELD, 1},
    {SEM, FREE, TRY, EX, O(LOCK), R(GRANTED), S(SUCCESS), IS_HELD, 1},
    {ATOMIC, FREE, TRY, EX, O(LOCK), R(BUSY), S(FAIL), IS_FREE, 0},
    {RW, FREE, TRY, EX, O(LOCK), R(BUSY), S(FAIL), IS_FREE, 0},
    {FAIR, FREE, TRY, EX, O(LOCK), R(TICKETED), S(EAGAIN), IS_TICKET, 0},
    {FAIR, FREE, TRY, EX, O(LOCK), R(BUSY), S(FAIL), IS_FREE, 0},
    {ATOMIC, FREE, WAIT, EX, O(LOCK), R(GRANTED), S(SUCCESS), IS_HELD, 1},
    {ATOMIC, FREE, WAIT, EX, O(LOCK), R(TIMED_OUT), S(FAIL), IS_FREE, 0},
    {FAIR, FREE, WAIT, EX, O(LOCK), R(TICKETED), S(EAGAIN), IS_TICKET, 0},
    {ATOMIC, FREE, TRY, SH, 0, LOCAL, S(EINVAL), IS_FREE, 0},
    {SEM, FREE, TRY, SH, 0, LOCAL, S(EINVAL), IS_FREE, 0},
    {RW, FREE, TRY, 2, 0, LOCAL, S(EINVAL), IS_FREE, 0},
    {ATOMIC, FREE, UNLOCK, EX, 0, LOCAL, S(ALREADY_UNLOCKED), IS_FREE, 0},
    {ATOMIC, FREE, EXTEND, EX, 0, LOCAL, S(EINVAL), IS_FREE, 0},
    {RW, FREE, EXTEND, EX, 0, LOCAL, S(EINVAL), IS_FREE, 0},
    {ATOMIC, FREE, LOOK, EX, 0, LOCAL, S(SUCCESS), IS_FREE, 0},
    {ATOMIC, FREE, LOOK, SH, 0, LOCAL, S(SUCCESS), IS_FREE, 0},
    {ATOMIC, FREE, 77, EX, 0, LOCAL, S(EINVAL), IS_FREE, 0},
    {ATOMIC, FREE, TRY, EX, O(LOCK), R(NO_LOCK), S(LOCK_NOT_GET), GONE, 0},
    {ATOMIC, FREE, TRY, EX, O(LOCK), R(NOT_READY), S(NOT_READY), IS_FREE, 0},
    {ATOMIC, FREE, TRY, EX, O(LOCK), R(NO_RESOURCE), S(SERVER_NO_RESOURCE), IS_FREE, 0},
    {ATOMIC, FREE, TRY, EX, O(LOCK), R(INVALID), S(EINVAL), IS_FREE, 0},
    {ATOMIC, FREE, TRY, EX, O(LOCK), R(REMOVED), S(CLIENT_REMOVED_BY_SERVER), IS_FREE, 0},
    {ATOMIC, FREE, WAIT, EX, O(LOCK), R(STOPPING), S(BAD_RESPONSE), IS_FREE, 0},
    {ATOMIC, FREE, TRY, EX, O(LOCK), LOST, S(BAD_RESPONSE), IS_FREE, 0},
    /* Held: re-entry. */
    {ATOMIC, HELD, TRY, EX, O(EXTEND), R(EXTENDED), S(ALREADY_LOCKED), IS_HELD, 2},
    {FAIR, HELD, TRY, EX, O(EXTEND), R(EXTENDED), S(ALREADY_LOCKED), IS_HELD, 2},
    {FAIR, HELD, WAIT, EX, O(EXTEND), R(EXTENDED), S(ALREADY_LOCKED), IS_HELD, 2},
    {ATOMIC, HELD_TWICE, TRY, EX, O(EXTEND), R(NOT_HELD), S(FAIL), IS_FREE, 0},
    {ATOMIC, HELD, TRY, EX, O(EXTEND), LOST, S(BAD_RESPONSE), IS_HELD, 1},
    {ATOMIC, HELD, TRY, EX, O(EXTEND), R(NOT_READY), S(NOT_READY), IS_HELD, 1},
    {ATOMIC, HELD, TRY, EX, O(EXTEND), R(NO_LOCK), S(FAIL), GONE, 0},
    {RW, HELD, TRY, EX, 0, LOCAL, S(ALREADY_LOCKED), IS_HELD, 2},
    {RW, HELD, WAIT, EX, 0, LOCAL, S(ALREADY_LOCKED), IS_HELD, 2},
    {RW, HELD, TRY, SH, 0, LOCAL, S(EINVAL), IS_HELD, 1},
    {FAIR, HELD, TRY, SH, 0, LOCAL, S(EINVAL), IS_HELD, 1},
    {SEM, HELD, TRY, EX, 0, LOCAL, S(EINVAL), IS_HELD, 1},
    {FAIR, HELD, LOOK, SH, 0, LOCAL, S(SUCCESS), IS_HELD, 1},
    {RW, UNVERIFIED, TRY, EX, O(EXTEND), R(EXTENDED), S(ALREADY_LOCKED), IS_HELD, 2},
    {RW, UNVERIFIED, TRY, EX, O(EXTEND), R(NOT_HELD), S(FAIL), IS_FREE, 0},
    {RW, UNVERIFIED, TRY, EX, O(EXTEND), R(NOT_READY), S(NOT_READY), IS_HELD, 1},
    {RW, UNVERIFIED, TRY, EX, O(EXTEND), LOST, S(BAD_RESPONSE), IS_HELD, 1},
    {RW, UNVERIFIED, TRY, SH, 0, LOCAL, S(EINVAL), IS_HELD, 1},
    {RW, UNVERIFIED_TWICE, UNLOCK, EX, 0, LOCAL, S(ALREADY_LOCKED), IS_HELD, 1},
    {RW, UNVERIFIED, UNLOCK, EX, O(UNLOCK), R(NOT_HELD), S(FAIL), IS_FREE, 0},
    /* Held: unlock. */
    {ATOMIC, HELD, UNLOCK, EX, O(UNLOCK), R(RELEASED), S(SUCCESS), IS_FREE, 0},
    {RW, HELD, UNLOCK, EX, O(UNLOCK), R(RELEASED), S(SUCCESS), IS_FREE, 0},
    {ATOMIC, HELD_TWICE, UNLOCK, EX, 0, LOCAL, S(ALREADY_LOCKED), IS_HELD, 1},
    {ATOMIC, HELD, UNLOCK, SH, O(UNLOCK), R(RELEASED), S(SUCCESS), IS_FREE, 0},
    {ATOMIC, HELD, UNLOCK, EX, O(UNLOCK), R(NOT_HELD), S(FAIL), IS_FREE, 0},
    {ATOMIC, HELD, UNLOCK, EX, O(UNLOCK), R(NOT_READY), S(NOT_READY), IS_HELD, 1},
    {ATOMIC, HELD, UNLOCK, EX, O(UNLOCK), R(NO_LOCK), S(FAIL), GONE, 0},
    {ATOMIC, HELD, UNLOCK, EX, O(UNLOCK), R(REMOVED), S(CLIENT_REMOVED_BY_SERVER), IS_FREE, 0},
    {ATOMIC, HELD, UNLOCK, EX, O(UNLOCK), LOST, S(BAD_RESPONSE), IS_FREE, 0},
    /* Held: extend. */
    {ATOMIC, HELD, EXTEND, EX, O(EXTEND), R(EXTENDED), S(SUCCESS), IS_HELD, 1},
    {SEM, HELD, EXTEND, EX, O(EXTEND), R(EXTENDED), S(SUCCESS), IS_HELD, 1},
    {FAIR, HELD_TWICE, EXTEND, EX, O(EXTEND), R(EXTENDED), S(SUCCESS), IS_HELD, 2},
    {ATOMIC, HELD_TWICE, EXTEND, EX, O(EXTEND), R(NOT_HELD), S(FAIL), IS_FREE, 0},
    {ATOMIC, HELD, EXTEND, EX, O(EXTEND), LOST, S(BAD_RESPONSE), IS_HELD, 1},
    {ATOMIC, HELD, EXTEND, EX, O(EXTEND), R(NOT_READY), S(NOT_READY), IS_HELD, 1},
    {FAIR, HELD, EXTEND, SH, 0, LOCAL, S(EINVAL), IS_HELD, 1},
    {RW, HELD, EXTEND, EX, 0, LOCAL, S(EINVAL), IS_HELD, 1},
    /* A ticket. */
    {FAIR, TICKET, TRY, EX, O(REDEEM), R(GRANTED), S(SUCCESS), IS_HELD, 1},
    {FAIR, TICKET, TRY, EX, O(REDEEM), R(TICKETED), S(EAGAIN), IS_TICKET, 0},
    {FAIR, TICKET, TRY, EX, O(REDEEM), R(PASSED), S(FAIL), IS_FREE, 0},
    {FAIR, TICKET, WAIT, EX, O(REDEEM), R(TICKETED), S(EAGAIN), IS_TICKET, 0},
    {FAIR, TICKET, TRY, EX, O(REDEEM), R(NOT_READY), S(NOT_READY), IS_TICKET, 0},
    {FAIR, TICKET, TRY, EX, O(REDEEM), LOST, S(BAD_RESPONSE), IS_TICKET, 0},
    {FAIR, TICKET, TRY, EX, O(REDEEM), R(NO_LOCK), S(LOCK_NOT_GET), GONE, 0},
    {FAIR, TICKET, TRY, SH, 0, LOCAL, S(ETICKET), IS_TICKET, 0},
    {FAIR, TICKET, EXTEND, EX, 0, LOCAL, S(EINVAL), IS_TICKET, 0},
    {FAIR, TICKET, LOOK, SH, 0, LOCAL, S(SUCCESS), IS_TICKET, 0},
    {FAIR, TICKET, UNLOCK, EX, O(GIVE_UP), R(DONE), S(SUCCESS), IS_FREE, 0},
    {FAIR, TICKET, UNLOCK, EX, O(GIVE_UP), R(NOT_READY), S(NOT_READY), IS_TICKET, 0},
    {FAIR, TICKET, UNLOCK, EX, O(GIVE_UP), R(NO_LOCK), S(LOCK_NOT_GET), GONE, 0},
    {FAIR, TICKET, UNLOCK, EX, O(GIVE_UP), LOST, S(BAD_RESPONSE), IS_FREE, 0},
};

static void bring_to(struct dlk_book *book, enum start start)
{
    struct dlk_call acquire = ask_for(TRY, EX, 2000, 0);
    if (start == TICKET) {
        assert(run(book, acquire, R(TICKETED)) == S(EAGAIN));
    } else if (start != FREE) {
        assert(run(book, acquire, R(GRANTED)) == S(SUCCESS));
    }
    if (start == HELD_TWICE || start == UNVERIFIED_TWICE) {
        assert(run(book, acquire, R(EXTENDED)) == S(ALREADY_LOCKED));
    }
    if (start == UNVERIFIED || start == UNVERIFIED_TWICE) {
        dlk_book_unverify(book);
    }
}

static void check_row(const struct row *row)
{
    struct dlk_book book = new_book(row->kind);
    bring_to(&book, row->start);
    bool sends_lease = row->kind != RW;
    struct dlk_call call = ask_for(row->verb, row->mode, 2000, row->verb == WAIT ? 3000 : 0);
    const struct dlk_request *request = begin(&book, &call, T0);
    assert((request != NULL ? request->op : 0u) == row->op);
    if (request != NULL) {
        bool leases = row->op == O(LOCK) || row->op == O(REDEEM) || row->op == O(EXTEND);
        bool waits = row->op == O(LOCK) || row->op == O(REDEEM);
        assert(request->lease_ms == (leases && sends_lease ? 2000u : 0u));
        assert(request->wait_ms == (waits && row->verb == WAIT ? 3000u : 0u));
        assert(request->session == CLIENT && request->lock_id == LOCK && request->slot == 5);
        assert(request->owner == OWNER);
        assert((request->flags & DLK_FLAG_TICKET) == (row->kind == FAIR && waits));
        if (row->start != FREE) {
            assert(request->token == (row->start == TICKET ? 500u : 1000u));
            assert(request->entry == 17);
        }
        if (row->result == LOST) {
            assert(dlk_book_lose(&book, call.slot, false, T0) == &call);
        } else {
            reply_at(&book, &call, request, row->result, T0 + MS);
        }
    }
    const struct dlk_belief *belief = belief_of(&book);
    assert(call.phase == DLK_PHASE_ENDED && call.status == row->status);
    assert((belief == NULL ? (uint32_t)GONE : belief->state) == row->state);
    assert(belief == NULL || belief->count == row->count);
    assert(call.token == (row->state == IS_HELD ? 1000u : 0u));
    assert(call.holder == (row->state == IS_HELD ? (uint32_t)CLIENT : 0u));
    assert(row->status != S(FAIL) || (call.n_exclusive == 0 && call.m_exclusive == 0));
    dlk_book_free(&book);
}

static void test_rows(void)
{
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        check_row(&rows[i]);
    }
}

static void test_order_of_checks(void)
{
    struct dlk_book book = new_book(ATOMIC);
    struct dlk_call unknown = ask_for(TRY, 9, MAX_LEASE_MS + 1, 0);
    unknown.owner = OWNER + 1;
    assert(run(&book, unknown, 0) == S(LOCK_NOT_GET));
    assert(run(&book, ask_for(TRY, EX, MAX_LEASE_MS + 1, 0), 0) == S(EINVAL));
    assert(run(&book, ask_for(TRY, EX, MAX_LEASE_MS, 0), R(GRANTED)) == S(SUCCESS));
    assert(run(&book, ask_for(EXTEND, EX, MAX_LEASE_MS + 1, 0), 0) == S(EINVAL));
    assert(run(&book, ask_for(LOOK, EX, MAX_LEASE_MS + 1, 0), 0) == S(SUCCESS));
    dlk_book_free(&book);
    book = new_book(RW);
    assert(run(&book, ask_for(TRY, EX, MAX_LEASE_MS + 1, 0), R(GRANTED)) == S(SUCCESS));
    dlk_book_free(&book);
}

/* An unverified rw lock asks once; after that, re-entry is local again. */
static void test_verified_once(void)
{
    struct dlk_book book = new_book(RW);
    bring_to(&book, UNVERIFIED);
    assert(run(&book, ask_for(TRY, EX, 0, 0), R(EXTENDED)) == S(ALREADY_LOCKED));
    struct dlk_call again = ask_for(TRY, EX, 0, 0);
    assert(begin(&book, &again, T0) == NULL && again.count == 3);
    dlk_book_free(&book);
}

/* An EXTEND that names a token means that hold, and no later one of the same owner. */
static void test_extend_names_its_hold(void)
{
    struct dlk_book book = new_book(ATOMIC);
    bring_to(&book, HELD);
    struct dlk_call look = ask_for(DLK_VERB_LOOK, EX, 0, 0);
    assert(begin(&book, &look, T0) == NULL && look.token != 0);
    struct dlk_call late = ask_for(EXTEND, EX, 1000, 0);
    late.operand = look.token - 1;
    assert(begin(&book, &late, T0) == NULL && late.status == S(EINVAL));
    assert(late.token == look.token);
    struct dlk_call meant = ask_for(EXTEND, EX, 1000, 0);
    meant.operand = look.token;
    assert(run(&book, meant, R(EXTENDED)) == S(SUCCESS));
    dlk_book_free(&book);
}

static void test_objects(void)
{
    struct dlk_book book = new_book(ATOMIC);
    struct dlk_call add = {.verb = DLK_VERB_FETCH_ADD, .lock_id = 8, .operand = 5};
    dlk_book_prepare(&add);
    assert(run(&book, add, 0) == S(OBJECT_NOT_GET));
    assert(dlk_book_add_object(&book, 8, 3) == S(SUCCESS));
    assert(dlk_book_add_object(&book, 8, 4) == S(SUCCESS));
    const struct dlk_request *request = begin(&book, &add, T0);
    assert(request->op == O(FETCH_ADD) && request->slot == 4 && request->value == 5);
    struct dlk_reply reply = answer_to(request, R(DONE));
    reply.value = 41;
    assert(dlk_book_reply(&book, &reply, T0) == &add);
    assert(add.status == S(SUCCESS) && add.value == 41);

    struct dlk_call swap = {
        .verb = DLK_VERB_COMPARE_SWAP, .lock_id = 8, .operand = 46, .swap = 50};
    dlk_book_prepare(&swap);
    request = begin(&book, &swap, T0);
    assert(request->token == 46 && request->value == 50);
    reply = answer_to(request, R(DONE));
    reply.value = 46;
    assert(dlk_book_reply(&book, &reply, T0) == &swap);
    assert(swap.status == S(SUCCESS) && swap.value == 50);
    dlk_book_prepare(&swap);
    reply = answer_to(begin(&book, &swap, T0), R(CAS_FAILED));
    reply.value = 7;
    assert(dlk_book_reply(&book, &reply, T0) == &swap);
    assert(swap.status == S(OBJECT_CAS_FAILED) && swap.value == 7);

    /* A lost one is never repeated. */
    dlk_book_prepare(&add);
    begin(&book, &add, T0);
    assert(dlk_book_lose(&book, add.slot, false, T0) == &add);
    assert(add.status == S(BAD_RESPONSE) && book.debts == 0 && book.pending_used == 0);
    struct dlk_call read = {.verb = DLK_VERB_READ, .lock_id = 8};
    dlk_book_prepare(&read);
    assert(run(&book, read, R(NO_OBJECT)) == S(OBJECT_NOT_GET));

    /* An id of an earlier epoch may be another object's. */
    dlk_book_prepare(&read);
    assert(dlk_book_add_object(&book, 8, 4) == S(SUCCESS));
    read.epoch = EPOCH;
    assert(run(&book, read, R(DONE)) == S(SUCCESS));
    struct dlk_link successor = LINK;
    successor.epoch = EPOCH + 1;
    dlk_book_attach(&book, &successor, T0, T0);
    assert(run(&book, read, 0) == S(OBJECT_NOT_GET));
    read.epoch = EPOCH + 1;
    dlk_book_prepare(&read);
    assert(begin(&book, &read, T0)->op == O(READ));
    assert(dlk_book_lose(&book, read.slot, false, T0) == &read);
    assert(dlk_book_drop_object(&book, 8) == S(SUCCESS));
    assert(dlk_book_drop_object(&book, 8) == S(OBJECT_NOT_GET));
    dlk_book_free(&book);
}

static void test_drop(void)
{
    struct dlk_book book = new_book(FAIR);
    assert(dlk_book_may_drop_lock(&book, LOCK + 1, OWNER) == S(LOCK_NOT_GET));
    struct dlk_call acquire = ask_for(TRY, EX, 0, 0);
    const struct dlk_request *request = begin(&book, &acquire, T0);
    assert(dlk_book_drop_lock(&book, LOCK, OWNER, false) == S(EASYNC));
    reply_at(&book, &acquire, request, R(TICKETED), T0);
    assert(dlk_book_drop_lock(&book, LOCK, OWNER, false) == S(TICKET_TO_UNLOCK));
    assert(run(&book, acquire, R(GRANTED)) == S(SUCCESS));
    assert(dlk_book_drop_lock(&book, LOCK, OWNER, false) == S(ERROR));
    assert(run(&book, ask_for(UNLOCK, EX, 0, 0), R(RELEASED)) == S(SUCCESS));
    assert(dlk_book_may_drop_lock(&book, LOCK, OWNER) == S(SUCCESS));
    assert(dlk_book_drop_lock(&book, LOCK, OWNER, false) == S(SUCCESS));
    assert(dlk_book_drop_lock(&book, LOCK, OWNER, true) == S(LOCK_NOT_GET));

    /* Dropped by force while an answer is awaited: the grant is given back. */
    assert(dlk_book_add_lock(&book, LOCK, 6, FAIR, OWNER) == S(SUCCESS));
    dlk_book_prepare(&acquire);
    request = begin(&book, &acquire, T0);
    assert(dlk_book_drop_lock(&book, LOCK, OWNER, true) == S(SUCCESS));
    assert(reply_at(&book, &acquire, request, R(GRANTED), T0) == S(LOCK_NOT_GET));
    request = dlk_book_next_unsent(&book, T0);
    assert(request->op == O(UNLOCK) && request->token == 1000 && request->lock_id == LOCK);
    dlk_book_free(&book);
}

static void test_map(void)
{
    struct dlk_map map = {0};
    for (uint32_t i = 0; i < 5000; i++) {
        assert(dlk_map_put(&map, i % 700, i, i));
    }
    for (uint32_t i = 0; i < 5000; i += 3) {
        dlk_map_remove(&map, i % 700, i);
        dlk_map_remove(&map, i % 700, i);
    }
    for (uint32_t i = 0; i < 5000; i++) {
        assert(dlk_map_get(&map, i % 700, i) == (i % 3 == 0 ? (uint32_t)DLK_NONE : i));
    }
    dlk_map_free(&map);
    assert(dlk_map_get(&map, 1, 1) == DLK_NONE);
}

int main(void)
{
    test_rows();
    test_order_of_checks();
    test_verified_once();
    test_extend_names_its_hold();
    test_objects();
    test_drop();
    test_map();
    printf("%zu rows\n", sizeof(rows) / sizeof(rows[0]));
    return 0;
}
