/* The tickets of fair locks, as docs/lock-kinds.md has them: taken, redeemed, passed, given up. */
#include "engine_world.h"

static void a_trylock_on_a_busy_lock_takes_a_ticket(struct world *world)
{
    struct dlk_reply held = try(world, 0, FAIR, EX);
    struct dlk_reply place = ticket(world, 1, EX);
    assert(place.result == DLK_RESULT_TICKETED && place.token > held.token);
    assert(place.n_exclusive == 1 && place.m_exclusive == 2);
    struct dlk_reply again = redeem(world, place, 1000, 0);
    assert(again.result == DLK_RESULT_TICKETED && again.token == place.token);
    struct dlk_reply other_mode = place;
    other_mode.mode = SH;
    assert(redeem(world, other_mode, 0, 0).result == DLK_RESULT_INVALID);
    assert(unlock(world, FAIR, held).result == DLK_RESULT_RELEASED);
    assert(try(world, 2, FAIR, EX).result == DLK_RESULT_BUSY); /* the place is reserved */
    struct dlk_reply claimed = redeem(world, again, 1000, 0);
    assert(claimed.result == DLK_RESULT_GRANTED && claimed.lease_ms == 1000);
    assert(claimed.token > place.token && claimed.held_us == 0 && claimed.entry == place.entry);
    assert(redeem(world, place, 0, 0).token == claimed.token);
}

/* Time passes, and no session ends of it. */
static void later_renewed(struct world *world, uint64_t after_ms)
{
    do {
        uint64_t span_ms = after_ms > TTL_MS / 2 ? TTL_MS / 2 : after_ms;
        for (uint32_t slot = 0; slot < SESSIONS; slot++) {
            uint32_t result = session_command(world, DLK_COMMAND_SESSION_RENEW, slot);
            assert(result == DLK_RESULT_DONE);
        }
        later(world, span_ms);
        after_ms -= span_ms;
    } while (after_ms != 0);
}

static void a_turn_that_is_not_claimed_is_passed_when_it_holds_somebody_up(struct world *world)
{
    struct dlk_reply held = try(world, 0, FAIR, EX);
    struct dlk_reply first = ticket(world, 1, EX);
    struct dlk_reply second = ticket(world, 2, EX);
    later_renewed(world, 60000); /* before its turn a ticket does not age */
    assert(redeem(world, second, 0, 0).result == DLK_RESULT_TICKETED);
    assert(unlock(world, FAIR, held).result == DLK_RESULT_RELEASED);
    assert(dlk_engine_next_deadline(world->engine) <= world->now + ms(CLAIM_MS));
    later_renewed(world, CLAIM_MS - 1);
    assert(redeem(world, second, 0, 0).result == DLK_RESULT_TICKETED);
    later_renewed(world, 1);
    assert(entries(world, FAIR) == 1); /* passed; and the second's two seconds begin */
    assert(redeem(world, first, 0, 0).result == DLK_RESULT_PASSED);
    later_renewed(world, 60000); /* nobody stands behind it */
    assert(dlk_engine_next_deadline(world->engine) > world->now);
    assert(redeem(world, second, 0, 0).result == DLK_RESULT_GRANTED);
    assert(redeem(world, first, 0, 0).result == DLK_RESULT_PASSED);
}

static void a_newcomer_passes_an_overdue_ticket(struct world *world)
{
    struct dlk_reply held = try(world, 0, FAIR, EX);
    struct dlk_reply place = ticket(world, 1, EX);
    assert(unlock(world, FAIR, held).result == DLK_RESULT_RELEASED);
    later_renewed(world, CLAIM_MS - 1);
    assert(try(world, 2, FAIR, EX).result == DLK_RESULT_BUSY);
    assert(entries(world, FAIR) == 1);
    later_renewed(world, 1);
    assert(entries(world, FAIR) == 1);
    assert(try(world, 2, FAIR, EX).result == DLK_RESULT_GRANTED);
    assert(redeem(world, place, 0, 0).result == DLK_RESULT_PASSED);
}

static void a_lapsed_lease_starts_the_claim_of_the_next_ticket(struct world *world)
{
    struct dlk_reply held = leased(world, 0, FAIR, EX, 1000);
    struct dlk_reply first = ticket(world, 1, EX);
    struct dlk_reply second = ticket(world, 2, EX);
    later_renewed(world, 1000);
    assert(extend(world, FAIR, held, 1000).result == DLK_RESULT_NOT_HELD); /* behind a ticket */
    assert(unlock(world, FAIR, held).result == DLK_RESULT_NOT_HELD);
    later_renewed(world, CLAIM_MS - 1);
    assert(entries(world, FAIR) == 2);
    later_renewed(world, 1);
    assert(entries(world, FAIR) == 1);
    assert(redeem(world, first, 0, 0).result == DLK_RESULT_PASSED);
    assert(redeem(world, second, 0, 0).result == DLK_RESULT_GRANTED);
}

