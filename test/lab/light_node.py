# SPDX-License-Identifier: Apache-2.0
"""A node without a container runtime: namespaces of its own in which the real binaries run, and "pods" that are plain network
namespaces behind a veth. It comes up in a few hundredths of a second, so every test has its own.

    node (eth0 192.0.2.21, gateway of class "web") ── eth0 outside (192.0.2.1, 203.0.113.1, 198.51.100.10)
"""
from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

from labkit import echo_server
from labkit.assets import REPOSITORY
from labkit.host import ENVIRONMENT
from labkit.node import CONFIGURATION as CONFIG_FILE, NODE_SETUP, PLUGINS
from labkit.outside import Outside
from labkit.process import Process, finish

PLUGIN, CTL = REPOSITORY / "build" / "egressclass", REPOSITORY / "build" / "egressctl"
TCX = Path(__file__).resolve().parent / "tcx.py"
PINS = "/sys/fs/bpf/egressclass"
VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
ANNOTATIONS = "io.kubernetes.cri.pod-annotations"

ADDRESS, ROUTER, OUTSIDE = "192.0.2.21", "192.0.2.1", "198.51.100.10"
POD_GATEWAY = "10.244.0.1"


def egress_class(name: str, **keys) -> dict:
    """A class whose gateway is this node, and which pods of the namespace of its name get."""
    return {"name": name, "select": [{"namespaces": [name]}], "destinations": ["0.0.0.0/0"],
            "gateways": [{"address": ADDRESS}], "egressIPs": ["203.0.113.7"], **keys}


def configuration(*classes: dict, **keys) -> dict:
    return {"classes": list(classes), "clusterCIDRs": ["10.244.0.0/16"], "nodes": ["192.0.2.11", ADDRESS], **keys}


WEB = egress_class("web")
FAR = egress_class("far", gateways=[{"address": "192.0.2.11"}], egressIPs=["203.0.113.9"])     # a gateway that is not there
BOTH = configuration(WEB, FAR)


@dataclass
class Answer:
    """What a plugin said."""
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """stdout, which has to be exactly one JSON document."""
        return json.loads(self.out)

    def __str__(self) -> str:
        return f"exit code {self.code}, stdout {self.out!r}, stderr {self.err!r}"


@dataclass
class NetPod:
    """A network namespace of the node with one interface, and what CNI says of it."""
    name: str
    address: str
    host_veth: str
    ifname: str = "eth0"
    namespace: str = "web"
    previous: dict = field(default_factory=dict)

    @property
    def netns(self) -> str:
        return f"/run/netns/{self.name}"

    @property
    def args(self) -> str:
        return f"K8S_POD_NAME={self.name};IgnoreUnknown=1;K8S_POD_NAMESPACE={self.namespace};K8S_POD_UID=uid-{self.name}"


def network(previous: dict | None = None, version: str = "1.0.0", **keys) -> dict:
    """The plugin's stdin."""
    config = {"cniVersion": version, "name": "lab", "type": "egressclass", "capabilities": {ANNOTATIONS: True}, **keys}
    return config if previous is None else config | {"prevResult": previous}


