/* One-sided operations on a real device: what they do and return, how many may be under way, and
 * what a key opens. */
#include "verbs_world.h"

enum { CELLS = 512, OPERATIONS = 200 };

/* The end that has the cells, and the one that operates on them. */
struct world {
    struct end owner;
    struct end user;
    uint64_t *cells;
    struct ibv_mr *region;
};

enum { ATOMIC = IBV_ACCESS_REMOTE_ATOMIC | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE };

static void world_open(struct world *world, uint32_t reads, uint32_t reads_served)
{
    const struct end_wish of_owner = {
        .share = true, .reads_served = reads_served, .reads = 4, .access = ATOMIC};
    const struct end_wish of_user = {.reads = reads};
    ends_open(&world->owner, &world->user, &of_owner, &of_user);
    world->cells = aligned_alloc(4096, CELLS * sizeof(uint64_t));
    assert(world->cells != NULL);
    memset(world->cells, 0, CELLS * sizeof(uint64_t));
    world->region = dlk_ibv->reg_mr(world->owner.device->pd, world->cells,
                                    CELLS * sizeof(uint64_t),
                                    IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND | ATOMIC);
    assert(world->region != NULL);
}

static void world_close(struct world *world)
{
    assert(dlk_ibv->dereg_mr(world->region) == 0);
    end_close(&world->user);
    end_close(&world->owner);
    free(world->cells);
}

static struct dlk_pair_operation operation(const struct world *world, enum dlk_pair_verb verb,
                                           uint32_t slot, uint64_t value, uint64_t compare)
{
    static uint64_t cookies;
    return (struct dlk_pair_operation){.address = (uintptr_t)&world->cells[slot],
                                       .value = value,
                                       .compare = compare,
                                       .cookie = ++cookies,
                                       .key = world->region->rkey,
                                       .verb = verb};
}

static uint64_t operate(struct world *world, struct dlk_pair_operation asked)
{
    uint64_t before = world->user.seen.answers;
    assert(dlk_pair_operate(world->user.pair, &asked, 1) == 1);
    WAIT_FOR(&world->user, &world->owner, world->user.seen.answers == before + 1);
    assert(world->user.seen.last.cookie == asked.cookie);
    assert(world->user.seen.last.status == IBV_WC_SUCCESS);
    return world->user.seen.last.value;
}

static void what_they_return(void)
{
    struct world world;
    world_open(&world, 4, 4);
    world.cells[3] = 40;
    assert(operate(&world, operation(&world, DLK_PAIR_FETCH_ADD, 3, 2, 0)) == 40);
    assert(operate(&world, operation(&world, DLK_PAIR_READ, 3, 0, 0)) == 42);
    assert(operate(&world, operation(&world, DLK_PAIR_COMPARE_SWAP, 3, 7, 41)) == 42);
    assert(world.cells[3] == 42);
    assert(operate(&world, operation(&world, DLK_PAIR_COMPARE_SWAP, 3, 7, 42)) == 42);
    assert(world.cells[3] == 7);
    assert(operate(&world, operation(&world, DLK_PAIR_FETCH_ADD, 3, (uint64_t)-8, 0)) == 7);
    assert((int64_t)world.cells[3] == -1);
    world_close(&world);
}

/* As many as asked for, but not more than the other end serves; the rest waits for answers. */
static void many_under_way(uint32_t reads, uint32_t served, uint32_t room)
{
    struct world world;
    struct dlk_pair_operation asked[2 * DLK_PAIR_READS_MAX];
    world_open(&world, reads, served);
    assert(dlk_pair_operations_room(world.user.pair) == room);
    /* The number of an operation wraps too. */
    world.user.pair->operations = (uint32_t)-20;
    world.user.pair->operations_done = (uint32_t)-20;
    uint64_t posted = 0;
    uint64_t sum = 0;
    while (posted < OPERATIONS) {
        for (uint32_t i = 0; i < 2 * DLK_PAIR_READS_MAX; i++) {
            asked[i] = operation(&world, DLK_PAIR_FETCH_ADD, 0, posted + i, 0);
        }
        int done = dlk_pair_operate(world.user.pair, asked, 2 * DLK_PAIR_READS_MAX);
        assert(done >= 0 && (uint32_t)done <= room && (posted != 0 || (uint32_t)done == room));
        for (int i = 0; i < done; i++) {
            sum += posted + (uint64_t)i;
        }
        posted += (uint64_t)done;
        ends_poll(&world.user, &world.owner);
    }
    WAIT_FOR(&world.user, &world.owner, world.user.seen.answers == posted);
    assert(world.cells[0] == sum);
    world_close(&world);
}

