/*
 * The transport over TCP, or whatever stream socket it is told to listen at: one epoll,
 * edge-triggered, so that a link costs no system call but its own receives and sends. transport.h
 * is its contract.
 */
#include "transport.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS_MAX = 256, BACKLOG = 4096, NO_FD = -1, NS_PER_MS = 1000000 };

/* What epoll carries beside link numbers. */
static const uint32_t LISTENER = UINT32_MAX;
static const uint32_t WAKE_UP = UINT32_MAX - 1;
static const uint32_t WATCHED = UINT32_MAX - 1 - DLK_TRANSPORT_WATCHED_MAX; /* and what follows */

struct tcp {
    struct dlk_transport base;
    int listener;
    bool given; /* the listener was made by somebody else */
    int epoll;
    int wake_up; /* an eventfd that nobody reads: every write is an edge */
    uint32_t links;
    int fds[]; /* by link; NO_FD: free */
};

static struct tcp *tcp_of(struct dlk_transport *transport)
{
    return (struct tcp *)transport;
}

static int timeout_ms(uint64_t timeout_ns)
{
    uint64_t ms = timeout_ns / NS_PER_MS + (timeout_ns % NS_PER_MS != 0);

    if (timeout_ns == UINT64_MAX) {
        return -1;
    }
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

static size_t tcp_wait(struct dlk_transport *transport, uint64_t timeout_ns, struct dlk_ready *out,
                       size_t room)
{
    struct epoll_event events[EVENTS_MAX];
    int max = room < EVENTS_MAX ? (int)room : EVENTS_MAX;
    int n = epoll_wait(tcp_of(transport)->epoll, events, max, timeout_ms(timeout_ns));
    size_t count = 0;

    for (int i = 0; i < n; i++) {
        uint32_t seen = events[i].events;
        uint32_t flags = 0;
        uint32_t link = events[i].data.u32;
        if (link == WAKE_UP) {
            continue;
        }
        if (link == LISTENER) {
            flags = DLK_READY_ACCEPT;
        } else if (link >= WATCHED) {
            flags = DLK_READY_WATCHED;
            link -= WATCHED;
        } else {
            flags |= (seen & EPOLLIN) != 0 ? (uint32_t)DLK_READY_RECEIVE : 0;
            flags |= (seen & EPOLLOUT) != 0 ? (uint32_t)DLK_READY_SEND : 0;
            if ((seen & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) {
                flags |= DLK_READY_RECEIVE | DLK_READY_HANG_UP;
            }
        }
        out[count++] = (struct dlk_ready){.link = link, .flags = flags};
    }
    return count;
}

static int watch(struct tcp *tcp, int fd, uint32_t events, uint32_t data)
{
    struct epoll_event event = {.events = events | EPOLLET, .data.u32 = data};

    return epoll_ctl(tcp->epoll, EPOLL_CTL_ADD, fd, &event);
}

static int tcp_accept(struct dlk_transport *transport, uint32_t link)
{
    struct tcp *tcp = tcp_of(transport);
    const int on = 1;
    int fd;

    do {
        fd = accept4(tcp->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    } while (fd < 0 && (errno == EINTR || errno == ECONNABORTED));
    if (fd < 0) {
        return errno == EAGAIN || errno == EWOULDBLOCK ? DLK_TRANSPORT_AGAIN
                                                       : DLK_TRANSPORT_EXHAUSTED;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (watch(tcp, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP, link) != 0) {
        close(fd);
        return DLK_TRANSPORT_EXHAUSTED;
    }
    tcp->fds[link] = fd;
    return 0;
}

static ptrdiff_t tcp_receive(struct dlk_transport *transport, uint32_t link, void *out,
                             size_t room)
{
    ssize_t n;

    do {
        n = recv(tcp_of(transport)->fds[link], out, room, 0);
    } while (n < 0 && errno == EINTR);
    if (n > 0) {
        return n;
    }
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? DLK_TRANSPORT_AGAIN
                                                              : DLK_TRANSPORT_GONE;
}

static ptrdiff_t tcp_send(struct dlk_transport *transport, uint32_t link, const void *bytes,
                          size_t length)
{
    ssize_t n;

    do {
        n = send(tcp_of(transport)->fds[link], bytes, length, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n >= 0) {
        return n;
    }
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS ? 0 : DLK_TRANSPORT_GONE;
}

/* A forked child may still have the descriptor: without the shutdown the peer would not notice. */
static void shut(int *fd)
{
    if (*fd != NO_FD) {
        shutdown(*fd, SHUT_RDWR);
        close(*fd);
        *fd = NO_FD;
    }
}

static void tcp_close(struct dlk_transport *transport, uint32_t link)
{
    shut(&tcp_of(transport)->fds[link]);
}

static void tcp_peer(struct dlk_transport *transport, uint32_t link, uint8_t address[16])
{
    struct sockaddr_storage peer = {0};
    socklen_t length = sizeof(peer);

    memset(address, 0, 16);
    if (getpeername(tcp_of(transport)->fds[link], (struct sockaddr *)&peer, &length) != 0) {
        return;
    }
    if (peer.ss_family == AF_INET6) {
        memcpy(address, &((struct sockaddr_in6 *)&peer)->sin6_addr, 16);
    } else if (peer.ss_family == AF_INET) {
        address[10] = address[11] = 0xff;
        memcpy(address + 12, &((struct sockaddr_in *)&peer)->sin_addr, 4);
    }
}

static void tcp_wake(struct dlk_transport *transport)
{
    const uint64_t one = 1;
    /* It fails only when 2^64 wake-ups are unread; then the edge was long since given. */
    ssize_t written = write(tcp_of(transport)->wake_up, &one, sizeof(one));

    (void)written;
}

static void close_fd(int *fd)
{
    if (*fd != NO_FD) {
        close(*fd);
        *fd = NO_FD;
    }
}

static void tcp_free(struct dlk_transport *transport)
{
    struct tcp *tcp = tcp_of(transport);

    for (uint32_t link = 0; link < tcp->links; link++) {
        shut(&tcp->fds[link]);
    }
    if (tcp->given) {
        close_fd(&tcp->listener);
    }
    shut(&tcp->listener);
    close_fd(&tcp->epoll);
    close_fd(&tcp->wake_up);
    free(tcp);
}

static const struct dlk_transport_calls tcp_calls = {
    .wait = tcp_wait,
    .accept = tcp_accept,
    .receive = tcp_receive,
    .send = tcp_send,
    .close = tcp_close,
    .peer = tcp_peer,
    .wake = tcp_wake,
    .free = tcp_free,
};

/* The bound, listening socket; or NO_FD, and *error is an errno. */
static int listen_on(const char *host, uint32_t port, int *error)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *address = NULL;
    const int on = 1;
    char service[16];
    int fd;

    snprintf(service, sizeof(service), "%u", port);
    if (port > 65535 || getaddrinfo(host, service, &hints, &address) != 0) {
        *error = EINVAL;
        return NO_FD;
    }
    fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        if (bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) {
            freeaddrinfo(address);
            return fd;
        }
    }
    *error = errno;
    close_fd(&fd);
    freeaddrinfo(address);
    return NO_FD;
}

/* 0: of a family that has none. */
static uint32_t bound_port(int fd)
{
    struct sockaddr_storage own = {0};
    socklen_t length = sizeof(own);

    getsockname(fd, (struct sockaddr *)&own, &length);
    if (own.ss_family == AF_INET6) {
        return ntohs(((struct sockaddr_in6 *)&own)->sin6_port);
    }
    return own.ss_family == AF_INET ? ntohs(((struct sockaddr_in *)&own)->sin_port) : 0;
}

/* A listening socket that somebody else has made, and may have elsewhere too. */
static int listen_at(int fd, int *error)
{
    int flags = fcntl(fd, F_GETFL);
    int listening = 0;
    socklen_t length = sizeof(listening);

    if (flags >= 0 && getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) == 0) {
        if (listening == 0) {
            errno = EINVAL;
        } else if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0) {
            return fd;
        }
    }
    *error = errno;
    return NO_FD;
}

static bool watch_all(struct tcp *tcp)
{
    tcp->epoll = epoll_create1(EPOLL_CLOEXEC);
    tcp->wake_up = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return tcp->epoll >= 0 && tcp->wake_up >= 0
           && watch(tcp, tcp->listener, EPOLLIN, LISTENER) == 0
           && watch(tcp, tcp->wake_up, EPOLLIN, WAKE_UP) == 0;
}

struct dlk_transport *dlk_transport_tcp_new(const char *host, uint32_t *port, int listen_fd,
                                            uint32_t links, int *error)
{
    struct tcp *tcp = malloc(sizeof(*tcp) + links * sizeof(tcp->fds[0]));

    if (tcp == NULL) {
        *error = ENOMEM;
        return NULL;
    }
    tcp->base = (struct dlk_transport){.calls = &tcp_calls};
    tcp->links = links;
    for (uint32_t link = 0; link < links; link++) {
        tcp->fds[link] = NO_FD;
    }
    tcp->wake_up = NO_FD;
    tcp->epoll = NO_FD;
    tcp->given = listen_fd != NO_FD;
    tcp->listener = tcp->given ? listen_at(listen_fd, error) : listen_on(host, *port, error);
    if (tcp->listener == NO_FD) {
        tcp_free(&tcp->base);
        return NULL;
    }
    if (!watch_all(tcp)) {
        *error = errno;
        if (tcp->given) {
            tcp->listener = NO_FD;
        }
        tcp_free(&tcp->base);
        return NULL;
    }
    if (*port == 0) {
        *port = bound_port(tcp->listener);
    }
    return &tcp->base;
}

int dlk_transport_tcp_watch(struct dlk_transport *tcp, int fd, uint32_t number)
{
    return watch(tcp_of(tcp), fd, EPOLLIN, WATCHED + number) == 0 ? 0 : errno;
}

void dlk_transport_tcp_unwatch(struct dlk_transport *tcp, int fd)
{
    epoll_ctl(tcp_of(tcp)->epoll, EPOLL_CTL_DEL, fd, NULL);
}
