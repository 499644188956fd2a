/*
 * A simulated world for the client's book and the engine: one true time, a clock of its own for
 * each client, a network of queues, and chance from one seed. Everything is a function of the seed.
 * sim_client.h has the client's shell, sim_way.h how it gets connections, sim_plane.h the server's
 * loop, sim_recover.h what becomes of a new server, sim_check.h what must hold.
 *
 * True time is the server's clock; a client's clock runs up to 0.1 % slower or faster.
 */
#ifndef DLOCK_SIM_H
#define DLOCK_SIM_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client_book.h"
#include "codec.h"
#include "engine.h"

enum {
    SIM_POOL = 24, /* client objects: the living, and those whose leases still run */
    SIM_LIVE = 4,  /* at most */
    SIM_OWNERS = 4,
    SIM_LOCKS = 6,
    SIM_HOLDS = SIM_OWNERS * SIM_LOCKS,
    SIM_CALLS = 10,
    SIM_LINKS = 96,
    SIM_SESSIONS = 32,
    SIM_ENTRIES = 160,
    SIM_ORDERS = 64,
    SIM_PERMITS = 2,
    SIM_BROKEN = 256,
    SIM_CLAIMS = 6, /* in one message, at most */
    SIM_LINES = 100,
    SIM_LINE_BYTES = 160
};

#define SIM_MS ((uint64_t)1000000)
#define SIM_S ((uint64_t)1000000000)

/* ---- The network ---- */

struct sim_packet {
    uint64_t at_ns; /* when it arrives */
    unsigned char bytes[DLK_FRAME_BYTES];
};

/* One direction of a connection: first in, first out. */
struct sim_pipe {
    struct sim_packet *packets;
    size_t first;
    size_t count;
    size_t room;
    uint64_t last_ns; /* the latest arrival */
    bool closed;      /* takes nothing more; its end arrives at last_ns */
};

enum sim_server_end { SIM_NEW, SIM_ATTACHED, SIM_GONE };

struct sim_link {
    bool used;
    bool queued;      /* in the plane's pass */
    bool client_gone; /* the client does not read it any more */
    enum sim_server_end server;
    uint32_t session;
    uint32_t client_id;
    struct sim_pipe up;
    struct sim_pipe down;
};

/* ---- A client ---- */

struct sim_call {
    struct dlk_call call; /* first: a pointer to it is one to this */
    bool active;          /* begun, and neither told nor cancelled */
    bool posted;
    bool ended;           /* the shell was told so */
    bool queued;          /* it was heard to stand in the server's queue */
    bool answered;        /* the server has said something final to it, heard or not */
    uint64_t begun_ns;    /* by its client's clock */
    uint32_t serial;
};

/* GHOST: its session is over, its leases may not be. */
enum sim_life { SIM_UNUSED, SIM_LIVING, SIM_GHOST };
enum sim_way { SIM_OFFLINE, SIM_ASKING, SIM_CONNECTING, SIM_CLAIMING, SIM_FINISHING };

/* What was told of one hold, and what it was when the book was looked at last. */
struct sim_told {
    uint64_t token;    /* held; 0: not */
    uint64_t lost;     /* the last token that was told LOST or BROKEN */
    uint64_t given_up; /* the last token that its user gave up */
    bool suspended;
    bool renews;
    bool forsaken; /* cancelled; it goes when the operation that runs on it has ended */
};

