/*
 * The one definition of every struct, number and limit that crosses a boundary: between C files,
 * between C and Python (cffi reads this file as its cdef), and between machines (the frames). What
 * concerns RDMA is in abi_verbs.h, the client library's own in abi_client.h, that of the measuring
 * ends in abi_bench.h.
 *
 * Rules for this file: only plain C declarations that pycparser understands; no macros with
 * arguments, no conditionals except the include guard, no includes but <stdint.h> and <stddef.h>
 * (the cffi generator drops every line that starts with '#'). Sizes are asserted in abi_check.c.
 */
#ifndef DLOCK_ABI_H
#define DLOCK_ABI_H

#include <stddef.h>
#include <stdint.h>

/* ---- Limits and sizes, each with its unit ---- */

enum dlk_limit {
    DLK_ABI_VERSION = 1,
    DLK_PROTOCOL_VERSION_MIN = 1, /* data and control plane; negotiated on the control plane */
    DLK_PROTOCOL_VERSION_MAX = 1,
    DLK_FRAME_BYTES = 64,
    DLK_SECRET_BYTES = 16,
    DLK_ATTACH_MAGIC = 0x6b6c6f64,    /* "dolk" read as bytes: first frame of a connection */
    DLK_BATCH_MAX = 31,               /* items of a batch call */
    DLK_DESCRIPTOR_BYTES_MAX = 512,
    DLK_CONTROL_MESSAGE_BYTES_MAX = 65536,
    DLK_CONTROL_PORT_DEFAULT = 21616,
    DLK_SERVERS_PER_PROCESS_MAX = 32,
    DLK_CLIENTS_PER_PROCESS_MAX = 32, /* the mirror only */
    DLK_MAX_LOCKS_DEFAULT = 51200,
    DLK_MAX_CLIENTS_DEFAULT = 1000,
    DLK_MAX_OBJECTS_DEFAULT = 102400,
    DLK_MAX_LOCKS_LIMIT = 4000000,
    DLK_MAX_CLIENTS_LIMIT = 100000,
    DLK_MAX_OBJECTS_LIMIT = 4000000,
    DLK_HEARTBEAT_SECONDS_MAX = 300,
    DLK_CLIENT_ID_MAX = 0x7fffffff,
    DLK_SERVER_ID_MAX = 0xfffff,
    DLK_SESSION_TTL_MS_DEFAULT = 10000,
    DLK_MAX_LEASE_MS_DEFAULT = 3600000,
    DLK_TICKET_CLAIM_MS = 2000,       /* a ticket whose turn came is claimed within this time */
    DLK_LOCK_WAIT_MS_DEFAULT = 5000,
    DLK_REPLY_TIMEOUT_MS_DEFAULT = 5000,
    DLK_ASYNC_TIMEOUT_MS = 5000,
    DLK_WAIT_SLICE_MS = 50,           /* every wait in C returns to Python after this time */
    DLK_INFLIGHT_MAX = 16384,         /* requests under way on one connection */
    DLK_LOOK_MAX = 4096,              /* entries or slots that one VIEW or SURVEY looks at */
    DLK_CYCLE_EDGES_MAX = 32,         /* of a refused cycle that are told */
    DLK_EPOCH_BITS = 20,
    DLK_COUNTER_BITS = 43
};

/* "No such index" in every uint32_t index, and "for ever" in wait_ms. */
enum dlk_sentinel { DLK_NONE = 0xffffffff, DLK_WAIT_FOREVER = 0xffffffff };

/* ---- Statuses of the mirrored API (specs: DlockStatus) ---- */

