# SPDX-License-Identifier: Apache-2.0
"""A pod with a class that lies: about its address, its MAC address, its mark, or another pod's flow. Root in a pod can send any frame at
all; it leaves as a packet of this pod's class, or not."""
from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from light_fleet import REMOTES, FleetPod, LightFleet, configuration, egress_class, egress_ip, underlay, until
from traffic import Stream, Wire, ask, ask_many, ethernet, fragments, icmp, ip_packet, packed, ping, raw, tcp, udp

LIGHT_FLEET = {"nodes": ["worker1", "gateway1"]}
FAMILY = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
PLACE = pytest.mark.parametrize("node", ["worker1", "gateway1"], ids=["by tunnel", "on the gateway"])
NUMBERS = {"web": 7, "other": 8}


def ip_of(name: str, family: int) -> str:
    return egress_ip(NUMBERS[name], family)


@pytest.fixture(scope="module")
def fleet(light_fleet) -> LightFleet:
    light_fleet.apply(configuration(*(egress_class(name, egressIPs=[ip_of(name, 4), ip_of(name, 6)]) for name in NUMBERS)))
    light_fleet.assert_healthy()
    return light_fleet


@pytest.fixture(scope="module")
def pods(fleet):
    """pods(node, namespace): one of each."""
    made: dict[tuple[str, str], FleetPod] = {}

    def get(node: str, name: str) -> FleetPod:
        if (node, name) not in made:
            made[node, name] = getattr(fleet, node).pod(name, name)
        return made[node, name]
    return get


@pytest.fixture
def wire(pods, node) -> Iterator[Wire]:
    """The interface of the pod that lies, of class web."""
    with Wire(pods(node, "web")) as wire:
        yield wire


def host_mac(pod: FleetPod) -> str:
    return pod.node.mac(pod.host_veth)


def counted(pod: FleetPod, reason: str) -> int:
    return pod.node.drops("web").get(reason, 0)


def datagram(src: str, dst: str, sport: int = 5000, dport: int = 7001) -> bytes:
    return ip_packet(src, dst, 17, udp(src, dst, sport, dport))


def liars(pods, node: str, family: int) -> dict[str, str]:
    """Addresses that are not the pod's."""
    mine = pods(node, "web").ip(family)
    return {
        "of a pod of another class": pods(node, "other").ip(family),
        "of a pod without a class": pods(node, "none").ip(family),
        "of no pod": mine.rpartition("." if family == 4 else ":")[0] + (".200" if family == 4 else ":c8"),
        "its class's egress IP": ip_of("web", family), "another class's egress IP": ip_of("other", family),
        "of its node": underlay(node, family), "of another node": underlay("gateway1" if node == "worker1" else "worker1", family),
        "of outside": REMOTES[family][2], "unspecified": {4: "0.0.0.0", 6: "::"}[family],
        "loopback": {4: "127.0.0.1", 6: "::1"}[family], "link-local": {4: "169.254.1.1", 6: "fe80::2"}[family],
        "of no host, or its own IPv4 address mapped": {4: "240.0.0.1", 6: f"::ffff:{pods(node, 'web').v4}"}[family]}


LIES = ["of a pod of another class", "of a pod without a class", "of no pod", "its class's egress IP", "another class's egress IP", "of its node",
        "of another node", "of outside", "unspecified", "loopback", "link-local", "of no host, or its own IPv4 address mapped"]


# --- addresses

@FAMILY
@PLACE
@pytest.mark.parametrize("lie", LIES)
def test_other_source_address_does_not_leave(fleet, pods, wire, node, family, lie):
    """Whole frames, by AF_PACKET: UDP, TCP, ICMP, and fragments."""
    pod, source, to = pods(node, "web"), liars(pods, node, family)[lie], REMOTES[family][0]
    echo = icmp(family, {4: 8, 6: 128}[family], 0, struct.pack("!HH", 7, 1) + b"lie", source, to)
    packets = [datagram(source, to), ip_packet(source, to, 6, tcp(source, to, 5001, 7001)),
               ip_packet(source, to, {4: 1, 6: 58}[family], echo),
               *fragments(source, to, 17, udp(source, to, 5002, 7001, bytes(2000)))]
    before = counted(pod, "spoofed")
    with fleet.watch([ip_of("web", family)]) as watch:
        wire.send(packets, host_mac(pod))
        assert ask(pod, to, 7002, "udp").source == ip_of("web", family)     # behind the lies, so those have been judged
    watch.assert_no_leak()
    assert {record.dport for record in watch.arrivals()} == {7002}
    assert counted(pod, "spoofed") == before + len(packets)


