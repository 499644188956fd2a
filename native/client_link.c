/*
 * How a client gets a connection and loses it: connect, prove the session, hand the connection to
 * the wire. It may not be used by two threads at once for one client (EASYNC).
 */
#include "client.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* ---- The end of a connection ---- */

void dlk_link_drop(struct dlk_client *client, bool over)
{
    dlk_wire_end(client, over, dlk_now_ns());
    while (client->leader || client->sender) {
        pthread_cond_wait(&client->roles_free, &client->mutex);
    }
}

/* A stream is closed at once: whoever ended it may look whether it is. */
void dlk_link_discard(struct dlk_client *client, struct dlk_connection *connection)
{
    if (connection->polled && client->former == NULL) {
        client->former = connection;
    } else {
        connection->calls->free(connection);
    }
}

static void attaching_end(struct dlk_client *client)
{
    struct dlk_attaching *attaching = &client->attaching;
    if (attaching->connection != NULL) {
        dlk_link_discard(client, attaching->connection);
    }
    *attaching = (struct dlk_attaching){.connection = NULL};
}

void dlk_client_detach(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return;
    }
    dlk_client_lock(client);
    dlk_link_drop(client, true);
    if (!client->attaching.busy) {
        attaching_end(client);
    }
    dlk_client_unlock(client);
}

int dlk_client_attached(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return 0;
    }
    dlk_client_lock(client);
    int up = client->up;
    dlk_client_unlock(client);
    return up;
}

/* ---- A new connection, step by step ---- */

static struct dlk_connection *open_connection(const struct dlk_link *link)
{
    char host[sizeof(link->host) + 1] = {0};
    if ((link->flags & DLK_LINK_ADOPT) != 0) {
        struct dlk_connection *adopted = link->fd >= 0 ? dlk_stream_adopt(link->fd) : NULL;
        if (adopted != NULL) {
            adopted->one_sided = (link->flags & DLK_LINK_OPERATES) != 0;
        }
        return adopted;
    }
    if ((link->flags & DLK_LINK_VERBS) != 0) {
        return dlk_queue_pair_connect(link->queue_pair, link);
    }
    memcpy(host, link->host, sizeof(link->host));
    return dlk_stream_open(host, link->port);
}

/* Each step is 0: done, or an errno below 0, as those of a connection. */

static int send_proof(struct dlk_attaching *attaching, const struct dlk_link *link,
                      uint64_t sleep_ns)
{
    struct dlk_connection *connection = attaching->connection;
    struct dlk_attach frame = {
        .op = DLK_OP_ATTACH,
        .version = DLK_PROTOCOL_VERSION_MAX,
        .client_id = link->client_id,
        .session_slot = link->session_slot,
        .attach = link->attach,
        .magic = DLK_ATTACH_MAGIC,
    };
    memcpy(frame.secret, link->secret, sizeof(frame.secret));
    int problem = connection->calls->ready(connection, sleep_ns);
    if (problem != 0) {
        return problem;
    }
    if (attaching->sent == 0) {
        attaching->sent_ns = dlk_now_ns();
    }
    ssize_t sent = connection->calls->send(connection, (const char *)&frame + attaching->sent,
                                           sizeof(frame) - attaching->sent);
    attaching->sent += sent > 0 ? (size_t)sent : 0;
    return sent < 0 ? (int)sent : attaching->sent < sizeof(frame) ? -EAGAIN : 0;
}

static int take_answer(struct dlk_attaching *attaching, uint64_t sleep_ns)
{
    struct dlk_connection *connection = attaching->connection;
    unsigned char *frames = attaching->reply + attaching->received;
    size_t room = sizeof(attaching->reply) - attaching->received;
    if (connection->polled && sleep_ns == 0) { /* its descriptor is what is slept on instead */
        connection->calls->clear(connection);
        connection->calls->arm(connection);
    }
    ssize_t received = sleep_ns != 0
                           ? connection->calls->sleep(connection, frames, room, sleep_ns, false)
                           : connection->calls->receive(connection, frames, room);
    if (received == 0) {
        return -ECONNRESET;
    }
    attaching->received += received > 0 ? (size_t)received : 0;
    return received < 0                                      ? (int)received
           : attaching->received < sizeof(attaching->reply) ? -EAGAIN
                                                             : 0;
}

static bool proven(const struct dlk_attaching *attaching, const struct dlk_link *link)
{
    struct dlk_reply reply;
    memcpy(&reply, attaching->reply, sizeof(reply));
    return reply.op == DLK_OP_ATTACH && reply.result == DLK_RESULT_DONE
           && reply.session == link->client_id && reply.epoch == link->epoch;
}

/* Until the connection is proven, or until_ns. */
static int advance(struct dlk_attaching *attaching, const struct dlk_link *link,
                   uint64_t until_ns)
{
    uint64_t now_ns = dlk_now_ns();
    for (;;) {
        uint64_t sleep_ns = until_ns > now_ns ? until_ns - now_ns : 0;
        bool sent = attaching->sent == DLK_FRAME_BYTES;
        int problem = sent ? take_answer(attaching, sleep_ns)
                           : send_proof(attaching, link, sleep_ns);
        if (problem == 0 && sent) {
            return proven(attaching, link) ? 0 : -EACCES;
        }
        now_ns = dlk_now_ns();
        if (problem != 0 && (problem != -EAGAIN || now_ns >= until_ns)) {
            return problem;
        }
    }
}

