# SPDX-License-Identifier: Apache-2.0
"""The units of conf/, as they run: what each one starts, in its own sandbox (sandbox.py)."""
from __future__ import annotations

import json
import re
import signal

import pytest
import sandbox
from labkit.assets import REPOSITORY
from light_fleet import until
from light_node import ADDRESS, BOTH, FAR, LightNode, configuration, egress_class

SANDBOX = ["/usr/bin/python3", "-B", sandbox.__file__]
APPLY, WATCH, AUDIT = "egressclass.service", "egressclass-watch.service", "egressd.service"
PRIMARY = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.244.1.0/24"}}]}
INSTALLED = {"build/egressclass": "/usr/local/libexec/egressclass/egressclass", "build/egressctl": "/usr/local/sbin/egressctl",
             "build/egressd": "/usr/local/sbin/egressd", "scripts/bootstrap.sh": "/usr/local/sbin/egressclass-bootstrap"}


@pytest.fixture
def node(node) -> LightNode:
    """On which all is where the units look for it."""
    for source, target in INSTALLED.items():
        node.install(REPOSITORY / source, target)
    return node


def start(node: LightNode, unit: str, config: dict | None = None, check: bool = True):
    """What the oneshot unit starts, to its end."""
    if config is not None:
        node.configure(config)
    return node.run([*SANDBOX, unit], check=check)


# --- the units themselves

RUNTIMES = {"containerd", "crio", "docker", "cri-docker", "k3s", "k3s-agent", "rke2-server", "rke2-agent",
            "snap.microk8s.daemon-containerd", "k0scontroller", "k0sworker"}


@pytest.mark.parametrize("unit", [APPLY, WATCH])
def test_order_at_boot(unit):
    lines = re.findall(r"^Before=(.*)$", (REPOSITORY / "conf" / unit).read_text(), re.MULTILINE)
    assert " ".join(lines).split() and {name.removesuffix(".service") for name in " ".join(lines).split()} == RUNTIMES


@pytest.mark.parametrize("unit", [APPLY, WATCH, AUDIT])
def test_nothing_is_given_up_for_having_failed_often(unit):
    """Five failed starts within ten seconds are the last ones, unless the unit says otherwise, or starts less often."""
    assert "StartLimitIntervalSec=0" in (REPOSITORY / "conf" / unit).read_text() or sandbox.Unit(unit).text("RestartSec") == "5"


# --- the sandbox itself

def test_what_a_unit_does_not_allow_fails(node):
    """Or the other tests here would prove nothing."""
    def tried(unit: str, command: str) -> int:
        return node.run([*SANDBOX, unit, "sh", "-c", command], check=False).returncode
    for unit in (APPLY, WATCH, AUDIT):
        assert tried(unit, "true") == 0
        assert tried(unit, "touch /usr/local/sbin/x") == 1
        assert tried(unit, "ls -A /root | grep .") == 1
        assert tried(unit, "mount -t tmpfs x /tmp") in (128 + signal.SIGSYS, 1, 32)
        assert tried(unit, "unshare -m true") == 1 and tried(unit, "unshare -u true") == 1
        assert (tried(unit, "unshare -n true") == 1) == (unit == WATCH)     # who enters the gateway's namespace may make others
        assert tried(unit, "busybox nc -lu -s 127.0.0.1 -p 9 -w 1 </dev/null") != 0 or unit == APPLY
    assert tried(APPLY, "touch /etc/x") == 1 and tried(APPLY, "touch /run/egressclass/x /var/lib/egressclass/x") == 0
    assert tried(WATCH, "touch /etc/x /opt/x /var/x") == 0
    assert tried(WATCH, "echo 0 >/proc/sys/kernel/hostname") != 0 and tried(AUDIT, "echo 1 >/proc/sys/net/ipv4/ip_forward") != 0


# --- egressclass.service

def test_apply_may_what_it_needs(node, pair):
    """On a clean node, on one with pods, and for a gateway that announces egress IPs."""
    start(node, APPLY, BOTH)
    pod = node.make_pod("p5", 5, namespace="web")
    assert node.add(pod).code == 0
    start(node, APPLY, configuration(egress_class("web", egressIPs=["203.0.113.8"]), FAR))
    assert node.status()["healthy"], node.status()["problems"]
    pair[1].start_echo()
    pair[1].wait_echo()
    assert node.seen_as(pod) == "203.0.113.8"


