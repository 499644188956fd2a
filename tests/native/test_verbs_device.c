/* Devices: which is chosen, what is said when none can be, one that a process shares, a child, a
 * user with little memory to lock. */
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "verbs_world.h"

enum { PORTS = 64, PAIRS_MAX = 64, MEMLOCK = 64 * 1024, NOBODY = 65534 };

static void what_there_is(void)
{
    struct dlk_verbs_port ports[PORTS];
    char reason[DLK_REASON_BYTES];
    struct dlk_verbs_port best = world_port(0);
    size_t count = dlk_verbs_ports(ports, PORTS, reason);
    bool found = false;
    assert(count >= 1 && count <= PORTS);
    for (size_t i = 0; i < count; i++) {
        assert(ports[i].device[0] != '\0' && ports[i].port >= 1 && ports[i].inline_max == 0);
        found |= strcmp(ports[i].device, best.device) == 0 && ports[i].port == best.port;
    }
    assert(found && best.active);
    assert(best.inline_max >= DLK_FRAME_BYTES && best.inline_max % DLK_FRAME_BYTES == 0);
    assert(best.mtu >= 256 && best.mtu <= 4096 && best.completions_max > 0);
    assert(!best.ethernet || best.gid_type != DLK_GID_INFINIBAND);
    assert(dlk_verbs_ports(ports, 0, reason) == count);
    if (strncmp(best.device, "rxe", 3) == 0) {
        assert(best.soft && best.atomicity == DLK_ATOMICITY_DEVICE);
        assert(best.gid_type == DLK_GID_ROCE_2 && best.windows_max > 0);
        assert(best.receives_max > 0 && best.reads_max >= 16);
    }
}

/* By its name, its GID, its port; and what is said of those that are not there. */
static void what_is_wished(void)
{
    char reason[DLK_REASON_BYTES];
    struct dlk_verbs_port best = world_port(0);
    struct dlk_verbs_port port;
    struct dlk_verbs_wish wish = {.port = best.port};
    memcpy(wish.device, best.device, sizeof(wish.device));
    memcpy(wish.gid, best.gid, sizeof(wish.gid));
    assert(dlk_verbs_choose(&wish, &port, reason));
    assert(memcmp(&port, &best, sizeof(port)) == 0);

    wish.port = 77;
    assert(!dlk_verbs_choose(&wish, &port, reason) && strstr(reason, "port 77") != NULL);
    wish.port = 0;
    wish.gid[0] ^= 0x55;
    assert(!dlk_verbs_choose(&wish, &port, reason) && strstr(reason, "GID") != NULL);
    wish = (struct dlk_verbs_wish){.device = "nobody7"};
    assert(!dlk_verbs_choose(&wish, &port, reason));
    assert(strstr(reason, "no device nobody7") != NULL && strstr(reason, best.device) != NULL);
    memset(wish.device, 'x', sizeof(wish.device)); /* without an end */
    assert(!dlk_verbs_choose(&wish, &port, reason) && strstr(reason, "no device xxx") != NULL);
}

static void one_for_all(void)
{
    char reason[DLK_REASON_BYTES];
    struct dlk_verbs_port port = world_port(0);
    struct dlk_verbs_device *first = dlk_verbs_device_open(&port, DLK_DEVICE_SHARED, reason);
    struct dlk_verbs_device *second = dlk_verbs_device_open(&port, DLK_DEVICE_SHARED, reason);
    struct dlk_verbs_device *own = dlk_verbs_device_open(&port, DLK_DEVICE_OWN, reason);
    assert(first != NULL && first == second && own != NULL && own != first);
    assert(first->users == 2);
    dlk_verbs_device_close(first);
    struct dlk_verbs_device *third = dlk_verbs_device_open(&port, DLK_DEVICE_SHARED, reason);
    assert(third == second && third->users == 2);
    dlk_verbs_device_close(second);
    dlk_verbs_device_close(third);
    dlk_verbs_device_close(own);
}

