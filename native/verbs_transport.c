/*
 * The transport of a server with RDMA: a link is a queue pair or a TCP connection. Completions are
 * looked for in memory; only what TCP has to say costs a system call, so while messages come over
 * queue pairs, or the plane polls, TCP is looked at every few times. Who sleeps, sleeps in the wait
 * of the TCP transport, which watches the completion channel and the events of the device too.
 */
#include "verbs_transport.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "verbs_server.h"

enum {
    /* Between two looks at TCP: so few while it has something to say, twice as many after each look
     * in vain. */
    LOOKS_WITHOUT_TCP_LEAST = 8,
    LOOKS_WITHOUT_TCP_MOST = 64,
    WATCH_COMPLETIONS = 0,
    WATCH_EVENTS = 1,
    PAIRS_SPARE = 8 /* besides an eighth: those closed are still there when their successors are */
};

static struct dlk_verbs_server *server_of(struct dlk_transport *transport)
{
    return (struct dlk_verbs_server *)transport;
}

/* ---- wait ---- */

static size_t tell_ready(struct dlk_verbs_server *server, struct dlk_ready *out, size_t room)
{
    size_t count = 0;

    while (server->ready.count > 0 && count < room) {
        struct dlk_server_pair *pair
            = &server->pairs[dlk_list_take(server, &server->ready)];
        pair->ready = false;
        if (pair->state == DLK_SERVER_LINKED && pair->flags != 0) {
            out[count++] = (struct dlk_ready){.link = pair->link, .flags = pair->flags};
            pair->flags = 0;
        }
    }
    return count;
}

/* What TCP has to say; what it watches for us is not for the plane. */
static size_t wait_tcp(struct dlk_verbs_server *server, uint64_t timeout_ns, struct dlk_ready *out,
                       size_t room)
{
    size_t found = server->tcp->calls->wait(server->tcp, timeout_ns, out, room);
    size_t count = 0;

    for (size_t i = 0; i < found; i++) {
        if (out[i].flags != DLK_READY_WATCHED) {
            out[count++] = out[i];
        } else if (server->device != NULL && out[i].link == WATCH_COMPLETIONS) {
            dlk_verbs_queues_disarm(&server->queues);
        } else if (server->device != NULL) {
            dlk_server_async(server);
        }
    }
    return count;
}

static void look_again_after(struct dlk_verbs_server *server, bool said_something)
{
    uint32_t longer = 2 * server->pass_over;

    server->pass_over = said_something                    ? LOOKS_WITHOUT_TCP_LEAST
                        : longer < LOOKS_WITHOUT_TCP_MOST ? longer
                                                          : LOOKS_WITHOUT_TCP_MOST;
}

/* Before a sleep: nothing of ours is left to be done, and the next completion ends it. Returns how
 * long it may be. */
static uint64_t fall_asleep(struct dlk_verbs_server *server, uint64_t timeout_ns)
{
    uint64_t bury_ns = dlk_server_bury(server, UINT32_MAX);

    if (server->device != NULL) {
        dlk_verbs_queues_arm(&server->queues);
        dlk_server_poll(server);
        dlk_server_tell(server);
    }
    if (server->ready.count > 0) {
        return 0;
    }
    if (bury_ns != UINT64_MAX) {
        uint64_t now_ns = dlk_now_ns();
        uint64_t left_ns = bury_ns > now_ns ? bury_ns - now_ns : 0;
        timeout_ns = left_ns < timeout_ns ? left_ns : timeout_ns;
    }
    return timeout_ns;
}

static size_t verbs_wait(struct dlk_transport *transport, uint64_t timeout_ns,
                         struct dlk_ready *out, size_t room)
{
    struct dlk_verbs_server *server = server_of(transport);
    size_t count;

    transport->partial = false;
    if (server->n_ours == 0) {
        return wait_tcp(server, timeout_ns, out, room);
    }
    dlk_server_tell(server);
    dlk_server_poll(server);
    dlk_server_bury(server, 1);
    count = tell_ready(server, out, room);
    if ((count > 0 || timeout_ns == 0) && ++server->passed_over < server->pass_over) {
        transport->partial = true;
        return count;
    }
    server->passed_over = 0;
    if (count == 0 && timeout_ns > 0) {
        timeout_ns = fall_asleep(server, timeout_ns);
    }
    if (count < room) {
        size_t of_tcp = wait_tcp(server, count > 0 ? 0 : timeout_ns, out + count, room - count);
        look_again_after(server, of_tcp > 0);
        count += of_tcp;
        dlk_server_poll(server);
    }
    return count + tell_ready(server, out + count, room - count);
}

/* ---- The calls that are of one link ---- */

