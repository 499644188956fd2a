/*
 * A plane whose turns its owner takes: it never waits, it says when it wants to be called, and it
 * does what a plane in a thread does.
 */
#include "plane_hand.h"

/* ---- What it says ---- */

/* The end of a wait comes at the moment that the plane named, and not before. */
static void it_wants_to_be_called_when_something_is_due(void)
{
    enum { WAIT_MS = 70 };
    struct hand hand;
    struct peer holder;
    struct peer waiter;

    hand_start(&hand, 0);
    hand_open_lock(&hand);
    hand_join(&holder, &hand, SLOT);
    hand_join(&waiter, &hand, OTHER);
    assert(hand.again_ns == hand.now_ns + (uint64_t)DLK_PLANE_SLEEP_MS_MAX * DLK_NS_PER_MS);
    assert(hand_lock(&hand, &holder, 0) == DLK_RESULT_GRANTED);
    assert(hand_lock(&hand, &waiter, WAIT_MS) == DLK_RESULT_QUEUED);
    uint64_t due_ns = hand.now_ns + (uint64_t)WAIT_MS * DLK_NS_PER_MS;
    assert(hand.again_ns == due_ns);
    assert(dlk_engine_entries_in_use(dlk_plane_engine(hand.plane)) == 2);
    hand_set(&hand, due_ns - 1);
    hand_turns(&hand);
    assert(hand.again_ns == due_ns && hand_silent(&waiter));
    hand_set(&hand, due_ns);
    hand_turns(&hand);
    assert(peer_next(&waiter).result == DLK_RESULT_TIMED_OUT);
    assert(dlk_engine_entries_in_use(dlk_plane_engine(hand.plane)) == 1);
    assert(dlk_engine_check(dlk_plane_engine(hand.plane)) == 0);
    peer_close(&holder);
    peer_close(&waiter);
    hand_end(&hand);
}

/* A session ends in the turns of the very moment; one that has spoken by then does not. */
static void sessions_end_in_time(void)
{
    const uint64_t ttl_ns = (uint64_t)WORLD_TTL_MS * DLK_NS_PER_MS;
    struct hand hand;
    struct peer quiet;
    struct peer loud;

    hand_start(&hand, 0);
    hand_join(&quiet, &hand, SLOT);
    hand_join(&loud, &hand, OTHER);
    uint64_t begun_ns = hand.now_ns;
    while (hand.again_ns < begun_ns + ttl_ns) {
        hand_set(&hand, hand.again_ns);
        hand_turns(&hand);
    }
    assert(hand_silent(&quiet) && hand.again_ns == begun_ns + ttl_ns);
    hand_ask(&loud, DLK_OP_PING, 0);
    hand_set(&hand, hand.again_ns);
    hand_turns(&hand);
    assert(peer_closed(&quiet));
    assert(peer_next(&loud).result == DLK_RESULT_DONE);
    assert(hand_count(&hand, DLK_COUNT_SESSIONS_EXPIRED) == 1);
    assert(hand_count(&hand, DLK_COUNT_STALLS) == 0);
    peer_close(&quiet);
    peer_close(&loud);
    hand_end(&hand);
}

/* Who does not come when he was told to has stood still; who comes in time has not. */
static void who_stays_away_has_stalled(void)
{
    struct hand hand;

    hand_start(&hand, 0);
    hand_pass_ms(&hand, 60000); /* before its first turn nobody was told anything */
    for (int i = 0; i < 10; i++) {
        hand_turns(&hand);
        hand_set(&hand, hand.again_ns);
    }
    hand_pass_ms(&hand, 900); /* late, but no stall */
    hand_turns(&hand);
    assert(hand_count(&hand, DLK_COUNT_STALLS) == 0);
    hand_pass_ms(&hand, DLK_PLANE_SLEEP_MS_MAX + 1001);
    hand_turns(&hand);
    assert(hand_count(&hand, DLK_COUNT_STALLS) == 1);
    hand_end(&hand);
}

