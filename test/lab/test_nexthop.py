# SPDX-License-Identifier: Apache-2.0
""""via": "nexthop": packets of the class go, as the pod sent them, to a router on the link that is none of ours. It sees the pod's address
and may translate it or not; whoever looks at what the node sends sees the class's mark."""
from __future__ import annotations

from contextlib import closing

import pytest
from labkit.capture import Record
from light_fleet import MARK_MASK, REMOTES, FleetNode, FleetPod, LightFleet, Tap, configuration, egress_class, egress_ip, gateway, underlay, until
from traffic import Flows, Stream, ask, ask_many, knock, opened, ping, send, transfer

FAMILY = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
PROTO = pytest.mark.parametrize("proto", ["tcp", "udp", "icmp"])
TUNNEL = 8479
HOPS = [gateway("appliance", family, via="nexthop") for family in (4, 6)]


def via(**keys) -> dict:
    """A class that has a next hop for each family."""
    return egress_class("via", *HOPS, **keys)


def up(make, **options) -> LightFleet:
    fleet = make(["worker1", "gateway1"], appliance=True, **options)
    fleet.apply(configuration(via()))
    return fleet


@pytest.fixture(scope="module")
def plain() -> LightFleet:
    """The appliance does no NAT, and is the way to the pods for the router, as it must be then."""
    with LightFleet(["worker1", "worker2"], appliance=True) as fleet:
        fleet.pods_via_appliance()
        fleet.apply(configuration(via()))
        fleet.assert_healthy()
        yield fleet


@pytest.fixture(scope="module")
def pod(plain) -> FleetPod:
    return plain.worker1.pod("p", "via")


def exchange(pod: FleetPod, family: int, proto: str, number: int = 0) -> str:
    """The source that outside saw; of a ping, "reply"."""
    if proto == "icmp":
        return ping(pod, REMOTES[family][number])
    seen = ask(pod, REMOTES[family][number], proto=proto)
    return seen.source if seen else ""


def ttl(record: Record) -> int:
    return record.frame[14 + 8] if record.frame[14] >> 4 == 4 else record.frame[14 + 7]


# --- on the wire

@PROTO
@FAMILY
def test_source_is_the_pods_and_the_way_leads_over_the_next_hop(plain, pod, family, proto):
    """No translation by us, no tunnel, frames for the appliance, one hop less to live."""
    node = plain.worker1
    before = node.traffic("via")
    with plain.watch([pod.ip(family)]) as watch:
        assert exchange(pod, family, proto) == ("reply" if proto == "icmp" else pod.ip(family))
    watch.assert_no_leak(["outside", "worker1", "appliance"])
    sent = watch.arrivals("worker1")
    assert {record.src for record in sent} == {pod.ip(family)}
    assert {record.frame[:6].hex(":") for record in sent} == {plain.appliance.mac()}
    assert {record.frame[6:12].hex(":") for record in sent} == {node.mac()}
    assert {ttl(record) for record in sent} == {63}
    assert not [record for record in watch.records["worker1"] if record.proto == "udp" and record.dport == TUNNEL]
    after = node.traffic("via")
    assert after["steered_nexthop"] - before.get("steered_nexthop", 0) == len(sent)
    assert after["returned"] > before.get("returned", 0)


@FAMILY
def test_mark_of_the_class_is_on_the_packets_that_leave(plain, pod, family):
    """Whoever filters or shapes on the node tells the class by it."""
    node: FleetNode = plain.worker1
    with closing(Tap(node, mark=(node.mark("via"), MARK_MASK))) as tap:
        with plain.watch([pod.ip(family)]) as watch:
            assert exchange(pod, family, "tcp") == pod.ip(family)
        of_class = [record for record in tap.records() if record.src == pod.ip(family)]
    assert len(of_class) == len(watch.arrivals("worker1")) > 0


def invalid(node: FleetNode) -> int:
    return int(node.run("nft list counter inet kube-proxy invalid").stdout.split("packets ")[1].split()[0])


@PROTO
@FAMILY
def test_replies_pass_a_node_that_drops_what_conntrack_does_not_know(plain, pod, family, proto):
    """As kube-proxy makes it; the way out was none that conntrack saw."""
    before = invalid(plain.worker1)
    assert exchange(pod, family, proto, 1) == ("reply" if proto == "icmp" else pod.ip(family))
    if proto != "icmp":
        port = 7001
        assert len({seen and seen.source for seen in ask_many(pod, REMOTES[family], 50, port, proto)}) == 1
    assert invalid(plain.worker1) == before


@FAMILY
def test_large_transfers_both_ways(plain, pod, family):
    assert transfer(pod, REMOTES[family][0], 1_000_000) == (pod.ip(family), 1_000_000, 1_000_000)


