# SPDX-License-Identifier: Apache-2.0
"""`egressctl apply` under traffic. Each test runs the same scene: pods of the class that changes, on a worker and on a gateway, and pods of
two classes that do not, all with open flows, connections and new flows all the time, of both families at once (what a change does to one
family it must not do to the other, and must do in the same moment). Then:

  * new flows follow within a second of the start of `apply` (of the last one, when nodes come one by one)
  * open flows end, go on, or go elsewhere, as "onChange" says
  * the other classes lose not one packet
  * no packet on any uplink ever had a source that was wrong before and after
"""
from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from flows import Track, Traffic
from labkit.capture import Record
from light_fleet import ALL, GATEWAYS, REMOTES, WORKERS, FleetNode, FleetPod, LightFleet, Watch, configuration, egress_class, egress_ip, gateway, underlay, until
from pace import patience
from traffic import ask

LIGHT_FLEET = {"echo": True}
FAMILIES = (4, 6)
NODES = {underlay(name, family) for name in ALL for family in FAMILIES}
IN_TIME = patience(1)       # after the start of `apply`, new flows follow
AT_ONCE = patience(0.1)     # or after its end, should a busy machine have let it wait that long
MODE = pytest.mark.parametrize("mode", ["keep", "cut"])


def ips(*numbers: int) -> list[str]:
    return [egress_ip(number, family) for number in numbers for family in FAMILIES]


WEB = egress_class("web", "gateway1", egressIPs=ips(7))
STILL1, STILL2 = egress_class("still1", "gateway1", egressIPs=ips(11)), egress_class("still2", "gateway2", egressIPs=ips(12))
WEB_BARE = {key: value for key, value in WEB.items() if key != "egressIPs"}        # for gateways with egress IPs of their own
NEW = egress_class("new", "gateway3", egressIPs=ips(13))
HERE = {family: f"{REMOTES[family][0]}/{ {4: 32, 6: 128}[family]}" for family in FAMILIES}      # where all tracks lead to
ELSEWHERE = {4: "198.18.0.0/15", 6: "2001:db8:ff::/48"}


def beginning(*classes: dict) -> dict:
    return configuration(*classes, STILL1, STILL2)


class SceneWatch(Watch):
    """What comes back for an egress IP that has just left may go round between its old gateway and the router, until that hears of it;
    the gateway then says that the time is exceeded. No pod does here."""

    def is_foreign(self, record: Record) -> bool:
        expired = (record.proto, record.info) in (("icmp", "type 11"), ("icmp6", "type 3"))
        return not (expired and record.src in NODES) and super().is_foreign(record)


@dataclass
class Scene:
    """Traffic under way, and what was done to it."""
    fleet: LightFleet
    traffic: Traffic
    watch: Watch
    began: float = 0        # of the change
    ended: float = 0
    unchanged: list[str] = field(default_factory=list)

    def change(self, *classes: dict, order: tuple[str, ...] | None = None, settle: float = 0.3, more: bool = False) -> None:
        """Apply a configuration: everywhere at once, or node by node; then wait until a second after it began (on the last node) is over.
        The traffic ends then, unless there is more to come."""
        config = configuration(*classes)
        self.began = time.time()
        if order:
            for name in order:
                self.began = time.time()
                self.fleet.hosts[name].apply(config)
        else:
            self.fleet.apply(config)
        self.ended = time.time()
        time.sleep(max(0.0, self.in_time - time.time()) + patience(settle))      # the time that it has; what was sent after it counts
        if not more:
            self.traffic.stop()

    @property
    def in_time(self) -> float:
        return max(self.began + IN_TIME, self.ended + AT_ONCE)

    def tracks(self, name: str) -> dict[int, list[Track]]:
        """Of the pods of a class, by family."""
        return {family: [track for key, track in self.traffic.tracks.items() if key[0] == name and key[2] == family] for family in FAMILIES}

    def each(self, name: str) -> Iterator[tuple[int, Track]]:
        for family, tracks in self.tracks(name).items():
            for track in tracks:
                yield family, track

    def fresh_follow(self, name: str, number: int) -> None:
        """New flows of a class's pods have another egress IP, in time. An empty set would be no proof: it would say that nothing was
        sent."""
        for family, track in self.each(name):
            assert track.fresh.sources(self.in_time) == {egress_ip(number, family)}, (track.place.name, track.address)
            assert track.fresh.lost(self.in_time) == []

    def addresses(self, name: str) -> set[str]:
        return self.fleet.hosts[name].held()


