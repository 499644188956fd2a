/*
 * Every state that three actors can get into on two locks, of every pair of kinds, when each asks
 * to wait with the DEADLOCK flag and waits for one thing at a time. In none of them may anybody be
 * stuck, and whoever is refused would have been: no cycle is missed, and none is seen where there
 * is none. Who is stuck is said here from what dlk_engine_view shows, without an index and without
 * a short cut.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { TRANSITIONS = 20000, WHOLE = 0 }; /* of each pair */
#else
enum { TRANSITIONS = 350000, WHOLE = 1 }; /* every state, but of two fair locks */
#endif
enum { LOCKS = 2, ACTORS = 3, ENTRIES = 8, MODES = DLK_MODE_COUNT, STATES = 1 << 19, DEPTH = 40 };
enum { SLOTS = 4 * STATES, ROUNDS = 2 * LOCKS * ENTRIES };

enum act_op { ACT_WAIT, ACT_TICKET, ACT_UNLOCK, ACT_CANCEL, ACT_REDEEM, ACT_COUNT };
enum { ACTS = ACT_COUNT * ACTORS * LOCKS * MODES };

struct state {
    uint32_t parent;
    uint8_t act;
    uint8_t depth;
};

/* One lock as it is seen; `n_held` of the entries are holders, then comes the queue. */
struct seen {
    struct dlk_entry_view entry[ENTRIES + 1];
    size_t count;
    size_t n_held;
};

struct walk {
    struct dlk_engine *engine;
    uint32_t kind[LOCKS];
    uint32_t size;
    uint32_t next_id;
    uint32_t lock_id[LOCKS];
    struct seen seen[LOCKS];
    struct state *states;
    size_t n_states;
    uint64_t *keys;
    size_t refused;
};

/* ---- Who is stuck ---- */

static uint32_t actor_of(const struct dlk_entry_view *entry)
{
    return (uint32_t)(entry->owner >> 32);
}

static bool incompatible(uint32_t kind, const struct dlk_entry_view *a,
                         const struct dlk_entry_view *b)
{
    return kind == DLK_KIND_ATOMIC || kind == DLK_KIND_SEMAPHORE || a->mode == DLK_MODE_EXCLUSIVE
           || b->mode == DLK_MODE_EXCLUSIVE;
}

/* Does all go that is in the way of this entry of a queue, if these actors and these earlier
 * entries (`comes`: their turn) go? */
static bool turn_comes(const struct walk *walk, uint32_t lock, size_t i, const bool *goes,
                       const bool *comes)
{
    const struct seen *seen = &walk->seen[lock];
    const struct dlk_entry_view *entry = &seen->entry[i];
    bool slot = seen->n_held < walk->size;
    for (size_t k = 0; k < seen->n_held; k++) {
        bool gone = goes[actor_of(&seen->entry[k])];
        slot = slot || gone;
        if (walk->kind[lock] != DLK_KIND_SEMAPHORE && !gone
            && incompatible(walk->kind[lock], &seen->entry[k], entry)) {
            return false;
        }
    }
    for (size_t k = seen->n_held; k < i; k++) {
        bool passes = seen->entry[k].state == DLK_ENTRY_TICKET ? comes[k]
                                                               : goes[actor_of(&seen->entry[k])];
        if (!passes && incompatible(walk->kind[lock], &seen->entry[k], entry)) {
            return false;
        }
    }
    return slot || walk->kind[lock] != DLK_KIND_SEMAPHORE;
}

