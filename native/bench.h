/*
 * What the benchmark files share: how the time burnt is read, and how a measurement is bounded.
 * docs/benchmarks.md says what is measured; nothing of a server or a client includes this.
 */
#ifndef DLOCK_BENCH_H
#define DLOCK_BENCH_H

#include <time.h>

#include "clock.h"
#include "abi_bench.h"

/* CPU time of this process, all its threads together. */
static inline uint64_t dlk_bench_cpu_ns(void)
{
    struct timespec spent;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
    return (uint64_t)spent.tv_sec * DLK_NS_PER_S + (uint64_t)spent.tv_nsec;
}

/* A measurement in which nothing happened goes on, at most this many times as long. */
enum { DLK_BENCH_PATIENCE = 50 };

/* What the end of a measurement gives the last answers. */
enum { DLK_BENCH_DRAIN_MS = 3000 };

static inline void dlk_bench_begin(struct dlk_bench_result *result)
{
    *result = (struct dlk_bench_result){.cpu_ns = dlk_bench_cpu_ns(), .elapsed_ns = dlk_now_ns()};
}

static inline void dlk_bench_end(struct dlk_bench_result *result)
{
    result->elapsed_ns = dlk_now_ns() - result->elapsed_ns;
    result->cpu_ns = dlk_bench_cpu_ns() - result->cpu_ns;
}

#endif
