# SPDX-License-Identifier: Apache-2.0
"""Pins in bpffs that somebody removed (a clean-up script, an agent, an unmounted bpffs): pods that run keep their class, or are closed; and
the next apply makes all of it good again."""
from __future__ import annotations

import json

import pytest
from light_fleet import LightFleet, configuration, egress_class, egress_ip
from light_node import PINS
from traffic import ask, send

OUT, IP = "198.51.100.10", egress_ip(7)
MAPS = ["node", "attachments", "endpoints", "classes", "vnis", "gateways", "rules", "ports", "workers", "fragments", "flows", "exhausted",
        "counters", "egress_ips"]
PROGRAMS = ["classify", "classify_again", "tunnel_in", "tunnel_out", "nexthop_in", "uplink_in", "gateway_in", "gateway_out"]
SOME = egress_class("web", "gateway1", egressIPs=[IP], destinations=["198.51.100.0/24"], ports=["any"], otherwise="drop")


@pytest.fixture
def fleet(make_light_fleet) -> LightFleet:
    """A pod of class `web` on a worker, and one on the gateway itself."""
    fleet = make_light_fleet(["worker1", "gateway1"])
    fleet.apply(configuration(SOME))
    for node in fleet.worker1, fleet.gateway1:
        node.pods = [node.pod("p", "web", (4,))]
        assert ask(node.pods[0], OUT).source == IP
    return fleet


def held_maps(node, program: str) -> set[int]:
    return set(json.loads(node.run(["bpftool", "-j", "prog", "show", "pinned", f"{PINS}/programs/{program}"]).stdout)["map_ids"])


def pinned_maps(node) -> set[int]:
    return {json.loads(node.run(["bpftool", "-j", "map", "show", "pinned", f"{PINS}/maps/{name}"]).stdout)["id"] for name in MAPS}


def test_every_map_and_program_is_named_here(fleet):
    node = fleet.worker1
    assert node.run(f"ls {PINS}/maps").stdout.split() == sorted(MAPS)
    assert node.run(f"ls {PINS}/programs").stdout.split() == sorted(PROGRAMS)


@pytest.mark.parametrize("lost", [[name] for name in MAPS] + [["endpoints", "classes"], MAPS], ids=" ".join)
def test_apply_after_map_pins_were_lost(fleet, lost):
    """Programs and pins hold the same maps afterwards, whichever were lost; nothing leaks, neither before nor after."""
    for node in fleet.worker1, fleet.gateway1:
        before = {program: len(held_maps(node, program)) for program in PROGRAMS}
        with fleet.watch([IP]) as watch:
            node.run("rm " + " ".join(f"{PINS}/maps/{name}" for name in lost))
            assert not node.status()["healthy"]
            send(node.pods[0], OUT, count=3)
            node.apply()
            send(node.pods[0], OUT, count=3)
            send(node.pods[0], "203.0.113.200", count=3)        # no destination of the class
        watch.assert_no_leak()
        pinned = pinned_maps(node)
        for program in PROGRAMS:        # each has its constants in a map of its own, if it has any
            assert len(held_maps(node, program) & pinned) >= before[program] - 1, program
        assert node.status()["healthy"], node.status()["problems"]
        assert node.check(node.pods[0]).code == 0
        assert ask(node.pods[0], OUT).source == IP
        late = node.pod("late", "web", (4,))
        assert ask(late, OUT).source == IP
        assert node.drops("web").get("otherwise", 0) >= 3


def test_apply_with_another_configuration_after_the_classes_were_lost(fleet):
    """The old classes would refer to destinations that the apply deletes."""
    node = fleet.worker1
    node.run(f"rm {PINS}/maps/classes")
    node.apply(configuration({**SOME, "destinations": ["198.51.100.11/32"]}))
    with fleet.watch([IP]) as watch:
        send(node.pods[0], OUT, count=3)
        assert ask(node.pods[0], "198.51.100.11").source == IP
    watch.assert_no_leak()
    assert node.drops("web") == {"otherwise": 3}


