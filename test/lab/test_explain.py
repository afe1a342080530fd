# SPDX-License-Identifier: Apache-2.0
"""`egressctl explain` says what the datapath does: thousands of random packets under random configurations, each given to the kernel's
copy of the program (BPF_PROG_TEST_RUN) and asked about; and what it says to people."""
from __future__ import annotations

import ipaddress
import json
import os
import random
import re
import socket
import struct
import time

import pytest
from inside import GATEWAY, ctl, ifindex_of, in_gateway, inside, Map, Program, shell, THOROUGH
from labkit.assets import REPOSITORY
from labkit.node import CONFIGURATION as CONFIG_FILE
from light_fleet import REMOTES, egress_ip, gateway
from light_fleet import configuration as fleet_configuration
from light_fleet import egress_class as fleet_class
from light_node import ADDRESS, ROUTER, LightNode, NetPod, configuration, egress_class
from pace import SLOW
from traffic import ask

CONFIGURATIONS, PACKETS = (600, 60) if THOROUGH else (round(60 / SLOW), 40)
NODES = [ADDRESS, "192.0.2.11", "192.0.2.12", "192.0.2.22", "192.0.2.23"]       # but for ours, they are not there
NEXT_HOPS = [ROUTER, "192.0.2.2", "2001:db8:2::1"]
PREFIXES = ["0.0.0.0/0", "198.51.100.0/24", "198.51.100.128/25", "198.51.100.200/32", "100.64.0.0/10", "100.64.0.0/24", "203.0.113.0/24",
            "::/0", "2001:db8:100::/48", "2001:db8:100:1::/64", "2001:db8:100:1::80/128", "fc00::/7"]
ADDRESSES = ["198.51.100.1", "198.51.100.127", "198.51.100.128", "198.51.100.200", "198.51.100.201", "100.63.255.255", "100.64.0.0",
             "100.64.0.255", "100.127.255.255", "203.0.113.250", "203.0.113.168", "10.244.0.77", "192.0.2.12", "169.254.1.1", "224.0.0.5",
             "8.8.8.8", "2001:db8:100::1", "2001:db8:100:1::80", "2001:db8:100:1::81", "fd00::1", "2001:db8:200::1", "fe80::1", "ff02::1",
             "2001:db8:244::77"]
PORTS = ["any", "icmp", "tcp", "udp", "sctp", "gre", "esp", "tcp/443", "tcp/80-90", "udp/53", "udp/5000-5100", "udp/1-65535", "sctp/9", "ah"]
PORT_NUMBERS = [1, 9, 53, 79, 80, 88, 90, 91, 443, 4999, 5000, 5050, 5100, 5101, 65535]
NEW = 0x40000000     # mark of what the gateway has yet to choose an egress IP for
TRANSPORTS = {"icmp": 1, "tcp": 6, "udp": 17, "sctp": 132, "gre": 47, "esp": 50, "ah": 51}
NAMES = ["p0", "p1", "p2"]


# --- random configurations

def own_ips(gateway: str, chance: random.Random) -> list[str]:
    number = int(gateway.rsplit(".", 1)[1])
    return [f"203.0.113.{number * 8 + i}" for i in range(chance.choice([0, 1, 1, 3]))] + \
        [f"2001:db8:ee::{number}:{i}" for i in range(chance.choice([0, 1, 1, 2]))]


def random_gateways(chance: random.Random) -> list[dict]:
    gateways = []
    for address in chance.sample(NODES + NEXT_HOPS, chance.choice([1, 1, 2, 3, 5])):
        if address in NEXT_HOPS:
            gateways.append({"address": address, "via": "nexthop", "interface": "eth0"})
        elif ips := own_ips(address, chance):
            gateways.append({"address": address, "egressIPs": ips})
    return gateways or [{"address": ADDRESS, "egressIPs": ["203.0.113.121"]}]


def random_ports(chance: random.Random) -> list[str]:
    ports = chance.sample(PORTS, chance.choice([1, 2, 4]))
    return ["any"] if "any" in ports else ports


