/* A client's connection over a queue pair: made, connected, slept on, ended. */
#include "verbs_link.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"

enum {
    COMPLETIONS = DLK_VERBS_WINDOW + DLK_PAIR_SEND_COMPLETIONS_MAX + DLK_PAIR_READS_MAX,
    EVENTS_MAX = 64, /* acknowledged together: that takes a mutex of the library's */
    LINGER_MS = 20   /* for the bye to arrive; a server that does not hear it finds out later */
};

/* ---- Made and freed ---- */

static bool fill(struct dlk_queue_pair *link, const struct dlk_verbs_port *port, char *reason)
{
    link->device = dlk_verbs_device_open(port, DLK_DEVICE_SHARED, reason);
    if (link->device == NULL) {
        return false;
    }
    link->channel = dlk_ibv->create_comp_channel(link->device->context);
    int flags = link->channel != NULL ? fcntl(link->channel->fd, F_GETFL) : -1;
    if (flags < 0 || fcntl(link->channel->fd, F_SETFL, flags | O_NONBLOCK) != 0) {
        dlk_verbs_say_errno(reason, "make a completion channel", errno);
        return false;
    }
    link->connection.fd = link->channel->fd;
    link->bell_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (link->bell_fd < 0) {
        dlk_verbs_say_errno(reason, "make a descriptor for wake-ups", errno);
        return false;
    }
    link->cq = dlk_ibv->create_cq(link->device->context, COMPLETIONS, link, link->channel, 0);
    if (link->cq == NULL) {
        dlk_verbs_say_errno(reason, "make a completion queue", errno);
        return false;
    }
    struct dlk_pair_config config = {
        .device = link->device,
        .send_completions = link->cq,
        .receive_completions = link->cq,
        .window = DLK_VERBS_WINDOW,
        .reads = DLK_PAIR_READS_MAX,
    };
    link->pair = dlk_pair_new(&config, reason);
    return link->pair != NULL;
}

struct dlk_queue_pair *dlk_queue_pair_new(const struct dlk_verbs_port *port,
                                          struct dlk_verbs_address *own, char *reason)
{
    struct dlk_queue_pair *link = calloc(1, sizeof(*link));
    if (link == NULL) {
        dlk_verbs_say_errno(reason, "make a queue pair", ENOMEM);
        return NULL;
    }
    link->process = dlk_verbs_process();
    link->bell_fd = -1;
    if (!fill(link, port, reason)) {
        dlk_queue_pair_free(link);
        return NULL;
    }
    dlk_pair_address(link->pair, own);
    return link;
}

static void acknowledge(struct dlk_queue_pair *link)
{
    dlk_ibv->ack_cq_events(link->cq, link->events);
    link->events = 0;
}

void dlk_queue_pair_free(struct dlk_queue_pair *link)
{
    if (link == NULL || link->process != dlk_verbs_process()) {
        return;
    }
    dlk_pair_free(link->pair);
    if (link->cq != NULL) {
        acknowledge(link);
        dlk_ibv->destroy_cq(link->cq);
    }
    if (link->channel != NULL) {
        dlk_ibv->destroy_comp_channel(link->channel);
    }
    if (link->bell_fd >= 0) {
        close(link->bell_fd);
    }
    dlk_verbs_device_close(link->device);
    free(link);
}

static int link_ready(struct dlk_connection *connection, uint64_t sleep_ns)
{
    struct dlk_queue_pair *link = (struct dlk_queue_pair *)connection;
    (void)sleep_ns; /* a new one has room; later it comes with completions, and nobody waits here */
    if (dlk_pair_broken(link->pair)) {
        return -ECONNRESET; /* or a sender would try for ever */
    }
    bool room = link->wants_operation ? dlk_pair_operations_room(link->pair) != 0
                                      : dlk_pair_room(link->pair) != 0;
    return room ? 0 : -EAGAIN;
}

static bool link_owes(const struct dlk_connection *connection)
{
    return dlk_pair_owes(((const struct dlk_queue_pair *)connection)->pair);
}

/* ---- Sleeping: the channel is readable once for each time that it was armed ---- */

static void link_arm(struct dlk_connection *connection)
{
    struct dlk_queue_pair *link = (struct dlk_queue_pair *)connection;
    if (!connection->armed) {
        connection->armed = ibv_req_notify_cq(link->cq, 0) == 0;
    }
}

