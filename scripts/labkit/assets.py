# SPDX-License-Identifier: Apache-2.0
"""What the lab has to build before it can run: its two C programs and the image of its pods, kept in build/lab."""
from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import image

SOURCES = Path(__file__).resolve().parent
REPOSITORY = SOURCES.parent.parent
FOLDER = REPOSITORY / "build" / "lab"
IMAGE = "localhost/lab:1"


def _fresh(target: Path, inputs: list[Path], build: Callable[[Path], None]) -> Path:
    """Build `target` if it is missing or older than an input; under a temporary name, for two labs may come up at once."""
    if not target.exists() or target.stat().st_mtime < max(path.stat().st_mtime for path in inputs):
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            build(Path(scratch) / target.name)
            os.rename(Path(scratch) / target.name, target)
    return target


def program(name: str) -> Path:
    """The static executable made of NAME.c."""
    source = SOURCES / f"{name}.c"
    return _fresh(FOLDER / name, [source], lambda out: subprocess.run(
        ["gcc", "-static", "-Os", "-s", "-Wall", "-Wextra", "-o", out, source], check=True))


def archive() -> Path:
    """The one image of the lab, sandbox and container alike: pause as entry point, busybox with all its applets, first_syn."""
    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    files = {"pause": program("pause"), "bin/first_syn": program("first_syn"), "bin/busybox": busybox}

    def build(out: Path) -> None:
        applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
        image.write(out, IMAGE, ["/pause"], files, {f"bin/{name}": "busybox" for name in applets if name != "busybox"})
    return _fresh(FOLDER / "image.tar", [*files.values(), Path(image.__file__)], build)
