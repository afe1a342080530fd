# SPDX-License-Identifier: Apache-2.0
"""kube-proxy in its IPVS mode. A service's address is the node's (on kube-ipvs0), so a pod's packet to it comes in for the node, and IPVS
sends it on from there: by the output and postrouting hooks, with the device set that it came in by, and never by the forward hook."""
from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from labkit.capture import Record
from light_fleet import (MARK_MASK, REMOTES, UNDERLAY, FleetNode, FleetPod, LightFleet, Tap, configuration, egress_class, egress_ip,
                         underlay, until)
from traffic import FAMILIES, KINDS, ask, opened, send

LIGHT_FLEET = {"nodes": ["worker1", "worker2", "gateway1"]}
SERVICE, OUTSIDE_SERVICE = {4: "10.96.0.10", 6: "fd00:96::10"}, {4: "10.96.0.11", 6: "fd00:96::11"}
SERVICES = ["10.96.0.0/12", "fd00:96::/112"]
PORT = 5353
FAMILY = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
WORD = {4: "ip", 6: "ip6"}


@pytest.fixture(scope="module")
def fleet(light_fleet) -> LightFleet:
    config = configuration(egress_class("web", "gateway1", egressIPs=[egress_ip(7), egress_ip(7, 6)]))
    light_fleet.apply(config | {"clusterCIDRs": config["clusterCIDRs"] + SERVICES})
    for node in light_fleet.nodes:
        # a bridge without ports is as good as kube-proxy's dummy, and every kernel has one
        node.run("ip link add kube-ipvs0 type bridge; echo 0 >/proc/sys/net/ipv6/conf/kube-ipvs0/accept_dad; ip link set kube-ipvs0 up")
        for family, bits in (4, 32), (6, 128):
            for address in SERVICE[family], OUTSIDE_SERVICE[family]:
                node.run(f"ip addr add {address}/{bits} dev kube-ipvs0 {'nodad' if family == 6 else ''}")
    return light_fleet


@pytest.fixture(scope="module")
def clients(fleet) -> dict[tuple[str, str], FleetPod]:
    """(node, namespace) -> pod; a class's pods on its worker and on its gateway, and others for comparison."""
    return {(node.name, namespace): node.pod(f"c-{namespace}", namespace) for node in (fleet.worker1, fleet.gateway1)
            for namespace in ("web", "other")}


@pytest.fixture(scope="module")
def server(fleet) -> FleetPod:
    """The endpoint of the services, on another node."""
    return fleet.worker2.pod("server", "other")


# --- the way, without IPVS

def dropped(node: FleetNode) -> int:
    return node.drops().get("service_outside", 0)


def queries(records: list[Record]) -> list[Record]:
    return [record for record in records if record.proto == "udp" and record.dport == PORT]


def redirect(node: FleetNode, family: int, address: str, to: str, router: str) -> None:
    """From the input hook on, as IPVS has it: a packet for a service goes to an endpoint, and conntrack does not know it. The copy that
    `dup` makes leaves by the same hooks, and with the same device and mark."""
    word = WORD[family]
    node.nft(f"add table {word} service\nflush table {word} service\ntable {word} service {{\n  chain in {{\n"
             f"    type filter hook input priority 99\n"
             f"    {word} daddr {address} udp dport {PORT} {word} daddr set {to} dup to {router}\n  }}\n}}")


@FAMILY
@pytest.mark.parametrize("where", ["worker1", "gateway1"])
@pytest.mark.parametrize("namespace", ["web", "other"])
def test_what_leaves_from_the_input_hook_for_the_cluster_goes_on(fleet, clients, server, family, where, namespace):
    """With the pod's address, and without a mark."""
    node, pod = fleet.hosts[where], clients[where, namespace]
    redirect(node, family, SERVICE[family], server.ip(family), underlay("worker2", family))
    before = dropped(node)
    with closing(Tap(node, mark=(0, MARK_MASK))) as unmarked:
        send(pod, SERVICE[family], PORT, count=3)
        found = []
        until(lambda: found.extend(unmarked.records()) or len(queries(found)) >= 3, what=lambda: f"{found} {node.drops()}")
    assert [(record.src, record.dst) for record in queries(found)] == [(pod.ip(family), server.ip(family))] * 3
    assert dropped(node) == before


@FAMILY
@pytest.mark.parametrize("where", ["worker1", "gateway1"])
def test_what_leaves_from_the_input_hook_for_the_outside_is_dropped(fleet, clients, family, where):
    """The endpoint of a service may be outside of the cluster; the class was not asked. Without a class it goes out."""
    node, pod = fleet.hosts[where], clients[where, "web"]
    redirect(node, family, OUTSIDE_SERVICE[family], REMOTES[family][0], UNDERLAY[family].format(1))
    before = dropped(node)
    with fleet.watch([]) as watch:
        send(pod, OUTSIDE_SERVICE[family], PORT, count=3)
        until(lambda: dropped(node) == before + 3, what=lambda: str(node.drops()))
    watch.assert_no_leak(busy=[])
    with fleet.watch([]) as watch:
        send(clients[where, "other"], OUTSIDE_SERVICE[family], PORT)
        watch.wait(where, dport=PORT)


