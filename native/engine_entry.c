/* One entry's life: taken from the free list, queued, held, found again, removed. */
#include "engine_internal.h"

static uint64_t token_next(struct dlk_engine *engine)
{
    return ++engine->token;
}

struct entry *dlk_entry_new(struct dlk_engine *engine, const struct dlk_request *request)
{
    uint32_t index = engine->entries_free;
    if (index != DLK_NONE) {
        engine->entries_free = engine->entries[index].lock_next;
        if (engine->entries_free != DLK_NONE) {
            __builtin_prefetch(&engine->entries[engine->entries_free], 1);
        }
    } else if (engine->entries_high < engine->limits.max_entries) {
        index = engine->entries_high++;
    } else {
        return NULL;
    }
    struct entry *entry = &engine->entries[index];
    struct session *session = &engine->sessions[request->session];
    entry->owner = request->owner;
    entry->request_id = request->request_id;
    entry->session = request->session;
    entry->lock = request->slot;
    entry->mode = request->mode;
    entry->flags = request->flags;
    entry->end_ns = request->lease_ms;
    entry->session_prev = DLK_NONE;
    entry->session_next = session->entries;
    if (session->entries != DLK_NONE) {
        engine->entries[session->entries].session_prev = index;
    }
    session->entries = index;
    session->n_entries++;
    engine->entries_used++;
    struct lock *lock = &engine->locks[request->slot];
    lock->handed[request->mode]++;
    return entry;
}

static void queue_append(struct dlk_engine *engine, struct lock *lock, struct entry *entry)
{
    uint32_t index = entry_index(engine, entry);
    entry->lock_prev = lock->queue_tail;
    entry->lock_next = DLK_NONE;
    if (lock->queue_tail != DLK_NONE) {
        engine->entries[lock->queue_tail].lock_next = index;
    } else {
        lock->queue_head = index;
    }
    lock->queue_tail = index;
    lock->n_queue++;
}

static void queue_unlink(struct dlk_engine *engine, struct lock *lock, struct entry *entry)
{
    if (entry->lock_prev != DLK_NONE) {
        engine->entries[entry->lock_prev].lock_next = entry->lock_next;
    } else {
        lock->queue_head = entry->lock_next;
    }
    if (entry->lock_next != DLK_NONE) {
        engine->entries[entry->lock_next].lock_prev = entry->lock_prev;
    } else {
        lock->queue_tail = entry->lock_prev;
    }
    lock->n_queue--;
    lock->served[entry->mode]++;
    if (entry->state == DLK_ENTRY_QUEUED) {
        engine->sessions[entry->session].n_queued--;
        dlk_wait_unlink(engine, entry);
        dlk_heap_remove(&engine->waits, entry_index(engine, entry));
    }
}

/* A new entry goes to the end of the queue and waits there. */
void dlk_entry_enqueue(struct dlk_engine *engine, struct entry *entry)
{
    entry->token = token_next(engine);
    entry->state = DLK_ENTRY_QUEUED;
    engine->sessions[entry->session].n_queued++;
    queue_append(engine, &engine->locks[entry->lock], entry);
}

/* Do two entries of one queue stand in this order? Stamps are given once; of equal ones, which only
 * clients that err can claim, the client and its owner decide. */
static bool stands_before(const struct dlk_engine *engine, const struct entry *first,
                          const struct entry *second)
{
    if (first->token != second->token) {
        return first->token < second->token;
    }
    uint32_t first_id = engine->sessions[first->session].client_id;
    uint32_t second_id = engine->sessions[second->session].client_id;
    return first_id != second_id ? first_id < second_id : first->owner < second->owner;
}

