/*
 * The cells of atomic objects on a device: what lets clients operate on them one-sided, and what
 * operates on them for everybody else.
 *
 * Each object that clients may reach has a memory window of its own (type 1), bound to its 8 bytes.
 * Its key is all that a client has; when the object is gone the window is bound to nothing, and who
 * still uses the key loses his queue pair, and only that. The region of the cells itself can be
 * reached by nobody.
 *
 * A device whose atomics are atomic only to each other must do them all. Then what the server has
 * to do itself goes through a queue pair whose other end is at the same device, through the same
 * window, and the server waits for it. A cell without a window is the processor's alone.
 *
 * When an operation of this queue pair fails the device is lost, for all that is known here: the
 * caller destroys every queue pair of it, closes this, and from then on the processor has the
 * cells, with the values that they have.
 */
#ifndef DLOCK_VERBS_CELLS_H
#define DLOCK_VERBS_CELLS_H

#include "verbs_pair.h"
#include "verbs_transport.h"

struct dlk_verbs_cells {
    struct dlk_verbs_device *device;
    uint64_t *cells; /* NULL: no client reaches any */
    uint32_t n_cells;
    bool by_device; /* the processor's operations are not atomic to the device's */
    bool failed;
    struct ibv_mr *region;
    struct ibv_cq *completions;
    struct dlk_pair *near; /* asks */
    struct dlk_pair *far;  /* serves it */
    struct ibv_mw **windows; /* by slot; NULL: it has none */
    struct ibv_mw **spare;   /* bound to nothing; a ring, oldest first */
    uint32_t spare_room;
    uint32_t spare_head;
    uint32_t n_spare;
};

/* False: no client will operate on a cell by itself; `reason` says why. */
bool dlk_verbs_cells_open(struct dlk_verbs_cells *cells, struct dlk_verbs_device *device,
                          uint64_t *memory, uint32_t n_cells, char *reason);
void dlk_verbs_cells_close(struct dlk_verbs_cells *cells);

/* Is this one of its own queue pairs? */
static inline bool dlk_verbs_cells_own(const struct dlk_verbs_cells *cells, uint32_t number)
{
    return cells->cells != NULL
           && (number == dlk_pair_number(cells->near) || number == dlk_pair_number(cells->far));
}

/* The key, or 0: no window was to be had. */
uint32_t dlk_verbs_cells_bind(struct dlk_verbs_cells *cells, uint32_t slot);
void dlk_verbs_cells_unbind(struct dlk_verbs_cells *cells, uint32_t slot);
void dlk_verbs_cells_operate(struct dlk_verbs_cells *cells, struct dlk_cell_operation *operations,
                             uint32_t count);

#endif
