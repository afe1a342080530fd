# SPDX-License-Identifier: Apache-2.0
"""Both IP families: pods and gateways with one of them or with both, tunnels over either, and nodes that have no IPv6 at all."""
from __future__ import annotations

import json
import struct

import pytest
from labkit.process import CommandFailed
from light_fleet import REMOTES, ROUTERS, FleetNode, FleetPod, LightFleet, configuration, egress_class, egress_ip, gateway, underlay, until
from traffic import Sink, ask, icmp, ip_packet, knock, opened, packed, ping, raw, send, silent, transfer, udp

LIGHT_FLEET = {"nodes": ["worker1", "worker2", "gateway1"]}
TUNNEL = 8479
BY4, BY6 = gateway("gateway1", 4), gateway("gateway1", 6)

# name of the class -> number of its egress IPs, and the families that it has them of
CLASSES = {"over4": (7, (4, 6), BY4, {}), "over6": (8, (4, 6), BY6, {}),
           "only4": (9, (4,), BY4, {}), "only6": (10, (6,), BY4, {}),
           "pass4": (11, (4,), BY4, {"otherFamily": "bypass"}), "pass6": (12, (6,), BY6, {"otherFamily": "bypass"})}

FAMILY = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
PROTO = pytest.mark.parametrize("proto", ["tcp", "udp", "icmp"])


def ip_of(name: str, family: int) -> str:
    return egress_ip(CLASSES[name][0], family)


@pytest.fixture(scope="module")
def dual(light_fleet) -> LightFleet:
    light_fleet.apply(configuration(*(
        egress_class(name, entry, egressIPs=[egress_ip(number, family) for family in families], **keys)
        for name, (number, families, entry, keys) in CLASSES.items())))
    light_fleet.assert_healthy()
    return light_fleet


@pytest.fixture(scope="module")
def pods(dual):
    """pods(node name, class, families): one pod of each kind."""
    made: dict[tuple, FleetPod] = {}

    def get(node: str, name: str, families: tuple[int, ...] = (4, 6)) -> FleetPod:
        key = (node, name, families)
        if key not in made:
            made[key] = getattr(dual, node).pod(f"{name}-{''.join(map(str, families))}", name, families)
        return made[key]
    return get


def leaves_with(pod: FleetPod, family: int, proto: str, source: str, fleet: LightFleet) -> None:
    """One exchange of the pod with outside, of which nobody sees any other address than this."""
    with fleet.watch([source]) as watch:
        if proto == "icmp":
            assert ping(pod, REMOTES[family][0]) == "reply"
        else:
            seen = ask(pod, REMOTES[family][0], proto=proto)
            assert seen and seen.source == source
    watch.assert_no_leak()
    kind = {"icmp": {4: "icmp", 6: "icmp6"}[family]}.get(proto, proto)
    assert {record.src for record in watch.arrivals(proto=kind)} == {source}


# --- steering

@PROTO
@FAMILY
@pytest.mark.parametrize("name", ["over4", "over6"])
@pytest.mark.parametrize("node", ["worker1", "gateway1"], ids=["by tunnel", "on the gateway"])
def test_dual_stack_pod_leaves_with_the_egress_ip_of_each_family(dual, pods, node, name, family, proto):
    leaves_with(pods(node, name), family, proto, ip_of(name, family), dual)


@PROTO
@FAMILY
@pytest.mark.parametrize("name", ["over4", "over6"])
def test_pod_with_one_family_leaves_with_the_egress_ip_of_that(dual, pods, name, family, proto):
    leaves_with(pods("worker1", name, (family,)), family, proto, ip_of(name, family), dual)


@FAMILY
@pytest.mark.parametrize("name, over", [("over4", 4), ("over6", 6)])
def test_tunnel_runs_over_the_family_of_the_gateways_address(dual, pods, name, over, family):
    """Between the addresses that are `nodes`, both ways, whatever is inside."""
    pod = pods("worker1", name)
    with dual.watch([ip_of(name, family)]) as watch:
        assert ask(pod, REMOTES[family][0])
    ends = {(record.src, record.dst) for record in watch.records["worker1"] if record.proto == "udp" and record.dport == TUNNEL}
    here, there = underlay("worker1", over), underlay("gateway1", over)
    assert ends == {(here, there), (there, here)}


