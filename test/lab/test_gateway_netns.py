# SPDX-License-Identifier: Apache-2.0
"""A gateway works in a network namespace of its own: what others do to the host's rules, marks and services does not reach it, what comes
to an egress IP does not reach them, and what is done to the namespace itself closes the way, and opens none."""
from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from light_fleet import REMOTES, FleetPod, LightFleet, configuration, egress_class, egress_ip, underlay
from light_node import TCX
from traffic import FAMILIES, LONG_PORT, PORTS, Flows, Stream, ask, ping, silent

LIGHT_FLEET = {"nodes": ["worker1", "gateway1"]}
FAMILY = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
NAMES = {"web": 7, "other": 8}
CONFIGURATION = configuration(*(egress_class(name, egressIPs=[egress_ip(number), egress_ip(number, 6)]) for name, number in NAMES.items()))


@pytest.fixture(scope="module")
def fleet(light_fleet) -> LightFleet:
    light_fleet.apply(CONFIGURATION)
    light_fleet.assert_healthy()
    return light_fleet


@pytest.fixture(scope="module")
def pods(fleet) -> list[FleetPod]:
    """Of both classes, on a worker and on the gateway."""
    return [node.pod(f"{name}-{node.name}", name) for node in (fleet.worker1, fleet.gateway1) for name in NAMES]


@pytest.fixture
def gateway(fleet) -> Iterator:
    """As it was before, afterwards."""
    yield fleet.gateway1
    fleet.gateway1.apply(CONFIGURATION)
    fleet.assert_healthy()


def own(pod: FleetPod, family: int) -> str:
    return egress_ip(NAMES[pod.namespace], family)


def watch(fleet: LightFleet):
    """Nothing leaves but with an egress IP, at both ports the right one."""
    return fleet.watch([egress_ip(number, family) for number in NAMES.values() for family in (4, 6)])


# --- other people's rules on the gateway

HOOKS = {"prerouting": (-300, -150, -100, 0), "forward": (-150, 0, 150), "output": (-150, 0), "postrouting": (-150, 0, 100, 300)}


def in_every_hook(statement: str) -> str:
    chains = "".join(f"chain {hook}{number} {{ type filter hook {hook} priority {priority}; {statement}; }}\n"
                     for hook, priorities in HOOKS.items() for number, priority in enumerate(priorities))
    return f"nft -f - <<END\ntable inet foreign {{\n{chains}}}\nEND"


def chain(kind: str, hook: str, priority: int, statement: str) -> str:
    return f"nft 'table inet foreign {{ chain c {{ type {kind} hook {hook} priority {priority}; {statement}; }}; }}'"


