# SPDX-License-Identifier: Apache-2.0
"""Pods and uplinks have an MTU of 1500, so a full packet and its tunnel headers do not fit. Nobody may notice but by being told: TCP runs at
full length of its segments, whoever may not be fragmented hears the right MTU, and what is carried in fragments is counted."""
from __future__ import annotations

import errno
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
from light_fleet import LENGTH, POD_NETWORKS, REMOTES, FleetPod, LightFleet, configuration, egress_class, egress_ip, gateway, until
from traffic import opened
from wire import Filtered, forget_error, icmp_error, path_mtu, queue_errors, route_mtu, server, too_long

LINK = 1500
BEYOND = 1400           # MTU of the last link, in the tests that have a narrow one
HEADERS = {4: 28, 6: 48}     # IP and UDP
FRAGMENTS = "ip[6:2] & 0x3fff != 0 or (ip6 and ip6[6] == 44)"
PORT = 7101
FAMILY = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])


@dataclass
class Lab:
    fleet: LightFleet
    tunnel: int     # family of its addresses
    mtu: int        # of the tunnel

    def pod(self, name: str, on: str = "worker1") -> FleetPod:
        return self.fleet.hosts[on].pod(name)

    def remote(self, family: int) -> str:
        return REMOTES[family][0]

    def counted(self, event: str) -> int:
        return self.fleet.worker1.traffic("web").get(event, 0)


# The tunnel leaves 50 bytes less than the uplink, or 70 on nodes that may have to use IPv6.
UNDERLAYS = {"underlay-v4": ((4,), 4, LINK - 50), "underlay-v6": ((4, 6), 6, LINK - 70), "underlay-both-v4": ((4, 6), 4, LINK - 70)}


@pytest.fixture(scope="module", params=UNDERLAYS.values(), ids=UNDERLAYS)
def lab(request) -> Iterator[Lab]:
    families, tunnel, mtu = request.param
    with LightFleet(("worker1", "gateway1"), echo=False) as fleet:
        web = egress_class("web", gateway("gateway1", tunnel), egressIPs=[egress_ip(7, 4), egress_ip(7, 6)],
                           **{"except": [f"{REMOTES[4][4]}/32", f"{REMOTES[6][4]}/128"]})
        fleet.apply(configuration(web, families=families, clusterCIDRs=list(POD_NETWORKS.values())))
        yield Lab(fleet, tunnel, mtu)


@pytest.fixture
def pod(lab, request) -> Iterator[FleetPod]:
    """A new pod: what it has learned about paths goes with it, and so does what `outside` has learned."""
    made = lab.pod("p")
    yield made
    made.remove()
    lab.fleet.outside.run("ip route flush cache; ip -6 route flush cache")


@pytest.fixture
def narrow(lab) -> Iterator[Lab]:
    """The link to `outside` has an MTU of 1400, as far as the router is concerned."""
    routes = [f"{lab.remote(family)}/{bits} dev outside" for family, bits in ((4, 32), (6, 128))]
    lab.fleet.router.run(";".join(f"ip route add {route} mtu {BEYOND}" for route in routes))
    yield lab
    lab.fleet.router.run(";".join(f"ip route del {route}" for route in routes))


def datagram_client(pod, address: str, df: bool) -> socket.socket:
    client = opened(pod, address, "udp", df=df)
    client.connect((address, PORT))
    client.settimeout(3)
    queue_errors(client)
    return client


def filling(size: int, family: int) -> bytes:
    """The payload that makes a packet of this size."""
    return random.randbytes(size - HEADERS[family])


def connected(pod, lab: Lab, family: int) -> tuple[socket.socket, socket.socket]:
    """A TCP connection of the pod to `outside`: both ends."""
    address = lab.remote(family)
    with server(lab.fleet.outside, address, PORT, "tcp") as listener:
        client = opened(pod, address, "tcp")
        client.settimeout(3)
        client.connect((address, PORT))
        accepted, _ = listener.accept()
        accepted.settimeout(3)
        return client, accepted


