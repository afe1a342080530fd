# SPDX-License-Identifier: Apache-2.0
"""Everything that is IP: what a pod sends arrives with the egress IP, or is dropped with a reason that has a name; and what answers it,
errors included, finds the pod. Each test's packets are watched on all uplinks: none has the address of a pod or node."""
from __future__ import annotations

import errno
import itertools
import random
import socket
import struct
from collections.abc import Iterator

import pytest
from light_fleet import PODS, REMOTES, FleetPod, LightFleet, Tap, Watch, configuration, egress_class, egress_ip, until
from traffic import ICMP, Sink, ask, fragments, icmp, ip_packet, opened, packed, ping, raw, sctp, tcp, udp
from wire import echo, icmp_error, queue_errors, refused, server

LIGHT_FLEET = {"nodes": ("worker1", "gateway1")}
FAMILY = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
PLACE = pytest.mark.parametrize("on", ["worker1", "gateway1"])
WEB, PORTLY = {4: egress_ip(7, 4), 6: egress_ip(7, 6)}, {4: egress_ip(8, 4), 6: egress_ip(8, 6)}
PORT, OTHER_PORT = 7101, 7102
TIME_EXCEEDED = {4: (11, 0), 6: (3, 0)}
GRE, ESP, AH, SCTP, UDPLITE, UNKNOWN = 47, 50, 51, 132, 136, 253
DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING = 60, 0, 43

numbers = itertools.count(1)


@pytest.fixture(scope="module")
def fleet(light_fleet) -> LightFleet:
    light_fleet.apply(configuration(
        egress_class("web", egressIPs=list(WEB.values())),
        egress_class("portly", egressIPs=list(PORTLY.values()), ports=[f"udp/{PORT}", "tcp/7001"], otherwise="drop")))
    return light_fleet


@pytest.fixture
def watch(fleet) -> Iterator[Watch]:
    """Around the whole test; at its end the captures are read, and have to be clean."""
    with fleet.watch([*WEB.values(), *PORTLY.values()]) as watching:
        yield watching
    watching.assert_no_leak(busy=())


@pytest.fixture
def make_pod(fleet) -> Iterator:
    """New pods: no rate limit of ICMP, no route cache, no flow of a test before."""
    made = []

    def make(on: str = "worker1", namespace: str = "web") -> FleetPod:
        made.append(fleet.hosts[on].pod(f"p{next(numbers)}", namespace))
        return made[-1]
    yield make
    for pod in made:
        pod.remove()


@pytest.fixture(scope="module")
def old_pods(fleet) -> dict[str, FleetPod]:
    """One on each node, for what leaves no trace in a pod."""
    return {node.name: node.pod("old") for node in fleet.nodes}


@pytest.fixture(scope="module")
def beyond(fleet) -> Iterator[Tap]:
    tap = Tap(fleet.outside)
    yield tap
    tap.close()


def drops(fleet: LightFleet) -> dict[tuple[str, str], int]:
    return {(node.name, reason): packets for node in fleet.nodes for reason, packets in node.drops().items()}


def fate(fleet: LightFleet, beyond: Tap, pod: FleetPod, packet: bytes, ending: bytes) -> str:
    """Send a packet of the pod to `outside`: "" when it arrived (what ends like this) with the egress IP, or the reason for which it was
    dropped. Neither is an error: silence."""
    before, family = drops(fleet), packet[0] >> 4
    address = REMOTES[family]
    beyond.discard()
    raw(pod, packet)

    def known() -> str | None:
        for record in beyond.records():
            if record.dst in address and record.frame.endswith(ending):
                assert record.src == WEB[family], f"arrived as {record}"
                return "arrived"
        return next((reason for (node, reason), count in drops(fleet).items() if count > before.get((node, reason), 0)), None)
    found = until(known, 2, what="neither did it arrive nor was it counted as dropped")
    return "" if found == "arrived" else found


# --- ICMP echo

@FAMILY
@PLACE
def test_echo(fleet, watch, make_pod, family, on):
    """Short and long ones; outside answers an echo by itself."""
    pod, address = make_pod(on), REMOTES[family][0]
    for size in 0, 56, 1300:
        assert ping(pod, address, size=size) == "reply"
    until(lambda: ping(pod, address, size=4000, timeout=0.2) == "reply", 3)       # IPv6 has to learn the MTU of the tunnel first


