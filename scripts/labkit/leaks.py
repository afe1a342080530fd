# SPDX-License-Identifier: Apache-2.0
"""The one question that matters: did a packet of a classed pod leave any host with a source that is not its class's egress IP?

Packets that have lost their pod's address do not say whose they were, so the lab gives every class ports of `outside` of its own.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from .capture import Record

if TYPE_CHECKING:
    from .fleet import Fleet


class Watch:
    """Captures on the uplinks of all nodes and of `outside`. Every packet that goes to `outside` is judged by these rules:

      owners   port of `outside` -> the only source that packets to it may have; its owner's pods talk to no other port
      others   the only sources for all the rest: other ports, ICMP, later fragments; None: anything but addresses of pods
    Pods' own addresses may not leave towards `outside` at all, except from `inbound`: ports at which pods are servers for it.

    Packets between nodes, tunnel packets among them, go to no stranger and are no leak.
    """

    def __init__(self, fleet: Fleet, owners: Mapping[int, str], *, others: Collection[str] | None = None,
                 inbound: Collection[int] = (), expression: str = ""):
        self.owners, self.others, self.inbound = dict(owners), others, frozenset(inbound)
        self._outside, self._routers = fleet.outside.address, fleet.ROUTERS
        self._nodes = {node.address for node in fleet.nodes}
        self._pods = ip_network("10.244.0.0/16")
        self.records: dict[str, list[Record]] = {}
        self._captures = {}
        try:
            for host in [*fleet.nodes, fleet.outside]:
                self._captures[host.name] = fleet.capture(host, "eth0", expression)
        except BaseException:
            self.__exit__()
            raise

    def stop(self) -> dict[str, list[Record]]:
        """End the captures and return what each uplink carried; CaptureIncomplete when one cannot vouch for it."""
        if self._captures:
            with ThreadPoolExecutor() as pool:
                self.records = dict(zip(self._captures, pool.map(lambda capture: capture.stop(), self._captures.values())))
            self._captures = {}
        return self.records

    def is_foreign(self, record: Record) -> bool:
        if record.dst != self._outside or record.src in self._routers or record.proto == "arp" or record.sport in self.inbound:
            return False
        if record.proto == "icmp" and record.info.startswith("type 11") and record.src in self._nodes:
            return False        # of what outside goes on sending to an egress IP that nobody holds: the node is a router like others
        if record.dport in self.owners:
            return record.src != self.owners[record.dport]
        if self.others is None:
            return ip_address(record.src) in self._pods
        return record.src not in self.others

    def foreign(self) -> dict[str, list[Record]]:
        """The leaks, per uplink; empty lists when all is well. Ends the captures."""
        return {place: [record for record in records if self.is_foreign(record)] for place, records in self.stop().items()}

    def assert_no_leak(self, busy: Collection[str] = ("outside",)) -> dict[str, list[Record]]:
        """AssertionError that shows the first leaks, or that a `busy` place carried nothing, which would prove nothing. Returns the
        records."""
        leaks = [f"{place}: {record}" for place, records in self.foreign().items() for record in records]
        assert not leaks, f"{len(leaks)} packets left with a foreign source:\n" + "\n".join(leaks[:20])
        silent = [place for place in busy if not self.records[place]]
        assert not silent, f"nothing was captured on {silent}"
        return self.records

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception) -> None:
        for capture in self._captures.values():
            capture.process.stop()
        self._captures = {}
