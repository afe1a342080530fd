# SPDX-License-Identifier: Apache-2.0
"""The plugin's log: our own keys of its configuration, what is written where, and that a log is worth no pod. (CNI-14, 64, 65, 66)"""
from __future__ import annotations

import json
import os
import re
import stat
import time
from pathlib import Path

import pytest
from light_node import ANNOTATIONS, BOTH, ENVIRONMENT, PLUGIN, Answer, LightNode, network

RESULT = {"cniVersion": "1.0.0", "ips": []}
ATTACHMENT = {"CONTAINERID": "c1", "NETNS": "/run/netns/p", "IFNAME": "eth0"}
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d egressclass\[\d+\] (info|error): "
                  r"(\w+) (ok|failed) network=lab container=c1 ifname=eth0 pod=(\S*)/(\S*) annotations=(?:none|sent) ms=\d+\.\d( code=(\d+) .+)?\n")
FILE = "/run/log/plugin.log"
LIMIT = 8 << 20


@pytest.fixture
def node(node) -> LightNode:
    """Where a pod of the namespace web does not start, since nothing is applied."""
    node.configure(BOTH)
    return node


def add(node: LightNode, fails: bool = False, **keys) -> Answer:
    args = f"K8S_POD_NAMESPACE={'web' if fails else 'shop'};K8S_POD_NAME=p-1"
    answer = node.call("ADD", network(RESULT, **keys), **ATTACHMENT, ARGS=args)
    assert (answer.code != 0) == fails, answer
    assert answer.json["code"] == 103 if fails else answer.json == RESULT, answer
    return answer


def shell_add(node: LightNode, script: str) -> str:
    """stdout of a script in the environment of ADD that logs, and with its configuration in /run/config.json."""
    node.write("/run/config.json", json.dumps(network(RESULT, logLevel="info", logFile=FILE)))
    environment = ENVIRONMENT | {"CNI_COMMAND": "ADD"} | {f"CNI_{key}": value for key, value in ATTACHMENT.items()}
    with node.popen(script, env=environment, stdout=-1, text=True) as process:
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return out


def in_file(node: LightNode, path: str = FILE) -> str:
    return node.path(path).read_text() if node.path(path).exists() else ""


@pytest.mark.parametrize("keys", [
    pytest.param({key: value}, id=f"CNI-14 {key} {value!r}"[:40]) for key, value in [
        ("logLevel", "verbose"), ("logLevel", "INFO"), ("logLevel", ""), ("logLevel", 3), ("logLevel", ["info"]), ("logLevel", "x" * 5000),
        ("logLevel", "\u001b[31m"), ("logFile", "relative.log"), ("logFile", ""), ("logFile", 5), ("logFile", {"a": 1})]])
def test_bad_value_of_an_own_key_is_refused_with_key_and_value(node, keys):
    (key, value), before = *keys.items(), node.snapshot()
    for verb, version in (("ADD", "1.0.0"), ("CHECK", "1.0.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")):
        answer = node.call(verb, network(RESULT, version, **keys), **ATTACHMENT)
        assert answer.code == 1 and answer.err == "" and answer.json["code"] == 2, answer
        assert key in answer.json["msg"] and str(value).strip("\u001b[]'{}")[:1] in answer.json["msg"], answer
        assert len(answer.out) < 500 and answer.json["msg"].isprintable()
    answer = node.call("DEL", network(RESULT, **keys), **ATTACHMENT)      # has to succeed, whatever became of the conflist
    assert (answer.code, answer.out) == (0, ""), answer
    assert node.snapshot() == before


@pytest.mark.parametrize("level, success, failure", [
    pytest.param(level, success, failure, id=f"CNI-65 {level}") for level, success, failure in [
        (None, False, True), ("warning", False, True), ("error", False, True), ("info", True, True), ("debug", True, True),
        ("off", False, False)]])
