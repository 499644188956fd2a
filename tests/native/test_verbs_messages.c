/* Messages between two ends on a real device: whole, in order, never more than there is room for,
 * and no two ends ever wait for each other. */
#include "verbs_world.h"

static const struct end_wish usual = {.mark = 7};
static const struct end_wish shared = {.share = true, .mark = (1U << 30) - 1};

static void one_each_way(void)
{
    struct end a;
    struct end b;
    ends_open(&a, &b, &usual, &shared);
    assert(dlk_pair_number(a.pair) == a.address.queue_pair);
    assert(a.address.message_bytes == 448 && b.address.message_bytes == 512);
    assert(end_send(&a, 0, 1) == 1);
    WAIT_FOR(&a, &b, b.seen.frames == 1);
    assert(end_send(&b, 0, 1) == 1);
    WAIT_FOR(&a, &b, a.seen.frames == 1);
    assert(a.seen.empty == 0 && b.seen.empty == 0);
    assert(a.pair->credit.told == 1); /* b's message told it */
    end_close(&a);
    end_close(&b);
}

/* What one call takes is as many messages as the window has, each as long as can be sent inline. */
static void window_and_inline(void)
{
    struct end a;
    struct end b;
    ends_open(&a, &b, &usual, &shared);
    uint32_t each = a.device->port.inline_max / DLK_FRAME_BYTES;
    assert(each >= 1 && each <= 8 && a.device->port.inline_max <= DLK_VERBS_MESSAGE_BYTES);
    uint64_t most = (uint64_t)(DLK_VERBS_WINDOW - 1) * each;
    b.hold = true;
    assert(dlk_pair_room(a.pair) == most * DLK_FRAME_BYTES);
    assert(end_send(&a, 0, 128) == (most < 128 ? most : 128));
    assert(dlk_pair_room(a.pair) == 0);
    assert(end_send(&a, most, 1) == 0);
    assert(dlk_pair_tell(a.pair) == 0); /* nothing is owed */
    WAIT_FOR(&a, &b, b.seen.frames == most);
    assert(b.pair->credit.received == DLK_VERBS_WINDOW - 1);
    end_close(&a);
    end_close(&b);
}

/* One sends, the other only takes: it tells by empty messages, else the first could never go on. */
static void one_way(const struct end_wish *of_a, const struct end_wish *of_b, uint64_t frames)
{
    struct end a;
    struct end b;
    uint64_t sent = 0;
    ends_open(&a, &b, of_a, of_b);
    while (b.seen.frames < frames) {
        sent += end_send(&a, sent, frames - sent);
        assert(dlk_pair_tell(b.pair) >= 0);
        ends_poll(&a, &b);
    }
    assert(a.seen.frames == 0 && a.seen.empty > 0);
    /* Of each window one empty message or two, not one for each message. */
    assert(a.seen.empty <= b.pair->credit.received / (a.pair->credit.peer_window / 2) + 1);
    end_close(&a);
    end_close(&b);
}

/* Both send as much as they can. The counters begin where they soon wrap, and so do the 16 bits of
 * them that are told. */
static void flood(const struct end_wish *of_a, const struct end_wish *of_b, uint64_t frames)
{
    struct end a;
    struct end b;
    uint64_t sent_a = 0;
    uint64_t sent_b = 0;
    ends_open(&a, &b, of_a, of_b);
    uint32_t start = (uint32_t)-1000;
    for (struct end *end = &a; end != NULL; end = end == &a ? &b : NULL) {
        end->pair->credit.sent = start;
        end->pair->credit.said = start;
        end->pair->credit.taken = start;
        end->pair->credit.told = start;
        end->pair->credit.received = start;
        end->pair->sends_done = start;
    }
    while (a.seen.frames < frames || b.seen.frames < frames) {
        sent_a += end_send(&a, sent_a, frames - sent_a < 6 ? frames - sent_a : 1 + sent_a % 6);
        sent_b += end_send(&b, sent_b, frames - sent_b < 6 ? frames - sent_b : 1 + sent_b % 5);
        assert(dlk_pair_tell(a.pair) >= 0 && dlk_pair_tell(b.pair) >= 0);
        ends_poll(&a, &b);
    }
    assert(a.seen.status == IBV_WC_SUCCESS && b.seen.status == IBV_WC_SUCCESS);
    end_close(&a);
    end_close(&b);
}

