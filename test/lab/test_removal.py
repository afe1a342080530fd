# SPDX-License-Identifier: Apache-2.0
"""What removes goes on after an error, and says at the end all that failed."""
from __future__ import annotations

from light_node import BOTH, PINS


def test_down_goes_on_after_an_error_and_names_it(applied):
    """The state file is broken, so sysctls cannot be put back; the rest goes all the same, and another try can finish."""
    file = applied.path("/run/egressclass/system.json")
    file.write_text("broken")
    done = applied.ctl("down", check=False)
    assert done.returncode == 1 and "system.json" in done.stderr, done
    assert "egressclass" not in applied.run("nft list tables").stdout
    assert applied.run("ip link show egress0", check=False).returncode != 0
    assert "8479" not in applied.run("ip rule").stdout
    file.write_text('{"sysctls": {}}')
    applied.ctl("down")
    assert applied.run(f"ls {PINS} /run/egressclass 2>/dev/null", check=False).stdout == ""
    assert "203.0.113.7" not in applied.run("ip addr; ip route").stdout and "egressclass" not in applied.run("ip netns").stdout
    applied.apply(BOTH)


def test_down_says_all_that_failed(applied):
    applied.path("/run/egressclass/system.json").write_text("broken")
    applied.run("rm /run/egressclass/config.json; mkdir -p /run/egressclass/config.json/x")
    done = applied.ctl("down", check=False)
    assert done.returncode == 1
    assert "system.json" in done.stderr and "config.json" in done.stderr and "also:" in done.stderr


def test_del_goes_on_after_an_error_and_says_so(applied):
    """A map that is none of ours in the place of `attachments`: the pod's endpoint goes, the record stays for the next try."""
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    entry = next(iter(applied.map("attachments").items()))
    applied.run(f"mv {PINS}/maps/attachments {PINS}/maps/kept; "
                f"bpftool map create {PINS}/maps/attachments type hash key 8 value 24 entries 4 name attachments")
    answer = applied.pod_call("DEL", pod)
    assert answer.code != 0 and "attachments" in answer.json["details"], answer
    assert applied.endpoints() == {}
    assert applied.record(pod).exists()
    applied.run(f"rm {PINS}/maps/attachments; mv {PINS}/maps/kept {PINS}/maps/attachments")
    assert entry in applied.map("attachments").items()
    applied.delete(pod)
    assert applied.traces_of_pods() == []
