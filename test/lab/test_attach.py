# SPDX-License-Identifier: Apache-2.0
"""What ADD does to the kernel, DEL undoes, and CHECK compares: pods behind veths made by hand and by Debian's CNI plugins."""
from __future__ import annotations

import fcntl
import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from light_node import (BOTH, BRIDGE, HOST_LOCAL, OURS, PINS, PTP, WEB, Answer, Chain, LightNode, NetPod, configuration, egress_class,
                        network)

EGRESS_IP = "203.0.113.7"


def refused(answer: Answer, code: int, *texts: str) -> None:
    assert answer.code != 0 and answer.json["code"] == code, answer
    for text in texts:
        assert text in answer.json["msg"] + "; " + answer.json["details"], answer


def ifindex(node: LightNode, pod: NetPod) -> int:
    return node.link(pod.host_veth)["ifindex"]


def same(snapshot: str) -> str:
    """Without the times and inodes of files."""
    return re.sub(r"^(/(?:run|var/lib)/egressclass/\S+).*", r"\1", snapshot, flags=re.MULTILINE)


def in_force(node: LightNode, pod: NetPod, *addresses: str, class_name: str = "web") -> None:
    """The kernel's state of this one pod is all there, and right."""
    index, inside = node.link(pod.host_veth), node.link(pod.ifname, pod.name)
    number, class_id = index["ifindex"], node.class_ids()[class_name]
    assert node.attachments()[number] == (class_id, inside["address"])
    expected = (number, class_id, inside["address"], index["address"])
    assert {a: e for a, e in node.endpoints().items() if e[0] == number} == {a: expected for a in addresses or (pod.address,)}
    assert node.link_pin(number).exists()
    assert node.tcx(number)["programs"][:2] == node.classifiers()
    record = json.loads(node.record(pod).read_text())
    assert (record["class"], record["classID"], record["hostVeth"]) == (class_name, class_id, pod.host_veth)


# --- the host veth by the kernel's word, whatever prevResult says

POD, DECOY, MAC = "10.244.0.5/24", "decoy0", "0a:58:0a:f4:00:05"


def result(interfaces: list, ips: list, version: str = "1.0.0") -> dict:
    return {"cniVersion": version, "interfaces": interfaces, "ips": ips, "routes": [{"dst": "0.0.0.0/0"}], "dns": {}}


def inner(name: str = "eth0", **keys) -> dict:
    return {"name": name, "mac": MAC, "sandbox": "NETNS", **keys}


SHAPES = {
    "bridge": result([{"name": "cni0", "mac": MAC}, {"name": DECOY, "mac": MAC}, inner()], [{"address": POD, "interface": 2}]),
    "ptp": result([{"name": DECOY, "mac": MAC}, inner()], [{"version": "4", "address": POD, "interface": 1}], "0.4.0"),
    "flannel": result([{"name": "cni0"}, {"name": DECOY}, inner()], [{"version": "4", "address": POD, "interface": 2}], "0.3.1"),
    "Calico": result([{"name": DECOY, "mac": "ee:ee:ee:ee:ee:ee"}], [{"address": "10.244.0.5/32"}]),
    "Cilium": result([{"name": DECOY, "mac": MAC}, inner(mtu=1500)], [{"address": "10.244.0.5/32", "gateway": "10.244.0.9", "interface": 1}],
                     "1.1.0"),
    "kindnet": result([{"name": DECOY}, inner()], [{"version": "4", "address": POD, "interface": 1}], "0.3.1"),
    "AWS VPC CNI with its fake interface": result(
        [{"name": DECOY, "mac": MAC, "sandbox": ""}, inner(mac="254"), {"name": "dummy5f0a", "mac": "0", "sandbox": "0"}],
        [{"address": "10.244.0.5/32", "interface": 1}]),
    "azure-vnet with an empty sandbox on the container's interface": result([{"name": "eth0", "mac": MAC, "sandbox": ""}],
                                                                           [{"address": POD, "interface": 0}]),
    "Multus net1": result([{"name": DECOY}, inner("net1")], [{"address": POD, "interface": 1}]),
    "IPv6-only": result([{"name": DECOY}, inner()], [{"address": "fd00:10:244::5/64", "interface": 1}]),
    "dual stack": result([{"name": DECOY}, inner()], [{"address": POD, "interface": 1}, {"address": "fd00:10:244::5/64", "interface": 1}]),
    "empty ips": result([{"name": DECOY}, inner()], []),
    "ips with a bad index": result([{"name": DECOY}, inner()], [{"address": "10.244.0.66/24", "interface": 7},
                                                                {"address": "10.244.0.67/24", "interface": 0},
                                                                {"address": POD, "interface": 1}]),
    "ips without an index": result([{"name": DECOY}, inner()], [{"address": POD}]),
    "null lists": {"cniVersion": "1.0.0", "interfaces": None, "ips": None},
}
V6 = "fd000010024400000000000000000005"


