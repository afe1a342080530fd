# SPDX-License-Identifier: Apache-2.0
"""scripts/bootstrap.sh on the folders of a node, without a runtime: what it makes of others' files. CNI-67 to CNI-78 are items of the
checklist that these tests stand for."""
from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from labkit.assets import REPOSITORY

SCRIPT, PLUGIN = REPOSITORY / "scripts/bootstrap.sh", REPOSITORY / "build/egressclass"
OK, FAILED, REFUSED, NO_NETWORK, BROKEN, STALE, ABSENT, FOUGHT = range(8)
ENTRY = '{ "type": "egressclass", "capabilities": { "io.kubernetes.cri.pod-annotations": true } }'
PLAIN = """{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    { "type": "bridge", "mtu": 1e3 },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
"""
WITH = PLAIN.replace("true } }\n  ]", "true } },\n    " + ENTRY + "\n  ]")
SINGLE = '{ "cniVersion": "0.4.0", "name": "pods", "type": "bridge", "bridge": "cni0" }\n'


@dataclass
class Node:
    """A root with the folders of containerd in it."""
    root: Path

    @property
    def net(self) -> Path:
        return self.root / "etc/cni/net.d"

    @property
    def plugin(self) -> Path:
        return self.root / "opt/cni/bin/egressclass"

    def words(self, command: str, *options) -> list:
        return [SCRIPT, command, "--root", self.root, *(["--wait", "00"] if command == "install" else []), *options]

    def run(self, command: str, *options, expect: int = OK, path: str = "") -> subprocess.CompletedProcess:
        done = subprocess.run(self.words(command, *options), capture_output=True, text=True, timeout=60, cwd="/",
                              env={"PATH": f"{path}:/usr/sbin:/usr/bin:/sbin:/bin"})
        assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
        return done

    def write(self, text: str | bytes, name: str = "10-pods.conflist") -> Path:
        file = self.net / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    def files(self) -> dict[str, tuple]:
        """All there is, with what must not change by the way."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            stat = path.lstat()
            found[str(path.relative_to(self.root))] = (oct(stat.st_mode), stat.st_uid, stat.st_gid,
                                                       path.read_bytes() if path.is_file() else b"")
        return found


@pytest.fixture
def node(tmp_path) -> Node:
    found = Node(tmp_path / "root")
    found.net.mkdir(parents=True)
    return found


def types(text: str) -> list[str]:
    return [plugin["type"] for plugin in json.loads(text)["plugins"]]


def until(met: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


# --- install and uninstall

HOSTILE = {
    "plain": PLAIN, "one line": '{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"ptp"}]}',
    "odd blanks": '\n\t{ "cniVersion":\t"1.0.0","plugins" :[\n\n{"type" :  "ptp"}\t,{"type":"tuning"}  ] ,"name": "n"\r\n}  \n\n',
    "what looks like structure": '{"cniVersion":"1.0.0","name":"n","x":"]}[{\\"plugins\\":[","plugins":[{"type":"ptp","y":"]},{\\\\"}]}',
    "unknown keys and numbers": '{"cniVersion":"1.0.0","name":"n","a":1.50e+3,"b":-0,"c":12345678901234567890123,"plugins":[{"type":"ptp","z":[[],{}]}],"d":null}',
    "keys after": '{"plugins":[{"type":"ptp"}],"name":"n","disableCheck":true,"cniVersion":"0.4.0"}',
    "sixty plugins": json.dumps({"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": f"p{number}"} for number in range(60)]}, indent=3),
    "not ASCII": '{"cniVersion":"1.0.0","name":"n","kommentar":"Größe \\u00e4 ✓","plugins":[{"type":"ptp"}]}'}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_cni_69_what_is_not_ours_stays_byte_for_byte(node, text):
    """The entry is all that comes; and when it goes the file is what it was."""
    file = node.write(text)
    node.run("install")
    now = file.read_bytes().decode()
    assert types(now) == types(text) + ["egressclass"]
    assert ENTRY in now
    came = len(now) - len(text)
    at = len(os.path.commonprefix([now, text]))
    assert now[at + came:] == text[at:], "more than one piece came"
    node.run("uninstall")
    assert file.read_bytes() == text.encode()


def test_cni_67_the_plugin_comes_first_and_stays_when_the_entry_goes(node):
    """Of no list that names it is the plugin ever missing: a list that cannot be changed leaves it behind."""
    file = node.write(PLAIN)
    node.run("install")
    assert (file.read_text(), node.plugin.read_bytes(), node.plugin.stat().st_mode & 0o7777) == (WITH, PLUGIN.read_bytes(), 0o755)
    node.run("uninstall")
    assert file.read_text() == PLAIN and node.plugin.exists()
    node.plugin.unlink()
    node.write("{", "00-broken.conflist")
    node.run("install", expect=BROKEN)
    assert node.plugin.exists() and file.read_text() == PLAIN


def test_cni_67_a_running_plugin_is_replaced(node):
    """No ETXTBSY: another file takes the name. A link in its place, or a folder's mode, is no obstacle."""
    node.write(PLAIN)
    node.plugin.parent.mkdir(parents=True)
    shutil.copy("/bin/sleep", node.plugin)
    with subprocess.Popen([node.plugin, "30"]) as running:
        node.run("install")
        running.kill()
    assert node.plugin.read_bytes() == PLUGIN.read_bytes()
    node.plugin.unlink()
    node.plugin.symlink_to("/bin/true")
    node.run("install")
    assert not node.plugin.is_symlink() and node.plugin.read_bytes() == PLUGIN.read_bytes()


