/*
 * Every state that a small world of each kind of lock can get into, breadth first; what must hold
 * in all of them is in walk_check.h. Of FAIR, whose tickets make more of them than all others have
 * together, only those that FEW transitions reach, unless DLOCK_WALK_ALL is set (half a minute);
 * under sanitizers the same of every kind. Two states are the same when what can be done and seen
 * from there on is the same: tokens, ids and the time itself do not count, only their order and
 * what is left of leases, waits, claims and sessions.
 *
 * The engine cannot be copied, so a state is reached again by repeating the actions that lead to
 * it, in a world emptied by the passing of time.
 */
#include "walk_check.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { FEW = 60000, SANITIZED = 1 };
#else
enum { FEW = 3000000, SANITIZED = 0 };
#endif
enum { ALL = 24000000 }; /* enough for every state that there is */
enum { STATES = 1 << 20, SLOTS = 1 << 21, DEPTH = 64, ACTS = 64, EMPTY_AFTER = 32 };

struct state {
    uint32_t parent;
    uint8_t act;
    uint8_t depth;
};

struct walk {
    struct world world;
    struct act acts[ACTS];
    size_t n_acts;
    struct state *states;
    size_t n_states;
    size_t expanded;
    size_t transitions;
    size_t transitions_max;
    uint64_t *seen; /* hashes of the states' keys; 0: free */
};

/* ---- The actions ---- */

static void add(struct walk *walk, struct act act)
{
    assert(walk->n_acts < ACTS);
    walk->acts[walk->n_acts++] = act;
}

static void add_locks(struct walk *walk, uint8_t session, enum dlk_kind kind)
{
    struct act lock = {.op = ACT_LOCK, .session = session};
    uint8_t lease = kind == DLK_KIND_RW ? 0 : LEASE;
    for (uint8_t mode = 0; mode < DLK_MODE_COUNT; mode++) {
        if (mode == DLK_MODE_SHARED && kind != DLK_KIND_RW && kind != DLK_KIND_FAIR) {
            continue;
        }
        lock.mode = mode;
        lock.flags = 0;
        lock.lease = 0;
        lock.wait = 0;
        add(walk, lock);
        lock.wait = WAIT;
        lock.lease = lease;
        add(walk, lock);
        if (kind == DLK_KIND_FAIR) {
            lock.flags = DLK_FLAG_TICKET;
            add(walk, lock);
            lock.wait = 0;
            add(walk, lock);
        } else if (lease != 0) {
            lock.flags = DLK_FLAG_FINAL_EXPIRY;
            add(walk, lock);
        }
    }
}

static void add_all(struct walk *walk, enum dlk_kind kind)
{
    for (uint8_t session = 0; session < SESSIONS; session++) {
        add_locks(walk, session, kind);
        for (uint8_t op = ACT_UNLOCK; op <= ACT_RETURN; op++) {
            struct act act = {.op = op, .session = session};
            if (op == ACT_EXTEND) {
                act.lease = LEASE;
            }
            if (op != ACT_REDEEM) {
                add(walk, act);
            } else if (kind == DLK_KIND_FAIR) {
                act.lease = LEASE;
                add(walk, act);
                act.wait = WAIT;
                act.flags = DLK_FLAG_TICKET;
                add(walk, act);
            }
        }
    }
    for (uint8_t op = ACT_CLOSE; op <= ACT_PASS; op++) {
        add(walk, (struct act){.op = op});
    }
}

/* ---- States ---- */

static uint8_t left(const struct world *world, uint64_t end)
{
    if (end == NEVER) {
        return 255;
    }
    return end <= world->now ? 0 : (uint8_t)((end - world->now) / UNIT);
}

static int by_bytes(const void *left_side, const void *right_side)
{
    return memcmp(left_side, right_side, 8);
}

/* The state without names: holders in any order, the queue in its own. */
static uint64_t key_of(const struct world *world)
{
    uint8_t key[ENTRIES + 1][8] = {{0}};
    size_t holders = 0;
    for (size_t i = 0; i < world->count; i++) {
        const struct known *known = &world->known[i];
        uint8_t *bytes = key[i];
        holders += held(known);
        bytes[0] = (uint8_t)(1 + known->view.session);
        bytes[1] = known->view.state;
        bytes[2] = known->view.mode;
        bytes[3] = (uint8_t)(known->view.flags | (breaking(known) ? 0x80 : 0));
        bytes[4] = held(known) ? left(world, known->view.end_ns) : known->lease;
        bytes[5] = left(world, known->wait_end);
        bytes[6] = left(world, known->claim_end);
    }
    qsort(key, holders, sizeof(key[0]), by_bytes);
    for (size_t slot = 0; slot < SESSIONS; slot++) {
        bool open = world->session[slot] == IS_OPEN;
        key[ENTRIES][2 * slot] = (uint8_t)world->session[slot];
        key[ENTRIES][2 * slot + 1] = open ? left(world, world->deadline[slot]) : 0;
    }
    key[ENTRIES][7] = world->closing;
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < sizeof(key); i++) {
        hash = (hash ^ key[i / 8][i % 8]) * 1099511628211u;
    }
    return hash != 0 ? hash : 1;
}

static bool is_new(struct walk *walk, uint64_t hash)
{
    size_t slot = hash % SLOTS;
    while (walk->seen[slot] != 0) {
        if (walk->seen[slot] == hash) {
            return false;
        }
        slot = (slot + 1) % SLOTS;
    }
    walk->seen[slot] = hash;
    return true;
}

