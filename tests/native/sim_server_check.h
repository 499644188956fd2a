/*
 * What must hold at the server of a simulated world, after each thing that its engine has done:
 * tokens, the order of queues, who loses a hold and why, and what is said behind what.
 */
#ifndef DLOCK_SIM_SERVER_CHECK_H
#define DLOCK_SIM_SERVER_CHECK_H

#include "sim_check.h"

static inline const struct sim_held *sim_held_before(const struct sim_world *world, uint64_t token)
{
    for (size_t i = 0; i < world->n_held; i++) {
        if (world->held[i].token == token) {
            return &world->held[i];
        }
    }
    return NULL;
}

/* Whatever is held now, and was not before, has a token above all that were ever given; unless it
 * was claimed. Nothing makes the end of a hold later that is being broken. */
static inline void sim_check_hold(struct sim_world *world, const struct sim_held *hold,
                                  uint32_t mode, const struct sim_held *now, size_t n_now)
{
    const struct sim_held *before = sim_held_before(world, hold->token);
    bool former = world->recovering && hold->token >> DLK_COUNTER_BITS < world->epoch;
    for (size_t i = 0; i < n_now; i++) {
        if (now[i].token == hold->token) {
            sim_fail(world, "token %llu twice", (unsigned long long)hold->token);
        }
    }
    if (before == NULL && hold->token <= world->highest_token && !former) {
        sim_fail(world, "token %llu is new, but not the highest",
                 (unsigned long long)hold->token);
    }
    if (before != NULL && before->breaking && !before->claimed
        && hold->end_ns > before->end_ns) {
        sim_fail(world, "token %llu is being broken, and was extended by %llu ns",
                 (unsigned long long)hold->token,
                 (unsigned long long)(hold->end_ns - before->end_ns));
    }
    if (before == NULL && !former && hold->token > world->granted[hold->lock][mode]) {
        world->granted[hold->lock][mode] = hold->token;
    }
}

static inline void sim_check_place_order(struct sim_world *world, uint32_t lock,
                                         const struct dlk_entry_view *view, uint64_t *stamp)
{
    if (view->token <= *stamp) {
        sim_fail(world, "lock %u: stamp %llu stands behind %llu", sim_lock_id(lock),
                 (unsigned long long)view->token, (unsigned long long)*stamp);
    }
    *stamp = view->token;
}

/* What is held now, into `now`. */
static inline size_t sim_look_at_locks(struct sim_world *world, struct sim_held *now)
{
    struct dlk_entry_view views[SIM_ENTRIES];
    size_t n_now = 0;
    for (uint32_t lock = 0; lock < SIM_LOCKS; lock++) {
        size_t count = dlk_engine_view(world->engine, lock, views, SIM_ENTRIES);
        uint64_t stamp = 0;
        for (size_t i = 0; i < count; i++) {
            if (views[i].state != DLK_ENTRY_HELD) {
                sim_check_place_order(world, lock, &views[i], &stamp);
                continue;
            }
            now[n_now] = (struct sim_held){
                .token = views[i].token,
                .owner = views[i].owner,
                .end_ns = views[i].end_ns,
                .session = views[i].session,
                .lock = lock,
                .breaking = (views[i].flags & DLK_ENTRY_BREAKING) != 0,
                .claimed = (views[i].flags & DLK_ENTRY_CLAIMED) != 0,
            };
            sim_check_hold(world, &now[n_now], views[i].mode, now, n_now);
            n_now++;
        }
    }
    return n_now;
}

static inline bool sim_gives_back(const struct sim_held *hold, const struct dlk_request *asked)
{
    bool meant = asked->session == hold->session && asked->owner == hold->owner
                 && asked->lock_id == sim_lock_id(hold->lock);
    return meant && (asked->op == DLK_OP_UNLOCK || asked->op == DLK_OP_CANCEL
                     || asked->op == DLK_OP_GIVE_UP);
}

/* Without a word of the control plane a hold goes because its client has given it back, or because
 * its lease has ended. */
static inline void sim_check_gone(struct sim_world *world, const struct dlk_request *asked,
                                  size_t n_asked)
{
    struct sim_held now[SIM_ENTRIES];
    size_t n_now = sim_look_at_locks(world, now);
    for (size_t i = 0; i < world->n_held; i++) {
        const struct sim_held *hold = &world->held[i];
        bool explained = hold->end_ns <= world->now && !hold->claimed;
        for (size_t k = 0; k < n_now && !explained; k++) {
            explained = now[k].token == hold->token;
        }
        for (size_t k = 0; k < n_asked && !explained; k++) {
            explained = sim_gives_back(hold, &asked[k]);
        }
        if (!explained) {
            sim_fail(world, "token %llu is gone %llu ns before its end",
                     (unsigned long long)hold->token,
                     (unsigned long long)(hold->end_ns - world->now));
        }
    }
}

static inline void sim_check_tokens(struct sim_world *world)
{
    struct sim_held now[SIM_ENTRIES];
    int problem = dlk_engine_check(world->engine);
    if (problem != 0) {
        sim_fail(world, "dlk_engine_check says %d", problem);
    }
    size_t n_now = sim_look_at_locks(world, now);
    world->any_breaking = false;
    for (size_t i = 0; i < n_now; i++) {
        world->highest_token =
            now[i].token > world->highest_token ? now[i].token : world->highest_token;
        world->any_breaking = world->any_breaking || now[i].breaking;
    }
    memcpy(world->held, now, n_now * sizeof(now[0]));
    world->n_held = n_now;
}

/* Who is told of a hold that was being broken before is told of its end behind it. */
static inline void sim_check_told_behind(struct sim_world *world, const struct dlk_reply *replies,
                                         size_t count)
{
    for (size_t i = 0; i < count && world->any_breaking; i++) {
        const struct sim_held *hold = replies[i].result == DLK_RESULT_GRANTED
                                              || replies[i].result == DLK_RESULT_EXTENDED
                                          ? sim_held_before(world, replies[i].token)
                                          : NULL;
        bool told = hold == NULL || !hold->breaking;
        for (size_t k = i + 1; k < count && !told; k++) {
            told = replies[k].op == DLK_OP_NOTICE && replies[k].token == replies[i].token;
        }
        if (!told) {
            sim_fail(world, "token %llu is being broken, and its client is told that it holds it",
                     (unsigned long long)replies[i].token);
        }
    }
}

#endif
