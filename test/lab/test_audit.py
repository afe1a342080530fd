# SPDX-License-Identifier: Apache-2.0
"""egressd: what it writes of flows, and that nothing else suffers from it."""
from __future__ import annotations

import gzip
import json
import os
import re
import stat
import subprocess
import time
from contextlib import contextmanager
from datetime import datetime, timezone

import pytest
import sandbox
from agent import FOLDER, Agent, forget_flows
from light_fleet import REMOTES, LightFleet, configuration, egress_class, egress_ip, underlay, until
from traffic import Flows, Stream, ask, ping

LIGHT_FLEET = {"nodes": ["worker1", "gateway1"]}
FAMILY = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
SYSCTLS = ("nf_conntrack_acct", "nf_conntrack_timestamp", "nf_conntrack_events")


def web(audit: dict | bool | None = None, **keys) -> dict:
    return configuration(egress_class("web", "gateway1", egressIPs=[egress_ip(7), egress_ip(7, 6)], **keys),
                         egress_class("shop", "gateway1", egressIPs=[egress_ip(8), egress_ip(8, 6)]),
                         audit={"folder": FOLDER} if audit is None else audit)


@pytest.fixture
def fleet(make_light_fleet) -> LightFleet:
    return make_light_fleet(**LIGHT_FLEET)


@contextmanager
def recording(fleet: LightFleet, **audit):
    """egressd on the gateway of a fleet with web()."""
    fleet.apply(web({"folder": FOLDER, **audit}))
    with Agent(fleet.gateway1) as agent:
        yield agent


def at(record: dict, key: str = "time") -> float:
    return datetime.fromisoformat(record[key].replace("Z", "+00:00")).timestamp()


def who(node, endpoint: str, *options: str) -> dict:
    return json.loads(node.ctl("who", endpoint, "--folder", FOLDER, "--json", *options, check=False).stdout)


@FAMILY
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("home", ["worker1", "gateway1"])
def test_start_and_end_of_a_flow(light_fleet, family, proto, home):
    fleet, gateway = light_fleet, light_fleet.gateway1
    with recording(fleet) as agent:
        pod = getattr(fleet, home).pod(f"a{family}{proto}{home}", "web")
        before = time.time()
        seen = ask(pod, REMOTES[family][1], 7002, proto)
        after = time.time()
        start, = agent.wait_records(event="start", source=pod.ip(family))
        forget_flows(gateway)
        end, = agent.wait_records(event="end", source=pod.ip(family))
        pod.remove()
    assert seen.source == egress_ip(7, family)
    for record in (start, end):
        assert {key: record[key] for key in ("class", "protocol", "destination", "destinationPort", "egressIP", "egressPort", "gateway",
                                             "role", "flow")} == {
            "class": "web", "protocol": proto, "destination": REMOTES[family][1], "destinationPort": 7002, "egressIP": seen.source,
            "egressPort": seen.sport, "gateway": underlay("gateway1"), "role": "gateway", "flow": start["flow"]}
        assert record["time"].endswith("Z")
    if home == "gateway1":
        assert start["pod"] == {"namespace": "web", "name": pod.name, "uid": f"uid-{pod.name}", "containerId": start["pod"]["containerId"]}
        assert start["pod"]["containerId"]
    assert before - 0.1 <= at(start) <= after + 1 and before - 0.1 <= at(end, "start") <= after + 0.1
    assert end["packetsOut"] >= (1 if proto == "udp" else 4) and end["packetsIn"] >= (1 if proto == "udp" else 3)
    if proto == "udp":      # "x\n" and its answer, with UDP's and IP's headers
        headers = 8 + {4: 20, 6: 40}[family]
        assert end["bytesOut"] == headers + 2 and end["bytesIn"] == headers + len(f"{seen.source} {seen.sport}\n")
    assert end["reason"] == ("closed" if proto == "tcp" else "idle")
    assert end["seconds"] == pytest.approx(at(end) - at(end, "start"), abs=0.001)


@FAMILY
def test_a_ping_has_its_identifier_as_port(light_fleet, family):
    with recording(light_fleet) as agent:
        pod = light_fleet.worker1.pod(f"ping{family}", "web")
        assert ping(pod, REMOTES[family][0])
        record, = agent.wait_records(event="start", source=pod.ip(family))
        pod.remove()
    assert record["protocol"] == {4: "icmp", 6: "icmpv6"}[family] and record["egressPort"] != 0 and record["sourcePort"] != 0