class LightNode(Outside):
    """Also knows how to start the echo server, for the host that plays `outside`."""

    # no IPv6 on the links: its router solicitations and duplicate detection would change counters and states at their own pace
    setup = NODE_SETUP + """
rm -rf /run/egressclass /var/lib/egressclass
echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
"""

    @classmethod
    def up(cls, lifeline: int) -> tuple[LightNode, LightNode, list[Process]]:
        """A node and its outside; they live until the writer of `lifeline` is closed."""
        holders = [cls.start(lifeline, lifeline) for _ in range(2)]
        node, outside = cls("node", holders[0][1], ADDRESS), cls("outside", holders[1][1], OUTSIDE)
        script = [f"ip link add eth0 type veth peer name eth0 netns {outside.pid}", "ethtool -K eth0 tx off >/dev/null",
                  f"ip addr add {ADDRESS}/24 dev eth0", "ip link set eth0 up", f"ip route add default via {ROUTER}"]
        cls._net(node, script)
        cls._net(outside, ["ethtool -K eth0 tx off >/dev/null", f"ip addr add {ROUTER}/24 dev eth0",
                           "ip addr add 203.0.113.1/24 dev eth0", f"ip addr add {OUTSIDE}/32 dev eth0", "ip link set eth0 up",
                           f"ip route add 10.244.0.0/16 via {ADDRESS} src {OUTSIDE}"])
        return node, outside, [process for process, _ in holders]

    @staticmethod
    def _net(host: Outside, script: list[str]) -> None:
        """Pids in the script are ours, so only the network namespace is entered."""
        finish(Process(["nsenter", "-t", str(host.pid), "-n", "--", "sh", "-ec", "\n".join(script)], stdout=-1, stderr=-1, text=True),
               30, True)

    # --- pods

    def make_pod(self, name: str, number: int, *, ifname: str = "eth0", namespace: str = "web", index: int | None = None,
                 host_veth: str | None = None, ipv6: bool = False) -> NetPod:
        """A pod as `ptp` makes it. `number` is the last part of its address. Without IPv6 it sends nothing of its own accord."""
        pod = NetPod(name, f"10.244.0.{number}", host_veth or f"h{name}", ifname, namespace)
        script = f"""
set -e
ip netns add {name}
ip link add {f'index {index}' if index else ''} name {pod.host_veth} type veth peer name {ifname} netns {name}
ethtool -K {pod.host_veth} tx off >/dev/null
ip addr add {POD_GATEWAY}/32 dev {pod.host_veth}
ip link set {pod.host_veth} up
ip route add {pod.address}/32 dev {pod.host_veth}
ip netns exec {name} sh -ec 'echo {int(not ipv6)} >/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6; ip link set lo up
  ethtool -K {ifname} tx off >/dev/null; ip addr add {pod.address}/32 dev {ifname}
  ip link set {ifname} up; ip route add {POD_GATEWAY} dev {ifname}; ip route add default via {POD_GATEWAY} dev {ifname}'
"""
        self.run(script)
        pod.previous = {"cniVersion": "1.0.0",
                        "interfaces": [{"name": pod.host_veth}, {"name": ifname, "sandbox": pod.netns}],
                        "ips": [{"address": f"{pod.address}/24", "gateway": POD_GATEWAY, "interface": 1}], "dns": {}}
        return pod

    def remove_pod(self, pod: NetPod) -> None:
        """The namespace and its interface, at once: a namespace's own end comes some time after its name is gone."""
        self.run(f"ip link del {pod.host_veth} 2>/dev/null; ip netns del {pod.name}", check=False)

    def link(self, name: str, netns: str | None = None) -> dict:
        where = ["ip", "-n", netns] if netns else ["ip"]
        return json.loads(self.run([*where, "-d", "-j", "link", "show", "dev", name]).stdout)[0]

    def in_pod(self, pod: NetPod, command: str, timeout: float = 10) -> str:
        return self.run(["ip", "netns", "exec", pod.name, "sh", "-c", command], check=False, timeout=timeout).stdout

    def seen_as(self, pod: NetPod, wait: int = 2, bind: bool = False) -> str:
        """The source address with which a connection of the pod arrives outside; "" when none arrives. `bind`: the pod's socket is
        bound to its address."""
        command = f"busybox nc {OUTSIDE} {echo_server.PORTS[0]} </dev/null"
        if bind:
            command = (f"/usr/bin/python3 -SEc \"import socket; print(socket.create_connection(('{OUTSIDE}', {echo_server.PORTS[0]}), "
                       f"source_address=('{pod.address}', 0)).recv(99).decode())\"")
        answer = self.in_pod(pod, f"busybox timeout {wait} {command}")
        return answer.split()[0] if answer else ""

    def in_gateway(self, command: str | list[str], **keywords):
        """In the network namespace in which the node is a gateway; a script for sh, or words."""
        words = ["sh", "-c", command] if isinstance(command, str) else command
        return self.run(["nsenter", "--net=/run/netns/egressclass", "--", *words], **keywords)

    def held(self) -> set[str]:
        """The egress IPs that this node answers for."""
        done = self.run("ip -n egressclass -j addr show dev lo", check=False)
        addresses = {entry["local"] for link in json.loads(done.stdout or "[]") for entry in link["addr_info"]}
        return addresses - {"127.0.0.1", "::1"}

    DATAGRAM = f"echo x >/dev/udp/{OUTSIDE}/9"      # for bash; nobody answers

    # --- the binaries

    def call(self, verb: str | None, config: dict | str | bytes | None = None, *, plugin: str | Path = PLUGIN, before: str = "",
             timeout: float = 40, **env: str | None) -> Answer:
        """Execute a plugin as a runtime does. Keywords are the environment, CNI_ in front: CONTAINERID="c1"."""
        environment = {"PATH": ENVIRONMENT["PATH"], "CNI_PATH": f"{PLUGINS}:{PLUGIN.parent}"}
        if verb is not None:
            environment["CNI_COMMAND"] = verb
        environment |= {f"CNI_{key}": value for key, value in env.items() if value is not None}
        if isinstance(config, dict):
            config = json.dumps(config)
        stdin = b"" if config is None else config.encode() if isinstance(config, str) else config
        command = [*before.split(), str(plugin)]
        with self.popen(command, env=environment, stdin=-1, stdout=-1, stderr=-1) as process:
            out, err = process.communicate(stdin, timeout)
        return Answer(process.returncode, out.decode(), err.decode())

    def pod_call(self, verb: str, pod: NetPod, config: dict | None = None, **env) -> Answer:
        """A verb for a pod, as the runtime would call it; keywords override its environment."""
        default = {"CONTAINERID": pod.name, "NETNS": pod.netns, "IFNAME": pod.ifname, "ARGS": pod.args}
        return self.call(verb, network(pod.previous) if config is None else config, **(default | env))

    def add(self, pod: NetPod, config: dict | None = None, **env) -> Answer:
        answer = self.pod_call("ADD", pod, config, **env)
        assert answer.code == 0, answer
        return answer

    def check(self, pod: NetPod, config: dict | None = None, **env) -> Answer:
        return self.pod_call("CHECK", pod, config, **env)

    def delete(self, pod: NetPod, config: dict | None = None, **env) -> Answer:
        answer = self.pod_call("DEL", pod, config, **env)
        assert (answer.code, answer.out) == (0, ""), answer
        return answer

    def ctl(self, *words: str, check: bool = True, timeout: float = 60):
        return self.run([str(CTL), *words], check=check, timeout=timeout)

    def configure(self, config: dict | str) -> None:
        self.write(CONFIG_FILE, config if isinstance(config, str) else json.dumps(config) + "\n")

    def apply(self, config: dict | str | None = None, check: bool = True):
        if config is not None:
            self.configure(config)
        return self.ctl("apply", check=check)

    def status(self) -> dict:
        return json.loads(self.ctl("status", "--json", check=False).stdout)

    def pods(self) -> list[dict]:
        return json.loads(self.ctl("pods", "--json").stdout)

    # --- the kernel's state

    def map(self, name: str) -> dict[bytes, bytes]:
        """A pinned map, raw; empty when it is not there."""
        done = self.run(["bpftool", "-j", "map", "dump", "pinned", f"{PINS}/maps/{name}"], check=False)
        if done.returncode:
            return {}
        raw = [(bytes(int(b, 0) for b in e["key"]), bytes(int(b, 0) for b in e["value"])) for e in json.loads(done.stdout)]
        return dict(raw)

    def attachments(self) -> dict[int, tuple[int, str]]:
        """ifindex -> class id, MAC of the pod."""
        return {struct.unpack("I", key)[0]: (struct.unpack_from("I", value, 8)[0], value[12:18].hex(":"))
                for key, value in self.map("attachments").items()}

    def endpoints(self) -> dict[str, tuple[int, int, str, str]]:
        """IPv4 address, or IPv6 as hex -> ifindex, class id, MAC of the pod, MAC of the host's end."""
        found = {}
        for key, value in self.map("endpoints").items():
            text = ".".join(map(str, key[12:])) if key[:12].hex() == "0" * 20 + "ffff" else key.hex()
            ifindex, class_id = struct.unpack_from("II", value, 8)
            found[text] = (ifindex, class_id, value[16:22].hex(":"), value[22:28].hex(":"))
        return found

    def class_ids(self) -> dict[str, int]:
        return {c["name"]: c["id"] for c in json.loads(self.path("/run/egressclass/classes.json").read_text())["classes"]}

    def record(self, pod: NetPod, network_name: str = "lab") -> Path:
        return self.path(f"/run/egressclass/attachments/{network_name},{pod.name},{pod.ifname}")

    def link_pin(self, ifindex: int) -> Path:
        return self.path(f"{PINS}/links/{ifindex}")

    def tcx(self, ifindex: int) -> dict:
        """Programs and links on the ingress hook, in order."""
        return json.loads(self.run(["/usr/bin/python3", "-SEB", str(TCX), "query", str(ifindex)]).stdout)

    def attach_foreign(self, ifindex: int, pin: str) -> None:
        self.run(["/usr/bin/python3", "-SEB", str(TCX), "attach", str(ifindex), pin])

    def classifiers(self) -> list[int]:
        """The ids of the pinned programs that a classed pod's host veth has, in order."""
        return [json.loads(self.run(["bpftool", "-j", "prog", "show", "pinned", f"{PINS}/programs/{name}"]).stdout)["id"]
                for name in ("classify", "classify_again")]

    def traces_of_pods(self) -> list[str]:
        """What is left of attachments: entries, pins, records."""
        links = self.path(f"{PINS}/links")
        records = self.path("/run/egressclass/attachments")
        return ([f"attachments[{key}]" for key in self.attachments()] + [f"endpoints[{key}]" for key in self.endpoints()]
                + [f"links/{pin.name}" for pin in (links.iterdir() if links.exists() else ()) if not pin.name.startswith("egress0")]
                + [f"attachments/{file.name}" for file in (records.iterdir() if records.exists() else ())])

    SNAPSHOT = f"""
echo == nft; nft list ruleset
echo == rules; ip rule; ip -6 rule
echo == links; ip -d -o link | sed -E 's/_timer +[0-9.]+/_timer/g'
echo == addresses; ip -o addr
echo == routes; ip route show table all | sort; ip -6 route show table all | sort
echo == proxies; ip neigh show proxy; ip -6 neigh show proxy
[ ! -e /run/netns/egressclass ] || nsenter --net=/run/netns/egressclass sh -c 'echo == gateway; nft -s list ruleset; ip rule; ip -6 rule
  ip -d -o link; ip -o addr; ip route show table all | sort; ip -6 route show table all | sort; cd /proc/sys/net; grep . netfilter/*timeout*
  grep . ipv4/ip_forward ipv4/conf/*/rp_filter ipv4/conf/*/send_redirects ipv6/conf/all/forwarding'
echo == pins; find /sys/fs/bpf | sort
echo == objects
for pin in {PINS}/maps/* {PINS}/programs/*; do
  case $pin in *'*') continue;; */maps/*) kind=map;; *) kind=prog;; esac
  echo $pin $(bpftool -j $kind show pinned $pin | grep -o '"id":[0-9]*' | head -n 1)
done
for pin in {PINS}/links/*; do
  case $pin in *'*') continue;; esac
  echo $pin $(bpftool -j link show pinned $pin | grep -oE '"(id|prog_id)":[0-9]*' | tr '\\n' ' ')
done
for name in node attachments endpoints classes vnis rules egress_ips; do
  [ -e {PINS}/maps/$name ] && echo $name && bpftool map dump pinned {PINS}/maps/$name -j | tr '{{' '\\n' | sed 's/[],}}]*$//' | sort
done
echo == files
find /run/egressclass /var/lib/egressclass -type f ! -name 'lock*' ! -name '.*.spare' 2>/dev/null | sort | while read -r file; do
  echo "$file $(stat -c '%a %i %y' $file)"; cat $file; done
echo == sysctls; cd /proc/sys/net/ipv4/conf; grep . */forwarding */rp_filter */arp_ignore ../ip_forward
"""

    def snapshot(self) -> str:
        """All of this node's state that the project could touch, but for the lock file; equal texts are equal states."""
        return self.run(self.SNAPSHOT, check=False).stdout