# Never one twice: conntrack would take a new flow for one of the scene before, if it had the same ports.
ports = itertools.count(10000)
PLACES = {"web": ("worker1", "gateway1"), "still1": ("worker1", "gateway1"), "still2": ("worker2",)}


class Pods(dict):
    """(class, node) -> its pod, made when it is asked for. They stay: all that a scene begins with is its configuration."""

    def __init__(self, fleet: LightFleet):
        self.fleet = fleet

    def __missing__(self, key: tuple[str, str]) -> FleetPod:
        name, on = key
        self[key] = self.fleet.hosts[on].pod(f"{name}-{on[0]}{on[-1]}", name)
        return self[key]


@pytest.fixture(scope="module")
def pods(light_fleet) -> Pods:
    return Pods(light_fleet)


@pytest.fixture
def scene(light_fleet, pods):
    """A function: run a scene that begins with a class `web` like this; at its end the classes that nobody changed have lost nothing, and
    no source was wrong. `allowed`: the numbers of egress IPs that packets of web's pods may have; `node`: also their node's address."""
    @contextmanager
    def run(*classes: dict, allowed: tuple[int, ...] = (7,), node: bool = False, unchanged: tuple[str, ...] = ("still1", "still2"),
            also: dict[str, tuple[str, ...]] | None = None) -> Iterator[Scene]:
        light_fleet.apply(beginning(*(classes or (WEB,))))
        tracks, owners = {}, {}
        for name, nodes in (PLACES | (also or {})).items():
            for on in nodes:
                for family in FAMILIES:
                    port = next(ports)
                    tracks[name, on, family] = Track(pods[name, on], REMOTES[family][0], port)
                    numbers = {"still1": (11,), "still2": (12,)}.get(name, allowed)
                    owners[port] = {egress_ip(number, family) for number in numbers}
                    if node and name not in ("still1", "still2"):
                        owners[port].add(underlay(on, family))
        errors = {source for sources in owners.values() for source in sources}     # ICMP: of a pod about an answer that it does not want
        with SceneWatch(light_fleet, errors, owners) as watch:
            with Traffic(light_fleet.outside, tracks) as traffic:
                until(lambda: all(len(track.fresh.answered) > 5 and len(track.lines.answered) > 10 for track in tracks.values()), 5,
                      what="the traffic does not begin")
                yield (found := Scene(light_fleet, traffic, watch))
        watch.assert_no_leak()
        for name in unchanged:
            for family, track in found.each(name):
                assert not (harm := track.untouched(egress_ip({"still1": 11, "still2": 12}.get(name, 7), family))), harm
    return run


# --- nothing changes

def test_apply_of_the_same(scene):
    """Ten times in a row: nobody notices."""
    with scene(unchanged=("web", "still1", "still2")) as found:
        for _ in range(10):
            found.fleet.apply()


def test_refused_configuration(scene):
    with scene(unchanged=("web", "still1", "still2")) as found:
        for node in found.fleet.nodes:
            assert node.apply(configuration(WEB | {"destinations": ["10.1.2.3/8"]}, STILL1), check=False).returncode == 2
        found.fleet.apply(beginning(WEB))


# --- classes come and go

