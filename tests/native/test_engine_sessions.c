/* Sessions, closing locks, readiness and epochs, as docs/lock-kinds.md has them. */
#include "engine_world.h"

static void renew(struct world *world, uint32_t slot)
{
    assert(session_command(world, DLK_COMMAND_SESSION_RENEW, slot) == DLK_RESULT_DONE);
}

/* ---- Sessions ---- */

static void a_session_that_ends_frees_what_depends_on_it(struct world *world)
{
    struct dlk_reply lost = try(world, 0, ATOMIC, EX);
    struct dlk_reply held = leased(world, 1, FAIR, EX, MAX_LEASE_MS);
    struct dlk_reply place = ticket(world, 0, EX);
    uint32_t waiting = wait(world, 0, RW, EX, 1000).request_id;
    assert(told(world, waiting).result == DLK_RESULT_GRANTED);
    waiting = wait(world, 0, FAIR, EX, DLK_WAIT_FOREVER).request_id;
    uint32_t behind = wait(world, 1, ATOMIC, EX, DLK_WAIT_FOREVER).request_id;
    later(world, TTL_MS - 1);
    assert(world->n_events == 0 && world->n_told == 0);
    renew(world, 1);
    struct dlk_reply late = extend(world, FAIR, held, MAX_LEASE_MS);
    assert(late.result == DLK_RESULT_NOT_HELD); /* others stand behind it */
    later(world, 1);
    assert(event(world, DLK_EVENT_SESSION_ENDED, 0) != NULL);
    assert(told(world, waiting).result == DLK_RESULT_REMOVED);
    assert(told(world, behind).result == DLK_RESULT_COUNT); /* its hold and its ticket stay ... */
    assert(entries(world, RW) == 1 && entries(world, FAIR) == 1 && entries(world, ATOMIC) == 2);
    assert(session_command(world, DLK_COMMAND_SESSION_END, 1) == DLK_RESULT_REMOVED);
    assert(session_command(world, DLK_COMMAND_SESSION_OPEN, 0) == DLK_RESULT_INVALID);
    renew(world, 1);
    later(world, TTL_MS - 1);
    assert(entries(world, ATOMIC) == 2 && world->n_told == 0);
    session_end(world, 0); /* ... until that is written down */
    assert(event(world, DLK_EVENT_DONE, 0)->value == 0);
    assert(event(world, DLK_EVENT_SESSION_FREED, 0)->id == 1000);
    assert(told(world, behind).result == DLK_RESULT_GRANTED);
    assert(session_command(world, DLK_COMMAND_SESSION_END, 0) == DLK_RESULT_REMOVED);
    assert(entries(world, RW) == 0 && entries(world, FAIR) == 0 && entries(world, ATOMIC) == 1);
    assert(unlock(world, ATOMIC, lost).result == DLK_RESULT_REMOVED);
    assert(redeem(world, place, 0, 0).result == DLK_RESULT_REMOVED);
}

static void a_leased_hold_outlives_its_session_until_its_end(struct world *world)
{
    struct dlk_command brief = {.op = DLK_COMMAND_SESSION_OPEN, .slot = 5, .id = 1005,
                                .ttl_ms = 1000, .lease_ms = MAX_LEASE_MS};
    assert(command(world, brief) == DLK_RESULT_DONE);
    leased(world, 5, ATOMIC, EX, 3000);
    leased(world, 5, SEMAPHORE, EX, 4000);
    uint32_t waiter = wait(world, 1, ATOMIC, EX, 9000).request_id;
    later(world, 1000);
    assert(event(world, DLK_EVENT_SESSION_ENDED, 5) != NULL);
    session_end(world, 5);
    assert(event(world, DLK_EVENT_DONE, 5)->value == 2);
    assert(event(world, DLK_EVENT_SESSION_FREED, 5) == NULL);
    assert(entries(world, ATOMIC) == 2 && entries(world, SEMAPHORE) == 1);
    assert(command(world, brief) != DLK_RESULT_DONE); /* the slot is not free yet */
    assert(try(world, 5, RW, SH).result == DLK_RESULT_REMOVED);
    later(world, 1999);
    assert(world->n_told == 0);
    later(world, 1);
    assert(told(world, waiter).result == DLK_RESULT_GRANTED);
    assert(dlk_engine_next_deadline(world->engine) <= world->now + ms(1000));
    later(world, 1000); /* nobody wants the semaphore, and still */
    assert(entries(world, SEMAPHORE) == 0);
    assert(event(world, DLK_EVENT_SESSION_FREED, 5)->id == 1005);
    assert(command(world, brief) == DLK_RESULT_DONE);
}

