/*
 * The engine alone, driven as the plane drives it: batches of requests in, replies read, outbox
 * cleared, the clock read once a batch. The same harness drives one bare word a lock, so that the
 * distance between a full record and the least that any engine must do can be seen.
 */
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine.h"

enum { FETCH_AHEAD = 16, FIRST_LOCK_ID = 100, LEASE_MS = 600000, TTL_MS = 3600000 };

/* What a client remembers of a grant. */
struct grant {
    uint64_t token;
    uint32_t entry;
    uint32_t padding;
};

struct harness {
    const struct dlk_bench_engine *config;
    struct dlk_engine *engine; /* NULL: bare words */
    uint64_t *words;
    struct dlk_reply *word_replies;
    struct dlk_request *requests;
    uint32_t *lock_order;   /* by position: which lock is taken */
    uint32_t *unlock_order; /* by turn: which of the positions held is given back */
    struct grant *grants;   /* by position among those held */
    uint64_t errors;
};

/* ---- An engine of n open locks ---- */

static void command(struct dlk_engine *engine, struct dlk_command command)
{
    dlk_engine_command(engine, &command, dlk_now_ns());
    dlk_engine_clear(engine);
}

static struct dlk_engine *engine_new(uint32_t locks, uint32_t sessions, uint32_t entries)
{
    struct dlk_limits limits = {
        .max_locks = locks,
        .max_sessions = sessions,
        .max_entries = entries,
        .max_cells = 1,
        .max_lease_ms = TTL_MS,
        .ticket_claim_ms = DLK_TICKET_CLAIM_MS,
    };
    struct dlk_engine *engine = dlk_engine_new(&limits, 1);
    if (engine != NULL) {
        command(engine, (struct dlk_command){.op = DLK_COMMAND_READY, .value = 1});
    }
    return engine;
}

static void open_all(struct dlk_engine *engine, uint32_t kind, uint32_t locks, uint32_t sessions)
{
    for (uint32_t slot = 0; slot < sessions; slot++) {
        command(engine, (struct dlk_command){.op = DLK_COMMAND_SESSION_OPEN,
                                             .slot = slot,
                                             .id = slot + 1,
                                             .ttl_ms = TTL_MS,
                                             .lease_ms = TTL_MS});
    }
    for (uint32_t slot = 0; slot < locks; slot++) {
        command(engine, (struct dlk_command){.op = DLK_COMMAND_LOCK_OPEN,
                                             .slot = slot,
                                             .id = FIRST_LOCK_ID + slot,
                                             .kind = kind,
                                             .size = 1});
    }
}

/* ---- Bare words ---- */

static void words_step(struct harness *harness, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct dlk_request *request = &harness->requests[i];
        uint64_t *word = &harness->words[request->slot];
        struct dlk_reply *reply = &harness->word_replies[i];
        bool lock = request->op == DLK_OP_LOCK;
        uint64_t expected = lock ? 0 : (uint64_t)request->session + 1;
        if (i + FETCH_AHEAD < count) {
            __builtin_prefetch(&harness->words[harness->requests[i + FETCH_AHEAD].slot], 1);
        }
        *reply = (struct dlk_reply){.request_id = request->request_id,
                                    .op = request->op,
                                    .session = request->session};
        if (*word == expected) {
            *word = lock ? (uint64_t)request->session + 1 : 0;
            reply->result = lock ? DLK_RESULT_GRANTED : DLK_RESULT_RELEASED;
        } else {
            reply->result = lock ? DLK_RESULT_BUSY : DLK_RESULT_NOT_HELD;
        }
    }
}

/* ---- The harness ---- */

static size_t step(struct harness *harness, size_t count, struct dlk_reply **replies)
{
    uint64_t now_ns = dlk_now_ns();
    if (harness->engine == NULL) {
        words_step(harness, count);
        *replies = harness->word_replies;
        return count;
    }
    dlk_engine_step(harness->engine, harness->requests, count, now_ns);
    return dlk_engine_replies(harness->engine, replies);
}