/* A new entry gets its old place back. From the end: who comes late stands near it. */
void dlk_entry_take_place(struct dlk_engine *engine, struct entry *entry, uint64_t stamp,
                          bool waits)
{
    struct lock *lock = &engine->locks[entry->lock];
    uint32_t index = entry_index(engine, entry);
    entry->token = stamp;
    entry->state = waits ? DLK_ENTRY_QUEUED : DLK_ENTRY_TICKET;
    engine->sessions[entry->session].n_queued += waits;
    uint32_t prev = lock->queue_tail;
    while (prev != DLK_NONE && !stands_before(engine, &engine->entries[prev], entry)) {
        prev = engine->entries[prev].lock_prev;
    }
    uint32_t next = prev != DLK_NONE ? engine->entries[prev].lock_next : lock->queue_head;
    entry->lock_prev = prev;
    entry->lock_next = next;
    if (prev != DLK_NONE) {
        engine->entries[prev].lock_next = index;
    } else {
        lock->queue_head = index;
    }
    if (next != DLK_NONE) {
        engine->entries[next].lock_prev = index;
    } else {
        lock->queue_tail = index;
    }
    lock->n_queue++;
}

void dlk_entry_to_ticket(struct dlk_engine *engine, struct entry *entry)
{
    entry->state = DLK_ENTRY_TICKET;
    entry->end_ns = 0;
    engine->sessions[entry->session].n_queued--;
    dlk_wait_unlink(engine, entry);
    dlk_heap_remove(&engine->waits, entry_index(engine, entry));
}

void dlk_entry_to_waiter(struct dlk_engine *engine, struct entry *entry)
{
    if (entry->state == DLK_ENTRY_TICKET) {
        entry->state = DLK_ENTRY_QUEUED;
        engine->sessions[entry->session].n_queued++;
    }
}

static inline void holder_link(struct dlk_engine *engine, struct lock *lock, struct entry *entry,
                               uint32_t index)
{
    if (lock->n_exclusive + lock->n_shared == 0 || entry->end_ns < lock->min_end_ns) {
        lock->min_end_ns = entry->end_ns;
    }
    entry->lock_prev = DLK_NONE;
    entry->lock_next = lock->holders;
    if (lock->holders != DLK_NONE) {
        engine->entries[lock->holders].lock_prev = index;
    }
    lock->holders = index;
    if (entry->mode == DLK_MODE_SHARED) {
        lock->n_shared++;
    } else {
        lock->n_exclusive++;
    }
}

/* The grant, of a new entry or of one that stands in the queue. */
void dlk_entry_hold(struct dlk_engine *engine, struct entry *entry, uint64_t now_ns)
{
    struct lock *lock = &engine->locks[entry->lock];
    uint32_t index = entry_index(engine, entry);
    if (entry->state == DLK_ENTRY_FREE) {
        lock->served[entry->mode]++;
    } else {
        queue_unlink(engine, lock, entry);
    }
    entry->state = DLK_ENTRY_HELD;
    entry->token = token_next(engine);
    entry->end_ns = lease_end_ns(now_ns, (uint32_t)entry->end_ns);
    entry->since_ns = now_ns;
    holder_link(engine, lock, entry, index);
    dlk_count(engine, DLK_COUNT_GRANTS, 1);
}

/* A new entry holds again what it held under a former server. */
void dlk_entry_take_hold(struct dlk_engine *engine, struct entry *entry, uint64_t token,
                         uint64_t now_ns)
{
    struct lock *lock = &engine->locks[entry->lock];
    lock->served[entry->mode]++;
    entry->state = DLK_ENTRY_HELD;
    entry->token = token;
    entry->end_ns = DLK_NEVER; /* no lease runs before all is ready */
    entry->since_ns = now_ns;
    holder_link(engine, lock, entry, entry_index(engine, entry));
}

static void holder_unlink(struct dlk_engine *engine, struct lock *lock, struct entry *entry)
{
    if (entry->lock_prev != DLK_NONE) {
        engine->entries[entry->lock_prev].lock_next = entry->lock_next;
    } else {
        lock->holders = entry->lock_next;
    }
    if (entry->lock_next != DLK_NONE) {
        engine->entries[entry->lock_next].lock_prev = entry->lock_prev;
    }
    if (entry->mode == DLK_MODE_SHARED) {
        lock->n_shared--;
    } else {
        lock->n_exclusive--;
    }
}

