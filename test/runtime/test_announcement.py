# SPDX-License-Identifier: Apache-2.0
"""The network learns at once where an egress IP is."""
import json

from traffic import ALL_NODES, BILLING, SHOP, source, until


def neighbour(fleet, address):
    found = json.loads(fleet.router.run(["ip", "-j", "neigh", "show", address]).stdout)
    return found[0].get("lladdr") if found else None


def test_every_egress_ip_is_announced_by_gratuitous_arp_when_it_is_placed(own_fleet):
    gateway = own_fleet.node("gateway1")
    gateway.run(["egressctl", "down"])
    with own_fleet.capture(own_fleet.router, "br0", "arp") as capture:
        gateway.run(["egressctl", "apply"])
        announced = [record for record in capture.stop() if record.src == record.dst]
    assert {record.src for record in announced} == {BILLING, SHOP}
    mac = bytes.fromhex(gateway.path("/sys/class/net/eth0/address").read_text().strip().replace(":", ""))
    for record in announced:
        assert record.frame[:6] == b"\xff" * 6 and record.frame[6:12] == mac and record.frame[22:28] == mac


def test_a_router_that_has_another_machine_in_mind_is_corrected(own_fleet):
    gateway = own_fleet.node("gateway1")
    mac = gateway.path("/sys/class/net/eth0/address").read_text().strip()
    gateway.run(["egressctl", "down"])
    for address in BILLING, SHOP:
        own_fleet.router.run(f"ip neigh replace {address} lladdr 02:00:00:00:00:01 dev br0 nud reachable")
    gateway.run(["egressctl", "apply"])
    for address in BILLING, SHOP:
        until(lambda: neighbour(own_fleet, address) == mac, f"{address} at {mac}", timeout=3)
    for name in ALL_NODES:
        pod = own_fleet.node(name).run_pod("a", "billing")
        assert source(pod.ask(own_fleet.outside.address, 7001, timeout=2)) == BILLING


def test_nodes_that_are_no_gateway_hold_no_egress_ip(own_fleet):
    for name in "worker1", "worker2":
        assert "203.0.113." not in own_fleet.node(name).run("ip addr").stdout
