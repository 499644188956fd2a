/* Recovery: what is served before all is ready, places in queues, locks that come into being by
 * claims. docs/lock-kinds.md, "Recovery"; the merge has its own tests. */
#include "claim_world.h"

/* ---- Readiness ---- */

static void nothing_is_granted_before_all_is_ready(struct world *world)
{
    claims(world, 0, holds(RW, SH, 5));
    claims(world, 0, got(ATOMIC));
    for (uint32_t session = 0; session <= PLAIN; session++) {
        assert(try(world, session, ATOMIC, EX).result == DLK_RESULT_NOT_READY);
        assert(try(world, session, RW, SH).result == DLK_RESULT_NOT_READY);
        assert(try(world, session, FAIR, SH).result == DLK_RESULT_NOT_READY); /* nobody's yet */
        assert(ask(world, request(world, DLK_OP_PING, session, 0)).result == DLK_RESULT_DONE);
    }
    assert(unlock(world, RW, as_reply(0, holds(RW, SH, 5))).result == DLK_RESULT_NOT_READY);
    assert(ask(world, request(world, DLK_OP_READ, 0, 1)).result == DLK_RESULT_NOT_READY);
    assert(counted(world, DLK_COUNT_NOT_READY) == 14 && entries(world, RW) == 1);
    all_is_ready(world);
    assert(try(world, PLAIN, ATOMIC, EX).result == DLK_RESULT_GRANTED);
    assert(try(world, PLAIN, RW, SH).result == DLK_RESULT_GRANTED);
    assert(try(world, PLAIN, FAIR, SH).result == DLK_RESULT_NO_LOCK);
}

static void a_lock_with_a_live_writer_is_served_to_early_sessions(struct world *world)
{
    struct dlk_claim hold = holds(RW, EX, 5);
    claims(world, 0, hold);
    assert(try(world, PLAIN, RW, SH).result == DLK_RESULT_NOT_READY);
    assert(try(world, 1, RW, SH).result == DLK_RESULT_BUSY);
    assert(extend(world, RW, as_reply(0, hold), 0).result == DLK_RESULT_EXTENDED);
    uint32_t reader = wait(world, 1, RW, SH, 5000).request_id;
    assert(told(world, reader).result == DLK_RESULT_QUEUED);
    assert(unlock(world, RW, as_reply(0, hold)).result == DLK_RESULT_RELEASED);
    struct dlk_reply granted = told(world, reader);
    assert(granted.result == DLK_RESULT_GRANTED);
    assert(granted.token >> DLK_COUNTER_BITS == EPOCH);
    assert(unlock(world, RW, granted).result == DLK_RESULT_RELEASED);
    granted = leased(world, 2, RW, EX, 0);
    assert(granted.result == DLK_RESULT_GRANTED);
    assert(try(world, PLAIN, RW, EX).result == DLK_RESULT_NOT_READY);
    all_is_ready(world);
    assert(try(world, PLAIN, RW, EX).result == DLK_RESULT_BUSY);
    assert(unlock(world, RW, granted).result == DLK_RESULT_RELEASED);
}

/* A lease that is granted before all is ready runs at once; a deadline ends a wait. */
static void time_goes_on_where_the_state_is_certain(struct world *world)
{
    struct dlk_claim hold = holds(ATOMIC, EX, 5);
    claims(world, 0, hold);
    assert(unlock(world, ATOMIC, as_reply(0, hold)).result == DLK_RESULT_RELEASED);
    assert(leased(world, 0, ATOMIC, EX, 1000).result == DLK_RESULT_GRANTED);
    uint32_t brief = wait(world, 1, ATOMIC, EX, 500).request_id;
    uint32_t longer = wait(world, 2, ATOMIC, EX, 5000).request_id;
    assert(dlk_engine_next_deadline(world->engine) == world->now + ms(500));
    later(world, 500);
    assert(told(world, brief).result == DLK_RESULT_TIMED_OUT);
    later(world, 500);
    assert(told(world, longer).result == DLK_RESULT_GRANTED);
}

