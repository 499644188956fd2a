/*
 * A real plane in a thread of its own, the control thread's side of it, and a blocking client that
 * speaks raw frames over a socket: what the plane's tests share. Everything that waits gives up
 * with a failed assertion after WORLD_PATIENCE_MS.
 */
#ifndef DLOCK_PLANE_WORLD_H
#define DLOCK_PLANE_WORLD_H

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "clock.h"
#include "abi_client.h"

enum { WORLD_PATIENCE_MS = 30000, WORLD_EVENTS = 4096, WORLD_TTL_MS = 60000 };

struct world {
    struct dlk_plane *plane;
    pthread_t thread;
    int result;
    uint64_t cookie;
    struct dlk_event events[WORLD_EVENTS]; /* taken, but not yet asked for */
    size_t n_events;
};

static inline struct dlk_plane_config world_config(void)
{
    return (struct dlk_plane_config){
        .limits = {.max_locks = 64,
                   .max_sessions = 64,
                   .max_entries = 65536,
                   .max_cells = 16,
                   .max_lease_ms = DLK_MAX_LEASE_MS_DEFAULT,
                   .ticket_claim_ms = DLK_TICKET_CLAIM_MS},
        .epoch = 5,
        .wait_mode = DLK_WAIT_BLOCK,
        .ready = 1,
        .host = "127.0.0.1",
        .listen_fd = -1,
    };
}

static inline void *world_run(void *argument)
{
    struct world *world = argument;

    world->result = dlk_plane_run(world->plane);
    return NULL;
}

static inline void world_start(struct world *world, const struct dlk_plane_config *config)
{
    int error = -1;

    memset(world, 0, sizeof(*world));
    world->plane = dlk_plane_new(config, &error);
    assert(world->plane != NULL && error == 0);
    assert(pthread_create(&world->thread, NULL, world_run, world) == 0);
}

static inline void world_stop(struct world *world)
{
    dlk_plane_stop(world->plane);
    assert(pthread_join(world->thread, NULL) == 0);
    assert(world->result == 0);
    dlk_plane_free(world->plane);
}

/* ---- The control thread's side ---- */

/* Takes what is there; waits for something new only if there is nothing. */
static inline void world_take_events(struct world *world)
{
    struct pollfd readable = {.fd = dlk_plane_event_fd(world->plane), .events = POLLIN};
    struct dlk_event event;
    bool any = false;

    while (dlk_plane_take_event(world->plane, &event)) {
        assert(world->n_events < WORLD_EVENTS);
        world->events[world->n_events++] = event;
        any = true;
    }
    if (!any) {
        assert(poll(&readable, 1, WORLD_PATIENCE_MS) == 1);
        dlk_plane_event_fd_clear(world->plane);
    }
}

static inline bool world_find_event(struct world *world, uint32_t op, uint64_t cookie,
                                    struct dlk_event *found)
{
    for (size_t i = 0; i < world->n_events; i++) {
        if (world->events[i].op == op && (cookie == 0 || world->events[i].cookie == cookie)) {
            *found = world->events[i];
            world->n_events--;
            memmove(&world->events[i], &world->events[i + 1],
                    (world->n_events - i) * sizeof(*found));
            return true;
        }
    }
    return false;
}

/* The next event of this kind; others are kept. cookie 0: any. */
static inline struct dlk_event world_event(struct world *world, uint32_t op, uint64_t cookie)
{
    struct dlk_event found;

    while (!world_find_event(world, op, cookie, &found)) {
        world_take_events(world);
    }
    return found;
}

/* The next event of this kind about this slot; others are kept. */
static inline struct dlk_event world_slot_event(struct world *world, uint32_t op, uint32_t slot)
{
    for (size_t i = 0;;) {
        for (; i < world->n_events; i++) {
            struct dlk_event found = world->events[i];
            if (found.op == op && found.slot == slot) {
                world->n_events--;
                memmove(&world->events[i], &world->events[i + 1],
                        (world->n_events - i) * sizeof(found));
                return found;
            }
        }
        world_take_events(world);
    }
}

static inline uint32_t world_command(struct world *world, struct dlk_command command)
{
    command.cookie = ++world->cookie;
    while (!dlk_plane_send_command(world->plane, &command)) {
        usleep(100);
    }
    return world_event(world, DLK_EVENT_DONE, command.cookie).result;
}

static inline void world_open_session(struct world *world, uint32_t slot, uint32_t id,
                                      uint32_t attach, uint32_t ttl_ms)
{
    struct dlk_command command = {
        .op = DLK_COMMAND_SESSION_OPEN,
        .slot = slot,
        .id = id,
        .attach = attach,
        .ttl_ms = ttl_ms,
        .lease_ms = DLK_MAX_LEASE_MS_DEFAULT,
        .secret = {1, 2, 3, (uint8_t)slot},
    };

    assert(world_command(world, command) == DLK_RESULT_DONE);
}

static inline uint32_t world_supersede(struct world *world, uint32_t slot, uint32_t id,
                                       uint32_t attach)
{
    struct dlk_command command = {
        .op = DLK_COMMAND_SESSION_SUPERSEDE,
        .slot = slot,
        .id = id,
        .attach = attach,
        .secret = {1, 2, 3, (uint8_t)slot},
    };

    return world_command(world, command);
}

static inline void world_open_lock(struct world *world, uint32_t slot, uint32_t id, uint32_t kind)
{
    struct dlk_command command = {
        .op = DLK_COMMAND_LOCK_OPEN, .slot = slot, .id = id, .kind = kind, .size = 1};

    assert(world_command(world, command) == DLK_RESULT_DONE);
}