enum dlk_status {
    DLK_STATUS_ERROR = -1,
    DLK_STATUS_SUCCESS = 0,
    DLK_STATUS_DONE,
    DLK_STATUS_EAGAIN = 0x1000,
    DLK_STATUS_ENOMEM,
    DLK_STATUS_ETIMEOUT,
    DLK_STATUS_EINVAL,
    DLK_STATUS_ETICKET,
    DLK_STATUS_EASYNC,
    DLK_STATUS_CLIENT_NOT_INIT = 0x2000,
    DLK_STATUS_LOCK_NOT_GET,
    DLK_STATUS_ALREADY_LOCKED,
    DLK_STATUS_ALREADY_UNLOCKED,
    DLK_STATUS_TICKET_TO_UNLOCK,
    DLK_STATUS_BAD_RESPONSE,
    DLK_STATUS_FAIL,
    DLK_STATUS_CLIENTMGR_NOT_INIT,
    DLK_STATUS_NOT_READY,
    DLK_STATUS_NO_ASYNC,
    DLK_STATUS_ASYNC_AGAIN,
    DLK_STATUS_REPLICA_INIT_FAIL,
    DLK_STATUS_SERVER_NOT_INIT,
    DLK_STATUS_CLIENT_REMOVED_BY_SERVER,
    DLK_STATUS_PROTO_VERSION_NEGOTIATION_FAIL,
    DLK_STATUS_SERVER_NO_RESOURCE,
    DLK_STATUS_OBJECT_ALREADY_EXISTED = 0x3000,
    DLK_STATUS_OBJECT_ALREADY_CREATED,
    DLK_STATUS_OBJECT_NOT_CREATE,
    DLK_STATUS_OBJECT_INVALID_OWNER,
    DLK_STATUS_OBJECT_NOT_GET,
    DLK_STATUS_OBJECT_ALREADY_DESTROYED,
    DLK_STATUS_OBJECT_TOO_MANY,
    DLK_STATUS_OBJECT_CAS_FAILED,
    /* Never shown by the mirror: what a C call tells its Python caller. */
    DLK_STATUS_PENDING = 0x4000, /* not finished within DLK_WAIT_SLICE_MS, or a signal: again */
    DLK_STATUS_FORKED,           /* the client belongs to the parent process */
    DLK_STATUS_DEADLOCK          /* the wait would close a cycle; call.value is its number */
};

/* ---- Locks ---- */

enum dlk_kind {
    DLK_KIND_ATOMIC = 0,
    DLK_KIND_RW = 1,
    DLK_KIND_FAIR = 2,
    DLK_KIND_SEMAPHORE = 3,
    DLK_KIND_COUNT
};

enum dlk_mode { DLK_MODE_EXCLUSIVE = 0, DLK_MODE_SHARED = 1, DLK_MODE_COUNT };

/* ---- Data plane frames (little-endian, 64 bytes each) ---- */

enum dlk_op {
    DLK_OP_ATTACH = 1,   /* first frame of a connection: struct dlk_attach */
    DLK_OP_PING,         /* renews the session; DONE */
    DLK_OP_LOCK,         /* wait_ms 0: try; else wait at the server */
    DLK_OP_REDEEM,       /* token: the ticket's stamp; wait_ms as LOCK */
    DLK_OP_UNLOCK,       /* token: the hold */
    DLK_OP_EXTEND,       /* token: the hold; lease_ms 0: only check */
    DLK_OP_CANCEL,       /* value: the request_id to undo, whatever became of it */
    DLK_OP_GIVE_UP,      /* token: the ticket's stamp; also undoes a hold redeemed from it */
    DLK_OP_FETCH_ADD,    /* lock_id/slot: object; value: addend */
    DLK_OP_COMPARE_SWAP, /* token: compare; value: swap */
    DLK_OP_READ,
    DLK_OP_COUNT,
    DLK_OP_NOTICE = 64   /* server to client only, request_id 0: token and entry name a hold */
};

enum dlk_request_flag {
    DLK_FLAG_TICKET = 1,       /* FAIR: when busy or when the wait is over, keep a ticket */
    DLK_FLAG_FINAL_EXPIRY = 2, /* the hold ends with its lease; no late unlock or extend */
    DLK_FLAG_RESEND = 4,       /* sent before with the same request_id and owner */
    DLK_FLAG_DEADLOCK = 8,     /* LOCK, REDEEM: do not wait if that would close a cycle */
    DLK_FLAG_ALL = 15
};