static void a_full_semaphore_is_certain(struct world *world)
{
    struct dlk_claim first = holds(SEMAPHORE, EX, 5);
    struct dlk_claim second = holds(SEMAPHORE, EX, 7);
    claims(world, 0, first);
    assert(unlock(world, SEMAPHORE, as_reply(0, first)).result == DLK_RESULT_NOT_READY);
    claims_as(world, 1, lapsed(second), true);
    assert(unlock(world, SEMAPHORE, as_reply(0, first)).result == DLK_RESULT_NOT_READY);
    claims(world, 1, second);
    assert(unlock(world, SEMAPHORE, as_reply(0, first)).result == DLK_RESULT_RELEASED);
    assert(try(world, 2, SEMAPHORE, EX).result == DLK_RESULT_GRANTED);
    assert(try(world, 2, SEMAPHORE, EX).result == DLK_RESULT_BUSY);
}

/* It can only be a client that errs; what was granted meanwhile is safe from it. */
static void a_claim_is_too_late_for_a_lock_that_was_granted(struct world *world)
{
    struct dlk_claim hold = holds(FAIR, EX, 5);
    claims(world, 0, hold);
    unlock(world, FAIR, as_reply(0, hold));
    struct dlk_reply granted = try(world, 1, FAIR, SH);
    assert(granted.result == DLK_RESULT_GRANTED);
    assert(claims(world, 2, holds(FAIR, SH, 9)) == DLK_RESULT_NOT_HELD);
    assert(claims(world, 2, holds(FAIR, EX, 9)) == DLK_RESULT_NOT_HELD);
    assert(unlock(world, FAIR, granted).result == DLK_RESULT_RELEASED);
    assert(claims(world, 2, holds(FAIR, EX, 9)) == DLK_RESULT_NOT_HELD);
    assert(entries(world, FAIR) == 0);
}

static void what_was_certain_is_not_when_a_claim_speaks_against_it(struct world *world)
{
    struct dlk_claim hold = holds(RW, EX, 5);
    claims(world, 0, hold);
    uint32_t waiter = wait(world, 1, RW, EX, DLK_WAIT_FOREVER).request_id;
    claims(world, 2, lapsed(holds(RW, SH, 9)));
    assert(told_lost(world, 0, hold) && entries(world, RW) == 1);
    assert(try(world, 1, RW, SH).result == DLK_RESULT_NOT_READY);
    assert(claims(world, 0, holds(RW, SH, 7)) == DLK_RESULT_GRANTED);
    assert(entries(world, RW) == 2);
    all_is_ready(world);
    assert(told(world, waiter).result == DLK_RESULT_COUNT);
    unlock(world, RW, as_reply(0, holds(RW, SH, 7)));
    assert(told(world, waiter).result == DLK_RESULT_GRANTED);
}

static void what_only_frees_is_always_carried_out(struct world *world)
{
    claims(world, 0, waits(RW, EX, 5, 9));
    claims(world, 0, has_ticket(EX, 6));
    claims(world, 0, holds(FAIR, SH, 4));
    assert(tell(world, DLK_OP_CANCEL, RW, as_reply(0, waits(RW, EX, 5, 9))).result
           == DLK_RESULT_CANCELLED);
    assert(entries(world, RW) == 0);
    struct dlk_reply ticket_of = {.session = 0, .token = former(6), .entry = DLK_NONE};
    assert(tell(world, DLK_OP_GIVE_UP, FAIR, ticket_of).result == DLK_RESULT_DONE);
    assert(tell(world, DLK_OP_GIVE_UP, FAIR, as_reply(0, holds(FAIR, SH, 4))).result
           == DLK_RESULT_DONE);
    assert(entries(world, FAIR) == 0);
    assert(tell(world, DLK_OP_CANCEL, ATOMIC, ticket_of).result == DLK_RESULT_NO_LOCK);
    claims(world, PLAIN, waits(RW, EX, 5, 9));
    struct dlk_claim plain = waits(RW, EX, 5, 9);
    assert(tell(world, DLK_OP_CANCEL, RW, as_reply(PLAIN, plain)).result
           == DLK_RESULT_NOT_READY);
    assert(entries(world, RW) == 1);
}

