/* The merge: which of the holds that clients claim are held. docs/lock-kinds.md, "Recovery". */
#include "claim_world.h"

static void a_live_hold_is_taken_over(struct world *world)
{
    struct dlk_claim hold = holds(RW, EX, 5);
    hold.request_id = 77;
    assert(claims(world, 0, hold) == DLK_RESULT_GRANTED);
    assert(is_held(world, RW, former(5)) && entries(world, RW) == 1);
    assert(counted(world, DLK_COUNT_CLAIMS_LIVE) == 1);
    assert(all_is_ready(world) == DLK_RESULT_DONE);
    assert(try(world, 1, RW, SH).result == DLK_RESULT_BUSY);
    assert(extend(world, RW, as_reply(0, hold), 0).result == DLK_RESULT_EXTENDED);
    assert(unlock(world, RW, as_reply(0, hold)).result == DLK_RESULT_RELEASED);
    struct dlk_reply next = try(world, 1, RW, SH);
    assert(next.result == DLK_RESULT_GRANTED && next.token > former(5));
}

static void readers_come_back_together(struct world *world)
{
    assert(claims(world, 0, holds(RW, SH, 5)) == DLK_RESULT_GRANTED);
    assert(claims(world, 1, holds(RW, SH, 4)) == DLK_RESULT_GRANTED);
    assert(claims(world, 2, holds(RW, SH, 9)) == DLK_RESULT_GRANTED);
    assert(entries(world, RW) == 3);
    assert(claims(world, 2, holds(RW, EX, 3)) == DLK_RESULT_NOT_HELD);
    assert(claims(world, 2, holds(RW, EX, 6)) == DLK_RESULT_NOT_HELD); /* below a reader; but ... */
    assert(entries(world, RW) == 1 && is_held(world, RW, former(9)));  /* two are below it */
    assert(told_lost(world, 0, holds(RW, SH, 5)) && told_lost(world, 1, holds(RW, SH, 4)));
}

static void the_higher_token_wins_whoever_comes_first(struct world *world)
{
    struct dlk_claim low = holds(ATOMIC, EX, 5);
    struct dlk_claim high = holds(ATOMIC, EX, 9);
    assert(claims(world, 0, low) == DLK_RESULT_GRANTED);
    assert(claims(world, 1, high) == DLK_RESULT_GRANTED);
    assert(told_lost(world, 0, low) && !told_lost(world, 1, high));
    assert(entries(world, ATOMIC) == 1 && is_held(world, ATOMIC, high.token));
    assert(claims(world, 0, low) == DLK_RESULT_NOT_HELD && world->n_told == 0);
    assert(counted(world, DLK_COUNT_CLAIMS_DISPLACED) == 1);
    assert(counted(world, DLK_COUNT_CLAIMS_LIVE) == 2);
    assert(counted(world, DLK_COUNT_CLAIMS_LOST) == 1);
}

static void what_is_refused_counts_all_the_same(struct world *world)
{
    struct dlk_claim low = holds(FAIR, SH, 5);
    assert(claims(world, 0, low) == DLK_RESULT_GRANTED);
    assert(claims(world, 1, lapsed(holds_leased(FAIR, 9, 0))) == DLK_RESULT_NOT_HELD);
    assert(told_lost(world, 0, low) && entries(world, FAIR) == 0);
    assert(claims(world, 2, holds(FAIR, SH, 8)) == DLK_RESULT_NOT_HELD);
    assert(claims(world, 2, holds(FAIR, SH, 10)) == DLK_RESULT_GRANTED);
    assert(claims(world, 1, lapsed(holds(FAIR, SH, 20))) == DLK_RESULT_NOT_HELD);
    assert(claims(world, 1, holds(FAIR, EX, 15)) == DLK_RESULT_NOT_HELD);
    assert(entries(world, FAIR) == 0);
}

static void a_lapsed_session_is_believed_on_somebodys_word(struct world *world)
{
    struct dlk_claim late = lapsed(holds(ATOMIC, EX, 5));
    assert(claims(world, 0, late) == DLK_RESULT_NOT_HELD);
    assert(claims_as(world, 0, late, true) == DLK_RESULT_GRANTED);
    assert(counted(world, DLK_COUNT_CLAIMS_LAPSED) == 1);
    assert(claims_as(world, 1, lapsed(holds_leased(FAIR, 5, 0)), true) == DLK_RESULT_NOT_HELD);
    struct dlk_reply answer = extend(world, ATOMIC, as_reply(0, late), 0);
    assert(answer.result == DLK_RESULT_NOT_READY); /* it may yet have been somebody else's */
}