enum dlk_result {
    DLK_RESULT_DONE = 0,     /* PING, ATTACH, GIVE_UP, cell operations that were carried out */
    DLK_RESULT_GRANTED,      /* LOCK, REDEEM: token, entry, lease_ms, held_us */
    DLK_RESULT_QUEUED,       /* not final: token is the stamp; a final reply follows */
    DLK_RESULT_TICKETED,     /* token is the stamp */
    DLK_RESULT_BUSY,         /* taken, and no ticket asked for */
    DLK_RESULT_PASSED,       /* the ticket was passed or is unknown; it is gone */
    DLK_RESULT_TIMED_OUT,    /* the wait is over, nothing is left behind */
    DLK_RESULT_CANCELLED,    /* CANCEL: undone, or nothing was there to undo */
    DLK_RESULT_RELEASED,     /* UNLOCK */
    DLK_RESULT_EXTENDED,     /* EXTEND: lease_ms is what remains */
    DLK_RESULT_NOT_HELD,     /* UNLOCK, EXTEND: lost meanwhile, or never held */
    DLK_RESULT_NO_LOCK,      /* lock_id and slot name no lock */
    DLK_RESULT_NO_OBJECT,
    DLK_RESULT_CAS_FAILED,   /* value: what was found */
    DLK_RESULT_NOT_READY,    /* the server does not grant yet; it did nothing */
    DLK_RESULT_NO_RESOURCE,  /* entry table or this connection's window is full */
    DLK_RESULT_INVALID,      /* a field is out of range */
    DLK_RESULT_REMOVED,      /* the session has ended */
    DLK_RESULT_STOPPING,     /* the server ends; a waiter is woken with this */
    DLK_RESULT_REFUSED,      /* ATTACH: unknown session, wrong secret or superseded */
    DLK_RESULT_DEADLOCK,     /* LOCK, REDEEM: would close a cycle of waits; value: its number */
    DLK_RESULT_BROKEN,       /* NOTICE: an operator takes the hold away: give it up, UNLOCK it.
                              * (A NOTICE with NOT_HELD: another claim is newer; it is lost) */
    DLK_RESULT_ACTION,       /* engine to plane only: carry out the cell operation, then answer */
    DLK_RESULT_COUNT
};

/* Client to server. Inside the server the codec has replaced `session` (on the wire: the client
 * id) by the session's slot. */
struct dlk_request {
    uint32_t request_id; /* chosen by the client, echoed */
    uint8_t op;          /* enum dlk_op */
    uint8_t mode;        /* enum dlk_mode */
    uint16_t flags;      /* enum dlk_request_flag */
    uint32_t session;
    uint32_t lock_id;    /* or object id */
    uint32_t slot;       /* where the server keeps it, as told by the control plane */
    uint32_t entry;      /* the handle of the hold or ticket from an earlier reply, or DLK_NONE */
    uint64_t owner;      /* upper half: the actor (thread, task) that waits, 0: unknown */
    uint64_t token;      /* hold's token, ticket's stamp, or compare operand */
    uint64_t value;      /* addend, swap operand, or request id to cancel */
    uint32_t lease_ms;   /* 0: the hold ends with its session */
    uint32_t wait_ms;    /* 0: try; DLK_WAIT_FOREVER */
    uint64_t reserved;   /* 0 */
};

struct dlk_attach {
    uint32_t request_id;
    uint8_t op; /* DLK_OP_ATTACH */
    uint8_t pad;
    uint16_t version;
    uint32_t client_id;
    uint32_t session_slot;
    uint32_t attach; /* the number that the control plane gave for this connection */
    uint32_t magic;  /* DLK_ATTACH_MAGIC */
    uint8_t secret[16];
    uint64_t reserved[3];
};

/* In reserved of a reply, inside the client only: a server sends 0. */
enum dlk_reply_flag {
    DLK_REPLY_ONE_SIDED = 1 /* a completion, not a word of the server's: it renews nothing */
};