/* A server that pauses in the middle serves again what was certain. */
static void what_is_certain_outlasts_a_pause(struct world *world)
{
    struct dlk_claim hold = holds(ATOMIC, EX, 5);
    claims(world, 0, hold);
    unlock(world, ATOMIC, as_reply(0, hold));
    leased(world, 1, ATOMIC, EX, 1000);
    uint32_t waiter = wait(world, 2, ATOMIC, EX, 60000).request_id;
    server_command(world, DLK_COMMAND_READY, DLK_READY_NONE);
    assert(try(world, 0, ATOMIC, EX).result == DLK_RESULT_NOT_READY);
    server_command(world, DLK_COMMAND_READY, DLK_READY_RECOVERING);
    later(world, 1000);
    assert(told(world, waiter).result == DLK_RESULT_GRANTED);
}

/* ---- Sessions ---- */

static void no_session_ends_before_all_is_ready(struct world *world)
{
    claims(world, 0, holds(RW, SH, 5));
    later(world, 100 * TTL_MS);
    assert(world->n_events == 0 && entries(world, RW) == 1);
    assert(dlk_engine_next_deadline(world->engine) > world->now);
    all_is_ready(world);
    later(world, GRACE_MS - 1);
    assert(world->n_events == 0);
    later(world, 1);
    assert(event(world, DLK_EVENT_SESSION_ENDED, 0) != NULL);
}

/* The client dies in the middle and its successor claims the same, or others go on without it. */
static void a_session_that_closes_may_claim_again(struct world *world)
{
    struct dlk_claim hold = holds_leased(ATOMIC, 5, 1000);
    struct dlk_claim place = waits(FAIR, EX, 7, 3);
    claims(world, 0, hold);
    claims(world, 0, place);
    claims(world, 1, waits(FAIR, EX, 8, 1));
    claims(world, 0, holds(RW, EX, 6));
    assert(session_command(world, DLK_COMMAND_SESSION_CLOSE, 0) == DLK_RESULT_DONE);
    assert(event(world, DLK_EVENT_SESSION_FREED, 0) != NULL);
    assert(entries(world, ATOMIC) == 0 && entries(world, FAIR) == 1 && entries(world, RW) == 0);
    assert(claims(world, 1, holds(RW, EX, 5)) == DLK_RESULT_NOT_HELD); /* it is remembered */
    open_early(world, 0);
    assert(claims(world, 0, hold) == DLK_RESULT_GRANTED);
    assert(claims(world, 0, place) == DLK_RESULT_QUEUED);
    assert(claims(world, 0, holds(RW, EX, 6)) == DLK_RESULT_GRANTED);
    all_is_ready(world);
    assert(told(world, 3).result == DLK_RESULT_GRANTED && told(world, 3).session == 0);
    assert(told(world, 1).result == DLK_RESULT_COUNT);
    assert(is_held(world, ATOMIC, hold.token));
}

/* ---- Places ---- */

static void places_come_back_in_their_order(struct world *world)
{
    assert(claims(world, 1, waits(FAIR, EX, 8, 1)) == DLK_RESULT_QUEUED);
    assert(claims(world, 0, has_ticket(EX, 5)) == DLK_RESULT_TICKETED);
    assert(claims(world, 2, waits(FAIR, SH, 9, 4)) == DLK_RESULT_QUEUED);
    assert(claims(world, 0, waits(FAIR, EX, 7, 2)) == DLK_RESULT_QUEUED);
    assert(claims(world, 0, waits(FAIR, EX, 7, 2)) == DLK_RESULT_QUEUED);
    assert(claims(world, 0, has_ticket(EX, 5)) == DLK_RESULT_TICKETED);
    claims(world, 2, holds(FAIR, EX, 3));
    struct dlk_entry_view views[8];
    assert(dlk_engine_view(world->engine, FAIR, views, 8) == 5);
    const uint64_t stamps[] = {3, 5, 7, 8, 9};
    for (size_t i = 0; i < 5; i++) {
        assert(views[i].token == former(stamps[i]));
    }
    all_is_ready(world);
    unlock(world, FAIR, as_reply(2, holds(FAIR, EX, 3)));
    later(world, CLAIM_MS); /* the ticket's turn has come, and passed */
    assert(told(world, 2).result == DLK_RESULT_GRANTED);
}

