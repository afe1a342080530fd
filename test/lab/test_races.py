# SPDX-License-Identifier: Apache-2.0
"""Many at once, and one thing in the middle of another: never a wrong mapping, no stall, nothing left. (CNI-36, 56, 59, 61, 62)

Besides racing freely, one side is stopped before each of its system calls that leave a trace, while the other one runs: every order of
what they do."""
import ctypes
import json
import os
import random
import struct
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from inside import (PINS, RUN, Call, Kernel, Stepper, call, ctl, ifindex_of, inside, ip, left_on, lock_is_free, pinned, programs, shell,
                    succeed)
from light_node import CTL, ENVIRONMENT, WEB, NetPod, configuration, egress_class
from tcx import bpf

ROUNDS = 10_000
LONGEST = 30        # seconds for one call: its own limit is 25, that of a lock 10, and it says so
BLOCKED = 0.02      # seconds after which one side counts as waiting for the other

CLASSES = {name: 100 + number for number, name in enumerate(("web", "one", "two", "three", "four"))}
SEVERAL = configuration(*(egress_class(name, vni=vni, egressIPs=[f"203.0.113.{vni - 90}"]) for name, vni in CLASSES.items()))


def configure(config: dict) -> None:
    Path("/etc/egressclass/config.json").write_text(json.dumps(config))


def make_veth(name: str, netns: str, index: int | None = None) -> int:
    ip(f"link add {name} {f'index {index}' if index else ''} type veth peer name eth0 netns {netns}", f"link set {name} up")
    return ifindex_of(name)


def pod(name: str, address: str, namespace: str, host_veth: str | None = None) -> NetPod:
    """What CNI says of a pod: ours needs no more than the interface, for the address is in the result."""
    made = NetPod(name, address, host_veth or f"h{name}", "eth0", namespace)
    made.previous = {"cniVersion": "1.0.0", "interfaces": [{"name": made.host_veth}, {"name": "eth0", "sandbox": made.netns}],
                     "ips": [{"address": f"{address}/16", "interface": 1}]}
    return made


def make_pods(count: int, namespaces: list[str]) -> list[NetPod]:
    pods = [pod(f"p{i}", f"10.244.{i // 200}.{i % 200 + 2}", namespaces[i % len(namespaces)]) for i in range(count)]
    for lines in ([f"netns add {p.name}" for p in pods],
                  [f"link add {p.host_veth} type veth peer name eth0 netns {p.name}" for p in pods],
                  [f"link set {p.host_veth} up" for p in pods]):
        ip(*lines)
    return pods


def clean(kernel: Kernel, *pods: NetPod) -> None:
    assert kernel.traces() == {}
    assert {p.name: programs(index) for p in pods if (index := ifindex_of(p.host_veth)) and left_on(index)} == {}
    assert lock_is_free()


def key_of(address: str) -> bytes:
    return bytes(10) + b"\xff\xff" + bytes(map(int, address.split(".")))


def record(p: NetPod) -> dict | None:
    try:
        return json.loads((RUN / "attachments" / f"lab,{p.name},eth0").read_text())
    except FileNotFoundError:
        return None


def mapping(kernel: Kernel, p: NetPod, vnis: dict[str, int]) -> str:
    """What is wrong with a pod that ADD has given a class. A class that is configured no more has no entry: its packets are dropped."""
    ifindex = ifindex_of(p.host_veth)
    number, endpoint = kernel.class_of(ifindex), kernel.endpoints.get(key_of(p.address))
    said = record(p)
    missing = [what for what, there in (("record", said), ("entry", number), ("endpoint", endpoint), ("classifier", programs(ifindex)))
               if not there]
    if missing or len(programs(ifindex)) != 2:
        return f"{p.name}: without {missing}, programs on the veth: {programs(ifindex)}"
    if struct.unpack_from("II", endpoint, 8) != (ifindex, number):
        return f"{p.name}: endpoint {struct.unpack_from('II', endpoint, 8)}, instead of ifindex {ifindex}, class {number}"
    entry = kernel.classes.get(struct.pack("I", number))
    vni = entry and struct.unpack_from("I", entry)[0]
    if said["class"] != p.namespace or vni not in (None, vnis[p.namespace]):
        return f"{p.name}: class {p.namespace}, record says {said['class']}, the datapath VNI {vni} instead of {vnis[p.namespace]}"
    return ""