def test_cni_68_mode_owner_and_link_are_kept(node):
    target = node.root / "elsewhere.conflist"
    target.write_text(PLAIN)
    target.chmod(0o640)
    os.chown(target, 1234, 4321)
    (node.net / "10-pods.conflist").symlink_to(target)
    node.run("install")
    stat = target.stat()
    assert (oct(stat.st_mode & 0o7777), stat.st_uid, stat.st_gid, target.read_text()) == ("0o640", 1234, 4321, WITH)
    assert (node.net / "10-pods.conflist").is_symlink() and sorted(path.name for path in node.net.iterdir()) == ["10-pods.conflist"]


def test_cni_78_what_is_right_is_not_touched(node):
    file = node.write(PLAIN)
    node.run("install")
    before, number = node.files(), file.stat().st_ino
    for command in ("install", "status", "install"):
        node.run(command)
    assert node.files() == before and file.stat().st_ino == number
    node.run("uninstall")
    assert node.run("uninstall").stdout == ""


@pytest.mark.parametrize("present, place", [
    ('{ "type": "egressclass" }', 1), ('{"type":"egressclass","logLevel":"debug"}', 1), ('{"type":"egressclass"},{"type":"egressclass"}', 1)],
    ids=["older", "other keys", "twice"])
def test_cni_69_an_entry_that_is_there_is_brought_up_to_date_in_its_place(node, present, place):
    """By its content, not by its presence; what comes after it stays after it."""
    file = node.write('{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"},%s,{"type":"bandwidth"}]}' % present)
    assert node.run("status", expect=STALE)
    node.run("install")
    plugins = json.loads(file.read_text())["plugins"]
    assert [plugin["type"] for plugin in plugins] == ["ptp", "egressclass", "bandwidth"] and plugins[place] == json.loads(ENTRY)


@pytest.mark.parametrize("before, after", [
    ("{e},ptp", "ptp,{e}"), ("ptp,{e},tuning", "ptp,tuning,{e}"), ("ptp,{e},bandwidth,tuning,portmap", "ptp,bandwidth,tuning,portmap,{e}"),
    ("ptp,tuning", "ptp,tuning,{e}"), ("ptp,tuning,{e},bandwidth", "ptp,tuning,{e},bandwidth")],
    ids=["first of all", "ahead of tuning", "far ahead", "none", "behind tuning"])
def test_an_entry_is_put_where_it_can_work(node, before, after):
    """Behind the plugin that makes the interface, and behind `tuning`, which may give it another MAC: the plugin has to see the last one."""
    def listed(names: str) -> str:
        plugins = ",".join(ENTRY if name == "{e}" else f'{{"type":"{name}"}}' for name in names.split(","))
        return f'{{"cniVersion":"1.0.0","name":"n","plugins":[{plugins}]}}'
    file = node.write(listed(before))
    node.run("status", expect=STALE if "{e}" in before else ABSENT)      # the plugin itself is not there yet
    node.run("install")
    assert types(file.read_text()) == types(listed(after))


