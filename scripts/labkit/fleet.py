# SPDX-License-Identifier: Apache-2.0
"""The fleet: its topology, and its way up and down.

    worker1 192.0.2.11 ─┐
    worker2 192.0.2.12 ─┼─ br0 (router: 192.0.2.1, 203.0.113.1) ── router ── 198.51.100.1 ── outside 198.51.100.10
    gateway1 192.0.2.21 ┘   no NAT: outside sees what the nodes send; egress IPs (203.0.113.0/24) are on-link
"""
from __future__ import annotations

import itertools
import json
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from . import assets, node as nodes_module
from .capture import Capture
from .host import Host
from .node import Node
from .outside import Outside
from .pod import Pod
from .process import Process, finish
from .state import CGROUP, LabError, State

POD_CIDR = "10.244.0.0/16"
UNDERLAY_ROUTER, EGRESS_ROUTER = "192.0.2.1", "203.0.113.1"
OUTSIDE_ROUTER, OUTSIDE = "198.51.100.1", "198.51.100.10"


@dataclass(frozen=True)
class NodeSpec:
    name: str
    address: str
    pods: str       # the node's pod subnet


NODES = (NodeSpec("worker1", "192.0.2.11", "10.244.1.0/24"),
         NodeSpec("worker2", "192.0.2.12", "10.244.2.0/24"),
         NodeSpec("gateway1", "192.0.2.21", "10.244.3.0/24"))

CONFIGURATION = {
    "classes": [
        {"name": "billing", "select": [{"namespaces": ["billing"]}], "destinations": ["0.0.0.0/0"],
         "gateways": [{"address": "192.0.2.21"}], "egressIPs": ["203.0.113.7"]},
        {"name": "shop", "select": [{"namespaces": ["shop"], "pods": ["checkout-*"]}], "destinations": ["0.0.0.0/0"],
         "gateways": [{"address": "192.0.2.21"}], "egressIPs": ["203.0.113.8"]}],
    "clusterCIDRs": [POD_CIDR, "10.96.0.0/12"],
    "nodes": [spec.address for spec in NODES]}

# What any CNI does for pods that go out, in a table of its own
MASQUERADE = f"""table ip cni-masq {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {POD_CIDR} ip daddr != {POD_CIDR} oifname "eth0" masquerade
  }}
}}"""