# --- many at once

def all_at_once(verb: str, pods: list[NetPod], **env: str) -> None:
    for running in [Call(verb, p, **env) for p in pods]:
        answer = running.answer(LONGEST)
        assert answer.code == 0, answer


def hundred_at_once() -> None:
    configure(SEVERAL)
    ctl("apply")
    kernel, pods = Kernel(), make_pods(100, [*CLASSES, "none"])
    all_at_once("ADD", pods)
    all_at_once("ADD", pods)        # once more for the same pods: no harm
    classed = [p for p in pods if p.namespace != "none"]
    assert [wrong for p in classed if (wrong := mapping(kernel, p, CLASSES))] == []
    assert len(kernel.attachments.keys()) == len(kernel.endpoints.keys()) == len(classed)
    assert all(programs(ifindex_of(p.host_veth)) == [] and record(p) is None for p in pods if p.namespace == "none")
    for p in classed[::10]:
        succeed("CHECK", p)
    all_at_once("DEL", pods)
    all_at_once("DEL", pods, NETNS="")
    clean(kernel, *pods)


def test_cni_56_a_hundred_adds_at_once_and_a_hundred_dels(node):
    inside(node, hundred_at_once)


# --- ADD and DEL of the same attachment

def add_against_del(end_with: str) -> None:
    configure(SEVERAL)
    ctl("apply")
    kernel, (p,) = Kernel(), make_pods(1, ["web"])
    dice = random.Random(5)
    for _ in range(150):
        calls = [Call(verb, p) for verb in dice.sample(["ADD", "DEL"], 2) + dice.choices(["ADD", "DEL"])]
        for running in calls:
            answer = running.answer(LONGEST)
            assert running.verb == "ADD" or (answer.code, answer.out) == (0, ""), answer
        succeed(end_with, p if end_with == "DEL" else None)
        clean(kernel, p)
        ip(f"link set {p.host_veth} up")


def test_add_against_del_of_the_same_attachment(node):
    inside(node, add_against_del, "DEL")


def meanwhile(stopped: Stepper, other: Call) -> tuple:
    """The other one runs to its end while the first is stopped, unless it has to wait for it. The answers of both."""
    try:
        answer = other.answer(BLOCKED)
        return stopped.end(), answer
    except subprocess.TimeoutExpired:
        return stopped.end(), other.answer(LONGEST)


def one_inside_the_other(added: bool, first: str, second: str, end_with: str) -> int:
    configure(SEVERAL)
    ctl("apply")
    kernel, (p,) = Kernel(), make_pods(1, ["web"])
    wrong, number = [], 0
    while True:
        if added:
            succeed("ADD", p)
        program = Stepper.plugin(first, p)
        if not program.to_next(number, Stepper.leaves_a_trace):
            program.end()
            break
        number = program.count
        answers = meanwhile(program, Call(second, p))
        for verb, answer in zip((first, second), answers):
            if verb == "DEL" and answer.code:
                wrong.append(f"{first} stopped at system call {number}: {verb}: {answer}")
        succeed(end_with, p if end_with == "DEL" else None)
        if left := kernel.traces() or left_on(ifindex_of(p.host_veth)):
            wrong.append(f"{first} stopped at system call {number} for {second}, then {end_with}: left {left}")
        succeed("DEL", p)
        ip(f"link set {p.host_veth} up")
    assert not wrong, "\n".join(wrong)
    return number


