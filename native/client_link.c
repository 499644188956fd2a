/*
 * How a client gets a connection and loses it: connect, prove the session, hand the descriptor to
 * the wire. It may not be used by two threads at once for one client (EASYNC).
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- The end of a connection ---- */

void dlk_link_drop(struct dlk_client *client, bool over)
{
    dlk_wire_end(client, over, dlk_now_ns());
    while (client->leader || client->sender) {
        pthread_cond_wait(&client->roles_free, &client->mutex);
    }
}

static void attaching_end(struct dlk_attaching *attaching)
{
    if (attaching->fd >= 0) {
        close(attaching->fd);
    }
    *attaching = (struct dlk_attaching){.fd = -1};
}

void dlk_client_detach(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return;
    }
    dlk_client_lock(client);
    dlk_link_drop(client, true);
    if (!client->attaching.busy) {
        attaching_end(&client->attaching);
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

/* ---- A new connection, step by step, each without waiting ---- */

/* The socket that was handed over; -1: none was. */
static int adopted_socket(const struct dlk_link *link)
{
    const int on = 1;
    if (link->fd >= 0) { /* of another family than TCP's it has no such option, nor needs it */
        (void)setsockopt(link->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    return link->fd;
}

/* A socket that connects; -1: no such address, or refused at once. */
static int open_socket(const struct dlk_link *link)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *address = NULL;
    char host[sizeof(link->host) + 1] = {0};
    char port[16];
    memcpy(host, link->host, sizeof(link->host));
    snprintf(port, sizeof(port), "%u", link->port);
    if (getaddrinfo(host, port, &hints, &address) != 0) {
        return -1;
    }
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    if (fd >= 0
        && (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) != 0
            || (connect(fd, address->ai_addr, address->ai_addrlen) != 0
                && errno != EINPROGRESS))) {
        close(fd);
        fd = -1;
    }
    freeaddrinfo(address);
    return fd;
}

/* What a step came to: done, to be tried again when the socket is ready, or failed. */
enum step { STEP_DONE, STEP_WAIT, STEP_FAILED };

static enum step step_of_errno(void)
{
    return errno == EAGAIN || errno == EINTR ? STEP_WAIT : STEP_FAILED;
}

static enum step finish_connecting(struct dlk_attaching *attaching)
{
    struct pollfd ready = {.fd = attaching->fd, .events = POLLOUT};
    int problem = 0;
    socklen_t size = sizeof(problem);
    if (attaching->connected) {
        return STEP_DONE;
    }
    if (poll(&ready, 1, 0) <= 0) {
        return STEP_WAIT;
    }
    if (getsockopt(attaching->fd, SOL_SOCKET, SO_ERROR, &problem, &size) != 0 || problem != 0) {
        return STEP_FAILED;
    }
    attaching->connected = true;
    return STEP_DONE;
}

static enum step send_proof(struct dlk_attaching *attaching, const struct dlk_link *link)
{
    struct dlk_attach frame = {
        .op = DLK_OP_ATTACH,
        .version = DLK_PROTOCOL_VERSION_MAX,
        .client_id = link->client_id,
        .session_slot = link->session_slot,
        .attach = link->attach,
        .magic = DLK_ATTACH_MAGIC,
    };
    memcpy(frame.secret, link->secret, sizeof(frame.secret));
    if (attaching->sent == 0) {
        attaching->sent_ns = dlk_now_ns();
    }
    while (attaching->sent < sizeof(frame)) {
        ssize_t sent = send(attaching->fd, (const char *)&frame + attaching->sent,
                            sizeof(frame) - attaching->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            return step_of_errno();
        }
        attaching->sent += (size_t)sent;
    }
    return STEP_DONE;
}

static enum step take_answer(struct dlk_attaching *attaching, const struct dlk_link *link)
{
    while (attaching->received < sizeof(attaching->reply)) {
        ssize_t received = recv(attaching->fd, attaching->reply + attaching->received,
                                sizeof(attaching->reply) - attaching->received, MSG_DONTWAIT);
        if (received == 0) {
            return STEP_FAILED;
        }
        if (received < 0) {
            return step_of_errno();
        }
        attaching->received += (size_t)received;
    }
    struct dlk_reply reply;
    memcpy(&reply, attaching->reply, sizeof(reply));
    bool proven = reply.op == DLK_OP_ATTACH && reply.result == DLK_RESULT_DONE
                  && reply.session == link->client_id && reply.epoch == link->epoch;
    return proven ? STEP_DONE : STEP_FAILED;
}

/* Until the connection is proven, or until_ns. */
static enum step advance(struct dlk_attaching *attaching, const struct dlk_link *link,
                         uint64_t until_ns)
{
    for (;;) {
        short events = POLLOUT;
        enum step step = finish_connecting(attaching);
        if (step == STEP_DONE) {
            step = send_proof(attaching, link);
        }
        if (step == STEP_DONE) {
            events = POLLIN;
            step = take_answer(attaching, link);
        }
        uint64_t now_ns = dlk_now_ns();
        if (step != STEP_WAIT || now_ns >= until_ns) {
            return step;
        }
        struct pollfd ready = {.fd = attaching->fd, .events = events};
        struct timespec timeout = {.tv_nsec = (long)(until_ns - now_ns)};
        if (ppoll(&ready, 1, &timeout, NULL) < 0) {
            return STEP_WAIT;
        }
    }
}

/* From here on threads block in recv, but never longer than SO_RCVTIMEO. */
static bool make_blocking(int fd)
{
    struct timeval timeout = {.tv_usec = DLK_SLEEP_MS * 1000};
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0
           && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) == 0;
}

