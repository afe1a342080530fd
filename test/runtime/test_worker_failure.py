# SPDX-License-Identifier: Apache-2.0
"""A worker without its configuration is closed for classed pods, and open for all others."""
from contextlib import ExitStack

import pytest
from labkit import HTTP_PORT, LONG_PORT, CriError, Watch
from traffic import BILLING, SHOP, Traffic, await_drops, await_silence, source

OWNERS = {7001: BILLING, LONG_PORT: BILLING, HTTP_PORT: BILLING, 7002: SHOP}


@pytest.mark.parametrize("name", ["worker1", "gateway1"])
def test_a_node_that_is_down_is_closed_for_classed_pods_until_it_is_applied_again(own_fleet, name):
    node, outside = own_fleet.node(name), own_fleet.outside.address
    billing, shop = node.run_pod("a", "billing"), node.run_pod("checkout-1", "shop")
    plain = node.run_pod("plain")
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(own_fleet, OWNERS))
        flows = [stack.enter_context(Traffic(pod, *rest)) for pod, *rest in (
            (billing, "lines", outside, LONG_PORT), (billing, "datagrams", outside, 7001, 0.02),
            (billing, "connections", outside, 7001), (billing, "download", outside, HTTP_PORT, 0.02),
            (shop, "datagrams", outside, 7002, 0.02))]
        bystander = stack.enter_context(Traffic(plain, "connections", outside, 7003))
        for flow in flows:
            flow.await_more()

        said = node.run(["egressctl", "down"]).stdout
        assert "2 running pods have a class" in said
        await_silence(flows)
        await_drops(node, "datapath_down", more_than=await_drops(node, "datapath_down"))

        with pytest.raises(CriError) as refused:
            node.run_pod("late", "billing")
        assert '"billing"' in refused.value.details and "egressctl apply" in refused.value.details
        assert source(node.run_pod("late").ask(outside, 7003)) == node.address
        bystander.await_more()

        node.run(["egressctl", "apply"])
        ends = name == "gateway1"       # with its namespace, the connections that it translated
        for flow in flows:
            if not ends or flow.kind in ("datagrams", "connections"):
                flow.await_more()
        assert source(node.run_pod("later", "billing").ask(outside, 7001)) == BILLING
        watch.assert_no_leak()
        assert {source(answer) for answer in bystander.stop()} == {node.address}
        lines = flows[0].stop()
        answers = [line for line in lines if line[:1].isdigit()]        # the rest tells how the connection ended
        assert (answers == lines) == (not ends)
        assert [int(line.split()[2]) for line in answers] == list(range(len(answers)))


def test_pods_that_end_while_their_node_is_down_leave_nothing_behind(own_fleet):
    node = own_fleet.node("worker1")
    pods = [node.run_pod(f"p{number}", "billing") for number in range(3)]
    node.run(["egressctl", "down"])
    for pod in pods:
        pod.remove()
    node.run(["egressctl", "down"])
    assert not node.path("/sys/fs/bpf/egressclass").exists()
    assert not node.path("/run/egressclass").exists()


def test_apply_twice_changes_nothing_for_flows(own_fleet):
    node, outside = own_fleet.node("worker1"), own_fleet.outside.address
    pod = node.run_pod("a", "billing")
    with Watch(own_fleet, OWNERS, others=()) as watch, Traffic(pod, "lines", outside, LONG_PORT, 0.01) as flow:
        flow.await_more()
        for _ in range(3):
            own_fleet.apply()
            flow.await_more(timeout=2)
        records = watch.assert_no_leak()
        lines = flow.stop()
    assert [int(line.split()[2]) for line in lines] == list(range(len(lines)))
    assert not [record for record in records["outside"] if "R" in record.info]