@FAMILY
@pytest.mark.parametrize("name", ["over4", "over6"])
def test_large_transfers_both_ways_arrive_whole(dual, pods, name, family):
    """With pods and links of the same MTU: the tunnel's headers have to come out of something."""
    pod = pods("worker1", name)
    with dual.watch([ip_of(name, family)]) as watch:
        assert transfer(pod, REMOTES[family][0], 200_000) == (ip_of(name, family), 200_000, 200_000)
    watch.assert_no_leak()


# --- one family only

MISSING = [("only4", 6), ("only6", 4)]


@PROTO
@pytest.mark.parametrize("name, family", MISSING, ids=["IPv6 of an IPv4 class", "IPv4 of an IPv6 class"])
@pytest.mark.parametrize("node", ["worker1", "gateway1"])
def test_family_without_egress_ip_is_dropped_by_default(dual, pods, node, name, family, proto):
    pod, here = pods(node, name), getattr(dual, node)
    before = here.drops(name).get("family", 0)
    with dual.watch([]) as watch:
        if proto == "icmp":
            assert ping(pod, REMOTES[family][0], timeout=0.1) == ""
        else:
            assert silent(pod, REMOTES[family][0], proto=proto, timeout=0.1)
    assert not watch.arrivals()
    assert here.drops(name)["family"] > before
    other = 10 - family
    leaves_with(pod, other, "tcp", ip_of(name, other), dual)


@PROTO
@pytest.mark.parametrize("name, family", [("pass4", 6), ("pass6", 4)], ids=["IPv6 of an IPv4 class", "IPv4 of an IPv6 class"])
@pytest.mark.parametrize("node", ["worker1", "gateway1"])
def test_family_without_egress_ip_bypasses_if_the_class_says_so(dual, pods, node, name, family, proto):
    """As a pod without a class: behind the node's address."""
    pod = pods(node, name)
    leaves_with(pod, family, proto, underlay(node, family), dual)
    other = 10 - family
    leaves_with(pod, other, proto, ip_of(name, other), dual)


# --- what is not steered

@FAMILY
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_inbound_flows_are_answered_by_the_way_they_came(dual, pods, family, proto):
    pod = pods("worker1", "over4")
    with dual.watch([pod.ip(family)]) as watch:
        assert knock(dual.outside, pod, pod.ip(family), proto) == pod.ip(family)
    assert {record.src for record in watch.arrivals()} == {pod.ip(family)}
    assert not [record for record in watch.records["worker1"] if record.dport == TUNNEL]


@FAMILY
def test_outside_can_ping_a_pod_with_a_class(dual, pods, family):
    assert ping(dual.outside, pods("worker1", "over6").ip(family)) == "reply"


@FAMILY
@pytest.mark.parametrize("where", ["worker2", "gateway1"])
def test_pods_reach_pods_and_nodes_with_their_own_address(dual, pods, where, family):
    pod, other = pods("worker1", "over4"), pods(where, "over6")
    node = getattr(dual, where)
    for place, address in (other, other.ip(family)), (node, node.underlay(family)):
        with Sink(place, 253, family) as sink:
            raw(pod, ip_packet(pod.ip(family), address, 253, b"hello"))
            source, text = sink.first() or ("", b"")
            assert text == b"hello" and source in (pod.ip(family), underlay("worker1", family))
            if place is other:
                assert source == pod.ip(family)


def test_neighbour_discovery_of_a_pod_is_no_spoofing(dual, pods):
    """The kernel probes a neighbour that it knows with a unicast solicitation from its link-local address."""
    pod, node = pods("worker1", "over4"), dual.worker1
    assert ask(pod, REMOTES[6][0])
    before = node.drops().get("spoofed", 0)
    pod.run("ip -6 neigh change fd00:244:1::1 dev eth0 nud probe")
    state = until(lambda: next((s for s in ("REACHABLE", "FAILED", "INCOMPLETE") if s in
                                pod.run("ip -6 neigh show fd00:244:1::1 dev eth0").stdout), ""), 6)
    assert state == "REACHABLE"
    assert node.drops().get("spoofed", 0) == before
    node.run(f"ip -6 neigh change {pod.v6} dev {pod.host_veth} nud probe")
    until(lambda: "REACHABLE" in node.run(f"ip -6 neigh show {pod.v6} dev {pod.host_veth}").stdout, 6)


# --- errors of the network, both ways

@FAMILY
@pytest.mark.parametrize("name", ["over4", "over6"])
def test_error_about_a_steered_flow_reaches_the_pod(dual, pods, name, family):
    """Outside's port is closed: the pod's socket is told."""
    pod = pods("worker1", name)
    with opened(pod, REMOTES[family][0]) as client:
        client.settimeout(2)
        client.connect((REMOTES[family][0], 7999))
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(99)