/* Server to client. In the engine's outbox `session` is the session's slot. */
struct dlk_reply {
    uint32_t request_id;
    uint8_t op;
    uint8_t mode;
    uint16_t result; /* enum dlk_result */
    uint32_t session;
    uint32_t epoch;
    uint64_t token;   /* GRANTED, EXTENDED: the hold's token; QUEUED, TICKETED: the stamp */
    uint64_t value;   /* objects: the value; ACTION: the second operand; DEADLOCK: its number */
    uint64_t held_us; /* how long the server kept the request waiting, rounded down */
    uint32_t lease_ms; /* what remains of the lease, rounded down; 0: no lease */
    uint32_t entry;
    uint32_t readers; /* shared holders now */
    uint16_t n_exclusive; /* fair locks: tickets now served ... */
    uint16_t n_shared;
    uint16_t m_exclusive; /* ... and handed out, modulo 65536 */
    uint16_t m_shared;
    uint32_t reserved; /* 0, or enum dlk_reply_flag */
};

/* ---- Control thread -> plane thread ---- */

enum dlk_command_op {
    DLK_COMMAND_SESSION_OPEN = 1,  /* slot, id: client id, secret, attach, ttl_ms, lease_ms */
    DLK_COMMAND_SESSION_SUPERSEDE, /* slot, id, secret, attach: close its connection first */
    DLK_COMMAND_SESSION_RENEW,     /* slot, id: a heartbeat */
    DLK_COMMAND_SESSION_LEASE,     /* slot, id, lease_ms: the longest lease it may now ask for */
    DLK_COMMAND_SESSION_CLOSE,     /* slot, id: left, or gave way; frees everything at once */
    DLK_COMMAND_LOCK_OPEN,         /* slot, id: lock id, kind, size */
    DLK_COMMAND_LOCK_CLOSE,        /* slot, id: nobody has got it; ends when its last hold ends;
                                    * size 1: at once, whoever holds it or waits */
    DLK_COMMAND_CELL_OPEN,         /* slot, id: object id, value. DONE: value: the key with which
                                    * clients operate on it by themselves, over verbs; 0: none */
    DLK_COMMAND_CELL_CLOSE,        /* slot, id */
    DLK_COMMAND_READY,             /* value: enum dlk_readiness; otherwise NOT_READY is answered */
    DLK_COMMAND_EPOCH,             /* value: the epoch to take when this one's counter ends */
    DLK_COMMAND_TOKEN_FLOOR,       /* value: tokens and stamps from now on are above it */
    DLK_COMMAND_GRACE,             /* value: ms that every session gets at least from now */
    DLK_COMMAND_BREAK,             /* slot, id: takes holds away; value: of this token only, 0:
                                    * all; attach: its entry's handle, if known: looked at first.
                                    * size 0: their clients are asked; 1: at once. DONE with value:
                                    * how many holds it met */
    DLK_COMMAND_VIEW,              /* slot, id: value: the address of size (1..DLK_LOOK_MAX) struct
                                    * dlk_entry_view, the sender's until DONE, whose value says how
                                    * many there are, written at most size */
    DLK_COMMAND_SURVEY,            /* slot: the first of at most DLK_LOOK_MAX that are looked at;
                                    * value: the address of size (1..DLK_LOOK_MAX) struct
                                    * dlk_lock_view; DONE: value: how many open locks were written,
                                    * slot: where to go on, DLK_NONE: that was the last */
    DLK_COMMAND_SESSION_END,       /* slot, id: after SESSION_ENDED: what it had may be freed now.
                                    * DONE: value: how many leased holds of it stay */
    DLK_COMMAND_CLAIM,             /* slot, id: the session; value: the address of size
                                    * (1..DLK_BATCH_MAX) struct dlk_claim, the sender's until DONE;
                                    * kind 1: lapsed holds of its session are believed. Writes a
                                    * result into each; only while the engine recovers */
    DLK_COMMAND_LINK_OPEN,         /* plane only: slot, id: the session; value: a queue pair of
                                    * dlk_plane_verbs_pair, the plane's from DONE on; anything but
                                    * DONE: still the sender's */
    DLK_COMMAND_CONFIRMED          /* plane only: value: when (dlk_now_ns) the look at the state
                                    * directory began that found it to be ours. Taken at once, ahead
                                    * of the others; never refused, and no DONE tells of it */
};