@FAMILY
@PLACE
def test_same_echo_of_two_pods(fleet, watch, make_pod, family, on):
    """To `outside` they differ in the number that the gateway gave them, and each answer goes to its own pod."""
    pods, address = [make_pod(on), make_pod(on)], REMOTES[family][0]
    with Sink(pods[0], ICMP[family], family) as one, Sink(pods[1], ICMP[family], family) as two:
        for pod in pods:
            raw(pod, ip_packet(pod.ip(family), address, ICMP[family], echo(pod.ip(family), address, 77, data=pod.name.encode() * 4)))
        for pod, sink in zip(pods, (one, two)):
            answers = [data for source, data in sink.take(0.3) if source == address]
            assert [(data[0], data[4:8], data[8:]) for data in answers] == [
                (129 if family == 6 else 0, struct.pack("!HH", 77, 1), pod.name.encode() * 4)]


@FAMILY
@PLACE
def test_answer_to_an_echo_that_nobody_sent(fleet, watch, beyond, make_pod, family, on):
    """A reply would go back the way the request came. There was none, so it goes nowhere."""
    pod, address = make_pod(on), REMOTES[family][0]
    answer = echo(pod.ip(family), address, 99, reply=True)
    assert fate(fleet, beyond, pod, ip_packet(pod.ip(family), address, ICMP[family], answer), answer[8:]) == "not_a_reply"


# --- ICMP errors

@FAMILY
@PLACE
def test_error_from_outside_reaches_the_pod(fleet, watch, make_pod, family, on):
    """Nobody listens at the port: the pod hears that, about its own packet."""
    pod, address = make_pod(on), REMOTES[family][0]
    with opened(pod, address, "udp") as client:
        client.connect((address, 9))
        queue_errors(client)
        client.send(b"anybody?")
        told = icmp_error(client)
        assert told and (told.error, told.sender) == (errno.ECONNREFUSED, address)
    with opened(pod, address, "tcp") as client, pytest.raises(ConnectionRefusedError):
        client.settimeout(3)
        client.connect((address, 9))


@FAMILY
@PLACE
def test_error_of_the_pod_about_an_answer(fleet, watch, make_pod, family, on):
    """The pod has closed its socket when the answer comes. Its error leaves with the egress IP, also inside, or `outside` would not know
    what it is about."""
    pod, address = make_pod(on), REMOTES[family][0]
    with server(fleet.outside, address, PORT) as partner:
        with opened(pod, address, "udp") as client:
            client.sendto(b"open", (address, PORT))
            peer = partner.recvfrom(2048)[1]
        assert peer[0] == WEB[family]
        partner.connect(peer[:2])
        partner.send(b"late answer")
        assert refused(partner)


@FAMILY
@PLACE
@pytest.mark.parametrize("way", ["pod", "port"])
def test_error_of_the_pod_about_an_inbound_flow(fleet, make_pod, family, on, way):
    """It goes back as the flow came: to the pod's address, or to a port of the node that leads to it. These packets may have the
    address of a pod or node, and a watch of their own allows just that."""
    pod, node, address = make_pod(on), fleet.hosts[on], REMOTES[family][0]
    to = (pod.ip(family), 9) if way == "pod" else (node.underlay(family), 30009)
    if way == "port":
        word = "ip6" if family == 6 else "ip"
        target = f"[{pod.v6}]:9" if family == 6 else f"{pod.v4}:9"
        node.nft(f"table inet port {{\nchain prerouting {{\ntype nat hook prerouting priority dstnat\n"
                 f"{word} daddr {to[0]} udp dport 30009 dnat {word} to {target}\n}}\n}}\n")
    try:
        with fleet.watch([to[0]]) as watch, opened(fleet.outside, to[0], "udp", source=address) as client:
            client.connect(to)
            client.send(b"anybody?")
            assert refused(client)
        assert watch.arrivals(proto="icmp6" if family == 6 else "icmp", src=to[0])
        watch.assert_no_leak()
    finally:
        if way == "port":
            node.nft("delete table inet port")


# --- traceroute