def random_class(name: str, chance: random.Random) -> dict:
    prefixes = chance.sample(PREFIXES, chance.randint(1, 8))
    destinations = [{"cidr": prefix, "ports": random_ports(chance)} if chance.random() < 0.4 else prefix for prefix in prefixes]
    found = {"name": name, "select": [{"namespaces": chance.sample(NAMES, chance.choice([0, 1, 1, 2])) + [f"only-{name}"]}],
             "destinations": destinations, "gateways": random_gateways(chance)}
    if (excepted := [prefix for prefix in PREFIXES if prefix not in prefixes]) and chance.random() < 0.6:
        found["except"] = chance.sample(excepted, chance.randint(1, len(excepted)))
    if chance.random() < 0.3:
        found["ports"] = random_ports(chance)
    for key, value in (("otherwise", "drop"), ("otherFamily", "bypass"), ("spread", "flow")):
        if chance.random() < 0.4:
            found[key] = value
    return found


def random_configuration(chance: random.Random) -> dict:
    """Some are without a class that a pod has."""
    names = chance.sample(NAMES, chance.choice([3, 3, 3, 2, 1]))
    return {"classes": [random_class(name, chance) for name in names], "clusterCIDRs": ["10.244.0.0/16", "2001:db8:244::/48"],
            "nodes": NODES + ["2001:db8:2::21"]}


# --- packets

def frame(pod: NetPod, macs: bytes, source: str, target: str, transport: str, sport: int, dport: int) -> bytes:
    v4 = "." in target
    if transport == "tcp":
        payload = struct.pack("!HHIIBBHHH", sport, dport, 1, 0, 0x50, 0x02, 1024, 0, 0)     # SYN
    elif transport == "icmp":
        payload = struct.pack("!BBHHH", 8 if v4 else 128, 0, 0, sport, 1)
    elif transport == "sctp":
        payload = struct.pack("!HHIIBBHIIHHI", sport, dport, 0, 0, 1, 0, 20, 1, 1024, 1, 1, 1)     # INIT
    else:
        payload = struct.pack("!HHHH", sport, dport, 40, 0)
    payload = payload.ljust(40, b"\0")
    proto = 58 if transport == "icmp" and not v4 else TRANSPORTS[transport]
    if v4:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, proto, 0) + socket.inet_aton(source) + socket.inet_aton(target)
    else:
        header = struct.pack("!IHBB", 6 << 28, len(payload), proto, 64) + \
            socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    return macs + (b"\x08\x00" if v4 else b"\x86\xdd") + header + payload


def target_text(target: str, transport: str, dport: int) -> str:
    if transport not in ("tcp", "udp", "sctp"):
        return f"{target}/{transport}"
    return f"{target}:{dport}/{transport}" if "." in target else f"[{target}]:{dport}/{transport}"


class Datapath:
    """What the kernel does with a packet."""

    def __init__(self, events: dict[int, str]):
        self.classify, self.gateway_in = Program("classify"), Program("gateway_in")
        self.counters, self.flows, self.gateways = Map("counters"), Map("flows"), Map("gateways")
        self.events = events
        self.ec1 = 0
        if os.path.exists(GATEWAY):     # in this configuration the node is a gateway
            with in_gateway():
                self.ec1 = socket.if_nametoindex("ec1")

    def set_gateways(self, chance: random.Random) -> None:
        now = time.monotonic_ns()
        for key in self.gateways.keys():
            silent = chance.random() < 0.25
            self.gateways.set(key, struct.pack("QQII", 0 if silent else now, now, 4 if silent else 0, 0))

    def decide(self, data: bytes, ifindex: int) -> tuple[str, int, str]:
        """What was counted, the mark, the gateway."""
        self.counters.clear()
        self.flows.clear()
        mark = self.classify.run(data, ifindex)
        if mark & NEW:
            with in_gateway():
                mark = self.gateway_in.run(data, self.ec1, mark)
        counted = [self.events[struct.unpack_from("I", key, 4)[0]] for key in self.counters.keys()]
        assert len(counted) == 1, counted
        flow = next(iter(self.flows.all().values()), None)
        address = "" if flow is None else str(ipaddress.IPv6Address(flow[8:24]).ipv4_mapped or ipaddress.IPv6Address(flow[8:24]))
        return counted[0], mark, address


