/* What goes wrong between two ends on a real device: an end that does not keep to its window, one
 * that is gone, one that sends what is no message. */
#include <arpa/inet.h>

#include "verbs_world.h"

static const struct end_wish usual = {0};
static const struct end_wish shared = {.share = true};

/* Past dlk_pair_send: whatever this end wants to say, a frame or so many bytes. */
static void say_anything(struct end *end, uint32_t immediate, uint32_t bytes, bool with_immediate)
{
    struct frame frames[9] = {{.number = end->pair->credit.sent}};
    frames[0].more[6] = ~frames[0].number;
    struct ibv_sge sge = {.addr = (uintptr_t)frames, .length = bytes};
    struct ibv_send_wr wr = {
        .wr_id = (uint64_t)DLK_PAIR_SEND << 62 | end->pair->mark | ++end->pair->credit.sent,
        .sg_list = &sge,
        .num_sge = 1,
        .opcode = with_immediate ? IBV_WR_SEND_WITH_IMM : IBV_WR_SEND,
        .send_flags = IBV_SEND_INLINE | IBV_SEND_SIGNALED,
        .imm_data = htonl(immediate),
    };
    struct ibv_send_wr *bad = NULL;
    assert(ibv_post_send(end->pair->qp, &wr, &bad) == 0);
}

/* As much as its window is right, one more is not, though there are buffers for it. */
static void more_than_its_window(void)
{
    struct end a;
    struct end b;
    ends_open(&a, &b, &usual, &shared);
    b.hold = true;
    for (uint32_t i = 0; i < DLK_VERBS_WINDOW; i++) {
        say_anything(&a, 0, DLK_FRAME_BYTES, true);
    }
    WAIT_FOR(&a, &b, b.seen.frames == DLK_VERBS_WINDOW);
    assert(b.seen.receipt == DLK_RECEIPT_BROKEN); /* nothing so far */
    say_anything(&a, 0, DLK_FRAME_BYTES, true);
    WAIT_FOR(&a, &b, b.seen.receipt == DLK_RECEIPT_WINDOW);
    assert(b.seen.frames == DLK_VERBS_WINDOW);
    end_close(&a);
    end_close(&b);
}

/* An end that overruns the buffers of one that has its own: the device says so, to the sender. */
static void more_than_there_are_buffers(void)
{
    struct end a;
    struct end b;
    ends_open(&a, &b, &shared, &usual);
    b.hold = true;
    for (uint32_t i = 0; i < DLK_VERBS_WINDOW + 1; i++) {
        say_anything(&a, 0, DLK_FRAME_BYTES, true);
    }
    WAIT_FOR(&a, &b, a.seen.status != IBV_WC_SUCCESS);
    assert(a.seen.status == IBV_WC_RNR_RETRY_EXC_ERR);
    assert(dlk_pair_cause(a.seen.status) == DLK_VERBS_WINDOW_FULL);
    assert(b.seen.frames == DLK_VERBS_WINDOW && dlk_pair_broken(a.pair));
    end_close(&a);
    end_close(&b);
}

static void not_a_message(uint32_t immediate, uint32_t bytes, bool with_immediate,
                          enum dlk_pair_receipt receipt)
{
    struct end a;
    struct end b;
    ends_open(&a, &b, &usual, &shared);
    assert(end_send(&b, 0, 2) == 2);
    say_anything(&a, immediate, bytes, with_immediate);
    WAIT_FOR(&a, &b, b.seen.receipt == receipt);
    assert(b.seen.frames == 0);
    end_close(&a);
    end_close(&b);
}

