# SPDX-License-Identifier: Apache-2.0
"""Somebody works against us, by intent or by mistake: pods that forge tunnel packets, operators who flush rules, configurations that are
on one node only, applies that are killed, services that lead out of the cluster. What outside sees stays right."""
import json
import re
import signal
import time
from contextlib import ExitStack

import pytest
from labkit import CONFIGURATION, CriError, Watch
from test_refusals import FILE, refusal
from test_tunnel import CRAFT, GATEWAY, vni
from traffic import BILLING, PYTHON, EchoServer, Traffic, ask_udp, await_drops, drops, python, source

PORT = 7004     # of outside: what no honest pod here uses
PARTNER = "203.0.113.9"


# --- pods that make tunnel packets

def forge(fleet, forger, target, inner_source, inner_destination, witness):
    """A pod sends VXLAN packets, good ones of the class billing, to the tunnel's port of a node. What the witness has seen of them."""
    with fleet.capture(witness, expression=f"dst port {PORT}") as capture:
        python(forger, CRAFT, vni(fleet, "billing"), target, inner_source, inner_destination, PORT)
        time.sleep(0.1)
        return capture.stop()


@pytest.fixture
def victim(fleet, run_pod):
    pod = run_pod(fleet.node("worker1"), "victim", "billing")
    assert source(pod.ask(fleet.outside.address, 7001)) == BILLING
    return pod


@pytest.mark.parametrize("namespace", ["default", "shop", "billing"])
@pytest.mark.parametrize("name", ["worker1", "worker2"])
def test_a_pod_cannot_use_another_pods_egress_by_tunnel_packets_of_its_own(fleet, run_pod, victim, name, namespace):
    """The node's CNI masquerades them: they would come from a known sender."""
    node = fleet.node(name)
    forger, before = run_pod(node, "checkout-forger", namespace), drops(node).get("tunnel_from_pod", 0)
    assert forge(fleet, forger, GATEWAY, victim.ip, fleet.outside.address, fleet.outside) == []
    assert await_drops(node, "tunnel_from_pod", before + 4) == before + 5


@pytest.mark.parametrize("namespace", ["default", "billing"])
def test_a_pod_on_the_gateway_cannot_inject_packets_into_a_classed_pod(fleet, run_pod, victim, namespace):
    """They would come from the class's own gateway."""
    gateway = fleet.node("gateway1")
    forger, before = run_pod(gateway, "forger", namespace), drops(gateway).get("tunnel_from_pod", 0)
    assert forge(fleet, forger, "192.0.2.11", "8.8.8.8", victim.ip, victim) == []
    assert await_drops(gateway, "tunnel_from_pod", before + 4) == before + 5


@pytest.mark.parametrize("namespace", ["default", "billing"])
def test_a_pod_is_no_known_sender_for_its_own_node(fleet, run_pod, victim, namespace):
    gateway = fleet.node("gateway1")
    forger, before = run_pod(gateway, "forger", namespace), drops(gateway).get("unknown_sender", 0)
    assert forge(fleet, forger, GATEWAY, victim.ip, fleet.outside.address, fleet.outside) == []
    assert await_drops(gateway, "unknown_sender", before + 4) == before + 5


# --- rules that are gone

@pytest.mark.parametrize("damage", ["nft delete table inet egressclass", "nft flush ruleset"])
def test_nothing_leaves_a_gateway_that_has_lost_its_rules_and_apply_mends_it(own_fleet, damage):
    outside, gateway = own_fleet.outside.address, own_fleet.node("gateway1")
    pods = [own_fleet.node(name).run_pod("a", "billing") for name in ("worker1", "gateway1")]
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(own_fleet, {7001: BILLING}, others=()))
        flows = [stack.enter_context(Traffic(pod, kind, outside, 7001, 0.02)) for pod in pods for kind in ("datagrams", "connections")]
        for flow in flows:
            flow.await_more()
        gateway.run(f"nsenter --net=/run/netns/egressclass {damage}")
        with own_fleet.capture(gateway, expression=f"dst host {outside}") as capture:
            time.sleep(1)
            assert capture.stop() == []
        for flow in flows:
            flow.stop()
        for pod in pods:        # each path by itself
            before = drops(gateway).get("not_translated", 0)
            assert pod.ask(outside, 7001, timeout=1) == "" and pod.ask(outside, 7001, "udp", timeout=1) == ""
            assert drops(gateway)["not_translated"] >= before + 2
        gateway.run(["egressctl", "apply"])
        for pod in pods:
            assert source(pod.ask(outside, 7001)) == source(pod.ask(outside, 7001, "udp")) == BILLING
        watch.assert_no_leak()