static void only_a_confirmed_silence_ends_a_session(struct world *world)
{
    try(world, 0, ATOMIC, EX);
    world->now += ms(TTL_MS);
    dlk_engine_tick(world->engine, world->now, 0);
    dlk_engine_tick(world->engine, world->now, world->now - 1);
    take_outbox(world);
    assert(world->n_events == 0);
    assert(ask(world, request(world, DLK_OP_PING, 0, 0)).result == DLK_RESULT_DONE);
    tick(world);
    assert(event(world, DLK_EVENT_SESSION_ENDED, 0) == NULL); /* its ping was there in time */
    assert(event(world, DLK_EVENT_SESSION_ENDED, 1) != NULL);
    later(world, TTL_MS);
    assert(event(world, DLK_EVENT_SESSION_ENDED, 0) != NULL);
}

static void grace_holds_for_all_and_longer_than_a_renewal(struct world *world)
{
    assert(server_command(world, DLK_COMMAND_GRACE, 3 * TTL_MS) == DLK_RESULT_DONE);
    later(world, TTL_MS);
    assert(world->n_events == 0);
    renew(world, 0);
    later(world, 2 * TTL_MS - 1);
    assert(world->n_events == 0);
    renew(world, 1);
    later(world, 1);
    assert(event(world, DLK_EVENT_SESSION_ENDED, 0) != NULL);
    assert(event(world, DLK_EVENT_SESSION_ENDED, 1) == NULL);
}

static void who_leaves_frees_leased_holds_too(struct world *world)
{
    leased(world, 0, ATOMIC, EX, MAX_LEASE_MS);
    uint32_t waiter = wait(world, 1, ATOMIC, EX, 5000).request_id;
    uint32_t own = wait(world, 0, ATOMIC, EX, 5000).request_id;
    assert(session_command(world, DLK_COMMAND_SESSION_CLOSE, 0) == DLK_RESULT_DONE);
    assert(event(world, DLK_EVENT_SESSION_FREED, 0) != NULL);
    assert(event(world, DLK_EVENT_SESSION_ENDED, 0) == NULL);
    assert(told(world, waiter).result == DLK_RESULT_GRANTED);
    assert(told(world, own).result == DLK_RESULT_REMOVED);
    assert(session_command(world, DLK_COMMAND_SESSION_CLOSE, 0) != DLK_RESULT_DONE);
    assert(session_command(world, DLK_COMMAND_SESSION_RENEW, 0) != DLK_RESULT_DONE);
    assert(session_command(world, DLK_COMMAND_SESSION_OPEN, 0) == DLK_RESULT_DONE);
    assert(session_command(world, DLK_COMMAND_SESSION_OPEN, 0) != DLK_RESULT_DONE);
}

/* Its client said good-bye while it ended: SESSION_CLOSE crossed SESSION_ENDED, and nobody sends
 * SESSION_END. */
static void who_leaves_too_late_frees_everything_all_the_same(struct world *world)
{
    leased(world, 0, ATOMIC, EX, MAX_LEASE_MS);
    try(world, 0, RW, EX);
    later(world, TTL_MS - 1);
    struct dlk_request longer = lock_request(world, 0, FAIR, EX, MAX_LEASE_MS, 0, 0);
    dlk_engine_tick(world->engine, world->now, world->now + ms(1));
    take_outbox(world);
    assert(event(world, DLK_EVENT_SESSION_ENDED, 0) != NULL);
    assert(ask(world, longer).result == DLK_RESULT_REMOVED);
    assert(session_command(world, DLK_COMMAND_SESSION_CLOSE, 0) == DLK_RESULT_DONE);
    assert(event(world, DLK_EVENT_SESSION_FREED, 0) != NULL);
    assert(dlk_engine_entries_in_use(world->engine) == 0);
}