def transfer(sender: socket.socket, receiver: socket.socket, megabytes: int) -> float:
    """Send bytes from end to end and compare them; how many seconds it took. A standstill of 3 s is a failure."""
    data, received, start = random.randbytes(megabytes << 20), bytearray(), time.monotonic()
    thread = threading.Thread(target=lambda: (sender.sendall(data), sender.shutdown(socket.SHUT_WR)), daemon=True)
    thread.start()
    while piece := receiver.recv(1 << 18):
        received += piece
    thread.join(5)
    assert received == data, f"{len(received)} of {len(data)} bytes"
    return time.monotonic() - start


@contextmanager
def nothing_fragmented(lab: Lab) -> Iterator[None]:
    """On no uplink is a fragment: neither of what the pod sends, nor of the tunnel."""
    hosts = [*lab.fleet.nodes, lab.fleet.outside]
    with ExitStack() as stack:
        taps = [stack.enter_context(Filtered(host, FRAGMENTS)) for host in hosts]
        yield
        found = {tap.name: [str(record) for record in records[:3]] for tap in taps if (records := tap.records())}
        assert not found, found


# --- TCP

@FAMILY
@pytest.mark.parametrize("direction", ["up", "down"])
def test_bulk_tcp(lab, pod, family, direction):
    """Segments are as long as the tunnel allows, and not longer."""
    client, accepted = connected(pod, lab, family)
    before = lab.counted("steered_tunnel"), lab.counted("fragmented"), lab.counted("too_big")
    with client, accepted, nothing_fragmented(lab):
        assert accepted.getpeername()[0] == egress_ip(7, family)
        for end in client, accepted:
            segment = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) + HEADERS[family] + 12 + 12      # TCP's 20 and timestamps' 12
            assert lab.mtu - 12 < segment <= lab.mtu, f"segments make packets of {segment} bytes"
        transfer(*((client, accepted) if direction == "up" else (accepted, client)), 8)
    assert lab.counted("steered_tunnel") > before[0]
    assert (lab.counted("fragmented"), lab.counted("too_big")) == before[1:], "TCP had to be told, or was fragmented"


@FAMILY
def test_bulk_tcp_both_ways_at_once(lab, pod, family):
    client, accepted = connected(pod, lab, family)
    with client, accepted, nothing_fragmented(lab):
        threads = [threading.Thread(target=end.sendall, args=(bytes(4 << 20),), daemon=True) for end in (client, accepted)]
        for thread in threads:
            thread.start()
        for end in client, accepted:
            left = 4 << 20
            while left:
                left -= len(end.recv(left))


# --- datagrams that are too long for the tunnel

@FAMILY
def test_datagram_that_may_not_be_fragmented(lab, pod, family):
    """The sender is told the tunnel's MTU, the kernel of the pod remembers it, and what is shorter arrives. The long one is counted, and
    seen nowhere."""
    address, big = lab.remote(family), filling(LINK, family)
    before = lab.counted("too_big")
    with server(lab.fleet.outside, address, PORT) as arrivals, datagram_client(pod, address, True) as client, nothing_fragmented(lab):
        assert path_mtu(client) == LINK
        client.send(big)
        told = icmp_error(client)
        assert told and (told.error, told.info) == (errno.EMSGSIZE, lab.mtu), told
        assert (told.kind, told.code) == ((3, 4) if family == 4 else (2, 0))
        assert path_mtu(client) == lab.mtu
        assert route_mtu(pod, address) == lab.mtu
        assert too_long(client, big)
        assert too_long(client, filling(lab.mtu + 1, family))
        fitting = filling(lab.mtu, family)
        client.send(fitting)
        data, peer = arrivals.recvfrom(2048)
        assert (data, peer[0]) == (fitting, egress_ip(7, family)), "the first to arrive is the short one"
    assert lab.counted("too_big") == before + 1


@FAMILY
def test_exactly_the_mtu_arrives_in_one_packet(lab, pod, family):
    """A datagram of the tunnel's MTU is nothing to talk about; one of a byte more is."""
    address, before = lab.remote(family), lab.counted("too_big")
    with server(lab.fleet.outside, address, PORT) as arrivals, datagram_client(pod, address, True) as client, nothing_fragmented(lab):
        fitting = filling(lab.mtu, family)
        client.send(fitting)
        assert arrivals.recv(2048) == fitting
        assert lab.counted("too_big") == before
        client.send(filling(lab.mtu + 1, family))
        told = icmp_error(client)
        assert told and told.info == lab.mtu, told
    assert lab.counted("too_big") == before + 1