@FAMILY
@pytest.mark.parametrize("name", ["over4", "over6"])
def test_error_of_the_pod_about_a_steered_flow_leaves_with_the_egress_ip(dual, pods, name, family):
    """The pod has no socket (any more) for the answer."""
    pod = pods("worker1", name)
    kind, number = {4: ("icmp", 3), 6: ("icmp6", 1)}[family]
    with dual.watch([ip_of(name, family)]) as watch:
        raw(pod, ip_packet(pod.ip(family), REMOTES[family][0], 17, udp(pod.ip(family), REMOTES[family][0], 5353, 7001)))
        watch.wait(proto=kind, info=f"type {number}")
    watch.assert_no_leak()


@FAMILY
@pytest.mark.parametrize("name", ["over4", "over6"])
def test_traceroute_of_a_pod_shows_the_way(dual, pods, name, family):
    """The gateway, the router, and outside."""
    pod = pods("worker1", name)
    found = [ping(pod, REMOTES[family][0], ttl=ttl, timeout=0.5) for ttl in range(1, 4)]
    exceeded = {4: "type 11", 6: "type 3"}[family] + " code 0 from "
    own = dual.gateway1.run(["ip", "-n", "egressclass", "-j", "addr"]).stdout       # any egress IP: the kernel chooses
    gateways = {exceeded + entry["local"] for link in json.loads(own) for entry in link["addr_info"]}
    routers = {exceeded + address for address in ROUTERS}
    assert found[0] in gateways and found[1] in routers and found[2] == "reply", found


# --- strangers

def vxlan(vni: int, packet: bytes) -> bytes:
    kind = 0x0800 if packet[0] >> 4 == 4 else 0x86dd
    return struct.pack("!II", 0x08000000, vni << 8) + bytes(12) + struct.pack("!H", kind) + packet


def vni_of(node: FleetNode, name: str) -> int:
    return next(entry["vni"] for entry in node.status()["classes"] if entry["name"] == name)


@FAMILY
def test_tunnel_packet_of_a_stranger_is_refused(dual, pods, family):
    """From an address that is not among `nodes`."""
    pod, node = pods("worker1", "over4"), dual.gateway1
    inner = ip_packet(pod.ip(family), REMOTES[family][0], 17, udp(pod.ip(family), REMOTES[family][0], 5000, 7001))
    before = node.drops().get("unknown_sender", 0)
    with dual.watch([]) as watch:
        send(dual.router, underlay("gateway1", family), TUNNEL, payload=vxlan(vni_of(node, "over4"), inner))
        until(lambda: node.drops().get("unknown_sender", 0) == before + 1, 2)
    assert not watch.arrivals()


@FAMILY
def test_pod_cannot_forge_tunnel_packets(dual, pods, family):
    """Its node has to stop them: to the gateway they would come from the node."""
    pod, victim, node = pods("worker1", "over4"), pods("worker1", "over6"), dual.worker1
    inner = ip_packet(victim.ip(family), REMOTES[family][0], 17, udp(victim.ip(family), REMOTES[family][0], 5000, 7001))
    before = node.drops().get("tunnel_from_pod", 0)
    with dual.watch([]) as watch:
        send(pod, underlay("gateway1", family), TUNNEL, payload=vxlan(vni_of(node, "over6"), inner))
        until(lambda: node.drops().get("tunnel_from_pod", 0) == before + 1, 2)
    assert not watch.arrivals()


# --- the egress IP on the gateway

@FAMILY
def test_egress_ip_is_usable_as_soon_as_apply_returns(make_light_fleet, family):
    """Duplicate detection would keep an IPv6 address from use for a second or two."""
    fleet = make_light_fleet(["worker1", "gateway1"])
    fleet.apply(configuration(egress_class("over4", "gateway1", egressIPs=[egress_ip(7), egress_ip(7, 6)])))
    for node in fleet.gateway1, fleet.worker1:
        seen = ask(node.pod("p", "over4"), REMOTES[family][0], timeout=0.7)
        assert seen and seen.source == egress_ip(7, family)


