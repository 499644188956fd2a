/* The queue pairs of a server: made, handed over, found, freed. See verbs_server.h. */
#include <stdlib.h>
#include <string.h>

#include "verbs_server.h"

enum { MARKS = 1 << 30, NUMBER_BITS = 12 };

/* ---- Begin and end ---- */

static bool list_new(struct dlk_server_list *list, uint32_t room)
{
    list->items = calloc(room, sizeof(list->items[0]));
    return list->items != NULL;
}

bool dlk_server_table_open(struct dlk_verbs_server *server, uint32_t links)
{
    uint32_t room = server->pairs_max;

    server->links = links;
    server->pairs = calloc(room, sizeof(server->pairs[0]));
    server->free_pairs = calloc(room, sizeof(server->free_pairs[0]));
    server->link_pairs = malloc(links * sizeof(server->link_pairs[0]));
    if (server->pairs == NULL || server->free_pairs == NULL || server->link_pairs == NULL
        || !list_new(&server->ready, room) || !list_new(&server->owing, room)
        || !list_new(&server->offered, room) || !list_new(&server->closed, room)) {
        return false;
    }
    for (uint32_t link = 0; link < links; link++) {
        server->link_pairs[link] = DLK_SERVER_NONE;
    }
    for (uint32_t i = 0; i < room; i++) {
        server->free_pairs[i] = room - 1 - i; /* low ones first */
    }
    server->n_free = room;
    return true;
}

void dlk_server_table_close(struct dlk_verbs_server *server)
{
    for (uint32_t i = 0; server->pairs != NULL && i < server->pairs_max; i++) {
        dlk_pair_free(server->pairs[i].pair);
    }
    for (uint32_t i = 0; i < DLK_SERVER_PAGES; i++) {
        free(server->numbers[i]);
    }
    free(server->pairs);
    free(server->free_pairs);
    free(server->link_pairs);
    free(server->ready.items);
    free(server->owing.items);
    free(server->offered.items);
    free(server->closed.items);
}

/* ---- By number ---- */

/* NULL: no memory. */
static uint32_t *number_place(struct dlk_verbs_server *server, uint32_t number)
{
    uint32_t **page = &server->numbers[(number >> NUMBER_BITS) % DLK_SERVER_PAGES];

    if (*page == NULL) {
        *page = calloc(DLK_SERVER_PAGE_NUMBERS, sizeof(**page));
    }
    return *page != NULL ? &(*page)[number % DLK_SERVER_PAGE_NUMBERS] : NULL;
}

struct dlk_server_pair *dlk_server_find(struct dlk_verbs_server *server, uint32_t number)
{
    const uint32_t *page = server->numbers[(number >> NUMBER_BITS) % DLK_SERVER_PAGES];
    uint32_t entry = page != NULL ? page[number % DLK_SERVER_PAGE_NUMBERS] : 0;

    return entry != 0 ? &server->pairs[entry - 1] : NULL;
}

/* ---- The control thread's side ---- */

/* A free place, which is then nobody's but the caller's. */
static uint32_t reserve(struct dlk_verbs_server *server)
{
    uint32_t index = DLK_SERVER_NONE;

    pthread_mutex_lock(&server->table);
    if (server->n_free > 0) {
        index = server->free_pairs[--server->n_free];
        server->next_mark = server->next_mark + 1 < MARKS ? server->next_mark + 1 : 1;
        server->pairs[index].mark = server->next_mark;
    }
    pthread_mutex_unlock(&server->table);
    return index;
}

static void give_back(struct dlk_verbs_server *server, uint32_t index)
{
    pthread_mutex_lock(&server->table);
    server->pairs[index].state = DLK_SERVER_FREE;
    server->free_pairs[server->n_free++] = index;
    pthread_mutex_unlock(&server->table);
}

static struct dlk_pair *connected(struct dlk_verbs_server *server, uint32_t mark,
                                  const struct dlk_verbs_address *peer,
                                  struct dlk_verbs_address *own, int *status, char *reason)
{
    bool reachable = server->cells.cells != NULL;
    struct dlk_pair_config config = {
        .device = server->device,
        .send_completions = server->queues.completions,
        .receive_completions = server->queues.completions,
        .shared_receives = server->queues.receives,
        .window = DLK_VERBS_WINDOW,
        .reads_served = DLK_PAIR_READS_MAX,
        .access = reachable ? IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC : 0,
        .mark = mark,
    };
    struct dlk_pair *pair = dlk_pair_new(&config, reason);

    *status = DLK_STATUS_SERVER_NO_RESOURCE;
    if (pair == NULL) {
        return NULL;
    }
    dlk_pair_address(pair, own);
    own->cells = reachable ? (uintptr_t)server->cells.cells : 0;
    *status = DLK_STATUS_ERROR;
    if (!dlk_pair_connect(pair, peer, reason)) {
        dlk_pair_free(pair);
        return NULL;
    }
    *status = DLK_STATUS_SUCCESS;
    return pair;
}

static int make(struct dlk_verbs_server *server, const struct dlk_verbs_address *peer,
                struct dlk_verbs_address *own, uint64_t *handle, char *reason)
{
    int status = DLK_STATUS_ERROR;

