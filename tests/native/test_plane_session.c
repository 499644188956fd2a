/* Who may connect in a session's name, and what a session's end does to its connection. */
#include "plane_world.h"

enum { LOCK = 3, CELL = 7 };

static void expect_bad_peer(struct world *world, uint32_t fault, uint32_t id)
{
    static const uint8_t loopback[16] = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1};
    struct dlk_event event = world_event(world, DLK_EVENT_BAD_PEER, 0);

    assert(event.result == fault && event.id == id);
    assert(memcmp(&event.cookie, loopback, 8) == 0 && memcmp(&event.value, loopback + 8, 8) == 0);
}

static void refused(struct world *world, struct dlk_attach frame)
{
    uint64_t before = world_count(world, DLK_COUNT_CLIENT_ID_VERIFY_FAIL);
    struct peer peer;
    struct dlk_reply reply;

    peer_connect(&peer, world);
    assert(peer_send(&peer, &frame, sizeof(frame)));
    assert(peer_receive(&peer, &reply));
    assert(reply.op == DLK_OP_ATTACH && reply.result == DLK_RESULT_REFUSED);
    assert(reply.request_id == frame.request_id && reply.session == frame.client_id);
    assert(peer_closed(&peer));
    expect_bad_peer(world, DLK_FAULT_REFUSED, frame.client_id);
    world_await_count(world, DLK_COUNT_CLIENT_ID_VERIFY_FAIL, before + 1);
    peer_close(&peer);
}

static void attaches_that_are_refused(struct world *world)
{
    struct dlk_attach good = peer_attach_frame(1, 1001, 7);
    struct dlk_attach frame;
    struct peer peer;

    world_open_session(world, 1, 1001, 7, WORLD_TTL_MS);
    frame = good;
    frame.secret[15] ^= 1;
    refused(world, frame);
    frame = good;
    frame.client_id++;
    refused(world, frame);
    frame = good;
    frame.attach++;
    refused(world, frame);
    frame = good;
    frame.session_slot = 2; /* free */
    refused(world, frame);
    frame = good;
    frame.session_slot = 0xffffffff;
    refused(world, frame);
    peer_attach(&peer, world, 1, 1001, 7);
    refused(world, good); /* the number has been used */
    assert(peer_ask(&peer, peer_request(&peer, DLK_OP_PING, 0)).result == DLK_RESULT_DONE);
    peer_close(&peer);
    refused(world, good); /* and does not come back with the loss of its connection */
    assert(world_supersede(world, 1, 1001, 8) == DLK_RESULT_DONE);
    refused(world, good);
    peer_attach(&peer, world, 1, 1001, 8);
    peer_close(&peer);
}

static void not_even_answered(struct world *world, const void *frame, uint32_t fault, uint32_t id)
{
    uint64_t before = world_count(world, DLK_COUNT_BAD_REQUEST);
    struct peer peer;
    struct dlk_reply reply;

    peer_connect(&peer, world);
    assert(peer_send(&peer, frame, DLK_FRAME_BYTES));
    assert(!peer_receive(&peer, &reply));
    expect_bad_peer(world, fault, id);
    world_await_count(world, DLK_COUNT_BAD_REQUEST, before + 1);
    peer_close(&peer);
}

static void first_frames_that_are_no_attach(struct world *world)
{
    struct dlk_attach frame = peer_attach_frame(1, 1001, 8);
    struct dlk_request request = {.op = DLK_OP_PING, .session = 1001};

    not_even_answered(world, &request, DLK_FAULT_MAGIC, 0);
    not_even_answered(world,
                      "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: a stranger there\r\n\r\n",
                      DLK_FAULT_MAGIC, 0);
    frame.version = 99;
    not_even_answered(world, &frame, DLK_FAULT_VERSION, 1001);
    frame = peer_attach_frame(1, 1001, 8);
    frame.reserved[2] = 1;
    not_even_answered(world, &frame, DLK_FAULT_RESERVED, 0);
}

/* A bad frame ends its connection, but not what stood before it. */
static void a_bad_frame(struct world *world, struct peer *peer, struct dlk_request bad,
                        uint32_t fault)
{
    struct dlk_request both[2] = {peer_request(peer, DLK_OP_PING, 0), bad};

    assert(peer_send(peer, both, sizeof(both)));
    assert(peer_closed(peer));
    expect_bad_peer(world, fault, peer->id);
    assert(world_slot_event(world, DLK_EVENT_LINK_LOST, peer->slot).id == peer->id);
    peer_close(peer);
}

