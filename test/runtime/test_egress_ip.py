# SPDX-License-Identifier: Apache-2.0
"""The main job: what a classed pod sends has its class's egress IP, wherever the pod is; what other pods send has not."""
from concurrent.futures import ThreadPoolExecutor

import pytest
from labkit import HTTP_PORT, Watch
from traffic import ALL_NODES, BILLING, SHOP, ask_udp, pings, python, source, tunnelled

BYTES = 50_000_000


@pytest.fixture(scope="module")
def pods(fleet):
    """(class, node) -> pod: two classes and none, on every node."""
    made = {}
    for name in ALL_NODES:
        node = fleet.node(name)
        made["billing", name] = node.run_pod("any", "billing")
        made["shop", name] = node.run_pod("checkout-1", "shop")
        made["none", name] = node.run_pod("plain")
    return made


def expected(fleet, kind, node):
    return {"billing": BILLING, "shop": SHOP, "none": fleet.node(node).address}[kind]


@pytest.fixture(params=ALL_NODES)
def node(request):
    return request.param


@pytest.fixture(params=["billing", "shop", "none"])
def kind(request):
    return request.param


def test_tcp_leaves_with_the_right_source(fleet, pods, kind, node):
    assert source(pods[kind, node].ask(fleet.outside.address, 7001)) == expected(fleet, kind, node)


def test_udp_leaves_with_the_right_source(fleet, pods, kind, node):
    assert source(pods[kind, node].ask(fleet.outside.address, 7001, "udp")) == expected(fleet, kind, node)


def test_icmp_echo_leaves_with_the_right_source_and_is_answered(fleet, pods, kind, node):
    with fleet.capture(fleet.outside, expression="icmp[icmptype] = icmp-echo") as capture:
        assert pings(pods[kind, node], fleet.outside.address) == 3
        requests = capture.stop()
    assert [request.src for request in requests] == [expected(fleet, kind, node)] * 3


def test_a_datagram_in_fragments_arrives_whole_from_the_egress_ip(fleet, pods, node):
    with Watch(fleet, {}, others={BILLING}) as watch:
        answer = python(pods["billing", node], """
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(5)
client.sendto(bytes(5000), (sys.argv[1], 7001))
print(client.recv(512).decode())
""", fleet.outside.address)
        records = watch.assert_no_leak()
    assert source(answer) == BILLING
    assert len([record for record in records["outside"] if record.dst == fleet.outside.address]) >= 4


def test_fifty_megabytes_come_down_to_a_classed_pod(fleet, pods, node):
    with Watch(fleet, {HTTP_PORT: BILLING}, others=(), expression=f"dst host {fleet.outside.address} or udp port 8479") as watch:
        size = pods["billing", node].exec(["sh", "-c", f"wget -q -O - http://{fleet.outside.address}:{HTTP_PORT}/bytes/{BYTES} | wc -c"],
                                          timeout=60).stdout
        watch.assert_no_leak()
    assert int(size) == BYTES


def test_fifty_megabytes_go_up_from_a_classed_pod(fleet, pods, node):
    with Watch(fleet, {HTTP_PORT: BILLING}, others=(), expression=f"dst host {fleet.outside.address} or udp port 8479") as watch:
        answer = python(pods["billing", node], """
import http.client, sys
client = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=30)
client.request("POST", "/", bytes(int(sys.argv[3])))
print(client.getresponse().read().decode())
""", fleet.outside.address, HTTP_PORT, BYTES)
        watch.assert_no_leak()
    address, _, length = answer.split()
    assert (address, int(length)) == (BILLING, BYTES)


def test_two_classes_never_mix(fleet, pods):
    """Each class has a port of its own; hundreds of connections and datagrams of both at the same time, from all nodes."""
    def talk(kind, node, port):
        return python(pods[kind, node], """
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
sources = set()
for turn in range(100):
    with socket.create_connection((address, port), timeout=10) as client:
        sources.add(client.recv(512).decode().split()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((address, port))
        client.settimeout(10)
        client.send(b"?")
        sources.add(client.recv(512).decode().split()[0])
print(*sources)
""", fleet.outside.address, port)

    jobs = [(kind, node, port) for kind, port in (("billing", 7001), ("shop", 7002), ("none", 7003)) for node in ALL_NODES]
    with Watch(fleet, {7001: BILLING, 7002: SHOP}) as watch, ThreadPoolExecutor(len(jobs)) as threads:
        answers = list(threads.map(lambda job: talk(*job), jobs))
        records = watch.assert_no_leak()["outside"]
    assert answers == [expected(fleet, kind, node) for kind, node, _ in jobs]
    for port, sources in ((7001, {BILLING}), (7002, {SHOP}), (7003, {node.address for node in fleet.nodes})):
        assert {record.src for record in records if record.dport == port} == sources


def test_the_packets_of_a_classed_pod_go_through_the_tunnel_only(fleet, pods):
    """Between worker and gateway there is nothing of the flow but tunnel packets."""
    worker = fleet.node("worker1")
    with fleet.capture(worker) as capture:
        assert source(pods["billing", "worker1"].ask(fleet.outside.address, 7004)) == BILLING
        records = capture.stop()
    assert len(tunnelled(records)) >= 6
    assert not [record for record in records if fleet.outside.address in (record.src, record.dst)]


def test_a_connected_udp_socket_gets_its_answer_from_the_address_it_asked(fleet, pods, node):
    assert source(ask_udp(pods["billing", node], fleet.outside.address, 7001)) == BILLING