BY_TUNNEL = "udp dport 8479 accept"     # the outer packets are the host's still
RULES = {
    "a mark in every hook": in_every_hook("meta mark set 0x1"),
    "other bits of the mark in every hook": in_every_hook("meta mark set meta mark | 0xa0000000"),
    "marks taken off in every hook": in_every_hook("meta mark set 0"),
    "marks kept with the connection": in_every_hook("ct mark set meta mark; meta mark set ct mark; meta mark set 0x2"),
    "marked packets dropped": in_every_hook("meta mark != 0 drop"),
    "nothing is forwarded": chain("filter", "forward", 0, "policy drop"),
    "nothing comes in": chain("filter", "input", 0, f"policy drop; {BY_TUNNEL}; ct state established accept; ip protocol icmp accept; "
                                                    "meta l4proto ipv6-icmp accept"),
    "nothing of pods goes out": chain("filter", "postrouting", 300, "ip saddr 10.244.0.0/16 drop; ip daddr 198.51.100.0/24 drop"),
    "everything is masqueraded": chain("nat", "postrouting", 90, "masquerade"),
    "pods get the node's address": chain("nat", "postrouting", 50, f"ip saddr 10.244.0.0/16 snat ip to {underlay('gateway1')}"),
    "destinations are changed": chain("nat", "prerouting", -110, f"ip daddr {REMOTES[4][0]} dnat ip to {underlay('worker1')}"),
    "nothing is tracked": chain("filter", "prerouting", -300, "notrack"),
    "zones": chain("filter", "prerouting", -300, "ct zone set 7"),
    "what conntrack calls invalid is dropped": chain("filter", "prerouting", -100, "ct state invalid,untracked drop"),
    "strict reverse path": "for i in all default eth0 egress0 ec0; do echo 1 >/proc/sys/net/ipv4/conf/$i/rp_filter; done",
    "no rules at all": "nft flush ruleset",
    "no policy routing": "ip rule flush; ip rule add pref 0 lookup local; ip rule add pref 32766 lookup main; ip -6 rule flush; "
                         "ip -6 rule add pref 0 lookup local; ip -6 rule add pref 32766 lookup main",
    "an address of the host": f"ip addr add {egress_ip(7)}/32 dev lo; ip addr add {egress_ip(7, 6)}/128 dev lo nodad",
    "a black hole": f"ip route replace blackhole {egress_ip(7)}/32; ip -6 route replace blackhole {egress_ip(7, 6)}/128",
}
UNDO = ("nft delete table inet foreign 2>/dev/null; for i in all default eth0 egress0 ec0; do echo 0 >/proc/sys/net/ipv4/conf/$i/rp_filter; done;"
        f"ip addr del {egress_ip(7)}/32 dev lo 2>/dev/null; ip addr del {egress_ip(7, 6)}/128 dev lo 2>/dev/null;"
        f"ip route del blackhole {egress_ip(7)}/32 2>/dev/null; ip -6 route del blackhole {egress_ip(7, 6)}/128 2>/dev/null; true")


@pytest.mark.parametrize("rules", RULES)
def test_rules_of_others_do_not_reach_what_a_class_sends(fleet, pods, gateway, rules):
    """New flows and those that were open, TCP, UDP and pings, by tunnel and on the gateway, both families."""
    with ExitStack() as stack:
        before = []
        for pod in pods:
            for family in (4, 6):
                for proto in ("udp", "tcp"):
                    flows = stack.enter_context(Flows(pod, REMOTES[family][1], 2, proto=proto))
                    before.append((pod, flows, flows.ask()))
                    assert {seen and seen.source for seen in before[-1][2]} == {own(pod, family)}
        watched = stack.enter_context(watch(fleet))
        gateway.run(RULES[rules])
        stack.callback(gateway.run, UNDO)
        wrong = [f"{pod.name}: an open flow was {seen}, is {now}" for pod, flows, seen in before if (now := flows.ask()) != seen]
        for pod in pods:
            for family in (4, 6):
                for proto in ("tcp", "udp"):
                    seen = ask(pod, REMOTES[family][0], PORTS[0], proto)
                    if not seen or seen.source != own(pod, family):
                        wrong.append(f"{pod.name}: {proto}, IPv{family}: {seen}")
                if (said := ping(pod, REMOTES[family][0])) != "reply":
                    wrong.append(f"{pod.name}: ping, IPv{family}: {said}")
    assert not wrong, "\n".join(wrong)
    watched.assert_no_leak()


# --- the host

@FAMILY
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_services_of_the_host_do_not_answer_at_an_egress_ip(fleet, gateway, family, proto):
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[proto]
    with gateway.socket(FAMILIES[family], kind) as service:
        service.bind(("", 8000))
        service.settimeout(0.5)
        if proto == "tcp":
            service.listen()

        def reached(address: str) -> bool:
            with fleet.outside.socket(FAMILIES[family], kind) as client:
                client.settimeout(0.5)
                try:
                    client.connect((address, 8000))
                    client.send(b"x")
                    (service.accept()[0].close() if proto == "tcp" else service.recv(9))
                    return True
                except OSError:
                    return False
        assert reached(underlay("gateway1", family)), "the service answers"
        assert not reached(egress_ip(7, family))


