# SPDX-License-Identifier: Apache-2.0
"""Traffic within the cluster is none of ours: for a classed pod it looks exactly as for a pod without a class."""
import pytest
from traffic import ALL_NODES, EchoServer, ask_udp, pings, source, tunnelled

HOST_PORT = 18001
PAIRS = [(here, there) for here in ALL_NODES for there in ALL_NODES]


@pytest.fixture(scope="module")
def cluster(fleet):
    """(kind, node) -> pod, with an echo server in the host network of every node, and in a pod with a host port there."""
    pods, servers = {}, []
    for node in fleet.nodes:
        pods["classed", node.name] = node.run_pod("client", "billing")
        pods["plain", node.name] = node.run_pod("client")
        pods["server", node.name] = node.run_pod("server", host_ports={HOST_PORT: 7001})
        pods["classed server", node.name] = node.run_pod("checkout-server", "shop")
        servers += [EchoServer(node), EchoServer(pods["server", node.name]), EchoServer(pods["classed server", node.name])]
    yield pods
    for server in servers:
        server.__exit__()


@pytest.fixture(params=PAIRS, ids=lambda pair: "-to-".join(pair))
def pair(request):
    return request.param


@pytest.mark.parametrize("server", ["server", "classed server"])
def test_pod_to_pod_keeps_the_pods_address(cluster, pair, server):
    here, there = pair
    pod, target = cluster["classed", here], cluster[server, there]
    assert source(pod.ask(target.ip, 7001)) == pod.ip
    assert source(ask_udp(pod, target.ip, 7001)) == pod.ip
    assert pings(pod, target.ip, 1) == 1


def test_pod_to_host_port_is_as_for_a_plain_pod(fleet, cluster, pair):
    here, there = pair
    address = fleet.node(there).address
    plain = source(cluster["plain", here].ask(address, HOST_PORT))
    classed = source(cluster["classed", here].ask(address, HOST_PORT))
    if here == there and plain == cluster["plain", here].ip:
        plain = cluster["classed", here].ip
    assert plain and classed == plain


def test_pod_to_node_is_as_for_a_plain_pod(fleet, cluster, pair):
    here, there = pair
    address = fleet.node(there).address
    classed, plain = cluster["classed", here], cluster["plain", here]
    for pod in plain, classed:
        # the node's own CNI masquerades what leaves by the uplink
        expected = pod.ip if here == there else fleet.node(here).address
        assert source(pod.ask(address, 7002)) == expected
        assert pings(pod, address, 1) == 1
        if here != there:       # (a wildcard UDP socket of the own node would answer from the address of cni0)
            assert source(ask_udp(pod, address, 7002)) == expected


def test_node_to_classed_pod_works(fleet, cluster, pair):
    here, there = pair
    answer = fleet.node(here).run(["busybox", "timeout", "5", "busybox", "nc", cluster["classed server", there].ip, "7001"]).stdout
    assert source(answer)


def test_a_pod_reaches_the_gateway_of_its_own_subnet(cluster):
    for name in ALL_NODES:
        pod = cluster["classed", name]
        bridge = pod.ip.rpartition(".")[0] + ".1"
        assert source(pod.ask(bridge, 7002)) == pod.ip
        assert source(ask_udp(pod, bridge, 7002)) == pod.ip


def test_nothing_of_it_goes_through_the_tunnel(fleet, cluster):
    pod, target = cluster["classed", "worker1"], cluster["classed server", "worker2"]
    with fleet.capture(fleet.node("worker1")) as capture:
        assert source(pod.ask(target.ip, 7001)) == pod.ip
        assert source(pod.ask(fleet.node("gateway1").address, 7002)) == fleet.node("worker1").address
        records = capture.stop()
    assert records and not tunnelled(records)
