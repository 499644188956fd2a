/*
 * The client library as Python sees it: calls, claims, notices. The third part of what
 * dlock_abi.h begins; the same rules.
 */
#ifndef DLOCK_ABI_CLIENT_H
#define DLOCK_ABI_CLIENT_H

#include "abi_verbs.h"

enum dlk_verb {
    DLK_VERB_TRYLOCK = 1,
    DLK_VERB_LOCK,
    DLK_VERB_UNLOCK,
    DLK_VERB_EXTEND,
    DLK_VERB_FETCH_ADD,
    DLK_VERB_COMPARE_SWAP,
    DLK_VERB_READ,
    DLK_VERB_PING,
    DLK_VERB_LOOK /* the state as last seen; asks and takes nothing, SUCCESS. What trylock, lock
                   * with expire_time 0 mean in the mirror; looked at before mode and ticket. A
                   * TRYLOCK or LOCK with lease_ms 0 takes a hold without a lease. */
};

struct dlk_waiter;

/* One operation: what is asked, what came of it. The caller owns it, zeroed at first, and keeps it
 * alive and in place until its status is not PENDING or dlk_client_cancel returned; it may be used
 * again then. Only the "in" fields need to be set. */
struct dlk_call {
    /* in */
    uint32_t verb;     /* enum dlk_verb */
    uint32_t lock_id;  /* or object id */
    uint64_t owner;
    uint32_t mode;
    uint32_t lease_ms; /* what the user asked for; RW never sends it */
    uint32_t wait_ms;
    uint32_t flags;    /* enum dlk_request_flag */
    uint64_t operand;  /* addend, compare; EXTEND: the token of the hold that is meant, 0: any */
    uint64_t swap;
    uint64_t cookie;   /* the caller's own; dlk_client_collect returns it */
    uint32_t renew;    /* TRYLOCK, LOCK with a lease: 1: the keeper extends it while it is held */
    uint32_t epoch;    /* objects: of the primary at which it was got: at another one this id may
                        * be another object's (OBJECT_NOT_GET); 0: not looked at */
    /* out: the state of the hold afterwards, as this client knows it */
    int32_t status;    /* enum dlk_status */
    uint32_t result;   /* enum dlk_result of the reply; DLK_RESULT_COUNT: decided here */
    uint64_t value;    /* objects; DEADLOCK: the cycle's number; UNLOCK: left_ms as it was before */
    uint64_t token;
    uint64_t time_out; /* Unix time, seconds; 0: nothing held */
    uint32_t kind;
    uint32_t holder;   /* own client id while held, else 0 */
    uint32_t count;    /* re-entries, the first included */
    uint32_t held_mode;
    uint32_t readers;
    uint32_t sent;     /* 1: the server may have had the request; 0: it certainly has not */
    uint16_t n_exclusive;
    uint16_t n_shared;
    uint16_t m_exclusive;
    uint16_t m_shared;
    uint64_t left_ms; /* how long the hold's authority (lease or session) still runs by this
                       * client's clock, rounded down; 0: nothing held, or suspended */
    /* private to the client library */
    uint32_t slot;
    uint32_t phase;
    uint64_t deadline_ns;
    struct dlk_waiter *waiter;
    struct dlk_call *next;          /* posted: in the list of its place */
    struct dlk_call *previous;
    struct dlk_call *watched_next;  /* posted: in the wheel of deadlines */
    struct dlk_call **watched_from; /* what points to it there; NULL: it is not in it */
    uint32_t place;                 /* 0: not posted, or collected */
};

struct dlk_client_config {
    uint32_t wait_mode;        /* enum dlk_wait_mode */
    uint32_t reply_timeout_ms;
    uint32_t spin_us;          /* adaptive: the longest spin; 0: the default */
    uint64_t number;           /* how notices name this client; 0: it gets none */
    uint32_t keep_waits;       /* 1: a LOCK that waits outlives its connection: it stays PENDING,
                                * and is sent again over the next one */
};

enum dlk_link_flag {
    DLK_LINK_ADOPT = 1, /* fd is used in place of a connection to host and port */
    DLK_LINK_NOWAIT = 2, /* attach only looks; go on when dlk_client_attach_fd says so */
    DLK_LINK_VERBS = 4,  /* queue_pair, connected to peer, is used in place of a connection */
    DLK_LINK_OPERATES = 8 /* ADOPT: who has the other end of fd carries operations on objects out by
                           * itself: requests whose `reserved` has bit 32, and the key below it */
};

