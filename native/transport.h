/*
 * What carries bytes between the plane and its clients: a handful of calls, and what each promises.
 * A transport knows links and bytes; frames, sessions and the engine are not its business.
 *
 * A link is a connection. Its number is the plane's choice (below `links` of the transport's
 * constructor) and may be used again after close. All calls but `wake` belong to the plane thread;
 * none but `wait` ever blocks.
 *
 * Readiness is told once. A link that wait reported is the plane's to receive from until there is
 * no more (a count below `room`, or DLK_TRANSPORT_AGAIN); until then wait need not report it again.
 * A link whose send took less than it was given is reported with DLK_READY_SEND when it can take
 * more. With verbs that means: no credit or no place in the send queue; a completion gives it back.
 * A receive of verbs hands out what completed receive buffers hold, and posts them again.
 */
#ifndef DLOCK_TRANSPORT_H
#define DLOCK_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DLK_TRANSPORT_AGAIN = -1, DLK_TRANSPORT_GONE = -2, DLK_TRANSPORT_EXHAUSTED = -3 };

enum dlk_ready_flag {
    DLK_READY_RECEIVE = 1,
    DLK_READY_SEND = 2,
    DLK_READY_HANG_UP = 4, /* the peer's end is in sight: receive until GONE */
    DLK_READY_ACCEPT = 8,  /* `link` means nothing: accept until AGAIN */
    DLK_READY_WATCHED = 16 /* of dlk_transport_tcp_watch alone: `link` is its number */
};

struct dlk_ready {
    uint32_t link;
    uint32_t flags; /* enum dlk_ready_flag */
};

struct dlk_transport;

struct dlk_transport_calls {
    /* Waits until a link is ready, somebody called wake, a signal came or the time is over,
     * whichever is first; 0 only looks, UINT64_MAX has no end. Returns how many it wrote; a full
     * `out` means that there may be more. */
    size_t (*wait)(struct dlk_transport *transport, uint64_t timeout_ns, struct dlk_ready *out,
                   size_t room);
    /* Makes the next peer that asks link number `link`: 0; nobody: AGAIN; no descriptor or memory
     * for it: EXHAUSTED (ask again later: readiness was told once). */
    int (*accept)(struct dlk_transport *transport, uint32_t link);
    /* Takes out what lies there, at most `room` bytes (more than 0). Never returns 0: AGAIN; GONE
     * when the peer has left or the link broke (close it). */
    ptrdiff_t (*receive)(struct dlk_transport *transport, uint32_t link, void *out, size_t room);
    /* Takes as many of the bytes as it can without waiting; they are copied or gone when it
     * returns. 0: none now; GONE: the link broke (close it). */
    ptrdiff_t (*send)(struct dlk_transport *transport, uint32_t link, const void *bytes,
                      size_t length);
    /* Ends the link. What was sent before is still delivered if the peer takes it; what was not
     * received is dropped. */
    void (*close)(struct dlk_transport *transport, uint32_t link);
    /* The peer's IPv6 address (IPv4 mapped), for the log; zeros where it is not known. */
    void (*peer)(struct dlk_transport *transport, uint32_t link, uint8_t address[16]);
    /* Ends a wait, the next one if none runs. Any thread. */
    void (*wake)(struct dlk_transport *transport);
    /* Closes everything. */
    void (*free)(struct dlk_transport *transport);
};

/* The first member of every transport. */
struct dlk_transport {
    const struct dlk_transport_calls *calls;
    /* Written by wait: it has looked at some of its links only, since the others cost more to look
     * at, and will come to them within a few looks. */
    bool partial;
};

/* Listens on a numeric IPv4 or IPv6 address; port 0: any, `port` says which. Or, unless listen_fd
 * is -1, at that listening stream socket of any family, and closes it in the end; `port` then stays
 * what it is, and is the socket's if it was 0 and there is one. NULL: *error is an errno, and
 * listen_fd is the caller's still. */
struct dlk_transport *dlk_transport_tcp_new(const char *host, uint32_t *port, int listen_fd,
                                            uint32_t links, int *error);

/* Its wait tells of this descriptor too, by an edge: READY_WATCHED with this number, 0 or 1. What
 * is built around a TCP transport sleeps in its wait. 0, or an errno. */
enum { DLK_TRANSPORT_WATCHED_MAX = 2 };
int dlk_transport_tcp_watch(struct dlk_transport *tcp, int fd, uint32_t number);
void dlk_transport_tcp_unwatch(struct dlk_transport *tcp, int fd);

#endif