/* value of READY. RECOVERING: claims are taken; locks whose state is known for certain are served,
 * to sessions that were opened early. ttl_ms: how long leases of claims last at least from ALL. */
enum dlk_readiness { DLK_READY_NONE = 0, DLK_READY_ALL = 1, DLK_READY_RECOVERING = 2 };

/* kind of SESSION_OPEN. */
enum dlk_session_kind { DLK_SESSION_PLAIN = 0, DLK_SESSION_EARLY = 1 };

struct dlk_command {
    uint32_t op;
    uint32_t slot;
    uint32_t id;
    uint32_t kind;
    uint64_t cookie; /* echoed in the DONE event */
    uint64_t value;
    uint32_t size;
    uint32_t attach;
    uint8_t secret[16];
    uint32_t ttl_ms;
    uint32_t lease_ms;
};

enum dlk_event_op {
    DLK_EVENT_DONE = 1,      /* cookie, result: a command was carried out or refused */
    DLK_EVENT_SESSION_ENDED, /* slot, id: expired; it is over for both planes. What it had stays
                              * until SESSION_END */
    DLK_EVENT_SESSION_FREED, /* slot, id: its last leased hold is over; the slot may be reused */
    DLK_EVENT_LOCK_CLOSED,   /* slot, id: after LOCK_CLOSE; the slot may be reused */
    DLK_EVENT_LINK_LOST,     /* slot, id: the session's data connection is gone */
    DLK_EVENT_EPOCH_LOW,     /* value: the epoch; half of its tokens are used, send EPOCH */
    DLK_EVENT_DEADLOCK,      /* one edge of a cycle that was refused: cookie: the cycle's number;
                              * slot, id: the lock; value: lower half the actor that waits for it,
                              * upper half how many edges the cycle has; result: the client id. In
                              * order, beginning with who was refused, at most DLK_CYCLE_EDGES_MAX;
                              * before the reply that names the cycle is sent */
    DLK_EVENT_VERBS,         /* for the log: result: enum dlk_verbs_event; id: the client, cookie:
                              * what verbs call it, an enum ibv_wc_status, 0: what it sent is wrong;
                              * id 0: of the device, cookie: an enum ibv_event_type; value: links
                              * that it has ended */
    DLK_EVENT_BAD_PEER       /* a data connection was closed for what it sent: result: enum
                              * dlk_fault; id: the client that it was or said it was; cookie and
                              * value: 16 bytes, its IPv6 address (IPv4 mapped) as on the wire */
};

/* Why a data connection was closed. */
enum dlk_fault {
    DLK_FAULT_NONE = 0,
    DLK_FAULT_MAGIC,       /* the first frame is no attach frame */
    DLK_FAULT_VERSION,     /* of the attach frame */
    DLK_FAULT_RESERVED,    /* a field that must be 0 is not */
    DLK_FAULT_REFUSED,     /* unknown session, wrong secret, attach number used or superseded */
    DLK_FAULT_ATTACH_LATE, /* no whole attach frame in time */
    DLK_FAULT_CLIENT_ID,   /* a frame of another client than the one that attached */
    DLK_FAULT_OP,
    DLK_FAULT_MODE,
    DLK_FAULT_FLAGS,
    DLK_FAULT_OUTPUT,      /* more answers unread than one connection may have */
    DLK_FAULT_COUNT
};

/* What happened to RDMA at the server. */
enum dlk_verbs_event {
    DLK_VERBS_PEER_GONE = 1, /* its queue pair does not answer any more */
    DLK_VERBS_ACCESS,        /* the client used a key that is not valid (any more) */
    DLK_VERBS_WINDOW_FULL,   /* it sent more than it was told there is room for */
    DLK_VERBS_PAIR_ERROR,    /* any other error of its queue pair */
    DLK_VERBS_PORT_DOWN,
    DLK_VERBS_PORT_UP,
    DLK_VERBS_DEVICE_LOST,   /* nothing is served over it any more; clients come back over TCP */
    DLK_VERBS_EVENT_COUNT
};