@pytest.mark.parametrize("added, first, second, end_with", [
    (False, "ADD", "DEL", "DEL"), (False, "ADD", "DEL", "GC"), (False, "ADD", "ADD", "DEL"), (False, "DEL", "ADD", "GC"),
    (True, "DEL", "ADD", "DEL"), (True, "DEL", "ADD", "GC"), (True, "DEL", "DEL", "DEL")],
    ids=lambda value: value if isinstance(value, str) else "added" if value else "new")
def test_one_call_in_the_middle_of_another_for_the_same_attachment(node, added, first, second, end_with):
    assert inside(node, one_inside_the_other, added, first, second, end_with) > 40


# --- the same ifindex and the same address, at once

def reuse(first_verb: str) -> None:
    """A pod's call is stopped in the middle; its veth goes, and another pod gets its ifindex and its address. (Only heirs with a class:
    one without takes no notice of us, and the kernel knows interfaces by no better name than their ifindex.)"""
    configure(SEVERAL)
    ctl("apply")
    kernel = Kernel()
    ip("netns add a", "netns add b")
    old, heir = pod("a", "10.244.0.5", "one", "ha"), pod("b", "10.244.0.5", "two", "hb")
    wrong, number, ended = [], 0, False
    while not ended:
        ifindex = make_veth("ha", "a", 4000)
        if first_verb == "DEL":
            succeed("ADD", old)
        program = Stepper.plugin(first_verb, old)
        ended = not program.to_next(number, Stepper.leaves_a_trace)
        number = program.count
        ip("link del ha")
        assert make_veth("hb", "b", 4000) == ifindex
        if ended:
            program.end()
            answer = call("ADD", heir)
        else:
            _, answer = meanwhile(program, Call("ADD", heir))
        where = f"{first_verb} of the old pod stopped at system call {number}"
        if answer.code:
            wrong.append(f"{where}: ADD of its heir: {answer}")
        for moment in ("", ", and a late DEL of it"):
            if moment:
                succeed("DEL", old, NETNS="")
            if answer.code == 0 and (what := mapping(kernel, heir, CLASSES)):
                wrong.append(f"{where}{moment}: {what}")
            elif answer.code == 0 and (checked := call("CHECK", heir)).code:
                wrong.append(f"{where}{moment}: {checked}")
        succeed("DEL", heir)
        if kernel.traces():
            wrong.append(f"{where}: left {kernel.traces()}")
            succeed("GC")
        ip("link del hb")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("first_verb", ["DEL", "ADD"])
def test_cni_36_the_ifindex_and_the_address_of_a_pod_in_the_middle_of_a_call_go_to_another(node, first_verb):
    inside(node, reuse, first_verb)


@pytest.mark.parametrize("namespace, wanted", [("far", ""), ("none", "10.244.0.5")])
def test_cni_36_a_pod_with_the_ifindex_and_the_address_of_one_that_was_never_deleted(applied, outside, namespace, wanted):
    old = applied.make_pod("a", 5, index=4000)
    applied.add(old)
    assert applied.seen_as(old) == "203.0.113.7"
    applied.remove_pod(old)
    heir = applied.make_pod("b", 5, index=4000, namespace=namespace)
    applied.add(heir)
    before = applied.traces_of_pods()
    assert applied.seen_as(heir, 1) == wanted
    applied.delete(old, NETNS="")
    if namespace == "none":
        assert applied.traces_of_pods() == []
    else:
        assert applied.check(heir).code == 0
        assert [trace for trace in before if "lab,a," not in trace] == applied.traces_of_pods()
    assert applied.link(heir.host_veth)["operstate"] == "UP"
    assert applied.seen_as(heir, 1) == wanted
    applied.delete(heir)
    assert applied.traces_of_pods() == []


# --- against egressctl