/* Another client has taken its role: nothing of it stays, whatever a lease says. */
static void what_is_left_of_a_session_can_be_freed_too(struct world *world)
{
    struct dlk_command brief = {.op = DLK_COMMAND_SESSION_OPEN, .slot = 5, .id = 1005,
                                .ttl_ms = 1000, .lease_ms = MAX_LEASE_MS};
    assert(command(world, brief) == DLK_RESULT_DONE);
    leased(world, 5, ATOMIC, EX, 3000);
    leased(world, 5, FAIR, EX, 4000);
    uint32_t waiter = wait(world, 1, ATOMIC, EX, 9000).request_id;
    later(world, 1000);
    session_end(world, 5);
    assert(event(world, DLK_EVENT_SESSION_FREED, 5) == NULL);
    assert(session_command(world, DLK_COMMAND_SESSION_CLOSE, 5) == DLK_RESULT_DONE);
    assert(event(world, DLK_EVENT_SESSION_FREED, 5)->id == 1005);
    assert(told(world, waiter).result == DLK_RESULT_GRANTED);
    assert(entries(world, FAIR) == 0);
    assert(session_command(world, DLK_COMMAND_SESSION_CLOSE, 5) != DLK_RESULT_DONE);
}

/* The lease of an ended session runs on: it may be over when what it had is freed, or before. */
static void a_lease_may_end_before_what_its_session_had_is_freed(struct world *world)
{
    leased(world, 0, ATOMIC, EX, MAX_LEASE_MS);
    leased(world, 0, FAIR, EX, MAX_LEASE_MS);
    later(world, TTL_MS); /* lapsed, and nobody wanted them */
    assert(event(world, DLK_EVENT_SESSION_ENDED, 0) != NULL);
    assert(dlk_engine_entries_in_use(world->engine) == 2);
    assert(session_command(world, DLK_COMMAND_SESSION_OPEN, 4) == DLK_RESULT_DONE);
    assert(try(world, 4, FAIR, EX).result == DLK_RESULT_GRANTED);
    session_end(world, 0);
    assert(event(world, DLK_EVENT_DONE, 0)->value == 0);
    assert(event(world, DLK_EVENT_SESSION_FREED, 0) != NULL);
    assert(dlk_engine_entries_in_use(world->engine) == 1);
}

static void nothing_is_granted_to_who_ends_in_the_same_tick(struct world *world)
{
    renew(world, 3);
    struct dlk_request asked = lock_request(world, 1, ATOMIC, EX, MAX_LEASE_MS, 60000, 0);
    leased(world, 3, ATOMIC, EX, MAX_LEASE_MS);
    assert(ask(world, asked).result == DLK_RESULT_QUEUED);
    uint32_t last = wait(world, 3, ATOMIC, EX, 60000).request_id;
    world->now += ms(5000);
    renew(world, 3);
    world->now += ms(TTL_MS - 5000); /* the lease has lapsed, and session 1 ends */
    tick(world);
    assert(told(world, asked.request_id).result == DLK_RESULT_REMOVED);
    assert(told(world, last).result == DLK_RESULT_GRANTED);
}

static void a_new_connection_needs_the_new_attach_number(struct world *world)
{
    struct dlk_command order = {.op = DLK_COMMAND_SESSION_SUPERSEDE, .slot = 0, .id = 1000,
                                .attach = 2, .secret = {1, 2, 3}};
    struct dlk_attach frame = {.client_id = 1000, .session_slot = 0, .attach = 1};
    assert(dlk_engine_attach_allowed(world->engine, &frame));
    world->now += ms(TTL_MS - 1);
    assert(command(world, order) == DLK_RESULT_DONE);
    assert(!dlk_engine_attach_allowed(world->engine, &frame));
    frame.attach = 2;
    assert(!dlk_engine_attach_allowed(world->engine, &frame));
    memcpy(frame.secret, order.secret, sizeof(frame.secret));
    assert(dlk_engine_attach_allowed(world->engine, &frame));
    frame.client_id++;
    assert(!dlk_engine_attach_allowed(world->engine, &frame));
    frame.client_id--;
    later(world, TTL_MS - 1); /* it has renewed the session */
    assert(dlk_engine_attach_allowed(world->engine, &frame));
    later(world, 1);
    assert(!dlk_engine_attach_allowed(world->engine, &frame));
    frame.session_slot = 8;
    assert(!dlk_engine_attach_allowed(world->engine, &frame));
}

