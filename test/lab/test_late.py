# SPDX-License-Identifier: Apache-2.0
"""At boot, what a configuration needs of its node comes in any order: `apply` waits for it, or `status` says that it came later."""
from __future__ import annotations

import pytest
from light_fleet import configuration, egress_class, egress_ip, underlay
from light_node import ADDRESS, BOTH, FAR, WEB, LightNode
from light_node import configuration as light_configuration
from light_node import egress_class as light_class

NOT_YET, BAD_CONFIG = 3, 2
UPLINK = f"ip addr add {ADDRESS}/24 dev eth0; ip route add default via 192.0.2.1"


def problems(node: LightNode) -> str:
    return "; ".join(node.status()["problems"])


# --- it waits

def next_hop(address: str, **keys) -> dict:
    hop = {"address": address, "via": "nexthop", **keys}
    return light_configuration({key: value for key, value in (WEB | {"gateways": [hop]}).items() if key != "egressIPs"})


LATE = {
    # name: (configuration, what is taken away, what is said, what comes)
    "address": (BOTH, "ip addr flush dev eth0 scope global", "nodes: no address of this node", UPLINK),
    "uplink": (BOTH, "ip link set eth0 down; ip addr flush dev eth0", "nodes: no address of this node", "ip link set eth0 up; " + UPLINK),
    "interface of a gateway": (light_configuration(WEB | {"gateways": [{"address": ADDRESS, "interface": "bond0"}]}), "", '"bond0"',
                               "ip link add bond0 type veth peer name bond1; ip link set bond0 up; ip link set bond1 up"),
    "interface of a next hop": (next_hop("192.0.2.1", interface="vlan7"), "", '"vlan7"',
                                "ip link add vlan7 type veth peer name vlan8; ip link set vlan7 up"),
    "network of a next hop": (next_hop("198.51.100.1"), "", '"198.51.100.1"', "ip addr add 198.51.100.9/24 dev eth0"),
}


@pytest.mark.parametrize("name", LATE)
def test_apply_waits_for(node, name):
    config, damage, text, mend = LATE[name]
    node.run(damage)
    before = node.snapshot()
    for _ in range(2):
        done = node.apply(config, check=False)
        assert done.returncode == NOT_YET and text in done.stderr and "waits for" in done.stderr, done
    assert node.snapshot() == before
    node.run(mend)
    node.apply()
    assert node.status()["healthy"], node.status()["problems"]


def test_a_broken_file_is_refused_at_once_whatever_is_late(node):
    node.run("ip addr flush dev eth0 scope global")
    assert node.apply("{ broken", check=False).returncode == BAD_CONFIG
    node.run("ip addr add 203.0.113.9/32 dev eth0")
    done = node.apply(BOTH, check=False)        # and this address is for a gateway that the node is not
    assert done.returncode == BAD_CONFIG and "this node uses the address" in done.stderr and "waits" not in done.stderr


# --- what comes after an apply is named

def test_ipv6_of_a_gateway_that_comes_late(make_light_fleet):
    gateway = make_light_fleet(("worker1", "gateway1")).gateway1
    gateway.run("ip -6 addr flush dev eth0 scope global; ip -6 route flush default")
    done = gateway.apply(configuration(egress_class("web", "gateway1", egressIPs=[egress_ip(7), egress_ip(7, 6)])))
    for text in (f"the egress IP {egress_ip(7, 6)}, but no IPv6 address among", f"no route from egress IP {egress_ip(7, 6)} to ::/0"):
        assert f"warning: this node has {text}" in done.stdout and egress_ip(7) not in done.stdout, done
        assert text in problems(gateway)
    gateway.run(f"ip addr add {underlay('gateway1', 6)}/64 dev eth0 nodad")
    gateway.run("ip -6 route add default via 2001:db8:2::1")
    assert "no route" not in problems(gateway) and "among `nodes`, where" not in problems(gateway)
    assert underlay("gateway1", 6) in problems(gateway) and "egressctl apply" in problems(gateway)
    gateway.apply()
    assert gateway.status()["healthy"], problems(gateway)


def test_address_by_which_a_node_is_the_gateway_comes_late(node):
    """With another one it is a worker until then."""
    node.run(f"ip addr del {ADDRESS}/24 dev eth0; ip addr add 192.0.2.30/24 dev eth0; ip route add default via 192.0.2.1")
    node.apply(BOTH | {"nodes": ["192.0.2.11", ADDRESS, "192.0.2.30"]})
    assert node.status()["healthy"], problems(node)
    node.run(f"ip addr add {ADDRESS}/24 dev eth0")
    assert f"has got the address of the gateway {ADDRESS}" in problems(node)
    node.apply()
    assert node.status()["healthy"], problems(node)


def test_address_that_goes_after_apply(applied):
    applied.run(f"ip addr del {ADDRESS}/24 dev eth0; ip addr add 192.0.2.11/24 dev eth0")
    assert "192.0.2.11 now" in problems(applied) and f"has lost the address of the gateway {ADDRESS}" in problems(applied)


def test_network_of_an_egress_ip_that_comes_late(node):
    node.apply(BOTH)
    node.run("ip link add eth1 type veth peer name far1; ip link set eth1 up; ip link set far1 up; ip addr add 203.0.113.2/24 dev eth1")
    assert "egress IP 203.0.113.7 belongs on eth1" in problems(node)
    node.apply()
    assert node.status()["healthy"], problems(node)
    assert [bool(node.tcx(node.link(name)["ifindex"])["programs"]) for name in ("eth1", "eth0")] == [True, False]


def test_interface_of_an_egress_ip_that_goes_down(node):
    node.run("ip link add eth1 type veth peer name far1; ip link set eth1 up; ip link set far1 up")
    node.apply(light_configuration(light_class("web", gateways=[{"address": ADDRESS, "interface": "eth1"}]), FAR))
    assert node.status()["healthy"], problems(node)
    node.run("ip link set eth1 down")
    assert "eth1 is down" in problems(node)