def test_a_drop_in_that_may_change_the_mac_afterwards_is_named(node):
    """libcni puts it behind the list, and behind drop-ins of an earlier name. What is not ours is not for us to move."""
    node.write(PLAIN)
    node.run("install")
    late = node.net / "pods/40-mac.conf"
    late.parent.mkdir()
    late.write_text('{ "type": "tuning", "mac": "02:00:de:ad:be:ef" }')
    assert f"{late} comes after the plugin" in node.run("status", expect=STALE).stdout
    late.write_text('{ "type": "sbr" }')
    node.run("status")
    late.write_text('{ "type": "tuning" }')
    node.run("install", "--way", "drop-in")
    node.run("status")
    late.rename(late.with_name("60-mac.conf"))
    node.run("status", expect=STALE)
    node.write(PLAIN.replace('"name"', '"loadOnlyInlinedPlugins": true, "name"'))
    node.run("install", "--way", "edit")
    node.run("status")


def test_the_operators_own_entry(node):
    """By option, or by its file; one that the plugin would refuse is refused."""
    file = node.write(PLAIN)
    own = node.root / "etc/egressclass/entry.json"
    own.parent.mkdir()
    own.write_text('{"type": "egressclass", "logLevel": "debug"}\n')
    node.run("install")
    assert json.loads(file.read_text())["plugins"][-1] == {"type": "egressclass", "logLevel": "debug"}
    own.write_text('{"type": "egressclass", "logLevel": "loud"}\n')
    before = file.read_text()
    assert "loud" in node.run("install", expect=REFUSED).stderr and file.read_text() == before
    own.write_text('{"type": "bridge"}')
    assert "its type is not" in node.run("install", expect=REFUSED).stderr and file.read_text() == before


def test_cni_70_only_the_network_that_pods_get(node):
    """The first by name, of whatever ending."""
    first, second = node.write(PLAIN, "05-a.conflist"), node.write(PLAIN, "10-b.conflist")
    node.write(PLAIN, "00-not-a-network.conflist.bak")
    node.run("install")
    assert (first.read_text(), second.read_text()) == (WITH, PLAIN)


def test_cni_70_it_waits_for_the_primary_cni_and_never_invents_a_chain(node):
    before = node.files()
    assert "no network configuration yet" in node.run("install", expect=NO_NETWORK).stderr
    assert set(node.files()) - set(before) <= {"opt", "opt/cni", "opt/cni/bin", "opt/cni/bin/egressclass"}
    with subprocess.Popen(node.words("install", "--wait", "20"), stdout=subprocess.PIPE, text=True) as waiting:
        time.sleep(0.7)
        assert waiting.poll() is None
        file = node.write(PLAIN)
        assert waiting.wait(10) == OK
    assert file.read_text() == WITH


@pytest.mark.parametrize("name", ["10-pods.conf", "10-pods.json"])
def test_cni_71_a_single_plugins_file_becomes_a_list_of_ours_ahead_of_it(node, name):
    file = node.write(SINGLE, name)
    node.run("install")
    assert file.read_text() == SINGLE
    made = json.loads((node.net / "10-pods-egressclass.conflist").read_text())
    assert made["cniVersion"] == "0.4.0" and made["name"] == "pods" and [plugin["type"] for plugin in made["plugins"]] == ["bridge", "egressclass"]
    assert sorted(path.name for path in node.net.iterdir())[0] == "10-pods-egressclass.conflist"
    node.run("status")
    node.run("uninstall")
    assert [path.name for path in node.net.iterdir()] == [name] and file.read_text() == SINGLE


BAD = {"empty": b"", "blanks": b" \n", "no JSON": b'{"name":', "no list": b"[]", "no name": b'{"plugins":[{"type":"a"}]}',
       "no plugins": b'{"name":"n","plugins":[]}', "plugins is a map": b'{"name":"n","plugins":{}}', "no type": b'{"name":"n","plugins":[{}]}',
       "byte order mark": b"\xef\xbb\xbf" + PLAIN.encode(), "not UTF-8": b'{"name":"n\xff","plugins":[{"type":"a"}]}',
       "a key twice": b'{"name":"n","plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}', "truncated": PLAIN.encode()[:-4]}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_a_file_that_the_runtime_cannot_load_is_named_and_left_alone(node, content):
    file = node.write(content)
    done = node.run("install", expect=BROKEN)
    assert str(file) in done.stderr and file.read_bytes() == content
    node.run("uninstall")
    assert file.read_bytes() == content


def test_only_our_own_entry_is_no_chain(node):
    file = node.write('{"cniVersion":"1.0.0","name":"n","plugins":[%s]}' % ENTRY)
    assert "chained" in node.run("install", expect=REFUSED).stderr and types(file.read_text()) == ["egressclass"]