struct sim_client {
    enum sim_life life;
    uint32_t index;
    struct dlk_book book;
    int64_t ppm;
    uint64_t offset_ns;
    uint32_t client_id;
    uint32_t session;     /* slot */
    bool opened;          /* the session is there */
    bool leaving;         /* told to close, nothing believed any more */
    int link;             /* -1: none */
    bool up;
    enum sim_way way;
    uint32_t ask;         /* number of the control request that is under way, also its attach */
    uint64_t way_until_ns;
    uint32_t told_epoch;  /* of the newest server that it has told everything */
    uint32_t home_epoch;  /* of the newest one that knows that */
    uint32_t ready_epoch; /* of the newest one that it has heard to be ready */
    struct dlk_claim claims[SIM_HOLDS];
    uint64_t claims_at_ns[SIM_HOLDS]; /* when the answer to each comes; 0: it has been taken in */
    int32_t claims_said[SIM_HOLDS];
    uint32_t n_claims;
    bool answered;
    uint32_t answer_result;
    uint32_t answer_epoch;
    uint64_t answer_at_ns;
    uint64_t attach_sent_ns; /* by its own clock */
    uint64_t stalled_until_ns;
    uint64_t crowded_until_ns; /* too much is unsent: calls are put off */
    struct sim_call ping;
    uint64_t ping_sent_ns;
    uint64_t retried_ns;
    struct sim_call calls[SIM_CALLS];
    struct sim_told told[SIM_HOLDS];
    bool session_suspended; /* as told */
    bool removed;           /* as told */
    bool forgets;           /* its calls end for a reason that excuses them */
};

/* ---- The server ---- */

struct sim_order {
    uint64_t at_ns;
    struct dlk_command command;
    int client; /* whose answer it is; -1: nobody's */
    uint32_t ask;
    bool early;    /* SESSION_OPEN at a server that recovers */
    bool finishes; /* no command: the client is back */
    uint32_t n_claims;
    uint32_t which[SIM_CLAIMS];
    struct dlk_claim claims[SIM_CLAIMS];
};

/* A hold as the server has it. */
struct sim_held {
    uint64_t token;
    uint64_t owner;
    uint64_t end_ns;
    uint32_t session;
    uint32_t lock;
    bool breaking;
    bool claimed; /* its lease does not run yet */
};

/* What the weather of a world is like. */
struct sim_weather {
    bool healthy;          /* no faults, small delays: leases that renew are never suspended */
    uint32_t delay_us;     /* of a packet, at most */
    uint32_t pause_us;     /* between two steps, at most */
    uint32_t fault_pm;     /* per mille of the steps */
    uint32_t break_pm;     /* of what users do: an operator breaks holds */
    uint32_t spike_pm;     /* of the packets: delayed by up to two sessions */
    uint32_t ttl_ms;
    uint32_t reply_timeout_ms;
    uint32_t lease_ms;     /* the longest */
    uint32_t batch;        /* requests in a step of the engine, at most */
    uint32_t clients;
    uint32_t crash_pm;   /* of those faults that may be the server's death */
    bool forgetful;      /* users drop locks by force that they hold */
    uint32_t first_lock; /* the locks and owners that are used */
    uint32_t locks;
    uint32_t owners;
};

struct sim_world {
    uint64_t seed;
    uint64_t random;
    uint64_t now; /* true time, ns */
    uint32_t step;
    bool healing; /* faults are over */
    bool loud;    /* tells everything */
    struct sim_weather weather;
    struct sim_client clients[SIM_POOL];
    struct sim_link links[SIM_LINKS];
    uint32_t asks;
    uint32_t next_client_id;
    uint32_t serial;
    /* the server */
    struct dlk_engine *engine;
    uint32_t epoch;
    bool ready;
    bool recovering;
    uint64_t evict_ns; /* who is not back by then is waited for no longer */
    uint64_t ended_until_ns; /* leases of sessions that have ended may be believed in until then */
    bool opened[SIM_SESSIONS]; /* in this engine */
    bool back[SIM_SESSIONS];
    bool slot_used[SIM_SESSIONS];
    int session_link[SIM_SESSIONS];
    uint32_t roster[SIM_SESSIONS]; /* client ids of the sessions that have not been struck */
    uint64_t strike_at_ns[SIM_SESSIONS]; /* when an ended one is; 0: it has not ended */
    bool attach_used[SIM_SESSIONS];
    uint64_t deadline_ns[SIM_SESSIONS]; /* of the session, unless a grace is longer */
    int queue[SIM_LINKS];
    size_t queue_count;
    size_t pass_left;
    uint64_t pass_ns;
    uint64_t emptied_ns;
    uint64_t stalled_ns;
    uint64_t plane_stalled_until_ns;
    struct sim_order orders[SIM_ORDERS];
    size_t n_orders;
    /* what is checked */
    uint64_t highest_token;
    struct sim_held held[SIM_ENTRIES]; /* at the server, after its last step */
    size_t n_held;
    bool any_breaking;
    uint64_t granted[SIM_LOCKS][DLK_MODE_COUNT]; /* the highest token that was ever granted */
    uint64_t broken[SIM_BROKEN]; /* tokens that were broken at once */
    uint32_t n_broken;
    bool dropped; /* somebody forgot a hold by force: it stays until its session ends */
    uint64_t counts[DLK_RESULT_COUNT];   /* replies, by result */
    uint64_t notices[DLK_NOTICE_OVERFLOW + 1];
    uint64_t beliefs; /* looked at */
    uint64_t kept;    /* waits that were queued, and again over another connection */
    uint64_t claimed[DLK_RESULT_COUNT]; /* answers to claims, by result */
    uint64_t recoveries;
    uint64_t interrupted;
    char lines[SIM_LINES][SIM_LINE_BYTES];
    uint32_t n_lines;
};

