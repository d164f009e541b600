/* Preloaded into a writer: chosen syncs of a "-wal" file fail with EIO, or kill the process there.
 * SQLREPL_SYNC_FAULTS="12:eio,40:kill" names them by number, counted from 1 in each process. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int faulty(int fd) {
    static unsigned long syncs;
    char link[64], path[4096], want[32];
    const char *faults = getenv("SQLREPL_SYNC_FAULTS"), *found;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    if (!faults || length < 4 || memcmp(path + length - 4, "-wal", 4) != 0) return 0;
    int digits = snprintf(want, sizeof want, ",%lu:", __sync_add_and_fetch(&syncs, 1));
    found = strncmp(faults, want + 1, digits - 1) == 0 ? faults - 1 : strstr(faults, want);
    if (!found) return 0;
    if (strncmp(found + digits, "kill", 4) == 0) kill(getpid(), SIGKILL);
    errno = EIO;
    return 1;
}

int fsync(int fd) { return faulty(fd) ? -1 : (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return faulty(fd) ? -1 : (int)syscall(SYS_fdatasync, fd); }
