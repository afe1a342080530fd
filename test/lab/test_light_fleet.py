# SPDX-License-Identifier: Apache-2.0
"""The lab itself: what the other tests conclude from it is only as good as this."""
from __future__ import annotations

import socket

import pytest
from light_fleet import REMOTES, configuration, underlay, until
from traffic import Sink, Stream, ask, ask_many, fragments, ping, raw, shares, udp

FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def plain(light_fleet):
    """Pods without a class, behind the nodes' masquerade."""
    light_fleet.apply(configuration())
    return light_fleet, light_fleet.worker1.pod("p", "none"), light_fleet.worker2.pod("q", "none")


@FAMILIES
def test_pod_without_a_class_goes_out_with_its_nodes_address_and_a_watch_calls_that_a_leak(plain, family):
    fleet, pod, _ = plain
    with fleet.watch(["203.0.113.7"]) as watch:
        for proto in "tcp", "udp":
            assert ask(pod, REMOTES[family][0], proto=proto).source == underlay("worker1", family)
        assert ping(pod, REMOTES[family][0]) == "reply"
    with pytest.raises(AssertionError, match=f"worker1.* {underlay('worker1', family)}"):
        watch.assert_no_leak()
    assert len(watch.arrivals(proto="udp", src=underlay("worker1", family))) == 1


@FAMILIES
def test_pods_reach_each_other_with_their_own_addresses(plain, family):
    _, pod, other = plain
    with Sink(other, 253, family) as sink, pod.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_RAW, 253) as out:
        out.sendto(b"hello", (other.ip(family), 0))
        assert sink.first() == (pod.ip(family), b"hello")


@FAMILIES
def test_datagrams_are_answered_by_the_address_that_was_asked(plain, family):
    """A client that is connected takes no answer from another one."""
    fleet, pod, _ = plain
    found = ask_many(pod, REMOTES[family], 2 * len(REMOTES[family]))
    assert shares(found) == {underlay("worker1", family): 10}
    ours = {(one.source, one.sport) for one in found}       # the other family's test may have had the same ports
    asked = {seen.asked for seen in fleet.outside.seen() if (seen.source, seen.sport) in ours}
    assert asked == set(REMOTES[family])


@FAMILIES
def test_a_long_flow_counts_its_losses(plain, family):
    fleet, pod, _ = plain
    with Stream(pod, REMOTES[family][0], "udp", 500) as datagrams, Stream(pod, REMOTES[family][0], "tcp", 500) as stream:
        datagrams.wait_seen(20)
        answered = max(datagrams.seen)
        fleet.cut("worker1")
        first = datagrams.sent + 1      # the one before may be on its way
        until(lambda: datagrams.sent > first + 10)
        last, line = datagrams.sent, stream.sent
        fleet.mend("worker1")
        until(lambda: max(datagrams.seen) > last and max(stream.seen) > line)       # not only what had come before, and was not read yet
    assert stream.lost == [], stream.error
    assert min(datagrams.lost) > answered and set(range(first, last)) <= set(datagrams.lost)
    assert stream.sources == {underlay("worker1", family)}


@FAMILIES
def test_fragments_made_by_hand_are_a_datagram(plain, family):
    fleet, pod, _ = plain
    mine, to = pod.ip(family), REMOTES[family][1]
    before = len(fleet.outside.seen())
    raw(pod, reversed(fragments(mine, to, 17, udp(mine, to, 5555, 7001, bytes(3000)))))
    assert ask(pod, to, 7002, "udp")
    assert [seen.asked for seen in fleet.outside.seen()[before:] if seen.dport == 7001] == [to]


def test_two_fleets_know_nothing_of_each_other(make_light_fleet):
    one, two = (make_light_fleet(["worker1"], appliance=True) for _ in range(2))
    for fleet in one, two:
        assert ask(fleet.worker1, REMOTES[4][0]).source == ask(fleet.worker1.pod("p", add=False), REMOTES[4][0]).source == "192.0.2.11"
    assert len(one.outside.seen()) == len(two.outside.seen()) == 2
