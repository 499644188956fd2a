/*
 * A plane whose turns are taken by hand, and one with a thread of its own, do the same: one script
 * by chance, the same clock, every answer alike to the byte, and the same locks in the end.
 */
#include "plane_hand.h"

enum {
    PEERS = 4,
    STEPS = 300,
    FRAMES_MAX = 6,  /* in one write */
    HOLDS = 16,      /* that a peer remembers */
    REPLIES_MAX = 64 /* of one step to one peer */
};
enum form { BY_HAND_BLOCK, BY_HAND_POLL, THREAD };

struct hold {
    uint64_t token;
    uint64_t owner;
    uint32_t entry;
    uint32_t lock;
};

struct member {
    struct peer peer;
    uint32_t attach;
    struct hold holds[HOLDS];
    uint32_t n_holds;
    struct hold asked[FRAMES_MAX]; /* of this step, by its place */
    uint32_t first_request;
};

/* What came in each step, of the run that was first. */
struct heard {
    uint32_t counts[STEPS][PEERS];
    struct dlk_reply replies[STEPS][PEERS][REPLIES_MAX];
    struct dlk_entry_view views[4][64];
    size_t n_views[4];
};

struct run {
    enum form form;
    struct hand hand;
    pthread_t thread;
    struct member members[PEERS];
    uint64_t random;
    struct heard *heard;
    bool first; /* it fills `heard`; the others compare */
};

static uint32_t chance(struct run *run, uint32_t below)
{
    run->random ^= run->random << 13;
    run->random ^= run->random >> 7;
    run->random ^= run->random << 17;
    return (uint32_t)(run->random >> 20) % below;
}

static void *thread_body(void *argument)
{
    struct run *run = argument;

    assert(dlk_plane_run(run->hand.plane) == 0);
    return NULL;
}

/* By hand everything has been done afterwards; with a thread, at least this command. */
static void carry_out(struct run *run, struct dlk_command command)
{
    uint64_t cookie = hand_command(&run->hand, command);
    uint64_t last_ms = WORLD_PATIENCE_MS;

    if (run->form != THREAD) {
        hand_turns(&run->hand);
        assert(hand_done(&run->hand, cookie));
        return;
    }
    while (!hand_done(&run->hand, cookie)) {
        assert(last_ms-- > 0);
        usleep(1000);
    }
}

/* Nobody hears of everything that ends; but a turn that is followed by another one has ended. */
static void see_the_time(struct run *run)
{
    for (int i = 0; i < 2; i++) {
        carry_out(run, (struct dlk_command){
                           .op = DLK_COMMAND_SESSION_RENEW, .slot = 0, .id = 1000});
    }
}

static void join_again(struct run *run, uint32_t number)
{
    struct member *member = &run->members[number];
    uint32_t id = 1000 + number;
    struct dlk_command command = {
        .op = member->attach == 0 ? DLK_COMMAND_SESSION_OPEN : DLK_COMMAND_SESSION_SUPERSEDE,
        .slot = number,
        .id = id,
        .attach = member->attach + 1,
        .ttl_ms = 3600 * 1000,
        .lease_ms = DLK_MAX_LEASE_MS_DEFAULT,
        .secret = {1, 2, 3, (uint8_t)number}};
    struct dlk_attach frame = peer_attach_frame(number, id, command.attach);
    struct peer before = member->peer;

    if (member->attach != 0) {
        peer_close(&before);
    }
    carry_out(run, command);
    member->attach++;
    hand_connect(&member->peer, &run->hand);
    member->peer.id = id;
    member->peer.slot = number;
    member->peer.next_request = before.next_request;
    assert(peer_send(&member->peer, &frame, sizeof(frame)));
    if (run->form != THREAD) {
        hand_turns(&run->hand);
    }
    assert(peer_next(&member->peer).result == DLK_RESULT_DONE);
}

static void open_locks(struct run *run)
{
    for (uint32_t kind = 0; kind < DLK_KIND_COUNT; kind++) {
        carry_out(run, (struct dlk_command){.op = DLK_COMMAND_LOCK_OPEN,
                                            .slot = kind,
                                            .id = 100 + kind,
                                            .kind = kind,
                                            .size = kind == DLK_KIND_SEMAPHORE ? 2 : 1});
    }
}

static struct dlk_request any_request(struct run *run, struct member *member, uint32_t place)
{
    static const uint8_t ops[] = {DLK_OP_LOCK, DLK_OP_LOCK,   DLK_OP_LOCK,   DLK_OP_UNLOCK,
                                  DLK_OP_PING, DLK_OP_UNLOCK, DLK_OP_EXTEND, DLK_OP_CANCEL};
    uint32_t op = ops[chance(run, sizeof(ops))];
    uint32_t lock = chance(run, DLK_KIND_COUNT);
    struct dlk_request request = peer_request(&member->peer, op, lock);
    const struct hold *hold = &member->holds[chance(run, HOLDS)];

    request.owner = chance(run, 2);
    if (op == DLK_OP_LOCK) {
        request.mode = (uint8_t)(lock == DLK_KIND_RW || lock == DLK_KIND_FAIR ? chance(run, 2) : 0);
        request.wait_ms = chance(run, 3) * 150;
        request.lease_ms = lock == DLK_KIND_RW ? 0 : chance(run, 3) * 250;
    } else if (op == DLK_OP_PING) {
        request.lock_id = request.slot = 0;
        request.owner = 0;
    } else if (op == DLK_OP_CANCEL) {
        request.value = member->peer.next_request - chance(run, 8);
    } else if (hold->token != 0) {
        request.lock_id = 100 + hold->lock;
        request.slot = hold->lock;
        request.token = hold->token;
        request.entry = hold->entry;
        request.owner = hold->owner;
        request.lease_ms = op == DLK_OP_EXTEND ? chance(run, 2) * 400 : 0;
    }
    member->asked[place] = (struct hold){.owner = request.owner, .lock = request.slot};
    return request;
}

