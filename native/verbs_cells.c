/* Memory windows, and the server's own operations through a device: see verbs_cells.h. */
#include "verbs_cells.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"

enum {
    /* A window has 256 keys. One that was freed is used again only when so many others wait
     * before it, so that a key comes again after 128 times as many objects have been destroyed. */
    SPARE_MIN = 1024,
    ACCESS = IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC,
    LOOKS_OF_A_SPIN = 256,
    PATIENCE_MS = 5000 /* of a device that says nothing; its own retries end in half a second */
};

/* ---- Windows that are bound to nothing ---- */

static struct ibv_mw *take_spare(struct dlk_verbs_cells *cells)
{
    struct ibv_mw *window;

    if (cells->n_spare == 0) {
        return NULL;
    }
    window = cells->spare[cells->spare_head];
    cells->spare_head = (cells->spare_head + 1) % cells->spare_room;
    cells->n_spare--;
    return window;
}

static void put_spare(struct dlk_verbs_cells *cells, struct ibv_mw *window)
{
    cells->spare[(cells->spare_head + cells->n_spare++) % cells->spare_room] = window;
}

/* ---- Begin and end ---- */

static struct dlk_pair *end_new(struct dlk_verbs_cells *cells, uint32_t reads, char *reason)
{
    struct dlk_pair_config config = {.device = cells->device,
                                     .send_completions = cells->completions,
                                     .receive_completions = cells->completions,
                                     .window = DLK_CREDIT_WINDOW_MIN,
                                     .reads = reads,
                                     .reads_served = DLK_PAIR_READS_MAX,
                                     .access = ACCESS};

    return dlk_pair_new(&config, reason);
}

/* A queue pair with both its ends here. */
static bool loop_new(struct dlk_verbs_cells *cells, char *reason)
{
    const int entries = 2 * (DLK_PAIR_SEND_COMPLETIONS_MAX + DLK_CREDIT_WINDOW_MIN)
                        + DLK_PAIR_READS_MAX;
    struct dlk_verbs_address near;
    struct dlk_verbs_address far;

    cells->completions = dlk_ibv->create_cq(cells->device->context, entries, NULL, NULL, 0);
    if (cells->completions == NULL) {
        dlk_verbs_say(reason, "no completion queue for it: %s", strerror(errno));
        return false;
    }
    cells->near = end_new(cells, DLK_PAIR_READS_MAX, reason);
    cells->far = cells->near != NULL ? end_new(cells, 0, reason) : NULL;
    if (cells->far == NULL) {
        return false;
    }
    dlk_pair_address(cells->near, &near);
    dlk_pair_address(cells->far, &far);
    return dlk_pair_connect(cells->near, &far, reason)
           && dlk_pair_connect(cells->far, &near, reason);
}

static bool memory_new(struct dlk_verbs_cells *cells, char *reason)
{
    size_t bytes = (size_t)cells->n_cells * sizeof(uint64_t);

    cells->windows = calloc(cells->n_cells, sizeof(cells->windows[0]));
    cells->spare_room = cells->n_cells + SPARE_MIN; /* there are never more windows */
    cells->spare = calloc(cells->spare_room, sizeof(cells->spare[0]));
    if (cells->windows == NULL || cells->spare == NULL) {
        dlk_verbs_say(reason, "no memory for the windows of %u objects", cells->n_cells);
        return false;
    }
    cells->region = dlk_ibv->reg_mr(cells->device->pd, cells->cells, bytes,
                                    IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND);
    if (cells->region == NULL) {
        dlk_verbs_say(reason, "%zu KiB of objects cannot be registered: %s%s", bytes / 1024,
                      strerror(errno),
                      errno == ENOMEM ? " (the limit of locked memory: ulimit -l)" : "");
    }
    return cells->region != NULL;
}

/* Does all of it work, once: a device may promise windows and refuse to bind them. */
static bool try_once(struct dlk_verbs_cells *cells, char *reason)
{
    struct dlk_cell_operation read = {.op = DLK_OP_READ};

    if (dlk_verbs_cells_bind(cells, 0) != 0) {
        dlk_verbs_cells_operate(cells, &read, 1);
        dlk_verbs_cells_unbind(cells, 0);
    }
    if (cells->failed || read.outcome != DLK_CELL_DONE) {
        dlk_verbs_say(reason, "%s cannot bind memory windows, or not operate through them",
                      cells->device->port.device);
        return false;
    }
    return true;
}

bool dlk_verbs_cells_open(struct dlk_verbs_cells *cells, struct dlk_verbs_device *device,
                          uint64_t *memory, uint32_t n_cells, char *reason)
{
    memset(cells, 0, sizeof(*cells));
    if (n_cells == 0 || device->port.atomicity == DLK_ATOMICITY_NONE
        || device->limits.max_mw <= 0) {
        dlk_verbs_say(reason, "%s has no %s", n_cells == 0 ? "the server" : device->port.device,
                      n_cells == 0                                        ? "objects"
                      : device->port.atomicity == DLK_ATOMICITY_NONE ? "atomic operations"
                                                                     : "memory windows");
        return false;
    }
    cells->device = device;
    cells->cells = memory;
    cells->n_cells = n_cells;
    cells->by_device = device->port.atomicity != DLK_ATOMICITY_GLOBAL;
    if (!memory_new(cells, reason) || !loop_new(cells, reason) || !try_once(cells, reason)) {
        dlk_verbs_cells_close(cells);
        return false;
    }
    return true;
}

