/*
 * A plane whose turns the test takes itself, under a clock that the test sets, at a listening
 * socket that the test made. Nothing here waits: what a peer is owed is there when the turns are
 * over.
 */
#ifndef DLOCK_PLANE_HAND_H
#define DLOCK_PLANE_HAND_H

#include <sys/un.h>

#include "plane.h"
#include "plane_world.h"

enum { SLOT = 1, OTHER = 2, LOCK = 3, CONFIRM_MS = 300 };

static const uint64_t HAND_BEGIN_NS = 1000 * (uint64_t)DLK_NS_PER_S;

struct hand {
    struct dlk_plane *plane;
    struct sockaddr_un address;
    socklen_t length;
    uint64_t now_ns;
    uint64_t again_ns; /* what the last turn said */
    uint64_t cookie;
};

static inline void hand_set(struct hand *hand, uint64_t now_ns)
{
    hand->now_ns = now_ns;
    dlk_clock_set(now_ns);
}

static inline void hand_pass_ms(struct hand *hand, uint64_t ms)
{
    hand_set(hand, hand->now_ns + ms * DLK_NS_PER_MS);
}

/* A listening socket in the abstract name space, which the kernel removes with its last user. */
static inline int hand_listen(struct hand *hand)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    hand->address = (struct sockaddr_un){.sun_family = AF_UNIX};
    hand->length = sizeof(hand->address);
    assert(bind(fd, (struct sockaddr *)&hand->address, sizeof(sa_family_t)) == 0); /* autobind */
    assert(getsockname(fd, (struct sockaddr *)&hand->address, &hand->length) == 0);
    assert(listen(fd, 16) == 0);
    return fd;
}

static inline void hand_start_with(struct hand *hand, const struct dlk_plane_config *config)
{
    struct dlk_plane_config own = *config;
    int error = -1;

    memset(hand, 0, sizeof(*hand));
    hand_set(hand, HAND_BEGIN_NS);
    own.listen_fd = hand_listen(hand);
    hand->plane = dlk_plane_new(&own, &error);
    assert(hand->plane != NULL && error == 0);
}

static inline void hand_start(struct hand *hand, uint32_t confirm_ms)
{
    struct dlk_plane_config config = world_config();

    config.confirm_ms = confirm_ms;
    hand_start_with(hand, &config);
}

/* As long as it wants to be called at once; it must not want that for ever. */
static inline void hand_turns(struct hand *hand)
{
    int left = 20;

    do {
        hand->again_ns = dlk_plane_turn(hand->plane);
        assert(left-- > 0);
    } while (hand->again_ns <= hand->now_ns);
}

static inline void hand_end(struct hand *hand)
{
    dlk_plane_stop(hand->plane);
    hand_turns(hand);
    assert(hand->again_ns == UINT64_MAX);
    assert(dlk_plane_turn(hand->plane) == UINT64_MAX);
    assert(dlk_plane_error(hand->plane) == 0);
    dlk_plane_free(hand->plane);
    dlk_clock_set(0);
}

static inline bool hand_done(struct hand *hand, uint64_t cookie)
{
    struct dlk_event event;

    while (dlk_plane_take_event(hand->plane, &event)) {
        if (event.op == DLK_EVENT_DONE && event.cookie == cookie) {
            assert(event.result == DLK_RESULT_DONE);
            return true;
        }
    }
    return false;
}

static inline uint64_t hand_command(struct hand *hand, struct dlk_command command)
{
    command.cookie = ++hand->cookie;
    assert(dlk_plane_send_command(hand->plane, &command) == 1);
    return command.cookie;
}

static inline void hand_confirm(struct hand *hand)
{
    hand_command(hand, (struct dlk_command){.op = DLK_COMMAND_CONFIRMED, .value = hand->now_ns});
}

static inline uint64_t hand_count(const struct hand *hand, enum dlk_counter counter)
{
    uint64_t counters[DLK_COUNT_MAX];

    dlk_plane_counters(hand->plane, counters, DLK_COUNT_MAX);
    return counters[counter];
}

static inline bool hand_silent(const struct peer *peer)
{
    struct pollfd readable = {.fd = peer->fd, .events = POLLIN};

    return poll(&readable, 1, 0) == 0;
}

static inline void hand_connect(struct peer *peer, const struct hand *hand)
{
    struct timeval patience = {.tv_sec = WORLD_PATIENCE_MS / 1000};

    memset(peer, 0, sizeof(*peer));
    peer->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(peer->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    assert(connect(peer->fd, (const struct sockaddr *)&hand->address, hand->length) == 0);
}

static inline void hand_join(struct peer *peer, struct hand *hand, uint32_t slot)
{
    struct dlk_attach frame = peer_attach_frame(slot, 1000 + slot, 1);
    uint64_t cookie = hand_command(hand, (struct dlk_command){.op = DLK_COMMAND_SESSION_OPEN,
                                                         .slot = slot,
                                                         .id = 1000 + slot,
                                                         .attach = 1,
                                                         .ttl_ms = WORLD_TTL_MS,
                                                         .lease_ms = DLK_MAX_LEASE_MS_DEFAULT,
                                                         .secret = {1, 2, 3, (uint8_t)slot}});
    hand_turns(hand);
    assert(hand_done(hand, cookie));
    hand_connect(peer, hand);
    peer->id = 1000 + slot;
    peer->slot = slot;
    assert(peer_send(peer, &frame, sizeof(frame)));
    hand_turns(hand);
    assert(peer_next(peer).result == DLK_RESULT_DONE);
}

static inline void hand_open_lock(struct hand *hand)
{
    uint64_t cookie = hand_command(hand, (struct dlk_command){.op = DLK_COMMAND_LOCK_OPEN,
                                                         .slot = LOCK,
                                                         .id = 100 + LOCK,
                                                         .kind = DLK_KIND_ATOMIC,
                                                         .size = 1});
    hand_turns(hand);
    assert(hand_done(hand, cookie));
}

static inline void hand_ask(struct peer *peer, uint32_t op, uint32_t wait_ms)
{
    struct dlk_request request = peer_request(peer, op, op == DLK_OP_PING ? 0 : LOCK);

    if (op == DLK_OP_PING) {
        request.lock_id = 0;
    }
    request.wait_ms = wait_ms;
    assert(peer_send(peer, &request, sizeof(request)));
}

static inline uint32_t hand_lock(struct hand *hand, struct peer *peer, uint32_t wait_ms)
{
    hand_ask(peer, DLK_OP_LOCK, wait_ms);
    hand_turns(hand);
    return peer_next(peer).result;
}

#endif
