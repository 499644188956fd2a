/*
 * The client's connection: frames out, frames in. It may not decide what a reply means (the book
 * does) nor who waits for it (client_wait.c does).
 */
#include "client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { OUTBOX_FIRST = 4096 };

/* ---- Out ---- */

bool dlk_wire_put(struct dlk_client *client, const struct dlk_request *request)
{
    struct dlk_outbox *out = &client->filling;
    if (out->length + DLK_FRAME_BYTES > out->room) {
        size_t room = out->room == 0 ? OUTBOX_FIRST : 2 * out->room;
        unsigned char *data = realloc(out->data, room);
        if (data == NULL) {
            return false;
        }
        out->data = data;
        out->room = room;
    }
    memcpy(out->data + out->length, request, DLK_FRAME_BYTES);
    out->length += DLK_FRAME_BYTES;
    return true;
}

void dlk_wire_put_debts(struct dlk_client *client, uint64_t now_ns)
{
    const struct dlk_request *request;
    struct dlk_book *book = &client->book;
    if (book->debts_unsent + book->parked.count == 0 || !client->up) {
        return;
    }
    while ((request = dlk_book_next_unsent(book, now_ns)) != NULL
           || (request = dlk_book_next_parked(book, now_ns)) != NULL) {
        if (!dlk_wire_put(client, request)) {
            dlk_wire_break(client, now_ns); /* no memory: a new connection sends them again */
            return;
        }
    }
}

bool dlk_wire_put_renewals(struct dlk_client *client, uint64_t now_ns)
{
    const struct dlk_request *request;
    bool any = false;
    while (client->up && dlk_wire_backlog(client) <= DLK_BACKLOG_BYTES_MAX
           && (request = dlk_book_next_renewal(&client->book, any, now_ns)) != NULL
           && dlk_wire_put(client, request)) {
        any = true;
    }
    return any;
}

size_t dlk_wire_backlog(const struct dlk_client *client)
{
    return client->filling.length + client->sending.length - client->sending.sent;
}

/* Makes `sending` what is to be sent next, if it is empty. */
static bool turn_outboxes(struct dlk_client *client)
{
    struct dlk_outbox *sending = &client->sending;
    if (sending->sent == sending->length) {
        struct dlk_outbox drained = *sending;
        drained.sent = 0;
        drained.length = 0;
        *sending = client->filling;
        client->filling = drained;
    }
    return sending->sent < sending->length;
}

/* The other end waits to be told what was taken. */
static bool owes(const struct dlk_client *client)
{
    const struct dlk_connection *connection = client->connection;
    return connection->polled && connection->calls->owes(connection);
}

/* Room may have come between the look for it and here, with what a reader took: he will not flush
 * again for it. */
static bool has_room(const struct dlk_client *client)
{
    struct dlk_connection *connection = client->connection;
    return connection->polled && connection->calls->ready(connection, 0) == 0;
}

void dlk_wire_flush(struct dlk_client *client)
{
    while (client->up && !client->sender && (turn_outboxes(client) || owes(client))) {
        struct dlk_outbox *out = &client->sending;
        struct dlk_connection *connection = client->connection;
        connection->live_until_ns = client->book.session_until_ns;
        client->sender = true;
        dlk_client_unlock(client);
        ssize_t sent =
            connection->calls->send(connection, out->data + out->sent, out->length - out->sent);
        dlk_client_lock(client);
        client->sender = false;
        if (!client->up) {
            dlk_wire_role_free(client);
            return;
        }
        if (sent >= 0) {
            out->sent += (size_t)sent;
        } else if (sent != -EINTR && !(sent == -EAGAIN && has_room(client))) {
            if (sent == -EAGAIN) {
                dlk_collect_want_room(client, true);
            } else {
                dlk_wire_break(client, dlk_now_ns());
            }
            return;
        }
    }
    if (dlk_wire_backlog(client) == 0) {
        dlk_collect_want_room(client, false);
    }
}

/* ---- In ---- */

