/*
 * Credits without a device: what each end may send, what it must say, what it finds out about an
 * other end that lies; then random walks of two ends over a wire that delays, against an oracle
 * which counts places: none is ever missing, and whatever the two have done before, when both take
 * what came, both can send again.
 *
 * test_verbs_credit SEED repeats one walk and says what it was.
 */
#include "verbs_credit.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WALKS = 3000, STEPS = 2000, WIRE = 64, BITS_16 = 65536 };

struct end {
    struct dlk_credit credit;
    uint32_t wire[WIRE]; /* immediate data on the way to this end */
    uint32_t wire_first;
    uint32_t wire_count;
    uint32_t held;  /* messages that came and were not taken */
    uint32_t idle;  /* taken, but their places not yet given back */
    uint32_t batch; /* they are given back by so many at once */
    /* The oracle. */
    uint32_t places;     /* that are really free: a message without one is an overrun */
    uint64_t messages;   /* received in all */
    uint64_t empty_sent;
};

static uint32_t rnd(uint64_t *state)
{
    *state = *state * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)(*state >> 33);
}

static void begin(struct end *end, uint32_t window, uint32_t peer_window, uint32_t start,
                  uint32_t batch)
{
    memset(end, 0, sizeof(*end));
    dlk_credit_init(&end->credit, window);
    end->credit.peer_window = peer_window;
    end->credit.taken = start;
    end->credit.said = start;
    end->credit.received = start;
    end->places = window;
    end->batch = batch;
}

static void begin_sender(struct end *end, uint32_t start)
{
    end->credit.sent = start;
    end->credit.told = start;
}

static void post(struct end *from, struct end *to, uint32_t messages)
{
    uint32_t immediate = dlk_credit_spend(&from->credit, messages);
    for (uint32_t i = 0; i < messages; i++) {
        assert(to->places > 0);
        to->places--;
        assert(to->wire_count < WIRE);
        to->wire[(to->wire_first + to->wire_count++) % WIRE] = immediate;
    }
}

static bool arrive(struct end *end)
{
    if (end->wire_count == 0) {
        return false;
    }
    assert(dlk_credit_receive(&end->credit, end->wire[end->wire_first]));
    end->wire_first = (end->wire_first + 1) % WIRE;
    end->wire_count--;
    end->held++;
    end->messages++;
    return true;
}

static bool take(struct end *end)
{
    if (end->held == 0) {
        return false;
    }
    end->held--;
    if (++end->idle >= end->batch) {
        end->places += end->idle;
        dlk_credit_take(&end->credit, end->idle);
        end->idle = 0;
    }
    return true;
}

static bool tell(struct end *from, struct end *to)
{
    if (!dlk_credit_owes(&from->credit) || dlk_credit_places(&from->credit) == 0) {
        return false;
    }
    post(from, to, 1);
    from->empty_sent++;
    return true;
}

static bool send_some(struct end *from, struct end *to, uint32_t most)
{
    uint32_t room = dlk_credit_room(&from->credit);
    uint32_t messages = room < most ? room : most;
    if (messages != 0) {
        post(from, to, messages);
    }
    return messages != 0;
}

/* Both do what they can but send: then nothing moves any more, and both have room. */
static void settle(struct end *a, struct end *b)
{
    bool moved = true;
    for (uint32_t rounds = 0; moved; rounds++) {
        assert(rounds < 10000); /* two that only tell come to rest */
        moved = false;
        for (struct end *end = a, *other = b;; end = b, other = a) {
            moved |= arrive(end);
            moved |= take(end);
            moved |= tell(end, other);
            if (end == b) {
                break;
            }
        }
    }
    assert(dlk_credit_room(&a->credit) > 0 && dlk_credit_room(&b->credit) > 0);
}

static void step(struct end *end, struct end *other, uint64_t *state)
{
    switch (rnd(state) % 8) {
    case 0:
    case 1:
        (void)arrive(end);
        break;
    case 2:
    case 3:
        (void)take(end);
        break;
    case 4:
        (void)tell(end, other);
        break;
    case 5:
        while (send_some(end, other, 1 + rnd(state) % 4)) {
        }
        break;
    default:
        (void)send_some(end, other, 1 + rnd(state) % 20);
    }
}

