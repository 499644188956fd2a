/* A stall of the machine is counted and ends no session that was alive when it began: the time that
 * everybody has lost is given back. */
#include <signal.h>
#include <sys/wait.h>

#include "plane.h"
#include "plane_world.h"

/* ---- The plane's clock, as a function ---- */

static void what_is_a_stall(void)
{
    struct dlk_plane_config config = world_config();
    int error = 0;

    config.stall_ms = 1000;
    struct dlk_plane *plane = dlk_plane_new(&config, &error);
    assert(plane != NULL);
    plane->clock_ns = dlk_now_ns() - (uint64_t)60 * DLK_NS_PER_S;
    plane->intended_ns = (uint64_t)59500 * DLK_NS_PER_MS; /* it meant to sleep for that long */
    dlk_plane_clock(plane);
    assert(plane->intended_ns == 0);
    plane->stalled_ns = 0;
    plane->clock_ns -= (uint64_t)3 * DLK_NS_PER_S;
    dlk_plane_clock(plane);
    assert(plane->stalled_ns >= (uint64_t)3 * DLK_NS_PER_S);
    dlk_plane_free(plane);
}

/* A session and a stall: it lives until the grace is over, and no longer. */
static void what_grace_gives(uint64_t stall_ms, uint64_t grace_ms)
{
    struct dlk_plane_config config = world_config();
    struct dlk_command open = {.op = DLK_COMMAND_SESSION_OPEN, .slot = 1, .id = 9, .ttl_ms = 10};
    int error = 0;
    struct dlk_plane *plane = dlk_plane_new(&config, &error);
    assert(plane != NULL);
    uint64_t now_ns = (uint64_t)1000 * DLK_NS_PER_S;

    dlk_engine_command(plane->engine, &open, now_ns);
    dlk_engine_clear(plane->engine);
    plane->clock_ns = now_ns + stall_ms * DLK_NS_PER_MS;
    plane->stalled_ns = stall_ms * DLK_NS_PER_MS;
    dlk_plane_grace(plane);
    assert(plane->stalled_ns == 0 && plane->counters[DLK_COUNT_STALLS] == 1);
    uint64_t end_ns = plane->clock_ns + grace_ms * DLK_NS_PER_MS;
    dlk_engine_tick(plane->engine, end_ns - 1, end_ns - 1);
    assert(dlk_engine_client_id(plane->engine, 1) == 9);
    dlk_engine_tick(plane->engine, end_ns, end_ns);
    assert(dlk_engine_client_id(plane->engine, 1) == 0);
    dlk_plane_free(plane);
}

/* ---- A server that is stopped in its tracks ---- */

enum { TTL_MS = 300, STOPPED_MS = 600, SURELY_GRACE_MS = 800 };

static void serve_until_closed(int port_fd, int end_fd)
{
    struct dlk_plane_config config = world_config();
    static struct world world;
    uint32_t port;
    char end;

    config.stall_ms = 100;
    world_start(&world, &config);
    port = dlk_plane_port(world.plane);
    assert(write(port_fd, &port, sizeof(port)) == sizeof(port));
    world_open_session(&world, 1, 1001, 1, TTL_MS);
    assert(write(port_fd, &port, sizeof(port)) == sizeof(port));
    assert(read(end_fd, &end, 1) == 0);
    world_stop(&world);
    _exit(0);
}

static bool ping(struct peer *peer)
{
    struct dlk_request request = peer_request(peer, DLK_OP_PING, 0);
    struct dlk_reply reply;

    return peer_send(peer, &request, sizeof(request)) && peer_receive(peer, &reply)
           && reply.result == DLK_RESULT_DONE;
}

static void connect_to(struct peer *peer, uint32_t port)
{
    struct sockaddr_in server = {.sin_family = AF_INET,
                                 .sin_port = htons((uint16_t)port),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = WORLD_PATIENCE_MS / 1000};

    memset(peer, 0, sizeof(*peer));
    peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(peer->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    assert(connect(peer->fd, (struct sockaddr *)&server, sizeof(server)) == 0);
    peer->id = 1001;
}

/* True: it was seen whether the session lived. False: this machine was too slow to see it. */
static bool stop_and_go(void)
{
    struct dlk_attach frame = peer_attach_frame(1, 1001, 1);
    struct dlk_reply reply;
    struct peer peer;
    int ports[2];
    int ends[2];
    uint32_t port;

    assert(pipe(ports) == 0 && pipe(ends) == 0);
    pid_t server = fork();
    assert(server >= 0);
    if (server == 0) {
        close(ends[1]);
        serve_until_closed(ports[1], ends[0]);
    }
    assert(read(ports[0], &port, sizeof(port)) == sizeof(port));
    connect_to(&peer, port);
    assert(read(ports[0], &port, sizeof(port)) == sizeof(port)); /* the session is open */
    bool alive = peer_send(&peer, &frame, sizeof(frame)) && peer_receive(&peer, &reply)
                 && reply.result == DLK_RESULT_DONE;
    kill(server, SIGSTOP);
    usleep(STOPPED_MS * 1000);
    uint64_t before_ns = dlk_now_ns();
    kill(server, SIGCONT);
    bool lived = alive && ping(&peer);
    bool in_time = dlk_now_ns() - before_ns < (uint64_t)SURELY_GRACE_MS * DLK_NS_PER_MS;
    peer_close(&peer);
    close(ends[1]);
    int status = -1;
    assert(waitpid(server, &status, 0) == server && status == 0);
    close(ends[0]);
    close(ports[0]);
    close(ports[1]);
    assert(lived || !alive || !in_time);
    return lived;
}

int main(void)
{
    what_is_a_stall();
    what_grace_gives(200, 1000);
    what_grace_gives(3000, 3000);
    what_grace_gives(60000, 5000);
    for (int i = 0; i < 5 && !stop_and_go(); i++) {
    }
    return 0;
}
