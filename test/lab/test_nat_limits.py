# SPDX-License-Identifier: Apache-2.0
"""The gateway has 64512 ports (1024 to 65535) of an egress IP for flows to one remote endpoint. Nearly all of them can be used; past them,
flows are refused and counted, and none leaves untranslated; a second egress IP is used before. Up to there, no connection fails."""
from __future__ import annotations

import re
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from light_fleet import REMOTES, FleetPod, LightFleet, Place, configuration, egress_class, egress_ip, gateway, until
from traffic import FAMILIES, Flows, ip_packet, udp
from wire import Filtered, server

LIGHT_FLEET = {"nodes": ("worker1", "gateway1")}
FAMILY = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
PORT = 7101
FIRST, LAST = 1024, 65535
RANGE = LAST - FIRST + 1
ENOUGH = int(0.95 * RANGE)
SOURCE = Path(__file__).with_name("connections.c")


def ips(*numbers: int) -> list[str]:
    return [egress_ip(number, family) for number in numbers for family in FAMILIES]


@pytest.fixture(scope="module")
def fleet(light_fleet) -> LightFleet:
    """A class with one egress IP of each family, and one with two."""
    light_fleet.apply(configuration(
        egress_class("one", "gateway1", egressIPs=ips(7)),
        egress_class("two", gateway("gateway1", egressIPs=ips(8, 9)))))
    # an entry for which no answer has come must not expire while others are made: 30 s are not much on a slow machine
    light_fleet.gateway1.in_gateway("echo 180 >/proc/sys/net/netfilter/nf_conntrack_udp_timeout")
    return light_fleet


@pytest.fixture
def pods(fleet) -> Iterator[list[FleetPod]]:
    """Two of each class. With what they leave behind, the ports of the gateway come back."""
    made = [fleet.worker1.pod(f"{name}{number}", name) for name in ("one", "two") for number in (1, 2)]
    yield made
    for pod in made:
        pod.remove()
    fleet.gateway1.in_gateway("conntrack -F", check=False)


class Receiver:
    """A UDP port of `outside` that counts by which source address and port it was addressed."""

    def __init__(self, fleet: LightFleet, address: str):
        self._socket = server(fleet.outside, address, PORT, timeout=0)
        self.seen: Counter[tuple[str, int]] = Counter()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *exception) -> None:
        self._socket.close()

    def read(self) -> int:
        """How many flows there are."""
        try:
            while True:
                self.seen[self._socket.recvfrom(64)[1][:2]] += 1
        except BlockingIOError:
            return len(self.seen)

    def of(self, source: str) -> int:
        return sum(1 for address, _ in self.seen if address == source)