/* Several frames in one write, or the last of them in two. */
static void ask_something(struct run *run, struct member *member)
{
    struct dlk_request frames[FRAMES_MAX];
    uint32_t count = 1 + chance(run, FRAMES_MAX);
    size_t split = chance(run, 2) * (1 + chance(run, DLK_FRAME_BYTES - 1));

    member->first_request = member->peer.next_request + 1;
    for (uint32_t i = 0; i < count; i++) {
        frames[i] = any_request(run, member, i);
    }
    size_t bytes = count * sizeof(frames[0]);
    assert(peer_send(&member->peer, frames, bytes - split));
    if (chance(run, 2) == 0 && run->form != THREAD) {
        hand_turns(&run->hand);
    }
    assert(peer_send(&member->peer, (char *)frames + bytes - split, split));
}

static void take_note(struct member *member, const struct dlk_reply *reply)
{
    uint32_t place = reply->request_id - member->first_request;

    if (reply->result == DLK_RESULT_GRANTED && reply->op == DLK_OP_LOCK && place < FRAMES_MAX) {
        struct hold *hold = &member->holds[member->n_holds++ % HOLDS];
        *hold = member->asked[place];
        hold->token = reply->token;
        hold->entry = reply->entry;
    }
}

/* What everybody hears of the step. */
static void listen_to_all(struct run *run, uint32_t step)
{
    for (uint32_t i = 0; i < PEERS; i++) {
        struct member *member = &run->members[i];
        struct heard *heard = run->heard;
        for (uint32_t n = 0;; n++) {
            struct dlk_reply reply;
            bool more = run->first ? !hand_silent(&member->peer) : n < heard->counts[step][i];
            if (!more) {
                break;
            }
            reply = peer_next(&member->peer);
            if (run->first) {
                assert(n < REPLIES_MAX);
                heard->replies[step][i][n] = reply;
                heard->counts[step][i] = n + 1;
            }
            assert(memcmp(&reply, &heard->replies[step][i][n], sizeof(reply)) == 0);
            take_note(member, &reply);
        }
        assert(run->form == THREAD || hand_silent(&member->peer));
    }
}

static void one_step(struct run *run, uint32_t step)
{
    uint32_t what = chance(run, 20);
    uint32_t who = chance(run, PEERS);

    if (what == 0) {
        join_again(run, who);
    } else if (what < 5) {
        hand_pass_ms(&run->hand, 1 + chance(run, 200));
        see_the_time(run);
    } else {
        ask_something(run, &run->members[who]);
    }
    if (run->form != THREAD) {
        hand_turns(&run->hand);
    }
    listen_to_all(run, step);
}

/* When the plane has ended: who waited has been sent away, who held holds. */
static void look_at_the_locks(struct run *run)
{
    struct dlk_engine *engine = dlk_plane_engine(run->hand.plane);

    assert(dlk_engine_check(engine) == 0);
    for (uint32_t lock = 0; lock < DLK_KIND_COUNT; lock++) {
        struct dlk_entry_view views[64] = {0};
        size_t count = dlk_engine_view(engine, lock, views, 64);
        if (run->first) {
            run->heard->n_views[lock] = count;
            memcpy(run->heard->views[lock], views, sizeof(views));
        }
        assert(count <= 64 && count == run->heard->n_views[lock]);
        assert(memcmp(views, run->heard->views[lock], sizeof(views)) == 0);
    }
}

static void play(uint64_t seed, enum form form, struct heard *heard, bool first)
{
    static struct run run;
    struct dlk_plane_config config = world_config();

    memset(&run, 0, sizeof(run));
    run.form = form;
    run.random = seed;
    run.heard = heard;
    run.first = first;
    config.wait_mode = form == BY_HAND_BLOCK ? DLK_WAIT_BLOCK : DLK_WAIT_POLL;
    hand_start_with(&run.hand, &config);
    if (form == THREAD) {
        assert(pthread_create(&run.thread, NULL, thread_body, &run) == 0);
    }
    open_locks(&run);
    for (uint32_t i = 0; i < PEERS; i++) {
        join_again(&run, i);
    }
    for (uint32_t step = 0; step < STEPS; step++) {
        one_step(&run, step);
    }
    dlk_plane_stop(run.hand.plane);
    if (form == THREAD) {
        assert(pthread_join(run.thread, NULL) == 0);
    } else {
        hand_turns(&run.hand);
    }
    look_at_the_locks(&run);
    for (uint32_t i = 0; i < PEERS; i++) {
        peer_close(&run.members[i].peer);
    }
    dlk_plane_free(run.hand.plane);
    dlk_clock_set(0);
}

int main(void)
{
    static struct heard heard;

    for (uint64_t seed = 1; seed <= 8; seed++) {
        memset(&heard, 0, sizeof(heard));
        play(seed * 0x9E3779B97F4A7C15u, BY_HAND_BLOCK, &heard, true);
        play(seed * 0x9E3779B97F4A7C15u, BY_HAND_POLL, &heard, false);
        play(seed * 0x9E3779B97F4A7C15u, THREAD, &heard, false);
    }
    return 0;
}