def test_a_folder_or_a_link_to_nowhere_in_the_place_of_a_network(node):
    (node.net / "00-folder.conflist").mkdir()
    file = node.write(PLAIN)
    node.run("install")
    assert file.read_text() == WITH
    (node.net / "05-nowhere.conflist").symlink_to("/nowhere")
    assert "05-nowhere.conflist" in node.run("install", expect=BROKEN).stderr


def test_a_version_that_the_plugin_does_not_speak_is_refused(node):
    file = node.write(PLAIN.replace("1.0.0", "2.5.0"))
    done = node.run("install", expect=REFUSED)
    assert "2.5.0" in done.stderr and "no pod would start" in done.stderr and "egressclass" not in file.read_text()


@pytest.mark.parametrize("file", sorted((REPOSITORY / "conf").glob("*.conflist")), ids=lambda file: file.stem)
def test_the_lists_in_conf_are_what_install_makes(node, file):
    """Of each primary CNI's own, as it ships it; the README points here."""
    text = file.read_text()
    placed = node.write(text)
    node.run("install")
    assert placed.read_text() == text and types(text)[-1] == "egressclass"
    node.run("uninstall")
    assert types(placed.read_text()) == types(text)[:-1]
    node.run("install")
    assert placed.read_text() == text


def test_there_is_a_list_for_each_of_the_usual_primaries():
    assert {file.stem for file in (REPOSITORY / "conf").glob("*.conflist")} == {"bridge", "ptp", "flannel", "calico", "kindnet"}


# --- ways

def test_cni_76_a_list_of_our_own_outlives_what_the_primary_does_to_its_file(node):
    file = node.write(PLAIN)
    node.run("install", "--way", "own")
    own = node.net / "10-pods-egressclass.conflist"
    assert (file.read_text(), own.read_text()) == (PLAIN, WITH)
    node.write(PLAIN.replace("1e3", "1400"))
    assert types(own.read_text())[-1] == "egressclass"
    node.run("status", expect=STALE)
    node.run("install")
    assert own.read_text() == WITH.replace("1e3", "1400")
    node.run("install", "--way", "edit")
    assert not own.exists() and types(file.read_text())[-1] == "egressclass"


def test_what_others_chain_into_the_list_of_our_own_stays(node):
    """A service mesh puts its plugin where the runtime looks. Neither undoes the other's, and an upgrade of the primary takes both along."""
    file, own = node.write(PLAIN), node.net / "10-pods-egressclass.conflist"
    node.run("install", "--way", "own")
    mesh = '{ "type": "mesh", "log": [1e0, "]"] }'
    own.write_text(WITH.replace(ENTRY, f"{ENTRY},\n    {mesh}"))
    with watching(node, "--give-up", "02") as process:
        time.sleep(0.5)
        node.run("status")
        assert types(own.read_text()) == ["bridge", "portmap", "egressclass", "mesh"]
        file.write_text(PLAIN.replace("1e3", "1400"))
        until(lambda: "1400" in own.read_text())
        assert types(own.read_text()) == ["bridge", "portmap", "mesh", "egressclass"] and mesh in own.read_text()
        own.write_text(WITH.replace("1e3", "1400"))     # the mesh is uninstalled
        time.sleep(0.5)
        assert own.read_text() == WITH.replace("1e3", "1400") and process.poll() is None
    own.write_text("{ broken")
    node.run("install")
    assert own.read_text() == WITH.replace("1e3", "1400")


@pytest.mark.parametrize("version, code", [("1.33.0", OK), ("1.34.2", OK), ("1.32.9", REFUSED)])
def test_drop_in_of_a_runtime_that_looks_for_them(tmp_path, node, version, code):
    (tmp_path / "crio").write_text(f"#!/bin/sh\necho crio version {version}\n")
    (tmp_path / "crio").chmod(0o755)
    file = node.write(PLAIN)
    words = [SCRIPT, "install", "--way", "drop-in", "--runtime", "crio", "--conf-dir", node.net, "--bin-dir", node.plugin.parent]
    done = subprocess.run(words, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, timeout=30)
    assert done.returncode == code, done.stderr
    drop_in = node.net / "pods/50-egressclass.conf"
    assert file.read_text() == PLAIN and drop_in.exists() == (code == OK)
    if code == OK:
        assert json.loads(drop_in.read_text()) == json.loads(ENTRY)
        node.run("uninstall")
        assert not drop_in.parent.exists()
    else:
        assert "1.33 is the first" in done.stderr