static bool stuck(const struct walk *walk, uint32_t actor)
{
    bool goes[ACTORS + 1];
    bool comes[LOCKS][ENTRIES + 1] = {{false}};
    memset(goes, 1, sizeof(goes));
    for (uint32_t lock = 0; lock < LOCKS; lock++) {
        for (size_t i = 0; i < walk->seen[lock].count; i++) {
            const struct dlk_entry_view *entry = &walk->seen[lock].entry[i];
            goes[actor_of(entry)] = goes[actor_of(entry)] && entry->state != DLK_ENTRY_QUEUED;
        }
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (uint32_t lock = 0; lock < LOCKS; lock++) {
            for (size_t i = walk->seen[lock].n_held; i < walk->seen[lock].count; i++) {
                const struct dlk_entry_view *entry = &walk->seen[lock].entry[i];
                comes[lock][i] = turn_comes(walk, lock, i, goes, comes[lock]);
                goes[actor_of(entry)] = goes[actor_of(entry)]
                                        || (entry->state == DLK_ENTRY_QUEUED && comes[lock][i]);
            }
        }
    }
    return !goes[actor];
}

/* ---- The world ---- */

static uint32_t session_of(uint32_t actor)
{
    return actor == ACTORS ? 1 : 0; /* the last one is in a session of its own */
}

static void command(struct walk *walk, struct dlk_command order)
{
    dlk_engine_command(walk->engine, &order, 1);
    dlk_engine_clear(walk->engine);
}

static void empty(struct walk *walk)
{
    for (uint32_t slot = 0; slot < 2; slot++) {
        command(walk, (struct dlk_command){.op = DLK_COMMAND_SESSION_CLOSE, .slot = slot,
                                           .id = 1 + slot});
        command(walk, (struct dlk_command){.op = DLK_COMMAND_SESSION_OPEN, .slot = slot,
                                           .id = 1 + slot, .ttl_ms = 1000});
    }
    assert(dlk_engine_entries_in_use(walk->engine) == 0);
    memset(walk->seen, 0, sizeof(walk->seen));
}

static void see(struct walk *walk)
{
    for (uint32_t lock = 0; lock < LOCKS; lock++) {
        struct seen *seen = &walk->seen[lock];
        seen->count = dlk_engine_view(walk->engine, lock, seen->entry, ENTRIES);
        assert(seen->count <= ENTRIES);
        seen->n_held = 0;
        while (seen->n_held < seen->count && seen->entry[seen->n_held].state == DLK_ENTRY_HELD) {
            seen->n_held++;
        }
    }
}

static const struct dlk_entry_view *find(const struct walk *walk, uint32_t lock, uint32_t actor,
                                         uint32_t state)
{
    for (size_t i = 0; i < walk->seen[lock].count; i++) {
        const struct dlk_entry_view *entry = &walk->seen[lock].entry[i];
        if (entry->state == state && actor_of(entry) == actor) {
            return entry;
        }
    }
    return NULL;
}

/* The request that the act is in this state; op 0: it means nothing. An actor that waits does
 * nothing but to end its wait. */