@FAMILY
def test_fragmented_datagrams_both_ways(plain, pod, family):
    """The answer of LONG_PORT is as long as the question."""
    with plain.watch([pod.ip(family)]) as watch:
        seen = ask(pod, REMOTES[family][0], 7005, "udp", payload=b"x" * 4000)
        assert seen and seen.source == pod.ip(family)
        assert ping(pod, REMOTES[family][1], size=4000) == "reply"
    watch.assert_no_leak()


@FAMILY
def test_traceroute_shows_node_and_appliance(plain, pod, family):
    kind = {4: "type 11", 6: "type 3"}[family] + " code 0 from "
    found = [ping(pod, REMOTES[family][0], ttl=number, timeout=0.5) for number in range(1, 5)]
    assert found[0].startswith(kind) and found[1] == kind + underlay("appliance", family) and found[2].startswith(kind), found
    assert found[3] == "reply"


@FAMILY
def test_error_of_the_network_reaches_the_pod(plain, pod, family):
    with opened(pod, REMOTES[family][0]) as client:
        client.settimeout(2)
        client.connect((REMOTES[family][0], 7999))
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(99)


@FAMILY
def test_inbound_flows_are_answered_by_the_way_they_came(plain, pod, family):
    """Conntrack knows these, so the answers take the node's own routes: to its default router, not to the appliance."""
    with plain.watch([pod.ip(family)]) as watch:
        for proto in "tcp", "udp":
            assert knock(plain.outside, pod, pod.ip(family), proto) == pod.ip(family)
    answers = watch.arrivals("worker1")
    assert answers and plain.appliance.mac() not in {record.frame[:6].hex(":") for record in answers}


def test_pods_without_the_class_take_no_notice(plain):
    other = plain.worker1.pod("u", "none")
    for family in 4, 6:
        with plain.watch([underlay("worker1", family)]) as watch:
            assert exchange(other, family, "tcp") == underlay("worker1", family)
        watch.assert_no_leak()
        assert not watch.arrivals("appliance")


# --- other surroundings

@FAMILY
@PROTO
def test_replies_that_come_by_another_router_reach_the_pod(make_light_fleet, family, proto):
    """The router sends them straight to the node: the way back is not the way out."""
    fleet = up(make_light_fleet)
    pod = fleet.worker1.pod("p", "via")
    assert exchange(pod, family, proto) == ("reply" if proto == "icmp" else pod.ip(family))


@PROTO
@FAMILY
def test_appliance_that_translates(make_light_fleet, family, proto):
    fleet = up(make_light_fleet)
    fleet.appliance_nat()
    pod = fleet.worker1.pod("p", "via")
    with fleet.watch([underlay("appliance", family)]) as watch:
        assert exchange(pod, family, proto) == ("reply" if proto == "icmp" else underlay("appliance", family))
    assert {record.src for record in watch.arrivals()} == {underlay("appliance", family)}


@pytest.mark.parametrize("rp_filter", [1, 2])
def test_reverse_path_filter_is_no_obstacle(make_light_fleet, rp_filter):
    fleet = up(make_light_fleet, rp_filter=rp_filter)
    fleet.pods_via_appliance()
    pod = fleet.worker1.pod("p", "via")
    for proto in "tcp", "udp":
        assert exchange(pod, 4, proto) == pod.v4


def test_next_hop_of_one_family_drops_the_other(make_light_fleet):
    fleet = make_light_fleet(["worker1"], appliance=True)
    fleet.apply(configuration(egress_class("via", HOPS[0]), egress_class("pass", HOPS[0], otherFamily="bypass")))
    fleet.pods_via_appliance()
    pod, other = (fleet.worker1.pod(name, name) for name in ("via", "pass"))
    assert exchange(pod, 4, "udp") == pod.v4 and exchange(other, 4, "udp") == other.v4
    with fleet.watch([]) as watch:
        assert ask(pod, REMOTES[6][0], proto="udp", timeout=0.1) is None
    assert not watch.arrivals() and fleet.worker1.drops("via")["family"] == 1
    assert exchange(other, 6, "udp") == underlay("worker1", 6)


@FAMILY
def test_next_hop_and_gateway_of_ours_share_a_class(make_light_fleet, family):
    fleet = make_light_fleet(["worker1", "gateway1"], appliance=True)
    fleet.apply(configuration(egress_class("via", HOPS[family == 6], gateway("gateway1", egressIPs=[egress_ip(7, family)]), spread="flow")))
    fleet.pods_via_appliance()
    pod = fleet.worker1.pod("p", "via")
    with fleet.watch([pod.ip(family), egress_ip(7, family)]) as watch:
        assert {seen and seen.source for seen in ask_many(pod, REMOTES[family], 40)} == {pod.ip(family), egress_ip(7, family)}
        assert {seen and seen.source for seen in ask_many(pod, REMOTES[family], 40, proto="tcp")} == {pod.ip(family), egress_ip(7, family)}
    watch.assert_no_leak()


