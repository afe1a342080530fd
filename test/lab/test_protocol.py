# SPDX-License-Identifier: Apache-2.0
"""The plugin's protocol: the real binary, executed with environment and stdin. Cases carry the numbers of the CNI checklist."""
from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import time

import pytest
from inside import inside, least_cpu_time
from labkit.assets import REPOSITORY
from light_node import (ANNOTATIONS, BOTH, FAR, PINS, PLUGIN, VERSIONS, WEB, Answer, LightNode, NetPod, configuration, egress_class,
                        network)

RESULT = {"cniVersion": "1.0.0", "interfaces": [{"name": "br0"}, {"name": "v1"}, {"name": "eth0", "sandbox": "/run/netns/p"}],
          "ips": [{"address": "10.244.0.5/24", "gateway": "10.244.0.1", "interface": 2}], "dns": {}}
ATTACHMENT = {"CONTAINERID": "c1", "NETNS": "/run/netns/p", "IFNAME": "eth0"}
CONFIG = network(RESULT)
NEWEST = VERSIONS[-1]


def case(name: str, *values):
    return pytest.param(*values, id=name)


def without(mapping: dict, *keys: str) -> dict:
    return {key: value for key, value in mapping.items() if key not in keys}


def error(answer: Answer, code: int, *texts: str, version: str | None = None) -> dict:
    """CNI-09: the error object is all of stdout, and complete; CNI-64: stderr has at most one line, of a log."""
    assert answer.code not in (0, None) and answer.code > 0, answer
    found = answer.json
    assert set(found) == {"cniVersion", "code", "msg", "details"}, answer
    assert found["code"] == code, answer
    assert found["cniVersion"] == version if version else found["cniVersion"] in VERSIONS, answer
    assert found["msg"] and isinstance(found["details"], str)
    said = f"{found['msg']}; {found['details']}"
    for text in texts:
        assert text in said, f"{text!r} is not in {said!r}"
    assert answer.err.count("\n") <= 1 and answer.err.rstrip("\n").isprintable(), answer
    assert not answer.err or f"code={code}" in answer.err, answer
    return found


def silent(answer: Answer) -> None:
    assert (answer.code, answer.out, answer.err) == (0, "", ""), answer


def passed_on(answer: Answer) -> dict:
    """CNI-08: success of ADD is exactly one document."""
    assert (answer.code, answer.err) == (0, ""), answer
    return answer.json


# --- the environment, and stdin