def traceroute_udp(pod: FleetPod, address: str, family: int) -> list[str]:
    """Who answers for a TTL of 1, 2, ...; "?" for nobody. The last one is who was asked."""
    found = []
    for ttl in range(1, 8):
        with opened(pod, address, "udp") as client:
            client.setsockopt(socket.IPPROTO_IPV6 if family == 6 else socket.IPPROTO_IP,
                              socket.IPV6_UNICAST_HOPS if family == 6 else socket.IP_TTL, ttl)
            client.connect((address, 33434 + ttl))
            queue_errors(client)
            client.send(b"trace")
            told = icmp_error(client, 1)
            assert not told or told.error == errno.ECONNREFUSED or (told.kind, told.code) == TIME_EXCEEDED[family], told
            found.append(told.sender if told else "?")
            if told and told.error == errno.ECONNREFUSED:
                break
    return found


def traceroute_icmp(pod: FleetPod, address: str, family: int) -> list[str]:
    found = []
    for ttl in range(1, 8):
        answer = ping(pod, address, ttl=ttl, timeout=1)
        found.append(address if answer == "reply" else answer.split()[-1] if answer else "?")
        if answer == "reply":
            break
    return found


@FAMILY
@PLACE
@pytest.mark.parametrize("trace", [traceroute_udp, traceroute_icmp], ids=["udp", "icmp"])
def test_traceroute(fleet, watch, make_pod, family, on, trace):
    """The gateway is the first hop, wherever the pod is, the router the second; then comes the end. Not a hop is missing."""
    pod, address, node = make_pod(on), REMOTES[family][0], fleet.gateway1
    hops = trace(pod, address, family)
    routers = {4: {"192.0.2.1", "203.0.113.1"}, 6: {"2001:db8:2::1", "2001:db8:7::1"}}[family]
    gateways = {node.underlay(family), WEB[family], PORTLY[family], PODS[family].format(node.number, 1)}
    assert len(hops) == 3 and hops[0] in gateways and hops[1] in routers and hops[2] == address, hops


# --- fragments

ORDERS = {"in-order": lambda found: found, "reversed": lambda found: found[::-1], "last-first": lambda found: found[-1:] + found[:-1],
          "first-last": lambda found: found[1:] + found[:1], "twice": lambda found: [piece for piece in found for _ in range(2)]}
ORDER = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)


@FAMILY
@PLACE
@ORDER
def test_fragments_of_a_pod(fleet, watch, make_pod, family, on, order):
    """The gateway puts them together, and `outside` gets the datagram."""
    pod, address, data = make_pod(on), REMOTES[family][0], random.randbytes(3000)
    mine = pod.ip(family)
    with server(fleet.outside, address, PORT) as arrivals:
        raw(pod, order(fragments(mine, address, socket.IPPROTO_UDP, udp(mine, address, 5555, PORT, data), size=1024, ident=random.getrandbits(16))))
        received, peer = arrivals.recvfrom(4000)
        assert (received, peer[0]) == (data, WEB[family])


@FAMILY
@PLACE
@ORDER
def test_answer_in_fragments(fleet, watch, make_pod, family, on, order):
    pod, address, data = make_pod(on), REMOTES[family][0], random.randbytes(3000)
    with server(fleet.outside, address, PORT) as partner, opened(pod, address, "udp") as client:
        client.settimeout(2)
        client.sendto(b"open", (address, PORT))
        peer = partner.recvfrom(2048)[1]
        whole = udp(address, peer[0], PORT, peer[1], data)
        raw(fleet.outside, order(fragments(address, peer[0], socket.IPPROTO_UDP, whole, size=1024, ident=random.getrandbits(16))))
        received, source = client.recvfrom(4000)
        assert (received, source[0]) == (data, address)


