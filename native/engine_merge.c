/*
 * The merge: which of the holds that clients claim are held. The claims of one lock come in any
 * order, in any grouping, some of them twice; what is held in the end is a function of the set. So
 * nothing is decided by who came first: a claim raises what is known of the lock, believed or not,
 * and what is no longer right by that is displaced. docs/lock-kinds.md, "Recovery".
 */
#include "engine_claim.h"

/* Of two exclusive claims, or two of a full semaphore, the higher one is kept. */
struct rank {
    uint64_t token;
    uint64_t owner;
    uint32_t client_id;
    uint32_t live; /* semaphores only */
};

static bool outranks(const struct rank *left, const struct rank *right)
{
    if (left->live != right->live) {
        return left->live > right->live;
    }
    if (left->token != right->token) {
        return left->token > right->token;
    }
    if (left->client_id != right->client_id) {
        return left->client_id > right->client_id;
    }
    return left->owner > right->owner;
}

static struct rank rank_of(const struct dlk_engine *engine, const struct entry *entry)
{
    bool slots = dlk_rules[engine->locks[entry->lock].kind].slots;
    return (struct rank){
        .token = entry->token,
        .owner = entry->owner,
        .client_id = engine->sessions[entry->session].client_id,
        .live = slots ? engine->claims->claimed[entry_index(engine, entry)].live : 0,
    };
}

static struct rank rank_of_floor(const struct floor *floor)
{
    return (struct rank){
        .token = floor->exclusive, .owner = floor->owner, .client_id = floor->client_id};
}

/* A hold that was believed and is not any more: its client is told. */
void dlk_merge_displace(struct dlk_engine *engine, struct entry *entry, uint64_t now_ns)
{
    dlk_count(engine, DLK_COUNT_CLAIMS_DISPLACED, entry_claimed(entry));
    dlk_reply_notice(engine, entry, DLK_RESULT_NOT_HELD, now_ns);
    dlk_entry_remove(engine, entry);
}

/* May a hold of this mode and rank be held, by all that has been claimed? */
static bool stands(const struct floor *floor, uint32_t mode, const struct rank *rank)
{
    struct rank highest = rank_of_floor(floor);
    if (mode == DLK_MODE_SHARED) {
        return rank->token > floor->exclusive;
    }
    return !outranks(&highest, rank) && rank->token >= floor->shared;
}

static bool displace_fallen(struct dlk_engine *engine, struct lock *lock,
                            const struct floor *floor, uint64_t now_ns)
{
    bool any = false;
    for (uint32_t index = lock->holders; index != DLK_NONE;) {
        struct entry *entry = &engine->entries[index];
        struct rank rank = rank_of(engine, entry);
        index = entry->lock_next;
        if (entry_claimed(entry) && !stands(floor, entry->mode, &rank)) {
            dlk_merge_displace(engine, entry, now_ns);
            any = true;
        }
    }
    return any;
}

/* True: somebody was displaced. A semaphore has no floor: that a slot was given out later says
 * nothing of the others. */
static bool raise_floor(struct dlk_engine *engine, struct lock *lock, struct floor *floor,
                        uint32_t mode, const struct rank *rank, uint64_t now_ns)
{
    struct rank highest = rank_of_floor(floor);
    if (dlk_rules[lock->kind].slots) {
        return false;
    }
    if (mode == DLK_MODE_EXCLUSIVE && outranks(rank, &highest)) {
        floor->exclusive = rank->token;
        floor->owner = rank->owner;
        floor->client_id = rank->client_id;
        return displace_fallen(engine, lock, floor, now_ns);
    }
    if (mode == DLK_MODE_SHARED && rank->token > floor->shared) {
        floor->shared = rank->token;
        return lock->n_exclusive != 0 && displace_fallen(engine, lock, floor, now_ns);
    }
    return false;
}

/* Is there room for one more slot, or is somebody of a lower rank displaced for it? */
static bool slot_for(struct dlk_engine *engine, const struct lock *lock, const struct rank *rank,
                     uint64_t now_ns)
{
    struct entry *lowest = NULL;
    struct rank least = *rank;
    if (lock->n_exclusive < lock->size) {
        return true;
    }
    for (uint32_t index = lock->holders; index != DLK_NONE;) {
        struct entry *entry = &engine->entries[index];
        struct rank other = rank_of(engine, entry);
        index = entry->lock_next;
        if (outranks(&least, &other)) {
            least = other;
            lowest = entry;
        }
    }
    if (lowest != NULL) {
        dlk_merge_displace(engine, lowest, now_ns);
    }
    return lowest != NULL;
}

/* Certain is a lock that live claims fill: the former server can have granted it to nobody else. */
static bool is_filled(const struct dlk_engine *engine, const struct lock *lock)
{
    uint32_t live = 0;
    if (lock->n_exclusive < (dlk_rules[lock->kind].slots ? lock->size : 1)) {
        return false;
    }
    for (uint32_t index = lock->holders; index != DLK_NONE;) {
        live += engine->claims->claimed[index].live != 0;
        index = engine->entries[index].lock_next;
    }
    return live == lock->n_exclusive;
}

