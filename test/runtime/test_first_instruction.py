# SPDX-License-Identifier: Apache-2.0
"""No window at the start: the mark is in place before the pod's first instruction."""
from concurrent.futures import ThreadPoolExecutor

from labkit import Watch
from traffic import ALL_NODES, BILLING, SHOP, source

PODS = 50


def test_fifty_pods_at_once_whose_first_instruction_is_a_syn_show_no_foreign_source(own_fleet):
    outside = own_fleet.outside

    def start(number):
        namespace, port = (("billing", 7001), ("shop", 7002))[number % 2]
        node = own_fleet.node(ALL_NODES[number % 3])
        return port, node.run_first_syn(f"checkout-{number}", namespace, outside.address, port)

    # each retransmitted SYN would be a packet that was dropped when it should not have been: none is expected either
    with Watch(own_fleet, {7001: BILLING, 7002: SHOP}, others=()) as watch, ThreadPoolExecutor(PODS) as threads:
        pods = list(threads.map(start, range(PODS)))
        answers = [(port, source(pod.wait_output())) for port, pod in pods]
        records = watch.assert_no_leak()["outside"]
    assert answers == [(port, {7001: BILLING, 7002: SHOP}[port]) for port, _ in pods]
    syns = [record for record in records if record.info == "[S]"]
    assert len({(record.src, record.sport, record.dport) for record in syns}) == PODS
    assert len({pod.ip for _, pod in pods}) == PODS
    assert len([seen for seen in outside.seen() if seen.proto == "tcp"]) == PODS


def test_the_first_packet_of_a_pod_is_not_lost(own_fleet):
    """The SYN that outside sees first is the pod's first one: started together, yet none has to be sent twice."""
    node = own_fleet.node("worker1")
    with own_fleet.capture(own_fleet.outside, expression="tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn") as capture:
        for number in range(5):
            pod = node.run_first_syn(f"p{number}", "billing", own_fleet.outside.address, 7001)
            assert source(pod.wait_output()) == BILLING
        syns = capture.stop()
    assert [record.src for record in syns] == [BILLING] * 5