/* What a client says at a new primary of one lock and owner of its: it holds it, stands in its
 * queue, has a ticket, or has only got it. */
struct dlk_claim {
    uint64_t owner;
    uint64_t token;        /* HELD: the hold's token */
    uint64_t stamp;        /* QUEUED, TICKET: its place in the queue */
    uint32_t lock_id;
    uint32_t slot;
    uint32_t kind;
    uint32_t size;         /* semaphores; else 1 */
    uint32_t state;        /* enum dlk_entry_state; FREE: got, but not held */
    uint32_t mode;
    uint32_t count;        /* HELD: re-entries, the first included */
    uint32_t remaining_ms; /* HELD: of the lease, 0: none, or lapsed; QUEUED: the lease asked for */
    uint32_t lapsed;       /* HELD: 1: its authority had ended by this client's clock */
    uint32_t leased;       /* HELD: 1: the authority is a lease, 0: the session */
    uint32_t request_id;   /* QUEUED: of the request whose answer is awaited */
    uint32_t wait_ms;      /* QUEUED: how long it waits yet */
    uint32_t flags;        /* enum dlk_request_flag: FINAL_EXPIRY of a hold, TICKET of a waiter */
    uint32_t result;       /* engine: GRANTED, QUEUED, TICKETED, DONE (got): taken over; NOT_HELD:
                            * lost; NO_LOCK: another lock is there now; NO_RESOURCE; INVALID */
};

struct dlk_event {
    uint32_t op;
    uint32_t result; /* enum dlk_result; BAD_PEER: enum dlk_fault */
    uint32_t slot;
    uint32_t id;
    uint64_t cookie;
    uint64_t value;
};

/* ---- Engine (engine.h says what each call promises) ---- */

struct dlk_limits {
    uint32_t max_locks;
    uint32_t max_sessions; /* slots; twice the clients, since ended sessions keep theirs a while */
    uint32_t max_entries;  /* holds, waiters and tickets together */
    uint32_t max_cells;
    uint32_t max_lease_ms;
    uint32_t ticket_claim_ms;
};

/* What the engine counts, read by anyone, written by the plane thread. The names are those of
 * DebugStats where DLock has one. */
enum dlk_counter {
    DLK_COUNT_REQUESTS = 0,
    DLK_COUNT_GRANTS,
    DLK_COUNT_WAITS,
    DLK_COUNT_LEASES_EXPIRED,
    DLK_COUNT_SESSIONS_EXPIRED,
    DLK_COUNT_EINVAL_LOCK_OP,
    DLK_COUNT_EINVAL_LOCK_OFFSET, /* lock_id and slot name no lock */
    DLK_COUNT_ATOMIC_TRYLOCK_FAIL,
    DLK_COUNT_ATOMIC_UNLOCK_FAIL,
    DLK_COUNT_ATOMIC_EXTEND_FAIL,
    DLK_COUNT_RW_TRYLOCK_EX_FAIL,
    DLK_COUNT_RW_UNLOCK_EX_FAIL,
    DLK_COUNT_RW_TRYLOCK_SH_FAIL,
    DLK_COUNT_RW_UNLOCK_SH_FAIL,
    DLK_COUNT_FAIR_QUEUE_LIMIT, /* no entry was free for a waiter or ticket */
    DLK_COUNT_FAIR_UNLOCK_EX_FAIL,
    DLK_COUNT_FAIR_UNLOCK_SH_FAIL,
    DLK_COUNT_FAIR_EX_TICKET_PASSED,
    DLK_COUNT_FAIR_SH_TICKET_PASSED,
    DLK_COUNT_SEMAPHORE_FAIL,
    DLK_COUNT_EAGAIN,
    DLK_COUNT_NOT_READY,
    DLK_COUNT_NO_RESOURCE,
    DLK_COUNT_OBJECT_NOT_GET,
    DLK_COUNT_DEADLOCKS,         /* waits refused because they would have closed a cycle */
    DLK_COUNT_DEADLOCK_STEPS,    /* entries looked at to find them */
    DLK_COUNT_DEADLOCK_GIVEN_UP, /* looks that became too long: the request waits */
    DLK_COUNT_CLAIMS_LIVE,       /* holds got back from clients that could still believe in them */
    DLK_COUNT_CLAIMS_LAPSED,     /* accepted though their session had lapsed */
    DLK_COUNT_CLAIMS_LOST,       /* refused: a lapsed lease, or a newer claim, or no room */
    DLK_COUNT_CLAIMS_DISPLACED,  /* accepted before a newer claim came */
    /* the plane's */
    DLK_COUNT_CONNECTIONS,
    DLK_COUNT_BAD_REQUEST,
    DLK_COUNT_CLIENT_ID_VERIFY_FAIL,
    DLK_COUNT_CLIENT_DISCONNECT,
    DLK_COUNT_NETWORK_FAIL,
    DLK_COUNT_SEND_FAIL,
    DLK_COUNT_REPLIES_DROPPED,
    DLK_COUNT_STALLS,
    DLK_COUNT_UNCONFIRMED, /* times that it held back until the state directory was confirmed */
    DLK_COUNT_VERBS_CONNECTIONS,     /* of CONNECTIONS: queue pairs */
    DLK_COUNT_VERBS_PAIR_ERRORS,     /* connections that an error of verbs has ended */
    DLK_COUNT_VERBS_CELL_OPERATIONS, /* asked over a connection, carried out by the device */
    DLK_COUNT_MAX
};