REFUSED = [
    # name, verb, stdin, environment, code, texts
    case("CNI-01 ADD without variables names all", "ADD", CONFIG, {}, 4, ["CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"]),
    case("CNI-01 CHECK without variables names all", "CHECK", CONFIG, {}, 4, ["CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"]),
    case("CNI-01 DEL without variables names all, and asks for no netns", "DEL", CONFIG, {}, 4, ["[CNI_CONTAINERID,CNI_IFNAME]"]),
    case("CNI-01 empty is missing", "ADD", CONFIG, ATTACHMENT | {"NETNS": ""}, 4, ["[CNI_NETNS]"]),
    case("CNI-01 environment before stdin", "ADD", b"garbage", {}, 4, ["CNI_NETNS"]),
    case("CNI-03 unknown verb", "UPDATE", CONFIG, ATTACHMENT, 4, ["UPDATE"]),
    case("CNI-03 verbs are upper case", "add", CONFIG, ATTACHMENT, 4, ["add"]),
    *(case(f"CNI-02 container id {value!a}", "ADD", CONFIG, ATTACHMENT | {"CONTAINERID": value}, 4, ["CNI_CONTAINERID"])
      for value in ("../x", "-x", ".x", "a b", "a/b", "a,b", "\u00e4", "a\nb", "x" * 256)),
    *(case(f"CNI-02 ifname {value!a}", "ADD", CONFIG, ATTACHMENT | {"IFNAME": value}, 4, ["CNI_IFNAME"])
      for value in ("x" * 16, "a/b", "a:b", "a b", "a\tb", "a\n", ".", "..")),
    *(case(f"CNI-02 network name {value!a}", "ADD", CONFIG | {"name": value}, ATTACHMENT, 7, ["network name"])
      for value in ("", "-x", "a/b", "a b", "../..", 5, ["x"])),
    case("CNI-07 name is missing", "ADD", without(CONFIG, "name"), ATTACHMENT, 7, ["missing network name"]),
    case("CNI-07 name is missing on DEL", "DEL", without(CONFIG, "name"), ATTACHMENT, 7, ["missing network name"]),
    case("CNI-07 empty stdin", "ADD", b"", ATTACHMENT, 6, []),
    case("CNI-07 broken JSON with its place", "ADD", b'{"name": "lab",\n  oops}', ATTACHMENT, 6, ["line 2"]),
    case("CNI-07 two documents", "ADD", b"{}{}", ATTACHMENT, 6, []),
    case("CNI-07 no object", "ADD", b"[]", ATTACHMENT, 6, ["array"]),
    case("CNI-07 null", "ADD", b"null", ATTACHMENT, 6, []),
    case("CNI-07 no UTF-8", "ADD", b'{"name":"\xff"}', ATTACHMENT, 6, []),
    case("CNI-07 nested too deep", "ADD", b'{"x":' * 100000, ATTACHMENT, 6, ["nested"]),
    case("CNI-07 too large", "ADD", b'"' + b"x" * (5 << 20) + b'"', ATTACHMENT, 5, ["stdin"]),
    case("CNI-07 cniVersion of another type", "ADD", CONFIG | {"cniVersion": 1.0}, ATTACHMENT, 6, ["cniVersion"]),
    *(case(f"CNI-05 version {value!r}", "ADD", CONFIG | {"cniVersion": value}, ATTACHMENT, 1,
           [f'"{value}"', ", ".join(VERSIONS)]) for value in ("0.1.0", "0.2.0", "0.3", "1.2.0", "v1.0.0", "1.0.0 ", "")),
    case("CNI-05 no version means 0.1.0", "ADD", without(CONFIG, "cniVersion"), ATTACHMENT, 1, ['"0.1.0"']),
    *(case(f"CNI-06 CHECK at {version}", "CHECK", CONFIG | {"cniVersion": version}, ATTACHMENT, 1, ["CHECK", "0.4.0"])
      for version in ("0.3.0", "0.3.1")),
    *(case(f"CNI-06 {verb} at {version}", verb, network(version=version), {}, 1, [verb, "1.1.0"])
      for verb in ("GC", "STATUS") for version in ("0.3.1", "0.4.0", "1.0.0")),
    case("CNI-17 no prevResult", "ADD", network(), ATTACHMENT, 7, ["chained", "prevResult"]),
    case("CNI-17 prevResult null", "ADD", network() | {"prevResult": None}, ATTACHMENT, 7, ["prevResult"]),
    case("CNI-17 prevResult of another type", "ADD", network() | {"prevResult": []}, ATTACHMENT, 7, ["prevResult"]),
    case("CNI-19 prevResult of an unknown version", "ADD", network(RESULT | {"cniVersion": "9.9.9"}), ATTACHMENT, 1, ["9.9.9"]),
    case("CNI-52 CNI_ARGS without =", "ADD", CONFIG, ATTACHMENT | {"ARGS": "K8S_POD_NAME"}, 4, ["K8S_POD_NAME"]),
    case("CNI-52 CNI_ARGS without a key", "ADD", CONFIG, ATTACHMENT | {"ARGS": "=x"}, 4, ["CNI_ARGS"]),
    case("CNI-52 CNI_ARGS is bounded", "ADD", CONFIG, ATTACHMENT | {"ARGS": "A=" + "x" * 20000}, 4, ["CNI_ARGS"]),
]


@pytest.mark.parametrize("verb, stdin, env, code, texts", REFUSED)
def test_bad_request_is_refused_with_the_code_of_the_specification(shared, verb, stdin, env, code, texts):
    error(shared.call(verb, stdin, **env), code, *texts)


@pytest.mark.parametrize("command, code", [("exec $P </", 5), ("exec $P <&-", 5)],
                         ids=["CNI-07 stdin is a folder", "CNI-07 stdin is closed"])