# --- what it says

def test_cni_78_dry_run_shows_the_change_and_makes_none(node):
    node.write(PLAIN)
    before = node.files()
    text = node.run("install", "--dry-run").stdout
    assert "+    " + ENTRY in text and "--- " in text and node.files() == before
    node.run("install")
    before = node.files()
    assert node.run("install", "--dry-run").stdout == "" and "-    " + ENTRY in node.run("uninstall", "--dry-run").stdout
    assert node.files() == before


def test_json_is_for_machines(node):
    assert json.loads(node.run("install", "--json", expect=NO_NETWORK).stdout)["problem"]
    node.write(PLAIN)
    done = json.loads(node.run("install", "--json").stdout)
    assert done["code"] == 0 and done["problem"] is None and any("changed" in line for line in done["did"])
    status = json.loads(node.run("status", "--json").stdout)
    assert status["plugin"]["state"] == "current" and status["conflist"]["entry"] == "current" and status["conflist"]["network"] == "pods"


def test_status_by_its_exit_code(node):
    node.run("status", expect=NO_NETWORK)
    node.write(PLAIN)
    node.run("status", expect=ABSENT)
    node.run("install")
    node.run("status")
    node.plugin.write_bytes(b"older")
    node.run("status", expect=STALE)


def test_status_says_when_there_is_no_configuration_to_go_by(node):
    """A node that has just joined: the entry is there, and pods start without a class until a configuration is delivered. No fault of
    bootstrap's, so its code stays."""
    node.write(PLAIN)
    node.run("install")
    for name, state, said in (("", "absent", "no configuration on this node: pods start without a class"),
                              ("etc/egressclass/config.json", "unapplied", "run `egressctl apply`"), ("run/egressclass/classes.json", "applied", "")):
        if name:
            lay_out(node.root, {name: "{}"})
        *_, line = text = node.run("status").stdout.splitlines()
        assert said in line and text[3] == f"config    {node.root}/etc/egressclass/config.json: {state}"
        assert json.loads(node.run("status", "--json").stdout)["configuration"] == state


def test_cni_76_status_names_the_pods_that_came_up_without_us(node):
    cache = node.root / "var/lib/cni/results"
    cache.mkdir(parents=True)
    (node.root / "run/netns").mkdir(parents=True)
    for name, text, alive in (("early", PLAIN, True), ("gone", PLAIN, False), ("late", WITH, True)):
        if alive:
            (node.root / f"run/netns/{name}").touch()
        (cache / f"pods-{name}-eth0").write_text(json.dumps(
            {"kind": "cniCacheV1", "containerId": name, "config": base64.b64encode(text.encode()).decode(), "networkName": "pods",
             "cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", name]],
             "result": {"interfaces": [{"name": "eth0", "sandbox": f"/run/netns/{name}"}]}}))
    node.write(PLAIN)
    node.run("install")
    done = node.run("status", expect=STALE)
    assert "shop/early" in done.stdout and "shop/gone" not in done.stdout and "shop/late" not in done.stdout
    node.run("uninstall", "--purge", expect=REFUSED)
    assert node.plugin.exists()
    (node.root / "run/netns/late").unlink()
    node.run("uninstall", "--purge")
    assert not node.plugin.exists()


@pytest.mark.parametrize("words", [[], ["reinstall"], ["install", "status"], ["install", "--way", "magic"], ["install", "--wait", "soon"],
                                   ["install", "--conf-dir", "relative"], ["install", "--runtime", "docker"], ["install", "--way"],
                                   ["watch", "--dry-run"], ["install", "--plugin", "/bin/false"]], ids=" ".join)
def test_wrong_usage_changes_nothing(node, words):
    node.write(PLAIN)
    before = node.files()
    done = subprocess.run([SCRIPT, *words, *(["--root", node.root] if words[-1:] != ["--way"] else [])], capture_output=True, text=True, timeout=30)
    assert done.returncode == REFUSED and done.stderr.startswith("bootstrap: ") and node.files() == before, done


# --- where things are

