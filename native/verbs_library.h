/*
 * libibverbs, found at run time: one build of dlock runs where it is installed and where it is not.
 * Here are its functions that are symbols of the library. Those that its header has inline
 * (ibv_post_send, ibv_post_recv, ibv_post_srq_recv, ibv_poll_cq, ibv_req_notify_cq, ibv_alloc_mw,
 * ibv_dealloc_mw) go through the context's operations and are called as they are. Nobody may call
 * any other function of infiniband/verbs.h by its name: the program would not start without it.
 *
 * Only verbs_*.c include this. A forked child may use none of what its parent opened.
 */
#ifndef DLOCK_VERBS_LIBRARY_H
#define DLOCK_VERBS_LIBRARY_H

#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* As in verbs.h, without `ibv_`. Each returns what its namesake does: NULL and errno, or an errno,
 * or -1 and errno. */
struct dlk_verbs_library {
    struct ibv_device **(*get_device_list)(int *count);
    void (*free_device_list)(struct ibv_device **list);
    const char *(*get_device_name)(struct ibv_device *device);
    struct ibv_context *(*open_device)(struct ibv_device *device);
    int (*close_device)(struct ibv_context *context);
    int (*query_device)(struct ibv_context *context, struct ibv_device_attr *attributes);
    int (*query_gid)(struct ibv_context *context, uint8_t port, int index, union ibv_gid *gid);
    /* NULL in a library that is older than 2020. */
    int (*query_gid_ex)(struct ibv_context *context, uint32_t port, uint32_t index,
                        struct ibv_gid_entry *entry, uint32_t flags, size_t entry_bytes);
    struct ibv_pd *(*alloc_pd)(struct ibv_context *context);
    int (*dealloc_pd)(struct ibv_pd *pd);
    struct ibv_mr *(*reg_mr)(struct ibv_pd *pd, void *address, size_t length, int access);
    int (*dereg_mr)(struct ibv_mr *mr);
    struct ibv_comp_channel *(*create_comp_channel)(struct ibv_context *context);
    int (*destroy_comp_channel)(struct ibv_comp_channel *channel);
    struct ibv_cq *(*create_cq)(struct ibv_context *context, int entries, void *cookie,
                                struct ibv_comp_channel *channel, int vector);
    int (*destroy_cq)(struct ibv_cq *cq);
    int (*get_cq_event)(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cookie);
    void (*ack_cq_events)(struct ibv_cq *cq, unsigned int count);
    struct ibv_srq *(*create_srq)(struct ibv_pd *pd, struct ibv_srq_init_attr *attributes);
    int (*destroy_srq)(struct ibv_srq *srq);
    struct ibv_qp *(*create_qp)(struct ibv_pd *pd, struct ibv_qp_init_attr *attributes);
    int (*modify_qp)(struct ibv_qp *qp, struct ibv_qp_attr *attributes, int mask);
    int (*query_qp)(struct ibv_qp *qp, struct ibv_qp_attr *attributes, int mask,
                    struct ibv_qp_init_attr *made);
    int (*destroy_qp)(struct ibv_qp *qp);
    int (*get_async_event)(struct ibv_context *context, struct ibv_async_event *event);
    void (*ack_async_event)(struct ibv_async_event *event);
    const char *(*wc_status_str)(enum ibv_wc_status status);
    const char *(*event_type_str)(enum ibv_event_type event);
    /* The library's function of this name; verbs.h hides it behind a macro, and so does
     * dlk_verbs_query_port below. */
    int (*query_port)(struct ibv_context *context, uint8_t port,
                      struct _compat_ibv_port_attr *attributes);
};

/* The library, loaded at the first call, ibv_fork_init first of all; the same ever after. Any
 * thread. NULL: it is not there; `reason` (DLK_REASON_BYTES) says what to do. */
const struct dlk_verbs_library *dlk_verbs_library(char *reason);
/* After that succeeded: the same, for those who have no reason to fail. */
extern const struct dlk_verbs_library *dlk_ibv;

int dlk_verbs_query_port(struct ibv_context *context, uint8_t port,
                         struct ibv_port_attr *attributes);

/* Counts the forks that led to this process since the library was loaded. Whatever was opened under
 * another number belongs to a parent: no verbs call may be made with it. A child may load and open
 * for itself. */
uint32_t dlk_verbs_process(void);

/* Writes a text for people (DLK_REASON_BYTES). */
void dlk_verbs_say(char *reason, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same after "; ", unless nothing stands there yet; what does not fit is cut off. */
void dlk_verbs_say_more(char *reason, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* "cannot WHAT: why", with what mends it where that is known: ENOMEM is the limit of locked memory
 * as a rule, EACCES and EPERM the rights of the device's file. */
void dlk_verbs_say_errno(char *reason, const char *what, int error);

#endif