def test_unreadable_stdin_is_an_io_failure(shared, command, code):
    env = {"P": str(PLUGIN), "CNI_COMMAND": "ADD"} | {f"CNI_{key}": value for key, value in ATTACHMENT.items()}
    with shared.popen(command, env=env, stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        out, err = process.communicate(timeout=10)
    error(Answer(process.returncode, out, err), code, "stdin")


@pytest.mark.parametrize("version", VERSIONS, ids=[f"CNI-09 {version}" for version in VERSIONS])
def test_error_carries_the_version_of_the_request(shared, version):
    error(shared.call("ADD", network(version=version), **ATTACHMENT), 7, version=version)


def test_error_before_a_version_is_known_carries_the_newest(shared):
    """CNI-09"""
    error(shared.call("ADD", b"{", **ATTACHMENT), 6, version=NEWEST)
    error(shared.call("ADD", CONFIG), 4, version=NEWEST)


@pytest.mark.parametrize("value", [None, ""], ids=["CNI-03 no CNI_COMMAND", "CNI-03 empty CNI_COMMAND"])
def test_without_a_command_the_plugin_introduces_itself_on_stderr(shared, value):
    answer = shared.call(value)
    assert (answer.code, answer.out) == (0, "")
    assert "egressclass" in answer.err and all(version in answer.err for version in VERSIONS)


@pytest.mark.parametrize("verb, config", [("ADD", CONFIG), ("DEL", CONFIG)], ids=["CNI-15 ADD", "CNI-15 DEL"])
def test_nothing_but_the_protocols_own_variables_is_needed(shared, verb, config):
    """No PATH, HOME, CNI_PATH; a strange locale, tracing variables of libcni, and a working folder that is gone."""
    strange = {"LC_ALL": "tr_TR.UTF-8", "TZ": ":/nowhere", "TRACEPARENT": "00-x", "TRACESTATE": "y=\xff", "BAGGAGE": "z"}
    env = strange | {"CNI_COMMAND": verb} | {f"CNI_{key}": value for key, value in ATTACHMENT.items()}
    script = ["/bin/sh", "-c", f"/bin/mkdir -p /run/gone; cd /run/gone; /bin/rmdir /run/gone; exec {PLUGIN}"]
    with shared.popen(script, env=env, stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        out, err = process.communicate(json.dumps(config), timeout=10)
    answer = Answer(process.returncode, out, err)
    if verb == "ADD":
        assert passed_on(answer) == RESULT
    else:
        silent(answer)


def test_every_code_of_ours_is_in_the_readme():
    """CNI-13"""
    header = (REPOSITORY / "plugin" / "cni" / "codes.h").read_text()
    ours = [code for code in re.findall(r"k\w+ = (\d{3});", header) if code != "999"]
    readme = (REPOSITORY / "README.md").read_text()
    assert len(ours) >= 8 and [code for code in ours if not re.search(rf"\|\s*{code}\s*\|", readme)] == []


# --- VERSION

def test_version_needs_no_privilege_no_stdin_and_no_state(node):
    """CNI-04, as nobody, from a place that nobody can read."""
    node.install(PLUGIN, "/opt/cni/bin/egressclass")
    before = node.snapshot()
    for stdin in ("</dev/null", "<&-"):
        command = f"CNI_COMMAND=VERSION exec setpriv --reuid=65534 --regid=65534 --clear-groups /opt/cni/bin/egressclass {stdin}"
        answer = node.run(command)
        assert json.loads(answer.stdout) == {"cniVersion": NEWEST, "supportedVersions": VERSIONS}
        assert answer.stderr == ""
    assert node.snapshot() == before


@pytest.mark.parametrize("stdin, version", [
    *(case(f"CNI-04 asked in {version}", json.dumps({"cniVersion": version}), version) for version in VERSIONS),
    case("CNI-04 asked in an unknown one", '{"cniVersion": "7.0.0"}', NEWEST), case("CNI-04 asked in none", "{}", NEWEST),
    case("CNI-04 stdin is garbage", "garbage", NEWEST), case("CNI-04 stdin is too large", "x" * (5 << 20), NEWEST),
    case("CNI-04 version of another type", '{"cniVersion": 1}', NEWEST)])
def test_version_answers_whatever_stdin_holds(shared, stdin, version):
    answer = shared.call("VERSION", stdin)
    assert (answer.code, answer.err) == (0, "")
    assert answer.json == {"cniVersion": version, "supportedVersions": VERSIONS}     # CNI-05


def test_version_does_not_wait_for_stdin(shared):
    """CNI-04: an operator at a terminal, or a runtime that leaves stdin open."""
    with shared.popen([str(PLUGIN)], env={"CNI_COMMAND": "VERSION"}, stdin=-1, stdout=-1) as process:
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        ended = process.poll()
        process.stop(signal.SIGKILL)        # the plugin, and not nsenter: an orphan would keep the node's pid namespace
        assert ended == 0


@pytest.mark.parametrize("verb", [case("CNI-04 VERSION", "VERSION"), case("CNI-22 ADD of a pod without a class", "ADD"),
                                  case("CNI-49 STATUS", "STATUS")])
def test_cheap_verbs_take_milliseconds(applied, verb):
    """The benchmark measures how many."""
    pod = NetPod("c1", "10.244.0.5", "", namespace="other", previous=RESULT)
    assert inside(applied, least_cpu_time, verb, pod if verb == "ADD" else None) < 0.005


# --- prevResult

ODD = {"zeta": {"nested": [1, 2.5, None, True, "\u00e4\"\\\u2028"]}, "cniVersion": "1.0.0", "ips": [],
       "alpha": -7, "interfaces": [{"sandbox": "/x", "socketPath": "/s", "name": "eth0", "mac": "no MAC", "extra": {"b": 1, "a": 2}}],
       "routes": [{"gw": "10.0.0.1", "dst": "0.0.0.0/0", "priority": 5}], "dns": {"search": [], "nameservers": None}, "": "empty key"}


def chained(result: str, version: str = "1.0.0") -> str:
    """stdin with a result as it is written."""
    return json.dumps(network(version=version)).removesuffix("}") + f', "prevResult": {result} , "x": [1]}}'


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n\t", " :  ")], ids=["dense", "usual", "wide"])
@pytest.mark.parametrize("version", VERSIONS, ids=[f"CNI-18 {version}" for version in VERSIONS])
def test_prev_result_is_passed_on_byte_for_byte(shared, version, separators):
    """Unknown keys, order, odd values; CNI-21: nothing is added, and nothing reordered."""
    text = json.dumps({**ODD, "cniVersion": version}, ensure_ascii=False, separators=separators)
    answer = shared.call("ADD", chained(text, version), **ATTACHMENT)
    passed_on(answer)
    assert answer.out == text


def test_numbers_are_passed_on_as_they_are(shared):
    """CNI-18: the raw object is what was read."""
    text = '{ "cniVersion":"1.0.0",\n"ips":[],"big":12345678901234567890123,"decimal":1.10,"exponent":1e2,"-":-0, "\\u0041\\"}":"\\/"}'
    answer = shared.call("ADD", chained(text), **ATTACHMENT)
    assert answer.out == text


def test_of_two_results_the_last_counts(shared):
    """CNI-18: as for parsers, also when they are not plain to see."""
    first, last = ({"cniVersion": "1.0.0", "n": number} for number in (1, 2))
    for keys in (("prevResult", "prevResult"), ("prevResult", "prev\\u0052esult"), ("prev\\u0052esult", "prevResult")):
        config = json.dumps(network()).removesuffix("}")
        for key, value in zip(keys, (first, last)):
            config += f', "{key}": {json.dumps(value)}'
        assert passed_on(shared.call("ADD", config + "}", **ATTACHMENT)) == last


V0 = {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.2/24"}, {"version": "6", "address": "fd00::2/64"}]}
V1 = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}]}
V11 = {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}],
       "interfaces": [{"name": "eth0", "mtu": 1500, "socketPath": "/s", "pciID": "1"}],
       "routes": [{"dst": "0.0.0.0/0", "mtu": 1, "advmss": 2, "priority": 3, "table": 4, "scope": 5}]}


