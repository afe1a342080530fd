# SPDX-License-Identifier: Apache-2.0
"""An egress IP that another machine has is not taken from it: apply asks the link first (RFC 5227, RFC 4862), unless "force" says so."""
from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from light_fleet import REMOTES, LightFleet, Tap, configuration, egress_class, egress_ip
from light_node import CTL, PINS
from traffic import ask

NOT_YET = 3
FAMILY = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
WEB = configuration(egress_class("web", "gateway1", egressIPs=[egress_ip(7), egress_ip(7, 6)]))
FORCED = configuration(egress_class("web", "gateway1", egressIPs=[egress_ip(7), egress_ip(7, 6)], force=True))
UNASKED = {4: "0.0.0.0", 6: "::"}


@pytest.fixture
def fleet(make_light_fleet) -> LightFleet:
    return make_light_fleet(["worker1", "gateway1", "gateway2"])


def give(host, family: int) -> None:
    host.run(f"ip addr add {egress_ip(7, family)}/{32 if family == 4 else 128} dev eth0 {'nodad' if family == 6 else ''}")


def take(host, family: int) -> None:
    host.run(f"ip addr del {egress_ip(7, family)}/{32 if family == 4 else 128} dev eth0")


def about(tap: Tap, family: int) -> list[tuple[str, str]]:
    """(source, info) of what was said on the link about the egress IP, or by it."""
    ip = egress_ip(7, family)
    if family == 4:
        return [(record.src, record.info) for record in tap.records() if record.proto == "arp" and ip in (record.src, record.dst)]
    group = "ff02::1:ff00:" + ip.rsplit(":", 1)[1]
    return [(record.src, record.info) for record in tap.records() if record.proto == "icmp6" and (record.dst == group or record.src == ip)]


@FAMILY
def test_the_address_of_a_live_machine_is_refused_with_its_mac(fleet, family):
    owner, gateway = fleet.gateway2, fleet.gateway1
    give(owner, family)
    fleet.apply(configuration(egress_class("web", "gateway1", egressIPs=[egress_ip(8)])))
    before, tap = gateway.snapshot(), Tap(fleet.router, "gateway1")
    done = gateway.apply(WEB, check=False)
    assert done.returncode == NOT_YET, done
    assert f"classes[0]: {egress_ip(7, family)}: another machine has this egress IP: {owner.mac()} answers on eth0" in done.stderr
    assert "nothing was changed" in done.stderr and egress_ip(7, 10 - family) not in done.stderr
    assert gateway.snapshot() == before
    assert {source for source, _ in about(tap, family)} <= {UNASKED[family], egress_ip(7, family)}


@FAMILY
def test_who_asks_disturbs_nobody(fleet, family):
    """The neighbours' tables, and what they say, are as if nobody had asked."""
    owner, witness = fleet.gateway2, fleet.worker1
    give(owner, family)
    witness.run(f"ping -c1 -W1 {egress_ip(7, family)}")
    before = witness.run(f"ip -{family} neigh show {egress_ip(7, family)}").stdout
    fleet.gateway1.apply(WEB, check=False)
    after = witness.run(f"ip -{family} neigh show {egress_ip(7, family)}").stdout
    assert owner.mac() in before and owner.mac() in after and fleet.gateway1.mac() not in after
    witness.run(f"ping -c1 -W1 {egress_ip(7, family)}")


@FAMILY
def test_by_force_it_is_taken_over(fleet, family):
    give(fleet.gateway2, family)
    fleet.apply(FORCED, on=["worker1", "gateway1"])
    assert egress_ip(7, family) in fleet.gateway1.held()
    assert fleet.gateway1.status()["healthy"]


@FAMILY
def test_an_owner_that_gives_it_up_is_waited_for(fleet, family):
    """As a gateway does from which it comes, under the same configuration a moment later."""
    give(fleet.gateway2, family)
    with ThreadPoolExecutor(1) as pool:
        applied = pool.submit(fleet.gateway1.apply, WEB)
        time.sleep(1)
        assert not applied.done()
        take(fleet.gateway2, family)
        applied.result()
    assert egress_ip(7, family) in fleet.gateway1.held()


def test_what_a_configuration_moves_between_gateways_may_come_before_it_goes(fleet):
    """Whichever hears of it first: no order of the nodes is wrong."""
    moved = configuration(egress_class("web", "gateway2", egressIPs=[egress_ip(7), egress_ip(7, 6)]))
    fleet.apply(WEB)
    fleet.gateway2.apply(moved)
    fleet.gateway1.apply(moved)
    found = {name: fleet.hosts[name].held() for name in ("gateway1", "gateway2")}
    assert egress_ip(7) in found["gateway2"] and egress_ip(7) not in found["gateway1"]


def test_what_is_asked_and_when(fleet):
    """Three probes of each, from no address and with a right checksum, ahead of the first announcement; none of what is here already."""
    tap = Tap(fleet.router, "gateway1")
    fleet.gateway1.apply(WEB)
    records = tap.records()
    arp = [record for record in records if record.proto == "arp" and record.dst == egress_ip(7)]
    assert [record.src for record in arp[:4]] == ["0.0.0.0"] * 3 + [egress_ip(7)] and arp[0].info == "request"
    solicited = [record for record in records if record.info == "type 135" and record.src == "::" and record.dst == "ff02::1:ff00:7"]
    assert len(solicited) == 3 and all(record.frame[:6] == bytes.fromhex("3333ff000007") and record.frame[21] == 255 for record in solicited)
    fleet.gateway1.apply()
    assert not [record for record in tap.records() if record.src in ("0.0.0.0", "::") and record.info in ("request", "type 135")]


def test_after_a_reboot_it_is_asked_for_again(fleet):
    """Another gateway may have got it meanwhile."""
    fleet.gateway1.apply(WEB)
    fleet.gateway1.run(f"ip netns del egressclass; rm -r {PINS}")
    for family in 4, 6:
        give(fleet.gateway2, family)
    done = fleet.gateway1.apply(check=False)
    assert done.returncode == NOT_YET and done.stderr.count("another machine has this egress IP") == 2


def test_without_the_right_to_ask_it_is_a_warning(fleet):
    fleet.gateway1.configure(WEB)
    done = fleet.gateway1.run(f"setpriv --bounding-set=-net_raw {CTL} apply")
    assert "warning: cannot tell whether another machine has an egress IP: cannot open a packet socket" in done.stderr


def test_the_default_router_does_not_lose_its_address(fleet):
    done = fleet.gateway1.apply(configuration(egress_class("web", "gateway1", egressIPs=["192.0.2.1"])), check=False)
    assert done.returncode == NOT_YET and f"{fleet.router.mac('br0')} answers on eth0" in done.stderr
    plain = fleet.worker1.pod("plain", "none")
    assert ask(plain, REMOTES[4][0])