/* Both have used every place for frames before either takes anything. */
static void both_full(void)
{
    struct end a;
    struct end b;
    ends_open(&a, &b, &usual, &shared);
    uint64_t sent_a = 0;
    uint64_t sent_b = 0;
    for (int round = 0; round < 20; round++) {
        uint64_t more = 0;
        do {
            more = end_send(&a, sent_a, 1);
            sent_a += more;
        } while (more != 0);
        do {
            more = end_send(&b, sent_b, 1);
            sent_b += more;
        } while (more != 0);
        WAIT_FOR(&a, &b, b.seen.frames == sent_a && a.seen.frames == sent_b);
        assert(dlk_pair_owes(a.pair) && dlk_pair_tell(a.pair) == 1);
        assert(!dlk_pair_owes(a.pair));
        WAIT_FOR(&a, &b, dlk_pair_room(b.pair) > 0);
        assert(dlk_pair_owes(b.pair) && dlk_pair_tell(b.pair) == 1);
        WAIT_FOR(&a, &b, dlk_pair_room(a.pair) > 0);
    }
    end_close(&a);
    end_close(&b);
}

static void bye(void)
{
    struct end a;
    struct end b;
    ends_open(&a, &b, &usual, &shared);
    assert(end_send(&a, 0, 3) == 3);
    assert(dlk_pair_bye(a.pair) == 1);
    char more[DLK_FRAME_BYTES] = {0};
    assert(dlk_pair_send(a.pair, more, sizeof(more)) == DLK_PAIR_GONE);
    assert(dlk_pair_tell(a.pair) == DLK_PAIR_GONE && dlk_pair_bye(a.pair) == DLK_PAIR_GONE);
    assert(!dlk_pair_broken(a.pair));
    WAIT_FOR(&a, &b, b.seen.receipt == DLK_RECEIPT_BYE && dlk_pair_arrived(a.pair));
    assert(b.seen.frames == 3);
    assert(end_send(&b, 0, 1) == 1); /* the other way is still open */
    WAIT_FOR(&a, &b, a.seen.frames == 1);
    end_close(&a);
    end_close(&b);
}

/* A window that is full of frames has the kept place for the bye, one that is full of all none. */
static void bye_without_a_place(void)
{
    struct end a;
    struct end b;
    ends_open(&a, &b, &usual, &shared);
    b.hold = true;
    for (uint64_t sent = 0; sent < DLK_VERBS_WINDOW - 1; sent++) {
        assert(end_send(&a, sent, 1) == 1);
    }
    a.pair->credit.taken += DLK_VERBS_WINDOW / 2; /* as if so much had come */
    assert(dlk_pair_tell(a.pair) == 1);
    assert(dlk_pair_bye(a.pair) == 0);
    end_close(&a);
    end_close(&b);
}

static void ipv4_and_ipv6(void)
{
    for (uint32_t version = 4; version <= 6; version += 2) {
        struct dlk_verbs_port port = world_port(version);
        struct end a;
        struct end b;
        end_open(&a, &port, &usual);
        end_open(&b, &port, &shared);
        assert((port.gid[10] == 0xff && port.gid[11] == 0xff) == (version == 4));
        ends_connect(&a, &b);
        assert(end_send(&a, 0, 1) == 1);
        WAIT_FOR(&a, &b, b.seen.frames == 1);
        end_close(&a);
        end_close(&b);
    }
}

int main(void)
{
    const struct end_wish small = {.window = DLK_CREDIT_WINDOW_MIN};
    const struct end_wish odd = {.window = 7, .share = true};
    one_each_way();
    window_and_inline();
    one_way(&usual, &shared, 3000);
    one_way(&shared, &usual, 3000);
    one_way(&odd, &small, 300);
    flood(&usual, &shared, 20000);
    flood(&small, &odd, 3000);
    both_full();
    bye();
    bye_without_a_place();
    ipv4_and_ipv6();
    return 0;
}
