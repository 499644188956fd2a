/*
 * Clients of the client library that ask one thing after the other: how long each call takes, over
 * whichever link they have. One thread asks for all of them. A single client waits in the call, as
 * a program would, in its own waiting mode; of several each is looked at in turn, so that nobody is
 * woken and none has to yield. Every answer is checked.
 */
#include "bench.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

/* One client and its calls, of which one is under way: TRYLOCK and UNLOCK, or the operation. */
struct asker {
    struct dlk_client *client;
    struct dlk_call calls[2];
    uint64_t begun_ns;   /* the call */
    uint64_t value;      /* of the object, which nobody else changes */
    uint32_t lock_ns;    /* what the first half of this pair took */
    bool started;        /* it is under way */
    bool unlocks;        /* it is the second half of a pair */
};

struct calls {
    const struct dlk_bench_calls *config;
    struct dlk_bench_result *result;
    struct asker *askers;
    bool draining;
};

static void prepare(const struct dlk_bench_calls *config, struct asker *asker, uint32_t number)
{
    static const uint32_t verbs[] = {
        [DLK_BENCH_LOCK_UNLOCK] = DLK_VERB_TRYLOCK,
        [DLK_BENCH_FETCH_ADD] = DLK_VERB_FETCH_ADD,
        [DLK_BENCH_COMPARE_SWAP] = DLK_VERB_COMPARE_SWAP,
        [DLK_BENCH_READ] = DLK_VERB_READ,
    };
    bool pairs = config->work == DLK_BENCH_LOCK_UNLOCK;
    *asker = (struct asker){.client = config->client[number],
                            .value = config->values != NULL ? config->values[number] : 0};
    asker->calls[0] = (struct dlk_call){.verb = verbs[config->work],
                                        .lock_id = config->ids[number],
                                        .mode = DLK_MODE_EXCLUSIVE,
                                        .lease_ms = pairs ? config->lease_ms : 0,
                                        .operand = pairs ? 0 : 1};
    asker->calls[1] =
        (struct dlk_call){.verb = DLK_VERB_UNLOCK, .lock_id = config->ids[number]};
}

/* The next one, as it is to be asked now. */
static struct dlk_call *next_call(const struct calls *calls, struct asker *asker)
{
    struct dlk_call *call = &asker->calls[asker->unlocks];
    if (calls->config->work == DLK_BENCH_COMPARE_SWAP) {
        call->operand = asker->value;
        call->swap = asker->value + 1;
    }
    return call;
}

static uint32_t clipped(uint64_t ns)
{
    return ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
}

static void sample(struct calls *calls, uint32_t first_ns, uint32_t second_ns)
{
    const struct dlk_bench_calls *config = calls->config;
    struct dlk_bench_result *result = calls->result;
    if (calls->draining) {
        return;
    }
    result->count++;
    if (result->samples < config->samples_room) {
        config->samples_ns[result->samples] = first_ns;
        config->unlock_samples_ns[result->samples] = second_ns;
        result->samples++;
    }
}

/* FETCH_ADD says what the object held before, the others what it holds now. */
static bool as_expected(const struct calls *calls, struct asker *asker)
{
    uint32_t work = calls->config->work;
    const struct dlk_call *call = &asker->calls[asker->unlocks];
    if (call->status != DLK_STATUS_SUCCESS) {
        return false;
    }
    if (work == DLK_BENCH_LOCK_UNLOCK) {
        return true;
    }
    uint64_t before = asker->value;
    asker->value += work == DLK_BENCH_READ ? 0 : 1;
    return call->value == (work == DLK_BENCH_FETCH_ADD ? before : asker->value);
}

static void answered(struct calls *calls, struct asker *asker, uint64_t now_ns)
{
    uint32_t took_ns = clipped(now_ns - asker->begun_ns);
    asker->started = false;
    if (!as_expected(calls, asker)) {
        calls->result->errors++;
    } else if (calls->config->work != DLK_BENCH_LOCK_UNLOCK) {
        sample(calls, took_ns, 0);
    } else if (asker->unlocks) {
        sample(calls, asker->lock_ns, took_ns);
        asker->unlocks = false;
    } else {
        asker->lock_ns = took_ns;
        asker->unlocks = true;
    }
}

