# SPDX-License-Identifier: Apache-2.0
"""Container runtimes and what they make of CNI: containerd's CRI with lists of three versions, all the shapes that their DEL takes, its
failures and crashes; podman; and `ctr run --cni`. A recorder in front of the plugin keeps what each call looked like.
(CNI-4, 5, 19, 33, 37, 52, 53)"""
from __future__ import annotations

import json
import threading
from dataclasses import dataclass

import pytest
from labkit import CONFIGURATION, NODES, CriError
from labkit.assets import IMAGE, archive
from labkit.node import CNI_BIN, CNI_CONF, CONFIGURATION as CONFIG_FILE
from traffic import BILLING, source, until

WORKER, GATEWAY = NODES[0], NODES[2]
FLEET = {"nodes": (WORKER, GATEWAY), "configuration": CONFIGURATION | {"nodes": [WORKER.address, GATEWAY.address]}}

CALLS = "/run/calls"
RECORDER = f"""#!/bin/sh
# as long as the file {CALLS}/wait is there, the plugin is not started
stdin=$(cat)
file=$(mktemp {CALLS}/$(date +%s%N).XXXXXX)
{{ env | grep ^CNI_; printf '\\n%s' "$stdin"; }} >$file
mv $file $file.call
while [ -e {CALLS}/wait ]; do sleep 0.02; done
printf %s "$stdin" | {CNI_BIN}/egressclass.real
"""


@dataclass
class Call:
    verb: str
    env: dict[str, str]
    stdin: dict

    @property
    def shape(self) -> tuple[bool, bool]:
        """Is there a network namespace, and a result?"""
        return bool(self.env.get("CNI_NETNS")), "prevResult" in self.stdin

    @property
    def args(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in self.env.get("CNI_ARGS", "").split(";") if pair)


def calls(node, verb: str | None = None) -> list[Call]:
    """What the plugin was called with since it was asked last."""
    found = []
    for file in sorted(node.path(CALLS).glob("*.call")):
        env, _, stdin = file.read_text().partition("\n\n")
        variables = dict(line.split("=", 1) for line in env.splitlines())
        found.append(Call(variables["CNI_COMMAND"], variables, json.loads(stdin)))
        file.unlink()
    return [call for call in found if verb in (None, call.verb)]


def record(node) -> None:
    """Put the recorder in front of the plugin."""
    node.run(f"mkdir -p {CALLS}; [ -e {CNI_BIN}/egressclass.real ] || mv {CNI_BIN}/egressclass {CNI_BIN}/egressclass.real")
    node.write(f"{CNI_BIN}/egressclass", RECORDER, 0o755)
    calls(node)


@pytest.fixture
def worker(fleet):
    node = fleet.node(WORKER.name)
    record(node)
    yield node
    for pod in node.pods():
        pod.remove()
    assert traces(node) == []


def traces(node) -> list[str]:
    """What attachments have left on a node: entries, pins, records."""
    pins = "/sys/fs/bpf/egressclass"
    found = node.run(f"ls -A {pins}/links 2>/dev/null | grep -v ^egress0; ls -A /run/egressclass/attachments 2>/dev/null", check=False)
    for name in "attachments", "endpoints":
        dump = node.run(["bpftool", "-j", "map", "dump", "pinned", f"{pins}/maps/{name}"], check=False).stdout
        found.stdout += "".join(f"{name}: {entry['key']}\n" for entry in json.loads(dump or "[]") if "key" in entry)
    return found.stdout.splitlines()


def interfaces(node) -> set[str]:
    return {line.split()[1] for line in node.run("ip -o link").stdout.splitlines()}


# --- containerd

