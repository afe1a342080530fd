# SPDX-License-Identifier: Apache-2.0
"""A host of the lab: one idle process that is PID 1 of its own pid, mount and network namespaces.

Kill that process and all that ran on the host is gone: processes, mounts, interfaces, pins. Nothing else has to be cleaned up, which is
why even the router has a pid namespace.
"""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

from . import assets
from .process import Command, Process, argv, finish
from .state import LabError

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}

# A new mount namespace copies (and would pin) the network namespaces that others keep in /run/netns.
SETUP = "umount -R -l /run/netns 2>/dev/null || true; ip link set lo up\n"


class Host:
    """Commands, files and interfaces of one host. `pid` is the holder's pid as this process sees it."""

    setup = SETUP       # shell, run as PID 1 before the host is handed out

    def __init__(self, name: str, pid: int):
        self.name, self.pid = name, pid

    @classmethod
    def start(cls, lifeline: int, lock: int) -> tuple[Process, int]:
        """Make the namespaces; return the process that waits for the holder (the caller's to reap) and the holder's pid. `lifeline` is
        the read end of a pipe: the host lives until its last writer is gone, or for good after a byte from it. (PDEATHSIG would not
        do: it fires when the *thread* that started the host ends.) The holder keeps the descriptor `lock` open."""
        script = f"set -e\n{cls.setup}\necho ready\nexec {assets.program('pause')} lifeline >/dev/null 2>&1"
        holder = Process(["unshare", "--kill-child", "--fork", "--pid", "--net", "--mount", "--mount-proc", "--propagation", "private",
                          "sh", "-c", script], stdin=lifeline, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         env=ENVIRONMENT, pass_fds=[lock])
        with holder.stdout as output:
            said = []
            for line in output:
                if line == "ready\n":
                    return holder, holder.inner()
                said.append(line)
        holder.wait()
        raise LabError(f"cannot make the namespaces of a host: {''.join(said)}")

    def entry(self) -> list[str]:
        """The words before a command that make it run on this host."""
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "--"]

    def popen(self, command: Command, **kwargs) -> Process:
        """Start a command (words, or a script for sh); keywords are those of subprocess.Popen. It dies with the host at the latest."""
        kwargs.setdefault("env", ENVIRONMENT)
        return Process(self.entry() + argv(command), **kwargs)

    def run(self, command: Command, *, timeout: float = 30, check: bool = True, input: str | None = None) -> subprocess.CompletedProcess:
        """Run a command to its end: text output; CommandFailed on a status other than 0 unless check=False; TimeoutExpired."""
        process = self.popen(command, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
        return finish(process, timeout, check, input)

    def spawn(self, command: str, log: str) -> None:
        """Start a daemon of the host, child of its PID 1, so that it outlives this process. Its output goes to `log`."""
        self.run(f"setsid {command} >>{log} 2>&1 </dev/null &")

    def path(self, path: str) -> Path:
        """A file of the host, to be used from here. Must not lead through absolute symbolic links (/var/run): those resolve here."""
        return Path(f"/proc/{self.pid}/root{path}")

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file of the host as a package manager does: readers (and running programs) see the old or the new one, whole."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.new")     # hidden: containerd must not take it for a conflist
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.chmod(mode)
        os.rename(temporary, target)

    def install(self, source: Path | str, path: str) -> None:
        """Copy an executable of this machine onto the host."""
        self.write(path, Path(source).read_bytes(), 0o755)