/* A lock that is held is given back after the end, too. */
static bool has_more(const struct calls *calls, const struct asker *asker)
{
    return calls->result->errors == 0 && (!calls->draining || asker->unlocks);
}

/* One client, which waits for its answer. */
static uint64_t ask_alone(struct calls *calls, uint64_t now_ns)
{
    struct asker *asker = &calls->askers[0];
    struct dlk_call *call = next_call(calls, asker);
    asker->begun_ns = now_ns;
    int status = dlk_client_call(asker->client, call);
    while (status == DLK_STATUS_PENDING) {
        status = dlk_client_wait(asker->client, call);
    }
    now_ns = dlk_now_ns();
    answered(calls, asker, now_ns);
    return now_ns;
}

/* A look at each. True: something is under way yet, or to be asked. */
static bool ask_in_turn(struct calls *calls, uint64_t *now_ns)
{
    bool busy = false;
    for (uint32_t i = 0; i < calls->config->clients; i++) {
        struct asker *asker = &calls->askers[i];
        int status = DLK_STATUS_PENDING;
        if (asker->started) {
            status = dlk_client_poll(asker->client, &asker->calls[asker->unlocks]);
        } else if (has_more(calls, asker)) {
            asker->started = true;
            asker->begun_ns = dlk_now_ns();
            status = dlk_client_start(asker->client, next_call(calls, asker));
        }
        if (status != DLK_STATUS_PENDING) {
            *now_ns = dlk_now_ns();
            answered(calls, asker, *now_ns);
        }
        busy = busy || asker->started || has_more(calls, asker);
    }
    return busy;
}

static void run(struct calls *calls)
{
    struct dlk_bench_result *result = calls->result;
    bool alone = calls->config->clients == 1;
    dlk_bench_begin(result);
    uint64_t now_ns = result->elapsed_ns;
    uint64_t end_ns = now_ns + (uint64_t)calls->config->duration_ms * DLK_NS_PER_MS;
    while (result->errors == 0 && now_ns < end_ns) {
        if (alone) {
            now_ns = ask_alone(calls, now_ns);
        } else if (ask_in_turn(calls, &now_ns)) {
            now_ns = dlk_now_ns();
        }
    }
    dlk_bench_end(result);
    calls->draining = true;
    if (alone && has_more(calls, &calls->askers[0])) {
        ask_alone(calls, dlk_now_ns());
    }
    end_ns = dlk_now_ns() + (uint64_t)DLK_BENCH_DRAIN_MS * DLK_NS_PER_MS;
    while (!alone && ask_in_turn(calls, &now_ns) && dlk_now_ns() < end_ns) {
    }
}

/* The calls that got no answer in time: they are not to be written to any more. */
static void abandon(struct calls *calls)
{
    for (uint32_t i = 0; i < calls->config->clients; i++) {
        if (calls->askers[i].started) {
            struct asker *asker = &calls->askers[i];
            dlk_client_cancel(asker->client, &asker->calls[asker->unlocks]);
            calls->result->errors++;
        }
    }
}

int dlk_bench_calls(const struct dlk_bench_calls *config, struct dlk_bench_result *result)
{
    struct calls calls = {.config = config, .result = result};
    if (config->clients == 0 || config->clients > DLK_MAX_CLIENTS_LIMIT
        || config->work > DLK_BENCH_READ || config->client == NULL || config->ids == NULL
        || (config->samples_room != 0
            && (config->samples_ns == NULL || config->unlock_samples_ns == NULL))) {
        return EINVAL;
    }
    calls.askers = calloc(config->clients, sizeof(struct asker));
    if (calls.askers == NULL) {
        return ENOMEM;
    }
    for (uint32_t i = 0; i < config->clients; i++) {
        prepare(config, &calls.askers[i], i);
    }
    run(&calls);
    abandon(&calls);
    for (uint32_t i = 0; i < config->clients && config->values != NULL; i++) {
        config->values[i] = calls.askers[i].value;
    }
    free(calls.askers);
    return 0;
}
