/*
 * The other end of a client's queue pair, by hand: what comes over it goes on over TCP to whatever
 * listens at the port of the link, and the reverse. So whatever can be asked of a plane, or of a
 * peer that a test plays, is asked over verbs; and a relay can do what a plane cannot be made to:
 * fall silent, go away, let its cells be operated on while nobody serves.
 *
 * Without a device a test is skipped, or fails if DLOCK_TEST_RDMA=1 says that there must be one.
 */
#ifndef DLOCK_VERBS_RELAY_H
#define DLOCK_VERBS_RELAY_H

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "verbs_pair.h"

enum { RELAY_BYTES = 1 << 16, RELAY_CELLS = 512, RELAY_SKIPPED = 77, RELAY_SLEEP_MS = 20 };

struct relay_bytes {
    unsigned char data[RELAY_BYTES];
    size_t length;
};

struct relay {
    pthread_t thread;
    struct dlk_verbs_device *device;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct dlk_pair *pair;
    uint64_t *cells;
    struct ibv_mr *region;
    int fd;
    bool told_end;          /* this end has said bye */
    _Atomic bool client_end; /* the client has said bye, */
    _Atomic bool gone;       /* or its end is broken */
    _Atomic bool deaf;       /* takes nothing out: a server that stands still */
    _Atomic bool stop;
    struct relay_bytes to_server;
    struct relay_bytes to_client;
};

static inline struct dlk_verbs_port relay_port(void)
{
    struct dlk_verbs_wish wish = {.version = 0};
    struct dlk_verbs_port port;
    char reason[DLK_REASON_BYTES];
    const char *must = getenv("DLOCK_TEST_RDMA");
    if (dlk_verbs_choose(&wish, &port, reason)) {
        return port;
    }
    fprintf(stderr, "%s\n", reason);
    exit(must != NULL && strcmp(must, "1") == 0 ? 1 : RELAY_SKIPPED);
}

static inline void relay_drop(struct relay_bytes *bytes, size_t count)
{
    bytes->length -= count;
    memmove(bytes->data, bytes->data + count, bytes->length);
}

static inline void relay_received(struct relay *relay, const struct ibv_wc *wc)
{
    enum dlk_pair_receipt receipt = dlk_pair_received(relay->pair, wc);
    if (receipt == DLK_RECEIPT_BYE) {
        relay->client_end = true;
    } else if (receipt != DLK_RECEIPT_MESSAGE) {
        relay->gone = true;
        return;
    }
    assert(relay->to_server.length + wc->byte_len <= RELAY_BYTES);
    memcpy(relay->to_server.data + relay->to_server.length, dlk_pair_bytes(relay->pair, wc),
           wc->byte_len);
    relay->to_server.length += wc->byte_len;
    dlk_pair_release(relay->pair, wc->wr_id);
}

static inline bool relay_poll(struct relay *relay)
{
    struct ibv_wc wc;
    bool any = false;
    while (!relay->deaf && relay->to_server.length < RELAY_BYTES / 2
           && ibv_poll_cq(relay->cq, 1, &wc) == 1) {
        any = true;
        if (dlk_pair_kind(wc.wr_id) == DLK_PAIR_RECEIVE) {
            relay_received(relay, &wc);
        } else {
            dlk_pair_sent(relay->pair, &wc);
        }
    }
    relay->gone = relay->gone || dlk_pair_broken(relay->pair);
    return any;
}

