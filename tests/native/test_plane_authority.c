/* A plane serves for confirm_ms after its last confirmation, and not a moment longer: it answers
 * nothing, carries nothing out and ends nothing, and says nothing when it is stopped. With the next
 * one it goes on where it was. */
#include <stdatomic.h>
#include <stdlib.h>

#include "plane.h"
#include "plane_world.h"

enum { CONFIRM_MS = 300, EVERY_MS = 20, SILENCE_MS = 150, WAIT_MS = 1000 };
enum { SLOT = 1, OTHER = 2, LOCK = 3 };

/* The part of the control thread that confirms. */
struct confirmer {
    struct dlk_plane *plane;
    pthread_t thread;
    atomic_bool end;
    uint64_t last_ns;
};

static void confirm(struct dlk_plane *plane, uint64_t seen_ns)
{
    struct dlk_command command = {.op = DLK_COMMAND_CONFIRMED, .value = seen_ns};

    assert(dlk_plane_send_command(plane, &command) == 1);
}

static void *confirm_often(void *argument)
{
    struct confirmer *confirmer = argument;

    do { /* once for certain, however late it runs */
        confirmer->last_ns = dlk_now_ns();
        confirm(confirmer->plane, confirmer->last_ns);
        usleep(EVERY_MS * 1000);
    } while (!atomic_load(&confirmer->end));
    return NULL;
}

static void confirmer_start(struct confirmer *confirmer, struct dlk_plane *plane)
{
    confirmer->plane = plane;
    atomic_init(&confirmer->end, false);
    assert(pthread_create(&confirmer->thread, NULL, confirm_often, confirmer) == 0);
}

static void confirmer_end(struct confirmer *confirmer)
{
    atomic_store(&confirmer->end, true);
    assert(pthread_join(confirmer->thread, NULL) == 0);
}

/* Returns when the authority of the last confirmation is over for certain. */
static void lapse(struct confirmer *confirmer)
{
    confirmer_end(confirmer);
    while (dlk_now_ns() <= confirmer->last_ns + (uint64_t)CONFIRM_MS * DLK_NS_PER_MS) {
        usleep(1000);
    }
}

static bool silent(int fd)
{
    struct pollfd readable = {.fd = fd, .events = POLLIN};

    return poll(&readable, 1, SILENCE_MS) == 0;
}

static void start(struct world *world, struct confirmer *confirmer, uint32_t wait_mode)
{
    struct dlk_plane_config config = world_config();

    config.confirm_ms = CONFIRM_MS;
    config.wait_mode = wait_mode;
    world_start(world, &config);
    confirmer_start(confirmer, world->plane);
}

static struct dlk_reply lock(struct peer *peer, uint32_t wait_ms)
{
    struct dlk_request request = peer_request(peer, DLK_OP_LOCK, LOCK);

    request.wait_ms = wait_ms;
    assert(peer_send(peer, &request, sizeof(request)));
    return peer_next(peer);
}