/* ---- The walk ---- */

/* A world of which nothing is left but time: every session has ended, every lease too. */
static void empty(struct world *world)
{
    const struct act tick = {.op = ACT_TICK};
    world->now += EMPTY_AFTER * UNIT;
    assert(walk_act(world, &tick) && world->broken == NULL);
    for (uint8_t slot = 0; slot < SESSIONS; slot++) {
        const struct act end = {.op = ACT_END, .session = slot};
        assert(world->session[slot] != IS_ENDED
               || (walk_act(world, &end) && world->broken == NULL));
    }
    assert(world->count == 0 && dlk_engine_entries_in_use(world->engine) == 0);
    for (uint32_t slot = 0; slot < SESSIONS; slot++) {
        assert(world->session[slot] == IS_FREE);
        walk_session_open(world, slot);
    }
    walk_command(world, DLK_COMMAND_LOCK_CLOSE, 0);
    world->lock_id++;
    walk_command(world, DLK_COMMAND_LOCK_OPEN, 0);
    dlk_engine_clear(world->engine);
}

static size_t path_to(const struct walk *walk, size_t index, uint8_t *path)
{
    size_t depth = walk->states[index].depth;
    for (size_t i = depth; i > 0; i--) {
        path[i - 1] = walk->states[index].act;
        index = walk->states[index].parent;
    }
    return depth;
}

static void say_and_stop(const struct walk *walk, const uint8_t *path, size_t depth,
                         const struct act *last)
{
    printf("broken: %s\n", walk->world.broken);
    for (size_t i = 0; i <= depth; i++) {
        const struct act *act = i < depth ? &walk->acts[path[i]] : last;
        printf("  act %u session %u mode %u lease %u wait %u flags %u\n", act->op, act->session,
               act->mode, act->lease, act->wait, act->flags);
    }
    world_say(&walk->world);
    fflush(stdout);
    abort();
}

static void repeat(struct walk *walk, const uint8_t *path, size_t depth)
{
    struct world *world = &walk->world;
    empty(world);
    for (size_t i = 0; i < depth; i++) {
        bool done = walk_act(world, &walk->acts[path[i]]);
        assert(done && world->broken == NULL);
    }
}

static void expand(struct walk *walk, size_t index)
{
    uint8_t path[DEPTH];
    size_t depth = path_to(walk, index, path);
    bool there = false;
    for (size_t i = 0; i < walk->n_acts && walk->transitions < walk->transitions_max; i++) {
        if (!there) {
            repeat(walk, path, depth);
        }
        there = !walk_act(&walk->world, &walk->acts[i]);
        if (there) {
            continue;
        }
        if (walk->world.broken != NULL) {
            say_and_stop(walk, path, depth, &walk->acts[i]);
        }
        walk->transitions++;
        if (is_new(walk, key_of(&walk->world))) {
            assert(depth + 1 < DEPTH && walk->n_states < STATES);
            walk->states[walk->n_states++] = (struct state){
                .parent = (uint32_t)index, .act = (uint8_t)i, .depth = (uint8_t)(depth + 1)};
        }
    }
}

static void walk_kind(const char *name, enum dlk_kind kind, uint32_t size, uint32_t entries)
{
    const struct dlk_limits limits = {.max_locks = 1, .max_sessions = SESSIONS,
                                      .max_entries = entries, .max_lease_ms = 10 * UNIT_MS,
                                      .ticket_claim_ms = CLAIM * UNIT_MS};
    struct walk *walk = calloc(1, sizeof(*walk));
    assert(walk != NULL);
    bool few = SANITIZED || (kind == DLK_KIND_FAIR && getenv("DLOCK_WALK_ALL") == NULL);
    walk->transitions_max = few ? FEW : ALL;
    walk->states = calloc(STATES, sizeof(*walk->states));
    walk->seen = calloc(SLOTS, sizeof(*walk->seen));
    walk->world = (struct world){.engine = dlk_engine_new(&limits, 1), .kind = kind, .size = size,
                                 .now = UNIT, .lock_id = 1};
    assert(walk->states != NULL && walk->seen != NULL && walk->world.engine != NULL);
    add_all(walk, kind);
    walk_command(&walk->world, DLK_COMMAND_READY, 0);
    walk_command(&walk->world, DLK_COMMAND_LOCK_OPEN, 0);
    dlk_engine_clear(walk->world.engine);
    empty(&walk->world);
    walk->n_states = 1;
    is_new(walk, key_of(&walk->world));
    while (walk->expanded < walk->n_states && walk->transitions < walk->transitions_max) {
        expand(walk, walk->expanded++);
    }
    printf("%-10s %7zu transitions, %6zu states, %6zu of them expanded, depth %u%s\n", name,
           walk->transitions, walk->n_states, walk->expanded,
           walk->states[walk->expanded - 1].depth,
           walk->expanded == walk->n_states ? ": all there are" : "");
    assert(walk->transitions_max < ALL || walk->expanded == walk->n_states);
    dlk_engine_free(walk->world.engine);
    free(walk->states);
    free(walk->seen);
    free(walk);
}

int main(void)
{
    walk_kind("atomic", DLK_KIND_ATOMIC, 1, 4);
    walk_kind("rw", DLK_KIND_RW, 1, 4);
    walk_kind("fair", DLK_KIND_FAIR, 1, 3);
    walk_kind("semaphore", DLK_KIND_SEMAPHORE, 2, 4);
    return 0;
}
