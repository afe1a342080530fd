# SPDX-License-Identifier: Apache-2.0
"""A fleet of light nodes (light_node.py), dual stack: the real binaries in namespaces, without a container runtime. It is up in about a
second, owns nothing outside of its namespaces, and dies with this process.

    worker1  192.0.2.11 2001:db8:2::11 ─┐
    worker2  192.0.2.12 2001:db8:2::12 ─┤   br0 of router:                       outside 198.51.100.10 to .14
    gateway1 192.0.2.21 2001:db8:2::21 ─┼── 192.0.2.1    2001:db8:2::1  ── eth0          2001:db8:51::10 to ::14
    gateway2 192.0.2.22 2001:db8:2::22 ─┤   203.0.113.1  2001:db8:7::1
    gateway3 192.0.2.23 2001:db8:2::23 ─┤   no NAT: outside sees what the nodes send; egress IPs are on-link at every node's eth0
    appliance   .99             ::99   ─┘   somebody else's router, for "via": "nexthop"

Node number N has pods 10.244.N.0/24 and fd00:244:N::/64, behind veths as `ptp` makes them, and does what nodes do: it masquerades pods
that go out (so that a leak shows as the node's address) and drops what conntrack calls invalid (as kube-proxy does).

    with LightFleet() as fleet:
        fleet.apply(configuration(egress_class("web", "gateway1", egressIPs=["203.0.113.7"])))
        pod = fleet.worker1.pod("p", "web")
        with fleet.watch(["203.0.113.7"]) as watch:
            assert ask(pod, fleet.outside.address, 7001).source == "203.0.113.7"
        watch.assert_no_leak()

What a test sends, and how: traffic.py. Every host and pod is a place that sockets can be opened in: place.socket(AF_INET, SOCK_RAW, 1).
"""
from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

from labkit.capture import SNAP, CaptureIncomplete, Record, decode
from labkit.host import SETUP, Host
from labkit.node import NODE_SETUP
from labkit.outside import Outside
from labkit.process import Process, finish
from light_node import Answer, LightNode, NetPod
from pace import patience

libc = ctypes.CDLL(None, use_errno=True)

WORKERS, GATEWAYS = ("worker1", "worker2"), ("gateway1", "gateway2", "gateway3")
ALL = WORKERS + GATEWAYS
NUMBERS = {name: number for number, name in enumerate(ALL, 1)}      # of pod subnets: 10.244.N.0/24
LAST = {"worker1": 11, "worker2": 12, "gateway1": 21, "gateway2": 22, "gateway3": 23, "appliance": 99}

UNDERLAY = {4: "192.0.2.{}", 6: "2001:db8:2::{}"}
EGRESS = {4: "203.0.113.{}", 6: "2001:db8:7::{}"}
OUTSIDE = {4: "198.51.100.{}", 6: "2001:db8:51::{}"}
PODS = {4: "10.244.{}.{}", 6: "fd00:244:{}::{}"}
LENGTH = {4: 24, 6: 64}
REMOTES = {family: tuple(text.format(last) for last in range(10, 15)) for family, text in OUTSIDE.items()}      # of `outside`
POD_NETWORKS = {4: "10.244.0.0/16", 6: "fd00:244::/32"}
MARK_MASK = 0x1f7f


def family_of(address: str) -> int:
    return ip_address(address).version


def underlay(name: str, family: int = 4) -> str:
    """The address of a node or of the appliance."""
    return UNDERLAY[family].format(LAST[name])


def egress_ip(number: int, family: int = 4) -> str:
    return EGRESS[family].format(number)


# --- configuration

def gateway(name: str, family: int = 4, **keys) -> dict:
    """An entry of "gateways"; the family is that of the tunnel. Keys as in the file: egressIPs=[...], via="nexthop"."""
    return {"address": underlay(name, family), **keys}


def egress_class(name: str, *gateways: str | dict, **keys) -> dict:
    """A class for the pods of the namespace of its name, for all destinations of both families unless the keys say otherwise. A gateway
    is the name of a node (tunnel over IPv4) or an entry as gateway() makes it."""
    return {"name": name, "select": [{"namespaces": [name]}], "destinations": ["0.0.0.0/0", "::/0"],
            "gateways": [gateway(entry) if isinstance(entry, str) else entry for entry in gateways or ("gateway1",)], **keys}