def test_of_other_traffic_nothing_is_recorded(light_fleet):
    fleet = light_fleet
    with recording(fleet) as agent:
        plain = fleet.gateway1.pod("plain", "nobody")
        pod = fleet.gateway1.pod("classed", "web")
        assert ask(plain, REMOTES[4][0], 7001).source == underlay("gateway1")
        ask(pod, REMOTES[4][0], 7001)
        agent.wait_records(event="start", source=pod.v4)
        assert not agent.records(source=plain.v4)
        plain.remove()
        pod.remove()


def test_who_names_the_pod(light_fleet):
    fleet, gateway = light_fleet, light_fleet.gateway1
    with recording(fleet) as agent:
        pod = gateway.pod("asked", "web")
        with Flows(pod, REMOTES[4][0], 1) as flows:
            seen, = flows.ask()
            agent.wait_records(event="start", source=pod.v4)
            endpoint = f"{seen.source}:{seen.sport}/udp"
            now = who(gateway, endpoint)
            assert [(h["record"]["pod"]["name"], h["until"]) for h in now["holders"]] == [("asked", None)]
        forget_flows(gateway)
        end, = agent.wait_records(event="end", source=pod.v4)
        time.sleep(2.1)     # to a second is how records are found
        later = who(gateway, endpoint)
        assert not later["holders"] and [h["record"]["pod"]["name"] for h in later["near"]] == ["asked"]
        then = who(gateway, endpoint, "--at", end["start"])
        assert [(h["record"]["event"], h["record"]["pod"]["name"], h["endKnown"]) for h in then["holders"]] == [("end", "asked", True)]
        long_ago = who(gateway, endpoint, "--at", "2020-01-01T00:00:00Z")
        assert not long_ago["holders"] and len(long_ago["near"]) == 1
        assert not who(gateway, f"{seen.source}:{seen.sport}/tcp", "--at", end["start"])["holders"]
        text = gateway.ctl("who", endpoint, "--folder", FOLDER, "--at", end["start"]).stdout
        assert re.search(r"pod +web/asked\n", text) and f"{seen.source}" not in text.splitlines()[0]
        pod.remove()


@pytest.mark.parametrize("words", [["203.0.113.7"], ["203.0.113.7:99999"], ["203.0.113.7:80", "--at", "noon"], ["x:1"]])
def test_who_refuses_what_it_does_not_understand(light_fleet, words):
    answer = light_fleet.gateway1.ctl("who", *words, check=False)
    assert answer.returncode == 2 and answer.stderr.startswith("egressctl: ") and not answer.stdout


def test_what_the_unit_allows_is_enough(fleet):
    """Also after `down` and an apply."""
    gateway, folder = fleet.gateway1, "/var/log/egressclass"
    fleet.apply(web({"folder": folder}))
    with Agent(gateway, folder, limits=["/usr/bin/python3", "-B", sandbox.__file__, "egressd.service"]) as agent:
        for count in (1, 2):
            pod = gateway.pod(f"p{count}", "web")
            ask(pod, REMOTES[4][0], 7001)
            assert agent.wait_records(count, event="start")[-1]["pod"]["name"] == pod.name and "error" not in agent.log(), agent.log()
            pod.remove()
            gateway.ctl("down")
            until(lambda count=count: len(agent.records(event="agent", state="stopped")) == count, what=agent.log)
            gateway.apply()
            until(lambda count=count: agent.started() == count + 1, what=agent.log)


def test_files_are_for_root_and_a_group_only(light_fleet):
    with recording(light_fleet) as agent:
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in agent.files}
    assert set(modes.values()) == {0o640}


def test_killed_and_started_again(fleet):
    gateway = fleet.gateway1
    with recording(fleet) as agent:
        pod = gateway.pod("p", "web")
        with Flows(pod, REMOTES[4][0], 50) as open_flows:
            assert None not in open_flows.ask()
            agent.wait_records(50, event="start")
            agent.kill()
            with Flows(pod, REMOTES[4][1], 10, proto="tcp") as unseen:      # they begin and end while nobody looks
                assert None not in unseen.ask()
            with Agent(gateway):
                agent.wait_records(50, event="resumed", destination=REMOTES[4][0])
                assert None not in open_flows.ask()
                with Flows(pod, REMOTES[4][2], 5) as fresh:
                    assert None not in fresh.ask()
                    agent.wait_records(5, event="start", destination=REMOTES[4][2])
                forget_flows(gateway)
                agent.wait_records(55, event="end", protocol="udp")
        starts = agent.records(event="start")
        assert len(starts) == len({record["flow"] for record in starts}) == 55
        resumed = agent.records(event="resumed", destination=REMOTES[4][0])
        assert {record["flow"] for record in resumed} == {r["flow"] for r in starts if r["destination"] == REMOTES[4][0]}
        assert all(record["pod"]["name"] == "p" for record in resumed)
        ends = agent.records(event="end", protocol="udp")
        assert len(ends) == len({record["flow"] for record in ends}) == 55