static void session_unlink(struct dlk_engine *engine, struct entry *entry)
{
    struct session *session = &engine->sessions[entry->session];
    if (entry->session_prev != DLK_NONE) {
        engine->entries[entry->session_prev].session_next = entry->session_next;
    } else {
        session->entries = entry->session_next;
    }
    if (entry->session_next != DLK_NONE) {
        engine->entries[entry->session_next].session_prev = entry->session_prev;
    }
    session->n_entries--;
    if (session->state == SESSION_LEAVING || entry_breaking(entry)) {
        dlk_heap_remove(&engine->ends, engine->limits.max_locks + entry_index(engine, entry));
    }
    if (entry_breaking(entry)) {
        session->n_breaking--;
    }
    if (session->state == SESSION_LEAVING) {
        dlk_session_entry_gone(engine, entry->session);
    }
}

/* Whatever its state: the entry is gone, and may be the last thing of a closing lock or an ended
 * session. Does not settle: the caller does, when it has removed all that it means to. */
void dlk_entry_remove(struct dlk_engine *engine, struct entry *entry)
{
    struct lock *lock = &engine->locks[entry->lock];
    if (entry->state == DLK_ENTRY_HELD) {
        holder_unlink(engine, lock, entry);
    } else {
        queue_unlink(engine, lock, entry);
    }
    session_unlink(engine, entry);
    entry->state = DLK_ENTRY_FREE;
    entry->lock_next = engine->entries_free;
    engine->entries_free = entry_index(engine, entry);
    engine->entries_used--;
    if (lock->closing && lock->holders == DLK_NONE && lock->queue_head == DLK_NONE) {
        dlk_event_push(engine, DLK_EVENT_LOCK_CLOSED, entry->lock, lock->id);
        dlk_heap_remove(&engine->ends, entry->lock);
        lock->id = 0;
    }
}

static bool belongs(const struct entry *entry, const struct dlk_request *request)
{
    return entry->state != DLK_ENTRY_FREE && entry->session == request->session
           && entry->lock == request->slot && entry->owner == request->owner;
}

/* The first entry of the request's session, owner and lock that has this token (by_request false)
 * or this request id. Walks the shorter of the lists that it must be on. */
static struct entry *find(struct dlk_engine *engine, const struct dlk_request *request,
                          bool by_request, uint64_t wanted)
{
    const struct lock *lock = &engine->locks[request->slot];
    const struct session *session = &engine->sessions[request->session];
    bool by_session = session->n_entries <= lock->n_queue + lock->n_exclusive + lock->n_shared;
    uint32_t index = by_session ? session->entries : lock->queue_head;
    bool queue_done = by_session;
    for (;;) {
        if (index == DLK_NONE) {
            if (queue_done) {
                return NULL;
            }
            queue_done = true;
            index = lock->holders;
            continue;
        }
        struct entry *entry = &engine->entries[index];
        uint64_t has = by_request ? entry->request_id : entry->token;
        if (belongs(entry, request) && has == wanted) {
            return entry;
        }
        index = by_session ? entry->session_next : entry->lock_next;
    }
}

struct entry *dlk_entry_meant(struct dlk_engine *engine, const struct dlk_request *request)
{
    if (request->entry == DLK_NONE) {
        return find(engine, request, false, request->token);
    }
    if (request->entry >= engine->entries_high) {
        return NULL;
    }
    struct entry *entry = &engine->entries[request->entry];
    return belongs(entry, request) ? entry : NULL;
}

struct entry *dlk_entry_by_request(struct dlk_engine *engine, const struct dlk_request *request,
                                   uint32_t request_id)
{
    return find(engine, request, true, request_id);
}
