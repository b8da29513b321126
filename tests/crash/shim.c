/* Injects faults into the relay's calls, by LD_PRELOAD, for files below SHIM_DIR. Built and driven by shim.py.
 *
 *   SHIM_DIR=/abs/folder   what is watched; everything else passes through
 *   SHIM_LOG=/abs/file     every successful change, in order, appended: the input of the power cuts
 *   SHIM_AT=write:57       at the 57th call of a kind: write (write, writev, pwrite), sync (fsync, fdatasync),
 *                          truncate (ftruncate), name (creating open, mkdir, unlink, rename)
 *   SHIM_DO=kill           SIGKILL in place of the call
 *           tear           only whole 512-byte sectors of its beginning are written, then SIGKILL
 *           eio | enospc   the call fails; a write that fails with ENOSPC writes its first half first, as a full disk does
 *           erofs          the same, for every write, truncation and change of names while the fault lasts
 *           stall          the call takes 2 s
 *   SHIM_FOR=12 | 300ms    for that many calls from there on, or for that time
 *   SHIM_LIE=-wal          flushes of a name with this suffix return 0, do nothing and are not in the log, if they follow a
 *                          frame: those that SQLite leaves out with synchronous=NORMAL. Flushes before a checkpoint
 *                          (nothing was written since the previous one) and after a new header are done.
 *
 * One lock around call and log entry, so that the log has the true order. Memory maps (SQLite's -shm)
 * are not seen: what is in them does not outlive a power cut anyway.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { OPEN = 1, WRITE, SYNC, TRUNCATE, UNLINK, RENAME, MKDIR, FAULT, SENT };
enum group { G_WRITE, G_SYNC, G_TRUNCATE, G_NAME, GROUPS };
static const char *const GROUP_NAMES[GROUPS] = {"write", "sync", "truncate", "name"};

#define FDS 1024
#define WAL_HEADER 32
static struct { uint64_t id; int frame; char path[256]; } files[FDS]; /* id 0: not watched; frame: written last */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *folder, *lie, *action;
static size_t folder_length;
static int log_fd = -1, at_group = -1;
static uint64_t at, during = 1, for_ms, ends, calls[GROUPS], opened; /* ends: 0 before the fault */
static int faulted;

__attribute__((constructor)) static void begin(void) {
  folder = getenv("SHIM_DIR");
  if (!folder) return;
  folder_length = strlen(folder);
  lie = getenv("SHIM_LIE");
  action = getenv("SHIM_DO");
  const char *log = getenv("SHIM_LOG"), *where = getenv("SHIM_AT"), *count = getenv("SHIM_FOR");
  if (log) log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (count && strstr(count, "ms")) for_ms = strtoull(count, NULL, 10);
  else if (count) during = strtoull(count, NULL, 10);
  const char *colon = where ? strchr(where, ':') : NULL;
  for (int g = 0; colon && g < GROUPS; g++)
    if (!strncmp(where, GROUP_NAMES[g], colon - where)) at_group = g, at = strtoull(colon + 1, NULL, 10);
  if ((log && log_fd < 0) || (where && (at_group < 0 || !action))) abort();
}

/* One entry of the log: shim.py reads the same layout. */
struct entry { uint32_t kind, path_length, second_length, flags; uint64_t id, offset, length; };

static void note(enum kind kind, uint64_t id, const char *path, const void *second, size_t second_length, uint64_t offset,
                 uint64_t length, uint32_t flags) {
  if (log_fd < 0) return;
  struct entry e = {kind, path ? strlen(path) : 0, second_length, flags, id, offset, length};
  struct iovec parts[3] = {{&e, sizeof e}, {(void *)path, e.path_length}, {(void *)second, second_length}};
  int saved = errno;
  if (syscall(SYS_writev, log_fd, parts, 3) != (ssize_t)(sizeof e + e.path_length + second_length)) abort();
  errno = saved;
}

