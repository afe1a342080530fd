# SPDX-License-Identifier: Apache-2.0
"""What a node does after a reboot, where the runtime restores pods before our unit has run. A unit of the guest runs this, Before=
egressclass.service: network and neighbours, then ADD for a pod of each class; only then may systemd start ours. A pod that is refused is
taken away and tried again, as kubelet does it. All the time each pod that is there sends; what the wires carried is judged at the end.

    restore_pods.py REPORT      a file of JSON, for test_reboot.py
"""
from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from guest_fleet import CLASSES, CONFIGURATION, PORT, SOURCE, GuestFleet
from light_fleet import REMOTES
from traffic import ask, send

PATIENCE = 120
MODULES = ("nf_conntrack", "nf_nat", "vxlan", "nf_tables", "nft_ct", "nft_chain_nat", "nft_nat", "nf_conntrack_netlink")


def restore(node, name: str) -> tuple[object, str]:
    """A pod of a class, or None and why it was refused. One that is refused never runs."""
    pod = node.pod(f"r-{name}", name, (4,), add=False, last=20 + CLASSES.index(name))
    answer = node.pod_call("ADD", pod)
    if answer.code == 0:
        return pod, ""
    node.delete(pod)
    node.remove_pod(pod)
    return None, answer.out


def unit_state() -> str:
    return subprocess.run(["systemctl", "is-active", "egressclass.service"], capture_output=True, text=True).stdout.strip()


def main(report: Path) -> None:
    modules = [name for name in MODULES if Path("/sys/module", name).exists()]      # nothing has asked for any yet
    found: dict = {"modules": modules, "refused": {}, "closed": {}, "open": {}, "leaks": []}
    with GuestFleet() as fleet:
        fleet.apply(CONFIGURATION, on=["gateway1"])
        plain = fleet.worker1.pod("plain", "other", (4,), add=False)
        with fleet.watch([], fleet.owners()) as watch:
            pods = {}
            for name in CLASSES:
                pod, why = restore(fleet.worker1, name)
                if pod is None:
                    found["refused"][name] = why
                else:
                    pods[name] = pod
                    found["closed"][name] = ask(pod, REMOTES[4][0], PORT[name], timeout=3) is None
            found["before"] = unit_state()
            # that the watch would see a leak: a pod without a class, at a port that nobody owns
            send(plain, REMOTES[4][0], 9, count=1)
            watch.read()
            found["control"] = len(watch.foreign())
            watch.records.clear()
            subprocess.run(["systemd-notify", "--ready"], check=True)

            deadline = time.monotonic() + PATIENCE
            while len(found["open"]) < len(CLASSES) and time.monotonic() < deadline:
                for name in CLASSES:
                    if name not in pods:
                        pod, why = restore(fleet.worker1, name)
                        if pod:
                            pods[name] = pod
                    if name in pods:
                        seen = ask(pods[name], REMOTES[4][0], PORT[name], "udp", timeout=1)
                        if seen:
                            found["open"][name] = seen.source
        found["after"] = unit_state()
        found["expected"] = SOURCE
        found["leaks"] = watch.foreign()
        found["packets"] = len(watch.arrivals())
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
