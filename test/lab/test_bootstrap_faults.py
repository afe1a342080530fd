# SPDX-License-Identifier: Apache-2.0
"""Bootstrap and what goes wrong: killed at each system call, without power, on a full or read-only disk, and many at once. In each case a
runtime finds the old network or the new one."""
from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from inside import CTL, ENVIRONMENT, Stepper
from test_bootstrap import ENTRY, FAILED, OK, PLAIN, PLUGIN, SINGLE, WITH, Node

ENDINGS = (".conf", ".conflist", ".json")
OWN_OF_SINGLE = '{\n  "cniVersion": "0.4.0",\n  "name": "pods",\n  "plugins": [\n    ' + SINGLE.strip() + ",\n    " + ENTRY + "\n  ]\n}\n"


@pytest.fixture
def node(tmp_path) -> Node:
    found = Node(tmp_path / "root")
    found.net.mkdir(parents=True)
    found.plugin.parent.mkdir(parents=True)
    return found


def network(folder: Path) -> tuple[str, int]:
    """What containerd gives pods: the first file by name, which it has to be able to load, and how many entries of ours pods meet."""
    first = min(name for name in os.listdir(folder) if name.endswith(ENDINGS) and not (folder / name).is_dir())
    text = (folder / first).read_text()
    loaded = json.loads(text)
    plugins = loaded["plugins"] if first.endswith(".conflist") else [loaded]
    drop_in = folder / loaded["name"] / "50-egressclass.conf"
    if drop_in.exists():
        plugins = plugins + [json.loads(drop_in.read_text())]
    assert plugins[0]["type"] == "bridge"
    return text, sum(plugin["type"] == "egressclass" for plugin in plugins)


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@dataclass
class Step:
    """A command of `egressctl cni`, from one state of the folder to another."""
    words: list[str]
    before: dict[str, str]
    after: dict[str, str] = field(default_factory=dict)

    def lay_out(self, node: Node) -> None:
        shutil.rmtree(node.net)
        node.net.mkdir()
        for name, text in self.before.items():
            (node.net / name).parent.mkdir(exist_ok=True)
            (node.net / name).write_text(text)

    def arguments(self, node: Node) -> list[str]:
        return ["cni", *self.words[:1], "--folder", str(node.net), "--runtime", "containerd", *self.words[1:]]


LIST, OWN, DROP_IN = "10-pods.conflist", "10-pods-egressclass.conflist", "pods/50-egressclass.conf"
STEPS = {
    "edit": Step(["install", "--way", "edit"], {LIST: PLAIN}, {LIST: WITH}),
    "own": Step(["install", "--way", "own"], {LIST: PLAIN}, {LIST: PLAIN, OWN: WITH}),
    "drop-in": Step(["install", "--way", "drop-in"], {LIST: PLAIN}, {LIST: PLAIN, DROP_IN: ENTRY + "\n"}),
    "a single plugin's file": Step(["install", "--way", "auto"], {"10-pods.conf": SINGLE}, {"10-pods.conf": SINGLE, OWN: OWN_OF_SINGLE}),
    "own to edit": Step(["install", "--way", "edit"], {LIST: PLAIN, OWN: WITH}, {LIST: WITH}),
    "edit to own": Step(["install", "--way", "own"], {LIST: WITH}, {LIST: PLAIN, OWN: WITH}),
    "edit to own by default": Step(["install", "--default-way", "own"], {LIST: WITH}, {LIST: PLAIN, OWN: WITH}),
    "out of the list": Step(["uninstall"], {LIST: WITH}, {LIST: PLAIN}),
    "out of all ways": Step(["uninstall"], {LIST: WITH, OWN: WITH, DROP_IN: ENTRY + "\n"}, {LIST: PLAIN})}
STEP = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)


