/*
 * The client's shell: one connection that any number of threads share (docs/client.md). It has the
 * clock, the connection, the waiting; what a reply means is the book's to decide.
 *
 * Everything in struct dlk_client is guarded by its mutex, except what the holder of a role has to
 * itself while it is outside: the leader the inbox, the sender the outbox `sending`. Nobody holds
 * the mutex in a system call that can block. Lock order: the keeper's list, then a client.
 */
#ifndef DLOCK_CLIENT_H
#define DLOCK_CLIENT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

#include "adaptive.h"
#include "client_book.h"
#include "clock.h"
#include "connection.h"
#include "abi_client.h"

enum {
    DLK_INBOX_BYTES = 65536,
    DLK_BACKLOG_BYTES_MAX = 1 << 20, /* with more than this unsent, callers wait */
    DLK_WAKES_MAX = 64
};

/* A thread that waits, on its own stack. */
struct dlk_waiter {
    struct dlk_waiter *next;
    struct dlk_waiter *previous;
    uint32_t remaining; /* of its calls, those that have not ended */
    bool blocked;       /* the next of its calls was put off */
    bool settling;      /* waits for debts, not for calls */
    struct dlk_waiter *next_collecting; /* waits for any posted call to end */
    _Atomic uint32_t word; /* enum waiter_word: what a follower sleeps on */
};

struct dlk_outbox {
    unsigned char *data;
    size_t length;
    size_t sent;
    size_t room;
};

/* A connection that is not yet proven. */
struct dlk_attaching {
    bool busy; /* a thread is in dlk_client_attach */
    struct dlk_connection *connection; /* NULL: none */
    uint32_t attach;
    size_t sent;
    size_t received;
    uint64_t deadline_ns;
    uint64_t sent_ns;
    unsigned char reply[DLK_FRAME_BYTES];
};

/* Who collects the calls that nobody waits for (client_collect.c). */
struct dlk_collect {
    struct dlk_waiter *waiting; /* threads in dlk_client_collect_wait that nobody has woken */
    uint32_t active;            /* threads that will take what has ended before they leave */
    uint32_t link_events;       /* what the set watches of the connection; 0: it is not in it */
    int set_fd;                 /* epoll; -1: nobody has asked for it */
    int bell_fd;
    bool rung; /* the bell has a value, or will have */
    bool ring; /* it is to be rung once the mutex is free */
};

struct dlk_client {
    pthread_mutex_t mutex;
    pthread_cond_t roles_free; /* neither leader nor sender */
    uint32_t process;          /* the process generation that it belongs to */
    struct dlk_client_config config;
    uint32_t slice_ms; /* DLK_WAIT_SLICE_MS; a test that looks for missed wake-ups makes it long */
    struct dlk_book book;
    struct dlk_adaptive adaptive;
    struct dlk_connection *connection; /* NULL: none; it stays until no role uses it */
    struct dlk_connection *former;     /* to be freed once the mutex is free */
    bool up;     /* it is proven, and has not failed */
    bool leader; /* a thread is outside, reading */
    bool sender; /* a thread is outside, sending */
    struct dlk_outbox filling;
    struct dlk_outbox sending;
    unsigned char *inbox;
    size_t inbox_length;
    struct dlk_waiter *waiters;
    struct dlk_waiter *waiters_last;
    uint32_t waiters_blocked;
    uint32_t waiters_settling;
    uint32_t wakes;
    _Atomic uint32_t *wake[DLK_WAKES_MAX]; /* to be woken once the mutex is free */
    struct dlk_collect collect;
    struct dlk_attaching attaching;
    struct dlk_call ping; /* the keeper's */
    uint64_t ping_sent_ns;
    uint64_t retried_ns; /* when it sent again last what the server was not ready for */
    uint64_t keep_at_ns; /* when the keeper means to come again; whoever makes it sooner tells it */
    uint64_t unix_sampled_ns;
    struct dlk_client *keeper_next; /* guarded by the keeper's list */
    struct dlk_client *keeper_previous;
    size_t keeper_place; /* among what the keeper watches; 0: it does not */
    bool keeper_readable;
    bool keeper_watches; /* the connection, until the keeper comes again */
};

/* Does somebody who does not read rely on the connection's descriptor? */
static inline bool dlk_client_watched(const struct dlk_client *client)
{
    return client->collect.link_events != 0 || client->keeper_watches;
}

/* client.c */
bool dlk_client_forked(const struct dlk_client *client);
void dlk_client_submit(struct dlk_client *client, struct dlk_call *call, uint64_t now_ns);
void dlk_client_complete(struct dlk_client *client, struct dlk_call *call);
void dlk_client_sample_unix_time(struct dlk_client *client, uint64_t now_ns);
/* The status to return, which the caller then has had. */
int dlk_client_tell(struct dlk_call *call);
/* Something has ended: who was put off may try again. */
void dlk_go_on(struct dlk_client *client, uint64_t now_ns);

