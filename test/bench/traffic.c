// SPDX-License-Identifier: Apache-2.0
/* Sends and answers for test/bench/datapath. Every answer of a client is one line of JSON.
 *
 * traffic serve ADDRESS CPU OTHER          outside: answers on four ports, until it is killed; OTHER is the processor
 * that takes in bulk data traffic source ADDRESS                   the addresses that outside sees this pod as traffic
 * forward ADDRESS CPU SECONDS      sends UDP to outside as fast as CPU can traffic reverse ADDRESS CPU SECONDS      has
 * outside do that, back on the flow that it was asked by traffic request ADDRESS CPU SECONDS      one byte there, one
 * back, on one TCP connection traffic connect ADDRESS CPU SECONDS      a TCP connection for each request; outside
 * closes it, as HTTP/1.0 does traffic bulk ADDRESS CPU SECONDS         one TCP connection as full as it gets
 *
 * What is sent without end starts with FLOOD, for whoever counts and drops it on arrival: no socket is as fast as the
 * path. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORT_REQUEST = 7000, PORT_UDP, PORT_CONNECT, PORT_BULK };
enum { HELLO = 'H', REVERSE = 'R', FLOOD = 'X' };
enum { UDP_PAYLOAD = 64, BATCH = 32, WARM_UP = 200, MOST_REQUESTS = 1 << 22, BULK_BLOCK = 1 << 17 };

struct order { /* to outside */
  char what;
  double seconds;
};

