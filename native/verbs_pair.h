/*
 * One end of a reliable-connected queue pair that carries frames: made, connected, sent on,
 * accounted for. Both sides use it: the server with one completion queue and one shared receive
 * queue for all, a client with its own. It polls nothing, waits for nothing and knows no clock; who
 * polls hands each completion over to the pair that it belongs to.
 *
 * On the way: a message is a SEND WITH IMMEDIATE, inline, of 0 to 8 whole frames; its immediate
 * data tells credits (verbs_credit.h). Sends are signalled every 8th time, operations always.
 *
 * Threads. Before connect, and in free, a pair is one thread's. After that there are two roles,
 * each of at most one thread at a time, both at once if that suits:
 *   sender    room, send, owes, tell, bye, operate, bind
 *   receiver  received, bytes, release, taken, sent, operated
 * Any thread: address, broken, arrived, break. None of them blocks. After fork the child may call
 * free alone, which then does nothing.
 *
 * An end that is broken stays so: every later send says GONE, and its completions (all of them: a
 * queue pair in error flushes what was posted) are still to be handed over until it is freed.
 */
#ifndef DLOCK_VERBS_PAIR_H
#define DLOCK_VERBS_PAIR_H

#include "verbs_credit.h"
#include "verbs_device.h"

enum dlk_pair_limit {
    DLK_PAIR_READS_MAX = 16,  /* operations of one end under way at once */
    DLK_PAIR_SEND_DEPTH = 32, /* places of a send queue, besides those for operations */
    DLK_PAIR_SIGNAL_EVERY = 8,
    /* Completions that the sends of one end can leave, all of them flushed; operations come on
     * top, and what it can receive. */
    DLK_PAIR_SEND_COMPLETIONS_MAX = DLK_PAIR_SEND_DEPTH
};

struct dlk_pair_config {
    struct dlk_verbs_device *device; /* stays open while the pair lives */
    struct ibv_cq *send_completions;
    struct ibv_cq *receive_completions; /* may be the same */
    /* The queue that it receives from, with buffers of DLK_VERBS_MESSAGE_BYTES or more. NULL: it
     * has `window` buffers of its own. */
    struct ibv_srq *shared_receives;
    uint32_t window;       /* DLK_CREDIT_WINDOW_MIN.. messages that there is room for */
    uint32_t reads;        /* 0..DLK_PAIR_READS_MAX operations that it wants to have under way */
    uint32_t reads_served; /* of the other end, at once; cut to what the device can */
    int access;            /* IBV_ACCESS_REMOTE_* that the other end may use, or 0 */
    uint32_t mark;         /* the caller's, below 2^30; comes back with completions of sends and
                            * operations: a generation, against those of an earlier pair */
};

struct dlk_pair;

/* An unconnected end; its own receives, if it has any, are posted. NULL: `reason`. */
struct dlk_pair *dlk_pair_new(const struct dlk_pair_config *config, char *reason);
/* What the other end must know; `cells` is left 0. */
void dlk_pair_address(const struct dlk_pair *pair, struct dlk_verbs_address *own);
/* Ready to receive and to send. False: not with this other end; `reason` says why, and the pair is
 * good for nothing any more. */
bool dlk_pair_connect(struct dlk_pair *pair, const struct dlk_verbs_address *peer, char *reason);
/* Completions of it may still lie in a shared queue or come: match them by number and mark. */
void dlk_pair_free(struct dlk_pair *pair);

uint32_t dlk_pair_number(const struct dlk_pair *pair); /* ibv_wc.qp_num of its completions */

/* From now on the other end may operate on nothing here; messages go on. False: it cannot. */
bool dlk_pair_revoke(struct dlk_pair *pair);
/* Puts it into error: all that was posted is flushed, which wakes who waits for completions. */
void dlk_pair_break(struct dlk_pair *pair);
bool dlk_pair_broken(const struct dlk_pair *pair);

/* ---- What a completion is ---- */

enum dlk_pair_kind { DLK_PAIR_RECEIVE = 0, DLK_PAIR_SEND = 1, DLK_PAIR_OPERATION = 2 };

/* Of ibv_wc.wr_id. One who posts to a shared receive queue numbers its buffers below 2^62. */
static inline enum dlk_pair_kind dlk_pair_kind(uint64_t wr_id)
{
    return (enum dlk_pair_kind)(wr_id >> 62);
}

/* The mark of the pair that a send or operation belongs to. */
static inline uint32_t dlk_pair_mark(uint64_t wr_id)
{
    return (uint32_t)(wr_id >> 32) & 0x3fffffff;
}

/* How a status other than IBV_WC_SUCCESS is told. At a client ACCESS: its operation was certainly
 * not carried out; any other: nobody knows. */
