/* libibverbs, found at run time; texts that say why something of it cannot be had. */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "verbs_device.h"

#define LIBRARY_NAME "libibverbs.so.1"

const struct dlk_verbs_library *dlk_ibv;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct dlk_verbs_library library;
static char refusal[DLK_REASON_BYTES];
static _Atomic uint32_t process;

struct symbol {
    const char *name;
    size_t offset; /* of its pointer in the table */
};

#define SYMBOL(name) {"ibv_" #name, offsetof(struct dlk_verbs_library, name)}

static const struct symbol symbols[] = {
    SYMBOL(get_device_list),
    SYMBOL(free_device_list),
    SYMBOL(get_device_name),
    SYMBOL(open_device),
    SYMBOL(close_device),
    SYMBOL(query_device),
    SYMBOL(query_gid),
    SYMBOL(alloc_pd),
    SYMBOL(dealloc_pd),
    {"ibv_reg_mr", offsetof(struct dlk_verbs_library, reg_mr)}, /* a macro in verbs.h */
    SYMBOL(dereg_mr),
    SYMBOL(create_comp_channel),
    SYMBOL(destroy_comp_channel),
    SYMBOL(create_cq),
    SYMBOL(destroy_cq),
    SYMBOL(get_cq_event),
    SYMBOL(ack_cq_events),
    SYMBOL(create_srq),
    SYMBOL(destroy_srq),
    SYMBOL(create_qp),
    SYMBOL(modify_qp),
    SYMBOL(query_qp),
    SYMBOL(destroy_qp),
    SYMBOL(get_async_event),
    SYMBOL(ack_async_event),
    SYMBOL(wc_status_str),
    SYMBOL(event_type_str),
    {"ibv_query_port", offsetof(struct dlk_verbs_library, query_port)}, /* and so is this */
};

static void in_child(void)
{
    atomic_fetch_add(&process, 1);
    dlk_verbs_device_in_child();
}

uint32_t dlk_verbs_process(void)
{
    return atomic_load_explicit(&process, memory_order_relaxed);
}

/* A function's address, for which C has no conversion from dlsym's. */
static bool look_up(void *handle, const char *name, size_t offset)
{
    void *address = dlsym(handle, name);
    memcpy((char *)&library + offset, &address, sizeof(address));
    return address != NULL;
}

static void load(void)
{
    void *handle = dlopen(LIBRARY_NAME, RTLD_NOW | RTLD_LOCAL);
    int (*fork_init)(void) = NULL;
    void *address = NULL;

    if (handle == NULL) {
        dlk_verbs_say(refusal,
                      "there is no " LIBRARY_NAME ": install it (Debian: apt install libibverbs1 "
                      "ibverbs-providers; Red Hat: dnf install libibverbs)");
        return;
    }
    address = dlsym(handle, "ibv_fork_init");
    memcpy(&fork_init, &address, sizeof(fork_init));
    if (fork_init != NULL) {
        /* Refused where the program has used verbs before us without it; then its rules are ours
         * too, and a kernel since 5.12 copies registered pages at a fork anyway. */
        (void)fork_init();
    }
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        if (!look_up(handle, symbols[i].name, symbols[i].offset)) {
            dlk_verbs_say(refusal, LIBRARY_NAME " has no %s: install rdma-core 17 or newer",
                          symbols[i].name);
            return;
        }
    }
    (void)look_up(handle, "_ibv_query_gid_ex",
                  offsetof(struct dlk_verbs_library, query_gid_ex));
    (void)pthread_atfork(NULL, NULL, in_child);
    dlk_ibv = &library;
}

const struct dlk_verbs_library *dlk_verbs_library(char *reason)
{
    (void)pthread_once(&once, load);
    if (dlk_ibv == NULL) {
        dlk_verbs_say(reason, "%s", refusal);
    }
    return dlk_ibv;
}

int dlk_verbs_load(char *reason)
{
    return dlk_verbs_library(reason) != NULL;
}

int dlk_verbs_query_port(struct ibv_context *context, uint8_t port,
                         struct ibv_port_attr *attributes)
{
    struct verbs_context *extended = verbs_get_ctx_op(context, query_port);
    memset(attributes, 0, sizeof(*attributes)); /* an older library writes less of it */
    if (extended == NULL) {
        return dlk_ibv->query_port(context, port, (struct _compat_ibv_port_attr *)attributes);
    }
    return extended->query_port(context, port, attributes, sizeof(*attributes));
}

/* ---- Texts ---- */

void dlk_verbs_say(char *reason, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, DLK_REASON_BYTES, format, arguments);
    va_end(arguments);
}

void dlk_verbs_say_more(char *reason, const char *format, ...)
{
    size_t length = strnlen(reason, DLK_REASON_BYTES - 1);
    va_list arguments;
    if (length != 0) {
        length += (size_t)snprintf(reason + length, DLK_REASON_BYTES - length, "; ");
    }
    if (length >= DLK_REASON_BYTES - 1) {
        return;
    }
    va_start(arguments, format);
    vsnprintf(reason + length, DLK_REASON_BYTES - length, format, arguments);
    va_end(arguments);
}

void dlk_verbs_say_errno(char *reason, const char *what, int error)
{
    struct rlimit limit = {.rlim_cur = RLIM_INFINITY};
    const char *text = strerror(error);

    (void)getrlimit(RLIMIT_MEMLOCK, &limit);
    if (error == ENOMEM && limit.rlim_cur != RLIM_INFINITY) {
        dlk_verbs_say(reason,
                      "cannot %s: %s; this process may lock %llu KiB of memory: raise it (ulimit "
                      "-l unlimited, LimitMEMLOCK= of a systemd unit, or "
                      "/etc/security/limits.conf)",
                      what, text, (unsigned long long)(limit.rlim_cur / 1024));
    } else if (error == EACCES || error == EPERM) {
        dlk_verbs_say(reason,
                      "cannot %s: %s; this user may not use /dev/infiniband/uverbs*: chmod 666 "
                      "them, or add the user to their group",
                      what, text);
    } else {
        dlk_verbs_say(reason, "cannot %s: %s", what, text);
    }
}