struct flood {
  long sent;
  double seconds;
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static void stay_on(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  if (sched_setaffinity(0, sizeof(set), &set)) err(1, "processor %d", cpu);
}

static struct sockaddr_in at(const char* address, int port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
  if (inet_pton(AF_INET, address, &a.sin_addr) != 1) errx(1, "not an IPv4 address: %s", address);
  return a;
}

static int new_socket(int type) {
  int s = socket(AF_INET, type, 0), on = 1;
  if (s < 0) err(1, "socket");
  if (type == SOCK_STREAM) setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  return s;
}

static int connected(int type, const char* address, int port) {
  struct sockaddr_in to = at(address, port);
  struct timeval patience = {.tv_sec = 5};
  int s = new_socket(type);
  setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  if (connect(s, (struct sockaddr*)&to, sizeof(to))) err(1, "connect to port %d", port);
  return s;
}

/* By `to`, or to whom the socket is connected. */
static struct flood flood(int s, double seconds, struct sockaddr_in* to) {
  static char payload[UDP_PAYLOAD] = {FLOOD};
  struct iovec data = {payload, sizeof(payload)};
  struct mmsghdr batch[BATCH] = {0};
  struct flood f = {0};
  for (int i = 0; i < BATCH; i++) {
    batch[i].msg_hdr.msg_iov = &data;
    batch[i].msg_hdr.msg_iovlen = 1;
    batch[i].msg_hdr.msg_name = to;
    batch[i].msg_hdr.msg_namelen = to ? sizeof(*to) : 0;
  }
  double start = now();
  do {
    for (int i = 0; i < 8; i++) {
      int sent = sendmmsg(s, batch, BATCH, 0);
      if (sent > 0) f.sent += sent;
    }
    f.seconds = now() - start;
  } while (f.seconds < seconds);
  return f;
}

/* --- outside */

static int listening(const char* address, int port) {
  struct sockaddr_in own = at(address, port);
  int s = new_socket(SOCK_STREAM);
  if (bind(s, (struct sockaddr*)&own, sizeof(own)) || listen(s, 64)) err(1, "port %d", port);
  return s;
}

/* One connection after the other: there is only ever one, and a thread for each would cost more than the path. */
static void serve_requests(const char* address) {
  int listener = listening(address, PORT_REQUEST);
  for (;;) {
    int s = accept(listener, NULL, NULL), on = 1;
    char byte;
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    while (read(s, &byte, 1) == 1 && write(s, &byte, 1) == 1) continue;
    close(s);
  }
}

static void serve_connections(const char* address) {
  int listener = listening(address, PORT_CONNECT);
  for (;;) {
    struct sockaddr_in peer = {0};
    socklen_t length = sizeof(peer);
    int s = accept(listener, (struct sockaddr*)&peer, &length);
    char byte;
    while (read(s, &byte, 1) == 1 && write(s, &peer.sin_addr, sizeof(peer.sin_addr)) > 0) continue;
    close(s);
  }
}

static void serve_datagrams(const char* address) {
  struct sockaddr_in own = at(address, PORT_UDP), peer = {0};
  struct order order;
  int s = new_socket(SOCK_DGRAM);
  if (bind(s, (struct sockaddr*)&own, sizeof(own))) err(1, "port %d", PORT_UDP);
  for (;;) {
    socklen_t length = sizeof(peer);
    if (recvfrom(s, &order, sizeof(order), 0, (struct sockaddr*)&peer, &length) != sizeof(order)) continue;
    if (order.what != REVERSE) {
      sendto(s, &peer.sin_addr, sizeof(peer.sin_addr), 0, (struct sockaddr*)&peer, length);
      continue;
    }
    struct flood f = flood(s, order.seconds, &peer);
    usleep(10000); /* behind all that is still on its way */
    sendto(s, &f, sizeof(f), 0, (struct sockaddr*)&peer, length);
  }
}

static void serve_bulk(const char* address) {
  static char block[BULK_BLOCK];
  int listener = listening(address, PORT_BULK);
  for (;;) {
    int s = accept(listener, NULL, NULL);
    long taken = 0;
    for (ssize_t length; (length = read(s, block, sizeof(block))) > 0;) taken += length;
    if (s >= 0 && write(s, &taken, sizeof(taken)) < 0) warn("answer");
    close(s);
  }
}

static void serve(const char* address, int cpu, int other) {
  static void (*const kinds[])(const char*) = {serve_requests, serve_connections, serve_datagrams, serve_bulk};
  for (size_t i = 1; i < sizeof(kinds) / sizeof(*kinds); i++)
    if (fork() == 0) {
      stay_on(kinds[i] == serve_bulk ? other : cpu);
      kinds[i](address);
    }
  stay_on(cpu);
  kinds[0](address);
}

/* --- the pod */

static void ask(int s, struct in_addr* answer) {
  struct order order = {.what = HELLO};
  if (send(s, &order, sizeof(order), 0) != sizeof(order)) err(1, "send");
  if (recv(s, answer, sizeof(*answer), 0) != sizeof(*answer)) err(1, "no answer");
}

/* A flow that was answered: that is when conntrack, and whoever follows it, knows it as established. */
static int answered_flow(const char* address) {
  struct in_addr answer;
  int s = connected(SOCK_DGRAM, address, PORT_UDP);
  for (int i = 0; i < 4; i++) ask(s, &answer);
  return s;
}

/* Reset, so that outside keeps no TIME_WAIT: who chooses source ports by chance would soon meet one, and wait a second
 * for it. */
static struct in_addr connect_once(const char* address) {
  struct in_addr answer;
  int s = connected(SOCK_STREAM, address, PORT_CONNECT);
  char byte = HELLO;
  struct linger at_once = {.l_onoff = 1};
  setsockopt(s, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  if (write(s, &byte, 1) != 1 || read(s, &answer, sizeof(answer)) != sizeof(answer)) err(1, "no answer");
  close(s);
  return answer;
}

static void source(const char* address) {
  struct in_addr udp, tcp = connect_once(address);
  char text[INET_ADDRSTRLEN];
  ask(connected(SOCK_DGRAM, address, PORT_UDP), &udp);
  printf("{\"tcp\": \"%s\", ", inet_ntop(AF_INET, &tcp, text, sizeof(text)));
  printf("\"udp\": \"%s\"}\n", inet_ntop(AF_INET, &udp, text, sizeof(text)));
}

static void report_flood(struct flood f) { printf("{\"sent\": %ld, \"seconds\": %f}\n", f.sent, f.seconds); }

static void forward(const char* address, double seconds) { report_flood(flood(answered_flow(address), seconds, NULL)); }

static void reverse(const char* address, double seconds) {
  struct order order = {.what = REVERSE, .seconds = seconds};
  struct timeval patience = {.tv_sec = (int)seconds + 5};
  struct flood f;
  int s = answered_flow(address);
  setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  if (send(s, &order, sizeof(order), 0) != sizeof(order) || recv(s, &f, sizeof(f), 0) != sizeof(f)) err(1, "no end");
  report_flood(f);
}

static int ascending(const void* a, const void* b) {
  unsigned left = *(const unsigned*)a, right = *(const unsigned*)b;
  return (left > right) - (left < right);
}

static void request(const char* address, double seconds) {
  static unsigned nanoseconds[MOST_REQUESTS];
  int s = connected(SOCK_STREAM, address, PORT_REQUEST);
  long count = -WARM_UP;
  double start = 0, before = now();
  char byte = HELLO;
  for (; count < MOST_REQUESTS; count++) {
    if (write(s, &byte, 1) != 1 || read(s, &byte, 1) != 1) err(1, "no answer");
    double after = now();
    if (count >= 0) nanoseconds[count] = (after - before) * 1e9;
    if (count == -1) start = after;
    if (count >= 0 && after - start >= seconds) break;
    before = after;
  }
  double rate = count / (now() - start);
  qsort(nanoseconds, count, sizeof(*nanoseconds), ascending);
  printf("{\"rate\": %f, \"p50\": %u, \"p99\": %u}\n", rate, nanoseconds[count / 2], nanoseconds[count * 99 / 100]);
}

static void connections(const char* address, double seconds) {
  long count = 0;
  double start = now(), passed;
  do {
    connect_once(address);
    count++;
    passed = now() - start;
  } while (passed < seconds);
  printf("{\"rate\": %f}\n", count / passed);
}

static void bulk(const char* address, double seconds) {
  static char block[BULK_BLOCK];
  int s = connected(SOCK_STREAM, address, PORT_BULK);
  double start = now();
  long taken;
  do {
    if (write(s, block, sizeof(block)) < 0) err(1, "write");
  } while (now() - start < seconds);
  shutdown(s, SHUT_WR);
  if (read(s, &taken, sizeof(taken)) != sizeof(taken)) err(1, "no end");
  printf("{\"rate\": %f}\n", 8 * taken / (now() - start));
}

int main(int argc, char** argv) {
  static const struct {
    const char* name;
    void (*run)(const char* address, double seconds);
  } kinds[] = {
      {"forward", forward}, {"reverse", reverse}, {"request", request}, {"connect", connections}, {"bulk", bulk}};

  if (argc == 5 && !strcmp(argv[1], "serve")) {
    serve(argv[2], atoi(argv[3]), atoi(argv[4]));
  } else if (argc == 3 && !strcmp(argv[1], "source")) {
    source(argv[2]);
    return 0;
  } else if (argc == 5) {
    stay_on(atoi(argv[3]));
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
      if (!strcmp(argv[1], kinds[i].name)) {
        kinds[i].run(argv[2], atof(argv[4]));
        return 0;
      }
  }
  errx(2, "wrong arguments: see the head of traffic.c");
}
