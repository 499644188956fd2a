/*
 * Waits that would close a cycle, one story a test; the sentences are those of docs/lock-kinds.md,
 * "Deadlock". The random worlds of tests/test_engine_deadlock.py look for what is not told here.
 */
#include "engine_world.h"

enum { NEVER_MS = DLK_WAIT_FOREVER };

static uint64_t count_of(const struct world *world, enum dlk_counter counter)
{
    return dlk_engine_counters(world->engine)[counter];
}

/* A request of an actor to wait, which wants to know of cycles. */
static struct dlk_request wants(struct world *world, uint32_t session, uint32_t actor,
                                uint32_t slot, uint32_t mode)
{
    struct dlk_request asked = lock_request(world, session, slot, mode, 0, NEVER_MS,
                                            DLK_FLAG_DEADLOCK);
    asked.owner = (uint64_t)actor << 32 | world->next_request;
    return asked;
}

static struct dlk_reply want(struct world *world, uint32_t session, uint32_t actor, uint32_t slot,
                             uint32_t mode)
{
    return ask(world, wants(world, session, actor, slot, mode));
}

static struct dlk_request given_owner(struct dlk_request asked, uint64_t owner)
{
    asked.owner = owner;
    return asked;
}

static bool is(struct dlk_reply reply, uint32_t result)
{
    if (reply.result != result) {
        printf("answered %s\n", dlk_result_text(reply.result));
    }
    return reply.result == result;
}

/* The edge of the last cycle: who waits for which lock. */
static bool edge(const struct world *world, size_t i, uint32_t length, uint32_t session,
                 uint32_t actor, uint32_t slot)
{
    const struct dlk_event *event = &world->events[i];
    return i < world->n_events && event->op == DLK_EVENT_DEADLOCK
           && event->value == ((uint64_t)length << 32 | actor) && event->result == 1000 + session
           && event->slot == slot && event->id == 100 + slot;
}

static void two_in_two_sessions(struct world *world)
{
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, FAIR, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 1, FAIR, EX), DLK_RESULT_QUEUED));
    struct dlk_reply refused = want(world, 1, 1, ATOMIC, EX);
    assert(is(refused, DLK_RESULT_DEADLOCK) && refused.value == 1);
    assert(refused.entry == DLK_NONE && entries(world, ATOMIC) == 1);
    assert(world->n_events == 2);
    assert(edge(world, 0, 2, 1, 1, ATOMIC) && edge(world, 1, 2, 0, 1, FAIR));
    assert(world->events[0].cookie == 1 && world->events[1].cookie == 1);
    assert(count_of(world, DLK_COUNT_DEADLOCKS) == 1);
    assert(want(world, 1, 1, ATOMIC, EX).value == 2);
}

static void three_in_one_session(struct world *world)
{
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 2, RW, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 3, FAIR, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 1, RW, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 0, 2, FAIR, SH), DLK_RESULT_QUEUED));
    assert(is(want(world, 0, 3, ATOMIC, EX), DLK_RESULT_DEADLOCK));
    assert(world->n_events == 3);
    assert(edge(world, 0, 3, 0, 3, ATOMIC) && edge(world, 1, 3, 0, 1, RW)
           && edge(world, 2, 3, 0, 2, FAIR));
}

static void what_one_holds_oneself(struct world *world)
{
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_DEADLOCK));
    assert(world->n_events == 1 && edge(world, 0, 1, 0, 1, ATOMIC));
    assert(is(want(world, 0, 2, ATOMIC, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 1, 1, ATOMIC, EX), DLK_RESULT_QUEUED));
}

static void the_same_actor_in_another_session_is_another(struct world *world)
{
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, RW, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, ATOMIC, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 2, 1, RW, EX), DLK_RESULT_QUEUED));
}

static void a_reader_that_wants_to_write(struct world *world)
{
    assert(is(want(world, 0, 1, RW, SH), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, RW, SH), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 2, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 2, RW, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_DEADLOCK));
    assert(is(want(world, 2, 1, ATOMIC, EX), DLK_RESULT_QUEUED));
}

/* The reader could enter but for the writer before it. */
static void through_an_earlier_waiter(struct world *world)
{
    assert(is(want(world, 0, 1, RW, SH), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, RW, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 2, 1, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 2, 1, RW, SH), DLK_RESULT_DEADLOCK));
    assert(world->n_events == 3);
    assert(edge(world, 0, 3, 2, 1, RW) && edge(world, 1, 3, 1, 1, RW)
           && edge(world, 2, 3, 0, 1, ATOMIC));
}