/* What the control plane hands out for a data connection. */
struct dlk_link {
    char host[64];      /* numeric */
    uint32_t port;
    uint32_t client_id;
    uint32_t session_slot;
    uint32_t attach;
    uint32_t epoch;
    uint32_t session_ttl_ms;
    uint32_t max_lease_ms;
    uint32_t timeout_ms; /* of connecting and attaching together */
    int32_t fd;          /* ADOPT: a connected stream socket. It is the client's from now on,
                          * whatever becomes of it; -1 when the attach that got it goes on */
    uint32_t flags;      /* enum dlk_link_flag */
    uint8_t secret[16];
    struct dlk_queue_pair *queue_pair; /* VERBS: of dlk_queue_pair_new, not yet connected. It is the
                                        * client's from now on, whatever becomes of it; NULL when
                                        * the attach that got it goes on */
    struct dlk_verbs_address peer;     /* VERBS: the other end */
};

/* What a client does is in docs/client.md. Any thread may call anything at any time; statuses are
 * those of enum dlk_status. PENDING always means: nothing is wrong, call again (the wait was
 * interrupted by a signal, or DLK_WAIT_SLICE_MS are over). FORKED: the client is the parent's. */
struct dlk_client;

struct dlk_client *dlk_client_new(const struct dlk_client_config *config);
void dlk_client_free(struct dlk_client *client);
/* Connects; an older connection ends first, and with it every pending call (BAD_RESPONSE) but waits
 * that are kept. SUCCESS, PENDING (call again with the same link), BAD_RESPONSE (no answer in
 * timeout_ms, or refused). */
int dlk_client_attach(struct dlk_client *client, const struct dlk_link *link);
/* What is to be watched while an attach with NOWAIT is PENDING, -1: none is. *for_room: 1: until it
 * can be written to, 0: until it is readable. It is closed when the attach ends, by whomever: watch
 * a duplicate if that can be another than you. */
int dlk_client_attach_fd(struct dlk_client *client, int *for_room);
/* Another connection is to take the place of this one, or of the attempt to get one: it ends as one
 * that has failed, but nothing is told. */
void dlk_client_drop_link(struct dlk_client *client);
/* Gives the connection up for good: every pending call ends, BAD_RESPONSE. */
void dlk_client_detach(struct dlk_client *client);
int dlk_client_attached(struct dlk_client *client); /* 1: a living connection */
/* Debts: unlocks and cancels without an answer. Sends again those that need it and waits for the
 * answers, at most timeout_ms and at most a slice. SUCCESS: none left; PENDING; NOT_READY: the
 * server does not serve yet, they are kept; BAD_RESPONSE: no connection. */
int dlk_client_settle(struct dlk_client *client, uint32_t timeout_ms);
/* The same without waiting: sends what is owed; looks for the answers. */
int dlk_client_settle_start(struct dlk_client *client);
int dlk_client_settle_poll(struct dlk_client *client);
uint32_t dlk_client_debts(struct dlk_client *client);
/* Makes (lock, owner) known, not held; known already: takes the slot, keeps the state. */
int dlk_client_add_lock(struct dlk_client *client, uint32_t lock_id, uint32_t slot, uint32_t kind,
                        uint64_t owner);
/* May it be released? LOCK_NOT_GET, ERROR (held), TICKET_TO_UNLOCK, EASYNC (an operation runs on
 * it), FAIL (not got any more, and a hold of it was lost by that: see dlk_client_seal), or SUCCESS.
 * Changes nothing. */
int dlk_client_may_drop_lock(struct dlk_client *client, uint32_t lock_id, uint64_t owner);
/* Forgets it, if it may; with force whatever its state. One that the primary does not know is
 * forgotten with whatever was to be said. Asks nothing of the server. */
int dlk_client_drop_lock(struct dlk_client *client, uint32_t lock_id, uint64_t owner, int force);
/* While its release is under way: no call finds it any more (LOCK_NOT_GET), but it is as it was
 * when it is added again; to be dropped by force when the server has released it. Statuses as
 * without force; only with SUCCESS it was set aside. */
int dlk_client_set_lock_aside(struct dlk_client *client, uint32_t lock_id, uint64_t owner);
int dlk_client_add_object(struct dlk_client *client, uint32_t object_id, uint32_t slot);
/* With this key a connection over verbs operates on the object by itself, without the server's
 * processor, for as long as the session is live by the client's own clock. The object must have
 * been added; a new epoch, and adding it again, voids the key. 0: it has none any more; to be said
 * before the object is released or destroyed, since an operation with a key that is not valid any
 * more ends the connection. PENDING: operations with the former key are still under way, call
 * again. OBJECT_NOT_GET, ENOMEM: nothing has changed. */