    if (server->device == NULL) {
        dlk_verbs_say(reason, "the server has lost its RDMA device");
        return status;
    }
    uint32_t index = reserve(server);
    if (index == DLK_SERVER_NONE) {
        dlk_verbs_say(reason, "the server has no room for another queue pair: it has %u",
                      server->pairs_max);
        return DLK_STATUS_SERVER_NO_RESOURCE;
    }
    struct dlk_server_pair *place = &server->pairs[index];
    struct dlk_pair *pair = connected(server, place->mark, peer, own, &status, reason);
    if (pair == NULL) {
        give_back(server, index);
        return status;
    }
    *handle = (uint64_t)place->mark << 32 | index;
    memcpy(place->gid, peer->gid, sizeof(place->gid));
    pthread_mutex_lock(&server->table);
    place->pair = pair;
    place->state = DLK_SERVER_MADE;
    pthread_mutex_unlock(&server->table);
    return status;
}

int dlk_server_make(struct dlk_verbs_transport *verbs, const struct dlk_verbs_address *peer,
                    struct dlk_verbs_address *own, uint64_t *handle, char *reason)
{
    struct dlk_verbs_server *server = (struct dlk_verbs_server *)verbs;

    pthread_mutex_lock(&server->making);
    int status = make(server, peer, own, handle, reason);
    pthread_mutex_unlock(&server->making);
    return status;
}

/* The pair that was made under this handle is no longer only made: it is in this state. */
static struct dlk_server_pair *pass_on(struct dlk_verbs_server *server, uint64_t handle,
                                       enum dlk_server_state state)
{
    uint32_t index = (uint32_t)handle;
    struct dlk_server_pair *pair = NULL;

    pthread_mutex_lock(&server->table);
    if (index < server->pairs_max && server->pairs[index].state == DLK_SERVER_MADE
        && server->pairs[index].mark == (uint32_t)(handle >> 32)) {
        pair = &server->pairs[index];
        pair->state = state;
    }
    pthread_mutex_unlock(&server->table);
    return pair;
}

void dlk_server_take_back(struct dlk_verbs_transport *verbs, uint64_t handle)
{
    struct dlk_verbs_server *server = (struct dlk_verbs_server *)verbs;

    pthread_mutex_lock(&server->making);
    struct dlk_server_pair *pair = pass_on(server, handle, DLK_SERVER_DEAD);
    if (pair != NULL) {
        dlk_pair_free(pair->pair);
        pair->pair = NULL;
        give_back(server, (uint32_t)handle);
    }
    pthread_mutex_unlock(&server->making);
}

/* ---- The plane thread's side ---- */

bool dlk_server_hand_over(struct dlk_verbs_transport *verbs, uint64_t handle, uint32_t client_id)
{
    struct dlk_verbs_server *server = (struct dlk_verbs_server *)verbs;
    struct dlk_server_pair *pair = pass_on(server, handle, DLK_SERVER_OFFERED);

    if (pair == NULL) {
        return false;
    }
    uint32_t *place = number_place(server, dlk_pair_number(pair->pair));
    if (place == NULL) {
        pthread_mutex_lock(&server->table);
        pair->state = DLK_SERVER_MADE; /* the sender's still */
        pthread_mutex_unlock(&server->table);
        return false;
    }
    dlk_server_poll(server); /* what an earlier one of this number has left behind */
    *place = (uint32_t)handle + 1;
    pair->link = DLK_SERVER_NONE;
    pair->client_id = client_id;
    pair->flags = 0;
    pair->blocked = pair->gone = false;
    pair->offset = pair->head = pair->count = 0;
    server->n_ours++;
    server->base.operates = server->cells.by_device;
    dlk_list_put(server, &server->offered, (uint32_t)handle);
    return true;
}

void dlk_server_free_pair(struct dlk_verbs_server *server, uint32_t index)
{
    struct dlk_server_pair *pair = &server->pairs[index];

    if (pair->pair != NULL) {
        *number_place(server, dlk_pair_number(pair->pair)) = 0;
        dlk_pair_free(pair->pair);
        pair->pair = NULL;
    }
    if (--server->n_ours == 0) {
        server->base.operates = false; /* nobody can reach a cell */
    }
    give_back(server, index);
}

/* What is left of a pair whose queue pair is gone. */
static void orphan(struct dlk_verbs_server *server, struct dlk_server_pair *pair)
{
    pair->count = 0; /* its buffers go with the queue */
    pair->gone = true;
    if (pair->state == DLK_SERVER_CLOSED) {
        pair->state = DLK_SERVER_DEAD;
    } else if (pair->state == DLK_SERVER_MADE) {
        give_back(server, (uint32_t)(pair - server->pairs));
    } else {
        dlk_server_flag(server, pair, DLK_READY_RECEIVE | DLK_READY_HANG_UP);
    }
}

void dlk_server_lose_device(struct dlk_verbs_server *server, uint32_t event)
{
    uint32_t links = 0;

    if (server->device == NULL) {
        return;
    }
    pthread_mutex_lock(&server->making);
    for (uint32_t i = 0; i < server->pairs_max; i++) {
        struct dlk_server_pair *pair = &server->pairs[i];
        if (pair->pair != NULL) {
            links += pair->state == DLK_SERVER_LINKED || pair->state == DLK_SERVER_OFFERED;
            dlk_pair_free(pair->pair);
            pair->pair = NULL;
            orphan(server, pair);
        }
    }
    for (uint32_t i = 0; i < DLK_SERVER_PAGES; i++) {
        free(server->numbers[i]);
        server->numbers[i] = NULL;
    }
    dlk_server_shut(server);
    pthread_mutex_unlock(&server->making);
    dlk_server_notice(server, DLK_VERBS_DEVICE_LOST, 0, event, links);
}