def test_class_is_added(scene):
    """Its gateway becomes one, its pods start; and a pod that had started before, without a class, stays as it is."""
    with scene(unchanged=("web", "still1", "still2")) as found:
        early = found.fleet.worker2.pod("early", "new")
        found.change(WEB, STILL1, STILL2, NEW, settle=0, more=True)
        pod = found.fleet.worker2.pod("late", "new")
        try:
            for family in FAMILIES:
                assert ask(pod, REMOTES[family][1]).source == egress_ip(13, family)
                assert ask(early, REMOTES[family][1]).source == underlay("worker2", family)
        finally:
            pod.remove()
            early.remove()
        found.watch.allowed |= {*ips(13), underlay("worker2", 4), underlay("worker2", 6)}


@MODE
def test_removed_class_closes_its_pods(scene, mode):
    """Their flows end, whatever onChange says; what they send is dropped as class_removed; the egress IPs leave the gateway. When the
    class comes back, so do they."""
    with scene(WEB | {"onChange": mode}) as found:
        assert set(ips(7)) <= found.addresses("gateway1")
        found.change(STILL1, STILL2, more=True)
        for _, track in found.each("web"):
            for journal in track.datagrams, track.lines, track.fresh:
                assert journal.sources(found.in_time) <= {""}, (track.place.name, track.address)
        for name in PLACES["web"]:
            assert found.fleet.hosts[name].drops()["class_removed"] > 0
        assert not set(ips(7)) & found.addresses("gateway1") and set(ips(11)) <= found.addresses("gateway1")
        found.change(WEB | {"onChange": mode}, STILL1, STILL2)
        found.fresh_follow("web", 7)
        for _, track in found.each("web"):
            assert track.datagrams.lost(found.in_time) == [], "a flow of datagrams begins again"


def test_shared_egress_ip_leaves_with_its_last_class(scene):
    """Two classes of one gateway share an egress IP: the one that stays does not notice that the other goes."""
    twin = egress_class("twin", "gateway1", egressIPs=ips(7))
    with scene(WEB, twin, unchanged=("web", "still1", "still2"), also={"twin": ("worker2",)}) as found:
        found.change(WEB, STILL1, STILL2)
        assert set(ips(7)) <= found.addresses("gateway1")
        for _, track in found.each("twin"):
            for journal in track.datagrams, track.lines, track.fresh:
                assert journal.sources(found.in_time) <= {""}


# --- egress IPs

@pytest.mark.parametrize("mode, order", [("keep", None), ("cut", WORKERS + GATEWAYS), ("keep", GATEWAYS + WORKERS)],
                         ids=["keep-at-once", "cut-workers-first", "keep-gateways-first"])
def test_egress_ip_is_replaced(scene, mode, order):
    """The flows of the old one end in either mode: no datagram goes on with it, no connection outlives it. The interface has the new one
    only, which is announced: answers to it come back at once."""
    with scene(WEB | {"onChange": mode}, allowed=(7, 17)) as found:
        found.change(WEB | {"onChange": mode, "egressIPs": ips(17)}, STILL1, STILL2, order=order)
        found.fresh_follow("web", 17)
        for family, track in found.each("web"):
            assert track.datagrams.sources(found.in_time) <= {egress_ip(17, family), ""}
            assert track.lines.sources(found.in_time) <= {""}, "the connection goes on"
        assert not set(ips(7)) & found.addresses("gateway1") and set(ips(11, 17)) <= found.addresses("gateway1")


def test_egress_ip_is_added_and_flows_are_kept(scene):
    """Open flows keep their source. New ones have the one that the pod prefers of both."""
    with scene(WEB, allowed=(7, 17)) as found:
        found.change(WEB_BARE | {"gateways": [gateway("gateway1", egressIPs=ips(7, 17))]}, STILL1, STILL2)
        for family, track in found.each("web"):
            assert track.datagrams.lost() == track.lines.lost() == track.fresh.lost() == [] and track.lines.error == ""
            assert track.datagrams.sources() == track.lines.sources() == {egress_ip(7, family)}
            sources = track.fresh.sources(found.in_time)
            assert len(sources) == 1 and sources <= {egress_ip(7, family), egress_ip(17, family)}, "sticky, per pod"
        assert set(ips(7, 17)) <= found.addresses("gateway1")