@pytest.mark.parametrize("result, version, expected", [
    case("CNI-19 0.4.0 to 1.0.0", V0, "1.0.0", V1), case("CNI-19 1.0.0 to 0.4.0", V1, "0.4.0", {**V1, **V0}),
    case("CNI-19 0.4.0 to 0.3.1", V0, "0.3.1", V0 | {"cniVersion": "0.3.1"}),
    case("CNI-19 1.0.0 to 1.1.0", V1, "1.1.0", V1 | {"cniVersion": "1.1.0"}),
    case("CNI-19 1.1.0 to 0.4.0", V11, "0.4.0", {**V0, "interfaces": [{"name": "eth0"}], "routes": [{"dst": "0.0.0.0/0"}]}),
    case("CNI-19 none counts as the configuration's", without(V0, "cniVersion"), "0.4.0", V0),
    case("CNI-19 null counts as none", V1 | {"cniVersion": None}, "1.0.0", V1)])
def test_result_is_converted_when_the_versions_differ(shared, result, version, expected):
    assert passed_on(shared.call("ADD", network(result, version), **ATTACHMENT)) == expected


@pytest.mark.parametrize("result", [
    case("CNI-20 empty", {}), case("CNI-20 null lists", {"interfaces": None, "ips": None, "routes": None, "dns": None}),
    case("CNI-20 lists of other types", {"interfaces": {}, "ips": "x", "routes": 5, "dns": []}),
    case("CNI-20 entries of other types", {"interfaces": [None, 1, []], "ips": [None, 1, [], {"address": 5}], "routes": ["x"]}),
    case("CNI-20 indexes out of range", {"interfaces": [], "ips": [{"address": "10.0.0.2/24", "interface": 9},
                                                                 {"address": "10.0.0.3/24", "interface": -1}]}),
    case("CNI-20 odd sandbox, MAC, address", {"interfaces": [{"name": 5, "mac": "zz", "sandbox": 7}], "ips": [{"address": "no/99"}]})])
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_odd_results_are_accepted(shared, result, version):
    assert passed_on(shared.call("ADD", network(result, version), **ATTACHMENT)) == result | {"cniVersion": version}


# --- stdout

def test_a_slow_reader_gets_the_whole_document(shared):
    """CNI-08: short writes."""
    result = RESULT | {"padding": "x" * (1 << 20)}
    env = {"CNI_COMMAND": "ADD"} | {f"CNI_{key}": value for key, value in ATTACHMENT.items()}
    with shared.popen([str(PLUGIN)], env=env, stdin=-1, stdout=-1, pipesize=4096) as process:
        process.stdin.write(json.dumps(network(result)).encode())
        process.stdin.close()
        time.sleep(0.1)
        out = process.stdout.read()
        assert process.wait(10) == 0
    assert json.loads(out) == result


@pytest.mark.parametrize("target", ["| true", ">/dev/full", ">&-"], ids=["CNI-12 reader is gone", "CNI-08 full", "CNI-08 closed"])
def test_an_answer_that_cannot_be_written_is_no_success(shared, target):
    shared.write("/run/config.json", json.dumps(network(RESULT | {"padding": "x" * (1 << 20)})))
    script = f"{{ {PLUGIN} </run/config.json; echo $? >&2; }} {target}"
    env = {"PATH": "/usr/bin:/bin", "CNI_COMMAND": "ADD"} | {f"CNI_{key}": value for key, value in ATTACHMENT.items()}
    with shared.popen(script, env=env, stderr=-1, text=True) as process:
        said = process.stderr.read().split()
        process.wait(10)
    assert said == ["1"]        # an exit code, not a signal, and no other word