@FAMILY
@PLACE
def test_other_source_address_by_a_raw_socket_does_not_leave(fleet, pods, node, family):
    pod, to = pods(node, "web"), REMOTES[family][0]
    source = pods(node, "other").ip(family)
    before = counted(pod, "spoofed")
    with fleet.watch([ip_of("web", family)]) as watch:
        raw(pod, datagram(source, to))
        assert ask(pod, to, 7002, "udp").source == ip_of("web", family)
    watch.assert_no_leak()
    assert {record.dport for record in watch.arrivals()} == {7002}
    assert counted(pod, "spoofed") == before + 1


@FAMILY
@PLACE
def test_other_source_address_does_not_reach_the_cluster_either(fleet, pods, wire, node, family):
    """Pods are trusted by their addresses there."""
    pod, victim = pods(node, "web"), pods(node, "none")
    before = counted(pod, "spoofed")
    wire.send([datagram(pods(node, "other").ip(family), victim.ip(family)),
               datagram(pods(node, "other").ip(family), underlay("gateway1", family), dport=9)], host_mac(pod))
    until(lambda: counted(pod, "spoofed") == before + 2, 1)


@FAMILY
@PLACE
@pytest.mark.parametrize("lie", ["of another pod", "of its own host's end", "of nobody", "broadcast"])
def test_other_mac_address_does_not_leave(fleet, pods, wire, node, family, lie):
    pod, to = pods(node, "web"), REMOTES[family][0]
    with Wire(pods(node, "other")) as other:
        mac = {"of another pod": other.mac, "of its own host's end": host_mac(pod), "of nobody": "02:00:00:00:00:01",
               "broadcast": "ff:ff:ff:ff:ff:ff"}[lie]
    before = counted(pod, "spoofed")
    with fleet.watch([ip_of("web", family)]) as watch:
        wire.send(datagram(pod.ip(family), to), host_mac(pod), mac=mac)
        assert ask(pod, to, 7002, "udp")
    watch.assert_no_leak()
    assert {record.dport for record in watch.arrivals()} == {7002}
    assert counted(pod, "spoofed") == before + 1


# --- honest packets by other means

@FAMILY
@PLACE
def test_own_address_by_af_packet_and_raw_sockets_leaves_with_the_egress_ip(fleet, pods, wire, node, family):
    pod, to = pods(node, "web"), REMOTES[family][0]
    mine, rare = pod.ip(family), 253 + (node == "gateway1")      # without ports, two pods' flows to one address would be one outside
    with fleet.watch([ip_of("web", family)]) as watch:
        wire.send([datagram(mine, to, 6000), *fragments(mine, to, 17, udp(mine, to, 6001, 7001, bytes(2000)))], host_mac(pod))
        raw(pod, [datagram(mine, to, 6002), ip_packet(mine, to, rare, b"whatever")])
        watch.wait(proto=str(rare), dst=to)
    watch.assert_no_leak()
    assert [record.src for record in watch.arrivals(proto=str(rare))] == [ip_of("web", family)]
    assert len(watch.arrivals(proto="udp", dport=7001)) == 3


@FAMILY
@PLACE
@pytest.mark.parametrize("destination", ["broadcast", "multicast", "of nobody", "of another pod's interface"])
def test_frame_for_another_receiver_does_not_leave_with_another_source(fleet, pods, wire, node, family, destination):
    """The node may take or leave it; what it takes is the class's."""
    pod, to = pods(node, "web"), REMOTES[family][0]
    mac = {"broadcast": "ff:ff:ff:ff:ff:ff", "multicast": "33:33:00:00:00:01", "of nobody": "02:00:00:00:00:01",
           "of another pod's interface": host_mac(pods(node, "other"))}[destination]
    with fleet.watch([ip_of("web", family)]) as watch:
        wire.send(datagram(pod.ip(family), to), mac)
        assert ask(pod, to, 7002, "udp")
    watch.assert_no_leak()


# --- frames that are no honest IP

def broken(pod: FleetPod, family: int, to: str) -> dict[str, tuple[bytes, str]]:
    """name -> frame, the reason for its drop."""
    good = datagram(pod.ip(family), to)
    def frame(packet: bytes, kind: int = 0) -> bytes:
        return ethernet("00:00:00:00:00:00", host_mac(pod), packet, kind)
    other = 0x86dd if family == 4 else 0x0800
    cases = {
        "a VLAN tag": (frame(struct.pack("!HH", 7, 0x0800 if family == 4 else 0x86dd) + good, 0x8100), "not_ip"),
        "two VLAN tags": (frame(struct.pack("!HHHH", 7, 0x8100, 8, 0x0800 if family == 4 else 0x86dd) + good, 0x88a8), "not_ip"),
        "the other family's type": (frame(good, other), "not_ip"),
        "MPLS": (frame(struct.pack("!I", 16 << 12 | 1 << 8 | 64) + good, 0x8847), "not_ip"),
        "PPPoE": (frame(struct.pack("!BBHHH", 0x11, 0, 1, len(good) + 2, 0x21 if family == 4 else 0x57) + good, 0x8864), "not_ip"),
        "half an IP header": (frame(good[:18]), "not_ip"),
        "no transport header": (frame(ip_packet(pod.ip(family), to, 17, b"")), "not_ip")}
    return cases


