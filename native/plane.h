/*
 * The data-plane loop, shared by its files; nothing outside native/plane*.c includes this. The
 * calls for everyone else are declared in dlock_abi.h.
 *
 * One turn: wait -> commands -> receive and decode -> read the clock -> step -> answer -> tick ->
 * answer -> events. Between the clock and whatever depends on it stands one question: may this
 * plane still serve? If not, the turn ends there, and the next one goes on from there once it may.
 * dlk_plane_run takes turns and waits within and between them; dlk_plane_turn takes one that only
 * looks, and leaves the waiting to its caller. Only the plane thread (or that caller) touches what
 * is below, but for the two rings, `stop`, `confirmed_ns`, `published`, the wake-up call of the
 * transport, and the control thread's calls of `verbs`.
 *
 *   plane.c           the life of a plane, its turn, how it waits
 *   plane_authority.c how long it may serve without a look at the state directory
 *   plane_control.c   commands, events, counters: all that the control thread sees
 *   plane_link.c      the links: accept, attach, receive, close
 *   plane_send.c      the engine's outbox: answers, output that is blocked
 *   plane_cells.c     cell operations: by the processor or the device, never both at a time
 *   plane_verbs.c     queue pairs: what the control thread makes, what becomes of it
 *
 * Passes. A pass is what one look at the transport found, plus what earlier passes left unread;
 * every link of it is received from once before the next look. A link that holds more than one
 * receive took goes into the next pass. So when a pass that was begun at time T is stepped, every
 * request that had arrived before T has been stepped, or an earlier one of the same session has,
 * after T. That is all that ending a session needs, and a link that is never empty cannot stop it.
 */
#ifndef DLOCK_PLANE_H
#define DLOCK_PLANE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "adaptive.h"
#include "engine.h"
#include "ring.h"
#include "verbs_transport.h"

enum {
    DLK_PLANE_UNATTACHED_MAX = 256,      /* connections that have not proved a session */
    DLK_PLANE_ATTACH_MS = 5000,          /* the time they have for it ... */
    DLK_PLANE_ATTACH_CROWDED_MS = 100,   /* ... and when there are that many */
    DLK_PLANE_RETRY_MS = 100,            /* after an accept for which there was no descriptor */
    DLK_PLANE_OUTPUT_PAUSE = 256 * 1024, /* bytes unsent: no more is read from the link */
    DLK_PLANE_OUTPUT_MAX = 4 * 1024 * 1024, /* more than its requests under way can cause */
    DLK_PLANE_CHUNK = 2 * DLK_STEP_MAX,  /* replies that are grouped and sent together */
    DLK_PLANE_RING = 4096,               /* items of the command and of the event ring */
    DLK_PLANE_LOOK = 256,                /* links that one look at the transport tells */
    DLK_PLANE_SLEEP_MS_MAX = 500,        /* so that a stall of the machine is noticed */
    DLK_PLANE_BACKLOG_MS = 10,           /* how soon events that did not fit are tried again */
    DLK_PLANE_HOLD_MS = 1,               /* between two looks for a confirmation that is awaited */
    DLK_PLANE_STOP_MS = 200,             /* what a stop gives the last answers ... */
    DLK_PLANE_STOP_LOOK_MS = 10          /* ... and how often it looks whether they are gone */
};

/* Where a turn was held back. */
enum dlk_plane_held {
    DLK_PLANE_HELD_NOWHERE = 0,
    DLK_PLANE_HELD_BEGUN,   /* nothing has been received */
    DLK_PLANE_HELD_RECEIVED /* the batch is there, but not stepped */
};

/* How far the end of a plane has come. */
enum dlk_plane_end { DLK_PLANE_GOES_ON = 0, DLK_PLANE_ENDING, DLK_PLANE_ENDED };

enum dlk_link_state { DLK_LINK_FREE = 0, DLK_LINK_NEW, DLK_LINK_ATTACHED };

struct dlk_plane_link {
    uint32_t state; /* enum dlk_link_state */
    uint32_t client_id;
    uint32_t session;    /* slot */
    uint32_t request_id; /* of the attach frame, until it is answered */
    uint64_t accepted_ns;
    uint32_t older; /* links that have not attached, in the order of their arrival */
    uint32_t newer;
    uint32_t group_count; /* replies of the chunk that is being sent */
    uint32_t group_end;
    unsigned char *output; /* NULL: nothing is blocked */
    uint32_t output_start;
    uint32_t output_end;
    uint32_t output_room;
    uint8_t partial_bytes; /* of a frame whose rest has not come */
    bool queued;
    bool paused;  /* not read from until its output has drained */
    bool hang_up; /* receive until GONE */
    unsigned char partial[DLK_FRAME_BYTES];
};

struct dlk_plane {
    struct dlk_ring commands;
    struct dlk_ring events;
    atomic_bool stop;
    _Atomic uint64_t confirmed_ns;             /* CONFIRMED, as the control thread wrote it */
    _Atomic uint64_t published[DLK_COUNT_MAX]; /* the plane's counters, as anyone reads them */
    int event_fd;
    int failed; /* errno that made the plane stop by itself */

    struct dlk_engine *engine;
    struct dlk_transport *transport;
    struct dlk_verbs_transport *verbs; /* the same; NULL: it knows only TCP */
    struct dlk_limits limits;
    uint32_t port;
    uint64_t *cells; /* page aligned, by object slot */
    size_t cells_bytes;
    uint64_t counters[DLK_COUNT_MAX];