def test_an_orderly_end_and_a_change_of_the_configuration(fleet):
    gateway = fleet.gateway1
    with recording(fleet) as agent:
        pod = gateway.pod("p", "web")
        with Flows(pod, REMOTES[4][0], 3) as flows:
            flows.ask()
            agent.wait_records(3, event="start")
            fleet.apply(web({"folder": FOLDER}, destinations=["198.51.100.0/24", "::/0"]))
            time.sleep(1.5)
            assert agent.started() == 1 and not agent.records(event="resumed")
            fleet.apply(web({"folder": FOLDER, "only": {"classes": ["shop"]}}))     # another audit
            until(lambda: agent.started() == 2, what=agent.log)
            fleet.apply(web(False))
            until(lambda: len(agent.records(event="agent", state="stopped")) == 2, what=agent.log)
            fleet.apply(web())
            agent.wait_records(3, event="resumed")
        assert agent.stop() == 0
        assert len(agent.records(event="agent", state="stopped")) == 3


def test_nothing_applied_yet(fleet):
    with Agent(fleet.gateway1, recording=False) as agent:
        time.sleep(1.2)
        assert not agent.files
        fleet.apply(web())
        until(lambda: agent.started() == 1, what=agent.log)


@pytest.mark.parametrize("only, wanted", [({"classes": ["s*"]}, {"shop-a", "shop-b"}), ({"pods": [{"pods": ["*-a"]}]}, {"web-a", "shop-a"}),
                                          ({"destinations": [REMOTES[4][1]]}, {"web-b", "shop-b"}),
                                          ({"classes": ["web"], "pods": [{"namespaces": ["shop"]}]}, set())],
                         ids=["classes", "pods", "destinations", "both"])
def test_only_what_is_wanted(light_fleet, only, wanted):
    gateway, folder = light_fleet.gateway1, f"/run/only-{'-'.join(only)}"
    light_fleet.apply(web({"folder": folder, "only": only}))
    pods = [gateway.pod(f"{name}-{letter}", name) for name in ("web", "shop") for letter in "ab"]
    with Agent(gateway, folder) as agent:
        for pod in pods:
            assert ask(pod, REMOTES[4]["ab".index(pod.name[-1])], 7001, "udp")
        assert ask(pods[0], REMOTES[4][0], 7001, "udp")
        agent.wait_records(len(wanted), event="start")
        assert agent.stop() == 0        # all is written then
        assert {record["pod"]["name"] for record in agent.records(event="start")} == wanted
    for pod in pods:
        pod.remove()


def test_a_full_disk(fleet):
    """Traffic goes on and egressd lives. What could not be written is counted, and said as soon as there is room."""
    gateway = fleet.gateway1
    gateway.run(f"mkdir {FOLDER} && mount -t tmpfs -o size=256k,mode=750 small {FOLDER}")
    with recording(fleet) as agent:
        pod = gateway.pod("p", "web")
        with Stream(pod, REMOTES[4][0], "udp") as stream:
            gateway.run(f"dd if=/dev/zero of={FOLDER}/ballast bs=1k count=1024 2>/dev/null || true; sync")
            full = gateway.path(FOLDER) / "audit.jsonl"
            with Flows(pod, REMOTES[4][1], 600) as flows:
                assert None not in flows.ask()
                until(lambda: "No space left" in agent.log(), what=agent.log)
            before = full.read_bytes()
            assert not before or before.endswith(b"\n")
            assert agent.process.poll() is None
            stream.wait_seen(5)
            gateway.run(f"rm {FOLDER}/ballast")
            lost = agent.wait_records(event="lost", what="records")
            assert ask(pod, REMOTES[4][2], 7001)
            agent.wait_records(event="start", destination=REMOTES[4][2])
        until(lambda: "all is well again" in agent.log(), what=agent.log)
        assert not stream.lost and "No space left" in lost[0]["reason"]
        written = len(agent.records(event="start", destination=REMOTES[4][1]))
        assert sum(record["count"] for record in agent.records(event="lost")) == 600 - written