@FAMILY
@PLACE
def test_first_fragment_decides_where_ports_do(fleet, watch, make_pod, family, on):
    """A class with ports: a later fragment does what its first one did. One that comes ahead of it is dropped, and counted."""
    pod, address, node = make_pod(on, "portly"), REMOTES[family][0], fleet.hosts[on]
    mine = pod.ip(family)

    def datagram(port: int, data: bytes) -> list[bytes]:
        return fragments(mine, address, socket.IPPROTO_UDP, udp(mine, address, 5555, port, data), size=1024, ident=random.getrandbits(16))
    with server(fleet.outside, address, PORT) as arrivals, server(fleet.outside, address, OTHER_PORT) as others:
        before = node.drops("portly")
        good, bad = random.randbytes(2000), random.randbytes(2000)
        raw(pod, datagram(OTHER_PORT, bad) + datagram(PORT, good))
        received, peer = arrivals.recvfrom(4000)
        assert (received, peer[0]) == (good, PORTLY[family])
        after = node.drops("portly")
        assert after["otherwise"] == before.get("otherwise", 0) + 2, "both fragments of the datagram to the other port"
        assert after.get("fragment", 0) == before.get("fragment", 0)

        raw(pod, datagram(PORT, bad)[::-1])
        raw(pod, datagram(PORT, good))
        assert arrivals.recvfrom(4000)[0] == good, "of the one that came in the wrong order, nothing arrives"
        assert node.drops("portly")["fragment"] == after.get("fragment", 0) + 1
        others.settimeout(0)
        with pytest.raises(BlockingIOError):
            others.recv(4000)


@FAMILY
@PLACE
def test_fragments_whose_first_never_comes(fleet, watch, make_pod, family, on):
    """They reach the gateway at the most, where they wait for it in vain: `outside` sees nothing at all."""
    pod, address = make_pod(on), REMOTES[family][0]
    mine = pod.ip(family)
    whole = fragments(mine, address, socket.IPPROTO_UDP, udp(mine, address, 5555, PORT, bytes(3000)), size=1024, ident=random.getrandbits(16))
    raw(pod, whole[1:])
    assert ask(pod, address).source == WEB[family]
    assert not watch.read().arrivals(dst=address, proto="udp")


# --- other transports

def sctp_chunk(kind: int, tag: int) -> bytes:
    """INIT (1) or INIT ACK (2), the latter with a cookie."""
    cookie = struct.pack("!HH8s", 7, 12, b"cookie!!") if kind == 2 else b""
    return struct.pack("!BBHIIHHI", kind, 0, 20 + len(cookie), tag, 65536, 1, 1, 1000) + cookie


@FAMILY
@PLACE
def test_sctp(fleet, watch, make_pod, family, on):
    """An association begins: there with the egress IP and a checksum that is right, and back. (The kernel here has no SCTP of its own,
    only conntrack's, so both ends are made by hand.)"""
    pod, address = make_pod(on), REMOTES[family][0]
    mine = pod.ip(family)
    with Sink(fleet.outside, SCTP, family) as there, Sink(pod, SCTP, family) as here:
        raw(pod, ip_packet(mine, address, SCTP, sctp(5555, 3868, 0, sctp_chunk(1, 0x1234))))
        source, request = until(lambda: there.first(0.1), 2, what="no INIT outside")
        assert source == WEB[family]
        sport, dport = struct.unpack_from("!HH", request)
        assert (dport, request) == (3868, sctp(sport, 3868, 0, sctp_chunk(1, 0x1234)))
        answer = sctp(3868, sport, 0x1234, sctp_chunk(2, 0x5678))
        raw(fleet.outside, ip_packet(address, source, SCTP, answer))
        assert until(lambda: here.first(0.1), 2, what="no INIT ACK in the pod") == (address, sctp(3868, 5555, 0x1234, sctp_chunk(2, 0x5678)))


OTHERS = {"gre": (GRE, struct.pack("!HH", 0, 0x88b5) + b"in a tunnel"), "gre-key": (GRE, struct.pack("!HHI", 0x2000, 0x88b5, 7) + b"keyed"),
          "esp": (ESP, struct.pack("!II", 0x1001, 1) + bytes(32)), "ah": (AH, struct.pack("!BBHII12s", ESP, 4, 0, 7, 1, bytes(12)) + struct.pack("!II", 0x1001, 1) + bytes(32)),
          "unknown": (UNKNOWN, b"an experiment")}


