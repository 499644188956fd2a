/* Full tables and full batches: refused with NO_RESOURCE, and still serving. */
#include "engine_world.h"

enum { READERS = 9000 };

static void a_full_table_refuses_and_still_serves(struct world *world)
{
    struct dlk_reply held = try(world, 0, RW, SH);
    uint32_t waiter = wait(world, 1, RW, EX, 5000).request_id;
    assert(try(world, 2, ATOMIC, EX).result == DLK_RESULT_NO_RESOURCE);
    assert(try(world, 2, RW, SH).result == DLK_RESULT_NO_RESOURCE);
    assert(ticket(world, 2, EX).result == DLK_RESULT_NO_RESOURCE);
    assert(entries(world, ATOMIC) == 0 && entries(world, RW) == 2);
    assert(extend(world, RW, held, 0).result == DLK_RESULT_EXTENDED);
    assert(unlock(world, RW, held).result == DLK_RESULT_RELEASED);
    struct dlk_reply written = told(world, waiter);
    assert(written.result == DLK_RESULT_GRANTED);
    assert(try(world, 2, ATOMIC, EX).result == DLK_RESULT_GRANTED);
    assert(try(world, 3, ATOMIC, EX).result == DLK_RESULT_NO_RESOURCE);
}

static void a_table_full_of_lapsed_leases_serves_newcomers(struct world *world)
{
    leased(world, 0, ATOMIC, EX, 1000);
    leased(world, 0, FAIR, EX, 1000);
    later(world, 999);
    assert(try(world, 1, ATOMIC, EX).result == DLK_RESULT_NO_RESOURCE);
    later(world, 1);
    assert(try(world, 1, RW, SH).result == DLK_RESULT_NO_RESOURCE); /* not its own to take */
    assert(try(world, 1, ATOMIC, EX).result == DLK_RESULT_GRANTED);
    assert(wait(world, 2, FAIR, SH, 1000).result == DLK_RESULT_GRANTED);
}

static void a_session_has_only_so_many_waiting_requests(struct world *world)
{
    assert(try(world, 0, FAIR, EX).result == DLK_RESULT_GRANTED);
    uint32_t last = 0;
    struct dlk_reply place = ticket(world, 1, EX);
    for (uint32_t i = 0; i < DLK_INFLIGHT_MAX; i++) {
        struct dlk_request asked = lock_request(world, 1, FAIR, SH, 0, DLK_WAIT_FOREVER, 0);
        dlk_engine_step(world->engine, &asked, 1, world->now);
        dlk_engine_clear(world->engine);
        last = asked.request_id;
    }
    assert(entries(world, FAIR) == DLK_INFLIGHT_MAX + 2);
    assert(wait(world, 1, FAIR, SH, 1000).result == DLK_RESULT_NO_RESOURCE);
    assert(redeem(world, place, 0, 1000).result == DLK_RESULT_NO_RESOURCE);
    assert(redeem(world, place, 0, 0).result == DLK_RESULT_TICKETED);
    assert(try(world, 1, FAIR, SH).result == DLK_RESULT_BUSY);
    assert(wait(world, 2, FAIR, SH, 1000).result == DLK_RESULT_QUEUED);
    struct dlk_request cancel = request(world, DLK_OP_CANCEL, 1, FAIR);
    cancel.value = last;
    assert(ask(world, cancel).result == DLK_RESULT_CANCELLED);
    assert(wait(world, 1, FAIR, SH, 1000).result == DLK_RESULT_QUEUED);
}

/* One unlock answers them all: the outbox has room for every waiter beside a whole batch. */
static void one_unlock_may_grant_to_thousands(struct world *world)
{
    struct dlk_reply held = try(world, 0, RW, EX);
    struct dlk_reply *replies;
    for (uint32_t i = 0; i < READERS; i++) {
        struct dlk_request asked = lock_request(world, 1 + i % 3, RW, SH, 0, 9000, 0);
        dlk_engine_step(world->engine, &asked, 1, world->now);
        dlk_engine_clear(world->engine);
    }
    static struct dlk_request batch[DLK_STEP_MAX];
    for (uint32_t i = 0; i + 1 < DLK_STEP_MAX; i++) {
        batch[i] = lock_request(world, 1 + i % 3, RW, SH, 0, 9000, 0);
    }
    batch[DLK_STEP_MAX - 1] = about(world, DLK_OP_UNLOCK, RW, held);
    dlk_engine_step(world->engine, batch, DLK_STEP_MAX, world->now);
    size_t count = dlk_engine_replies(world->engine, &replies);
    assert(count == READERS + 2 * (DLK_STEP_MAX - 1) + 1);
    size_t granted = 0;
    uint64_t token = 0;
    for (size_t i = 0; i < count; i++) {
        if (replies[i].result == DLK_RESULT_GRANTED) {
            assert(replies[i].readers == ++granted && replies[i].token > token);
            token = replies[i].token;
        }
    }
    assert(granted == READERS + DLK_STEP_MAX - 1);
    dlk_engine_clear(world->engine);
    later(world, TTL_MS);
    for (uint32_t slot = 0; slot < SESSIONS; slot++) { /* and the sessions take them all along */
        session_end(world, slot);
    }
    assert(dlk_engine_entries_in_use(world->engine) == 0);
}

static void numbers_out_of_range_name_nothing(struct world *world)
{
    struct dlk_reply held = try(world, 0, ATOMIC, EX);
    for (uint32_t shift = 3; shift < 32; shift++) {
        uint32_t far = 1u << shift;
        struct dlk_request asked = about(world, DLK_OP_UNLOCK, ATOMIC, held);
        asked.session = far;
        assert(ask(world, asked).result == DLK_RESULT_REMOVED);
        asked.session = 0;
        asked.slot = far;
        assert(ask(world, asked).result == DLK_RESULT_NO_LOCK);
        asked.slot = ATOMIC;
        asked.entry = far;
        assert(ask(world, asked).result == DLK_RESULT_NOT_HELD);
        assert(command(world, (struct dlk_command){.op = DLK_COMMAND_SESSION_OPEN, .slot = far,
                                                   .id = 5, .ttl_ms = 1000})
               == DLK_RESULT_INVALID);
        assert(command(world, (struct dlk_command){.op = DLK_COMMAND_LOCK_OPEN, .slot = far,
                                                   .id = 5, .kind = DLK_KIND_RW})
               == DLK_RESULT_INVALID);
        assert(dlk_engine_view(world->engine, far, NULL, 0) == 0);
    }
    struct dlk_request nameless = request(world, DLK_OP_LOCK, 0, 6);
    nameless.lock_id = 0; /* a free slot has the id 0 */
    assert(ask(world, nameless).result == DLK_RESULT_NO_LOCK);
    assert(command(world, (struct dlk_command){.op = 99}) == DLK_RESULT_INVALID);
    assert(unlock(world, ATOMIC, held).result == DLK_RESULT_RELEASED);
}

int main(void)
{
    static const struct test tests[] = {
        {"a full table refuses and still serves", a_full_table_refuses_and_still_serves, 2},
        {"a table full of lapsed leases serves newcomers",
         a_table_full_of_lapsed_leases_serves_newcomers, 2},
        {"a session has only so many waiting requests",
         a_session_has_only_so_many_waiting_requests, DLK_INFLIGHT_MAX + 16},
        {"one unlock may grant to thousands", one_unlock_may_grant_to_thousands,
         READERS + DLK_STEP_MAX + 2},
        {"numbers out of range name nothing", numbers_out_of_range_name_nothing, 0},
    };
    return run_tests(tests, sizeof(tests) / sizeof(tests[0]));
}