static void die(void) {
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

static uint64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000ULL + now.tv_nsec / 1000000;
}

/* Whether the fault is at this call, the n-th of its group. */
static int is_met(enum group group, uint64_t n) {
  if (!for_ms) return (int)group == at_group && n >= at && n < at + during;
  if (!ends && (int)group == at_group && n >= at) ends = now_ms() + for_ms;
  int is_of_it = (int)group == at_group || (!strcmp(action, "erofs") && group != G_SYNC);
  return ends && is_of_it && now_ms() < ends;
}

/* Counts the call and says whether it has to fail: 0 no, else the errno. Does not return when it must die, unless it
 * is a write that is to be torn: then -1. */
static int fate(enum group group, const char *path) {
  uint64_t n = ++calls[group];
  if (!is_met(group, n)) return 0;
  note(FAULT, 0, path, action, strlen(action), n, group, 0);
  faulted = 1;
  if (!strcmp(action, "kill")) die();
  if (!strcmp(action, "tear")) {
    if (group == G_WRITE) return -1;
    die();
  }
  if (!strcmp(action, "stall")) {
    pthread_mutex_unlock(&lock); /* a slow flush blocks no other call */
    struct timespec pause = {2, 0};
    nanosleep(&pause, NULL);
    pthread_mutex_lock(&lock);
    return 0;
  }
  return !strcmp(action, "eio") ? EIO : !strcmp(action, "erofs") ? EROFS : ENOSPC;
}

static int watched_fd(int fd) { return folder && fd >= 0 && fd < FDS && files[fd].id; }

