# SPDX-License-Identifier: Apache-2.0
"""Commands that run elsewhere (behind nsenter): bounded, killable as a whole, and loud when they fail."""
from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

Command = "Sequence[str] | str"     # a string is a script for sh


class CommandFailed(subprocess.CalledProcessError):
    """A command ended with a status other than 0; unlike its base class, the message shows what the command said."""

    def __str__(self) -> str:
        said = "\n".join(filter(None, (self.stderr, self.stdout)))
        return f"{super().__str__()}\n{said}".rstrip()


class Process(subprocess.Popen):
    """A command in its own session. nsenter stays as its parent (a pid namespace is entered by a child only), so signals go to that
    child: nsenter would die of them first and hide how the command ended."""

    def __init__(self, args: Sequence[str], **kwargs):
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        super().__init__(args, start_new_session=True, **kwargs)

    def inner(self) -> int:
        """Pid (as this process sees it) of the command behind nsenter; waits for the fork, which is a matter of microseconds."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        while self.poll() is None:
            if pids := children.read_text().split():
                return int(pids[0])
            time.sleep(0.001)
        raise ProcessLookupError(self.pid)

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to the command; no error when it is gone already."""
        try:
            os.kill(self.inner(), number)
        except (ProcessLookupError, FileNotFoundError):
            pass

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 5) -> int:
        """End the command, by force after `timeout`, and return its status."""
        self.tell(number)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.crush()

    def crush(self) -> int:
        """SIGKILL the command and everything in its session's first process group; its pipes are closed. The command goes first, so that
        nsenter still reaps it: an orphan nobody reaps would keep the node's pid namespace from ending."""
        self.tell(signal.SIGKILL)
        try:
            self.wait(1)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        for pipe in filter(None, (self.stdin, self.stdout, self.stderr)):
            pipe.close()
        return self.wait()

    def __exit__(self, *exception) -> None:
        if self.poll() is None:
            self.stop()
        super().__exit__(*exception)


def argv(command: Command) -> list[str]:
    return ["sh", "-c", command] if isinstance(command, str) else [str(word) for word in command]


def finish(process: Process, timeout: float, check: bool, data: str | None = None) -> subprocess.CompletedProcess:
    """Wait for a process that was started with text pipes; kills all of it at the deadline."""
    try:
        out, err = process.communicate(data, timeout)
    except BaseException:
        process.crush()
        raise
    if check and process.returncode:
        raise CommandFailed(process.returncode, process.args, out, err)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