@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_cni_19_a_pod_comes_and_goes_with_a_list_of_each_version(worker, version, fleet):
    before = interfaces(worker) | {"cni0:"}
    original = worker.path(CNI_CONF).read_text()
    worker.write(CNI_CONF, json.dumps(json.loads(original) | {"cniVersion": version}))
    try:
        def of_that_version():      # containerd loads the list again when it notices
            pod = worker.run_pod("web", "billing")
            if calls(worker, "ADD")[-1].stdin["cniVersion"] == version:
                return pod
            return pod.remove()
        pod = until(of_that_version, f"a pod by a list of version {version}")
        assert source(pod.ask(fleet.outside.address, 7001)) == BILLING
        assert [entry["inForce"] for entry in json.loads(worker.run(["egressctl", "pods", "--json"]).stdout)] == [True]
        calls(worker)
        pod.remove()
        assert traces(worker) == [] and interfaces(worker) <= before
        shapes = [call.shape for call in calls(worker, "DEL")]
        # with the netns at first, without it from then on; results are kept for DEL from 0.4.0 on
        assert shapes[0] == (True, version != "0.3.1") and set(shapes[1:]) == {(False, False)}
    finally:
        worker.write(CNI_CONF, original)


def reboot(node, pod) -> None:
    """All processes and namespaces of the pods are gone, the disk is not."""
    netns = pod.netns
    node.kill9_containerd()
    node.run("for pid in $(ls /proc | grep '^[0-9]'); do case $(cat /proc/$pid/comm 2>/dev/null) in containerd-shim|pause|sleep) "
             "[ $pid = 1 ] || kill -9 $pid;; esac; done", check=False)
    until(lambda: node.run(f"umount -l {netns}; rm -f {netns}; [ ! -e {netns} ]", check=False).returncode == 0, "no netns")
    node.run("for veth in $(ip -o link show master cni0 | cut -d: -f2 | cut -d@ -f1); do ip link del $veth; done")
    node.start_containerd()


def test_cni_33_all_four_shapes_of_del_happen_and_leave_nothing(worker):
    shapes = set()
    pod = worker.run_pod("a", "billing")
    pod.remove()
    with pytest.raises(CriError, match="no-such-class"):
        worker.run_pod("b", "default", annotations={"egressclass.io/class": "no-such-class"})
    shapes |= {call.shape for call in calls(worker, "DEL")}
    assert traces(worker) == []
    pod = worker.run_pod("c", "billing")
    reboot(worker, pod)
    calls(worker)
    pod.remove()
    assert traces(worker) == []
    shapes |= {call.shape for call in calls(worker, "DEL")}
    assert shapes == {(True, True), (True, False), (False, True), (False, False)}


def test_a_pod_that_names_an_unknown_class_leaves_nothing_and_the_next_one_works(worker, fleet):
    before, leases = interfaces(worker), worker.run("ls /var/lib/cni/networks/lab | wc -l", check=False).stdout
    for _ in range(3):
        with pytest.raises(CriError) as failure:
            worker.run_pod("web", "billing", annotations={"egressclass.io/class": "no-such-class"})
        assert "no-such-class" in failure.value.details
        assert [call.shape for call in calls(worker, "DEL")] == [(True, False)]
    assert traces(worker) == [] and worker.pods() == []
    assert interfaces(worker) == before and worker.run("ls /var/lib/cni/networks/lab | wc -l", check=False).stdout == leases
    pod = worker.run_pod("web", "billing")
    assert source(pod.ask(fleet.outside.address, 7001)) == BILLING
    pod.remove()


def test_cni_37_containerd_killed_during_our_add(worker, fleet):
    worker.write(f"{CALLS}/wait", "")
    failures = []

    def run():
        try:
            worker.run_pod("web", "billing")
        except CriError as error:
            failures.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: calls(worker, "ADD"), "ADD")
        worker.kill9_containerd()
        thread.join(20)
        assert failures, "the pod runs"
    finally:
        worker.run(f"rm {CALLS}/wait")
    # the plugin lives on, and finishes
    until(lambda: len(json.loads(worker.run(["egressctl", "pods", "--json"], check=False).stdout)) == 1, "the orphan's attachment")
    worker.start_containerd()
    (pod,) = worker.pods()
    pod.remove()
    assert traces(worker) == []
    assert (True, False) in [call.shape for call in calls(worker, "DEL")]
    again = worker.run_pod("web", "billing")
    assert source(again.ask(fleet.outside.address, 7001)) == BILLING
    again.remove()