/* Frames and operations share a send queue; neither takes the other's places. */
static void with_messages(void)
{
    struct world world;
    world_open(&world, DLK_PAIR_READS_MAX, DLK_PAIR_READS_MAX);
    uint64_t sent = 0;
    uint64_t posted = 0;
    while (world.owner.seen.frames < 2000 || world.user.seen.answers < 2000) {
        struct dlk_pair_operation asked = operation(&world, DLK_PAIR_FETCH_ADD, 1, 1, 0);
        if (sent < 2000) {
            sent += end_send(&world.user, sent, 2000 - sent);
        }
        if (posted < 2000) {
            posted += (uint64_t)dlk_pair_operate(world.user.pair, &asked, 1);
        }
        assert(dlk_pair_tell(world.owner.pair) >= 0);
        ends_poll(&world.user, &world.owner);
    }
    assert(world.cells[1] == 2000);
    world_close(&world);
}

static void address_that_is_no_multiple_of_8(void)
{
    struct world world;
    world_open(&world, 4, 4);
    struct dlk_pair_operation asked[2] = {operation(&world, DLK_PAIR_FETCH_ADD, 0, 1, 0),
                                          operation(&world, DLK_PAIR_FETCH_ADD, 0, 1, 0)};
    asked[1].address += 4;
    assert(dlk_pair_operate(world.user.pair, asked, 2) == DLK_PAIR_MISUSE);
    assert(!dlk_pair_broken(world.user.pair)); /* neither was posted */
    assert(operate(&world, operation(&world, DLK_PAIR_READ, 0, 0, 0)) == 0);
    world_close(&world);
}

static void fails(struct world *world, struct dlk_pair_operation asked)
{
    uint64_t before = world->user.seen.answers;
    assert(dlk_pair_operate(world->user.pair, &asked, 1) == 1);
    WAIT_FOR(&world->user, &world->owner, world->user.seen.answers == before + 1);
    assert(world->user.seen.last.status == IBV_WC_REM_ACCESS_ERR);
    assert(dlk_pair_cause(world->user.seen.last.status) == DLK_VERBS_ACCESS);
    assert(dlk_pair_broken(world->user.pair));
    assert(dlk_pair_operate(world->user.pair, &asked, 1) == DLK_PAIR_GONE);
}

static void wrong_key(void)
{
    struct world world;
    world_open(&world, 4, 4);
    struct dlk_pair_operation asked = operation(&world, DLK_PAIR_FETCH_ADD, 0, 1, 0);
    asked.key ^= 0x5a;
    fails(&world, asked);
    assert(world.cells[0] == 0);
    world_close(&world);
}

static void beyond_the_region(void)
{
    struct world world;
    world_open(&world, 4, 4);
    fails(&world, operation(&world, DLK_PAIR_READ, CELLS, 0, 0));
    world_close(&world);
}

/* An end that serves none: its memory is safe, even from one who knows a key and asks all the
 * same. */