def test_no_memory_is_an_error_object(shared):
    """CNI-12: wherever it runs out. CNI-11: what the C++ library says of it goes nowhere, or to stderr."""
    result = RESULT | {"padding": [[0]] * 600_000}
    stdin, succeeded = json.dumps(network(result)), []
    for megabytes in range(10, 100, 5):
        answer = shared.call("ADD", stdin, before=f"prlimit --as={megabytes}000000", **ATTACHMENT)
        succeeded.append(answer.code == 0)
        if answer.code:
            error(answer, 999)
        else:
            assert answer.json == result
    assert 5 < succeeded.index(True) and succeeded == sorted(succeeded)


# --- pods without a class

def test_pod_without_class_starts_when_nothing_of_ours_is_there(node):
    """CNI-22: no configuration, no state folder, no bpffs; and it leaves none."""
    node.run("umount /sys/fs/bpf; rmdir /etc/egressclass")
    before = node.snapshot()
    assert passed_on(node.call("ADD", CONFIG, **ATTACHMENT)) == RESULT
    silent(node.call("CHECK", CONFIG, **ATTACHMENT))
    silent(node.call("DEL", CONFIG, **ATTACHMENT))
    silent(node.call("STATUS", network(version="1.1.0")))
    assert node.snapshot() == before
    assert not node.path("/run/egressclass").exists()


@pytest.mark.parametrize("change", [
    case("CNI-14 ipam, dns, args, ipMasq", {"ipam": {"type": "x"}, "dns": {"x": 1}, "args": {"cni": 1}, "ipMasq": True}),
    case("CNI-14 unknown keys and cni.dev", {"cni.dev/attachments": 5, "cni.dev/x": {}, "whatever": [[[]]], "": 0}),
    case("CNI-14 capabilities of any type", {"capabilities": 5, "runtimeConfig": {"portMappings": [1], "bandwidth": None}}),
    case("CNI-54 runtimeConfig null", {"runtimeConfig": None}), case("CNI-54 runtimeConfig of another type", {"runtimeConfig": [1]}),
    case("CNI-54 annotations null", {"runtimeConfig": {ANNOTATIONS: None}}),
    case("CNI-54 annotations of another type", {"runtimeConfig": {ANNOTATIONS: ["x"]}}),
    case("CNI-55 annotation values of other types", {"runtimeConfig": {ANNOTATIONS: {"egressclass.io/class": 5, "x": None}}}),
    case("CNI-55 other annotations", {"runtimeConfig": {ANNOTATIONS: {"\u0000": "\u0000", "k" * 5000: "v" * 100000}}})])
def test_what_is_not_ours_is_ignored(shared, change):
    assert passed_on(shared.call("ADD", CONFIG | change, **ATTACHMENT)) == RESULT


def test_pod_without_class_starts_when_classes_are_applied(applied):
    before = applied.snapshot()
    pod = applied.make_pod("plain", 9, namespace="other")
    changed = applied.snapshot()
    applied.add(pod)
    silent(applied.check(pod))          # CNI-44
    applied.delete(pod)
    assert applied.snapshot() == changed
    applied.remove_pod(pod)
    assert applied.snapshot().splitlines()[:40] == before.splitlines()[:40]


# --- pods with a class that cannot be in force

def pod_of(namespace: str, name: str = "p") -> dict:
    return ATTACHMENT | {"ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"}


def annotated(value) -> dict:
    return CONFIG | {"runtimeConfig": {ANNOTATIONS: {"egressclass.io/class": value}}}


@pytest.mark.parametrize("config", [case("CNI-23 selected", CONFIG), case("CNI-23 annotated", annotated("web"))])
def test_pod_with_class_does_not_start_before_apply(node, config):
    node.configure(BOTH)
    before = node.snapshot()
    env = pod_of("web") if "runtimeConfig" not in config else pod_of("other")
    error(node.call("ADD", config, **env), 103, '"web"', "egressctl apply")
    assert node.snapshot() == before


def test_nobody_can_say_the_class_of_a_pod_while_the_configuration_is_broken(node):
    """CNI-10: the details name file, place and reason."""
    node.configure('{"classes": [,]}')
    answer = node.call("ADD", CONFIG, **pod_of("web"))
    error(Answer(answer.code, answer.out, ""), 102, "/etc/egressclass/config.json", "line 1")
    node.run("truncate -s 17M /etc/egressclass/config.json")
    error(node.call("ADD", CONFIG, **pod_of("web")), 102, "/etc/egressclass/config.json", "more than")
    node.run("rm /etc/egressclass/config.json; mkdir /etc/egressclass/config.json")
    error(node.call("ADD", CONFIG, **pod_of("web")), 102, "/etc/egressclass/config.json", "Is a directory")