# --- configurations that are on the gateway only, or there by half

# So many prefixes make the step between the rules and the classes a long one, in which traffic and signals find their way
MANY = ["0.0.0.0/0", *(f"100.{64 + n // 256 % 64}.{n % 256}.{n // 16384 * 32}/27" for n in range(40000))]
# and so does the mark that billing had
PARTNER_CLASS = {"name": "partner", "select": [{"namespaces": ["partner"]}], "destinations": MANY,
                 "gateways": [{"address": GATEWAY}], "egressIPs": [PARTNER], "mark": 1}
BEFORE = json.dumps(CONFIGURATION)
AFTER = json.dumps(CONFIGURATION | {"classes": [PARTNER_CLASS, CONFIGURATION["classes"][1]]})     # partner instead of billing
TRIES = 15


def class_ids(node) -> dict[str, int]:
    return {entry["name"]: entry["id"] for entry in json.loads(node.path("/run/egressclass/classes.json").read_text())["classes"]}


def apply(node, text) -> float:
    """Apply a configuration on one node; the seconds that it took."""
    node.write(FILE, text)
    start = time.monotonic()
    node.run(["egressctl", "apply"])
    return time.monotonic() - start


def killed_applies(node, tries=TRIES):
    """Kill the change from BEFORE to AFTER again and again, ever later; yields after each."""
    number = class_ids(node)["billing"]
    took = apply(node, AFTER)
    assert class_ids(node)["partner"] == number, "the classes do not share a number, so that nothing could be mixed up"
    ends = []
    for turn in range(tries):
        apply(node, BEFORE)
        node.write(FILE, AFTER)
        with node.popen(["egressctl", "apply"], stdout=-3, stderr=-3) as process:
            process.inner()
            time.sleep(took * (turn + 1) / tries)
            process.tell(signal.SIGKILL)
            ends.append(process.wait(10))
        yield
    assert len([end for end in ends if end]) >= tries // 2, f"too few were killed: {ends}"
    apply(node, BEFORE)


NEW_FLOWS = """
import socket, sys, time
while True:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"?", (sys.argv[1], 7001))
    time.sleep(0.002)
"""


@pytest.fixture
def replaced(own_fleet):
    """The gateway, a datagram flow of a pod of billing on a worker, and the watch; the pod also begins hundreds of flows per second,
    since an old one keeps the translation that it has."""
    pod = own_fleet.node("worker1").run_pod("a", "billing")
    with Watch(own_fleet, {7001: BILLING, 7002: PARTNER}, others={BILLING}) as watch, \
            Traffic(pod, "datagrams", own_fleet.outside.address, 7001) as flow, \
            pod.popen([*PYTHON, NEW_FLOWS, own_fleet.outside.address]):
        flow.await_more()
        yield own_fleet.node("gateway1"), flow, watch


def test_traffic_of_a_class_that_only_the_gateway_has_replaced_leaves_with_no_other_address(own_fleet, replaced):
    gateway, flow, watch = replaced
    number = class_ids(gateway)["billing"]
    apply(gateway, AFTER)
    assert class_ids(gateway)["partner"] == number, "the classes do not share a number, so that nothing could be mixed up"
    await_drops(gateway, "unknown_class", 100)
    other = gateway.run_pod("other", "partner")
    assert source(other.ask(own_fleet.outside.address, 7002)) == PARTNER
    other.remove()
    apply(gateway, BEFORE)
    watch.assert_no_leak()
    flow.await_more()


def test_traffic_of_a_class_leaves_with_no_other_address_however_far_a_killed_apply_came(replaced):
    gateway, flow, watch = replaced
    for _ in killed_applies(gateway):
        time.sleep(0.1)
    watch.assert_no_leak()
    flow.await_more()


