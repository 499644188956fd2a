/*
 * Would this wait close a cycle? Three steps, all of them loops: collect whom the waiting actor
 * waits for, and whom those wait for, and so on; let go on whoever can, until nobody can any more;
 * and if the actor is among those who are left, look for a way over them from its wait back to it.
 *
 * A long queue is not walked. An entry whose actor waits for nothing else goes on when those in
 * front of it do, so what is in front of it stands for it: of the queue only the places of actors
 * with several waits are looked at, and for a reader one exclusive place.
 */
#include "engine_deadlock.h"

/* How many entries of the asking session are looked at to find out that nobody waits for it. */
enum { OWN_LOOKS_MAX = 64, STEPS_MAX = DLK_DEADLOCK_STEPS_MAX };

/* Counts a look. False: the walk has become too long and is given up. */
static bool look(struct deadlocks *deadlocks)
{
    if (deadlocks->steps == STEPS_MAX) {
        return false;
    }
    deadlocks->steps++;
    return true;
}

static bool given_up(const struct deadlocks *deadlocks)
{
    return deadlocks->steps == STEPS_MAX;
}

/* ---- What an entry is to those behind it ---- */

enum part {
    PART_NONE, /* nobody that we know, or its time is over: it is as if it were gone */
    PART_WAIT, /* its actor must go on */
    PART_PLACE /* a ticket: its turn must come */
};

static bool wait_is_over(const struct dlk_engine *engine, uint32_t index, uint64_t now_ns)
{
    return dlk_heap_has(&engine->waits, index)
           && dlk_heap_when_ns(&engine->waits, index) <= now_ns;
}

static enum part part_of(const struct dlk_engine *engine, uint32_t index, uint64_t now_ns)
{
    const struct entry *entry = &engine->entries[index];
    if (actor_of(entry) == 0) {
        return PART_NONE;
    }
    if (entry->state == DLK_ENTRY_TICKET) {
        return PART_PLACE;
    }
    if (!wait_is_over(engine, index, now_ns)) {
        return PART_WAIT;
    }
    return (entry->flags & DLK_FLAG_TICKET) != 0 ? PART_PLACE : PART_NONE;
}

/* ---- Collecting ---- */

static bool node_is(const struct deadlocks *deadlocks, uint32_t node, const struct entry *entry)
{
    return node < deadlocks->n_nodes && deadlocks->nodes[node].session == entry->session
           && deadlocks->nodes[node].actor == actor_of(entry);
}

/* The actor of this entry, and from this place of its bucket on all its waits. */
static uint32_t node_new(struct dlk_engine *engine, const struct entry *entry, uint32_t place,
                         uint64_t now_ns)
{
    struct deadlocks *deadlocks = engine->deadlocks;
    uint32_t node = deadlocks->n_nodes++;
    for (; place != 0 && look(deadlocks); place = deadlocks->links[place - 1].next_place) {
        uint32_t index = place - 1;
        if (same_actor(&engine->entries[index], entry) && !wait_is_over(engine, index, now_ns)) {
            deadlocks->links[index].node = node;
            deadlocks->waits[deadlocks->n_waits++] = (struct wait){.entry = index, .node = node};
        }
    }
    deadlocks->nodes[node] = (struct node){
        .session = entry->session,
        .actor = actor_of(entry),
        .edges = DLK_NONE,
    };
    return node;
}

/* The node of the entry's actor; DLK_NONE: it waits for nothing, or nobody knows it. */
static uint32_t node_of(struct dlk_engine *engine, const struct entry *entry, uint64_t now_ns)
{
    struct deadlocks *deadlocks = engine->deadlocks;
    if (actor_of(entry) == 0) {
        return DLK_NONE;
    }
    uint32_t place = deadlocks->buckets[wait_bucket(deadlocks, entry)];
    for (; place != 0 && look(deadlocks); place = deadlocks->links[place - 1].next_place) {
        uint32_t index = place - 1;
        if (same_actor(&engine->entries[index], entry) && !wait_is_over(engine, index, now_ns)) {
            uint32_t node = deadlocks->links[index].node;
            return node_is(deadlocks, node, entry) ? node
                                                   : node_new(engine, entry, place, now_ns);
        }
    }
    return DLK_NONE;
}

