# SPDX-License-Identifier: Apache-2.0
"""A container image from files, without registry or builder: a docker-archive of one layer, which `ctr images import` accepts."""
from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path, PurePosixPath

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def _add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o755
    for key, value in fields.items():
        setattr(entry, key, value)
    archive.addfile(entry, io.BytesIO(data))


def _layer(files: dict[str, Path], links: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    parents = {str(parent) for path in [*files, *links] for parent in PurePosixPath(path).parents} - {"."}
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for folder in sorted(parents | {"proc", "sys", "dev", "etc", "tmp", "run"}):
            _add(layer, folder, type=tarfile.DIRTYPE)
        for path, source in files.items():
            _add(layer, path, source.read_bytes())
        for path, target in links.items():
            _add(layer, path, type=tarfile.SYMTYPE, linkname=target)
    return buffer.getvalue()


def write(out: Path, reference: str, entrypoint: list[str], files: dict[str, Path], links: dict[str, str]) -> None:
    """Write image `reference`: `files` maps paths in the image to files of this machine, `links` to targets of symbolic links.
    Deterministic: same input, same bytes."""
    layer = _layer(files, links)
    config = json.dumps({
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()), "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}}).encode()
    name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": name, "RepoTags": [reference], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(out, "w") as archive:
        for member, data in ((name, config), ("layer.tar", layer), ("manifest.json", manifest)):
            _add(archive, member, data)
