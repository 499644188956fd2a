/* How connections over queue pairs end: by their clients, by the server, by what they do wrong, and
 * for want of room. Nobody else's does. On a real device. */
#include "verbs_plane_world.h"

enum { LOCK = 3 };

/* A client that is destroyed without a word is noticed when it is told something, and gets what it
 * was owed when it comes back. */
static void it_vanishes(struct world *world)
{
    struct ring gone;
    struct ring good;

    ring_join(&good, world, 1);
    ring_join(&gone, world, 2);
    struct dlk_reply held = ring_lock(&good, LOCK, 0);
    struct dlk_request lock = peer_request(&gone.who, DLK_OP_LOCK, LOCK);
    lock.wait_ms = DLK_WAIT_FOREVER;
    assert(ring_ask(&gone, lock).result == DLK_RESULT_QUEUED);
    ring_vanish(&gone);
    assert(ring_unlock(&good, LOCK, &held).result == DLK_RESULT_RELEASED);
    struct dlk_event lost = world_event(world, DLK_EVENT_VERBS, 0);
    assert(lost.result == DLK_VERBS_PEER_GONE && lost.id == 1002 && lost.value == 1);
    assert(lost.cookie == IBV_WC_RETRY_EXC_ERR);
    assert(world_slot_event(world, DLK_EVENT_LINK_LOST, 2).id == 1002);
    world_await_count(world, DLK_COUNT_VERBS_PAIR_ERRORS, 1);

    assert(world_supersede(world, 2, 1002, 2) == DLK_RESULT_DONE);
    ring_attach(&gone, world, 2, 1002, 2);
    lock.flags = DLK_FLAG_RESEND;
    held = ring_ask(&gone, lock);
    assert(held.result == DLK_RESULT_GRANTED);
    assert(ring_unlock(&gone, LOCK, &held).result == DLK_RESULT_RELEASED);
    ring_leave(&gone);
    ring_leave(&good);
}

/* One that says of more messages than it was sent that it has taken them, as one would that has
 * lost count. */
static void it_loses_count(struct world *world)
{
    struct dlk_request ping;
    struct ring bad;
    struct ring good;

    ring_join(&good, world, 3);
    ring_join(&bad, world, 4);
    atomic_fetch_add(&bad.pair->credit.taken, 100);
    ping = peer_request(&bad.who, DLK_OP_PING, 0);
    ring_send(&bad, &ping, sizeof(ping));
    struct dlk_event lost = world_event(world, DLK_EVENT_VERBS, 0);
    assert(lost.result == DLK_VERBS_WINDOW_FULL && lost.id == 1004 && lost.cookie == 0);
    assert(world_slot_event(world, DLK_EVENT_LINK_LOST, 4).id == 1004);
    assert(ring_ask(&good, peer_request(&good.who, DLK_OP_PING, 0)).result == DLK_RESULT_DONE);
    ring_vanish(&bad);
    ring_leave(&good);
}

/* A session that ends takes its connection along, and its client is told. */
static void the_session_ends(struct world *world)
{
    struct dlk_command close = {.op = DLK_COMMAND_SESSION_CLOSE, .slot = 6, .id = 1006};
    struct ring ring;

    ring_join(&ring, world, 6);
    assert(world_command(world, close) == DLK_RESULT_DONE);
    RING_AWAIT(&ring, ring.bye);
    ring_vanish(&ring);
}

/* More queue pairs than there is room for; one that is given back makes room. */
static void no_room(void)
{
    enum { PAIRS_MAX = 64 };
    struct dlk_plane_config config = world_config();
    static struct world world;
    static struct ring rings[PAIRS_MAX];
    uint64_t handles[PAIRS_MAX];
    struct dlk_verbs_address own;
    struct dlk_verbs_address answer;
    char reason[DLK_REASON_BYTES];
    struct dlk_command open = {.op = DLK_COMMAND_LINK_OPEN, .slot = 1, .id = 1001};
    int status = DLK_STATUS_SUCCESS;
    uint32_t n = 0;

    config.limits.max_sessions = 2;
    world_start_verbs(&world, &config);
    for (;; n++) {
        assert(n < PAIRS_MAX);
        ring_make(&rings[n], &own);
        status = dlk_plane_verbs_pair(world.plane, &own, &answer, &handles[n], reason);
        if (status != DLK_STATUS_SUCCESS) {
            break;
        }
    }
    assert(status == DLK_STATUS_SERVER_NO_RESOURCE && n >= 1);
    assert(strstr(reason, "room") != NULL);
    dlk_plane_verbs_pair_free(world.plane, handles[0]);
    dlk_plane_verbs_pair_free(world.plane, handles[0]); /* there is none any more */
    assert(dlk_plane_verbs_pair(world.plane, &own, &answer, &handles[0], reason)
           == DLK_STATUS_SUCCESS);
    assert(dlk_plane_verbs_pair(world.plane, &own, &answer, &open.value, reason)
           == DLK_STATUS_SERVER_NO_RESOURCE);
    open.value = UINT64_MAX; /* no such queue pair */
    assert(world_command(&world, open) == DLK_RESULT_INVALID);
    open.value = handles[1];
    assert(world_command(&world, open) == DLK_RESULT_DONE);
    assert(world_command(&world, open) == DLK_RESULT_INVALID); /* it has it already */
    dlk_plane_verbs_pair_free(world.plane, handles[1]); /* not ours any more */
    dlk_plane_verbs_pair_free(world.plane, handles[2]);
    own.mtu = 77;
    assert(dlk_plane_verbs_pair(world.plane, &own, &answer, &handles[2], reason)
           == DLK_STATUS_ERROR);
    own.mtu = answer.mtu;
    assert(dlk_plane_verbs_pair(world.plane, &own, &answer, &handles[2], reason)
           == DLK_STATUS_SUCCESS); /* a failure costs no place */
    world_stop(&world);
    for (uint32_t i = 0; i <= n; i++) {
        ring_vanish(&rings[i]);
    }
}

/* A waiter is told that the server stops, before its connection ends. */
static void the_plane_stops(void)
{
    struct dlk_plane_config config = world_config();
    static struct world world;
    struct ring a;
    struct ring b;

    world_start_verbs(&world, &config);
    world_open_lock(&world, LOCK, 100 + LOCK, DLK_KIND_ATOMIC);
    ring_join(&a, &world, 1);
    ring_join(&b, &world, 2);
    assert(ring_lock(&a, LOCK, 0).result == DLK_RESULT_GRANTED);
    assert(ring_lock(&b, LOCK, DLK_WAIT_FOREVER).result == DLK_RESULT_QUEUED);
    world_stop(&world);
    assert(ring_next(&b).result == DLK_RESULT_STOPPING);
    RING_AWAIT(&b, b.bye);
    RING_AWAIT(&a, a.bye);
    ring_vanish(&a);
    ring_vanish(&b);
}

int main(void)
{
    for (uint32_t mode = DLK_WAIT_BLOCK; mode <= DLK_WAIT_POLL; mode++) {
        struct dlk_plane_config config = world_config();
        static struct world world;

        config.wait_mode = mode;
        world_start_verbs(&world, &config);
        world_open_lock(&world, LOCK, 100 + LOCK, DLK_KIND_ATOMIC);
        it_vanishes(&world);
        it_loses_count(&world);
        the_session_ends(&world);
        world_stop(&world);
    }
    no_room();
    the_plane_stops();
    return 0;
}