def test_level_says_what_is_written(node, level, success, failure):
    """CNI-64: a line for each event, with all that it takes to find the pod, on stderr and in the file alike."""
    keys = {"logFile": FILE} | ({"logLevel": level} if level else {})
    written = ""
    for fails, expected in ((False, success), (True, failure)):
        answer = add(node, fails, **keys)
        written += answer.err
        line = LINE.fullmatch(answer.err)
        assert bool(line) == expected and (expected or answer.err == ""), answer
        if line:
            assert line.group(2, 4, 5) == ("ADD", "web" if fails else "shop", "p-1")
            assert line.group(1, 3, 7) == (("error", "failed", "103") if fails else ("info", "ok", None))
    assert in_file(node) == written
    if not written:
        assert not node.path(FILE).exists()


def test_every_verb_has_its_line(node):
    """CNI-64"""
    keys = {"logLevel": "info", "logFile": FILE}
    for verb, version in (("ADD", "1.0.0"), ("CHECK", "1.0.0"), ("DEL", "1.0.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")):
        node.call(verb, network(RESULT, version, **keys), **ATTACHMENT)
    lines = in_file(node).splitlines()
    assert [line.split()[3:5] for line in lines] == [["ADD", "ok"], ["CHECK", "ok"], ["DEL", "ok"], ["GC", "ok"], ["STATUS", "failed"]]


def test_runtime_that_sends_no_annotations_can_be_told_by_the_log(node):
    """CNI-54: a pod's class may be missing for that."""
    for runtime, said in (({}, "none"), ({"runtimeConfig": {}}, "none"), ({"runtimeConfig": {ANNOTATIONS: {}}}, "sent"),
                          ({"runtimeConfig": {ANNOTATIONS: {"a": "b"}}}, "sent")):
        assert f" annotations={said} " in add(node, logLevel="info", **runtime).err


def test_file_is_private_appended_to_and_bounded(node):
    """CNI-66: whatever the umask of the runtime; and of the old there is one copy."""
    path, old = node.path(FILE), node.path("/run/log/plugin.1.log")
    for expected in (1, 2):
        shell_add(node, f"umask 0; exec {PLUGIN} </run/config.json")
        assert in_file(node).count("\n") == expected
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for _ in range(2):
        os.truncate(path, LIMIT - 10)
        add(node, logLevel="info", logFile=FILE)
        assert LINE.fullmatch(in_file(node)) and old.stat().st_size == LIMIT - 10
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(file.name for file in path.parent.iterdir()) == ["plugin.1.log", "plugin.log"]


def test_lines_of_many_at_once_stay_whole(node):
    """CNI-66"""
    shell_add(node, f"for i in $(seq 40); do {PLUGIN} </run/config.json >/dev/null 2>&1 & done; wait")
    lines = in_file(node).splitlines(keepends=True)
    assert len(lines) == 40 and all(LINE.fullmatch(line) for line in lines)


@pytest.mark.parametrize("setup", [
    pytest.param(setup, id=f"CNI-66 {name}") for name, setup in [
        ("a folder", f"mkdir -p {FILE}"), ("below a file", "echo >/run/log"),
        ("read-only", "mkdir /run/log; mount -t tmpfs -o ro none /run/log"),
        ("full", "mkdir /run/log; mount -t tmpfs -o size=4k none /run/log; head -c 4096 /dev/zero >/run/log/x"),
        ("a pipe without reader", f"mkdir /run/log; mkfifo {FILE}"), ("a device", f"mkdir /run/log; ln -s /dev/full {FILE}"),
        ("a loop", f"mkdir /run/log; ln -s {Path(FILE).name} {FILE}"), ("a long name", "mkdir /run/log")]])
def test_log_that_cannot_be_written_fails_nothing(node, setup, request):
    node.run(setup)
    file = FILE + "x" * 300 if "long" in request.node.callspec.id else FILE
    started = time.monotonic()
    for fails in (False, True):
        assert LINE.fullmatch(add(node, fails, logLevel="info", logFile=file).err)
    assert time.monotonic() - started < 10      # a call that waits for a reader ends after 25


def test_stderr_that_cannot_be_written_fails_nothing(node):
    """CNI-66"""
    for number, target in enumerate(("2>/dev/full", "2>&-"), 1):
        assert json.loads(shell_add(node, f"{PLUGIN} </run/config.json {target}")) == RESULT
        assert in_file(node).count("\n") == number
