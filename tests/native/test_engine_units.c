/* The rules of docs/lock-kinds.md one by one: holds, leases, queues, repetition and undoing. */
#include "engine_world.h"

/* ---- Holds and their names ---- */

static void only_the_named_hold_is_released(struct world *world)
{
    struct dlk_reply held = try(world, 0, ATOMIC, EX);
    assert(held.result == DLK_RESULT_GRANTED && held.lease_ms == 0 && held.held_us == 0);
    struct dlk_request wrong = about(world, DLK_OP_UNLOCK, ATOMIC, held);
    wrong.owner = 2;
    assert(ask(world, wrong).result == DLK_RESULT_NOT_HELD);
    wrong = about(world, DLK_OP_UNLOCK, ATOMIC, held);
    wrong.session = 1;
    assert(ask(world, wrong).result == DLK_RESULT_NOT_HELD);
    wrong = about(world, DLK_OP_UNLOCK, ATOMIC, held);
    wrong.token--;
    assert(ask(world, wrong).result == DLK_RESULT_NOT_HELD);
    wrong = about(world, DLK_OP_UNLOCK, ATOMIC, held);
    wrong.entry = 31;
    assert(ask(world, wrong).result == DLK_RESULT_NOT_HELD);
    wrong = about(world, DLK_OP_UNLOCK, FAIR, held);
    assert(ask(world, wrong).result == DLK_RESULT_NOT_HELD);
    wrong.lock_id++;
    assert(ask(world, wrong).result == DLK_RESULT_NO_LOCK);
    assert(entries(world, ATOMIC) == 1);
    assert(unlock(world, ATOMIC, held).result == DLK_RESULT_RELEASED);
    assert(unlock(world, ATOMIC, held).result == DLK_RESULT_NOT_HELD);
    assert(dlk_engine_entries_in_use(world->engine) == 0);
}

static void a_late_unlock_does_not_release_the_next_hold(struct world *world)
{
    struct dlk_reply first = try(world, 0, ATOMIC, EX);
    assert(unlock(world, ATOMIC, first).result == DLK_RESULT_RELEASED);
    struct dlk_reply second = try(world, 0, ATOMIC, EX);
    assert(second.token > first.token);
    assert(unlock(world, ATOMIC, first).result == DLK_RESULT_NOT_HELD);
    assert(entries(world, ATOMIC) == 1);
}

static void a_hold_is_found_by_its_token_alone(struct world *world)
{
    struct dlk_reply held = leased(world, 0, ATOMIC, EX, 1000);
    held.entry = DLK_NONE;
    assert(extend(world, ATOMIC, held, 2000).lease_ms == 2000);
    assert(unlock(world, ATOMIC, held).result == DLK_RESULT_RELEASED);
}

static void what_a_kind_does_not_know_is_invalid(struct world *world)
{
    assert(try(world, 0, ATOMIC, SH).result == DLK_RESULT_INVALID);
    assert(try(world, 0, SEMAPHORE, SH).result == DLK_RESULT_INVALID);
    assert(leased(world, 0, RW, EX, 1000).result == DLK_RESULT_INVALID);
    assert(leased(world, 0, ATOMIC, EX, MAX_LEASE_MS + 1).result == DLK_RESULT_INVALID);
    for (uint32_t slot = 0; slot < LOCKS; slot++) {
        struct dlk_request asked = lock_request(world, 0, slot, EX, 0, 0, DLK_FLAG_TICKET);
        struct dlk_reply reply = ask(world, asked);
        assert((reply.result == DLK_RESULT_GRANTED) == (slot == FAIR));
        struct dlk_reply none = {.session = 1, .entry = DLK_NONE, .token = 99};
        uint32_t result = tell(world, DLK_OP_REDEEM, slot, none).result;
        assert(result == (slot == FAIR ? DLK_RESULT_PASSED : DLK_RESULT_INVALID));
    }
    assert(dlk_engine_entries_in_use(world->engine) == 1);
    assert(leased(world, 0, ATOMIC, EX, MAX_LEASE_MS).result == DLK_RESULT_GRANTED);
}

static void a_semaphore_has_as_many_holders_as_its_size(struct world *world)
{
    struct dlk_reply first = try(world, 0, SEMAPHORE, EX);
    assert(try(world, 0, SEMAPHORE, EX).result == DLK_RESULT_GRANTED); /* a slot, no re-entry */
    assert(try(world, 1, SEMAPHORE, EX).result == DLK_RESULT_BUSY);
    struct dlk_reply waiter = wait(world, 2, SEMAPHORE, EX, 1000);
    assert(waiter.result == DLK_RESULT_QUEUED);
    assert(unlock(world, SEMAPHORE, first).result == DLK_RESULT_RELEASED);
    assert(told(world, waiter.request_id).result == DLK_RESULT_GRANTED);
    assert(try(world, 1, SEMAPHORE, EX).result == DLK_RESULT_BUSY);
}

