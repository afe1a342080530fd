# SPDX-License-Identifier: Apache-2.0
"""Several gateways of a class, and several egress IPs on one: who gets which, that it stays so, and what a change or a death moves."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import pytest
from light_fleet import GATEWAYS, REMOTES, FleetPod, LightFleet, configuration, egress_class, egress_ip, gateway, underlay, until
from traffic import Flows, Seen, Stream, ask, ask_many, ping, shares

FAMILY = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
SPREAD = pytest.mark.parametrize("spread", ["pod", "flow"])
NUMBERS = dict(zip(GATEWAYS, (7, 8, 9)))        # of the egress IPs of each
SPORTS = range(20000, 21000)
FLEET = ["worker1", *GATEWAYS]


def own(name: str, by: int = 4, families: Collection[int] = (4, 6)) -> dict:
    """A gateway with egress IPs of its own, reached over one family."""
    return gateway(name, by, egressIPs=[egress_ip(NUMBERS[name], family) for family in families])


def web(names: Collection[str] = GATEWAYS, **keys) -> dict:
    return configuration(egress_class("web", *map(own, names), **keys))


def ips(names: Collection[str], family: int) -> set[str]:
    return {egress_ip(NUMBERS[name], family) for name in names}


def sources(found: list[Seen | None]) -> list[str]:
    """All of them have to be there."""
    assert None not in found, f"{found.count(None)} of {len(found)} had no answer"
    return [seen.source for seen in found]


def make_pods(node, count: int, name: str = "web") -> list[FleetPod]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda number: node.pod(f"p{number}", name, last=10 + number), range(count)))


def on_interface(node) -> set[str]:
    """Egress IPs that a node has."""
    addresses = json.loads(node.run(["ip", "-j", "addr", "show", "dev", "eth0"]).stdout)[0]["addr_info"]
    return {entry["local"] for entry in addresses if entry["local"].startswith(("203.0.113.", "2001:db8:7:"))}


def state(node, address: str) -> str:
    return next((entry["state"] for entry in node.status()["gateways"] if entry["address"] == address), "")


# --- choice

@pytest.fixture(scope="module")
def three() -> LightFleet:
    """Three gateways of their own addresses each, for classes of either spread, and 24 pods of each."""
    with LightFleet(FLEET) as fleet:
        fleet.apply(configuration(
            egress_class("pod", *(gateway(name, egressIPs=[egress_ip(n), egress_ip(n, 6)]) for name, n in NUMBERS.items())),
            egress_class("flow", *(gateway(name, egressIPs=[egress_ip(n + 10), egress_ip(n + 10, 6)]) for name, n in NUMBERS.items()),
                         spread="flow")))
        fleet.assert_healthy()
        yield fleet


def test_each_gateway_has_its_own_egress_ips_and_no_other(three):
    for name, number in NUMBERS.items():
        assert on_interface(getattr(three, name)) == {egress_ip(n, family) for n in (number, number + 10) for family in (4, 6)}
    assert on_interface(three.worker1) == set()


@FAMILY
def test_each_pod_has_one_gateway_and_all_gateways_have_pods(three, family):
    """Whatever the destination, the port, and the protocol."""
    pods = [three.worker1.pod(f"{family}p{number}", "pod", last=20 * family + number) for number in range(18)]
    chosen = Counter()
    with three.watch(ips(GATEWAYS, family)) as watch:
        for pod in pods:
            found = set(sources(ask_many(pod, REMOTES[family], 10) + ask_many(pod, REMOTES[family], 5, proto="tcp")))
            assert len(found) == 1, found
            chosen += Counter(found)
            assert ping(pod, REMOTES[family][0]) == "reply"
    watch.assert_no_leak()
    assert set(chosen) == ips(GATEWAYS, family), chosen


@FAMILY
def test_flows_of_a_pod_are_shared_within_ten_percent_and_each_keeps_its_gateway(three, family):
    """1000 flows of a pod; the ports and addresses are always the same, so that chance has no part in it."""
    pod = three.worker1.pod(f"f{family}", "flow", last=200 + family)
    expected = {egress_ip(n + 10, family) for n in NUMBERS.values()}
    with three.watch(expected) as watch, Flows(pod, REMOTES[family], 1000, sports=SPORTS) as flows:
        first = sources(flows.ask())
        assert sources(flows.ask()) == first
    watch.assert_no_leak()
    counts = Counter(first)
    assert set(counts) == expected
    assert all(abs(count - 1000 / 3) <= 100 / 3 for count in counts.values()), counts


@FAMILY
def test_tcp_connections_are_shared_too(three, family):
    pod = three.worker1.pod(f"t{family}", "flow", last=210 + family)
    with Flows(pod, REMOTES[family], 150, proto="tcp") as flows:
        first = sources(flows.ask())
        assert sources(flows.ask()) == first
    assert set(first) == {egress_ip(n + 10, family) for n in NUMBERS.values()}
    assert min(Counter(first).values()) > 25


@FAMILY
def test_pings_of_a_pod_are_answered_whichever_gateway_each_takes(three, family):
    pod = three.worker1.pod(f"i{family}", "flow", last=220 + family)
    with three.watch({egress_ip(n + 10, family) for n in NUMBERS.values()}) as watch:
        assert [ping(pod, to) for to in REMOTES[family] for _ in range(4)] == ["reply"] * 20
    watch.assert_no_leak()


@FAMILY
def test_gateway_that_is_the_pods_own_node_is_one_of_several(three, family):
    """It takes its share, and the pod's other flows go to other gateways by the tunnel."""
    pod = three.gateway2.pod(f"g{family}", "flow", last=30 + family)
    with three.watch({egress_ip(n + 10, family) for n in NUMBERS.values()}) as watch:
        counts = shares(ask_many(pod, REMOTES[family], 150))
    watch.assert_no_leak()
    assert set(counts) == {egress_ip(n + 10, family) for n in NUMBERS.values()} and min(counts.values()) > 25, counts


