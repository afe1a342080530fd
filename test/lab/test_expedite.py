# SPDX-License-Identifier: Apache-2.0
"""ADD and DEL expedite the kernel's grace periods while they attach and detach, and leave the setting as they found it. (CNI-56, 58, 60)

The setting is the whole machine's, so each node here has a file of its own in its place."""
import pytest
from inside import BPF, EXPEDITED as SETTING, RUN, Stepper, ctl, expedited, inside, own_expedited, succeed
from tcx import LINK_CREATE

LINK_DETACH = 34
MARKER = RUN / "expedited"


@pytest.fixture
def node(applied):
    own_expedited(applied)
    return applied


def to_command(program: Stepper, command: int) -> bool:
    """On to the entry of a bpf()."""
    while program.step():
        number, *arguments = program.system_call()
        if (number, arguments[0]) == (BPF, command):
            return True
    return False


def attach_and_detach(pod, before: tuple[str, bool]) -> list[tuple[str, bool]]:
    """The state in the moment of attaching, after ADD, in the moment of detaching, and after DEL."""
    SETTING.write_text(before[0])
    if before[1]:
        MARKER.touch()
    found = []
    for verb, command in (("ADD", LINK_CREATE), ("DEL", LINK_DETACH)):
        program = Stepper.plugin(verb, pod)
        assert to_command(program, command)
        found.append(expedited())
        answer = program.end()
        assert answer.code == 0, answer
        found.append(expedited())
    return found


@pytest.mark.parametrize("before, during, after", [
    pytest.param(("0", False), ("1", True), ("0", False), id="ours for the moment"),
    pytest.param(("1", False), ("1", False), ("1", False), id="theirs"),
    pytest.param(("1", True), ("1", True), ("0", False), id="left by a killed one"),
    pytest.param(("0", True), ("1", True), ("0", False), id="left by one killed before or after")])
def test_grace_periods_are_expedited_for_the_moment(node, before, during, after):
    found = inside(node, attach_and_detach, node.make_pod("p", 5), before)
    assert found == [during, after, during, after]


@pytest.mark.parametrize("obstacle", [f"mount -o remount,bind,ro {SETTING}", f"umount {SETTING}; mount -t tmpfs tmpfs /sys/kernel",
                                      f"mkdir -p {MARKER}", f": >/run/empty; mount --bind /run/empty {SETTING}"],
                         ids=["read-only", "missing", "no marker", "empty"])
def test_where_the_kernel_cannot_be_told_it_takes_longer_and_that_is_all(node, obstacle):
    pod = node.make_pod("p", 5)
    node.run(obstacle)
    node.add(pod)
    assert node.check(pod).code == 0
    node.delete(pod)
    assert node.traces_of_pods() == []


def two_at_once(pods: list, order: str) -> list:
    """The state while both attach, after each has ended, and at the end. `order`: which of the two ends first."""
    programs = [Stepper.plugin("ADD", pod) for pod in pods]
    for program in programs:
        assert to_command(program, LINK_CREATE)
    found = [expedited()]
    for program in programs if order == "first" else reversed(programs):
        assert program.end().code == 0
        found.append(expedited())
    for pod in pods:
        succeed("CHECK", pod)
        succeed("DEL", pod)
    return [*found, expedited()]


@pytest.mark.parametrize("order", ["first", "last"])
def test_the_last_of_several_puts_the_setting_back(node, order):
    pods = [node.make_pod(f"p{number}", number) for number in (5, 6)]
    assert inside(node, two_at_once, pods, order) == [("1", True), ("1", True), ("0", False), ("0", False)]


def killed_and(then, pod) -> tuple[str, bool]:
    program = Stepper.plugin("ADD", pod)
    assert to_command(program, LINK_CREATE)
    program.kill()
    assert expedited() == ("1", True)
    then(pod)
    return expedited()


def another_add(pod) -> None:
    succeed("ADD", pod)


def delete(pod) -> None:
    succeed("DEL", pod)


def collect(pod) -> None:
    succeed("GC")


def down(pod) -> None:
    ctl("down")


@pytest.mark.parametrize("then", [another_add, delete, collect, down])
def test_what_a_killed_one_left_is_put_back(node, then):
    assert inside(node, killed_and, then, node.make_pod("p", 5)) == ("0", False)