/* client_wire.c: what goes out and comes in. All under the mutex, except _receive. */
bool dlk_wire_put(struct dlk_client *client, const struct dlk_request *request);
/* What is owed, then the waits that were parked. */
void dlk_wire_put_debts(struct dlk_client *client, uint64_t now_ns);
/* Renewals and verifications that are due. True: there were some. */
bool dlk_wire_put_renewals(struct dlk_client *client, uint64_t now_ns);
size_t dlk_wire_backlog(const struct dlk_client *client);
/* Sends what it can without waiting; lets the mutex go meanwhile. */
void dlk_wire_flush(struct dlk_client *client);
/* The leader only, without the mutex: bytes, 0 at the end of the connection, or -errno. Spins for
 * spin_ns, then sleeps; -EAGAIN at until_ns or after DLK_SLEEP_MS, or when push and there is
 * room to send. */
ssize_t dlk_wire_receive(struct dlk_client *client, uint64_t spin_ns, uint64_t now_ns,
                         uint64_t until_ns, bool push, bool *slept);
/* What dlk_wire_receive returned: replies go to their calls, a failure breaks the connection. */
void dlk_wire_take(struct dlk_client *client, ssize_t received, uint64_t now_ns);
/* The connection has failed, which is told; or another is to take its place, or with `over` none:
 * its user has given it up. Every call that was sent ends, but for waits that are kept, unless it
 * is over. */
void dlk_wire_break(struct dlk_client *client, uint64_t now_ns);
void dlk_wire_end(struct dlk_client *client, bool over, uint64_t now_ns);
/* The caller was leader or sender and is no longer. */
void dlk_wire_role_free(struct dlk_client *client);

/* client_wait.c: leader and followers. All under the mutex, and let it go while they wait. */
void dlk_client_lock(struct dlk_client *client);
void dlk_client_unlock(struct dlk_client *client);
void dlk_waiter_wake(struct dlk_client *client, struct dlk_waiter *waiter);
void dlk_waiters_wake_blocked(struct dlk_client *client);
void dlk_waiters_wake_settled(struct dlk_client *client);
/* Waits for the calls, at most a slice. True: all have ended. */
bool dlk_wait_calls(struct dlk_client *client, struct dlk_call *calls, size_t count,
                    uint64_t now_ns);
/* Waits until no debt is under way, or until_ns. */
void dlk_wait_settled(struct dlk_client *client, uint64_t now_ns, uint64_t until_ns);
/* Waits until no operation of the connection's own on this object is under way, or until_ns. */
bool dlk_wait_operated(struct dlk_client *client, uint32_t object_id, uint64_t now_ns,
                       uint64_t until_ns);
/* Waits until a posted call has ended, or until_ns, or a signal. */
void dlk_wait_posted(struct dlk_client *client, uint64_t now_ns, uint64_t until_ns);
/* Reads what is there, if nobody reads. True: there may be more. */
bool dlk_look(struct dlk_client *client, uint64_t now_ns);
/* Somebody who waits must read, if nobody does. If nobody waits either, a connection that is polled
 * must tell those who watch it. */
void dlk_pass_lead(struct dlk_client *client);
/* Submits the calls in order until one is put off. True: none is left. */
bool dlk_submit_more(struct dlk_client *client, struct dlk_call *calls, size_t count,
                     uint64_t now_ns);
/* Ends those of the calls that were put off and whose deadline has come; all such calls. */
void dlk_expire_blocked(struct dlk_client *client, struct dlk_call *calls, size_t count,
                        uint64_t now_ns);
void dlk_expire(struct dlk_client *client, struct dlk_call *calls, size_t count,
                uint64_t now_ns);

/* client_collect.c. All under the mutex, except dlk_collect_ring. */
void dlk_collect_init(struct dlk_collect *collect);
void dlk_collect_free(struct dlk_collect *collect);
/* The bell that is to be rung once the mutex is free, or -1. */
int dlk_collect_take_ring(struct dlk_collect *collect);
void dlk_collect_ring(int bell_fd);
/* The connection is there, or is going. False, errno: it can not be watched. */
bool dlk_collect_link_up(struct dlk_client *client);
void dlk_collect_link_down(struct dlk_client *client);
/* Bytes stay unsent, or no longer. */
void dlk_collect_want_room(struct dlk_client *client, bool wanted);
/* A posted call has ended. */
void dlk_posted_complete(struct dlk_client *client, struct dlk_call *call);
/* Begins the posted calls that were put off, as far as that is possible. */
void dlk_posted_go_on(struct dlk_client *client, uint64_t now_ns);

/* client_link.c */
/* Ends the connection and waits until no thread uses it. */
void dlk_link_drop(struct dlk_client *client, bool over);
/* Frees a connection that nobody uses, once the mutex is free. */
void dlk_link_discard(struct dlk_client *client, struct dlk_connection *connection);

/* client_notice.c */
/* Takes the book's news into the queue. True: there were notices among it. */
bool dlk_notices_put(struct dlk_book *book);
/* Somebody is to read the queue; without any mutex. */
void dlk_notices_ring(void);
void dlk_notices_after_fork(void);

/* keeper.c */
void dlk_keeper_add(struct dlk_client *client);
void dlk_keeper_remove(struct dlk_client *client);
void dlk_keeper_poke(void); /* something is due sooner than it knew, or there is a connection */
void dlk_keeper_after_fork(void);

#endif