@FAMILY
@PLACE
@pytest.mark.parametrize("name", ["a VLAN tag", "two VLAN tags", "the other family's type", "MPLS", "PPPoE", "half an IP header",
                                  "no transport header"])
def test_frame_that_is_no_honest_ip_does_not_leave(fleet, pods, wire, node, family, name):
    pod, to = pods(node, "web"), REMOTES[family][0]
    frame, reason = broken(pod, family, to)[name]
    frame = frame[:6] + bytes.fromhex(wire.mac.replace(":", "")) + frame[12:]
    before = counted(pod, reason)
    with fleet.watch([ip_of("web", family)]) as watch:
        wire.send_frame(frame)
        assert ask(pod, to, 7002, "udp")
    watch.assert_no_leak()
    assert {record.dport for record in watch.arrivals()} == {7002}
    assert counted(pod, reason) == before + 1


@PLACE
@pytest.mark.parametrize("headers", [1, 5, 8, 40], ids=lambda n: f"{n} extension headers")
def test_chain_of_extension_headers_hides_nothing(fleet, pods, wire, node, headers):
    """Translated or dropped with a reason; and the lie behind them is a lie."""
    pod, liar, to = pods(node, "web"), pods(node, "other").v6, REMOTES[6][0]

    def packet(source: str) -> bytes:
        inner, proto = udp(source, to, 6010, 7003), 17
        for _ in range(headers):
            inner, proto = bytes([proto, 0, 1, 4, 0, 0, 0, 0]) + inner, 60      # destination options: PadN
        return ip_packet(source, to, proto, inner)
    before = counted(pod, "spoofed") + counted(pod, "not_ip")
    with fleet.watch([ip_of("web", 6)]) as watch:
        wire.send([packet(liar), packet(pod.v6)], host_mac(pod))
        assert ask(pod, to, 7002, "udp")
    watch.assert_no_leak()
    arrived = [record for record in watch.arrivals() if record.dport == 7003]
    assert counted(pod, "spoofed") + counted(pod, "not_ip") == before + 2 - len(arrived)
    assert len(arrived) == (1 if headers < 6 else 0)


def test_source_route_by_way_of_the_node_does_not_leave(make_light_fleet):
    """A packet for the node itself is the cluster's and bypasses; with the option LSRR a node that honours it sends it on to outside."""
    fleet = make_light_fleet(["worker1", "gateway1"])
    node = fleet.worker1
    node.sysctl(ipv4__conf__all__accept_source_route=1, ipv4__conf__default__accept_source_route=1)
    fleet.apply(configuration(egress_class("web", egressIPs=[ip_of("web", 4)])))
    pod, control = node.pod("p", "web"), node.pod("u", "none")

    def routed(pod: FleetPod) -> bytes:
        first, last = underlay("worker1"), REMOTES[4][0]
        option = bytes([131, 7, 4]) + bytes(map(int, last.split("."))) + b"\0"
        plain = udp(pod.v4, last, 6020, 7001)
        # without a checksum: conntrack would compute it with the address in the header, which is not the last one yet
        return ip_packet(pod.v4, first, 17, plain[:6] + bytes(2) + plain[8:], options=option)
    node.sysctl(**{f"ipv4__conf__{veth}__accept_source_route": 1 for veth in (pod.host_veth, control.host_veth)})
    with fleet.watch([]) as watch, Wire(control) as wire:
        wire.send(routed(control), host_mac(control))
        watch.wait("worker1")       # this node does honour the option; the next may not
    with fleet.watch([ip_of("web", 4)]) as watch, Wire(pod) as wire:
        wire.send(routed(pod), host_mac(pod))
        assert ask(pod, REMOTES[4][0], 7002, "udp")
    watch.assert_no_leak()
    assert {record.dport for record in watch.arrivals()} == {7002}


# --- marks

@FAMILY
@PLACE
def test_mark_of_another_class_set_by_a_pod_is_worth_nothing(fleet, pods, node, family):
    """Every mark that means something to us, and every bit."""
    pod, here = pods(node, "web"), getattr(fleet, node)
    marks = [here.mark("other"), here.mark("web"), 0x1f7f, 0xf7f, 0xf7e, 0xf7d, 0xf7c, 0x1000, 0xffffffff,
             here.mark("other") | 0x1000, *(1 << bit for bit in range(32))]
    with fleet.watch([ip_of("web", family)]) as watch:
        for mark in marks:
            seen = ask(pod, REMOTES[family][0], proto="udp", mark=mark)
            assert seen and seen.source == ip_of("web", family), hex(mark)
    watch.assert_no_leak()