/* Makes the wait depend on the actor of this entry. False: that actor goes on by itself. */
static bool depend(struct dlk_engine *engine, uint32_t wait, const struct entry *on, bool any,
                   uint64_t now_ns)
{
    struct deadlocks *deadlocks = engine->deadlocks;
    uint32_t node = node_of(engine, on, now_ns);
    if (node == DLK_NONE || !look(deadlocks)) {
        return false;
    }
    deadlocks->edges[deadlocks->n_edges] = (struct edge){
        .wait = wait, .node = node, .next = deadlocks->nodes[node].edges, .any = any};
    deadlocks->nodes[node].edges = deadlocks->n_edges++;
    deadlocks->waits[wait].pending += !any;
    return true;
}

/* Every holder must go on. */
static void depend_on_holders(struct dlk_engine *engine, uint32_t wait, const struct lock *lock,
                              uint64_t now_ns)
{
    uint32_t index = lock->holders;
    while (index != DLK_NONE && look(engine->deadlocks)) {
        const struct entry *holder = &engine->entries[index];
        if (holder->end_ns > now_ns) {
            depend(engine, wait, holder, false, now_ns);
        }
        index = holder->lock_next;
    }
}

/* One of a semaphore's holders must go on. */
static void depend_on_a_slot(struct dlk_engine *engine, uint32_t wait, const struct lock *lock,
                             uint64_t now_ns)
{
    struct deadlocks *deadlocks = engine->deadlocks;
    uint32_t index = lock->n_exclusive < lock->size ? DLK_NONE : lock->holders;
    bool stuck = index != DLK_NONE;
    while (stuck && index != DLK_NONE && look(deadlocks)) {
        const struct entry *holder = &engine->entries[index];
        stuck = holder->end_ns > now_ns && depend(engine, wait, holder, true, now_ns);
        index = holder->lock_next;
    }
    if (stuck) {
        deadlocks->waits[wait].any = 1;
        deadlocks->waits[wait].pending++;
    }
}

/* The turn of an exclusive ticket: holders and waiters before it must go on. */
static void depend_on_turn(struct dlk_engine *engine, uint32_t wait, const struct lock *lock,
                           uint32_t ticket, uint64_t now_ns)
{
    depend_on_holders(engine, wait, lock, now_ns);
    uint32_t index = lock->n_plural != 0 ? lock->queue_head : ticket;
    while (index != ticket && look(engine->deadlocks)) {
        const struct entry *entry = &engine->entries[index];
        if (engine->deadlocks->links[index].state == WAIT_PLURAL
            && part_of(engine, index, now_ns) == PART_WAIT) {
            depend(engine, wait, entry, false, now_ns);
        }
        index = entry->lock_next;
    }
}

/* What stands in the queue before the waiting entry. Actors with several waits are looked at one
 * by one. All else goes on with the holders, which an exclusive waiter and those of a semaphore
 * depend on by themselves, and a reader through an exclusive place before it. */
static void depend_on_queue(struct dlk_engine *engine, uint32_t wait, const struct lock *lock,
                            uint64_t now_ns)
{
    struct deadlocks *deadlocks = engine->deadlocks;
    uint32_t last = deadlocks->waits[wait].entry;
    bool shared = engine->entries[last].mode == DLK_MODE_SHARED;
    bool behind_place = shared && (lock->n_exclusive == 0 || lock->n_plural != 0);
    uint32_t place = DLK_NONE;
    uint32_t index = lock->n_plural != 0 || behind_place ? lock->queue_head : last;
    while (index != last && look(deadlocks)) {
        const struct entry *entry = &engine->entries[index];
        enum part part = part_of(engine, index, now_ns);
        bool in_the_way = !shared || entry->mode == DLK_MODE_EXCLUSIVE;
        if (part == PART_WAIT && deadlocks->links[index].state == WAIT_PLURAL) {
            if (in_the_way) {
                depend(engine, wait, entry, false, now_ns);
            }
        } else if (part != PART_NONE && entry->mode == DLK_MODE_EXCLUSIVE && behind_place) {
            if (lock->n_plural == 0) {
                place = index;
                break; /* all exclusive places depend on the same holders */
            } else if (part == PART_WAIT) {
                depend(engine, wait, entry, false, now_ns);
            } else {
                place = index; /* the last ticket depends on all that earlier ones do */
            }
        }
        index = entry->lock_next;
    }
    if (place != DLK_NONE && part_of(engine, place, now_ns) == PART_WAIT) {
        depend(engine, wait, &engine->entries[place], false, now_ns);
    } else if (place != DLK_NONE) {
        depend_on_turn(engine, wait, lock, place, now_ns);
    }
}

