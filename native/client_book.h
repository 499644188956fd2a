/*
 * The client's book: what a client has got, what it holds and until when, which request waits for
 * an answer, and what it owes the server. It decides what DLock's client decides by itself
 * (docs/client.md) and turns a call into a request, and a reply or its absence into a status.
 *
 * Pure: now is an argument (dlk_now_ns of the shell). No I/O, no clock, no locks: the shell calls
 * it under the client's mutex.
 *
 * The life of a call: dlk_book_begin decides it at once (DLK_TURN_DONE), asks for its request to be
 * sent (DLK_TURN_SEND) or puts it off (DLK_TURN_LATER: begin again when something has ended). A
 * call that was sent ends by dlk_book_reply, dlk_book_lose or dlk_book_cancel.
 */
#ifndef DLOCK_CLIENT_BOOK_H
#define DLOCK_CLIENT_BOOK_H

#include <stdbool.h>

#include "client_book_map.h"
#include "abi_client.h"
#include "heap.h"

#define DLK_NEVER_NS UINT64_MAX

/* call.phase */
enum dlk_phase {
    DLK_PHASE_SEEN = 0, /* nothing runs: never begun, or its caller has had the status */
    DLK_PHASE_NEW,
    DLK_PHASE_BLOCKED, /* put off: another operation on the same hold, or every slot in use */
    DLK_PHASE_SENT,
    DLK_PHASE_ENDED /* the status is final, but its caller has not had it yet */
};

enum dlk_turn { DLK_TURN_DONE, DLK_TURN_SEND, DLK_TURN_LATER };

/* call.place: in which list a posted call is. */
enum dlk_place {
    DLK_PLACE_NONE = 0, /* not posted, or collected */
    DLK_PLACE_RUNNING,  /* in none: it is being begun, or its answer is awaited */
    DLK_PLACE_BEHIND,   /* put off behind another operation on its hold, which call.slot names */
    DLK_PLACE_AGAIN,    /* what it stood behind has ended: its turn */
    DLK_PLACE_CROWDED_SHORT, /* put off for want of a request slot */
    DLK_PLACE_CROWDED_WAIT,  /* the same, and the request may wait at the server for long */
    DLK_PLACE_ENDED
};

/* First come, first served. */
struct dlk_calls {
    struct dlk_call *first;
    struct dlk_call *last;
};

/* Deadlines in ticks of 2^24 ns (17 ms), one round 8.6 s. */
enum { DLK_WHEEL_SLOTS = 512, DLK_WHEEL_TICK_SHIFT = 24 };

/* The calls that no thread waits for: each is in the list of its place. */
struct dlk_posted {
    struct dlk_calls again;
    struct dlk_calls crowded_short;
    struct dlk_calls crowded_wait;
    struct dlk_calls ended;
    struct dlk_call *passed; /* of a slot whose time has come, those not yet looked at */
    uint64_t tick;           /* the next slot to be looked at */
    struct dlk_call *wheel[DLK_WHEEL_SLOTS];
};

/* What is believed of one hold. All zero but entry: the initial state. */
struct dlk_belief {
    uint64_t token;        /* HELD: the fencing token; TICKET: the stamp */
    uint64_t end_ns;       /* HELD with a lease: its end */
    uint64_t asked_end_ns; /* RW, for display only: until when the user asked for it */
    uint64_t session_until_ns; /* confirmed in an earlier epoch only: that session's end */
    uint32_t entry;        /* the server's handle, or DLK_NONE */
    uint32_t epoch;        /* in which the server last confirmed it */
    uint32_t count;        /* re-entries, the first included */
    uint32_t readers;
    uint32_t renew_ms;     /* the keeper extends it by this lease; 0: it does not */
    uint32_t echo_id;      /* a repeated request that it came from, which the server may not have
                            * read yet: to be cancelled after it; 0: none */
    uint16_t n_exclusive;
    uint16_t n_shared;
    uint16_t m_exclusive;
    uint16_t m_shared;
    uint8_t state; /* enum dlk_entry_state: FREE, HELD or TICKET */
    uint8_t mode;
    bool leased;     /* its authority is a lease, else the session */
    bool final_expiry;
    bool unverified; /* RW after a re-initialisation: the next call asks the server */
    bool suspended;  /* that its own authority could have ended has been told */
};

