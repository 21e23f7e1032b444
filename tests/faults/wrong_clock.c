/* A wrong clock for one process, by LD_PRELOAD: its time of day is off by the seconds (int64) that the file WRONG_CLOCK
   holds, and jumps when the file is written anew. Waits until a time of day end when the wrong clock says so, as the
   kernel's do when the clock is set. The monotonic clock stays right.

   libfaketime will not do: librdkafka waits by C11's cnd_timedwait, which that leaves alone, so that it waits for hours. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SLICE_NS 20000000 /* a wait looks so often whether the clock has jumped */
#define FIRST_TIME_OF_DAY_S 1000000000 /* of this century: below it is a monotonic time */

static volatile int64_t *offset_s;

__attribute__((constructor)) static void open_offset(void) {
  const char *path = getenv("WRONG_CLOCK");
  int file = path ? open(path, O_RDONLY) : -1;
  void *page = file >= 0 ? mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
  if (page != MAP_FAILED) offset_s = page;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = (int)syscall(SYS_clock_gettime, clock, now);
  if (!failed && offset_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset_s;
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec found;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &found);
  now->tv_sec = found.tv_sec;
  now->tv_usec = found.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *now) {
  struct timespec found;
  clock_gettime(CLOCK_REALTIME, &found);
  if (now) *now = found.tv_sec;
  return found.tv_sec;
}

static int is_before(const struct timespec *a, const struct timespec *b) {
  return a->tv_sec < b->tv_sec || (a->tv_sec == b->tv_sec && a->tv_nsec < b->tv_nsec);
}

int pthread_cond_timedwait(pthread_cond_t *restrict woken, pthread_mutex_t *restrict lock,
                           const struct timespec *restrict until) {
  if (until->tv_sec < FIRST_TIME_OF_DAY_S) return pthread_cond_clockwait(woken, lock, CLOCK_MONOTONIC, until);
  for (;;) {
    struct timespec now, slice, right = *until;
    if (offset_s) right.tv_sec -= *offset_s;
    clock_gettime(CLOCK_MONOTONIC, &slice);
    clock_gettime(CLOCK_REALTIME, &now);
    if (!is_before(&now, until)) return pthread_cond_clockwait(woken, lock, CLOCK_REALTIME, &right);
    int64_t left_ns = (until->tv_sec - now.tv_sec) * INT64_C(1000000000) + until->tv_nsec - now.tv_nsec;
    slice.tv_nsec += left_ns < SLICE_NS ? left_ns : SLICE_NS;
    slice.tv_sec += slice.tv_nsec / 1000000000;
    slice.tv_nsec %= 1000000000;
    int failed = pthread_cond_clockwait(woken, lock, CLOCK_MONOTONIC, &slice);
    if (failed != ETIMEDOUT) return failed;
  }
}

int cnd_timedwait(cnd_t *restrict woken, mtx_t *restrict lock, const struct timespec *restrict until) {
  int failed = pthread_cond_timedwait((pthread_cond_t *)woken, (pthread_mutex_t *)lock, until);
  return failed == ETIMEDOUT ? thrd_timedout : failed ? thrd_error : thrd_success;
}
