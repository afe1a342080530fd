# SPDX-License-Identifier: Apache-2.0
"""Connections that others open to a classed pod are answered the way they came, whatever the pod's class."""
import subprocess

import pytest
from labkit import LONG_PORT, Watch
from traffic import BILLING, EchoServer, Traffic, ask_udp, python, source, tunnelled

PLACES = ("worker1", "gateway1")
TCP, LONG, UDP = 18001, 18005, 18002


@pytest.fixture(scope="module", params=PLACES)
def server(fleet, request):
    """(node, pod): a classed pod with the echo server behind host ports; the router knows the way to the pods."""
    node = fleet.node(request.param)
    for spec in fleet.specs:
        fleet.router.run(f"ip route replace {spec.pods} via {spec.address}")
    pod = node.run_pod("server", "billing", host_ports={TCP: 7001, LONG: LONG_PORT})
    other = node.run_pod("server-udp", "billing", host_ports={UDP: 7001}, protocol="UDP")
    with EchoServer(pod), EchoServer(other):
        yield node, pod
    pod.remove()
    other.remove()


def watched(fleet, act):
    """What the uplinks have carried while `act` ran, and what that returned."""
    with Watch(fleet, {}) as watch:
        result = act()
        return result, watch.stop()


def assert_only_way_is(records, fleet, node, address):
    """Everything that outside was sent came from `address` by the uplink of `node`; nothing through a tunnel."""
    answers = [record for record in records["outside"] if record.dst == fleet.outside.address and record.proto != "arp"]
    assert answers and {record.src for record in answers} == {address}
    for name, seen in records.items():
        assert not tunnelled(seen), name
        if name not in (node.name, "outside"):
            assert not [record for record in seen if fleet.outside.address in (record.src, record.dst)], name


def test_tcp_to_a_host_port_is_answered_by_the_way_it_came(fleet, server):
    node, _ = server
    answer, records = watched(fleet, lambda: fleet.outside.connect(node.address, TCP))
    assert source(answer) == fleet.outside.address
    assert_only_way_is(records, fleet, node, node.address)
    assert {record.sport for record in records["outside"] if record.dst == fleet.outside.address and record.proto == "tcp"} == {TCP}


def test_udp_to_a_host_port_is_answered_by_the_way_it_came(fleet, server):
    node, _ = server
    answer, records = watched(fleet, lambda: ask_udp(fleet.outside, node.address, UDP))
    assert source(answer) == fleet.outside.address
    assert_only_way_is(records, fleet, node, node.address)


def test_tcp_to_the_pods_address_is_answered_by_the_way_it_came(fleet, server):
    node, pod = server
    answer, records = watched(fleet, lambda: fleet.outside.connect(pod.ip, 7001))
    assert source(answer) == fleet.outside.address
    assert_only_way_is(records, fleet, node, pod.ip)


def test_udp_to_the_pods_address_is_answered_by_the_way_it_came(fleet, server):
    node, pod = server
    answer, records = watched(fleet, lambda: ask_udp(fleet.outside, pod.ip, 7001))
    assert source(answer) == fleet.outside.address
    assert_only_way_is(records, fleet, node, pod.ip)


def test_ping_to_the_pods_address_is_answered_by_the_way_it_came(fleet, server):
    node, pod = server
    ping, records = watched(fleet, lambda: fleet.outside.run(["busybox", "ping", "-c", "3", "-i", "0.2", pod.ip]))
    assert ping.stdout.count(f"bytes from {pod.ip}") == 3
    assert_only_way_is(records, fleet, node, pod.ip)


def test_a_datagram_in_fragments_to_the_pods_address_is_answered_in_fragments_by_the_way_it_came(fleet, server):
    """The pod's own answer has to be as long: the server is a small one of our own."""
    node, pod = server
    server_script = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 7100))
print("ready", flush=True)
data, peer = server.recvfrom(65535)
server.sendto(data, peer)
"""
    with pod.popen(["/usr/bin/python3", "-SEB", "-c", server_script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        size, records = watched(fleet, lambda: python(fleet.outside, """
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect((sys.argv[1], 7100))
client.settimeout(5)
client.send(bytes(5000))
print(len(client.recv(65535)))
""", pod.ip))
    assert size == "5000"
    assert_only_way_is(records, fleet, node, pod.ip)


def test_a_pod_uses_its_egress_ip_while_others_are_connected_to_it(fleet, server):
    node, pod = server
    with Watch(fleet, {7001: BILLING}, inbound={LONG_PORT}) as watch, Traffic(fleet.outside, "lines", node.address, LONG) as inbound:
        inbound.await_more()
        for proto in ("tcp", "udp") * 3:
            assert source(pod.ask(fleet.outside.address, 7001, proto)) == BILLING
            inbound.await_more(1)
        answers = inbound.stop()
        watch.assert_no_leak()
    assert {source(answer) for answer in answers} == {fleet.outside.address}
    assert [int(answer.split()[2]) for answer in answers] == list(range(len(answers)))