# --- dealing out

def test_egress_ips_of_the_class_are_dealt_out_in_order(make_light_fleet):
    """Per family, to gateways that have none of their own; a gateway without an address of a family takes no traffic of it."""
    fleet = make_light_fleet(FLEET)
    fleet.apply(configuration(egress_class(
        "web", *GATEWAYS, egressIPs=["203.0.113.41", "2001:db8:7::41", "203.0.113.42", "203.0.113.43", "203.0.113.44", "203.0.113.45"],
        spread="flow")))
    assert [on_interface(getattr(fleet, name)) for name in GATEWAYS] == [
        {"203.0.113.41", "203.0.113.44", "2001:db8:7::41"}, {"203.0.113.42", "203.0.113.45"}, {"203.0.113.43"}]
    for node in fleet.worker1, fleet.gateway3:
        pod = node.pod("p", "web")
        assert set(sources(ask_many(pod, REMOTES[6], 60))) == {"2001:db8:7::41"}
        found = set(sources(ask_many(pod, REMOTES[4], 60)))
        assert found & {"203.0.113.41", "203.0.113.44"} and found & {"203.0.113.42", "203.0.113.45"} and "203.0.113.43" in found


def test_gateway_with_its_own_egress_ips_is_dealt_none(make_light_fleet):
    fleet = make_light_fleet(FLEET)
    fleet.apply(configuration(egress_class("web", "gateway1", own("gateway2", families=(4,)), "gateway3",
                                           egressIPs=["203.0.113.41", "2001:db8:7::41", "203.0.113.42"])))
    assert [on_interface(getattr(fleet, name)) for name in GATEWAYS] == [
        {"203.0.113.41", "2001:db8:7::41"}, {"203.0.113.8"}, {"203.0.113.42"}]


@FAMILY
def test_gateways_of_one_class_may_be_reached_over_different_families(make_light_fleet, family):
    fleet = make_light_fleet(FLEET)
    fleet.apply(configuration(egress_class("web", own("gateway1", 4), own("gateway2", 6), spread="flow")))
    expected = ips(("gateway1", "gateway2"), family)
    with fleet.watch(expected) as watch:
        assert set(sources(ask_many(fleet.worker1.pod("p", "web"), REMOTES[family], 40))) == expected
    watch.assert_no_leak()


# --- several egress IPs on one gateway

@FAMILY
@pytest.mark.parametrize("node", ["worker1", "gateway1"], ids=["by tunnel", "on the gateway"])
def test_several_egress_ips_of_a_gateway_each_pod_has_one(make_light_fleet, node, family):
    fleet = make_light_fleet(["worker1", "gateway1"])
    wanted = [egress_ip(number, family) for number in (7, 8, 9)]
    fleet.apply(configuration(egress_class("web", gateway("gateway1", egressIPs=wanted))))
    chosen = Counter()
    with fleet.watch(wanted) as watch:
        for pod in make_pods(getattr(fleet, node), 16):
            found = set(sources(ask_many(pod, REMOTES[family], 10) + ask_many(pod, REMOTES[family], 5, proto="tcp")))
            assert len(found) == 1, found
            chosen += Counter(found)
            assert ping(pod, REMOTES[family][0]) == "reply"
    watch.assert_no_leak()
    assert set(chosen) == set(wanted), chosen