/* A ticket passes when its turn has come, but its turn comes after the holder only. */
static void through_a_ticket(struct world *world)
{
    assert(is(want(world, 0, 1, FAIR, SH), DLK_RESULT_GRANTED));
    struct dlk_request asked = lock_request(world, 1, FAIR, EX, 0, 0, DLK_FLAG_TICKET);
    struct dlk_reply place = ask(world, given_owner(asked, (uint64_t)1 << 32));
    assert(is(place, DLK_RESULT_TICKETED));
    assert(is(want(world, 2, 1, ATOMIC, EX), DLK_RESULT_GRANTED));
    struct dlk_reply waits = want(world, 0, 1, ATOMIC, EX);
    assert(is(want(world, 2, 1, FAIR, SH), DLK_RESULT_DEADLOCK));
    asked = given_owner(about(world, DLK_OP_CANCEL, ATOMIC, waits), (uint64_t)1 << 32 | 4);
    assert(is(ask(world, asked), DLK_RESULT_CANCELLED));
    assert(is(want(world, 2, 1, FAIR, SH), DLK_RESULT_QUEUED));
}

/* A redeemed ticket that would wait in a cycle is gone, like a refused request. */
static void a_redeemed_ticket(struct world *world)
{
    const uint64_t owner = (uint64_t)1 << 32;
    assert(is(want(world, 0, 1, FAIR, EX), DLK_RESULT_GRANTED));
    struct dlk_request asked = lock_request(world, 1, FAIR, EX, 0, 0, DLK_FLAG_TICKET);
    struct dlk_reply place = ask(world, given_owner(asked, owner));
    assert(is(want(world, 1, 1, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_QUEUED));
    asked = given_owner(about(world, DLK_OP_REDEEM, FAIR, place), owner);
    asked.wait_ms = NEVER_MS;
    asked.flags = DLK_FLAG_DEADLOCK;
    assert(is(ask(world, asked), DLK_RESULT_DEADLOCK) && entries(world, FAIR) == 1);
}

static void a_semaphore_with_a_holder_who_goes_on(struct world *world)
{
    assert(is(want(world, 0, 1, SEMAPHORE, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, SEMAPHORE, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 2, 1, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 2, 1, SEMAPHORE, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 1, 1, ATOMIC, EX), DLK_RESULT_DEADLOCK));
    assert(is(want(world, 3, 1, RW, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, RW, EX), DLK_RESULT_QUEUED));
}

/* All holders wait, but one of them for somebody who goes on; until that one does not. */
static void a_semaphore_whose_holders_wait(struct world *world)
{
    assert(is(want(world, 0, 1, SEMAPHORE, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, SEMAPHORE, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 2, 1, RW, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 3, 1, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 1, 1, RW, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 2, 1, SEMAPHORE, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 3, 1, RW, SH), DLK_RESULT_DEADLOCK));
}

/* Behind a ticket stands what is before the ticket, also where an exclusive holder is in the way
 * of both: here the asking actor's own wait. The holder is caught in a cycle of others. */
static void behind_a_ticket_and_oneself(struct world *world)
{
    assert(is(want(world, 0, 1, FAIR, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_QUEUED));
    struct dlk_request asked = wants(world, 1, 1, FAIR, EX);
    asked.flags = 0;
    assert(is(ask(world, asked), DLK_RESULT_QUEUED));
    assert(is(want(world, 2, 1, FAIR, SH), DLK_RESULT_QUEUED));
    asked = lock_request(world, 3, FAIR, EX, 0, 0, DLK_FLAG_TICKET);
    assert(is(ask(world, given_owner(asked, (uint64_t)1 << 32)), DLK_RESULT_TICKETED));
    assert(is(want(world, 2, 1, FAIR, SH), DLK_RESULT_DEADLOCK));
    assert(world->n_events == 1 && edge(world, 0, 1, 2, 1, FAIR));
}

static void one_of_several_waits_can_end(struct world *world)
{
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, RW, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 2, 1, FAIR, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 1, RW, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 0, 1, FAIR, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 1, 1, ATOMIC, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 2, 1, ATOMIC, EX), DLK_RESULT_DEADLOCK));
}

static void nobody_we_know(struct world *world)
{
    assert(is(want(world, 0, 0, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, RW, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 0, RW, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 1, 1, ATOMIC, EX), DLK_RESULT_QUEUED));
    assert(is(want(world, 0, 0, ATOMIC, EX), DLK_RESULT_QUEUED));
    assert(count_of(world, DLK_COUNT_DEADLOCKS) == 0);
}