def translations() -> dict[tuple[bool, int], str]:
    """(IPv4, mark) -> egress IP, by nft."""
    found = {}
    for name, v4 in (("snat4", True), ("snat6", False)):
        listed = shell(f"nsenter --net={GATEWAY} nft -j list map inet egressclass {name}") if os.path.exists(GATEWAY) else '{"nftables": []}'
        for entry in json.loads(listed)["nftables"]:
            found |= {(v4, mark): address for mark, address in entry.get("map", {}).get("elem", [])}
    return found


def explained(*words: str) -> dict:
    return json.loads(ctl("explain", "--json", *words).stdout)


def compare(pods: list[NetPod], macs: dict[str, bytes], events: dict[int, str], seed: int) -> dict[str, int]:
    """How often the datapath decided what."""
    seen: dict[str, int] = {}
    for number in range(CONFIGURATIONS):
        chance = random.Random(f"{seed} {number}")
        config = random_configuration(chance)
        with open(CONFIG_FILE, "w") as file:
            json.dump(config, file)
        ctl("apply")
        datapath, egress_ips = Datapath(events), translations()
        for _ in range(PACKETS):
            pod, target, transport = chance.choice(pods), chance.choice(ADDRESSES), chance.choice(list(TRANSPORTS))
            sport, dport = chance.randint(1024, 65535), chance.choice(PORT_NUMBERS)
            v4 = "." in target
            source = pod.address if v4 else f"2001:db8:244::{pod.address.rsplit('.', 1)[1]}"
            datapath.set_gateways(chance)
            counted, mark, gateway = datapath.decide(frame(pod, macs[pod.name], source, target, transport, sport, dport), ifindex_of(pod.host_veth))
            said = explained("--pod", f"{pod.namespace}/{pod.name}", "--ip", source, "--to", target_text(target, transport, dport),
                             "--from-port", str(sport))
            where = f"seed {seed}, configuration {number}: {pod.name} -> {target_text(target, transport, dport)} from {sport}\n" \
                f"{json.dumps(config)}\n{json.dumps(said, indent=1)}\n"
            assert said["result"] == counted, f"{where}the datapath: {counted}"
            seen[counted] = seen.get(counted, 0) + 1
            if counted.startswith("steered"):
                assert (said["gateway"], said["gateways"]) == (gateway, []), f"{where}the datapath: {gateway}"
                assert int(said["mark"], 16) == mark & (NEW - 1 if counted == "steered_local" else 0xf7f), f"{where}the datapath: mark {mark:#x}"
            if counted == "steered_local":
                assert said["egressIP"] == egress_ips[v4, mark], f"{where}nft: {egress_ips}"
    return seen


@pytest.fixture(scope="module")
def pods(shared: LightNode) -> list[NetPod]:
    """Of the classes p0, p1 and p2, with addresses of both families."""
    shared.run("echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip addr add 2001:db8:2::21/64 dev eth0 nodad")
    shared.apply(configuration(*(egress_class(name) for name in NAMES)))
    found = []
    for number, name in enumerate(NAMES):
        pod = shared.make_pod(name, number + 10, namespace=name, ipv6=True)
        shared.in_pod(pod, f"ip addr add 2001:db8:244::{number + 10}/128 dev eth0 nodad")
        shared.run(["ip", "netns", "exec", pod.name, "nft",      # what is counted is ours alone
                    "table inet silent { chain output { type filter hook output priority 0; policy drop; }; }"])
        shared.add(pod)
        found.append(pod)
    return found