static int verbs_accept(struct dlk_transport *transport, uint32_t link)
{
    struct dlk_verbs_server *server = server_of(transport);

    if (server->offered.count == 0) {
        return server->tcp->calls->accept(server->tcp, link);
    }
    uint32_t index = dlk_list_take(server, &server->offered);
    struct dlk_server_pair *pair = &server->pairs[index];
    server->link_pairs[link] = index;
    pair->link = link;
    pair->state = DLK_SERVER_LINKED;
    if (pair->flags != 0) {
        dlk_server_flag(server, pair, 0); /* what came before is told now */
    }
    return 0;
}

static ptrdiff_t receive(struct dlk_verbs_server *server, struct dlk_server_pair *pair,
                         unsigned char *out, size_t room)
{
    size_t copied = 0;
    uint32_t taken = 0;

    if (pair->count == 0) {
        return pair->gone ? DLK_TRANSPORT_GONE : DLK_TRANSPORT_AGAIN;
    }
    while (pair->count > 0 && copied < room) {
        const struct dlk_server_message *message = &pair->messages[pair->head];
        size_t left = message->length - pair->offset;
        size_t bytes = left < room - copied ? left : room - copied;
        memcpy(out + copied,
               dlk_verbs_queues_buffer(&server->queues, message->buffer) + pair->offset, bytes);
        copied += bytes;
        pair->offset += (uint32_t)bytes;
        if (bytes == left) {
            dlk_verbs_queues_again(&server->queues, message->buffer);
            pair->offset = 0;
            pair->head = (pair->head + 1) % DLK_VERBS_WINDOW;
            pair->count--;
            taken++;
        }
    }
    if (!pair->gone) {
        dlk_server_took(server, pair, taken);
    }
    return (ptrdiff_t)copied;
}

static ptrdiff_t verbs_receive(struct dlk_transport *transport, uint32_t link, void *out,
                               size_t room)
{
    struct dlk_verbs_server *server = server_of(transport);
    struct dlk_server_pair *pair = dlk_server_pair_of_link(server, link);

    return pair != NULL ? receive(server, pair, out, room)
                        : server->tcp->calls->receive(server->tcp, link, out, room);
}

static ptrdiff_t verbs_send(struct dlk_transport *transport, uint32_t link, const void *bytes,
                            size_t length)
{
    struct dlk_verbs_server *server = server_of(transport);
    struct dlk_server_pair *pair = dlk_server_pair_of_link(server, link);

    if (pair == NULL) {
        return server->tcp->calls->send(server->tcp, link, bytes, length);
    }
    ptrdiff_t sent = pair->gone ? DLK_PAIR_GONE : dlk_pair_send(pair->pair, bytes, length);
    if (sent < 0) {
        return DLK_TRANSPORT_GONE;
    }
    pair->blocked = (size_t)sent < length;
    return sent;
}

static void verbs_close(struct dlk_transport *transport, uint32_t link)
{
    struct dlk_verbs_server *server = server_of(transport);
    struct dlk_server_pair *pair = dlk_server_pair_of_link(server, link);

    if (pair == NULL) {
        server->tcp->calls->close(server->tcp, link);
    } else {
        dlk_server_close_link(server, pair);
    }
}

/* A GID of RoCE v2 is the peer's address. */
static void verbs_peer(struct dlk_transport *transport, uint32_t link, uint8_t address[16])
{
    struct dlk_verbs_server *server = server_of(transport);
    const struct dlk_server_pair *pair = dlk_server_pair_of_link(server, link);

    if (pair == NULL) {
        server->tcp->calls->peer(server->tcp, link, address);
    } else {
        memcpy(address, pair->gid, sizeof(pair->gid));
    }
}

static void verbs_wake(struct dlk_transport *transport)
{
    struct dlk_transport *tcp = server_of(transport)->tcp;

    tcp->calls->wake(tcp);
}

/* ---- What it has besides ---- */

static bool take_notice(struct dlk_verbs_transport *verbs, struct dlk_verbs_notice *out)
{
    struct dlk_verbs_server *server = server_of(&verbs->base);

    if (server->n_notices == 0) {
        verbs->noticed = false;
        return false;
    }
    *out = server->notices[server->notices_head];
    server->notices_head = (server->notices_head + 1) % DLK_SERVER_NOTICES;
    server->n_notices--;
    return true;
}

static bool lingers(const struct dlk_verbs_transport *verbs)
{
    return ((const struct dlk_verbs_server *)verbs)->closed.count > 0;
}

/* A cell operation has failed: with the device, for all that we know. */
static void look_at_cells(struct dlk_verbs_server *server)
{
    if (server->cells.failed) {
        dlk_server_lose_device(server, IBV_EVENT_QP_FATAL);
    }
}

static uint32_t cell_open(struct dlk_verbs_transport *verbs, uint32_t slot)
{
    struct dlk_verbs_server *server = server_of(&verbs->base);
    uint32_t key = dlk_verbs_cells_bind(&server->cells, slot);

    look_at_cells(server);
    return key;
}

static void cell_close(struct dlk_verbs_transport *verbs, uint32_t slot)
{
    struct dlk_verbs_server *server = server_of(&verbs->base);

    dlk_verbs_cells_unbind(&server->cells, slot);
    look_at_cells(server);
}