@FAMILY
def test_egress_ip_that_moves_is_announced_and_neighbours_follow_at_once(make_light_fleet, family):
    """No packet of the new gateway has to pass first: a flow that only receives would not survive the wait."""
    fleet = make_light_fleet(["worker1", "gateway1", "gateway2"])
    address = egress_ip(7, family)
    at = [configuration(egress_class("over4", name, egressIPs=[address])) for name in ("gateway1", "gateway2")]
    fleet.apply(at[0])
    assert ask(fleet.worker1.pod("p", "over4"), REMOTES[family][0]).source == address

    def owner() -> str:
        return fleet.router.neighbours(family, "br0")[address][0]
    assert owner() == fleet.gateway1.mac()
    fleet.apply(at[1], on=["gateway1", "worker1"])
    tap = fleet.taps()["gateway2"]
    tap.discard()
    fleet.apply(at[1], on=["gateway2"])
    until(lambda: owner() == fleet.gateway2.mac(), 1, what=f"{address} is still at {owner()}")
    mine = bytes.fromhex(fleet.gateway2.mac().replace(":", ""))
    sent = [record for record in tap.records() if record.frame[6:12] == mine]
    if family == 4:
        told = [record for record in sent if record.proto == "arp" and record.src == record.dst == address]
        assert told and all(record.frame[:6] == b"\xff" * 6 for record in told)
        return
    told = [record for record in sent if record.proto == "icmp6" and record.info == "type 136" and record.dst == "ff02::1"]
    assert told
    for record in told:
        message = record.frame[14 + 40:]
        assert record.frame[14 + 7] == 255                                  # hop limit: else it counts for nothing
        assert message[4] & 0x60 == 0x20                                    # overrides what is known, and was not solicited
        assert message[8:24] == packed(address) and message[24:32] == bytes([2, 1]) + mine
        assert icmp(6, message[0], message[1], message[4:], record.src, record.dst) == message      # the checksum is right


@FAMILY
def test_each_apply_announces_what_has_been_here_before(make_light_fleet, family):
    """Gateways that hand an egress IP to and fro may be heard in another order than they did it."""
    fleet = make_light_fleet(["worker1", "gateway1"])
    address = egress_ip(7, family)
    fleet.apply(configuration(egress_class("over4", "gateway1", egressIPs=[address])))
    pod = fleet.worker1.pod("p", "over4")
    assert ask(pod, REMOTES[family][0]).source == address
    fleet.router.run(["ip", "neigh", "replace", address, "lladdr", "02:00:00:00:00:99", "dev", "br0", "nud", "reachable"])
    fleet.apply(on=["gateway1"])
    until(lambda: fleet.router.neighbours(family, "br0")[address][0] == fleet.gateway1.mac(), 1, what=f"{address} is still elsewhere")
    assert ask(pod, REMOTES[family][0]).source == address


def test_each_family_is_forwarded_by_a_gateway_that_was_no_router(make_light_fleet):
    """apply makes it one for what it needs; down puts that back."""
    fleet = make_light_fleet(["worker1", "gateway1"])
    node = fleet.gateway1
    node.sysctl(ipv4__conf__all__forwarding=0, ipv6__conf__all__forwarding=0)
    sysctls = "cd /proc/sys/net; grep . ipv4/ip_forward ipv6/conf/all/forwarding ipv[46]/conf/eth0/forwarding ipv6/conf/*/accept_ra"
    clean = node.run(sysctls, check=False).stdout
    fleet.apply(configuration(egress_class("over4", BY4, egressIPs=[egress_ip(7), egress_ip(7, 6)]),
                              egress_class("over6", BY6, egressIPs=[egress_ip(8), egress_ip(8, 6)])))
    for name, number in ("over4", 7), ("over6", 8):
        pod = fleet.worker1.pod(name, name)
        for family in 4, 6:
            seen = ask(pod, REMOTES[family][0])
            assert seen and seen.source == egress_ip(number, family)
    assert node.status()["healthy"], node.status()["problems"]
    node.ctl("down")
    assert node.run(sysctls, check=False).stdout == clean


def test_status_asks_for_the_forwarding_of_the_families_that_the_gateway_needs(make_light_fleet):
    fleet = make_light_fleet(["worker1", "gateway1"])
    node = fleet.gateway1
    node.sysctl(ipv4__conf__all__forwarding=0, ipv6__conf__all__forwarding=0)
    fleet.apply(configuration(egress_class("over6", BY6, egressIPs=[egress_ip(8, 6)])))
    assert node.status()["problems"] == []
    leaves_with(fleet.worker1.pod("p", "over6"), 6, "tcp", egress_ip(8, 6), fleet)
    node.sysctl(ipv6__conf__all__forwarding=0)
    assert len(node.status()["problems"]) == 1 and "net.ipv6.conf.all.forwarding" in node.status()["problems"][0]
    fleet.apply(configuration(egress_class("over6", BY6, egressIPs=[egress_ip(8, 6)])))
    assert node.status()["problems"] == []