static void a_wait_runs_on(struct world *world)
{
    struct dlk_claim brief = waits(RW, EX, 5, 9);
    struct dlk_claim ticketed = waits(FAIR, EX, 6, 8);
    brief.wait_ms = 700;
    ticketed.wait_ms = 800;
    ticketed.flags = DLK_FLAG_TICKET;
    claims(world, 0, brief);
    claims(world, 0, ticketed);
    later(world, 699);
    assert(world->n_told == 0);
    later(world, 1);
    assert(told(world, 9).result == DLK_RESULT_TIMED_OUT && entries(world, RW) == 0);
    later(world, 100);
    assert(told(world, 8).result == DLK_RESULT_TICKETED && entries(world, FAIR) == 1);
    assert(claims(world, 0, ticketed) == DLK_RESULT_TICKETED);
    later(world, 3600000); /* its turn does not come before all is ready */
    assert(entries(world, FAIR) == 1);
}

static void a_ticket_that_is_waited_for_is_a_waiter(struct world *world)
{
    struct dlk_claim place = waits(FAIR, EX, 5, 9);
    place.wait_ms = 1000;
    assert(claims(world, 0, has_ticket(EX, 5)) == DLK_RESULT_TICKETED);
    assert(claims(world, 0, place) == DLK_RESULT_QUEUED);
    assert(claims(world, 0, has_ticket(EX, 5)) == DLK_RESULT_QUEUED);
    assert(entries(world, FAIR) == 1);
    later(world, 1000);
    assert(told(world, 9).result == DLK_RESULT_TIMED_OUT);
}

/* A session claims before it has a connection: the grant of that time is told once more. */
static void a_grant_is_told_again_at_the_first_connection(struct world *world)
{
    struct dlk_claim hold = holds(ATOMIC, EX, 5);
    struct dlk_claim place = waits(ATOMIC, EX, 6, 9);
    place.remaining_ms = 3000;
    claims(world, 0, hold);
    claims(world, 1, place);
    claims(world, 1, waits(ATOMIC, EX, 7, 10));
    world->now += ms(50);
    unlock(world, ATOMIC, as_reply(0, hold));
    struct dlk_reply granted = told(world, 9);
    assert(granted.result == DLK_RESULT_GRANTED && granted.held_us == 50000);
    assert(claims(world, 1, place) == DLK_RESULT_QUEUED); /* and its answer is awaited */
    world->now += ms(100);
    dlk_engine_attached(world->engine, 1, world->now);
    take_outbox(world);
    struct dlk_reply again = told(world, 9);
    assert(world->n_told == 1 && again.result == DLK_RESULT_GRANTED && again.held_us == 0);
    assert(again.token == granted.token && granted.lease_ms == 3000);
    assert(again.lease_ms == 2900); /* its client counts from the connection */
    dlk_engine_attached(world->engine, 1, world->now);
    take_outbox(world);
    assert(world->n_told == 0);
}

