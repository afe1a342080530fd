# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at every system call. Whatever has been done by then, the next ADD, DEL or GC of the runtime, or `apply` or `down` of the
operator, makes it right; and no pod with a class is ever up without the classifier. (CNI-37, 57, 58, 60, 62)"""
import json
import struct
from pathlib import Path

import pytest
from inside import (GATEWAY, PINS, RUN, Kernel, Stepper, call, ctl, expedited, ifindex_of, inside, ip, is_up, left_on, lock_is_free,
                    own_expedited, points, programs, shell, succeed)
from light_node import WEB, configuration, egress_class



class Pod:
    """A pod, and what is there of it: nothing, or all."""

    def __init__(self, pod):
        self.pod, self.kernel, self.ifindex = pod, Kernel(), ifindex_of(pod.host_veth)
        succeed("ADD", pod)
        self.whole = self.kernel.traces()
        self.classifier = programs(self.ifindex)
        assert len(self.classifier) == 2 and set(self.whole) == {"attachments", "endpoints", "pins", "records"}
        self.remove()

    def remove(self):
        succeed("DEL", self.pod)
        assert self.nothing() == ""
        ip(f"link set {self.pod.host_veth} up")

    def nothing(self) -> str:
        """What is wrong when nothing should be there."""
        left = [*self.kernel.traces().items()] + [f"program {program} on the veth" for program in left_on(self.ifindex)]
        return f"left: {left}" if left else self.aside()

    def aside(self) -> str:
        """What is wrong with what is no pod's."""
        if not lock_is_free():
            return "the lock is held"
        return "" if expedited() == ("0", False) else f"grace periods are expedited: {expedited()}"

    def all(self) -> str:
        """What is wrong when the pod should have its class."""
        wrong = [kind for kind, value in self.whole.items() if self.kernel.traces().get(kind) != value]
        if wrong or programs(self.ifindex) != self.classifier:
            return f"not as ADD made them: {wrong}, programs on the veth: {programs(self.ifindex)}"
        return self.aside()

    def classified_or_not_at_all(self) -> str:
        """What is wrong when ADD may have been killed."""
        if programs(self.ifindex) == []:
            return ""
        found = self.kernel.traces()
        if set(programs(self.ifindex)) <= set(self.classifier) and all(found.get(kind) == self.whole[kind] for kind in ("attachments", "endpoints")):
            return ""
        return f"programs on the veth: {programs(self.ifindex)}, entries: {found}"

    def classified_or_down(self) -> str:
        """What is wrong when DEL may have been killed."""
        good = set(programs(self.ifindex)) & set(self.classifier) or not is_up(self.pod.host_veth)
        return "" if good else "the veth is up without the classifier"


def with_del(p: Pod) -> str:
    succeed("DEL", p.pod)
    return p.nothing()


def with_del_without_netns(p: Pod) -> str:
    succeed("DEL", p.pod, NETNS="")
    return p.nothing()


def with_add(p: Pod) -> str:
    succeed("ADD", p.pod)
    wrong = p.all()
    succeed("CHECK", p.pod)
    succeed("DEL", p.pod)
    return wrong or p.nothing()


def with_gc(p: Pod) -> str:
    succeed("GC")
    return p.nothing()


def kill_everywhere(pod, verb: str, recover) -> int:
    """Kills the verb before each of its system calls; how many those are. All that goes wrong is reported at once."""
    p, number, wrong = Pod(pod), 0, []
    while True:
        if verb != "ADD":
            succeed("ADD", pod)
        program = Stepper.plugin(verb, pod)
        if not program.to_next(number, Stepper.is_outside):
            answer = program.end()
            assert answer.code == 0, answer
            p.remove()
            break
        number = program.count
        program.kill()
        for what in (p.classified_or_not_at_all() if verb == "ADD" else p.classified_or_down(), recover(p)):
            if what:
                wrong.append(f"{verb} killed at system call {number}, {recover.__name__}: {what}")
        for file in (RUN / "attachments").iterdir():    # each point on its own
            file.unlink()
        succeed("DEL", pod)
        ip(f"link set {pod.host_veth} up")
    assert not wrong, "\n".join(wrong)
    return number