static void gone_or_changed(void)
{
    char reason[DLK_REASON_BYTES];
    struct dlk_verbs_port port = world_port(0);
    struct dlk_verbs_port other = port;
    other.gid[15] ^= 1;
    assert(dlk_verbs_device_open(&other, DLK_DEVICE_OWN, reason) == NULL);
    assert(strstr(reason, "has changed") != NULL);
    other = port;
    snprintf(other.device, sizeof(other.device), "nobody7");
    assert(dlk_verbs_device_open(&other, DLK_DEVICE_SHARED, reason) == NULL);
    assert(strstr(reason, "no device nobody7") != NULL);
}

static void ends_well(pid_t child)
{
    int status = 0;
    assert(child > 0 && waitpid(child, &status, 0) == child);
    assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* A child does nothing with what its parent has; it can open the device for itself. */
static void in_a_child(void)
{
    const struct end_wish usual = {0};
    struct end a;
    struct end b;
    char reason[DLK_REASON_BYTES];
    ends_open(&a, &b, &usual, &usual);
    struct dlk_verbs_port port = a.device->port;
    struct dlk_verbs_device *shared = dlk_verbs_device_open(&port, DLK_DEVICE_SHARED, reason);
    pid_t child = fork();
    if (child == 0) {
        dlk_pair_free(a.pair);
        dlk_verbs_device_close(a.device);
        dlk_verbs_device_close(shared);
        struct dlk_verbs_device *own = dlk_verbs_device_open(&port, DLK_DEVICE_SHARED, reason);
        bool fresh = own != NULL && own != shared && own->users == 1 && shared->users == 1;
        dlk_verbs_device_close(own);
        _exit(fresh ? 0 : 1);
    }
    ends_well(child);
    assert(end_send(&a, 0, 1) == 1); /* the parent's work on */
    WAIT_FOR(&a, &b, b.seen.frames == 1);
    dlk_verbs_device_close(shared);
    end_close(&a);
    end_close(&b);
}

/* As a user without rights: some ends fit, then it is told what to do; nothing is left behind. */
static bool little_memory(const struct dlk_verbs_port *port)
{
    char reason[DLK_REASON_BYTES] = "";
    struct rlimit limit = {.rlim_cur = MEMLOCK, .rlim_max = MEMLOCK};
    struct dlk_queue_pair *pairs[PAIRS_MAX];
    struct dlk_verbs_address own;
    size_t count = 0;
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0 || setgid(NOBODY) != 0 || setuid(NOBODY) != 0) {
        return false;
    }
    for (int round = 0; round < 2; round++) {
        for (count = 0; count < PAIRS_MAX; count++) {
            pairs[count] = dlk_queue_pair_new(port, &own, reason);
            if (pairs[count] == NULL) {
                break;
            }
        }
        for (size_t i = 0; i < count; i++) {
            dlk_queue_pair_free(pairs[i]);
        }
        fprintf(stderr, "%zu queue pairs, then: %s\n", count, reason);
        if (count == 0 || count == PAIRS_MAX || strstr(reason, "ulimit -l") == NULL) {
            return false;
        }
    }
    return true;
}

static void as_an_ordinary_user(void)
{
    struct dlk_verbs_port port = world_port(0);
    if (geteuid() != 0) {
        return; /* only root can become somebody else */
    }
    pid_t child = fork();
    if (child == 0) {
        _exit(little_memory(&port) ? 0 : 1);
    }
    ends_well(child);
}

static void texts(void)
{
    char reason[DLK_REASON_BYTES] = "";
    char wide[2 * DLK_REASON_BYTES];
    memset(wide, 'w', sizeof(wide));
    wide[sizeof(wide) - 1] = '\0';
    dlk_verbs_say_more(reason, "%s", "one");
    dlk_verbs_say_more(reason, "%s", "two");
    assert(strcmp(reason, "one; two") == 0);
    for (int i = 0; i < 3; i++) {
        dlk_verbs_say_more(reason, "%s", wide);
        assert(strlen(reason) == DLK_REASON_BYTES - 1);
    }
    dlk_verbs_say_errno(reason, "open it", EACCES);
    assert(strstr(reason, "chmod") != NULL);
    dlk_verbs_say_errno(reason, "open it", ENODEV);
    assert(strcmp(reason, "cannot open it: No such device") == 0);
}

int main(void)
{
    texts();
    what_there_is();
    what_is_wished();
    one_for_all();
    gone_or_changed();
    in_a_child();
    as_an_ordinary_user();
    return 0;
}
