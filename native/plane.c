/* The life of a plane, its turn, and how it waits. plane.h has the order of things. */
#include "plane.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"

enum { STALL_MS_DEFAULT = 1000, PAGE_BYTES = 4096 };

/* ---- Begin and end ---- */

static bool tables_new(struct dlk_plane *plane)
{
    plane->n_links = plane->limits.max_sessions + DLK_PLANE_UNATTACHED_MAX;
    plane->links = calloc(plane->n_links, sizeof(*plane->links));
    plane->free_links = calloc(plane->n_links, sizeof(uint32_t));
    plane->queue = calloc(plane->n_links, sizeof(uint32_t));
    plane->session_links = calloc(plane->limits.max_sessions, sizeof(uint32_t));
    plane->attach_used = calloc(plane->limits.max_sessions, sizeof(bool));
    plane->batch = calloc(DLK_STEP_MAX, sizeof(*plane->batch));
    plane->grouped = calloc(DLK_PLANE_CHUNK, sizeof(*plane->grouped));
    plane->reply_links = calloc(DLK_PLANE_CHUNK, sizeof(uint32_t));
    plane->touched = calloc(DLK_PLANE_CHUNK, sizeof(uint32_t));
    if (plane->links == NULL || plane->free_links == NULL || plane->queue == NULL
        || plane->session_links == NULL || plane->attach_used == NULL || plane->batch == NULL
        || plane->grouped == NULL || plane->reply_links == NULL || plane->touched == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < plane->n_links; i++) {
        plane->free_links[i] = plane->n_links - 1 - i; /* low numbers first */
    }
    plane->n_free_links = plane->n_links;
    memset(plane->session_links, 0xff, plane->limits.max_sessions * sizeof(uint32_t));
    plane->oldest_new = plane->newest_new = DLK_NONE;
    return true;
}