static void the_same_claim_is_the_same_hold(struct world *world)
{
    struct dlk_claim hold = holds_leased(ATOMIC, 5, 3000);
    for (int i = 0; i < 3; i++) {
        assert(claims(world, 0, hold) == DLK_RESULT_GRANTED);
    }
    assert(claims(world, 0, lapsed(hold)) == DLK_RESULT_GRANTED);
    assert(entries(world, ATOMIC) == 1 && counted(world, DLK_COUNT_CLAIMS_LIVE) == 1);
    struct dlk_claim other = hold;
    other.owner = 2; /* of one token only one is right: the owner decides, whoever comes first */
    assert(claims(world, 0, other) == DLK_RESULT_GRANTED);
    assert(told_lost(world, 0, hold) && entries(world, ATOMIC) == 1);
    assert(claims(world, 0, hold) == DLK_RESULT_NOT_HELD);
    other.owner = 0;
    assert(claims(world, 1, other) == DLK_RESULT_GRANTED); /* and before it the client */
    assert(entries(world, ATOMIC) == 1);
}

static void a_semaphore_keeps_the_highest(struct world *world)
{
    struct dlk_claim low = holds(SEMAPHORE, EX, 5);
    assert(claims(world, 0, holds(SEMAPHORE, EX, 7)) == DLK_RESULT_GRANTED);
    assert(claims(world, 0, low) == DLK_RESULT_GRANTED);
    assert(claims(world, 1, holds(SEMAPHORE, EX, 6)) == DLK_RESULT_GRANTED);
    assert(told_lost(world, 0, low) && entries(world, SEMAPHORE) == 2);
    assert(claims(world, 2, low) == DLK_RESULT_NOT_HELD);
    assert(claims_as(world, 2, lapsed(holds(SEMAPHORE, EX, 9)), true) == DLK_RESULT_NOT_HELD);
    assert(claims(world, 1, holds(SEMAPHORE, EX, 9)) == DLK_RESULT_GRANTED);
    assert(told_lost(world, 1, holds(SEMAPHORE, EX, 6)));
}

/* A slot that was given out later says nothing of the others: a live claim goes before one that is
 * only believed. */
static void a_live_slot_goes_before_a_lapsed_one(struct world *world)
{
    struct dlk_claim late = lapsed(holds(SEMAPHORE, EX, 8));
    assert(claims_as(world, 0, late, true) == DLK_RESULT_GRANTED);
    assert(claims_as(world, 0, lapsed(holds(SEMAPHORE, EX, 9)), true) == DLK_RESULT_GRANTED);
    assert(claims(world, 1, holds(SEMAPHORE, EX, 3)) == DLK_RESULT_GRANTED);
    assert(told_lost(world, 0, late));
    assert(claims_as(world, 0, late, true) == DLK_RESULT_NOT_HELD);
    late.lapsed = 0;
    assert(claims(world, 0, late) == DLK_RESULT_GRANTED);
    assert(told_lost(world, 0, holds(SEMAPHORE, EX, 9)));
    assert(is_held(world, SEMAPHORE, former(3)) && is_held(world, SEMAPHORE, former(8)));
}

/* One counter gives stamps and tokens, so one number is one thing. Who claims it as two gets no
 * second hold by it. */
static void who_errs_breaks_nothing(struct world *world)
{
    struct dlk_claim hold = holds(FAIR, EX, 5);
    assert(claims(world, 0, waits(FAIR, EX, 5, 9)) == DLK_RESULT_QUEUED);
    assert(claims(world, 0, hold) == DLK_RESULT_GRANTED);
    assert(claims(world, 0, waits(FAIR, EX, 5, 9)) == DLK_RESULT_QUEUED);
    assert(claims(world, 0, hold) == DLK_RESULT_GRANTED);
    assert(entries(world, FAIR) == 2);
    struct dlk_claim shared = holds(FAIR, SH, 5);
    assert(claims(world, 0, shared) == DLK_RESULT_NOT_HELD);
    assert(claims(world, 1, shared) == DLK_RESULT_NOT_HELD);
    assert(entries(world, FAIR) == 2 && is_held(world, FAIR, hold.token));
}

/* ---- Leases ---- */