# --- change

def choices(fleet: LightFleet, gateways: Collection[str], family: int) -> list[str]:
    """Which egress IP each of 1000 flows of a pod gets that nobody has seen before."""
    fleet.apply(web(gateways, spread="flow"))
    pod = fleet.worker1.pod("p", "web", last=5)
    return sources(ask_many(pod, REMOTES[family], 1000, sports=SPORTS))


@FAMILY
def test_one_gateway_less_moves_its_flows_and_no_others(make_light_fleet, family):
    """The same new flows in a fleet that has three gateways and in one that has two of them: those of the third, about one of three, are
    spread over the others; the rest goes where it went."""
    with ThreadPoolExecutor(2) as pool:
        before, after = pool.map(lambda names: choices(make_light_fleet(FLEET), names, family), (GATEWAYS, GATEWAYS[:2]))
    gone = egress_ip(NUMBERS["gateway3"], family)
    moved = [(old, new) for old, new in zip(before, after) if old != new]
    assert {old for old, _ in moved} == {gone}
    assert 250 <= len(moved) <= 420, len(moved)
    assert len(moved) == before.count(gone)
    there = Counter(new for _, new in moved)
    assert set(there) == ips(GATEWAYS[:2], family) and min(there.values()) > len(moved) / 3


@FAMILY
def test_one_gateway_less_moves_its_pods_and_no_others(make_light_fleet, family):
    fleet = make_light_fleet(FLEET)
    fleet.apply(web())
    pods = make_pods(fleet.worker1, 18)
    before = [ask(pod, REMOTES[family][0]).source for pod in pods]
    fleet.apply(web(GATEWAYS[:2]), on=["worker1"])      # first who sends
    fleet.apply(web(GATEWAYS[:2]), on=GATEWAYS)
    after = [ask(pod, REMOTES[family][0]).source for pod in pods]
    gone = egress_ip(NUMBERS["gateway3"], family)
    assert gone in before and gone not in after
    assert all(old in (new, gone) for old, new in zip(before, after))
    assert on_interface(fleet.gateway3) == set()


@FAMILY
@SPREAD
def test_open_flows_stay_where_they_are_when_a_gateway_comes(make_light_fleet, spread, family):
    """New ones take it in; no answer of an open one is lost meanwhile."""
    fleet = make_light_fleet(FLEET)
    fleet.apply(web(GATEWAYS[:2], spread=spread))
    pods = make_pods(fleet.worker1, 12)
    with fleet.watch(ips(GATEWAYS, family)) as watch, Stream(pods[0], REMOTES[family][0], "udp", 300) as datagrams, \
            Stream(pods[1], REMOTES[family][1], "tcp", 300) as stream:
        flows = [Flows(pod, REMOTES[family], 5, proto=proto) for pod in pods for proto in ("udp", "tcp")]
        before = [sources(flow.ask()) for flow in flows]
        fleet.apply(web(spread=spread), on=["gateway3"])        # first who takes
        fleet.apply(web(spread=spread), on=["worker1", *GATEWAYS[:2]])
        after = [sources(flow.ask()) for flow in flows]
        new = [source for pod in pods for source in sources(ask_many(pod, REMOTES[family], 10))]
        for flow in flows:
            flow.__exit__()
    watch.assert_no_leak()
    assert after == before
    assert egress_ip(NUMBERS["gateway3"], family) in new
    for one in datagrams, stream:
        assert one.lost == [] and len(one.sources) == 1 and not one.error and one.sent > 30


# --- death

def pod_of(fleet: LightFleet, name: str, family: int, pods: list[FleetPod]) -> FleetPod:
    """One whose gateway is this."""
    wanted = egress_ip(NUMBERS[name], family)
    for pod in pods:
        seen = ask(pod, REMOTES[family][0], proto="udp")
        if seen and seen.source == wanted:
            return pod
    raise AssertionError(f"no pod has {name}")


