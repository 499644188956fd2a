/* What a peer cannot make the server do: take without end, keep places for nothing, or hang. */
#include "plane_world.h"

enum { LOCK = 3, CELL = 7 };

/* A client that asks and never reads: the server stops reading from it, goes on with the others,
 * and has lost nothing when it reads after all. */
static void a_slow_reader(struct world *world)
{
    enum { BLOCKED_MS = 300, HUNDRED_MEGABYTES = 100 << 20 };
    struct dlk_request requests[256];
    struct dlk_reply reply;
    struct peer slow;
    struct peer good;
    size_t sent = 0;

    peer_join(&slow, world, 1);
    peer_join(&good, world, 2);
    for (int i = 0; i < 256; i++) {
        requests[i] = peer_request(&slow, DLK_OP_FETCH_ADD, CELL);
        requests[i].value = 1;
    }
    struct pollfd writable = {.fd = slow.fd, .events = POLLOUT};
    while (poll(&writable, 1, BLOCKED_MS) == 1) {
        size_t offset = sent % sizeof(requests);
        ssize_t n = send(slow.fd, (char *)requests + offset, sizeof(requests) - offset,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        assert(n > 0 || errno == EAGAIN);
        sent += n > 0 ? (size_t)n : 0;
        assert(sent < HUNDRED_MEGABYTES); /* a server that takes that much takes everything */
    }
    for (int i = 0; i < 100; i++) {
        assert(peer_ask(&good, peer_request(&good, DLK_OP_PING, 0)).result == DLK_RESULT_DONE);
    }
    for (uint64_t i = 0; i < sent / DLK_FRAME_BYTES; i++) {
        assert(peer_receive(&slow, &reply));
        assert(reply.result == DLK_RESULT_DONE && reply.value == i);
    }
    size_t rest = (DLK_FRAME_BYTES - sent % DLK_FRAME_BYTES) % DLK_FRAME_BYTES;
    assert(peer_send(&slow, (char *)requests + sent % sizeof(requests), rest));
    assert(rest == 0 || peer_receive(&slow, &reply));
    assert(peer_ask(&slow, peer_request(&slow, DLK_OP_PING, 0)).result == DLK_RESULT_DONE);
    peer_close(&slow);
    peer_close(&good);
}

/* Connections that prove nothing crowd each other out, not those who have a session. */
static void idle_strangers(struct world *world)
{
    enum { STRANGERS = 300 };
    static struct peer strangers[STRANGERS];
    uint64_t before = world_count(world, DLK_COUNT_BAD_REQUEST);
    struct peer good;

    for (int i = 0; i < STRANGERS; i++) {
        peer_connect(&strangers[i], world);
    }
    peer_join(&good, world, 3);
    assert(world_count(world, DLK_COUNT_BAD_REQUEST) > before);
    assert(peer_closed(&strangers[0])); /* the oldest went first */
    assert(peer_ask(&good, peer_request(&good, DLK_OP_PING, 0)).result == DLK_RESULT_DONE);
    for (int i = 0; i < STRANGERS; i++) {
        peer_close(&strangers[i]);
    }
    assert(peer_ask(&good, peer_request(&good, DLK_OP_PING, 0)).result == DLK_RESULT_DONE);
    peer_close(&good);
}

/* What came before the end of a connection is still carried out and answered. */
static void requests_before_the_end(struct world *world)
{
    struct dlk_request requests[3];
    struct peer peer;

    peer_join(&peer, world, 4);
    for (int i = 0; i < 3; i++) {
        requests[i] = peer_request(&peer, DLK_OP_PING, 0);
    }
    assert(peer_send(&peer, requests, sizeof(requests)));
    shutdown(peer.fd, SHUT_WR);
    for (int i = 0; i < 3; i++) {
        assert(peer_next(&peer).request_id == requests[i].request_id);
    }
    assert(peer_closed(&peer));
    assert(world_slot_event(world, DLK_EVENT_LINK_LOST, 4).id == 1004);
    peer_close(&peer);
}

static void an_end_inside_a_frame(struct world *world)
{
    struct peer peer;
    uint64_t before = world_count(world, DLK_COUNT_NETWORK_FAIL);

    peer_join(&peer, world, 5);
    assert(peer_send(&peer, "half a frame", 12));
    peer_close(&peer);
    assert(world_slot_event(world, DLK_EVENT_LINK_LOST, 5).id == 1005);
    world_await_count(world, DLK_COUNT_NETWORK_FAIL, before + 1);
}

/* The grant finds no connection; its holder comes back and asks for it by its request id. */
static void a_reply_without_a_connection(struct world *world)
{
    uint64_t before = world_count(world, DLK_COUNT_REPLIES_DROPPED);
    struct peer a;
    struct peer b;

    peer_join(&a, world, 6);
    peer_join(&b, world, 7);
    struct dlk_reply held = peer_lock(&a, LOCK, 0);
    struct dlk_request lock = peer_request(&b, DLK_OP_LOCK, LOCK);
    lock.wait_ms = DLK_WAIT_FOREVER;
    assert(peer_ask(&b, lock).result == DLK_RESULT_QUEUED);
    peer_close(&b);
    assert(world_slot_event(world, DLK_EVENT_LINK_LOST, 7).id == 1007);
    assert(peer_unlock(&a, LOCK, &held).result == DLK_RESULT_RELEASED);
    world_await_count(world, DLK_COUNT_REPLIES_DROPPED, before + 1);
    assert(world_supersede(world, 7, 1007, 2) == DLK_RESULT_DONE);
    peer_attach(&b, world, 7, 1007, 2);
    lock.flags = DLK_FLAG_RESEND;
    held = peer_ask(&b, lock);
    assert(held.result == DLK_RESULT_GRANTED);
    assert(peer_unlock(&b, LOCK, &held).result == DLK_RESULT_RELEASED);
    peer_close(&a);
    peer_close(&b);
}

/* Many sessions in one batch: each reply finds its own. */
static void a_crowd(struct world *world)
{
    enum { PEERS = 40, ROUNDS = 50, BURST = 20 };
    static struct peer peers[PEERS];
    struct dlk_request requests[BURST];

    for (uint32_t i = 0; i < PEERS; i++) {
        peer_join(&peers[i], world, 10 + i);
        peers[i].next_request = i << 16;
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < PEERS; i++) {
            for (int n = 0; n < BURST; n++) {
                requests[n] = peer_request(&peers[i], DLK_OP_PING, 0);
            }
            assert(peer_send(&peers[i], requests, sizeof(requests)));
        }
        for (uint32_t i = 0; i < PEERS; i++) {
            for (uint32_t n = 0; n < BURST; n++) {
                uint32_t expected = peers[i].next_request - BURST + 1 + n;
                assert(peer_next(&peers[i]).request_id == expected);
            }
        }
    }
    for (int i = 0; i < PEERS; i++) {
        peer_close(&peers[i]);
    }
}

