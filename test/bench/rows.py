# SPDX-License-Identifier: Apache-2.0
"""The rows of the benchmark, and how each is set up: as well as its authors do it, and with nothing beside it that they would not have.

Every function makes a site (topology.py) send the pod's flows in its way, both directions; `Row.source` is the address that outside then
has to see.
"""
from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

import kube_proxy
from topology import DESTINATIONS, EGRESS_IP, GATEWAY, NODE, NODE_WAN, POD, POD_NETWORK, REPOSITORY, BenchNode, Site

from inside import ifindex_of, inside, pinned       # of test/lab, as topology has arranged
from tcx import LINK_CREATE, OBJ_PIN, TCX_INGRESS, bpf

STEER, STEER_PINS = REPOSITORY / "build/bench/steer.bpf.o", "/sys/fs/bpf/steer"
SERVICES = 500
MARK = 7


def nft(host: BenchNode, rules: str) -> None:
    host.run(["nft", "-f", "-"], input=rules)


def cni_masquerade(site: Site, unless: str = "") -> None:
    """What a CNI leaves on any node for pods that go out."""
    nft(site.node, f"table ip cni {{ chain post {{ type nat hook postrouting priority srcnat; {unless}\n"
                   f"ip saddr {POD_NETWORK} ip daddr != {POD_NETWORK} masquerade\n}}\n}}")


# --- on the node itself

def plain(site: Site) -> None:
    """No rule anywhere: the node routes, and outside has a route to the pods."""
    site.return_by(site.node, POD_NETWORK)


def masquerade(site: Site) -> None:
    cni_masquerade(site)


def with_kube_proxy(site: Site) -> None:
    cni_masquerade(site)
    site.node.run(["iptables-restore", "--noflush"], input=kube_proxy.rules(SERVICES, POD_NETWORK))


def kube_vip(site: Site) -> None:
    """The service's address is on the node; a chain per service with a rule for its pod. It is ahead of the CNI's masquerade, as the
    younger of two chains with the same priority."""
    cni_masquerade(site)
    site.node.run(["ip", "addr", "add", f"{EGRESS_IP}/32", "dev", "wan0"])
    nft(site.node, f"""table ip kube_vip_v4 {{ chain kube_vip_snat {{ type nat hook postrouting priority srcnat;
        ip saddr {{ {POD} }} ip daddr != {POD_NETWORK} ip daddr != 10.96.0.0/12 snat to {EGRESS_IP}
    }}
    }}""")
    site.return_by(site.node, EGRESS_IP)


# --- on another node

def own_egress_ip(site: Site) -> None:
    site.gateway.run(["ip", "addr", "add", f"{EGRESS_IP}/32", "dev", "wan0"])
    site.return_by(site.gateway, EGRESS_IP)


def policy_route(site: Site) -> None:
    """A mark by nft, a rule for the mark, a route by the gateway: no tunnel, so the nodes have to share a link."""
    cni_masquerade(site, f"meta mark {MARK} accept")
    nft(site.node, f"""table ip steer {{
        set pods {{ type ipv4_addr; elements = {{ {POD} }} }}
        set destinations {{ type ipv4_addr; flags interval; elements = {{ {DESTINATIONS} }} }}
        chain pre {{ type filter hook prerouting priority mangle; ip saddr @pods ip daddr @destinations meta mark set {MARK}; }}
    }}""")
    site.node.run(f"set -e; ip rule add fwmark {MARK} table 100; ip route add default via {GATEWAY} dev lan0 table 100")
    nft(site.gateway, f"""table ip egress {{ chain post {{ type nat hook postrouting priority srcnat;
        ip saddr {POD} oifname "wan0" snat to {EGRESS_IP}
    }}
    }}""")
    own_egress_ip(site)


