# SPDX-License-Identifier: Apache-2.0
"""Egress IPs are announced when they are placed, and again; what goes wrong with that undoes no apply."""
from __future__ import annotations

import time

import pytest
from light_fleet import LightFleet, Tap, configuration, egress_class, egress_ip
from light_node import BOTH, CTL

IPS = [egress_ip(7), egress_ip(7, 6)]


@pytest.fixture
def fleet(make_light_fleet) -> LightFleet:
    return make_light_fleet(["gateway1"])


def announcements(tap: Tap, seconds: float) -> list[float]:
    """When the IPv4 one was announced, to the others on the link; of each announcement the first packet."""
    time.sleep(seconds)
    times = sorted(record.time for record in tap.records() if record.proto == "arp" and record.src == record.dst == IPS[0])
    return [now for before, now in zip([0.0, *times], times) if now - before > 0.3]


def test_an_egress_ip_is_announced_three_times(fleet):
    """RFC 5227, 2.3: one that got lost is made good. The apply does not wait for it."""
    tap = Tap(fleet.router, "br0")
    fleet.apply(configuration(egress_class("web", "gateway1", egressIPs=IPS)))
    assert len(announcements(tap, 0.3)) == 1
    assert len(announcements(tap, 4)) == 2


def test_one_that_has_gone_meanwhile_is_not(fleet):
    tap = Tap(fleet.router, "br0")
    fleet.apply(configuration(egress_class("web", "gateway1", egressIPs=IPS)))
    fleet.gateway1.apply(configuration(egress_class("web", "gateway1", egressIPs=[egress_ip(8)])))
    assert len(announcements(tap, 0.3)) == 1
    assert announcements(tap, 4) == []


def test_an_announcement_that_fails_is_a_warning(node):
    """Here for want of a capability."""
    node.configure(BOTH)
    done = node.run(f"setpriv --bounding-set=-net_raw {CTL} apply")
    assert "warning: cannot open a packet socket" in done.stderr and "applied: 2 classes" in done.stdout
    assert "203.0.113.7" in node.in_gateway("ip addr").stdout
    assert node.status()["healthy"]
