# SPDX-License-Identifier: Apache-2.0
"""Which labs exist, which are alive, and how a lab is removed to the last trace.

A lab's folder below ROOT says what belongs to it. Its maker and all its hosts share a lock on the folder, which the kernel drops when
the last of them has died, however it died: that is how a stale lab is told from a living one, also by processes in another pid
namespace, where pids say nothing.
"""
from __future__ import annotations

import fcntl
import json
import os
import re
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/run/egressclass-lab")
CGROUP = "egressclass-lab"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")


class LabError(Exception):
    """The lab cannot do what was asked; the message is for the user."""


def _birth(pid: int) -> int:
    """Start time of a process, which with the pid makes an identity; 0 when there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def _kill(pid: int, birth: int) -> None:
    """Kill a host and wait for its end; leave a stranger alone who has got its pid since."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _birth(pid) == birth:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], 10)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def _lock(folder: Path, wait: bool) -> int | None:
    """Lock a folder; the descriptor keeps the lock. None when another has it or the folder is gone."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(handle), os.stat(folder)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(handle)
    return None


@contextmanager
def _registry() -> Iterator[None]:
    """Exclusive use of ROOT, which exists only as long as there are labs."""
    while True:
        ROOT.mkdir(mode=0o700, exist_ok=True)
        if (handle := _lock(ROOT, wait=True)) is not None:
            break
    try:
        yield
    finally:
        try:
            ROOT.rmdir()
        except OSError:
            pass
        os.close(handle)


def _remove_cgroups(name: str) -> None:
    """Remove the cgroups of a lab's pods from every hierarchy. runc leaves them when its containers are killed with their host."""
    for top in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]:
        for folder, _, _ in os.walk(top / CGROUP / name, topdown=False):
            deadline = time.monotonic() + 5
            while True:
                try:
                    os.rmdir(folder)
                except OSError:      # the kernel may still be taking the dead out
                    if os.path.exists(folder) and time.monotonic() < deadline:
                        time.sleep(0.01)
                        continue
                break
        try:
            os.rmdir(top / CGROUP)
        except OSError:
            pass


class State:
    """The folder of one lab. `data` is what `lab` commands of other processes need to know; save() makes it visible."""

    def __init__(self, name: str):
        if not NAME.fullmatch(name):
            raise LabError(f"'{name}' is no name for a lab: use a-z, 0-9 and -")
        self.name, self.folder = name, ROOT / name
        self.data: dict = {"ready": False, "hosts": {}}
        self.lock: int | None = None

    @classmethod
    def claim(cls, name: str) -> State:
        """Make a new lab's folder and lock it. Removes stale labs first; LabError when `name` is up."""
        with _registry():
            reap()
            state = cls(name)
            if state.folder.exists():
                raise LabError(f"lab '{name}' is up already")
            state.folder.mkdir()
            state.lock = _lock(state.folder, wait=True)
            state.save()
            return state

    def load(self) -> State:
        try:
            self.data.update(json.loads((self.folder / "lab.json").read_text()))
        except (FileNotFoundError, ValueError):
            pass        # it died before it wrote its first line
        return self

    def save(self) -> None:
        temporary = self.folder / "lab.json.new"
        temporary.write_text(json.dumps(self.data, indent=2))
        temporary.rename(self.folder / "lab.json")

    def add_host(self, name: str, pid: int) -> None:
        self.data["hosts"][name] = {"pid": pid, "birth": _birth(pid)}

    def alive(self) -> bool:
        """Whether the maker or a host of the lab lives."""
        if (handle := _lock(self.folder, wait=False)) is None:
            return self.folder.exists()
        os.close(handle)
        return False

    def release(self) -> None:
        """Give up the maker's share of the lock; that of the hosts remains."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def destroy(self) -> None:
        """Remove all traces of the lab: processes, and with them namespaces and mounts, then cgroups and files."""
        with _registry():
            self._destroy()
            reap()

    def _destroy(self) -> None:
        for host in self.data["hosts"].values():
            _kill(host["pid"], host["birth"])
        self.release()
        deadline = time.monotonic() + 5
        while self.alive():
            if time.monotonic() > deadline:
                raise LabError(f"lab '{self.name}' is still coming up, or was made in another pid namespace: end it there")
            time.sleep(0.005)
        _remove_cgroups(self.name)
        shutil.rmtree(self.folder, ignore_errors=True)


def labs() -> list[State]:
    """All labs that have a folder, dead or alive."""
    return [State(folder.name).load() for folder in sorted(ROOT.glob("*/"))]


def reap() -> None:
    """Remove labs of which nothing lives any more. The caller has the registry."""
    for state in labs():
        if not state.alive():
            state._destroy()