static const uint32_t sim_kind[SIM_LOCKS] = {DLK_KIND_ATOMIC, DLK_KIND_RW,   DLK_KIND_FAIR,
                                             DLK_KIND_SEMAPHORE, DLK_KIND_ATOMIC, DLK_KIND_FAIR};

static inline uint32_t sim_lock_id(uint32_t lock)
{
    return 100 + lock;
}

/* Two owners of one actor, one of another, and one of nobody known. */
static inline uint64_t sim_owner(uint32_t owner)
{
    static const uint64_t actors[SIM_OWNERS] = {1, 1, 2, 0};
    return actors[owner] << 32 | (owner + 1);
}

/* ---- Chance ---- */

static inline uint64_t sim_random(struct sim_world *world)
{
    uint64_t mixed = (world->random += 0x9e3779b97f4a7c15u);
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
    return mixed ^ (mixed >> 31);
}

static inline uint32_t sim_below(struct sim_world *world, uint32_t end)
{
    return end == 0 ? 0 : (uint32_t)(sim_random(world) % end);
}

static inline bool sim_chance(struct sim_world *world, uint32_t per_mille)
{
    return sim_below(world, 1000) < per_mille;
}

/* Of a fault: none in good weather. */
static inline bool sim_fault(struct sim_world *world, uint32_t per_mille)
{
    return !world->healing && !world->weather.healthy && sim_chance(world, per_mille);
}

/* ---- What is told when it fails ---- */

__attribute__((format(printf, 2, 3)))
static inline void sim_say(struct sim_world *world, const char *format, ...)
{
    char *line = world->lines[world->n_lines++ % SIM_LINES];
    int length = snprintf(line, SIM_LINE_BYTES, "%6u %12.6f ", world->step,
                          (double)world->now / 1e9);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + length, SIM_LINE_BYTES - (size_t)length, format, arguments);
    va_end(arguments);
    if (world->loud) {
        puts(line);
    }
}

__attribute__((format(printf, 2, 3), noreturn))
static inline void sim_fail(struct sim_world *world, const char *format, ...)
{
    uint32_t first = world->n_lines > SIM_LINES ? world->n_lines - SIM_LINES : 0;
    for (uint32_t i = first; i < world->n_lines; i++) {
        fprintf(stderr, "%s\n", world->lines[i % SIM_LINES]);
    }
    fprintf(stderr, "FAILED: seed %llu, step %u: ", (unsigned long long)world->seed, world->step);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    exit(1);
}

/* ---- Clocks ---- */

static inline uint64_t sim_local_ns(const struct sim_client *client, uint64_t true_ns)
{
    return client->offset_ns + true_ns + (uint64_t)((int64_t)true_ns * client->ppm / 1000000);
}

/* The first true time at which the client's clock shows this. */
static inline uint64_t sim_true_ns(const struct sim_client *client, uint64_t local_ns)
{
    if (local_ns == DLK_NEVER_NS || local_ns <= client->offset_ns) {
        return local_ns == DLK_NEVER_NS ? DLK_NEVER_NS : 0;
    }
    uint64_t true_ns = (uint64_t)((double)(local_ns - client->offset_ns)
                                  / (1.0 + (double)client->ppm / 1e6));
    true_ns = true_ns > 1000 ? true_ns - 1000 : 0;
    while (sim_local_ns(client, true_ns) < local_ns) {
        true_ns++;
    }
    return true_ns;
}

