# SPDX-License-Identifier: Apache-2.0
"""A configuration and pods in numbers, for test_scale.py and for test/bench/apply."""
from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address

from light_fleet import FleetNode, LightFleet, configuration, gateway
from light_node import PINS

CLASSES, PREFIXES, PODS = 2000, 20_000, 500
NETNS = "many"      # of all pods that stand for many


def egress_ips(number: int) -> list[str]:
    return [str(IPv4Address("100.64.0.0") + number), str(IPv6Address("2001:db8:100::") + number)]


def prefixes(number: int, count: int) -> list[str]:
    """Of both families, in turn; no class has one that another has."""
    return [f"{IPv4Address('20.0.0.0') + (at << 8)}/24" if at % 2 else f"{IPv6Address('2001:db8:200::') + (at << 64)}/64"
            for at in range(number * count, (number + 1) * count)]


def many_classes(count: int = CLASSES, total: int = PREFIXES, changed: dict[int, dict] | None = None) -> dict:
    """The classes c0, c1, ... with `total` prefixes among them, one in ten of which is an exception; half of them have their gateway on
    worker1, which has the pods, and half on gateway1. `changed`: other keys for some."""
    classes = []
    for number in range(count):
        own = prefixes(number, total // count)
        classes.append({
            "name": f"c{number}", "select": [{"namespaces": [f"c{number}"]}], "destinations": own[1:], "except": own[:1],
            "gateways": [gateway("worker1" if number % 2 else "gateway1")], "egressIPs": egress_ips(number)} | (changed or {}).get(number, {}))
    return configuration(*classes)


def make_reachable(fleet: LightFleet) -> None:
    """These egress IPs are on-link at the nodes' uplinks, to the router as well."""
    fleet.router.run(["ip", "route", "replace", "100.64.0.0/10", "dev", "br0"])
    fleet.router.run(["ip", "-6", "route", "replace", "2001:db8:100::/64", "dev", "br0"])


def make_interfaces(node: FleetNode, count: int) -> None:
    """The interfaces of as many pods, all in one network namespace: to the plugin a pod is a veth, and a namespace for each takes the kernel
    longer than all that is to be tested."""
    node.run(["ip", "netns", "add", NETNS])
    node.batch(["link set lo up"], NETNS)
    node.batch([f"link add m{number} type veth peer name e{number} netns {NETNS}" for number in range(count)])
    node.batch([f"link set m{number} up" for number in range(count)])
    node.batch([f"link set e{number} up" for number in range(count)], NETNS)


def pod_addresses(number: int) -> list[str]:
    return [str(IPv4Address("10.244.128.0") + number + 1), str(IPv6Address("fd00:244:80::") + number + 1)]


def add_pod(node: FleetNode, number: int, namespace: str) -> None:
    """The plugin's ADD for an interface that is there."""
    addresses = pod_addresses(number)
    config = {"cniVersion": "1.0.0", "name": "lab", "type": "egressclass", "prevResult": {
        "cniVersion": "1.0.0", "interfaces": [{"name": f"m{number}"}, {"name": f"e{number}", "sandbox": f"/run/netns/{NETNS}"}],
        "ips": [{"address": f"{address}/{128 if ':' in address else 32}", "interface": 1} for address in addresses], "dns": {}}}
    answer = node.call("ADD", config, CONTAINERID=f"many{number}", NETNS=f"/run/netns/{NETNS}", IFNAME=f"e{number}",
                       ARGS=f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=many-{number};K8S_POD_UID=uid-{number}")
    assert answer.code == 0, answer


def add_pods(node: FleetNode, count: int, classes: int = CLASSES) -> None:
    """A pod each for `count` of the classes, evenly."""
    make_interfaces(node, count)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: add_pod(node, number, f"c{number * classes // count}"), range(count)))


def memory(node: FleetNode) -> dict[str, int]:
    """What the kernel accounts for each of our maps and programs, in bytes."""
    found = {}
    for kind in "map", "prog":
        pins = node.path(f"{PINS}/{kind}s" if kind == "map" else f"{PINS}/programs")
        for pin in sorted(pins.iterdir()):
            shown = json.loads(node.run(["bpftool", "-j", kind, "show", "pinned", f"{PINS}/{pins.name}/{pin.name}"]).stdout)
            found[pin.name] = shown["bytes_memlock"]
    return found
