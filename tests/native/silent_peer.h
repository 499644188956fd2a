/*
 * A server that proves a connection and then answers only what and when a test tells it to: for
 * what a real plane cannot be made to do.
 */
#ifndef DLOCK_SILENT_PEER_H
#define DLOCK_SILENT_PEER_H

#include "client_world.h"

struct silent {
    int listener;
    int fd;
    uint32_t port;
};

static inline struct silent listen_silently(void)
{
    struct silent peer = {.fd = -1, .listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    assert(bind(peer.listener, (struct sockaddr *)&address, size) == 0);
    assert(listen(peer.listener, 4) == 0);
    assert(getsockname(peer.listener, (struct sockaddr *)&address, &size) == 0);
    peer.port = ntohs(address.sin_port);
    return peer;
}

static inline void take(struct silent *peer, void *frame)
{
    assert(recv(peer->fd, frame, DLK_FRAME_BYTES, MSG_WAITALL) == DLK_FRAME_BYTES);
}

static inline void give(struct silent *peer, const struct dlk_reply *reply)
{
    assert(send(peer->fd, reply, sizeof(*reply), MSG_NOSIGNAL) == (ssize_t)sizeof(*reply));
}

static inline struct dlk_reply answer_to(const struct dlk_request *request, uint32_t result)
{
    return (struct dlk_reply){.request_id = request->request_id,
                              .op = request->op,
                              .result = (uint16_t)result,
                              .session = request->session,
                              .epoch = 5,
                              .token = 77,
                              .entry = 3};
}

static inline void *accept_one(void *argument)
{
    struct silent *peer = argument;
    struct dlk_attach frame;
    const int on = 1;
    peer->fd = accept(peer->listener, NULL, NULL);
    assert(setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) == 0);
    take(peer, &frame);
    struct dlk_reply reply = {
        .op = DLK_OP_ATTACH, .session = frame.client_id, .epoch = 5, .result = DLK_RESULT_DONE};
    give(peer, &reply);
    return NULL;
}

static inline struct user join_silent_as(struct silent *peer, uint32_t wait_mode,
                                         uint32_t reply_timeout_ms)
{
    pthread_t thread;
    *peer = listen_silently();
    struct user user = {.client = new_client(wait_mode, reply_timeout_ms),
                        .link = link_to(peer->port, 1, WORLD_TTL_MS)};
    assert(pthread_create(&thread, NULL, accept_one, peer) == 0);
    assert(attach(&user) == DLK_STATUS_SUCCESS);
    assert(pthread_join(thread, NULL) == 0);
    return user;
}

static inline struct user join_silent(struct silent *peer, uint32_t reply_timeout_ms)
{
    return join_silent_as(peer, DLK_WAIT_BLOCK, reply_timeout_ms);
}

static inline void leave_silent(struct silent *peer, struct user *user)
{
    dlk_client_free(user->client);
    close(peer->fd);
    close(peer->listener);
}

#endif