/* What one owner has of one lock. Operations on it are serialised: at most one runs. */
struct dlk_hold {
    uint64_t owner;
    uint32_t lock_id;
    uint32_t slot;
    uint32_t running; /* the operation, or DLK_NONE; links the free records */
    uint8_t kind;
    bool in_use;
    bool waits; /* the running operation waits in the server's queue */
    bool gone;  /* forgotten; the record is freed when the running operation ends */
    bool crowded; /* a posted call on it is put off for want of a request slot */
    bool watched; /* it is in a heap of the book */
    bool verify;  /* the server is to be asked whether it is held */
    bool claimed; /* the hold or ticket was taken over by the next primary */
    bool refused; /* it was not: the next call hears FAIL */
    bool unknown; /* the primary does not know the lock: the next call hears so, and it goes */
    uint8_t lost; /* how the last hold was lost: NOT_HELD, NO_LOCK, BROKEN; 0: it was not */
    uint32_t renewal; /* the renewal under way, or DLK_NONE; it does not occupy `running` */
    uint64_t renewal_sent_ns; /* when one was sent last; 0: at once, if it is due */
    struct dlk_calls behind; /* posted calls that follow the running one, or the crowded one */
    struct dlk_belief now;
};

enum dlk_op_state {
    DLK_OP_STATE_FREE = 0,
    DLK_OP_STATE_ASKED,       /* for a call */
    DLK_OP_STATE_PARKED,      /* the same; to be sent again over the next connection */
    DLK_OP_STATE_PARKED_KEPT, /* the same; the server was not ready for it, or is ending */
    DLK_OP_STATE_RENEWAL,     /* by the keeper */
    DLK_OP_STATE_OWED,        /* a debt that must be sent */
    DLK_OP_STATE_OWED_SENT,   /* a debt whose answer is awaited */
    DLK_OP_STATE_OWED_KEPT    /* a debt that the server was not ready for */
};

/* One request under way, or one debt. Its index is the low part of its request id. */
struct dlk_pending {
    struct dlk_request request; /* as it was, or is to be, sent */
    struct dlk_belief before;   /* UNLOCK, GIVE_UP: what NOT_READY restores */
    struct dlk_call *call;      /* NULL: a debt */
    uint64_t sent_ns;       /* when it was sent: the last time that the server certainly has */
    uint64_t resent_ns;     /* kept: when it was sent again since; 0: it was not */
    uint64_t wait_until_ns; /* kept: how long it waits, or DLK_NEVER_NS */
    uint64_t order;         /* kept: among those that wait, as they were asked first */
    uint64_t stamp;         /* kept: its place in the server's queue, as told; 0: none */
    uint32_t hold; /* or DLK_NONE */
    uint32_t next_free;  /* OWED: the next debt to be sent */
    uint32_t previous;   /* OWED: the one before it, or DLK_NONE */
    uint32_t generation;
    uint32_t epoch; /* kept: in which it was sent last */
    uint32_t verified; /* book.verified when it was sent; of a renewal, when it was sent first */
    uint32_t echo_id; /* UNLOCK, GIVE_UP: of what it gives back */
    uint8_t state;  /* enum dlk_op_state */
    bool broken;    /* UNLOCK: meanwhile an operator has asked for what it gives back */
    bool kept;      /* LOCK that waits: it outlives its connection */
    bool parked;    /* kept: it has, once at least */
    bool accepted;  /* parked: the next primary has its place */
    bool fresh;     /* parked: the next primary is to be asked as if it never had been */
};

/* What is to be told, until the shell takes it. */
struct dlk_news {
    struct dlk_notice *notices;
    uint32_t count;
    uint32_t room;
    bool overflow; /* there was no memory for one */
    bool any;      /* the shell has something to look at: this, or an earlier deadline */
};

