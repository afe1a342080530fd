# SPDX-License-Identifier: Apache-2.0
"""What `make install` leaves: enough for a node, and units that systemd takes."""
from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from labkit.assets import REPOSITORY
from light_node import BOTH, CTL, FAR, configuration, egress_class
from units import capabilities

PRIMARY = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.244.1.0/24"}}]}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """DESTDIR. The lab's files run from the tree, so all is built."""
    folder = tmp_path_factory.mktemp("installed")
    done = subprocess.run(["make", "-C", REPOSITORY, "install", f"DESTDIR={folder}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_what_is_installed_bootstraps_a_node(installed, tmp_path):
    """With nothing of the source tree; and out again."""
    net, plugins = tmp_path / "net.d", tmp_path / "bin"
    net.mkdir()
    before = json.dumps(PRIMARY)
    (net / "10-pods.conflist").write_text(before)

    def bootstrap(command: str) -> str:
        words = [installed / "usr/local/sbin/egressclass-bootstrap", command, "--conf-dir", net, "--bin-dir", plugins]
        done = subprocess.run(words, cwd="/", env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    bootstrap("install")
    assert [entry["type"] for entry in json.loads((net / "10-pods.conflist").read_text())["plugins"]] == ["ptp", "egressclass"]
    assert (plugins / "egressclass").read_bytes() == (installed / "usr/local/libexec/egressclass/egressclass").read_bytes()
    assert "current" in bootstrap("status")
    bootstrap("uninstall")
    assert (net / "10-pods.conflist").read_text() == before


def test_what_is_installed_runs(installed):
    for words in (["usr/local/sbin/egressctl", "--help"], ["usr/local/sbin/egressclass-bootstrap", "--help"]):
        assert "egress" in subprocess.run([installed / words[0], *words[1:]], capture_output=True, text=True, check=True).stdout.lower()
    examples = installed / "usr/local/share/egressclass/examples"
    assert {file.name for file in examples.iterdir()} == {file.name for file in (REPOSITORY / "conf/examples").iterdir()}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
@pytest.mark.parametrize("unit", sorted(file.name for file in (REPOSITORY / "conf").glob("*.service")))
def test_systemd_takes_the_unit(installed, unit):
    """Without a warning. This is a mount namespace of our own: the programs are where the unit looks for them."""
    command = f"mount --bind {installed}/usr/local/sbin /usr/local/sbin && systemd-analyze verify --man=no {installed}/etc/systemd/system/{unit}"
    done = subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
@pytest.mark.parametrize("unit, exposure", [("egressclass-watch.service", 20), ("egressclass.service", 30), ("egressd.service", 20)])
def test_the_units_may_little(installed, unit, exposure):
    """In systemd's measure of 0 to 100. What each exception is for stands in the unit."""
    done = subprocess.run(["systemd-analyze", "security", "--offline=yes", f"--threshold={exposure}", installed / "etc/systemd/system" / unit],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_capabilities_of_the_unit_are_enough_for_apply(node, pair):
    """On a clean node, on one with pods, and for a gateway that announces egress IPs; with one less they are not."""
    limited = f"setpriv --bounding-set={capabilities('egressclass.service')} {CTL} apply"
    node.configure(BOTH)
    node.run(limited)
    pod = node.make_pod("p5", 5, namespace="web")
    assert node.add(pod).code == 0
    node.configure(configuration(egress_class("web", egressIPs=["203.0.113.8"]), FAR))
    node.run(limited)
    assert node.status()["healthy"], node.status()["problems"]
    pair[1].start_echo()
    pair[1].wait_echo()
    assert node.seen_as(pod) == "203.0.113.8"
    node.configure(BOTH)
    assert node.run(limited.replace(",+net_raw", ""), check=False).returncode == 1
