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
    assert(dlk_engine_counters(plane->engine)[DLK_COUNT_SESSIONS_EXPIRED] == 0);
    dlk_engine_tick(plane->engine, end_ns, end_ns);
    assert(dlk_engine_counters(plane->engine)[DLK_COUNT_SESSIONS_EXPIRED] == 1);
    dlk_plane_free(plane);
}

/* ---- A server that is stopped in its tracks ---- */

enum { SHORT = 1, LONG = 2, TTL_MS = 300, STOPPED_MS = 600, LATE_MS = 200, SURELY_GRACE_MS = 800 };

struct server {
    pid_t pid;
    int told; /* a pipe: the port, then the port again when the sessions are open */
    int end;  /* a pipe: its end is the server's */
    uint32_t port;
};

static void serve(uint32_t stall_ms, int tell, int end)
{
    struct dlk_plane_config config = world_config();
    static struct world world;
    uint32_t port;
    char nothing;

    config.stall_ms = stall_ms;
    world_start(&world, &config);
    port = dlk_plane_port(world.plane);
    world_open_session(&world, LONG, 1000 + LONG, 1, WORLD_TTL_MS);
    assert(write(tell, &port, sizeof(port)) == sizeof(port));
    world_open_session(&world, SHORT, 1000 + SHORT, 1, TTL_MS);
    assert(write(tell, &port, sizeof(port)) == sizeof(port));
    assert(read(end, &nothing, 1) == 0);
    world_stop(&world);
    _exit(0);
}

static void server_start(struct server *server, uint32_t stall_ms)
{
    int told[2];
    int end[2];

    assert(pipe(told) == 0 && pipe(end) == 0);
    server->pid = fork();
    assert(server->pid >= 0);
    if (server->pid == 0) {
        close(end[1]);
        serve(stall_ms, told[1], end[0]);
    }
    close(told[1]);
    close(end[0]);
    server->told = told[0];
    server->end = end[1];
    assert(read(server->told, &server->port, sizeof(server->port)) == sizeof(server->port));
}

static void server_end(struct server *server)
{
    int status = -1;

    close(server->end);
    assert(waitpid(server->pid, &status, 0) == server->pid && status == 0);
    close(server->told);
}

/* False: the session is over already. */
static bool join(struct peer *peer, const struct server *server, uint32_t slot)
{
    struct dlk_attach frame = peer_attach_frame(slot, 1000 + slot, 1);
    struct dlk_reply reply;

    peer_connect_port(peer, server->port);
    peer->id = 1000 + slot;
    return peer_send(peer, &frame, sizeof(frame)) && peer_receive(peer, &reply)
           && reply.result == DLK_RESULT_DONE;
}

static bool ping(struct peer *peer)
{
    struct dlk_request request = peer_request(peer, DLK_OP_PING, 0);

    return peer_send(peer, &request, sizeof(request));
}

static bool answered(struct peer *peer)
{
    struct dlk_reply reply;

    return peer_receive(peer, &reply) && reply.result == DLK_RESULT_DONE;
}

/* A session that was quiet while the server stood still may speak up for a second after. True: it
 * was seen that it lived. False: this machine was too slow to see anything. */
static bool grace_after_a_stall(void)
{
    struct server server;
    struct peer peer;

    server_start(&server, 100);
    assert(read(server.told, &server.port, sizeof(server.port)) == sizeof(server.port));
    bool alive = join(&peer, &server, SHORT);
    kill(server.pid, SIGSTOP);
    usleep(STOPPED_MS * 1000);
    uint64_t before_ns = dlk_now_ns();
    kill(server.pid, SIGCONT);
    usleep(LATE_MS * 1000); /* the server has judged every session by now */
    bool lived = alive && ping(&peer) && answered(&peer);
    bool in_time = dlk_now_ns() - before_ns < (uint64_t)SURELY_GRACE_MS * DLK_NS_PER_MS;
    peer_close(&peer);
    server_end(&server);
    assert(lived || !alive || !in_time);
    return lived;
}

/* A renewal that lies in its socket when the server goes on counts, without any grace, also where
 * more than a batch of another client lies before it. */
static bool a_renewal_behind_others(void)
{
    enum { BEFORE = 5 * DLK_STEP_MAX };
    static struct dlk_request crowd[BEFORE];
    struct server server;
    struct peer busy;
    struct peer quiet;

    server_start(&server, 3600 * 1000);
    assert(join(&busy, &server, LONG));
    for (int i = 0; i < BEFORE; i++) {
        crowd[i] = peer_request(&busy, DLK_OP_PING, 0);
    }
    assert(read(server.told, &server.port, sizeof(server.port)) == sizeof(server.port));
    bool alive = join(&quiet, &server, SHORT);
    kill(server.pid, SIGSTOP);
    assert(peer_send(&busy, crowd, sizeof(crowd)));
    ping(&quiet);
    usleep(STOPPED_MS * 1000);
    kill(server.pid, SIGCONT);
    bool lived = alive && answered(&quiet);
    peer_close(&busy);
    peer_close(&quiet);
    server_end(&server);
    assert(lived || !alive);
    return lived;
}

int main(void)
{
    what_is_a_stall();
    what_grace_gives(200, 1000);
    what_grace_gives(3000, 3000);
    what_grace_gives(60000, 5000);
    for (int i = 0; i < 5 && !grace_after_a_stall(); i++) {
    }
    for (int i = 0; i < 5 && !a_renewal_behind_others(); i++) {
    }
    return 0;
}