static void no_lease_runs_before_all_is_ready(struct world *world)
{
    struct dlk_claim brief = holds_leased(ATOMIC, 5, 100);
    struct dlk_claim longer = holds_leased(FAIR, 6, GRACE_MS + 500);
    brief.flags = longer.flags = DLK_FLAG_FINAL_EXPIRY;
    claims(world, 0, brief);
    claims(world, 1, longer);
    later(world, 3600000);
    assert(entries(world, ATOMIC) == 1 && entries(world, FAIR) == 1);
    assert(extend(world, ATOMIC, as_reply(0, brief), 0).lease_ms == 100);
    assert(extend(world, FAIR, as_reply(1, longer), 100).lease_ms == GRACE_MS + 500);
    all_is_ready(world);
    assert(extend(world, ATOMIC, as_reply(0, brief), 0).lease_ms == GRACE_MS);
    later(world, GRACE_MS - 1);
    assert(extend(world, ATOMIC, as_reply(0, brief), 0).result == DLK_RESULT_EXTENDED);
    assert(try(world, 2, ATOMIC, EX).result == DLK_RESULT_BUSY);
    later(world, 1);
    assert(extend(world, ATOMIC, as_reply(0, brief), 0).result == DLK_RESULT_NOT_HELD);
    assert(try(world, 2, FAIR, EX).result == DLK_RESULT_BUSY);
    later(world, 500);
    assert(try(world, 2, FAIR, EX).result == DLK_RESULT_BUSY); /* its client's clock may be slow */
    later(world, (GRACE_MS + 500) / 1000 + 1);
    assert(try(world, 2, FAIR, EX).result == DLK_RESULT_GRANTED);
}

static void a_lease_is_extended_before_all_is_ready(struct world *world)
{
    struct dlk_claim hold = holds_leased(ATOMIC, 5, 100);
    claims(world, 0, hold);
    assert(extend(world, ATOMIC, as_reply(0, hold), MAX_LEASE_MS).lease_ms == MAX_LEASE_MS);
    assert(extend(world, ATOMIC, as_reply(0, hold), 200).lease_ms == MAX_LEASE_MS);
    struct dlk_claim forever = holds(SEMAPHORE, EX, 7);
    claims(world, 0, forever);
    claims(world, 1, holds(SEMAPHORE, EX, 8)); /* full: certain */
    assert(extend(world, SEMAPHORE, as_reply(0, forever), 500).lease_ms == 0);
    later(world, 1000);
    all_is_ready(world);
    later(world, MAX_LEASE_MS - 1);
    assert(try(world, 1, ATOMIC, EX).result == DLK_RESULT_BUSY);
    assert(ask(world, request(world, DLK_OP_PING, 0, 0)).result == DLK_RESULT_DONE);
    later(world, 1 + MAX_LEASE_MS / 1000 + 1);
    assert(try(world, 1, ATOMIC, EX).result == DLK_RESULT_GRANTED);
    assert(is_held(world, SEMAPHORE, forever.token));
}

/* An operator breaks it before its lease runs: it ends by timer then, and nothing extends it. */
static void a_claimed_hold_can_be_broken(struct world *world)
{
    struct dlk_claim hold = holds_leased(ATOMIC, 5, 100);
    claims(world, 0, hold);
    struct dlk_command order = {.op = DLK_COMMAND_BREAK, .slot = ATOMIC, .id = 100 + ATOMIC};
    assert(command(world, order) == DLK_RESULT_DONE);
    assert(world->n_told == 1 && world->told[0].result == DLK_RESULT_BROKEN);
    assert(world->told[0].lease_ms == 100);
    assert(extend(world, ATOMIC, as_reply(0, hold), MAX_LEASE_MS).lease_ms == 100);
    later(world, 60000);
    assert(entries(world, ATOMIC) == 1);
    all_is_ready(world);
    later(world, GRACE_MS - 1);
    assert(entries(world, ATOMIC) == 1);
    later(world, 1); /* nobody waits */
    assert(entries(world, ATOMIC) == 0);
}

int main(void)
{
    static const struct test tests[] = {
        {"a live hold is taken over", a_live_hold_is_taken_over, 0},
        {"readers come back together", readers_come_back_together, 0},
        {"the higher token wins whoever comes first", the_higher_token_wins_whoever_comes_first,
         0},
        {"what is refused counts all the same", what_is_refused_counts_all_the_same, 0},
        {"a lapsed session is believed on somebody's word",
         a_lapsed_session_is_believed_on_somebodys_word, 0},
        {"the same claim is the same hold", the_same_claim_is_the_same_hold, 0},
        {"a semaphore keeps the highest", a_semaphore_keeps_the_highest, 0},
        {"a live slot goes before a lapsed one", a_live_slot_goes_before_a_lapsed_one, 0},
        {"who errs breaks nothing", who_errs_breaks_nothing, 0},
        {"no lease runs before all is ready", no_lease_runs_before_all_is_ready, 0},
        {"a lease is extended before all is ready", a_lease_is_extended_before_all_is_ready, 0},
        {"a claimed hold can be broken", a_claimed_hold_can_be_broken, 0},
    };
    return run_recoveries(tests, sizeof(tests) / sizeof(tests[0]));
}