VNIS = {"web": 101, "old": 102, "new": 103}
ANOTHER = {**WEB, "vni": 101}
OLD = configuration(ANOTHER, egress_class("old", egressIPs=["203.0.113.9"], vni=102))
NEW = configuration(egress_class("new", egressIPs=["203.0.113.8"], vni=103), ANOTHER)


def add_against(change) -> None:
    """Pods of three classes come and go while `change` runs again and again."""
    configure(OLD)
    ctl("apply")
    pods, wrong, count = make_pods(6, [*VNIS]), [], Counter()
    started = time.monotonic()

    def is_over() -> bool:
        took, rarest = time.monotonic() - started, min(count["changes"], *(count[p.name] for p in pods))
        if took > 100:
            wrong.append(f"a stall: {count}")
        return bool(wrong) or (took > 5 and rarest >= 10)

    def come_and_go(p: NetPod) -> None:
        while not is_over():
            answer = Call("ADD", p).answer(LONGEST)
            if answer.code == 0:
                count[p.name] += 1
            elif answer.json["code"] != 103:
                wrong.append(f"ADD {p.name}: {answer}")
            if answer.code == 0 and record(p) is not None:
                try:
                    if what := mapping(Kernel(), p, VNIS):
                        wrong.append(what)
                except FileNotFoundError as error:
                    wrong.append(f"{p.name} runs, and its maps are gone: {error}")
            answer = Call("DEL", p).answer(LONGEST)
            if answer.code or answer.out:
                wrong.append(f"DEL {p.name}: {answer}")
            if answer := Call("DEL", p).answer(LONGEST).code:
                wrong.append(f"DEL {p.name}, again: {answer}")

    def keep_changing() -> None:
        while not is_over():
            change(count["changes"], wrong)
            count["changes"] += 1

    def to_the_end(work, *arguments) -> None:
        try:
            work(*arguments)
        except Exception as error:      # noqa: BLE001: whatever it is, the others need not go on
            wrong.append(repr(error))

    with ThreadPoolExecutor(len(pods) + 1) as pool:
        pool.submit(to_the_end, keep_changing)
        for p in pods:
            pool.submit(to_the_end, come_and_go, p)
    assert not wrong, "\n".join(wrong[:20])
    configure(OLD)
    ctl("apply")
    clean(Kernel(), *pods)
    ctl("down")
    assert not Path(PINS).exists() and not RUN.exists()