struct dlk_book {
    uint64_t number; /* how notices name the client; 0: none are made */
    struct dlk_news news;
    struct dlk_map locks;   /* (lock id, owner) -> hold */
    struct dlk_map objects; /* (object id, 0) -> the server's slot */
    struct dlk_map keys;    /* (object id, 0) -> its key in this epoch; 0: one was refused */
    bool one_sided;         /* the shell's: the connection operates on objects by itself */
    uint64_t operated_ns;   /* when it has done so last */
    struct dlk_hold *holds;
    struct dlk_pending *pending;
    uint32_t holds_room;
    uint32_t holds_high; /* records from here on were never used */
    uint32_t holds_free;
    uint32_t pending_room;
    uint32_t pending_high;
    uint32_t pending_free;
    uint32_t pending_used;
    uint32_t debts;
    uint32_t debts_unsent;
    uint32_t debts_under_way;
    uint32_t owed_first; /* debts to be sent, oldest first */
    uint32_t owed_last;
    uint32_t client_id;
    uint32_t epoch;
    uint32_t session_ttl_ms;
    uint32_t max_lease_ms;
    uint32_t reply_timeout_ms;
    uint64_t session_until_ns; /* the session is valid until then; 0: not known to be */
    uint64_t renewed_ns;       /* when the request was sent that renewed it last */
    uint64_t attached_ns;      /* when the present connection was asked for */
    uint64_t unix_offset_ns;   /* Unix time minus now, for display */
    uint64_t ignored;
    struct dlk_heap ends;     /* of holds: when their own authority ends, if that is to be told */
    struct dlk_heap renewals; /* of holds: when they are to be renewed */
    uint32_t renewals_under_way;
    struct dlk_heap parked; /* of pending requests: PARKED, in the order of their first sending */
    uint32_t waits_kept;    /* PARKED_KEPT */
    uint32_t verified;      /* how often dlk_book_verify was called */
    uint64_t waits_begun;
    struct dlk_map survivors; /* (lock id, 0): locks that the next primary has taken over */
    uint64_t claims_ns;       /* when claims were made first since the last attach; 0: not yet */
    bool confirm_later; /* the server confirmed a hold when the session was not yet confirmed */
    bool keep_waits;        /* a LOCK that waits outlives its connection */
    bool session_suspended; /* that the session could have ended has been told */
    bool removed;           /* the server has ended it; until the next attach */
    struct dlk_posted posted;
};

void dlk_book_init(struct dlk_book *book, uint32_t reply_timeout_ms);
void dlk_book_free(struct dlk_book *book);
/* A connection proves the session; its request was sent at sent_ns, and the answer is there now,
 * which may be after the time that it proves. A new epoch voids the server's handles and starts the
 * session's validity anew. */
void dlk_book_attach(struct dlk_book *book, const struct dlk_link *link, uint64_t sent_ns,
                     uint64_t now_ns);

/* client_book.c: what the control plane and the user tell. Statuses as in dlock_abi.h. */
int dlk_book_add_lock(struct dlk_book *book, uint32_t lock_id, uint32_t slot, uint32_t kind,
                      uint64_t owner);
int dlk_book_may_drop_lock(const struct dlk_book *book, uint32_t lock_id, uint64_t owner);
int dlk_book_drop_lock(struct dlk_book *book, uint32_t lock_id, uint64_t owner, bool force);
int dlk_book_set_lock_aside(struct dlk_book *book, uint32_t lock_id, uint64_t owner);
void dlk_book_unverify(struct dlk_book *book);
uint64_t dlk_book_session_left_ms(const struct dlk_book *book, uint64_t now_ns);

/* client_book_objects.c */
int dlk_book_add_object(struct dlk_book *book, uint32_t object_id, uint32_t slot);
int dlk_book_object_key(struct dlk_book *book, uint32_t object_id, uint32_t key);
int dlk_book_drop_object(struct dlk_book *book, uint32_t object_id);
/* Is an operation on it under way that the connection is to carry out by itself? */
bool dlk_book_operates(const struct dlk_book *book, uint32_t object_id);
/* The key of a request that the connection is to carry out by itself is in its `reserved`, with
 * this bit, which no server may ever see. */
#define DLK_BOOK_KEYED ((uint64_t)1 << 32)
static inline bool dlk_book_keyed(const struct dlk_request *request)
{
    return request->reserved != 0;
}

/* client_book_claims.c: what a new primary is told, and what it says to that. */
/* What was said to earlier claims counts no more. now_ns 0: there will be none. */
void dlk_book_begin_claims(struct dlk_book *book, uint64_t now_ns);
size_t dlk_book_claims(const struct dlk_book *book, struct dlk_claim *out, size_t room,
                       uint64_t now_ns);
void dlk_book_claimed(struct dlk_book *book, const struct dlk_claim *claim, int32_t status);
/* What was not taken over is not got any more. Then, for each pending request: a wait for such a
 * lock ends; it is returned, or NULL. */