/* ---- Without authority ---- */

static void nothing_is_read_without_authority(void)
{
    struct hand hand;
    struct peer peer;

    hand_start(&hand, CONFIRM_MS);
    hand_join(&peer, &hand, SLOT);
    hand_pass_ms(&hand, CONFIRM_MS + 1);
    hand_ask(&peer, DLK_OP_PING, 0);
    struct dlk_command renew = {
        .op = DLK_COMMAND_SESSION_RENEW, .slot = SLOT, .id = 1000 + SLOT};
    uint64_t cookie = hand_command(&hand, renew);
    for (int i = 0; i < 5; i++) {
        hand_turns(&hand);
        assert(hand.again_ns == hand.now_ns + (uint64_t)DLK_PLANE_HOLD_MS * DLK_NS_PER_MS);
        hand_pass_ms(&hand, DLK_PLANE_HOLD_MS);
    }
    assert(hand_silent(&peer) && !hand_done(&hand, cookie));
    assert(hand_count(&hand, DLK_COUNT_UNCONFIRMED) == 1);
    hand_confirm(&hand);
    hand_turns(&hand);
    assert(hand_done(&hand, cookie) && peer_next(&peer).result == DLK_RESULT_DONE);
    assert(hand_count(&hand, DLK_COUNT_UNCONFIRMED) == 1);
    peer_close(&peer);
    hand_end(&hand);
}

static struct dlk_transport_calls slow_calls;
static ptrdiff_t (*receive_at_once)(struct dlk_transport *, uint32_t, void *, size_t);
static struct hand *slow_hand;

/* The machine stands still in the middle of a turn, after bytes were taken out of a socket. */
static ptrdiff_t receive_slowly(struct dlk_transport *transport, uint32_t link, void *out,
                                size_t room)
{
    ptrdiff_t received = receive_at_once(transport, link, out, room);

    hand_pass_ms(slow_hand, CONFIRM_MS + 1);
    return received;
}

/* What was received before the authority ended is carried out with the next confirmation, once. */
static void what_was_received_waits_for_authority(void)
{
    const struct dlk_transport_calls *calls;
    struct hand hand;
    struct peer peer;

    hand_start(&hand, CONFIRM_MS);
    hand_open_lock(&hand);
    hand_join(&peer, &hand, SLOT);
    calls = hand.plane->transport->calls;
    receive_at_once = calls->receive;
    slow_calls = *calls;
    slow_calls.receive = receive_slowly;
    slow_hand = &hand;
    hand.plane->transport->calls = &slow_calls;
    hand_ask(&peer, DLK_OP_LOCK, 0);
    hand_turns(&hand);
    hand.plane->transport->calls = calls;
    assert(hand.plane->held == DLK_PLANE_HELD_RECEIVED && hand.plane->n_batch == 1);
    assert(hand_silent(&peer) && hand_count(&hand, DLK_COUNT_REQUESTS) == 0);
    hand_confirm(&hand);
    hand_turns(&hand);
    assert(hand.plane->held == DLK_PLANE_HELD_NOWHERE);
    assert(peer_next(&peer).result == DLK_RESULT_GRANTED);
    hand_ask(&peer, DLK_OP_PING, 0);
    hand_turns(&hand);
    assert(peer_next(&peer).op == DLK_OP_PING);
    assert(hand_count(&hand, DLK_COUNT_GRANTS) == 1);
    peer_close(&peer);
    hand_end(&hand);
}

/* Who spun has no reason to look at the clock before he reads: after a pause in between, what he
 * has read waits. */