@pytest.mark.parametrize("recover", [with_del, with_del_without_netns, with_add, with_gc])
@pytest.mark.parametrize("verb", ["ADD", "DEL", "GC"])
def test_cni_37_58_the_plugin_killed_at_every_system_call(applied, verb, recover):
    """CNI-37, CNI-58"""
    own_expedited(applied)
    assert inside(applied, kill_everywhere, applied.make_pod("p", 5), verb, recover) > 40


def kill_reader(pod, verb: str) -> int:
    """As kill_everywhere(); nothing has to be made right."""
    p, number, wrong = Pod(pod), 0, []
    succeed("ADD", pod)
    while True:
        program = Stepper.plugin(verb, pod)
        if not program.to_next(number, Stepper.is_outside):
            answer = program.end()
            assert answer.code == 0, answer
            break
        number = program.count
        program.kill()
        if what := p.all():
            wrong.append(f"{verb} killed at system call {number}: {what}")
    assert not wrong, "\n".join(wrong)
    return number


@pytest.mark.parametrize("verb", ["CHECK", "STATUS"])
def test_cni_41_49_a_verb_that_only_reads_killed_at_every_system_call(applied, verb):
    """CNI-41, CNI-49: no step of it changes anything, and no lock of it stays."""
    own_expedited(applied)
    assert inside(applied, kill_reader, applied.make_pod("p", 5), verb) > 20


def killed_del_and_then_the_namespace_goes(pod) -> None:
    """As it is when a node crashes, or when the runtime does not wait: no interface, no namespace, and the state is ours alone."""
    wrong, number = [], 0
    while True:
        shell(f"ip link add hq index 777 type veth peer name eth0 netns {pod.name}; ip link set hq up;"
              f"ip -n {pod.name} addr add {pod.address}/24 dev eth0; ip -n {pod.name} link set eth0 up")
        kernel = Kernel()
        succeed("ADD", pod)
        program = Stepper.plugin("DEL", pod)
        ended = not program.to_next(number, Stepper.is_outside)
        number = program.count
        program.end() if ended else program.kill()
        ip("link del hq")
        succeed("DEL", pod, NETNS="")
        if kernel.traces():
            wrong.append(f"killed at system call {number}: left {kernel.traces()}")
        if ended:
            break
    assert not wrong, "\n".join(wrong)


def test_cni_33_37_a_killed_del_and_then_a_del_without_interface_and_namespace(applied):
    pod = applied.make_pod("p", 5)
    applied.run(f"ip link del {pod.host_veth}")
    pod.host_veth = "hq"
    inside(applied, killed_del_and_then_the_namespace_goes, pod)


# --- egressctl

# "new" after "old": a careless numbering gives it the id of "old"
OLD = configuration({**WEB, "vni": 101}, egress_class("old", egressIPs=["203.0.113.9"], vni=102))
NEW = configuration({**WEB, "vni": 101, "except": ["198.18.0.0/15"]}, egress_class("new", egressIPs=["203.0.113.8"], vni=103))
VNI = {"web": 101, "old": 102, "new": 103}
SLOTS4 = 32 + 16 * 32       # struct ec_class: of IPv4, where its egress IPs are
SOURCE = {101: "203.0.113.7", 102: "203.0.113.9", 103: "203.0.113.8"}


def remains() -> str:
    """All that the project could leave on a node on which nothing of it should be."""
    return shell("nft list tables; ip rule; ip -o link | grep -v 'hp\\|hold\\|hnew'; ip -o addr; ls /run/netns;"
                 f"find /sys/fs/bpf {RUN} /var/lib/egressclass; ip route show table all | grep -v 10.244;"
                 "cd /proc/sys/net/ipv4/conf; grep . eth0/forwarding eth0/rp_filter")