void dlk_book_seal(struct dlk_book *book);
struct dlk_call *dlk_book_seal_wait(struct dlk_book *book, uint32_t index, uint64_t now_ns);
/* Every hold that the server of this epoch has not confirmed is to be asked for. */
void dlk_book_verify(struct dlk_book *book);

/* client_book_begin.c */
void dlk_book_prepare(struct dlk_call *call);
/* SEND: *request is what to send, valid until the book is called again. */
enum dlk_turn dlk_book_begin(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns,
                             const struct dlk_request **request);
/* Not now, for a reason of the shell's: as if begin had said LATER. */
enum dlk_turn dlk_book_put_off(const struct dlk_book *book, struct dlk_call *call,
                               uint64_t now_ns);
/* The request of a call that begin said to send can not be sent: there is no connection. The call
 * ends with BAD_RESPONSE. */
void dlk_book_unsent(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns);

/* client_book_end.c, client_book_lose.c. Each returns the call that has ended by it, or NULL. */
struct dlk_call *dlk_book_reply(struct dlk_book *book, const struct dlk_reply *reply,
                                uint64_t now_ns);
/* The answer to the pending request `index` is not waited for any longer. alive: the connection
 * may still bring it; else it is gone. Debts are marked for sending again when it is gone. */
struct dlk_call *dlk_book_lose(struct dlk_book *book, uint32_t index, bool alive, uint64_t now_ns);
/* A call that was put off ends with BAD_RESPONSE. */
void dlk_book_lose_blocked(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns);
/* The deadline of a call that was put off has come. */
void dlk_book_expire_blocked(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns);
void dlk_book_cancel(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns);

/* client_book_park.c */
/* There is no connection any more, for each pending request. A wait that is kept is parked; all
 * else, and with `over` (its user gives the connection up for good) every one, ends or becomes a
 * debt that is to be sent again. Returns the call that has ended by it, or NULL. */
struct dlk_call *dlk_book_disconnect(struct dlk_book *book, uint32_t index, bool over,
                                     uint64_t now_ns);
/* Before an attach, for each pending request: a wait that the server of this epoch will not know
 * ends. Returns it, or NULL. */
struct dlk_call *dlk_book_sift(struct dlk_book *book, uint32_t index, uint32_t epoch,
                               uint64_t now_ns);
/* The next parked wait to send, or NULL; it counts as sent. After the debts, before all else. */
const struct dlk_request *dlk_book_next_parked(struct dlk_book *book, uint64_t now_ns);

/* client_book_debts.c */
static inline bool dlk_book_has_kept(const struct dlk_book *book)
{
    return book->waits_kept != 0 || book->debts != book->debts_unsent + book->debts_under_way;
}
/* Debts and parked waits that the server was not ready for are to be sent again. */
void dlk_book_retry_kept(struct dlk_book *book);
/* The next debt to send, or NULL; it counts as sent. */
const struct dlk_request *dlk_book_next_unsent(struct dlk_book *book, uint64_t now_ns);

/* client_book_renew.c */
/* The next renewal to send, or NULL; it counts as sent. early: also one that is not due yet, but
 * within a sixth of its lease; after one that is due, so that they come in batches. */
const struct dlk_request *dlk_book_next_renewal(struct dlk_book *book, bool early,
                                                uint64_t now_ns);

/* client_book_notice.c */
/* Tells which leases, and whether the session, could have ended by now. */
void dlk_book_pass(struct dlk_book *book, uint64_t now_ns);
/* When dlk_book_pass or, with a connection, dlk_book_next_renewal has something to do next. */
uint64_t dlk_book_due_ns(const struct dlk_book *book, bool up);
/* Something of the client itself, or of the hold (NULL: none), is to be told. */
void dlk_book_tell(struct dlk_book *book, const struct dlk_hold *hold,
                   enum dlk_notice_kind kind);
/* The shell has taken the news. */
void dlk_book_told(struct dlk_book *book);

