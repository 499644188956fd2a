/*
 * A plane at a listening socket that somebody else has made: of any family, and the plane's from
 * then on.
 */
#include <fcntl.h>

#include "plane_hand.h"

static struct dlk_plane *plane_at(int fd, uint32_t port, int *error)
{
    struct dlk_plane_config config = world_config();

    config.listen_fd = fd;
    config.port = port;
    return dlk_plane_new(&config, error);
}

static int listen_inet(void)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert(bind(fd, (struct sockaddr *)&any, sizeof(any)) == 0 && listen(fd, 16) == 0);
    return fd;
}

static void which_port_it_names(void)
{
    struct hand hand;
    int error = -1;
    struct dlk_plane *plane = plane_at(hand_listen(&hand), 0, &error);

    assert(plane != NULL && dlk_plane_port(plane) == 0);
    dlk_plane_free(plane);
    plane = plane_at(hand_listen(&hand), 21617, &error);
    assert(plane != NULL && dlk_plane_port(plane) == 21617);
    dlk_plane_free(plane);
    plane = plane_at(listen_inet(), 0, &error);
    assert(plane != NULL && dlk_plane_port(plane) != 0);
    dlk_plane_free(plane);
}

/* It is the plane's, whatever comes of it; a copy that somebody else has goes on listening. */
static void whose_the_socket_is(void)
{
    struct dlk_plane_config config = world_config();
    struct hand hand;
    struct peer peer;
    int error = 0;
    int deaf = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert(plane_at(deaf, 0, &error) == NULL && error == EINVAL);
    assert(fcntl(deaf, F_GETFD) == -1);
    assert(plane_at(9999, 0, &error) == NULL && error == EBADF);
    config.listen_fd = hand_listen(&hand);
    config.wait_mode = DLK_WAIT_POLL + 1;
    assert(dlk_plane_new(&config, &error) == NULL && error == EINVAL);
    assert(fcntl(config.listen_fd, F_GETFD) == -1);
    int mine = hand_listen(&hand);
    struct dlk_plane *plane = plane_at(dup(mine), 0, &error);
    assert(plane != NULL);
    dlk_plane_free(plane);
    hand_connect(&peer, &hand);
    peer_close(&peer);
    assert(close(mine) == 0);
}

/* The same socket, and a thread that takes the turns. */
static void a_thread_serves_it_too(void)
{
    static struct world world;
    struct dlk_plane_config config = world_config();
    struct dlk_attach frame = peer_attach_frame(SLOT, 1000 + SLOT, 1);
    struct hand hand;
    struct peer peer;

    config.listen_fd = hand_listen(&hand);
    world_start(&world, &config);
    world_open_session(&world, SLOT, 1000 + SLOT, 1, WORLD_TTL_MS);
    hand_connect(&peer, &hand);
    peer.id = 1000 + SLOT;
    assert(peer_send(&peer, &frame, sizeof(frame)));
    assert(peer_next(&peer).result == DLK_RESULT_DONE);
    hand_ask(&peer, DLK_OP_PING, 0);
    assert(peer_next(&peer).result == DLK_RESULT_DONE);
    peer_close(&peer);
    world_stop(&world);
}

int main(void)
{
    which_port_it_names();
    whose_the_socket_is();
    a_thread_serves_it_too();
    return 0;
}
