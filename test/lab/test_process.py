# SPDX-License-Identifier: Apache-2.0
"""A call of the plugin as a process: which system calls it makes, and how long it takes when something does not answer."""
from __future__ import annotations

import fcntl
import json
import os
import time
from collections import Counter

import pytest
from inside import BPF, PINS, RUN, Stepper, inside
from light_node import PLUGIN, network
from tcx import LINK_CREATE

CLOEXEC, AF_NETLINK, MAP_UPDATE = 0o2000000, 16, 2
NAMES = {"x86_64": {2: "open", 22: "pipe", 32: "dup", 33: "dup2", 41: "socket", 42: "connect", 53: "socketpair", 56: "clone", 57: "fork",
                    58: "vfork", 59: "execve", 85: "creat", 257: "openat", 435: "clone3", 437: "openat2"},
         "aarch64": {56: "openat", 198: "socket", 199: "socketpair", 203: "connect", 220: "clone", 221: "execve", 23: "dup", 435: "clone3",
                     437: "openat2"}}[os.uname().machine]


def system_calls(verb: str, pod) -> Counter:
    """Those of a call that succeeds which make a process or a thread, a connection, or a descriptor that a child would inherit."""
    program, found = Stepper.plugin(verb, pod), Counter()
    while program.step():
        number, *arguments = program.system_call()
        name = NAMES.get(number, "")
        if name == "openat":
            found["inherited file" if not arguments[2] & CLOEXEC else "file"] += 1
        elif name == "socket":
            found["inherited socket" if not arguments[1] & CLOEXEC else "netlink" if arguments[0] == AF_NETLINK else "other socket"] += 1
        elif name:
            found[name] += 1
    answer = program.end()
    assert answer.code == 0, answer
    return found


@pytest.mark.parametrize("namespace", ["web", "other"], ids=["classed", "unclassed"])
def test_every_verb_asks_the_kernel_and_nobody_else(applied, namespace):
    """CNI-34, CNI-49: no agent, no API; CNI-62: no child, no thread, and no descriptor for one; CNI-22: nearly nothing for a pod without
    a class."""
    pod = applied.make_pod("p5", 5, namespace=namespace)
    for verb in ("ADD", "CHECK", "STATUS", "GC", "ADD", "DEL", "VERSION"):
        found = inside(applied, system_calls, verb, pod)
        assert set(found) <= {"file", "netlink"}, (verb, found)
        if verb == "VERSION" or (verb == "ADD" and namespace == "other"):
            assert found["file"] <= 4 and found["netlink"] == 0, (verb, found)
    assert applied.traces_of_pods() == []


WRITES = {"x86_64": {1: "write", 74: "fsync", 82: "rename", 264: "rename", 316: "rename"},
          "aarch64": {64: "write", 82: "fsync", 38: "rename", 276: "rename"}}[os.uname().machine]


def writes(pod) -> list[str]:
    """What ADD does to files, maps and hooks, in order."""
    program, found = Stepper.plugin("ADD", pod), []
    while program.step():
        number, *arguments = program.system_call()
        if number == BPF and arguments[0] in (MAP_UPDATE, LINK_CREATE):
            found.append("attach" if arguments[0] == LINK_CREATE else "entry")
        elif number in WRITES and (WRITES[number] == "rename" or arguments[0] > 2):
            found.append(WRITES[number])
    assert program.end().code == 0
    return found


def test_the_record_is_on_disk_before_the_kernel_is_changed(applied):
    """CNI-57, CNI-58"""
    found = inside(applied, writes, applied.make_pod("p5", 5))
    assert found == ["write", "fsync", "rename", "fsync", "entry", "entry", "attach"]


def test_no_call_waits_for_ever(applied):
    """CNI-40, CNI-61: for a lock that is never given, and for a runtime that never closes stdin. DEL's error is none that the runtime takes
    for success (CNI-38), and holds up the chain for less than half a minute."""
    node, pod = applied, applied.make_pod("p5", 5)
    node.add(pod)
    environment = {"CNI_CONTAINERID": pod.name, "CNI_NETNS": pod.netns, "CNI_IFNAME": pod.ifname, "CNI_ARGS": pod.args}
    before, started = node.snapshot(), time.monotonic()
    processes = []
    with open(node.path(RUN / "lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for verb, config, closes in (("ADD", network(pod.previous), True), ("DEL", network(pod.previous), True),
                                     ("GC", network(version="1.1.0", **{"cni.dev/attachments": []}), True), ("DEL", None, False)):
            process = node.popen([str(PLUGIN)], env=environment | {"CNI_COMMAND": verb}, stdin=-1, stdout=-1, stderr=-1)
            if config:
                process.stdin.write(json.dumps(config).encode())
            if closes:
                process.stdin.close()
            processes.append((verb, closes, process))
        for verb, closes, process in processes:
            answer = json.loads(process.stdout.read())
            assert process.wait(5) == 1 and answer["code"] == 11, (verb, answer)     # "try again later"
            assert "lock" in answer["msg"] + answer["details"] and "not found" not in answer["details"]
            assert time.monotonic() - started < (15 if closes else 30)
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()
    assert node.snapshot() == before
    assert node.check(pod).code == 0


IN_POD = """ip -d addr; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip neigh; tc qdisc; nft list ruleset
grep -r . /proc/sys/net/ipv4/conf /proc/sys/net/ipv4/ip_forward 2>/dev/null"""


def test_the_pods_namespace_stays_as_it_was(applied):
    """CNI-31: after success, after an error before anything was done, and after one that was rolled back."""
    node, pod = applied, applied.make_pod("p5", 5)
    before = node.in_pod(pod, IN_POD)
    assert len(before.splitlines()) > 50
    assert node.pod_call("ADD", pod, IFNAME="nosuch").code == 1
    assert node.in_pod(pod, IN_POD) == before
    node.run(f"rm -r {PINS}/links")
    assert node.pod_call("ADD", pod).json["code"] == 105
    assert node.in_pod(pod, IN_POD) == before
    node.apply()
    for verb in ("ADD", "CHECK", "ADD"):
        assert node.pod_call(verb, pod).code == 0
        assert node.in_pod(pod, IN_POD) == before
    namespaces = node.run("lsns -t net -n -o NS | sort").stdout
    node.delete(pod)
    node.run(f"ip link set {pod.host_veth} up")
    assert node.in_pod(pod, IN_POD) == before
    assert node.run("lsns -t net -n -o NS | sort").stdout == namespaces