/* What the ticket behind waited for has come back: its own turn has not come yet. */
static void a_place_that_comes_back_takes_the_turn(struct world *world)
{
    struct dlk_claim hold = holds(FAIR, EX, 5);
    claims(world, 0, hold);
    claims(world, 1, has_ticket(EX, 9));
    struct dlk_reply late = ticket(world, 2, EX);
    assert(late.result == DLK_RESULT_TICKETED);
    unlock(world, FAIR, as_reply(0, hold));
    later(world, CLAIM_MS - 1);
    assert(claims(world, 0, has_ticket(EX, 7)) == DLK_RESULT_TICKETED);
    assert(dlk_engine_next_deadline(world->engine) == world->now + ms(CLAIM_MS));
    later(world, CLAIM_MS); /* it is passed; the turn of the other one comes */
    assert(entries(world, FAIR) == 2);
    later(world, CLAIM_MS - 1);
    assert(entries(world, FAIR) == 2);
    later(world, 1);
    assert(entries(world, FAIR) == 1);
    assert(redeem(world, late, 0, 0).result == DLK_RESULT_GRANTED);
}

/* Its lease was over before it had a connection: it may extend the hold, if it is there still, but
 * not believe in it before. */
static void a_grant_whose_lease_is_over_is_told_with_nothing_left(struct world *world)
{
    struct dlk_claim hold = holds(ATOMIC, EX, 5);
    struct dlk_claim place = waits(ATOMIC, EX, 6, 9);
    place.remaining_ms = 3000;
    claims(world, 0, hold);
    claims(world, 1, place);
    unlock(world, ATOMIC, as_reply(0, hold));
    world->now += ms(5000);
    dlk_engine_attached(world->engine, 1, world->now);
    take_outbox(world);
    assert(told(world, 9).result == DLK_RESULT_GRANTED && told(world, 9).lease_ms == 0);
}

static void a_place_may_be_the_next_to_hold(struct world *world)
{
    struct dlk_claim hold = holds(ATOMIC, EX, 5);
    claims(world, 0, hold);
    unlock(world, ATOMIC, as_reply(0, hold));
    assert(claims(world, 1, waits(ATOMIC, EX, 6, 9)) == DLK_RESULT_QUEUED);
    assert(told(world, 9).result == DLK_RESULT_GRANTED);
    assert(claims(world, 2, holds(ATOMIC, EX, 7)) == DLK_RESULT_NOT_HELD);
}

/* ---- Locks ---- */

static struct dlk_claim newer(struct dlk_claim claim)
{
    claim.lock_id += 1000;
    claim.kind = DLK_KIND_RW;
    return claim;
}

static void of_two_locks_in_one_slot_the_newer_stays(struct world *world)
{
    struct dlk_claim hold = holds(FAIR, EX, 5);
    claims(world, 0, hold);
    claims(world, 1, waits(FAIR, EX, 6, 9));
    claims(world, 1, has_ticket(EX, 7));
    assert(claims(world, 2, newer(got(FAIR))) == DLK_RESULT_DONE);
    assert(event(world, DLK_EVENT_LOCK_CLOSED, FAIR)->id == 100 + FAIR);
    assert(told_lost(world, 0, hold) && told(world, 9).result == DLK_RESULT_NO_LOCK);
    assert(entries(world, FAIR) == 0);
    assert(claims(world, 0, hold) == DLK_RESULT_NO_LOCK);
    assert(claims(world, 0, newer(holds(FAIR, EX, 3))) == DLK_RESULT_GRANTED); /* no floor yet */
    assert(try(world, 1, FAIR, EX).result == DLK_RESULT_NOT_READY);
    assert(dlk_engine_entries_in_use(world->engine) == 1);
}

static void a_lock_can_be_closed_with_all_that_is_on_it(struct world *world)
{
    struct dlk_claim hold = holds(FAIR, SH, 5);
    struct dlk_command close = {.op = DLK_COMMAND_LOCK_CLOSE, .slot = FAIR, .id = 100 + FAIR,
                                .size = 1};
    claims(world, 0, hold);
    claims(world, 1, waits(FAIR, EX, 6, 9));
    assert(command(world, close) == DLK_RESULT_DONE);
    assert(event(world, DLK_EVENT_DONE, FAIR)->value == 1);
    assert(event(world, DLK_EVENT_LOCK_CLOSED, FAIR) == NULL);
    assert(told_lost(world, 0, hold) && told(world, 9).result == DLK_RESULT_NO_LOCK);
    assert(dlk_engine_entries_in_use(world->engine) == 0);
    assert(command(world, close) == DLK_RESULT_NO_LOCK);
}

