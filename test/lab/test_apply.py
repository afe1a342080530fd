# SPDX-License-Identifier: Apache-2.0
"""egressctl: apply is all or nothing and idempotent, status and pods tell the truth, down removes everything."""
from __future__ import annotations

import fcntl
import json
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from light_node import ADDRESS, BOTH, CTL, FAR, PINS, TCX, WEB, LightNode, NetPod, configuration, egress_class

EGRESS_IP = "203.0.113.7"


def same(snapshot: str) -> str:
    """Without the times and inodes of files."""
    return re.sub(r"^(/(?:run|var/lib)/egressclass/\S+).*", r"\1", snapshot, flags=re.MULTILINE)


def renumbered(snapshot: str) -> str:
    """Also without the ids of kernel objects, and without the map `node`, which holds one."""
    text = re.sub(r"^\d+: (egress0|ec0|ec1)(@if\d+)?", r"N: \1", same(snapshot), flags=re.MULTILINE)
    text = re.sub(r'"(prog_)?id":\d+', "id", re.sub(r" link-netnsid \d+| link-netns \S+", "", text))
    text = re.sub(r"^(/sys/fs/bpf/\S+) \d+$", r"\1 id", text, flags=re.MULTILINE)
    return re.sub(r"^node$.*?^attachments$", "", text, flags=re.MULTILINE | re.DOTALL)


INSIDE = "nsenter --net=/run/netns/egressclass"
TAKE_OFF = f"/usr/bin/python3 -SEB {TCX} detach"


def problems(node: LightNode) -> str:
    return "; ".join(node.status()["problems"])


def works(node: LightNode, pod: NetPod, expected: str = EGRESS_IP) -> None:
    assert node.seen_as(pod) == expected
    assert node.status()["healthy"], node.status()["problems"]


def drops(node: LightNode) -> dict[str, int]:
    return {drop["reason"]: drop["packets"] for drop in node.status()["drops"]}


# --- idempotence

def test_second_apply_changes_nothing(applied, outside):
    """Programs, maps and links are the same objects, marks and files the same, counters go on."""
    node = applied
    pod = node.make_pod("p5", 5)
    node.add(pod)
    works(node, pod)
    node.in_gateway("nft insert rule inet egressclass guard udp dport 9 counter name wrong_source drop")
    node.in_pod(pod, f"bash -c '{node.DATAGRAM}'")
    node.apply()
    assert drops(node)["wrong_source"] > 0
    before = same(node.snapshot())
    traffic = node.status()["classes"]
    monitor = node.popen(["ip", "monitor", "link", "address", "rule"], stdout=-1, text=True)
    time.sleep(0.1)
    node.apply()
    time.sleep(0.1)
    monitor.stop()
    assert monitor.stdout.read() == ""
    assert same(node.snapshot()) == before
    assert node.status()["classes"] == traffic
    works(node, pod)


@pytest.mark.parametrize("classes", [[], [WEB], [FAR], [WEB, FAR]], ids=["none", "gateway", "worker", "both"])
def test_apply_down_apply_is_apply(node, classes):
    clean = same(node.snapshot())
    node.apply(configuration(*classes))
    first = same(node.snapshot())
    assert node.status()["healthy"]
    node.ctl("down")
    assert same(node.snapshot()) == clean
    node.apply()

    assert renumbered(node.snapshot()) == renumbered(first)


def test_check_only_changes_nothing(applied):
    before = applied.snapshot()
    applied.configure(configuration(egress_class("new")))
    assert "good for this node" in applied.ctl("apply", "--check").stdout
    assert applied.snapshot() == before


NOBODY = "setpriv --reuid=65534 --regid=65534 --clear-groups"


def check_as_nobody(node: LightNode, config: dict | str):
    node.configure(config)
    node.install(CTL, "/run/egressctl")     # the tree may be where nobody can look
    return node.run(f"{NOBODY} /run/egressctl apply --check", check=False)