static void frames_that_are_wrong(struct world *world)
{
    struct peer peer;
    struct dlk_request bad;

    peer_join(&peer, world, 10);
    bad = peer_request(&peer, DLK_OP_LOCK, LOCK);
    bad.session++;
    a_bad_frame(world, &peer, bad, DLK_FAULT_CLIENT_ID);
    peer_join(&peer, world, 11);
    a_bad_frame(world, &peer, peer_request(&peer, DLK_OP_ATTACH, 0), DLK_FAULT_OP);
    peer_join(&peer, world, 12);
    bad = peer_request(&peer, DLK_OP_LOCK, LOCK);
    bad.mode = DLK_MODE_COUNT;
    a_bad_frame(world, &peer, bad, DLK_FAULT_MODE);
    peer_join(&peer, world, 13);
    bad = peer_request(&peer, DLK_OP_LOCK, LOCK);
    bad.flags = DLK_FLAG_ALL + 1;
    a_bad_frame(world, &peer, bad, DLK_FAULT_FLAGS);
    peer_join(&peer, world, 14);
    bad = peer_request(&peer, DLK_OP_LOCK, LOCK);
    bad.reserved = 1;
    a_bad_frame(world, &peer, bad, DLK_FAULT_RESERVED);
}

/* Sends additions without reading an answer until the server reads no more; says how many. */
static uint64_t add_until_blocked(struct peer *peer)
{
    enum { BLOCKED_MS = 300, HUNDRED_MEGABYTES = 100 << 20 };
    struct dlk_request requests[256];
    struct pollfd writable = {.fd = peer->fd, .events = POLLOUT};
    size_t sent = 0;

    for (int i = 0; i < 256; i++) {
        requests[i] = peer_request(peer, DLK_OP_FETCH_ADD, CELL);
        requests[i].value = 1;
    }
    while (poll(&writable, 1, BLOCKED_MS) == 1) {
        size_t offset = sent % sizeof(requests);
        ssize_t n = send(peer->fd, (char *)requests + offset, sizeof(requests) - offset,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        assert(n > 0 || errno == EAGAIN);
        sent += n > 0 ? (size_t)n : 0;
        assert(sent < HUNDRED_MEGABYTES); /* a server that takes that much takes everything */
    }
    return sent / DLK_FRAME_BYTES;
}

static uint64_t read_cell(struct peer *peer)
{
    struct dlk_reply reply = peer_ask(peer, peer_request(peer, DLK_OP_READ, CELL));

    assert(reply.result == DLK_RESULT_DONE);
    return reply.value;
}

static void open_cell(struct world *world)
{
    struct dlk_command open = {.op = DLK_COMMAND_CELL_OPEN, .slot = CELL, .id = 100 + CELL};

    assert(world_command(world, open) == DLK_RESULT_DONE);
}

/* What lies unread in a superseded connection is never carried out. */
static void supersede_drops_unread_frames(struct world *world)
{
    struct peer old;
    struct peer new;
    uint64_t sent;
    uint64_t done;

    open_cell(world);
    peer_join(&old, world, 20);
    sent = add_until_blocked(&old);
    assert(world_supersede(world, 20, 1020, 2) == DLK_RESULT_DONE);
    peer_attach(&new, world, 20, 1020, 2);
    done = read_cell(&new);
    assert(done > 0 && done < sent);
    assert(peer_closed(&old));
    assert(read_cell(&new) == done);
    assert(world_supersede(world, 20, 4711, 3) == DLK_RESULT_REMOVED); /* another's: no effect */
    assert(read_cell(&new) == done);
    peer_close(&old);
    peer_close(&new);
}

static void close_ends_the_connection(struct world *world)
{
    struct dlk_command command = {.op = DLK_COMMAND_SESSION_CLOSE, .slot = 21, .id = 1021};
    struct peer a;
    struct peer b;

    peer_join(&a, world, 21);
    peer_join(&b, world, 22);
    assert(peer_lock(&a, LOCK, 0).result == DLK_RESULT_GRANTED);
    assert(peer_lock(&b, LOCK, DLK_WAIT_FOREVER).result == DLK_RESULT_QUEUED);
    assert(world_command(world, command) == DLK_RESULT_DONE);
    assert(peer_closed(&a));
    struct dlk_reply granted = peer_next(&b);
    assert(granted.result == DLK_RESULT_GRANTED);
    assert(peer_unlock(&b, LOCK, &granted).result == DLK_RESULT_RELEASED);
    peer_close(&a);
    peer_close(&b);
}

static void expiry_frees_and_closes(struct world *world)
{
    struct peer a;
    struct peer b;
    uint64_t before = world_count(world, DLK_COUNT_SESSIONS_EXPIRED);

    peer_join(&b, world, 31);
    struct dlk_command end = {.op = DLK_COMMAND_SESSION_END, .slot = 30, .id = 1030};
    world_open_session(world, 30, 1030, 1, 300);
    peer_attach(&a, world, 30, 1030, 1);
    struct dlk_reply held = peer_lock(&a, LOCK, 0);
    struct dlk_reply queued = peer_lock(&b, LOCK, DLK_WAIT_FOREVER);
    assert(world_slot_event(world, DLK_EVENT_SESSION_ENDED, 30).id == 1030);
    assert(peer_closed(&a));
    if (held.result == DLK_RESULT_GRANTED) { /* else this machine slept through the session */
        assert(queued.result == DLK_RESULT_QUEUED); /* what was held stays until SESSION_END */
        assert(world_command(world, end) == DLK_RESULT_DONE);
        queued = peer_next(&b);
    } else {
        assert(world_command(world, end) == DLK_RESULT_DONE);
    }
    assert(queued.result == DLK_RESULT_GRANTED && queued.token > held.token);
    assert(world_slot_event(world, DLK_EVENT_SESSION_FREED, 30).id == 1030);
    world_await_count(world, DLK_COUNT_SESSIONS_EXPIRED, before + 1);
    peer_close(&a);
    peer_close(&b);
}

/* The answer to an attach frame lets the client believe in its session for a ttl from before it
 * sent the frame: so it does live that long. */
static void attaching_renews(struct world *world)
{
    enum { TTL_MS = 400, LATE_MS = 250 };
    struct peer peer;

    world_open_session(world, 32, 1032, 1, TTL_MS);
    usleep(LATE_MS * 1000);
    struct dlk_attach frame = peer_attach_frame(32, 1032, 1);
    struct dlk_reply reply;
    peer_connect(&peer, world);
    uint64_t sent_ns = dlk_now_ns();
    assert(peer_send(&peer, &frame, sizeof(frame)));
    if (peer_receive(&peer, &reply) && reply.result == DLK_RESULT_DONE) {
        world_slot_event(world, DLK_EVENT_SESSION_ENDED, 32);
        assert(dlk_now_ns() - sent_ns >= (uint64_t)TTL_MS * DLK_NS_PER_MS);
    }
    peer_close(&peer);
}

static void stop_wakes_waiters(struct world *world)
{
    struct peer a;
    struct peer b;

    peer_join(&a, world, 40);
    peer_join(&b, world, 41);
    assert(peer_lock(&a, LOCK + 1, 0).result == DLK_RESULT_GRANTED);
    struct dlk_reply queued = peer_lock(&b, LOCK + 1, DLK_WAIT_FOREVER);
    assert(queued.result == DLK_RESULT_QUEUED);
    world_stop(world);
    struct dlk_reply last = peer_next(&b);
    assert(last.result == DLK_RESULT_STOPPING && last.request_id == queued.request_id);
    assert(peer_closed(&a) && peer_closed(&b));
    peer_close(&a);
    peer_close(&b);
}

int main(void)
{
    struct dlk_plane_config config = world_config();
    static struct world world;

    world_start(&world, &config);
    world_open_lock(&world, LOCK, 100 + LOCK, DLK_KIND_ATOMIC);
    world_open_lock(&world, LOCK + 1, 101 + LOCK, DLK_KIND_ATOMIC);
    attaches_that_are_refused(&world);
    first_frames_that_are_no_attach(&world);
    frames_that_are_wrong(&world);
    supersede_drops_unread_frames(&world);
    close_ends_the_connection(&world);
    expiry_frees_and_closes(&world);
    attaching_renews(&world);
    stop_wakes_waiters(&world);
    return 0;
}
