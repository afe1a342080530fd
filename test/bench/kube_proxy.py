# SPDX-License-Identifier: Apache-2.0
"""The rules that kube-proxy keeps on a node in its iptables mode, as input for iptables-restore: its chains, and for each service of two
endpoints what it makes of one. All of the pod's packets meet the filter chains, and the first of each flow also the list of services."""
from __future__ import annotations

NEW = "-m conntrack --ctstate NEW"
FILTER = f"""*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT {NEW} -j KUBE-PROXY-FIREWALL
-A INPUT -j KUBE-NODEPORTS
-A INPUT {NEW} -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD {NEW} -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD {NEW} -j KUBE-SERVICES
-A FORWARD {NEW} -j KUBE-EXTERNAL-SERVICES
-A OUTPUT {NEW} -j KUBE-PROXY-FIREWALL
-A OUTPUT {NEW} -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""
NAT_HEAD = """*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
"""
NAT_TAIL = """-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
"""


def rules(services: int, pod_network: str) -> str:
    chains, lines = [], []
    for number in range(services):
        service = f"KUBE-SVC-{number:016d}"
        at = f"-d 10.96.{number // 250}.{number % 250 + 1}/32 -p tcp -m tcp --dport 80"
        ends = [(f"KUBE-SEP-{number:015d}{end}", f"10.244.{100 + number // 125}.{number % 125 * 2 + end}") for end in (1, 2)]
        chains += [service, *(chain for chain, _ in ends)]
        lines += [f"-A KUBE-SERVICES {at} -j {service}", f"-A {service} ! -s {pod_network} {at} -j KUBE-MARK-MASQ",
                  f"-A {service} -m statistic --mode random --probability 0.5 -j {ends[0][0]}", f"-A {service} -j {ends[1][0]}"]
        for chain, address in ends:
            lines += [f"-A {chain} -s {address}/32 -j KUBE-MARK-MASQ",
                      f"-A {chain} -p tcp -m tcp -j DNAT --to-destination {address}:8080"]
    return (f"{FILTER}{NAT_HEAD}" + "".join(f":{chain} - [0:0]\n" for chain in chains) + "".join(f"{line}\n" for line in lines)
            + NAT_TAIL)