static bool cells_new(struct dlk_plane *plane)
{
    size_t bytes = (size_t)plane->limits.max_cells * sizeof(uint64_t);
    void *cells;

    bytes = bytes == 0 ? PAGE_BYTES : (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    cells = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (cells == MAP_FAILED) {
        return false;
    }
    plane->cells = cells;
    plane->cells_bytes = bytes;
    return true;
}

static bool engine_new(struct dlk_plane *plane, const struct dlk_plane_config *config)
{
    struct dlk_command ready = {.op = DLK_COMMAND_READY, .value = config->ready};

    plane->engine = dlk_engine_new(&config->limits, config->epoch);
    if (plane->engine == NULL) {
        return false;
    }
    dlk_engine_command(plane->engine, &ready, 0);
    dlk_engine_clear(plane->engine);
    return true;
}

static bool valid(const struct dlk_plane_config *config)
{
    return config->limits.max_sessions > 0
           && config->limits.max_sessions <= 2 * (uint32_t)DLK_MAX_CLIENTS_LIMIT
           && config->wait_mode <= DLK_WAIT_POLL && config->epoch >> DLK_EPOCH_BITS == 0
           && memchr(config->host, '\0', sizeof(config->host)) != NULL;
}

static struct dlk_plane *plane_new(const struct dlk_plane_config *config, int *error)
{
    struct dlk_plane *plane = NULL;
    uint32_t stall_ms = config->stall_ms != 0 ? config->stall_ms : STALL_MS_DEFAULT;

    *error = EINVAL;
    if (!valid(config)) {
        return NULL;
    }
    *error = ENOMEM;
    if (posix_memalign((void **)&plane, alignof(struct dlk_plane), sizeof(*plane)) != 0) {
        return NULL;
    }
    memset(plane, 0, sizeof(*plane));
    atomic_init(&plane->stop, false);
    plane->limits = config->limits;
    plane->port = config->port;
    plane->stall_ns = (uint64_t)stall_ms * DLK_NS_PER_MS;
    plane->event_fd = -1;
    dlk_plane_authority_begin(plane, config->confirm_ms);
    dlk_adaptive_init(&plane->adaptive, config->wait_mode, config->spin_us);
    if (!tables_new(plane) || !cells_new(plane) || !engine_new(plane, config)
        || !dlk_ring_init(&plane->commands, sizeof(struct dlk_command), DLK_PLANE_RING)
        || !dlk_ring_init(&plane->events, sizeof(struct dlk_event), DLK_PLANE_RING)) {
        dlk_plane_free(plane);
        return NULL;
    }
    dlk_ring_may_sleep(&plane->events);
    plane->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (plane->event_fd < 0) {
        *error = errno;
        dlk_plane_free(plane);
        return NULL;
    }
    plane->transport = dlk_transport_tcp_new(config->host, &plane->port, config->listen_fd,
                                             plane->n_links, error);
    if (plane->transport == NULL) {
        dlk_plane_free(plane);
        return NULL;
    }
    *error = 0;
    return plane;
}

struct dlk_plane *dlk_plane_new(const struct dlk_plane_config *config, int *error)
{
    struct dlk_plane *plane = plane_new(config, error);

    if (plane == NULL && config->listen_fd >= 0) {
        close(config->listen_fd);
    }
    return plane;
}

uint32_t dlk_plane_port(const struct dlk_plane *plane)
{
    return plane->port;
}

void dlk_plane_stop(struct dlk_plane *plane)
{
    atomic_store(&plane->stop, true);
    plane->transport->calls->wake(plane->transport);
}

void dlk_plane_free(struct dlk_plane *plane)
{
    if (plane == NULL) {
        return;
    }
    for (uint32_t i = 0; plane->links != NULL && i < plane->n_links; i++) {
        free(plane->links[i].output);
    }
    if (plane->transport != NULL) {
        plane->transport->calls->free(plane->transport);
    }
    if (plane->event_fd >= 0) {
        close(plane->event_fd);
    }
    if (plane->cells != NULL) {
        munmap(plane->cells, plane->cells_bytes);
    }
    dlk_engine_free(plane->engine);
    dlk_ring_free(&plane->commands);
    dlk_ring_free(&plane->events);
    free(plane->links);
    free(plane->free_links);
    free(plane->queue);
    free(plane->session_links);
    free(plane->attach_used);
    free(plane->batch);
    free(plane->grouped);
    free(plane->reply_links);
    free(plane->touched);
    free(plane->backlog);
    free(plane);
}

/* ---- Waiting ---- */

uint64_t dlk_plane_clock(struct dlk_plane *plane)
{
    uint64_t now_ns = dlk_now_ns();
    uint64_t gap_ns = now_ns - plane->clock_ns;

    if (gap_ns > plane->intended_ns + plane->stall_ns
        && gap_ns - plane->intended_ns > plane->stalled_ns) {
        plane->stalled_ns = gap_ns - plane->intended_ns;
    }
    plane->clock_ns = now_ns;
    plane->intended_ns = 0;
    return now_ns;
}

static uint64_t earlier(uint64_t a_ns, uint64_t b_ns)
{
    return a_ns < b_ns ? a_ns : b_ns;
}

static uint64_t next_deadline(const struct dlk_plane *plane)
{
    uint64_t deadline_ns = plane->clock_ns + (uint64_t)DLK_PLANE_SLEEP_MS_MAX * DLK_NS_PER_MS;

    deadline_ns = earlier(deadline_ns, dlk_engine_next_deadline(plane->engine));
    deadline_ns = earlier(deadline_ns, dlk_plane_link_deadline(plane));
    if (plane->backlog_start != plane->backlog_end) {
        uint64_t again_ns = plane->clock_ns + (uint64_t)DLK_PLANE_BACKLOG_MS * DLK_NS_PER_MS;
        deadline_ns = earlier(deadline_ns, again_ns);
    }
    return deadline_ns;
}

static bool called(struct dlk_plane *plane)
{
    return !dlk_ring_empty(&plane->commands)
           || atomic_load_explicit(&plane->stop, memory_order_relaxed);
}

/* One look that may find something to do; the pass it may begin counts from before it. */
static bool look(struct dlk_plane *plane, uint64_t timeout_ns)
{
    plane->pass_ns = plane->clock_ns;
    size_t count = dlk_plane_look(plane, timeout_ns);
    bool full = count == DLK_PLANE_LOOK;

    for (uint32_t i = 0; full && i < plane->n_links / DLK_PLANE_LOOK + 1; i++) {
        full = dlk_plane_look(plane, 0) == DLK_PLANE_LOOK;
    }
    plane->pass_whole = !full && !plane->transport->partial;
    return count > 0 || called(plane);
}

static void sleep_until(struct dlk_plane *plane, uint64_t deadline_ns)
{
    uint64_t timeout_ns = deadline_ns > plane->clock_ns ? deadline_ns - plane->clock_ns : 0;

    if (timeout_ns > 0 && dlk_ring_may_sleep(&plane->commands)) {
        plane->intended_ns = timeout_ns;
        look(plane, timeout_ns);
        dlk_ring_awake(&plane->commands);
    } else {
        look(plane, 0);
    }
}

/* Until there is something to do or something is due: spins for what earlier waits were worth,
 * then sleeps. */
static void wait_for_work(struct dlk_plane *plane)
{
    uint64_t deadline_ns = next_deadline(plane);
    uint64_t budget_ns = dlk_adaptive_budget_ns(
        &plane->adaptive,
        plane->adaptive.wait_mode == DLK_WAIT_ADAPTIVE && dlk_overloaded(plane->clock_ns));

    plane->wait_start_ns = plane->clock_ns;
    plane->waited = true;
    for (uint32_t looks = 1; budget_ns > 0; looks++) {
        if (look(plane, 0)) {
            return;
        }
        if (looks % DLK_LOOKS_A_CLOCK != 0 && plane->clock_ns < deadline_ns) {
            continue;
        }
        uint64_t now_ns = dlk_plane_clock(plane);
        if (now_ns >= deadline_ns) {
            plane->waited = false; /* nothing to learn from: no message was waited for */
            return;
        }
        if (now_ns - plane->wait_start_ns >= budget_ns) {
            break;
        }
        dlk_cpu_relax();
    }
    plane->slept = true;
    sleep_until(plane, deadline_ns);
}

/* A caller that waits himself has slept, for all that the plane knows; or spun, with POLL. The pass
 * counts from before that, as it does when the plane waits. */
static inline void begin_pass(struct dlk_plane *plane, bool may_wait)
{
    plane->waited = false;
    plane->slept = !may_wait && plane->adaptive.wait_mode != DLK_WAIT_POLL;
    if (plane->pass_left > 0) {
        return; /* the last one has not come to its end */
    }
    if (!may_wait || plane->queue_count > 0 || called(plane)) {
        look(plane, 0);
    } else {
        wait_for_work(plane);
    }
    plane->pass_left = plane->queue_count;
}

/* ---- The turn ---- */

/* What has been received is carried out, and what is due ends. */
static inline void finish_turn(struct dlk_plane *plane)
{
    uint64_t now_ns = plane->clock_ns;

    if (plane->waited) {
        dlk_adaptive_learn(&plane->adaptive, now_ns - plane->wait_start_ns, plane->slept);
    }
    if (plane->stalled_ns != 0) {
        dlk_plane_grace(plane);
    }
    dlk_plane_answer_attached(plane, now_ns);
    if (plane->n_batch > 0) {
        dlk_engine_step(plane->engine, plane->batch, plane->n_batch, now_ns);
        dlk_plane_outbox(plane);
    }
    if (plane->pass_left == 0 && plane->pass_whole) {
        plane->emptied_ns = plane->pass_ns;
    }
    dlk_engine_tick(plane->engine, now_ns, plane->emptied_ns);
    dlk_plane_outbox(plane);
    dlk_plane_end_unattached(plane);
    dlk_plane_publish(plane);
    dlk_plane_flush_events(plane);
}

/* A pass has begun; or the last turn was held back, and this one goes on from there. */
static inline void turn(struct dlk_plane *plane, enum dlk_plane_held from)
{
    if (from == DLK_PLANE_HELD_NOWHERE && plane->slept) {
        dlk_plane_clock(plane); /* whatever the sleep has become, nothing is read before */
        if (!dlk_plane_may_serve(plane, DLK_PLANE_HELD_BEGUN)) {
            return;
        }
    }
    if (from != DLK_PLANE_HELD_RECEIVED) {
        if (!dlk_plane_commands(plane)) {
            return;
        }
        dlk_plane_receive(plane);
        dlk_plane_clock(plane);
        if (!dlk_plane_may_serve(plane, DLK_PLANE_HELD_RECEIVED)) {
            return;
        }
    }
    finish_turn(plane);
}

/* A whole turn, or, of one that was held back, what is left of it, as soon as it may. */
static void take_turn(struct dlk_plane *plane, bool may_wait)
{
    enum dlk_plane_held from = plane->held;

    if (from == DLK_PLANE_HELD_NOWHERE) {
        begin_pass(plane, may_wait);
    } else if (!dlk_plane_released(plane)) {
        return;
    }
    turn(plane, from);
}

/* ---- The end ---- */

static bool is_to_end(const struct dlk_plane *plane)
{
    return atomic_load_explicit(&plane->stop, memory_order_relaxed) || plane->failed != 0;
}

static void close_links(struct dlk_plane *plane)
{
    for (uint32_t number = 0; number < plane->n_links; number++) {
        if (plane->links[number].state != DLK_LINK_FREE) {
            dlk_plane_link_retire(plane, number);
        }
    }
}

/* Every waiter is woken with STOPPING; what the connections do not take soon is lost with them. A
 * plane that may not serve has nothing to say. One call looks once, for timeout_ns; false: there is
 * something that they may yet take. */
static bool last_words(struct dlk_plane *plane, uint64_t timeout_ns)
{
    uint64_t now_ns = dlk_plane_clock(plane);

    if (plane->end == DLK_PLANE_ENDED) {
        return true;
    }
    if (plane->end == DLK_PLANE_ENDING) {
        dlk_plane_look(plane, timeout_ns);
    } else if (dlk_plane_authorized(plane, now_ns)) {
        plane->end = DLK_PLANE_ENDING;
        plane->end_ns = now_ns + (uint64_t)DLK_PLANE_STOP_MS * DLK_NS_PER_MS;
        dlk_engine_stop(plane->engine);
        dlk_plane_outbox(plane);
    }
    if (plane->end == DLK_PLANE_ENDING) {
        if (plane->n_blocked > 0 && dlk_plane_clock(plane) < plane->end_ns) {
            return false;
        }
        close_links(plane);
        if (dlk_plane_verbs_lingers(plane) && dlk_plane_clock(plane) < plane->end_ns) {
            return false;
        }
    }
    plane->end = DLK_PLANE_ENDED;
    dlk_plane_publish(plane);
    dlk_plane_flush_events(plane);
    return true;
}

/* ---- Who takes the turns ---- */

int dlk_plane_run(struct dlk_plane *plane)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    const struct timespec pause = {.tv_nsec = (long)DLK_PLANE_HOLD_MS * DLK_NS_PER_MS};
    sigset_t all;
    sigset_t before;

    sigfillset(&all);
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        sigdelset(&all, faults[i]); /* these say that this thread is broken: not to be held back */
    }
    pthread_sigmask(SIG_SETMASK, &all, &before);
    plane->clock_ns = dlk_now_ns();
    while (!is_to_end(plane)) {
        take_turn(plane, true);
        if (plane->held != DLK_PLANE_HELD_NOWHERE) {
            nanosleep(&pause, NULL);
        }
    }
    while (!last_words(plane, (uint64_t)DLK_PLANE_STOP_LOOK_MS * DLK_NS_PER_MS)) {
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return plane->failed;
}