def test_what_is_explained_is_what_the_datapath_does(shared, pods):
    macs = {pod.name: bytes.fromhex((shared.link(pod.host_veth)["address"] + shared.link("eth0", pod.name)["address"]).replace(":", ""))
            for pod in pods}
    header = (REPOSITORY / "bpf" / "events.h").read_text()
    events = {int(number): name for number, name in re.findall(r'^  X\((\d+), \w+, "(\w+)"\)', header, re.MULTILINE)}
    seen = inside(shared, compare, pods, macs, events, 4)
    for result in ("steered_local", "steered_tunnel", "steered_nexthop", "bypassed", "otherwise", "family", "class_removed", "gateway_unreachable"):
        assert seen.get(result, 0) >= 10 / SLOW, seen
    assert sum(seen.values()) == CONFIGURATIONS * PACKETS, seen
    print(seen)


# --- what it says to people

SAID = configuration(
    egress_class("p0", destinations=["0.0.0.0/0", {"cidr": "198.51.100.0/24", "ports": ["tcp/443", "udp/5000-5100"]}],
                 **{"except": ["100.64.0.0/10"]}, otherwise="drop"),
    egress_class("p1", destinations=["198.51.100.0/24"], spread="flow", egressIPs=["203.0.113.8"],
                 gateways=[{"address": ADDRESS}, {"address": "192.0.2.11", "egressIPs": ["203.0.113.9"]}]),
    egress_class("p2", destinations=["198.51.100.0/24"], gateways=[{"address": ROUTER, "via": "nexthop"}], egressIPs=[]))
del SAID["classes"][2]["egressIPs"]


@pytest.fixture(scope="module")
def said(shared, pods) -> LightNode:
    shared.apply(configuration())       # forgets which gateways answer
    shared.apply(SAID)
    return shared


@pytest.mark.parametrize("words, lines", [
    ("--pod p0/p0 --to 8.8.8.8:53/udp",
     ["pod p0/p0, 10.244.0.10 -> 8.8.8.8:53/udp", "class p0, chosen by classes[0].select[0]", "destination 0.0.0.0/0 is the longest prefix",
      "gateway 192.0.2.21 is this node", "leaves with egress IP 203.0.113.7", "counted as steered_local"]),
    ("--pod p0/p0 --to 198.51.100.9:5050/udp", ["destination 198.51.100.0/24 is the longest", "port rule udp/5000-5100"]),
    ("--pod p0/p0 --to 198.51.100.9:443", ["198.51.100.9:443/tcp", "port rule tcp/443"]),
    ("--pod p0/p0 --to 198.51.100.9:80", ["none of its port rules does", '"otherwise" is "drop": dropped', "counted as otherwise"]),
    ("--pod p0/p0 --to 100.64.1.1:80", ['not touched: "except" 100.64.0.0/10 is the longest', "counted as bypassed"]),
    ("--pod p0/p0 --to [2001:db8:100::1]:80", ["no destination of the class matches", "counted as otherwise"]),
    ("--pod p0/p0 --to 10.244.0.99:80", ["10.244.0.0/16 is the cluster's", "counted as bypassed"]),
    ("--pod p0/p0 --to 203.0.113.9", ["203.0.113.9/32 is the cluster's, a node's, or an egress IP", "counted as bypassed"]),
    ("--pod p0/p0 --to 224.0.0.251:5353/udp", ["never leave the link", "counted as bypassed"]),
    ("--pod p0/p0 --ip 10.244.0.11 --to 8.8.8.8", ["dropped: 10.244.0.11 is no address of the pod", "counted as spoofed"]),
    ("--ip 10.244.0.11 --to 198.51.100.9:443", ["pod p1/p1, 10.244.0.11", "each flow chooses one of 2 gateways", "--from-port"]),
    ("--netns {netns} --to 198.51.100.9/icmp", ["pod p2/p2", "leaves by next hop 192.0.2.1", "counted as steered_nexthop"])])
