# SPDX-License-Identifier: Apache-2.0
"""Where a row of the benchmark lives: four network namespaces, the same for every row, so that what differs is only how packets are sent.

    pod 10.244.0.10 ── node  wan0 198.18.1.1 ──────────────────────────────────────────── node0     outside
                             lan0 192.0.2.11 ── lan0 192.0.2.21 gateway wan0 198.18.2.1 ── gateway0  198.51.100.10

Node and gateway are light nodes, as in the lab: with mounts of their own, in which the real binaries run. Links are veths from point to
point, without a bridge, and take 1600 bytes between node and gateway, so that no tunnel makes a pod's packets shorter than the others'.
All neighbours are permanent: no ARP while something is measured. No namespace filters by reverse path, and there is no IPv6.
"""
from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "test/lab"), str(REPOSITORY / "scripts")]
from labkit.host import SETUP, Host         # noqa: E402
from labkit.process import Process          # noqa: E402
from light_node import LightNode, NetPod    # noqa: E402

TRAFFIC = REPOSITORY / "build/bench/traffic"
POD, POD_NETWORK = "10.244.0.10", "10.244.0.0/16"
NODE, GATEWAY = "192.0.2.11", "192.0.2.21"                              # at lan0
NODE_WAN, GATEWAY_WAN = "198.18.1.1", "198.18.2.1"                      # at wan0
OUTSIDE_OF_NODE, OUTSIDE_OF_GATEWAY = "198.18.1.2", "198.18.2.2"        # their routers
DESTINATION, DESTINATIONS = "198.51.100.10", "198.51.100.0/24"
EGRESS_IP = "203.0.113.7"
MTU = {"lan0": 1600}
ENDS = ("node wan0", "outside node0"), ("node lan0", "gateway lan0"), ("gateway wan0", "outside gateway0")
MACS = {end: f"02:00:00:00:{link:02x}:{side:02x}" for link, ends in enumerate(ENDS, 1) for side, end in enumerate(ends, 1)}

QUIET = """cd /proc/sys/net; echo 0 >ipv4/conf/all/rp_filter; echo 0 >ipv4/conf/default/rp_filter; echo 0 >ipv4/conf/all/send_redirects
echo 0 >ipv4/conf/default/send_redirects; echo 1 >ipv6/conf/all/disable_ipv6; echo 1 >ipv6/conf/default/disable_ipv6; cd /
"""
# What traffic.c floods with, counted and dropped as early as the kernel can.
SINK = """table netdev sink {{
  counter flood {{}}
  chain arrived {{
    type filter hook ingress devices = {{ {devices} }} priority -500
    {words} 7001 @th,64,8 0x58 counter name flood drop
  }}
}}"""


def connect(host: Host, devices: dict[str, tuple[str, str, str]]) -> None:
    """device -> its address, its neighbour's, and which end of a link that is."""
    host.run("set -e\n" + "\n".join(
        f"ip addr add {own}/24 dev {device}; ip link set {device} up; ip neigh add {neighbour} lladdr {MACS[end]} dev {device}"
        for device, (own, neighbour, end) in devices.items()))


class BenchNode(LightNode):
    setup = LightNode.setup + QUIET


class BenchOutside(Host):
    setup = SETUP + QUIET