def test_datagram_that_may_be_fragmented(lab, pod):
    """Goes through the tunnel in fragments of the outer packet, which is counted, and leaves the gateway in one piece."""
    if lab.tunnel == 6:
        pytest.skip("the kernel makes no fragments of what a tunnel puts into IPv6")
    address, before, data = lab.remote(4), lab.counted("fragmented"), filling(LINK, 4)
    with (server(lab.fleet.outside, address, PORT) as arrivals, datagram_client(pod, address, False) as client,
          Filtered(lab.fleet.worker1, FRAGMENTS) as wire, Filtered(lab.fleet.outside, FRAGMENTS) as beyond):
        client.send(data)
        assert arrivals.recvfrom(2048)[0] == data
        assert path_mtu(client) == LINK, "nobody had to be told"
        assert len(wire.records()) >= 2 and beyond.records() == []
    assert lab.counted("fragmented") == before + 1


@FAMILY
def test_datagram_is_fragmented_by_the_pod(lab, pod, family):
    """IPv6 knows no fragmenting on the way, neither of what is in the tunnel, nor of the tunnel: the sender is told, and does so itself
    from then on."""
    if (family, lab.tunnel) == (4, 4):
        pytest.skip("may be fragmented on the way")
    address, before, data = lab.remote(family), lab.counted("fragmented"), filling(LINK, family)
    with (server(lab.fleet.outside, address, PORT, timeout=0.1) as arrivals, datagram_client(pod, address, False) as client):
        told_before = lab.counted("too_big")
        client.send(data)
        until(lambda: route_mtu(pod, address) == lab.mtu, 2, what="the pod is not told")
        with pytest.raises(TimeoutError):
            arrivals.recv(2048)
        forget_error(client)
        arrivals.settimeout(3)
        client.send(data)
        received, peer = arrivals.recvfrom(2048)
        assert (received, peer[0]) == (data, egress_ip(7, family))
        assert lab.counted("too_big") == told_before + 1
    assert lab.counted("fragmented") == before


@FAMILY
@pytest.mark.parametrize("size", [4000, 16000])
def test_datagram_of_many_packets(lab, pod, family, size):
    """The pod's own fragments are full packets, too long for the tunnel. Nothing is lost but what had to be told."""
    address, data = lab.remote(family), random.randbytes(size)
    with server(lab.fleet.outside, address, PORT) as arrivals, datagram_client(pod, address, False) as client:
        arrivals.settimeout(0.05)

        def arrived() -> bool:
            forget_error(client)
            client.send(data)
            try:
                return arrivals.recvfrom(65535)[0] == data
            except TimeoutError:
                return False
        if (family, lab.tunnel) == (4, 4):
            assert arrived(), "no router may drop what may be fragmented"
        else:
            until(arrived, 2, what="the pod does not learn to make smaller fragments")


# --- what is around the tunnel

@FAMILY
def test_destination_beside_the_tunnel_has_the_whole_link(lab, pod, family):
    """`except`: a full packet that may not be fragmented goes through as if we were not there."""
    address, data = REMOTES[family][4], filling(LINK, family)
    with server(lab.fleet.outside, address, PORT) as arrivals, datagram_client(pod, address, True) as client:
        client.send(data)
        assert arrivals.recv(2048) == data
        assert path_mtu(client) == LINK


@FAMILY
def test_pod_on_the_gateway_has_the_whole_link(lab, family):
    """No tunnel, no smaller MTU."""
    pod, address, data = lab.pod("local", "gateway1"), lab.remote(family), filling(LINK, family)
    try:
        with server(lab.fleet.outside, address, PORT) as arrivals, datagram_client(pod, address, True) as client:
            client.send(data)
            received, peer = arrivals.recvfrom(2048)
            assert (received, peer[0]) == (data, egress_ip(7, family))
            assert path_mtu(client) == LINK
    finally:
        pod.remove()


# --- replies

def opened_by(pod, arrivals: socket.socket, address: str) -> tuple[socket.socket, tuple]:
    """A flow that a datagram of the pod has opened: the pod's socket, and its address as seen from outside."""
    client = datagram_client(pod, address, False)
    client.send(b"open")
    return client, arrivals.recvfrom(2048)[1]


