/* Cells that clients operate on by themselves, and that others reach through the server: one
 * atomicity domain; keys that end with their object; a device that is lost. On a real device. */
#include "plane.h"
#include "verbs_plane_world.h"

enum { CELL = 7, OTHER = 8, PER_CLIENT = 400 };

static struct dlk_event open_cell(struct world *world, uint32_t slot, uint32_t id, uint64_t value)
{
    struct dlk_command open = {
        .op = DLK_COMMAND_CELL_OPEN, .slot = slot, .id = id, .value = value};

    open.cookie = ++world->cookie;
    assert(dlk_plane_send_command(world->plane, &open) == 1);
    struct dlk_event done = world_event(world, DLK_EVENT_DONE, open.cookie);
    assert(done.result == DLK_RESULT_DONE);
    return done;
}

static void close_cell(struct world *world, uint32_t slot, uint32_t id)
{
    struct dlk_command close = {.op = DLK_COMMAND_CELL_CLOSE, .slot = slot, .id = id};

    assert(world_command(world, close) == DLK_RESULT_DONE);
}

static uint64_t ask(struct peer *peer, uint32_t op, uint32_t id, uint64_t value)
{
    struct dlk_request request = peer_request(peer, op, CELL);

    request.lock_id = id;
    request.value = value;
    struct dlk_reply reply = peer_ask(peer, request);
    assert(reply.result == DLK_RESULT_DONE);
    return reply.value;
}

/* Each of them by itself, over its own queue pair and through the server. */
static void one_sided(struct world *world)
{
    struct dlk_event cell = open_cell(world, CELL, 100 + CELL, 40);
    uint32_t key = (uint32_t)cell.value;
    struct ring ring;
    struct peer tcp;

    assert(cell.value != 0 && cell.value >> 32 == 0);
    ring_join(&ring, world, 1);
    peer_join(&tcp, world, 2);
    assert(ring_operate(&ring, DLK_PAIR_FETCH_ADD, CELL, key, 2, 0) == IBV_WC_SUCCESS);
    assert(ring.answer.value == 40);
    assert(ask(&tcp, DLK_OP_FETCH_ADD, 100 + CELL, 8) == 42);
    assert(ring_operate(&ring, DLK_PAIR_READ, CELL, key, 0, 0) == IBV_WC_SUCCESS);
    assert(ring.answer.value == 50);
    assert(ring_operate(&ring, DLK_PAIR_COMPARE_SWAP, CELL, key, 7, 50) == IBV_WC_SUCCESS);
    assert(ring.answer.value == 50 && ask(&tcp, DLK_OP_READ, 100 + CELL, 0) == 7);
    struct dlk_request swap = peer_request(&tcp, DLK_OP_COMPARE_SWAP, CELL);
    swap.token = 6;
    swap.value = 9;
    struct dlk_reply reply = peer_ask(&tcp, swap);
    assert(reply.result == DLK_RESULT_CAS_FAILED && reply.value == 7);
    swap = peer_request(&tcp, DLK_OP_COMPARE_SWAP, CELL);
    swap.token = 7;
    swap.value = 9;
    assert(peer_ask(&tcp, swap).result == DLK_RESULT_DONE);
    assert(ring_operate(&ring, DLK_PAIR_COMPARE_SWAP, CELL, key, 1, 7) == IBV_WC_SUCCESS);
    assert(ring.answer.value == 9); /* it failed, and said what it found */
    close_cell(world, CELL, 100 + CELL);
    ring_leave(&ring);
    peer_close(&tcp);
}

struct adder {
    pthread_t thread;
    struct world *world;
    struct peer tcp;
    struct ring ring;
    uint32_t key;
};

static void *add_over_tcp(void *argument)
{
    struct adder *adder = argument;
    struct dlk_request requests[20];

    for (int round = 0; round < PER_CLIENT / 20; round++) { /* several in one batch */
        for (int i = 0; i < 20; i++) {
            requests[i] = peer_request(&adder->tcp, DLK_OP_FETCH_ADD, CELL);
            requests[i].value = 1;
        }
        assert(peer_send(&adder->tcp, requests, sizeof(requests)));
        for (int i = 0; i < 20; i++) {
            assert(peer_next(&adder->tcp).result == DLK_RESULT_DONE);
        }
    }
    return NULL;
}