def test_standard_output_that_nobody_reads(fleet):
    """The files have everything nevertheless; once somebody reads, the stream says what is missing."""
    gateway = fleet.gateway1
    fleet.apply(web({"folder": FOLDER, "stdout": True}))
    reader, writer = os.pipe()
    with Agent(gateway, out=writer) as agent:
        os.close(writer)
        pod = gateway.pod("p", "web")
        count = 1000
        with Flows(pod, REMOTES[4][0], count) as flows:
            assert None not in flows.ask()
            agent.wait_records(count, event="start")
            until(lambda: "nobody reads it" in agent.log(), what=agent.log)
            os.set_blocking(reader, False)
            text = b""

            def complete() -> bool:
                nonlocal text
                try:
                    text += os.read(reader, 1 << 20)
                except BlockingIOError:
                    pass
                lines = [json.loads(line) for line in text.split(b"\n")[:-1]]
                there = sum(line["event"] == "start" for line in lines)
                lost = sum(line["count"] for line in lines if line["event"] == "lost")
                return there > 0 and lost > 0 and there + lost == count + (0 if lines[0]["event"] == "agent" else 1)
            until(complete, 10, what=lambda: text[-3000:].decode())
    os.close(reader)


def test_conntrack_counts_for_the_audit_in_the_gateways_namespace_alone(fleet):
    gateway = fleet.gateway1
    read = "cd /proc/sys/net/netfilter; cat " + " ".join(SYSCTLS)
    fleet.apply(web(False))
    host = gateway.run(read).stdout
    assert gateway.in_gateway(read).stdout == "0\n0\n2\n"
    fleet.apply(web())
    with Agent(gateway):
        assert gateway.in_gateway(read).stdout == "1\n1\n1\n" and gateway.run(read).stdout == host


def test_files_are_full_compressed_and_searched(fleet):
    """A megabyte a file: the records of 4000 flows fill several. Each of them is found by its address and port."""
    gateway = fleet.gateway1
    with recording(fleet, fileMegabytes=1) as agent:
        pod = gateway.pod("p", "web")
        ports = []
        for round_number in range(4):
            with Flows(pod, REMOTES[4][round_number], 1000) as flows:
                ports += [seen.sport for seen in flows.ask(10) if seen]
            agent.wait_records((round_number + 1) * 1000, event="start")
            forget_flows(gateway)
            agent.wait_records((round_number + 1) * 1000, event="end")
        assert len(ports) == 4000
        until(lambda: len([path for path in agent.files if path.suffix == ".gz"]) >= 2 and
              not [path for path in agent.files if path.suffix == ".jsonl" and path.name != "audit.jsonl"], 10)
        ends = agent.records(event="end")
        for end in ends[::400]:
            found = who(gateway, f"{end['egressIP']}:{end['egressPort']}/udp", "--at", end["start"])
            assert end["flow"] in [holder["record"]["flow"] for holder in found["holders"]]
        assert {stat.S_IMODE(path.stat().st_mode) for path in agent.files} == {0o640}
        # as any tool reads them
        whole = subprocess.run("gzip -dc audit-*.gz | cat - audit.jsonl | wc -l", shell=True, cwd=gateway.path(FOLDER), capture_output=True,
                               text=True)
        assert int(whole.stdout) == 8001


def old_file(gateway, day: str, size: int = 0) -> None:
    """A file as egressd leaves it, with so many bytes that do not compress."""
    folder = gateway.path(FOLDER)
    folder.mkdir(exist_ok=True)
    line = json.dumps({"event": "filler", "bytes": os.urandom(size).hex()})
    (folder / f"audit-{day}T00:00:00.000000Z.jsonl.gz").write_bytes(gzip.compress(line.encode() + b"\n"))
    (folder / f"audit-{day}T00:00:00.000000Z.jsonl.idx").touch()


def test_old_files_go(fleet):
    """Those beyond the bound on all of them together, and those beyond the bound on the age."""
    gateway = fleet.gateway1
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    old_file(gateway, "2026-01-01", 1_500_000)
    old_file(gateway, today)
    with recording(fleet, fileMegabytes=1, maxMegabytes=1) as agent:
        until(lambda: not [path for path in agent.files if "2026-01-01" in path.name], what=agent.log)
        assert len(agent.files) == 3
    old_file(gateway, "2026-01-01")
    with recording(fleet, maxDays=2) as agent:
        until(lambda: not [path for path in agent.files if "2026-01-01" in path.name], what=agent.log)
        assert len(agent.files) == 3
