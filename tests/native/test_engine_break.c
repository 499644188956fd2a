/* What an operator does to the engine: breaking holds, and looking at locks. */
#include "engine_world.h"

static uint64_t met; /* by the last BREAK */

static uint32_t break_holds(struct world *world, uint32_t slot, uint64_t token, uint32_t at_once)
{
    uint32_t result = command(world, (struct dlk_command){
        .op = DLK_COMMAND_BREAK, .slot = slot, .id = 100 + slot, .value = token, .size = at_once,
        .attach = DLK_NONE});
    met = event(world, DLK_EVENT_DONE, slot)->value;
    return result;
}

/* How often the last call told a session that a hold is broken. */
static size_t notices(const struct world *world, struct dlk_reply hold)
{
    size_t count = 0;
    for (size_t i = 0; i < world->n_told; i++) {
        const struct dlk_reply *told = &world->told[i];
        bool notice = told->op == DLK_OP_NOTICE;
        assert(notice == (told->result == DLK_RESULT_BROKEN));
        if (notice && told->token == hold.token) {
            assert(told->session == hold.session && told->request_id == 0);
            assert(told->entry == hold.entry && told->mode == hold.mode);
            count++;
        }
    }
    return count;
}

static void a_hold_passes_on_with_its_unlock(struct world *world)
{
    struct dlk_reply hold = try(world, 0, ATOMIC, EX);
    struct dlk_reply waiter = wait(world, 1, ATOMIC, EX, 60000);

    assert(break_holds(world, ATOMIC, 0, 0) == DLK_RESULT_DONE && met == 1);
    assert(notices(world, hold) == 1);
    assert(told(world, waiter.request_id).result == DLK_RESULT_COUNT);
    assert(unlock(world, ATOMIC, hold).result == DLK_RESULT_RELEASED);
    assert(told(world, waiter.request_id).result == DLK_RESULT_GRANTED);
}

static void nothing_extends_a_breaking_hold(struct world *world)
{
    struct dlk_reply hold = leased(world, 0, ATOMIC, EX, 4000);
    struct dlk_reply waiter = wait(world, 1, ATOMIC, EX, 60000);

    break_holds(world, ATOMIC, hold.token, 0);
    later(world, 1000);
    struct dlk_reply extended = extend(world, ATOMIC, hold, 8000);
    assert(extended.result == DLK_RESULT_EXTENDED && extended.lease_ms == 3000);
    assert(notices(world, hold) == 1); /* behind the answer */
    assert(world->told[world->n_told - 1].op == DLK_OP_NOTICE);
    later(world, 2999);
    assert(told(world, waiter.request_id).result == DLK_RESULT_COUNT);
    later(world, 1);
    assert(told(world, waiter.request_id).result == DLK_RESULT_GRANTED);
    assert(extend(world, ATOMIC, hold, 8000).result == DLK_RESULT_NOT_HELD);
}

/* Redeeming a ticket that has become a hold is an answer to a lost reply, and may extend it. */
static void nor_does_redeeming(struct world *world)
{
    struct dlk_reply first = try(world, 1, FAIR, EX);
    struct dlk_reply place = ticket(world, 0, EX);
    unlock(world, FAIR, first);
    struct dlk_request asked = about(world, DLK_OP_REDEEM, FAIR, place);
    asked.lease_ms = 4000;
    struct dlk_reply hold = ask(world, asked);
    assert(hold.result == DLK_RESULT_GRANTED && hold.lease_ms == 4000);

    break_holds(world, FAIR, 0, 0);
    later(world, 1000);
    struct dlk_reply again = redeem(world, hold, 8000, 0);
    assert(again.result == DLK_RESULT_GRANTED && again.token == hold.token);
    assert(again.lease_ms == 3000 && notices(world, hold) == 1);
    later(world, 3000); /* by timer: nobody waits */
    assert(entries(world, FAIR) == 0);
}

/* To a REDEEM without a lease, "0 ms are left" would say that the hold has none: it would be
 * believed beyond its end. */
static void nor_is_an_end_unsaid(struct world *world)
{
    struct dlk_reply hold = leased(world, 0, FAIR, EX, 1000);
    struct dlk_reply waiter = wait(world, 1, FAIR, EX, 60000);
    break_holds(world, FAIR, 0, 0);
    world->now += ms(999);
    assert(redeem(world, hold, 0, 0).lease_ms == 1);
    world->now += 1;
    assert(redeem(world, hold, 500, 0).result == DLK_RESULT_GRANTED); /* a lease, and it is over */
    assert(redeem(world, hold, 0, 0).result == DLK_RESULT_PASSED);
    assert(told(world, waiter.request_id).result == DLK_RESULT_GRANTED);
}

