# SPDX-License-Identifier: Apache-2.0
"""Bootstrap under a real containerd: pods start at each moment, with their class as soon as the entry is there."""
import json
import threading
import time

from labkit.assets import REPOSITORY
from labkit.node import CNI_BIN, CNI_CONF
from traffic import BILLING, source

SCRIPT = REPOSITORY / "scripts/bootstrap.sh"
NODE = "192.0.2.11"


def bootstrap(node, command, *options, check=True):
    return node.run([SCRIPT, command, *options], check=check)


def entries(node):
    return [plugin["type"] for plugin in json.loads(node.path(CNI_CONF).read_text())["plugins"]].count("egressclass")


def leaves_with(fleet, node, name):
    """The source of a pod of a class, which is removed again."""
    pod = node.run_pod(name, "billing")
    try:
        return source(pod.ask(fleet.outside.address, 7001))
    finally:
        pod.remove()


def await_source(fleet, node, expected, seconds=5):
    """Of new pods: the runtime needs a moment to see that its list is another one."""
    deadline = time.monotonic() + seconds
    number = 0
    while (found := leaves_with(fleet, node, f"try{number}")) != expected:
        assert time.monotonic() < deadline, f"pods leave with {found}"
        number += 1


def test_out_and_in_again(own_fleet):
    """The folders are those of containerd's configuration. A pod that was made with the plugin is removed without its entry; one that was
    made without it is named until it is restarted; the plugin goes when nobody needs it any more."""
    node = own_fleet.node("worker1")
    before = node.path(CNI_CONF).read_text()
    old = node.run_pod("old", "billing")
    bootstrap(node, "uninstall")
    assert entries(node) == 0
    await_source(own_fleet, node, NODE)
    assert source(old.ask(own_fleet.outside.address, 7001)) == BILLING
    refused = bootstrap(node, "uninstall", "--purge", check=False)
    assert refused.returncode == 2 and "running pods were made with it" in refused.stderr
    old.remove()
    bootstrap(node, "uninstall", "--purge")
    assert not node.path(f"{CNI_BIN}/egressclass").exists()
    early = node.run_pod("early", "billing")

    bootstrap(node, "install")
    assert json.loads(node.path(CNI_CONF).read_text()) == json.loads(before)
    await_source(own_fleet, node, BILLING)
    status = bootstrap(node, "status", check=False)
    assert status.returncode == 5 and "billing/early started without the plugin" in status.stdout
    early.remove()
    assert bootstrap(node, "status").stdout.count("current") == 2


def test_pods_start_at_each_moment(own_fleet):
    """While the entry comes and goes all the time; each leaves with its class's address, or was made without a class."""
    node, stop, failures = own_fleet.node("worker1"), threading.Event(), []

    def toggle():
        while not stop.is_set():
            for command in "uninstall", "install":
                done = bootstrap(node, command, check=False)
                if done.returncode:
                    failures.append(done.stderr)
    thread = threading.Thread(target=toggle)
    thread.start()
    try:
        seen = {leaves_with(own_fleet, node, f"pod{number}") for number in range(20)}
    finally:
        stop.set()
        thread.join()
    assert not failures and seen <= {BILLING, NODE}
    await_source(own_fleet, node, BILLING)
    assert entries(node) == 1


def test_no_pod_starts_in_a_gap_where_the_platform_writes_its_list_anew(own_fleet):
    """As RKE2's CNIs do at each start. The entry of an earlier version moves to a list of our own while pods start, and nobody watches."""
    node, stop = own_fleet.node("worker1"), threading.Event()
    with_entry = node.path(CNI_CONF).read_text()
    node.run("mkdir -p /var/lib/rancher/rke2/agent")

    def platform():
        while not stop.is_set():
            node.write(CNI_CONF, plain)
            time.sleep(0.05)
    moving = threading.Timer(1, bootstrap, (node, "install"))
    moving.start()
    assert {leaves_with(own_fleet, node, f"moved{number}") for number in range(8)} == {BILLING}
    moving.join()
    own = node.path(CNI_CONF.replace(".conflist", "-egressclass.conflist"))
    assert entries(node) == 0 and json.loads(own.read_text()) == json.loads(with_entry)
    plain = node.path(CNI_CONF).read_text()
    thread = threading.Thread(target=platform)
    thread.start()
    try:
        assert {leaves_with(own_fleet, node, f"pod{number}") for number in range(8)} == {BILLING}
    finally:
        stop.set()
        thread.join()
    bootstrap(node, "uninstall")
    node.run("rmdir -p /var/lib/rancher/rke2/agent", check=False)
    assert not own.exists()
    bootstrap(node, "install")
    assert json.loads(node.path(CNI_CONF).read_text()) == json.loads(with_entry)


def test_watch_keeps_the_entry_there(own_fleet):
    """The primary CNI writes its list anew: the next pods have their class again, without anybody's help."""
    node = own_fleet.node("worker1")
    with_entry = json.loads(node.path(CNI_CONF).read_text())
    plain = with_entry | {"plugins": [plugin for plugin in with_entry["plugins"] if plugin["type"] != "egressclass"]}
    watch = node.popen(f"echo $$ >/run/watch.pid; exec {SCRIPT} watch", stdout=-3, stderr=-3)
    try:
        for _ in range(3):
            node.write(CNI_CONF, json.dumps(plain))
            deadline = time.monotonic() + 5
            while entries(node) == 0:
                assert time.monotonic() < deadline, "nobody puts the entry back"
                time.sleep(0.02)
            await_source(own_fleet, node, BILLING)
        assert watch.poll() is None
    finally:
        node.run("kill $(cat /run/watch.pid)")      # of the node's pid namespace
        assert watch.wait(10) == 0