def test_what_is_said(said, pods, words, lines):
    """Whose packet by name, network namespace or address; the steps in their order, numbered."""
    text = said.ctl("explain", *words.format(netns=pods[2].netns).split()).stdout
    at = 0
    for line in lines:
        assert line in text[at:], f"no {line!r} (any more) in\n{text}"
        at = text.index(line, at)
    numbers = re.findall(r"^ +(\d+)\. ", text, re.MULTILINE)
    assert numbers == [str(number + 1) for number in range(len(numbers))] and numbers, text


def test_what_each_flow_chooses_is_said_for_one_flow(said):
    """With its source port; both gateways are somebody's choice."""
    words = ["explain", "--json", "--pod", "p1/p1", "--to", "198.51.100.9:443", "--from-port"]
    seen = {json.loads(said.ctl(*words, str(port)).stdout)["gateway"] for port in range(1024, 1044)}
    assert seen == {ADDRESS, "192.0.2.11"}


@pytest.mark.parametrize("words, code, text", [
    ("--pod p0 --to 8.8.8.8", 2, "must be NAMESPACE/NAME"), ("--pod p0/p0 --to 8.8.8.8:0", 2, "--to"),
    ("--pod p0/p0 --to 8.8.8.8:65536", 2, "--to"), ("--pod p0/p0 --to example.com:80", 2, "--to"), ("--pod p0/p0 --to 8.8.8.8:80/icmp", 2, "--to"),
    ("--pod p0/p0 --to 8.8.8.8:80/tcpp", 2, "--to"), ("--pod p0/p0 --to 2001:db8::1:80:90:70:60:1:2", 2, "--to"),
    ("--ip 10.244.0.300 --to 8.8.8.8", 2, "is no IP address"), ("--pod none/none --to 8.8.8.8", 1, "no such pod has a class on this node"),
    ("--pod p0/new --to 8.8.8.8", 1, "that starts now gets class p0 by classes[0].select[0]"),
    ("--netns /proc/self/ns/net --to 8.8.8.8", 1, "no such pod"), ("--netns /nowhere --to 8.8.8.8", 1, "no such pod"),
    ("--pod p0/p0 --to 198.51.100.9", 1, "the answer depends on protocol and port")])
def test_what_is_not_understood_is_said(said, words, code, text):
    done = said.ctl("explain", *words.split(), check=False)
    assert (done.returncode, done.stdout) == (code, "") and text in done.stderr, (done.returncode, done.stderr)


def test_whose_packet_has_to_be_said(said):
    assert said.ctl("explain", "--to", "8.8.8.8", check=False).returncode not in (0, 1)
    assert said.ctl("explain", "--pod", "p0/p0", check=False).returncode not in (0, 1)


def test_without_a_configuration_it_says_so(applied):
    """Also that the packets of pods that still run are dropped."""
    pod = applied.make_pod("p5", 5, namespace="web")
    assert applied.add(pod).code == 0
    applied.ctl("down", check=False)
    done = applied.ctl("explain", "--pod", "web/p5", "--to", "8.8.8.8", check=False)
    assert done.returncode == 0 and "dropped: no configuration is applied" in done.stdout and "counted as datapath_down" in done.stdout, done


def test_the_egress_ip_of_another_gateway_is_foretold(make_light_fleet):
    """By the node that sends, though the tables of the gateway are not there."""
    fleet = make_light_fleet(["worker1", "gateway1", "gateway2"])
    ips = {name: [egress_ip(number, family) for number in numbers for family in REMOTES]
           for name, numbers in (("gateway1", (7, 8, 9)), ("gateway2", (17, 18)))}
    fleet.apply(fleet_configuration(fleet_class("web", *(gateway(name, egressIPs=ips[name]) for name in ips))))
    seen = set()
    for number in range(12):
        pod = fleet.worker1.pod(f"p{number}", "web")
        for family, (address, *_) in REMOTES.items():
            answer = ask(pod, address)      # the gateways answer from now on
            said = json.loads(fleet.worker1.ctl("explain", "--json", "--pod", f"web/{pod.name}", "--to", f"{address}/icmp").stdout)
            assert said["egressIP"] == answer.source, said
            seen.add(answer.source)
    assert len(seen) > 6
