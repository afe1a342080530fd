# SPDX-License-Identifier: Apache-2.0
"""While the gateway is away nothing leaves in another way: it is dropped, counted and named, and goes on when the gateway is back."""
from contextlib import ExitStack

import pytest
from labkit import HTTP_PORT, LONG_PORT, Watch
from traffic import ALL_NODES, BILLING, SHOP, Traffic, await_drops, await_silence, source, status, until

OWNERS = {7001: BILLING, LONG_PORT: BILLING, HTTP_PORT: BILLING, 7002: SHOP}


class Load:
    """Every kind of traffic from classed pods on every node, and the watch over the uplinks."""

    def __init__(self, fleet, stack: ExitStack):
        outside = fleet.outside.address
        pods = [(fleet.node(name).run_pod("a", "billing"), fleet.node(name).run_pod("checkout-1", "shop")) for name in ALL_NODES]
        # the gateway itself may say something to outside from an egress IP: that a port is closed
        self.watch = stack.enter_context(Watch(fleet, OWNERS, others={BILLING, SHOP}))
        self.flows = [stack.enter_context(Traffic(pod, *rest)) for billing, shop in pods for pod, *rest in (
            (billing, "lines", outside, LONG_PORT), (billing, "datagrams", outside, 7001, 0.02),
            (billing, "connections", outside, 7001), (billing, "download", outside, HTTP_PORT, 0.02),
            (shop, "datagrams", outside, 7002, 0.02), (shop, "connections", outside, 7002))]
        self.all_answered()

    def all_answered(self) -> None:
        for flow in self.flows:
            flow.await_more()

    def assert_right(self) -> None:
        """No packet with a foreign source, no answer to one, and no line of a long connection lost."""
        self.watch.assert_no_leak()
        for flow in self.flows:
            answers = flow.stop()
            if flow.kind != "download":
                assert {source(answer) for answer in answers} == {OWNERS[flow.port]}, flow.what
            if flow.kind == "lines":
                numbers = [int(answer.split()[2]) for answer in answers]
                assert numbers == list(range(len(numbers))), flow.what


@pytest.fixture
def load(own_fleet):
    with ExitStack() as stack:
        yield Load(own_fleet, stack)


def assert_drops_go_on(fleet, reasons: dict[str, str]) -> None:
    for name, reason in reasons.items():
        await_drops(fleet.node(name), reason, more_than=await_drops(fleet.node(name), reason))


UNREACHABLE = {"worker1": "gateway_unreachable", "worker2": "gateway_unreachable"}


def test_nothing_leaks_while_the_gateway_is_down_by_egressctl(own_fleet, load):
    own_fleet.node("gateway1").run(["egressctl", "down"])
    await_silence(load.flows)
    assert_drops_go_on(own_fleet, UNREACHABLE | {"gateway1": "datapath_down"})
    load.assert_right()


def without_old_connections(flows: list) -> list:
    """Those that the end of a namespace, or of its rules, does not end."""
    return [flow for flow in flows if flow.kind in ("datagrams", "connections")]


def test_datagrams_and_new_connections_go_on_when_the_gateway_is_applied_again(own_fleet, load):
    """`down` is the end of the gateway's namespace, and of the connections that it translated."""
    own_fleet.node("gateway1").run(["egressctl", "down"])
    await_silence(load.flows)
    own_fleet.node("gateway1").run(["egressctl", "apply"])
    load.flows = without_old_connections(load.flows)
    load.all_answered()
    load.assert_right()


def test_nothing_leaks_while_the_gateway_is_cut_off_and_all_flows_resume_afterwards(own_fleet, load):
    own_fleet.router.run("ip link set gateway1 down")
    await_silence(load.flows)
    assert_drops_go_on(own_fleet, UNREACHABLE)
    own_fleet.router.run("ip link set gateway1 up")
    load.all_answered()
    load.assert_right()


def test_nothing_leaks_while_the_gateways_uplink_is_down_and_all_flows_resume_afterwards(own_fleet, load):
    gateway = own_fleet.node("gateway1")
    routes = [route for route in gateway.run("ip route").stdout.splitlines() if " via " in route]
    gateway.run("ip link set eth0 down")
    await_silence(load.flows)
    assert_drops_go_on(own_fleet, UNREACHABLE)
    gateway.run("ip link set eth0 up")
    # the kernel forgets the routes of a link that goes down; whoever has set them sets them again
    gateway.run(["ip", "-batch", "-"], input="".join(f"route replace {route}\n" for route in routes))
    until(lambda: status(gateway)["healthy"], "a healthy gateway")
    load.all_answered()
    load.assert_right()


PUSH = 7006


@pytest.mark.parametrize("command, reasons", [
    ("egressctl down", UNREACHABLE | {"gateway1": "datapath_down"}), ("nsenter --net=/run/netns/egressclass nft delete table inet egressclass", {"gateway1": "not_translated"})],
    ids=["egressctl_down", "table_deleted"])
def test_what_outside_goes_on_sending_without_the_gateway_does_not_make_the_pods_flows_inbound_ones(own_fleet, command, reasons):
    """Should any of it reach a pod by another way than the tunnel, it must not pass for a connection that outside has opened: the pod's
    next packet would be let go as its answer."""
    outside, gateway = own_fleet.outside, own_fleet.node("gateway1")
    pods = [own_fleet.node(name).run_pod("a", "billing") for name in ALL_NODES]
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(own_fleet, OWNERS | {PUSH: BILLING}, others={BILLING}))
        stack.enter_context(Traffic(outside, "push", outside.address, PUSH, 0.02))
        flows = [stack.enter_context(Traffic(pod, *rest)) for pod in pods for rest in (
            ("datagrams", outside.address, PUSH, 0.02), ("download", outside.address, HTTP_PORT, 0.02))]
        for flow in flows:
            flow.await_more()
        gateway.run(command)
        try:
            assert_drops_go_on(own_fleet, reasons)
        finally:        # a leak says more than a drop that was not counted
            watch.assert_no_leak()
        with Watch(own_fleet, OWNERS | {PUSH: BILLING}, others={BILLING}) as watch:
            gateway.run(["egressctl", "apply"])
            for flow in without_old_connections(flows):
                flow.await_more()
            watch.assert_no_leak()


@pytest.mark.parametrize("name", ["gateway1", "worker1"])
def test_nothing_leaks_while_somebody_has_flushed_the_nft_rules_of_a_node(own_fleet, load, name):
    """A reload of a firewall takes our table along, and `egressctl apply` brings it back. No flow of a class depends on it."""
    node = own_fleet.node(name)
    node.run("nft flush ruleset")
    until(lambda: not status(node)["healthy"], "a node that says that it is not healthy")
    assert "nft table" in " ".join(status(node)["problems"])
    load.all_answered()
    node.run(["egressctl", "apply"])
    load.all_answered()
    load.assert_right()
