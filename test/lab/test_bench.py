# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the datapath runs, and refuses to measure a row that does not do what it says. What it measures here is worth nothing."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ISOLATED = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
COMMAND = REPOSITORY / "test/bench/datapath"
SHORT = ["--rounds", "1", "--seconds", "0.02"]
# The command, with a row that expects another egress IP than the class has.
WRONG = f"""
import runpy, sys
from dataclasses import replace
sys.path.insert(0, "{COMMAND.parent}")
import rows
rows.ROWS[:] = [replace(row, source="198.51.100.99") if row.key == "OL" else row for row in rows.ROWS]
sys.argv[0] = "{COMMAND}"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_every_row_is_set_up_and_measured(tmp_path):
    raw = tmp_path / "raw.json"
    done = subprocess.run([COMMAND, *SHORT, "--json", raw], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(raw.read_text())
    (measured,) = found["rounds"]
    assert list(measured) == ["A", "B", "BK", "C", "D", "E", "F", "OL", "OT", "ON"]
    for row, tests in measured.items():
        assert all(value["rate"] > 0 for value in tests.values()), (row, tests)
    assert {program["program"] for program in found["programs"]["OT"]} == {"classify", "tunnel_in", "tunnel_out", "uplink_in", "gateway_in",
                                                                           "gateway_out"}


def test_a_row_that_does_not_do_what_it_says_is_not_measured(tmp_path):
    raw = tmp_path / "raw.json"
    done = subprocess.run([*ISOLATED, sys.executable, "-B", "-c", WRONG, *SHORT, "--rows", "OL", "--json", raw], capture_output=True, text=True,
                          check=False)
    assert done.returncode != 0 and "OL" in done.stderr and "198.51.100.99" in done.stderr, done.stdout + done.stderr
    assert not raw.exists()