def test_after_a_boot_a_broken_configuration_does_not_stop_pods_without_a_class(applied):
    """CNI-22: what was applied last says who has one."""
    applied.run("rm -rf /run/egressclass; umount /sys/fs/bpf; mount -t bpf bpf /sys/fs/bpf")
    applied.configure("broken")
    assert passed_on(applied.call("ADD", CONFIG, **pod_of("other"))) == RESULT
    error(applied.call("ADD", CONFIG, **pod_of("web")), 103, '"web"')


def test_log_is_one_line_per_call(node):
    """CNI-64"""
    node.configure('{"classes": [,]}')
    error(node.call("ADD", CONFIG, **pod_of("web")), 102)


def test_what_is_applied_counts_and_not_the_file(applied):
    applied.configure("broken")
    pod = applied.make_pod("p1", 5)
    applied.add(pod)
    assert passed_on(applied.call("ADD", CONFIG, **pod_of("other"))) == RESULT


HOSTILE = "a\u0000\u001b[31m\n\"\\" + "\u00e4" * 1000 + "x" * 100_000


@pytest.mark.parametrize("value", ["nosuch", "", " web", "WEB", "web\n", "../web", "*", HOSTILE],
                         ids=lambda value: f"CNI-55 {value[:8]!a}")
def test_annotation_with_an_unknown_class_names_class_and_file(shared_both, value):
    said = error(shared_both.call("ADD", annotated(value), **pod_of("shop")), 100, "/etc/egressclass/config.json", "shop/p", "web")
    text = said["msg"] + said["details"]
    assert len(text) < 1000 and all(" " <= c <= "~" for c in text)
    if value == "nosuch":
        assert '"nosuch"' in said["msg"]


def test_annotation_of_a_class_that_the_namespace_may_not_use(node):
    node.configure(configuration(egress_class("partner", select=[], namespaces=["crm", "shop-*"])))
    for namespace in ("shop-1", "crm"):
        error(node.call("ADD", annotated("partner"), **pod_of(namespace)), 103)     # allowed, and not applied
    error(node.call("ADD", annotated("partner"), **pod_of("other")), 101, '"partner"', '"other"', "crm", "/etc/egressclass/config.json")


@pytest.fixture(scope="module")
def shared_both(shared) -> LightNode:
    """The shared node while a configuration is there and not applied: a class shows itself by code 103."""
    shared.configure(BOTH)
    yield shared
    shared.run("rm /etc/egressclass/config.json")


@pytest.mark.parametrize("args, code", [
    case("CNI-52 any order", "K8S_POD_NAME=p;X=1;K8S_POD_NAMESPACE=web;IgnoreUnknown=0", 103),
    case("CNI-52 first = splits", "X=a=b=c;K8S_POD_NAMESPACE=web", 103),
    case("CNI-52 last of duplicates", "K8S_POD_NAMESPACE=other;K8S_POD_NAMESPACE=web", 103),
    case("CNI-52 last of duplicates, the other way", "K8S_POD_NAMESPACE=web;K8S_POD_NAMESPACE=other", 0),
    case("CNI-52 empty value", "K8S_POD_NAMESPACE=;K8S_POD_NAME=", 0),
    case("CNI-52 empty pairs", ";;K8S_POD_NAMESPACE=web;", 103),
    case("CNI-52 none", "", 0),
    case("CNI-53 no uid, and the infra container id is no key", "K8S_POD_NAMESPACE=web;K8S_POD_INFRA_CONTAINER_ID=../../x", 103),
    case("CNI-52 keys are case-sensitive", "k8s_pod_namespace=web", 0)])
def test_cni_args_select_the_class(shared_both, args, code):
    answer = shared_both.call("ADD", CONFIG, **ATTACHMENT, ARGS=args)
    if code:
        error(answer, code)
    else:
        passed_on(answer)


@pytest.mark.parametrize("change", [case("CNI-54 no runtimeConfig", {}),
                                    case("CNI-54 annotations null", {"runtimeConfig": {ANNOTATIONS: None}})])
def test_class_by_selection_needs_no_annotations(shared_both, change):
    error(shared_both.call("ADD", CONFIG | change, **pod_of("far")), 103, '"far"')


def test_annotation_beats_selection(shared_both):
    error(shared_both.call("ADD", annotated("far"), **pod_of("web")), 103, '"far"')


def test_annotations_can_be_ignored(node):
    node.configure(configuration(WEB, FAR, annotations="ignore"))
    error(node.call("ADD", annotated("far"), **pod_of("web")), 103, '"web"')
    passed_on(node.call("ADD", annotated("nosuch"), **pod_of("other")))


# --- DEL

