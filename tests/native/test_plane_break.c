/* Breaking a hold over real sockets: who is told, when, and who gets the lock. */
#include "plane_world.h"

enum { LOCK = 3, OTHER = 4 };

static uint64_t break_holds(struct world *world, uint32_t slot, uint64_t token, uint32_t at_once)
{
    struct dlk_command command = {.op = DLK_COMMAND_BREAK, .slot = slot, .id = 100 + slot,
                                  .value = token, .size = at_once, .cookie = ++world->cookie,
                                  .attach = DLK_NONE};

    while (!dlk_plane_send_command(world->plane, &command)) {
        usleep(100);
    }
    struct dlk_event done = world_event(world, DLK_EVENT_DONE, command.cookie);
    assert(done.result == DLK_RESULT_DONE);
    return done.value;
}

static void expect_notice(struct peer *peer, const struct dlk_reply *hold)
{
    struct dlk_reply notice = peer_next(peer);

    assert(notice.op == DLK_OP_NOTICE && notice.result == DLK_RESULT_BROKEN);
    assert(notice.request_id == 0 && notice.epoch == 5);
    assert(notice.token == hold->token && notice.entry == hold->entry);
}

static void the_holder_is_asked_and_answers(struct world *world)
{
    struct peer a;
    struct peer b;

    peer_join(&a, world, 1);
    peer_join(&b, world, 2);
    struct dlk_reply hold = peer_lock(&a, LOCK, 0);
    assert(peer_lock(&b, LOCK, DLK_WAIT_FOREVER).result == DLK_RESULT_QUEUED);
    assert(break_holds(world, LOCK, 0, 0) == 1);
    expect_notice(&a, &hold);
    /* Nothing has been granted: the next answer on this connection is that of a PING. */
    assert(peer_ask(&b, peer_request(&b, DLK_OP_PING, 0)).op == DLK_OP_PING);
    assert(peer_unlock(&a, LOCK, &hold).result == DLK_RESULT_RELEASED);
    struct dlk_reply granted = peer_next(&b);
    assert(granted.result == DLK_RESULT_GRANTED && granted.token > hold.token);
    assert(peer_unlock(&b, LOCK, &granted).result == DLK_RESULT_RELEASED);
    peer_close(&a);
    peer_close(&b);
}

/* Broken while its client had no connection: it learns of it right behind the DONE of its attach,
 * at each of them. */
static void a_client_that_was_away_is_told(struct world *world)
{
    struct peer a;

    peer_join(&a, world, 3);
    struct dlk_reply hold = peer_lock(&a, LOCK, 0);
    struct dlk_reply other = peer_lock(&a, OTHER, 0);
    peer_close(&a);
    world_slot_event(world, DLK_EVENT_LINK_LOST, 3);
    assert(break_holds(world, LOCK, hold.token, 0) == 1);
    for (uint32_t attach = 2; attach < 4; attach++) {
        assert(world_supersede(world, 3, 1003, attach) == DLK_RESULT_DONE);
        peer_attach(&a, world, 3, 1003, attach);
        expect_notice(&a, &hold);
        assert(peer_ask(&a, peer_request(&a, DLK_OP_PING, 0)).op == DLK_OP_PING);
        if (attach == 2) {
            peer_close(&a);
        }
    }
    assert(peer_unlock(&a, LOCK, &hold).result == DLK_RESULT_RELEASED);
    assert(peer_unlock(&a, OTHER, &other).result == DLK_RESULT_RELEASED);
    peer_close(&a);
}

static void at_once_and_told(struct world *world)
{
    struct peer a;
    struct peer b;

    peer_join(&a, world, 5);
    peer_join(&b, world, 6);
    struct dlk_reply hold = peer_lock(&a, LOCK, 0);
    assert(peer_lock(&b, LOCK, DLK_WAIT_FOREVER).result == DLK_RESULT_QUEUED);
    assert(break_holds(world, LOCK, hold.token, 1) == 1);
    expect_notice(&a, &hold);
    struct dlk_reply granted = peer_next(&b);
    assert(granted.result == DLK_RESULT_GRANTED);
    assert(peer_unlock(&a, LOCK, &hold).result == DLK_RESULT_NOT_HELD);
    assert(peer_unlock(&b, LOCK, &granted).result == DLK_RESULT_RELEASED);
    peer_close(&a);
    peer_close(&b);
}

/* A look at a lock with the longest queue that one session may have is one command. */
static void a_long_queue_is_shown_in_part(struct world *world)
{
    enum { WAITERS = 6000 };
    static struct dlk_entry_view out[DLK_LOOK_MAX];
    struct dlk_command view = {.op = DLK_COMMAND_VIEW, .slot = LOCK, .id = 100 + LOCK,
                               .value = (uint64_t)(uintptr_t)out, .size = DLK_LOOK_MAX};
    struct peer a;

    peer_join(&a, world, 7);
    struct dlk_reply hold = peer_lock(&a, LOCK, 0);
    for (int i = 0; i < WAITERS; i++) {
        assert(peer_lock(&a, LOCK, DLK_WAIT_FOREVER).result == DLK_RESULT_QUEUED);
    }
    view.cookie = ++world->cookie;
    assert(dlk_plane_send_command(world->plane, &view));
    struct dlk_event done = world_event(world, DLK_EVENT_DONE, view.cookie);
    assert(done.result == DLK_RESULT_DONE && done.value == WAITERS + 1);
    assert(out[0].state == DLK_ENTRY_HELD && out[0].token == hold.token);
    for (int i = 2; i < DLK_LOOK_MAX; i++) {
        assert(out[i].state == DLK_ENTRY_QUEUED && out[i].token > out[i - 1].token);
    }
    peer_close(&a);
}

int main(void)
{
    struct dlk_plane_config config = world_config();
    static struct world world;

    world_start(&world, &config);
    world_open_lock(&world, LOCK, 100 + LOCK, DLK_KIND_ATOMIC);
    world_open_lock(&world, OTHER, 100 + OTHER, DLK_KIND_ATOMIC);
    the_holder_is_asked_and_answers(&world);
    a_client_that_was_away_is_told(&world);
    at_once_and_told(&world);
    a_long_queue_is_shown_in_part(&world);
    world_stop(&world);
    return 0;
}
