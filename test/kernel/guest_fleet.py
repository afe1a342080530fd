# SPDX-License-Identifier: Apache-2.0
"""A fleet (test/lab/light_fleet.py) in which the guest itself is worker1: its package, its units, its modules, its network. The others are
hosts in namespaces, as in the lab.

Three paths lead out of worker1, each with a class of its own: `tunnel` by gateway1, `here` by worker1 itself, `hop` by a next hop."""
from __future__ import annotations

import sys
from pathlib import Path

for folder in ("scripts", "test/lab"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / folder))
from labkit.echo_server import PORTS                                                                                    # noqa: E402
from light_fleet import FleetNode, LightFleet, configuration, egress_class, egress_ip, gateway, underlay, until         # noqa: E402
from light_node import Answer                                                                                           # noqa: E402

PLUGIN, CTL = Path("/usr/libexec/egressclass/egressclass"), Path("/usr/sbin/egressctl")
CLASSES = ("tunnel", "here", "hop")
PORT = dict(zip(CLASSES, PORTS))        # of outside: each class's pods ask at one, so that a leak shows
CONFIGURATION = configuration(egress_class("tunnel", "gateway1", egressIPs=[egress_ip(7)], destinations=["0.0.0.0/0"]),
                              egress_class("here", "worker1", egressIPs=[egress_ip(8)], destinations=["0.0.0.0/0"]),
                              egress_class("hop", gateway("appliance", via="nexthop"), destinations=["0.0.0.0/0"]))
# The next hop translates to its own address.
SOURCE = {"tunnel": egress_ip(7), "here": egress_ip(8), "hop": underlay("appliance")}


class GuestNode(FleetNode):
    """The guest. What runs on it is what the package has installed."""

    def call(self, verb, config=None, *, plugin=PLUGIN, **options) -> Answer:
        return super().call(verb, config, plugin=plugin, **options)

    def ctl(self, *words: str, check: bool = True, timeout: float = 120):
        return self.run([str(CTL), *words], check=check, timeout=timeout)


class GuestFleet(LightFleet):
    """What is done to the guest stays; the rest goes with this process."""

    def __init__(self):
        super().__init__(["worker1", "gateway1"], appliance=True)

    def _start_hosts(self, lifeline: int) -> None:
        super()._start_hosts(lifeline)
        self.hosts["worker1"] = node = GuestNode("worker1", 1)
        # what kubelet and the primary CNI see to
        node.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1, ipv4__conf__all__rp_filter=0)

    def __enter__(self) -> GuestFleet:
        super().__enter__()
        self.appliance_nat()
        return self

    def owners(self) -> dict[int, set[str]]:
        """For watch(): whose packets may have which source. On worker1's own link, those for the next hop have their pod's."""
        pods = {f"10.244.1.{last}" for last in range(5, 50)}
        return {PORT[name]: {SOURCE[name]} | (pods if name == "hop" else set()) for name in CLASSES}


__all__ = ["CLASSES", "CONFIGURATION", "CTL", "PLUGIN", "PORT", "SOURCE", "GuestFleet", "GuestNode", "until"]