def test_check_needs_neither_root_nor_the_lock(applied):
    applied.add(applied.make_pod("p5", 5))
    before = applied.snapshot()
    with applied.path("/run/egressclass/lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        good = check_as_nobody(applied, BOTH)
        moved = check_as_nobody(applied, configuration(egress_class("web", gateways=[{"address": "192.0.2.11"}])))
        as_root = applied.ctl("apply", "--check")
        refused = {name: check_as_nobody(applied, BAD[name][0]) for name in ("host bits", "interface that is not there", "broken JSON")}
    for done in (good, moved):
        assert done.returncode == 0 and "good for this node; not checked, since only root can: which marks" in done.stdout, done
    assert as_root.stdout.endswith("good for this node\n")
    for name, done in refused.items():
        assert done.returncode == (NOT_YET if name in WAITS else BAD_CONFIG) and BAD[name][1] in done.stderr, done
    assert applied.snapshot() == before


@pytest.mark.parametrize("who", ["root", "nobody"])
def test_check_on_a_machine_that_is_no_node_is_of_the_file_alone(node, who):
    node.run("ip addr flush dev eth0 scope global")
    node.configure(BOTH)
    done = node.ctl("apply", "--check", check=False) if who == "root" else check_as_nobody(node, BOTH)
    assert done.returncode == 0 and "none of its nodes" in done.stdout, done
    assert not node.path("/run/egressclass").exists()
    node.configure(broken(mark=0))
    assert node.ctl("apply", "--check", check=False).returncode == BAD_CONFIG


# --- bad input

def broken(**keys) -> dict:
    """None: without that key."""
    return configuration({key: value for key, value in (WEB | keys).items() if value is not None}, FAR)


BAD = {
    # name: (configuration, key path, value, reason)
    "broken JSON": ('{"classes": [\n  oops ]}', "line 2, column 3", "", "invalid literal"),
    "empty file": ("", "line 1", "", "unexpected end"),
    "two documents": ("{}{}", "line 1", "", ""),
    "unknown key at the top": (BOTH | {"clases": 1}, "clases", "1", "unknown key"),
    "unknown key in a class": (broken(egressIps=["203.0.113.7"]), "classes[0].egressIps", '["203.0.113.7"]', "unknown key"),
    "key twice": (json.dumps(BOTH).replace('{"classes"', '{"nodes": [], "classes"'), "nodes", "", "twice"),
    "classes missing": ({"nodes": [ADDRESS]}, "classes", "", "missing"),
    "type": (BOTH | {"classes": {}}, "classes", "{}", "array"),
    "duplicate class names": (configuration(WEB, WEB | {"vni": 5}), "classes[1].name", '"web"', "another class"),
    "class name": (broken(name="Web!"), "classes[0].name", '"Web!"', "a-z"),
    "overlapping marks": (configuration(WEB | {"mark": "0x5"}, FAR | {"mark": 5}), "classes[1].mark", "5", '"web"'),
    "mark outside of the mask": (broken(mark="0x80"), "classes[0].mark", '"0x80"', "markMask"),
    "mark 0": (broken(mark=0), "classes[0].mark", "0", "must not be 0"),
    "reserved mark": (broken(mark="0x1f7f"), "classes[0].mark", '"0x1f7f"', "reserved"),
    "narrow mask": (BOTH | {"markMask": "0x3"}, "markMask", '"0x3"', "bits"),
    "same VNI": (configuration(WEB | {"vni": 7}, FAR | {"vni": 7}), "classes[1].vni", "7", '"web"'),
    "IPv6 gateway and a node without IPv6": (broken(gateways=[{"address": "2001:db8::1"}]) | {"nodes": ["192.0.2.0/24", "2001:db8::1"]},
                                             "classes[0].gateways[0].address", '"2001:db8::1"', "none of that family"),
    "host bits": (broken(destinations=["10.1.2.3/8"]), "classes[0].destinations[0]", '"10.1.2.3/8"', "10.0.0.0/8"),
    "host bits in clusterCIDRs": (BOTH | {"clusterCIDRs": ["10.244.0.1/16"]}, "clusterCIDRs[0]", '"10.244.0.1/16"', "host bits"),
    "prefix length": (broken(destinations=["10.0.0.0/33"]), "classes[0].destinations[0]", '"10.0.0.0/33"', "0 to 32"),
    "no prefix": (broken(destinations=["everything"]), "classes[0].destinations[0]", '"everything"', "no IP prefix"),
    "no destinations": (broken(destinations=[]), "classes[0].destinations", "[]", ""),
    "destination in both lists": (broken(**{"except": ["0.0.0.0/0"]}), "classes[0].except[0]", '"0.0.0.0/0"', "destinations"),
    "egress IP of pods": (broken(egressIPs=["10.244.3.4"]), "classes[0].egressIPs[0]", '"10.244.3.4"', "a pod may use it"),
    "egress IP of a node": (broken(egressIPs=["192.0.2.11"]), "classes[0].egressIPs[0]", '"192.0.2.11"', "a node uses it"),
    "loopback egress IP": (broken(egressIPs=["127.0.0.1"]), "classes[0].egressIPs[0]", '"127.0.0.1"', "loopback"),
    "no egress IP": (broken(egressIPs=[]), "classes[0].egressIPs", "[]", ""),
    "gateway twice": (broken(gateways=[{"address": ADDRESS}, {"address": ADDRESS}]), "classes[0].gateways[1].address",
                      f'"{ADDRESS}"', "already"),
    "next hop on no network of ours": (broken(egressIPs=None, gateways=[{"address": "198.51.100.1", "via": "nexthop"}]),
                                       "classes[0].gateways[0].address", '"198.51.100.1"', "interface"),
    "gateway that is no node": (broken(gateways=[{"address": "192.0.2.99"}]), "classes[0].gateways[0].address", '"192.0.2.99"', "nodes"),
    "no nodes": ({"classes": [WEB]}, "nodes", "", "missing"),
    "nodes without this one": (BOTH | {"classes": [FAR], "nodes": ["192.0.2.11"]}, "nodes", "", "this node"),
    "two default classes": (configuration(WEB | {"default": True}, FAR | {"default": True}), "classes[1].default", "true", '"web"'),
    "select everything": (broken(select=[{}]), "classes[0].select[0]", "{}", "every pod"),
    "pattern": (broken(select=[{"namespaces": ["Web"]}]), "classes[0].select[0].namespaces[0]", '"Web"', "pattern"),
    "interface that is not there": (broken(gateways=[{"address": ADDRESS, "interface": "eth9"}]),
                                    "classes[0].gateways[0].interface", '"eth9"', "no such interface"),
    "tunnel port": (BOTH | {"tunnel": {"port": 70000}}, "tunnel.port", "70000", ""),
    "another mask than in force": (BOTH | {"markMask": "0xff"}, "markMask", "255", "egressctl down"),
    "annotations": (BOTH | {"annotations": "maybe"}, "annotations", '"maybe"', "honour"),
}

BAD_CONFIG, NOT_YET = 2, 3
# What an address or an interface of this node would mend.
WAITS = {"IPv6 gateway and a node without IPv6", "next hop on no network of ours", "nodes without this one", "interface that is not there"}


@pytest.fixture(scope="module")
def in_force(shared):
    """A node with a configuration in force and a pod: what bad input must not change."""
    shared.apply(BOTH)
    shared.add(shared.make_pod("p5", 5))
    yield shared, shared.snapshot()


@pytest.mark.parametrize("name", BAD)
def test_bad_configuration_is_refused_and_changes_nothing(in_force, name):
    node, before = in_force
    config, path, value, reason = BAD[name]
    done = node.apply(config, check=False)
    assert done.returncode == (NOT_YET if name in WAITS else BAD_CONFIG), done
    assert ("run it again" in done.stderr) == (name in WAITS)
    line = next((line for line in done.stderr.splitlines() if f": {path}" in line), None)
    assert line, done.stderr
    assert line.startswith("/etc/egressclass/config.json: ")
    assert value in line and reason in line, line
    assert node.snapshot() == before


@pytest.mark.parametrize("name", ["broken JSON", "host bits", "interface that is not there"])
def test_bad_configuration_leaves_a_clean_node_clean(node, name):
    before = node.snapshot()
    done = node.apply(BAD[name][0], check=False)
    assert done.returncode == (NOT_YET if name in WAITS else BAD_CONFIG)
    assert node.snapshot() == before


def test_every_problem_is_reported_and_not_only_the_first(node):
    done = node.apply(configuration(WEB | {"name": "A", "mark": 0}, FAR | {"egressIPs": ["x"]}, oops=1), check=False)
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("/etc/egressclass/config.json: ")]) == 4
    for path in ("oops", "classes[0].name", "classes[0].mark", "classes[1].egressIPs[0]"):
        assert f": {path}: " in done.stderr


