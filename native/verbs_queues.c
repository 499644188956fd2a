/* What all queue pairs of a server share: see verbs_queues.h. */
#include "verbs_queues.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "verbs_pair.h"

enum {
    COMPLETIONS_PER_PAIR = DLK_PAIR_SEND_COMPLETIONS_MAX, /* its receives are the shared queue's */
    SPARE_PAIRS = 4,                                      /* of the device, for the server itself */
    EVENTS_TOGETHER = 64
};

static uint32_t least(uint32_t a, uint64_t b)
{
    return a < b ? a : (uint32_t)b;
}

/* How many fit by what the device says of itself; `what` is what they do not fit into. */
static uint32_t fit(const struct ibv_device_attr *limits, uint32_t pairs, const char **what,
                    uint32_t *limit)
{
    const uint64_t cqe = limits->max_cqe > 0 ? (uint64_t)limits->max_cqe : 0;
    const uint64_t srq = limits->max_srq_wr > 0 ? (uint64_t)limits->max_srq_wr : 0;
    const uint64_t qps = limits->max_qp > 0 ? (uint64_t)limits->max_qp : 0;
    const uint64_t slack = DLK_QUEUES_AGAIN_MAX;
    uint32_t by_cqe = least(pairs, cqe > slack ? (cqe - slack)
                                                     / (DLK_VERBS_WINDOW + COMPLETIONS_PER_PAIR)
                                               : 0);
    uint32_t by_srq = least(pairs, srq > slack ? (srq - slack) / DLK_VERBS_WINDOW : 0);
    uint32_t by_qps = least(pairs, qps > SPARE_PAIRS ? qps - SPARE_PAIRS : 0);

    if (by_cqe <= by_srq && by_cqe <= by_qps) {
        *what = "entries of a completion queue";
        *limit = (uint32_t)cqe;
        return by_cqe;
    }
    *what = by_srq <= by_qps ? "places of a shared receive queue" : "queue pairs";
    *limit = (uint32_t)(by_srq <= by_qps ? srq : qps);
    return by_srq <= by_qps ? by_srq : by_qps;
}

static bool buffers_new(struct dlk_verbs_queues *queues)
{
    size_t bytes = (size_t)queues->n_buffers * DLK_VERBS_MESSAGE_BYTES;
    void *buffers
        = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (buffers == MAP_FAILED) {
        return false;
    }
    queues->buffers = buffers;
    queues->region = dlk_ibv->reg_mr(queues->device->pd, buffers, bytes, IBV_ACCESS_LOCAL_WRITE);
    return queues->region != NULL;
}

static bool queues_new(struct dlk_verbs_queues *queues)
{
    struct dlk_verbs_device *device = queues->device;
    struct ibv_srq_init_attr shape = {.attr = {.max_wr = queues->n_buffers, .max_sge = 1}};
    int entries = (int)(queues->n_buffers + queues->pairs_max * COMPLETIONS_PER_PAIR);

    queues->channel = dlk_ibv->create_comp_channel(device->context);
    if (queues->channel == NULL
        || fcntl(queues->channel->fd, F_SETFL, fcntl(queues->channel->fd, F_GETFL) | O_NONBLOCK)
               != 0) {
        return false;
    }
    queues->completions
        = dlk_ibv->create_cq(device->context, entries, NULL, queues->channel, 0);
    if (queues->completions == NULL) {
        return false;
    }
    queues->receives = dlk_ibv->create_srq(device->pd, &shape);
    return queues->receives != NULL;
}

/* Of this many pairs, all or nothing. False: errno. */
static bool open_for(struct dlk_verbs_queues *queues, struct dlk_verbs_device *device,
                     uint32_t pairs)
{
    memset(queues, 0, sizeof(*queues));
    queues->device = device;
    queues->pairs_max = pairs;
    queues->n_buffers = pairs * DLK_VERBS_WINDOW + DLK_QUEUES_AGAIN_MAX;
    if (!buffers_new(queues) || !queues_new(queues)) {
        int error = errno;
        dlk_verbs_queues_close(queues);
        errno = error;
        return false;
    }
    for (uint32_t buffer = 0; buffer < queues->n_buffers; buffer++) {
        dlk_verbs_queues_again(queues, buffer);
    }
    return true;
}