DELETED = [
    case("CNI-33 never added", CONFIG, ATTACHMENT), case("CNI-33 no netns", CONFIG, without(ATTACHMENT, "NETNS")),
    case("CNI-33 netns is empty", CONFIG, ATTACHMENT | {"NETNS": ""}),
    case("CNI-33 netns is no namespace", CONFIG, ATTACHMENT | {"NETNS": "/dev/null"}),
    case("CNI-33 netns is the node's own", CONFIG, ATTACHMENT | {"NETNS": "/proc/self/ns/net"}),
    case("CNI-33 no prevResult", network(), ATTACHMENT), case("CNI-33 prevResult null", network() | {"prevResult": None}, ATTACHMENT),
    case("CNI-33 prevResult of another type", network() | {"prevResult": 5}, ATTACHMENT),
    case("CNI-33 prevResult of an unknown version", network({"cniVersion": "9.9.9"}), ATTACHMENT),
    case("CNI-33 no runtimeConfig, args broken", network(), ATTACHMENT | {"ARGS": "broken"}),
    case("CNI-33 args too long", network(), ATTACHMENT | {"ARGS": "A=" + "x" * 50_000}),
    case("CNI-33 unknown class", annotated("nosuch"), ATTACHMENT),
    case("CNI-33 id longer than a file name", CONFIG, ATTACHMENT | {"CONTAINERID": "x" * 300}),
    *(case(f"CNI-33 at {version}", network(version=version), ATTACHMENT) for version in VERSIONS)]


@pytest.mark.parametrize("config, env", DELETED)
def test_del_succeeds_silently(shared, config, env):
    silent(shared.call("DEL", config, **env))
    silent(shared.call("DEL", config, **env))
    assert not shared.path("/run/egressclass/attachments").exists()


@pytest.mark.parametrize("setup", [
    case("CNI-33 configuration is broken", "echo broken >/etc/egressclass/config.json"),
    case("CNI-33 configuration is a folder", "mkdir /etc/egressclass/config.json"),
    case("CNI-33 state is broken", "mkdir -p /run/egressclass; echo broken >/run/egressclass/classes.json"),
    case("CNI-33 no bpffs", "umount /sys/fs/bpf"),
    case("CNI-33 no state folder can be made", "touch /run/egressclass")])
def test_del_needs_nothing(node, setup):
    node.run(setup)
    silent(node.call("DEL", CONFIG, **ATTACHMENT))


@pytest.mark.parametrize("break_it", [
    case("CNI-38 maps without pins", f"rm {PINS}/maps/attachments"),
    case("CNI-38 state folder leads nowhere", "mv /run/egressclass /run/before; ln -s /nowhere /run/egressclass"),
    case("CNI-38 record is a folder", "rm /run/egressclass/attachments/*; mkdir -p /run/egressclass/attachments/lab,p1,eth0/x; "
                                      f"rm -r {PINS}")])
def test_error_of_del_has_no_words_that_runtimes_take_for_success(applied, break_it):
    pod = applied.make_pod("p1", 5)
    applied.add(pod)
    applied.run(break_it)
    answer = applied.pod_call("DEL", pod)
    text = answer.out.lower()
    assert answer.code != 0 and answer.json["code"], answer
    assert "not found" not in text and "no such file" not in text


# --- CHECK, GC, STATUS