@pytest.mark.parametrize("make", ["rm -f {file}", "mkdir {file}"], ids=["missing", "a folder"])
def test_configuration_file_that_cannot_be_read_is_refused(in_force, make):
    node, before = in_force
    node.run("rm -rf /etc/egressclass/config.json; " + make.format(file="/etc/egressclass/config.json"))
    done = node.ctl("apply", check=False)
    assert done.returncode == 2 and "/etc/egressclass/config.json" in done.stderr
    node.run("rm -rf /etc/egressclass/config.json")
    assert node.snapshot() == before


def test_other_files_can_be_named(node):
    node.write("/run/other.json", json.dumps(BOTH))
    assert "applied: 2 classes" in node.ctl("apply", "-c", "/run/other.json").stdout
    node.write("/run/other.json", "{}")
    done = node.ctl("apply", "-c", "/run/other.json", check=False)
    assert done.returncode == 2 and "/run/other.json: classes" in done.stderr


# --- egress IPs that somebody has

def test_egress_ip_that_this_node_has_without_being_the_gateway_is_refused(applied):
    applied.run("ip addr add 203.0.113.9/32 dev eth0")
    before = applied.snapshot()
    done = applied.apply(check=False)
    assert done.returncode == 2 and 'classes[1].egressIPs: "203.0.113.9": this node uses the address' in done.stderr
    assert applied.snapshot() == before


def test_egress_ip_that_a_pod_has_is_refused(applied):
    """One outside of clusterCIDRs, so that only the running pod gives it away."""
    pod = applied.make_pod("p5", 5)
    applied.in_pod(pod, "ip addr add 203.0.113.50/32 dev eth0")
    applied.add(pod)
    before = applied.snapshot()
    done = applied.apply(configuration(WEB | {"egressIPs": ["203.0.113.50"]}, FAR), check=False)
    assert done.returncode == 2 and 'classes[0].egressIPs: "203.0.113.50": pod web/p5 uses this address' in done.stderr
    assert applied.snapshot() == before


def test_egress_ip_that_the_administrator_put_on_the_gateway_stays_his(node, outside):
    node.run("ip addr add 203.0.113.7/24 dev eth0")
    node.apply(BOTH)
    pod = node.make_pod("p5", 5)
    node.add(pod)
    works(node, pod)
    node.delete(pod)
    node.ctl("down")
    assert "203.0.113.7/24" in node.run(["ip", "addr", "show", "dev", "eth0"]).stdout


def test_egress_ip_moves_with_its_class(applied, outside):
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    works(applied, pod)
    applied.apply(configuration(WEB | {"egressIPs": ["203.0.113.70"]}, FAR))
    works(applied, pod, "203.0.113.70")
    assert "203.0.113.7/" not in applied.in_gateway(["ip", "addr"]).stdout
    assert "203.0.113.7 " not in applied.run(["ip", "route"]).stdout


def test_an_egress_ip_that_is_not_ours_any_more_is_a_destination_like_any_other(applied, outside):
    """Somebody else may have it now; and a second apply would change what the first one made."""
    pod = applied.make_pod("p5", 5)  # first: it brings an address of the node with it
    applied.apply(configuration(WEB | {"egressIPs": ["203.0.113.70"]}, FAR))
    outside.run("ip addr add 203.0.113.7/32 dev eth0")
    applied.add(pod)
    answer = applied.in_pod(pod, "busybox timeout 2 busybox nc 203.0.113.7 7001 </dev/null")
    before = same(applied.snapshot())
    applied.apply()
    assert answer.split()[:1] == ["203.0.113.70"]
    assert same(applied.snapshot()) == before


def test_egress_ip_goes_to_the_named_interface_even_if_that_has_no_address(node):
    node.run("ip link add empty type veth peer name empty1; ip link set empty up; ip link set empty1 up")
    node.apply(configuration(WEB | {"gateways": [{"address": ADDRESS, "interface": "empty"}]}))
    assert node.tcx(node.link("empty")["ifindex"])["programs"] != [] == node.tcx(node.link("eth0")["ifindex"])["programs"]


# --- a failure in the middle

OCCUPIED = "ip link add foreign type vxlan id 7 dstport 9999; ip link set foreign up"
OTHER_PORT = configuration(WEB | {"egressIPs": ["203.0.113.71"]}, egress_class("new", vni=9, egressIPs=["203.0.113.72"]),
                           tunnel={"port": 9999})


def test_failure_without_a_previous_configuration_leaves_nothing(node):
    node.run(OCCUPIED)
    before = node.snapshot()
    done = node.apply(OTHER_PORT, check=False)
    assert done.returncode == 1
    assert "9999" in done.stderr and "egress0" in done.stderr and "no configuration is in force" in done.stderr
    assert node.snapshot() == before
    assert not node.path("/run/egressclass").exists()