def configure(config: dict) -> None:
    Path("/etc/egressclass/config.json").write_text(json.dumps(config))


def is_healthy() -> str:
    done = ctl("status", check=False)
    return "" if done.returncode == 0 else f"not healthy: {done.stdout}{done.stderr}"


def gets_its_class(pod) -> str:
    """ADD now: refused, or right. What is wrong with that. The pod is removed again."""
    answer = call("ADD", pod)
    wrong = ""
    record = RUN / "attachments" / f"lab,{pod.name},{pod.ifname}"
    if answer.code == 0 and record.exists():
        kernel, ifindex = Kernel(), ifindex_of(pod.host_veth)
        name, number = json.loads(record.read_text())["class"], kernel.class_of(ifindex)
        entry = number and kernel.classes.get(number.to_bytes(4, "little"))
        vni = entry and int.from_bytes(entry[:4], "little")
        if programs(ifindex) == []:
            wrong = f"ADD of {pod.name} succeeds without classifier"
        elif vni not in (VNI[name], None):
            wrong = f"ADD of {pod.name}: class {name}, VNI {VNI[name]}, by its record; class id {number}, VNI {vni}, for the datapath"
    succeed("DEL", pod)
    ip(f"link set {pod.host_veth} up")
    return wrong


def right_source() -> str:
    """A class's packets, by their VNI, leave with the class's own address or not at all. What is wrong with that."""
    table = json.loads(shell(f"nsenter --net={GATEWAY} nft -j list map inet egressclass snat4") or '{"nftables":[]}')["nftables"]
    snat = {number: address for entry in table if "map" in entry for number, address in entry["map"].get("elem", [])}
    try:
        kernel = Kernel()
    except FileNotFoundError:
        return ""
    for key, entry in kernel.classes.all().items():
        vni, count = (int.from_bytes(entry[at:at + 4], "little") for at in (0, SLOTS4))
        for number in (struct.unpack_from("I", entry, SLOTS4 + 8 + 24 * i + 16)[0] for i in range(count)):
            if snat.get(number, SOURCE[vni]) != SOURCE[vni]:
                return f"packets of VNI {vni} get the egress IP number {number}, which nft translates to {snat[number]}"
    return ""


def kill_first_apply(pods: list, before: str) -> None:
    wrong = []
    configure(OLD)
    found = points(lambda: Stepper.ctl("apply"))
    ctl("down")
    for number in found:
        program = Stepper.ctl("apply")
        assert program.to(number)
        program.kill()
        steps = [gets_its_class(pod) for pod in pods] + [right_source()]
        ctl("apply")
        steps += [is_healthy()] + [gets_its_class(pod) for pod in pods]
        ctl("down")
        steps.append("" if remains() == before else f"after down: {remains()}\ninstead of: {before}")
        wrong += [f"apply killed at system call {number}: {what}" for what in steps if what]
        # and without an apply in between
        program = Stepper.ctl("apply")
        if program.to(number):
            program.kill()
        else:
            program.end()
        ctl("down")
        if remains() != before:
            wrong.append(f"apply killed at system call {number}, then down: {remains()}\ninstead of: {before}")
    assert not wrong, "\n".join(wrong)


def test_the_first_apply_killed(node):
    pods = [node.make_pod("p", 5), node.make_pod("old", 6, namespace="old")]
    before = inside(node, remains)
    inside(node, kill_first_apply, pods, before)


