# SPDX-License-Identifier: Apache-2.0
"""No daemon in the way: the plugin is replaced, the runtime restarted or killed, and flows do not notice."""
from contextlib import ExitStack

import pytest
from labkit import LONG_PORT, Watch
from traffic import ALL_NODES, BILLING, Traffic, source

OWNERS = {7001: BILLING, LONG_PORT: BILLING}


def restart(node):
    node.restart_containerd()


def crash(node):
    node.kill9_containerd()
    node.start_containerd()


@pytest.mark.parametrize("how", [restart, crash])
def test_flows_go_on_while_the_plugin_is_replaced_and_containerd_comes_back(own_fleet, how):
    outside = own_fleet.outside.address
    pods = [own_fleet.node(name).run_pod("a", "billing") for name in ALL_NODES]
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(own_fleet, OWNERS, others=()))
        flows = [stack.enter_context(Traffic(pod, "lines", outside, LONG_PORT, 0.01)) for pod in pods]
        new_ones = [stack.enter_context(Traffic(pod, "connections", outside, 7001, 0.02)) for pod in pods]
        for flow in flows + new_ones:
            flow.await_more()
        for node in own_fleet.nodes:
            node.install_plugin(own_fleet.plugin)
            how(node)
            node.wait_ready()
        for flow in flows + new_ones:
            flow.await_more(10, timeout=5)
        for name in ALL_NODES:
            assert source(own_fleet.node(name).run_pod("new", "billing").ask(outside, 7001)) == BILLING
        records = watch.assert_no_leak()
        answers = [flow.stop() for flow in flows]
    for lines in answers:       # one connection each, and not a line lost or late by a retransmission
        assert {source(line) for line in lines} == {BILLING}
        assert [int(line.split()[2]) for line in lines] == list(range(len(lines)))
    assert not [record for record in records["outside"] if "R" in record.info]
    assert len({record.sport for record in records["outside"] if record.dport == LONG_PORT and record.info == "[S]"}) == len(flows)

    for node in own_fleet.nodes:
        for pod in node.pods():
            pod.remove()
        assert list(node.path("/run/egressclass/attachments").iterdir()) == []
        assert list(node.path("/var/lib/cni/networks/lab").glob("10.*")) == []
        assert node.run("egressctl pods --json").stdout.strip() == "[]"


def test_a_pod_can_be_removed_while_the_runtime_was_away_and_its_state_is_gone(own_fleet):
    node = own_fleet.node("worker1")
    pod = node.run_pod("a", "billing")
    node.kill9_containerd()
    node.run(["egressctl", "apply"])
    node.start_containerd()
    node.wait_ready()
    node.pod("a", "billing").remove()
    assert list(node.path("/run/egressclass/attachments").iterdir()) == []
    assert pod.sandbox_id not in {other.sandbox_id for other in node.pods()}