def test_failure_with_a_previous_configuration_leaves_that_in_force(applied, outside):
    node = applied
    pod = node.make_pod("p5", 5)
    node.add(pod)
    works(node, pod)
    node.run(OCCUPIED)
    ids, text = node.class_ids(), node.path("/run/egressclass/config.json").read_text()
    nft = node.run(["nft", "list", "ruleset"]).stdout
    done = node.apply(OTHER_PORT, check=False)
    assert done.returncode == 1 and "in force again" in done.stderr
    assert (node.class_ids(), node.path("/run/egressclass/config.json").read_text()) == (ids, text)
    assert node.run(["nft", "list", "ruleset"]).stdout == nft
    works(node, pod)
    assert "203.0.113.71" not in node.run(["ip", "addr"]).stdout
    node.run("ip link del foreign")
    node.apply()
    works(node, pod, "203.0.113.71")


@pytest.mark.parametrize("kind", ["bridge", "vxlan id 3 dstport 4789"])
def test_foreign_device_of_our_name_is_left_alone(node, kind):
    node.run(f"ip link add egress0 type {kind}; ip link set egress0 up")
    before = node.snapshot()
    done = node.apply(BOTH, check=False)
    assert done.returncode == 1 and "egress0" in done.stderr and "not ours" in done.stderr
    assert node.snapshot() == before


def test_failing_nft_leaves_the_previous_configuration_in_force(applied, outside):
    """A chain of the same name and another type: the whole transaction fails."""
    node = applied
    pod = node.make_pod("p5", 5)
    node.add(pod)
    node.ctl("down")
    node.run("nft add table inet egressclass; nft 'add chain inet egressclass guard { type filter hook input priority 0; }'")
    before = node.run(["nft", "list", "ruleset"]).stdout
    done = node.apply(check=False)
    assert done.returncode == 1 and "nftables" in done.stderr
    assert before
    assert node.seen_as(pod) == ""      # closed, not open
    node.run("nft delete table inet egressclass", check=False)
    node.apply()
    works(node, pod)


def test_no_bpffs_is_an_error_that_says_what_to_do(node):
    node.run("umount /sys/fs/bpf")
    before = node.snapshot()
    done = node.apply(BOTH, check=False)
    assert done.returncode == 1 and "mount -t bpf" in done.stderr
    assert node.snapshot() == before


def test_full_map_of_rules_refuses_the_change(applied, outside):
    node = applied
    pod = node.make_pod("p5", 5)
    node.add(pod)
    many = [f"{a}.{b}.{c}.0/24" for a in range(20, 25) for b in range(256) for c in range(256)][:262140]
    done = node.apply(configuration(WEB | {"destinations": many}, FAR), check=False)
    assert done.returncode == 1 and "too many prefixes" in done.stderr
    works(node, pod)


# --- classes and their ids

def test_change_of_classes_keeps_the_ids_of_the_others(applied):
    node = applied
    third = egress_class("third", vni=33, egressIPs=["203.0.113.33"])
    node.apply(configuration(third, WEB, FAR))
    assert node.class_ids() == {"web": 1, "far": 2, "third": 3}
    node.apply(configuration(FAR, third))
    assert node.class_ids() == {"far": 2, "third": 3}
    node.apply(configuration(FAR, third | {"name": "renamed"}))
    assert node.class_ids()["far"] == 2
    node.apply(configuration(WEB, FAR, third))
    assert node.class_ids()["far"] == 2 and len(set(node.class_ids().values())) == 3


def test_id_of_a_removed_class_with_running_pods_is_not_reused(applied, outside):
    node = applied
    pod = node.make_pod("p5", 5)
    node.add(pod)
    works(node, pod)
    new = egress_class("new", vni=9, egressIPs=["203.0.113.90"])
    node.apply(configuration(FAR, new))
    assert node.class_ids() == {"far": 2, "new": 3}
    assert node.seen_as(pod, 1) == ""
    assert drops(node).get("class_removed", 0) > 0
    node.apply(configuration(WEB, FAR, new))        # it comes back, and so does its id
    assert node.class_ids() == {"web": 1, "far": 2, "new": 3}
    works(node, pod)
    node.apply(configuration(FAR, new))
    node.delete(pod)
    node.apply(configuration(egress_class("next", vni=8, egressIPs=["203.0.113.80"]), FAR, new))
    assert node.class_ids()["next"] == 1            # free again


def test_ids_of_running_pods_survive_down(applied, outside):
    node = applied
    pod = node.make_pod("p5", 5, namespace="far")
    node.add(pod)
    node.ctl("down")
    node.apply(configuration(egress_class("new"), WEB | {"egressIPs": ["203.0.113.8"]}, FAR))
    assert node.class_ids()["far"] == 2
    assert node.pods()[0]["class"] == "far" and node.pods()[0]["inForce"]


def test_explicit_marks(applied):
    node = applied
    node.apply(configuration(WEB | {"mark": "0x5"}, FAR | {"mark": "0x106"}))
    classes = {c["name"]: c["mark"] for c in node.status()["classes"]}
    assert classes == {"web": "0x5", "far": "0x106"}
    pod = node.make_pod("p5", 5)
    node.add(pod)
    assert node.pods()[0]["mark"] == "0x5"
    before = node.snapshot()
    for config, reason in ((configuration(WEB | {"mark": "0x6"}, FAR), "cannot change"),
                           (configuration(FAR | {"mark": "0x5"}), 'running pods of class \\"web\\"')):
        done = node.apply(config, check=False)
        assert done.returncode == 2 and ".mark" in done.stderr and reason.replace("\\", "") in done.stderr, done.stderr
        assert node.snapshot() == before
    node.apply(configuration(WEB, FAR))     # not fixed any more, but kept
    assert node.class_ids()["web"] == 5
    node.delete(pod)
    node.apply(configuration(WEB | {"mark": "0x6"}, FAR))
    assert node.class_ids()["web"] == 6