@FAMILY
def test_reply_that_may_not_be_fragmented(lab, pod, family):
    """`outside` hears from the gateway what fits, of packets to the egress IP."""
    address, where = lab.remote(family), lab.fleet.gateway1
    with opened(lab.fleet.outside, address, "udp", source=address, sport=PORT, df=True) as partner, nothing_fragmented(lab):
        partner.settimeout(3)
        queue_errors(partner)
        client, peer = opened_by(pod, partner, address)
        with client:
            partner.sendto(filling(LINK, family), peer)
            told = icmp_error(partner)
            assert told and (told.error, told.info) == (errno.EMSGSIZE, lab.mtu), told
            assert told.sender in (where.underlay(family), egress_ip(7, family)), "who speaks, is not the pod or its node"
            assert route_mtu(lab.fleet.outside, peer[0]) == lab.mtu
            fitting = filling(lab.mtu, family)
            partner.sendto(fitting, peer)
            assert client.recv(2048) == fitting


@FAMILY
@pytest.mark.parametrize("size", [LINK - 48, 8000])
def test_reply_that_may_be_fragmented(lab, pod, family, size):
    """In one packet of the link or in many; IPv6 needs a second try for the first one that does not fit."""
    address, data = lab.remote(family), random.randbytes(size)
    with opened(lab.fleet.outside, address, "udp", source=address, sport=PORT, df=False) as partner:
        partner.settimeout(3)
        client, peer = opened_by(pod, partner, address)
        with client:
            client.settimeout(0.05)

            def arrived() -> bool:
                partner.sendto(data, peer)
                try:
                    return client.recv(65535) == data
                except TimeoutError:
                    return False
            if family == 4:
                assert arrived(), "no router may drop what may be fragmented"
            else:
                until(arrived, 2, what="outside does not learn the MTU of the tunnel")


# --- a smaller MTU beyond the gateway

@FAMILY
@pytest.mark.parametrize("on", ["worker1", "gateway1"])
def test_smaller_mtu_beyond_the_gateway(narrow, family, on):
    """The router's answer is about a packet with the egress IP. It reaches the pod, whose kernel recognises its own."""
    lab, pod = narrow, narrow.pod("n", on)
    address, big = lab.remote(family), filling(lab.mtu, family)
    try:
        with server(lab.fleet.outside, address, PORT) as arrivals, datagram_client(pod, address, True) as client:
            client.send(big)
            told = icmp_error(client)
            assert told and (told.error, told.info) == (errno.EMSGSIZE, BEYOND), told
            assert path_mtu(client) == BEYOND and too_long(client, big)
            fitting = filling(BEYOND, family)
            client.send(fitting)
            data, peer = arrivals.recvfrom(2048)
            assert (data, peer[0]) == (fitting, egress_ip(7, family))
    finally:
        pod.remove()


@FAMILY
def test_tcp_finds_a_smaller_mtu_beyond_the_gateway(narrow, pod, family):
    """The segments are too long for the router, which says so; nobody clamps for it."""
    client, accepted = connected(pod, narrow, family)
    with client, accepted, nothing_fragmented(narrow):
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > BEYOND - HEADERS[family], "there would be nothing to find"
        transfer(client, accepted, 4)
        assert path_mtu(client) == BEYOND


# --- the mtu of the device

@pytest.mark.parametrize("link", [1500, 9000, 1400])
def test_the_tunnel_follows_the_uplink(link):
    """Larger frames on the wire are used, smaller ones are respected: all by a new apply."""
    with LightFleet(("worker1", "gateway1"), echo=False, mtu=link) as fleet:
        fleet.apply(configuration(egress_class("web", egressIPs=[egress_ip(7, 4), egress_ip(7, 6)])))
        pod = fleet.worker1.pod("p", mtu=link)
        for family in LENGTH:
            address = REMOTES[family][0]
            with server(fleet.outside, address, PORT) as arrivals, datagram_client(pod, address, True) as client:
                client.send(filling(link, family))
                told = icmp_error(client)
                assert told and told.info == link - 70, told
                fitting = filling(link - 70, family)
                client.send(fitting)
                assert arrivals.recv(10000) == fitting