@pytest.mark.parametrize("missing", ["bpf sys_admin", "perfmon sys_admin", "net_admin"])
def test_apply_needs_each_of_its_capabilities(node, missing):
    """CAP_SYS_ADMIN would stand for some others. CAP_NET_RAW is for announcements, which fail no apply: test_announce.py."""
    node.configure(BOTH)
    allowed = sandbox.capabilities(sandbox.Unit(APPLY)) - set(missing.split())
    done = node.run(["setpriv", "--bounding-set=-all," + ",".join("+" + name for name in allowed), "/usr/local/sbin/egressctl", "apply"],
                    check=False)
    assert done.returncode == 1


def test_an_apply_that_fails_in_the_sandbox_says_why_and_leaves_nothing(node):
    node.run("ip link add foreign type vxlan id 7 dstport 8479; ip link set foreign up")
    done = start(node, APPLY, BOTH, check=False)
    assert done.returncode == 1 and "no configuration is in force" in done.stderr and "failed too" not in done.stderr, done.stderr
    node.run("ip link del foreign")
    start(node, APPLY)
    assert node.status()["healthy"], node.status()["problems"]


def test_apply_of_what_is_late_is_tried_again_and_that_of_a_broken_file_is_not(node):
    unit = sandbox.Unit(APPLY)
    final = [int(code) for code in unit.words("RestartPreventExitStatus")]
    assert unit.text("Restart") == "on-failure" and final == [2]
    node.run("ip addr flush dev eth0 scope global")
    assert start(node, APPLY, BOTH, check=False).returncode == 3
    node.run(f"ip addr add {ADDRESS}/24 dev eth0")
    assert start(node, APPLY, check=False).returncode == 0
    node.configure("{ broken")
    assert start(node, APPLY, check=False).returncode == 2


# --- egressclass-watch.service

FOLDERS = {     # of a platform: network, plugins
    "usual": ("/etc/cni/net.d", "/opt/cni/bin"),
    "containerd that was told": ("/etc/cni/net.d", "/var/lib/plugins"),
    "k3s": ("/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni"),
    "microk8s": ("/var/snap/microk8s/current/args/cni-network", "/var/snap/microk8s/current/opt/cni/bin"),
    "Debian's CRI-O": ("/etc/cni/net.d", "/usr/lib/cni"),
}


@pytest.mark.parametrize("platform", FOLDERS)
@pytest.mark.parametrize("state", ["nothing applied", "applied"])
def test_the_watch_installs_and_watches(node, platform, state):
    net, plugins = FOLDERS[platform]
    if state == "applied":
        node.apply(BOTH)
        node.add(node.make_pod("p5", 5))
    node.run("mkdir /run/cni; mount --bind /run/cni /usr/lib/cni; rm -rf /etc/containerd")     # the lab's /usr is the machine's own
    if platform == "Debian's CRI-O":
        node.write("/etc/crio/crio.conf", f'[crio.network]\nplugin_dirs = ["{plugins}"]\n')
    if platform == "containerd that was told":
        node.write("/etc/containerd/config.toml", f'version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "{plugins}"\n')
    primary = f"{net}/10-pods.conflist"
    node.write(primary, json.dumps(PRIMARY))
    node.run(["chown", "7:8", primary])

    def is_in() -> bool:
        """In the primary's list, or in one of our own."""
        return any('"egressclass"' in file.read_text() for file in node.path(net).glob("*.conflist"))
    with node.popen([*SANDBOX, WATCH], stdout=-1, stderr=-2, text=True) as process:
        until(lambda: is_in() or process.poll() is not None, what="the entry")
        assert process.poll() is None, process.stdout.read()
        assert node.path(f"{plugins}/egressclass").read_bytes() == (REPOSITORY / "build/egressclass").read_bytes()
        assert (node.path(primary).stat().st_uid, node.path(primary).stat().st_gid) == (7, 8)
        node.run(f"rm {plugins}/egressclass; for list in {net}/*.conflist; do [ $list = {primary} ] || rm $list; done")
        node.write(primary, json.dumps(PRIMARY))
        until(lambda: is_in() and node.path(f"{plugins}/egressclass").exists(), what="the entry and the plugin, again")
        process.stop(signal.SIGTERM)
