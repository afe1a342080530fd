# SPDX-License-Identifier: Apache-2.0
"""Several gateways of a class, and several egress IPs on one: who gets which, that it stays so, and what a change or a death moves."""
from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

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
        assert getattr(three, name).held() == {egress_ip(n, family) for n in (number, number + 10) for family in (4, 6)}
    assert three.worker1.held() == set()


def each_has_one(pods: list[FleetPod], family: int) -> set[str]:
    """The sources that pods have, each a single one, whatever the destination, the port, and the protocol."""
    chosen = set()
    for pod in pods:
        found = set(sources(ask_many(pod, REMOTES[family], 10) + ask_many(pod, REMOTES[family], 5, proto="tcp")))
        assert len(found) == 1, found
        chosen |= found
        assert ping(pod, REMOTES[family][0]) == "reply"
    return chosen


def test_each_pod_has_one_gateway_and_all_gateways_have_pods(three):
    pods = make_pods(three.worker1, 18, "pod")
    for family in 4, 6:
        with three.watch(ips(GATEWAYS, family)) as watch:
            chosen = each_has_one(pods, family)
        watch.assert_no_leak()
        assert chosen == ips(GATEWAYS, family)
        assert {record.src for record in watch.arrivals(proto="icmp" if family == 4 else "icmp6")} == chosen


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
    assert [getattr(fleet, name).held() for name in GATEWAYS] == [
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
    assert [getattr(fleet, name).held() for name in GATEWAYS] == [
        {"203.0.113.41", "2001:db8:7::41"}, {"203.0.113.8"}, {"203.0.113.42"}]


def test_gateways_of_one_class_may_be_reached_over_different_families(make_light_fleet):
    fleet = make_light_fleet(FLEET)
    fleet.apply(configuration(egress_class("web", own("gateway1", 4), own("gateway2", 6), spread="flow")))
    pod = fleet.worker1.pod("p", "web")
    for family in 4, 6:
        expected = ips(("gateway1", "gateway2"), family)
        with fleet.watch(expected) as watch:
            assert set(sources(ask_many(pod, REMOTES[family], 40))) == expected
        watch.assert_no_leak()


# --- several egress IPs on one gateway

@pytest.mark.parametrize("node", ["worker1", "gateway1"], ids=["by tunnel", "on the gateway"])
def test_several_egress_ips_of_a_gateway_each_pod_has_one(make_light_fleet, node):
    fleet = make_light_fleet(["worker1", "gateway1"])
    wanted = {family: [egress_ip(number, family) for number in (7, 8, 9)] for family in (4, 6)}
    fleet.apply(configuration(egress_class("web", gateway("gateway1", egressIPs=wanted[4] + wanted[6]))))
    pods = make_pods(getattr(fleet, node), 16)
    for family in 4, 6:
        with fleet.watch(wanted[family]) as watch:
            chosen = each_has_one(pods, family)
        watch.assert_no_leak()
        assert chosen == set(wanted[family])


# --- change

BOTH = (4, 6)


def choices(fleet: LightFleet, gateways: Collection[str]) -> dict[int, list[str]]:
    """Which egress IP each of 1000 flows of a pod gets that nobody has seen before; by family."""
    fleet.apply(web(gateways, spread="flow"))
    pod = fleet.worker1.pod("p", "web", last=5)
    return {family: sources(ask_many(pod, REMOTES[family], 1000, sports=SPORTS)) for family in BOTH}


def test_one_gateway_less_moves_its_flows_and_no_others(make_light_fleet):
    """The same new flows in a fleet that has three gateways and in one that has two of them: those of the third, about one of three, are
    spread over the others; the rest goes where it went."""
    with ThreadPoolExecutor(2) as pool:
        three, two = pool.map(lambda names: choices(make_light_fleet(FLEET), names), (GATEWAYS, GATEWAYS[:2]))
    for family in BOTH:
        before, gone = three[family], egress_ip(NUMBERS["gateway3"], family)
        moved = [(old, new) for old, new in zip(before, two[family]) if old != new]
        assert {old for old, _ in moved} == {gone}
        assert 250 <= len(moved) <= 420, len(moved)
        assert len(moved) == before.count(gone)
        there = Counter(new for _, new in moved)
        assert set(there) == ips(GATEWAYS[:2], family) and min(there.values()) > len(moved) / 3


def test_one_gateway_less_moves_its_pods_and_no_others(make_light_fleet):
    fleet = make_light_fleet(FLEET)
    fleet.apply(web())
    pods = make_pods(fleet.worker1, 18)

    def asked() -> list[tuple[int, str]]:
        return [(family, ask(pod, REMOTES[family][0]).source) for family in BOTH for pod in pods]
    before = asked()
    fleet.apply(web(GATEWAYS[:2]), on=["worker1"])      # first who sends
    fleet.apply(web(GATEWAYS[:2]), on=GATEWAYS)
    for (family, old), (_, new) in zip(before, asked()):
        gone = egress_ip(NUMBERS["gateway3"], family)
        assert (family, gone) in before and new != gone and old in (new, gone)
    assert fleet.gateway3.held() == set()


@SPREAD
def test_open_flows_stay_where_they_are_when_a_gateway_comes(make_light_fleet, spread):
    """New ones take it in; no answer of an open one is lost meanwhile."""
    fleet = make_light_fleet(FLEET)
    fleet.apply(web(GATEWAYS[:2], spread=spread))
    pods = make_pods(fleet.worker1, 12)
    with ExitStack() as stack:
        watch = stack.enter_context(fleet.watch(ips(GATEWAYS, 4) | ips(GATEWAYS, 6)))
        streams = [stack.enter_context(Stream(pod, REMOTES[family][0], proto, 200))
                   for family in BOTH for pod, proto in ((pods[0], "udp"), (pods[1], "tcp"))]
        flows = [stack.enter_context(Flows(pod, REMOTES[family], 5, proto=proto))
                 for family in BOTH for pod in pods for proto in ("udp", "tcp")]
        before = [sources(flow.ask()) for flow in flows]
        fleet.apply(web(spread=spread), on=["gateway3"])        # first who takes
        fleet.apply(web(spread=spread), on=["worker1", *GATEWAYS[:2]])
        after = [sources(flow.ask()) for flow in flows]
        until(lambda: all(stream.sent > 60 for stream in streams), 5, what="the streams do not go on")
        for family in BOTH:
            new = [source for pod in pods for source in sources(ask_many(pod, REMOTES[family], 10))]
            assert egress_ip(NUMBERS["gateway3"], family) in new
    watch.assert_no_leak()
    assert after == before
    for stream in streams:
        assert stream.lost == [] and len(stream.sources) == 1 and not stream.error


def pod_of(fleet: LightFleet, name: str, family: int, pods: list[FleetPod]) -> FleetPod:
    """One whose gateway is this."""
    wanted = egress_ip(NUMBERS[name], family)
    for pod in pods:
        seen = ask(pod, REMOTES[family][0], proto="udp")
        if seen and seen.source == wanted:
            return pod
    raise AssertionError(f"no pod has {name}")


def test_flows_of_a_removed_gateway_do_not_leave_with_another_source_than_the_class_has(make_light_fleet):
    """A datagram flow goes on by another gateway; of the removed one nothing more is seen."""
    fleet = make_light_fleet(FLEET)
    names = GATEWAYS[:2]
    fleet.apply(web(names))
    pods = make_pods(fleet.worker1, 12)
    victims = {family: pod_of(fleet, "gateway1", family, pods) for family in BOTH}
    with fleet.watch(ips(names, 4) | ips(names, 6)) as watch, Stream(victims[4], REMOTES[4][0], "udp", 100) as stream4, \
            Stream(victims[6], REMOTES[6][0], "udp", 100) as stream6:
        streams = {4: stream4, 6: stream6}
        for stream in streams.values():
            stream.wait_seen(5)
        fleet.apply(web(["gateway2"]))
        at = {family: stream.sent for family, stream in streams.items()}
        for family, stream in streams.items():
            stream.wait_seen(10)
            until(lambda: stream.sent >= at[family] + 10)
    watch.assert_no_leak()
    for family, stream in streams.items():
        numbers = range(at[family], at[family] + 10)
        assert {stream.seen[number].source for number in numbers if number in stream.seen} == ips(["gateway2"], family)
        assert len(stream.lost) < 20


# --- death

@pytest.fixture
def pair(make_light_fleet):
    """pair(keys of the class): a fleet whose class has the first two gateways, 12 pods, and for each family one of each gateway."""
    def make(by: int = 4, **keys):
        fleet = make_light_fleet(["worker1", *NAMES])
        fleet.apply(configuration(egress_class("web", *(own(name, by) for name in NAMES), **keys)))
        pods = make_pods(fleet.worker1, 12)
        return fleet, {(name, family): pod_of(fleet, name, family, pods) for name in NAMES for family in BOTH}
    return make


NAMES = GATEWAYS[:2]
DEAD, ALIVE = ({family: egress_ip(NUMBERS[name], family) for family in BOTH} for name in NAMES)
ANY = {*DEAD.values(), *ALIVE.values()}


def source_of_new_flow(pod: FleetPod, family: int) -> str:
    seen = ask(pod, REMOTES[family][0], proto="udp", timeout=0.15)
    return seen.source if seen else ""


@pytest.mark.parametrize("by", BOTH, ids=["tunnel over IPv4", "tunnel over IPv6"])
def test_new_flows_avoid_a_dead_gateway_and_come_back_to_it(pair, by):
    fleet, pods = pair(by)
    node = fleet.worker1
    with fleet.watch(ANY) as watch, Stream(pods["gateway2", 4], REMOTES[4][1], "udp", 200) as bystander4, \
            Stream(pods["gateway2", 6], REMOTES[6][1], "udp", 200) as bystander6:
        fleet.cut("gateway1")
        for family in BOTH:
            found = until(lambda: source_of_new_flow(pods["gateway1", family], family), 3, what="no flow found the other gateway")
            assert found == ALIVE[family]
            assert ask(pods["gateway1", family], REMOTES[family][0]).source == ALIVE[family]
        assert [state(node, underlay(name, by)) for name in NAMES] == ["unreachable", "reachable"]
        fleet.mend("gateway1")
        for family in BOTH:
            until(lambda: source_of_new_flow(pods["gateway1", family], family) == DEAD[family], 3,
                  what="no flow came back to the gateway")
        assert state(node, underlay("gateway1", by)) == "reachable"
    watch.assert_no_leak()
    for family, bystander in (4, bystander4), (6, bystander6):
        assert bystander.lost == [] and bystander.sources == {ALIVE[family]}


def test_open_flows_of_a_dead_gateway_go_on_by_another_and_stay_there(pair):
    fleet, pods = pair()
    with fleet.watch(ANY) as watch, Stream(pods["gateway1", 4], REMOTES[4][0], "udp", 100) as stream4, \
            Stream(pods["gateway1", 6], REMOTES[6][0], "udp", 100) as stream6:
        streams = {4: stream4, 6: stream6}
        for family, stream in streams.items():
            stream.wait_seen(5)
            assert stream.sources == {DEAD[family]}
        fleet.cut("gateway1")
        for family, stream in streams.items():
            until(lambda: ALIVE[family] in stream.sources, 3, what="the flow did not move")
        fleet.mend("gateway1")
        for family, stream in streams.items():
            until(lambda: source_of_new_flow(pods["gateway1", family], family) == DEAD[family], 3,
                  what="the gateway does not come back")
        at = {family: stream.sent for family, stream in streams.items()}
        for family, stream in streams.items():
            until(lambda: stream.sent >= at[family] + 20)
    watch.assert_no_leak()
    for family, stream in streams.items():
        assert {stream.seen[number].source for number in range(at[family], at[family] + 20)} == {ALIVE[family]}


@SPREAD
def test_nothing_leaves_while_all_gateways_are_dead(pair, spread):
    fleet, pods = pair(spread=spread)
    node, pod = fleet.worker1, pods["gateway1", 4]
    with fleet.watch(()) as watch:
        for name in NAMES:
            fleet.cut(name)
        until(lambda: not source_of_new_flow(pod, 4) and node.drops("web").get("gateway_unreachable"), 4)
        for family in BOTH:
            assert all(not source_of_new_flow(pod, family) for pod in pods.values())
        assert {state(node, underlay(name)) for name in NAMES} == {"unreachable"}
    assert not watch.arrivals("outside") and not watch.arrivals("worker1")
    fleet.mend("gateway2")
    for family in BOTH:
        assert until(lambda: source_of_new_flow(pod, family), 3) == ALIVE[family]