static void ipv6(void)
{
    struct dlk_plane_config config = world_config();
    struct sockaddr_in6 server = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct dlk_attach frame = peer_attach_frame(1, 1001, 1);
    struct dlk_reply reply;
    static struct world world;
    struct peer peer = {0};
    int error = 0;

    strcpy(config.host, "::1");
    struct dlk_plane *probe = dlk_plane_new(&config, &error);
    if (probe == NULL) {
        assert(error == EADDRNOTAVAIL || error == EAFNOSUPPORT); /* a machine without IPv6 */
        return;
    }
    dlk_plane_free(probe);
    world_start(&world, &config);
    world_open_session(&world, 1, 1001, 1, WORLD_TTL_MS);
    server.sin6_port = htons((uint16_t)dlk_plane_port(world.plane));
    peer.fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert(connect(peer.fd, (struct sockaddr *)&server, sizeof(server)) == 0);
    assert(peer_send(&peer, &frame, sizeof(frame)));
    assert(peer_receive(&peer, &reply) && reply.result == DLK_RESULT_DONE);
    peer_close(&peer);
    world_stop(&world);
}

int main(void)
{
    for (uint32_t mode = DLK_WAIT_BLOCK; mode <= DLK_WAIT_ADAPTIVE; mode++) {
        struct dlk_plane_config config = world_config();
        struct dlk_command open = {.op = DLK_COMMAND_CELL_OPEN, .slot = CELL, .id = 100 + CELL};
        static struct world world;

        config.wait_mode = mode;
        world_start(&world, &config);
        world_open_lock(&world, LOCK, 100 + LOCK, DLK_KIND_ATOMIC);
        assert(world_command(&world, open) == DLK_RESULT_DONE);
        a_slow_reader(&world);
        idle_strangers(&world);
        requests_before_the_end(&world);
        an_end_inside_a_frame(&world);
        a_reply_without_a_connection(&world);
        a_crowd(&world);
        world_stop(&world);
    }
    ipv6();
    return 0;
}