/* The same hold, claimed before; sought on the shorter of the lists that it must be on. */
static struct entry *known_hold(struct dlk_engine *engine, const struct dlk_request *as)
{
    const struct lock *lock = &engine->locks[as->slot];
    const struct session *session = &engine->sessions[as->session];
    bool by_session = session->n_entries < lock->n_exclusive + lock->n_shared;
    for (uint32_t index = by_session ? session->entries : lock->holders; index != DLK_NONE;) {
        struct entry *entry = &engine->entries[index];
        index = by_session ? entry->session_next : entry->lock_next;
        if (entry->state == DLK_ENTRY_HELD && entry_claimed(entry) && entry->lock == as->slot
            && entry->session == as->session && entry->owner == as->owner
            && entry->token == as->token && entry->mode == as->mode) {
            return entry;
        }
    }
    return NULL;
}

static uint32_t take_hold(struct dlk_engine *engine, const struct dlk_request *as,
                          const struct dlk_claim *claim, uint64_t now_ns)
{
    struct entry *entry = dlk_entry_new(engine, as);
    if (entry == NULL) {
        dlk_count(engine, DLK_COUNT_CLAIMS_LOST, 1);
        dlk_count(engine, DLK_COUNT_NO_RESOURCE, 1);
        return DLK_RESULT_NO_RESOURCE;
    }
    uint32_t least_ms = claim->remaining_ms != 0 ? claim->remaining_ms : 1;
    engine->claims->claimed[entry_index(engine, entry)] = (struct claimed){
        .lease_ms = claim->leased != 0 ? least_ms : 0, .live = claim->lapsed == 0};
    entry->flags = (uint16_t)((claim->flags & DLK_FLAG_FINAL_EXPIRY) | DLK_ENTRY_CLAIMED);
    dlk_entry_take_hold(engine, entry, claim->token, now_ns);
    dlk_count(engine, claim->lapsed == 0 ? DLK_COUNT_CLAIMS_LIVE : DLK_COUNT_CLAIMS_LAPSED, 1);
    return DLK_RESULT_GRANTED;
}

uint32_t dlk_merge_hold(struct dlk_engine *engine, const struct dlk_request *as,
                        const struct dlk_claim *claim, bool believed, uint64_t now_ns)
{
    struct lock *lock = &engine->locks[as->slot];
    struct floor *floor = &engine->claims->floors[as->slot];
    bool slots = dlk_rules[lock->kind].slots;
    bool live = claim->lapsed == 0;
    uint32_t result = DLK_RESULT_NOT_HELD;
    const struct rank rank = {
        .token = claim->token,
        .owner = claim->owner,
        .client_id = engine->sessions[as->session].client_id,
        .live = slots && live,
    };
    bool changed = raise_floor(engine, lock, floor, as->mode, &rank, now_ns);
    struct entry *known = known_hold(engine, as);
    if (known != NULL) {
        struct claimed *claimed = &engine->claims->claimed[entry_index(engine, known)];
        changed = changed || (live && claimed->live == 0);
        claimed->live = claimed->live != 0 || live;
        result = DLK_RESULT_GRANTED;
    } else if ((live || (claim->leased == 0 && believed)) && floor->moved == 0
               && (slots ? slot_for(engine, lock, &rank, now_ns)
                         : stands(floor, as->mode, &rank))) {
        result = take_hold(engine, as, claim, now_ns);
        changed = true;
    } else {
        dlk_count(engine, DLK_COUNT_CLAIMS_LOST, 1);
    }
    if (changed && floor->moved == 0) {
        floor->certain = is_filled(engine, lock);
    }
    return result;
}

/* No claimed hold is held that what was claimed speaks against, and nothing of a former server is
 * held that was not claimed. */
bool dlk_merge_check(const struct dlk_engine *engine, const struct lock *lock)
{
    const struct floor *floor =
        engine->claims != NULL ? &engine->claims->floors[lock_index(engine, lock)] : NULL;
    for (uint32_t index = lock->holders; index != DLK_NONE;) {
        const struct entry *entry = &engine->entries[index];
        index = entry->lock_next;
        if (!entry_claimed(entry)) {
            continue;
        }
        if (floor == NULL || engine->readiness == DLK_READY_ALL || entry->end_ns != DLK_NEVER
            || floor->lock_id != lock->id
            || entry->token >> DLK_COUNTER_BITS >= engine->epoch) {
            return false;
        }
        struct rank rank = rank_of(engine, entry);
        if (!dlk_rules[lock->kind].slots && !stands(floor, entry->mode, &rank)) {
            return false;
        }
    }
    return true;
}