def test_check_of_a_healthy_pod_is_silent_and_changes_nothing(applied):
    """CNI-41, CNI-43: right after ADD, and while another holds the node's lock."""
    pod = applied.make_pod("p1", 5)
    applied.add(pod)
    before = applied.snapshot()
    with open(applied.path("/run/egressclass/lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for version in ("0.4.0", "1.0.0", "1.1.0"):     # CNI-06
            silent(applied.check(pod, network(pod.previous, version)))
    assert applied.snapshot() == before


def gc(**keys) -> dict:
    return network(version="1.1.0", **{f"cni.dev/{key.replace('_', '-')}": value for key, value in keys.items()})


def entries(*pods) -> list:
    return [{"containerID": pod.name, "ifname": pod.ifname} for pod in pods]


@pytest.fixture
def three(applied):
    """Two pods of the network `lab`, one of another."""
    pods = [applied.make_pod(f"p{n}", n) for n in (5, 6, 7)]
    for pod in pods[:2]:
        applied.add(pod)
    applied.add(pods[2], network(pods[2].previous) | {"name": "other"})
    return applied, *pods


def records(node) -> set[str]:
    return {file.name for file in node.path("/run/egressclass/attachments").iterdir()}


@pytest.mark.parametrize("config, kept", [
    case("CNI-45 absent", gc(), {"lab,p5,eth0", "lab,p6,eth0"}),
    case("CNI-45 null", gc(valid_attachments=None), set()), case("CNI-45 empty", gc(valid_attachments=[]), set()),
    case("CNI-45 a list", gc(valid_attachments=[{"containerID": "p5", "ifname": "eth0"}]), {"lab,p5,eth0"}),
    case("CNI-45 the older key", gc(attachments=[{"containerID": "p6", "ifname": "eth0"}]), {"lab,p6,eth0"}),
    case("CNI-45 another interface of the same container", gc(valid_attachments=[{"containerID": "p5", "ifname": "net1"}]), set())])
def test_gc_keeps_the_listed_and_removes_the_rest_of_this_network_only(three, config, kept):
    """CNI-46: `other` is never touched."""
    node, *pods = three
    before = node.snapshot()
    silent(node.call("GC", config))
    assert records(node) == kept | {"other,p7,eth0"}
    assert set(node.endpoints()) == {pod.address for pod in pods if f"lab,{pod.name},eth0" in kept or pod.name == "p7"}
    assert len(node.attachments()) == len(kept) + 1
    if len(kept) == 2:
        assert node.snapshot() == before
    silent(node.call("CHECK", network(pods[2].previous) | {"name": "other"}, CONTAINERID="p7", NETNS=pods[2].netns, IFNAME="eth0"))


@pytest.mark.parametrize("valid", [{"oops": 1}, "p5", 5, True, [None], [5], [{}], [{"containerId": "p5", "ifname": "eth0"}],
                                   [{"containerID": "p5"}], [{"containerID": 1, "ifname": "eth0"}],
                                   [{"containerID": "p5", "ifname": "eth0"}, []]], ids=lambda valid: f"CNI-45 {json.dumps(valid)}")
def test_gc_with_a_malformed_list_removes_nothing(three, valid):
    """Taken for a shorter list, it would cost live pods their classes."""
    node, *_ = three
    before = node.snapshot()
    for key in "attachments", "valid_attachments":
        error(node.call("GC", gc(**{key: valid})), 7, key.replace("_", "-"))
    assert node.snapshot() == before


def test_gc_goes_on_after_an_error_and_reports_it_at_the_end(three):
    """CNI-47"""
    node, first, second, _ = three
    node.run("rm /run/egressclass/attachments/lab,p5,eth0; mkdir -p /run/egressclass/attachments/lab,p5,eth0/x")
    answer = node.call("GC", gc(valid_attachments=[]))
    assert answer.code != 0 and "lab,p5,eth0" in answer.json["details"], answer
    assert "lab,p6,eth0" not in records(node)


def test_gc_does_not_mind_a_broken_record_of_another_network(three):
    """CNI-46"""
    node, *_ = three
    node.record(three[3], "other").write_text("broken")
    silent(node.call("GC", gc(valid_attachments=[])))


def test_gc_removes_an_attachment_whose_record_is_broken(three):
    """CNI-47: DEL can (it asks the kernel), so GC can."""
    node, first, *_ = three
    node.record(first).write_text("broken")
    node.call("GC", gc(valid_attachments=[]))
    assert records(node) == {"other,p7,eth0"}
    silent(node.call("GC", gc(valid_attachments=[])))


def test_gc_waits_for_a_running_add(three):
    """CNI-48"""
    node, *_ = three
    with open(node.path("/run/egressclass/lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with node.popen([str(PLUGIN)], env={"CNI_COMMAND": "GC"}, stdin=-1, stdout=-1) as process:
            process.stdin.write(json.dumps(gc(valid_attachments=[])).encode())
            process.stdin.close()
            time.sleep(0.2)
            assert process.poll() is None and len(records(node)) == 3
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert process.wait(10) == 0
    assert len(records(node)) == 1


STATUS = network(version="1.1.0")


def test_status_says_whether_add_would_work(node):
    """CNI-50: not available, and not available with pods that suffer. CNI-51: whatever STATUS said, ADD and DEL do what they can."""
    silent(node.call("STATUS", STATUS))         # no configuration: nothing to be ready for
    node.configure(BOTH)
    error(node.call("STATUS", STATUS), 50, "egressctl apply")
    assert not node.path("/run/egressclass").exists()
    node.apply()
    silent(node.call("STATUS", STATUS))
    pod = node.make_pod("p1", 5)
    node.add(pod)
    silent(node.call("STATUS", STATUS))
    node.ctl("down")
    error(node.call("STATUS", STATUS), 51, "1 running pods")
    assert passed_on(node.call("ADD", CONFIG, **pod_of("other"))) == RESULT
    error(node.call("ADD", CONFIG, **pod_of("web")), 103)
    silent(node.call("DEL", CONFIG, **pod_of("web")))
    node.apply()
    silent(node.call("STATUS", STATUS))


def test_status_has_no_side_effects(applied):
    """CNI-49"""
    before = applied.snapshot()
    silent(applied.call("STATUS", STATUS))
    assert applied.snapshot() == before


@pytest.mark.parametrize("damage", [f"rm {PINS}/programs/classify", f"rm {PINS}/maps/attachments", f"rm -r {PINS}/links",
                                    "echo broken >/run/egressclass/classes.json"],
                         ids=lambda damage: f"CNI-50 {damage.split('/')[-1]}")
def test_status_notices_that_add_cannot_work(applied, damage):
    applied.run(damage)
    pod = applied.make_pod("p1", 5)
    assert applied.pod_call("ADD", pod).code != 0
    error(applied.call("STATUS", STATUS), 50)


def test_status_without_configuration_counts_pods_left_from_before(applied):
    """CNI-50: the file is gone and nothing is applied, but pods with a class are running."""
    pod = applied.make_pod("p1", 5)
    applied.add(pod)
    applied.ctl("down")
    os.unlink(applied.path("/etc/egressclass/config.json"))
    error(applied.call("STATUS", STATUS), 51)
