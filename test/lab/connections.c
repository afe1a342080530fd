// SPDX-License-Identifier: Apache-2.0
/*
 * Short TCP connections, as many as a test wants: connect, one byte there, one byte back, reset by the client (which leaves no
 * TIME_WAIT, and the port of the translation free after 10 s).
 *
 *   connections server ADDRESS PORT [SOURCE...]        until SIGTERM; then prints "connections N foreign M"
 *   connections client ADDRESS PORT RATE SECONDS       prints "made N failed M slow K slowest MS"
 *
 * foreign: from another address than the SOURCEs. failed: an error, or no answer within 3 s. slow: over 900 ms, so that a segment was
 * sent again. The client keeps to its RATE whatever becomes of its connections.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define BACKLOG 4096
#define EVENTS 256
#define DESCRIPTORS 65536
#define PATIENCE_MS 3000
#define SLOW_MS 900

static volatile sig_atomic_t ended;
static int poller;

static void end(int number) {
  (void)number;
  ended = 1;
}

static void fail(const char* what) {
  perror(what);
  exit(1);
}

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static socklen_t parse_address(const char* address, const char* port, struct sockaddr_storage* out) {
  struct sockaddr_in* v4 = (struct sockaddr_in*)out;
  struct sockaddr_in6* v6 = (struct sockaddr_in6*)out;
  memset(out, 0, sizeof(*out));
  if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons((unsigned short)atoi(port));
    return sizeof(*v4);
  }
  if (inet_pton(AF_INET6, address, &v6->sin6_addr) != 1) fail(address);
  v6->sin6_family = AF_INET6;
  v6->sin6_port = htons((unsigned short)atoi(port));
  return sizeof(*v6);
}

static bool same_address(const struct sockaddr_storage* a, const struct sockaddr_storage* b) {
  if (a->ss_family != b->ss_family) return false;
  if (a->ss_family == AF_INET)
    return ((const struct sockaddr_in*)a)->sin_addr.s_addr == ((const struct sockaddr_in*)b)->sin_addr.s_addr;
  return memcmp(&((const struct sockaddr_in6*)a)->sin6_addr, &((const struct sockaddr_in6*)b)->sin6_addr, 16) == 0;
}

static void watch(int fd, unsigned events, int operation) {
  struct epoll_event event = {.events = events, .data.fd = fd};
  if (epoll_ctl(poller, operation, fd, &event)) fail("epoll_ctl");
}

static int serve(const struct sockaddr_storage* address, socklen_t length, int count, char** names) {
  struct sockaddr_storage sources[16];
  for (int i = 0; i < count && i < 16; i++) parse_address(names[i], "0", &sources[i]);
  const int on = 1, listener = socket(address->ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (listener < 0 || bind(listener, (const struct sockaddr*)address, length) || listen(listener, BACKLOG)) fail("listen");
  watch(listener, EPOLLIN, EPOLL_CTL_ADD);
  puts("ready");
  fflush(stdout);

  unsigned long connections = 0, foreign = 0;
  while (!ended) {
    struct epoll_event events[EVENTS];
    const int ready = epoll_wait(poller, events, EVENTS, -1);
    for (int i = 0; i < ready; i++) {
      const int fd = events[i].data.fd;
      char byte;
      if (fd != listener) {
        if (read(fd, &byte, 1) == 1)
          (void)!write(fd, &byte, 1);
        else if (errno != EAGAIN)
          close(fd);
        continue;
      }
      struct sockaddr_storage peer;
      socklen_t size = sizeof(peer);
      for (int client; (client = accept4(listener, (struct sockaddr*)&peer, &size, SOCK_NONBLOCK)) >= 0; size = sizeof(peer)) {
        bool known = count == 0;
        for (int source = 0; source < count; source++) known = known || same_address(&peer, &sources[source]);
        connections++;
        foreign += !known;
        watch(client, EPOLLIN, EPOLL_CTL_ADD);
      }
    }
  }
  printf("connections %lu foreign %lu\n", connections, foreign);
  return 0;
}

static double started[DESCRIPTORS]; /* by descriptor; 0: not one of a connection under way */
static unsigned long made, failed, slow;
static double slowest;

static void finish(int fd, bool good) {
  const struct linger reset = {.l_onoff = 1};
  const double ms = now_ms() - started[fd];
  good ? made++ : failed++;
  slow += good && ms > SLOW_MS;
  if (good && ms > slowest) slowest = ms;
  started[fd] = 0;
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
  close(fd);
}

static void start(const struct sockaddr_storage* address, socklen_t length) {
  const int fd = socket(address->ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (fd < 0 || fd >= DESCRIPTORS) fail("socket");
  started[fd] = now_ms();
  if (connect(fd, (const struct sockaddr*)address, length) && errno != EINPROGRESS)
    finish(fd, false);
  else
    watch(fd, EPOLLOUT, EPOLL_CTL_ADD);
}

static int request(const struct sockaddr_storage* address, socklen_t length, double rate, double seconds) {
  const double first = now_ms(), last = first + seconds * 1e3;
  double swept = first;
  unsigned long begun = 0;
  while (now_ms() < last || made + failed < begun) {
    const double now = now_ms();
    while (now < last && (double)begun < (now - first) * rate / 1e3) {
      start(address, length);
      begun++;
    }
    struct epoll_event events[EVENTS];
    const int ready = epoll_wait(poller, events, EVENTS, 1);
    for (int i = 0; i < ready; i++) {
      const int fd = events[i].data.fd;
      char byte = 0;
      if (events[i].events & (EPOLLERR | EPOLLHUP)) {
        finish(fd, false);
      } else if (events[i].events & EPOLLIN) {
        finish(fd, read(fd, &byte, 1) == 1);
      } else {
        watch(fd, EPOLLIN, EPOLL_CTL_MOD);
        if (write(fd, &byte, 1) != 1) finish(fd, false);
      }
    }
    if (now - swept < 100) continue;
    swept = now;
    for (int fd = 0; fd < DESCRIPTORS; fd++)
      if (started[fd] != 0 && now - started[fd] > PATIENCE_MS) finish(fd, false);
  }
  printf("made %lu failed %lu slow %lu slowest %.0f\n", made, failed, slow, slowest);
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const struct rlimit limit = {DESCRIPTORS, DESCRIPTORS};
  setrlimit(RLIMIT_NOFILE, &limit);
  struct sigaction action = {.sa_handler = end}; /* no SA_RESTART: epoll_wait is to return */
  sigaction(SIGTERM, &action, NULL);
  struct sockaddr_storage address;
  const socklen_t length = parse_address(argv[2], argv[3], &address);
  poller = epoll_create1(0);
  if (strcmp(argv[1], "server") == 0) return serve(&address, length, argc - 4, argv + 4);
  return argc == 6 ? request(&address, length, atof(argv[4]), atof(argv[5])) : 2;
}