# --- nodes without IPv6

def test_worker_with_ipv6_disabled(make_light_fleet):
    """Pods with a class start there, and leave by IPv4."""
    fleet = make_light_fleet(["worker1", "gateway1"], no_ipv6=["worker1"])
    fleet.apply(configuration(egress_class("over4", BY4, egressIPs=[egress_ip(7), egress_ip(7, 6)])))
    pod = fleet.worker1.pod("p", "over4", (4,))
    for proto in "tcp", "udp", "icmp":
        leaves_with(pod, 4, proto, egress_ip(7), fleet)
    fleet.assert_healthy()
    pod.remove()
    fleet.worker1.ctl("down")


def test_worker_whose_kernel_has_no_ipv6_settings(make_light_fleet):
    """As with ipv6.disable=1 on the kernel's command line: nothing is there below /proc/sys/net/ipv6."""
    fleet = make_light_fleet(["worker1", "gateway1"], no_ipv6=["worker1"])
    fleet.worker1.run("mkdir /run/empty; mount --bind /run/empty /proc/sys/net/ipv6")
    fleet.apply(configuration(egress_class("over4", BY4, egressIPs=[egress_ip(7)]), families=(4,)))
    leaves_with(fleet.worker1.pod("p", "over4", (4,)), 4, "tcp", egress_ip(7), fleet)
    fleet.worker1.ctl("down")


def test_gateway_with_ipv6_disabled_serves_ipv4(make_light_fleet):
    fleet = make_light_fleet(["worker1", "gateway1"], no_ipv6=["gateway1"])
    fleet.apply(configuration(egress_class("over4", BY4, egressIPs=[egress_ip(7)])))
    pod = fleet.worker1.pod("p", "over4")
    leaves_with(pod, 4, "udp", egress_ip(7), fleet)
    assert silent(pod, REMOTES[6][0]) and fleet.worker1.drops("over4")["family"]


def test_gateway_with_ipv6_disabled_refuses_an_ipv6_egress_ip(make_light_fleet):
    """With the name of what it cannot have, and as a whole: what was in force stays so."""
    fleet = make_light_fleet(["worker1", "gateway1"], no_ipv6=["gateway1"])
    fleet.apply(configuration(egress_class("over4", BY4, egressIPs=[egress_ip(7)])))
    pod = fleet.worker1.pod("p", "over4")
    with pytest.raises(CommandFailed, match="2001:db8:7::7"):
        fleet.apply(configuration(egress_class("over4", BY4, egressIPs=[egress_ip(7), egress_ip(7, 6)])), on=["gateway1"])
    leaves_with(pod, 4, "tcp", egress_ip(7), fleet)


# --- other settings of nodes

@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_reverse_path_filter_of_any_kind_is_no_obstacle(make_light_fleet, rp_filter):
    fleet = make_light_fleet(["worker1", "gateway1"], rp_filter=rp_filter)
    fleet.apply(configuration(egress_class("over4", BY4, egressIPs=[egress_ip(7), egress_ip(7, 6)]),
                              egress_class("over6", BY6, egressIPs=[egress_ip(8), egress_ip(8, 6)])))
    for node in fleet.worker1, fleet.gateway1:
        for name, number in ("over4", 7), ("over6", 8):
            pod = node.pod(name, name)
            for family in 4, 6:
                leaves_with(pod, family, "tcp", egress_ip(number, family), fleet)


def test_offloads_of_checksums_and_segments_left_on(make_light_fleet):
    fleet = make_light_fleet(["worker1", "gateway1"], offload=True)
    fleet.apply(configuration(egress_class("over4", BY4, egressIPs=[egress_ip(7), egress_ip(7, 6)]),
                              egress_class("over6", BY6, egressIPs=[egress_ip(8), egress_ip(8, 6)])))
    for name, number in ("over4", 7), ("over6", 8):
        pod = fleet.worker1.pod(name, name)
        for family in 4, 6:
            leaves_with(pod, family, "udp", egress_ip(number, family), fleet)
            assert transfer(pod, REMOTES[family][0], 1_000_000) == (egress_ip(number, family), 1_000_000, 1_000_000)