struct dlk_engine;

struct dlk_engine *dlk_engine_new(const struct dlk_limits *limits, uint32_t epoch);
void dlk_engine_free(struct dlk_engine *engine);
void dlk_engine_command(struct dlk_engine *engine, const struct dlk_command *command,
                        uint64_t now_ns);
void dlk_engine_step(struct dlk_engine *engine, const struct dlk_request *requests, size_t count,
                     uint64_t now_ns);
void dlk_engine_tick(struct dlk_engine *engine, uint64_t now_ns, uint64_t sessions_now_ns);
void dlk_engine_attached(struct dlk_engine *engine, uint32_t session, uint64_t now_ns);
void dlk_engine_stop(struct dlk_engine *engine);
uint64_t dlk_engine_next_deadline(const struct dlk_engine *engine);
size_t dlk_engine_replies(const struct dlk_engine *engine, struct dlk_reply **replies);
size_t dlk_engine_events(const struct dlk_engine *engine, struct dlk_event **events);
void dlk_engine_clear(struct dlk_engine *engine);
const uint64_t *dlk_engine_counters(const struct dlk_engine *engine);

/* What holds and waits on one lock, in order: holders first, then the queue. For tests and
 * `dlock show`; the plane thread only. Returns how many there are; writes at most `room`. */
enum dlk_entry_state {
    DLK_ENTRY_FREE = 0,
    DLK_ENTRY_HELD,
    DLK_ENTRY_QUEUED,
    DLK_ENTRY_TICKET
};

struct dlk_entry_view {
    uint64_t owner;
    uint64_t token;    /* or stamp */
    uint64_t end_ns;   /* lease end; UINT64_MAX: none */
    uint64_t since_ns; /* HELD: the grant; else when it was last asked for */
    uint64_t session_end_ns; /* when the session ends unless it is renewed */
    uint32_t session;  /* slot */
    uint32_t client_id;
    uint32_t request_id;
    uint32_t entry;    /* its handle */
    uint8_t state;     /* enum dlk_entry_state */
    uint8_t mode;
    uint16_t flags;    /* enum dlk_request_flag and enum dlk_entry_flag */
};

/* In flags of a view. */
enum dlk_entry_flag {
    DLK_ENTRY_BREAKING = 0x8000, /* an operator has asked its client to give the hold up */
    DLK_ENTRY_CLAIMED = 0x4000,  /* until all is ready: a hold that was claimed; its lease does not
                                  * run yet */
    DLK_ENTRY_AWAITED = 0x2000   /* of a waiter that was claimed, until its session has a connection
                                  * or all is ready */
};

