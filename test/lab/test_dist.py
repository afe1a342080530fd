# SPDX-License-Identifier: Apache-2.0
"""`make dist`: a tarball and a Debian package that install and remove, with the same bytes each time."""
from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from labkit.assets import REPOSITORY

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
        for program in re.findall(r"^Exec\w+=(\S+)", unit.read_text(), re.MULTILINE):
            assert os.access(root / program.lstrip("/"), os.X_OK), (unit.name, program)
    net, plugins = root / "etc/cni/net.d", root / "opt/cni/bin"
    net.mkdir(parents=True)
    (net / "10-pods.conflist").write_text('{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp"}]}')
    run(root / "usr/sbin/egressclass-bootstrap", "install", "--root", root)
    assert '"egressclass"' in (net / "10-pods.conflist").read_text() and os.access(plugins / "egressclass", os.X_OK)
    run(*dpkg, "--purge", "egressclass")
    assert not [name for name in files_below(root) if "egress" in name and name != "opt/cni/bin/egressclass"], files_below(root)
    assert (plugins / "egressclass").exists()       # running pods call it when they end; the list names it