@FAMILY
def test_datagram_too_long_for_the_link_is_answered_with_its_mtu(make_light_fleet, family):
    fleet = make_light_fleet(["worker1"], appliance=True, mtu={"worker1": 1400})
    fleet.apply(configuration(via()))
    fleet.pods_via_appliance()
    pod = fleet.worker1.pod("p", "via")
    with fleet.watch([pod.ip(family)]) as watch:
        assert ping(pod, REMOTES[family][0], size=1450, df=True).startswith({4: "type 3 code 4 ", 6: "type 2 code 0 "}[family])
    assert not watch.arrivals()
    assert fleet.worker1.traffic("via")["too_big"] == 1
    assert transfer(pod, REMOTES[family][0], 300_000) == (pod.ip(family), 300_000, 300_000)


# --- a next hop that is not there

def unreachable(fleet: LightFleet, family: int) -> str:
    return next(entry["state"] for entry in fleet.worker1.status()["gateways"] if entry["address"] == underlay("appliance", family))


@FAMILY
@pytest.mark.parametrize("known", [False, True], ids=["that never was", "that was there before"])
def test_neighbour_that_does_not_answer_closes_the_class_until_it_does(make_light_fleet, family, known):
    """Counted, and nothing leaves by any other way."""
    fleet = up(make_light_fleet)
    fleet.pods_via_appliance()
    node, pod = fleet.worker1, fleet.worker1.pod("p", "via")
    if known:
        assert exchange(pod, family, "udp") == pod.ip(family)
    with fleet.watch([]) as watch:
        fleet.cut("appliance")
        node.run("ip neigh flush dev eth0")     # what it knew would last for half a minute
        with Stream(pod, REMOTES[family][0], "udp", 50):      # one packet in 250 ms goes all the same: it makes the kernel ask
            until(lambda: node.drops("via").get("gateway_unreachable"), 3, 0.05, what="gateway_unreachable was never counted")
        assert unreachable(fleet, family) == "unreachable"
        for proto in "tcp", "udp", "icmp":
            if proto == "icmp":
                assert ping(pod, REMOTES[family][0], timeout=0.05) != "reply"
            else:
                assert ask(pod, REMOTES[family][0], proto=proto, timeout=0.05) is None
    assert not watch.arrivals("outside") and not watch.arrivals("worker1")
    fleet.mend("appliance")
    with fleet.watch([pod.ip(family)]) as watch:
        until(lambda: ask(pod, REMOTES[family][0], proto="udp", timeout=0.1) and unreachable(fleet, family) == "reachable", 4,
              what="the next hop does not come back")
    watch.assert_no_leak()


@FAMILY
def test_neighbour_that_dies_under_traffic_and_comes_back(make_light_fleet, family):
    fleet = up(make_light_fleet)
    fleet.pods_via_appliance()
    node, pod = fleet.worker1, fleet.worker1.pod("p", "via")
    with fleet.watch([pod.ip(family)]) as watch, Stream(pod, REMOTES[family][0], "udp", 100) as stream:
        stream.wait_seen(5)
        fleet.cut("appliance")
        node.run("ip neigh flush dev eth0")
        until(lambda: node.drops("via").get("gateway_unreachable"), 3)
        fleet.mend("appliance")
        stream.wait_seen(10, 4)
    watch.assert_no_leak()
    assert stream.sources == {pod.ip(family)}


@FAMILY
def test_new_flows_take_another_gateway_while_the_next_hop_is_dead(make_light_fleet, family):
    fleet = make_light_fleet(["worker1", "gateway1"], appliance=True)
    fleet.apply(configuration(egress_class("via", HOPS[family == 6], gateway("gateway1", egressIPs=[egress_ip(7, family)]), spread="flow")))
    fleet.cut("appliance")
    pod = fleet.worker1.pod("p", "via")
    until(lambda: send(pod, REMOTES[family][0], 7001, count=3) or unreachable(fleet, family) == "unreachable", 5)
    with fleet.watch([egress_ip(7, family)]) as watch, Flows(pod, REMOTES[family], 20) as flows:
        send(pod, REMOTES[family][0], 7001)         # the one packet in 250 ms that goes to the next hop, to ask
        found = flows.ask(1)
        assert {seen and seen.source for seen in found} == {egress_ip(7, family)}
    watch.assert_no_leak()