def test_egress_ip_is_added_and_flows_are_cut(scene):
    """On its gateway, a change of the class's egress IPs ends its flows."""
    with scene(WEB | {"onChange": "cut"}, allowed=(7, 17)) as found:
        found.change(WEB_BARE | {"onChange": "cut", "gateways": [gateway("gateway1", egressIPs=ips(7, 17))]}, STILL1, STILL2)
        for _, track in found.each("web"):
            sources = track.fresh.sources(found.in_time)
            assert len(sources) == 1 and track.datagrams.sources(found.in_time) == sources, "one pod, one egress IP"
            assert track.lines.sources(found.in_time) <= {""}, "the connection goes on"


@MODE
def test_one_of_two_egress_ips_is_removed(scene, mode):
    """With onChange keep, who has the other one notices nothing."""
    both = WEB_BARE | {"onChange": mode, "gateways": [gateway("gateway1", egressIPs=ips(7, 17))]}
    with scene(both, allowed=(7, 17)) as found:
        before = {id(track): track.datagrams.sources() - {""} for _, track in found.each("web")}
        found.change(both | {"gateways": [gateway("gateway1", egressIPs=ips(17))]}, STILL1, STILL2)
        found.fresh_follow("web", 17)
        for family, track in found.each("web"):
            assert track.datagrams.sources(found.in_time) <= {egress_ip(17, family), ""}
            if before[id(track)] == {egress_ip(17, family)} and mode == "keep":
                assert track.datagrams.lost() == track.lines.lost() == [] and track.lines.error == ""
            if before[id(track)] == {egress_ip(7, family)}:
                assert track.lines.sources(found.in_time) <= {""}
        assert not set(ips(7)) & found.addresses("gateway1")


# --- gateways

@pytest.mark.parametrize("mode, order", [("keep", None), ("cut", GATEWAYS + WORKERS), ("keep", WORKERS + GATEWAYS[::-1])],
                         ids=["keep-at-once", "cut-old-gateway-first", "keep-old-gateway-last"])
def test_class_moves_to_another_gateway(scene, mode, order):
    """With its egress IPs, which one machine after the other owns. The world outside follows within the second, too."""
    with scene(WEB | {"onChange": mode}) as found:
        found.change(WEB | {"onChange": mode, "gateways": [gateway("gateway3")]}, STILL1, STILL2, order=order)
        found.fresh_follow("web", 7)
        for _, track in found.each("web"):
            assert track.datagrams.lost(found.in_time) == [], "a flow of datagrams goes on, through the new one"
        assert not set(ips(7)) & found.addresses("gateway1") and set(ips(7)) <= found.addresses("gateway3")
    late = [record for record in found.watch.arrivals("gateway1") if record.time > found.in_time and record.src in ips(7)]
    assert not late, f"still sent by the old gateway: {late[0]}"


def test_gateway_is_added_and_flows_are_kept(scene):
    """Open flows stay where they are; of the new ones, both gateways get some. The new gateway hears of it first: then none is lost."""
    one = WEB_BARE | {"spread": "flow", "gateways": [gateway("gateway1", egressIPs=ips(7))]}
    with scene(one, allowed=(7, 17)) as found:
        found.change(one | {"gateways": [*one["gateways"], gateway("gateway3", egressIPs=ips(17))]}, STILL1, STILL2,
                     order=("gateway3", "gateway1", "gateway2", "worker1", "worker2"))
        for family, track in found.each("web"):
            assert track.datagrams.lost() == track.lines.lost() == track.fresh.lost() == [] and track.lines.error == ""
            assert track.datagrams.sources() == track.lines.sources() == {egress_ip(7, family)}
        for family, tracks in found.tracks("web").items():
            sources = set.union(*(track.fresh.sources(found.in_time) for track in tracks))
            assert sources == {egress_ip(7, family), egress_ip(17, family)}