@pytest.mark.parametrize("record", ["lost", "broken"])
@pytest.mark.parametrize("mark", [{}, {"mark": "0x3"}], ids=["assigned mark", "fixed mark"])
def test_a_pod_whose_record_is_lost_holds_up_no_apply(node, outside, record, mark):
    """It keeps its class, and is named."""
    config = configuration(WEB | mark, FAR)
    node.apply(config)
    pod = node.make_pod("p5", 5)
    node.add(pod)
    if record == "lost":
        node.record(pod).unlink()
    else:
        node.record(pod).write_text("broken")
    for again in (config, configuration(FAR, WEB | mark | {"egressIPs": ["203.0.113.70"]})):
        done = node.apply(again)
        assert "warning: " in done.stdout and "hp5" in done.stdout and pod.address in done.stdout, done.stdout
    assert "hp5" in problems(node) and pod.address in problems(node) and "restart the pod" in problems(node)
    assert node.seen_as(pod) == "203.0.113.70"
    node.delete(pod)
    assert node.status()["healthy"], problems(node)


def test_the_mark_of_a_pod_whose_record_is_lost_goes_to_no_other_class(applied):
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    applied.record(pod).unlink()
    done = applied.apply(configuration(WEB | {"name": "new", "mark": 1}, FAR), check=False)
    assert done.returncode == 2 and "carry this mark" in done.stderr
    applied.apply(configuration(WEB | {"name": "new"}, FAR))
    assert 1 not in applied.class_ids().values()


def test_explicit_mark_takes_the_id_of_a_class_without_pods(applied):
    applied.apply(configuration(WEB, FAR | {"mark": 1}))
    assert applied.class_ids()["far"] == 1 and applied.class_ids()["web"] not in (0, 1)


# --- down

def test_down_without_pods_restores_the_node(node):
    node.run("echo 0 >/proc/sys/net/ipv4/ip_forward")       # else others rely on forwarding, and it stays on
    clean = node.snapshot()
    node.apply(BOTH)
    assert node.snapshot() != clean
    assert node.ctl("down").stdout == ""
    assert node.snapshot() == clean
    assert not node.path("/run/egressclass").exists()
    node.ctl("down")
    assert node.snapshot() == clean


def test_down_with_pods_keeps_them_closed_until_apply(applied, outside):
    node = applied
    pod, plain = node.make_pod("p5", 5), node.make_pod("p6", 6, namespace="other")
    node.add(pod)
    node.add(plain)
    works(node, pod)
    for _ in range(2):
        assert "1 running pods" in node.ctl("down").stdout
        assert node.seen_as(pod, 1) == ""
        assert node.seen_as(plain) == plain.address
        assert drops(node)["datapath_down"] > 0
    assert "egressclass" not in node.run(["nft", "list", "ruleset"]).stdout
    node.apply()
    works(node, pod)
    node.ctl("down")
    node.delete(pod)
    assert node.ctl("down").stdout == ""
    assert not node.path("/run/egressclass").exists() and not node.path(PINS).exists()


def test_down_forgets_pods_whose_veth_is_gone(applied):
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    applied.remove_pod(pod)
    assert applied.ctl("down").stdout == ""
    assert not applied.path("/run/egressclass").exists() and not applied.path(PINS).exists()


def test_down_leaves_what_others_have(applied):
    node = applied
    node.run("nft add table inet others; ip rule add pref 85 fwmark 0x1 lookup 99; ip addr add 203.0.113.99/32 dev eth0; "
             "mkdir -p /sys/fs/bpf/others")
    node.ctl("down")
    assert "others" in node.run("nft list ruleset; ls /sys/fs/bpf").stdout
    assert "85:" in node.run(["ip", "rule"]).stdout and "203.0.113.99" in node.run(["ip", "addr"]).stdout


# --- status and pods

def test_status_of_a_node_without_anything_says_so(node):
    done = node.ctl("status", check=False)
    assert done.returncode == 1 and "NOT HEALTHY" in done.stdout and "egressctl apply" in done.stdout
    assert json.loads(node.ctl("status", "--json", check=False).stdout)["healthy"] is False
    assert node.pods() == []


def test_status_and_pods_for_people_and_machines(applied, outside):
    node = applied
    pod = node.make_pod("p5", 5)
    node.add(pod)
    works(node, pod)
    human, machine = node.ctl("status").stdout, node.status()
    assert machine["node"] == ADDRESS and machine["pods"] == 1 and machine["problems"] == []
    web, far = machine["classes"]
    assert (web["name"], web["role"], web["pods"], web["mark"]) == ("web", "gateway", 1, "0x1")
    assert (far["name"], far["role"], far["pods"]) == ("far", "worker", 0)
    assert web["gateways"] == [{"address": ADDRESS, "path": "local", "ipv4": True, "ipv6": False}]
    assert far["gateways"] == [{"address": "192.0.2.11", "path": "tunnel", "ipv4": True, "ipv6": False}]
    assert web["egressIPs"] == [{"address": "203.0.113.7", "mark": "0x1"}] and far["egressIPs"] == []
    assert web["traffic"]["steered_local"]["packets"] > 0
    assert machine["gateways"][0]["address"] == "192.0.2.11"
    for word in ("healthy", "web", "far", "gateway", "worker", "192.0.2.11", "steered_local", "DROPPED"):
        assert word in human
    entry, = node.pods()
    assert (entry["namespace"], entry["name"], entry["uid"], entry["class"]) == ("web", "p5", "uid-p5", "web")
    assert (entry["addresses"], entry["hostVeth"], entry["inForce"], entry["problem"]) == (["10.244.0.5"], "hp5", True, None)
    table = node.ctl("pods").stdout.splitlines()
    assert len(table) == 2 and table[1].split()[:3] == ["web", "p5", "web"] and table[1].endswith("yes")