static void who_does_not_ask_is_not_refused(struct world *world)
{
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, RW, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 0, 1, RW, EX), DLK_RESULT_QUEUED));
    struct dlk_request asked = wants(world, 1, 1, ATOMIC, EX);
    asked.flags = 0;
    assert(is(ask(world, asked), DLK_RESULT_QUEUED));
    assert(is(want(world, 2, 1, RW, EX), DLK_RESULT_QUEUED)); /* behind the cycle, not in it */
}

/* A lease that is over holds nobody up, even if no timer has looked. */
static void lapsed_leases_and_waits(struct world *world)
{
    struct dlk_request asked = wants(world, 0, 1, ATOMIC, EX);
    asked.lease_ms = 1000;
    assert(is(ask(world, asked), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, RW, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 2, 1, FAIR, EX), DLK_RESULT_GRANTED));
    asked = wants(world, 0, 1, FAIR, EX);
    asked.wait_ms = 2000;
    assert(is(ask(world, asked), DLK_RESULT_QUEUED));
    assert(is(want(world, 1, 1, ATOMIC, EX), DLK_RESULT_QUEUED));
    world->now += ms(999);
    assert(is(want(world, 2, 1, RW, EX), DLK_RESULT_DEADLOCK));
    world->now += ms(1);
    assert(is(want(world, 2, 1, RW, EX), DLK_RESULT_QUEUED));
}

static void repeated(struct world *world)
{
    assert(is(want(world, 0, 1, ATOMIC, EX), DLK_RESULT_GRANTED));
    assert(is(want(world, 1, 1, RW, EX), DLK_RESULT_GRANTED));
    struct dlk_request asked = wants(world, 0, 1, RW, EX);
    assert(is(ask(world, asked), DLK_RESULT_QUEUED));
    asked.flags |= DLK_FLAG_RESEND;
    assert(is(ask(world, asked), DLK_RESULT_QUEUED) && entries(world, RW) == 2);
    asked = wants(world, 1, 1, ATOMIC, EX);
    assert(is(ask(world, asked), DLK_RESULT_DEADLOCK));
    asked.flags |= DLK_FLAG_RESEND;
    assert(is(ask(world, asked), DLK_RESULT_DEADLOCK));
}

/* Everybody waits for one lock and holds something else that somebody waits for: the walk of each
 * is as short as that of the first. */
static void a_long_queue(struct world *none)
{
    enum { WAITERS = 10000 };
    const struct dlk_limits limits = {.max_locks = 2 + WAITERS, .max_sessions = 2,
                                      .max_entries = 4 * WAITERS, .max_lease_ms = 3600000,
                                      .ticket_claim_ms = CLAIM_MS};
    struct world world = {.engine = dlk_engine_new(&limits, EPOCH), .now = ms(1)};
    (void)none;
    assert(world.engine != NULL);
    server_command(&world, DLK_COMMAND_READY, 1);
    assert(session_command(&world, DLK_COMMAND_SESSION_OPEN, 0) == DLK_RESULT_DONE);
    assert(session_command(&world, DLK_COMMAND_SESSION_OPEN, 1) == DLK_RESULT_DONE);
    for (uint32_t slot = 0; slot < limits.max_locks; slot++) {
        command(&world, (struct dlk_command){.op = DLK_COMMAND_LOCK_OPEN, .slot = slot,
                                             .id = 100 + slot, .kind = DLK_KIND_RW, .size = 1});
    }
    struct dlk_request *asked = calloc(WAITERS, sizeof(*asked));
    assert(asked != NULL);
    asked[0] = wants(&world, 0, 1, 0, SH);
    dlk_engine_step(world.engine, asked, 1, world.now);
    for (uint32_t i = 0; i < WAITERS; i++) {
        asked[0] = wants(&world, 0, 2 + i, 2 + i, EX);
        asked[1] = wants(&world, 1, 0, 2 + i, EX);
        asked[2] = wants(&world, 0, 2 + i, 0, i % 3 == 0 ? EX : SH);
        uint64_t before = count_of(&world, DLK_COUNT_DEADLOCK_STEPS);
        dlk_engine_step(world.engine, asked, 3, world.now);
        assert(count_of(&world, DLK_COUNT_DEADLOCK_STEPS) - before < 32);
        dlk_engine_clear(world.engine);
    }
    assert(dlk_engine_check(world.engine) == 0);
    assert(count_of(&world, DLK_COUNT_WAITS) == 2 * WAITERS);
    asked[0] = wants(&world, 0, 1, 1 + WAITERS, EX); /* the last waiter's, seen through the queue */
    uint64_t before = count_of(&world, DLK_COUNT_DEADLOCK_STEPS);
    dlk_engine_step(world.engine, asked, 1, world.now);
    assert(count_of(&world, DLK_COUNT_DEADLOCKS) == 1);
    assert(count_of(&world, DLK_COUNT_DEADLOCK_STEPS) - before < 32);
    free(asked);
    dlk_engine_free(world.engine);
}