def test_gateway_is_added_and_flows_are_cut(scene):
    """An open flow that the new configuration would send by the new gateway goes there at once, others notice nothing: of one pod that
    is all flows or none, and datagrams and connections agree about it."""
    one = WEB_BARE | {"onChange": "cut", "gateways": [gateway("gateway2", egressIPs=ips(7))]}
    with scene(one, allowed=(7, 17)) as found:
        found.change(one | {"gateways": [*one["gateways"], gateway("gateway3", egressIPs=ips(17))]}, STILL1, STILL2)
        for family, track in found.each("web"):
            (chosen,) = track.fresh.sources(found.in_time)
            assert track.datagrams.sources(found.in_time) == {chosen}
            if chosen == egress_ip(7, family):
                assert track.datagrams.lost() == track.lines.lost() == [] and track.lines.error == ""
            else:
                assert track.lines.sources(found.in_time) <= {""}


def test_one_of_two_gateways_is_removed(scene):
    """Flows on the other one notice nothing, those on the removed one end or (datagrams) go on by the other."""
    both = WEB_BARE | {"spread": "flow", "gateways": [gateway("gateway2", egressIPs=ips(7)), gateway("gateway3", egressIPs=ips(17))]}
    with scene(both, allowed=(7, 17)) as found:
        before = {id(journal): journal.sources() - {""} for _, track in found.each("web") for journal in (track.datagrams, track.lines)}
        found.change(both | {"gateways": both["gateways"][1:]}, STILL1, STILL2)
        found.fresh_follow("web", 17)
        for family, track in found.each("web"):
            assert track.datagrams.sources(found.in_time) == {egress_ip(17, family)}
            for journal in track.datagrams, track.lines:
                if before[id(journal)] == {egress_ip(17, family)}:
                    assert journal.lost() == []
            if before[id(track.lines)] == {egress_ip(7, family)}:
                assert track.lines.sources(found.in_time) <= {""}
        assert not set(ips(7)) & found.addresses("gateway2")


# --- destinations

NARROWER = {"destinations": {"destinations": list(ELSEWHERE.values())}, "except": {"except": list(HERE.values())}}


@MODE
@pytest.mark.parametrize("keys", NARROWER.values(), ids=NARROWER)
def test_destination_is_steered_no_more(scene, mode, keys):
    """New flows bypass: they leave with the node's address. Open ones keep their egress IP until they end, or go the new way at once, on
    which the peer knows nothing of a connection, and resets it."""
    with scene(WEB | {"onChange": mode}, node=True) as found:
        found.change(WEB | {"onChange": mode} | keys, STILL1, STILL2)
        for (name, on, family), track in found.traffic.tracks.items():
            if name != "web":
                continue
            assert track.fresh.sources(found.in_time) == {underlay(on, family)}
            if mode == "keep":
                assert track.datagrams.lost() == track.lines.lost() == [] and track.lines.error == ""
                assert track.datagrams.sources() == track.lines.sources() == {egress_ip(7, family)}
            else:
                assert track.datagrams.sources(found.in_time) == {underlay(on, family)}
                assert track.lines.error, "the connection was not reset"