static inline uint64_t world_count(const struct world *world, enum dlk_counter counter)
{
    uint64_t counters[DLK_COUNT_MAX];

    dlk_plane_counters(world->plane, counters, DLK_COUNT_MAX);
    return counters[counter];
}

static inline void world_await_count(const struct world *world, enum dlk_counter counter,
                                     uint64_t at_least)
{
    uint64_t end_ns = dlk_now_ns() + (uint64_t)WORLD_PATIENCE_MS * DLK_NS_PER_MS;

    while (world_count(world, counter) < at_least) {
        assert(dlk_now_ns() < end_ns);
        usleep(200);
    }
}

/* ---- A client over a socket ---- */

struct peer {
    int fd;
    uint32_t id;
    uint32_t slot;
    uint32_t next_request;
};

static inline void peer_connect_port(struct peer *peer, uint32_t port)
{
    struct sockaddr_in server = {.sin_family = AF_INET,
                                 .sin_port = htons((uint16_t)port),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = WORLD_PATIENCE_MS / 1000};
    const int on = 1;

    memset(peer, 0, sizeof(*peer));
    peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert(peer->fd >= 0);
    setsockopt(peer->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(peer->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    assert(connect(peer->fd, (struct sockaddr *)&server, sizeof(server)) == 0);
}

static inline void peer_connect(struct peer *peer, const struct world *world)
{
    peer_connect_port(peer, dlk_plane_port(world->plane));
}

static inline void peer_close(struct peer *peer)
{
    close(peer->fd);
    peer->fd = -1;
}

/* False: the server has closed the connection. */
static inline bool peer_send(struct peer *peer, const void *bytes, size_t length)
{
    for (size_t sent = 0; sent < length;) {
        ssize_t n = send(peer->fd, (const char *)bytes + sent, length - sent, MSG_NOSIGNAL);
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) {
            return false;
        }
        assert(n > 0);
        sent += (size_t)n;
    }
    return true;
}

/* False: the server has closed the connection. */
static inline bool peer_receive(struct peer *peer, struct dlk_reply *reply)
{
    ssize_t n = recv(peer->fd, reply, sizeof(*reply), MSG_WAITALL);

    assert(n >= 0 || errno == ECONNRESET); /* not EAGAIN: that would be patience at its end */
    return n == (ssize_t)sizeof(*reply);
}

static inline bool peer_closed(struct peer *peer)
{
    struct dlk_reply reply;

    while (peer_receive(peer, &reply)) {
    }
    return true;
}

static inline struct dlk_attach peer_attach_frame(uint32_t slot, uint32_t id, uint32_t attach)
{
    return (struct dlk_attach){
        .request_id = 1000000,
        .op = DLK_OP_ATTACH,
        .version = DLK_PROTOCOL_VERSION_MAX,
        .client_id = id,
        .session_slot = slot,
        .attach = attach,
        .magic = DLK_ATTACH_MAGIC,
        .secret = {1, 2, 3, (uint8_t)slot},
    };
}

static inline void peer_attach(struct peer *peer, const struct world *world, uint32_t slot,
                               uint32_t id, uint32_t attach)
{
    struct dlk_attach frame = peer_attach_frame(slot, id, attach);
    struct dlk_reply reply;

    peer_connect(peer, world);
    peer->id = id;
    peer->slot = slot;
    assert(peer_send(peer, &frame, sizeof(frame)));
    assert(peer_receive(peer, &reply));
    assert(reply.op == DLK_OP_ATTACH && reply.result == DLK_RESULT_DONE);
    assert(reply.request_id == frame.request_id && reply.session == id && reply.epoch == 5);
}

/* A session of its own, and a connection for it. */
static inline void peer_join(struct peer *peer, struct world *world, uint32_t slot)
{
    world_open_session(world, slot, 1000 + slot, 1, WORLD_TTL_MS);
    peer_attach(peer, world, slot, 1000 + slot, 1);
}

static inline struct dlk_request peer_request(struct peer *peer, uint32_t op, uint32_t lock_slot)
{
    return (struct dlk_request){
        .request_id = ++peer->next_request,
        .op = (uint8_t)op,
        .session = peer->id,
        .lock_id = 100 + lock_slot,
        .slot = lock_slot,
        .entry = DLK_NONE,
    };
}

static inline struct dlk_reply peer_next(struct peer *peer)
{
    struct dlk_reply reply;

    assert(peer_receive(peer, &reply));
    assert(reply.session == peer->id && reply.reserved == 0);
    return reply;
}

static inline struct dlk_reply peer_ask(struct peer *peer, struct dlk_request request)
{
    assert(peer_send(peer, &request, sizeof(request)));
    struct dlk_reply reply = peer_next(peer);
    assert(reply.request_id == request.request_id);
    return reply;
}

static inline struct dlk_reply peer_lock(struct peer *peer, uint32_t lock_slot, uint32_t wait_ms)
{
    struct dlk_request request = peer_request(peer, DLK_OP_LOCK, lock_slot);

    request.wait_ms = wait_ms;
    return peer_ask(peer, request);
}

static inline struct dlk_reply peer_unlock(struct peer *peer, uint32_t lock_slot,
                                           const struct dlk_reply *grant)
{
    struct dlk_request request = peer_request(peer, DLK_OP_UNLOCK, lock_slot);

    request.token = grant->token;
    request.entry = grant->entry;
    return peer_ask(peer, request);
}

#endif