CRI2, CRI3 = '[plugins."io.containerd.grpc.v1.cri".cni]\n', "[plugins.'io.containerd.cri.v1.runtime'.cni]\n"
K3S = "var/lib/rancher/k3s/agent/"
FOLDERS = {
    "k3s": ({K3S + "etc/cni/net.d/": ""}, [], K3S + "etc/cni/net.d", "var/lib/rancher/k3s/data/cni"),
    "k3s, older": ({K3S + "etc/containerd/config.toml": f'version = 2\n{CRI2} bin_dir = "/var/lib/rancher/k3s/data/b0b/bin"\n conf_dir = "/{K3S}etc/cni/net.d"\n'},
                   [], K3S + "etc/cni/net.d", "var/lib/rancher/k3s/data/b0b/bin"),
    "k3s with a drop-in": ({K3S + "etc/containerd/config.toml": f'version = 3\nimports = ["/{K3S}etc/containerd/config-v3.toml.d/*.toml"]\n',
                            K3S + "etc/containerd/config-v3.toml.d/cni.toml": f"{CRI3} bin_dirs = ['/b/in']\n conf_dir = '/c/onf'\n"}, [], "c/onf", "b/in"),
    "k3s without flannel": ({K3S + "etc/containerd/config.toml": "version = 3\n", K3S + "etc/cni/net.d/": ""}, [], "etc/cni/net.d", "opt/cni/bin"),
    "microk8s": ({"var/snap/microk8s/current/args/cni-network/": "", "var/snap/microk8s/current/args/containerd.toml": f'{CRI2} conf_dir = "${{SNAP_DATA}}/x"\n',
                  "etc/containerd/config.toml": f'{CRI2} conf_dir = "/of/docker"\n'}, [],
                 "var/snap/microk8s/current/args/cni-network", "var/snap/microk8s/current/opt/cni/bin"),
    "OpenShift-like": ({"etc/cni/multus/net.d/": ""}, [], "etc/cni/multus/net.d", "var/lib/cni/bin"),
    "containerd 1": ({"etc/containerd/config.toml": '[plugins.cri.cni]\n  # conf_dir = "/no"\n  bin_dir = "/b/in"\n  conf_dir = "/c/onf"\n'}, [], "c/onf", "b/in"),
    "containerd": ({"etc/containerd/config.toml": f'version = 2\n{CRI2}  bin_dir = "/b/in" # /no\n  conf_dir = "/c/onf"\n'}, [], "c/onf", "b/in"),
    "containerd 2": ({"etc/containerd/config.toml": f"version = 3\n{CRI3}bin_dirs = [\n'/b/one', '/b/two']\nconf_dir = '/c/onf'\n"}, [], "c/onf", "b/one"),
    "containerd 2.2 without a file": ({"etc/containerd/conf.d/a.toml": f"{CRI3}bin_dirs = ['/b/in']\n", "etc/containerd/conf.d/b.toml": f"{CRI3}conf_dir = '/c/onf'\n"},
                                      [], "c/onf", "b/in"),
    "imports, of which a later one counts": (
        {"etc/containerd/config.toml": f'imports = ["conf.d/*.toml", "/x/nowhere.toml", "/x/last.toml"]\n{CRI2}conf_dir = "/no"\nbin_dir = "/b/in"\n',
         "etc/containerd/conf.d/10-a.toml": f'{CRI2}conf_dir = "/no/a"\n', "etc/containerd/conf.d/20-b.toml": f'imports = ["../config.toml"]\n{CRI2}conf_dir = "/no/b"\n',
         "x/last.toml": f'{CRI2}conf_dir = "/c/onf"\n', "etc/containerd/no.toml": f'{CRI2}conf_dir = "/no/c"\n'}, [], "c/onf", "b/in"),
    "in another's table": ({"etc/containerd/config.toml": '[plugins."io.containerd.grpc.v1.other".cni]\nconf_dir = "/no"\n'}, [], "etc/cni/net.d", "opt/cni/bin"),
    "CRI-O": ({"etc/crio/crio.conf": '[crio.network]\nnetwork_dir = "/c/rio"\n', "etc/crio/crio.conf.d/10-x.conf": '[crio.network]\nplugin_dirs = [\n  "/p/lugins",\n]\n'}, [],
              "c/rio", "p/lugins"),
    "by option": ({}, ["--conf-dir", "/my/net", "--bin-dir", "/my/bin"], "my/net", "my/bin")}


