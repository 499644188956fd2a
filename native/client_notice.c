/*
 * The notices of all clients of the process, in one queue, for one thread that waits in C. Who puts
 * some holds a client's mutex, so that they stay in order; the reader is woken when it is free. It
 * may not decide what is told (the book does). Lock order: a client, then the queue.
 */
#include "client.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { QUEUE_FIRST = 64, QUEUE_MAX = 1 << 17 /* notices; more are not kept: OVERFLOW */ };

static pthread_mutex_t queue_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queue_filled = PTHREAD_COND_INITIALIZER;
static struct dlk_notice *queue; /* a ring */
static size_t queue_room;        /* 0, or a power of two */
static size_t queue_first;
static size_t queue_count;
static bool overflow;    /* after those in the queue, some were not kept */
static bool wake_wanted; /* by dlk_notices_wake */

/* The mutex may have been held by a thread that does not exist in the child. */
void dlk_notices_after_fork(void)
{
    queue_mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    queue_filled = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    queue = NULL; /* what a thread of the parent was doing with it is not known */
    queue_room = 0;
    queue_first = 0;
    queue_count = 0;
    overflow = false;
    wake_wanted = false;
}

static bool grow(void)
{
    size_t room = queue_room == 0 ? QUEUE_FIRST : 2 * queue_room;
    struct dlk_notice *wider = queue_room < QUEUE_MAX ? malloc(room * sizeof(*wider)) : NULL;
    if (wider == NULL) {
        return false;
    }
    for (size_t i = 0; i < queue_count; i++) {
        wider[i] = queue[(queue_first + i) & (queue_room - 1)];
    }
    free(queue);
    queue = wider;
    queue_room = room;
    queue_first = 0;
    return true;
}

/* What comes after one that was not kept is not kept either: who looks at everything sees it. */
static void put(const struct dlk_notice *notice)
{
    if (overflow || (queue_count == queue_room && !grow())) {
        overflow = true;
        return;
    }
    queue[(queue_first + queue_count++) & (queue_room - 1)] = *notice;
}

bool dlk_notices_put(struct dlk_book *book)
{
    bool any = book->news.count != 0 || book->news.overflow;
    pthread_mutex_lock(&queue_mutex);
    for (uint32_t i = 0; i < book->news.count; i++) {
        put(&book->news.notices[i]);
    }
    overflow = overflow || book->news.overflow;
    pthread_mutex_unlock(&queue_mutex);
    dlk_book_told(book);
    return any;
}

void dlk_notices_ring(void)
{
    pthread_cond_signal(&queue_filled);
}

static size_t take(struct dlk_notice *out, size_t room)
{
    size_t count = 0;
    for (; count < room && queue_count != 0; count++, queue_count--) {
        out[count] = queue[queue_first];
        queue_first = (queue_first + 1) & (queue_room - 1);
    }
    if (overflow && count < room) {
        overflow = false;
        out[count++] = (struct dlk_notice){.kind = DLK_NOTICE_OVERFLOW};
    }
    return count;
}

static struct timespec end_of(uint32_t timeout_ms)
{
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    uint64_t end_ns = (uint64_t)end.tv_nsec + (uint64_t)timeout_ms * DLK_NS_PER_MS;
    end.tv_sec += (time_t)(end_ns / DLK_NS_PER_S);
    end.tv_nsec = (long)(end_ns % DLK_NS_PER_S);
    return end;
}

size_t dlk_notices_wait(struct dlk_notice *out, size_t room, uint32_t timeout_ms)
{
    struct timespec end = end_of(timeout_ms);
    bool on_time = timeout_ms != 0;
    pthread_mutex_lock(&queue_mutex);
    while (queue_count == 0 && !overflow && !wake_wanted && on_time) {
        on_time = pthread_cond_clockwait(&queue_filled, &queue_mutex, CLOCK_MONOTONIC, &end) == 0;
    }
    size_t count = take(out, room);
    if (count == 0) {
        wake_wanted = false;
    }
    pthread_mutex_unlock(&queue_mutex);
    return count;
}

void dlk_notices_wake(void)
{
    pthread_mutex_lock(&queue_mutex);
    wake_wanted = true;
    pthread_mutex_unlock(&queue_mutex);
    pthread_cond_signal(&queue_filled);
}