@FAMILY
def test_an_egress_ip_answers_pings_and_refuses_connections_at_once(fleet, family):
    assert ping(fleet.outside, egress_ip(7, family)) == "reply"
    started = time.monotonic()
    with fleet.outside.socket(FAMILIES[family], socket.SOCK_STREAM) as client:
        client.settimeout(5)
        with pytest.raises(ConnectionRefusedError):
            client.connect((egress_ip(7, family), 22))
    assert time.monotonic() - started < 2


def test_what_nobody_asked_for_leaves_no_trace_in_conntrack(fleet, gateway):
    """Each entry would take a port from the pods."""
    before = gateway.in_gateway("conntrack -C").stdout
    for port in range(2000, 2100):
        silent(fleet.outside, egress_ip(7), port, timeout=0)
    assert gateway.drops()["unasked"] >= 100
    assert int(gateway.in_gateway("conntrack -C").stdout) <= int(before) + 5


@FAMILY
def test_the_host_has_its_own_address_and_reaches_its_own_places(fleet, gateway, family):
    seen = ask(gateway, REMOTES[family][0])
    assert seen and seen.source == underlay("gateway1", family)
    with gateway.socket(FAMILIES[family], socket.SOCK_STREAM) as client, pytest.raises(OSError):
        client.bind((egress_ip(7, family), 0))


@FAMILY
def test_a_pod_without_class_on_the_gateway_reaches_an_egress_ip_as_anybody_outside(fleet, gateway, family):
    """There is nothing to be had, but no packet goes round in circles."""
    pod = gateway.pod(f"plain{family}", "none")
    assert ping(pod, egress_ip(7, family)) == "reply"
    assert ask(pod, egress_ip(7, family), 22, timeout=1) is None
    pod.remove()


@FAMILY
def test_who_asks_for_an_egress_ip_gets_the_mac_that_the_uplink_has_now(fleet, gateway, family):
    """By the neighbour table of the router; a change of MAC (a bond's, for example) needs no apply."""
    address, before = egress_ip(7, family), gateway.mac()
    for mac in ("02:00:00:00:77:01", before):
        gateway.run(f"ip link set eth0 address {mac}")
        for host in fleet.router, fleet.worker1:        # of the node's own address nobody tells them
            host.run("ip neigh flush all; ip -6 neigh flush all")
        assert ping(fleet.outside, address) == "reply"
        assert fleet.router.neighbours(family, "br0")[address][0] == mac


def test_the_solicited_node_group_of_an_ipv6_address_is_listened_to(gateway):
    groups = gateway.run("ip -6 maddr show dev eth0").stdout
    assert "ff02::1:ff00:7" in groups and "ff02::1:ff00:8" in groups
    gateway.apply(configuration(egress_class("web", egressIPs=[egress_ip(7), egress_ip(7, 6)])))
    groups = gateway.run("ip -6 maddr show dev eth0").stdout
    assert "ff02::1:ff00:7" in groups and "ff02::1:ff00:8" not in groups


# --- the namespace itself

WAYS = {"by name": "ip netns del egressclass", "the device": "ip link del ec0", "its other end": "ip -n egressclass link del ec1",
        "the device is down": "ip link set ec0 down"}


@pytest.mark.parametrize("way", WAYS)
def test_the_namespace_is_taken_away_under_traffic(fleet, pods, gateway, way):
    """Closed, counted, named by status, mended by apply."""
    with watch(fleet) as watched, ExitStack() as stack:
        streams = [stack.enter_context(Stream(pod, REMOTES[4][0], "udp")) for pod in pods]
        for stream in streams:
            stream.wait_seen()
        gateway.run(WAYS[way])
        time.sleep(0.5)
        for pod in pods:
            assert ask(pod, REMOTES[4][1], timeout=0.3) is None
        problems = gateway.status()["problems"]
        assert any("/run/netns/egressclass is gone" in text or "ec0" in text for text in problems), problems
        if way != "the device is down":
            assert gateway.drops()["gateway_gone"] > 0
        gateway.apply(CONFIGURATION)
        for stream in streams:
            stream.wait_seen()
    watched.assert_no_leak()
    for stream, pod in zip(streams, pods):
        assert stream.sources == {own(pod, 4)}