@pytest.mark.parametrize("mode, keys", zip(("keep", "cut"), NARROWER.values()), ids=["destinations-keep", "except-cut"])
def test_destination_is_steered_from_now_on(scene, mode, keys):
    """At once, in either mode: what bypassed yesterday is what the operator wants to leave with the egress IP today."""
    with scene(WEB | {"onChange": mode} | keys, node=True) as found:
        found.change(WEB | {"onChange": mode}, STILL1, STILL2)
        found.fresh_follow("web", 7)
        for (name, on, family), track in found.traffic.tracks.items():
            if name == "web":
                assert track.fresh.sources(0, found.began) == {underlay(on, family)}
                assert track.datagrams.sources(found.in_time) == {egress_ip(7, family)}
                assert track.lines.sources(found.in_time) <= {""}, "a connection cannot change its source"
    late = [record for place in found.watch.records for record in found.watch.arrivals(place)
            if record.time > found.in_time and record.src in {underlay(on, family) for on in PLACES["web"] for family in FAMILIES}]
    assert not late, f"still sent with a node's address: {late[0]}"


@MODE
def test_ports_are_taken_away(scene, mode):
    """The class is for TCP only from now on, and drops the rest. Connections do not notice; open flows of datagrams go on or end."""
    with scene(WEB | {"onChange": mode}) as found:
        found.change(WEB | {"onChange": mode, "ports": ["tcp"], "otherwise": "drop"}, STILL1, STILL2)
        for family, track in found.each("web"):
            assert track.lines.lost() == [] and track.lines.error == ""
            assert track.fresh.sources(found.in_time) == {""}
            if mode == "keep":
                assert track.datagrams.lost() == []
            else:
                assert track.datagrams.sources(found.in_time) == {""}
        for name in PLACES["web"]:
            assert found.fleet.hosts[name].drops("web")["otherwise"] > 0


# --- running pods get another class

@MODE
def test_select_moves_running_pods_to_another_class(scene, pods, mode):
    """Their flows follow at once, open ones as well. The pods that had that class before do not notice, nor does the class that they
    leave, which has other pods."""
    other = {"select": [{"namespaces": ["nobody"]}], "onChange": mode}
    joined = {"select": [{"namespaces": ["still1", "web"]}]}
    with scene(WEB | {"onChange": mode}, allowed=(7, 11)) as found:
        found.change(WEB | other, STILL1 | joined, STILL2)
        found.fresh_follow("web", 11)
        for family, track in found.each("web"):
            assert track.datagrams.sources(found.in_time) == {egress_ip(11, family)}
            assert track.lines.sources(found.in_time) <= {""}, "a connection cannot change its source"
        for name in PLACES["web"]:
            classes = {pod["name"]: pod["class"] for pod in found.fleet.hosts[name].pods()}
            assert classes[pods["web", name].name] == "still1"


def test_pod_that_no_class_selects_keeps_its_own(scene, pods):
    """As long as that exists."""
    with scene(unchanged=("web", "still1", "still2")) as found:
        found.change(WEB | {"select": [{"namespaces": ["nobody"]}]}, STILL1, STILL2)
        for name in PLACES["web"]:
            assert {pod["name"]: pod["class"] for pod in found.fleet.hosts[name].pods()}[pods["web", name].name] == "web"


# --- many changes

def test_many_changes_in_a_row(scene):
    """Seven random ones on all nodes, each in its own order and pace, under traffic: at no moment a wrong source, and never a packet of
    the classes that stay as they are."""
    chance = random.Random(4)
    variants = [WEB, WEB | {"egressIPs": ips(17)}, WEB | {"gateways": [gateway("gateway3")]}, WEB | {"onChange": "cut"},
                WEB | {"except": list(HERE.values())}, WEB_BARE | {"gateways": [gateway("gateway1", egressIPs=ips(7)),
                                                                                      gateway("gateway3", egressIPs=ips(17))]}, None]

    def walk(node: FleetNode, configs: list[dict]) -> None:
        for config in configs:
            node.apply(config)
    with scene(allowed=(7, 17), node=True) as found:
        configs = [beginning(*filter(None, [chance.choice(variants)])) for _ in range(6)] + [beginning(WEB)]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: walk(node, configs), found.fleet.nodes))
        found.change(WEB, STILL1, STILL2)
        found.fresh_follow("web", 7)