static void a_lock_that_is_got_is_kept_open(struct world *world)
{
    assert(claims(world, 0, holds(ATOMIC, EX, 5)) == DLK_RESULT_GRANTED);
    assert(lock_command(world, DLK_COMMAND_LOCK_CLOSE, ATOMIC) == DLK_RESULT_DONE);
    assert(claims(world, 1, got(ATOMIC)) == DLK_RESULT_DONE);
    unlock(world, ATOMIC, as_reply(0, holds(ATOMIC, EX, 5)));
    assert(try(world, 1, ATOMIC, EX).result == DLK_RESULT_GRANTED);
}

/* ---- What is refused ---- */

static void claims_that_cannot_be(struct world *world)
{
    struct dlk_claim wrong[14];
    size_t count = sizeof(wrong) / sizeof(wrong[0]);
    for (size_t i = 0; i < count; i++) {
        wrong[i] = holds(FAIR, EX, 5);
    }
    wrong[0].lock_id = 0;
    wrong[1].kind = DLK_KIND_COUNT;
    wrong[2].mode = DLK_MODE_COUNT;
    wrong[3].state = DLK_ENTRY_TICKET + 1;
    wrong[4].flags = DLK_FLAG_ALL + 1;
    wrong[5].token = 0;
    wrong[6].token = (uint64_t)EPOCH << DLK_COUNTER_BITS; /* not a former server's */
    wrong[7].token = former(5) | (uint64_t)1 << 63;
    wrong[8] = holds(ATOMIC, SH, 5);
    wrong[9] = holds_leased(RW, 5, 1000);
    wrong[10] = holds(SEMAPHORE, EX, 5);
    wrong[10].size = 0;
    wrong[11] = waits(FAIR, EX, 0, 9);
    wrong[11].stamp = 0;
    wrong[12] = waits(ATOMIC, EX, 5, 9);
    wrong[12].remaining_ms = MAX_LEASE_MS + 1;
    wrong[13] = has_ticket(EX, 5);
    wrong[13].kind = DLK_KIND_RW;
    for (size_t i = 0; i < count; i++) {
        assert(claims(world, 0, wrong[i]) == DLK_RESULT_INVALID);
    }
    assert(dlk_engine_entries_in_use(world->engine) == 0);
    assert(claims(world, 0, holds(FAIR, EX, 5)) == DLK_RESULT_GRANTED);
    struct dlk_claim other = got(FAIR);
    other.kind = DLK_KIND_RW; /* one id, one kind */
    assert(claims(world, 1, other) == DLK_RESULT_INVALID);
    other = got(ATOMIC);
    other.slot = 8;
    assert(claims(world, 1, other) == DLK_RESULT_NO_RESOURCE);
}

static void commands_that_cannot_be(struct world *world)
{
    struct dlk_claim claim = holds(FAIR, EX, 5);
    struct dlk_command order = claim_command(0, &claim, 1);
    order.size = 0;
    assert(command(world, order) == DLK_RESULT_INVALID);
    order.size = DLK_BATCH_MAX + 1;
    assert(command(world, order) == DLK_RESULT_INVALID);
    order.size = 1;
    order.kind = 2;
    assert(command(world, order) == DLK_RESULT_INVALID);
    order.kind = 0;
    order.id = 4711;
    assert(command(world, order) == DLK_RESULT_REMOVED);
    order.slot = 8;
    assert(command(world, order) == DLK_RESULT_REMOVED);
    assert(server_command(world, DLK_COMMAND_READY, DLK_READY_RECOVERING + 1)
           == DLK_RESULT_INVALID);
    assert(server_command(world, DLK_COMMAND_READY, DLK_READY_NONE) == DLK_RESULT_DONE);
    assert(command(world, claim_command(0, &claim, 1)) == DLK_RESULT_INVALID);
    all_is_ready(world);
    assert(command(world, claim_command(0, &claim, 1)) == DLK_RESULT_INVALID);
    assert(server_command(world, DLK_COMMAND_READY, DLK_READY_RECOVERING) == DLK_RESULT_INVALID);
    assert(claim.result == DLK_RESULT_COUNT && entries(world, FAIR) == 0);
    struct dlk_command open = {.op = DLK_COMMAND_SESSION_OPEN, .slot = 5, .id = 5, .ttl_ms = 1000,
                               .kind = DLK_SESSION_EARLY + 1};
    assert(command(world, open) == DLK_RESULT_INVALID);
}