static void say_locked(char *reason, uint32_t pairs, uint32_t wanted)
{
    struct rlimit locked = {0};

    getrlimit(RLIMIT_MEMLOCK, &locked);
    if (locked.rlim_cur == RLIM_INFINITY) {
        dlk_verbs_say(reason, "room for %u queue pairs instead of %u: the device had no memory for "
                              "more", pairs, wanted);
    } else {
        dlk_verbs_say(reason, "room for %u queue pairs instead of %u: the limit of locked memory "
                              "is %llu KiB (ulimit -l; LimitMEMLOCK= of a service)",
                      pairs, wanted, (unsigned long long)locked.rlim_cur / 1024);
    }
}

bool dlk_verbs_queues_open(struct dlk_verbs_queues *queues, struct dlk_verbs_device *device,
                           uint32_t pairs, char *reason)
{
    const char *what = "";
    uint32_t limit = 0;
    uint32_t fits = fit(&device->limits, pairs, &what, &limit);

    dlk_verbs_say(reason, "room for %u queue pairs", pairs);
    if (fits < pairs) {
        dlk_verbs_say(reason, "room for %u queue pairs instead of %u: the device has %u %s", fits,
                      pairs, limit, what);
    }
    for (uint32_t n = fits; n > 0; n /= 2) {
        if (open_for(queues, device, n)) {
            if (n < fits) {
                say_locked(reason, n, pairs);
            }
            return true;
        }
        if (errno != ENOMEM && errno != EPERM && errno != EAGAIN) {
            dlk_verbs_say(reason, "%s: its queues cannot be made: %s", device->port.device,
                          strerror(errno));
            return false;
        }
    }
    if (fits > 0) {
        say_locked(reason, 0, pairs);
    }
    return false;
}

void dlk_verbs_queues_close(struct dlk_verbs_queues *queues)
{
    if (queues->receives != NULL) {
        dlk_ibv->destroy_srq(queues->receives);
    }
    if (queues->completions != NULL) {
        dlk_verbs_queues_disarm(queues);
        if (queues->unanswered > 0) {
            dlk_ibv->ack_cq_events(queues->completions, queues->unanswered);
        }
        dlk_ibv->destroy_cq(queues->completions);
    }
    if (queues->channel != NULL) {
        dlk_ibv->destroy_comp_channel(queues->channel);
    }
    if (queues->region != NULL) {
        dlk_ibv->dereg_mr(queues->region);
    }
    if (queues->buffers != NULL) {
        munmap(queues->buffers, (size_t)queues->n_buffers * DLK_VERBS_MESSAGE_BYTES);
    }
    memset(queues, 0, sizeof(*queues));
}

/* A post that fails can only mean that the device is lost, and then its event comes. */
void dlk_verbs_queues_again(struct dlk_verbs_queues *queues, uint32_t buffer)
{
    uint32_t n = queues->n_again++;
    struct ibv_recv_wr *refused;

    queues->places[n] = (struct ibv_sge){
        .addr = (uintptr_t)queues->buffers + (uint64_t)buffer * DLK_VERBS_MESSAGE_BYTES,
        .length = DLK_VERBS_MESSAGE_BYTES,
        .lkey = queues->region->lkey};
    queues->again[n]
        = (struct ibv_recv_wr){.wr_id = buffer, .sg_list = &queues->places[n], .num_sge = 1};
    if (n > 0) {
        queues->again[n - 1].next = &queues->again[n];
    }
    if (queues->n_again == DLK_QUEUES_AGAIN_MAX) {
        (void)ibv_post_srq_recv(queues->receives, &queues->again[0], &refused);
        queues->n_again = 0;
    }
}

void dlk_verbs_queues_arm(struct dlk_verbs_queues *queues)
{
    if (!queues->armed) {
        queues->armed = ibv_req_notify_cq(queues->completions, 0) == 0;
    }
}

void dlk_verbs_queues_disarm(struct dlk_verbs_queues *queues)
{
    struct ibv_cq *completions;
    void *cookie;

    while (dlk_ibv->get_cq_event(queues->channel, &completions, &cookie) == 0) {
        queues->armed = false;
        if (++queues->unanswered == EVENTS_TOGETHER) {
            dlk_ibv->ack_cq_events(queues->completions, queues->unanswered);
            queues->unanswered = 0;
        }
    }
}
