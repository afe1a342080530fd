# SPDX-License-Identifier: Apache-2.0
"""What cannot be done right is refused with a reason that helps; and pods without a class never notice."""
import json

import pytest
from labkit import CONFIGURATION, CriError
from traffic import BILLING, SHOP, every_node, source

FILE = "/etc/egressclass/config.json"
STATE, PINS = "/run/egressclass", "/sys/fs/bpf/egressclass"
UNKNOWN = {"egressclass.io/class": "no-such-class"}


def refusal(node, name, namespace="default", **options) -> str:
    """Why the runtime did not start the pod; its sandbox, if any is left, is removed."""
    before = {pod.sandbox_id for pod in node.pods()}
    with pytest.raises(CriError) as refused:
        node.run_pod(name, namespace, **options)
    for pod in node.pods():
        if pod.sandbox_id not in before:
            pod.remove()
    return refused.value.details


def attachments(node) -> list[str]:
    folder = node.path(f"{STATE}/attachments")
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def allocated(node) -> list[str]:
    """Addresses that host-local has given away."""
    return sorted(path.name for path in node.path("/var/lib/cni/networks/lab").glob("10.*"))


def veths(node) -> list[str]:
    return [link["ifname"] for link in json.loads(node.run("ip -j link show type veth").stdout) if link["ifname"] != "eth0"]


def test_a_pod_that_names_an_unknown_class_does_not_start_and_the_message_says_which_class_and_which_file(own_fleet):
    node = own_fleet.node("worker1")
    said = refusal(node, "web", annotations=UNKNOWN)
    assert '"no-such-class"' in said and FILE in said and "billing, shop" in said and "default/web" in said
    assert attachments(node) == [] and allocated(node) == [] and veths(node) == []
    assert json.loads(node.run("egressctl pods --json").stdout) == []
    # and in the selected namespace as well: what the annotation says is not replaced by something else
    assert '"no-such-class"' in refusal(node, "web", "billing", annotations=UNKNOWN)
    assert source(node.run_pod("web", "billing").ask(own_fleet.outside.address, 7001)) == BILLING


def test_a_class_that_is_added_later_lets_the_refused_pod_start(own_fleet):
    node = own_fleet.node("worker1")
    assert '"no-such-class"' in refusal(node, "web", annotations=UNKNOWN)
    more = {"name": "no-such-class", "destinations": ["0.0.0.0/0"], "gateways": [{"address": "192.0.2.21"}],
            "egressIPs": ["203.0.113.9"]}
    own_fleet.configure(CONFIGURATION | {"classes": [*CONFIGURATION["classes"], more]})
    own_fleet.apply()
    assert source(node.run_pod("web", annotations=UNKNOWN).ask(own_fleet.outside.address, 7001)) == "203.0.113.9"


@pytest.mark.parametrize("bpffs", [True, False], ids=["with_bpffs", "without_bpffs"])
def test_with_everything_of_ours_missing_pods_without_a_class_start_and_annotated_ones_do_not(make_fleet, bpffs):
    fleet = make_fleet(configuration=None)
    for node in fleet.nodes:
        if not bpffs:
            node.run("umount /sys/fs/bpf")
        node.run(f"rm -rf /etc/egressclass {STATE}; rm -f /usr/local/bin/egressctl")
        for namespace in "default", "billing":      # no configuration selects it
            pod = node.run_pod("plain", namespace, host_ports={18001 if namespace == "default" else 18002: 7001})
            assert source(pod.ask(fleet.outside.address, 7001)) == node.address
            pod.remove()
        said = refusal(node, "web", annotations={"egressclass.io/class": "billing"})
        assert '"billing"' in said and FILE in said
        assert allocated(node) == [] and veths(node) == []
        assert not node.path(STATE).exists() and not node.path(PINS).exists()


@pytest.mark.parametrize("bpffs", [True, False], ids=["with_bpffs", "without_bpffs"])
def test_before_the_first_apply_selected_pods_do_not_start_and_others_do(make_fleet, bpffs):
    """A fresh boot: the file is there, the kernel is empty."""
    fleet = make_fleet(configuration=None)
    fleet.configure(CONFIGURATION)
    node = fleet.node("worker1")
    if not bpffs:
        node.run("umount /sys/fs/bpf")
    for name, namespace, annotations in (("web", "billing", {}), ("web", "default", {"egressclass.io/class": "billing"})):
        said = refusal(node, name, namespace, annotations=annotations)
        assert '"billing"' in said and "egressctl apply" in said
    assert FILE in refusal(node, "web", annotations=UNKNOWN)
    assert allocated(node) == [] and veths(node) == []
    assert source(node.run_pod("web").ask(fleet.outside.address, 7003)) == node.address
    if bpffs:
        fleet.apply()
        assert source(node.run_pod("web", "billing").ask(fleet.outside.address, 7001)) == BILLING


@pytest.mark.parametrize("text", ["{", "", "[]", '{"classes": [{"name": "billing"}]}', '{"clases": []}'],
                         ids=["broken_json", "empty", "no_object", "class_without_keys", "unknown_key"])
def test_a_bad_file_changes_nothing_for_running_and_for_new_pods(own_fleet, text):
    node, outside = own_fleet.node("worker1"), own_fleet.outside.address
    running = node.run_pod("web", "billing")
    own_fleet.configure(text)

    def assert_all_is_well(name):
        assert source(running.ask(outside, 7001)) == BILLING
        assert source(node.run_pod(name, "billing").ask(outside, 7001)) == BILLING
        assert source(node.run_pod(f"checkout-{name}", "shop").ask(outside, 7002)) == SHOP
        assert source(node.run_pod(name).ask(outside, 7003)) == node.address
    assert_all_is_well("before")
    applied = every_node(own_fleet, lambda each: each.run(["egressctl", "apply"], check=False))
    for name, done in applied.items():
        assert done.returncode == 2 and FILE in done.stderr and "nothing was changed" in done.stderr, name
    assert_all_is_well("after")


def test_a_bad_file_before_the_first_apply_of_all_stops_pods_because_nobody_can_tell_which_have_a_class(make_fleet):
    fleet = make_fleet(configuration=None)
    fleet.configure("{")
    node = fleet.node("worker1")
    said = refusal(node, "web", "billing")
    assert FILE in said and "egressctl apply" in said
