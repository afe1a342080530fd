# SPDX-License-Identifier: Apache-2.0
"""`make dist`: a tarball and a Debian package that install and remove, with the same bytes each time. A node's upgrade loses no packet; its
removal leaves nothing, or does not happen."""
from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from labkit.assets import REPOSITORY
from labkit.node import CONFIGURATION
from light_fleet import LightFleet, configuration, egress_class, egress_ip
from traffic import Stream, ask

DIST = REPOSITORY / "build/dist"
VERSION = re.search(r'kVersion = "(.*)"', (REPOSITORY / "plugin/util/version.h").read_text())[1]


def run(*words, **keys) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, **keys)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture(scope="module")
def sums() -> str:
    run("make", "-C", REPOSITORY, "dist")
    return (DIST / "SHA256SUMS").read_text()


@pytest.fixture(scope="module")
def package(sums) -> Path:
    (found,) = DIST.glob("*.deb")
    return found


def test_packing_again_makes_the_same_bytes(sums):
    """Whenever, whoever, and with whatever umask and locale."""
    run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=DIST)
    run("sh", "-c", f"umask 077; make -C {REPOSITORY} dist", env=os.environ | {"LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo", "USER": "somebody"})
    assert (DIST / "SHA256SUMS").read_text() == sums


def test_names_and_programs_say_the_version(package, tmp_path):
    assert f"_{VERSION}_" in package.name
    assert run("dpkg-deb", "--field", package, "Version").strip() == VERSION
    run("dpkg-deb", "--extract", package, tmp_path)
    assert run(tmp_path / "usr/sbin/egressctl", "--version") == f"egressctl {VERSION}\n"
    done = subprocess.run([tmp_path / "usr/libexec/egressclass/egressclass"], env={}, capture_output=True, text=True, timeout=10)
    assert done.stderr.startswith(f"egressclass {VERSION}:")


def test_tarball_and_package_hold_the_same(package, tmp_path):
    deb, tar = tmp_path / "deb", tmp_path / "tar"
    tar.mkdir()
    run("dpkg-deb", "--extract", package, deb)
    run("tar", "-xzf", package.with_suffix(".tar.gz"), "-C", tar)
    assert files_below(deb) == files_below(tar) != set()
    for name in files_below(deb):
        assert (deb / name).read_bytes() == (tar / name).read_bytes() and (deb / name).stat().st_mode == (tar / name).stat().st_mode, name
    assert all(line.split()[1] == "root/root" for line in run("dpkg-deb", "--contents", package).splitlines())


def test_the_package_names_all_that_its_programs_need(package, tmp_path):
    run("dpkg-deb", "--extract", package, tmp_path)
    named = set(run("dpkg-deb", "--field", package, "Depends").strip().split(", "))
    libraries = re.findall(r"^\s+(\S+) (?:=>|\()", run("objdump", "-p", tmp_path / "usr/sbin/egressctl"), re.MULTILINE) or \
        re.findall(r"NEEDED\s+(\S+)", run("objdump", "-p", tmp_path / "usr/sbin/egressctl"))
    needed = {run("dpkg", "--search", f"*/{library}").split(":")[0] for library in libraries}
    assert needed and needed <= named, needed - named


def test_it_installs_bootstraps_and_goes_without_a_trace(package, tmp_path):
    """In a root of its own. The units find the programs where the package has them."""
    root = tmp_path / "root"
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    dpkg = ["dpkg", f"--root={root}", "--force-depends", "--force-script-chrootless", "--log=/dev/null"]
    run(*dpkg, "--install", package)
    for unit in (root / "lib/systemd/system").iterdir():
        for program in re.findall(r"^Exec\w+=\+?(\S+)", unit.read_text(), re.MULTILINE):
            assert os.access(root / program.lstrip("/"), os.X_OK), (unit.name, program)
    net, plugins = root / "etc/cni/net.d", root / "opt/cni/bin"
    net.mkdir(parents=True)
    (net / "10-pods.conflist").write_text('{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp"}]}')
    run(root / "usr/sbin/egressclass-bootstrap", "install", "--root", root)
    assert '"egressclass"' in (net / "10-pods.conflist").read_text() and os.access(plugins / "egressclass", os.X_OK)
    wanted = root / "etc/systemd/system/multi-user.target.wants"
    wanted.mkdir(parents=True)
    (wanted / "egressclass-watch.service").symlink_to("/lib/systemd/system/egressclass-watch.service")
    for folder in "etc", "var/lib", "var/log":
        (root / folder / "egressclass").mkdir(parents=True)
        (root / folder / "egressclass/something").touch()
    run(*dpkg, "--remove", "egressclass")
    assert json.loads((net / "10-pods.conflist").read_text())["plugins"] == [{"type": "ptp"}]
    assert not (plugins / "egressclass").exists() and not list(wanted.iterdir())
    assert (root / "etc/egressclass/something").exists() and (root / "var/log/egressclass/something").exists()
    run(*dpkg, "--purge", "egressclass")
    assert not [path for path in root.rglob("*egress*")]


