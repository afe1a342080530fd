# SPDX-License-Identifier: Apache-2.0
"""State that others have changed, and neighbours that are none of ours: maps of another version, records that are lost, links that
somebody unpinned, bridges, sysctls, multicast, and pods that come and go without a pause."""
from __future__ import annotations

import json
import struct
import subprocess
import time
from contextlib import ExitStack

import pytest
from labkit import Capture
from light_node import BOTH, FAR, OUTSIDE, PINS, PLUGIN, PLUGINS, LightNode, NetPod, configuration, egress_class, network

EGRESS_IP = "203.0.113.7"
NEW = egress_class("new", vni=9, egressIPs=["203.0.113.90"])


def ifindex(node: LightNode, pod: NetPod) -> int:
    return node.link(pod.host_veth)["ifindex"]


def drops(node: LightNode) -> dict[str, int]:
    return {drop["reason"]: drop["packets"] for drop in node.status()["drops"]}


@pytest.fixture
def pod(applied, outside) -> NetPod:
    """A pod of the class web."""
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    assert applied.seen_as(pod) == EGRESS_IP
    return pod


# --- maps of another version

def another_layout(node: LightNode) -> None:
    value = struct.pack("I", 99) + node.map("node")[bytes(4)][4:]
    node.run(f"bpftool map update pinned {PINS}/maps/node key 0 0 0 0 value {' '.join(map(str, value))}")


def another_size(node: LightNode) -> None:
    size = len(node.map("node")[bytes(4)]) + 8
    node.run(f"rm {PINS}/maps/node; bpftool map create {PINS}/maps/node type array key 4 value {size} entries 1 name node")