/* ---- Attaching ---- */

static bool begin_attaching(struct dlk_client *client, const struct dlk_link *link)
{
    bool adopts = (link->flags & DLK_LINK_ADOPT) != 0;
    dlk_link_drop(client, false);
    attaching_end(&client->attaching);
    int fd = adopts ? adopted_socket(link) : open_socket(link);
    if (fd < 0) {
        return false;
    }
    client->attaching = (struct dlk_attaching){
        .fd = fd,
        .attach = link->attach,
        .connected = adopts,
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
    if (!make_blocking(attaching->fd)) {
        return false;
    }
    client->fd = attaching->fd;
    if (!dlk_collect_link_up(client)) {
        client->fd = -1;
        return false;
    }
    uint64_t now_ns = dlk_now_ns();
    enter_epoch(client, link, now_ns);
    client->up = true;
    attaching->fd = -1;
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

/* A socket to be adopted comes with the call that begins; whoever gives another one begins anew. */
static bool given(const struct dlk_link *link)
{
    return (link->flags & DLK_LINK_ADOPT) != 0 && link->fd >= 0;
}

static int attach_step(struct dlk_client *client, const struct dlk_link *link)
{
    struct dlk_attaching *attaching = &client->attaching;
    bool under_way = attaching->fd >= 0 && attaching->attach == link->attach;
    if ((given(link) || !under_way) && !begin_attaching(client, link)) {
        return DLK_STATUS_BAD_RESPONSE;
    }
    uint64_t until_ns = attach_until_ns(client, link);
    attaching->busy = true;
    dlk_client_unlock(client);
    enum step step = advance(attaching, link, until_ns);
    dlk_client_lock(client);
    attaching->busy = false;
    if (step == STEP_WAIT && dlk_now_ns() < attaching->deadline_ns) {
        return DLK_STATUS_PENDING;
    }
    bool installed = step == STEP_DONE && install(client, link);
    attaching_end(attaching);
    return installed ? DLK_STATUS_SUCCESS : DLK_STATUS_BAD_RESPONSE;
}

static void refuse(const struct dlk_link *link)
{
    if (given(link)) {
        close(link->fd);
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
    if (!attaching->busy) { /* else a thread waits for it, and writes what is asked here */
        fd = attaching->fd;
        *for_room = fd >= 0 && (!attaching->connected || attaching->sent < DLK_FRAME_BYTES);
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
        attaching_end(&client->attaching);
    }
    dlk_client_unlock(client);
}