ssize_t dlk_wire_receive(struct dlk_client *client, uint64_t spin_ns, uint64_t now_ns,
                         uint64_t until_ns, bool push, bool *slept)
{
    struct dlk_connection *connection = client->connection;
    unsigned char *frames = client->inbox + client->inbox_length;
    const size_t room = DLK_INBOX_BYTES - client->inbox_length;
    const uint32_t progress = connection->progress;
    uint64_t started_ns = now_ns;
    *slept = false;
    for (uint32_t looks = 1; spin_ns != 0 && (!push || connection->polled); looks++) {
        ssize_t received = connection->calls->receive(connection, frames, room);
        if (received != -EAGAIN || (push && connection->progress != progress)) {
            return received;
        }
        if (looks % DLK_LOOKS_A_CLOCK != 0 && now_ns < until_ns) {
            continue;
        }
        now_ns = dlk_now_ns();
        if (now_ns >= until_ns) {
            return -EAGAIN;
        }
        if (now_ns - started_ns >= spin_ns) {
            break;
        }
        dlk_cpu_relax();
    }
    *slept = true;
    uint64_t left_ns = until_ns > now_ns ? until_ns - now_ns : 0;
    return connection->calls->sleep(connection, frames, room, left_ns, push);
}

static void dispatch(struct dlk_client *client, uint64_t now_ns)
{
    size_t at = 0;
    struct dlk_reply reply;
    for (; at + DLK_FRAME_BYTES <= client->inbox_length; at += DLK_FRAME_BYTES) {
        memcpy(&reply, client->inbox + at, sizeof(reply));
        struct dlk_call *ended = dlk_book_reply(&client->book, &reply, now_ns);
        if (ended != NULL) {
            dlk_client_complete(client, ended);
        }
    }
    client->inbox_length -= at;
    memmove(client->inbox, client->inbox + at, client->inbox_length);
    dlk_wire_put_debts(client, now_ns); /* a grant that nobody waits for any more */
    dlk_go_on(client, now_ns);
    dlk_waiters_wake_settled(client);
}

void dlk_wire_take(struct dlk_client *client, ssize_t received, uint64_t now_ns)
{
    if (!client->up) {
        return; /* given up while it was read; a role is about to be freed */
    }
    if (received > 0) {
        client->inbox_length += (size_t)received;
        dispatch(client, now_ns);
        if (client->up && client->connection->failed) {
            dlk_wire_break(client, now_ns); /* before anything is asked over it in vain */
        }
    } else if (received != -EAGAIN && received != -EINTR && received != -ENOMEM) {
        dlk_wire_break(client, now_ns);
    }
}

/* ---- The end ---- */

void dlk_wire_break(struct dlk_client *client, uint64_t now_ns)
{
    if (client->up) {
        dlk_book_tell(&client->book, NULL, DLK_NOTICE_LINK_DOWN);
    }
    dlk_wire_end(client, false, now_ns);
}

void dlk_wire_end(struct dlk_client *client, bool over, uint64_t now_ns)
{
    if (client->up) {
        client->up = false;
        dlk_collect_link_down(client);
        client->connection->calls->shut(client->connection); /* wakes the leader */
    }
    for (uint32_t index = 0; index < client->book.pending_high; index++) {
        struct dlk_call *ended = dlk_book_disconnect(&client->book, index, over, now_ns);
        if (ended != NULL) {
            dlk_client_complete(client, ended);
        }
    }
    dlk_go_on(client, now_ns);
    dlk_waiters_wake_settled(client);
    dlk_wire_role_free(client);
}

void dlk_wire_role_free(struct dlk_client *client)
{
    if (client->up || client->leader || client->sender) {
        return;
    }
    if (client->connection != NULL) {
        dlk_link_discard(client, client->connection);
        client->connection = NULL;
    }
    client->inbox_length = 0;
    client->filling.length = 0;
    client->sending.length = 0;
    client->sending.sent = 0;
    pthread_cond_broadcast(&client->roles_free);
}
