/* Makes calls of the relay hang, by LD_PRELOAD, while a file of that name is in the folder HANG_DIR:
 *
 *   flush     fsync and fdatasync, as on a disk that stands still
 *   resolve   getaddrinfo, as without an answer of a name server
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void wait_while(const char *name) {
  const char *folder = getenv("HANG_DIR");
  char path[4096];
  if (!folder) return;
  snprintf(path, sizeof path, "%s/%s", folder, name);
  while (!access(path, F_OK)) usleep(10000);
}

int fsync(int fd) {
  wait_while("flush");
  return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int fdatasync(int fd) {
  wait_while("flush");
  return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  wait_while("resolve");
  return ((int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(
      RTLD_NEXT, "getaddrinfo"))(node, service, hints, found);
}