static void no_access(void)
{
    const struct end_wish none = {0};
    const struct end_wish curious = {.reads = 4};
    struct dlk_verbs_port port = world_port(0);
    struct end safe;
    struct end other;
    end_open(&safe, &port, &none);
    end_open(&other, &port, &curious);
    assert(safe.address.reads == 0);
    safe.address.reads = 4; /* what the other one believes */
    ends_connect(&other, &safe);
    uint64_t *own = aligned_alloc(4096, 4096);
    assert(own != NULL);
    own[0] = 5;
    struct ibv_mr *region =
        dlk_ibv->reg_mr(safe.device->pd, own, 4096, IBV_ACCESS_LOCAL_WRITE | ATOMIC);
    assert(region != NULL);
    struct dlk_pair_operation asked = {
        .address = (uintptr_t)own, .key = region->rkey, .value = 1, .verb = DLK_PAIR_FETCH_ADD};
    assert(dlk_pair_operate(other.pair, &asked, 1) == 1);
    WAIT_FOR(&other, &safe, other.seen.answers == 1);
    assert(other.seen.last.status != IBV_WC_SUCCESS && dlk_pair_broken(other.pair));
    assert(own[0] == 5);
    assert(dlk_ibv->dereg_mr(region) == 0);
    end_close(&other);
    end_close(&safe);
    free(own);
}

/* Who is told that none are served posts none: a device would keep them for ever. */
static void none_served(void)
{
    struct world world;
    world_open(&world, 4, 4);
    struct dlk_pair_operation asked = operation(&world, DLK_PAIR_READ, 0, 0, 0);
    assert(world.user.address.reads == 0 && world.owner.address.reads == 4);
    assert(dlk_pair_operations_room(world.owner.pair) == 0);
    assert(dlk_pair_operate(world.owner.pair, &asked, 1) == 0);
    world_close(&world);
}

/* A window opens its own 8 bytes, until it is bound to nothing. The owner binds it over a pair of
 * its own: here the one that it is used over. */
static void memory_window(void)
{
    struct world world;
    const struct end_wish loop = {.share = true, .reads = 4, .reads_served = 4, .access = ATOMIC};
    struct end here;
    struct end there;
    world_open(&world, 4, 4);
    end_open(&there, &world.owner.device->port, &loop);
    memset(&here, 0, sizeof(here));
    /* An end of the owner's protection domain. */
    char reason[DLK_REASON_BYTES];
    here.device = world.owner.device;
    here.cq = world.owner.cq;
    struct dlk_pair_config config = {.device = here.device,
                                     .send_completions = here.cq,
                                     .receive_completions = here.cq,
                                     .window = DLK_VERBS_WINDOW,
                                     .reads = 4};
    here.cq = dlk_ibv->create_cq(here.device->context, 64, NULL, NULL, 0);
    assert(here.cq != NULL);
    config.send_completions = here.cq;
    config.receive_completions = here.cq;
    here.pair = dlk_pair_new(&config, reason);
    assert(here.pair != NULL);
    dlk_pair_address(here.pair, &here.address);
    ends_connect(&here, &there);

    struct ibv_mw *window = ibv_alloc_mw(here.device->pd, IBV_MW_TYPE_1);
    assert(window != NULL);
    world.cells[9] = 90;
    assert(dlk_pair_bind(here.pair, window, world.region, (uintptr_t)&world.cells[9], 8, ATOMIC,
                         11) == 1);
    uint32_t key = window->rkey;
    WAIT_FOR(&here, &there, here.seen.answers == 1);
    assert(here.seen.last.cookie == 11 && here.seen.last.status == IBV_WC_SUCCESS);

    struct dlk_pair_operation asked = operation(&world, DLK_PAIR_FETCH_ADD, 9, 1, 0);
    asked.key = key;
    assert(operate(&world, asked) == 90);
    assert(dlk_pair_bind(here.pair, window, world.region, 0, 0, 0, 12) == 1);
    WAIT_FOR(&here, &there, here.seen.answers == 2);
    assert(here.seen.last.status == IBV_WC_SUCCESS);
    fails(&world, asked);
    assert(world.cells[9] == 91);
    assert(ibv_dealloc_mw(window) == 0);
    dlk_pair_free(here.pair);
    assert(dlk_ibv->destroy_cq(here.cq) == 0);
    end_close(&there);
    world_close(&world);
}

int main(void)
{
    what_they_return();
    many_under_way(16, 16, 16);
    many_under_way(5, 16, 5);
    many_under_way(16, 3, 3);
    with_messages();
    address_that_is_no_multiple_of_8();
    wrong_key();
    beyond_the_region();
    no_access();
    none_served();
    memory_window();
    return 0;
}