static void a_session_asks_for_no_longer_lease_than_it_declared(struct world *world)
{
    struct dlk_command order = {.op = DLK_COMMAND_SESSION_LEASE, .slot = 0, .id = 1000,
                                .lease_ms = 16384};
    assert(leased(world, 0, ATOMIC, EX, 16384).result == DLK_RESULT_INVALID);
    assert(command(world, order) == DLK_RESULT_DONE);
    assert(leased(world, 0, ATOMIC, EX, 16384).result == DLK_RESULT_GRANTED);
    order.lease_ms = 3600001;
    assert(command(world, order) == DLK_RESULT_INVALID); /* the server's limit */
}

/* ---- Closing a lock ---- */

static void a_lock_that_nobody_has_got_ends_with_its_last_entry(struct world *world)
{
    assert(lock_command(world, DLK_COMMAND_LOCK_CLOSE, RW) == DLK_RESULT_DONE);
    assert(event(world, DLK_EVENT_DONE, RW)->value == 1);
    assert(try(world, 0, RW, SH).result == DLK_RESULT_NO_LOCK);
    struct dlk_reply held = try(world, 0, FAIR, EX);
    struct dlk_reply place = ticket(world, 1, EX);
    assert(lock_command(world, DLK_COMMAND_LOCK_CLOSE, FAIR) == DLK_RESULT_DONE);
    assert(event(world, DLK_EVENT_DONE, FAIR)->value == 0);
    assert(try(world, 2, FAIR, EX).result == DLK_RESULT_NO_LOCK);
    assert(extend(world, FAIR, held, 0).result == DLK_RESULT_EXTENDED);
    assert(unlock(world, FAIR, held).result == DLK_RESULT_RELEASED);
    held = redeem(world, place, 0, 0);
    assert(held.result == DLK_RESULT_GRANTED);
    assert(unlock(world, FAIR, held).result == DLK_RESULT_RELEASED);
    assert(event(world, DLK_EVENT_LOCK_CLOSED, FAIR)->id == 100 + FAIR);
    assert(unlock(world, FAIR, held).result == DLK_RESULT_NO_LOCK);
    assert(lock_command(world, DLK_COMMAND_LOCK_CLOSE, FAIR) != DLK_RESULT_DONE);
    struct dlk_command other = {.op = DLK_COMMAND_LOCK_OPEN, .slot = FAIR, .id = 999,
                                .kind = DLK_KIND_RW};
    assert(command(world, other) == DLK_RESULT_DONE); /* the slot serves another */
    assert(lock_command(world, DLK_COMMAND_LOCK_OPEN, FAIR) != DLK_RESULT_DONE);
    assert(try(world, 0, FAIR, EX).result == DLK_RESULT_NO_LOCK);
}

static void a_closing_lock_can_be_got_again(struct world *world)
{
    struct dlk_reply held = leased(world, 0, ATOMIC, EX, 1000);
    assert(lock_command(world, DLK_COMMAND_LOCK_CLOSE, ATOMIC) == DLK_RESULT_DONE);
    assert(lock_command(world, DLK_COMMAND_LOCK_OPEN, ATOMIC) == DLK_RESULT_DONE);
    assert(try(world, 1, ATOMIC, EX).result == DLK_RESULT_BUSY);
    assert(unlock(world, ATOMIC, held).result == DLK_RESULT_RELEASED);
    assert(event(world, DLK_EVENT_LOCK_CLOSED, ATOMIC) == NULL);
    assert(try(world, 1, ATOMIC, EX).result == DLK_RESULT_GRANTED);
}