static void it_ends_with_its_session(struct world *world)
{
    struct dlk_reply hold = try(world, 0, RW, SH);
    struct dlk_reply other = try(world, 1, RW, SH);

    break_holds(world, RW, hold.token, 0);
    assert(notices(world, hold) == 1 && notices(world, other) == 0);
    for (int i = 0; i < 30; i++) { /* as long as its client lives and does not answer */
        later(world, 5000);
        assert(ask(world, request(world, DLK_OP_PING, 0, RW)).result == DLK_RESULT_DONE);
        assert(ask(world, request(world, DLK_OP_PING, 1, RW)).result == DLK_RESULT_DONE);
    }
    assert(entries(world, RW) == 2);
    later(world, 5000);
    assert(ask(world, request(world, DLK_OP_PING, 1, RW)).result == DLK_RESULT_DONE);
    later(world, 5000);
    session_end(world, 0);
    assert(entries(world, RW) == 1);
    assert(unlock(world, RW, other).result == DLK_RESULT_RELEASED);
}

static void at_once(struct world *world)
{
    struct dlk_reply a = leased(world, 0, SEMAPHORE, EX, 4000);
    struct dlk_reply b = try(world, 1, SEMAPHORE, EX);
    struct dlk_reply waiter = wait(world, 2, SEMAPHORE, EX, 60000);

    assert(break_holds(world, SEMAPHORE, b.token, 1) == DLK_RESULT_DONE && met == 1);
    assert(notices(world, b) == 1 && notices(world, a) == 0);
    struct dlk_reply granted = told(world, waiter.request_id);
    assert(granted.result == DLK_RESULT_GRANTED && granted.token > b.token);
    assert(unlock(world, SEMAPHORE, b).result == DLK_RESULT_NOT_HELD);
    assert(break_holds(world, SEMAPHORE, 0, 1) == DLK_RESULT_DONE && met == 2);
    assert(entries(world, SEMAPHORE) == 0);
}

static void what_is_not_there_is_not_met(struct world *world)
{
    struct dlk_reply hold = try(world, 0, ATOMIC, EX);
    struct dlk_reply queued = wait(world, 1, ATOMIC, EX, 60000);

    assert(break_holds(world, ATOMIC, hold.token + 1000, 0) == DLK_RESULT_DONE && met == 0);
    assert(break_holds(world, ATOMIC, queued.token, 1) == DLK_RESULT_DONE && met == 0);
    assert(break_holds(world, 7, 0, 0) == DLK_RESULT_NO_LOCK);
    struct dlk_command stale = {.op = DLK_COMMAND_BREAK, .slot = ATOMIC, .id = 99};
    assert(command(world, stale) == DLK_RESULT_NO_LOCK);
    stale = (struct dlk_command){.op = DLK_COMMAND_BREAK, .slot = ATOMIC, .id = 100,
                                 .value = hold.token, .attach = queued.entry};
    assert(command(world, stale) == DLK_RESULT_DONE); /* the handle is only where to look first */
    assert(event(world, DLK_EVENT_DONE, ATOMIC)->value == 1 && notices(world, hold) == 1);
}

static void a_new_connection_is_told_again(struct world *world)
{
    struct dlk_reply a = try(world, 0, ATOMIC, EX);
    struct dlk_reply b = leased(world, 0, FAIR, EX, 4000);
    struct dlk_reply c = try(world, 0, RW, EX);

    break_holds(world, ATOMIC, 0, 0);
    break_holds(world, FAIR, 0, 0);
    dlk_engine_attached(world->engine, 0, world->now);
    take_outbox(world);
    assert(notices(world, a) == 1 && notices(world, b) == 1 && notices(world, c) == 0);
    unlock(world, ATOMIC, a);
    later(world, 4000);
    dlk_engine_attached(world->engine, 0, world->now);
    take_outbox(world);
    assert(world->n_told == 0);
    dlk_engine_attached(world->engine, 1, world->now);
    dlk_engine_attached(world->engine, 0xffffffff, world->now);
    take_outbox(world);
    assert(world->n_told == 0);
}

/* A leased hold outlives its session; nobody is there to be told. */
static void a_hold_of_an_ended_session(struct world *world)
{
    struct dlk_reply hold = leased(world, 0, ATOMIC, EX, 8000);
    later(world, 4000);
    struct dlk_request longer = about(world, DLK_OP_EXTEND, ATOMIC, hold);
    longer.lease_ms = 8000;
    (void)ask(world, longer);
    dlk_engine_tick(world->engine, world->now, world->now + ms(TTL_MS)); /* its session ends */
    take_outbox(world);
    assert(event(world, DLK_EVENT_SESSION_ENDED, 0) != NULL);
    session_end(world, 0);

    assert(break_holds(world, ATOMIC, 0, 0) == DLK_RESULT_DONE && met == 1);
    assert(world->n_told == 0 && entries(world, ATOMIC) == 1);
    later(world, 8000);
    assert(entries(world, ATOMIC) == 0 && event(world, DLK_EVENT_SESSION_FREED, 0) != NULL);
}

