/*
 * Clients of the client library that contend for one lock, a thread each: how long a hand-over
 * takes, and whether everybody gets the same share. The lock itself guards what they measure with.
 */
#include "bench.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum { STACK_BYTES = 256 * 1024 };

struct crowd {
    const struct dlk_bench_crowd *config;
    pthread_mutex_t gate; /* shut until all are there */
    atomic_bool stop;
    atomic_uint errors;
    atomic_uint refused;
    /* Written by the holder; atomic because no compiler knows that the lock guards them. */
    _Atomic uint64_t released_ns; /* 0: nobody has held it yet */
    _Atomic uint64_t samples;
};

struct member {
    struct crowd *crowd;
    struct dlk_client *client;
    uint64_t *grants;
    pthread_t thread;
};

static int carry_out(const struct member *member, struct dlk_call *call)
{
    int status = dlk_client_call(member->client, call);
    while (status == DLK_STATUS_PENDING) {
        status = dlk_client_wait(member->client, call);
    }
    return status;
}

/* Under the lock. */
static void note(struct crowd *crowd, struct member *member, uint64_t now_ns)
{
    const struct dlk_bench_crowd *config = crowd->config;
    uint64_t released_ns = atomic_load(&crowd->released_ns);
    uint64_t index = atomic_load(&crowd->samples);
    ++*member->grants;
    if (released_ns != 0 && index < config->samples_room) {
        uint64_t took_ns = now_ns - released_ns;
        config->samples_ns[index] = took_ns < UINT32_MAX ? (uint32_t)took_ns : UINT32_MAX;
        atomic_store(&crowd->samples, index + 1);
    }
}

/* Waits for the lock, holds it, gives it back. False: this member cannot go on. */
static bool turn(struct member *member, struct dlk_call *lock, struct dlk_call *unlock)
{
    struct crowd *crowd = member->crowd;
    int status = carry_out(member, lock);
    uint64_t now_ns = dlk_now_ns();
    if (status == DLK_STATUS_FAIL || status == DLK_STATUS_EAGAIN) {
        atomic_fetch_add(&crowd->refused, 1);
        return true;
    }
    if (status == DLK_STATUS_SUCCESS) {
        struct timespec hold = {.tv_nsec = (long)crowd->config->hold_us * DLK_NS_PER_US};
        if (!atomic_load_explicit(&crowd->stop, memory_order_relaxed)) {
            note(crowd, member, now_ns);
        }
        if (hold.tv_nsec != 0) {
            nanosleep(&hold, NULL);
        }
        atomic_store(&crowd->released_ns, dlk_now_ns());
        status = carry_out(member, unlock);
    }
    if (status != DLK_STATUS_SUCCESS) {
        atomic_fetch_add(&crowd->errors, 1);
    }
    return status == DLK_STATUS_SUCCESS;
}

static void *contend(void *argument)
{
    struct member *member = argument;
    struct crowd *crowd = member->crowd;
    const struct dlk_bench_crowd *config = crowd->config;
    struct dlk_call lock = {.verb = DLK_VERB_LOCK,
                            .lock_id = config->lock_id,
                            .mode = config->mode,
                            .lease_ms = config->lease_ms,
                            .wait_ms = config->wait_ms};
    struct dlk_call unlock = {.verb = DLK_VERB_UNLOCK, .lock_id = config->lock_id};
    pthread_mutex_lock(&crowd->gate);
    pthread_mutex_unlock(&crowd->gate);
    while (!atomic_load_explicit(&crowd->stop, memory_order_relaxed)
           && turn(member, &lock, &unlock)) {
    }
    return NULL;
}

static uint32_t start(struct crowd *crowd, struct member *members)
{
    pthread_attr_t attributes;
    sigset_t all;
    sigset_t before;
    uint32_t started = 0;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the threads inherit it */
    for (; started < crowd->config->clients; started++) {
        struct member *member = &members[started];
        crowd->config->counts[started] = 0;
        *member = (struct member){.crowd = crowd,
                                  .client = crowd->config->client[started],
                                  .grants = &crowd->config->counts[started]};
        if (pthread_create(&member->thread, &attributes, contend, member) != 0) {
            break;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return started;
}

int dlk_bench_crowd(const struct dlk_bench_crowd *config, struct dlk_bench_result *result)
{
    struct crowd crowd = {.config = config};
    if (config->clients == 0 || config->clients > DLK_MAX_CLIENTS_LIMIT || config->wait_ms == 0
        || config->hold_us >= DLK_NS_PER_S / DLK_NS_PER_US) {
        return EINVAL;
    }
    struct member *members = calloc(config->clients, sizeof(struct member));
    if (members == NULL) {
        return ENOMEM;
    }
    pthread_mutex_init(&crowd.gate, NULL);
    pthread_mutex_lock(&crowd.gate);
    uint32_t started = start(&crowd, members);
    if (started < config->clients) {
        atomic_store(&crowd.stop, true);
    }
    dlk_bench_begin(result);
    pthread_mutex_unlock(&crowd.gate);
    struct timespec nap = {.tv_sec = config->duration_ms / 1000,
                           .tv_nsec = (long)(config->duration_ms % 1000) * DLK_NS_PER_MS};
    for (int i = 0; started == config->clients && i < DLK_BENCH_PATIENCE; i++) {
        struct timespec left = nap;
        while (nanosleep(&left, &left) != 0 && errno == EINTR) {
        }
        if (atomic_load(&crowd.samples) != 0 || config->clients == 1) {
            break;
        }
    }
    atomic_store(&crowd.stop, true);
    dlk_bench_end(result);
    for (uint32_t i = 0; i < started; i++) {
        pthread_join(members[i].thread, NULL);
        result->count += config->counts[i];
    }
    pthread_mutex_destroy(&crowd.gate);
    result->samples = atomic_load(&crowd.samples);
    result->errors = atomic_load(&crowd.errors);
    result->refused = atomic_load(&crowd.refused);
    free(members);
    return started == config->clients ? 0 : EAGAIN;
}
