# SPDX-License-Identifier: Apache-2.0
"""A node with 2000 classes, 20 000 prefixes of both families, and 500 pods. Of these three are whole pods and send; the others are veths in
one network namespace, attached by the plugin's real ADD. What `apply` takes is printed; the bounds here are only for what would be no use
to anybody: `make bench-apply` has the goals. And: what does not fit changes nothing."""
from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from light_fleet import REMOTES, LightFleet, configuration, egress_class, egress_ip
from scale import CLASSES, PODS, add_pods, egress_ips, make_reachable, many_classes, memory
from traffic import ask

LIGHT_FLEET = {"nodes": ("worker1", "gateway1")}
WHOLE = (17, 1000, 1999)        # the classes of the pods that send: two with a local gateway, one beyond the tunnel
REACHED = {"destinations": ["198.51.100.0/24", "2001:db8:51::/64"], "except": ["198.51.100.14/32", "2001:db8:51::14/128"]}
OUTSIDE = {4: "198.51.100.10", 6: "2001:db8:51::10"}


def timed(function: Callable) -> float:
    start = time.monotonic()
    function()
    return time.monotonic() - start


# --- what does not fit

def full_of_prefixes(family: int) -> list[dict]:
    texts = [f"{20 + (at >> 16)}.{at >> 8 & 255}.{at & 255}.0/24" if family == 4 else f"2001:db8:{at >> 16:x}:{at & 0xffff:x}::/64"
             for at in range(262_200)]
    return [egress_class("web", "worker1", egressIPs=[egress_ip(7, 4), egress_ip(7, 6)], destinations=texts)]


def full_of_ports() -> list[dict]:
    """No two destinations have the same ports, and each has a range that is many prefixes."""
    return [egress_class("web", "worker1", egressIPs=[egress_ip(7, 4), egress_ip(7, 6)],
                         destinations=[{"cidr": f"20.{at >> 8}.{at & 255}.0/24", "ports": [f"tcp/{at + 1}-65534"]} for at in range(8000)])]


def full_of_gateways() -> tuple[list[dict], list[str]]:
    addresses = [f"20.0.{at >> 8}.{at & 255}" for at in range(1, 4400)]
    classes = [egress_class(f"c{at}", *({"address": address} for address in addresses[at:at + 16]), egressIPs=egress_ips(at))
               for at in range(0, len(addresses), 16)]
    return classes, addresses


FULL = {"prefixes-v4": (lambda: {"classes": full_of_prefixes(4)}, "prefix"), "prefixes-v6": (lambda: {"classes": full_of_prefixes(6)}, "prefix"),
        "ports": (lambda: {"classes": full_of_ports()}, "port"),
        "classes": (lambda: {"classes": many_classes(4200, 8400)["classes"], "markMask": "0xfffff"}, "class"),
        "gateways": (lambda: dict(zip(("classes", "nodes"), full_of_gateways())), "gateway")}


@pytest.mark.parametrize("make, names", FULL.values(), ids=FULL)
def test_what_does_not_fit_changes_nothing(light_fleet, make, names):
    """More than a table holds: `apply` says which and how much, and every byte of what is in force stays what it was, with its pods'
    traffic."""
    node = light_fleet.worker1
    node.apply(configuration(egress_class("web", "worker1", egressIPs=[egress_ip(7, 4), egress_ip(7, 6)])))
    pod = node.pod("web", "web")
    try:
        assert ask(pod, OUTSIDE[4]).source == egress_ip(7, 4)
        before = node.snapshot()
        config = configuration()
        keys = make()
        nodes = config["nodes"] + keys.pop("nodes", [])
        node.configure(config | keys | {"nodes": nodes})
        done = node.ctl("apply", check=False, timeout=120)
        assert done.returncode not in (0, -6, -11), done.stdout
        assert names in done.stderr.lower() and any(character.isdigit() for character in done.stderr), done.stderr[-2000:]
        assert len(done.stderr) < 10_000, "one clear error, not one for each that does not fit"
        assert node.snapshot() == before
        assert node.status()["healthy"]
        for family in OUTSIDE:
            assert ask(pod, OUTSIDE[family]).source == egress_ip(7, family)
    finally:
        pod.remove()


# --- what fits

@pytest.fixture(scope="module")
def crowd(light_fleet) -> tuple[LightFleet, dict, list]:
    """The fleet, the configuration in force, and the pods that send."""
    config = many_classes(changed={number: REACHED for number in WHOLE})
    make_reachable(light_fleet)
    for node in light_fleet.nodes:
        seconds = timed(lambda node=node: node.apply(config))
        print(f"first apply on {node.name}: {seconds:.2f} s")
        assert seconds < 20
    node = light_fleet.worker1
    seconds = timed(lambda: add_pods(node, PODS - len(WHOLE)))
    print(f"{PODS - len(WHOLE)} pods: {seconds:.2f} s, ADD and all")
    return light_fleet, config, [node.pod(f"w{number}", f"c{number}") for number in WHOLE]


def works(pods: list) -> None:
    for number, pod in zip(WHOLE, pods):
        for address, expected in zip(OUTSIDE.values(), egress_ips(number)):
            assert ask(pod, address).source == expected, (number, address)


def test_all_of_it_works(crowd):
    """Whichever of the classes it is, by either way; and status knows them all."""
    fleet, _, pods = crowd
    works(pods)
    status = fleet.worker1.status()
    assert status["healthy"], status["problems"]
    assert (len(status["classes"]), status["pods"]) == (CLASSES, PODS)
    assert len(fleet.worker1.pods()) == PODS


def test_apply_of_the_same_is_no_work(crowd):
    fleet, config, pods = crowd
    before = fleet.worker1.class_ids()
    seconds = timed(lambda: fleet.worker1.apply(config))
    print(f"apply of the same: {seconds:.2f} s")
    assert seconds < 5 and fleet.worker1.class_ids() == before
    works(pods)


def test_one_class_changes(crowd):
    """What used to bypass is steered now, and by nobody else."""
    fleet, config, pods = crowd
    last = [REMOTES[family][4] for family in OUTSIDE]
    for address, other in zip(last, (fleet.worker1.underlay(4), fleet.worker1.underlay(6))):
        assert ask(pods[0], address).source == ask(pods[1], address).source == other
    index = next(index for index, entry in enumerate(config["classes"]) if entry["name"] == f"c{WHOLE[0]}")
    changed = config | {"classes": list(config["classes"])}
    changed["classes"][index] = changed["classes"][index] | {"except": []}
    fleet.worker1.configure(changed)
    seconds = timed(lambda: fleet.worker1.apply())
    print(f"apply of a change to one class: {seconds:.2f} s")
    assert seconds < 5
    for address, expected, other in zip(last, egress_ips(WHOLE[0]), (fleet.worker1.underlay(4), fleet.worker1.underlay(6))):
        assert ask(pods[0], address).source == expected
        assert ask(pods[1], address).source == other
    fleet.worker1.apply(config)
    works(pods)


def test_memory_is_bounded(crowd):
    """Of all maps and programs together, with all that is in them here: 2000 classes at 32 + 16 hops + 16 slots, rules, and the tables
    that are there from the start."""
    fleet, _, _ = crowd
    found = memory(fleet.worker1)
    print(", ".join(f"{name} {size >> 10} KiB" for name, size in found.items()))
    assert 0 < sum(found.values()) < 128 << 20
