# SPDX-License-Identifier: Apache-2.0
"""Which packets of a pod its class steers: by the longest prefix of `destinations` and `except`, by `ports`, and by `otherwise`. What is
steered leaves with the class's egress IP; what bypasses, as a pod's without a class: behind its node's address."""
from __future__ import annotations

import pytest
from light_fleet import REMOTES, FleetPod, LightFleet, configuration, egress_class, egress_ip, underlay, until
from traffic import Sink, ask, fragments, icmp, ip_packet, opened, ping, raw, sctp, udp

LIGHT_FLEET = {"nodes": ["worker1", "worker2", "gateway1"]}
STEER, BYPASS, DROP = "steer", "bypass", "drop"
FAMILY = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
PLACE = pytest.mark.parametrize("node", ["worker1", "gateway1"], ids=["by tunnel", "on the gateway"])

NETWORK = {4: "198.51.100.0/24", 6: "2001:db8:51::/64"}
BITS = {4: 32, 6: 128}


def host(family: int, number: int) -> str:
    """Of outside's addresses, as a prefix."""
    return f"{REMOTES[family][number]}/{BITS[family]}"


def both(function) -> list:
    return [entry for family in (4, 6) for entry in function(family)]


PORT_RULES = both(lambda family: [
    {"cidr": NETWORK[family], "ports": ["any"]},
    {"cidr": host(family, 0), "ports": ["tcp/7001", "udp/7002-7003"]},
    {"cidr": host(family, 1), "ports": ["icmp"]},
    host(family, 2)])
PORTS = ["tcp/7004", "udp"]         # of destinations that name none
EXCEPT = both(lambda family: [host(family, 3)])

# (number of outside's address, protocol, port) -> what happens to it under these rules
PORT_CASES = {
    (0, "tcp", 7001): True, (0, "tcp", 7002): False, (0, "tcp", 7004): False,
    (0, "udp", 7001): False, (0, "udp", 7002): True, (0, "udp", 7003): True, (0, "udp", 7004): False,
    (0, "icmp", 0): False,
    (1, "icmp", 0): True, (1, "tcp", 7001): False, (1, "udp", 7002): False,
    (2, "tcp", 7004): True, (2, "tcp", 7001): False, (2, "udp", 7001): True, (2, "udp", 7004): True, (2, "icmp", 0): False,
    (4, "tcp", 7001): True, (4, "udp", 7003): True, (4, "icmp", 0): True}

NUMBERS = {"prefixes": 7, "whole": 8, "ports": 9, "strict": 10, "narrow": 11, "only": 12, "fragile": 13}

CLASSES = {
    # of the network: .12 and .13 are not steered, but .13 is
    "prefixes": {"destinations": both(lambda f: [NETWORK[f], host(f, 3)]),
                 "except": both(lambda f: [{4: "198.51.100.12/31", 6: "2001:db8:51::12/127"}[f]])},
    "whole": {},
    "ports": {"destinations": PORT_RULES, "ports": PORTS, "except": EXCEPT},
    "strict": {"destinations": PORT_RULES, "ports": PORTS, "except": EXCEPT, "otherwise": "drop"},
    # everything is in `except` but one address
    "narrow": {"destinations": both(lambda f: [host(f, 1)]), "except": ["0.0.0.0/0", "::/0"]},
    "only": {"destinations": both(lambda f: [host(f, 1)]), "otherwise": "drop"},
    # datagrams of one port, and nothing else
    "fragile": {"destinations": ["0.0.0.0/0", "::/0"], "ports": ["udp/7002"], "otherwise": "drop"}}


def ip_of(name: str, family: int) -> str:
    return egress_ip(NUMBERS[name], family)


@pytest.fixture(scope="module")
def fleet(light_fleet) -> LightFleet:
    light_fleet.apply(configuration(*(
        egress_class(name, egressIPs=[egress_ip(NUMBERS[name]), egress_ip(NUMBERS[name], 6)], **keys) for name, keys in CLASSES.items())))
    light_fleet.assert_healthy()
    return light_fleet