def lay_out(root: Path, files: dict[str, str]) -> Node:
    """A name that ends in / is a folder's."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (root / name).mkdir(exist_ok=True)
        else:
            (root / name).write_text(text)
    return Node(root)


@pytest.mark.parametrize("files, options, net, plugins", FOLDERS.values(), ids=FOLDERS)
def test_cni_74_folders_are_found(tmp_path, files, options, net, plugins):
    root = tmp_path / "root"
    node = lay_out(root, files)
    (root / net).mkdir(parents=True, exist_ok=True)
    (root / net / "10-pods.conflist").write_text(PLAIN)
    node.run("install", "--way", "edit", *options)
    assert (root / net / "10-pods.conflist").read_text() == WITH and (root / plugins / "egressclass").exists()


def test_a_configuration_that_no_runtime_would_take_is_named(tmp_path):
    node = lay_out(tmp_path / "root", {"etc/cni/net.d/": "", "etc/containerd/config.toml": "version = 2\n[plugins\n"})
    said = node.run("install", expect=FAILED).stderr
    assert "etc/containerd/config.toml:2: " in said and "--conf-dir" in said
    node.run("install", "--conf-dir", "/etc/cni/net.d", "--bin-dir", "/opt/cni/bin", expect=NO_NETWORK)


@pytest.mark.skipif(not shutil.which("containerd"), reason="there is no containerd")
def test_containerd_is_asked_what_it_makes_of_its_files(tmp_path):
    """An import takes the place of a whole plugin's table in containerd 1.x: what the file itself says of bin_dir does not count any more, as
    nobody would guess. In /etc of a mount namespace of its own."""
    (tmp_path / "net.d").mkdir()
    (tmp_path / "drop-in.toml").write_text(f'version = 2\n{CRI2}conf_dir = "{tmp_path}/net.d"\n')
    (tmp_path / "config.toml").write_text(f'version = 2\nimports = ["{tmp_path}/drop-in.toml"]\n{CRI2}bin_dir = "/no"\n')
    script = (f"mount -t tmpfs none /etc && mkdir /etc/containerd && cp {tmp_path}/config.toml /etc/containerd && "
              f"containerd --config /etc/containerd/config.toml config dump | grep -w bin_dir && exec {SCRIPT} status --json")
    done = subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == NO_NETWORK, done
    plain, status = done.stdout.splitlines()
    assert json.loads(status)["plugin"]["file"] == re.search(r'"(.*)"', plain)[1] + "/egressclass"
    assert json.loads(status)["conflist"]["problem"].startswith(f"{tmp_path}/net.d has no network")


# --- platforms that write the primary's list anew at each start

REWRITERS = {
    "k3s": {K3S + "etc/cni/net.d/": ""},
    "k3s elsewhere": {"mnt/k3s/agent/etc/cni/net.d/": "", "etc/containerd/config.toml": f'{CRI2}conf_dir = "/mnt/k3s/agent/etc/cni/net.d"\n'},
    "k3s with another CNI": {K3S + "etc/containerd/config.toml": "version = 3\n", "etc/cni/net.d/": ""},
    "RKE2": {"var/lib/rancher/rke2/agent/etc/containerd/config.toml": "version = 3\n", "etc/cni/net.d/": ""},
    "microk8s": {"var/snap/microk8s/current/args/cni-network/": ""}}


def first_network(net: Path) -> list[str]:
    """What a runtime gives the next pod."""
    return types((net / min(path.name for path in net.iterdir() if path.suffix == ".conflist")).read_text())


@pytest.mark.parametrize("files", REWRITERS.values(), ids=REWRITERS)
def test_cni_76_no_pod_starts_in_a_gap(tmp_path, files):
    """What the platform writes at its start changes nothing, whether somebody watches or not; an entry in its list from an earlier version
    moves to the list of our own; and an upgrade's changes get there."""
    node = lay_out(tmp_path / "root", files)
    (net,) = [node.root / name for name in files if name.endswith("/")]
    file, own = net / "10-flannel.conflist", net / "10-flannel-egressclass.conflist"
    file.write_text(WITH)
    node.run("status", expect=STALE)
    node.run("install")
    assert (file.read_text(), own.read_text()) == (PLAIN, WITH)
    node.run("status")
    file.write_text(PLAIN)
    assert first_network(net)[-1] == "egressclass"
    file.write_text(PLAIN.replace("1e3", "1400"))
    assert first_network(net)[-1] == "egressclass"
    node.run("status", expect=STALE)
    with watching(node):
        until(lambda: own.read_text() == WITH.replace("1e3", "1400"))
        file.write_text(PLAIN)
        until(lambda: own.read_text() == WITH)
    node.run("uninstall")
    assert file.read_text() == PLAIN and not own.exists()