/* client_book_posted.c: the places of posted calls. Each step is O(1), whatever their number. */
/* Another posted call must go first: the new one is to be put off. */
bool dlk_posted_must_queue(const struct dlk_book *book, const struct dlk_call *call);
/* The call was begun, or put off; it has not ended. Finds its place and watches its deadline. */
void dlk_posted_place(struct dlk_book *book, struct dlk_call *call);
/* The call has ended: it is to be collected. */
void dlk_posted_end(struct dlk_book *book, struct dlk_call *call);
/* Out of every list, whatever its place: nobody will collect it. */
void dlk_posted_remove(struct dlk_book *book, struct dlk_call *call);
/* The next that was put off and may begin now, or NULL; it is RUNNING then, and to be placed again
 * unless it ends. up: a request could be sent; else a missing slot holds nobody back. */
struct dlk_call *dlk_posted_next(struct dlk_book *book, bool up);
/* After dlk_posted_next and the call's beginning: who stands behind it, if it is over already. */
void dlk_posted_begun(struct dlk_book *book, const struct dlk_call *call);
/* What it stands behind will have an answer, though there is no connection now. */
bool dlk_posted_behind_parked(const struct dlk_book *book, const struct dlk_call *call);
/* There would have been a request slot for it. */
bool dlk_posted_has_room(const struct dlk_book *book, const struct dlk_call *call);
/* The next whose deadline has come, or NULL; up to one tick late. */
struct dlk_call *dlk_posted_due(struct dlk_book *book, uint64_t now_ns);
/* The next that has ended, or NULL; its caller has it then. */
struct dlk_call *dlk_posted_take(struct dlk_book *book);

/* ---- Shared by the book's files only ---- */

/* Request slots that are kept for undoing what was asked, and for requests that the server answers
 * at once: were all taken by requests that wait, none of the holds that they wait for could end. */
enum { DLK_PENDING_KEPT_FOR_UNDO = 256, DLK_PENDING_KEPT_FOR_SHORT = 64 };
static inline uint32_t dlk_pending_kept(bool waits)
{
    return DLK_PENDING_KEPT_FOR_UNDO + (waits ? DLK_PENDING_KEPT_FOR_SHORT : 0u);
}

/* client_book_renew.c */
void dlk_renewal_reply(struct dlk_book *book, uint32_t index, const struct dlk_reply *reply,
                       uint64_t now_ns);
void dlk_renewal_lose(struct dlk_book *book, uint32_t index);
uint64_t dlk_renewal_due_ns(const struct dlk_book *book, const struct dlk_hold *hold);
/* client_book_notice.c */
/* After any change of what is believed of the hold: when to look at it. */
void dlk_hold_watch(struct dlk_book *book, struct dlk_hold *hold);
/* Its claim was refused, or displaced by a newer one: it is lost, and the next call on it hears so
 * as if the server had been asked. */
void dlk_hold_refuse(struct dlk_book *book, struct dlk_hold *hold);
/* The server says that it is not held. */
void dlk_hold_lose(struct dlk_book *book, struct dlk_hold *hold, uint32_t result);
/* An operator has taken it away: it is given back, and told. */
void dlk_hold_break(struct dlk_book *book, struct dlk_hold *hold);
/* It may be believed again, if it may. */
void dlk_hold_confirm(struct dlk_book *book, struct dlk_hold *hold, uint64_t now_ns);
/* A new connection: renewals go at once, and holds of an earlier epoch end on their own. */
void dlk_holds_attach(struct dlk_book *book, uint64_t now_ns);
/* The session was renewed, or has ended. */
void dlk_session_tell(struct dlk_book *book, uint64_t now_ns);
void dlk_session_remove(struct dlk_book *book);
/* False: no notice for this client in this epoch. */
bool dlk_book_noticed(struct dlk_book *book, const struct dlk_reply *reply);
/* client_book_posted.c: the first that stands behind the hold may begin; or all. */
void dlk_posted_promote(struct dlk_book *book, struct dlk_hold *hold, bool all);
/* client_book_park.c */
/* A reply to a wait that is kept. True: it goes on. */
bool dlk_wait_goes_on(struct dlk_book *book, uint32_t index, const struct dlk_reply *reply,
                      uint64_t now_ns);
/* The connection is there: what was kept back from the former one may go. */
void dlk_waits_attach(struct dlk_book *book);
uint32_t dlk_wait_left_ms(const struct dlk_pending *pending, uint64_t now_ns);
/* The request is gone, and nothing of it is at the server: its call ends. */
struct dlk_call *dlk_wait_end(struct dlk_book *book, uint32_t index, int32_t status,
                              uint64_t now_ns);