static void a_spinning_plane_reads_first(void)
{
    struct dlk_plane_config config = world_config();
    struct hand hand;
    struct peer peer;

    config.confirm_ms = CONFIRM_MS;
    config.wait_mode = DLK_WAIT_POLL;
    hand_start_with(&hand, &config);
    hand_join(&peer, &hand, SLOT);
    hand_ask(&peer, DLK_OP_PING, 0);
    hand_pass_ms(&hand, CONFIRM_MS + 1);
    hand_turns(&hand);
    assert(hand.plane->held == DLK_PLANE_HELD_RECEIVED && hand.plane->n_batch == 1);
    hand_ask(&peer, DLK_OP_PING, 0);
    hand_turns(&hand);
    assert(hand.plane->n_batch == 1 && hand_silent(&peer));
    hand_confirm(&hand);
    hand_turns(&hand);
    assert(peer_next(&peer).request_id == 1);
    assert(peer_next(&peer).request_id == 2); /* not forgotten because no turn had looked */
    peer_close(&peer);
    hand_end(&hand);
}

static void it_ends_in_silence_without_authority(void)
{
    struct hand hand;
    struct peer peer;

    hand_start(&hand, CONFIRM_MS);
    hand_open_lock(&hand);
    hand_join(&peer, &hand, SLOT);
    assert(hand_lock(&hand, &peer, 0) == DLK_RESULT_GRANTED);
    hand_ask(&peer, DLK_OP_LOCK, DLK_WAIT_FOREVER);
    hand_pass_ms(&hand, CONFIRM_MS + 1);
    hand_end(&hand);
    assert(peer_closed(&peer));
    peer_close(&peer);
}

/* ---- Its end ---- */

static void waiters_are_told_of_the_end(void)
{
    struct hand hand;
    struct peer holder;
    struct peer waiter;

    hand_start(&hand, 0);
    hand_open_lock(&hand);
    hand_join(&holder, &hand, SLOT);
    hand_join(&waiter, &hand, OTHER);
    assert(hand_lock(&hand, &holder, 0) == DLK_RESULT_GRANTED);
    assert(hand_lock(&hand, &waiter, DLK_WAIT_FOREVER) == DLK_RESULT_QUEUED);
    hand_end(&hand);
    assert(peer_next(&waiter).result == DLK_RESULT_STOPPING);
    assert(peer_closed(&waiter) && peer_closed(&holder));
    peer_close(&holder);
    peer_close(&waiter);
}

/* Answers that nobody reads hold the end up for DLK_PLANE_STOP_MS of its clock, not longer. */
static void a_deaf_peer_holds_the_end_up_for_a_while(void)
{
    enum { PINGS = DLK_STEP_MAX };
    static struct dlk_request pings[PINGS];
    struct hand hand;
    struct peer peer;

    hand_start(&hand, 0);
    hand_join(&peer, &hand, SLOT);
    for (int i = 0; i < PINGS; i++) {
        pings[i] = peer_request(&peer, DLK_OP_PING, 0);
        pings[i].lock_id = 0;
    }
    while (hand.plane->n_blocked == 0) {
        ssize_t sent = send(peer.fd, pings, sizeof(pings), MSG_NOSIGNAL | MSG_DONTWAIT);
        assert(sent % DLK_FRAME_BYTES == 0 || sent < 0);
        hand_turns(&hand);
    }
    dlk_plane_stop(hand.plane);
    uint64_t stop_ns = hand.now_ns;
    hand_turns(&hand);
    while (hand.again_ns != UINT64_MAX) {
        assert(hand.now_ns < stop_ns + (uint64_t)DLK_PLANE_STOP_MS * DLK_NS_PER_MS);
        hand_set(&hand, hand.again_ns);
        hand_turns(&hand);
    }
    assert(hand.now_ns == stop_ns + (uint64_t)DLK_PLANE_STOP_MS * DLK_NS_PER_MS);
    peer_close(&peer);
    hand_end(&hand);
}

int main(void)
{
    it_wants_to_be_called_when_something_is_due();
    sessions_end_in_time();
    who_stays_away_has_stalled();
    nothing_is_read_without_authority();
    what_was_received_waits_for_authority();
    a_spinning_plane_reads_first();
    it_ends_in_silence_without_authority();
    waiters_are_told_of_the_end();
    a_deaf_peer_holds_the_end_up_for_a_while();
    return 0;
}