def test_the_default_of_a_platform_is_no_rule(tmp_path):
    """A drop-in leaves no gap either, and a person may want the list to be edited."""
    node = lay_out(tmp_path / "root", {K3S + "etc/cni/net.d/": ""})
    net = node.root / K3S / "etc/cni/net.d"
    (net / "10-flannel.conflist").write_text(PLAIN)
    for way in "drop-in", "edit":
        node.run("install", "--way", way)
        node.run("status", "--way", way)
        assert [path.name for path in net.glob("*.conflist")] == ["10-flannel.conflist"]
    node.run("install", "--way", "drop-in")
    before = node.files()
    node.run("install")
    assert node.files() == before


# --- many at once, and watch

def test_cni_78_many_at_once_are_one_at_a_time(node):
    file = node.write(PLAIN)
    running = [subprocess.Popen(node.words("install"), stderr=subprocess.PIPE, text=True) for _ in range(8)]
    for process in running:
        assert process.wait(60) == OK, process.stderr.read()
        process.stderr.close()
    assert file.read_text() == WITH and [path.name for path in node.net.iterdir()] == ["10-pods.conflist"]


@contextmanager
def watching(node: Node, *options) -> Iterator[subprocess.Popen]:
    with subprocess.Popen(node.words("watch", *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          start_new_session=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(10)


def test_cni_72_watch_waits_and_puts_back_what_others_undo(node):
    """The primary that comes late, that writes its list anew, that renames it; and the plugin that somebody removes."""
    shutil.rmtree(node.net)
    with watching(node) as process:
        time.sleep(0.5)
        node.net.mkdir(parents=True)
        file = node.write(PLAIN)
        until(lambda: file.read_text() == WITH)
        node.write(PLAIN.replace("1e3", "1400"), ".tmp").rename(file)
        until(lambda: file.read_text() == WITH.replace("1e3", "1400"))
        node.plugin.unlink()
        until(node.plugin.exists)
        earlier = node.write(PLAIN, "05-other.conflist")
        until(lambda: earlier.read_text() == WITH)
        assert process.poll() is None
    assert process.returncode == OK and earlier.read_text() == WITH, "the end of a watch is no uninstall"


def test_watch_follows_a_platform_that_starts_for_the_first_time(tmp_path):
    """A golden image: nothing tells yet that k3s will be there, and where its folders will be."""
    node = lay_out(tmp_path / "root", {"etc/": ""})
    net = node.root / K3S / "etc/cni/net.d"
    with watching(node):
        time.sleep(1)
        lay_out(node.root, {K3S + "etc/cni/net.d/": "", K3S + "etc/cni/net.d/10-flannel.conflist": PLAIN, K3S + "etc/containerd/config.toml":
                            f'version = 3\n{CRI3}bin_dirs = ["/var/lib/rancher/k3s/data/cni"]\nconf_dir = "/{K3S}etc/cni/net.d"\n'})
        until((net / "10-flannel-egressclass.conflist").exists)
        assert (node.root / "var/lib/rancher/k3s/data/cni/egressclass").exists()
        config = node.root / K3S / "etc/containerd/config.toml"
        config.write_text(config.read_text().replace("data/cni", "data/newer/bin"))
        (net / "10-flannel.conflist").write_text(PLAIN)
        until((node.root / "var/lib/rancher/k3s/data/newer/bin/egressclass").exists)
    assert first_network(net)[-1] == "egressclass"


def test_cni_72_watch_does_not_answer_itself(node):
    """Half a second after the last change nothing happens any more."""
    file = node.write(PLAIN)
    with watching(node):
        until(lambda: file.read_text() == WITH)
        time.sleep(0.5)
        before = file.stat()
        time.sleep(1)
        assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_cni_72_watch_gives_up_when_somebody_fights_back(node):
    """It says so, and stops; the list is the other's last one."""
    file = node.write(PLAIN, "05-cilium.conflist")
    with watching(node, "--give-up", "04") as process:
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            if file.read_text() == WITH:
                node.write(PLAIN, ".tmp").rename(file)
            time.sleep(0.02)
        said = process.stdout.read()
        assert process.returncode == FOUGHT and "keeps undoing" in said and "cni.exclusive=false" in said, (process.returncode, said)