static int watched_path(const char *path) {
  return folder && path && !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static int do_open(int at_fd, const char *path, int flags, mode_t mode) {
  if (!watched_path(path)) return syscall(SYS_openat, at_fd, path, flags, mode);
  pthread_mutex_lock(&lock);
  struct stat found;
  int creates = (flags & O_CREAT) && stat(path, &found) != 0, failure = creates ? fate(G_NAME, path) : 0;
  int fd = failure ? (errno = failure, -1) : syscall(SYS_openat, at_fd, path, flags, mode);
  if (fd >= 0 && fd < FDS) {
    files[fd].id = (uint64_t)getpid() << 32 | ++opened;
    files[fd].frame = 0;
    snprintf(files[fd].path, sizeof files[fd].path, "%s", path);
    note(OPEN, files[fd].id, path, NULL, 0, 0, 0, flags);
  }
  pthread_mutex_unlock(&lock);
  return fd;
}

#define MODE(flags, last) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, last); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) { MODE(flags, flags) return do_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, flags) return do_open(AT_FDCWD, path, flags, mode); }
int openat(int fd, const char *path, int flags, ...) { MODE(flags, flags) return do_open(fd, path, flags, mode); }
int openat64(int fd, const char *path, int flags, ...) { MODE(flags, flags) return do_open(fd, path, flags, mode); }

int close(int fd) {
  if (watched_fd(fd)) {
    pthread_mutex_lock(&lock);
    files[fd].id = 0;
    pthread_mutex_unlock(&lock);
  }
  return syscall(SYS_close, fd);
}

/* The whole write, or the part that the fault leaves. */
static ssize_t do_write(int fd, const void *data, size_t size, off_t offset, int positioned) {
  pthread_mutex_lock(&lock);
  if (!positioned) offset = syscall(SYS_lseek, fd, 0, SEEK_CUR);
  int failure = fate(G_WRITE, files[fd].path);
  size_t wanted = size;
  if (failure == -1) {
    uint64_t sectors = (offset + size) / 512 * 512; /* the last sector boundary within it ... */
    uint64_t first = (offset + 511) / 512 * 512;
    if (sectors > first) sectors = first + (sectors - first) / 1024 * 512; /* ... or one half way there */
    wanted = sectors > (uint64_t)offset ? sectors - offset : 0;
  } else if (failure == ENOSPC && calls[G_WRITE] == at && size > 1) {
    wanted = size / 2;
  } else if (failure) {
    errno = failure;
    pthread_mutex_unlock(&lock);
    return -1;
  }
  ssize_t done = positioned ? syscall(SYS_pwrite64, fd, data, wanted, offset) : syscall(SYS_write, fd, data, wanted);
  if (done > 0) note(WRITE, files[fd].id, NULL, data, done, offset, done, 0);
  files[fd].frame = offset >= WAL_HEADER;
  if (failure == -1) die();
  pthread_mutex_unlock(&lock);
  return done;
}

/* After a fault, an answer of 200 on a socket is logged. */
static void look_at(const void *data, size_t size) {
  if (faulted && size > 12 && !memcmp(data, "HTTP/1.", 7) && !memcmp((const char *)data + 9, "200", 3))
    note(SENT, 0, NULL, data, 12, 0, 0, 0);
}

ssize_t write(int fd, const void *data, size_t size) {
  if (watched_fd(fd)) return do_write(fd, data, size, 0, 0);
  look_at(data, size);
  return syscall(SYS_write, fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
  return watched_fd(fd) ? do_write(fd, data, size, offset, 1) : syscall(SYS_pwrite64, fd, data, size, offset);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
  if (watched_fd(fd)) return count > 0 ? do_write(fd, parts[0].iov_base, parts[0].iov_len, 0, 0) : 0;
  if (count > 0) look_at(parts[0].iov_base, parts[0].iov_len);
  return syscall(SYS_writev, fd, parts, count);
}

ssize_t send(int fd, const void *data, size_t size, int flags) {
  look_at(data, size);
  return syscall(SYS_sendto, fd, data, size, flags, NULL, 0);
}

static int do_sync(int fd, long call) {
  if (!watched_fd(fd)) return syscall(call, fd);
  pthread_mutex_lock(&lock);
  const char *path = files[fd].path;
  size_t length = strlen(path), end = lie ? strlen(lie) : 0;
  int failure = fate(G_SYNC, path), done = 0;
  if (failure) {
    errno = failure;
    done = -1;
  } else if (!end || length < end || strcmp(path + length - end, lie) || !files[fd].frame) {
    done = syscall(call, fd);
    if (!done) note(SYNC, files[fd].id, NULL, NULL, 0, 0, 0, 0);
  }
  files[fd].frame = 0;
  pthread_mutex_unlock(&lock);
  return done;
}
int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }

int ftruncate64(int fd, off64_t length) {
  if (!watched_fd(fd)) return syscall(SYS_ftruncate, fd, length);
  pthread_mutex_lock(&lock);
  int failure = fate(G_TRUNCATE, files[fd].path);
  int done = failure ? (errno = failure, -1) : syscall(SYS_ftruncate, fd, length);
  if (!done) note(TRUNCATE, files[fd].id, NULL, NULL, 0, 0, length, 0);
  pthread_mutex_unlock(&lock);
  return done;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

/* A change of names, with the system call that makes it. */
#define NAMING(kind, path, other, call) \
  pthread_mutex_lock(&lock); \
  int failure = fate(G_NAME, path), done = failure ? (errno = failure, -1) : (call); \
  if (!done) note(kind, 0, path, other, strlen(other), 0, 0, 0); \
  pthread_mutex_unlock(&lock); \
  return done;

int unlinkat(int fd, const char *path, int flags) {
  if (!watched_path(path)) return syscall(SYS_unlinkat, fd, path, flags);
  NAMING(UNLINK, path, "", syscall(SYS_unlinkat, fd, path, flags))
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int mkdir(const char *path, mode_t mode) {
  if (!watched_path(path)) return syscall(SYS_mkdirat, AT_FDCWD, path, mode);
  NAMING(MKDIR, path, "", syscall(SYS_mkdirat, AT_FDCWD, path, mode))
}

int rename(const char *from, const char *to) {
  if (!watched_path(from)) return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
  NAMING(RENAME, from, to, syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0))
}