static struct dlk_request request_of(struct walk *walk, enum act_op op, uint32_t actor,
                                     uint32_t lock, uint32_t mode)
{
    bool modes = walk->kind[lock] == DLK_KIND_RW || walk->kind[lock] == DLK_KIND_FAIR;
    const struct dlk_entry_view *waits = find(walk, lock, actor, DLK_ENTRY_QUEUED);
    const struct dlk_entry_view *meant = op == ACT_UNLOCK ? find(walk, lock, actor, DLK_ENTRY_HELD)
                                         : op == ACT_CANCEL ? waits
                                         : find(walk, lock, actor, DLK_ENTRY_TICKET);
    bool waits_at_all = false;
    for (uint32_t any = 0; any < LOCKS; any++) {
        waits_at_all = waits_at_all || find(walk, any, actor, DLK_ENTRY_QUEUED) != NULL;
    }
    struct dlk_request asked = {.session = session_of(actor), .slot = lock, .mode = (uint8_t)mode,
                                .lock_id = walk->lock_id[lock], .entry = DLK_NONE,
                                .request_id = ++walk->next_id, .wait_ms = DLK_WAIT_FOREVER,
                                .owner = (uint64_t)actor << 32 | walk->next_id,
                                .flags = DLK_FLAG_DEADLOCK};
    bool asks = op == ACT_WAIT || op == ACT_TICKET;
    bool crowded = find(walk, lock, actor, DLK_ENTRY_TICKET) != NULL
                   || (mode == DLK_MODE_SHARED && find(walk, lock, actor, DLK_ENTRY_HELD) != NULL);
    if ((mode != DLK_MODE_EXCLUSIVE && !modes) || (op != ACT_CANCEL && waits_at_all)
        || (asks && crowded) || (!asks && (meant == NULL || meant->mode != mode))
        || (walk->kind[lock] == DLK_KIND_SEMAPHORE && asks
            && find(walk, lock, actor, DLK_ENTRY_HELD) != NULL
            && walk->seen[lock].n_held < walk->size)
        || (op == ACT_TICKET && walk->kind[lock] != DLK_KIND_FAIR)) {
        return (struct dlk_request){.op = 0};
    }
    static const uint8_t ops[] = {DLK_OP_LOCK, DLK_OP_LOCK, DLK_OP_UNLOCK, DLK_OP_CANCEL,
                                  DLK_OP_REDEEM};
    asked.op = ops[op];
    if (op == ACT_TICKET) {
        asked.wait_ms = 0;
        asked.flags = DLK_FLAG_TICKET;
    } else if (!asks) {
        asked.owner = meant->owner;
        asked.token = meant->token;
        asked.value = meant->request_id;
    }
    return asked;
}

/* As the lock would be if the refused request waited there: at the end, or in its own place. */
static void imagine(struct walk *walk, const struct dlk_request *asked)
{
    struct seen *seen = &walk->seen[asked->slot];
    for (size_t i = seen->n_held; i < seen->count && asked->op == DLK_OP_REDEEM; i++) {
        if (seen->entry[i].token == asked->token) {
            seen->entry[i].state = DLK_ENTRY_QUEUED;
            return;
        }
    }
    assert(asked->op == DLK_OP_LOCK);
    seen->entry[seen->count++] = (struct dlk_entry_view){
        .owner = asked->owner, .mode = asked->mode, .state = DLK_ENTRY_QUEUED};
}

static bool act(struct walk *walk, uint32_t number)
{
    uint32_t mode = number % MODES;
    uint32_t lock = number / MODES % LOCKS;
    uint32_t actor = 1 + number / (MODES * LOCKS) % ACTORS;
    enum act_op op = (enum act_op)(number / (MODES * LOCKS * ACTORS));
    struct dlk_request asked = request_of(walk, op, actor, lock, mode);
    if (asked.op == 0) {
        return false;
    }
    struct dlk_reply *replies;
    dlk_engine_step(walk->engine, &asked, 1, 1);
    size_t count = dlk_engine_replies(walk->engine, &replies);
    bool refused = count != 0 && replies[count - 1].result == DLK_RESULT_DEADLOCK;
    assert(count != 0 && replies[count - 1].result != DLK_RESULT_NO_RESOURCE);
    dlk_engine_clear(walk->engine);
    if (refused) {
        imagine(walk, &asked);
        assert(stuck(walk, actor));
        walk->refused++;
    }
    see(walk);
    for (uint32_t any = 1; any <= ACTORS; any++) {
        assert(!stuck(walk, any));
    }
    assert(dlk_engine_check(walk->engine) == 0);
    return true;
}

/* ---- The walk ---- */

static int by_bytes(const void *left, const void *right)
{
    return memcmp(left, right, 4);
}

/* Holders in any order, the queue in its own. */
static uint64_t key_of(const struct walk *walk)
{
    uint64_t hash = 14695981039346656037u;
    for (uint32_t lock = 0; lock < LOCKS; lock++) {
        uint8_t key[ENTRIES + 1][4] = {{0}};
        for (size_t i = 0; i < walk->seen[lock].count; i++) {
            const struct dlk_entry_view *entry = &walk->seen[lock].entry[i];
            key[i][0] = entry->state;
            key[i][1] = entry->mode;
            key[i][2] = (uint8_t)actor_of(entry);
        }
        qsort(key, walk->seen[lock].n_held, sizeof(key[0]), by_bytes);
        for (size_t i = 0; i < sizeof(key); i++) {
            hash = (hash ^ key[i / 4][i % 4]) * 1099511628211u;
        }
    }
    return hash != 0 ? hash : 1;
}