def test_after_a_killed_apply_a_new_pod_has_the_address_of_its_own_class_or_does_not_start(own_fleet):
    outside, gateway = own_fleet.outside.address, own_fleet.node("gateway1")
    ways = {"billing": (7001, BILLING), "partner": (7002, PARTNER)}
    seen = set()
    with Watch(own_fleet, dict(ways.values()), others=()) as watch:
        for _ in killed_applies(gateway, 9):
            for namespace, (port, address) in ways.items():
                if namespace not in class_ids(gateway):
                    continue        # it has no class then
                try:
                    pod = gateway.run_pod("new", namespace)
                except CriError as refused:
                    assert "class" in refused.details
                    seen.add("refused")
                    for pod in gateway.pods():
                        pod.remove()
                    continue
                answer = source(pod.ask(outside, port, "udp", timeout=1))
                assert answer in (address, "")
                seen.add(answer)
                pod.remove()
        watch.assert_no_leak()
    assert BILLING in seen


# --- services

@pytest.fixture(params=["worker1", "gateway1"])
def services(fleet, run_pod, request):
    """A node on which 10.96.0.77:80 is a service with an endpoint outside, and 10.96.0.78:80 one with a pod as endpoint."""
    node = fleet.node(request.param)
    server = run_pod(fleet.node("worker2"), "server")
    rules = "".join(f"ip daddr {address} {proto} dport 80 dnat to {endpoint};" for proto in ("tcp", "udp")
                    for address, endpoint in (("10.96.0.77", f"{fleet.outside.address}:{PORT}"), ("10.96.0.78", f"{server.ip}:7001")))
    node.run(["nft", "-f", "-"], input=f"""table ip services {{
  chain prerouting {{ type nat hook prerouting priority dstnat; {rules}
  }}
}}""")
    with EchoServer(server):
        yield node
    node.run("nft delete table ip services")


def test_a_service_with_an_endpoint_outside_is_no_way_round_the_class(fleet, run_pod, services):
    pod, before = run_pod(services, "a", "billing"), drops(services).get("service_outside", 0)
    with fleet.capture(fleet.outside, expression=f"dst port {PORT}") as capture:
        assert pod.ask("10.96.0.77", 80, timeout=1) == ""
        assert pod.ask("10.96.0.77", 80, "udp", timeout=1) == ""
        assert capture.stop() == []
    assert drops(services)["service_outside"] >= before + 2


def test_a_service_with_an_endpoint_outside_works_for_a_pod_without_a_class(fleet, run_pod, services):
    pod = run_pod(services, "a")
    assert source(pod.ask("10.96.0.77", 80)) == source(ask_udp(pod, "10.96.0.77", 80)) == services.address


def test_a_service_whose_endpoint_is_a_pod_works_for_a_classed_pod(run_pod, services):
    pod = run_pod(services, "a", "billing")
    assert source(pod.ask("10.96.0.78", 80)) == source(ask_udp(pod, "10.96.0.78", 80)) == pod.ip


@pytest.mark.parametrize("entry", ["worker1", "worker2"])
def test_a_masqueraded_connection_to_a_node_port_of_a_classed_pod_is_answered(fleet, run_pod, entry):
    """As kube-proxy does it: the pod sees the address of the node by which the connection came."""
    node, pod = fleet.node(entry), run_pod(fleet.node("worker1"), "server", "billing")
    node.run(["nft", "-f", "-"], input=f"""table ip nodeport {{
  chain prerouting {{ type nat hook prerouting priority dstnat; meta l4proto {{ tcp, udp }} th dport 30080 dnat to {pod.ip}:7001; }}
  chain postrouting {{ type nat hook postrouting priority srcnat; ip daddr {pod.ip} th dport 7001 snat to {node.address}; }}
}}""")
    try:
        with EchoServer(pod):
            assert source(fleet.outside.connect(node.address, 30080)) == node.address
            assert source(ask_udp(fleet.outside, node.address, 30080)) == node.address
    finally:
        node.run("nft delete table ip nodeport")


# --- others on the node

MARKED = """
import socket, sys
address, port, mark = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
    client = socket.socket(socket.AF_INET, kind)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    client.settimeout(5)
    try:
        client.connect((address, port))
        client.send(b"?")
        print(client.recv(512).decode().split()[0])
    except OSError as error:
        print(error)
"""