def ipset_vxlan(site: Site) -> None:
    """egressgateway of Spidernet: its static chains and one policy of sources and destinations, on both nodes; a VXLAN device with static
    neighbours. Replies go back by the pod network, here a route without a tunnel, as they do by default."""
    node_mark, base = "0x26000001", "0x26000000"
    cni_masquerade(site, f"meta mark {base} accept")
    sets = f"create src hash:net\nadd src {POD}\ncreate dst hash:net\nadd dst {DESTINATIONS}\n"
    policy = "-m set --match-set src src -m set --match-set dst dst -m conntrack --ctdir ORIGINAL"
    static = f"""*filter
-A FORWARD -m mark --mark {base} -j ACCEPT
-A OUTPUT -m mark --mark {base} -j ACCEPT
COMMIT
*mangle
:EGRESSGATEWAY-MARK-REQUEST - [0:0]
-A PREROUTING -j EGRESSGATEWAY-MARK-REQUEST
-A FORWARD -m mark --mark {base}/0xff000000 -j MARK --set-mark {base}
-A POSTROUTING -m mark --mark {base} -j ACCEPT
{{mark}}COMMIT
*nat
:EGRESSGATEWAY-SNAT-EIP - [0:0]
-A POSTROUTING -m mark --mark {base} -j ACCEPT
-A POSTROUTING -j EGRESSGATEWAY-SNAT-EIP
{{snat}}COMMIT
"""
    ends = (site.node, NODE, "10.200.0.1", "02:00:00:00:0e:01"), (site.gateway, GATEWAY, "10.200.0.2", "02:00:00:00:0e:02")
    for own, other in (ends, ends[::-1]):
        host, address, inner, mac = own
        host.run(f"""set -e
            ip link add egress.vxlan address {mac} type vxlan id 100 dstport 7789 local {address} nolearning
            ip link set egress.vxlan mtu 1500 up; ip addr add {inner}/24 dev egress.vxlan
            ip neigh add {other[2]} lladdr {other[3]} dev egress.vxlan; bridge fdb add {other[3]} dev egress.vxlan dst {other[1]}""")
        host.run(["ipset", "restore"], input=sets)
    mark = f"-A EGRESSGATEWAY-MARK-REQUEST {policy} -j MARK --set-mark {node_mark}\n"
    snat = f"-A EGRESSGATEWAY-SNAT-EIP {policy} -j SNAT --to-source {EGRESS_IP}\n"
    site.node.run(["iptables-restore", "--noflush"], input=static.format(mark=mark, snat=""))
    site.gateway.run(["iptables-restore", "--noflush"], input=static.format(mark="", snat=snat))
    site.node.run(f"set -e; ip rule add fwmark {node_mark} table 100; ip route add default via 10.200.0.2 dev egress.vxlan table 100")
    own_egress_ip(site)


def attach(name: str, device: str) -> None:
    """Runs on the node: a pinned program to the device's ingress hook, by a link as everybody does it today."""
    link, _ = bpf(LINK_CREATE, struct.pack("IIII", pinned(f"{STEER_PINS}/{name}"), ifindex_of(device), TCX_INGRESS, 0))
    path = ctypes.create_string_buffer(f"{STEER_PINS}/{name}_link".encode())
    bpf(OBJ_PIN, struct.pack("QII", ctypes.addressof(path), link, 0))