void dlk_verbs_cells_close(struct dlk_verbs_cells *cells)
{
    for (uint32_t i = 0; cells->windows != NULL && i < cells->n_cells; i++) {
        if (cells->windows[i] != NULL) {
            ibv_dealloc_mw(cells->windows[i]);
        }
    }
    while (cells->n_spare > 0) {
        ibv_dealloc_mw(take_spare(cells));
    }
    dlk_pair_free(cells->near);
    dlk_pair_free(cells->far);
    if (cells->completions != NULL) {
        dlk_ibv->destroy_cq(cells->completions);
    }
    if (cells->region != NULL) {
        dlk_ibv->dereg_mr(cells->region);
    }
    free(cells->windows);
    free(cells->spare);
    memset(cells, 0, sizeof(*cells));
}

/* ---- Operations, awaited ---- */

/* The next completion of the near end. False: it is broken, or nothing comes. */
static bool await(struct dlk_verbs_cells *cells, struct dlk_pair_answer *answer)
{
    uint64_t end_ns = 0;
    struct ibv_wc wc;

    for (uint32_t looks = 1; !cells->failed; looks++) {
        int n = ibv_poll_cq(cells->completions, 1, &wc);
        if (n > 0 && wc.qp_num == dlk_pair_number(cells->near)
            && dlk_pair_kind(wc.wr_id) == DLK_PAIR_OPERATION) {
            dlk_pair_operated(cells->near, &wc, answer);
            cells->failed = answer->status != IBV_WC_SUCCESS;
            return !cells->failed;
        }
        if (n == 0 && looks % LOOKS_OF_A_SPIN == 0) {
            /* The device may be software, and want this very core. */
            sched_yield();
            uint64_t now_ns = dlk_now_ns();
            end_ns = end_ns == 0 ? now_ns + (uint64_t)PATIENCE_MS * DLK_NS_PER_MS : end_ns;
            cells->failed = now_ns > end_ns;
        } else if (n == 0) {
            dlk_cpu_relax();
        }
        cells->failed = cells->failed || n < 0;
    }
    return false;
}

static bool bind(struct dlk_verbs_cells *cells, struct ibv_mw *window, uint32_t slot,
                 uint64_t bytes)
{
    struct dlk_pair_answer answer;

    cells->failed
        = cells->failed
          || dlk_pair_bind(cells->near, window, cells->region, (uintptr_t)&cells->cells[slot],
                           bytes, bytes != 0 ? ACCESS : 0, slot)
                 != 1;
    return !cells->failed && await(cells, &answer);
}

uint32_t dlk_verbs_cells_bind(struct dlk_verbs_cells *cells, uint32_t slot)
{
    struct ibv_mw *window = NULL;

    if (cells->cells == NULL || cells->failed) {
        return 0;
    }
    if (cells->n_spare < SPARE_MIN) {
        window = ibv_alloc_mw(cells->device->pd, IBV_MW_TYPE_1);
    }
    if (window == NULL) {
        window = take_spare(cells);
    }
    if (window == NULL) {
        return 0;
    }
    cells->windows[slot] = window; /* freed with all others if it fails */
    return bind(cells, window, slot, sizeof(uint64_t)) ? window->rkey : 0;
}

void dlk_verbs_cells_unbind(struct dlk_verbs_cells *cells, uint32_t slot)
{
    struct ibv_mw *window = cells->cells != NULL ? cells->windows[slot] : NULL;

    if (window != NULL && !cells->failed && bind(cells, window, slot, 0)) {
        cells->windows[slot] = NULL;
        put_spare(cells, window);
    }
}

/* Those of the next operations that have a window, as many as go at once. */
static uint32_t gather(const struct dlk_verbs_cells *cells,
                       const struct dlk_cell_operation *operations, uint32_t count, uint32_t *next,
                       struct dlk_pair_operation *out)
{
    uint32_t room = dlk_pair_operations_room(cells->near);
    uint32_t n = 0;

    for (; *next < count && n < room; ++*next) {
        const struct dlk_cell_operation *operation = &operations[*next];
        const struct ibv_mw *window = cells->windows[operation->slot];
        if (window == NULL) {
            continue;
        }
        out[n++] = (struct dlk_pair_operation){
            .address = (uintptr_t)&cells->cells[operation->slot],
            .value = operation->value,
            .compare = operation->compare,
            .cookie = *next,
            .key = window->rkey,
            .verb = operation->op == DLK_OP_READ        ? DLK_PAIR_READ
                    : operation->op == DLK_OP_FETCH_ADD ? DLK_PAIR_FETCH_ADD
                                                        : DLK_PAIR_COMPARE_SWAP};
    }
    return n;
}

/* Until its completion is there nobody knows; to read again does no harm. */
static void doubt(struct dlk_cell_operation *operation)
{
    operation->outcome = operation->op == DLK_OP_READ ? DLK_CELL_UNTOUCHED : DLK_CELL_UNKNOWN;
}

void dlk_verbs_cells_operate(struct dlk_verbs_cells *cells, struct dlk_cell_operation *operations,
                             uint32_t count)
{
    struct dlk_pair_operation posted[DLK_PAIR_READS_MAX];
    struct dlk_pair_answer answer;
    uint32_t next = 0;

    for (uint32_t i = 0; i < count; i++) {
        operations[i].outcome = DLK_CELL_UNTOUCHED;
    }
    cells->failed = cells->failed || dlk_pair_broken(cells->near); /* none of them is posted */
    while (next < count && !cells->failed) {
        uint32_t n = gather(cells, operations, count, &next, posted);
        for (uint32_t i = 0; i < n; i++) {
            doubt(&operations[posted[i].cookie]);
        }
        if (n > 0 && dlk_pair_operate(cells->near, posted, n) != (int)n) {
            cells->failed = true;
        }
        for (uint32_t i = 0; i < n && await(cells, &answer); i++) {
            operations[answer.cookie].found = answer.value;
            operations[answer.cookie].outcome = DLK_CELL_DONE;
        }
    }
}