@STEP
def test_killed_at_each_system_call(node, step):
    """A runtime finds a network at each moment, with the entry if it had it before or gets it; done again, all is as if nothing had been."""
    had = None
    number = 0
    while True:
        number += 1
        step.lay_out(node)
        had = network(node.net)[1] if had is None else had
        program = Stepper.ctl(*step.arguments(node))
        if not program.to(number):
            assert program.code == OK
            break
        program.kill()
        text, entries = network(node.net)
        assert text in {*step.before.values(), *step.after.values()}, (number, text)
        assert entries in {0, 1} or had > 1, (number, files(node.net))
        done = subprocess.run([CTL, *step.arguments(node)], env=ENVIRONMENT, capture_output=True, text=True, timeout=30)
        assert (done.returncode, files(node.net)) == (OK, step.after), (number, done.stderr)
    assert number > 50


def test_plugin_killed_at_each_system_call_that_leaves_a_trace(node, tmp_path):
    """The plugin in the runtime's folder is the old one or the new one, and runs."""
    old, new = b"#!/bin/sh\nexit 0\n", PLUGIN.read_bytes()
    number = 0
    while True:
        node.plugin.write_bytes(old)
        node.plugin.chmod(0o755)
        program = Stepper.ctl("cni", "plugin", str(PLUGIN), str(node.plugin))
        if not program.to_next(number, Stepper.leaves_a_trace):
            break
        number = program.count
        program.kill()
        assert node.plugin.read_bytes() in (old, new) and node.plugin.stat().st_mode & 0o7777 == 0o755, number
    assert number > 20 and node.plugin.read_bytes() == new
    subprocess.run([CTL, "cni", "plugin", PLUGIN, node.plugin], env=ENVIRONMENT, check=True)
    assert os.listdir(node.plugin.parent) == ["egressclass"]


RENAMED = re.compile(r'rename\w*\((?:AT_FDCWD\S*, )?"([^"]+)", (?:AT_FDCWD\S*, )?"([^"]+)"')


