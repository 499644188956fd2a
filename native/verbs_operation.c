/* One-sided operations, and what else completes as they do: each asks for its completion. */
#include "verbs_pair_internal.h"

uint32_t dlk_pair_operations_room(const struct dlk_pair *pair)
{
    return pair->operations_max - (pair->operations - dlk_credit_get(&pair->operations_done));
}

/* The number by which the completion finds the operation's places. */
static inline uint64_t operation_id(const struct dlk_pair *pair, uint32_t number)
{
    return (uint64_t)DLK_PAIR_OPERATION << 62 | pair->mark | number;
}

/* What lies where the result is to be written. Soft-RoCE tells of some operations, whose answer was
 * lost and which a later packet has acknowledged, that they have succeeded, and writes no result:
 * the one of READS_MAX operations before would be taken for it. Whoever finds this does not know
 * the result; if it ever is the result, no harm is done but that. */
static inline uint64_t blank(const struct dlk_pair *pair, uint32_t number)
{
    uint64_t mixed = (pair->mark ^ number) + UINT64_C(0x9e3779b97f4a7c15);

    mixed = (mixed ^ mixed >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ mixed >> 27) * UINT64_C(0x94d049bb133111eb);
    return mixed ^ mixed >> 31;
}

static void fill(const struct dlk_pair_operation *operation, struct ibv_send_wr *wr)
{
    if (operation->verb == DLK_PAIR_READ) {
        wr->opcode = IBV_WR_RDMA_READ;
        wr->wr.rdma.remote_addr = operation->address;
        wr->wr.rdma.rkey = operation->key;
        return;
    }
    bool add = operation->verb == DLK_PAIR_FETCH_ADD;
    wr->opcode = add ? IBV_WR_ATOMIC_FETCH_AND_ADD : IBV_WR_ATOMIC_CMP_AND_SWP;
    wr->wr.atomic.remote_addr = operation->address;
    wr->wr.atomic.compare_add = add ? operation->value : operation->compare;
    wr->wr.atomic.swap = operation->value; /* of a fetch-and-add nobody reads it */
    wr->wr.atomic.rkey = operation->key;
}

int dlk_pair_operate(struct dlk_pair *pair, const struct dlk_pair_operation *operations,
                     uint32_t count)
{
    struct ibv_send_wr wr[DLK_PAIR_READS_MAX];
    struct ibv_sge sge[DLK_PAIR_READS_MAX];
    struct ibv_send_wr *bad = NULL;
    uint32_t room = dlk_pair_operations_room(pair);
    if (dlk_pair_state(pair) != 0) {
        return DLK_PAIR_GONE;
    }
    count = count < room ? count : room;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t number = pair->operations + i;
        uint32_t place = number % DLK_PAIR_READS_MAX;
        if (operations[i].address % sizeof(uint64_t) != 0) {
            return DLK_PAIR_MISUSE;
        }
        pair->cookies[place] = operations[i].cookie;
        pair->results[place] = blank(pair, number);
        sge[i] = (struct ibv_sge){.addr = (uintptr_t)&pair->results[place],
                                  .length = sizeof(uint64_t),
                                  .lkey = pair->region->lkey};
        wr[i] = (struct ibv_send_wr){.wr_id = operation_id(pair, number),
                                     .next = &wr[i + 1],
                                     .sg_list = &sge[i],
                                     .num_sge = 1,
                                     .send_flags = IBV_SEND_SIGNALED};
        fill(&operations[i], &wr[i]);
    }
    if (count == 0) {
        return 0;
    }
    wr[count - 1].next = NULL;
    pair->operations += count;
    return ibv_post_send(pair->qp, wr, &bad) == 0 ? (int)count : dlk_pair_gone(pair);
}

int dlk_pair_bind(struct dlk_pair *pair, struct ibv_mw *window, struct ibv_mr *region,
                  uint64_t address, uint64_t length, int access, uint64_t cookie)
{
    struct ibv_mw_bind bind = {
        .wr_id = operation_id(pair, pair->operations),
        .send_flags = IBV_SEND_SIGNALED,
        .bind_info = {.mr = region,
                      .addr = address,
                      .length = length,
                      .mw_access_flags = (unsigned int)access},
    };
    if (dlk_pair_state(pair) != 0) {
        return DLK_PAIR_GONE;
    }
    if (dlk_pair_operations_room(pair) == 0) {
        return 0;
    }
    uint32_t place = pair->operations % DLK_PAIR_READS_MAX;
    pair->cookies[place] = cookie;
    pair->results[place] = 0; /* it has none, and is not taken for one that should have */
    pair->operations++;
    return ibv_bind_mw(pair->qp, window, &bind) == 0 ? 1 : dlk_pair_gone(pair);
}

void dlk_pair_operated(struct dlk_pair *pair, const struct ibv_wc *wc,
                       struct dlk_pair_answer *answer)
{
    uint32_t number = (uint32_t)wc->wr_id;
    uint32_t place = number % DLK_PAIR_READS_MAX;
    uint64_t value = pair->results[place];
    enum ibv_wc_status status = wc->status;
    if (status == IBV_WC_SUCCESS && value == blank(pair, number)) {
        status = IBV_WC_GENERAL_ERR;
    }
    if (status != IBV_WC_SUCCESS) {
        (void)dlk_pair_gone(pair);
    }
    *answer = (struct dlk_pair_answer){
        .cookie = pair->cookies[place], .value = value, .status = status};
    atomic_store_explicit(&pair->operations_done, number + 1, memory_order_release);
}