def test_cni_33_del_when_our_records_are_lost(worker):
    pods = [worker.run_pod(name, "billing") for name in ("a", "b")]
    worker.run("rm -r /run/egressclass/attachments")
    for pod in pods:
        pod.remove()
    assert traces(worker) == []


def test_cni_33_del_when_all_of_our_state_is_lost(worker, fleet):
    pod = worker.run_pod("a", "billing")
    worker.run("rm -r /run/egressclass /sys/fs/bpf/egressclass")
    pod.remove()
    worker.run(["egressctl", "apply"])
    assert worker.run(["egressctl", "status"]).returncode == 0
    pod = worker.run_pod("b", "billing")
    assert source(pod.ask(fleet.outside.address, 7001)) == BILLING
    pod.remove()


# --- without Kubernetes

ALONE = {"nodes": (GATEWAY,), "configuration": {
    "classes": [{"name": "web", "select": [{"pods": ["web-*"]}], "destinations": ["0.0.0.0/0"],
                 "gateways": [{"address": GATEWAY.address}], "egressIPs": ["203.0.113.7"]}],
    "clusterCIDRs": ["10.244.0.0/16"], "nodes": [GATEWAY.address]}}

PODMAN = f"""
[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{CNI_BIN}"]
network_config_dir = "/etc/cni/net.d"
default_network = "lab"
"""


def test_podman_gives_containers_the_class_that_their_name_selects(make_fleet):
    fleet = make_fleet(**ALONE)
    node = fleet.node(GATEWAY.name)
    record(node)
    node.write("/etc/containers/containers.conf", PODMAN)
    node.run("mkdir -p /var/lib/containers /run/libpod && mount -t tmpfs lab /var/lib/containers")
    with archive().open("rb") as image, node.popen(["podman", "load"], stdin=image, stdout=-3, stderr=-3) as load:
        assert load.wait(30) == 0

    def run(name: str) -> str:
        node.run(["podman", "run", "-d", "--name", name, "--network", "lab", "--cgroup-parent", node.cgroup, "--entrypoint",
                  '["sleep", "1000"]', IMAGE], timeout=30)
        return node.run(["podman", "exec", name, "timeout", "5", "first_syn", fleet.outside.address, "7001", "exit"], check=False).stdout
    web, other = run("web-1"), run("other")
    seen = calls(node)
    assert source(web) == "203.0.113.7"
    assert source(other).startswith("10.244.") or source(other) == GATEWAY.address      # as without us
    assert "VERSION" in {call.verb for call in seen}
    add = next(call for call in seen if call.verb == "ADD")
    assert add.args["K8S_POD_NAME"] == "web-1" and "K8S_POD_NAMESPACE" not in add.args and "runtimeConfig" not in add.stdin
    node.run(["podman", "rm", "-f", "-t", "0", "web-1", "other"], timeout=30)
    assert until(lambda: [call.shape for call in calls(node, "DEL")], "DEL")
    until(lambda: traces(node) == [], "nothing left")
    assert not [name for name in interfaces(node) if name.startswith("veth")]


def test_ctr_run_gives_containers_without_a_name_the_default_class(make_fleet):
    fleet = make_fleet(**ALONE)
    node = fleet.node(GATEWAY.name)
    record(node)
    configuration = json.loads(json.dumps(ALONE["configuration"]))
    configuration["classes"].append({"name": "rest", "default": True, "destinations": ["0.0.0.0/0"],
                                     "gateways": [{"address": GATEWAY.address}], "egressIPs": ["203.0.113.8"]})
    node.write(CONFIG_FILE, json.dumps(configuration))
    node.run(["egressctl", "apply"])
    answer = node.run(["ctr", "-n", "k8s.io", "run", "--rm", "--cni", "--cgroup", "", IMAGE, "c1",
                       "timeout", "5", "first_syn", fleet.outside.address, "7001", "exit"], timeout=30)
    assert source(answer.stdout) == "203.0.113.8", answer.stderr
    add, *deletes = calls(node)
    assert (add.verb, add.args) == ("ADD", {}) and add.env["CNI_CONTAINERID"] == "k8s.io-c1"
    assert deletes and {(call.verb, call.env["CNI_NETNS"]) for call in deletes} == {("DEL", "")}
    assert traces(node) == []