/* One open lock in short: DLK_COMMAND_SURVEY. */
struct dlk_lock_view {
    uint32_t slot;
    uint32_t id;
    uint32_t n_exclusive; /* holders */
    uint32_t n_shared;
    uint32_t n_queue;     /* waiters and tickets */
    uint32_t size;        /* semaphores */
    uint16_t served;      /* requests that were granted or gave up, modulo 65536 */
    uint8_t kind;
    uint8_t closing;
    uint32_t session;     /* slot, of the newest holder; what follows too. Nobody: 0 */
    uint64_t owner;
    uint64_t since_ns;
    uint32_t client_id;
    uint32_t reserved;
};

size_t dlk_engine_view(const struct dlk_engine *engine, uint32_t slot, struct dlk_entry_view *out,
                       size_t room);
uint32_t dlk_engine_entries_in_use(const struct dlk_engine *engine);
int dlk_engine_check(const struct dlk_engine *engine); /* 0, or the number of a broken invariant */

/* ---- Plane (plane.h) ---- */

enum dlk_wait_mode { DLK_WAIT_BLOCK = 0, DLK_WAIT_ADAPTIVE = 1, DLK_WAIT_POLL = 2 };

struct dlk_plane_config {
    struct dlk_limits limits;
    uint32_t epoch;
    uint32_t wait_mode;  /* enum dlk_wait_mode */
    uint32_t ready;      /* enum dlk_readiness at the start */
    uint32_t spin_us;    /* adaptive: the longest spin; 0: the default */
    char host[64];       /* numeric address to listen on */
    uint32_t port;       /* 0: any */
    uint32_t stall_ms;   /* a longer gap between two turns is a stall; 0: the default */
    uint32_t confirm_ms; /* for how long after CONFIRMED it may serve; 0: for ever */
    int32_t listen_fd;   /* -1: none; else a listening stream socket of any family, which is the
                          * plane's from now on, whatever dlk_plane_new says; host is not used */
};

struct dlk_plane;

struct dlk_plane *dlk_plane_new(const struct dlk_plane_config *config, int *error);
uint32_t dlk_plane_port(const struct dlk_plane *plane);
int dlk_plane_run(struct dlk_plane *plane);   /* until dlk_plane_stop; blocks all signals */
void dlk_plane_stop(struct dlk_plane *plane); /* any thread */
/* Instead of dlk_plane_run, one turn that never waits, for a caller with one thread for everything.
 * Returns when, by dlk_now_ns, it wants to be called again at the latest (0: at once), or sooner if
 * there are commands or bytes for it; UINT64_MAX: it has ended, stopped or failed. */
uint64_t dlk_plane_turn(struct dlk_plane *plane);
int dlk_plane_error(const struct dlk_plane *plane); /* the errno that made it fail, or 0 */
struct dlk_engine *dlk_plane_engine(struct dlk_plane *plane); /* to look at between turns */
void dlk_plane_free(struct dlk_plane *plane); /* after its last turn, or dlk_plane_run */
/* The two rings; the control thread only. 1: done, 0: full or empty. */
int dlk_plane_send_command(struct dlk_plane *plane, const struct dlk_command *command);
int dlk_plane_take_event(struct dlk_plane *plane, struct dlk_event *event);
/* Readable when an event waits. When it is, clear it first and then take events until there is
 * none: only a take that found nothing asks for the next wake-up. */
int dlk_plane_event_fd(const struct dlk_plane *plane);
void dlk_plane_event_fd_clear(struct dlk_plane *plane);
void dlk_plane_counters(const struct dlk_plane *plane, uint64_t *out, size_t count);

/* ---- Of all ---- */

uint64_t dlk_now_ns(void); /* CLOCK_BOOTTIME, or what was set */
/* From now on dlk_now_ns says this, everywhere in the process; 0: the real clock again. For
 * simulated time, with nobody in a wait: those go on by the real clock. */
void dlk_clock_set(uint64_t now_ns);
void dlk_block_signals(void); /* for the calling thread: they are for others */
const char *dlk_result_text(uint32_t result);
const char *dlk_fault_text(uint32_t fault);
const char *dlk_status_text(int32_t status);
uint32_t dlk_abi_version(void);

#endif