@FAMILY
@PLACE
def test_pod_without_a_class_cannot_borrow_one_by_its_mark(fleet, pods, node, family):
    pod, here = pods(node, "none"), getattr(fleet, node)
    with fleet.watch([underlay(node, family)]) as watch:
        for mark in here.mark("web"), here.mark("web") | 0x1000, here.mark("other"), 0x1f7f, 0xf7f, 0xffffffff:
            seen = ask(pod, REMOTES[family][0], proto="udp", mark=mark)
            assert seen and seen.source == underlay(node, family), hex(mark)
    watch.assert_no_leak()


# --- flows of other pods

@FAMILY
@PLACE
def test_flow_of_another_pod_cannot_be_poisoned(fleet, pods, wire, node, family):
    """Resets, data and closings with the other pod's addresses and ports; and its own packets from the same ports."""
    pod, victim, to = pods(node, "web"), pods(node, "other"), REMOTES[family][0]
    theirs = victim.ip(family)
    with fleet.watch([ip_of("web", family), ip_of("other", family)], {7005: [ip_of("other", family)]}) as watch, \
            Stream(victim, to, "tcp", 300, sport=4000) as stream, Stream(victim, to, "udp", 300, sport=4001) as datagrams:
        stream.wait_seen(5)
        before = counted(pod, "spoofed")
        lies = [ip_packet(theirs, to, 6, tcp(theirs, to, 4000, 7005, flags, seq=seq, ack=1)) for flags in (4, 20, 17, 2, 24)
                for seq in (0, 1 << 31)]
        lies += [datagram(theirs, to, 4001, 7005), ip_packet(to, theirs, 6, tcp(to, theirs, 7005, 4000, 4)), datagram(to, theirs, 7005, 4001)]
        wire.send(lies, host_mac(pod))
        for _ in range(3):
            assert ask(pod, to, 7001, "udp", sport=4001).source == ip_of("web", family)
        assert ask(pod, to, 7001, sport=4000).source == ip_of("web", family)
        stream.wait_seen(20)
        datagrams.wait_seen(20)
        assert counted(pod, "spoofed") == before + len(lies)
    watch.assert_no_leak()
    for one in stream, datagrams:
        assert one.lost == [] and one.sources == {ip_of("other", family)} and not one.error


@FAMILY
def test_same_ports_of_two_pods_towards_one_endpoint_are_two_flows(fleet, pods, family):
    """Of one class, behind one egress IP: the answers find the right pod."""
    one, two = pods("worker1", "web"), pods("gateway1", "web")
    with fleet.watch([ip_of("web", family)]) as watch:
        for proto in "tcp", "udp":
            found = [ask(pod, REMOTES[family][1], 7003, proto, sport=4100) for pod in (one, two)]
            assert [seen and seen.source for seen in found] == [ip_of("web", family)] * 2 and len({seen.sport for seen in found}) == 2
        for pod in one, two:
            found = ask_many(pod, REMOTES[family][1], 50, sports=range(4200, 4250))
            assert None not in found and {seen.source for seen in found} == {ip_of("web", family)}
    watch.assert_no_leak()


@FAMILY
@PLACE
def test_pod_cannot_take_another_pods_address_by_neighbour_discovery(fleet, pods, wire, node, family):
    """It claims it on its own link, where nobody asks; the other pod's answers go on to arrive."""
    pod, victim, to = pods(node, "web"), pods(node, "other"), REMOTES[family][0]
    theirs, mac = victim.ip(family), bytes.fromhex(wire.mac.replace(":", ""))
    with Stream(victim, to, "udp", 200) as stream:
        stream.wait_seen(3)
        if family == 4:
            for operation in 1, 2:
                arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + packed(theirs) + b"\xff" * 6 + packed(theirs)
                wire.send_frame(b"\xff" * 6 + mac + struct.pack("!H", 0x0806) + arp)
        else:
            claim = struct.pack("!I", 0x20000000) + packed(theirs) + bytes([2, 1]) + mac
            wire.send(ip_packet("fe80::2", "ff02::1", 58, icmp(6, 136, 0, claim, "fe80::2", "ff02::1"), ttl=255), "33:33:00:00:00:01")
        stream.wait_seen(20)
        assert ping(victim, to) == "reply"
    assert stream.lost == [] and stream.sources == {ip_of("other", family)}