static void *add_two_sided(void *argument)
{
    struct adder *adder = argument;

    for (int i = 0; i < PER_CLIENT; i++) {
        struct dlk_request request = peer_request(&adder->ring.who, DLK_OP_FETCH_ADD, CELL);
        request.value = 1;
        assert(ring_ask(&adder->ring, request).result == DLK_RESULT_DONE);
    }
    return NULL;
}

static void *add_one_sided(void *argument)
{
    struct adder *adder = argument;

    for (int i = 0; i < PER_CLIENT; i++) {
        assert(ring_operate(&adder->ring, DLK_PAIR_FETCH_ADD, CELL, adder->key, 1, 0)
               == IBV_WC_SUCCESS);
    }
    return NULL;
}

/* TCP clients, queue pairs that ask the server, queue pairs that need no server: on one counter,
 * and the sum is exact. The processor did none of it. */
static void all_at_once(struct world *world)
{
    static struct adder adders[4];
    static void *(*const how[4])(void *)
        = {add_over_tcp, add_two_sided, add_one_sided, add_one_sided};
    uint32_t key = (uint32_t)open_cell(world, CELL, 100 + CELL, 0).value;
    uint64_t before = world_count(world, DLK_COUNT_VERBS_CELL_OPERATIONS);

    for (uint32_t i = 0; i < 4; i++) {
        adders[i].world = world;
        adders[i].key = key;
        if (i == 0) {
            peer_join(&adders[i].tcp, world, 10);
        } else {
            ring_join(&adders[i].ring, world, 10 + i);
        }
    }
    for (uint32_t i = 0; i < 4; i++) {
        assert(pthread_create(&adders[i].thread, NULL, how[i], &adders[i]) == 0);
    }
    for (uint32_t i = 0; i < 4; i++) {
        assert(pthread_join(adders[i].thread, NULL) == 0);
    }
    assert(ask(&adders[0].tcp, DLK_OP_READ, 100 + CELL, 0) == 4 * PER_CLIENT);
    assert(world_count(world, DLK_COUNT_VERBS_CELL_OPERATIONS) == before + 2 * PER_CLIENT + 1);
    for (uint32_t i = 1; i < 4; i++) {
        ring_leave(&adders[i].ring);
    }
    peer_close(&adders[0].tcp);
    close_cell(world, CELL, 100 + CELL);
}

/* Who uses the key of an object that is gone loses his queue pair, and nobody else anything; the
 * object that has the slot now is not reached. */
static void an_old_key(struct world *world)
{
    uint32_t old = (uint32_t)open_cell(world, CELL, 201, 5).value;
    uint32_t other = (uint32_t)open_cell(world, OTHER, 202, 6).value;
    struct ring late;
    struct ring good;

    ring_join(&late, world, 20);
    ring_join(&good, world, 21);
    assert(ring_operate(&late, DLK_PAIR_FETCH_ADD, CELL, old, 1, 0) == IBV_WC_SUCCESS);
    close_cell(world, CELL, 201);
    uint32_t key = (uint32_t)open_cell(world, CELL, 203, 70).value;
    assert(key != 0 && key != old);
    assert(ring_operate(&late, DLK_PAIR_FETCH_ADD, CELL, old, 1, 0) == IBV_WC_REM_ACCESS_ERR);
    assert(dlk_pair_broken(late.pair));
    assert(ring_operate(&good, DLK_PAIR_READ, CELL, key, 0, 0) == IBV_WC_SUCCESS);
    assert(good.answer.value == 70);
    assert(ring_operate(&good, DLK_PAIR_FETCH_ADD, OTHER, other, 1, 0) == IBV_WC_SUCCESS);
    assert(good.answer.value == 6);
    assert(ring_ask(&good, peer_request(&good.who, DLK_OP_PING, 0)).result == DLK_RESULT_DONE);
    ring_vanish(&late);

    assert(world_supersede(world, 20, 1020, 2) == DLK_RESULT_DONE); /* and comes back */
    ring_attach(&late, world, 20, 1020, 2);
    assert(ring_operate(&late, DLK_PAIR_READ, CELL, key, 0, 0) == IBV_WC_SUCCESS);
    assert(late.answer.value == 70);
    ring_leave(&late);
    close_cell(world, CELL, 203);
    close_cell(world, OTHER, 202);
    ring_leave(&good);
}

