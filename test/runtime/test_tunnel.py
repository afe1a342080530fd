# SPDX-License-Identifier: Apache-2.0
"""Who may send tunnel packets, and what: everything else is dropped, counted and named."""
import pytest
from traffic import await_drops, drops, python, source, status, until

# script VNI GATEWAY INNER_SOURCE INNER_DESTINATION PORT: a UDP datagram in a VXLAN packet, to the tunnel port of a node
CRAFT = """
import socket, struct, sys
vni, gateway, src, dst, port = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~((total & 0xffff) + (total >> 16)) & 0xffff
payload = b"crafted"
udp = struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload
head = lambda value: struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, value, *map(socket.inet_aton, (src, dst)))
mac = lambda node: bytes([2, 0xec]) + socket.inet_aton(node)
frame = mac(gateway) + mac("192.0.2.99") + b"\\x08\\x00" + head(checksum(head(0))) + udp
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(5):
    client.sendto(struct.pack("!II", 0x08000000, vni << 8) + frame, (gateway, 8479))
"""
GATEWAY = "192.0.2.21"


def vni(fleet, name):
    return next(entry["vni"] for entry in status(fleet.node("gateway1"))["classes"] if entry["name"] == name)


@pytest.fixture
def pod(fleet, run_pod):
    pod = run_pod(fleet.node("worker1"), "a", "billing")
    assert source(pod.ask(fleet.outside.address, 7001)) == "203.0.113.7"
    return pod


def crafted(fleet, sender, number, target, reason, pod_ip, destination, port=7004):
    """Send crafted packets; they are counted for `reason` on the receiver, and nothing of them reaches outside."""
    receiver = next(node for node in fleet.nodes if node.address == target)
    before = drops(receiver).get(reason, 0)
    with fleet.capture(fleet.outside, expression=f"dst port {port}") as capture:
        python(fleet.host(sender), CRAFT, number, target, pod_ip, destination, port)
        assert await_drops(receiver, reason, more_than=before + 4) == before + 5
        assert capture.stop() == []


@pytest.mark.parametrize("sender", ["router", "outside"])
def test_tunnel_packets_of_unknown_senders_are_dropped(fleet, pod, sender):
    crafted(fleet, sender, vni(fleet, "billing"), GATEWAY, "unknown_sender", pod.ip, fleet.outside.address)


@pytest.mark.parametrize("sender", ["router", "outside"])
def test_probes_of_unknown_senders_are_not_answered(fleet, pod, sender):
    crafted(fleet, sender, 0, GATEWAY, "unknown_sender", pod.ip, fleet.outside.address)


def test_tunnel_packets_of_an_unknown_class_are_dropped(fleet, pod):
    crafted(fleet, "worker1", 4242, GATEWAY, "unknown_class", pod.ip, fleet.outside.address)


def test_tunnel_packets_to_a_node_that_is_no_gateway_are_dropped(fleet, pod):
    crafted(fleet, "worker1", vni(fleet, "billing"), "192.0.2.12", "not_gateway", pod.ip, fleet.outside.address)


@pytest.mark.parametrize("destination", ["192.0.2.12", "10.244.3.99", "10.96.0.1"])
def test_tunnel_packets_for_the_cluster_itself_are_dropped(fleet, pod, destination):
    crafted(fleet, "worker1", vni(fleet, "billing"), GATEWAY, "bad_destination", pod.ip, destination)


def test_a_known_sender_is_accepted(fleet, pod):
    """The crafted packet is a good one: what is refused above is refused for the reason that is named."""
    with fleet.capture(fleet.outside, expression="dst port 7004") as capture:
        python(fleet.host("worker1"), CRAFT, vni(fleet, "billing"), GATEWAY, pod.ip, fleet.outside.address, 7004)
        until(lambda: [seen for seen in fleet.outside.seen() if seen.dport == 7004], "the crafted packet at outside")
        assert {record.src for record in capture.stop()} == {"203.0.113.7"}


def test_a_reply_that_does_not_come_from_the_gateway_is_dropped(fleet, pod):
    crafted(fleet, "worker2", vni(fleet, "billing"), "192.0.2.11", "wrong_gateway", fleet.outside.address, pod.ip)