def test_status_during_an_apply_is_no_alarm(applied):
    """Nor when it takes longer than who asks is made to wait."""
    node = applied
    node.add(node.make_pod("p5", 5))
    with node.path("/run/egressclass/lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        node.run(f"nft flush chain inet egressclass guard; rm {PINS}/links/[0-9]*")     # as if the apply were in its middle
        human, machine = node.ctl("status", check=False), node.ctl("status", "--json", check=False)
    for done in (human, machine):
        assert done.returncode == NOT_YET, done
    assert "under way" in human.stdout and "chain" not in human.stdout and "web/p5" not in human.stdout
    said = json.loads(machine.stdout)
    assert said["healthy"] is None and said["problems"] == [] and said["pods"] == 1
    assert "chain guard" in problems(node) and "web/p5" in problems(node)       # now it is damage


def test_unreachable_gateway_is_reported(applied, outside):
    pod = applied.make_pod("p5", 5, namespace="far")
    applied.add(pod)
    for _ in range(6):
        applied.in_pod(pod, f"bash -c '{applied.DATAGRAM}'")
        time.sleep(0.3)     # more than the interval between probes
    assert applied.status()["gateways"][0]["state"] == "unreachable"
    assert applied.seen_as(pod, 1) == ""
    assert drops(applied)["gateway_unreachable"] > 0
    assert outside.seen() == []


@pytest.mark.parametrize("damage, text", [
    ("ip link del egress0", "egress0 is gone"), ("ip link set egress0 down", "egress0 is down"),
    ("nft delete table inet egressclass", "nft table"),
    ("ip netns del egressclass", "is gone"), ("ip link del ec0", "ec0 and ec1"), ("ip link set ec0 down", "ec0 is down"),
    (f"{INSIDE} ip link set ec1 down", "ec1 is down"), (f"{INSIDE} ip link del ec1", "ec0 and ec1"),
    (f"{INSIDE} ip route flush all", "default route"), (f"{INSIDE} ip addr flush dev lo", "egress IP 203.0.113.7"),
    (f"{INSIDE} nft delete table inet egressclass", "nft table"), (f"{TAKE_OFF} uplink_in dev eth0", "uplink_in"),
    (f"{TAKE_OFF} gateway_out dev ec0", "gateway_out"), (f"{INSIDE} {TAKE_OFF} gateway_in dev ec1", "gateway_in"),
    ("ip rule del pref 84", "rule"),
    ("ip route flush table 8479", "rule"), (f"rm {PINS}/links/egress0-in", "tunnel_in"), (f"rm {PINS}/links/egress0-out", "tunnel_out"),
    (f"rm {PINS}/links/[0-9]*", "web/p5"), ("rm /run/egressclass/classes.json", "state file"),
    ("echo broken >/run/egressclass/classes.json", "state file"), (f"rm -r {PINS}", "egressctl apply")],
    ids=lambda value: value if " " in value and "/" in value or value.startswith(("ip ", "nft")) else None)
def test_status_reports_damage_and_apply_mends_it(applied, outside, damage, text):
    node = applied
    pod = node.make_pod("p5", 5)
    node.add(pod)
    works(node, pod)
    node.run(damage)
    done = node.ctl("status", check=False)
    assert done.returncode == 1 and "NOT HEALTHY" in done.stdout and text in done.stdout, done.stdout
    assert text in problems(node)
    node.apply()
    works(node, pod)


def another_value(name: str, at: int = 0):
    """A command that changes an entry of a map, in one byte."""
    def command(node: LightNode) -> str:
        key, value = next(iter(node.map(name).items()))
        return (f"bpftool map update pinned {PINS}/maps/{name} key {' '.join(map(str, key))} "
                f"value {' '.join(map(str, [*value[:at], value[at] ^ 1, *value[at + 1:]]))}")
    return command


def test_apply_of_the_same_loads_no_program_again(applied):
    """As long as all is pinned that this build has loaded; what somebody has put in the place of a pin is noticed."""
    def loaded() -> list[str]:
        return applied.run(f"strace -f -qq -e trace=bpf {CTL} apply 2>&1 | grep -c BPF_PROG_LOAD || true").stdout.split()
    before = applied.classifiers()[0]
    assert loaded() == ["0"] and applied.classifiers()[0] == before
    applied.run(f"rm {PINS}/programs/classify; bpftool prog pin id $(bpftool -j prog show pinned {PINS}/programs/tunnel_in | "
                f"grep -o '\"id\":[0-9]*' | cut -d: -f2) {PINS}/programs/classify")
    assert loaded() != ["0"] and applied.classifiers()[0] != before
    assert applied.status()["problems"] == [] and loaded() == ["0"]


@pytest.mark.parametrize("damage, text", [
    ("nft flush chain inet egressclass verify_reply", "chain verify_reply"),
    ("nft flush chain inet egressclass guard", "chain guard"), ("nft insert rule inet egressclass guard accept", "chain guard"),
    ("nft add element inet egressclass never4 '{ 192.0.2.99 }'", "set never4"),
    (f"{INSIDE} nft flush chain inet egressclass srcnat", "the gateway's chain srcnat"),
    (f"{INSIDE} nft insert rule inet egressclass guard accept", "the gateway's chain guard"),
    (f"{INSIDE} nft flush map inet egressclass snat4", "the gateway's map snat4"),
    (f"{INSIDE} nft add element inet egressclass sources4 '{{ 0x1 . 192.0.2.99 }}'", "the gateway's set sources4"),
    (f"{INSIDE} sh -c 'echo 0 >/proc/sys/net/ipv4/ip_forward'", "of the gateway's namespace is"),
    (f"{INSIDE} sh -c 'echo 1 >/proc/sys/net/ipv4/conf/ec1/send_redirects'", "send_redirects of the gateway's namespace is 1"),
    ("echo 1 >/proc/sys/net/ipv6/conf/ec0/accept_ra", "ec0/accept_ra is 1"),
    (another_value("egress_ips", 4), "BPF map egress_ips"),
    (f"bpftool map delete pinned {PINS}/maps/classes key 1 0 0 0", "BPF map classes"),
    (another_value("vnis"), "BPF map vnis"), (another_value("rules"), "BPF map rules"),
    ("echo 0 >/proc/sys/net/ipv4/conf/eth0/forwarding", "eth0 does not forward"),
    ("echo 0 >/proc/sys/net/ipv4/conf/egress0/forwarding", "egress0 does not forward"),
    ("rm /run/egressclass/integrity.json", "not known")], ids=lambda value: value if isinstance(value, str) and "/" not in value else "")
def test_status_notices_subtle_damage_and_apply_mends_it(applied, damage, text):
    applied.run(damage if isinstance(damage, str) else damage(applied))
    done = applied.ctl("status", check=False)
    assert done.returncode == 1 and text in done.stdout, done.stdout
    assert [problem for problem in applied.status()["problems"] if text not in problem] == []
    applied.apply()
    assert applied.status()["problems"] == []


def test_traffic_and_pods_are_no_damage(applied, outside):
    """What the kernel and the plugin change by themselves, and a table that somebody saved and restored."""
    for number, namespace in ((5, "web"), (6, "far"), (7, "other")):
        pod = applied.make_pod(f"p{number}", number, namespace=namespace)
        applied.add(pod)
        applied.seen_as(pod, 1)
    assert applied.status()["problems"] == []
    applied.run("nft list table inet egressclass >/run/saved; nft delete table inet egressclass; nft -f /run/saved")
    assert applied.status()["problems"] == []


def test_records_that_cannot_be_read_are_reported(applied):
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    applied.record(pod).write_text("broken")
    done = applied.ctl("pods", "--json", check=False)
    assert done.returncode == 1 and "lab,p5,eth0" in done.stderr and json.loads(done.stdout) == []


@pytest.mark.parametrize("words", [[], ["nonsense"], ["apply", "--nonsense"], ["apply", "x"]])
def test_wrong_usage_is_an_error(node, words):
    done = node.ctl(*words, check=False)
    assert done.returncode not in (0, 2) and done.stderr


# --- races

def test_lock_is_that_of_the_file_which_is_there(applied):
    """`down` removes the lock with its folder; a waiter must not take the old one for the node's."""
    node = applied
    path = node.path("/run/egressclass/lock")
    with path.open("r+") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        with node.popen([str(CTL), "apply"], stdout=-1, stderr=-1) as waiter:
            time.sleep(0.3)
            assert waiter.poll() is None
            path.unlink()                       # as `down` does ...
            with path.open("w") as new:         # ... and the next one makes it again, and has the lock
                fcntl.flock(new, fcntl.LOCK_EX)
                fcntl.flock(old, fcntl.LOCK_UN)
                time.sleep(0.5)
                ended = waiter.poll()
                fcntl.flock(new, fcntl.LOCK_UN)
            assert waiter.wait(20) == 0
    assert ended is None


def test_apply_waits_for_an_add_and_an_add_for_apply(applied):
    node = applied
    pod = node.make_pod("p5", 5)
    with node.path("/run/egressclass/lock").open("r+") as lock:
        for mode, words in ((fcntl.LOCK_SH, "apply"), (fcntl.LOCK_EX, "apply")):
            fcntl.flock(lock, mode)
            with node.popen([str(CTL), words], stdout=-1, stderr=-1) as waiter:
                time.sleep(0.2)
                assert waiter.poll() is None
                fcntl.flock(lock, fcntl.LOCK_UN)
                assert waiter.wait(20) == 0
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=node.add, args=[pod])
        thread.start()
        time.sleep(0.2)
        assert node.traces_of_pods() == []
        fcntl.flock(lock, fcntl.LOCK_UN)
        thread.join(20)
    assert len(node.traces_of_pods()) == 4