# --- on nodes, whose /usr is theirs too

LIST = "/etc/cni/net.d/10-pods.conflist"
PLUGIN = "/opt/cni/bin/egressclass"
PLAIN = '{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp"}]}'
# What systemd is asked for, and what it says: units that run are files.
SYSTEMCTL = """#!/bin/sh
echo "$*" >>/run/systemctl.log
for unit; do :; done
case $* in
  *is-active*) [ -e /run/active/$unit ] ;;
  *is-enabled*) echo enabled ;;
  *stop*) rm -f /run/active/$unit ;;
  *start*) touch /run/active/$unit ;;
esac
"""
UNITS = {"egressclass.service", "egressclass-watch.service", "egressd.service"}


def names(node) -> set[str]:
    """Of all that is ours, wherever the package or its programs may have put it."""
    return set(node.run("find /etc /opt /run /usr /var /sys/fs/bpf -xdev ! -path '/run/.lab/*' ! -path '/run/active/*' "
                        "'(' -name '*egressc*' -o -name 'egressd*' ')'", check=False).stdout.split())


def kernel(node) -> str:
    return node.run("nft list tables | grep egress; ip -o link show | grep egress; ip rule | grep 8479; ls /sys/fs/bpf", check=False).stdout


def active(node) -> set[str]:
    return set(os.listdir(node.path("/run/active")))


def entries(node) -> int:
    return node.path(LIST).read_text().count('"egressclass"')


def dpkg(node, *words, check: bool = True):
    return node.run(["dpkg", *map(str, words)], check=check, timeout=60)


@pytest.fixture
def packaged(package):
    """Worker and gateway with the package, applied, and bootstrapped; systemd runs all units of the worker."""
    with LightFleet(("worker1", "gateway1")) as fleet:
        config = configuration(egress_class("web", "gateway1", egressIPs=[egress_ip(7)]))
        for node in fleet.nodes:
            node.run("mkdir -p /run/.lab/usr/up /run/.lab/usr/work && "
                     "mount -t overlay -o lowerdir=/usr,upperdir=/run/.lab/usr/up,workdir=/run/.lab/usr/work lab /usr && "
                     "rm -rf /etc/containerd /*/egressclass /var/*/egressclass")      # of the machine itself
            node.write(LIST, PLAIN)
            node.before = names(node), kernel(node)
            dpkg(node, "--install", package)
            node.configure(config)
            node.run("egressclass-bootstrap install && egressctl apply")
        worker = fleet.worker1
        worker.write("/usr/bin/systemctl", SYSTEMCTL, 0o755)
        worker.run("rm -f /usr/sbin/policy-rc.d; "       # of a machine that is a container
                   f"mkdir -p /run/systemd/system /run/active /etc/systemd/system/multi-user.target.wants; cd /run/active; touch {' '.join(UNITS)}; "
                   f"for unit in *; do ln -s /lib/systemd/system/$unit /etc/systemd/system/multi-user.target.wants/$unit; done")
        yield fleet


def run_pod(node, name: str, **keys):
    pod = node.pod(name, "web", add=False, **keys)
    answer = node.pod_call("ADD", pod, plugin=PLUGIN)
    assert answer.code == 0, answer
    return pod


def end_pod(node, pod) -> None:
    assert node.pod_call("DEL", pod, plugin=PLUGIN).code == 0
    node.remove_pod(pod)