int dlk_client_object_key(struct dlk_client *client, uint32_t object_id, uint32_t key);
int dlk_client_drop_object(struct dlk_client *client, uint32_t object_id);
/* call: submits and waits; wait: goes on waiting; start: submits; poll: looks, never waits. Each
 * returns the call's status. call and wait give up after reply_timeout_ms (BAD_RESPONSE); who
 * polls keeps the time, and cancels. */
int dlk_client_call(struct dlk_client *client, struct dlk_call *call);
int dlk_client_wait(struct dlk_client *client, struct dlk_call *call);
int dlk_client_start(struct dlk_client *client, struct dlk_call *call);
int dlk_client_poll(struct dlk_client *client, struct dlk_call *call);
/* Undoes a call, whatever became of it meanwhile; its caller was interrupted. A lock or ticket that
 * it asked for is given back, also one that was granted in this moment; the count of a re-entry is
 * undone; an unlock is kept as a debt until it is answered. */
void dlk_client_cancel(struct dlk_client *client, struct dlk_call *call);
/* Carries out the items in order, as single calls would be, and waits; each has its own status.
 * SUCCESS: every item is done; PENDING: go on with dlk_client_batch_wait; EINVAL: more than
 * DLK_INFLIGHT_MAX / 2 items. To give up, cancel every item. */
int dlk_client_batch(struct dlk_client *client, struct dlk_call *calls, size_t count);
int dlk_client_batch_wait(struct dlk_client *client, struct dlk_call *calls, size_t count);
/* Submits what it can without waiting; go on with batch_wait or batch_poll. */
int dlk_client_batch_start(struct dlk_client *client, struct dlk_call *calls, size_t count);
int dlk_client_batch_poll(struct dlk_client *client, struct dlk_call *calls, size_t count);

/* ---- Calls that no thread waits for: futures, asyncio ---- */

/* What has become of a posted call; the rest is in the call itself. */
struct dlk_ended {
    uint64_t cookie;
    int32_t status;
    uint32_t result;
};

/* Starts a call that nobody waits for. PENDING: collect will return it, once; anything else: it has
 * ended already, and collect will not. EASYNC: it is posted already. Calls that are put off, since
 * another runs on their hold, keep their order. The frame goes out with dlk_client_flush or the
 * next collect, whichever is first. The call stays in place until it was collected or cancelled
 * (dlk_client_cancel, as any other: it is never collected then). Nobody waits for it by wait or
 * poll. A connection that ends, ends it: BAD_RESPONSE, to be collected; unless it is a wait that is
 * kept. */
int dlk_client_post(struct dlk_client *client, struct dlk_call *call);
/* SUCCESS: nothing is left to be sent; PENDING: the connection takes no more now, the next collect
 * goes on. Never waits. */
int dlk_client_flush(struct dlk_client *client);
/* Reads what is there (unless a thread reads already), begins what was put off, ends the posted
 * calls that got no answer in time (BAD_RESPONSE), sends, and writes the posted calls that have
 * ended. Never waits. Returns how many it wrote; when that is `room`, there may be more. To be
 * called when dlk_client_collect_fd is readable, and every 0.5 s for the deadlines. */
size_t dlk_client_collect(struct dlk_client *client, struct dlk_ended *out, size_t room);
/* The same, but waits for the first to end, at most timeout_ms and at most a slice. 0: none yet. */
size_t dlk_client_collect_wait(struct dlk_client *client, struct dlk_ended *out, size_t room,
                               uint32_t timeout_ms);
/* One descriptor for the client's life, readable while collect has something to do, whichever
 * connection the client has. Made when it is first asked for; -1 and errno: it can not be, or the
 * client is the parent's (ECHILD). To be polled only; the client closes it. */
int dlk_client_collect_fd(struct dlk_client *client);

/* ---- A new primary ---- */

/* It knows nothing but what its clients claim. A client that keeps its waits does so in this order:
 * claims, claimed for each, seal, attach, verify; another may attach first. */

/* What this client has got and holds: one claim for each (lock, owner), all fields but `size` of a
 * semaphore (0), which the book does not know. A wait that is parked and has a place in the queue
 * is QUEUED. Returns how many there are, writes at most room. Of a client that keeps its waits it
 * ends the connection first, since what the former server still granted would be in no claim; and
 * what was said to earlier claims counts no more. */