@pytest.mark.parametrize("shape", [pytest.param(name, id=f"CNI-28 {name}") for name in SHAPES])
def test_host_veth_is_found_whatever_the_result_says(applied, shape):
    """CNI-24, CNI-27, CNI-29, CNI-30: what the result names as the host's end is a device of this node, but another one."""
    node = applied
    node.run(f"ip link add {DECOY} type veth peer name decoy1; ip link set {DECOY} up; ip link set decoy1 up")
    pod = node.make_pod("p5", 5, ifname="net1" if "net1" in shape else "eth0", host_veth="q7", ipv6=True)
    addresses = [pod.address]
    if shape in ("IPv6-only", "dual stack"):
        node.in_pod(pod, f"ip addr add fd00:10:244::5/64 dev {pod.ifname} nodad")
        addresses.append(V6)
    if shape == "IPv6-only":
        node.in_pod(pod, f"ip addr del {pod.address}/32 dev {pod.ifname}")
        addresses = [V6]
    pod.previous = json.loads(json.dumps(SHAPES[shape]).replace("NETNS", pod.netns))
    config = network(pod.previous, pod.previous["cniVersion"])
    others = [node.link(name)["ifindex"] for name in (DECOY, "eth0", "ec0")]
    before = [node.tcx(ifindex) for ifindex in others]
    answer = node.add(pod, config)
    assert answer.json == pod.previous
    in_force(node, pod, *addresses)
    assert [node.tcx(ifindex) for ifindex in others] == before and before[0]["programs"] == []
    assert len(node.attachments()) == 1
    if config["cniVersion"] >= "0.4.0":
        assert node.check(pod, config).out == ""
    node.delete(pod, config)
    assert node.traces_of_pods() == []


def test_addresses_of_the_result_are_the_pods_before_they_are_on_its_interface(applied):
    pod = applied.make_pod("p5", 5)
    pod.previous["ips"].append({"address": "10.244.0.77/24", "interface": 1})
    applied.add(pod)
    in_force(applied, pod, pod.address, "10.244.0.77")


def test_two_interfaces_of_a_pod_are_two_attachments(applied):
    first = applied.make_pod("p5", 5)
    applied.run("ip link add second type veth peer name net1 netns p5; ip link set second up; "
                "ip netns exec p5 sh -c 'ip addr add 10.244.9.5/32 dev net1; ip link set net1 up'")
    second = NetPod("p5", "10.244.9.5", "second", "net1", previous=first.previous | {"ips": []})
    applied.add(first)
    applied.add(second)
    in_force(applied, first)
    in_force(applied, second)
    applied.delete(second)
    in_force(applied, first)
    assert len(applied.attachments()) == 1


# --- real plugins

def real_pod(node: LightNode, name: str, namespace: str = "web", ifname: str = "eth0") -> NetPod:
    node.run(f"ip netns add {name}; ip -n {name} link set lo up")
    return NetPod(name, "", "", ifname, namespace)