def later_egressctl(folder: Path) -> Path:
    """With programs that have one instruction more. Only programs.o is made of them."""
    run("cp", "-a", REPOSITORY / "Makefile", REPOSITORY / "plugin", REPOSITORY / "bpf", folder)
    run("cp", "-a", "--parents", "build/obj", "build/bpf", folder, cwd=REPOSITORY)
    source = folder / "bpf/egressclass.bpf.c"
    text, count = re.subn(r"^int \w+\(struct __sk_buff\* skb\) {", r'\g<0> asm volatile("r0 = 42" ::: "r0");', source.read_text(), flags=re.M)
    assert count
    source.write_text(text)
    run("make", "-C", folder, "build/bpf/egressclass.skel.h")
    run("sh", "-c", "rm plugin/datapath/programs.o && find . -name '*.o' -exec touch {} +", cwd=folder / "build/obj")
    run("make", "-C", folder, "build/egressctl")
    return folder / "build/egressctl"


@pytest.fixture(scope="module")
def newer(package, tmp_path_factory) -> Path:
    """A package of a later version, with another plugin and other programs."""
    stage = tmp_path_factory.mktemp("stage")
    run("dpkg-deb", "--extract", package, stage)
    with (stage / "usr/libexec/egressclass/egressclass").open("ab") as plugin:
        plugin.write(b"of a later version")
    with TemporaryDirectory() as folder:
        run("install", "-s", later_egressctl(Path(folder)), stage / "usr/sbin/egressctl")
    folder = tmp_path_factory.mktemp("newer")
    run(REPOSITORY / "scripts/dist", stage, folder, VERSION + "+1", cwd=REPOSITORY)
    (found,) = folder.glob("*.deb")
    return found


def test_an_upgrade_loses_no_packet(packaged, newer):
    """On both ends at once. What was in force is applied again (and not what somebody has written since) with the new programs, the plugin
    is the new one, and what runs is restarted."""
    worker = packaged.worker1
    pod = run_pod(worker, "p")
    before = [node.classifiers()[0] for node in packaged.nodes]
    for node in packaged.nodes:
        node.configure("{ not what is in force")
    with packaged.watch([egress_ip(7), egress_ip(7, 6)]) as watch, ExitStack() as stack:
        streams = [stack.enter_context(Stream(pod, "198.51.100.10", proto)) for proto in ("tcp", "udp")]
        for stream in streams:
            stream.wait_seen()
        for node in packaged.nodes:
            said = dpkg(node, "--install", newer)
            assert "stays in use" not in said.stdout + said.stderr
        for stream in streams:
            stream.wait_seen(20)
            stream.stop()
    watch.assert_no_leak()
    assert [(stream.lost, stream.error, stream.sources) for stream in streams] == [([], "", {egress_ip(7)})] * 2
    for node in packaged.nodes:
        assert node.run("dpkg-query -W -f '${Version} ${Status}' egressclass").stdout == VERSION + "+1 install ok installed"
        assert node.path(PLUGIN).read_bytes().endswith(b"of a later version")
        assert node.status()["healthy"], node.status()["problems"]
    now = [node.classifiers()[0] for node in packaged.nodes]
    assert not set(now) & set(before) and worker.tcx(worker.link(pod.host_veth)["ifindex"])["programs"][0] == now[0]
    log = worker.path("/run/systemctl.log").read_text()
    assert active(worker) == UNITS and log.startswith("daemon-reload\n") and " stop" not in log
    assert {unit for unit in UNITS if re.search(rf"restart {unit}", log)} == UNITS - {"egressclass.service"}
    end_pod(worker, pod)


def test_an_upgrade_that_cannot_replace_the_datapath_says_so(packaged, newer):
    """What was applied cannot be read any more: all stays as it is, and the package is there."""
    worker = packaged.worker1
    pod, before = run_pod(worker, "p"), worker.classifiers()[0]
    worker.write("/run/egressclass/config.json", "{")
    said = dpkg(worker, "--install", newer).stderr
    assert "the old datapath stays in use: /run/egressclass/config.json" in said and worker.classifiers()[0] == before
    assert ask(pod, "198.51.100.10").source == egress_ip(7)


def test_an_upgrade_starts_nothing_that_was_not_there(packaged, newer):
    """A node that is not bootstrapped, has nothing applied, and runs no unit, stays so."""
    worker = packaged.worker1
    worker.run("egressclass-bootstrap uninstall --purge; egressctl down; rm /run/active/*")
    before = kernel(worker)
    dpkg(worker, "--install", newer)
    assert (kernel(worker), entries(worker), active(worker), worker.path(PLUGIN).exists()) == (before, 0, set(), False)