@pytest.fixture(scope="module")
def pods(fleet):
    """pods(class, node name): one pod of each. Its MTU leaves room for the tunnel: too long packets are another matter."""
    made: dict[tuple[str, str], FleetPod] = {}

    def get(name: str, node: str = "worker1") -> FleetPod:
        if (name, node) not in made:
            made[name, node] = getattr(fleet, node).pod(name, name, mtu=1400)
        return made[name, node]
    return get


def outcome(fleet: LightFleet, pod: FleetPod, name: str, family: int, number: int, proto: str = "tcp", port: int = 7001) -> str:
    """What becomes of a packet, judged by what outside sees."""
    to = REMOTES[family][number]
    sources = {ip_of(name, family): STEER, underlay(pod.node.name, family): BYPASS}
    with fleet.watch(sources) as watch:
        if proto == "icmp":
            answered = bool(ping(pod, to, timeout=0.1))
        else:
            seen = ask(pod, to, port, proto, timeout=0.1)
            answered = seen is not None
            assert not seen or sources[seen.source]
    watch.assert_no_leak(busy=())
    came = {record.src for record in watch.arrivals() if record.proto.startswith(proto)}
    assert answered == bool(came), f"came: {came}, answered: {answered}"
    assert len(came) < 2, came
    return sources[came.pop()] if came else DROP


# --- prefixes

@FAMILY
@PLACE
@pytest.mark.parametrize("proto", ["tcp", "udp", "icmp"])
@pytest.mark.parametrize("number, expected", [(0, STEER), (2, BYPASS), (3, STEER), (4, STEER)],
                         ids=["in destinations", "in except, which is longer", "in destinations, which is longer still", "beside except"])
def test_longest_prefix_of_both_lists_wins(fleet, pods, node, family, number, expected, proto):
    # outside's IPv6 addresses are ::10 to ::14 in hexadecimal, so the pair of .12 and .13 is one there too
    assert outcome(fleet, pods("prefixes", node), "prefixes", family, number, proto) == expected


@FAMILY
@pytest.mark.parametrize("number", [2, 3])
def test_excludes_of_one_class_do_not_touch_another(fleet, pods, family, number):
    assert outcome(fleet, pods("whole"), "whole", family, number) == STEER


@FAMILY
def test_one_address_out_of_all_that_is_excepted(fleet, pods, family):
    found = [outcome(fleet, pods("narrow"), "narrow", family, number) for number in range(3)]
    assert found == [BYPASS, STEER, BYPASS]


@FAMILY
@PLACE
def test_what_matches_no_destination_is_dropped_if_the_class_says_so(fleet, pods, node, family):
    pod = pods("only", node)
    before = pod.node.drops("only").get("otherwise", 0)
    found = [outcome(fleet, pod, "only", family, number) for number in range(3)]
    assert found == [DROP, STEER, DROP]
    assert pod.node.drops("only")["otherwise"] >= before + 2


@FAMILY
def test_cluster_and_nodes_are_never_dropped_by_otherwise(fleet, pods, family):
    pod, other = pods("only"), pods("whole", "gateway1")
    with Sink(other, 253, family) as sink:
        raw(pod, ip_packet(pod.ip(family), other.ip(family), 253, b"hello"))
        assert sink.first() == (pod.ip(family), b"hello")
    with Sink(fleet.gateway1, 253, family) as sink:
        raw(pod, ip_packet(pod.ip(family), underlay("gateway1", family), 253, b"hello"))
        assert (sink.first() or ("", b""))[1] == b"hello"


# --- ports

def names(cases: dict) -> list[str]:
    return [f"{proto}{'/' + str(port) if port else ''} of address {number}" for number, proto, port in cases]