@FAMILY
@PLACE
@pytest.mark.parametrize("proto, payload", OTHERS.values(), ids=OTHERS)
def test_protocol_without_ports(fleet, watch, make_pod, family, on, proto, payload):
    """Translated both ways: of such a protocol one pod at a time may talk to one address."""
    pod, address = make_pod(on), REMOTES[family][next(remotes) % 5]
    with Sink(fleet.outside, proto, family) as there, Sink(pod, proto, family) as here:
        raw(pod, ip_packet(pod.ip(family), address, proto, payload))
        assert until(lambda: there.first(0.1), 2, what="nothing outside") == (WEB[family], payload)
        raw(fleet.outside, ip_packet(address, WEB[family], proto, payload[::-1] if proto == UNKNOWN else payload))
        assert until(lambda: here.first(0.1), 2, what="no answer in the pod") == (address, payload[::-1] if proto == UNKNOWN else payload)


remotes = itertools.count()


@FAMILY
@PLACE
@pytest.mark.parametrize("proto, payload", OTHERS.values(), ids=OTHERS)
def test_protocol_without_ports_of_two_pods(fleet, watch, beyond, make_pod, family, on, proto, payload):
    """To the same address, the second one's flow cannot be told from the first one's. It is not sent with another source for that."""
    address = REMOTES[family][next(remotes) % 5]
    fates = [fate(fleet, beyond, pod, ip_packet(pod.ip(family), address, proto, payload), payload) for pod in (make_pod(on), make_pod(on))]
    assert fates[1] in ("", "nat_exhausted"), fates


ODD = {
    # name: (family, protocol, payload without the addresses it may need)
    "udplite": (4, UDPLITE, struct.pack("!HHHH", 5555, PORT, 8, 0) + b"partial"), "icmp6-in-v4": (4, 58, bytes([128, 0, 0, 0, 0, 1, 0, 1])),
    "icmp-in-v6": (6, 1, bytes([8, 0, 0xf7, 0xfd, 0, 1, 0, 1])), "igmp": (4, 2, bytes([0x16, 0, 0xf9, 0xfd, 224, 1, 1, 1])[:8]),
    "ipip": (4, 4, ip_packet("10.1.1.1", "10.1.1.2", 253, b"inside")), "6in4": (4, 41, ip_packet("fd01::1", "fd01::2", 253, b"inside")),
    "4in6": (6, 4, ip_packet("10.1.1.1", "10.1.1.2", 253, b"inside")), "no-next-header": (6, 59, b""),
    "ah-of-nothing": (6, AH, struct.pack("!BBHII12s", 59, 4, 0, 7, 1, bytes(12))), "reserved": (4, 255, b"reserved"),
    "ospf": (4, 89, bytes([2, 1, 0, 24]) + bytes(20)), "vrrp": (4, 112, bytes([0x21, 1, 100, 1, 0, 1, 0, 0]) + bytes(12)),
    "timestamp": (4, 1, icmp(4, 13, 0, struct.pack("!HH", 5, 1) + bytes(12))), "mask-request": (4, 1, icmp(4, 17, 0, bytes(8))),
    "redirect": (4, 1, icmp(4, 5, 1, packed("192.0.2.1") + ip_packet("10.1.1.1", "10.1.1.2", 17, bytes(8)))),
    "quench": (4, 1, icmp(4, 4, 0, bytes(4) + ip_packet("10.1.1.1", "10.1.1.2", 17, bytes(8)))),
    "unreachable-of-nothing": (4, 1, icmp(4, 3, 3, bytes(4) + ip_packet("198.51.100.10", "10.1.1.2", 17, bytes(8)))),
    "icmp-type-42": (4, 1, icmp(4, 42, 0, bytes(12))), "icmp-too-short": (4, 1, b"\x08\x00\xf7\xff"), "udp-too-short": (4, 17, b"\x1b\xbd\x1b"),
    "udp-wrong-length": (4, 17, struct.pack("!HHHH", 5555, PORT, 4, 0) + b"lies"), "tcp-xmas": (4, 6, bytes([21, 179, 27, 189]) + bytes(8) + b"\x50\x3f" + bytes(6)),
    "tcp-null": (4, 6, bytes([21, 179, 27, 189]) + bytes(8) + b"\x50\x00" + bytes(6)),
}


@PLACE
@pytest.mark.parametrize("family, proto, payload", ODD.values(), ids=ODD)
def test_odd_packet(fleet, watch, beyond, old_pods, on, family, proto, payload):
    """What no honest program sends: it arrives with the egress IP, or it is counted. Silence is a failure, and so is (by the watch) any
    other source."""
    pod, address = old_pods[on], REMOTES[family][0]
    fate(fleet, beyond, pod, ip_packet(pod.ip(family), address, proto, payload), payload[8 if proto == 1 else 0:])


