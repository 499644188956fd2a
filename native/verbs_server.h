/*
 * RDMA at a server, shared by the files that make it up; nothing else includes this.
 *
 *   verbs_queues.c    what all queue pairs share
 *   verbs_table.c     the queue pairs, by index, by number, by link: made, handed over, freed
 *   verbs_serve.c     completions: what they mean for a queue pair, and what it owes
 *   verbs_transport.c the calls of a transport, and the life of the whole
 *   verbs_cells.c     cells that clients operate on by themselves
 *
 * The life of a queue pair: FREE, MADE by the control thread, OFFERED to accept once it is handed
 * over, LINKED, CLOSED: what was sent is being delivered, DEAD: to be freed, FREE.
 *
 * Completions carry the number of their queue pair. A number is entered when its queue pair is
 * handed over, after everything that lay in the completion queue has been taken out; its other end
 * learns of it only later. So whatever an earlier queue pair of this number has left behind is
 * never taken for the new one's.
 *
 * Threads. The control thread makes a pair (MADE) and may take it back; from hand_over on it is the
 * plane's. `table` guards the free places and the change of hands, for moments; `making` is held
 * while a pair is made, so that a lost device is not closed in the middle of it.
 */
#ifndef DLOCK_VERBS_SERVER_H
#define DLOCK_VERBS_SERVER_H

#include <pthread.h>
#include <stdatomic.h>

#include "verbs_cells.h"
#include "verbs_pair.h"
#include "verbs_queues.h"
#include "verbs_transport.h"

enum {
    DLK_SERVER_NONE = 0xffffffff,
    DLK_SERVER_PAGES = 4096, /* of numbers, which have 24 bits */
    DLK_SERVER_PAGE_NUMBERS = 4096,
    DLK_SERVER_NOTICES = 256,
    DLK_SERVER_LINGER_MS = 200 /* what a closed link gives its last messages */
};

enum dlk_server_state {
    DLK_SERVER_FREE = 0,
    DLK_SERVER_MADE,
    DLK_SERVER_OFFERED,
    DLK_SERVER_LINKED,
    DLK_SERVER_CLOSED,
    DLK_SERVER_DEAD
};

struct dlk_server_message {
    uint32_t buffer;
    uint32_t length;
};

struct dlk_server_pair {
    struct dlk_pair *pair;
    _Atomic uint32_t state; /* enum dlk_server_state; both threads look at it */
    uint32_t mark;
    uint32_t link;
    uint32_t flags;  /* enum dlk_ready_flag, not yet told */
    bool ready;      /* stands in the list of those that have flags */
    bool owing;      /* stands in the list of those that may have to tell credits */
    bool blocked;    /* a send took less than it was given */
    bool gone;       /* nothing more will come */
    uint32_t offset; /* bytes of the first message that were received */
    uint32_t head;
    uint32_t count;
    struct dlk_server_message messages[DLK_VERBS_WINDOW];
    uint32_t client_id;
    uint8_t gid[DLK_GID_BYTES];
    uint64_t linger_ns;
};

/* Indices of pairs; each stands in it once at most, so there is always room. */
struct dlk_server_list {
    uint32_t *items;
    uint32_t head;
    uint32_t count;
};

struct dlk_verbs_server {
    struct dlk_verbs_transport base;
    struct dlk_transport *tcp;
    struct dlk_verbs_queues queues;
    struct dlk_verbs_cells cells;
    struct dlk_verbs_device *device; /* NULL: lost */

    pthread_mutex_t making;
    pthread_mutex_t table;
    uint32_t pairs_max;
    struct dlk_server_pair *pairs;
    uint32_t *free_pairs;
    uint32_t n_free;
    uint32_t next_mark;
    uint32_t *numbers[DLK_SERVER_PAGES]; /* index + 1; 0: unknown */
    uint32_t *link_pairs;                /* by link; DLK_SERVER_NONE: TCP, or free */
    uint32_t links;

    uint32_t n_ours; /* handed over, and not freed */
    uint32_t passed_over; /* looks that left TCP out */
    uint32_t pass_over;   /* so many do */
    struct dlk_server_list ready;
    struct dlk_server_list owing;
    struct dlk_server_list offered;
    struct dlk_server_list closed; /* and dead; in the order of their time */

    struct dlk_verbs_notice notices[DLK_SERVER_NOTICES];
    uint32_t notices_head;
    uint32_t n_notices;
};

static inline void dlk_list_put(const struct dlk_verbs_server *server,
                                struct dlk_server_list *list, uint32_t index)
{
    uint32_t at = list->head + list->count++;
    list->items[at < server->pairs_max ? at : at - server->pairs_max] = index;
}

static inline uint32_t dlk_list_take(const struct dlk_verbs_server *server,
                                     struct dlk_server_list *list)
{
    uint32_t index = list->items[list->head];
    list->head = list->head + 1 < server->pairs_max ? list->head + 1 : 0;
    list->count--;
    return index;
}

static inline struct dlk_server_pair *dlk_server_pair_of_link(struct dlk_verbs_server *server,
                                                              uint32_t link)
{
    uint32_t index = server->link_pairs[link];
    return index != DLK_SERVER_NONE ? &server->pairs[index] : NULL;
}

/* verbs_table.c */
bool dlk_server_table_open(struct dlk_verbs_server *server, uint32_t links);
void dlk_server_table_close(struct dlk_verbs_server *server);
struct dlk_server_pair *dlk_server_find(struct dlk_verbs_server *server, uint32_t number);
int dlk_server_make(struct dlk_verbs_transport *verbs, const struct dlk_verbs_address *peer,
                    struct dlk_verbs_address *own, uint64_t *handle, char *reason);
void dlk_server_take_back(struct dlk_verbs_transport *verbs, uint64_t handle);
bool dlk_server_hand_over(struct dlk_verbs_transport *verbs, uint64_t handle, uint32_t client_id);
/* The plane's: its queue pair is destroyed, its place free again. */
void dlk_server_free_pair(struct dlk_verbs_server *server, uint32_t index);
/* Every queue pair of the device is destroyed, then all that is left of it. Links stay until they
 * are closed. `event`: an ibv_event_type. */
void dlk_server_lose_device(struct dlk_verbs_server *server, uint32_t event);

/* verbs_transport.c */
void dlk_server_shut(struct dlk_verbs_server *server);

/* verbs_serve.c */
void dlk_server_poll(struct dlk_verbs_server *server); /* until nothing is there */
void dlk_server_tell(struct dlk_verbs_server *server);
/* Frees what has lingered long enough, at most so many; returns when the next one has, or 0: it has
 * already; UINT64_MAX: there is none. */
uint64_t dlk_server_bury(struct dlk_verbs_server *server, uint32_t most);
void dlk_server_async(struct dlk_verbs_server *server);
void dlk_server_notice(struct dlk_verbs_server *server, uint32_t event, uint32_t client_id,
                       uint32_t code, uint32_t links);
void dlk_server_flag(struct dlk_verbs_server *server, struct dlk_server_pair *pair,
                     uint32_t flags);
void dlk_server_took(struct dlk_verbs_server *server, struct dlk_server_pair *pair,
                     uint32_t messages);
/* Its messages that were not received; the link is closed or the device lost. */
void dlk_server_drop(struct dlk_verbs_server *server, struct dlk_server_pair *pair);
void dlk_server_close_link(struct dlk_verbs_server *server, struct dlk_server_pair *pair);

#endif