@FAMILY
@pytest.mark.parametrize("number, proto, port, steered", [(*case, steered) for case, steered in PORT_CASES.items()], ids=names(PORT_CASES))
def test_ports_choose_what_of_a_destination_is_steered(fleet, pods, family, number, proto, port, steered):
    """The longest prefix alone has a say: that its ports do not match does not bring a shorter one into play."""
    assert outcome(fleet, pods("ports"), "ports", family, number, proto, port) == (STEER if steered else BYPASS)


@FAMILY
@pytest.mark.parametrize("number, proto, port, steered", [(*case, steered) for case, steered in PORT_CASES.items()], ids=names(PORT_CASES))
def test_what_matches_no_port_is_dropped_if_the_class_says_so(fleet, pods, family, number, proto, port, steered):
    pod = pods("strict")
    before = 0 if steered else pod.node.drops("strict").get("otherwise", 0)
    assert outcome(fleet, pod, "strict", family, number, proto, port) == (STEER if steered else DROP)
    assert steered or pod.node.drops("strict")["otherwise"] > before


@FAMILY
@pytest.mark.parametrize("name", ["ports", "strict"])
@pytest.mark.parametrize("proto", ["tcp", "udp", "icmp"])
def test_except_bypasses_whatever_the_port_and_otherwise(fleet, pods, name, family, proto):
    assert outcome(fleet, pods(name), name, family, 3, proto) == BYPASS


@FAMILY
@pytest.mark.parametrize("number, proto, port", [(0, "tcp", 7001), (0, "udp", 7001), (1, "icmp", 0), (1, "tcp", 7001), (2, "udp", 7001)])
def test_ports_are_the_same_on_the_gateway_itself(fleet, pods, family, number, proto, port):
    expected = STEER if PORT_CASES[number, proto, port] else BYPASS
    assert outcome(fleet, pods("ports", "gateway1"), "ports", family, number, proto, port) == expected


@FAMILY
def test_protocol_that_no_rule_names_is_not_steered(fleet, pods, family):
    """SCTP, of which the rules say nothing but "any"; a port of the same number is no match."""
    pod = pods("ports")
    init = sctp(7001, 7001, 0, bytes.fromhex("01000014 00000001 00010000 000a ffff 00000001".replace(" ", "")))
    sources = {number: set() for number in (0, 4)}
    with fleet.watch([ip_of("ports", family), underlay("worker1", family)]) as watch:
        for number in sources:
            raw(pod, ip_packet(pod.ip(family), REMOTES[family][number], 132, init))
            sources[number] = {record.src for record in watch.wait(proto="132", dst=REMOTES[family][number])}
    watch.assert_no_leak()
    assert sources == {0: {underlay("worker1", family)}, 4: {ip_of("ports", family)}}


# --- ICMP errors under port rules

@FAMILY
def test_error_of_the_pod_goes_the_way_of_the_flow_that_it_is_about(fleet, pods, family):
    """The class steers one port of UDP and drops the rest: a port-unreachable of the pod is no UDP, but belongs to such a flow."""
    pod, to = pods("fragile"), REMOTES[family][0]
    kind, number = {4: ("icmp", 3), 6: ("icmp6", 1)}[family]
    with fleet.watch([ip_of("fragile", family)]) as watch:
        raw(pod, ip_packet(pod.ip(family), to, 17, udp(pod.ip(family), to, 5353, 7002)))       # no socket is there for the answer
        watch.wait(proto=kind, info=f"type {number}")
    watch.assert_no_leak()


@FAMILY
def test_error_about_no_flow_of_the_class_is_dropped(fleet, pods, family):
    pod, to = pods("fragile"), REMOTES[family][0]
    about = ip_packet(to, pod.ip(family), 17, udp(to, pod.ip(family), 7001, 5354))
    kind = {4: 3, 6: 1}[family]
    before = pod.node.drops("fragile").get("otherwise", 0)
    with fleet.watch([]) as watch:
        raw(pod, ip_packet(pod.ip(family), to, {4: 1, 6: 58}[family],
                           icmp(family, kind, {4: 3, 6: 4}[family], bytes(4) + about, pod.ip(family), to)))
        # the next packet of the pod is seen, so this one was, too
        assert ask(pod, to, 7002, "udp").source == ip_of("fragile", family)
    assert {record.proto for record in watch.arrivals()} == {"udp"}
    assert pod.node.drops("fragile")["otherwise"] == before + 1