/* A cycle of more actors than are told, and one that is too long to be found. */
static void a_long_cycle(struct world *none)
{
    enum { LONG = 100, TOO_LONG = DLK_MAX_CLIENTS_DEFAULT * 12 };
    const struct dlk_limits limits = {.max_locks = TOO_LONG, .max_sessions = 1,
                                      .max_entries = 2 * TOO_LONG, .max_lease_ms = 3600000,
                                      .ticket_claim_ms = CLAIM_MS};
    (void)none;
    for (uint32_t length = LONG; length != 0; length = length == LONG ? TOO_LONG : 0) {
        struct world world = {.engine = dlk_engine_new(&limits, EPOCH), .now = ms(1)};
        assert(world.engine != NULL);
        server_command(&world, DLK_COMMAND_READY, 1);
        assert(session_command(&world, DLK_COMMAND_SESSION_OPEN, 0) == DLK_RESULT_DONE);
        for (uint32_t i = 0; i < length; i++) {
            struct dlk_request asked = wants(&world, 0, 1 + i, i, EX);
            struct dlk_command order = {.op = DLK_COMMAND_LOCK_OPEN, .slot = i, .id = 100 + i,
                                        .kind = DLK_KIND_ATOMIC};
            dlk_engine_command(world.engine, &order, world.now);
            dlk_engine_step(world.engine, &asked, 1, world.now);
            dlk_engine_clear(world.engine);
        }
        struct dlk_reply last = {.result = DLK_RESULT_COUNT};
        for (uint32_t i = 0; i < length; i++) {
            struct dlk_request asked = wants(&world, 0, 1 + i, (i + 1) % length, EX);
            asked.flags = i + 1 == length ? DLK_FLAG_DEADLOCK : 0;
            dlk_engine_step(world.engine, &asked, 1, world.now);
            struct dlk_reply *replies;
            assert(dlk_engine_replies(world.engine, &replies) == 1);
            last = replies[0];
            if (i + 1 != length) {
                dlk_engine_clear(world.engine);
            }
        }
        bool found = length == LONG;
        take_outbox(&world);
        assert(last.result == (found ? DLK_RESULT_DEADLOCK : DLK_RESULT_QUEUED));
        assert(world.n_events == (found ? DLK_CYCLE_EDGES_MAX : 0));
        assert(!found || edge(&world, 1, LONG, 0, 1, 1));
        assert(count_of(&world, DLK_COUNT_DEADLOCK_GIVEN_UP) == !found);
        dlk_engine_free(world.engine);
    }
}

int main(void)
{
    const struct test tests[] = {
        {"two in two sessions", two_in_two_sessions, 0},
        {"three in one session", three_in_one_session, 0},
        {"what one holds oneself", what_one_holds_oneself, 0},
        {"the same actor in another session is another",
         the_same_actor_in_another_session_is_another, 0},
        {"a reader that wants to write", a_reader_that_wants_to_write, 0},
        {"through an earlier waiter", through_an_earlier_waiter, 0},
        {"through a ticket", through_a_ticket, 0},
        {"a redeemed ticket", a_redeemed_ticket, 0},
        {"a semaphore with a holder who goes on", a_semaphore_with_a_holder_who_goes_on, 0},
        {"a semaphore whose holders wait", a_semaphore_whose_holders_wait, 0},
        {"behind a ticket and oneself", behind_a_ticket_and_oneself, 0},
        {"one of several waits can end", one_of_several_waits_can_end, 0},
        {"nobody we know", nobody_we_know, 0},
        {"who does not ask is not refused", who_does_not_ask_is_not_refused, 0},
        {"lapsed leases and waits", lapsed_leases_and_waits, 0},
        {"repeated", repeated, 0},
        {"a long queue", a_long_queue, 0},
        {"a long cycle", a_long_cycle, 0},
    };
    return run_tests(tests, sizeof(tests) / sizeof(tests[0]));
}
