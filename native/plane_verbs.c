/* RDMA at the plane, as the control thread asks for it. */
#include "abi_verbs.h"
#include "plane.h"

int dlk_plane_verbs_open(struct dlk_plane *plane, const struct dlk_verbs_port *port, char *reason)
{
    (void)plane;
    (void)port;
    (void)dlk_verbs_load(reason);
    return 0;
}

int dlk_plane_verbs_pair(struct dlk_plane *plane, const struct dlk_verbs_address *peer,
                         struct dlk_verbs_address *own, uint64_t *pair, char *reason)
{
    (void)plane;
    (void)peer;
    (void)own;
    (void)pair;
    (void)dlk_verbs_load(reason);
    return DLK_STATUS_ERROR;
}

void dlk_plane_verbs_pair_free(struct dlk_plane *plane, uint64_t pair)
{
    (void)plane;
    (void)pair;
}
