/*
 * The floor: a bare server that sends back whatever comes. What a lock server costs beyond it is
 * the lock server's; what it costs itself is the kernel's and the machine's.
 */
#include "bench.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER_BYTES = 65536, EVENTS = 64, PATIENCE_MS = 30000 };

/* Sends all of it; a peer that reads nothing is waited for. */
static bool send_whole(int fd, const unsigned char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(fd, bytes, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            struct pollfd writable = {.fd = fd, .events = POLLOUT};
            (void)poll(&writable, 1, PATIENCE_MS);
            continue;
        }
        if (sent < 0 && errno != EINTR) {
            return false;
        }
        if (sent > 0) {
            bytes += sent;
            length -= (size_t)sent;
        }
    }
    return true;
}

/* Echoes what lies there. False: the peer has left. */
static bool echo_once(int fd, unsigned char *buffer, int flags)
{
    ssize_t received = recv(fd, buffer, BUFFER_BYTES, flags);
    if (received < 0) {
        return errno == EAGAIN || errno == EINTR;
    }
    return received > 0 && send_whole(fd, buffer, (size_t)received);
}

static void echo_many(int poll_set, uint32_t connections, uint32_t wait_mode,
                      unsigned char *buffer)
{
    int timeout_ms = wait_mode == DLK_WAIT_POLL ? 0 : PATIENCE_MS;
    while (connections > 0) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(poll_set, events, EVENTS, timeout_ms);
        for (int i = 0; i < count; i++) {
            if (!echo_once(events[i].data.fd, buffer, MSG_DONTWAIT)) {
                close(events[i].data.fd);
                connections--;
            }
        }
    }
}

static int accept_one(int listener)
{
    struct pollfd readable = {.fd = listener, .events = POLLIN};
    int one = 1;
    if (poll(&readable, 1, PATIENCE_MS) <= 0) {
        return -1;
    }
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0) {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
    return fd;
}

int dlk_bench_echo(int32_t listener, uint32_t connections, uint32_t wait_mode)
{
    unsigned char *buffer = malloc(BUFFER_BYTES);
    int poll_set = epoll_create1(EPOLL_CLOEXEC);
    int last = -1;
    int failed = buffer == NULL ? ENOMEM : poll_set < 0 ? errno : 0;
    for (uint32_t i = 0; failed == 0 && i < connections; i++) {
        last = accept_one(listener);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = last};
        if (last < 0 || epoll_ctl(poll_set, EPOLL_CTL_ADD, last, &event) != 0) {
            failed = errno != 0 ? errno : ETIMEDOUT;
        }
    }
    if (failed == 0 && connections == 1) {
        /* The least there is: one system call in, one out. */
        while (echo_once(last, buffer, wait_mode == DLK_WAIT_POLL ? MSG_DONTWAIT : 0)) {
        }
        close(last);
    } else if (failed == 0) {
        echo_many(poll_set, connections, wait_mode, buffer);
    }
    if (poll_set >= 0) {
        close(poll_set);
    }
    free(buffer);
    return failed;
}