class Chain:
    """Executes a list of plugins as libcni does: prevResult handed on, DEL in reverse with the final result."""

    def __init__(self, node: LightNode, plugins: list[dict], version: str = "1.0.0", name: str = "lab"):
        self.node, self.plugins, self.version, self.name = node, plugins, version, name
        self.result: dict = {}

    def _config(self, plugin: dict, runtime: dict) -> dict:
        config = {"cniVersion": self.version, "name": self.name, **plugin}
        wanted = {key: runtime[key] for key in plugin.get("capabilities", {}) if key in runtime}
        return config | ({"runtimeConfig": wanted} if wanted else {}) | ({"prevResult": self.result} if self.result else {})

    def _call(self, verb: str, plugin: dict, pod: NetPod, runtime: dict) -> Answer:
        binary = PLUGIN if plugin["type"] == "egressclass" else PLUGINS / plugin["type"]
        return self.node.call(verb, self._config(plugin, runtime), plugin=binary, CONTAINERID=pod.name, NETNS=pod.netns,
                              IFNAME=pod.ifname, ARGS=pod.args)

    def add(self, pod: NetPod, **runtime) -> Answer:
        """The last answer; the first failure ends the chain."""
        self.result = {}
        for plugin in self.plugins:
            answer = self._call("ADD", plugin, pod, runtime)
            if answer.code:
                break
            self.result = answer.json
        return answer

    def check(self, pod: NetPod) -> Answer:
        """Ours only: portmap's of Debian fails for lack of IPv6 rules."""
        return self._call("CHECK", OURS, pod, {})

    def delete(self, pod: NetPod) -> list[Answer]:
        return [self._call("DEL", plugin, pod, {}) for plugin in reversed(self.plugins)]


HOST_LOCAL = {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
BRIDGE = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": HOST_LOCAL}
PTP = {"type": "ptp", "ipam": HOST_LOCAL}
OURS = {"type": "egressclass", "capabilities": {ANNOTATIONS: True}}