static void a_closing_lock_waits_for_the_leases_of_ended_sessions(struct world *world)
{
    renew(world, 0);
    later(world, TTL_MS - 1);
    dlk_engine_clear(world->engine);
    struct dlk_reply held = leased(world, 0, ATOMIC, EX, MAX_LEASE_MS);
    assert(held.result == DLK_RESULT_GRANTED);
    assert(lock_command(world, DLK_COMMAND_LOCK_CLOSE, ATOMIC) == DLK_RESULT_DONE);
    struct dlk_request longer = about(world, DLK_OP_EXTEND, ATOMIC, held);
    longer.lease_ms = MAX_LEASE_MS;
    world->now += ms(5000);
    assert(ask(world, longer).lease_ms == MAX_LEASE_MS);
    later(world, MAX_LEASE_MS);
    assert(event(world, DLK_EVENT_LOCK_CLOSED, ATOMIC) == NULL);
    later(world, TTL_MS - MAX_LEASE_MS); /* lapsed, and now its session ends */
    assert(event(world, DLK_EVENT_SESSION_ENDED, 0) != NULL);
    session_end(world, 0);
    assert(event(world, DLK_EVENT_SESSION_FREED, 0) != NULL);
    assert(event(world, DLK_EVENT_LOCK_CLOSED, ATOMIC) != NULL);
}

/* ---- Readiness, epochs, the end ---- */

static void nothing_is_granted_while_not_ready(struct world *world)
{
    struct dlk_reply held = leased(world, 0, ATOMIC, EX, 1000);
    uint32_t waiter = wait(world, 1, ATOMIC, EX, 5000).request_id;
    uint32_t brief = wait(world, 2, ATOMIC, EX, 500).request_id;
    assert(server_command(world, DLK_COMMAND_READY, 0) == DLK_RESULT_DONE);
    assert(unlock(world, ATOMIC, held).result == DLK_RESULT_NOT_READY);
    assert(try(world, 0, RW, SH).result == DLK_RESULT_NOT_READY);
    assert(ask(world, request(world, DLK_OP_PING, 0, 0)).result == DLK_RESULT_DONE);
    later(world, 1000);
    assert(told(world, brief).result == DLK_RESULT_TIMED_OUT && world->n_told == 1);
    assert(dlk_engine_next_deadline(world->engine) > world->now);
    assert(session_command(world, DLK_COMMAND_SESSION_CLOSE, 0) == DLK_RESULT_DONE);
    assert(entries(world, ATOMIC) == 1 && world->n_told == 0);
    later(world, 1000);
    assert(server_command(world, DLK_COMMAND_READY, 1) == DLK_RESULT_DONE);
    assert(told(world, waiter).result == DLK_RESULT_GRANTED);
    assert(told(world, waiter).held_us == 2000000);
}

static void a_counter_that_ends_takes_the_next_epoch_if_it_may(struct world *world)
{
    const uint64_t epoch_start = (uint64_t)EPOCH << DLK_COUNTER_BITS;
    const uint64_t counter_end = ((uint64_t)1 << DLK_COUNTER_BITS) - 1;
    struct dlk_reply held = try(world, 0, ATOMIC, EX);
    assert(held.token > epoch_start && world->n_events == 0);
    server_command(world, DLK_COMMAND_TOKEN_FLOOR, epoch_start + counter_end / 2);
    assert(unlock(world, ATOMIC, held).result == DLK_RESULT_RELEASED);
    assert(event(world, DLK_EVENT_EPOCH_LOW, 0)->value == EPOCH);
    held = try(world, 0, ATOMIC, EX);
    assert(held.token > epoch_start + counter_end / 2 && world->n_events == 0);
    server_command(world, DLK_COMMAND_TOKEN_FLOOR, epoch_start + counter_end - 10);
    assert(try(world, 1, RW, SH).result == DLK_RESULT_NOT_READY);
    assert(entries(world, ATOMIC) == 1);
    assert(server_command(world, DLK_COMMAND_EPOCH, EPOCH) != DLK_RESULT_DONE);
    assert(server_command(world, DLK_COMMAND_EPOCH, EPOCH + 1) == DLK_RESULT_DONE);
    struct dlk_reply next = try(world, 1, RW, SH);
    assert(next.result == DLK_RESULT_GRANTED && next.epoch == EPOCH);
    assert(next.token >> DLK_COUNTER_BITS == EPOCH + 1 && next.token > held.token);
    assert(unlock(world, ATOMIC, held).result == DLK_RESULT_RELEASED);
    assert(server_command(world, DLK_COMMAND_EPOCH, (uint64_t)1 << DLK_EPOCH_BITS)
           == DLK_RESULT_INVALID);
}

