# SPDX-License-Identifier: Apache-2.0
"""In a guest that has just been booted: what `apply` says where a module or a capability is missing, then the package and its units. The
tests follow one another; nothing but what we ship loads a module in them."""
from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from guest_fleet import CLASSES, CONFIGURATION, CTL, PORT, SOURCE, GuestFleet, until
from light_fleet import REMOTES
from traffic import ask

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
BUILT = REPOSITORY / "build/egressctl"
CONFIG = Path("/etc/egressclass/config.json")
PRIMARY = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.244.1.0/24"}}]}


def run(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}{journal()}"
    return done


def journal() -> str:
    return subprocess.run(["journalctl", "--no-pager", "--boot", "-n", "40"], capture_output=True, text=True).stdout


def loaded(*modules: str) -> list[str]:
    return [name for name in modules if Path("/sys/module", name).exists()]


def unit_without(*lacking: str) -> str:
    """The unit's capabilities but for these, as setpriv(1) has them."""
    (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", (REPOSITORY / "conf/egressclass.service").read_text(), re.MULTILINE)
    names = {word.removeprefix("CAP_").lower() for word in line.split()}
    assert names >= set(lacking), line
    return "--bounding-set=" + ",".join(["-all", *(f"+{name}" for name in sorted(names - set(lacking)))])


def refused(*before: str) -> str:
    """What a refused apply says."""
    done = run(*before, BUILT, "apply", check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def fleet():
    with GuestFleet() as fleet:
        yield fleet


@pytest.fixture
def configured():
    """A configuration that needs no network."""
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(json.dumps({"classes": [], "clusterCIDRs": ["10.244.0.0/16"], "nodes": ["192.0.2.11"]}))
    yield
    CONFIG.unlink()


def test_apply_names_the_modules_that_are_missing(configured):
    """It does not load them."""
    assert loaded("nf_conntrack", "nf_nat") == []
    assert "run `modprobe -a nf_conntrack nf_nat`" in refused()
    assert loaded("nf_conntrack", "nf_nat") == []
    run("modprobe", "nf_conntrack")
    assert "run `modprobe -a nf_nat`" in refused()
    run("modprobe", "-r", "nf_conntrack")


def test_apply_names_the_capability_that_is_missing(configured):
    """With the modules there; the unit has them."""
    run("modprobe", "-a", "nf_conntrack", "nf_nat")
    said = refused("setpriv", unit_without("sys_admin"))
    assert "lacks CAP_SYS_ADMIN" in said and "modprobe" not in said, said
    said = refused("setpriv", unit_without("sys_admin", "bpf"))
    assert "lacks CAP_BPF CAP_SYS_ADMIN" in said and "modprobe" not in said, said
    run("modprobe", "-r", "nf_nat", "nf_conntrack")
    assert loaded("nf_conntrack", "nf_nat", "nf_tables", "vxlan") == []


def test_package_is_installed():
    """Units and the list of modules are where systemd looks for them, and nothing runs yet."""
    (package,) = (REPOSITORY / "build/dist").glob("*.deb")
    run("dpkg", "-i", package)
    assert "\nnf_conntrack\nnf_nat\n" in run("systemd-analyze", "cat-config", "modules-load.d").stdout
    for unit in "egressclass", "egressclass-watch", "egressd":
        assert run("systemctl", "show", "--property=LoadState,ActiveState", unit).stdout.split() == ["LoadState=loaded", "ActiveState=inactive"]
    assert loaded("nf_conntrack", "nf_nat", "nf_tables", "vxlan") == []


def test_unit_puts_the_classes_in_force(fleet):
    """As systemd starts it: capabilities, system calls and file systems of the unit, and no module loaded before."""
    fleet.worker1.configure(CONFIGURATION)
    run("systemctl", "start", "egressclass.service")
    assert loaded("nf_conntrack", "nf_nat", "vxlan") == ["nf_conntrack", "nf_nat", "vxlan"]
    fleet.apply(CONFIGURATION, on=["gateway1"])
    fleet.assert_healthy()


@pytest.mark.parametrize("name", CLASSES)
def test_pod_of_each_path_has_its_source(fleet, name):
    pod = fleet.worker1.pod(f"p-{name}", name, (4,))
    with fleet.watch([], fleet.owners()) as watch:
        for proto in "tcp", "udp":
            seen = ask(pod, REMOTES[4][0], PORT[name], proto, timeout=10)
            assert seen and seen.source == SOURCE[name], f"{seen}\n{fleet.worker1.drops()}"
    watch.assert_no_leak()


def test_unit_applies_what_has_changed(fleet):
    """By a reload, and by a start after `down`, which loads the programs anew."""
    run("systemctl", "reload", "egressclass.service")
    run(CTL, "down")
    run("systemctl", "restart", "egressclass.service")
    fleet.assert_healthy()


def test_the_other_units_run(fleet):
    folder = Path("/etc/cni/net.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "10-pods.conflist").write_text(json.dumps(PRIMARY))
    for unit in "egressd.service", "egressclass-watch.service":
        run("systemctl", "start", unit)
    until(lambda: "egressclass" in (folder / "10-pods.conflist").read_text(), 60, 0.5, journal)
    assert run("systemctl", "is-active", "egressd", "egressclass-watch", check=False).stdout.split() == ["active", "active"], journal()
    assert run("systemctl", "--failed", "--no-legend", "--plain").stdout == ""


def test_units_are_enabled_for_the_next_boot():
    """With a runtime that restores pods before ours: see restore_pods.py. The test after the reboot is test_reboot.py."""
    Path("/etc/systemd/system/restore-pods.service").write_text(f"""
[Unit]
Description=Pods as they were before the reboot
Before=egressclass.service
After=systemd-modules-load.service
[Service]
Type=notify
NotifyAccess=all
TimeoutStartSec=300
Environment=PYTHONPATH={HERE}:{REPOSITORY}/test/lab:{REPOSITORY}/scripts PYTHONDONTWRITEBYTECODE=1
ExecStart=/usr/bin/python3 {HERE}/restore_pods.py /run/restored.json
[Install]
WantedBy=multi-user.target
""")
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "restore-pods", "egressclass", "egressclass-watch", "egressd")