def test_apply_is_not_overtaken_by_pods_that_came_later(applied):
    node = applied
    pod = node.make_pod("p5", 5)
    with node.path("/run/egressclass/lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with node.popen([str(CTL), "apply"], stdout=-1, stderr=-1) as waiter:
            time.sleep(0.3)
            thread = threading.Thread(target=node.add, args=[pod])
            thread.start()
            thread.join(1)
            overtaken = not thread.is_alive()
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert waiter.wait(20) == 0
            thread.join(20)
    assert not overtaken


def test_parallel_applies_end_in_one_of_their_configurations(node):
    variants = [configuration(WEB | {"egressIPs": [f"203.0.113.{n}"]}, FAR) for n in range(100, 106)]
    for n, config in enumerate(variants):
        node.write(f"/run/v{n}.json", json.dumps(config))
    with ThreadPoolExecutor(6) as pool:
        for done in pool.map(lambda n: node.ctl("apply", "-c", f"/run/v{n}.json"), range(len(variants))):
            assert done.returncode == 0
    in_force = json.loads(node.path("/run/egressclass/config.json").read_text())
    address = in_force["classes"][0]["egressIPs"][0]
    assert in_force in variants
    for command in ("ip -o addr show dev lo", "nft list map inet egressclass snat4", "nft list set inet egressclass sources4"):
        assert set(re.findall(r"203\.0\.113\.\d+", node.in_gateway(command).stdout)) == {address}, command
    assert re.findall(r"203\.0\.113\.\d+", node.run("ip route show dev ec0").stdout) == [address]
    assert node.status()["healthy"]


def test_del_of_a_pod_without_class_waits_for_apply_or_down_in_their_middle(applied):
    node = applied
    pod = node.make_pod("p5", 5, namespace="other")
    with node.path("/run/egressclass/lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        node.run(f"rm {PINS}/maps/*")       # as far as `down` has come, or `apply` after it made the folder
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(node.pod_call, "DEL", pod)
            time.sleep(0.3)
            node.run(f"rm -r {PINS}")
            fcntl.flock(lock, fcntl.LOCK_UN)
    assert (answer.result().code, answer.result().out) == (0, "")


def test_no_attachment_ever_has_an_id_that_means_another_class(applied):
    """ADD and DEL of pods while the configuration changes beneath them: classes swap their places, come, go, and `down`."""
    node = applied
    pods = [node.make_pod(f"p{n}", n, namespace=("web", "far", "third")[n % 3]) for n in range(10, 16)]
    third = egress_class("third", vni=33, egressIPs=["203.0.113.33"])
    variants = [configuration(*classes) for classes in ([WEB, FAR, third], [third, FAR, WEB], [third], [FAR, WEB], [WEB])]
    random.seed(7)
    stop = threading.Event()
    wrong: list[str] = []

    def churn(pod: NetPod) -> None:
        while not stop.wait(random.random() / 20):      # without a pause they would starve `apply`
            answer = node.pod_call("ADD", pod)
            if answer.code and answer.json["code"] not in (103,):
                wrong.append(f"ADD {pod.name}: {answer}")
            if answer.code == 0 and random.random() < 0.7:
                deleted = node.pod_call("DEL", pod)
                if deleted.code and "cannot open BPF map" not in deleted.out:      # see the test before
                    wrong.append(f"DEL {pod.name}: {deleted}")
                node.run(["ip", "link", "set", pod.host_veth, "up"])

    def inspect() -> None:
        """With the lock, so that nobody is in the middle of something."""
        folder = node.path("/run/egressclass")
        if not folder.exists():
            return
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = folder / "classes.json"
            ids = {c["name"]: c["id"] for c in json.loads(file.read_text())["classes"]} if file.exists() else {}
            records = [json.loads(f.read_text()) for f in (folder / "attachments").glob("[!.]*")]
            entries = node.attachments()
            if len(entries) != len(records):
                wrong.append(f"{len(entries)} entries, {len(records)} records")
            for record in records:
                entry = entries.get(record["hostIfindex"])
                if entry is None or entry[0] != record["classID"]:
                    wrong.append(f"{record}: entry {entry}")
                if ids.get(record["class"], record["classID"]) != record["classID"]:
                    wrong.append(f"{record}: the class is {ids[record['class']]} now")
                if record["classID"] in ids.values() and record["class"] not in ids:
                    wrong.append(f"{record}: the id means another class now: {ids}")

    threads = [threading.Thread(target=churn, args=[pod]) for pod in pods]
    for thread in threads:
        thread.start()
    try:
        for turn in range(30):
            if turn % 6 == 5:
                node.ctl("down")
            node.apply(random.choice(variants))
            inspect()
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    inspect()
    assert not wrong, "\n".join(wrong[:10])
    for pod in pods:
        node.delete(pod)
    assert node.traces_of_pods() == []
    node.ctl("down")
    assert not node.path("/run/egressclass").exists()


# --- size

def test_two_thousand_classes_with_twenty_thousand_prefixes(node, capsys):
    classes = [{"name": f"c{n}", "select": [{"namespaces": [f"c{n}"]}], "gateways": [{"address": ADDRESS if n % 2 else "192.0.2.11"}],
                "destinations": [f"{20 + n // 256}.{n % 256}.{k}.0/24" for k in range(10)], "vni": n + 1,
                "egressIPs": [f"198.18.{n // 250}.{n % 250 + 1}"]} for n in range(2000)]
    config = configuration(*classes)
    started = time.monotonic()
    node.apply(config)
    first = time.monotonic() - started
    assert len(node.class_ids()) == 2000 and len(node.map("rules")) > 20000
    started = time.monotonic()
    node.apply()
    second = time.monotonic() - started
    pod = node.make_pod("p5", 5, namespace="c1234")
    started = time.monotonic()
    node.add(pod)
    add = time.monotonic() - started
    assert node.status()["healthy"]
    node.delete(pod)
    started = time.monotonic()
    node.ctl("down")
    with capsys.disabled():
        print(f"\n  2000 classes, 20000 prefixes: apply {first:.1f} s, again {second:.1f} s, ADD {add * 1000:.0f} ms, "
              f"down {time.monotonic() - started:.1f} s")
    assert max(first, second) < 60 and add < 2


# --- the tunnel's device

@pytest.mark.parametrize("mtu", [1330, 1329, 1280, 576])
def test_ipv4_works_through_an_uplink_that_is_too_small_for_ipv6(node, mtu):
    """The kernel has no IPv6 on a device of less than 1280 bytes, not even its settings."""
    node.run(f"ip link set eth0 mtu {mtu}")
    node.apply(BOTH)
    assert node.link("egress0")["mtu"] == mtu - 50
    assert node.status()["healthy"], node.status()["problems"]
    node.ctl("down")


def test_ipv6_through_an_uplink_that_is_too_small_for_it_is_refused(node):
    both = configuration(egress_class("web", egressIPs=["203.0.113.7", "2001:db8:7::7"]))
    node.run("ip link set eth0 mtu 1329")
    done = node.apply(both, check=False)
    assert done.returncode == 1 and "IPv6 needs 1280: raise it by 1" in done.stderr, done.stderr
    node.run("ip link set eth0 mtu 1330; echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6")
    node.apply(both)


def test_the_kernel_gets_the_tunnels_port_in_two_bytes(node):
    """Of four it says in its log that it cannot use them."""
    node.configure(BOTH)
    trace = node.run(f"strace -f -qq -e trace=sendmsg,sendto -s 4096 -o /dev/stdout {CTL} apply").stdout
    (created,) = [line for line in trace.splitlines() if "RTM_NEWLINK" in line and '"vxlan"' in line]
    assert r"\x06\x00\x0f\x00\x21\x1f\x00\x00" in created, created      # nla_len, IFLA_VXLAN_PORT, 8479, padding