@FAMILY
@pytest.mark.parametrize("by", [4, 6], ids=["tunnel over IPv4", "tunnel over IPv6"])
def test_new_flows_avoid_a_dead_gateway_and_come_back_to_it(make_light_fleet, by, family):
    fleet = make_light_fleet(FLEET)
    names = GATEWAYS[:2]
    fleet.apply(configuration(egress_class("web", *(own(name, by) for name in names))))
    node, pods = fleet.worker1, make_pods(fleet.worker1, 12)
    victim, other = (pod_of(fleet, name, family, pods) for name in names)
    dead, alive = (egress_ip(NUMBERS[name], family) for name in names)
    with fleet.watch({dead, alive}) as watch, Stream(other, REMOTES[family][1], "udp", 200) as bystander:
        fleet.cut("gateway1")
        seen = until(lambda: ask(victim, REMOTES[family][0], proto="udp", timeout=0.15), 3, what="no flow found the other gateway")
        assert seen.source == alive
        assert state(node, underlay("gateway1", by)) == "unreachable"
        assert state(node, underlay("gateway2", by)) == "reachable"
        assert ask(victim, REMOTES[family][0]).source == alive
        fleet.mend("gateway1")
        until(lambda: (ask(victim, REMOTES[family][0], proto="udp", timeout=0.15) or (alive,))[0] == dead, 3,
              what="no flow came back to the gateway")
    watch.assert_no_leak()
    assert bystander.lost == [] and bystander.sources == {alive}


@FAMILY
def test_open_flow_of_a_dead_gateway_goes_on_by_another_and_stays_there(make_light_fleet, family):
    fleet = make_light_fleet(FLEET)
    names = GATEWAYS[:2]
    fleet.apply(web(names))
    victim = pod_of(fleet, "gateway1", family, make_pods(fleet.worker1, 12))
    dead, alive = (egress_ip(NUMBERS[name], family) for name in names)
    with fleet.watch({dead, alive}) as watch, Stream(victim, REMOTES[family][0], "udp", 100) as stream:
        stream.wait_seen(5)
        assert stream.sources == {dead}
        fleet.cut("gateway1")
        until(lambda: alive in stream.sources, 3, what="the flow did not move")
        fleet.mend("gateway1")
        until(lambda: (ask(victim, REMOTES[family][1], timeout=0.15) or (alive,))[0] == dead, 3, what="the gateway does not come back")
        at = stream.sent
        until(lambda: stream.sent >= at + 20)
    watch.assert_no_leak()
    assert {stream.seen[number].source for number in range(at, at + 20)} == {alive}


@FAMILY
@SPREAD
def test_nothing_leaves_while_all_gateways_are_dead(make_light_fleet, spread, family):
    fleet = make_light_fleet(FLEET)
    names = GATEWAYS[:2]
    fleet.apply(web(names, spread=spread))
    node, pod = fleet.worker1, fleet.worker1.pod("p", "web")
    assert ask(pod, REMOTES[family][0])
    with fleet.watch(()) as watch:
        for name in names:
            fleet.cut(name)
        until(lambda: ask(pod, REMOTES[family][0], proto="udp", timeout=0.05) is None
              and node.drops("web").get("gateway_unreachable"), 4)
        assert {state(node, underlay(name)) for name in names} == {"unreachable"}
    assert not watch.arrivals("outside") and not watch.arrivals("worker1")
    fleet.mend("gateway2")
    seen = until(lambda: ask(pod, REMOTES[family][0], timeout=0.15), 3)
    assert seen.source == egress_ip(NUMBERS["gateway2"], family)


@FAMILY
def test_flows_of_a_removed_gateway_do_not_leave_with_another_source_than_the_class_has(make_light_fleet, family):
    """A datagram flow goes on by another gateway; of the removed one nothing more is seen."""
    fleet = make_light_fleet(FLEET)
    names = GATEWAYS[:2]
    fleet.apply(web(names))
    victim = pod_of(fleet, "gateway1", family, make_pods(fleet.worker1, 12))
    gone, left = (egress_ip(NUMBERS[name], family) for name in names)
    with fleet.watch({gone, left}) as watch, Stream(victim, REMOTES[family][0], "udp", 100) as stream:
        stream.wait_seen(5)
        fleet.apply(web(["gateway2"]))
        at = stream.sent
        stream.wait_seen(10)
        until(lambda: stream.sent >= at + 10)
    watch.assert_no_leak()
    assert {stream.seen[number].source for number in range(at, at + 10) if number in stream.seen} == {left}
    assert len(stream.lost) < 20
