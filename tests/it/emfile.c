/* Preloaded into a mount: while the file that SQLREPL_TOO_MANY names is there, no file whose name
 * ends in ".data" is opened, as if the process had too many open. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int opened(const char *path, int flags, va_list rest) {
    const char *too_many = getenv("SQLREPL_TOO_MANY"), *name = strrchr(path, '.');
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;
    if (too_many && name && strcmp(name, ".data") == 0 && access(too_many, F_OK) == 0) {
        errno = EMFILE;
        return -1;
    }
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        int fd = opened(path, flags, rest); \
        va_end(rest); \
        return fd; \
    }
OPEN(open)
OPEN(open64)