REMOVED = {"rm": f"rm -rf {PINS}", "links": f"rm -r {PINS}/links", "unmount": "umount /sys/fs/bpf; mount -t bpf bpf /sys/fs/bpf"}


@pytest.mark.parametrize("removed", REMOVED)
def test_running_pods_go_on_when_the_pins_are_removed(fleet, removed):
    """As they were, or closed; and an apply puts everything back, also for ADD, CHECK and DEL."""
    for node in fleet.worker1, fleet.gateway1:
        pod = node.pods[0]
        with fleet.watch([IP]) as watch:
            node.run(REMOVED[removed])
            assert not node.status()["healthy"]
            for _ in range(3):
                seen = ask(pod, OUT, timeout=1)
                assert not seen or seen.source == IP
            send(pod, "203.0.113.200", count=3)     # "otherwise": "drop", as before
            node.apply()
            assert ask(pod, OUT).source == IP
        watch.assert_no_leak()
        assert node.status()["healthy"], node.status()["problems"]
        assert node.check(pod).code == 0
        pod.remove()


@pytest.mark.parametrize("removed", REMOVED)
def test_down_after_the_pins_were_removed_leaves_the_pods_closed(fleet, removed):
    for node in fleet.worker1, fleet.gateway1:
        with fleet.watch([IP]) as watch:
            assert ask(node.pods[0], OUT).source == IP
            node.run(REMOVED[removed])
            assert "1 running pods" in node.ctl("down").stdout
            send(node.pods[0], OUT, count=5)
        watch.assert_no_leak()
        node.pods[0].remove()
        node.ctl("down")
        assert node.run(f"ls {PINS} /run/egressclass /var/lib/egressclass 2>/dev/null", check=False).stdout == ""


def test_pods_without_a_record_get_the_programs_of_an_upgrade_too(fleet):
    """By the pins of their links."""
    node, pod = fleet.worker1, fleet.worker1.pods[0]
    before = node.classifiers()
    node.record(pod).unlink()
    node.run(f"rm {PINS}/programs/*")
    node.apply()
    ifindex = node.link(pod.host_veth)["ifindex"]
    assert node.tcx(ifindex)["programs"] == node.classifiers()
    assert not set(before) & set(node.classifiers())
    assert ask(pod, OUT).source == IP


@pytest.mark.parametrize("name, key, value", [("attachments", 4, 40), ("endpoints", 16, 64)])
def test_del_works_with_maps_of_another_layout(fleet, name, key, value):
    """What is the same in all layouts is enough for it: the key, and the cookie as the first field of the value."""
    node, pod = fleet.worker1, fleet.worker1.pods[0]
    entries = node.map(name)
    pin = f"{PINS}/maps/{name}"
    node.run(f"rm {pin}; bpftool map create {pin} type hash key {key} value {value} entries 64 name {name}")
    for raw_key, raw_value in entries.items():
        padded = raw_value[:8] + bytes(value - 8)
        node.run(["bpftool", "map", "update", "pinned", pin, "key", *map(str, raw_key), "value", *map(str, padded)])
    assert node.pod_call("CHECK", pod).code != 0
    node.delete(pod)
    assert node.map(name) == {}
    assert not node.record(pod).exists()


def test_status_names_the_link_of_a_next_hop_that_is_gone(fleet):
    node = fleet.worker1
    hop = {"name": "hop", "select": [{"namespaces": ["hop"]}], "destinations": ["0.0.0.0/0"],
           "gateways": [{"address": "192.0.2.1", "via": "nexthop", "interface": "eth0"}]}
    node.apply(configuration(SOME, hop))
    assert node.status()["healthy"]
    node.run(f"rm {PINS}/links/nexthop-*")
    assert "nexthop_in is not attached to eth0" in node.status()["problems"]
    node.apply()
    assert node.status()["healthy"], node.status()["problems"]
