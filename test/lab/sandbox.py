#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a command as systemd would run it for a unit of conf/: with the unit's capabilities, system calls, address families and view of the
file system, and no more. For machines whose PID 1 is not systemd, which says so of itself in systemd.exec(5):

    sandbox.py UNIT [COMMAND...]        without a command: what the unit starts

A key of [Service] that this file does not know is an error: a test may not pass since half a sandbox was there.
"""
from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

CONF = Path(__file__).resolve().parents[2] / "conf"
libc = ctypes.CDLL(None, use_errno=True)

# What says when the command runs, or how much it may use; that it may do less than the rest says matters to no test.
OF_NO_EFFECT = {"Type", "RemainAfterExit", "ExecStart", "ExecStartPre", "ExecReload", "Restart", "RestartSec", "RestartPreventExitStatus",
                "SuccessExitStatus", "TimeoutStartSec", "TimeoutStopSec", "MemoryHigh", "MemoryMax", "IPAddressDeny", "KeyringMode",
                "DevicePolicy", "RuntimeDirectoryPreserve", "PrivateMounts", "OOMScoreAdjust"}


class Unit:
    """The section [Service] of a unit."""

    def __init__(self, name: str):
        self._values: dict[str, list[str]] = {}
        self._unread: set[str] = set()
        text = (CONF / name).read_text().replace("\\\n", " ")
        section = ""
        for line in map(str.strip, text.splitlines()):
            if line.startswith("["):
                section = line
            elif section == "[Service]" and line and line[0] not in "#;":
                key, value = line.split("=", 1)
                self._values[key] = self._values.get(key, []) + [value.strip()]
        self._unread = set(self._values) - OF_NO_EFFECT

    def lines(self, key: str) -> list[str]:
        self._unread.discard(key)
        return self._values.get(key, [])

    def text(self, key: str, default: str = "") -> str:
        return self.lines(key)[-1] if self.lines(key) else default

    def words(self, key: str) -> list[str]:
        return " ".join(self.lines(key)).split()

    def yes(self, key: str) -> bool:
        return self.text(key, "no") in ("yes", "true", "on", "1")

    @property
    def unknown(self) -> set[str]:
        """Keys that nobody has asked for."""
        return self._unread


def check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


# --- the file system

READ_ONLY, NO_SUID, NO_EXEC, REMOUNT, BIND, RECURSIVE, FROM_OUTSIDE = 1, 2, 8, 32, 4096, 16384, 1 << 19
NEW_MOUNTS, NEW_HOSTNAME, NEW_NETWORK = 0x20000, 0x4000000, 0x40000000
EMPTY = "/run/.sandbox"         # folders and files that nobody may look into


def mount(source: str | None, target: str, flags: int, kind: str | None = None, options: str | None = None) -> None:
    words = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    check(libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def mount_points(below: str) -> list[str]:
    points = [re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), line.split()[4]) for line in open("/proc/self/mountinfo")]
    return [point for point in points if point == below or point.startswith(below.rstrip("/") + "/")]


def make_read_only(path: str, but: list[str]) -> None:
    """With all that is mounted below it, except what is in `but` or below one of those."""
    if not os.path.exists(path):
        return
    if path not in mount_points(path):
        mount(path, path, BIND | RECURSIVE)
    for point in mount_points(path):
        if any(point == other or point.startswith(other.rstrip("/") + "/") for other in but) and point != path:
            continue
        try:
            mount(None, point, REMOUNT | BIND | READ_ONLY)
        except OSError as e:
            if e.errno not in (errno.ENOENT, errno.EACCES, errno.EINVAL):       # covered by another mount
                raise


def hide(path: str) -> None:
    if os.path.exists(path):
        mount(f"{EMPTY}/{'folder' if os.path.isdir(path) else 'file'}", path, BIND)


def existing(paths: list[str]) -> list[str]:
    """Of a list whose optional members begin with a dash."""
    for path in paths:
        if not path.startswith("-") and not os.path.exists(path):
            raise FileNotFoundError(path)
    return [path.lstrip("-") for path in paths if os.path.exists(path.lstrip("-"))]


def folders(unit: Unit) -> list[str]:
    """That systemd makes for the unit, and which it may write in."""
    made = []
    for kind, root in (("Runtime", "/run"), ("State", "/var/lib"), ("Logs", "/var/log"), ("Cache", "/var/cache")):
        mode = int(unit.text(kind + "DirectoryMode", "0755"), 8)
        for name in unit.words(kind + "Directory"):
            os.makedirs(f"{root}/{name}", mode=mode, exist_ok=True)
            made.append(f"{root}/{name}")
    return made


def view_of_files(unit: Unit) -> None:
    writable = folders(unit) + existing(unit.words("ReadWritePaths"))
    mount(None, "/", RECURSIVE | FROM_OUTSIDE)
    os.makedirs(f"{EMPTY}/folder", exist_ok=True)
    Path(f"{EMPTY}/file").touch()
    for name in ("folder", "file"):
        os.chmod(f"{EMPTY}/{name}", 0)

    if unit.text("ProtectProc", "default") != "default" or unit.text("ProcSubset", "all") != "all":
        mount("proc", "/proc", 0, "proc", f"hidepid={unit.text('ProtectProc', 'default').replace('default', 'off')}"
              + (",subset=pid" if unit.text("ProcSubset") == "pid" else ""))
    if unit.yes("PrivateTmp"):
        for path in ("/tmp", "/var/tmp"):
            mount("tmp", path, 0, "tmpfs", "mode=1777")
        writable += ["/tmp", "/var/tmp"]
    if unit.yes("PrivateDevices"):
        own_devices()
    writable = [path for path in writable if not any(path.startswith(other + "/") for other in writable)]
    for path in writable:       # mounts of their own, so that they can stay writable below what is not
        mount(path, path, BIND | RECURSIVE)
    system = unit.text("ProtectSystem", "no")
    if system == "strict":
        make_read_only("/", [*writable, "/proc", "/sys", "/dev"])
    elif system != "no":
        for path in ["/usr", "/boot", "/efi"] + (["/etc"] if system == "full" else []):
            make_read_only(path, writable)
    if unit.yes("ProtectKernelTunables"):
        for path in ("acpi", "apm", "asound", "bus", "fs", "irq", "latency_stats", "mtrr", "scsi", "sys", "sysrq-trigger", "timer_stats"):
            make_read_only("/proc/" + path, [])
        for path in ("/proc/kallsyms", "/proc/kcore"):
            hide(path)
        make_read_only("/sys", ["/sys/fs/cgroup"])
    if unit.yes("ProtectControlGroups"):
        make_read_only("/sys/fs/cgroup", [])
    if unit.yes("ProtectKernelLogs"):
        for path in ("/proc/kmsg", "/dev/kmsg"):
            hide(path)
    if unit.yes("ProtectKernelModules"):
        for path in ("/lib/modules", "/usr/lib/modules"):
            hide(path)
    if (home := unit.text("ProtectHome", "no")) != "no":
        for path in ("/home", "/root", "/run/user"):
            hide(path) if home == "yes" else make_read_only(path, [])
    for path in existing(unit.words("InaccessiblePaths")):
        hide(path)
    for path in existing(unit.words("ReadOnlyPaths")):
        make_read_only(path, writable)


def own_devices() -> None:
    folder = f"{EMPTY}/dev"
    os.makedirs(folder, exist_ok=True)
    mount("dev", folder, NO_SUID, "tmpfs", "mode=755")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        Path(f"{folder}/{name}").touch()
        mount(f"/dev/{name}", f"{folder}/{name}", BIND)
    for name, to in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")):
        os.symlink(to, f"{folder}/{name}")
    for name in ("pts", "shm"):
        if os.path.isdir(f"/dev/{name}"):
            os.mkdir(f"{folder}/{name}")
            mount(f"/dev/{name}", f"{folder}/{name}", BIND)
    mount(folder, "/dev", BIND | RECURSIVE)
    mount(None, "/dev", REMOUNT | BIND | NO_SUID | NO_EXEC)


# --- capabilities

CAPABILITIES = """chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service net_broadcast
 net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource
 sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read
 perfmon bpf checkpoint_restore""".split()
SET_NO_NEW_PRIVILEGES, DROP_FROM_BOUNDING_SET = 38, 24


def capabilities(unit: Unit) -> set[str]:
    """The bounding set."""
    allowed = set(CAPABILITIES)
    if unit.lines("CapabilityBoundingSet"):
        allowed = {name.removeprefix("CAP_").lower() for name in unit.words("CapabilityBoundingSet")}
        if unknown := allowed - set(CAPABILITIES):
            raise ValueError(f"CapabilityBoundingSet: {unknown}")
    for key, taken in (("PrivateDevices", {"mknod", "sys_rawio"}), ("ProtectKernelModules", {"sys_module"}),
                       ("ProtectKernelLogs", {"syslog"}), ("ProtectClock", {"sys_time", "wake_alarm"})):
        allowed -= taken if unit.yes(key) else set()
    return allowed


def drop_capabilities(allowed: set[str]) -> None:
    for number, name in enumerate(CAPABILITIES):
        if name not in allowed:
            check(libc.prctl(DROP_FROM_BOUNDING_SET, number, 0, 0, 0), f"drop {name}")


# --- system calls

@cache
def call_sets() -> dict[str, list[str]]:
    """systemd's own: "@default" and so on."""
    listing = subprocess.run(["systemd-analyze", "--no-pager", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    sets: dict[str, list[str]] = {}
    name = ""
    for line in re.sub(r"\x1b\[[0-9;]*m", "", listing).splitlines():
        if line.startswith(("@", "#")):
            name = line.strip()
            sets[name] = []
        elif word := line.split("#")[0].strip():
            sets[name].append(word)
    return sets


def expand(word: str) -> set[str]:
    return set().union(*map(expand, call_sets()[word])) if word.startswith("@") else {word}


def allowed_calls(unit: Unit) -> set[str]:
    """A first list that begins with ~ would mean that the rest is allowed; no unit of ours has one."""
    allowed = expand("@default")
    for number, line in enumerate(unit.lines("SystemCallFilter")):
        words = set().union(*map(expand, line.lstrip("~").split()))
        if line.startswith("~"):
            assert number > 0, line
            allowed -= words
        else:
            allowed |= words
    return allowed


def restrict_system_calls(unit: Unit) -> None:
    """In filters that come on top of each other, as systemd's do. After this only an execve() is sure to be allowed."""
    import seccomp
    kill, allow, eperm = seccomp.KILL_PROCESS, seccomp.ALLOW, seccomp.ERRNO(errno.EPERM)

    def load(rules: list, default=allow) -> None:
        """Of (what happens, system call, conditions); a call that this architecture does not have is no matter."""
        filter_ = seccomp.SyscallFilter(default)
        filter_.set_attr(seccomp.Attr.CTL_NNP, False)
        for action, call, *conditions in rules:
            if seccomp.resolve_syscall(seccomp.Arch(), call) >= 0:
                filter_.add_rule(action, call, *conditions)
        filter_.load()

    def has(argument: int, bits: int) -> object:
        return seccomp.Arg(argument, seccomp.MASKED_EQ, bits, bits)

    def refuse(calls) -> None:
        load([(eperm, call) for call in calls])

    if families := unit.words("RestrictAddressFamilies"):
        numbers = {int(getattr(socket, name)) for name in families if name != "none"}
        refused = seccomp.ERRNO(errno.EAFNOSUPPORT)
        load([(refused, "socket", seccomp.Arg(0, seccomp.EQ, n)) for n in range(64) if n not in numbers]
             + [(refused, "socket", seccomp.Arg(0, seccomp.GE, 64))])
    if (allowed := unit.text("RestrictNamespaces", "no")) != "no":
        kinds = {"time": 0x80, "mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000,
                 "pid": 0x20000000, "net": NEW_NETWORK}
        refused_kinds = [kind for name, kind in kinds.items() if name not in allowed.split()]
        load([(seccomp.ERRNO(errno.ENOSYS), "clone3"), (eperm, "setns", seccomp.Arg(1, seccomp.EQ, 0))]      # 0: of any kind
             + [(eperm, "setns", has(1, kind)) for kind in refused_kinds]
             + [(eperm, call, has(0, kind)) for call in ("clone", "unshare") for kind in refused_kinds])
    if unit.yes("MemoryDenyWriteExecute"):
        write, execute = 2, 4
        load([(eperm, "mmap", has(2, write | execute)), (eperm, "mprotect", has(2, execute)), (eperm, "pkey_mprotect", has(2, execute)),
              (eperm, "shmat", has(2, 0o100000))])
    if unit.yes("RestrictRealtime"):
        load([(eperm, "sched_setscheduler", seccomp.Arg(1, seccomp.EQ, policy)) for policy in (1, 2, 6)])
    if unit.yes("RestrictSUIDSGID"):
        modes = (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1), ("mkdirat", 2), ("mknod", 1), ("mknodat", 2), ("creat", 1))
        load([(eperm, call, has(argument, bit)) for call, argument in modes for bit in (0o4000, 0o2000)]
             + [(eperm, call, has(flags, os.O_CREAT), has(flags + 1, bit)) for call, flags in (("open", 1), ("openat", 2))
                for bit in (0o4000, 0o2000)] + [(seccomp.ERRNO(errno.ENOSYS), "openat2")])
    if unit.yes("LockPersonality"):
        load([(eperm, "personality", seccomp.Arg(0, seccomp.NE, 0))])
    for key, calls in (("ProtectKernelModules", "@module"), ("ProtectClock", "@clock"), ("PrivateDevices", "@raw-io")):
        if unit.yes(key):
            refuse(expand(calls))
    if unit.yes("ProtectKernelLogs"):
        refuse(["syslog"])
    if unit.yes("ProtectHostname"):
        refuse(["sethostname", "setdomainname"])
    if unit.lines("SystemCallFilter"):      # of other architectures nothing is allowed
        assert unit.text("SystemCallArchitectures") == "native"
        action = seccomp.ERRNO(getattr(errno, unit.text("SystemCallErrorNumber"))) if unit.lines("SystemCallErrorNumber") else kill
        load([(allow, call) for call in allowed_calls(unit)], action)


def enter(unit: Unit) -> None:
    """This process has what the unit gives, and after an execve() no more."""
    call_sets()
    network = NEW_NETWORK if unit.yes("PrivateNetwork") else 0
    hostname = NEW_HOSTNAME if unit.yes("ProtectHostname") else 0
    check(libc.unshare(NEW_MOUNTS | network | hostname), "unshare")
    if network:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.umask(int(unit.text("UMask", "0022"), 8))
    view_of_files(unit)
    drop_capabilities(capabilities(unit))
    if unit.yes("NoNewPrivileges"):
        check(libc.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no new privileges")
    restrict_system_calls(unit)
    assert not unit.unknown, f"the sandbox does not know {unit.unknown}"


def main() -> None:
    unit = Unit(sys.argv[1])
    command = sys.argv[2:] or unit.text("ExecStart").split()
    for before in [] if sys.argv[2:] else unit.lines("ExecStartPre"):
        assert before.startswith("+"), "the sandbox has only commands ahead of it that are outside of it"
        subprocess.run(before[1:].split(), check=True)
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    enter(unit)
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    main()