@FAMILY
def test_error_about_a_steered_flow_reaches_the_pod_under_port_rules(fleet, pods, family):
    pod = pods("ports")
    with opened(pod, REMOTES[family][2]) as client:
        client.settimeout(2)
        client.connect((REMOTES[family][2], 7999))
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(99)


# --- fragments

DATAGRAM = bytes(4000)


@FAMILY
@PLACE
@pytest.mark.parametrize("name, port", [("whole", 7001), ("fragile", 7002), ("ports", 7003)])
def test_fragmented_datagrams_are_steered_as_a_whole(fleet, pods, node, name, port, family):
    """Only the first fragment has the port."""
    pod = pods(name, node)
    with fleet.watch([ip_of(name, family)]) as watch:
        seen = ask(pod, REMOTES[family][0], port, "udp", payload=DATAGRAM)
        assert seen and seen.source == ip_of(name, family)
    watch.assert_no_leak()
    assert len(watch.arrivals(src=ip_of(name, family))) >= 3


@FAMILY
def test_fragmented_datagrams_bypass_as_a_whole(fleet, pods, family):
    pod, node_address = pods("ports"), underlay("worker1", family)
    with fleet.watch([node_address]) as watch:
        seen = ask(pod, REMOTES[family][0], 7004, "udp", payload=DATAGRAM)
        assert seen and seen.source == node_address
    watch.assert_no_leak()


@FAMILY
def test_fragmented_datagrams_are_dropped_as_a_whole(fleet, pods, family):
    pod = pods("fragile")
    before = pod.node.drops("fragile").get("otherwise", 0)
    with fleet.watch([]) as watch:
        assert ask(pod, REMOTES[family][0], 7001, "udp", payload=DATAGRAM, timeout=0.1) is None
    assert not watch.arrivals()
    assert pod.node.drops("fragile")["otherwise"] == before + 3     # fragments: the later ones for the reason of the first


def pieces(pod: FleetPod, to: str, port: int, ident: int) -> list[bytes]:
    mine = pod.ip(4 if "." in to else 6)
    return fragments(mine, to, 17, udp(mine, to, 5355, port, DATAGRAM), size=1280, ident=ident)


@FAMILY
@PLACE
def test_fragment_ahead_of_its_first_waits_for_no_port_where_none_is_asked_for(fleet, pods, node, family):
    """Rules without ports decide each fragment for itself; the datagram arrives."""
    pod, to = pods("whole", node), REMOTES[family][1]
    before = len(fleet.outside.seen())
    with fleet.watch([ip_of("whole", family)]) as watch:
        raw(pod, reversed(pieces(pod, to, 7001, 0x1001)))
        assert [seen.source for seen in until(lambda: fleet.outside.seen()[before:], 1)] == [ip_of("whole", family)]
    watch.assert_no_leak()


@FAMILY
@pytest.mark.parametrize("name, port", [("fragile", 7002), ("ports", 7003)])
def test_fragment_ahead_of_its_first_is_dropped_where_ports_decide(fleet, pods, name, port, family):
    """With a reason; and the datagrams that follow are none the worse for it."""
    pod, to = pods(name), REMOTES[family][0]
    first, *rest = pieces(pod, to, port, 0x1002)
    before = pod.node.drops(name).get("fragment", 0)
    with fleet.watch([ip_of(name, family)]) as watch:
        raw(pod, [*rest, first])
        seen = ask(pod, to, port, "udp", payload=DATAGRAM)
        assert seen and seen.source == ip_of(name, family)
    watch.assert_no_leak()
    assert pod.node.drops(name)["fragment"] == before + len(rest)