size_t dlk_client_claims(struct dlk_client *client, struct dlk_claim *out, size_t room);
/* What the new primary said to them, an enum dlk_status each. SUCCESS: it knows the lock, and the
 * hold, ticket or place that was claimed. A wait with a place then awaits its grant. Anything else:
 * a hold is lost (LOST is told), a ticket is gone. Who has given one up meanwhile is left alone. */
void dlk_client_claimed(struct dlk_client *client, const struct dlk_claim *claims,
                        const int32_t *statuses, size_t count);
/* Before ReinitDone: locks of which no claim was answered SUCCESS are not got any more, and never
 * named to the server again: it gives out new ids above those that were claimed. The next call on
 * such a (lock, owner) is LOCK_NOT_GET, or FAIL if a hold of it was lost by the claims; then it is
 * forgotten. A wait for such a lock ends, LOCK_NOT_GET. One whose place was not taken over, or that
 * had none, is asked anew, behind all who were. */
void dlk_client_seal(struct dlk_client *client);
/* Asks the server for every hold that it has not confirmed in its epoch (EXTEND), once, and does
 * not wait: the answers are CONFIRMED for what was suspended, or LOST. What the server was not
 * ready for stays for the next verify; debts and waits that it was not ready for are sent again.
 * To be called after ReinitDone, and when the server is ready. */
void dlk_client_verify(struct dlk_client *client);
/* After a re-initialisation: the next call on each held rw lock asks the server. */
void dlk_client_unverify(struct dlk_client *client);
uint64_t dlk_client_session_left_ms(struct dlk_client *client);
/* The control plane of the primary of this epoch has said that the session was renewed, by a
 * heartbeat that was sent at sent_ns (dlk_now_ns): as if a PING of then had been answered. */
void dlk_client_heard(struct dlk_client *client, uint32_t epoch, uint64_t sent_ns);
/* Replies that were dropped because they name another client, epoch or request. */
uint64_t dlk_client_ignored(struct dlk_client *client);
/* When the keeper is to come to a client again, and what is to be watched meanwhile: then, or when
 * that is readable, or when dlk_client_keep_at_ns has become less. */
struct dlk_kept {
    uint64_t again_ns; /* by dlk_now_ns; 2**64-1: never */
    int32_t watch_fd;  /* -1: nothing */
    uint32_t reserved;
};

/* What the keeper does for one client, for a program that takes its turns itself and runs none.
 * Never waits. readable: something has come on what is watched. */
struct dlk_kept dlk_client_keep(struct dlk_client *client, int readable);
/* What dlk_client_keep has said last, or less: there is something to be done sooner. */
uint64_t dlk_client_keep_at_ns(struct dlk_client *client);
/* Heartbeats of every client in the process, from one thread that stays in C. run returns 0 after
 * a stop; each stop ends one run, the present or the next. ERROR: it runs already. */
int dlk_keeper_run(void);
void dlk_keeper_stop(void);

/* ---- Notices: what has become of holds and sessions without a call ---- */

/* Each is told once, when it happens. They only tell: whether a hold may be believed is computed
 * from the clock when it is asked for (call.left_ms). */
enum dlk_notice_kind {
    DLK_NOTICE_LOST = 1,  /* the hold is held no more: the server said so when it was asked */
    DLK_NOTICE_BROKEN,    /* an operator took the hold away; it is lost, and was given back */
    DLK_NOTICE_SUSPENDED, /* the hold's own authority (its lease) could have ended */
    DLK_NOTICE_CONFIRMED, /* it had been suspended, and is held: nobody had it in between */
    /* Of the client: lock_id, owner and token are 0. */
    DLK_NOTICE_LINK_DOWN,         /* the data connection has failed; nobody asked for that */
    DLK_NOTICE_SESSION_SUSPENDED, /* the session, and with it what is held without a lease */
    DLK_NOTICE_SESSION_CONFIRMED,
    DLK_NOTICE_REMOVED,           /* the server has ended the session */
    DLK_NOTICE_OVERFLOW           /* of every client (client 0): some were not kept, look at all */
};

struct dlk_notice {
    uint64_t client; /* dlk_client_config.number */
    uint64_t owner;
    uint64_t token;
    uint32_t lock_id;
    uint32_t kind; /* enum dlk_notice_kind */
};

/* The notices of all clients of this process, oldest first; for one thread. Waits for the first,
 * at most timeout_ms; returns how many it wrote, 0 when the time is over or after
 * dlk_notices_wake. A forked child begins with none. */
size_t dlk_notices_wait(struct dlk_notice *out, size_t room, uint32_t timeout_ms);
void dlk_notices_wake(void); /* ends one wait, the present or the next */

#endif