static void collect(struct dlk_engine *engine, const struct entry *entry, uint64_t now_ns)
{
    struct deadlocks *deadlocks = engine->deadlocks;
    node_of(engine, entry, now_ns);
    for (uint32_t wait = 0; wait < deadlocks->n_waits && !given_up(deadlocks); wait++) {
        const struct entry *waiting = &engine->entries[deadlocks->waits[wait].entry];
        const struct lock *lock = &engine->locks[waiting->lock];
        if (lock->kind == DLK_KIND_SEMAPHORE) {
            depend_on_a_slot(engine, wait, lock, now_ns);
        } else if (waiting->mode == DLK_MODE_EXCLUSIVE || lock->n_exclusive != 0) {
            depend_on_holders(engine, wait, lock, now_ns);
        }
        depend_on_queue(engine, wait, lock, now_ns);
    }
}

/* ---- Letting go on whoever can ---- */

static void set_free(struct deadlocks *deadlocks, uint32_t number)
{
    struct node *node = &deadlocks->nodes[number];
    if (node->mark == MARK_NONE) {
        node->mark = MARK_GOES_ON;
        deadlocks->turns[deadlocks->n_turns++] = number;
    }
}

/* Is the edge's end in the way of the edge's wait? Of a semaphore's holders nobody is, if one goes
 * on. */
static bool in_the_way(const struct deadlocks *deadlocks, const struct edge *edge)
{
    return edge->any == 0 || deadlocks->waits[edge->wait].any != 0;
}

/* Marks everybody who goes on: one of whose waits ends because all that is in its way goes on. */
static void let_go(struct deadlocks *deadlocks)
{
    for (uint32_t i = 0; i < deadlocks->n_waits; i++) {
        if (deadlocks->waits[i].pending == 0) {
            set_free(deadlocks, deadlocks->waits[i].node);
        }
    }
    for (uint32_t turn = 0; turn < deadlocks->n_turns; turn++) {
        const struct node *node = &deadlocks->nodes[deadlocks->turns[turn]];
        for (uint32_t i = node->edges; i != DLK_NONE; i = deadlocks->edges[i].next) {
            const struct edge *edge = &deadlocks->edges[i];
            struct wait *wait = &deadlocks->waits[edge->wait];
            if (!in_the_way(deadlocks, edge)) {
                continue; /* another slot has become free before */
            }
            wait->any = edge->any != 0 ? 0 : wait->any;
            wait->pending--;
            if (wait->pending == 0) {
                set_free(deadlocks, wait->node);
            }
        }
    }
}

/* The shortest way from the entry's wait over those who are left back to its actor, node 0. It is
 * sought from its end: who waits for node 0, who for those, until it is the entry. Returns the node
 * that comes first, or DLK_NONE: there is no such way. */
static uint32_t way_back(struct deadlocks *deadlocks, uint32_t entry)
{
    deadlocks->turns[0] = 0;
    deadlocks->n_turns = 1;
    deadlocks->nodes[0].mark = MARK_ON_WAY;
    for (uint32_t turn = 0; turn < deadlocks->n_turns; turn++) {
        uint32_t number = deadlocks->turns[turn];
        for (uint32_t i = deadlocks->nodes[number].edges; i != DLK_NONE;
             i = deadlocks->edges[i].next) {
            const struct edge *edge = &deadlocks->edges[i];
            const struct wait *wait = &deadlocks->waits[edge->wait];
            struct node *node = &deadlocks->nodes[wait->node];
            if (!in_the_way(deadlocks, edge)) {
                continue;
            }
            if (wait->entry == entry) {
                return number;
            }
            if (node->mark == MARK_NONE) {
                node->mark = MARK_ON_WAY;
                node->through = edge->wait;
                node->after = number;
                deadlocks->turns[deadlocks->n_turns++] = wait->node;
            }
        }
    }
    return DLK_NONE;
}

