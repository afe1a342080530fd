# SPDX-License-Identifier: Apache-2.0
"""Fixtures that all tests on the lab share. A fleet comes up in about a second, so whoever disturbs it takes one of its own."""
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from labkit import CONFIGURATION, Fleet     # noqa: E402


@pytest.fixture(scope="module")
def fleet(request):
    """A fleet for a module's tests, which leave it as they found it. The module's FLEET are options for it."""
    with Fleet(**({"configuration": CONFIGURATION} | getattr(request.module, "FLEET", {}))) as fleet:
        yield fleet


@pytest.fixture
def make_fleet():
    """A function that brings up a fleet for one test; its options are those of Fleet."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Fleet(**options))


@pytest.fixture
def own_fleet(make_fleet):
    """A fleet that a test may take apart."""
    return make_fleet()


@pytest.fixture
def run_pod():
    """run_pod(node, name, namespace, ...) as Node.run_pod does; the pod is removed after the test."""
    pods = []

    def run(node, *arguments, **options):
        pods.append(node.run_pod(*arguments, **options))
        return pods[-1]
    yield run
    for pod in pods:
        pod.remove()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what every node thought of it."""
    report = (yield).get_result()
    if call.when == "call" and report.failed:
        for fleet in (value for value in item.funcargs.values() if isinstance(value, Fleet)):
            for node in fleet.nodes:
                status = node.run(["egressctl", "status"], check=False)
                report.sections.append((f"egressctl status on {node.name}", status.stdout + status.stderr))