BEFORE_OR_AFTER = {
    "tuning": {"type": "tuning", "mtu": 1400, "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}},
    "bandwidth": {"type": "bandwidth", "ingressRate": 800_000_000, "ingressBurst": 800_000_000, "egressRate": 800_000_000,
                  "egressBurst": 800_000_000},
    "portmap": {"type": "portmap", "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}},
    "firewall": {"type": "firewall", "backend": "iptables"},
    "sbr": {"type": "sbr"},
}
CHAINS = {"bridge": [BRIDGE, OURS], "ptp": [PTP, OURS]}
for meta, entry in BEFORE_OR_AFTER.items():
    CHAINS[f"ptp, {meta}, ours"] = [PTP, entry, OURS]
    CHAINS[f"ptp, ours, {meta}"] = [PTP, OURS, entry]
CHAINS["bridge, all of them, ours"] = [BRIDGE, *BEFORE_OR_AFTER.values(), OURS]


@pytest.mark.parametrize("chain", [pytest.param(name, id=f"CNI-28 {name}") for name in CHAINS])
def test_class_is_in_force_in_chains_of_real_plugins(applied, outside, chain):
    """CNI-32: others' qdiscs stay; CNI-43: later plugins are no reason for CHECK to complain."""
    node = applied
    plugins = Chain(node, CHAINS[chain])
    pod = real_pod(node, "p1")
    answer = plugins.add(pod)
    assert answer.code == 0, answer
    pod.address = plugins.result["ips"][0]["address"].split("/")[0]
    assert node.seen_as(pod, bind=True) == EGRESS_IP        # sbr routes by source
    pod.host_veth = next(i["name"] for i in plugins.result["interfaces"] if i["name"].startswith("veth"))
    in_force(node, pod)
    if "bandwidth" in chain:
        assert "tbf" in node.run(["tc", "qdisc", "show", "dev", pod.host_veth]).stdout
    checked = plugins.check(pod)
    assert (checked.code, checked.out) == (0, ""), checked
    plain = real_pod(node, "p2", "other")
    others = Chain(node, CHAINS[chain])
    assert others.add(plain).code == 0
    plain.address = others.result["ips"][0]["address"].split("/")[0]
    assert node.seen_as(plain, bind=True) == plain.address
    for deleted in plugins.delete(pod):
        assert deleted.code == 0, deleted
    assert node.traces_of_pods() == []


@pytest.mark.parametrize("plugin, kind", [
    ({"type": "macvlan", "master": "eth0", "ipam": HOST_LOCAL}, "macvlan"),
    ({"type": "ipvlan", "master": "eth0", "ipam": HOST_LOCAL}, "ipvlan"),
    ({"type": "vlan", "master": "eth0", "vlanId": 5, "ipam": HOST_LOCAL}, "vlan"),
    ({"type": "host-device", "device": "tap7", "ipam": HOST_LOCAL}, "tun")],
    ids=["CNI-25 macvlan", "CNI-25 ipvlan", "CNI-25 vlan", "CNI-25 host-device"])
def test_interface_without_a_hosts_end_is_a_typed_error(applied, plugin, kind):
    node = applied
    if plugin["type"] == "host-device":
        node.run("ip tuntap add tap7 mode tap")
    elif node.run(f"ip link add link eth0 name try type {kind} {'id 5' if kind == 'vlan' else ''} && ip link del try",
                  check=False).returncode:
        pytest.skip(f"this kernel has no {kind}")
    chain = Chain(node, [plugin, OURS])
    pod = real_pod(node, "p1")
    refused(chain.add(pod), 104, kind)
    assert node.traces_of_pods() == []
    for deleted in chain.delete(pod):
        assert deleted.code == 0, deleted
    plain = real_pod(node, "p2", "other")       # without a class it does not matter
    if plugin["type"] != "host-device":
        assert chain.add(plain).code == 0


def test_host_device_may_be_a_veth_with_its_other_end_here(applied, outside):
    """CNI-24, CNI-28: the result names no host's end at all."""
    node = applied
    node.run("ip link add host7 type veth peer name pod7; ip addr add 10.244.0.1/32 dev host7; ip link set host7 up; "
             "ip route add 10.244.0.0/24 dev host7")
    chain = Chain(node, [{"type": "host-device", "device": "pod7", "ipam": HOST_LOCAL}, OURS])
    pod = real_pod(node, "p1")
    assert chain.add(pod).code == 0
    assert [i["name"] for i in chain.result["interfaces"]] == ["eth0"]
    pod.address, pod.host_veth = chain.result["ips"][0]["address"].split("/")[0], "host7"
    in_force(node, pod)
    assert node.seen_as(pod) == EGRESS_IP
    assert chain.check(pod).code == 0
    for deleted in chain.delete(pod):
        assert deleted.code == 0, deleted
    assert node.traces_of_pods() == []


def test_interface_of_no_kind_is_a_typed_error(applied):
    pod = applied.make_pod("p5", 5)
    refused(applied.pod_call("ADD", pod, IFNAME="lo"), 104, "lo")
    refused(applied.pod_call("ADD", pod, IFNAME="net9"), 104, "net9")
    assert applied.traces_of_pods() == []


@pytest.mark.parametrize("where", ["other", "p5"], ids=["CNI-26 peer in a third namespace", "CNI-26 both ends in the pod"])
def test_peer_that_is_not_on_this_node_is_a_typed_error(applied, where):
    """A device here has the peer's index, and its own peer that of the pod's interface: numbers alone must not do."""
    node = applied
    pod = node.make_pod("p5", 5)
    node.run(f"set -e; ip netns add other; ip netns add third; ip link del {pod.host_veth}\n"
             f"ip -n p5 link add name eth0 index 700 type veth peer name x index 600 netns {where}\n"
             "ip link add name innocent index 600 type veth peer name y index 700 netns third")
    refused(node.pod_call("ADD", pod), 104)
    assert node.traces_of_pods() == []


@pytest.mark.parametrize("netns", [pytest.param(netns, id=f"CNI-16 {netns}") for netns in
                                    ("/proc/self/ns/net", "/run/netns/gone", "/dev/null", "/", "/proc/self/ns/mnt", "x")])
def test_netns_that_is_none_of_a_pod_is_refused_before_any_change(applied, netns):
    pod = applied.make_pod("p5", 5)
    before = applied.snapshot()
    refused(applied.pod_call("ADD", pod, NETNS=netns), 8)
    assert applied.snapshot() == before


@pytest.mark.parametrize("namespace", ["web", "other"], ids=["CNI-16 with a class", "CNI-16 without"])
def test_the_runtimes_own_netns_is_refused_unless_it_says_that_this_is_meant(applied, namespace):
    node, pod = applied, applied.make_pod("p5", 5, namespace=namespace)
    node.run(f"ip -n {pod.name} link set eth0 netns 1 name pod0 && ip link set pod0 up")
    here, before = {"NETNS": "/proc/self/ns/net", "IFNAME": "pod0"}, node.snapshot()
    for no in ("", "0", "yes", "TRUE ", "tru"):
        refused(node.pod_call("ADD", pod, **here, NETNS_OVERRIDE=no), 8)
    assert node.snapshot() == before
    for yes in ("1", "TRUE", "true", "True"):
        node.add(pod, **here, NETNS_OVERRIDE=yes)
        assert len(node.attachments()) == (namespace == "web")
        assert node.check(pod, **here, NETNS_OVERRIDE=yes).out == ""
        node.delete(pod, **here)        # needs no leave: it changes nothing there
        assert node.traces_of_pods() == []


# --- ADD

def test_classifier_runs_before_every_other_program(applied):
    """CNI-32: and DEL leaves the others in place."""
    pod = applied.make_pod("p5", 5)
    number = ifindex(applied, pod)
    applied.attach_foreign(number, "/sys/fs/bpf/foreign1")
    foreign = applied.tcx(number)["programs"]
    applied.add(pod)
    assert applied.tcx(number)["programs"] == [*applied.classifiers(), *foreign]
    applied.attach_foreign(number, "/sys/fs/bpf/foreign2")
    assert applied.tcx(number)["programs"][:3] == [*applied.classifiers(), *foreign]
    assert applied.check(pod).out == ""
    applied.delete(pod)
    assert applied.tcx(number)["programs"][:1] == foreign and len(applied.tcx(number)["programs"]) == 2


def test_two_adds_are_one(applied):
    """CNI-59: Multus calls a plugin that is in both lists twice."""
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    before = same(applied.snapshot())
    applied.add(pod)
    assert same(applied.snapshot()) == before
    applied.delete(pod)
    assert applied.traces_of_pods() == []


def test_second_add_after_the_veth_was_replaced_forgets_nothing(applied):
    """CNI-59: a runtime that tries the same sandbox again."""
    node = applied
    pod = node.make_pod("p5", 5)
    node.add(pod)
    first = ifindex(node, pod)
    node.remove_pod(pod)
    pod = node.make_pod("p5", 5, index=first + 10)
    node.add(pod)
    in_force(node, pod)
    node.delete(pod)
    assert node.traces_of_pods() == []


SMALL = "rm {pins}/maps/{name}; bpftool map create {pins}/maps/{name} type hash key {key} value {value} entries 1 name {name}"


@pytest.mark.parametrize("damage, text", [
    (f"rm {PINS}/programs/classify", "classify"), (f"rm -r {PINS}/links", "links"), (f"rm {PINS}/maps/endpoints", "endpoints"),
    (SMALL.format(pins=PINS, name="endpoints", key=16, value=32), "the map is full"),
    (SMALL.format(pins=PINS, name="attachments", key=4, value=24)
     + f"; bpftool map update pinned {PINS}/maps/attachments key 99 0 0 0 value" + " 0" * 24, "the map is full")],
    ids=["CNI-60 no classifier", "CNI-60 no folder for pins", "CNI-60 no map", "CNI-60 endpoints are full", "CNI-60 attachments are full"])
def test_add_that_fails_half_way_leaves_nothing(applied, damage, text):
    pod = applied.make_pod("p5", 5)
    pod.previous["ips"].append({"address": "10.244.0.77/24", "interface": 1})       # two addresses: the second does not fit
    applied.run(damage)
    before = applied.snapshot()
    refused(applied.pod_call("ADD", pod), 105, text)
    if damage == f"rm {PINS}/maps/endpoints":       # then nobody can say what the kernel holds; apply makes the map again
        applied.apply()
    else:
        assert applied.snapshot() == before
    applied.delete(pod)
    assert [t for t in applied.traces_of_pods() if t != "attachments[99]"] == []


def test_parallel_adds_and_dels_mix_nothing_up(applied):
    """CNI-56: 20 pods of two classes, all at once, three times."""
    node = applied
    pods = [node.make_pod(f"p{n}", n, namespace="web" if n % 2 else "far") for n in range(10, 30)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            list(pool.map(node.add, pods))
            for pod in pods[:3]:
                in_force(node, pod, class_name=pod.namespace)
            ids = node.class_ids()
            assert {a: e[1] for a, e in node.endpoints().items()} == {pod.address: ids[pod.namespace] for pod in pods}
            list(pool.map(node.delete, pods))
            assert node.traces_of_pods() == []


# --- DEL

def del_shapes():
    yield "netns and prevResult", {}, True
    yield "netns, no prevResult", {}, False
    yield "no netns, prevResult", {"NETNS": ""}, True
    yield "no netns, no prevResult", {"NETNS": ""}, False


@pytest.mark.parametrize("env, previous", [pytest.param(env, previous, id=f"CNI-33 {name}") for name, env, previous in del_shapes()])
@pytest.mark.parametrize("gone", ["all there", "netns gone"])
def test_del_removes_everything_in_all_its_shapes(applied, env, previous, gone):
    pod, stays = applied.make_pod("p5", 5), applied.make_pod("p6", 6)
    applied.add(pod)
    applied.add(stays)
    number = ifindex(applied, pod)
    if gone == "netns gone":
        applied.remove_pod(pod)
    config = network(pod.previous if previous else None)
    applied.delete(pod, config, **env)
    assert not [trace for trace in applied.traces_of_pods() if "p5" in trace or str(number) in re.findall(r"\d+", trace)]
    in_force(applied, stays)
    if gone == "all there":
        link = applied.link(pod.host_veth)
        assert "UP" not in link["flags"]        # the pod's kernel may still send: down before the classifier goes
        assert applied.tcx(number)["programs"] == []
    applied.delete(pod, config, **env)


def test_pod_that_goes_on_sending_through_its_del_never_shows_its_own_address(applied, outside):
    node = applied
    for number in range(5, 8):
        pod = node.make_pod(f"p{number}", number)
        node.add(pod)
        assert node.seen_as(pod) == EGRESS_IP
        flood = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try: s.sendto(b'x', ('198.51.100.10', 7002))
    except OSError: pass
"""
        with node.popen(["ip", "netns", "exec", pod.name, "/usr/bin/python3", "-SEc", flood], stderr=subprocess.DEVNULL) as sender:
            deadline = time.monotonic() + 5
            count = len(outside.seen())
            while len(outside.seen()) < count + 50 and time.monotonic() < deadline:
                time.sleep(0.01)
            node.delete(pod)
            time.sleep(0.1)
            sender.stop()
        node.remove_pod(pod)
    assert {seen.source for seen in outside.seen()} == {EGRESS_IP}


@pytest.mark.parametrize("loss", ["rm", "echo broken >", "echo '{\"version\":99}' >", ": >"],
                         ids=["CNI-35 deleted", "CNI-35 broken", "CNI-39 of another version", "CNI-57 empty"])
def test_del_with_a_lost_record_recovers_it_from_the_kernels_maps(applied, loss):
    pod, stays = applied.make_pod("p5", 5), applied.make_pod("p6", 6)
    applied.add(pod)
    applied.add(stays)
    applied.run(f"{loss} /run/egressclass/attachments/lab,p5,eth0")
    applied.delete(pod)
    assert len(applied.traces_of_pods()) == 4       # those of the other pod
    in_force(applied, stays)
    assert "UP" not in applied.link(pod.host_veth)["flags"]


@pytest.mark.parametrize("namespace", ["web", "far", "other"], ids=["CNI-36 same class", "CNI-36 another class", "CNI-36 no class"])
@pytest.mark.parametrize("address", [5, 6], ids=["same address", "another address"])
def test_late_del_does_not_touch_the_pod_that_has_the_ifindex_now(applied, outside, namespace, address):
    node = applied
    old = node.make_pod("old", 5)
    node.add(old)
    number = ifindex(node, old)
    node.remove_pod(old)
    new = node.make_pod("new", address, namespace=namespace, index=number)
    assert ifindex(node, new) == number
    node.add(new)
    node.delete(old)
    assert "UP" in node.link(new.host_veth)["flags"]
    if namespace == "other":
        assert node.traces_of_pods() == [] and node.seen_as(new) == new.address
    else:
        in_force(node, new, class_name=namespace)
        assert len(node.traces_of_pods()) == 4
    if namespace == "web":
        assert node.seen_as(new) == EGRESS_IP


def test_late_del_with_a_lost_record_does_not_touch_the_pod_that_has_the_ifindex_now(applied):
    node = applied
    old = node.make_pod("old", 5)
    node.add(old)
    number = ifindex(node, old)
    node.remove_pod(old)
    node.record(old).unlink()
    new = node.make_pod("new", 5, index=number)
    node.add(new)
    node.delete(old)
    in_force(node, new)


@pytest.mark.parametrize("change", [
    "echo broken >/etc/egressclass/config.json", "rm /etc/egressclass/config.json", "echo broken >/run/egressclass/classes.json",
    "rm /run/egressclass/classes.json", "umount /sys/fs/bpf", f"rm -r {PINS}", f"rm -r {PINS}/links", f"rm {PINS}/programs/classify",
    "nft flush ruleset", "ip link del egress0", "ip link del hp5", "ip link set hp5 name renamed"],
    ids=lambda change: f"CNI-33 {change}")
def test_del_succeeds_whatever_is_gone(applied, change):
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    applied.run(change)
    applied.delete(pod)
    assert applied.traces_of_pods() == []


def test_del_succeeds_after_the_class_was_removed(applied):
    """CNI-39"""
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    applied.apply(configuration(egress_class("other")))
    applied.delete(pod)
    assert applied.traces_of_pods() == []


def test_del_after_a_boot_with_a_record_from_before(applied):
    """CNI-33, CNI-36: where /run is on a disk. The kernel's state is gone, and its numbers are given anew."""
    node = applied
    old = node.make_pod("old", 5, index=4000)
    node.add(old)
    record = node.record(old).read_text()
    node.run("rm -r /run/egressclass; umount /sys/fs/bpf; mount -t bpf bpf /sys/fs/bpf; nft flush ruleset; ip link del egress0")
    node.remove_pod(old)
    node.apply()
    new = node.make_pod("new", 5, index=4000)
    node.add(new)
    node.record(old).write_text(record)
    for shape in (network(old.previous), network()):
        node.delete(old, shape, NETNS="")
        assert not node.record(old).exists()
        in_force(node, new)


def test_del_succeeds_after_down(applied):
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    applied.ctl("down")
    applied.delete(pod)
    assert applied.traces_of_pods() == []


# --- CHECK

def update(name: str, key: bytes, value: bytes) -> str:
    return f"bpftool map update pinned {PINS}/maps/{name} key hex {key.hex(' ')} value hex {value.hex(' ')}"


def test_check_of_a_healthy_pod_is_silent(applied):
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    answer = applied.check(pod)
    assert (answer.code, answer.out, answer.err) == (0, "", "")


@pytest.mark.parametrize("damage, text", [
    ("rm {pins}/links/{index}", "pin of the classifier's link"),
    ("bpftool link detach pinned {pins}/links/{index}", "detached"),
    ("FOREIGN", "another program"),
    ("bpftool map delete pinned {pins}/maps/attachments key hex {attachment_key}", "attachments"),
    ("ATTACHMENT", "attachments"),
    ("bpftool map delete pinned {pins}/maps/endpoints key hex {endpoint_key}", "10.244.0.5"),
    ("ENDPOINT", "10.244.0.5"),
    ("REPLACE", "another host veth"),
    ("REPLACE NUMBER", "detached"),
    ("rm {pins}/maps/attachments", "attachments")],
    ids=["CNI-42 pin gone", "CNI-42 program detached", "CNI-42 program replaced", "CNI-42 entry gone", "CNI-42 entry of another class",
         "CNI-42 address gone", "CNI-42 address of another interface", "CNI-42 veth replaced", "CNI-42 veth replaced by one of its number",
         "CNI-42 map gone"])
def test_check_finds_what_is_not_as_add_left_it(applied, damage, text):
    node = applied
    pod = node.make_pod("p5", 5)
    node.add(pod)
    number = ifindex(node, pod)
    (attachment, entry), = node.map("attachments").items()
    (endpoint, place), = node.map("endpoints").items()
    if damage == "FOREIGN":
        node.link_pin(number).unlink()
        node.attach_foreign(number, f"{PINS}/links/{number}")
    elif damage == "ATTACHMENT":
        node.run(update("attachments", attachment, entry[:8] + b"\2" + entry[9:]))
    elif damage == "ENDPOINT":
        node.run(update("endpoints", endpoint, place[:8] + b"\1" + place[9:]))
    elif damage.startswith("REPLACE"):
        node.remove_pod(pod)
        pod = node.make_pod("p5", 5, index=number if "NUMBER" in damage else number + 100)
    else:
        node.run(damage.format(pins=PINS, index=number, attachment_key=attachment.hex(" "), endpoint_key=endpoint.hex(" ")))
    before = node.snapshot()
    answer = node.check(pod)
    assert answer.code != 0 and text in answer.out, answer
    assert node.snapshot() == before        # CNI-41: no repair


def test_check_finds_a_changed_mark(applied):
    """CNI-42: the entry of the pod's class carries another mark than its id gives."""
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    key = applied.class_ids()["web"].to_bytes(4, "little")
    entry = applied.map("classes")[key]
    applied.run(update("classes", key, entry[:4] + b"\5" + entry[5:]))
    refused(applied.check(pod), 106, "mark")


def test_check_finds_a_lost_record(applied):
    """CNI-42: the kernel still knows the attachment."""
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    applied.record(pod).unlink()
    assert applied.check(pod).code != 0


def test_check_finds_that_the_namespace_is_gone(applied):
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    applied.remove_pod(pod)
    refused(applied.check(pod), 8, pod.netns)


def test_check_takes_no_apply_for_damage(applied):
    """One that is giving the pod another class: its record has that already, its entries do not."""
    node = applied
    pod = node.make_pod("p5", 5)
    node.add(pod)
    record = node.record(pod)
    before = record.read_text()
    ids = node.class_ids()
    with node.path("/run/egressclass/lock").open("r+") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record.write_text(before.replace('"web"', '"far"').replace(f'"classID":{ids["web"]}', f'"classID":{ids["far"]}'))
        answer = pool.submit(node.check, pod)
        time.sleep(0.3)
        waits = not answer.done()
        record.write_text(before)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert waits and answer.result().code == 0, answer.result()
    assert before.count('"classID":1') == 1     # else this test changed nothing


def test_check_is_silent_again_after_its_class_came_back(applied):
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    applied.apply(configuration(WEB | {"name": "web2"}))
    applied.apply(BOTH)
    assert applied.check(pod).out == ""