@STEP
def test_without_power_the_disk_has_the_old_or_the_new(node, step):
    """A new name is given to nothing that is not on the disk as a whole, and the command does not end before the name is there too."""
    step.lay_out(node)
    done = subprocess.run(["strace", "-f", "-y", "-e", "trace=fsync,rename,renameat,renameat2,unlink,unlinkat,write,pwrite64", CTL,
                           *step.arguments(node)], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == OK, done.stderr
    synced, pending, renames = set(), set(), 0
    for line in done.stderr.splitlines():
        if match := re.search(r"fsync\(\d+<([^>]*)>\) += 0", line):
            synced.add(match[1])
            pending.discard(match[1])
        elif match := re.search(r"p?write(?:64)?\(\d+<([^>]*)>", line):
            synced.discard(match[1])
        elif match := RENAMED.search(line):
            source, target = match.groups()
            assert source in synced, f"{target} gets a name before its content is on the disk:\n{done.stderr}"
            pending.add(str(Path(target).parent))
            renames += 1
        elif (match := re.search(r'unlink(?:at)?\((?:AT_FDCWD\S*, )?"([^"]+)"', line)) and match[1].endswith(ENDINGS):
            pending.add(str(Path(match[1]).parent))
    gone = set(step.before) - set(step.after)
    assert renames + len(gone) > 0
    assert not {folder for folder in pending if Path(folder).exists()}, f"not on the disk when it ends:\n{done.stderr}"


@contextmanager
def mounted(*words) -> Iterator[None]:
    """In this process's own mount namespace: the tests run in one."""
    subprocess.run(["mount", *words], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", words[-1]], check=True)


def test_a_full_disk_changes_nothing_and_is_named(node):
    with mounted("-t", "tmpfs", "-o", "size=64k", "tmpfs", node.net):
        node.write(PLAIN)
        filler = os.open(node.net / "filler", os.O_WRONLY | os.O_CREAT)
        with suppress(OSError):
            while os.write(filler, b"x" * 4096):
                pass
        os.close(filler)
        done = node.run("install", expect=FAILED)
        assert "No space left" in done.stderr and "make room" in done.stderr
        assert sorted(os.listdir(node.net)) == [LIST, "filler"] and (node.net / LIST).read_text() == PLAIN
        (node.net / "filler").unlink()
        node.run("install")
        assert (node.net / LIST).read_text() == WITH


def test_a_full_disk_for_the_plugin_leaves_the_list_alone(node):
    """Without the plugin the entry would keep pods from starting."""
    node.write(PLAIN)
    with mounted("-t", "tmpfs", "-o", "size=64k", "tmpfs", node.plugin.parent):
        assert "make room" in node.run("install", expect=FAILED).stderr
        assert os.listdir(node.plugin.parent) == [] and (node.net / LIST).read_text() == PLAIN


@pytest.mark.parametrize("what", ["net", "bin"])
def test_a_read_only_file_system_changes_nothing_and_is_named(node, what):
    node.write(PLAIN)
    folder = node.net if what == "net" else node.plugin.parent
    with mounted("--bind", folder, folder):
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        done = node.run("install", expect=FAILED)
        assert "Read-only file system" in done.stderr and "remount" in done.stderr
        assert (node.net / LIST).read_text() == PLAIN


def test_readers_never_meet_half_a_network(node):
    """While installs, uninstalls and a primary that rewrites its list are at it together."""
    file = node.write(PLAIN)
    seen, stop, broken = set(), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.add(network(node.net)[1])
            except (ValueError, AssertionError, OSError) as error:
                broken.append(error)

    def rewrite() -> None:
        while not stop.is_set():
            (node.net / ".primary").write_text(PLAIN)
            (node.net / ".primary").rename(file)
            time.sleep(0.003)

    def toggle(command: str) -> None:
        step = Step([command] if command == "uninstall" else [command, "--way", "edit"], {})
        while not stop.is_set():
            done = subprocess.run([CTL, *step.arguments(node)], env=ENVIRONMENT, capture_output=True, text=True, timeout=30)
            if done.returncode != OK and "somebody else writes without end" not in done.stderr:
                broken.append(done.stderr)
    threads = [threading.Thread(target=target, args=words) for target, words in
               ((read, ()), (rewrite, ()), (toggle, ("install",)), (toggle, ("install",)), (toggle, ("uninstall",)))]
    for thread in threads:
        thread.start()
    time.sleep(4)
    stop.set()
    for thread in threads:
        thread.join()
    assert not broken and seen == {0, 1}, broken[:3]
    node.run("install")
    assert file.read_text() == WITH and [name for name in os.listdir(node.net) if "egressclass" in name] == []


@pytest.mark.parametrize("command", ["install", "uninstall", "watch"])
def test_the_script_killed_at_any_moment(node, command):
    """With all of its children; done again, all is as it should be, and no temporary file stays."""
    chance = random.Random(7)
    for _ in range(12):
        node.write(WITH if command == "uninstall" else PLAIN)
        with subprocess.Popen(node.words(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
            time.sleep(chance.uniform(0, 0.25))
            os.killpg(process.pid, signal.SIGKILL)
        assert network(node.net)[0] in (PLAIN, WITH)
        assert not node.plugin.exists() or node.plugin.read_bytes() == PLUGIN.read_bytes()
    node.run("install")
    assert files(node.net) == {LIST: WITH} and os.listdir(node.plugin.parent) == ["egressclass"]


def test_another_bootstrap_that_hangs_is_said(node):
    """Its lock is on the folder itself, and goes with it."""
    node.write(PLAIN)
    holder = subprocess.Popen(["flock", node.net, "sleep", "60"], start_new_session=True)
    try:
        time.sleep(0.3)
        with subprocess.Popen(node.words("install"), stderr=subprocess.PIPE, text=True) as waiting:
            time.sleep(1)
            assert waiting.poll() is None and (node.net / LIST).read_text() == PLAIN
            os.killpg(holder.pid, signal.SIGKILL)
            holder.wait()
            assert waiting.wait(10) == OK
    finally:
        if holder.poll() is None:
            os.killpg(holder.pid, signal.SIGKILL)
            holder.wait()
    assert (node.net / LIST).read_text() == WITH
