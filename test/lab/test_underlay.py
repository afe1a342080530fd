# SPDX-License-Identifier: Apache-2.0
"""The way between the nodes is that of the routes: whatever interface has the node's address, and whatever its MTU becomes."""
from __future__ import annotations

import pytest
from light_fleet import REMOTES, FleetNode, LightFleet, configuration, egress_class, egress_ip, gateway, underlay
from traffic import ask, transfer

HEADERS = 70    # of a node that has an IPv6 address among `nodes`


def route_by_transfer_networks(fleet: LightFleet) -> None:
    """As where the hosts speak BGP: a node's address is on lo, and its uplink has one of a network between it and the router."""
    hosts = {"worker1": 11, "gateway1": 21}
    for name, last in hosts.items():
        host: FleetNode = fleet.hosts[name]
        four, six = underlay(name, 4), underlay(name, 6)
        host.run(f"ip addr del {four}/24 dev eth0; ip addr add 192.0.2.1{last}/24 dev eth0; ip addr add {four}/32 dev lo;"
                 f"ip -6 addr add 2001:db8:2::1{last}/64 dev eth0 nodad; ip -6 addr del {six}/64 dev eth0; ip addr add {six}/128 dev lo;"
                 f"ip route replace default via 192.0.2.1 src {four}; ip -6 route replace default via 2001:db8:2::1 src {six}")
        for other in hosts.keys() - {name}:
            fleet.hosts[other].run(f"ip route replace {four}/32 via 192.0.2.1{last} dev eth0 src {underlay(other, 4)};"
                                   f"ip -6 route replace {six}/128 via 2001:db8:2::1{last} dev eth0 src {underlay(other, 6)}")
        fleet.router.run(f"ip route replace {four}/32 via 192.0.2.1{last} dev br0; ip -6 route replace {six}/128 via 2001:db8:2::1{last} dev br0")


@pytest.fixture
def fleet(make_light_fleet) -> LightFleet:
    return make_light_fleet(["worker1", "gateway1"])


def tunnel_mtu(node: FleetNode) -> int:
    return node.link("egress0")["mtu"]


def class_by(family: int) -> dict:
    """Its gateway is reached over that family."""
    return configuration(egress_class("web", gateway("gateway1", family, interface="eth0"), egressIPs=[egress_ip(7), egress_ip(7, 6)]))


@pytest.mark.parametrize("outer", [4, 6], ids=["over IPv4", "over IPv6"])
def test_the_nodes_address_is_on_lo(fleet, outer):
    route_by_transfer_networks(fleet)
    fleet.apply(class_by(outer))
    assert {tunnel_mtu(node) for node in fleet.nodes} == {1500 - HEADERS}
    pod = fleet.worker1.pod("p", "web")
    for family in 4, 6:
        assert ask(pod, REMOTES[family][0]).source == egress_ip(7, family)
        assert transfer(pod, REMOTES[family][0], 1 << 20)
    fleet.assert_healthy()


def test_a_routes_own_mtu_counts(fleet):
    fleet.worker1.run(f"ip route add {underlay('gateway1', 4)}/32 dev eth0 mtu 1400")
    fleet.apply(class_by(4))
    assert tunnel_mtu(fleet.worker1) == 1400 - 50 and tunnel_mtu(fleet.gateway1) == 1500 - HEADERS


def test_what_was_learned_from_icmp_does_not(fleet):
    """It expires, and each change makes the tunnel anew."""
    fleet.apply(class_by(4))
    gate = underlay("gateway1")
    fleet.router.run(f"ip route add {gate}/32 dev br0 mtu 1300")
    fleet.worker1.run(f"ip route add {gate}/32 via 192.0.2.1; ping -c1 -W1 -s 1400 -M do {gate} || true")
    assert "expires" in fleet.worker1.run(f"ip route get {gate}").stdout
    fleet.worker1.apply()
    assert tunnel_mtu(fleet.worker1) == 1500 - HEADERS


@pytest.mark.parametrize("mtu", [1400, 9000])
def test_an_uplinks_mtu_that_changes_is_named(fleet, mtu):
    fleet.apply(class_by(4))
    fleet.assert_healthy()
    fleet.set_mtu("gateway1", mtu)
    (problem,) = fleet.gateway1.status()["problems"]
    assert f"packets of {mtu - HEADERS} bytes fit into the tunnel now, and it was made for {1500 - HEADERS}" in problem
    fleet.gateway1.apply()
    fleet.assert_healthy()
    assert tunnel_mtu(fleet.gateway1) == mtu - HEADERS