def bpf_vxlan(site: Site) -> None:
    """Cilium's shape. Its nodes masquerade in BPF, so the worker has no conntrack hooks at all; on the gateway nft translates, and does not
    track the tunnel itself."""
    macs = {site.node: "02:00:00:00:0f:01", site.gateway: "02:00:00:00:0f:02"}
    for host, mac in macs.items():
        host.run(f"""set -e
            ip link add vxlan0 address {mac} mtu 1500 type vxlan external dstport 8472; ip link set vxlan0 up
            bpftool prog loadall {STEER} {STEER_PINS} pinmaps {STEER_PINS}""")
    gateway = int.from_bytes(socket.inet_aton(GATEWAY), "big")
    policy = struct.pack("=III8s", gateway, MARK, site.ifindex("vxlan0"), mac_bytes(macs[site.gateway]))
    network, length = DESTINATIONS.split("/")
    fill(site.node, "policies", struct.pack("=I4s4s", 32 + int(length), socket.inet_aton(POD), socket.inet_aton(network)), policy)
    fill(site.node, "endpoints", socket.inet_aton(POD),
         struct.pack("=I6s6s", site.ifindex(site.pod.host_veth), mac_bytes(site.pod_mac), mac_bytes(site.host_mac)))
    inside(site.node, attach, "steer", site.pod.host_veth)
    inside(site.node, attach, "deliver", "vxlan0")
    inside(site.gateway, attach, "mark", "vxlan0")
    site.gateway.run(f"""set -e
        ip addr add 10.201.0.2/24 dev vxlan0; ip neigh add 10.201.0.1 lladdr {macs[site.node]} dev vxlan0
        ip route replace {POD_NETWORK} encap ip id {MARK} dst {NODE} via 10.201.0.1 dev vxlan0""")
    nft(site.gateway, f"""table ip egress {{
        map addresses {{ type mark : ipv4_addr; elements = {{ {MARK} : {EGRESS_IP} }} }}
        chain post {{ type nat hook postrouting priority srcnat; snat to meta mark map @addresses; }}
        chain tunnel_in {{ type filter hook prerouting priority raw; udp dport 8472 notrack; }}
        chain tunnel_out {{ type filter hook output priority raw; udp dport 8472 notrack; }}
    }}""")
    own_egress_ip(site)


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def fill(host: BenchNode, name: str, key: bytes, value: bytes) -> None:
    host.run(["bpftool", "map", "update", "pinned", f"{STEER_PINS}/{name}", "key", "hex", *key.hex(" ").split(), "value", "hex",
              *value.hex(" ").split()])


# --- ours

def ours(site: Site, hosts: list[BenchNode], gateway: dict, **keys) -> None:
    """A class for the pod on a node as it is; the real `egressctl apply` and the plugin's ADD."""
    cni_masquerade(site)
    web = {"name": "web", "select": [{"namespaces": ["web"]}], "destinations": [DESTINATIONS], "gateways": [gateway], **keys}
    config = {"classes": [web], "clusterCIDRs": [POD_NETWORK], "nodes": [NODE, GATEWAY]}
    for host in hosts:
        host.apply(config)
    site.node.add(site.pod)


def ours_same_node(site: Site) -> None:
    ours(site, [site.node], {"address": NODE, "interface": "wan0"}, egressIPs=[EGRESS_IP])
    site.return_by(site.node, EGRESS_IP)


def ours_tunnel(site: Site) -> None:
    ours(site, [site.gateway, site.node], {"address": GATEWAY, "interface": "wan0"}, egressIPs=[EGRESS_IP])
    site.return_by(site.gateway, EGRESS_IP)


def ours_next_hop(site: Site) -> None:
    """The appliance routes, and translates nothing: what it does is not ours."""
    ours(site, [site.node], {"address": GATEWAY, "via": "nexthop", "interface": "lan0"})
    site.return_by(site.gateway, POD_NETWORK)


@dataclass(frozen=True)
class Row:
    key: str
    label: str
    set_up: Callable[[Site], None]
    source: str
    quick: bool = False
    ours: bool = False


ROWS = [Row("A", "plain forwarding", plain, POD, quick=True),
        Row("B", "node masquerade", masquerade, NODE_WAN, quick=True),
        Row("BK", f"B, kube-proxy of {SERVICES}", with_kube_proxy, NODE_WAN),
        Row("C", "kube-vip's nft SNAT", kube_vip, EGRESS_IP),
        Row("D", "mark, policy route", policy_route, EGRESS_IP),
        Row("E", "ipset, kernel VXLAN", ipset_vxlan, EGRESS_IP),
        Row("F", "BPF, kernel VXLAN", bpf_vxlan, EGRESS_IP, quick=True),
        Row("OL", "ours, same node", ours_same_node, EGRESS_IP, quick=True, ours=True),
        Row("OT", "ours, tunnel", ours_tunnel, EGRESS_IP, quick=True, ours=True),
        Row("ON", "ours, next hop", ours_next_hop, POD, quick=True, ours=True)]