@pytest.mark.parametrize("mark", [1, 2, 0x539, 51820, 0x1000], ids=hex)
@pytest.mark.parametrize("name", ["worker1", "gateway1"])
def test_programs_of_the_node_may_use_marks_of_their_own(fleet, name, mark):
    """VPNs and proxies do: 1 and 2 are the marks of classes here, 0x1000 is the bit of what nft has not seen."""
    node = fleet.node(name)
    assert python(node, MARKED, fleet.outside.address, 7003, mark).splitlines() == [node.address] * 2


# --- errors that routers and pods report

@pytest.mark.parametrize("name", ["worker1", "gateway1"])
def test_outside_is_told_by_the_node_that_a_classed_pods_port_is_closed(fleet, run_pod, name):
    node = fleet.node(name)
    run_pod(node, "closed", "billing", host_ports={18009: 7009}, protocol="UDP")
    with fleet.capture(fleet.outside, expression="icmp") as capture:
        said = python(fleet.outside, """
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect((sys.argv[1], 18009))
client.settimeout(1)
for attempt in range(5):
    try:
        client.send(b"?")
        client.recv(512)
    except ConnectionRefusedError:
        print("refused")
        break
    except TimeoutError:
        pass
""", node.address)
        records = capture.stop()
    assert said == "refused"
    assert {(record.src, record.info) for record in records} == {(node.address, "type 3")}


@pytest.fixture
def remote_gateway(own_fleet):
    """A gateway that has no routes to pods of other nodes, as one outside of the cluster."""
    gateway = own_fleet.node("gateway1")
    for spec in own_fleet.specs:
        if spec.address != gateway.address:
            gateway.run(f"ip route del {spec.pods}")
    return gateway


def test_the_gateway_is_a_hop_in_a_classed_pods_traceroute_without_routes_to_pods(own_fleet, remote_gateway):
    pod = own_fleet.node("worker1").run_pod("a", "billing")
    trace = pod.exec(["traceroute", "-n", "-q", "2", "-w", "2", "-m", "4", own_fleet.outside.address]).stdout
    hops = re.findall(r"^ *\d+ +([\d.*]+)", trace, re.MULTILINE)
    assert hops[0] in (GATEWAY, BILLING, "203.0.113.8"), trace
    assert hops[1] in own_fleet.ROUTERS and hops[2] == own_fleet.outside.address, trace


def test_a_classed_pod_is_told_of_a_narrow_path_behind_a_gateway_without_routes_to_pods(own_fleet, remote_gateway):
    outside, pod = own_fleet.outside.address, own_fleet.node("worker1").run_pod("a", "billing")
    assert source(ask_udp(pod, outside, 7001)) == BILLING
    remote_gateway.run(f"ip route add {outside} via 192.0.2.1 mtu lock 1200")
    said = python(pod, """
import errno, socket, sys, time
MTU_DISCOVER, DO, MTU = 10, 2, 14     # linux/in.h
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.setsockopt(socket.IPPROTO_IP, MTU_DISCOVER, DO)
client.connect((sys.argv[1], 7001))
for attempt in range(20):
    try:
        client.send(bytes(1300 - 28))
    except OSError as error:
        print(errno.errorcode[error.errno], client.getsockopt(socket.IPPROTO_IP, MTU))
        break
    time.sleep(0.1)
""", outside)
    assert said == "EMSGSIZE 1200"


# --- a typo, and then a reboot

def test_a_broken_file_at_boot_stops_only_pods_that_had_a_class_before(own_fleet):
    node, outside = own_fleet.node("worker1"), own_fleet.outside.address
    own_fleet.configure("{")
    node.run("ip link del egress0; nft delete table inet egressclass; rm -rf /run/egressclass /sys/fs/bpf/egressclass")
    assert source(node.run_pod("plain").ask(outside, 7003)) == node.address
    said = refusal(node, "web", "billing")
    assert '"billing"' in said and "egressctl apply" in said

    node.run("rm -rf /var/lib/egressclass")     # now nobody can tell
    for namespace in "default", "billing":
        said = refusal(node, "web", namespace)
        assert FILE in said and "mend the file and run `egressctl apply`" in said
    own_fleet.configure(CONFIGURATION)
    own_fleet.apply()
    assert source(node.run_pod("web", "billing").ask(outside, 7001)) == BILLING
    assert source(node.run_pod("web").ask(outside, 7003)) == node.address
