/*
 * A client's connection over a queue pair, against an end that is played by hand: frames come out
 * whole and once, whatever room there is for them, and each operation gets its own reply while
 * others are sent.
 */
#include <pthread.h>

#include "abi_client.h"
#include "verbs_link.h"
#include "verbs_pair_internal.h"
#include "verbs_world.h"

enum { ROUNDS = 50, OPERATIONS = 5000, CLIENT = 9, EPOCH = 3, SLOT = 2 };

enum { ATOMIC = IBV_ACCESS_REMOTE_ATOMIC | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE };

struct world {
    struct end server;
    struct dlk_queue_pair *link;
    struct dlk_connection *connection;
    struct dlk_verbs_address own; /* the client's */
    uint64_t *cells;
    struct ibv_mr *region;
};

static void world_open(struct world *world)
{
    const struct end_wish wish = {
        .share = true, .reads_served = DLK_PAIR_READS_MAX, .access = ATOMIC};
    struct dlk_verbs_port port = world_port(0);
    char reason[DLK_REASON_BYTES];
    end_open(&world->server, &port, &wish);
    world->cells = aligned_alloc(4096, 4096);
    assert(world->cells != NULL);
    memset(world->cells, 0, 4096);
    world->region = dlk_ibv->reg_mr(world->server.device->pd, world->cells, 4096,
                                    IBV_ACCESS_LOCAL_WRITE | ATOMIC);
    assert(world->region != NULL);
    world->link = dlk_queue_pair_new(&port, &world->own, reason);
    assert(world->link != NULL);
    assert(dlk_pair_connect(world->server.pair, &world->own, reason));
    struct dlk_link wanted = {.client_id = CLIENT, .epoch = EPOCH, .peer = world->server.address};
    wanted.peer.cells = (uintptr_t)world->cells;
    world->connection = dlk_queue_pair_connect(world->link, &wanted);
    assert(world->connection != NULL && world->connection->one_sided);
    world->connection->live_until_ns = UINT64_MAX;
}

static void world_close(struct world *world)
{
    world->connection->calls->free(world->connection);
    assert(dlk_ibv->dereg_mr(world->region) == 0);
    end_close(&world->server);
    free(world->cells);
}

/* More frames lie there than there is room for: the rest comes later, and is counted once. */
static void little_room(void)
{
    struct world world;
    uint64_t sent = 0;
    uint64_t received = 0;
    struct frame frames[3];
    world_open(&world);
    for (uint64_t room = 1; room <= 3; room++) {
        for (int round = 0; round < ROUNDS; round++) {
            uint64_t goal = sent + 20;
            while (received < goal) {
                sent += end_send(&world.server, sent, goal - sent);
                ssize_t bytes = world.connection->calls->receive(
                    world.connection, frames, (size_t)room * DLK_FRAME_BYTES);
                assert(bytes == -EAGAIN || (bytes > 0 && bytes % DLK_FRAME_BYTES == 0));
                for (ssize_t i = 0; i * DLK_FRAME_BYTES < bytes; i++) {
                    assert(frames[i].number == received);
                    received++;
                }
                if (world.connection->calls->owes(world.connection)) {
                    (void)world.connection->calls->send(world.connection, NULL, 0);
                }
                end_poll(&world.server);
            }
        }
    }
    assert(received == sent && !world.connection->failed);
    world_close(&world);
}

static void *send_operations(void *argument)
{
    struct world *world = argument;
    uint32_t sent = 0;
    while (sent < OPERATIONS) {
        struct dlk_request asked = {.request_id = sent,
                                    .op = DLK_OP_FETCH_ADD,
                                    .lock_id = 77,
                                    .slot = SLOT,
                                    .value = 1,
                                    .reserved = (uint64_t)1 << 32 | world->region->rkey};
        ssize_t bytes =
            world->connection->calls->send(world->connection, &asked, sizeof(asked));
        assert(bytes == sizeof(asked) || bytes == -EAGAIN);
        sent += bytes > 0;
    }
    return NULL;
}

/* One thread posts whenever there is room, another one makes the replies. */
static void each_its_own_reply(void)
{
    struct world world;
    pthread_t sender;
    uint32_t expected = 0;
    world_open(&world);
    assert(pthread_create(&sender, NULL, send_operations, &world) == 0);
    while (expected < OPERATIONS) {
        struct dlk_reply replies[8];
        ssize_t bytes =
            world.connection->calls->receive(world.connection, replies, sizeof(replies));
        assert(bytes == -EAGAIN || bytes > 0);
        for (ssize_t i = 0; i * DLK_FRAME_BYTES < bytes; i++, expected++) {
            assert(replies[i].request_id == expected && replies[i].value == expected);
            assert(replies[i].result == DLK_RESULT_DONE && replies[i].op == DLK_OP_FETCH_ADD);
            assert(replies[i].session == CLIENT && replies[i].epoch == EPOCH);
            assert(replies[i].reserved == DLK_REPLY_ONE_SIDED);
        }
    }
    assert(pthread_join(sender, NULL) == 0);
    assert(!world.connection->calls->operates(world.connection, 77));
    assert(world.cells[SLOT] == OPERATIONS);
    world_close(&world);
}

/* Who sends over a broken queue pair is neither told of success nor of room: he goes on to read. */
static void no_room_when_broken(void)
{
    struct dlk_request ping = {.op = DLK_OP_PING};
    struct world world;

    world_open(&world);
    assert(world.connection->calls->ready(world.connection, 0) == 0);
    (void)dlk_pair_gone(world.link->pair);
    assert(world.connection->calls->send(world.connection, &ping, sizeof(ping)) < 0);
    assert(world.connection->calls->ready(world.connection, 0) < 0);
    world_close(&world);
}

int main(void)
{
    little_room();
    no_room_when_broken();
    each_its_own_reply();
    return 0;
}