/* ---- Attaching ---- */

static bool begin_attaching(struct dlk_client *client, const struct dlk_link *link)
{
    dlk_link_drop(client, false);
    attaching_end(client);
    struct dlk_connection *connection = open_connection(link);
    if (connection == NULL) {
        return false;
    }
    client->attaching = (struct dlk_attaching){
        .connection = connection,
        .attach = link->attach,
        .deadline_ns = dlk_now_ns() + (uint64_t)link->timeout_ms * DLK_NS_PER_MS,
    };
    return true;
}

/* The waits that the server of another epoch will not know end before it is believed in. */
static void enter_epoch(struct dlk_client *client, const struct dlk_link *link, uint64_t now_ns)
{
    struct dlk_book *book = &client->book;
    for (uint32_t index = 0; index < book->pending_high; index++) {
        struct dlk_call *ended = dlk_book_sift(book, index, link->epoch, now_ns);
        if (ended != NULL) {
            dlk_client_complete(client, ended);
        }
    }
    dlk_book_attach(book, link, client->attaching.sent_ns, now_ns);
}

static bool install(struct dlk_client *client, const struct dlk_link *link)
{
    struct dlk_attaching *attaching = &client->attaching;
    client->connection = attaching->connection;
    if (!dlk_collect_link_up(client)) {
        client->connection = NULL;
        return false;
    }
    uint64_t now_ns = dlk_now_ns();
    enter_epoch(client, link, now_ns);
    client->up = true;
    client->book.one_sided = client->connection->one_sided;
    attaching->connection = NULL;
    if (client->book.parked.count != 0) {
        dlk_wire_put_debts(client, now_ns); /* before anything that is asked from now on */
    }
    dlk_go_on(client, now_ns);
    dlk_pass_lead(client);
    return true;
}

/* How long this call may wait. */
static uint64_t attach_until_ns(const struct dlk_client *client, const struct dlk_link *link)
{
    uint64_t now_ns = dlk_now_ns();
    uint64_t slice_end_ns = now_ns + (uint64_t)DLK_WAIT_SLICE_MS * DLK_NS_PER_MS;
    uint64_t deadline_ns = client->attaching.deadline_ns;
    if ((link->flags & DLK_LINK_NOWAIT) != 0) {
        return 0;
    }
    return slice_end_ns < deadline_ns ? slice_end_ns : deadline_ns;
}

/* A socket or queue pair comes with the call that begins; whoever gives another one begins anew. */
static bool given(const struct dlk_link *link)
{
    return ((link->flags & DLK_LINK_ADOPT) != 0 && link->fd >= 0)
           || ((link->flags & DLK_LINK_VERBS) != 0 && link->queue_pair != NULL);
}

static int attach_step(struct dlk_client *client, const struct dlk_link *link)
{
    struct dlk_attaching *attaching = &client->attaching;
    bool under_way = attaching->connection != NULL && attaching->attach == link->attach;
    if ((given(link) || !under_way) && !begin_attaching(client, link)) {
        return DLK_STATUS_BAD_RESPONSE;
    }
    uint64_t until_ns = attach_until_ns(client, link);
    attaching->busy = true;
    dlk_client_unlock(client);
    int problem = advance(attaching, link, until_ns);
    dlk_client_lock(client);
    attaching->busy = false;
    bool goes_on = problem == -EAGAIN || problem == -EINTR;
    if (goes_on && dlk_now_ns() < attaching->deadline_ns) {
        return DLK_STATUS_PENDING;
    }
    bool installed = problem == 0 && install(client, link);
    attaching_end(client);
    return installed ? DLK_STATUS_SUCCESS : DLK_STATUS_BAD_RESPONSE;
}

static void refuse(const struct dlk_link *link)
{
    if ((link->flags & DLK_LINK_ADOPT) != 0 && link->fd >= 0) {
        close(link->fd);
    } else if ((link->flags & DLK_LINK_VERBS) != 0) {
        dlk_queue_pair_free(link->queue_pair);
    }
}

int dlk_client_attach(struct dlk_client *client, const struct dlk_link *link)
{
    if (dlk_client_forked(client)) {
        refuse(link);
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    int status = DLK_STATUS_EASYNC;
    if (client->attaching.busy) {
        refuse(link);
    } else {
        status = attach_step(client, link);
    }
    dlk_wire_flush(client);
    if (status == DLK_STATUS_SUCCESS) {
        client->keep_at_ns = 0;
    }
    dlk_client_unlock(client);
    if (status == DLK_STATUS_SUCCESS) {
        dlk_keeper_poke();
    }
    return status;
}

int dlk_client_attach_fd(struct dlk_client *client, int *for_room)
{
    *for_room = 0;
    if (dlk_client_forked(client)) {
        return -1;
    }
    dlk_client_lock(client);
    const struct dlk_attaching *attaching = &client->attaching;
    int fd = -1;
    /* While it is busy a thread waits for it, and writes what is asked here. */
    if (!attaching->busy && attaching->connection != NULL) {
        fd = attaching->connection->fd;
        *for_room = attaching->sent < DLK_FRAME_BYTES;
    }
    dlk_client_unlock(client);
    return fd;
}

void dlk_client_drop_link(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return;
    }
    dlk_client_lock(client);
    dlk_link_drop(client, false);
    if (!client->attaching.busy) {
        attaching_end(client);
    }
    dlk_client_unlock(client);
}