/* No key comes again while many other objects are made and destroyed in its slot. */
static void keys_differ(struct world *world)
{
    enum { OBJECTS = 300 };
    static uint32_t keys[OBJECTS];

    for (uint32_t i = 0; i < OBJECTS; i++) {
        keys[i] = (uint32_t)open_cell(world, CELL, 1000 + i, i).value;
        close_cell(world, CELL, 1000 + i);
        for (uint32_t k = 0; k < i; k++) {
            assert(keys[k] != keys[i]);
        }
    }
}

/* While no queue pair is there, the processor does it: nobody else can. */
static void without_queue_pairs(struct world *world)
{
    struct peer tcp;
    uint64_t before;

    while (dlk_plane_verbs_lingers(world->plane)) {
        usleep(1000);
    }
    assert(open_cell(world, CELL, 301, 3).value != 0);
    before = world_count(world, DLK_COUNT_VERBS_CELL_OPERATIONS);
    peer_join(&tcp, world, 30);
    assert(ask(&tcp, DLK_OP_FETCH_ADD, 301, 1) == 3);
    assert(world_count(world, DLK_COUNT_VERBS_CELL_OPERATIONS) == before);
    peer_close(&tcp);
    close_cell(world, CELL, 301);
}

/* The queue pair by which the server operates on cells breaks: all queue pairs end, the processor
 * has the cells, with the values that they have; who was connected over TCP does not notice. */
static void the_device_is_lost(struct world *world)
{
    struct dlk_verbs_server *server = (struct dlk_verbs_server *)world->plane->verbs;
    uint32_t key = (uint32_t)open_cell(world, CELL, 401, 9).value;
    struct dlk_verbs_address own;
    struct dlk_verbs_address answer;
    char reason[DLK_REASON_BYTES];
    uint64_t handle;
    struct ring ring;
    struct ring stranger;
    struct peer tcp;

    ring_join(&ring, world, 40);
    peer_join(&tcp, world, 41);
    assert(ring_operate(&ring, DLK_PAIR_FETCH_ADD, CELL, key, 1, 0) == IBV_WC_SUCCESS);
    dlk_pair_break(server->cells.near);
    assert(ask(&tcp, DLK_OP_FETCH_ADD, 401, 5) == 10);
    struct dlk_event lost = world_event(world, DLK_EVENT_VERBS, 0);
    assert(lost.result == DLK_VERBS_DEVICE_LOST && lost.id == 0 && lost.value == 1);
    assert(world_slot_event(world, DLK_EVENT_LINK_LOST, 40).id == 1040);
    assert(world_count(world, DLK_COUNT_VERBS_PAIR_ERRORS) == 1);
    assert(ask(&tcp, DLK_OP_READ, 401, 0) == 15);
    close_cell(world, CELL, 401);
    assert(open_cell(world, CELL, 402, 1).value == 0); /* no key any more */
    ring_make(&stranger, &own);
    assert(dlk_plane_verbs_pair(world->plane, &own, &answer, &handle, reason)
           == DLK_STATUS_ERROR);
    assert(strstr(reason, "lost") != NULL);
    ring_vanish(&stranger);
    ring_vanish(&ring);

    assert(world_supersede(world, 40, 1040, 2) == DLK_RESULT_DONE); /* and goes over TCP */
    struct peer again;
    peer_attach(&again, world, 40, 1040, 2);
    assert(ask(&again, DLK_OP_FETCH_ADD, 402, 1) == 1);
    peer_close(&again);
    peer_close(&tcp);
}

int main(void)
{
    for (uint32_t mode = DLK_WAIT_BLOCK; mode <= DLK_WAIT_POLL; mode++) {
        struct dlk_plane_config config = world_config();
        static struct world world;

        config.wait_mode = mode;
        world_start_verbs(&world, &config);
        one_sided(&world);
        all_at_once(&world);
        an_old_key(&world);
        keys_differ(&world);
        without_queue_pairs(&world);
        the_device_is_lost(&world);
        world_stop(&world);
    }
    return 0;
}
