/*
 * Are there more threads that want to run than cores to run them? Then a spinning thread takes its
 * core from the one it waits for. The only file of adaptive waiting that looks at the machine.
 *
 * /proc/loadavg counts the runnable threads of the whole machine, so they are compared with the
 * cores of the whole machine. A process that may use only some of these cores (a container, a
 * batch job) can be short of them while others idle: there a thread also goes by how long the
 * scheduler has let it wait for a core.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adaptive.h"

enum {
    SAMPLE_INTERVAL_NS = 10000000,
    /* A crowd that happens to sleep at the moment of a sample is still there: what was found
     * overloaded is believed so for longer, and asked less often. */
    OVERLOADED_INTERVAL_NS = 100000000,
    CORES_INTERVAL_NS = 1000000000, /* how many cores there are: costs ten times a sample */
    CPUS_MAX = 8192,
    FD_UNOPENED = -1,
    FD_MISSING = -2
};

static atomic_int loadavg_fd = FD_UNOPENED;
static _Atomic uint64_t sample_again_ns;
static _Atomic uint64_t cores_again_ns;
static _Atomic long cores_online = 1;
static atomic_bool machine_overloaded;
static atomic_bool cores_restricted;

/* The descriptor, opened once a process and never closed; FD_MISSING where there is no /proc. */
static int loadavg(void)
{
    int fd = atomic_load_explicit(&loadavg_fd, memory_order_acquire);
    int expected = FD_UNOPENED;

    if (fd != FD_UNOPENED) {
        return fd;
    }
    fd = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        fd = FD_MISSING;
    }
    if (atomic_compare_exchange_strong(&loadavg_fd, &expected, fd)) {
        return fd;
    }
    if (fd >= 0) {
        close(fd);
    }
    return expected;
}

/* "0.48 0.28 0.12 RUNNABLE/ALL LAST_PID"; 0 where it cannot be read. */
static long runnable_threads(void)
{
    char text[128];
    int fd = loadavg();
    ssize_t length = fd < 0 ? -1 : pread(fd, text, sizeof(text) - 1, 0);
    const char *field = text;

    if (length <= 0) {
        return 0;
    }
    text[length] = '\0';
    for (int i = 0; i < 3 && field != NULL; i++) {
        field = strchr(field, ' ');
        field = field != NULL ? field + 1 : NULL;
    }
    return field != NULL ? strtol(field, NULL, 10) : 0;
}

/* Cores that the process as a whole may use: the mask of its first thread, since a server pins its
 * own threads to one core each and that says nothing about the room there is. */
static long usable_cores(long online)
{
    cpu_set_t *cores = CPU_ALLOC(CPUS_MAX);
    long count = online;

    if (cores == NULL) {
        return online;
    }
    CPU_ZERO_S(CPU_ALLOC_SIZE(CPUS_MAX), cores);
    if (sched_getaffinity(getpid(), CPU_ALLOC_SIZE(CPUS_MAX), cores) == 0) {
        count = CPU_COUNT_S(CPU_ALLOC_SIZE(CPUS_MAX), cores);
    }
    CPU_FREE(cores);
    return count;
}

/* Is it time? True for one of the threads that ask, who then has `interval_ns` to itself. */
static bool due(_Atomic uint64_t *again_ns, uint64_t now_ns, uint64_t interval_ns)
{
    uint64_t at_ns = atomic_load_explicit(again_ns, memory_order_relaxed);

    return now_ns >= at_ns
           && atomic_compare_exchange_strong(again_ns, &at_ns, now_ns + interval_ns);
}

static void sample(uint64_t now_ns)
{
    if (!due(&sample_again_ns, now_ns, SAMPLE_INTERVAL_NS)) {
        return;
    }
    if (due(&cores_again_ns, now_ns, CORES_INTERVAL_NS)) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        atomic_store_explicit(&cores_online, online, memory_order_relaxed);
        atomic_store_explicit(&cores_restricted, usable_cores(online) < online,
                              memory_order_relaxed);
    }
    bool overloaded
        = runnable_threads() > atomic_load_explicit(&cores_online, memory_order_relaxed);
    atomic_store_explicit(&machine_overloaded, overloaded, memory_order_relaxed);
    if (overloaded) {
        atomic_store_explicit(&sample_again_ns, now_ns + OVERLOADED_INTERVAL_NS,
                              memory_order_relaxed);
    }
}

/* Nanoseconds that the calling thread was ready to run and did not: the second number of its
 * schedstat. 0 where it cannot be read. */
static uint64_t waited_for_core_ns(void)
{
    char text[128];
    char *rest = text;
    int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

    if (fd >= 0) {
        close(fd);
    }
    if (length <= 0) {
        return 0;
    }
    text[length] = '\0';
    (void)strtoull(text, &rest, 10);
    return strtoull(rest, NULL, 10);
}

/* Has the calling thread waited for a core for a fourth of the time since it was last looked at?
 * A neighbour that runs now and then costs it less, another spinner half. */
static bool short_of_cores(uint64_t now_ns)
{
    static _Thread_local uint64_t looked_ns;
    static _Thread_local uint64_t before_ns;
    static _Thread_local bool answer;
    uint64_t waited_ns;

    if (looked_ns != 0 && now_ns < looked_ns + SAMPLE_INTERVAL_NS) {
        return answer;
    }
    waited_ns = waited_for_core_ns();
    answer = looked_ns != 0 && (waited_ns - before_ns) * 4 > now_ns - looked_ns;
    before_ns = waited_ns;
    looked_ns = now_ns;
    return answer;
}

bool dlk_overloaded(uint64_t now_ns)
{
    sample(now_ns);
    if (atomic_load_explicit(&machine_overloaded, memory_order_relaxed)) {
        return true;
    }
    return atomic_load_explicit(&cores_restricted, memory_order_relaxed) && short_of_cores(now_ns);
}
