/* The plane as its clients and its control thread see it: sessions' connections, locks over a
 * socket, cells, commands and events. */
#include "abi_verbs.h"
#include "plane_world.h"

enum { LOCK = 3 };

static void attach_and_lock(struct world *world)
{
    struct peer a;
    struct peer b;

    world_open_lock(world, LOCK, 100 + LOCK, DLK_KIND_ATOMIC);
    peer_join(&a, world, 1);
    peer_join(&b, world, 2);
    struct dlk_reply grant = peer_lock(&a, LOCK, 0);
    assert(grant.result == DLK_RESULT_GRANTED && grant.token >> DLK_COUNTER_BITS == 5);
    assert(peer_lock(&b, LOCK, 0).result == DLK_RESULT_BUSY);
    assert(peer_unlock(&b, LOCK, &grant).result == DLK_RESULT_NOT_HELD);
    assert(peer_unlock(&a, LOCK, &grant).result == DLK_RESULT_RELEASED);
    struct dlk_reply second = peer_lock(&b, LOCK, 0);
    assert(second.result == DLK_RESULT_GRANTED && second.token > grant.token);
    assert(peer_unlock(&b, LOCK, &second).result == DLK_RESULT_RELEASED);
    assert(peer_ask(&a, peer_request(&a, DLK_OP_PING, 0)).result == DLK_RESULT_DONE);
    peer_close(&a);
    peer_close(&b);
}

static void wait_and_hand_over(struct world *world)
{
    struct peer a;
    struct peer b;

    peer_join(&a, world, 3);
    peer_join(&b, world, 4);
    struct dlk_reply held = peer_lock(&a, LOCK, 0);
    assert(held.result == DLK_RESULT_GRANTED);
    struct dlk_reply queued = peer_lock(&b, LOCK, DLK_WAIT_FOREVER);
    assert(queued.result == DLK_RESULT_QUEUED && queued.token > held.token);
    usleep(2000);
    assert(peer_unlock(&a, LOCK, &held).result == DLK_RESULT_RELEASED);
    struct dlk_reply granted = peer_next(&b);
    assert(granted.result == DLK_RESULT_GRANTED && granted.request_id == queued.request_id);
    assert(granted.held_us >= 2000);

    queued = peer_lock(&a, LOCK, 20); /* a wait that ends by time */
    assert(queued.result == DLK_RESULT_QUEUED);
    assert(peer_next(&a).result == DLK_RESULT_TIMED_OUT);

    queued = peer_lock(&a, LOCK, DLK_WAIT_FOREVER); /* and one that is cancelled */
    assert(queued.result == DLK_RESULT_QUEUED);
    struct dlk_request cancel = peer_request(&a, DLK_OP_CANCEL, LOCK);
    cancel.value = queued.request_id;
    assert(peer_ask(&a, cancel).result == DLK_RESULT_CANCELLED);
    assert(peer_unlock(&b, LOCK, &granted).result == DLK_RESULT_RELEASED);
    peer_close(&a);
    peer_close(&b);
}

static void many_in_one_message(struct world *world)
{
    enum { COUNT = 5000 };
    static struct dlk_request requests[COUNT];
    struct peer a;

    peer_join(&a, world, 5);
    for (int i = 0; i < COUNT; i++) {
        requests[i] = peer_request(&a, i % 2 == 0 ? DLK_OP_PING : DLK_OP_LOCK, 9);
        requests[i].lock_id = 777; /* no such lock */
    }
    assert(peer_send(&a, requests, sizeof(requests)));
    for (int i = 0; i < COUNT; i++) {
        struct dlk_reply reply = peer_next(&a);
        assert(reply.request_id == requests[i].request_id);
        assert(reply.result == (i % 2 == 0 ? DLK_RESULT_DONE : DLK_RESULT_NO_LOCK));
    }
    const char *bytes = (const char *)requests;
    for (size_t i = 0; i < 4 * DLK_FRAME_BYTES; i += 16) { /* and in pieces */
        assert(peer_send(&a, bytes + i, 16));
        usleep(200);
    }
    for (int i = 0; i < 4; i++) {
        assert(peer_next(&a).request_id == requests[i].request_id);
    }
    peer_close(&a);
}

static struct dlk_reply cell(struct peer *peer, uint32_t op, uint64_t token, uint64_t value)
{
    struct dlk_request request = peer_request(peer, op, 7);

    request.token = token;
    request.value = value;
    return peer_ask(peer, request);
}

static void cells(struct world *world)
{
    struct dlk_command open = {
        .op = DLK_COMMAND_CELL_OPEN, .slot = 7, .id = 107, .value = UINT64_MAX - 1};
    struct peer a;
    struct dlk_reply reply;

    peer_join(&a, world, 6);
    assert(cell(&a, DLK_OP_READ, 0, 0).result == DLK_RESULT_NO_OBJECT);
    assert(world_command(world, open) == DLK_RESULT_DONE);
    reply = cell(&a, DLK_OP_READ, 0, 0);
    assert(reply.result == DLK_RESULT_DONE && reply.value == UINT64_MAX - 1);
    assert(reply.token == 0 && reply.entry == DLK_NONE);
    reply = cell(&a, DLK_OP_FETCH_ADD, 0, 5); /* wraps */
    assert(reply.result == DLK_RESULT_DONE && reply.value == UINT64_MAX - 1);
    reply = cell(&a, DLK_OP_COMPARE_SWAP, 4, 40);
    assert(reply.result == DLK_RESULT_CAS_FAILED && reply.value == 3);
    reply = cell(&a, DLK_OP_COMPARE_SWAP, 3, 40);
    assert(reply.result == DLK_RESULT_DONE && reply.value == 40);
    assert(world_command(world, open) == DLK_RESULT_INVALID); /* changes nothing */
    assert(cell(&a, DLK_OP_READ, 0, 0).value == 40);
    open.op = DLK_COMMAND_CELL_CLOSE;
    assert(world_command(world, open) == DLK_RESULT_DONE);
    assert(cell(&a, DLK_OP_FETCH_ADD, 0, 1).result == DLK_RESULT_NO_OBJECT);
    open.op = DLK_COMMAND_CELL_OPEN;
    open.value = 11;
    assert(world_command(world, open) == DLK_RESULT_DONE);
    assert(cell(&a, DLK_OP_READ, 0, 0).value == 11);
    peer_close(&a);
}

