/*
 * The measuring ends as Python sees them (docs/benchmarks.md). The fourth part of what dlock_abi.h
 * begins; the same rules.
 */
#ifndef DLOCK_ABI_BENCH_H
#define DLOCK_ABI_BENCH_H

#include "abi_client.h"

/* The measuring ends, in C so that no interpreter is measured. Each runs for about duration_ms in
 * the calling thread, and returns 0 or an errno. No server and no client calls them. */
struct dlk_bench_result {
    uint64_t count;      /* pairs, or messages that came back */
    uint64_t refused;    /* BUSY */
    uint64_t errors;     /* answers that fit no question */
    uint64_t elapsed_ns;
    uint64_t cpu_ns;     /* of the calling process, its other threads included */
    uint64_t samples;    /* how many were written */
};

/* The engine alone: pairs of LOCK and UNLOCK. */
struct dlk_bench_engine {
    uint32_t kind;        /* enum dlk_kind */
    uint32_t mode;        /* enum dlk_mode */
    uint32_t locks;
    uint32_t sessions;
    uint32_t batch;       /* requests a step */
    uint32_t held;        /* locks held before the first of them is unlocked, >= batch */
    uint32_t duration_ms;
    uint32_t bare;        /* 1: one 8-byte word a lock in the place of the engine */
};

/* Resident bytes of an engine, each stage on top of the one before. */
struct dlk_bench_memory {
    uint64_t empty;
    uint64_t opened;  /* every lock open */
    uint64_t held;    /* and held, with a lease */
    uint64_t queued;  /* and wanted by one more, who waits */
};

enum dlk_bench_work {
    DLK_BENCH_ECHO = 0, /* any 64 bytes, to dlk_bench_echo */
    DLK_BENCH_PAIRS = 1 /* LOCK and UNLOCK, to a server; every answer is checked */
};

/* A load: on each of n connections, `window` requests under way. Request k of connection c works on
 * lock c * window + k of the arrays below, with owner k. */
struct dlk_bench_load {
    uint32_t work;      /* enum dlk_bench_work */
    uint32_t wait_mode; /* BLOCK or POLL */
    uint32_t connections;
    uint32_t window;
    uint32_t mode;      /* enum dlk_mode */
    uint32_t lease_ms;
    uint32_t wait_ms;   /* 0: only try */
    uint32_t duration_ms;
    uint32_t hand_over; /* 1: a sample is the time from an UNLOCK to the next grant; 0: from a
                         * request to its answer */
    uint32_t samples_room;
    const int32_t *fds; /* connected; attached where there is a server */
    const uint32_t *client_ids;
    const uint32_t *lock_ids;
    const uint32_t *slots;
    uint64_t *counts;      /* by connection: pairs or messages */
    uint32_t *samples_ns;  /* or NULL */
};

/* Clients of the client library, a thread each, all on one lock: waits, holds, unlocks. A sample is
 * the time from before one thread's unlock to the return of the next one's lock. */
struct dlk_bench_crowd {
    uint32_t clients;
    uint32_t lock_id;
    uint32_t mode;
    uint32_t lease_ms;
    uint32_t wait_ms;
    uint32_t duration_ms;
    uint32_t hold_us;           /* asleep, so that everybody else has come to rest in the queue */
    uint32_t samples_room;
    struct dlk_client **client; /* each has got the lock, with owner 0 */
    uint64_t *counts;           /* by client: grants */
    uint32_t *samples_ns;
};

enum dlk_bench_call_work {
    DLK_BENCH_LOCK_UNLOCK = 0, /* TRYLOCK, UNLOCK */
    DLK_BENCH_FETCH_ADD = 1,
    DLK_BENCH_COMPARE_SWAP = 2, /* each with what the one before has left */
    DLK_BENCH_READ = 3
};

/* Clients of the client library that ask one thing after the other, over whichever link they have;
 * one thread for all. */