def test_a_removal_with_running_pods_is_refused_and_changes_nothing(packaged):
    worker = packaged.worker1
    pod = run_pod(worker, "p")
    with Stream(pod, "198.51.100.10", "udp") as stream:
        stream.wait_seen()
        for words in ("--remove", "egressclass"), ("--purge", "egressclass"):
            done = dpkg(worker, *words, check=False)
            assert done.returncode != 0 and "not removed: nothing was changed: 1 running pods have a class" in done.stderr and "web/p" in done.stderr
        stream.wait_seen(20)
    assert not stream.lost and stream.sources == {egress_ip(7)}
    assert worker.run("dpkg-query -W -f '${Status}' egressclass").stdout.endswith(" ok installed")
    assert entries(worker) == 1 and active(worker) == UNITS and worker.status()["healthy"]
    worker.run(f"rm /run/egressclass/attachments/*{pod.name}*")      # its classifier is there nevertheless
    done = dpkg(worker, "--remove", "egressclass", check=False)
    assert done.returncode != 0 and f"the one behind interface {worker.link(pod.host_veth)['ifindex']}" in done.stderr


def test_a_removal_leaves_nothing(packaged):
    """The datapath first, so that no pod starts without a class that has one; what somebody wrote, and the audit, go with the purge."""
    worker = packaged.worker1
    end_pod(worker, run_pod(worker, "p"))
    worker.run("mkdir -p /var/log/egressclass && touch /var/log/egressclass/audit")
    for node in packaged.nodes:
        dpkg(node, "--remove", "egressclass")
        assert kernel(node) == node.before[1] and entries(node) == 0
        assert node.path(CONFIGURATION).exists()
    assert not active(worker) and not UNITS & set(os.listdir(worker.path("/etc/systemd/system/multi-user.target.wants")))
    assert worker.path("/var/log/egressclass/audit").exists()
    for node in packaged.nodes:
        dpkg(node, "--purge", "egressclass")
        assert names(node) == node.before[0]


def test_a_removal_that_cannot_be_done_is_taken_back(packaged):
    """The entry cannot be taken out: the datapath is in force again, and the units run."""
    worker = packaged.worker1
    worker.run("mount --bind /etc/cni/net.d /etc/cni/net.d && mount -o remount,bind,ro /etc/cni/net.d")
    done = dpkg(worker, "--remove", "egressclass", check=False)
    assert done.returncode != 0 and "Read-only file system" in done.stderr
    assert worker.status()["healthy"] and active(worker) == UNITS and entries(worker) == 1
    pod = run_pod(worker, "p")
    assert ask(pod, "198.51.100.10").source == egress_ip(7)
    end_pod(worker, pod)
    worker.run("umount /etc/cni/net.d")
    dpkg(worker, "--purge", "egressclass")
    assert (names(worker), kernel(worker)) == worker.before


@pytest.mark.parametrize("when", ["purged at once", "purged when the pod has ended"])
def test_the_plugin_stays_for_running_pods(packaged, when):
    """Pods without a class were made with it too, and CRI-O calls it when they end."""
    worker = packaged.worker1
    netns, cached = "/run/netns/other", "/var/lib/cni/results/pods-other-eth0"
    worker.write(netns, "")
    worker.write(cached, json.dumps({"containerId": "other", "config": base64.b64encode(worker.path(LIST).read_bytes()).decode(),
                                     "cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "other"]],
                                     "result": {"interfaces": [{"name": "eth0", "sandbox": netns}]}}))
    if when == "purged at once":
        said = dpkg(worker, "--purge", "egressclass").stderr
        assert f"{PLUGIN} stays: running pods were made with it" in said and worker.path(PLUGIN).exists() and entries(worker) == 0
        worker.run(f"rm {PLUGIN}")
    else:
        assert "running pods were made with it" in dpkg(worker, "--remove", "egressclass").stderr
        assert worker.path(PLUGIN).exists()
        worker.run(f"rm {cached}")
        dpkg(worker, "--purge", "egressclass")
    worker.run(f"rm -f {cached} {netns}")
    assert names(worker) == worker.before[0]