static void operate(struct dlk_verbs_transport *verbs, struct dlk_cell_operation *operations,
                    uint32_t count)
{
    struct dlk_verbs_server *server = server_of(&verbs->base);

    dlk_verbs_cells_operate(&server->cells, operations, count);
    look_at_cells(server);
}

/* ---- Begin and end ---- */

/* The device and all that was made of it, queue pairs apart. */
void dlk_server_shut(struct dlk_verbs_server *server)
{
    if (server->device == NULL) {
        return;
    }
    if (server->queues.channel != NULL) {
        dlk_transport_tcp_unwatch(server->tcp, server->queues.channel->fd);
    }
    dlk_transport_tcp_unwatch(server->tcp, server->device->context->async_fd);
    dlk_verbs_cells_close(&server->cells);
    dlk_verbs_queues_close(&server->queues);
    dlk_verbs_device_close(server->device);
    server->device = NULL;
    server->base.operates = false;
}

static void server_free(struct dlk_verbs_server *server)
{
    dlk_server_table_close(server);
    dlk_server_shut(server);
    pthread_mutex_destroy(&server->making);
    pthread_mutex_destroy(&server->table);
    free(server);
}

static void verbs_free(struct dlk_transport *transport)
{
    struct dlk_verbs_server *server = server_of(transport);
    struct dlk_transport *tcp = server->tcp;

    server_free(server);
    tcp->calls->free(tcp);
}

static const struct dlk_transport_calls transport_calls = {
    .wait = verbs_wait,
    .accept = verbs_accept,
    .receive = verbs_receive,
    .send = verbs_send,
    .close = verbs_close,
    .peer = verbs_peer,
    .wake = verbs_wake,
    .free = verbs_free,
};

static const struct dlk_verbs_calls verbs_calls = {
    .pair = dlk_server_make,
    .pair_free = dlk_server_take_back,
    .hand_over = dlk_server_hand_over,
    .notice = take_notice,
    .lingers = lingers,
    .cell_open = cell_open,
    .cell_close = cell_close,
    .operate = operate,
};

static int watch(struct dlk_verbs_server *server)
{
    int events = server->device->context->async_fd;
    int flags = fcntl(events, F_GETFL);
    int error;

    if (flags < 0 || fcntl(events, F_SETFL, flags | O_NONBLOCK) != 0) {
        return errno;
    }
    error = dlk_transport_tcp_watch(server->tcp, events, WATCH_EVENTS);
    return error != 0 ? error
                      : dlk_transport_tcp_watch(server->tcp, server->queues.channel->fd,
                                                WATCH_COMPLETIONS);
}

static bool server_open(struct dlk_verbs_server *server, const struct dlk_verbs_setting *setting,
                        const struct dlk_verbs_port *port, char *reason)
{
    uint32_t wanted = setting->clients + setting->clients / 8 + PAIRS_SPARE;
    char cells[DLK_REASON_BYTES] = "";
    char room[DLK_REASON_BYTES];

    server->device = dlk_verbs_device_open(port, DLK_DEVICE_OWN, reason);
    if (server->device == NULL) {
        return false;
    }
    if (!dlk_verbs_queues_open(&server->queues, server->device, wanted, room)) {
        memcpy(reason, room, sizeof(room));
        return false;
    }
    server->pairs_max = server->queues.pairs_max;
    if (!dlk_server_table_open(server, setting->links) || watch(server) != 0) {
        dlk_verbs_say(reason, "%s: no memory or descriptor for %u queue pairs", port->device,
                      server->pairs_max);
        return false;
    }
    bool reachable = dlk_verbs_cells_open(&server->cells, server->device, setting->cells,
                                          setting->n_cells, cells);
    dlk_verbs_say(reason, "%s; %s%s", room,
                  reachable ? "clients operate on objects by themselves"
                            : "objects are reached through the server only: ",
                  reachable ? "" : cells);
    return true;
}

struct dlk_verbs_transport *dlk_verbs_transport_new(const struct dlk_verbs_setting *setting,
                                                    const struct dlk_verbs_port *port,
                                                    char *reason)
{
    struct dlk_verbs_server *server;

    if (dlk_verbs_library(reason) == NULL) {
        return NULL;
    }
    server = calloc(1, sizeof(*server));
    if (server == NULL) {
        dlk_verbs_say(reason, "no memory");
        return NULL;
    }
    pthread_mutex_init(&server->making, NULL);
    pthread_mutex_init(&server->table, NULL);
    server->base.base.calls = &transport_calls;
    server->base.calls = &verbs_calls;
    server->tcp = setting->tcp;
    server->pass_over = LOOKS_WITHOUT_TCP_LEAST;
    if (!server_open(server, setting, port, reason)) {
        server_free(server);
        return NULL;
    }
    return &server->base;
}