/* ---- The cycle, as it is told ---- */

static void tell_edge(struct dlk_engine *engine, uint32_t index, uint32_t length)
{
    const struct entry *entry = &engine->entries[index];
    const struct deadlocks *deadlocks = engine->deadlocks;
    dlk_event_push(engine, DLK_EVENT_DEADLOCK, entry->lock, engine->locks[entry->lock].id);
    struct dlk_event *event = &engine->events[engine->n_events - 1];
    event->cookie = deadlocks->cycles;
    event->value = (uint64_t)length << 32 | actor_of(entry);
    event->result = engine->sessions[entry->session].client_id;
}

static void tell_cycle(struct dlk_engine *engine, uint32_t entry, uint32_t first)
{
    const struct deadlocks *deadlocks = engine->deadlocks;
    uint32_t length = 1;
    for (uint32_t node = first; node != 0; node = deadlocks->nodes[node].after) {
        length++;
    }
    tell_edge(engine, entry, length);
    uint32_t told = 1;
    for (uint32_t node = first; node != 0 && told < DLK_CYCLE_EDGES_MAX; told++) {
        tell_edge(engine, deadlocks->waits[deadlocks->nodes[node].through].entry, length);
        node = deadlocks->nodes[node].after;
    }
}

/* Without a waiter where the actor holds or waits, nobody waits for it: most requests end here. */
static bool may_be_waited_for(const struct dlk_engine *engine, const struct entry *entry)
{
    if (entry->lock_next != DLK_NONE) {
        return true;
    }
    uint32_t looks = 0;
    for (uint32_t i = engine->sessions[entry->session].entries; i != DLK_NONE;
         i = engine->entries[i].session_next) {
        const struct entry *own = &engine->entries[i];
        uint32_t in_queue = own->state == DLK_ENTRY_HELD ? 0 : 1;
        if (own != entry && same_actor(own, entry)
            && engine->locks[own->lock].n_queue > in_queue) {
            return true;
        }
        if (++looks == OWN_LOOKS_MAX) {
            return true;
        }
    }
    return false;
}

uint64_t dlk_deadlock_closed(struct dlk_engine *engine, const struct entry *entry, uint64_t now_ns)
{
    struct deadlocks *deadlocks = engine->deadlocks;
    if (actor_of(entry) == 0 || !may_be_waited_for(engine, entry)) {
        return 0;
    }
    if (entry->lock_next != DLK_NONE) {
        dlk_wait_mark_plural(engine, entry_index(engine, entry)); /* nothing stands for it */
    }
    deadlocks->steps = 0;
    deadlocks->n_nodes = deadlocks->n_waits = deadlocks->n_edges = deadlocks->n_turns = 0;
    collect(engine, entry, now_ns);
    dlk_count(engine, DLK_COUNT_DEADLOCK_STEPS, deadlocks->steps);
    if (given_up(deadlocks)) {
        dlk_count(engine, DLK_COUNT_DEADLOCK_GIVEN_UP, 1);
        return 0;
    }
    if (deadlocks->nodes[0].edges == DLK_NONE) {
        return 0; /* nobody was met who waits for it */
    }
    let_go(deadlocks);
    if (deadlocks->nodes[0].mark == MARK_GOES_ON) {
        return 0;
    }
    uint32_t first = way_back(deadlocks, entry_index(engine, entry));
    if (first == DLK_NONE) {
        return 0;
    }
    dlk_count(engine, DLK_COUNT_DEADLOCKS, 1);
    deadlocks->cycles++;
    tell_cycle(engine, entry_index(engine, entry), first);
    return deadlocks->cycles;
}