/* Requests, commands and deadlines of a time without authority wait for the next confirmation. */
static void nothing_without_it(uint32_t wait_mode, bool command_first)
{
    static struct world world;
    struct confirmer confirmer;
    struct peer holder;
    struct peer waiter;
    struct dlk_command close_it = {
        .op = DLK_COMMAND_SESSION_CLOSE, .slot = SLOT, .id = 1000 + SLOT, .cookie = 1000};
    struct dlk_event event;

    start(&world, &confirmer, wait_mode);
    world_open_lock(&world, LOCK, 100 + LOCK, DLK_KIND_ATOMIC);
    peer_join(&holder, &world, SLOT);
    peer_join(&waiter, &world, OTHER);
    assert(lock(&holder, 0).result == DLK_RESULT_GRANTED);
    assert(lock(&waiter, WAIT_MS).result == DLK_RESULT_QUEUED);
    lapse(&confirmer);

    struct dlk_request ping = peer_request(&holder, DLK_OP_PING, 0);
    if (command_first) {
        assert(dlk_plane_send_command(world.plane, &close_it) == 1);
        assert(silent(holder.fd));
    }
    assert(peer_send(&holder, &ping, sizeof(ping)));
    assert(silent(holder.fd));
    bool waits = silent(waiter.fd); /* on a machine that is not too slow for this */
    if (!command_first) {
        assert(dlk_plane_send_command(world.plane, &close_it) == 1);
    }
    world_await_count(&world, DLK_COUNT_UNCONFIRMED, 1);
    usleep(WAIT_MS * 1000);
    assert(silent(holder.fd)); /* neither answered, nor closed by the command */
    assert(!waits || silent(waiter.fd)); /* neither timed out, nor granted what was freed */
    while (dlk_plane_take_event(world.plane, &event)) {
        assert(event.cookie != close_it.cookie);
    }

    confirmer_start(&confirmer, world.plane);
    assert(world_event(&world, DLK_EVENT_DONE, close_it.cookie).result == DLK_RESULT_DONE);
    struct dlk_reply reply = peer_next(&waiter);
    assert(reply.result == DLK_RESULT_GRANTED || reply.result == DLK_RESULT_TIMED_OUT);
    confirmer_end(&confirmer);
    peer_close(&holder);
    peer_close(&waiter);
    world_stop(&world);
}

/* A confirmation of a look that began too long ago gives nothing. */
static void an_old_look_is_worth_nothing(void)
{
    static struct world world;
    struct confirmer confirmer;
    struct peer peer;

    start(&world, &confirmer, DLK_WAIT_BLOCK);
    peer_join(&peer, &world, SLOT);
    lapse(&confirmer);
    struct dlk_request ping = peer_request(&peer, DLK_OP_PING, 0);
    assert(peer_send(&peer, &ping, sizeof(ping)));
    confirm(world.plane, confirmer.last_ns + 1);
    assert(silent(peer.fd));
    confirmer_start(&confirmer, world.plane);
    assert(peer_next(&peer).result == DLK_RESULT_DONE);
    confirmer_end(&confirmer);
    peer_close(&peer);
    world_stop(&world);
}

/* Stopped while it may not serve: no last words, not even that it stops. */
static void it_ends_in_silence(void)
{
    static struct world world;
    struct confirmer confirmer;
    struct peer holder;
    struct peer waiter;
    struct dlk_reply reply;

    start(&world, &confirmer, DLK_WAIT_BLOCK);
    world_open_lock(&world, LOCK, 100 + LOCK, DLK_KIND_ATOMIC);
    peer_join(&holder, &world, SLOT);
    peer_join(&waiter, &world, OTHER);
    assert(lock(&holder, 0).result == DLK_RESULT_GRANTED);
    assert(lock(&waiter, DLK_WAIT_FOREVER).result == DLK_RESULT_QUEUED);
    lapse(&confirmer);
    world_stop(&world);
    assert(!peer_receive(&waiter, &reply));
    peer_close(&holder);
    peer_close(&waiter);
}

/* Without confirm_ms nothing is ever asked for. */
static void it_needs_none(void)
{
    static struct world world;
    struct dlk_plane_config config = world_config();
    struct peer peer;

    world_start(&world, &config);
    peer_join(&peer, &world, SLOT);
    assert(world.plane->serve_until_ns == UINT64_MAX);
    confirm(world.plane, 0);
    struct dlk_request ping = peer_request(&peer, DLK_OP_PING, 0);
    assert(peer_send(&peer, &ping, sizeof(ping)));
    assert(peer_next(&peer).result == DLK_RESULT_DONE);
    assert(world_count(&world, DLK_COUNT_UNCONFIRMED) == 0);
    peer_close(&peer);
    world_stop(&world);
}

int main(void)
{
    nothing_without_it(DLK_WAIT_BLOCK, false);
    nothing_without_it(DLK_WAIT_POLL, false);
    nothing_without_it(DLK_WAIT_POLL, true);
    an_old_look_is_worth_nothing();
    it_ends_in_silence();
    it_needs_none();
    return 0;
}