static void link_clear(struct dlk_connection *connection)
{
    struct dlk_queue_pair *link = (struct dlk_queue_pair *)connection;
    struct ibv_cq *cq;
    void *cookie;
    if (!connection->armed || dlk_ibv->get_cq_event(link->channel, &cq, &cookie) != 0) {
        return;
    }
    connection->armed = false;
    if (++link->events == EVENTS_MAX) {
        acknowledge(link);
    }
}

static ssize_t link_sleep(struct dlk_connection *connection, void *frames, size_t room,
                          uint64_t sleep_ns, bool push)
{
    struct dlk_queue_pair *link = (struct dlk_queue_pair *)connection;
    const uint64_t most_ns = DLK_SLEEP_MS * DLK_NS_PER_MS;
    uint32_t before = connection->progress;
    link_arm(connection);
    /* What came before it was armed. Room comes with completions too. */
    ssize_t received = dlk_verbs_link_receive(connection, frames, room);
    if (received != -EAGAIN || (push && connection->progress != before)) {
        return received;
    }
    struct pollfd ready[] = {{.fd = connection->fd, .events = POLLIN},
                             {.fd = link->bell_fd, .events = POLLIN}};
    struct timespec timeout = {.tv_nsec = (long)(sleep_ns < most_ns ? sleep_ns : most_ns)};
    if (ppoll(ready, 2, &timeout, NULL) < 0) {
        return -errno;
    }
    if (ready[0].revents != 0) {
        link_clear(connection);
    }
    return dlk_verbs_link_receive(connection, frames, room);
}

/* ---- The end ---- */

static void link_shut(struct dlk_connection *connection)
{
    struct dlk_queue_pair *link = (struct dlk_queue_pair *)connection;
    const uint64_t once = 1;
    atomic_store(&link->over, true);
    while (write(link->bell_fd, &once, sizeof(once)) < 0 && errno == EINTR) {
    }
}

/* A server that is told need not wait for the retries of its next message. */
static void say_bye(struct dlk_queue_pair *link)
{
    unsigned char nothing[DLK_VERBS_MESSAGE_BYTES];
    uint64_t until_ns = dlk_now_ns() + LINGER_MS * DLK_NS_PER_MS;
    bool said = false;
    while (!link->ended && !dlk_pair_broken(link->pair) && dlk_now_ns() < until_ns) {
        said = said || dlk_pair_bye(link->pair) == 1;
        if (said && dlk_pair_arrived(link->pair)) {
            return;
        }
        (void)dlk_verbs_link_receive(&link->connection, nothing, sizeof(nothing));
        sched_yield();
    }
}

static void link_free(struct dlk_connection *connection)
{
    struct dlk_queue_pair *link = (struct dlk_queue_pair *)connection;
    if (link->process == dlk_verbs_process()) {
        say_bye(link);
        dlk_queue_pair_free(link);
    }
}

static bool link_operates(const struct dlk_connection *connection, uint32_t object_id)
{
    const struct dlk_queue_pair *link = (const struct dlk_queue_pair *)connection;
    for (uint32_t i = 0; i < DLK_LINK_OPERATIONS; i++) {
        if (atomic_load_explicit(&link->operations[i].object, memory_order_acquire)
            == (DLK_OBJECT_BIT | object_id)) {
            return true;
        }
    }
    return false;
}

static const struct dlk_connection_calls link_calls = {
    .ready = link_ready,
    .send = dlk_verbs_link_send,
    .receive = dlk_verbs_link_receive,
    .sleep = link_sleep,
    .shut = link_shut,
    .free = link_free,
    .arm = link_arm,
    .clear = link_clear,
    .owes = link_owes,
    .operates = link_operates,
};

struct dlk_connection *dlk_queue_pair_connect(struct dlk_queue_pair *link,
                                              const struct dlk_link *wanted)
{
    char reason[DLK_REASON_BYTES];
    if (link == NULL || link->process != dlk_verbs_process()
        || !dlk_pair_connect(link->pair, &wanted->peer, reason)) {
        dlk_queue_pair_free(link);
        return NULL;
    }
    link->client_id = wanted->client_id;
    link->epoch = wanted->epoch;
    link->cells = wanted->peer.cells;
    link->connection.calls = &link_calls;
    link->connection.polled = true;
    link->connection.one_sided = link->cells != 0 && wanted->peer.reads != 0;
    return &link->connection;
}