static bool is_new(struct walk *walk, uint64_t hash)
{
    size_t slot = hash % SLOTS;
    while (walk->keys[slot] != 0 && walk->keys[slot] != hash) {
        slot = (slot + 1) % SLOTS;
    }
    bool new = walk->keys[slot] == 0;
    walk->keys[slot] = hash;
    return new;
}

static void go_to(struct walk *walk, size_t index)
{
    uint8_t path[DEPTH];
    size_t depth = walk->states[index].depth;
    for (size_t i = depth; i > 0; i--) {
        path[i - 1] = walk->states[index].act;
        index = walk->states[index].parent;
    }
    empty(walk);
    for (size_t i = 0; i < depth; i++) {
        bool done = act(walk, path[i]);
        assert(done);
    }
}

static size_t expand(struct walk *walk, size_t index)
{
    size_t transitions = 0;
    bool there = false;
    for (uint8_t i = 0; i < ACTS; i++) {
        if (!there) {
            go_to(walk, index);
        }
        there = !act(walk, i);
        if (there) {
            continue;
        }
        transitions++;
        if (is_new(walk, key_of(walk))) {
            uint8_t depth = (uint8_t)(walk->states[index].depth + 1);
            assert(depth < DEPTH && walk->n_states < STATES);
            walk->states[walk->n_states++] = (struct state){
                .parent = (uint32_t)index, .act = i, .depth = depth};
        }
    }
    return transitions;
}

static void walk_pair(uint32_t left, uint32_t right)
{
    const struct dlk_limits limits = {.max_locks = LOCKS, .max_sessions = 2,
                                      .max_entries = 2 * ENTRIES, .ticket_claim_ms = 2000};
    struct walk walk = {.engine = dlk_engine_new(&limits, 1), .kind = {left, right}, .size = 2,
                        .states = calloc(STATES, sizeof(*walk.states)),
                        .keys = calloc(SLOTS, sizeof(*walk.keys))};
    assert(walk.engine != NULL && walk.states != NULL && walk.keys != NULL);
    command(&walk, (struct dlk_command){.op = DLK_COMMAND_READY, .value = 1});
    for (uint32_t lock = 0; lock < LOCKS; lock++) {
        walk.lock_id[lock] = 100 + lock;
        command(&walk, (struct dlk_command){.op = DLK_COMMAND_LOCK_OPEN, .slot = lock,
                                            .id = 100 + lock, .kind = walk.kind[lock],
                                            .size = walk.size});
    }
    empty(&walk);
    walk.n_states = is_new(&walk, key_of(&walk));
    size_t expanded = 0;
    size_t transitions = 0;
    while (expanded < walk.n_states && transitions < TRANSITIONS) {
        transitions += expand(&walk, expanded++);
    }
    printf("kinds %u and %u: %7zu transitions, %6zu states, %6zu expanded, %6zu refused\n", left,
           right, transitions, walk.n_states, expanded, walk.refused);
    fflush(stdout);
    assert(walk.refused != 0);
    bool two_fair = left == DLK_KIND_FAIR && right == DLK_KIND_FAIR;
    assert(!WHOLE || two_fair || expanded == walk.n_states);
    dlk_engine_free(walk.engine);
    free(walk.states);
    free(walk.keys);
}

int main(void)
{
    for (uint32_t left = 0; left < DLK_KIND_COUNT; left++) {
        for (uint32_t right = left; right < DLK_KIND_COUNT; right++) {
            walk_pair(left, right);
        }
    }
    return 0;
}