def configuration(*classes: dict, families: Collection[int] = (4, 6), **keys) -> dict:
    """All nodes' addresses (of these families) are `nodes`."""
    return {"classes": list(classes), "clusterCIDRs": [POD_NETWORKS[family] for family in families],
            "nodes": [underlay(name, family) for family in families for name in ALL], **keys}


# --- places

@contextmanager
def entered(netns: str) -> Iterator[None]:
    """This thread is in another network namespace. What is opened there (a socket) stays there."""
    with open("/proc/thread-self/ns/net", "rb") as own, open(netns, "rb") as other:
        if libc.setns(other.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"setns {netns}")
        try:
            yield
        finally:
            if libc.setns(own.fileno(), 0):
                os._exit(70)        # nothing this process does from here on would be where it should be


class Place:
    """Where sockets can be opened, at the price of two system calls. `netns_here`: path of the namespace as this process sees it."""
    netns_here: str

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        with entered(self.netns_here):
            return socket.socket(family, kind | socket.SOCK_CLOEXEC, proto)


class FleetHost(Host, Place):
    """`router` and `appliance`: hosts that only forward."""
    setup = SETUP + """
cd /proc/sys/net; echo 1 >ipv4/ip_forward; echo 1 >ipv6/conf/all/forwarding; echo 0 >ipv4/conf/all/rp_filter
echo 0 >ipv4/conf/all/send_redirects; echo 0 >ipv4/conf/default/send_redirects; echo 0 >ipv4/icmp_ratelimit
echo 0 >ipv6/icmp/ratelimit; cd /
"""

    @property
    def netns_here(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    def nft(self, ruleset: str) -> None:
        self.run(["nft", "-f", "-"], input=ruleset)

    def neighbours(self, family: int, device: str = "eth0") -> dict[str, tuple[str, str]]:
        """address -> MAC address ("" if none), state; of those in the cache."""
        entries = json.loads(self.run(["ip", f"-{family}", "-j", "neigh", "show", "dev", device]).stdout or "[]")
        return {entry["dst"]: (entry.get("lladdr", ""), "/".join(entry.get("state", []))) for entry in entries}

    def mac(self, device: str = "eth0") -> str:
        return json.loads(self.run(["ip", "-j", "link", "show", device]).stdout)[0]["address"]


class FleetOutside(Outside, Place):
    setup = Outside.setup + """
cd /proc/sys/net; echo 0 >ipv4/icmp_ratelimit; echo 0 >ipv6/icmp/ratelimit; echo 0 >ipv4/conf/all/rp_filter
for i in all default; do echo 0 >ipv6/conf/$i/accept_redirects; done; cd /
"""     # redirects: the router sends them when an egress IP goes round between it and a gateway that just lost it
    netns_here = FleetHost.netns_here


@dataclass
class FleetPod(NetPod, Place):
    """A pod of a node: a place to send from. `address` is its first one."""
    node: FleetNode | None = field(default=None, repr=False)
    v4: str = ""
    v6: str = ""

    @property
    def netns_here(self) -> str:
        return str(self.node.path(self.netns))

    def ip(self, family: int) -> str:
        return self.v6 if family == 6 else self.v4

    def run(self, command: str, timeout: float = 20, check: bool = True):
        """A script for sh with the pod's interfaces."""
        return self.node.run(["ip", "netns", "exec", self.name, "sh", "-c", command], timeout=timeout, check=check)

    def add(self, config: dict | None = None) -> Answer:
        return self.node.add(self, config)

    def remove(self) -> None:
        """DEL, then the end of the namespace and its interface."""
        self.node.delete(self)
        self.node.remove_pod(self)


class FleetNode(LightNode, FleetHost):
    """A light node with neighbours. `number` is that of its pods' subnet."""
    # no /proc/sys/net/.../accept_dad here: duplicate detection is on, as on any machine, for what the product puts on an interface
    setup = NODE_SETUP + "rm -rf /run/egressclass /var/lib/egressclass\n"

    def __init__(self, name: str, pid: int):
        super().__init__(name, pid, underlay(name, 4))
        self.number, self.address6 = NUMBERS[name], underlay(name, 6)
        self.ipv6 = True
        self.offload = False
        self._last = 4      # of the addresses given to pods

    def underlay(self, family: int) -> str:
        return underlay(self.name, family)

    def sysctl(self, **settings: int | str) -> None:
        """ipv4__conf__all__rp_filter=1: below /proc/sys/net, two underscores for a slash."""
        self.run("".join(f"echo {value} >/proc/sys/net/{name.replace('__', '/')};" for name, value in settings.items()))

    def batch(self, lines: Collection[str], netns: str = "", force: bool = False) -> None:
        """Commands of ip(8), on the node or in one of its pods."""
        words = ["ip", *(["-n", netns] if netns else []), *(["-force"] if force else []), "-batch", "-"]
        self.run(words, input="".join(f"{line}\n" for line in lines), check=not force)

    def pod(self, name: str, namespace: str = "web", families: Collection[int] = (4, 6), *, mtu: int = 0, add: bool = True,
            last: int = 0, host_veth: str = "", config: dict | None = None) -> FleetPod:
        """A pod as `ptp` makes it, with addresses of these families, and classed by the plugin's ADD unless add=False. `last`: the
        number of its addresses on the node; left out: one that no pod had."""
        if not last:
            last = self._last = self._last + 1
        addresses = {family: PODS[family].format(self.number, last) for family in sorted(families)}
        pod = FleetPod(name, next(iter(addresses.values())), host_veth or f"h{name}", "eth0", namespace, node=self,
                       v4=addresses.get(4, ""), v6=addresses.get(6, ""))
        size = f"mtu {mtu}" if mtu else ""
        outer = [f"link add name {pod.host_veth} {size} type veth peer name eth0 {size} netns {name}"]
        inner = ["link set lo up"]
        if self.ipv6:
            outer += [f"link set {pod.host_veth} addrgenmode none", "link set " + pod.host_veth + " up",
                      f"addr add fe80::1/64 dev {pod.host_veth} nodad"]
            inner += ["link set eth0 addrgenmode none", "link set eth0 up"]
            if 6 in addresses:
                inner.append("addr add fe80::2/64 dev eth0 nodad")
        else:
            outer.append(f"link set {pod.host_veth} up")
            inner.append("link set eth0 up")
        for family, address in addresses.items():
            router, bits = PODS[family].format(self.number, 1), {4: 32, 6: 128}[family]
            nodad = "nodad" if family == 6 else ""
            outer += [f"addr add {router}/{bits} dev {pod.host_veth} {nodad}", f"route add {address}/{bits} dev {pod.host_veth}"]
            inner += [f"addr add {address}/{bits} dev eth0 {nodad}", f"route add {router}/{bits} dev eth0",
                      f"route add default via {router} dev eth0"]
        offload = "" if self.offload else (f"ethtool -K {pod.host_veth} tx off >/dev/null; "
                                           f"ip netns exec {name} ethtool -K eth0 tx off >/dev/null;")
        lines = "\n".join
        self.run(f"set -e; ip netns add {name}\nip -batch - <<END\n{lines(outer)}\nEND\n"
                 f"ip -n {name} -batch - <<END\n{lines(inner)}\nEND\n{offload}")
        pod.previous = {"cniVersion": "1.0.0", "interfaces": [{"name": pod.host_veth}, {"name": "eth0", "sandbox": pod.netns}],
                        "ips": [{"address": f"{address}/{LENGTH[family]}", "gateway": PODS[family].format(self.number, 1),
                                 "interface": 1} for family, address in addresses.items()], "dns": {}}
        if add:
            self.add(pod, config)
        return pod

    # --- what the node says

    def drops(self, of_class: str | None = None) -> dict[str, int]:
        """reason -> packets; of one class, or of all."""
        found: dict[str, int] = {}
        for entry in self.status()["drops"]:
            if of_class is None or entry["class"] == of_class:
                found[entry["reason"]] = found.get(entry["reason"], 0) + entry["packets"]
        return found

    def traffic(self, class_name: str) -> dict[str, int]:
        """event -> packets of a class."""
        for entry in self.status()["classes"]:
            if entry["name"] == class_name:
                return {event: counter["packets"] for event, counter in entry["traffic"].items()}
        raise LookupError(f"{self.name} has no class {class_name}")

    def mark(self, class_name: str) -> int:
        return next(int(entry["mark"], 16) for entry in self.status()["classes"] if entry["name"] == class_name)


def masquerade() -> str:
    """What any CNI does for pods that go out, and kube-proxy for what conntrack does not like, in tables of their own."""
    rules = "".join(f"    {word} saddr {net} {word} daddr != {net} oifname \"eth0\" masquerade\n"
                    for word, net in (("ip", POD_NETWORKS[4]), ("ip6", POD_NETWORKS[6])))
    return f"""table inet cni-masq {{
  chain postrouting {{ type nat hook postrouting priority srcnat;
{rules}  }}
}}
table inet kube-proxy {{
  counter invalid {{}}
  chain forward {{ type filter hook forward priority filter; ct state invalid counter name invalid drop; }}
}}"""


# --- evidence

class Tap:
    """Every packet on an interface, both ways, kept in a socket's buffer until it is asked for: what tcpdump does, without a process.
    records() raises when one was lost."""
    SOL_PACKET, STATISTICS, AUXDATA = 263, 6, 8
    ROOM = 256 << 20        # an upper bound: only what arrives is held

    def __init__(self, place: Place, interface: str = "eth0", mark: tuple[int, int] | None = None):
        """mark: (value, mask) of what is to be seen; only what is sent has one."""
        self.name = f"{getattr(place, 'name', '?')}:{interface}"
        self._socket = place.socket(socket.AF_PACKET, socket.SOCK_RAW)
        program = [(6, 0, 0, SNAP)]                     # BPF: return the first SNAP bytes
        if mark:                                        # load SKF_AD_MARK, and the mask, if it is the value return those, else nothing
            program = [(0x20, 0, 0, 0xfffff014), (0x54, 0, 0, mark[1]), (0x15, 0, 1, mark[0]), *program, (6, 0, 0, 0)]
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
        self._socket.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))   # SO_ATTACH_FILTER
        self._socket.setsockopt(socket.SOL_SOCKET, 33, self.ROOM // 2)      # SO_RCVBUFFORCE
        self._socket.setsockopt(socket.SOL_SOCKET, 35, 1)                   # SO_TIMESTAMPNS
        self._socket.setsockopt(self.SOL_PACKET, self.AUXDATA, 1)
        self._socket.setblocking(False)
        self._socket.bind((interface, 3))                                   # ETH_P_ALL

    def records(self) -> list[Record]:
        """What has come since the last call, IP and ARP."""
        found = []
        for when, frame, length in self._frames():
            if record := decode(when, frame, length):
                found.append(record)
        _, lost = struct.unpack("II", self._socket.getsockopt(self.SOL_PACKET, self.STATISTICS, 8))
        if lost:
            raise CaptureIncomplete(f"{self.name}: {lost} packets were lost")
        return found

    def _frames(self) -> Iterator[tuple[float, bytes, int]]:
        while True:
            try:
                frame, notes, _, _ = self._socket.recvmsg(SNAP, 256)
            except BlockingIOError:
                return
            when, length = time.time(), len(frame)
            for level, kind, data in notes:
                if (level, kind) == (self.SOL_PACKET, self.AUXDATA):
                    length = struct.unpack_from("II", data)[1]
                elif (level, kind) == (socket.SOL_SOCKET, 35):
                    seconds, nanoseconds = struct.unpack("qq", data)
                    when = seconds + nanoseconds * 1e-9
            yield when, frame, length

    def discard(self) -> int:
        """Forget what has come so far, also that something was lost of it; how much it was."""
        count = 0
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(1)
                count += 1
        self._socket.getsockopt(self.SOL_PACKET, self.STATISTICS, 8)
        return count

    def close(self) -> None:
        self._socket.close()


class Watch:
    """Taps on the uplinks of all nodes and on `outside`; a context manager, whose end is when the evidence is read. A packet to one of
    outside's addresses that is plain (in no tunnel) must have one of these sources:

      owners    (port of outside) -> sources of packets to it
      allowed   sources of all the rest: other ports, ICMP, later fragments
    The lab's routers are allowed to report errors. Packets between nodes, tunnel packets among them, go to no stranger.
    """

    def __init__(self, fleet: LightFleet, allowed: Collection[str], owners: Mapping[int, Collection[str]] | None = None):
        self.allowed, self.owners = set(allowed), {port: set(sources) for port, sources in (owners or {}).items()}
        self.records: dict[str, list[Record]] = {}
        self._taps = fleet.taps()

    def __enter__(self) -> Watch:
        """When the wires are quiet: connections of the test before may still be saying goodbye."""
        deadline = time.monotonic() + patience(0.5)
        while True:
            time.sleep(patience(0.01))
            if not sum(tap.discard() for tap in self._taps.values()) or time.monotonic() > deadline:
                return self

    def __exit__(self, kind, *exception) -> None:
        if kind is None:
            time.sleep(patience(0.01))      # the last acknowledgements
            self.read()

    def read(self) -> Watch:
        """What has come since the last reading is in `records` then, by host."""
        for name, tap in self._taps.items():
            self.records.setdefault(name, []).extend(tap.records())
        return self

    def wait(self, place: str = "outside", timeout: float = 2, **wanted) -> list[Record]:
        """Until arrivals() has something."""
        return until(lambda: self.read().arrivals(place, **wanted), timeout, 0.005, f"no {wanted} came to {place} within {timeout} s")

    def is_foreign(self, record: Record) -> bool:
        if record.proto == "arp" or not is_outside(record.dst) or record.src in ROUTERS | {"fe80::1"}:
            return False
        return record.src not in self.owners.get(record.dport, self.allowed)

    def foreign(self) -> list[str]:
        return [f"{place}: {record}" for place, records in self.records.items() for record in records if self.is_foreign(record)]

    def assert_no_leak(self, busy: Collection[str] = ("outside",)) -> dict[str, list[Record]]:
        """AssertionError that shows the first leaks, or that a `busy` host's interface carried nothing, which would prove nothing.
        Returns the records."""
        leaks = self.foreign()
        assert not leaks, f"{len(leaks)} packets left with a foreign source:\n" + "\n".join(leaks[:20])
        silent = [place for place in busy if not self.arrivals(place)]
        assert not silent, f"nothing for the outside was seen on {silent}"
        return self.records

    def arrivals(self, place: str = "outside", **wanted) -> list[Record]:
        """Packets to outside's addresses that a host's uplink carried; wanted: attributes of Record, as in proto="udp", dport=7001."""
        return [record for record in self.records[place] if record.proto != "arp" and is_outside(record.dst)
                and not (record.proto == "icmp6" and record.info in NEIGHBOUR_DISCOVERY)
                and all(getattr(record, key) == value for key, value in wanted.items())]


NEIGHBOUR_DISCOVERY = ("type 135", "type 136")      # of the routers: a neighbour that is known is asked at its own address
OUTSIDE_NETWORKS = (ip_network("198.51.100.0/24"), ip_network("2001:db8:51::/64"))
ROUTERS = {text.format(1) for text in (*UNDERLAY.values(), *EGRESS.values(), *OUTSIDE.values())}


def is_outside(address: str) -> bool:
    ip = ip_address(address)
    return any(ip in network for network in OUTSIDE_NETWORKS) and address not in ROUTERS


# --- the fleet

class LightFleet:
    """A context manager. fleet.worker1, fleet.gateway2, ...: the nodes it was made with; fleet.router, fleet.outside, fleet.appliance."""

    def __init__(self, nodes: Collection[str] = ALL, *, appliance: bool = False, offload: bool = False, rp_filter: int | None = None,
                 mtu: Mapping[str, int] | int = 1500, no_ipv6: Collection[str] = (), kube_proxy: bool = True, echo: bool = True):
        """`offload`: leave checksum and segmentation offload on. `rp_filter`: on all interfaces of nodes (left out: 2, loose, for new
        ones). `mtu`: of the links of hosts, or of all. `no_ipv6`: nodes with IPv6 disabled. `kube_proxy`: drop invalid packets."""
        self.names = tuple(nodes) + (("appliance",) if appliance else ())
        self._offload, self._rp_filter, self._no_ipv6, self._kube_proxy, self._echo = offload, rp_filter, no_ipv6, kube_proxy, echo
        self._mtu = {name: mtu for name in (*self.names, "outside")} if isinstance(mtu, int) else dict(mtu)
        self.hosts: dict[str, Host] = {}
        self._holders: list[Process] = []
        self._lifeline = -1     # write end of a pipe: closed with this process, which ends all hosts
        self._taps: dict[str, Tap] = {}

    @property
    def nodes(self) -> list[FleetNode]:
        return [host for host in self.hosts.values() if isinstance(host, FleetNode)]

    def __getattr__(self, name: str):
        try:
            return self.__dict__["hosts"][name]
        except KeyError:
            raise AttributeError(f"no host {name} in this fleet") from None

    # --- life cycle

    def __enter__(self) -> LightFleet:
        reader, self._lifeline = os.pipe()
        try:
            self._start_hosts(reader)
            self._connect()
            if self._echo:
                self.outside.wait_echo()
        except BaseException:
            self.__exit__()
            raise
        finally:
            os.close(reader)
        return self

    def __exit__(self, *exception) -> None:
        self._each(Tap.close, self._taps.values())      # each waits for all CPUs
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        deadline = time.monotonic() + patience(10)
        for holder in self._holders:
            while holder.poll() is None:
                assert time.monotonic() < deadline, "a host does not end"
                if os.getpid() == 1:        # under `make test-lab`: nobody else reaps orphans, and a pid namespace waits for that
                    with suppress(ChildProcessError):
                        os.waitpid(-1, os.WNOHANG)
                time.sleep(0.002)
        self._holders, self._taps = [], {}

    def _start_hosts(self, lifeline: int) -> None:
        kinds = {"outside": FleetOutside, "router": FleetHost} | {name: FleetNode if name in NUMBERS else FleetHost for name in self.names}
        started = self._each(lambda kind: kind.start(lifeline, lifeline), kinds.values())
        for (name, kind), (holder, pid) in zip(kinds.items(), started):
            self._holders.append(holder)
            self.hosts[name] = FleetOutside(name, pid, OUTSIDE[4].format(10)) if name == "outside" else kind(name, pid)
        for node in self.nodes:
            node.offload, node.ipv6 = self._offload, node.name not in self._no_ipv6
        if self._echo:
            self.outside.start_echo()

    def _connect(self) -> None:
        """Links, addresses and routes. Checksum offload is off on all links: a veth would carry a wrong checksum to its end unseen."""
        ends = ["outside", *self.names]
        # an address of its own: else it is that of a port, and another one when that is cut
        router = ["link add br0 address 02:00:00:00:00:01 type bridge mcast_snooping 0", "link set br0 addrgenmode none"]
        for name in ends:
            size = f"mtu {self._mtu.get(name, 1500)}"
            router += [f"link add {name} {size} type veth peer name eth0 {size} netns {self.hosts[name].pid}",
                       f"link set {name} addrgenmode none", *([f"link set {name} master br0"] if name != "outside" else []),
                       f"link set {name} up"]
        router += ["link set br0 up", "addr add fe80::1/64 dev br0 nodad", "addr add fe80::1/64 dev outside nodad"]
        for texts, device in ((UNDERLAY, "br0"), (EGRESS, "br0"), (OUTSIDE, "outside")):
            router += [f"addr add {text.format(1)}/{LENGTH[family]} dev {device} {'nodad' if family == 6 else ''}"
                       for family, text in texts.items()]
        router += self._pod_routes()
        script = "[ ! -e /proc/sys/net/bridge ] || echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables;"
        self._net(self.router, router, "" if self._offload else f"for i in {' '.join(ends)}; do ethtool -K $i tx off >/dev/null; done")
        self._net(self.outside, self._uplink(OUTSIDE, range(10, 15)), self._no_offload())
        self._each(self._connect_host, self.names)
        self.router.run(script)

    def _connect_host(self, name: str) -> None:
        host = self.hosts[name]
        if isinstance(host, FleetNode):
            before = "".join(f"echo 1 >/proc/sys/net/ipv6/conf/{which}/disable_ipv6\n" for which in ("all", "default")
                             ) if not host.ipv6 else ""
            if self._rp_filter is not None:
                before += "".join(f"echo {self._rp_filter} >/proc/sys/net/ipv4/conf/{which}/rp_filter\n"
                                  for which in ("all", "default", "eth0"))
            self._net(host, self._uplink(UNDERLAY, [LAST[name]], host.ipv6), self._no_offload(), before)
            rules = masquerade()
            self.hosts[name].nft(rules if self._kube_proxy else rules.partition("table inet kube-proxy")[0])
        else:
            self._net(host, self._uplink(UNDERLAY, [LAST[name]]), self._no_offload())

    def _no_offload(self) -> str:
        return "" if self._offload else "ethtool -K eth0 tx off >/dev/null"

    def _uplink(self, texts: dict[int, str], lasts: Collection[int], ipv6: bool = True) -> list[str]:
        lines = ["link set eth0 addrgenmode none", "link set eth0 up"] if ipv6 else ["link set eth0 up"]
        if ipv6:
            lines.append(f"addr add fe80::{min(lasts)}/64 dev eth0 nodad")
        for family, text in texts.items():
            if family == 4 or ipv6:
                nodad = "nodad" if family == 6 else ""
                lines += [f"addr add {text.format(last)}/{LENGTH[family]} dev eth0 {nodad}" for last in lasts]
                lines.append(f"route add default via {text.format(1)}" + (" src " + text.format(min(lasts))))
        if texts is UNDERLAY:
            lines += self._pod_routes(without=min(lasts), ipv6=ipv6)
        return lines

    def _pod_routes(self, without: int = 0, ipv6: bool = True) -> list[str]:
        """To the pods of all nodes, but for those of the node with this last number."""
        return [f"route add {PODS[family].format(NUMBERS[name], 0)}/{LENGTH[family]} via {underlay(name, family)}"
                for name in self.names if name in NUMBERS and LAST[name] != without
                for family in (4, 6) if family == 4 or (ipv6 and name not in self._no_ipv6)]

    @staticmethod
    def _net(host: Host, batch: list[str], after: str = "", before: str = "") -> None:
        """Pids in the batch are ours, so only the network namespace is entered."""
        lines = "\n".join(batch)
        script = f"{before}\nip -batch - <<END\n{lines}\nEND\n{after}"
        finish(Process(["nsenter", "-t", str(host.pid), "-n", "--", "sh", "-ec", script], stdout=-1, stderr=-1, text=True), 30, True)

    @staticmethod
    def _each(function: Callable, arguments: Collection) -> list:
        """Call a function for many at once; the first error is raised after all have ended."""
        if not arguments:
            return []
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(function, arguments))

    # --- use

    def apply(self, config: dict | None = None, on: Collection[str] | None = None) -> None:
        """Write the configuration on all nodes (or on some) and apply it there; CommandFailed says what it said."""
        self._each(lambda node: node.apply(config), [node for node in self.nodes if on is None or node.name in on])

    def status(self) -> dict[str, dict]:
        return dict(zip((node.name for node in self.nodes), self._each(LightNode.status, self.nodes)))

    def assert_healthy(self) -> None:
        bad = {name: status["problems"] for name, status in self.status().items() if not status["healthy"]}
        assert not bad, bad

    def set_mtu(self, name: str, mtu: int) -> None:
        """Of a host's link, both ends."""
        self.hosts[name].run(f"ip link set eth0 mtu {mtu}")
        self.router.run(f"ip link set {name} mtu {mtu}")

    def cut(self, name: str) -> None:
        """Nothing gets through to a host or from it, and no interface goes down: as when a switch fails in between. Until mend()."""
        self.router.run(["bridge", "link", "set", "dev", name, "state", "0"])

    def mend(self, name: str) -> None:
        self.router.run(["bridge", "link", "set", "dev", name, "state", "3"])

    def pods_via_appliance(self) -> None:
        """The router sends what is for pods to the appliance, as it must when that does no NAT and is the way to them."""
        self.router.run("".join(f"ip -{family} route replace {PODS[family].format(NUMBERS[node.name], 0)}/{LENGTH[family]} "
                                f"via {underlay('appliance', family)};" for node in self.nodes for family in (4, 6)))

    def appliance_nat(self) -> None:
        """The appliance translates what it forwards for pods to its own addresses."""
        rules = "".join(f"    {word} saddr {POD_NETWORKS[family]} snat {word} to {underlay('appliance', family)}\n"
                        for word, family in (("ip", 4), ("ip6", 6)))
        self.appliance.nft(f"table inet nat {{\n  chain post {{ type nat hook postrouting priority srcnat;\n{rules}  }}\n}}")

    def taps(self) -> dict[str, Tap]:
        """One on each node's uplink, the appliance's and outside's; opened at the first call, and kept: closing one takes the kernel a
        while."""
        if not self._taps:
            self._taps = {name: Tap(host) for name, host in self.hosts.items() if name != "router"}
        return self._taps

    def watch(self, allowed: Collection[str], owners: Mapping[int, Collection[str]] | None = None) -> Watch:
        return Watch(self, allowed, owners)


def until(condition: Callable[[], object], timeout: float = 5, every: float = 0.02, what: str | Callable[[], str] = ""):
    """The first true value of a condition; AssertionError when none came in time. `what` says what then is wrong."""
    deadline = time.monotonic() + patience(timeout)
    while not (value := condition()):
        assert time.monotonic() < deadline, (what() if callable(what) else what) or f"not within {patience(timeout)} s"
        time.sleep(every)
    return value
