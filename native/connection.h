/*
 * A client's data connection: frames out and in, whatever carries them. A stream (TCP, or a socket
 * that was handed over) or a queue pair. It knows nothing of what frames mean, and holds no lock.
 *
 * Two roles use it, each held by at most one thread at a time, both at once if that suits: the
 * sender (ready, send) and the reader (receive, sleep). shut may come from any thread, but for free
 * after all others. What is
 * returned below 0 is an errno: EAGAIN, not now; EINTR, a signal; anything else, it has failed.
 */
#ifndef DLOCK_CONNECTION_H
#define DLOCK_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "abi_client.h"

enum {
    DLK_SLEEP_MS = 40 /* one sleep for answers, so that a slice is kept if one follows another */
};

struct dlk_connection;

struct dlk_connection_calls {
    /* Is it connected, with room to send? 0, or below; sleeps for it, at most sleep_ns. */
    int (*ready)(struct dlk_connection *connection, uint64_t sleep_ns);
    /* Never waits. How many bytes it took, or below. */
    ssize_t (*send)(struct dlk_connection *connection, const void *frames, size_t length);
    /* Never waits. How many bytes came, 0: the other end has ended it, or below. */
    ssize_t (*receive)(struct dlk_connection *connection, void *frames, size_t room);
    /* The same, but sleeps until something has come, or with `push` until there is room to send
     * (EAGAIN), at most sleep_ns and at most DLK_SLEEP_MS. */
    ssize_t (*sleep)(struct dlk_connection *connection, void *frames, size_t room,
                     uint64_t sleep_ns, bool push);
    /* Ends it: wakes the reader. */
    void (*shut)(struct dlk_connection *connection);
    /* When nobody is in any other call. Tells the other end; that may take it a moment, so nobody
     * should hold a mutex. */
    void (*free)(struct dlk_connection *connection);

    /* Only of one that is polled. */
    /* The reader, or anybody while there is none: from now on the descriptor becomes readable when
     * something has come since; whoever is to sleep on it looks once more after this. */
    void (*arm)(struct dlk_connection *connection);
    /* The reader, or anybody while there is none: if it is readable, it is no more, nor armed. */
    void (*clear)(struct dlk_connection *connection);
    /* Should send be called with nothing, since the other end waits to be told what was taken? */
    bool (*owes)(const struct dlk_connection *connection);
    /* Is an operation on this object under way? Any thread. */
    bool (*operates)(const struct dlk_connection *connection, uint32_t object_id);
};

/* The first member of every connection. */
struct dlk_connection {
    const struct dlk_connection_calls *calls;
    int fd; /* what to watch; readable when something has come */
    /* Its completions are polled: to receive is no system call, room to send comes with what is
     * received, and the descriptor tells nothing but what came after it was armed. */
    bool polled;
    bool one_sided;         /* it carries operations on objects out by itself, */
    uint64_t live_until_ns; /* if they are sent before; the sender's */
    /* The reader's, of one that is polled. */
    bool armed;        /* or readable */
    bool failed;       /* nothing comes any more after what was received */
    uint32_t progress; /* completions that were taken, frames among them or not */
};

/* A TCP connection that is being made, or a connected stream socket, which is the connection's from
 * now on. NULL: no such address, refused at once, or no memory; the socket is closed. */
struct dlk_connection *dlk_stream_open(const char *host, uint32_t port);
struct dlk_connection *dlk_stream_adopt(int fd);

/* The queue pair that no client has got yet, connected to link->peer. It is the connection's from
 * now on; NULL: it cannot be, and is freed. */
struct dlk_connection *dlk_queue_pair_connect(struct dlk_queue_pair *pair,
                                              const struct dlk_link *link);

#endif
