/* A plane whose turns the test takes itself: what lies in the completion queue when the turn begins
 * is known. On a real device. */
#include "plane.h"
#include "verbs_plane_world.h"

enum { CELL = 7, SLOT = 1, ID = 1001 };

/* Until it wants to be called later: TCP was looked at then too. */
static void turns(struct world *world)
{
    for (int left = 500; dlk_plane_turn(world->plane) <= dlk_now_ns(); left--) {
        assert(left > 0);
    }
}

/* As world_command, with nobody else there to take the turns. */
static uint32_t command(struct world *world, struct dlk_command wanted)
{
    struct dlk_event done;

    wanted.cookie = ++world->cookie;
    assert(dlk_plane_send_command(world->plane, &wanted) == 1);
    turns(world);
    while (dlk_plane_take_event(world->plane, &done)) {
        world->events[world->n_events++] = done;
    }
    assert(world_find_event(world, DLK_EVENT_DONE, wanted.cookie, &done));
    return done.result;
}

static void session(struct world *world, uint32_t op, uint32_t attach)
{
    struct dlk_command wanted = {.op = op,
                                 .slot = SLOT,
                                 .id = ID,
                                 .attach = attach,
                                 .ttl_ms = WORLD_TTL_MS,
                                 .lease_ms = DLK_MAX_LEASE_MS_DEFAULT,
                                 .secret = {1, 2, 3, SLOT}};

    assert(command(world, wanted) == DLK_RESULT_DONE);
}

/* Turns of the plane and looks of the client, until it is so. */
#define AWAIT(world, ring, condition)                                                          \
    do {                                                                                       \
        uint64_t until_ns = dlk_now_ns() + (uint64_t)WORLD_PATIENCE_MS * DLK_NS_PER_MS;        \
        while (!(condition)) {                                                                 \
            turns(world);                                                                      \
            ring_poll(ring);                                                                   \
            assert(dlk_now_ns() < until_ns);                                                   \
        }                                                                                      \
    } while (0)

static void await_reply(struct world *world, struct ring *ring)
{
    AWAIT(world, ring, ring->came > ring->taken);
}

static void join(struct world *world, struct ring *ring, uint32_t attach)
{
    struct dlk_command open = {.op = DLK_COMMAND_LINK_OPEN, .slot = SLOT, .id = ID};
    struct dlk_attach frame = peer_attach_frame(SLOT, ID, attach);
    struct dlk_verbs_address own;
    char reason[DLK_REASON_BYTES];

    ring_make(ring, &own);
    ring->who.id = ID;
    assert(dlk_plane_verbs_pair(world->plane, &own, &ring->server, &open.value, reason)
           == DLK_STATUS_SUCCESS);
    assert(command(world, open) == DLK_RESULT_DONE);
    assert(dlk_pair_connect(ring->pair, &ring->server, reason));
    ring_send(ring, &frame, sizeof(frame));
    await_reply(world, ring);
    assert(ring_next(ring).result == DLK_RESULT_DONE);
}

/* Messages of one request each that the server has, but has not looked at. */
static void send_unseen(struct ring *ring, uint32_t op, int messages)
{
    for (int i = 0; i < messages; i++) {
        struct dlk_request request = peer_request(&ring->who, op, CELL);
        request.value = 1;
        ring_send(ring, &request, sizeof(request));
    }
    assert(dlk_pair_bye(ring->pair) == 1); /* asks for its completion: all have arrived then */
    RING_AWAIT(ring, dlk_pair_arrived(ring->pair));
}

/* A new connection supersedes the old one: what came over that, and was not looked at, is dropped,
 * and leaves nothing in the queue that the next one could be taken for. */
static void what_came_before_is_dropped(struct world *world)
{
    struct dlk_verbs_server *server = (struct dlk_verbs_server *)world->plane->verbs;
    struct dlk_command cell = {.op = DLK_COMMAND_CELL_OPEN, .slot = CELL, .id = 100 + CELL};
    struct dlk_request read;
    uint32_t after_attach = 0;
    struct ring before;
    struct ring after;
    struct ibv_wc wc;

    assert(command(world, cell) == DLK_RESULT_DONE);
    session(world, DLK_COMMAND_SESSION_OPEN, 1);
    for (uint32_t i = 1; i <= server->queues.n_buffers / 8 + 1; i++) { /* costs no buffers */
        join(world, &before, i);
        send_unseen(&before, DLK_OP_FETCH_ADD, 8);
        session(world, DLK_COMMAND_SESSION_SUPERSEDE, i + 1);
        assert(ibv_poll_cq(server->queues.completions, 1, &wc) == 0);
        ring_vanish(&before);
        after_attach = i + 1;
    }
    join(world, &after, after_attach);
    read = peer_request(&after.who, DLK_OP_READ, CELL);
    ring_send(&after, &read, sizeof(read));
    await_reply(world, &after);
    assert(ring_next(&after).value == 0);
    assert(world_count(world, DLK_COUNT_VERBS_PAIR_ERRORS) == 0);
    session(world, DLK_COMMAND_SESSION_CLOSE, 0);
    ring_vanish(&after);
}

/* A connection that the server has closed reaches no cell, though its last message is still on its
 * way: its queue pair is not destroyed before that has arrived. */
