# SPDX-License-Identifier: Apache-2.0
"""A pod: a sandbox that the runtime made (and the CNI plugins connected) with one container in it."""
from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from .cri import CriError
from .process import Command, CommandFailed, Process, argv, finish

if TYPE_CHECKING:
    from .node import Node

LOGS = "/var/log/pods"


class Pod:
    def __init__(self, node: Node, sandbox_id: str, name: str, namespace: str, annotations: Mapping[str, str]):
        self.node, self.sandbox_id, self.name, self.namespace = node, sandbox_id, name, namespace
        self.annotations = dict(annotations)

    @classmethod
    def run(cls, node: Node, name: str, namespace: str = "default", *, annotations: Mapping[str, str] | None = None,
            command: Sequence[str] = ("sleep", "1000000"), host_ports: Mapping[int, int] | None = None, image: str,
            protocol: str = "TCP", timeout: float = 60) -> Pod:
        """Make the sandbox, then start the container. Raises CriError; a sandbox whose container does not start is removed, one that
        the runtime itself keeps after a failed RunPodSandbox is left for the caller to find (node.pods())."""
        sandbox = {
            "metadata": {"name": name, "namespace": namespace, "uid": str(uuid.uuid4())}, "hostname": name,
            "log_directory": f"{LOGS}/{namespace}_{name}", "annotations": dict(annotations or {}),
            "labels": {"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace},
            "port_mappings": [{"protocol": protocol, "host_port": outer, "container_port": inner}
                              for outer, inner in (host_ports or {}).items()],
            "linux": {"cgroup_parent": node.cgroup}}
        container = {
            "metadata": {"name": "main"}, "image": {"image": image}, "command": list(command), "log_path": "main.log",
            "linux": {"security_context": {"capabilities": {"add_capabilities": ["NET_RAW"]}}}}
        made = node.cri.call("RunPodSandbox", config=sandbox, timeout=timeout)
        pod = cls(node, made.pod_sandbox_id, name, namespace, annotations or {})
        try:
            pod.container_id = node.cri.call("CreateContainer", pod_sandbox_id=pod.sandbox_id, config=container,
                                             sandbox_config=sandbox).container_id
            node.cri.call("StartContainer", container_id=pod.container_id)
        except CriError:
            pod.remove()
            raise
        return pod

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @cached_property
    def container_id(self) -> str:
        found = self.node.cri.call("ListContainers", filter={"pod_sandbox_id": self.sandbox_id}).containers
        if not found:
            raise LookupError(f"pod {self} has no container")
        return found[0].id

    def status(self, verbose: bool = False):
        """The runtime's PodSandboxStatusResponse."""
        return self.node.cri.call("PodSandboxStatus", pod_sandbox_id=self.sandbox_id, verbose=verbose)

    @property
    def ready(self) -> bool:
        return self.status().status.state == 0

    @cached_property
    def ip(self) -> str:
        return self.status().status.network.ip

    @cached_property
    def netns(self) -> str:
        """Path of the pod's network namespace, on its node."""
        spec = json.loads(self.status(verbose=True).info["info"])["runtimeSpec"]
        return next(space["path"] for space in spec["linux"]["namespaces"] if space["type"] == "network")

    def exec(self, command: Command, *, timeout: float = 30, check: bool = True) -> subprocess.CompletedProcess:
        """Run a command inside the container, by CRI; its tools are busybox's. Contract of Host.run."""
        words = argv(command)
        answer = self.node.cri.call("ExecSync", container_id=self.container_id, cmd=words, timeout=timeout)
        out, err = answer.stdout.decode(errors="replace"), answer.stderr.decode(errors="replace")
        if check and answer.exit_code:
            raise CommandFailed(answer.exit_code, words, out, err)
        return subprocess.CompletedProcess(words, answer.exit_code, out, err)

    def ask(self, address: str, port: int, proto: str = "tcp", timeout: float = 5) -> str:
        """Send one line from inside the container, by TCP or UDP; the answer's first line, "" when none came in time. Of an echo server
        that is "ADDRESS PORT": how the server sees the pod."""
        done = self.exec(["timeout", str(timeout), "first_syn", address, str(port), *(["udp"] if proto == "udp" else []), "exit"],
                         check=False, timeout=timeout + 5)
        return done.stdout.partition("\n")[0]

    def popen(self, command: Command, **kwargs) -> Process:
        """Start a program of this machine (python3, tcpdump, ip, ...) in the pod's network namespace; for traffic that goes on in the
        background. Contract of Host.popen."""
        return self.node.popen(["nsenter", f"--net={self.netns}", "--", *argv(command)], **kwargs)

    def run_here(self, command: Command, *, timeout: float = 30, check: bool = True) -> subprocess.CompletedProcess:
        """The same to the end: a program of this machine with the pod's interfaces and addresses."""
        process = self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return finish(process, timeout, check)

    def output(self) -> str:
        """What the container's command has written so far (stdout and stderr)."""
        log = self.node.path(f"{LOGS}/{self.namespace}_{self.name}/main.log")
        lines = log.read_text().splitlines() if log.exists() else []      # "TIME STREAM F|P TEXT"
        return "".join(line.split(" ", 3)[3] + "\n" for line in lines)

    def wait_output(self, timeout: float = 10) -> str:
        """The first complete output of the container's command; whatever there is at the deadline."""
        deadline = time.monotonic() + timeout
        while not (text := self.output()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return text

    def exit_code(self) -> int | None:
        """Status of the container's command, None while it runs."""
        status = self.node.cri.call("ContainerStatus", container_id=self.container_id).status
        return status.exit_code if status.state == 2 else None

    def remove(self) -> None:
        """Stop and remove the pod as the kubelet does; no error when the runtime does not know it any more."""
        for method in "StopPodSandbox", "RemovePodSandbox":
            try:
                self.node.cri.call(method, pod_sandbox_id=self.sandbox_id)
            except CriError as error:
                if error.code != "NOT_FOUND":
                    raise
