/*
 * The cells of atomic objects, and who operates on them. The engine has checked an operation; here
 * it is carried out, by the processor, unless clients reach the cells by themselves through a
 * device whose operations and the processor's are not atomic to each other. Then every operation
 * goes through that device: one atomicity domain. Who of the two it is changes only while no client
 * can reach a cell.
 */
#include "plane.h"

enum { TOGETHER = 64 /* operations that the device is given at once */ };

/* The value is written while nobody can reach the cell: before there is a key. */
uint32_t dlk_plane_cell_open(struct dlk_plane *plane, uint32_t slot, uint64_t value)
{
    __atomic_store_n(&plane->cells[slot], value, __ATOMIC_SEQ_CST);
    return plane->verbs != NULL ? plane->verbs->calls->cell_open(plane->verbs, slot) : 0;
}

void dlk_plane_cell_close(struct dlk_plane *plane, uint32_t slot)
{
    if (plane->verbs != NULL) {
        plane->verbs->calls->cell_close(plane->verbs, slot);
    }
}

static void answer(struct dlk_reply *reply, uint64_t found)
{
    bool failed = reply->op == DLK_OP_COMPARE_SWAP && found != reply->token;

    reply->result = failed ? DLK_RESULT_CAS_FAILED : DLK_RESULT_DONE;
    if (reply->op != DLK_OP_COMPARE_SWAP || failed) {
        reply->value = found;
    }
    reply->entry = DLK_NONE;
    reply->token = 0;
}

/* By the processor. */
void dlk_plane_cell_carry_out(struct dlk_plane *plane, struct dlk_reply *reply)
{
    uint64_t *cell = &plane->cells[reply->entry];
    uint64_t found = reply->token;

    if (reply->op == DLK_OP_FETCH_ADD) {
        found = __atomic_fetch_add(cell, reply->value, __ATOMIC_SEQ_CST);
    } else if (reply->op == DLK_OP_READ) {
        found = __atomic_load_n(cell, __ATOMIC_SEQ_CST);
    } else {
        __atomic_compare_exchange_n(cell, &found, reply->value, false, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST);
    }
    answer(reply, found);
}

/* What becomes of the operations that the device was given. Of one that it broke over nobody knows
 * whether it was carried out: its client is told so by the end of its connection. */
static void settle(struct dlk_plane *plane, struct dlk_reply *const *asked,
                   const struct dlk_cell_operation *operations, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct dlk_reply *reply = asked[i];
        if (operations[i].outcome == DLK_CELL_DONE) {
            plane->counters[DLK_COUNT_VERBS_CELL_OPERATIONS]++;
            answer(reply, operations[i].found);
        } else if (operations[i].outcome == DLK_CELL_UNKNOWN) {
            uint32_t number = dlk_plane_link_of(plane, reply->session);
            if (number != DLK_NONE) {
                dlk_plane_link_lost(plane, number);
            }
            answer(reply, 0); /* finds no connection */
        }
    }
    dlk_plane_publish(plane); /* who has seen an answer shall find it counted */
}

/* What is left with the result ACTION is the processor's: a cell that no client can reach. */
void dlk_plane_cells_by_device(struct dlk_plane *plane, struct dlk_reply *replies, size_t count)
{
    struct dlk_cell_operation operations[TOGETHER];
    struct dlk_reply *asked[TOGETHER];
    uint32_t n = 0;

    for (size_t i = 0; i < count; i++) {
        if (replies[i].result == DLK_RESULT_ACTION) {
            asked[n] = &replies[i];
            operations[n++] = (struct dlk_cell_operation){.slot = replies[i].entry,
                                                          .op = replies[i].op,
                                                          .value = replies[i].value,
                                                          .compare = replies[i].token};
        }
        if (n == TOGETHER || (i + 1 == count && n > 0)) {
            plane->verbs->calls->operate(plane->verbs, operations, n);
            settle(plane, asked, operations, n);
            n = 0;
        }
    }
}
