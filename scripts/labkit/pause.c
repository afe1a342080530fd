// SPDX-License-Identifier: Apache-2.0
/* The idle process of the lab: PID 1 of every host of the fleet and of every pod sandbox.
 *
 * pause            sleeps until SIGTERM or SIGINT.
 * pause lifeline   also ends at the end of its standard input: the maker of the fleet holds the other end of that pipe, so that
 *                  whatever way the maker dies, the kernel closes the pipe and takes the host's namespaces down with it. A byte
 *                  from the pipe cuts the line: from then on the host lives until it is killed. */
#include <errno.h>
#include <signal.h>
#include <unistd.h>

static void leave(int signal_number) {
  (void)signal_number;
  _exit(0);
}

int main(int argc, char **argv) {
  char byte;
  (void)argv;
  signal(SIGTERM, leave);
  signal(SIGINT, leave);
  signal(SIGCHLD, SIG_IGN); /* orphans reparented to us are reaped by the kernel */
  while (argc > 1) {
    ssize_t n = read(0, &byte, 1);
    if (n > 0) break;
    if (n == 0 || errno != EINTR) return 0;
  }
  for (;;) pause();
}
