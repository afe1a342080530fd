# SPDX-License-Identifier: Apache-2.0
"""`outside`: the partner beyond the gateway, who allow-lists addresses and keeps a log of whom it has seen."""
from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from . import echo_server
from .echo_server import HTTP_PORT, LONG_PORT, PORTS
from .host import SETUP, Host
from .state import LabError

__all__ = ["HTTP_PORT", "LONG_PORT", "PORTS", "Outside", "Seen"]
LOG = "/run/seen.log"


class Seen(NamedTuple):
    """One client of the echo server: a TCP or HTTP connection, or a datagram."""
    time: float
    proto: str      # tcp, udp, http
    dport: int
    source: str
    sport: int
    asked: str      # the address of outside that it came to


class Outside(Host):
    setup = SETUP + "mount -t tmpfs -o mode=755 lab /run\n"

    def __init__(self, name: str, pid: int, address: str):
        super().__init__(name, pid)
        self.address = address

    def start_echo(self) -> None:
        """Start the server; wait_echo() waits for it."""
        self.spawn(f"/usr/bin/python3 -SEB {Path(echo_server.__file__).resolve()} {LOG}", "/run/echo.log")

    def wait_echo(self, timeout: float = 10) -> None:
        deadline = time.monotonic() + timeout
        while not (self.path(LOG).exists() and self.path(LOG).read_text().startswith("# ready")):
            if time.monotonic() > deadline:
                raise LabError(f"the echo server does not start: {self.path('/run/echo.log').read_text()}")
            time.sleep(0.01)

    def seen(self, since: float = 0) -> list[Seen]:
        """Everybody the server has seen (since a time.time()), in order."""
        lines = (line.split() for line in self.path(LOG).read_text().splitlines() if not line.startswith("#"))
        entries = [Seen(float(t), proto, int(dport), source, int(sport), asked) for t, proto, dport, source, sport, asked in lines]
        return [entry for entry in entries if entry.time >= since]

    def connect(self, address: str, port: int, send: str = "", timeout: float = 5) -> str:
        """Open a connection from outside (to a hostPort, say), send a text and return the answer, "" when there is none."""
        return self.run(["busybox", "timeout", str(timeout), "busybox", "nc", address, str(port)], input=send, check=False,
                        timeout=timeout + 5).stdout