enum dlk_verbs_event dlk_pair_cause(enum ibv_wc_status status);

/* ---- The sender ---- */

enum dlk_pair_result { DLK_PAIR_GONE = -1, DLK_PAIR_MISUSE = -2 };

/* How many bytes of whole frames a send would take now. */
size_t dlk_pair_room(const struct dlk_pair *pair);
/* Takes as many of the frames as there is room for, in one post; returns their bytes, 0: none now,
 * or GONE. What it took is copied. More room comes with completions: after received or sent. */
ptrdiff_t dlk_pair_send(struct dlk_pair *pair, const void *frames, size_t length);
/* Has so much been taken, and not told, that tell should be called now? For one who is not about to
 * send. */
bool dlk_pair_owes(const struct dlk_pair *pair);
/* An empty message, if that is owed: 1: sent; 0: not owed, or no place for it (then the other end
 * has something to take first); or GONE. */
int dlk_pair_tell(struct dlk_pair *pair);
/* The last message of this end. Signalled: with its completion all that was sent has arrived.
 * 1: sent; 0: no place for it: nothing will come of waiting; or GONE. */
int dlk_pair_bye(struct dlk_pair *pair);
/* Has all that was sent arrived, by what completions have told? After a bye it comes to that, or
 * the pair breaks. */
bool dlk_pair_arrived(const struct dlk_pair *pair);

enum dlk_pair_verb { DLK_PAIR_READ = 0, DLK_PAIR_FETCH_ADD, DLK_PAIR_COMPARE_SWAP };

/* On 8 bytes of the other end. */
struct dlk_pair_operation {
    uint64_t address; /* a multiple of 8 */
    uint64_t value;   /* FETCH_ADD: to add; COMPARE_SWAP: the new value */
    uint64_t compare;
    uint64_t cookie; /* the caller's; comes back in the answer */
    uint32_t key;
    uint32_t verb; /* enum dlk_pair_verb */
};

struct dlk_pair_answer {
    uint64_t cookie;
    uint64_t value; /* what was there before; means nothing if the status is not SUCCESS */
    enum ibv_wc_status status;
};

/* How many operations can be posted now. */
uint32_t dlk_pair_operations_room(const struct dlk_pair *pair);
/* Posts as many of them as there is room for, in their order, all at once; returns how many, or
 * GONE (none of them was posted), or MISUSE: an address that is no multiple of 8. */
int dlk_pair_operate(struct dlk_pair *pair, const struct dlk_pair_operation *operations,
                     uint32_t count);
/* Binds a type 1 memory window to these bytes of a region; length 0: to nothing. It takes a place
 * of an operation and completes as one; the window's new key is its rkey at once. 1, 0: no place,
 * or GONE. */
int dlk_pair_bind(struct dlk_pair *pair, struct ibv_mw *window, struct ibv_mr *region,
                  uint64_t address, uint64_t length, int access, uint64_t cookie);

/* ---- The receiver: completions of this pair, in the order in which they were polled ---- */

enum dlk_pair_receipt {
    DLK_RECEIPT_BROKEN = 0, /* the status is not SUCCESS: the buffer holds nothing */
    DLK_RECEIPT_MESSAGE,    /* byte_len bytes of whole frames; 0: it only told */
    DLK_RECEIPT_BYE,        /* the same, and nothing comes after it */
    DLK_RECEIPT_WINDOW,     /* fault: it sent more than it was told there is room for, or credits
                             * of what it was never sent */
    DLK_RECEIPT_MALFORMED   /* fault: no immediate data, or not of whole frames */
};

/* Of kind RECEIVE. A message, or a bye, occupies its buffer until release or taken. */
enum dlk_pair_receipt dlk_pair_received(struct dlk_pair *pair, const struct ibv_wc *wc);
/* Own receives: where the bytes of that message lie, */
const void *dlk_pair_bytes(const struct dlk_pair *pair, const struct ibv_wc *wc);
/* and: they have been taken out. Its buffer goes back, and will be told. */
void dlk_pair_release(struct dlk_pair *pair, uint64_t wr_id);
/* Shared receives: so many messages of this pair have been taken out of their buffers, which the
 * caller posts again (the queue must have some to spare if it posts them later than it says so). */
void dlk_pair_taken(struct dlk_pair *pair, uint32_t messages);
/* Of kind SEND, of any status. */
void dlk_pair_sent(struct dlk_pair *pair, const struct ibv_wc *wc);
/* Of kind OPERATION, of any status. */
void dlk_pair_operated(struct dlk_pair *pair, const struct ibv_wc *wc,
                       struct dlk_pair_answer *answer);

#endif
