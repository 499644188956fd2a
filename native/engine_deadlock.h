/*
 * Who waits for whom: the index of those who wait (engine_waits.c), and the walk that finds out
 * whether one more wait would close a cycle (engine_deadlock.c). The law is docs/lock-kinds.md,
 * "Deadlock". For the engine's own files only.
 *
 * An actor is (session, upper half of the owner). The index has the QUEUED entries of known actors
 * by actor, in tables beside the entries, so that a hold stays one cache line and only an entry
 * that waits touches them.
 */
#ifndef DLOCK_ENGINE_DEADLOCK_H
#define DLOCK_ENGINE_DEADLOCK_H

#include "engine_internal.h"

/* A walk looks at this many entries and no more; one that would have to is given up, and the
 * request waits. It also bounds the tables of a walk: each row of them costs a look. */
enum { DLK_DEADLOCK_STEPS_MAX = 16384 };

/* Is an entry in the index, and has its actor had another wait beside it (or stood in the middle of
 * a queue when it asked)? Those who had not wait for what is in front of them and nothing else. */
enum wait_state { WAIT_NONE = 0, WAIT_SINGLE, WAIT_PLURAL };

/* Beside each entry. Places are indices plus one, so that a table of zeros is an empty one. */
struct wait_link {
    uint32_t next_place; /* in its bucket */
    uint32_t prev_place;
    uint32_t node; /* of its actor in the walk under way, if the node there has the same name */
    uint32_t state;
};

enum node_mark { MARK_NONE = 0, MARK_GOES_ON, MARK_ON_WAY };

/* An actor that waits. */
struct node {
    uint32_t session;
    uint32_t actor;
    uint32_t edges;   /* to it, linked through their next */
    uint32_t mark;    /* enum node_mark */
    uint32_t through; /* on the way back: its wait, */
    uint32_t after;   /* for this node */
};

/* One of its waits. */
struct wait {
    uint32_t entry;
    uint32_t node;
    uint32_t pending; /* how many must go on before this wait ends; all holders of a semaphore count
                       * as one */
    uint32_t any;     /* 1: the holders of a semaphore are among them */
};

/* A wait that does not end before an actor goes on; `any`: or another one that holds a slot. */
struct edge {
    uint32_t wait;
    uint32_t node;
    uint32_t next;
    uint32_t any;
};

struct deadlocks {
    uint32_t *buckets; /* places */
    struct wait_link *links; /* by entry */
    uint32_t mask; /* of the buckets */
    uint32_t steps; /* of the walk under way */
    uint32_t n_nodes;
    uint32_t n_waits;
    uint32_t n_edges;
    uint32_t n_turns;
    uint64_t cycles; /* refused so far */
    struct node *nodes;
    struct wait *waits;
    struct edge *edges;
    uint32_t *turns; /* nodes, in the order in which they were marked */
};

static inline uint32_t actor_of(const struct entry *entry)
{
    return (uint32_t)(entry->owner >> 32);
}

static inline bool same_actor(const struct entry *left, const struct entry *right)
{
    return left->session == right->session && actor_of(left) == actor_of(right);
}

static inline uint32_t wait_bucket(const struct deadlocks *deadlocks, const struct entry *entry)
{
    uint64_t key = (uint64_t)entry->session << 32 | actor_of(entry);
    return (uint32_t)((key * 0x9e3779b97f4a7c15u) >> 32) & deadlocks->mask;
}

#endif