struct dlk_bench_calls {
    uint32_t work; /* enum dlk_bench_call_work */
    uint32_t clients;
    uint32_t lease_ms;
    uint32_t duration_ms;
    uint32_t samples_room;       /* of each of the two */
    struct dlk_client **client;
    const uint32_t *ids;         /* by client: its lock (owner 0) or object, which it has got */
    uint64_t *values;            /* by client: what its object holds; updated; or NULL: 0 */
    uint32_t *samples_ns;        /* of TRYLOCK, or of the operation */
    uint32_t *unlock_samples_ns; /* of the UNLOCK of the same pair */
};

/* How the answers of a text or HTTP protocol are told from each other. */
enum dlk_bench_framing {
    DLK_BENCH_LINES = 0, /* an answer ends with LF */
    DLK_BENCH_HTTP = 1,  /* HTTP/1.1: the head, and as much as Content-Length says */
    DLK_BENCH_HTTP2 = 2  /* the DATA of a stream, until it is ended */
};

enum dlk_bench_wire_limit {
    DLK_BENCH_ASKS_MAX = 64,
    DLK_BENCH_PATCHES_MAX = 2,    /* of one request */
    DLK_BENCH_KEPT_MAX = 4,       /* pieces of answers that a connection keeps */
    DLK_BENCH_PIECE_BYTES_MAX = 64
};

/* Where a kept piece is put into a request, before it is sent. */
struct dlk_bench_patch {
    uint32_t offset; /* from the beginning of the request */
    uint32_t bytes;
    uint32_t kept;
};

/* One request of a conversation, and what its answer has to be. Of HTTP/2 it is whole frames, whose
 * stream ids are filled in. */
struct dlk_bench_ask {
    uint32_t begin;  /* in the bytes of its connection */
    uint32_t length;
    const unsigned char *expect; /* a good answer has these bytes in it */
    const unsigned char *marker; /* and behind these comes the piece to keep */
    uint32_t expect_bytes;
    uint32_t marker_bytes;
    uint32_t piece_bytes;        /* 0: nothing is kept */
    uint32_t kept;               /* where: < DLK_BENCH_KEPT_MAX */
    uint32_t patches;
    struct dlk_bench_patch patch[2];
};

/* Conversations over TCP with a server that is not dlock's own, one request under way on each
 * connection. All have the same shape; their bytes are their own. */
struct dlk_bench_wire {
    uint32_t framing;       /* enum dlk_bench_framing */
    uint32_t wait_mode;     /* BLOCK or POLL */
    uint32_t connections;
    uint32_t asks;
    uint32_t repeat_from;   /* what follows the last one; those before are asked once */
    uint32_t bytes_each;    /* of each connection */
    uint32_t opening_bytes; /* the first of them, sent at once and not answered */
    uint32_t duration_ms;
    uint32_t rounds_min;    /* goes on until each connection has done so many, and any at all, */
    uint32_t patience_ms;   /* but not longer than this */
    uint32_t samples_room;
    const int32_t *fds;     /* connected */
    const struct dlk_bench_ask *ask;
    unsigned char *bytes;   /* patched in place */
    uint64_t *counts;       /* by connection: rounds in which every answer was good */
    uint32_t *samples_ns;   /* from a request to its answer; or NULL */
};

int dlk_bench_engine(const struct dlk_bench_engine *config, struct dlk_bench_result *result);
int dlk_bench_memory(uint32_t locks, struct dlk_bench_memory *memory);
int dlk_bench_load(const struct dlk_bench_load *load, struct dlk_bench_result *result);
int dlk_bench_crowd(const struct dlk_bench_crowd *crowd, struct dlk_bench_result *result);
int dlk_bench_calls(const struct dlk_bench_calls *calls, struct dlk_bench_result *result);
int dlk_bench_wire(const struct dlk_bench_wire *wire, struct dlk_bench_result *result);
/* Accepts this many connections and echoes what they send until all have closed. */
int dlk_bench_echo(int32_t listener, uint32_t connections, uint32_t wait_mode);

#endif
