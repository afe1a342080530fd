# SPDX-License-Identifier: Apache-2.0
"""Nodes for the tests. Everything is in the node's own namespaces and goes with its holder, which goes with this process."""
from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from labkit.process import Process          # noqa: E402
from light_fleet import LightFleet          # noqa: E402
from light_node import BOTH, LightNode      # noqa: E402


def wait(holder: Process) -> None:
    """Until a node is gone. A command that was killed together with its nsenter is an orphan, and where this process is PID 1 (as under
    `make test-lab`) nobody else reaps it; the node's pid namespace waits for that."""
    deadline = time.monotonic() + 10
    while holder.poll() is None:
        assert time.monotonic() < deadline, "a node does not end"
        if os.getpid() == 1:
            with suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
        time.sleep(0.002)


@contextmanager
def light_node() -> Iterator[tuple[LightNode, LightNode]]:
    reader, writer = os.pipe()
    holders = []
    try:
        node, outside, holders = LightNode.up(reader)
        yield node, outside
    finally:
        os.close(reader)
        os.close(writer)
        for holder in holders:
            wait(holder)


@pytest.fixture
def pair() -> Iterator[tuple[LightNode, LightNode]]:
    with light_node() as both:
        yield both


@pytest.fixture
def node(pair) -> LightNode:
    """A node on which nothing of ours is."""
    return pair[0]


@pytest.fixture
def applied(node) -> LightNode:
    """A node with the classes `web`, whose gateway it is, and `far`, whose gateway never answers."""
    node.apply(BOTH)
    return node


@pytest.fixture
def outside(pair) -> LightNode:
    """The other end of the node's uplink, with an echo server that answers with the source address that it sees."""
    pair[1].start_echo()
    pair[1].wait_echo()
    return pair[1]


@pytest.fixture(scope="module")
def shared() -> Iterator[LightNode]:
    """One node for all tests of a file that change nothing."""
    with light_node() as (node, _):
        yield node


@pytest.fixture(scope="module")
def light_fleet(request) -> Iterator[LightFleet]:
    """A fleet for a module's tests, each of which applies a configuration of its own or leaves it as it found it. The module's
    LIGHT_FLEET are options for it."""
    with LightFleet(**getattr(request.module, "LIGHT_FLEET", {})) as fleet:
        yield fleet


@pytest.fixture
def make_light_fleet():
    """A function that brings up a fleet for one test; its options are those of LightFleet."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(LightFleet(*arguments, **options))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what every node of a fleet thought of it."""
    report = (yield).get_result()
    if call.when == "call" and report.failed:
        found = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, LightFleet)]
        for node in (node for fleet in found for node in fleet.nodes):
            status = node.ctl("status", check=False)
            report.sections.append((f"egressctl status on {node.name}", status.stdout + status.stderr))