static void cells_are_checked_and_left_to_the_plane(struct world *world)
{
    struct dlk_command order = {.op = DLK_COMMAND_CELL_OPEN, .slot = 3, .id = 55};
    assert(command(world, order) == DLK_RESULT_DONE);
    assert(command(world, order) != DLK_RESULT_DONE);
    struct dlk_request swap = request(world, DLK_OP_COMPARE_SWAP, 0, 3);
    assert(ask(world, swap).result == DLK_RESULT_NO_OBJECT);
    swap.lock_id = 55;
    swap.token = 5;
    swap.value = 6;
    struct dlk_reply action = ask(world, swap);
    assert(action.result == DLK_RESULT_ACTION && action.op == DLK_OP_COMPARE_SWAP);
    assert(action.entry == 3 && action.token == 5 && action.value == 6);
    server_command(world, DLK_COMMAND_READY, 0);
    assert(ask(world, swap).result == DLK_RESULT_NOT_READY);
    server_command(world, DLK_COMMAND_READY, 1);
    order.op = DLK_COMMAND_CELL_CLOSE;
    assert(command(world, order) == DLK_RESULT_DONE);
    assert(ask(world, swap).result == DLK_RESULT_NO_OBJECT);
    swap.slot = 4;
    assert(ask(world, swap).result == DLK_RESULT_NO_OBJECT);
}

static void the_end_wakes_every_waiter(struct world *world)
{
    try(world, 0, ATOMIC, EX);
    try(world, 0, FAIR, EX);
    uint32_t first = wait(world, 1, ATOMIC, EX, 5000).request_id;
    uint32_t second = wait(world, 2, FAIR, SH, DLK_WAIT_FOREVER).request_id;
    ticket(world, 3, EX);
    dlk_engine_stop(world->engine);
    take_outbox(world);
    assert(world->n_told == 2);
    assert(told(world, first).result == DLK_RESULT_STOPPING);
    assert(told(world, second).result == DLK_RESULT_STOPPING);
    assert(try(world, 1, RW, SH).result == DLK_RESULT_NOT_READY);
}

int main(void)
{
    static const struct test tests[] = {
        {"a session that ends frees what depends on it",
         a_session_that_ends_frees_what_depends_on_it, 0},
        {"a leased hold outlives its session until its end",
         a_leased_hold_outlives_its_session_until_its_end, 0},
        {"only a confirmed silence ends a session", only_a_confirmed_silence_ends_a_session, 0},
        {"grace holds for all and longer than a renewal",
         grace_holds_for_all_and_longer_than_a_renewal, 0},
        {"who leaves frees leased holds too", who_leaves_frees_leased_holds_too, 0},
        {"who leaves too late frees everything all the same",
         who_leaves_too_late_frees_everything_all_the_same, 0},
        {"what is left of a session can be freed too",
         what_is_left_of_a_session_can_be_freed_too, 0},
        {"a lease may end before what its session had is freed",
         a_lease_may_end_before_what_its_session_had_is_freed, 0},
        {"nothing is granted to who ends in the same tick",
         nothing_is_granted_to_who_ends_in_the_same_tick, 0},
        {"a new connection needs the new attach number",
         a_new_connection_needs_the_new_attach_number, 0},
        {"a session asks for no longer lease than it declared",
         a_session_asks_for_no_longer_lease_than_it_declared, 0},
        {"a lock that nobody has got ends with its last entry",
         a_lock_that_nobody_has_got_ends_with_its_last_entry, 0},
        {"a closing lock can be got again", a_closing_lock_can_be_got_again, 0},
        {"a closing lock waits for the leases of ended sessions",
         a_closing_lock_waits_for_the_leases_of_ended_sessions, 0},
        {"nothing is granted while not ready", nothing_is_granted_while_not_ready, 0},
        {"a counter that ends takes the next epoch if it may",
         a_counter_that_ends_takes_the_next_epoch_if_it_may, 0},
        {"cells are checked and left to the plane", cells_are_checked_and_left_to_the_plane, 0},
        {"the end wakes every waiter", the_end_wakes_every_waiter, 0},
    };
    return run_tests(tests, sizeof(tests) / sizeof(tests[0]));
}
