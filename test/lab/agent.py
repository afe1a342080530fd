# SPDX-License-Identifier: Apache-2.0
"""egressd on a node of a light fleet, and what it writes."""
from __future__ import annotations

import gzip
import json
import signal
import subprocess
from collections.abc import Collection
from pathlib import Path

from labkit.assets import REPOSITORY
from light_fleet import FleetNode, until

EGRESSD = REPOSITORY / "build" / "egressd"
FOLDER = "/run/audit"


class Agent:
    """A context manager: egressd runs, and has begun to record. `out`: its standard output, a file's or a pipe's descriptor."""

    def __init__(self, node: FleetNode, folder: str = FOLDER, recording: bool = True, out: int = subprocess.DEVNULL,
                 limits: Collection[str] = ()):
        """`limits`: the words of a command that runs it with fewer rights."""
        self.node, self.folder, self._recording, self._out, self._limits = node, folder, recording, out, limits
        self._log = node.path("/run/egressd.log")

    def __enter__(self) -> Agent:
        before = self.started() if self._recording else 0
        with open(self._log, "ab") as log:
            self.process = self.node.popen([*self._limits, str(EGRESSD)], stdout=self._out, stderr=log)
        if self._recording:
            until(lambda: self.started() > before or self.process.poll() is not None, what=self.log)
        assert self.process.poll() is None, self.log()
        return self

    def __exit__(self, *exception) -> None:
        self.process.stop()

    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.process.crush()

    def stop(self) -> int:
        return self.process.stop(signal.SIGTERM)

    @property
    def files(self) -> list[Path]:
        """The oldest first."""
        folder = self.node.path(self.folder)
        return sorted(folder.glob("audit-*.jsonl*")) + sorted(folder.glob("audit.jsonl")) if folder.exists() else []

    def records(self, **wanted) -> list[dict]:
        """All that are written so far and have these values."""
        found, files = [], self.files
        for path in files:
            if path.suffix == ".idx" or path.with_name(f"{path.name}.gz") in files:
                continue
            try:
                text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
            except FileNotFoundError:       # it has been compressed meanwhile
                return self.records(**wanted)
            whole = text if text.endswith("\n") else text[:text.rfind("\n") + 1]
            found += [json.loads(line) for line in whole.splitlines()]
        return [record for record in found if all(record.get(key) == value for key, value in wanted.items())]

    def started(self) -> int:
        return len(self.records(event="agent", state="started"))

    def wait_records(self, count: int = 1, **wanted) -> list[dict]:
        until(lambda: len(self.records(**wanted)) >= count, 10, what=lambda: f"{len(self.records(**wanted))} of {count} records "
              f"with {wanted}; {self.records()[-5:]}; {self.log()}")
        return self.records(**wanted)


def forget_flows(node: FleetNode) -> None:
    """Conntrack's entries end now, as they would some time after their last packet."""
    node.in_gateway(["conntrack", "-F"], check=False)