static void done(struct harness *harness)
{
    if (harness->engine != NULL) {
        dlk_engine_clear(harness->engine);
    }
}

/* Takes the locks at positions first.. of the order; `at` is where the first grant is kept. */
static void lock_batch(struct harness *harness, uint32_t first, uint32_t at, uint32_t count)
{
    const struct dlk_bench_engine *config = harness->config;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = harness->lock_order[first + i];
        harness->requests[i] = (struct dlk_request){
            .request_id = i,
            .op = DLK_OP_LOCK,
            .mode = (uint8_t)config->mode,
            .session = slot % config->sessions,
            .lock_id = FIRST_LOCK_ID + slot,
            .slot = slot,
            .entry = DLK_NONE,
            .owner = 1,
        };
    }
    struct dlk_reply *replies;
    size_t answered = step(harness, count, &replies);
    harness->errors += answered != count;
    for (uint32_t i = 0; i < count && i < answered; i++) {
        harness->errors += replies[i].result != DLK_RESULT_GRANTED || replies[i].request_id != i;
        harness->grants[at + i] = (struct grant){replies[i].token, replies[i].entry, 0};
    }
    done(harness);
}

/* Gives `count` of the locks back that were taken from position `first` on. */
static void unlock_batch(struct harness *harness, uint32_t first, uint32_t turn, uint32_t count)
{
    const struct dlk_bench_engine *config = harness->config;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = harness->unlock_order[turn + i];
        uint32_t slot = harness->lock_order[first + at];
        if (turn + i + FETCH_AHEAD < config->held) {
            uint32_t later = harness->unlock_order[turn + i + FETCH_AHEAD];
            __builtin_prefetch(&harness->grants[later]);
            __builtin_prefetch(&harness->lock_order[first + later]);
        }
        harness->requests[i] = (struct dlk_request){
            .request_id = i,
            .op = DLK_OP_UNLOCK,
            .mode = (uint8_t)config->mode,
            .session = slot % config->sessions,
            .lock_id = FIRST_LOCK_ID + slot,
            .slot = slot,
            .entry = harness->grants[at].entry,
            .owner = 1,
            .token = harness->grants[at].token,
        };
    }
    struct dlk_reply *replies;
    size_t answered = step(harness, count, &replies);
    harness->errors += answered != count;
    for (uint32_t i = 0; i < count && i < answered; i++) {
        harness->errors += replies[i].result != DLK_RESULT_RELEASED || replies[i].request_id != i;
    }
    done(harness);
}

static void shuffle(uint32_t *order, uint32_t count)
{
    uint64_t seed = 0x9e3779b97f4a7c15u;
    for (uint32_t i = 0; i < count; i++) {
        order[i] = i;
    }
    for (uint32_t i = count; i > 1; i--) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        uint32_t j = (uint32_t)(seed % i);
        uint32_t other = order[j];
        order[j] = order[i - 1];
        order[i - 1] = other;
    }
}

static void run(struct harness *harness, struct dlk_bench_result *result)
{
    const struct dlk_bench_engine *config = harness->config;
    uint64_t end_ns = dlk_now_ns() + (uint64_t)config->duration_ms * DLK_NS_PER_MS;
    uint32_t first = 0;
    dlk_bench_begin(result);
    do {
        for (uint32_t at = 0; at < config->held; at += config->batch) {
            lock_batch(harness, first + at, at, config->batch);
        }
        for (uint32_t at = 0; at < config->held; at += config->batch) {
            unlock_batch(harness, first, at, config->batch);
        }
        result->count += config->held;
        first = first + 2 * config->held <= config->locks ? first + config->held : 0;
    } while (dlk_now_ns() < end_ns);
    dlk_bench_end(result);
    result->errors = harness->errors;
}

