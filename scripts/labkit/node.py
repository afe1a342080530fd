# SPDX-License-Identifier: Apache-2.0
"""A node: a host that looks to the plugin like any machine with containerd, at the usual paths, and shares none of them with others."""
from __future__ import annotations

import json
import socket
import time
from functools import cached_property
from pathlib import Path

from . import assets
from .cri import Cri, CriError
from .host import SETUP, Host
from .pod import Pod
from .state import LabError

PLUGINS = Path("/usr/lib/cni")
CNI_BIN, CNI_CONF = "/opt/cni/bin", "/etc/cni/net.d/10-lab.conflist"
CONFIGURATION = "/etc/egressclass/config.json"
SOCKET, PIDFILE, LOG = "/run/containerd/containerd.sock", "/run/containerd/containerd.pid", "/var/log/containerd.log"

# Everything written under /etc, /opt, /usr/local and /var goes to memory, and /run starts empty: a node leaves nothing behind, and
# fixed paths (xtables.lock, libcni's cache, runc's root, /run/netns, our own) are private without a list of them. containerd's root is
# a tmpfs proper, since an overlay cannot be the upper layer of the overlays that containerd makes.
# /sys shows the network namespace it was mounted in, so it is mounted afresh, with the cgroups (v1, hybrid or v2) carried over.
NODE_SETUP = SETUP + """
mount -t tmpfs -o mode=755 lab /run
for d in etc opt usr/local var; do
  mkdir -p /run/.lab/$d/upper /run/.lab/$d/work
  mount -t overlay -o lowerdir=/$d,upperdir=/run/.lab/$d/upper,workdir=/run/.lab/$d/work lab /$d
done
mkdir -p /var/lib/containerd /var/lib/cni /etc/egressclass /run/egressclass /run/netns /run/lock /run/containerd /run/.lab/cgroup
rm -rf /etc/cni /etc/egressclass/* /var/lib/egressclass
mount -t tmpfs -o mode=755 lab /var/lib/containerd
mkdir /var/lib/containerd/tmp
mount --rbind /sys/fs/cgroup /run/.lab/cgroup
mount -t sysfs sysfs /sys
mount --rbind /run/.lab/cgroup /sys/fs/cgroup
umount -R -l /run/.lab/cgroup
mount -t bpf bpf /sys/fs/bpf
cd /proc/sys/net
echo 1 >ipv4/ip_forward; echo 1 >ipv6/conf/all/forwarding; echo 0 >ipv4/conf/all/rp_filter; echo 2 >ipv4/conf/default/rp_filter; cd /
"""

# restrict_oom_score_adj: root may lack CAP_SYS_RESOURCE (runc then dies with "can't get final child's PID").
# disable_cgroup: see has_controllers.
CONTAINERD = f"""
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{assets.IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_cgroup = NO_CONTROLLERS
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_BIN}"
    conf_dir = "{Path(CNI_CONF).parent}"
    max_conf_num = 1
"""