/* ---- Leases ---- */

static void a_lapsed_lease_is_taken_only_when_somebody_wants_the_lock(struct world *world)
{
    struct dlk_reply held = leased(world, 0, ATOMIC, EX, 1000);
    later(world, 999);
    assert(try(world, 1, ATOMIC, EX).result == DLK_RESULT_BUSY);
    later(world, 1);
    assert(entries(world, ATOMIC) == 1);
    struct dlk_reply again = extend(world, ATOMIC, held, 1000);
    assert(again.result == DLK_RESULT_EXTENDED && again.lease_ms == 1000);
    assert(again.token == held.token);
    later(world, 1000);
    struct dlk_reply newcomer = try(world, 1, ATOMIC, EX);
    assert(newcomer.result == DLK_RESULT_GRANTED && newcomer.token > held.token);
    assert(extend(world, ATOMIC, held, 1000).result == DLK_RESULT_NOT_HELD);
    assert(unlock(world, ATOMIC, held).result == DLK_RESULT_NOT_HELD);
}

static void a_lease_only_grows(struct world *world)
{
    struct dlk_reply held = leased(world, 0, ATOMIC, EX, 5000);
    world->now += ms(1) + 1;
    assert(extend(world, ATOMIC, held, 1000).lease_ms == 4998); /* rounded down */
    assert(extend(world, ATOMIC, held, 0).lease_ms == 4998);
    assert(extend(world, ATOMIC, held, 6000).lease_ms == 6000);
    assert(extend(world, ATOMIC, held, MAX_LEASE_MS + 1).result == DLK_RESULT_INVALID);
    struct dlk_reply other_mode = held;
    other_mode.mode = SH;
    assert(extend(world, ATOMIC, other_mode, 1000).result == DLK_RESULT_INVALID);
    struct dlk_reply unleased = try(world, 0, FAIR, EX);
    struct dlk_reply same = extend(world, FAIR, unleased, 1000);
    assert(same.result == DLK_RESULT_EXTENDED && same.lease_ms == 0);
    later(world, 5000);
    assert(try(world, 1, FAIR, EX).result == DLK_RESULT_BUSY);
}

static void a_waiter_gets_a_lapsed_lock_by_timer(struct world *world)
{
    leased(world, 0, ATOMIC, EX, 1000);
    struct dlk_request asked = lock_request(world, 1, ATOMIC, EX, 3000, 5000, 0);
    assert(ask(world, asked).result == DLK_RESULT_QUEUED);
    assert(dlk_engine_next_deadline(world->engine) <= world->now + ms(1000));
    later(world, 999);
    assert(told(world, asked.request_id).result == DLK_RESULT_COUNT);
    later(world, 1);
    struct dlk_reply granted = told(world, asked.request_id);
    assert(granted.result == DLK_RESULT_GRANTED && granted.session == 1);
    assert(granted.lease_ms == 3000 && granted.held_us == 1000000);
    later(world, 2999);
    assert(try(world, 2, ATOMIC, EX).result == DLK_RESULT_BUSY); /* it runs from the grant */
}

static void final_expiry_ends_the_hold_with_its_lease(struct world *world)
{
    for (uint32_t op = DLK_OP_LOCK; op <= DLK_OP_EXTEND; op++) {
        struct dlk_request asked =
            lock_request(world, 0, FAIR, EX, 1000, 0, DLK_FLAG_FINAL_EXPIRY);
        struct dlk_reply held = ask(world, asked);
        assert(held.result == DLK_RESULT_GRANTED);
        later(world, 999);
        assert(extend(world, FAIR, held, 0).result == DLK_RESULT_EXTENDED);
        later(world, 1);
        struct dlk_request late = about(world, op, FAIR, held);
        if (op == DLK_OP_LOCK) { /* a repetition: there is nothing to return, so it is a new one */
            late = asked;
            late.flags |= DLK_FLAG_RESEND;
        }
        struct dlk_reply reply = ask(world, late);
        if (op == DLK_OP_LOCK) {
            assert(reply.result == DLK_RESULT_GRANTED && reply.token > held.token);
            assert(unlock(world, FAIR, reply).result == DLK_RESULT_RELEASED);
        } else {
            assert(reply.result
                   == (op == DLK_OP_REDEEM ? DLK_RESULT_PASSED : DLK_RESULT_NOT_HELD));
        }
        assert(entries(world, FAIR) == 0);
    }
}

/* ---- Queues ---- */