static void readers_tickets_that_stand_together_have_their_turn_together(struct world *world)
{
    struct dlk_reply held = try(world, 0, FAIR, EX);
    struct dlk_reply first = ticket(world, 1, SH);
    uint32_t waiter = wait(world, 2, FAIR, SH, 9000).request_id;
    struct dlk_reply third = ticket(world, 3, SH);
    struct dlk_reply writer = ticket(world, 0, EX);
    struct dlk_reply behind = ticket(world, 1, SH);
    assert(unlock(world, FAIR, held).result == DLK_RESULT_RELEASED);
    struct dlk_reply read = told(world, waiter);
    assert(read.result == DLK_RESULT_GRANTED && read.readers == 1); /* over a reader's ticket */
    assert(redeem(world, behind, 0, 0).result == DLK_RESULT_TICKETED); /* not over a writer's */
    assert(redeem(world, third, 0, 0).readers == 2);
    assert(redeem(world, first, 0, 0).readers == 3);
    assert(redeem(world, writer, 0, 0).result == DLK_RESULT_TICKETED);
    assert(try(world, 2, FAIR, SH).result == DLK_RESULT_BUSY);
}

static void a_redemption_can_wait_and_keeps_the_ticket(struct world *world)
{
    struct dlk_reply held = try(world, 0, FAIR, EX);
    struct dlk_reply place = ticket(world, 1, EX);
    struct dlk_reply behind = ticket(world, 2, EX);
    later_renewed(world, 3000);
    struct dlk_reply queued = redeem(world, place, 500, 1000);
    assert(queued.result == DLK_RESULT_QUEUED && queued.token == place.token);
    assert(redeem(world, place, 500, 1000).result == DLK_RESULT_QUEUED); /* asked again */
    uint32_t last = redeem(world, place, 700, 1000).request_id;
    later_renewed(world, 1000);
    struct dlk_reply kept = told(world, last);
    assert(kept.result == DLK_RESULT_TICKETED && kept.token == place.token);
    last = redeem(world, place, 700, 1000).request_id;
    world->now += ms(400);
    assert(unlock(world, FAIR, held).result == DLK_RESULT_RELEASED);
    struct dlk_reply granted = told(world, last);
    assert(granted.result == DLK_RESULT_GRANTED);
    assert(granted.lease_ms == 700 && granted.held_us == 400000);
    assert(redeem(world, behind, 0, 0).result == DLK_RESULT_TICKETED);
}

static void a_lock_that_waits_keeps_a_ticket_when_it_asked_for_one(struct world *world)
{
    struct dlk_reply held = try(world, 0, FAIR, EX);
    struct dlk_request asked = lock_request(world, 1, FAIR, EX, 0, 1000, DLK_FLAG_TICKET);
    assert(ask(world, asked).result == DLK_RESULT_QUEUED);
    uint32_t without = wait(world, 2, FAIR, EX, 1000).request_id;
    later_renewed(world, 999);
    assert(world->n_told == 0);
    later_renewed(world, 1);
    struct dlk_reply place = told(world, asked.request_id);
    assert(place.result == DLK_RESULT_TICKETED);
    assert(told(world, without).result == DLK_RESULT_TIMED_OUT);
    assert(unlock(world, FAIR, held).result == DLK_RESULT_RELEASED);
    assert(redeem(world, place, 0, 0).result == DLK_RESULT_GRANTED);
}

static void a_lost_redemption_returns_its_grant_or_is_undone(struct world *world)
{
    struct dlk_reply held = try(world, 0, FAIR, EX);
    struct dlk_reply place = ticket(world, 1, EX);
    assert(unlock(world, FAIR, held).result == DLK_RESULT_RELEASED);
    struct dlk_reply lost = redeem(world, place, 1000, 0);
    assert(lost.result == DLK_RESULT_GRANTED);
    world->now += ms(400);
    struct dlk_reply again = redeem(world, place, 1000, 0); /* by the ticket's handle and stamp */
    assert(again.result == DLK_RESULT_GRANTED && again.token == lost.token);
    assert(again.lease_ms == 1000 && again.held_us == 0);
    /* Nobody heard that either, and the wait is broken off: whichever request is cancelled last
     * is the one that the hold answers to. */
    assert(tell(world, DLK_OP_CANCEL, FAIR, lost).result == DLK_RESULT_CANCELLED);
    assert(entries(world, FAIR) == 1);
    assert(tell(world, DLK_OP_CANCEL, FAIR, again).result == DLK_RESULT_CANCELLED);
    assert(entries(world, FAIR) == 0);
}

