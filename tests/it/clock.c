/* Preloaded into a daemon: the time of day, and the time since boot, are ahead by as many
 * microseconds as the file that SQLREPL_CLOCK names holds (8 bytes each, the machine's order).
 * Whoever writes there sets the clocks. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int64_t ahead(clockid_t clock) {
    static const volatile int64_t *micros;
    if (!micros) {
        const char *path = getenv("SQLREPL_CLOCK");
        int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, 16, PROT_READ, MAP_SHARED, fd, 0);
        if (mapped == MAP_FAILED) abort();
        close(fd);
        micros = mapped;
    }
    return micros[clock == CLOCK_BOOTTIME];
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    int real = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
    if (failed || (!real && clock != CLOCK_BOOTTIME)) return failed;
    int64_t micros = ahead(clock), nanos = now->tv_nsec + micros % 1000000 * 1000;
    int64_t carry = nanos < 0 ? -1 : nanos / 1000000000;
    now->tv_sec += micros / 1000000 + carry;
    now->tv_nsec = nanos - carry * 1000000000;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    int failed = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *also) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (also) *also = now.tv_sec;
    return now.tv_sec;
}
