// SPDX-License-Identifier: Apache-2.0
/* A pod whose first act is a connection: nothing runs before the SYN, so a classifier that comes late is caught.
 *
 * first_syn ADDRESS PORT [udp] [exit]
 *   connects (TCP unless "udp"), sends one line, prints the answer (one read) on stdout; then stays, socket open, or with "exit" ends
 *   with 0.
 *   Ends with 1 and says why on stderr when it cannot connect or gets no answer. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int fail(const char *what) {
  perror(what);
  return 1;
}

int main(int argc, char **argv) {
  struct sockaddr_in v4 = {.sin_family = AF_INET};
  struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
  const struct sockaddr *to = (const struct sockaddr *)&v4;
  socklen_t size = sizeof v4;
  char answer[512];
  int last, type = SOCK_STREAM, s;
  ssize_t n;

  if (argc < 3) return 2;
  v4.sin_port = v6.sin6_port = htons((unsigned short)atoi(argv[2]));
  if (inet_pton(AF_INET, argv[1], &v4.sin_addr) != 1) {
    if (inet_pton(AF_INET6, argv[1], &v6.sin6_addr) != 1) return 2;
    to = (const struct sockaddr *)&v6;
    size = sizeof v6;
  }
  if (argc > 3 && strcmp(argv[3], "udp") == 0) type = SOCK_DGRAM;
  last = argc > 3 && strcmp(argv[argc - 1], "exit") == 0;
  if ((s = socket(to->sa_family, type, 0)) < 0) return fail("socket");
  if (connect(s, to, size) < 0) return fail("connect");
  if (write(s, "first_syn\n", 10) != 10) return fail("write");
  if ((n = read(s, answer, sizeof answer)) <= 0) return fail("read");
  if (write(1, answer, (size_t)n) != n) return fail("stdout");
  if (last) return 0;
  for (;;) pause();
}