static void walk(uint64_t seed, bool aloud)
{
    uint64_t state = seed * 2654435761U + 1;
    struct end ends[2];
    uint32_t windows[2];
    uint32_t starts[2];
    for (int i = 0; i < 2; i++) {
        windows[i] = DLK_CREDIT_WINDOW_MIN + rnd(&state) % 30;
        starts[i] = rnd(&state) % 2 == 0 ? 0 : (uint32_t)-(int32_t)(rnd(&state) % 500);
    }
    for (int i = 0; i < 2; i++) {
        uint32_t most = windows[i] / DLK_CREDIT_WINDOW_MIN;
        begin(&ends[i], windows[i], windows[1 - i], starts[1 - i], 1 + rnd(&state) % most);
        begin_sender(&ends[i], starts[i]);
    }
    if (aloud) {
        printf("seed %llu: windows %u and %u, batches %u and %u\n", (unsigned long long)seed,
               windows[0], windows[1], ends[0].batch, ends[1].batch);
    }
    uint32_t lazy = rnd(&state) % 4; /* 0, 1: that end seldom does anything */
    for (uint32_t i = 0; i < STEPS; i++) {
        uint32_t who = rnd(&state) % 2;
        who = lazy < 2 && rnd(&state) % 8 != 0 ? 1 - lazy : who;
        step(&ends[who], &ends[1 - who], &state);
        if (rnd(&state) % 500 == 0) {
            settle(&ends[0], &ends[1]);
        }
    }
    settle(&ends[0], &ends[1]);
    for (int i = 0; i < 2; i++) {
        assert(ends[i].empty_sent <= ends[i].messages / (windows[i] / 2));
    }
    if (aloud) {
        printf("%llu and %llu messages, %llu and %llu of them empty\n",
               (unsigned long long)ends[0].messages, (unsigned long long)ends[1].messages,
               (unsigned long long)ends[1].empty_sent, (unsigned long long)ends[0].empty_sent);
    }
}

/* ---- One end, by hand ---- */

static void last_place_is_kept(void)
{
    struct dlk_credit credit;
    dlk_credit_init(&credit, 16);
    credit.peer_window = 16;
    assert(dlk_credit_room(&credit) == 15 && dlk_credit_places(&credit) == 16);
    assert(dlk_credit_spend(&credit, 15) == 0);
    assert(dlk_credit_room(&credit) == 0 && dlk_credit_places(&credit) == 1);
    assert(dlk_credit_receive(&credit, 5));
    assert(dlk_credit_room(&credit) == 5 && dlk_credit_places(&credit) == 6);
}

static void half_a_window_is_owed(void)
{
    struct dlk_credit credit;
    dlk_credit_init(&credit, 16);
    credit.peer_window = 4;
    dlk_credit_take(&credit, 7);
    assert(!dlk_credit_owes(&credit));
    dlk_credit_take(&credit, 1);
    assert(dlk_credit_owes(&credit));
    assert(dlk_credit_spend(&credit, 1) == 8); /* any message tells */
    assert(!dlk_credit_owes(&credit));
}

/* More than was told there is room for; exactly as much is right. */
static void too_many_messages(void)
{
    struct dlk_credit credit;
    dlk_credit_init(&credit, 16);
    credit.peer_window = 16;
    for (int i = 0; i < 16; i++) {
        assert(dlk_credit_receive(&credit, 0));
        dlk_credit_take(&credit, 1);
    }
    struct dlk_credit told = credit;
    assert(!dlk_credit_receive(&credit, 0)); /* taken, but it was not told */
    assert(dlk_credit_spend(&told, 1) == 16);
    assert(dlk_credit_receive(&told, 0));
}

/* Says that it has taken what was never sent; or takes back what it said. */
static void too_many_credits(void)
{
    struct dlk_credit credit;
    dlk_credit_init(&credit, 16);
    credit.peer_window = 16;
    (void)dlk_credit_spend(&credit, 3);
    struct dlk_credit back = credit;
    assert(!dlk_credit_receive(&credit, 4));
    assert(dlk_credit_receive(&back, 3));
    assert(!dlk_credit_receive(&back, 2));
}

/* Half a million messages: what is told wraps many times, the counters stay apart. */
static void many_wraps(void)
{
    struct end a;
    struct end b;
    begin(&a, 16, 16, 0, 1);
    begin(&b, 16, 16, 0, 1);
    while (b.messages < 8ULL * BITS_16) {
        assert(send_some(&a, &b, 15));
        while (arrive(&b) && take(&b)) {
        }
        (void)tell(&b, &a);
        while (arrive(&a) && take(&a)) {
        }
        (void)tell(&a, &b);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        walk(strtoull(argv[1], NULL, 10), true);
        return 0;
    }
    last_place_is_kept();
    half_a_window_is_owed();
    too_many_messages();
    too_many_credits();
    many_wraps();
    for (uint64_t seed = 1; seed <= WALKS; seed++) {
        walk(seed, false);
    }
    return 0;
}