def run_ctl(wrong: list[str], *words: str) -> None:
    started = time.monotonic()
    done = subprocess.run([CTL, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=30)
    if done.returncode:
        wrong.append(f"{words}: {done.returncode} after {time.monotonic() - started:.1f} s: {done.stderr}")


def change_classes(turn: int, wrong: list[str]) -> None:
    configure(OLD if turn % 2 else NEW)
    run_ctl(wrong, "apply")


def down_and_apply(turn: int, wrong: list[str]) -> None:
    run_ctl(wrong, *(("apply",) if turn % 2 else ("down",)))


@pytest.mark.parametrize("change", [change_classes, down_and_apply])
def test_add_against_egressctl(node, change):
    inside(node, add_against, change)


FLOCK = {"x86_64": 73, "aarch64": 32}[os.uname().machine]


def lock_of_a_folder_that_is_gone() -> None:
    """ADD has opened the lock file, and waits; `down` removes it, `apply` makes another one. Do they still exclude each other?"""
    (p,) = make_pods(1, ["old"])
    wrong, further, ended = [], 1, False
    while not ended:
        configure(OLD)
        ctl("apply")
        program = Stepper.plugin("ADD", p)
        while program.step() and program.system_call()[0] != FLOCK:
            pass
        ctl("down")
        ctl("apply")
        number = program.count + further
        further += 15
        if ended := not program.to(number):
            program.end()
            succeed("DEL", p)
            continue
        configure(NEW)
        change = subprocess.Popen([CTL, "apply"], env=ENVIRONMENT, stdout=-3, stderr=-3)
        try:
            change.wait(0.3)
        except subprocess.TimeoutExpired:
            pass
        answer = program.end()
        change.wait(LONGEST)
        # no record: the change came first, and its configuration has no class for the pod
        if answer.code == 0 and record(p) is not None and (what := mapping(Kernel(), p, VNIS)):
            wrong.append(f"ADD stopped at system call {number}: {what}")
        succeed("DEL", p)
        ip(f"link set {p.host_veth} up")
    assert not wrong, "\n".join(wrong)


def test_add_that_waits_for_down_and_then_meets_apply(node):
    inside(node, lock_of_a_folder_that_is_gone)


# --- thousands

LINK_NEXT, LINK_BY_ID, OBJ_INFO = 31, 30, 15


def links_of(program: int) -> int:
    """How many links have this program, pinned or not."""
    number = count = 0
    while True:
        try:
            _, answer = bpf(LINK_NEXT, struct.pack("III", number, 0, 0))
        except FileNotFoundError:
            return count
        number = struct.unpack_from("I", answer, 4)[0]
        try:
            handle, _ = bpf(LINK_BY_ID, struct.pack("III", number, 0, 0))
        except FileNotFoundError:
            continue
        buffer = bytearray(256)
        room = (ctypes.c_char * 256).from_buffer(buffer)
        bpf(OBJ_INFO, struct.pack("IIQ", handle, 256, ctypes.addressof(room)))
        os.close(handle)
        count += struct.unpack_from("III", buffer)[2] == program


def belongings() -> dict:
    """All that could grow: kernel objects, pins, files, memory, and processes, which hold descriptors and memory."""
    maps = {}
    for name in sorted(os.listdir(f"{PINS}/maps")):
        handle = pinned(f"{PINS}/maps/{name}")
        lines = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{handle}").read_text().splitlines())
        os.close(handle)
        maps[name] = (int(lines["map_id"]), int(lines["memlock"]))
    ours = {number for number, _ in maps.values()}
    users = [entry["id"] for entry in json.loads(shell("bpftool -j prog show")) if ours & set(entry.get("map_ids", ()))]
    classifier = json.loads(shell(f"bpftool -j prog show pinned {PINS}/programs/classify"))["id"]
    return {"maps": maps, "programs": users, "links": links_of(classifier), "pins": shell("find /sys/fs/bpf | sort"),
            "files": shell(f"find {RUN} | sort"), "processes": sum(name.isdigit() for name in os.listdir("/proc")),
            "interfaces": shell("ip -o link | wc -l"), "rules": shell("ip rule; nft list ruleset | grep -v counter | grep -v packets")}


def await_end_of(program: str) -> None:
    deadline = time.monotonic() + 10
    while program in shell("ps -e -o comm="):
        assert time.monotonic() < deadline, f"{program} does not end"
        time.sleep(0.1)


def come_and_go_by_thousands() -> tuple[dict, dict]:
    configure(SEVERAL)
    ctl("apply")
    await_end_of("egressctl")       # it announces egress IPs again, seconds later
    pods = make_pods(4, ["web", "one", "two", "three"])
    for p in pods:      # per-CPU parts and folders that come with the first use
        succeed("ADD", p)
        succeed("DEL", p)
    clean(Kernel(), *pods)

    def work(p: NetPod) -> None:
        for _ in range(ROUNDS // len(pods)):
            succeed("ADD", p)
            succeed("DEL", p)

    before = belongings()
    with ThreadPoolExecutor(len(pods)) as pool:
        for running in [pool.submit(work, p) for p in pods]:
            running.result()
    deadline = time.monotonic() + 10        # the kernel frees memory after grace periods
    while (after := belongings()) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    return before, after


def test_thousands_of_adds_and_dels_leave_everything_as_it_was(node):
    before, after = inside(node, come_and_go_by_thousands)
    assert after == before