@dataclass
class Site:
    """The namespaces of one row. They end with the writer of the lifeline that they were started with."""
    node: BenchNode
    gateway: BenchNode
    outside: BenchOutside
    pod: NetPod
    processes: list[Process]

    @classmethod
    def start(cls, lifeline: int) -> Site:
        started = [kind.start(lifeline, lifeline) for kind in (BenchNode, BenchNode, BenchOutside)]
        node, gateway = BenchNode("node", started[0][1], NODE), BenchNode("gateway", started[1][1], GATEWAY)
        outside = BenchOutside("outside", started[2][1])
        hosts = {"node": node, "gateway": gateway, "outside": outside}
        for ends in ENDS:
            left, right = (f"{device} netns {hosts[name].pid} mtu {MTU.get(device, 1500)} address {MACS[f'{name} {device}']}"
                           for name, device in map(str.split, ends))
            subprocess.run(f"ip link add {left} type veth peer name {right}".split(), check=True)
        connect(outside, {"node0": (OUTSIDE_OF_NODE, NODE_WAN, "node wan0"), "gateway0": (OUTSIDE_OF_GATEWAY, GATEWAY_WAN, "gateway wan0")})
        outside.run(f"ip addr add {DESTINATION}/32 dev lo")
        connect(node, {"wan0": (NODE_WAN, OUTSIDE_OF_NODE, "outside node0"), "lan0": (NODE, GATEWAY, "gateway lan0")})
        node.run(f"ip route add default via {OUTSIDE_OF_NODE}")
        connect(gateway, {"wan0": (GATEWAY_WAN, OUTSIDE_OF_GATEWAY, "outside gateway0"), "lan0": (GATEWAY, NODE, "node lan0")})
        gateway.run(f"set -e; ip route add default via {OUTSIDE_OF_GATEWAY}; ip route add {POD_NETWORK} via {NODE}")
        pod = node.make_pod("pod", int(POD.split(".")[-1]))
        site = cls(node, gateway, outside, pod, [process for process, _ in started])
        site._finish_pod()
        outside.run(["nft", "-f", "-"], input=SINK.format(devices="node0, gateway0", words="udp dport"))
        return site

    def _finish_pod(self) -> None:
        """Offloads, which pods of the lab have not, neighbours and the counter."""
        router = self.pod.previous["ips"][0]["gateway"]
        self.node.run(f"""set -e
            ethtool -K {self.pod.host_veth} tx on; ip netns exec pod ethtool -K eth0 tx on
            ip neigh replace {POD} lladdr {self.pod_mac} dev {self.pod.host_veth}
            ip -n pod neigh replace {router} lladdr {self.host_mac} dev eth0""")
        self.node.run(["ip", "netns", "exec", "pod", "nft", "-f", "-"], input=SINK.format(devices="eth0", words="udp sport"))

    # --- addresses

    @property
    def pod_mac(self) -> str:
        return self.node.link("eth0", "pod")["address"]

    @property
    def host_mac(self) -> str:
        return self.node.link(self.pod.host_veth)["address"]

    def ifindex(self, device: str) -> int:
        """Of the node's."""
        return self.node.link(device)["ifindex"]

    def return_by(self, host: BenchNode, destination: str) -> None:
        """Outside's route to where the pod's flows come from."""
        self.outside.run(["ip", "route", "add", destination, "via", NODE_WAN if host is self.node else GATEWAY_WAN])

    # --- traffic

    def _in_pod(self, words: list) -> str:
        """Only the network namespace is entered: what is measured should not wait for mounts."""
        netns = self.node.path(self.pod.netns)
        done = subprocess.run(["nsenter", f"--net={netns}", "--", *map(str, words)], capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}")
        return done.stdout

    def serve(self, cpu: int, other: int) -> None:
        self.outside.spawn(f"{TRAFFIC} serve {DESTINATION} {cpu} {other}", "/dev/null")
        self.outside.run("for i in $(seq 500); do [ $(ss -Hltun | wc -l) = 4 ] && exit; sleep 0.01; done; exit 1")

    def traffic(self, kind: str, *words) -> dict:
        """What `traffic` says that ran in the pod."""
        return json.loads(self._in_pod([TRAFFIC, kind, DESTINATION, *words]))

    def arrived(self, where: str) -> int:
        """Packets of floods that have come to "outside" or to the "pod" so far."""
        words = ["nft", "-j", "list", "counter", "netdev", "sink", "flood"]
        text = self._in_pod(words) if where == "pod" else self.outside.run(words).stdout
        return next(entry["counter"]["packets"] for entry in json.loads(text)["nftables"] if "counter" in entry)

    def segments_alone(self, alone: bool) -> None:
        """Whether each segment of TCP walks the path by itself: without segmentation offload at its source."""
        self._in_pod(["ethtool", "-K", "eth0", "tso", "off" if alone else "on", "gso", "off" if alone else "on"])

    def forget_connections(self) -> None:
        """So that all rounds find tables as empty."""
        for host in self.node, self.gateway:
            host.run(["conntrack", "-F"])