/* A peer that is gone is noticed by who sends, after the retries and not before all of them. */
static void peer_is_gone(void)
{
    struct end a;
    struct end b;
    ends_open(&a, &b, &usual, &shared);
    assert(end_send(&a, 0, 1) == 1);
    WAIT_FOR(&a, &b, b.seen.frames == 1);
    dlk_pair_free(b.pair);
    b.pair = NULL;
    struct frame frame[2] = {{0}};
    assert(dlk_pair_send(a.pair, frame, sizeof(frame)) == sizeof(frame));
    uint64_t until_ns = dlk_now_ns() + (uint64_t)PATIENCE_S * DLK_NS_PER_S;
    while (a.seen.sends_flushed + (a.seen.status != 0) == 0) {
        end_poll(&a);
        assert(dlk_now_ns() < until_ns);
    }
    assert(a.seen.status == IBV_WC_RETRY_EXC_ERR);
    assert(dlk_pair_cause(a.seen.status) == DLK_VERBS_PEER_GONE);
    assert(dlk_pair_broken(a.pair));
    assert(dlk_pair_send(a.pair, frame, sizeof(frame)) == DLK_PAIR_GONE);
    assert(dlk_pair_tell(a.pair) == DLK_PAIR_GONE && dlk_pair_bye(a.pair) == DLK_PAIR_GONE);
    end_close(&a);
    end_close(&b);
}

/* Broken by its owner: what was posted is flushed, its own receives wake who polls. */
static void broken_on_purpose(void)
{
    struct end a;
    struct end b;
    ends_open(&a, &b, &usual, &shared);
    assert(!dlk_pair_broken(a.pair));
    dlk_pair_break(a.pair);
    assert(dlk_pair_broken(a.pair));
    uint64_t until_ns = dlk_now_ns() + (uint64_t)PATIENCE_S * DLK_NS_PER_S;
    uint32_t flushed = 0;
    while (flushed < DLK_VERBS_WINDOW) {
        struct ibv_wc wc;
        if (ibv_poll_cq(a.cq, 1, &wc) == 1) {
            assert(wc.status == IBV_WC_WR_FLUSH_ERR);
            assert(dlk_pair_kind(wc.wr_id) == DLK_PAIR_RECEIVE);
            assert(dlk_pair_received(a.pair, &wc) == DLK_RECEIPT_BROKEN);
            flushed++;
        }
        assert(dlk_now_ns() < until_ns);
    }
    end_close(&a);
    end_close(&b);
}

static void addresses_that_make_no_sense(void)
{
    char reason[DLK_REASON_BYTES];
    struct dlk_verbs_port port = world_port(0);
    for (int wrong = 0; wrong < 7; wrong++) {
        struct end a;
        end_open(&a, &port, &usual);
        struct dlk_verbs_address peer = a.address;
        peer.ethernet = wrong == 0 ? !peer.ethernet : peer.ethernet;
        peer.mtu = wrong == 1 ? 0 : wrong == 2 ? 6 : peer.mtu;
        peer.window = wrong == 3 ? 3 : wrong == 4 ? 1U << 20 : peer.window;
        peer.message_bytes = wrong == 5 ? 63 : peer.message_bytes;
        peer.queue_pair = wrong == 6 ? 1U << 24 : peer.queue_pair;
        reason[0] = '\0';
        assert(!dlk_pair_connect(a.pair, &peer, reason));
        assert(strstr(reason, wrong == 0 ? "Ethernet" : "makes no sense") != NULL);
        end_close(&a);
    }
}

static void status_names(void)
{
    assert(dlk_pair_cause(IBV_WC_REM_OP_ERR) == DLK_VERBS_PAIR_ERROR);
    assert(dlk_pair_cause(IBV_WC_LOC_PROT_ERR) == DLK_VERBS_PAIR_ERROR);
    assert(dlk_pair_cause(IBV_WC_WR_FLUSH_ERR) == DLK_VERBS_PAIR_ERROR);
}

int main(void)
{
    (void)world_port(0);
    more_than_its_window();
    more_than_there_are_buffers();
    not_a_message(3, DLK_FRAME_BYTES, true, DLK_RECEIPT_WINDOW); /* two were sent */
    not_a_message(0, DLK_FRAME_BYTES, false, DLK_RECEIPT_MALFORMED);
    not_a_message(0, 60, true, DLK_RECEIPT_MALFORMED);
    not_a_message(1U << 16, DLK_FRAME_BYTES, true, DLK_RECEIPT_MALFORMED);
    peer_is_gone();
    broken_on_purpose();
    addresses_that_make_no_sense();
    status_names();
    return 0;
}
