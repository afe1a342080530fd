# SPDX-License-Identifier: Apache-2.0
"""After the last pod and `egressctl down`, a node is as it was before the first `egressctl apply`."""
import json
import re

from labkit import CONFIGURATION
from traffic import ALL_NODES, BILLING, every_node, python, source, until

# changes by itself: counts, and what the kernel measures
VOLATILE = re.compile(r"/(nf_conntrack_count|.*/hit_stats|nf_conntrack_max|nf_conntrack_buckets)$")
COMMANDS = {
    "links": "ip -d -o link | sed -E 's/ (promiscuity|allmulti|numtxqueues) .*//; s/^[0-9]+: //; s/ state [A-Z]+//; s/@if[0-9]+//'",
    "addresses": "ip -o addr | sed -E 's/^[0-9]+: //' | grep -v fe80:",
    "queueing disciplines": "tc qdisc show",
    "filters": "for i in $(ls /sys/class/net); do tc filter show dev $i ingress; tc filter show dev $i egress; done",
    "pins": "find /sys/fs/bpf",
    "nft": "nft -s list ruleset",
    "rules": "ip rule; ip -6 rule",
    "routes": "ip route show table all; ip -6 route show table all | grep -v fe80:",
    "state": "ls -A /run/egressclass /var/lib/egressclass 2>/dev/null | grep -v :",
    "sockets": "ss -Hulna",
}
# ip, tc and bpftool of Debian 12 do not know TCX yet: BPF_PROG_QUERY for every interface
TCX = """
import ctypes, os, socket, struct
call = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)
for number, name in socket.if_nameindex():
    for hook, kind in ("ingress", 46), ("egress", 47):
        programs = (ctypes.c_uint32 * 64)()
        query = ctypes.create_string_buffer(struct.pack("=IIIIQII32x", number, kind, 0, 0, ctypes.addressof(programs), 64, 0), 64)
        if libc.syscall(call, 16, query, 64) == 0 and struct.unpack_from("=I", query, 24)[0]:
            print(name, hook, struct.unpack_from("=I", query, 24)[0], "programs")
"""


def snapshot(node) -> dict[str, list[str]]:
    # duplicate address detection ends by itself; it is not to end between two snapshots
    until(lambda: "tentative" not in node.run("ip addr").stdout, "settled link-local addresses")
    seen = {what: node.run(command, check=False).stdout.splitlines() for what, command in COMMANDS.items()}
    seen["tcx links"] = python(node, TCX).splitlines()
    files = node.run("find /proc/sys/net -type f ! -path '*/neigh/*' -perm -u=r | sort | xargs -d '\\n' grep -sH '' ", check=False)
    seen["sysctls"] = [line for line in files.stdout.splitlines() if not VOLATILE.search(line.partition(":")[0])]
    return seen


def bpf_objects(node) -> set[tuple[str, int]]:
    """(kind, id) of every BPF object of ours on the node. Ids are those of the whole machine."""
    found = set()
    for pin in node.run("find /sys/fs/bpf/egressclass -type f").stdout.split():
        kind = {"maps": "map", "programs": "prog", "links": "link"}[pin.split("/")[5]]
        info = json.loads(node.run(f"bpftool -j {kind} show pinned {pin}").stdout)
        info = info[0] if isinstance(info, list) else info
        found.add((kind, info["id"]))
        found |= {("map", number) for number in info.get("map_ids", [])}
    return found


def exists(node, kind, number) -> bool:
    return node.run(["bpftool", kind, "show", "id", str(number)], check=False).returncode == 0


def visit(fleet, name, namespace):
    """A pod with a host port comes, is used and goes, on every node: after that bridge and portmap have made what they keep."""
    answers = {}
    for node in fleet.nodes:
        pod = node.run_pod(name, namespace, host_ports={18001: 7001})
        answers[node.name] = source(pod.ask(fleet.outside.address, 7001))
        pod.remove()
    return answers


def test_after_down_every_node_is_as_it_was_before_the_first_apply(make_fleet):
    fleet = make_fleet(configuration=None)
    assert visit(fleet, "before", "default") == every_node(fleet, lambda node: node.address)
    before = every_node(fleet, snapshot)

    fleet.configure(CONFIGURATION)
    fleet.apply()
    fleet.apply()
    assert visit(fleet, "during", "billing") == dict.fromkeys(ALL_NODES, BILLING)
    assert visit(fleet, "during", "default") == every_node(fleet, lambda node: node.address)
    ours = every_node(fleet, bpf_objects)
    assert all(len(objects) >= 10 for objects in ours.values())
    during = every_node(fleet, snapshot)
    for what in "links", "nft", "rules", "routes", "pins", "tcx links":
        assert all(during[name][what] != before[name][what] for name in ALL_NODES), f"the snapshot of {what} sees nothing"

    for node in fleet.nodes:
        node.run(["egressctl", "down"])
    for name, objects in ours.items():      # the kernel frees them a moment later
        until(lambda: not [entry for entry in objects if exists(fleet.node(name), *entry)], f"BPF objects of {name} to be freed")
    after = every_node(fleet, snapshot)
    for name in ALL_NODES:
        for what in before[name]:
            assert after[name][what] == before[name][what], f"{what} of {name}"


def test_down_twice_and_without_any_apply_is_no_error(make_fleet):
    fleet = make_fleet(configuration=None)
    node = fleet.node("worker1")
    before = snapshot(node)
    for _ in range(2):
        node.run(["egressctl", "down"])
        assert snapshot(node) == before


def test_an_address_that_the_gateway_had_already_stays_after_down(make_fleet):
    """What is not ours is not removed."""
    fleet = make_fleet(configuration=None)
    gateway = fleet.node("gateway1")
    gateway.run(f"ip addr add {BILLING}/32 dev eth0")
    fleet.configure(CONFIGURATION)
    fleet.apply()
    assert source(fleet.node("worker1").run_pod("a", "billing").ask(fleet.outside.address, 7001)) == BILLING
    gateway.run(["egressctl", "down"])
    addresses = gateway.run("ip -o -4 addr show dev eth0").stdout
    assert BILLING in addresses and "203.0.113.8" not in addresses