def conflist(pod_subnet: str) -> dict:
    """The CNI configuration of a node: what a user has, plus our one entry."""
    return {"cniVersion": "1.0.0", "name": "lab", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": pod_subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "egressclass", "capabilities": {"io.kubernetes.cri.pod-annotations": True}}]}


def has_controllers() -> bool:
    """Whether a pod's cgroup can have limits: always so on v1; on v2 if the root passes the cpu controller on, which it cannot when it
    is that of a container and has processes. Then runc must not try, and pods go where containerd is."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        try:
            (root / "cgroup.subtree_control").write_text("+cpu")
        except OSError:
            return False
    return True


class Node(Host):
    setup = NODE_SETUP

    def __init__(self, name: str, pid: int, address: str, cgroup: str):
        """`cgroup`: the parent of the cgroups of the node's pods, so that they can be found and removed."""
        super().__init__(name, pid)
        self.address, self.cgroup = address, cgroup

    @cached_property
    def cri(self) -> Cri:
        """The runtime. A unix socket is a path and does not care for network namespaces, hence no nsenter."""
        return Cri(str(self.path(SOCKET)))

    def prepare(self, pod_subnet: str, plugin: Path) -> None:
        """Install CNI plugins and configuration, and containerd's."""
        self.run(["sh", "-ec", f"mkdir -p {CNI_BIN}; cp -s {PLUGINS}/* {CNI_BIN}/ 2>/dev/null || true"])
        self.install_plugin(plugin)
        self.write(CNI_CONF, json.dumps(conflist(pod_subnet), indent=2) + "\n")
        self.write("/etc/containerd/config.toml", CONTAINERD.replace("NO_CONTROLLERS", "false" if has_controllers() else "true"))

    def install_plugin(self, source: Path | str) -> None:
        """Put a plugin binary in place as an upgrade does: copy aside, rename over."""
        self.install(source, f"{CNI_BIN}/egressclass")

    # --- the runtime

    def start_containerd(self) -> None:
        own = f"/sys/fs/cgroup{self.cgroup}/runtime"
        join = "" if has_controllers() else f"mkdir -p {own}; echo 0 >{own}/cgroup.procs;"
        self.spawn(f"sh -c '{join} echo $$ >{PIDFILE}; TMPDIR=/var/lib/containerd/tmp exec containerd'", LOG)
        if old := vars(self).pop("cri", None):      # gRPC takes seconds to come back to a server that it has lost
            old.close()
        deadline = time.monotonic() + 20
        while not self._serves():
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: containerd does not start\n{self.containerd_log()[-2000:]}")
            time.sleep(0.01)

    def _serves(self) -> bool:
        """Whether the runtime listens, and has taken stock of its pods."""
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(str(self.path(SOCKET))) != 0:
                return False
        try:
            self.pods()
            return True
        except CriError:
            return False

    def stop_containerd(self, signal: str = "TERM") -> None:
        """End containerd only: pods and their shims stay, as at an upgrade (TERM) or a crash (KILL)."""
        self.run(f"pid=$(cat {PIDFILE}); kill -{signal} $pid; while kill -0 $pid 2>/dev/null; do sleep 0.02; done")

    def restart_containerd(self) -> None:
        self.stop_containerd()
        self.start_containerd()

    def kill9_containerd(self) -> None:
        """Crash containerd and leave it dead; start_containerd() brings it back."""
        self.stop_containerd("KILL")

    def containerd_version(self) -> str:
        return self.cri.call("Version", timeout=5).runtime_version

    def containerd_log(self) -> str:
        return self.path(LOG).read_text() if self.path(LOG).exists() else ""

    def import_image(self, archive: Path) -> None:
        with archive.open("rb") as image, self.popen(["ctr", "-n", "k8s.io", "images", "import", "-"], stdin=image, stdout=-1,
                                                     stderr=-2, text=True) as process:
            output, _ = process.communicate(timeout=30)
        if process.returncode:
            raise LabError(f"{self.name}: cannot import {archive}: {output}")

    # --- pods

    def run_pod(self, name: str, namespace: str = "default", *, image: str = assets.IMAGE, **options) -> Pod:
        """Run a pod; options are those of Pod.run. Safe to call from many threads."""
        return Pod.run(self, name, namespace, image=image, **options)

    def run_first_syn(self, name: str, namespace: str, address: str, port: int, **options) -> Pod:
        """Run a pod whose first instruction is a TCP connection; its output() is the answer."""
        return self.run_pod(name, namespace, command=["/bin/first_syn", address, str(port)], **options)

    def pods(self) -> list[Pod]:
        """All sandboxes that the runtime knows, also failed and stopped ones."""
        return [Pod(self, item.id, item.metadata.name, item.metadata.namespace, item.annotations)
                for item in self.cri.call("ListPodSandbox").items]

    def pod(self, name: str, namespace: str = "default") -> Pod:
        for pod in self.pods():
            if (pod.name, pod.namespace) == (name, namespace):
                return pod
        raise LookupError(f"{self.name} has no pod {namespace}/{name}")

    def wait_ready(self, timeout: float = 10) -> None:
        """Wait until the runtime has loaded its CNI configuration."""
        deadline = time.monotonic() + timeout
        while True:
            conditions = self.cri.call("Status").status.conditions
            if all(condition.status for condition in conditions):
                return
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: " + "; ".join(c.message for c in conditions if not c.status))
            time.sleep(0.02)