@pytest.mark.parametrize("verb", ["apply", "down"])
@pytest.mark.parametrize("change", [another_layout, another_size])
def test_maps_of_another_version_are_refused_and_nothing_is_changed(applied, pod, outside, change, verb):
    node, start = applied, len(outside.seen())
    change(node)
    before = node.snapshot()
    done = node.ctl(verb, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert "the pinned maps are of another version" in done.stderr and f"{PINS}/maps/node" in done.stderr, done.stderr
    assert "nothing was changed" in done.stderr and "egressctl down" in done.stderr, done.stderr
    assert node.snapshot() == before
    assert node.seen_as(pod) == EGRESS_IP
    assert {entry.source for entry in outside.seen()[start:]} == {EGRESS_IP}


# --- records and links that are gone

def delete_record(node: LightNode, pod: NetPod) -> None:
    node.record(pod).unlink()


def newer_record(node: LightNode, pod: NetPod) -> None:
    record = json.loads(node.record(pod).read_text())
    assert record["version"] == 1
    node.record(pod).write_text(json.dumps(record | {"version": 2}))


@pytest.mark.parametrize("with_down", [False, True], ids=["apply", "down_and_apply"])
@pytest.mark.parametrize("lose", [delete_record, newer_record])
def test_pod_whose_record_is_lost_keeps_its_classifier_and_its_number(applied, pod, outside, tmp_path, lose, with_down):
    node = applied
    number, classifier = node.attachments()[ifindex(node, pod)][0], node.tcx(ifindex(node, pod))["programs"]
    assert number == node.class_ids()["web"] and classifier == node.classifiers()
    lose(node, pod)
    with Capture(outside, "eth0", f"dst host {OUTSIDE}", tmp_path / "outside.pcap") as capture:
        if with_down:
            assert "1 running pods" in node.ctl("down").stdout
            assert node.tcx(ifindex(node, pod))["programs"] == classifier
            assert node.seen_as(pod, 1) == ""
        node.apply(configuration(NEW))      # without web; the lowest number that is free is new's
        assert node.class_ids()["new"] not in (0, number)
        assert node.tcx(ifindex(node, pod))["programs"] == classifier
        assert node.seen_as(pod, 1) == ""
        assert capture.stop() == []
    assert drops(node)["class_removed"] > 0
    other = node.make_pod("p6", 6, namespace="new")
    node.add(other)
    assert node.seen_as(other) == "203.0.113.90"


def test_apply_gives_a_pod_the_classifier_back_that_somebody_unpinned(applied, pod):
    node, number = applied, ifindex(applied, pod)
    node.link_pin(number).unlink()
    deadline = time.monotonic() + 5
    while node.classifiers()[0] in node.tcx(number)["programs"]:
        assert time.monotonic() < deadline, "the link has another holder than its pin"
        time.sleep(0.01)
    assert node.seen_as(pod) == EGRESS_IP       # by the second classifier, which no pin holds
    node.apply()
    assert node.tcx(number)["programs"] == node.classifiers()
    assert node.check(pod).code == 0
    assert node.seen_as(pod) == EGRESS_IP


# --- neighbours

class Netns:
    """A network namespace on a node, as a place for captures."""

    def __init__(self, node: LightNode, name: str):
        self.node, self.name = node, name

    def popen(self, command, **options):
        return self.node.popen(["ip", "netns", "exec", self.name, *map(str, command)], **options)


def bridged_pod(node: LightNode, name: str, number: int, namespace: str) -> NetPod:
    """A pod on br0 whose next hop is 10.244.0.254, the router of the LAN."""
    pod = NetPod(name, f"10.244.0.{number}", f"h{name}", namespace=namespace)
    node.run(f"""
set -e
ip netns add {name}
ip link add {pod.host_veth} type veth peer name eth0 netns {name}
ethtool -K {pod.host_veth} tx off >/dev/null
ip link set {pod.host_veth} master br0 up
ip netns exec {name} sh -ec 'ip link set lo up; ethtool -K eth0 tx off >/dev/null; ip addr add {pod.address}/24 dev eth0
  ip link set eth0 up; ip route add default via 10.244.0.254'
""")
    pod.previous = {"cniVersion": "1.0.0", "interfaces": [{"name": pod.host_veth}, {"name": "eth0", "sandbox": pod.netns}],
                    "ips": [{"address": f"{pod.address}/24", "interface": 1}], "dns": {}}
    return pod


def test_bridge_does_not_carry_packets_of_a_classed_pod_past_the_node(applied, outside, tmp_path):
    """A flat network: the pods' bridge has the node's LAN as a port, the router there is the pods' next hop, and nft sees nothing of
    what is bridged."""
    node = applied
    node.run("""
set -e
ip link add br0 type bridge
ip link set br0 up
ip addr add 10.244.0.1/24 dev br0
ip netns add lan
ip link add up0 type veth peer name eth0 netns lan
ip link set up0 master br0 up
ip netns exec lan sh -ec 'ip addr add 10.244.0.254/24 dev eth0; ip link set eth0 up; echo 1 >/proc/sys/net/ipv4/ip_forward'
for family in iptables ip6tables arptables; do
  [ ! -e /proc/sys/net/bridge/bridge-nf-call-$family ] || echo 0 >/proc/sys/net/bridge/bridge-nf-call-$family
done
""")
    classed, plain = bridged_pod(node, "p5", 5, "web"), bridged_pod(node, "p6", 6, "other")
    for each in classed, plain:
        node.add(each)
    with Capture(Netns(node, "lan"), "eth0", f"dst host {OUTSIDE}", tmp_path / "lan.pcap") as capture:
        seen = node.seen_as(classed)
        node.seen_as(plain, 1)
        passed = {record.src for record in capture.stop()}
    assert passed == {plain.address}    # so the classed pod's would have got there too
    assert seen == EGRESS_IP


def test_down_leaves_forwarding_to_who_has_made_the_node_a_router_since(node, outside):
    node.run("echo 0 >/proc/sys/net/ipv4/ip_forward")
    node.apply(BOTH)
    plain = node.make_pod("p6", 6, namespace="other")
    node.run("echo 1 >/proc/sys/net/ipv4/ip_forward")
    assert node.seen_as(plain) == plain.address
    node.ctl("down")
    assert node.seen_as(plain) == plain.address


JOIN = """
import socket, struct, sys
index, groups = socket.if_nametoindex("eth0"), []
for number in range(1, 5):
    four, six = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    four.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                    struct.pack("4s4si", socket.inet_aton(f"239.1.2.{number}"), bytes(4), index))
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP,
                   struct.pack("16si", socket.inet_pton(socket.AF_INET6, f"ff05::{number}"), index))
    groups += [four, six]
"""


def test_reports_of_multicast_groups_are_not_dropped(applied, outside, tmp_path):
    """The kernel keeps something else where other packets have their mark."""
    node, disable = applied, "/proc/sys/net/ipv6/conf/eth0/disable_ipv6"
    seen = set()
    with Capture(outside, "eth0", "igmp or ip6", tmp_path / "reports.pcap") as capture:
        deadline = time.monotonic() + 10
        while not seen >= {("2", ""), ("icmp6", "type 143")} and time.monotonic() < deadline:
            node.run(f"echo 1 >{disable}; echo 0 >{disable}")
            node.run(["/usr/bin/python3", "-SEB", "-c", JOIN])
            time.sleep(0.5)
            seen = {(record.proto, record.info) for record in capture.records()}
        capture.stop()
    assert drops(node).get("wrong_source", 0) == 0
    assert seen >= {("2", ""), ("icmp6", "type 143")}       # an IGMP and an MLD report


# --- pods that come and go

CHURN = """
export CNI_PATH={path} CNI_CONTAINERID={pod.name} CNI_NETNS={pod.netns} CNI_IFNAME={pod.ifname} 'CNI_ARGS={pod.args}'
while :; do
  for verb in ADD DEL; do
    CNI_COMMAND=$verb {plugin} <<'END' >/dev/null && echo $verb
{config}
END
  done
done
"""


def test_apply_is_not_starved_by_pods_that_come_and_go(applied, tmp_path):
    node = applied
    pods = [node.make_pod(f"p{number}", number) for number in range(10, 18)]
    with ExitStack() as stack:
        logs = []
        for pod in pods:
            logs.append(tmp_path / pod.name)
            script = CHURN.format(path=f"{PLUGINS}:{PLUGIN.parent}", pod=pod, plugin=PLUGIN, config=json.dumps(network(pod.previous)))
            log = stack.enter_context(logs[-1].open("w"))
            stack.enter_context(node.popen(script, stdout=log, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 20
        while not all(log.read_text().count("DEL") >= 2 for log in logs):
            assert time.monotonic() < deadline, "the pods do not come and go"
            time.sleep(0.05)
        for config in (configuration(FAR), BOTH, configuration(FAR), BOTH):
            start = time.monotonic()
            done = node.apply(config, check=False)
            assert done.returncode == 0 and time.monotonic() - start < 10, done.stderr
        before = [log.read_text().count("ADD") for log in logs]
        time.sleep(2)
        assert all(log.read_text().count("ADD") > count for log, count in zip(logs, before)), "nor do pods starve"