static void a_waiting_writer_stops_new_readers(struct world *world)
{
    struct dlk_reply reader = try(world, 0, RW, SH);
    struct dlk_reply other = try(world, 1, RW, SH);
    assert(reader.readers == 1 && other.readers == 2);
    struct dlk_reply writer = wait(world, 2, RW, EX, DLK_WAIT_FOREVER);
    assert(writer.result == DLK_RESULT_QUEUED);
    assert(try(world, 3, RW, SH).result == DLK_RESULT_BUSY);
    struct dlk_reply late[2] = {wait(world, 3, RW, SH, 9000), wait(world, 3, RW, SH, 9000)};
    assert(unlock(world, RW, reader).result == DLK_RESULT_RELEASED);
    assert(told(world, writer.request_id).result == DLK_RESULT_COUNT);
    assert(unlock(world, RW, other).result == DLK_RESULT_RELEASED);
    struct dlk_reply written = told(world, writer.request_id);
    assert(written.result == DLK_RESULT_GRANTED && written.readers == 0);
    assert(unlock(world, RW, written).result == DLK_RESULT_RELEASED);
    assert(told(world, late[0].request_id).result == DLK_RESULT_GRANTED);
    assert(told(world, late[1].request_id).result == DLK_RESULT_GRANTED);
    assert(told(world, late[1].request_id).readers == 2);
}

static void waiters_come_in_the_order_of_their_coming(struct world *world)
{
    struct dlk_reply held = try(world, 0, ATOMIC, EX);
    uint32_t waiters[3];
    uint64_t stamp = held.token;
    for (uint32_t i = 0; i < 3; i++) {
        struct dlk_reply queued = wait(world, 3 - i, ATOMIC, EX, 5000);
        assert(queued.result == DLK_RESULT_QUEUED && queued.token > stamp);
        stamp = queued.token;
        waiters[i] = queued.request_id;
    }
    assert(try(world, 0, ATOMIC, EX).result == DLK_RESULT_BUSY);
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t token = held.token;
        assert(unlock(world, ATOMIC, held).result == DLK_RESULT_RELEASED);
        held = told(world, waiters[i]);
        assert(held.result == DLK_RESULT_GRANTED && held.token > token && held.session == 3 - i);
    }
}

static void a_wait_ends_at_its_deadline_but_a_grant_of_that_instant_wins(struct world *world)
{
    struct dlk_reply held = try(world, 0, ATOMIC, EX);
    uint32_t first = wait(world, 1, ATOMIC, EX, 1000).request_id;
    later(world, 999);
    assert(world->n_told == 0);
    world->now += ms(1);
    assert(unlock(world, ATOMIC, held).result == DLK_RESULT_RELEASED);
    struct dlk_reply granted = told(world, first);
    assert(granted.result == DLK_RESULT_GRANTED && granted.held_us == 1000000);
    tick(world);
    assert(world->n_told == 0);
    uint32_t second = wait(world, 2, ATOMIC, EX, 1000).request_id;
    later(world, 1000);
    assert(told(world, second).result == DLK_RESULT_TIMED_OUT);
    assert(entries(world, ATOMIC) == 1);
}

static void waits_that_end_together_end_before_anybody_is_granted(struct world *world)
{
    try(world, 0, RW, SH);
    uint32_t writer = wait(world, 1, RW, EX, 1000).request_id;
    uint32_t reader = wait(world, 2, RW, SH, 1000).request_id;
    uint32_t patient = wait(world, 3, RW, SH, 1001).request_id;
    later(world, 1000);
    assert(told(world, writer).result == DLK_RESULT_TIMED_OUT);
    assert(told(world, reader).result == DLK_RESULT_TIMED_OUT);
    assert(told(world, patient).result == DLK_RESULT_GRANTED);
}

static void a_lease_ends_before_the_wait_of_the_same_instant(struct world *world)
{
    leased(world, 0, ATOMIC, EX, 1000);
    uint32_t waiter = wait(world, 1, ATOMIC, EX, 1000).request_id;
    later(world, 1000);
    assert(told(world, waiter).result == DLK_RESULT_GRANTED);
}

/* ---- Undoing and repeating ---- */

static void cancel_undoes_whatever_became_of_the_request(struct world *world)
{
    struct dlk_reply held = try(world, 0, RW, SH);
    struct dlk_reply writer = wait(world, 1, RW, EX, 5000);
    uint32_t reader = wait(world, 2, RW, SH, 5000).request_id;
    assert(tell(world, DLK_OP_CANCEL, RW, writer).result == DLK_RESULT_CANCELLED);
    struct dlk_reply read = told(world, reader);
    assert(read.result == DLK_RESULT_GRANTED); /* the writer was in its way */
    assert(told(world, writer.request_id).result == DLK_RESULT_COUNT);
    assert(tell(world, DLK_OP_CANCEL, RW, writer).result == DLK_RESULT_CANCELLED);

    writer = wait(world, 1, RW, EX, 5000);
    assert(unlock(world, RW, read).result == DLK_RESULT_RELEASED);
    assert(unlock(world, RW, held).result == DLK_RESULT_RELEASED);
    assert(told(world, writer.request_id).result == DLK_RESULT_GRANTED);
    assert(tell(world, DLK_OP_CANCEL, RW, writer).result == DLK_RESULT_CANCELLED); /* they cross */
    assert(entries(world, RW) == 0);
}