/* Its client believes in it for as long as its session: nobody may have it when the lease that an
 * unheard answer granted is over. */
static void redeemed_again_without_a_lease_it_has_no_end(struct world *world)
{
    struct dlk_reply held = try(world, 0, FAIR, EX);
    struct dlk_reply place = ticket(world, 1, EX);
    unlock(world, FAIR, held);
    struct dlk_reply lost = redeem(world, place, 500, 0);
    assert(lost.lease_ms == 500);
    world->now += ms(600);
    struct dlk_reply again = redeem(world, place, 0, 0);
    assert(again.result == DLK_RESULT_GRANTED && again.lease_ms == 0);
    assert(try(world, 2, FAIR, EX).result == DLK_RESULT_BUSY);
    assert(unlock(world, FAIR, again).result == DLK_RESULT_RELEASED);
}

static void giving_up_lets_the_next_one_in(struct world *world)
{
    struct dlk_reply held = try(world, 0, FAIR, EX);
    struct dlk_reply place = ticket(world, 1, EX);
    uint32_t waiter = wait(world, 2, FAIR, EX, 9000).request_id;
    struct dlk_reply stranger = place;
    stranger.session = 3;
    assert(tell(world, DLK_OP_GIVE_UP, FAIR, stranger).result == DLK_RESULT_DONE);
    assert(unlock(world, FAIR, held).result == DLK_RESULT_RELEASED);
    assert(entries(world, FAIR) == 2);
    assert(tell(world, DLK_OP_GIVE_UP, FAIR, place).result == DLK_RESULT_DONE);
    struct dlk_reply granted = told(world, waiter);
    assert(granted.result == DLK_RESULT_GRANTED);
    place.entry = DLK_NONE; /* later the client knows the stamp alone */
    assert(tell(world, DLK_OP_GIVE_UP, FAIR, place).result == DLK_RESULT_DONE);
    place = ticket(world, 1, EX);
    assert(unlock(world, FAIR, granted).result == DLK_RESULT_RELEASED);
    assert(redeem(world, place, 0, 0).result == DLK_RESULT_GRANTED);
    assert(tell(world, DLK_OP_GIVE_UP, FAIR, place).result == DLK_RESULT_DONE);
    assert(entries(world, FAIR) == 0); /* a hold redeemed from it is undone too */
}

static void the_counts_show_how_many_stand_before(struct world *world)
{
    struct dlk_reply held = try(world, 0, FAIR, SH);
    assert(held.n_shared == 1 && held.m_shared == 1 && held.readers == 1);
    struct dlk_reply place = ticket(world, 1, EX);
    assert(place.n_exclusive == 0 && place.m_exclusive == 1);
    struct dlk_reply busy = try(world, 2, FAIR, SH);
    assert(busy.result == DLK_RESULT_BUSY && busy.n_shared == 2 && busy.m_shared == 2);
    assert(tell(world, DLK_OP_GIVE_UP, FAIR, place).n_exclusive == 1);
    struct dlk_reply released = unlock(world, FAIR, held);
    assert(released.readers == 0 && released.n_shared == 2 && released.m_shared == 2);
    for (uint32_t i = 0; i < 65536; i++) {
        struct dlk_reply turn = try(world, 0, FAIR, SH);
        assert(unlock(world, FAIR, turn).n_shared == (uint16_t)(3 + i));
    }
}

int main(void)
{
    static const struct test tests[] = {
        {"a trylock on a busy lock takes a ticket", a_trylock_on_a_busy_lock_takes_a_ticket, 0},
        {"a turn that is not claimed is passed when it holds somebody up",
         a_turn_that_is_not_claimed_is_passed_when_it_holds_somebody_up, 0},
        {"a newcomer passes an overdue ticket", a_newcomer_passes_an_overdue_ticket, 0},
        {"a lapsed lease starts the claim of the next ticket",
         a_lapsed_lease_starts_the_claim_of_the_next_ticket, 0},
        {"readers' tickets that stand together have their turn together",
         readers_tickets_that_stand_together_have_their_turn_together, 0},
        {"a redemption can wait and keeps the ticket",
         a_redemption_can_wait_and_keeps_the_ticket, 0},
        {"a lock that waits keeps a ticket when it asked for one",
         a_lock_that_waits_keeps_a_ticket_when_it_asked_for_one, 0},
        {"a lost redemption returns its grant or is undone",
         a_lost_redemption_returns_its_grant_or_is_undone, 0},
        {"redeemed again without a lease it has no end",
         redeemed_again_without_a_lease_it_has_no_end, 0},
        {"giving up lets the next one in", giving_up_lets_the_next_one_in, 0},
        {"the counts show how many stand before", the_counts_show_how_many_stand_before, 0},
    };
    return run_tests(tests, sizeof(tests) / sizeof(tests[0]));
}
