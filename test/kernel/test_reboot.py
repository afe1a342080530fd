# SPDX-License-Identifier: Apache-2.0
"""After a reboot, with all units enabled: what restore_pods.py, which systemd started before ours, saw."""
from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from guest_fleet import CLASSES, SOURCE, until
from restore_pods import MODULES

REPORT = Path("/run/restored.json")


def said() -> str:
    return subprocess.run(["journalctl", "--no-pager", "--boot", "-n", "60"], capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def report() -> dict:
    until(REPORT.exists, 240, 0.5, said)
    return json.loads(REPORT.read_text())


def test_modules_came_from_the_list_in_the_package(report):
    """They were there before anything asked for one."""
    assert report["modules"] == list(MODULES), said()


def test_pods_are_closed_until_the_classes_are_in_force(report):
    """Refused by ADD, with what to do about it, or in place and silent."""
    assert report["before"] == "inactive"
    assert set(report["refused"]) | set(report["closed"]) == set(CLASSES)
    assert all(report["closed"].values()), report
    assert all("egressclass.service" in why for why in report["refused"].values()), report


def test_then_they_are_open(report):
    assert (report["after"], report["open"]) == ("active", SOURCE), f"{report}\n{said()}"


def test_no_packet_left_with_a_wrong_source(report):
    assert report["control"] > 0        # the watch sees leaks
    assert report["packets"] > 0 and report["leaks"] == []


def test_nothing_has_failed():
    assert subprocess.run(["systemctl", "--failed", "--no-legend", "--plain"], capture_output=True, text=True).stdout == "", said()