static void a_cancel_is_its_owners_alone(struct world *world)
{
    struct dlk_reply held = try(world, 0, ATOMIC, EX);
    struct dlk_request cancel = about(world, DLK_OP_CANCEL, ATOMIC, held);
    cancel.session = 1;
    assert(ask(world, cancel).result == DLK_RESULT_CANCELLED);
    cancel.session = 0;
    cancel.owner = 2;
    assert(ask(world, cancel).result == DLK_RESULT_CANCELLED);
    assert(entries(world, ATOMIC) == 1);
}

static void a_repeated_request_is_the_same_request(struct world *world)
{
    struct dlk_request asked = lock_request(world, 0, FAIR, EX, 4000, 0, 0);
    struct dlk_reply held = ask(world, asked);
    world->now += ms(1000);
    asked.flags |= DLK_FLAG_RESEND;
    struct dlk_reply again = ask(world, asked);
    assert(again.result == DLK_RESULT_GRANTED && again.token == held.token);
    assert(again.lease_ms == 3000 && again.held_us == 0 && entries(world, FAIR) == 1);

    struct dlk_request waits = lock_request(world, 1, FAIR, EX, 0, 9000, DLK_FLAG_RESEND);
    struct dlk_reply queued = ask(world, waits);
    world->now += ms(1500);
    assert(ask(world, waits).token == queued.token && entries(world, FAIR) == 2);
    struct dlk_request tries = lock_request(world, 2, FAIR, SH, 0, 0,
                                            DLK_FLAG_TICKET | DLK_FLAG_RESEND);
    struct dlk_reply place = ask(world, tries);
    struct dlk_reply repeated = ask(world, tries);
    assert(repeated.result == DLK_RESULT_TICKETED && repeated.token == place.token);
    world->now += ms(500);
    assert(unlock(world, FAIR, held).result == DLK_RESULT_RELEASED);
    struct dlk_reply granted = told(world, waits.request_id);
    assert(granted.result == DLK_RESULT_GRANTED);
    assert(granted.held_us == 500000); /* its client may count from the repetition */
    asked.owner = 2; /* somebody else's request of the same number */
    assert(ask(world, asked).result == DLK_RESULT_BUSY);
}

int main(void)
{
    static const struct test tests[] = {
        {"only the named hold is released", only_the_named_hold_is_released, 0},
        {"a late unlock does not release the next hold",
         a_late_unlock_does_not_release_the_next_hold, 0},
        {"a hold is found by its token alone", a_hold_is_found_by_its_token_alone, 0},
        {"what a kind does not know is invalid", what_a_kind_does_not_know_is_invalid, 0},
        {"a semaphore has as many holders as its size",
         a_semaphore_has_as_many_holders_as_its_size, 0},
        {"a lapsed lease is taken only when somebody wants the lock",
         a_lapsed_lease_is_taken_only_when_somebody_wants_the_lock, 0},
        {"a lease only grows", a_lease_only_grows, 0},
        {"a waiter gets a lapsed lock by timer", a_waiter_gets_a_lapsed_lock_by_timer, 0},
        {"final expiry ends the hold with its lease", final_expiry_ends_the_hold_with_its_lease, 0},
        {"a waiting writer stops new readers", a_waiting_writer_stops_new_readers, 0},
        {"waiters come in the order of their coming", waiters_come_in_the_order_of_their_coming, 0},
        {"a wait ends at its deadline, but a grant of that instant wins",
         a_wait_ends_at_its_deadline_but_a_grant_of_that_instant_wins, 0},
        {"waits that end together end before anybody is granted",
         waits_that_end_together_end_before_anybody_is_granted, 0},
        {"a lease ends before the wait of the same instant",
         a_lease_ends_before_the_wait_of_the_same_instant, 0},
        {"cancel undoes whatever became of the request",
         cancel_undoes_whatever_became_of_the_request, 0},
        {"a cancel is its owner's alone", a_cancel_is_its_owners_alone, 0},
        {"a repeated request is the same request", a_repeated_request_is_the_same_request, 0},
    };
    return run_tests(tests, sizeof(tests) / sizeof(tests[0]));
}
