/* A disk that tells what it was asked, and fails when it is told to: preloaded into a primary by
 * tests/test_durable_disk.py. It stands in for the calls by which SQLite writes (pwrite, fsync,
 * fdatasync, ftruncate) on files whose path has "durable-" in it.
 *
 * DISK_LOG names a file to which one line a call is appended, and another by send(2) of the control
 * loop: the order of the two is what the test looks at.
 * DISK_KEPT names a folder: at every fsync or fdatasync of a file, its content at that moment is
 * copied there, under the file's own name. That is what a power cut leaves.
 * DISK_FAULT names a file; while it exists its content is "CALL ERRNO", and that call (write or
 * sync) fails; "CALL ERRNO once": the first one does, and the file is gone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);

    if (!found)
        abort();
    return found;
}

/* Is this a file of the store? Its path then stands in `path`. */
static bool is_durable(int fd, char path[PATH_MAX])
{
    char link[64];
    ssize_t length;
    int before = errno;

    (void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, PATH_MAX - 1);
    errno = before;
    if (length < 0)
        return false;
    path[length] = '\0';
    return strstr(path, "/durable-") != NULL;
}

static void append(const char *line)
{
    const char *log = getenv("DISK_LOG");
    int before = errno;
    int fd = log ? open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;

    if (fd >= 0) {
        if (write(fd, line, strlen(line)) < 0)
            abort();
        (void)close(fd);
    }
    errno = before;
}

/* True, and errno, while this call is to fail. */
static bool fails(const char *call)
{
    const char *name = getenv("DISK_FAULT");
    char told[64] = "", wanted[32] = "", once[32] = "";
    int number = 0, before = errno;
    FILE *file = name ? fopen(name, "re") : NULL;

    errno = before;
    if (!file)
        return false;
    if (fgets(told, sizeof told, file))
        (void)sscanf(told, "%31s %d %31s", wanted, &number, once);
    if (strcmp(wanted, call) != 0)
        number = 0;
    (void)fclose(file);
    if (number && *once)
        (void)unlink(name);
    errno = number ? number : before;
    return number != 0;
}

/* What is on the disk for certain from now on. */
static void keep(const char *path)
{
    const char *folder = getenv("DISK_KEPT");
    char kept[PATH_MAX + 64], fresh[PATH_MAX + 80], block[65536];
    ssize_t got = 0;
    int from, to, before = errno;

    if (!folder)
        return;
    (void)snprintf(kept, sizeof kept, "%s%s", folder, strrchr(path, '/'));
    (void)snprintf(fresh, sizeof fresh, "%s.copy", kept);
    from = open(path, O_RDONLY | O_CLOEXEC);
    to = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    while (from >= 0 && to >= 0 && (got = read(from, block, sizeof block)) > 0)
        if (write(to, block, (size_t)got) != got)
            abort();
    if (from < 0 || to < 0 || got < 0 || rename(fresh, kept) != 0)
        abort();
    (void)close(from);
    (void)close(to);
    errno = before;
}

static int synced(const char *call, int fd)
{
    int (*sync)(int) = (int (*)(int))real(call);
    char path[PATH_MAX];

    if (!is_durable(fd, path))
        return sync(fd);
    if (fails("sync"))
        return -1;
    if (sync(fd) != 0)
        return -1;
    append("sync\n");
    keep(path);
    return 0;
}

int fsync(int fd)
{
    return synced("fsync", fd);
}

int fdatasync(int fd)
{
    return synced("fdatasync", fd);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    ssize_t (*write_at)(int, const void *, size_t, off64_t) =
        (ssize_t(*)(int, const void *, size_t, off64_t))real("pwrite64");
    char path[PATH_MAX];

    if (is_durable(fd, path)) {
        if (fails("write"))
            return -1;
        append("write\n");
    }
    return write_at(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    return pwrite64(fd, data, size, offset);
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    ssize_t (*send_real)(int, const void *, size_t, int) =
        (ssize_t(*)(int, const void *, size_t, int))real("send");

    /* An answer of the control plane; what wakes a thread is one byte long. */
    if (size > 4)
        append("answer\n");
    return send_real(fd, data, size, flags);
}
