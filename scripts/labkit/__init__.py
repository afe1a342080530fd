# SPDX-License-Identifier: Apache-2.0
"""A fleet of real containerd nodes on one machine, in namespaces: the user's playground and the base of the tests.

    from labkit import Fleet
    with Fleet() as fleet:
        pod = fleet.node("worker1").run_pod("web", "billing")
        print(pod.exec(["nc", fleet.outside.address, "7001"]).stdout)

The lab touches nothing of the machine but its own state directory and cgroups, needs no registry and no systemd, and dies with its
owner. Modules, bottom up: `process` and `host` (namespaces), `assets` and `image` (what pods run), `cri`, `pod` and `node`
(containerd), `outside` and `echo_server` (the world beyond the gateway), `capture` and `leaks` (evidence), `state` and `fleet` (life
cycle).
"""
from .capture import Capture, CaptureIncomplete, Record, read_pcap
from .cri import CriError
from .fleet import CONFIGURATION, NODES, Fleet, NodeSpec
from .leaks import Watch
from .node import Node
from .outside import HTTP_PORT, LONG_PORT, PORTS, Outside, Seen
from .pod import Pod
from .process import CommandFailed, Process
from .state import LabError

__all__ = ["CONFIGURATION", "HTTP_PORT", "LONG_PORT", "NODES", "PORTS", "Capture", "CaptureIncomplete", "CommandFailed", "CriError",
           "Fleet", "LabError", "Node", "NodeSpec", "Outside", "Pod", "Process", "Record", "Seen", "Watch", "read_pcap"]
