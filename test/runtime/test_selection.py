# SPDX-License-Identifier: Apache-2.0
"""Which class a pod gets: what its annotation says, else the first `select` that fits, else the default; seen from outside."""
import copy

import pytest
from labkit import CONFIGURATION, CriError
from traffic import BILLING, SHOP, source

ANNOTATION = "egressclass.io/class"
REST, PARTNER = "203.0.113.9", "203.0.113.10"


def with_classes(*more, **keys):
    configuration = copy.deepcopy(CONFIGURATION)
    configuration["classes"] += more
    return configuration | keys


def a_class(name, address, **keys):
    return {"name": name, "destinations": ["0.0.0.0/0"], "gateways": [{"address": "192.0.2.21"}], "egressIPs": [address]} | keys


FLEET = {"configuration": with_classes(a_class("partner", PARTNER, namespaces=["crm", "shop"]))}


@pytest.mark.parametrize("case, name, namespace, annotation, expected", [
    ("a select by namespace", "web", "billing", None, BILLING),
    ("a select by namespace and pattern of the name", "checkout-7f9", "shop", None, SHOP),
    ("the namespace alone is not enough when the select also has names", "cart-7f9", "shop", None, "192.0.2.11"),
    ("the name alone is not enough when the select also has namespaces", "checkout-7f9", "default", None, "192.0.2.11"),
    ("an annotation where nothing selects", "web", "default", "billing", BILLING),
    ("an annotation beats the select", "web", "billing", "shop", SHOP),
    ("a class without select, by annotation, from an entitled namespace", "web", "crm", "partner", PARTNER),
    ("no annotation and no select", "web", "crm", None, "192.0.2.11"),
], ids=lambda value: value.replace(" ", "_") if isinstance(value, str) and " " in value else "")
def test_a_pod_gets_its_class_by(fleet, run_pod, case, name, namespace, annotation, expected):
    pod = run_pod(fleet.node("worker1"), name, namespace, annotations={ANNOTATION: annotation} if annotation else {})
    assert source(pod.ask(fleet.outside.address, 7001)) == expected


def test_a_namespace_that_is_not_entitled_may_not_use_the_class(fleet):
    with pytest.raises(CriError) as refused:
        fleet.node("worker1").run_pod("web", "default", annotations={ANNOTATION: "partner"})
    assert 'namespace "default" may not use egress class "partner"' in refused.value.details


def test_the_default_class_takes_every_pod_that_nothing_else_has_chosen(make_fleet):
    fleet = make_fleet(configuration=with_classes(a_class("rest", REST, default=True)))
    for name in "worker1", "gateway1":
        node = fleet.node(name)
        for pod, expected in ((node.run_pod("web", "default"), REST), (node.run_pod("web", "billing"), BILLING),
                              (node.run_pod("other", annotations={ANNOTATION: "shop"}), SHOP)):
            assert source(pod.ask(fleet.outside.address, 7001)) == expected


def test_annotations_can_be_switched_off(make_fleet):
    fleet = make_fleet(configuration=with_classes(annotations="ignore"))
    node = fleet.node("worker1")
    for annotation in "shop", "no-such-class":
        pod = node.run_pod(annotation, "billing", annotations={ANNOTATION: annotation})
        assert source(pod.ask(fleet.outside.address, 7001)) == BILLING
    assert source(node.run_pod("plain", annotations={ANNOTATION: "shop"}).ask(fleet.outside.address, 7001)) == node.address