static void a_full_table_takes_what_fits(struct world *world)
{
    struct dlk_claim batch[3] = {holds(RW, SH, 5), holds(FAIR, SH, 6), holds(RW, EX, 7)};
    assert(command(world, claim_command(0, batch, 3)) == DLK_RESULT_DONE);
    assert(batch[0].result == DLK_RESULT_GRANTED && batch[1].result == DLK_RESULT_GRANTED);
    assert(batch[2].result == DLK_RESULT_GRANTED); /* in the place of the reader */
    assert(claims(world, 1, holds(FAIR, SH, 7)) == DLK_RESULT_NO_RESOURCE);
    assert(claims(world, 1, waits(FAIR, EX, 8, 9)) == DLK_RESULT_NO_RESOURCE);
    assert(claims(world, 1, got(ATOMIC)) == DLK_RESULT_DONE);
    assert(counted(world, DLK_COUNT_CLAIMS_LOST) == 2);
}

int main(void)
{
    static const struct test tests[] = {
        {"nothing is granted before all is ready", nothing_is_granted_before_all_is_ready, 0},
        {"a lock with a live writer is served to early sessions",
         a_lock_with_a_live_writer_is_served_to_early_sessions, 0},
        {"time goes on where the state is certain", time_goes_on_where_the_state_is_certain, 0},
        {"a full semaphore is certain", a_full_semaphore_is_certain, 0},
        {"a claim is too late for a lock that was granted",
         a_claim_is_too_late_for_a_lock_that_was_granted, 0},
        {"what was certain is not when a claim speaks against it",
         what_was_certain_is_not_when_a_claim_speaks_against_it, 0},
        {"what only frees is always carried out", what_only_frees_is_always_carried_out, 0},
        {"what is certain outlasts a pause", what_is_certain_outlasts_a_pause, 0},
        {"no session ends before all is ready", no_session_ends_before_all_is_ready, 0},
        {"a session that closes may claim again", a_session_that_closes_may_claim_again, 0},
        {"places come back in their order", places_come_back_in_their_order, 0},
        {"a wait runs on", a_wait_runs_on, 0},
        {"a ticket that is waited for is a waiter", a_ticket_that_is_waited_for_is_a_waiter, 0},
        {"a grant is told again at the first connection",
         a_grant_is_told_again_at_the_first_connection, 0},
        {"a place that comes back takes the turn", a_place_that_comes_back_takes_the_turn, 0},
        {"a grant whose lease is over is told with nothing left",
         a_grant_whose_lease_is_over_is_told_with_nothing_left, 0},
        {"a place may be the next to hold", a_place_may_be_the_next_to_hold, 0},
        {"of two locks in one slot the newer stays", of_two_locks_in_one_slot_the_newer_stays, 0},
        {"a lock can be closed with all that is on it",
         a_lock_can_be_closed_with_all_that_is_on_it, 0},
        {"a lock that is got is kept open", a_lock_that_is_got_is_kept_open, 0},
        {"claims that cannot be", claims_that_cannot_be, 0},
        {"commands that cannot be", commands_that_cannot_be, 0},
        {"a full table takes what fits", a_full_table_takes_what_fits, 2},
    };
    return run_recoveries(tests, sizeof(tests) / sizeof(tests[0]));
}