# --- with IPVS

@pytest.fixture(scope="module")
def ipvs(fleet) -> Iterator[LightFleet]:
    """Services of kube-proxy on worker1 and gateway1."""
    subprocess.run(["modprobe", "-q", "-a", "ip_vs", "ip_vs_rr"], check=False)
    if not Path("/proc/net/ip_vs").exists():
        pytest.skip("this kernel has no IPVS; `make test-kernel` runs one that has")
    for node in fleet.nodes:
        for family in FAMILIES:
            node.run(f"nft delete table {WORD[family]} service 2>/dev/null", check=False)
        node.run("echo 1 >/proc/sys/net/ipv4/vs/conntrack")      # kube-proxy sets it
    yield fleet


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def publish(node: FleetNode, address: str, endpoint: str, port: int) -> None:
    for kind in "-u", "-t":
        node.run(f"ipvsadm -D {kind} {bracketed(address)}:{port} 2>/dev/null; ipvsadm -A {kind} {bracketed(address)}:{port} -s rr; "
                 f"ipvsadm -a {kind} {bracketed(address)}:{port} -r {bracketed(endpoint)}:{port} -m")


def masquerade_all(node: FleetNode) -> None:
    """As kube-proxy does it: a mark of its own in prerouting, for what is for a service."""
    marks = "".join(f"    {word} daddr {address} meta mark set meta mark | 0x4000\n" for word, address in (("ip", SERVICE[4]), ("ip6", SERVICE[6])))
    node.nft("add table inet services\nflush table inet services\ntable inet services {\n"
             f"  chain pre {{\n    type nat hook prerouting priority dstnat\n{marks}  }}\n"
             "  chain post {\n    type nat hook postrouting priority srcnat\n"
             "    meta mark & 0x4000 != 0 meta mark set meta mark ^ 0x4000 masquerade fully-random\n  }\n}")


@FAMILY
@pytest.mark.parametrize("mode", ["as it is", "masqueradeAll"])
@pytest.mark.parametrize("where", ["worker1", "gateway1"])
@pytest.mark.parametrize("namespace", ["web", "other"])
def test_service_answers(ipvs, clients, server, family, mode, where, namespace):
    """TCP and UDP; with masqueradeAll the endpoint sees the node, else the pod."""
    node, pod = ipvs.hosts[where], clients[where, namespace]
    publish(node, SERVICE[family], server.ip(family), PORT)
    node.run("nft delete table inet services 2>/dev/null", check=False)
    if mode == "masqueradeAll":
        masquerade_all(node)
    expected = {pod.ip(family)} if mode == "as it is" else set(node_addresses(node, family))
    for proto in "tcp", "udp":
        with server.socket(FAMILIES[family], KINDS[proto]) as listener, opened(pod, SERVICE[family], proto) as client:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((server.ip(family), PORT))
            listener.settimeout(5)
            client.settimeout(5)
            if proto == "tcp":
                listener.listen()
            client.connect((SERVICE[family], PORT))
            client.sendall(b"question")
            if proto == "udp":
                _, peer = listener.recvfrom(99)
                listener.sendto(b"answer", peer)
            else:
                connection, peer = listener.accept()
                with connection:
                    connection.sendall(b"answer")
            assert client.recv(99) == b"answer"
            assert peer[0] in expected
    node.run("nft delete table inet services 2>/dev/null", check=False)


def node_addresses(node: FleetNode, family: int) -> list[str]:
    words = node.run(f"ip -{family} -o addr show dev eth0").stdout.split()
    return [words[at + 1].split("/")[0] for at, word in enumerate(words) if word in ("inet", "inet6")]


@FAMILY
@pytest.mark.parametrize("where", ["worker1", "gateway1"])
def test_service_with_an_endpoint_outside_is_refused(ipvs, clients, family, where):
    """The class was not asked: nothing of it leaves. Its egress traffic does, with the egress IP."""
    node, pod = ipvs.hosts[where], clients[where, "web"]
    publish(node, OUTSIDE_SERVICE[family], REMOTES[family][0], 7001)
    before = dropped(node)
    with ipvs.watch([egress_ip(7, family)]) as watch:
        assert ask(pod, OUTSIDE_SERVICE[family], 7001, "udp", timeout=1) is None
        assert dropped(node) > before
        assert ask(pod, REMOTES[family][0], 7001, "udp").source == egress_ip(7, family)
    watch.assert_no_leak()