class Fleet:
    """A lab from the inside. As a context manager it is up within the block; it dies with this process in any case, unless it was
    brought up with detached=True. Two fleets of different names know nothing of each other."""

    ROUTERS = (UNDERLAY_ROUTER, EGRESS_ROUTER, OUTSIDE_ROUTER)      # the addresses of `router`

    def __init__(self, name: str | None = None, *, nodes: tuple[NodeSpec, ...] = NODES, plugin: Path | str | None = None,
                 tools: Path | str | None = None, configuration: dict | str | None = CONFIGURATION):
        """`plugin`: the executable to install as CNI plugin; `tools`: the folder with egressctl (and egressd), installed on every node
        when they are there; `configuration` is written and applied at the end of up() (None: neither)."""
        self.name = name or f"own-{os.getpid()}-{secrets.token_hex(3)}"
        self.specs = tuple(nodes)
        self.plugin = Path(plugin or assets.REPOSITORY / "build" / "egressclass")
        self.tools = Path(tools or assets.REPOSITORY / "build")
        self.configuration = configuration
        self.nodes: list[Node] = []
        self._state: State | None = None
        self._holders: list[Process] = []
        self._lifeline: int | None = None       # write end: closed with this process
        self._captures = itertools.count(1)

    # --- life cycle

    def __enter__(self) -> Fleet:
        return self.up()

    def __exit__(self, *exception) -> None:
        self.down()

    def up(self, detached: bool = False) -> Fleet:
        """Bring the fleet up; all or nothing. LabError when a lab of this name is up."""
        if not self.plugin.exists():
            raise LabError(f"{self.plugin} is missing: run make first")
        archive = assets.archive()
        self._state = State.claim(self.name)
        reader, self._lifeline = os.pipe()
        try:
            self._start_hosts(reader)
            self._connect()
            self.outside.start_echo()
            self._each(self._boot, self.specs, [archive] * len(self.specs))
            self.outside.wait_echo()
            if self.configuration is not None:
                self.configure(self.configuration)
                if self._installed("egressctl"):
                    self.apply()
            self._state.data.update(ready=True, nodes=[asdict(spec) for spec in self.specs])
            self._state.save()
            if detached:
                os.write(self._lifeline, b"." * len(self._holders))     # one for each host
                self._state.release()
        except BaseException:
            self.down()
            raise
        finally:
            os.close(reader)
        return self

    @classmethod
    def attach(cls, name: str) -> Fleet:
        """A fleet that another process has brought up."""
        state = State(name).load()
        if not (state.alive() and state.data["ready"]):
            raise LabError(f"lab '{name}' is not up")
        fleet = cls(name, nodes=tuple(NodeSpec(**spec) for spec in state.data["nodes"]))
        fleet._state = state
        fleet._adopt()
        return fleet

    def down(self) -> None:
        """Remove every trace of the fleet. Safe to call twice, and on a fleet that is half up."""
        for node in self.nodes:
            if "cri" in vars(node):
                node.cri.close()
        if self._lifeline is not None:      # first: it also ends hosts that are not written down yet
            os.close(self._lifeline)
            self._lifeline = None
        if self._state is not None:
            self._state.destroy()
        for holder in self._holders:
            holder.wait(10)
        self.nodes, self._holders, self._state = [], [], None

    def _start_hosts(self, lifeline: int) -> None:
        kinds = {"router": Host, "outside": Outside} | {spec.name: Node for spec in self.specs}
        for name, (holder, pid) in zip(kinds, self._each(lambda kind: kind.start(lifeline, self._state.lock), kinds.values())):
            self._holders.append(holder)
            self._state.add_host(name, pid)
        self._state.save()
        self._adopt()

    def _adopt(self) -> None:
        """Make the objects for hosts that exist."""
        pids = {name: host["pid"] for name, host in self._state.data["hosts"].items()}
        self.router = Host("router", pids["router"])
        self.outside = Outside("outside", pids["outside"], OUTSIDE)
        self.nodes = [Node(spec.name, pids[spec.name], spec.address, f"/{CGROUP}/{self.name}/{spec.name}") for spec in self.specs]

    def _connect(self) -> None:
        """Make the links and routes. Checksum offload is off on all of them: a veth would carry a wrong checksum to its end unseen."""
        script = ["cd /proc/sys/net; echo 1 >ipv4/ip_forward; echo 1 >ipv6/conf/all/forwarding; echo 0 >ipv4/conf/all/rp_filter",
                  f"ip link add br0 type bridge; ip addr add {UNDERLAY_ROUTER}/24 dev br0; ip addr add {EGRESS_ROUTER}/24 dev br0",
                  "ip link set br0 up"]
        for host in [self.outside, *self.nodes]:
            script.append(f"ip link add {host.name} type veth peer name eth0 netns {host.pid}; ip link set {host.name} up")
            script.append(f"ethtool -K {host.name} tx off >/dev/null")
        script += [f"ip link set {node.name} master br0" for node in self.nodes]
        script.append(f"ip addr add {OUTSIDE_ROUTER}/24 dev outside")
        # the peers' pids are ours, not those of the router's pid namespace
        self._net(self.router, script)
        self._net(self.outside, self._uplink(OUTSIDE, OUTSIDE_ROUTER))
        for spec, node in zip(self.specs, self.nodes):
            others = [f"ip route add {other.pods} via {other.address}" for other in self.specs if other != spec]
            self._net(node, self._uplink(spec.address, UNDERLAY_ROUTER) + others)

    @staticmethod
    def _uplink(address: str, router: str) -> list[str]:
        return [f"ip addr add {address}/24 dev eth0", "ethtool -K eth0 tx off >/dev/null", "ip link set eth0 up",
                f"ip route add default via {router}"]

    @staticmethod
    def _net(host: Host, script: list[str]) -> None:
        process = Process(["nsenter", "-t", str(host.pid), "-n", "--", "sh", "-ec", "\n".join(script)], stdout=-1, stderr=-1, text=True)
        finish(process, 30, True)

    def _boot(self, spec: NodeSpec, archive: Path) -> None:
        node = self.node(spec.name)
        node.prepare(spec.pods, self.plugin)
        node.run(["nft", "-f", "-"], input=MASQUERADE)
        for tool in ("egressctl", "egressd"):
            if self._installed(tool):
                node.install(self.tools / tool, f"/usr/local/bin/{tool}")
        node.start_containerd()
        node.import_image(archive)
        node.wait_ready()

    def _installed(self, tool: str) -> bool:
        return (self.tools / tool).is_file()

    @staticmethod
    def _each(function, *arguments) -> list:
        """Call a function for many hosts at once; the first error is raised after all have ended."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(function, *arguments))

    # --- use

    def node(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise LabError(f"no node '{name}': there are {', '.join(node.name for node in self.nodes)}")

    def host(self, name: str) -> Host:
        """Any host: a node, `router` or `outside`."""
        return {"router": self.router, "outside": self.outside}.get(name) or self.node(name)

    def configure(self, configuration: dict | str) -> None:
        """Write the configuration file of all nodes; nothing is applied."""
        text = configuration if isinstance(configuration, str) else json.dumps(configuration, indent=2) + "\n"
        for node in self.nodes:
            node.write(nodes_module.CONFIGURATION, text)

    def apply(self) -> None:
        """Run `egressctl apply` on all nodes; CommandFailed says what it said."""
        self._each(lambda node: node.run(["egressctl", "apply"]), self.nodes)

    def pods(self) -> list[Pod]:
        return [pod for node in self.nodes for pod in node.pods()]

    def capture(self, place: Host | Pod, interface: str = "eth0", expression: str = "", file: Path | None = None) -> Capture:
        """Start a capture on an interface of a host or pod. The file goes with the lab unless the caller names one."""
        default = self._state.folder / f"{os.getpid()}-{next(self._captures)}-{place.name}-{interface}.pcap"
        return Capture(place, interface, expression, file or default)
