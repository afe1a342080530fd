# SPDX-License-Identifier: Apache-2.0
"""Traffic that goes on while a test takes things away, and the small vocabulary of the tests."""
from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from labkit import CONFIGURATION, Fleet, Node, Pod
from labkit.host import Host

T = TypeVar("T")
PYTHON = ["/usr/bin/python3", "-SEB", "-c"]
CLIENT = (Path(__file__).parent / "client.py").read_text()
ECHO_SERVER = (Path(__file__).parents[2] / "scripts/labkit/echo_server.py").read_text()
EGRESS = {entry["name"]: entry["egressIPs"][0] for entry in CONFIGURATION["classes"]}
BILLING, SHOP = EGRESS["billing"], EGRESS["shop"]
ALL_NODES = ("worker1", "worker2", "gateway1")


def until(condition: Callable[[], T], what: str, timeout: float = 15) -> T:
    """Poll until the condition holds and return its value; AssertionError says what did not come."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.02)
    return value


def source(answer: str) -> str:
    """By which address an echo server has seen its client; "" when there was no answer."""
    return answer.partition(" ")[0]


def status(node: Node) -> dict:
    """`egressctl status --json`, of a healthy node or not."""
    return json.loads(node.run(["egressctl", "status", "--json"], check=False).stdout)


def drops(node: Node) -> dict[str, int]:
    """Packets dropped on a node, by reason."""
    counts: dict[str, int] = {}
    for entry in status(node)["drops"]:
        counts[entry["reason"]] = counts.get(entry["reason"], 0) + entry["packets"]
    return counts


def await_drops(node: Node, reason: str, more_than: int = 0) -> int:
    return until(lambda: (count := drops(node).get(reason, 0)) > more_than and count, f"more drops for {reason} on {node.name}")


class Traffic:
    """A client that goes on in a pod's network namespace (or on a host); see client.py for its kinds. answers() is what it has got."""

    def __init__(self, place: Pod | Host, kind: str, address: str, port: int, interval: float = 0.05):
        self._output = tempfile.TemporaryFile()
        self.process = place.popen([*PYTHON, CLIENT, kind, address, str(port), str(interval)], stdout=self._output,
                                   stderr=subprocess.STDOUT)
        self.kind, self.port = kind, port
        self.what = f"{kind} from {place.name} to {address}:{port}"

    def answers(self) -> list[str]:
        """All complete lines so far."""
        text = os.pread(self._output.fileno(), 1 << 28, 0).decode()
        return text[:text.rfind("\n") + 1].splitlines()

    def await_more(self, count: int = 3, timeout: float = 20) -> Traffic:
        """Wait for answers that were not there before; they have to be good ones."""
        start = len(self.answers())
        until(lambda: len(self.answers()) >= start + count, f"{count} more answers to {self.what}; the last ones: {self.answers()[-3:]}",
              timeout)
        return self

    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> list[str]:
        self.process.stop()
        answers = self.answers()
        self._output.close()
        return answers

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *exception) -> None:
        if not self._output.closed:
            self.stop()


def await_silence(flows: list[Traffic], quiet: float = 1.0, timeout: float = 15) -> None:
    """Wait until nobody has been answered for a while."""
    def seen() -> list[int]:
        return [len(flow.answers()) for flow in flows]
    last, since, deadline = seen(), time.monotonic(), time.monotonic() + timeout
    while time.monotonic() - since < quiet:
        time.sleep(0.05)
        if (now := seen()) != last:
            talking = [flow.what for flow, a, b in zip(flows, last, now) if a != b]
            assert time.monotonic() < deadline, f"still answered: {talking}"
            last, since = now, time.monotonic()


class EchoServer:
    """The lab's echo server in a pod's network namespace, or on a host."""

    def __init__(self, place: Pod | Host):
        self._output = tempfile.TemporaryFile()
        self.process = place.popen([*PYTHON, ECHO_SERVER, "/dev/stdout"], stdout=self._output, stderr=subprocess.STDOUT)
        until(lambda: b"# ready" in os.pread(self._output.fileno(), 1 << 20, 0) or self.process.poll() is not None, "an echo server")
        assert self.process.poll() is None, os.pread(self._output.fileno(), 1 << 20, 0).decode()

    def __enter__(self) -> EchoServer:
        return self

    def __exit__(self, *exception) -> None:
        self.process.stop()
        self._output.close()


def python(place: Pod | Host, script: str, *arguments: str | int, timeout: float = 60) -> str:
    """Run Python text in a pod's network namespace, or on a host; what it prints."""
    words = [*PYTHON, script, *map(str, arguments)]
    run = place.run_here if isinstance(place, Pod) else place.run
    return run(words, timeout=timeout).stdout.strip()


def ask_udp(place: Host | Pod, address: str, port: int) -> str:
    """The answer to one datagram (sent again when lost), through a connected socket: it comes from that very address and port."""
    return python(place, """
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect((sys.argv[1], int(sys.argv[2])))
client.settimeout(0.5)
for attempt in range(6):
    try:
        client.send(b"?")
        print(client.recv(512).decode(), end="")
        break
    except OSError:
        pass
""", address, port)


def pings(pod: Pod, address: str, count: int = 3) -> int:
    """How many of `count` pings are answered."""
    answer = pod.exec(["ping", "-c", str(count), "-i", "0.2", "-W", "2", address], check=False).stdout
    return answer.count("bytes from")


def tunnelled(records: list) -> list:
    return [record for record in records if record.proto == "udp" and 8479 in (record.sport, record.dport)]


def every_node(fleet: Fleet, function: Callable[[Node], T]) -> dict[str, T]:
    return {node.name: function(node) for node in fleet.nodes}
