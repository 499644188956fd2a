/* Frames over a stream socket. Its reader sleeps in recv, which nobody else can make return but by
 * shutting the socket down. */
#include "connection.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const uint64_t SLEEP_NS = (uint64_t)DLK_SLEEP_MS * 1000000;

struct stream {
    struct dlk_connection connection;
    bool connected;
};

/* 0: ready; else what is not. */
static int wait_for(const struct dlk_connection *connection, short events, uint64_t sleep_ns,
                    short *found)
{
    struct pollfd ready = {.fd = connection->fd, .events = events};
    struct timespec timeout = {
        .tv_nsec = (long)(sleep_ns < SLEEP_NS ? sleep_ns : SLEEP_NS)};
    int count = ppoll(&ready, 1, &timeout, NULL);
    *found = ready.revents;
    return count > 0 ? 0 : count == 0 ? -EAGAIN : -errno;
}

/* From here on threads block in recv, but never longer than SO_RCVTIMEO. */
static bool make_blocking(int fd)
{
    struct timeval timeout = {.tv_usec = DLK_SLEEP_MS * 1000};
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0
           && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) == 0;
}

static int stream_ready(struct dlk_connection *connection, uint64_t sleep_ns)
{
    struct stream *stream = (struct stream *)connection;
    int problem = 0;
    socklen_t size = sizeof(problem);
    short found;
    int waited = wait_for(connection, POLLOUT, sleep_ns, &found);
    if (waited != 0 || stream->connected) {
        return waited;
    }
    if (getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &problem, &size) != 0
        || !make_blocking(connection->fd)) {
        return -errno;
    }
    stream->connected = problem == 0;
    return -problem;
}

static ssize_t stream_send(struct dlk_connection *connection, const void *frames, size_t length)
{
    ssize_t sent = send(connection->fd, frames, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    return sent >= 0 ? sent : errno == ENOBUFS ? -EAGAIN : -errno;
}

static ssize_t take(struct dlk_connection *connection, void *frames, size_t room, int flags)
{
    ssize_t received = recv(connection->fd, frames, room, flags);
    return received >= 0 ? received : -errno;
}

static ssize_t stream_receive(struct dlk_connection *connection, void *frames, size_t room)
{
    return take(connection, frames, room, MSG_DONTWAIT);
}

static ssize_t stream_sleep(struct dlk_connection *connection, void *frames, size_t room,
                            uint64_t sleep_ns, bool push)
{
    short found;
    if (!push && sleep_ns >= SLEEP_NS) {
        return take(connection, frames, room, 0); /* SO_RCVTIMEO is DLK_SLEEP_MS */
    }
    int waited = wait_for(connection, (short)(POLLIN | (push ? POLLOUT : 0)), sleep_ns, &found);
    if (waited == 0 && (found & ~POLLOUT) == 0) {
        return -EAGAIN;
    }
    return waited != 0 ? waited : take(connection, frames, room, MSG_DONTWAIT);
}

static void stream_shut(struct dlk_connection *connection)
{
    shutdown(connection->fd, SHUT_RDWR);
}

static void stream_free(struct dlk_connection *connection)
{
    close(connection->fd);
    free(connection);
}

static const struct dlk_connection_calls stream_calls = {
    .ready = stream_ready,
    .send = stream_send,
    .receive = stream_receive,
    .sleep = stream_sleep,
    .shut = stream_shut,
    .free = stream_free,
};

static struct dlk_connection *stream_new(int fd)
{
    struct stream *stream = fd >= 0 ? calloc(1, sizeof(*stream)) : NULL;
    if (stream == NULL) {
        if (fd >= 0) {
            close(fd);
        }
        return NULL;
    }
    stream->connection = (struct dlk_connection){.calls = &stream_calls, .fd = fd};
    return &stream->connection;
}

struct dlk_connection *dlk_stream_adopt(int fd)
{
    const int on = 1;
    /* Of another family than TCP's it has no such option, nor needs it. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    return stream_new(fd);
}

/* A socket that connects; -1: no such address, or refused at once. */
static int connecting_socket(const char *host, uint32_t port)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *address = NULL;
    char service[16];
    snprintf(service, sizeof(service), "%u", port);
    if (getaddrinfo(host, service, &hints, &address) != 0) {
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

struct dlk_connection *dlk_stream_open(const char *host, uint32_t port)
{
    return stream_new(connecting_socket(host, port));
}