/* ---- Pipes and links ---- */

static inline uint64_t sim_delay_ns(struct sim_world *world)
{
    uint64_t delay_ns = (uint64_t)sim_below(world, world->weather.delay_us + 1) * 1000;
    if (sim_fault(world, world->weather.spike_pm)) {
        delay_ns += (uint64_t)sim_below(world, 2 * world->weather.ttl_ms) * SIM_MS;
    }
    return delay_ns;
}

static inline void sim_pipe_put(struct sim_world *world, struct sim_pipe *pipe, const void *frame)
{
    if (pipe->closed) {
        return;
    }
    if (pipe->count == pipe->room) {
        pipe->room = pipe->room == 0 ? 32 : 2 * pipe->room;
        pipe->packets = realloc(pipe->packets, pipe->room * sizeof(*pipe->packets));
        if (pipe->packets == NULL) {
            abort();
        }
    }
    struct sim_packet *packet = &pipe->packets[pipe->count++];
    uint64_t at_ns = world->now + sim_delay_ns(world);
    pipe->last_ns = at_ns > pipe->last_ns ? at_ns : pipe->last_ns;
    packet->at_ns = pipe->last_ns;
    memcpy(packet->bytes, frame, DLK_FRAME_BYTES);
}

/* The next frame that has arrived, or NULL. */
static inline const void *sim_pipe_take(const struct sim_world *world, struct sim_pipe *pipe)
{
    if (pipe->first == pipe->count || pipe->packets[pipe->first].at_ns > world->now) {
        return NULL;
    }
    const void *frame = pipe->packets[pipe->first++].bytes;
    return frame;
}

/* No more taken from it for now: makes room. */
static inline void sim_pipe_pack(struct sim_pipe *pipe)
{
    if (pipe->first != 0) {
        pipe->count -= pipe->first;
        memmove(pipe->packets, pipe->packets + pipe->first, pipe->count * sizeof(*pipe->packets));
        pipe->first = 0;
    }
}

static inline bool sim_pipe_ended(const struct sim_world *world, const struct sim_pipe *pipe)
{
    return pipe->closed && pipe->first == pipe->count && pipe->last_ns <= world->now;
}

static inline bool sim_pipe_readable(const struct sim_world *world, const struct sim_pipe *pipe)
{
    return sim_pipe_ended(world, pipe)
           || (pipe->first != pipe->count && pipe->packets[pipe->first].at_ns <= world->now);
}

static inline void sim_pipe_close(struct sim_world *world, struct sim_pipe *pipe)
{
    if (!pipe->closed) {
        uint64_t at_ns = world->now + sim_delay_ns(world);
        pipe->last_ns = at_ns > pipe->last_ns ? at_ns : pipe->last_ns;
        pipe->closed = true;
    }
}

/* What has not arrived is lost, from some packet on. */
static inline void sim_pipe_cut(struct sim_world *world, struct sim_pipe *pipe)
{
    sim_pipe_pack(pipe);
    size_t arrived = 0;
    while (arrived < pipe->count && pipe->packets[arrived].at_ns <= world->now) {
        arrived++;
    }
    pipe->count = arrived + sim_below(world, (uint32_t)(pipe->count - arrived + 1));
    pipe->last_ns = pipe->count != 0 ? pipe->packets[pipe->count - 1].at_ns : 0;
    sim_pipe_close(world, pipe);
}

static inline int sim_link_new(struct sim_world *world)
{
    for (int i = 0; i < SIM_LINKS; i++) {
        struct sim_link *link = &world->links[i];
        if (link->used && link->server == SIM_GONE && link->client_gone && !link->queued) {
            free(link->up.packets);
            free(link->down.packets);
            link->used = false;
        }
        if (!link->used) {
            *link = (struct sim_link){.used = true, .session = DLK_NONE};
            return i;
        }
    }
    sim_fail(world, "the world is short of links");
}

#endif