/* The caller hears when it wants to be called again once it has seen that nothing is left: after a
 * look that found no new links, which may have brought something along, and whose pass is over.
 * Between two of these turns lies a sleep of the caller's, meant to last as long as it was told. */
uint64_t dlk_plane_turn(struct dlk_plane *plane)
{
    uint64_t accepted = plane->counters[DLK_COUNT_CONNECTIONS];
    bool looks = plane->held == DLK_PLANE_HELD_NOWHERE && plane->pass_left == 0;

    if (plane->clock_ns == 0) {
        plane->clock_ns = dlk_now_ns(); /* the first one */
    }
    if (is_to_end(plane)) {
        return last_words(plane, 0)
                   ? UINT64_MAX
                   : plane->clock_ns + (uint64_t)DLK_PLANE_STOP_LOOK_MS * DLK_NS_PER_MS;
    }
    take_turn(plane, false);
    if (plane->held != DLK_PLANE_HELD_NOWHERE) {
        return dlk_now_ns() + (uint64_t)DLK_PLANE_HOLD_MS * DLK_NS_PER_MS;
    }
    if (!looks || !plane->pass_whole || plane->pass_left > 0 || plane->queue_count > 0
        || plane->counters[DLK_COUNT_CONNECTIONS] != accepted || called(plane)
        || plane->failed != 0) {
        return 0;
    }
    uint64_t deadline_ns = next_deadline(plane);
    plane->intended_ns = deadline_ns - earlier(deadline_ns, plane->clock_ns);
    return deadline_ns;
}

int dlk_plane_error(const struct dlk_plane *plane)
{
    return plane->failed;
}

struct dlk_engine *dlk_plane_engine(struct dlk_plane *plane)
{
    return plane->engine;
}