static void what_comes_after_is_not_obeyed(struct world *world)
{
    struct dlk_command cell = {.op = DLK_COMMAND_CELL_OPEN, .slot = 8, .id = 208, .value = 5};
    struct dlk_command close
        = {.op = DLK_COMMAND_SESSION_CLOSE, .slot = SLOT, .id = ID, .cookie = UINT64_MAX};
    struct dlk_event done;
    struct ring ring;

    cell.cookie = ++world->cookie;
    assert(dlk_plane_send_command(world->plane, &cell) == 1);
    turns(world);
    while (!world_find_event(world, DLK_EVENT_DONE, cell.cookie, &done)) {
        world_take_events(world);
    }
    session(world, DLK_COMMAND_SESSION_OPEN, 1);
    join(world, &ring, 1);
    uint32_t key = (uint32_t)done.value;
    assert(ring_operate(&ring, DLK_PAIR_FETCH_ADD, 8, key, 1, 0) == IBV_WC_SUCCESS);
    assert(ring.answer.value == 5);
    assert(dlk_plane_send_command(world->plane, &close) == 1);
    while (!dlk_plane_verbs_lingers(world->plane)) {
        dlk_plane_turn(world->plane); /* no more than it takes */
    }
    assert(ring_operate(&ring, DLK_PAIR_FETCH_ADD, 8, key, 1, 0) != IBV_WC_SUCCESS);
    assert(world->plane->cells[8] == 6);
    ring_vanish(&ring);
}

/* A client that takes nothing out of its buffers has filled its window with answers. It still hears
 * that its own messages were taken, by the place that is kept for that, and gets the rest in the
 * end. */
static void a_full_window_still_tells(struct world *world)
{
    enum { FULL = DLK_VERBS_WINDOW - 1, MORE = DLK_VERBS_WINDOW / 2 };
    static struct ring ring;

    session(world, DLK_COMMAND_SESSION_OPEN, 1);
    join(world, &ring, 1);
    ring.hold = true;
    for (uint32_t i = 1; i < FULL; i++) { /* the attach frame's answer was the first */
        struct dlk_request ping = peer_request(&ring.who, DLK_OP_PING, 0);
        ring_send(&ring, &ping, sizeof(ping));
        AWAIT(world, &ring, ring.came == i + 1);
    }
    for (int i = 0; i < MORE; i++) {
        struct dlk_request ping = peer_request(&ring.who, DLK_OP_PING, 0);
        ring_send(&ring, &ping, sizeof(ping));
    }
    AWAIT(world, &ring, ring.pair->credit.told == FULL + MORE);
    assert(ring.came == FULL); /* it told, and nothing else */
    ring.hold = false;
    for (uint32_t i = 0; i < ring.n_held; i++) {
        dlk_pair_release(ring.pair, ring.held[i]);
    }
    AWAIT(world, &ring, ring.came == FULL + MORE);
    session(world, DLK_COMMAND_SESSION_CLOSE, 0);
    ring_vanish(&ring);
}

/* One that sends more than it was told there is room for ends its own connection. */
static void more_than_the_window(struct world *world)
{
    struct dlk_event lost;
    struct ring ring;

    session(world, DLK_COMMAND_SESSION_OPEN, 1);
    join(world, &ring, 1);
    atomic_fetch_add(&ring.pair->credit.told, 100); /* as if it had been told */
    send_unseen(&ring, DLK_OP_PING, DLK_VERBS_WINDOW + 4);
    turns(world);
    while (dlk_plane_take_event(world->plane, &lost)) {
        world->events[world->n_events++] = lost;
    }
    assert(world_find_event(world, DLK_EVENT_VERBS, 0, &lost));
    assert(lost.result == DLK_VERBS_WINDOW_FULL && lost.id == ID);
    assert(world_find_event(world, DLK_EVENT_LINK_LOST, 0, &lost) && lost.slot == SLOT);
    assert(world_count(world, DLK_COUNT_VERBS_PAIR_ERRORS) == 1);
    session(world, DLK_COMMAND_SESSION_CLOSE, 0);
    ring_vanish(&ring);
}

/* A session that ends by time takes its connection along, and its client is told. The clock goes
 * on by hand from here. */
static void the_session_expires(struct world *world)
{
    const uint64_t step_ns = 500 * (uint64_t)DLK_NS_PER_MS; /* less than what looks like a stall */
    struct dlk_event ended;
    struct ring ring;

    session(world, DLK_COMMAND_SESSION_OPEN, 1);
    join(world, &ring, 1);
    for (int left = 3 * WORLD_TTL_MS / 500;
         !world_find_event(world, DLK_EVENT_SESSION_ENDED, 0, &ended); left--) {
        assert(left > 0);
        dlk_clock_set(dlk_now_ns() + step_ns);
        turns(world);
        while (dlk_plane_take_event(world->plane, &ended)) {
            world->events[world->n_events++] = ended;
        }
    }
    assert(ended.slot == SLOT && ended.id == ID);
    for (int i = 0; i < 1000000 && !ring.bye; i++) {
        ring_poll(&ring);
    }
    assert(ring.bye);
    ring_vanish(&ring);
}

int main(void)
{
    struct dlk_plane_config config = world_config();
    struct dlk_verbs_port port = world_port();
    static struct world world;
    char reason[DLK_REASON_BYTES];
    int error = -1;

    config.wait_mode = DLK_WAIT_POLL;
    config.limits.max_sessions = 2;
    world.plane = dlk_plane_new(&config, &error);
    assert(world.plane != NULL && dlk_plane_verbs_open(world.plane, &port, reason) == 1);
    what_came_before_is_dropped(&world);
    what_comes_after_is_not_obeyed(&world);
    a_full_window_still_tells(&world);
    more_than_the_window(&world);
    the_session_expires(&world);
    dlk_plane_stop(world.plane);
    while (dlk_plane_turn(world.plane) != UINT64_MAX) {
    }
    dlk_plane_free(world.plane);
    dlk_clock_set(0);
    return 0;
}