static inline bool relay_stream(struct relay *relay)
{
    struct relay_bytes *out = &relay->to_server;
    struct relay_bytes *in = &relay->to_client;
    ssize_t sent = -1;
    ssize_t got = -1;
    if (relay->fd < 0) {
        got = 0; /* nobody listened */
    } else {
        if (out->length != 0) {
            sent = send(relay->fd, out->data, out->length, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
        if (in->length < RELAY_BYTES / 2) {
            got = recv(relay->fd, in->data + in->length, RELAY_BYTES - in->length, MSG_DONTWAIT);
        }
    }
    if (sent > 0) {
        relay_drop(out, (size_t)sent);
    }
    in->length += got > 0 ? (size_t)got : 0;
    if (got == 0 && in->length < DLK_FRAME_BYTES && !relay->told_end) {
        relay->told_end = dlk_pair_bye(relay->pair) != 0;
    }
    return sent > 0 || got > 0;
}

static inline bool relay_send(struct relay *relay)
{
    ptrdiff_t sent = dlk_pair_send(relay->pair, relay->to_client.data, relay->to_client.length);
    if (sent > 0) {
        relay_drop(&relay->to_client, (size_t)sent);
    } else if (sent == 0) {
        (void)dlk_pair_tell(relay->pair);
    }
    return sent > 0;
}

static inline void relay_sleep(struct relay *relay)
{
    struct pollfd ready[] = {{.fd = relay->fd, .events = relay->told_end ? 0 : POLLIN},
                             {.fd = relay->channel->fd, .events = POLLIN}};
    struct ibv_cq *cq;
    void *cookie;
    poll(ready, 2, RELAY_SLEEP_MS);
    if ((ready[1].revents & POLLIN) != 0
        && dlk_ibv->get_cq_event(relay->channel, &cq, &cookie) == 0) {
        dlk_ibv->ack_cq_events(cq, 1);
    }
}

static inline void *relay_run(void *argument)
{
    struct relay *relay = argument;
    while (!relay->stop && !relay->gone
           && !(relay->client_end && relay->to_server.length == 0)
           && !(relay->told_end && dlk_pair_arrived(relay->pair))) {
        bool any = relay_poll(relay);
        any = relay_stream(relay) || any;
        any = relay_send(relay) || any;
        if (!any && ibv_req_notify_cq(relay->cq, 0) == 0 && !relay_poll(relay)) {
            relay_sleep(relay);
        }
    }
    if (relay->fd >= 0) {
        close(relay->fd);
    }
    return NULL;
}

/* -1: nobody listens there. */
static inline int relay_connect(uint32_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static inline void relay_open(struct relay *relay, const struct dlk_verbs_port *port)
{
    const int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ
                       | IBV_ACCESS_REMOTE_ATOMIC;
    char reason[DLK_REASON_BYTES];
    relay->device = dlk_verbs_device_open(port, DLK_DEVICE_OWN, reason);
    assert(relay->device != NULL);
    relay->channel = dlk_ibv->create_comp_channel(relay->device->context);
    assert(relay->channel != NULL
           && fcntl(relay->channel->fd, F_SETFL,
                    fcntl(relay->channel->fd, F_GETFL) | O_NONBLOCK) == 0);
    relay->cq = dlk_ibv->create_cq(relay->device->context, 256, NULL, relay->channel, 0);
    assert(relay->cq != NULL);
    relay->cells = aligned_alloc(4096, RELAY_CELLS * sizeof(uint64_t));
    memset(relay->cells, 0, RELAY_CELLS * sizeof(uint64_t));
    relay->region = dlk_ibv->reg_mr(relay->device->pd, relay->cells,
                                    RELAY_CELLS * sizeof(uint64_t), access);
    assert(relay->region != NULL);
    struct dlk_pair_config config = {
        .device = relay->device,
        .send_completions = relay->cq,
        .receive_completions = relay->cq,
        .window = DLK_VERBS_WINDOW,
        .reads_served = DLK_PAIR_READS_MAX,
        .access = access,
    };
    relay->pair = dlk_pair_new(&config, reason);
    assert(relay->pair != NULL);
}

/* A queue pair for this link in place of its TCP connection, and its other end, which is joined by
 * relay_close. */
static inline struct relay *relay_begin(struct dlk_link *link)
{
    struct dlk_verbs_port port = relay_port();
    struct dlk_verbs_address own;
    char reason[DLK_REASON_BYTES] = "";
    struct relay *relay = calloc(1, sizeof(*relay));
    relay_open(relay, &port);
    dlk_pair_address(relay->pair, &link->peer);
    link->peer.cells = (uintptr_t)relay->cells;
    link->queue_pair = dlk_queue_pair_new(&port, &own, reason);
    if (link->queue_pair == NULL || !dlk_pair_connect(relay->pair, &own, reason)) {
        fprintf(stderr, "%s\n", reason);
        assert(false);
    }
    link->flags |= DLK_LINK_VERBS;
    relay->fd = relay_connect(link->port);
    assert(pthread_create(&relay->thread, NULL, relay_run, relay) == 0);
    return relay;
}

static inline void relay_close(struct relay *relay)
{
    relay->stop = true;
    assert(pthread_join(relay->thread, NULL) == 0);
    dlk_pair_free(relay->pair);
    if (relay->region != NULL) {
        assert(dlk_ibv->dereg_mr(relay->region) == 0);
    }
    assert(dlk_ibv->destroy_cq(relay->cq) == 0);
    assert(dlk_ibv->destroy_comp_channel(relay->channel) == 0);
    dlk_verbs_device_close(relay->device);
    free(relay->cells);
    free(relay);
}

#endif
