# SPDX-License-Identifier: Apache-2.0
"""A file system of the state is full: what was in force stays in force, whichever write finds no room."""
from __future__ import annotations

import json

import pytest
from light_node import BOTH, FAR, WEB, LightNode, NetPod, configuration, egress_class

EGRESS_IP, NEXT_IP = "203.0.113.7", "203.0.113.70"
# The running pod gets another class, and the node another egress IP.
NEXT = configuration(egress_class("next", select=[{"namespaces": ["web"]}], egressIPs=[NEXT_IP]), WEB, FAR)
STATE = ["/run/egressclass", "/var/lib/egressclass"]


@pytest.fixture
def pod(applied, outside, request) -> NetPod:
    """A pod of the class web on a node whose state has small file systems of its own."""
    for folder in STATE:
        applied.run(f"mkdir /run/t; mount -t tmpfs -o size=4m,nr_inodes=100,mode=755 t /run/t; cp -a {folder}/. /run/t/; "
                    f"mount --move /run/t {folder}; rmdir /run/t")
    pod = applied.make_pod("p5", 5)
    applied.add(pod)
    return pod


def fill(node: LightNode, folder: str, pages: int) -> None:
    """All but so many pages."""
    node.run(f"dd if=/dev/zero of={folder}/fill bs=4k 2>/dev/null; truncate -s -{4 * pages}k {folder}/fill", check=False)


def in_force(node: LightNode) -> dict:
    return json.loads(node.path("/run/egressclass/config.json").read_text())


@pytest.mark.parametrize("folder", STATE)
def test_no_room_at_any_step(applied, pod, folder):
    node, done = applied, None
    for pages in [*range(12), *range(12, 60, 4)]:
        node.run(f"rm -f {folder}/.*.spare")
        fill(node, folder, pages)
        done = node.apply(NEXT, check=False)
        applied_it = done.returncode == 0
        assert applied_it or "nothing was changed" in done.stderr and "No space left" in done.stderr, done
        assert in_force(node) == (NEXT if applied_it else BOTH), pages
        assert node.seen_as(pod) == (NEXT_IP if applied_it else EGRESS_IP), (pages, done)
        assert node.status()["healthy"], (pages, node.status()["problems"])
        node.run(f"rm {folder}/fill")
        if applied_it:
            break
    assert applied_it and pages > 0, done
    node.apply(BOTH)


@pytest.mark.parametrize("folder", STATE)
def test_no_inode_is_left(applied, pod, folder):
    applied.run(f"rm -f {folder}/.*.spare; i=0; while : 2>/dev/null >{folder}/file$i; do i=$((i + 1)); done", check=False)
    done = applied.apply(NEXT, check=False)
    assert done.returncode == 1 and "nothing was changed" in done.stderr, done
    assert (in_force(applied), applied.seen_as(pod)) == (BOTH, EGRESS_IP)
    assert applied.status()["healthy"], applied.status()["problems"]


def test_what_was_applied_twice_needs_no_more_room(applied, pod):
    """Nor does putting it back, after a failure that is none of the file system's; nor `down`."""
    node = applied
    node.apply(NEXT)
    node.apply(BOTH)
    for folder in STATE:
        fill(node, folder, 0)
    node.apply(NEXT)
    assert node.seen_as(pod) == NEXT_IP
    node.apply(BOTH)
    assert node.seen_as(pod) == EGRESS_IP and node.status()["healthy"], node.status()["problems"]
    node.run("ip link add foreign type vxlan id 7 dstport 9999; ip link set foreign up")
    done = node.apply(NEXT | {"tunnel": {"port": 9999}}, check=False)
    assert done.returncode == 1 and "in force again" in done.stderr, done
    assert (in_force(node), node.seen_as(pod)) == (BOTH, EGRESS_IP)
    assert node.status()["healthy"], node.status()["problems"]
    assert "1 running pods" in node.ctl("down").stdout
    assert node.seen_as(pod, 1) == ""