def open_flows(pod: FleetPod, address: str, ports: range, receiver: Receiver) -> None:
    """One datagram from each port: as many flows, as fast as they can be made. By a raw socket, since a pod would need as many
    descriptors as there are ports."""
    version = 6 if ":" in address else 4
    source = pod.ip(version)
    with pod.socket(FAMILIES[version], socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        whole = ip_packet(source, address, socket.IPPROTO_UDP, udp(source, address, 0, PORT, b"flow"))
        at = len(whole) - 12        # of the UDP header
        head, (zero_sum,), tail = whole[:at], struct.unpack_from("!H", whole, at + 6), whole[at + 2:at + 6]
        for number, port in enumerate(ports):
            total = zero_sum - port         # in ones' complement: the port is one more word of the sum
            total = total - 1 & 0xFFFF if total <= 0 else total
            raw.sendto(head + struct.pack("!H", port) + tail + struct.pack("!H", total or 0xFFFF) + b"flow", (address, 0))
            if number % 4096 == 0:
                receiver.read()


@contextmanager
def no_other_source(fleet: LightFleet, sources: list[str]) -> Iterator[None]:
    """On no uplink is a packet to the port that has another source than these."""
    expression = f"dst port {PORT} and (dst net 198.51.100.0/24 or dst net 2001:db8:51::/64)" + "".join(f" and not src host {source}" for source in sources)
    with ExitStack() as stack:
        taps = [stack.enter_context(Filtered(host, expression)) for host in (*fleet.nodes, fleet.outside)]
        yield
        found = [str(record) for tap in taps for record in tap.records()]
        assert not found, found[:5]


def exhausted(fleet: LightFleet) -> int:
    return fleet.gateway1.drops().get("nat_exhausted", 0)


@FAMILY
def test_the_whole_range_of_ports(fleet, pods, family):
    """Not one flow is refused before 95 % of the ports are used. When all are, what is refused is counted, to a packet."""
    address, before = REMOTES[family][0], exhausted(fleet)
    with Receiver(fleet, address) as receiver, no_other_source(fleet, ips(7)):
        open_flows(pods[0], address, range(FIRST, FIRST + ENOUGH), receiver)
        until(lambda: receiver.read() >= ENOUGH, 3, what=lambda: f"{len(receiver.seen)} of {ENOUGH} flows have arrived")
        assert exhausted(fleet) == before
        assert max(receiver.seen.values()) == 1, "two flows have the same address and port"

        more = 8000
        assert ENOUGH + more > RANGE
        open_flows(pods[1], address, range(FIRST, FIRST + more), receiver)
        refused = until(lambda: (count := exhausted(fleet) - before) + receiver.read() >= ENOUGH + more and count, 3,
                        what="what was refused is not all counted")
        assert refused == ENOUGH + more - len(receiver.seen) >= ENOUGH + more - RANGE
        assert len(receiver.seen) > 0.97 * RANGE
        assert {source for source, _ in receiver.seen} == {egress_ip(7, family)}
        assert min(port for _, port in receiver.seen) >= FIRST


@FAMILY
def test_another_endpoint_has_the_range_of_its_own(fleet, pods, family):
    """Ports are scarce for each remote endpoint, not for each egress IP."""
    first, second = REMOTES[family][:2]
    with Receiver(fleet, first) as one, Receiver(fleet, second) as two, no_other_source(fleet, ips(7)):
        for address, receiver in ((first, one), (second, two)):
            open_flows(pods[0], address, range(FIRST, FIRST + 40000), receiver)
            until(lambda: receiver.read() == 40000, 3, what="a flow was refused")


@FAMILY
def test_second_egress_ip_takes_over(fleet, pods, family):
    """A pod keeps to one of both, as long as that has ports. Before it has none, the other one is used, and no flow is refused."""
    address, before = REMOTES[family][0], exhausted(fleet)
    with Receiver(fleet, address) as receiver, no_other_source(fleet, ips(8, 9)):
        open_flows(pods[2], address, range(FIRST, FIRST + 2000), receiver)
        until(lambda: receiver.read() == 2000, 3, what="a flow was refused")
        assert len({source for source, _ in receiver.seen}) == 1, "sticky, for each pod"
        (preferred,) = {source for source, _ in receiver.seen}
        open_flows(pods[2], address, range(FIRST + 2000, LAST + 1), receiver)
        open_flows(pods[3], address, range(FIRST, FIRST + RANGE // 2), receiver)
        total = RANGE + RANGE // 2
        until(lambda: receiver.read() == total, 3, what=lambda: f"{total - len(receiver.seen)} of {total} flows were refused")
        assert exhausted(fleet) == before
        assert {source for source, _ in receiver.seen} == {egress_ip(8, family), egress_ip(9, family)}
        assert receiver.of(preferred) > RANGE // 2


# --- connections

@pytest.fixture(scope="module")
def connections(tmp_path_factory) -> Path:
    program = tmp_path_factory.mktemp("bin") / "connections"
    subprocess.run(["gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)
    return program


@contextmanager
def running(program: Path, place: Place, *words: str | int) -> Iterator[subprocess.Popen]:
    """The program on a host or in a pod."""
    process = subprocess.Popen(["nsenter", f"--net={place.netns_here}", "--", program, *map(str, words)], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def result(process: subprocess.Popen, timeout: float) -> dict[str, int]:
    out, _ = process.communicate(timeout=timeout)
    return {name: int(value) for name, value in re.findall(r"(\w+) (\d+)", out)}


@pytest.mark.parametrize("family, seconds", [(4, 60), (6, 12)], ids=["v4", "v6"])
def test_many_short_connections(fleet, pods, connections, family, seconds):
    """3300 a second to one endpoint, by four pods; for a minute, or long enough (IPv6) for the ports of the first ones to come back, which
    they do after 10 s. Not one fails. That none had to send its SYN twice is more than can be asked of a machine that does other things;
    how many did is printed."""
    address, rate, before = REMOTES[family][0], 3300, exhausted(fleet)
    with ExitStack() as stack:
        stack.enter_context(no_other_source(fleet, ips(7)))
        more = [fleet.worker1.pod(f"more{number}", "one") for number in (1, 2)]
        for pod in more:
            stack.callback(pod.remove)
        partner = stack.enter_context(running(connections, fleet.outside, "server", address, PORT, egress_ip(7, family)))
        assert partner.stdout.readline() == "ready\n"
        clients = [stack.enter_context(running(connections, pod, "client", address, PORT, rate // 4, seconds)) for pod in (*pods[:2], *more)]
        found = Counter()
        for client in clients:
            found.update(result(client, seconds + 10))
        partner.terminate()
        found.update(result(partner, 5))
    print(dict(found))
    assert (found["failed"], found["foreign"]) == (0, 0)
    assert found["made"] == found["connections"] >= 0.98 * rate * seconds
    assert exhausted(fleet) - before <= found["slow"]       # two processors that took the same port at once: one has to send its SYN again
