/* For how many queue pairs a server has room: what the device has, and what may be locked. On a
 * real device. */
#include <sys/resource.h>
#include <sys/wait.h>

#include "verbs_plane_world.h"

static struct dlk_verbs_device *open_device(void)
{
    struct dlk_verbs_port port = world_port();
    char reason[DLK_REASON_BYTES];
    struct dlk_verbs_device *device = dlk_verbs_device_open(&port, DLK_DEVICE_OWN, reason);

    assert(device != NULL);
    return device;
}

static void room_for_all(void)
{
    struct dlk_verbs_device *device = open_device();
    struct dlk_verbs_queues queues;
    char reason[DLK_REASON_BYTES];

    assert(dlk_verbs_queues_open(&queues, device, 20, reason));
    assert(queues.pairs_max == 20 && strcmp(reason, "room for 20 queue pairs") == 0);
    dlk_verbs_queues_close(&queues);
    dlk_verbs_device_close(device);
}

/* As if the device had few completions: no queue can overrun, and the text says what it was. */
static void few_completions(void)
{
    struct dlk_verbs_device *device = open_device();
    struct dlk_verbs_queues queues;
    char reason[DLK_REASON_BYTES];

    device->limits.max_cqe
        = DLK_QUEUES_AGAIN_MAX + 5 * (DLK_VERBS_WINDOW + DLK_PAIR_SEND_COMPLETIONS_MAX) + 1;
    assert(dlk_verbs_queues_open(&queues, device, 20, reason));
    assert(queues.pairs_max == 5 && strstr(reason, "5 queue pairs instead of 20") != NULL);
    assert(strstr(reason, "completion queue") != NULL);
    dlk_verbs_queues_close(&queues);
    device->limits.max_cqe = 1;
    assert(!dlk_verbs_queues_open(&queues, device, 20, reason));
    assert(reason[0] != '\0');
    dlk_verbs_device_close(device);
}

/* A user who may lock 256 KiB. Before the library is loaded, so that this process is no child to
 * it; the device is open before the rights are given away. */
static int little_may_be_locked(void)
{
    struct rlimit locked = {.rlim_cur = 256 * 1024, .rlim_max = 256 * 1024};
    struct dlk_verbs_device *device = open_device();
    struct dlk_verbs_queues queues;
    char reason[DLK_REASON_BYTES];

    if (setrlimit(RLIMIT_MEMLOCK, &locked) != 0 || setuid(65534) != 0) {
        return SKIPPED; /* root only */
    }
    assert(dlk_verbs_queues_open(&queues, device, 200, reason));
    assert(queues.pairs_max >= 1 && queues.pairs_max <= 256 * 1024 / 512 / DLK_VERBS_WINDOW);
    assert(strstr(reason, "instead of 200") != NULL && strstr(reason, "256 KiB") != NULL);
    dlk_verbs_queues_close(&queues);
    return 0;
}

int main(void)
{
    pid_t child = fork();
    int status = -1;

    assert(child >= 0);
    if (child == 0) {
        _exit(little_may_be_locked());
    }
    assert(waitpid(child, &status, 0) == child && WIFEXITED(status));
    if (getuid() == 0) {
        (void)world_port(); /* skipped, or a failure, where there is no device */
        assert(WEXITSTATUS(status) == 0);
    }
    room_for_all();
    few_completions();
    return 0;
}