    /* Authority. */
    uint64_t confirm_ns;     /* 0: it needs none */
    uint64_t serve_until_ns; /* by the confirmation that was last looked at */
    enum dlk_plane_held held;

    /* The end. */
    enum dlk_plane_end end;
    uint64_t end_ns; /* when the last answers are given up */

    /* Time and waiting. */
    struct dlk_adaptive adaptive;
    uint64_t clock_ns;    /* as last read */
    uint64_t intended_ns; /* how long the plane has meant to sleep since then */
    uint64_t stall_ns;
    uint64_t stalled_ns; /* the longest stall since the last tick; 0: none */
    uint64_t wait_start_ns;
    bool waited;
    bool slept;
    uint64_t pass_ns; /* when this pass was begun */
    uint32_t pass_left;
    bool pass_whole;     /* the look was at everything, and told everything */
    uint64_t emptied_ns; /* begin of the last pass that was stepped to its end */

    /* Links. */
    struct dlk_plane_link *links;
    uint32_t n_links;
    uint32_t *free_links;
    uint32_t n_free_links;
    uint32_t *queue; /* links to receive from; a ring of n_links places */
    uint32_t queue_head;
    uint32_t queue_count;
    uint32_t *session_links; /* by session slot */
    bool *attach_used;       /* by session slot: its attach number has been used */
    uint32_t oldest_new;
    uint32_t newest_new;
    uint32_t n_new;
    uint32_t n_blocked; /* links with output */
    bool accept_pending;
    uint64_t accept_retry_ns;
    uint32_t attached[DLK_PLANE_UNATTACHED_MAX]; /* in this turn; not yet answered */
    uint32_t n_attached;

    /* The batch in, the chunk out, the events that did not fit. */
    struct dlk_request *batch;
    size_t n_batch;
    struct dlk_reply *grouped;
    uint32_t *reply_links;
    uint32_t *touched;
    struct dlk_event *backlog;
    size_t backlog_start;
    size_t backlog_end;
    size_t backlog_room;
    struct dlk_ready ready[DLK_PLANE_LOOK];
};

/* plane.c: reads the clock and notices a stall. */
uint64_t dlk_plane_clock(struct dlk_plane *plane);

/* plane_authority.c */
void dlk_plane_authority_begin(struct dlk_plane *plane, uint32_t confirm_ms);
void dlk_plane_confirmed(struct dlk_plane *plane, uint64_t seen_ns); /* the control thread */
bool dlk_plane_authorized(struct dlk_plane *plane, uint64_t now_ns);
bool dlk_plane_hold_back(struct dlk_plane *plane, enum dlk_plane_held where);
bool dlk_plane_released(struct dlk_plane *plane); /* may a turn that was held back go on? */

/* To be asked when the clock has been read. False: the turn is over; it goes on from `where`. */
static inline bool dlk_plane_may_serve(struct dlk_plane *plane, enum dlk_plane_held where)
{
    return plane->clock_ns <= plane->serve_until_ns || dlk_plane_hold_back(plane, where);
}

/* plane_control.c */
bool dlk_plane_commands(struct dlk_plane *plane); /* false: held back */
void dlk_plane_event(struct dlk_plane *plane, const struct dlk_event *event);
void dlk_plane_flush_events(struct dlk_plane *plane);
void dlk_plane_publish(struct dlk_plane *plane);
void dlk_plane_grace(struct dlk_plane *plane);

/* plane_link.c */
size_t dlk_plane_look(struct dlk_plane *plane, uint64_t timeout_ns);
void dlk_plane_enqueue(struct dlk_plane *plane, uint32_t number);
void dlk_plane_receive(struct dlk_plane *plane);
void dlk_plane_answer_attached(struct dlk_plane *plane, uint64_t now_ns);
void dlk_plane_end_unattached(struct dlk_plane *plane);
uint64_t dlk_plane_link_deadline(const struct dlk_plane *plane);
uint32_t dlk_plane_link_of(const struct dlk_plane *plane, uint32_t session);
void dlk_plane_link_retire(struct dlk_plane *plane, uint32_t number); /* the server wants it */
void dlk_plane_link_lost(struct dlk_plane *plane, uint32_t number);   /* the peer or the network */
void dlk_plane_link_fault(struct dlk_plane *plane, uint32_t number, uint32_t fault);

/* plane_cells.c */
uint32_t dlk_plane_cell_open(struct dlk_plane *plane, uint32_t slot, uint64_t value); /* its key */
void dlk_plane_cell_close(struct dlk_plane *plane, uint32_t slot);
void dlk_plane_cell_carry_out(struct dlk_plane *plane, struct dlk_reply *reply);
void dlk_plane_cells_by_device(struct dlk_plane *plane, struct dlk_reply *replies, size_t count);

/* plane_verbs.c */
uint32_t dlk_plane_link_open(struct dlk_plane *plane, const struct dlk_command *command);
void dlk_plane_verbs_notices(struct dlk_plane *plane);
bool dlk_plane_verbs_lingers(const struct dlk_plane *plane);

/* plane_send.c */
void dlk_plane_outbox(struct dlk_plane *plane);
void dlk_plane_deliver(struct dlk_plane *plane, uint32_t number, const void *bytes, size_t length);
void dlk_plane_drain(struct dlk_plane *plane, uint32_t number);
void dlk_plane_drop_output(struct dlk_plane *plane, struct dlk_plane_link *link);

#endif