ICMP6_ODD = {"unreachable-of-nothing": (1, 4, True), "too-big-of-nothing": (2, 0, True), "parameter-of-nothing": (4, 1, True), "type-200": (200, 0, False),
             "router-solicitation": (133, 0, False), "neighbour-advertisement": (136, 0, False), "redirect": (137, 0, False), "mld": (131, 0, False)}


@PLACE
@pytest.mark.parametrize("kind, code, quotes", ICMP6_ODD.values(), ids=ICMP6_ODD)
def test_odd_icmp6(fleet, watch, beyond, old_pods, on, kind, code, quotes):
    pod, address = old_pods[on], REMOTES[6][0]
    rest = bytes(4) + (ip_packet(address, "fd01::2", 17, bytes(8)) if quotes else bytes(16))
    payload = icmp(6, kind, code, rest, pod.v6, address)
    fate(fleet, beyond, pod, ip_packet(pod.v6, address, 58, payload), rest)


def extended(kind: int, nexthdr: int, payload: bytes) -> bytes:
    """An IPv6 extension header of eight bytes: padding, or an empty routing header."""
    return struct.pack("!BB", nexthdr, 0) + (b"\x01\x04\0\0\0\0" if kind != ROUTING else b"\x00\x00\0\0\0\0") + payload


EXTENSIONS = {"destination-options": [DESTINATION_OPTIONS], "hop-by-hop": [HOP_BY_HOP], "routing": [ROUTING],
              "all": [HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING]}


@PLACE
@pytest.mark.parametrize("kinds", EXTENSIONS.values(), ids=EXTENSIONS)
def test_v6_extension_headers(fleet, watch, beyond, old_pods, on, kinds):
    """In front of UDP. Classifier, conntrack and NAT have to look past them, each in its own way."""
    pod, address = old_pods[on], REMOTES[6][0]
    payload, proto = udp(pod.v6, address, 5555, PORT, b"behind"), socket.IPPROTO_UDP
    for kind in reversed(kinds):
        payload, proto = extended(kind, proto, payload), kind
    fate(fleet, beyond, pod, ip_packet(pod.v6, address, proto, payload), b"behind")


OPTIONS = {"nop": b"\x01" * 4, "record-route": b"\x07\x07\x04\0\0\0\0\x00", "timestamp": b"\x44\x08\x05\x00\0\0\0\0", "router-alert": b"\x94\x04\0\0",
           "loose-source-route": b"\x83\x07\x04" + packed("198.51.100.11") + b"\x00"}


@PLACE
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_v4_options(fleet, watch, beyond, old_pods, on, options):
    """IP options in front of UDP: the ports are not where they mostly are. A source route is refused by the kernel, silently, which is
    the one packet that nobody counts; it arrives nowhere either."""
    pod, address = old_pods[on], REMOTES[4][0]
    packet = ip_packet(pod.v4, address, socket.IPPROTO_UDP, udp(pod.v4, address, 5555, PORT, b"behind"), options=options)
    if options[0] == 0x83:
        raw(pod, packet)
        assert ask(pod, address).source == WEB[4]
        assert not watch.read().arrivals(dst=address, proto="udp")
    else:
        fate(fleet, beyond, pod, packet, b"behind")


# --- TCP that conntrack does not like

@FAMILY
@PLACE
@pytest.mark.parametrize("flags", [0x10, 0x04, 0x11, 0x12], ids=["ack", "rst", "fin-ack", "syn-ack"])
def test_tcp_out_of_nowhere(fleet, watch, beyond, old_pods, family, on, flags):
    """A segment of no connection that the gateway knows, as after its restart: picked up with the egress IP, or dropped as invalid."""
    pod, address = old_pods[on], REMOTES[family][0]
    segment = tcp(pod.ip(family), address, random.randrange(20000, 30000), 7001, flags, seq=1000, ack=1000, payload=b"what?")
    fate(fleet, beyond, pod, ip_packet(pod.ip(family), address, socket.IPPROTO_TCP, segment), b"what?")