static void view_is_bounded(struct world *world)
{
    struct dlk_entry_view out[3];
    struct dlk_command view = {.op = DLK_COMMAND_VIEW, .slot = RW, .id = 100 + RW,
                               .value = (uint64_t)(uintptr_t)out, .size = 2};

    struct dlk_reply first = try(world, 0, RW, SH);
    struct dlk_reply second = try(world, 1, RW, SH);
    (void)wait(world, 2, RW, EX, 60000);
    break_holds(world, RW, first.token, 0);
    memset(out, 0xee, sizeof(out));
    assert(command(world, view) == DLK_RESULT_DONE);
    assert(event(world, DLK_EVENT_DONE, RW)->value == 3);
    assert(out[0].token == second.token && out[0].flags == 0 && out[0].entry == second.entry);
    assert(out[1].token == first.token && out[1].flags == DLK_ENTRY_BREAKING);
    assert(out[1].client_id == 1000 && out[2].client_id == 0xeeeeeeee);
    view.size = 3;
    assert(command(world, view) == DLK_RESULT_DONE && out[2].state == DLK_ENTRY_QUEUED);
    view.size = 0;
    assert(command(world, view) == DLK_RESULT_INVALID);
    view.size = DLK_LOOK_MAX + 1;
    assert(command(world, view) == DLK_RESULT_INVALID);
    view.size = 3;
    view.id = 99;
    assert(command(world, view) == DLK_RESULT_NO_LOCK);
}

/* Carried out by hand: the DONE event does not name the slot that was asked for. */
static struct dlk_event survey(struct world *world, uint32_t slot, struct dlk_lock_view *out,
                               uint32_t room)
{
    struct dlk_command asked = {.op = DLK_COMMAND_SURVEY, .slot = slot,
                                .value = (uint64_t)(uintptr_t)out, .size = room};
    dlk_engine_command(world->engine, &asked, world->now);
    take_outbox(world);
    return world->events[world->n_events - 1];
}

static void survey_goes_on_where_it_ended(struct world *world)
{
    struct dlk_lock_view out[LOCKS];

    (void)try(world, 0, RW, SH);
    (void)try(world, 1, RW, SH);
    (void)wait(world, 2, RW, EX, 60000);
    struct dlk_event done = survey(world, 0, out, 3);
    assert(done.result == DLK_RESULT_DONE && done.value == 3 && done.slot == 3);
    assert(out[RW].id == 100 + RW && out[RW].n_shared == 2 && out[RW].n_queue == 1);
    assert(out[RW].client_id == 1001 && out[RW].session == 1 && out[RW].since_ns == world->now);
    assert(out[ATOMIC].client_id == 0 && out[ATOMIC].owner == 0);
    assert(out[RW].served == 2 && out[RW].kind == DLK_KIND_RW && out[ATOMIC].served == 0);
    done = survey(world, done.slot, out, 3);
    assert(done.value == 1 && done.slot == DLK_NONE && out[0].slot == SEMAPHORE);
    assert(out[0].size == PERMITS);
    done = survey(world, 0, out, LOCKS); /* what is left of the table is empty */
    assert(done.value == LOCKS && done.slot == DLK_NONE);
    assert(survey(world, 0xffffffff, out, 1).slot == DLK_NONE);
    assert(survey(world, 0, out, 0).result == DLK_RESULT_INVALID);
}

static void one_survey_looks_at_so_many(struct world *world)
{
    const struct dlk_limits limits = {.max_locks = 2 * DLK_LOOK_MAX + 5, .max_sessions = 1,
                                      .max_entries = 4};
    struct dlk_lock_view out[1];
    struct dlk_command asked = {.op = DLK_COMMAND_SURVEY, .size = 1,
                                .value = (uint64_t)(uintptr_t)out};
    struct dlk_engine *engine = dlk_engine_new(&limits, 1);
    uint32_t looks = 0;

    (void)world;
    for (; asked.slot != DLK_NONE; looks++) {
        struct dlk_event *events;
        dlk_engine_command(engine, &asked, 1);
        assert(dlk_engine_events(engine, &events) == 1 && events[0].value == 0);
        asked.slot = events[0].slot;
        assert(looks == 2 || asked.slot == (looks + 1) * DLK_LOOK_MAX);
        dlk_engine_clear(engine);
    }
    assert(looks == 3);
    dlk_engine_free(engine);
}

int main(void)
{
    static const struct test tests[] = {
        {"a hold passes on with its unlock", a_hold_passes_on_with_its_unlock, 0},
        {"nothing extends a breaking hold", nothing_extends_a_breaking_hold, 0},
        {"nor does redeeming", nor_does_redeeming, 0},
        {"nor is an end unsaid", nor_is_an_end_unsaid, 0},
        {"it ends with its session", it_ends_with_its_session, 0},
        {"at once", at_once, 0},
        {"what is not there is not met", what_is_not_there_is_not_met, 0},
        {"a new connection is told again", a_new_connection_is_told_again, 0},
        {"a hold of an ended session", a_hold_of_an_ended_session, 0},
        {"view is bounded", view_is_bounded, 0},
        {"survey goes on where it ended", survey_goes_on_where_it_ended, 0},
        {"one survey looks at so many", one_survey_looks_at_so_many, 0},
    };
    return run_tests(tests, sizeof(tests) / sizeof(tests[0]));
}