/* client_book_debts.c: pending requests and what becomes of them without a call. */
/* NOT_READY answers it. What the server was not ready for is kept until the next dlk_book_verify,
 * unless that came when the answer was under way: then the server may be ready by now. */
static inline bool dlk_pending_outdated(const struct dlk_book *book,
                                        const struct dlk_pending *pending)
{
    return pending->verified != book->verified;
}
static inline bool dlk_pending_parked(const struct dlk_pending *pending)
{
    return pending->state == DLK_OP_STATE_PARKED || pending->state == DLK_OP_STATE_PARKED_KEPT;
}
/* Does a call wait for the answer? */
static inline bool dlk_pending_of_call(const struct dlk_pending *pending)
{
    return pending->state == DLK_OP_STATE_ASKED || dlk_pending_parked(pending);
}
void dlk_pending_set(struct dlk_book *book, uint32_t index, enum dlk_op_state state);
uint32_t dlk_pending_new(struct dlk_book *book, uint32_t room_kept);
void dlk_pending_free(struct dlk_book *book, uint32_t index);
void dlk_pending_owe(struct dlk_book *book, uint32_t index, enum dlk_op_state state);
void dlk_pending_undo(struct dlk_book *book, const struct dlk_hold *hold, uint32_t op,
                      uint64_t token, uint32_t entry);
/* A new debt: nothing of the request with this id is to be left on the lock that `about` names. */
void dlk_pending_cancel(struct dlk_book *book, const struct dlk_request *about,
                        uint32_t request_id);
void dlk_pending_reply(struct dlk_book *book, uint32_t index, const struct dlk_reply *reply);
/* client_book_objects.c */
enum dlk_turn dlk_object_begin(struct dlk_book *book, struct dlk_call *call, uint64_t now_ns,
                               const struct dlk_request **request);
int32_t dlk_object_reply(struct dlk_book *book, struct dlk_call *call,
                         const struct dlk_reply *reply, uint64_t now_ns);
/* client_book_begin.c */
/* A request for the call in a slot of its own; DLK_NONE when there is none. */
uint32_t dlk_call_ask(struct dlk_book *book, struct dlk_call *call, uint32_t op, uint32_t slot,
                      bool waits, uint64_t now_ns);
enum dlk_turn dlk_call_sent(const struct dlk_book *book, struct dlk_call *call, uint64_t now_ns,
                            const struct dlk_request **request);
enum dlk_turn dlk_call_decide(const struct dlk_book *book, const struct dlk_hold *hold,
                              struct dlk_call *call, int32_t status, uint64_t now_ns);
/* client_book.c */
void dlk_hold_forget(struct dlk_book *book, struct dlk_hold *hold);
void dlk_hold_release(struct dlk_book *book, struct dlk_hold *hold);
void dlk_belief_reset(struct dlk_belief *belief);
/* It is over, as the server has said, or is about to hear. */
void dlk_belief_end(struct dlk_book *book, struct dlk_hold *hold);
/* Until when the authority of a hold or ticket runs, by this client's clock. */
uint64_t dlk_belief_until_ns(const struct dlk_book *book, const struct dlk_belief *belief);
static inline uint64_t dlk_ms_until(uint64_t until_ns, uint64_t now_ns)
{
    return until_ns > now_ns ? (until_ns - now_ns) / 1000000 : 0;
}
uint64_t dlk_book_left_ms(const struct dlk_book *book, const struct dlk_belief *belief,
                          uint64_t now_ns);
void dlk_book_show(const struct dlk_book *book, const struct dlk_hold *hold,
                   struct dlk_call *call, uint64_t now_ns);
/* client_book_end.c */
/* Where the answer has nothing to do with what was asked. */
int32_t dlk_status_of_refusal(uint32_t result);
void dlk_call_end(struct dlk_call *call, int32_t status);
struct dlk_call *dlk_call_finish(struct dlk_book *book, struct dlk_call *call,
                                 struct dlk_hold *hold, int32_t status, uint64_t now_ns);
void dlk_book_renew(struct dlk_book *book, uint64_t sent_ns, uint32_t result, uint64_t now_ns);
void dlk_belief_extend(const struct dlk_book *book, struct dlk_belief *belief,
                       const struct dlk_pending *pending, const struct dlk_reply *reply);

#endif