def kill_change(running, pods: list) -> None:
    wrong, ifindex = [], ifindex_of(running.host_veth)

    def class_of_running() -> str:
        kernel = Kernel()
        number = kernel.class_of(ifindex)
        entry = number and kernel.classes.get(number.to_bytes(4, "little"))
        good = entry and int.from_bytes(entry[:4], "little") == VNI["web"] and len(programs(ifindex)) == 2
        return "" if good else f"the running pod: class id {number}, entry {entry}, programs {programs(ifindex)}"

    configure(OLD)
    ctl("apply")
    succeed("ADD", running)
    configure(NEW)
    found = points(lambda: Stepper.ctl("apply"))
    for number in found:
        configure(OLD)
        ctl("apply")
        configure(NEW)
        program = Stepper.ctl("apply")
        if not program.to(number):
            program.end()
            continue
        program.kill()
        steps = [class_of_running(), right_source()] + [gets_its_class(pod) for pod in pods]
        ctl("apply")
        succeed("CHECK", running)
        steps += [is_healthy(), class_of_running(), right_source()] + [gets_its_class(pod) for pod in pods]
        wrong += [f"apply killed at system call {number}: {what}" for what in steps if what]
    assert not wrong, "\n".join(wrong)


def test_an_apply_that_changes_the_configuration_killed_while_a_pod_runs(node):
    inside(node, kill_change, node.make_pod("p", 5),
           [node.make_pod("q", 6), node.make_pod("old", 7, namespace="old"), node.make_pod("new", 8, namespace="new")])


def kill_upgrade(running) -> None:
    """As if the programs of this build were not the pinned ones: `apply` has to pin anew, and to put them in the pods' places."""
    wrong, ifindex = [], ifindex_of(running.host_veth)

    def another_build() -> None:
        for name in ("classify", "classify_again", "tunnel_in", "tunnel_out", "uplink_in", "gateway_in", "gateway_out"):
            Path(f"{PINS}/programs/{name}").unlink(missing_ok=True)

    configure(OLD)
    ctl("apply")
    succeed("ADD", running)
    another_build()
    found = points(lambda: Stepper.ctl("apply"))
    succeed("CHECK", running)
    for number in found:
        another_build()
        program = Stepper.ctl("apply")
        if program.to(number):
            program.kill()
            if len(programs(ifindex)) != 2:
                wrong.append(f"apply killed at system call {number}: programs on the veth: {programs(ifindex)}")
        else:
            program.end()
        ctl("apply")
        answer = call("CHECK", running)
        steps = [is_healthy(), "" if answer.code == 0 else str(answer)]
        wrong += [f"apply killed at system call {number}: {what}" for what in steps if what]
    succeed("DEL", running)
    assert not wrong, "\n".join(wrong)


def test_cni_63_an_upgrade_of_the_programs_killed_while_a_pod_runs(node):
    inside(node, kill_upgrade, node.make_pod("p", 5))


def kill_down(pod, before: str, while_pod_runs: bool) -> None:
    wrong, ifindex = [], ifindex_of(pod.host_veth)
    configure(OLD)
    ctl("apply")
    if while_pod_runs:
        succeed("ADD", pod)
    found = points(lambda: Stepper.ctl("down"))
    for turn, number in enumerate(found):
        ctl("apply")
        program = Stepper.ctl("down")
        if not program.to(number):
            program.end()
            continue
        program.kill()
        steps = []
        if while_pod_runs:
            steps.append("" if len(programs(ifindex)) == 2 else "the classifier has left the running pod")
        else:
            steps.append(gets_its_class(pod))
        if turn % 2 or while_pod_runs:
            ctl("apply")
            steps.append(is_healthy())
        if while_pod_runs:
            succeed("CHECK", pod)
        else:
            ctl("down")
            steps.append("" if remains() == before else f"after another down: {remains()}\ninstead of: {before}")
        wrong += [f"down killed at system call {number}: {what}" for what in steps if what]
    if while_pod_runs:
        succeed("DEL", pod)
        ctl("down")
        if remains() != before:
            wrong.append(f"at the end: {remains()}\ninstead of: {before}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("while_pod_runs", [True, False], ids=["while_a_pod_runs", "without_pods"])
def test_down_killed(node, while_pod_runs):
    pod = node.make_pod("p", 5)
    inside(node, kill_down, pod, inside(node, remains), while_pod_runs)
