# SPDX-License-Identifier: Apache-2.0
"""A classed pod may send with its own addresses only: nobody else's egress, and nobody else's blame."""
import pytest
from traffic import ALL_NODES, BILLING, await_drops, drops, python, source, until

RAW = """
import socket, struct, sys
src, dst, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
udp = struct.pack("!HHHH", 40000, port, 12, 0) + b"fake"
head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, socket.inet_aton(src), socket.inet_aton(dst))
client = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for _ in range(5):
    client.sendto(head + udp, (dst, 0))
"""
FRAME = """
import socket, struct, sys
src, dst, port, mac, tag = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], bytes.fromhex(sys.argv[5])
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~((total & 0xffff) + (total >> 16)) & 0xffff
client = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
client.bind(("eth0", 0))
source = bytes.fromhex(mac.replace(":", "")) if mac else client.getsockname()[4]
udp = struct.pack("!HHHH", 40000, port, 12, 0) + b"fake"
head = lambda value: struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, value, *map(socket.inet_aton, (src, dst)))
bridge = bytes.fromhex(sys.argv[6].replace(":", ""))
for _ in range(5):
    client.send(bridge + source + tag + head(checksum(head(0))) + udp)
"""
IPV4, IPV6, VLAN, OTHER = "0800", "86dd", "81000005" + "0800", "88b5"


@pytest.fixture(params=ALL_NODES)
def pod(fleet, run_pod, request):
    pod = run_pod(fleet.node(request.param), "a", "billing")
    assert source(pod.ask(fleet.outside.address, 7001)) == BILLING
    return pod


def frames(fleet, pod, src, mac="", tag=IPV4):
    bridge = pod.node.path("/sys/class/net/cni0/address").read_text().strip()
    python(pod, FRAME, src, fleet.outside.address, 7004, mac, tag, bridge)


def dropped(fleet, pod, reason, send):
    before = drops(pod.node).get(reason, 0)
    with fleet.capture(fleet.outside, expression="port 7004 or ether proto 0x88b5 or vlan") as capture:
        send()
        assert await_drops(pod.node, reason, more_than=before + 4) == before + 5
        assert capture.stop() == []


@pytest.mark.parametrize("src", ["10.244.9.9", "192.0.2.11", "203.0.113.8", "198.51.100.77"])
def test_another_source_address_is_dropped(fleet, pod, src):
    dropped(fleet, pod, "spoofed", lambda: python(pod, RAW, src, fleet.outside.address, 7004))


def test_the_address_of_another_pod_of_the_same_class_is_dropped(fleet, pod, run_pod):
    other = run_pod(pod.node, "b", "billing")
    dropped(fleet, pod, "spoofed", lambda: python(pod, RAW, other.ip, fleet.outside.address, 7004))


def test_another_mac_address_is_dropped(fleet, pod):
    dropped(fleet, pod, "spoofed", lambda: frames(fleet, pod, pod.ip, mac="02:00:00:00:00:01"))


@pytest.mark.parametrize("tag", [VLAN, OTHER], ids=["vlan_tag", "other_ethertype"])
def test_what_is_not_ip_is_dropped(fleet, pod, tag):
    dropped(fleet, pod, "not_ip", lambda: frames(fleet, pod, pod.ip, tag=tag))


def test_an_honest_raw_packet_goes_out_with_the_egress_ip(fleet, pod):
    """The crafted packets are good ones: what is refused above is refused for the reason that is named."""
    for send in (lambda: python(pod, RAW, pod.ip, fleet.outside.address, 7004), lambda: frames(fleet, pod, pod.ip)):
        with fleet.capture(fleet.outside, expression="dst port 7004") as capture:
            start = len(fleet.outside.seen())
            send()
            until(lambda: len(fleet.outside.seen()) >= start + 5, "the packets at outside")
            assert {record.src for record in capture.stop()} == {BILLING}