static void a_lost_link_is_told(struct world *world)
{
    struct peer a;
    uint64_t before = world_count(world, DLK_COUNT_CLIENT_DISCONNECT);

    peer_join(&a, world, 8);
    peer_close(&a);
    assert(world_slot_event(world, DLK_EVENT_LINK_LOST, 8).id == 1008);
    world_await_count(world, DLK_COUNT_CLIENT_DISCONNECT, before + 1);
}

/* More commands than a ring holds, faster than anyone takes the events. */
static void the_rings_lose_nothing(struct world *world)
{
    enum { COMMANDS = 20000 };
    struct dlk_command command = {.op = DLK_COMMAND_GRACE, .value = 1};
    struct dlk_event event;
    uint64_t next = world->cookie + 1;

    for (int i = 0; i < COMMANDS; i++) {
        command.cookie = ++world->cookie;
        while (!dlk_plane_send_command(world->plane, &command)) {
            usleep(100);
        }
    }
    while (next <= world->cookie) {
        if (!dlk_plane_take_event(world->plane, &event)) {
            struct pollfd readable = {.fd = dlk_plane_event_fd(world->plane), .events = POLLIN};
            assert(poll(&readable, 1, WORLD_PATIENCE_MS) == 1);
            dlk_plane_event_fd_clear(world->plane);
        } else if (event.op == DLK_EVENT_DONE) {
            assert(event.cookie == next && event.result == DLK_RESULT_DONE);
            next++;
        }
    }
}

static void bad_configurations(void)
{
    struct dlk_plane_config config = world_config();
    struct dlk_plane *first;
    int error = 0;

    strcpy(config.host, "localhost"); /* not numeric */
    assert(dlk_plane_new(&config, &error) == NULL && error == EINVAL);
    config = world_config();
    config.port = 65536;
    assert(dlk_plane_new(&config, &error) == NULL && error == EINVAL);
    config = world_config();
    config.wait_mode = 3;
    assert(dlk_plane_new(&config, &error) == NULL && error == EINVAL);
    config = world_config();
    first = dlk_plane_new(&config, &error);
    assert(first != NULL && error == 0 && dlk_plane_port(first) != 0);
    config.port = dlk_plane_port(first);
    assert(dlk_plane_new(&config, &error) == NULL && error == EADDRINUSE);
    dlk_plane_free(first);
    first = dlk_plane_new(&config, &error); /* at once again */
    assert(first != NULL && dlk_plane_port(first) == config.port);
    dlk_plane_free(first);
}

/* A plane that was not told to serve RDMA has no queue pairs and gives no keys. */
static void without_rdma(struct world *world)
{
    struct dlk_command open = {.op = DLK_COMMAND_LINK_OPEN, .slot = 1, .id = 1001, .value = 1};
    struct dlk_command cell = {.op = DLK_COMMAND_CELL_OPEN, .slot = 11, .id = 111, .value = 3};
    struct dlk_verbs_address peer = {.window = DLK_VERBS_WINDOW};
    struct dlk_verbs_address own;
    char reason[DLK_REASON_BYTES] = "";
    uint64_t pair = 0;

    assert(dlk_plane_verbs_pair(world->plane, &peer, &own, &pair, reason) == DLK_STATUS_ERROR);
    assert(strstr(reason, "no RDMA") != NULL);
    dlk_plane_verbs_pair_free(world->plane, 1);
    assert(world_command(world, open) == DLK_RESULT_INVALID);
    cell.cookie = ++world->cookie;
    assert(dlk_plane_send_command(world->plane, &cell) == 1);
    struct dlk_event done = world_event(world, DLK_EVENT_DONE, cell.cookie);
    assert(done.result == DLK_RESULT_DONE && done.value == 0);
    cell.op = DLK_COMMAND_CELL_CLOSE;
    assert(world_command(world, cell) == DLK_RESULT_DONE);
    assert(world_count(world, DLK_COUNT_VERBS_CONNECTIONS) == 0);
}

int main(void)
{
    bad_configurations();
    for (uint32_t mode = DLK_WAIT_BLOCK; mode <= DLK_WAIT_POLL; mode++) {
        struct dlk_plane_config config = world_config();
        static struct world world;

        config.wait_mode = mode;
        world_start(&world, &config);
        attach_and_lock(&world);
        wait_and_hand_over(&world);
        many_in_one_message(&world);
        cells(&world);
        without_rdma(&world);
        a_lost_link_is_told(&world);
        the_rings_lose_nothing(&world);
        world_stop(&world);
    }
    return 0;
}
