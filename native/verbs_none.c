/* RDMA in a build that was made without the headers of libibverbs: what it says. */
#include <stddef.h>
#include <stdio.h>

#include "connection.h"
#include "verbs_transport.h"

static void say_why(char *reason)
{
    snprintf(reason, DLK_REASON_BYTES,
             "this dlock was built without RDMA: install the headers of libibverbs (Debian: "
             "libibverbs-dev, Red Hat: rdma-core-devel) and build it again");
}

int dlk_verbs_load(char *reason)
{
    say_why(reason);
    return 0;
}

size_t dlk_verbs_ports(struct dlk_verbs_port *out, size_t room, char *reason)
{
    (void)out;
    (void)room;
    say_why(reason);
    return 0;
}

int dlk_verbs_choose(const struct dlk_verbs_wish *wish, struct dlk_verbs_port *out, char *reason)
{
    (void)wish;
    (void)out;
    say_why(reason);
    return 0;
}

struct dlk_queue_pair *dlk_queue_pair_new(const struct dlk_verbs_port *port,
                                          struct dlk_verbs_address *own, char *reason)
{
    (void)port;
    (void)own;
    say_why(reason);
    return NULL;
}

void dlk_queue_pair_free(struct dlk_queue_pair *pair)
{
    (void)pair;
}

struct dlk_connection *dlk_queue_pair_connect(struct dlk_queue_pair *pair,
                                              const struct dlk_link *link)
{
    (void)pair;
    (void)link;
    return NULL;
}

struct dlk_verbs_transport *dlk_verbs_transport_new(const struct dlk_verbs_setting *setting,
                                                    const struct dlk_verbs_port *port,
                                                    char *reason)
{
    (void)setting;
    (void)port;
    say_why(reason);
    return NULL;
}