def test_rules_in_the_namespace_are_flushed(fleet, pods, gateway):
    """Nothing is translated any more; so nothing leaves."""
    with watch(fleet) as watched:
        flows = [Flows(pod, REMOTES[4][0], 3) for pod in pods]
        assert None not in [seen for flow in flows for seen in flow.ask()]
        gateway.in_gateway("nft flush ruleset")
        for pod in pods:
            assert ask(pod, REMOTES[4][0], PORTS[0], "udp", timeout=0.3) is None
        assert gateway.drops()["not_translated"] >= len(pods)
        gateway.apply(CONFIGURATION)
        for flow, pod in zip(flows, pods):
            assert {seen and seen.source for seen in flow.ask()} == {own(pod, 4)}
            flow.__exit__()
    watched.assert_no_leak()


@pytest.mark.parametrize("name, device", [("gateway_out", "ec0"), ("gateway_in", "ec1"), ("uplink_in", "eth0")])
def test_a_program_is_taken_off(fleet, pods, gateway, name, device):
    """What then passes there by itself is nothing that leaves with a wrong source."""
    with watch(fleet) as watched:
        where = gateway.in_gateway if device == "ec1" else gateway.run
        where(f"/usr/bin/python3 -SEB {TCX} detach {name} dev {device}")
        for pod in pods:
            for proto in ("udp", "tcp"):
                ask(pod, REMOTES[4][0], PORTS[0], proto, timeout=0.2)
        assert any(name in text for text in gateway.status()["problems"])
        gateway.apply(CONFIGURATION)
        for pod in pods:
            assert ask(pod, REMOTES[4][0]).source == own(pod, 4)
    watched.assert_no_leak()


def test_flows_outlive_an_apply_and_what_is_done_to_the_hosts_conntrack(fleet, pods, gateway):
    with ExitStack() as stack:
        flows = [stack.enter_context(Flows(pod, REMOTES[family][0], 3, LONG_PORT, proto))
                 for pod in pods for family in (4, 6) for proto in ("udp", "tcp")]
        seen = [flow.ask() for flow in flows]
        for action in (lambda: gateway.apply(CONFIGURATION), lambda: gateway.run("conntrack -F", check=False),
                       lambda: gateway.run("nft delete table inet egressclass")):
            action()
            assert [flow.ask() for flow in flows] == seen


def test_timeouts_of_the_hosts_conntrack_hold_inside(gateway):
    gateway.sysctl(netfilter__nf_conntrack_tcp_timeout_established=7777)
    gateway.apply(CONFIGURATION)
    assert gateway.in_gateway("cat /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established").stdout == "7777\n"
    gateway.sysctl(netfilter__nf_conntrack_tcp_timeout_established=432000)


def test_a_node_that_is_no_gateway_any_more_has_no_namespace(fleet, gateway):
    gateway.apply(configuration(egress_class("far", {"address": underlay("worker1")}, egressIPs=[egress_ip(7)])))
    left = gateway.run("ip netns; ip link; ip route; ip -6 route; ip -6 neigh show proxy").stdout
    assert "egressclass" not in left and "ec0" not in left and egress_ip(7, 6) not in left
    assert gateway.tcx(gateway.link("eth0")["ifindex"])["programs"] == []


def test_names_that_somebody_else_has(gateway):
    """A device of our name is refused, and stays; a file of the namespace's name that is none is what an interrupted command left."""
    gateway.ctl("down")
    gateway.run("ip link add ec0 type veth peer name theirs")
    done = gateway.apply(CONFIGURATION, check=False)
    assert done.returncode == 1 and "the device ec0 is not ours" in done.stderr, done.stderr
    gateway.run("ip link show theirs; ip link del ec0; ip netns del egressclass 2>/dev/null; touch /run/netns/egressclass")
