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
@pytest.mark.parametrize("unit, exposure", [("egressclass-watch.service", 13), ("egressclass.service", 23), ("egressd.service", 14)])
def test_the_units_may_little(installed, unit, exposure):
    """In systemd's measure of 0 to 100. What each exception is for stands in the unit."""
    done = subprocess.run(["systemd-analyze", "security", "--offline=yes", f"--threshold={exposure}", installed / "etc/systemd/system" / unit],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-3000:]