static bool harness_init(struct harness *harness, const struct dlk_bench_engine *config)
{
    *harness = (struct harness){.config = config};
    harness->requests = calloc(config->batch, sizeof(struct dlk_request));
    harness->lock_order = calloc(config->locks, sizeof(uint32_t));
    harness->unlock_order = calloc(config->held, sizeof(uint32_t));
    harness->grants = calloc(config->held, sizeof(struct grant));
    bool table;
    if (config->bare) {
        harness->words = calloc(config->locks, sizeof(uint64_t));
        harness->word_replies = calloc(config->batch, sizeof(struct dlk_reply));
        table = harness->words != NULL && harness->word_replies != NULL;
    } else {
        harness->engine = engine_new(config->locks, config->sessions, config->locks);
        table = harness->engine != NULL;
    }
    if (!table || harness->requests == NULL || harness->lock_order == NULL
        || harness->unlock_order == NULL || harness->grants == NULL) {
        return false;
    }
    shuffle(harness->lock_order, config->locks);
    shuffle(harness->unlock_order, config->held);
    if (harness->engine != NULL) {
        open_all(harness->engine, config->kind, config->locks, config->sessions);
    }
    return true;
}

static void harness_free(struct harness *harness)
{
    dlk_engine_free(harness->engine);
    free(harness->words);
    free(harness->word_replies);
    free(harness->requests);
    free(harness->lock_order);
    free(harness->unlock_order);
    free(harness->grants);
}

int dlk_bench_engine(const struct dlk_bench_engine *config, struct dlk_bench_result *result)
{
    struct harness harness;
    if (config->kind >= DLK_KIND_COUNT || config->batch == 0 || config->batch > DLK_STEP_MAX
        || config->held == 0 || config->held % config->batch != 0 || config->sessions == 0
        || config->held > config->locks || config->sessions > DLK_MAX_CLIENTS_LIMIT
        || config->locks > DLK_MAX_LOCKS_LIMIT) {
        return EINVAL;
    }
    bool ready = harness_init(&harness, config);
    if (ready) {
        run(&harness, result);
    }
    harness_free(&harness);
    return ready ? 0 : ENOMEM;
}

/* ---- Memory ---- */

static uint64_t resident_bytes(void)
{
    unsigned long long size = 0;
    unsigned long long resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file == NULL) {
        return 0;
    }
    if (fscanf(file, "%llu %llu", &size, &resident) != 2) {
        resident = 0;
    }
    fclose(file);
    return (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* One request on every lock; a session has at most DLK_INFLIGHT_MAX waiters. */
static void ask_all(struct dlk_engine *engine, uint32_t locks, struct dlk_request pattern)
{
    for (uint32_t slot = 0; slot < locks; slot++) {
        pattern.session = slot / DLK_INFLIGHT_MAX;
        pattern.slot = slot;
        pattern.lock_id = FIRST_LOCK_ID + slot;
        dlk_engine_step(engine, &pattern, 1, dlk_now_ns());
        dlk_engine_clear(engine);
    }
}

int dlk_bench_memory(uint32_t locks, struct dlk_bench_memory *memory)
{
    uint32_t sessions = 1 + locks / DLK_INFLIGHT_MAX;
    if (locks == 0 || locks > DLK_MAX_LOCKS_LIMIT) {
        return EINVAL;
    }
    struct dlk_engine *engine = engine_new(locks, sessions, 2 * locks);
    if (engine == NULL) {
        return ENOMEM;
    }
    struct dlk_request lock = {
        .op = DLK_OP_LOCK, .entry = DLK_NONE, .owner = 1, .lease_ms = LEASE_MS};
    memory->empty = resident_bytes();
    open_all(engine, DLK_KIND_ATOMIC, locks, sessions);
    memory->opened = resident_bytes();
    ask_all(engine, locks, lock);
    memory->held = resident_bytes();
    lock.owner = 2;
    lock.wait_ms = LEASE_MS;
    ask_all(engine, locks, lock);
    memory->queued = resident_bytes();
    bool whole = dlk_engine_entries_in_use(engine) == 2 * locks;
    dlk_engine_free(engine);
    return whole ? 0 : EPROTO;
}
