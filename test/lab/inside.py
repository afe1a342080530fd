# SPDX-License-Identifier: Apache-2.0
"""Parts of tests that run on the node itself, for what is done thousands of times: programs stopped at any of their system calls, and
the kernel's state read without a process.

    inside(node, function, ...)     runs the function on the node, in a process of its own
    Stepper(["egressctl", ...])     runs a program from system call to system call
    Kernel()                        the node's maps, links, files and hooks; for functions that run on the node
"""
from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from light_node import CTL, ENVIRONMENT, PINS, PLUGIN, Answer, LightNode, NetPod, network
from tcx import bpf, query

libc = ctypes.CDLL(None, use_errno=True)
THOROUGH = os.environ.get("EC_THOROUGH", "") == "1"      # stop at each and every system call
NAMESPACES = ("pid", "net", "mnt")      # mnt is the last: /proc changes with it


def inside(node: LightNode, function: Callable, *arguments):
    """What the function returns (or raises, as AssertionError) when it runs in the node's namespaces."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        try:
            handles = [os.open(f"/proc/{node.pid}/ns/{name}", os.O_RDONLY) for name in NAMESPACES]
            for handle in handles:
                if libc.setns(handle, 0):
                    raise OSError(ctypes.get_errno(), "setns")
            if (grandchild := os.fork()) == 0:      # a pid namespace is entered by children only
                _answer(writer, function, arguments)
            os.close(writer)
            os.waitpid(grandchild, 0)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    assert data, "the process on the node died"
    good, value = pickle.loads(data)
    if not good:
        raise AssertionError(value)
    return value


def _answer(writer: int, function: Callable, arguments: tuple) -> None:
    try:
        os.chdir("/")
        libc.prctl(1, signal.SIGKILL)       # PR_SET_PDEATHSIG: not to outlive a test that is given up
        answer = (True, function(*arguments))
    except BaseException as error:      # noqa: BLE001: all of it belongs to the caller
        text = str(error) if isinstance(error, AssertionError) else ""
        answer = (False, f"{text}\n--- on the node\n{traceback.format_exc()}")
    with os.fdopen(writer, "wb") as pipe:
        pickle.dump(answer, pipe)
    os._exit(0)


# --- programs

def plugin_environment(verb: str, pod: NetPod | None, **env: str) -> dict[str, str]:
    named = {} if pod is None else {"CONTAINERID": pod.name, "NETNS": pod.netns, "IFNAME": pod.ifname, "ARGS": pod.args}
    return {"PATH": ENVIRONMENT["PATH"], "CNI_COMMAND": verb, "CNI_PATH": str(PLUGIN.parent),
            **{f"CNI_{key}": value for key, value in (named | env).items()}}


def stdin_of(verb: str, pod: NetPod | None) -> bytes:
    if verb == "GC":
        return json.dumps(network(None, "1.1.0", **{"cni.dev/attachments": []})).encode()
    if pod is None or verb == "STATUS":
        return json.dumps(network(None, "1.1.0")).encode()
    return json.dumps(network(pod.previous)).encode()


class Call(subprocess.Popen):
    """A running call of the plugin."""

    def __init__(self, verb: str, pod: NetPod | None = None, **env: str):
        self.verb = verb
        super().__init__([PLUGIN], env=plugin_environment(verb, pod, **env), stdin=-1, stdout=-1, stderr=-1)
        self.stdin.write(stdin_of(verb, pod))
        self.stdin.close()
        self.stdin = None

    def answer(self, timeout: float = 30) -> Answer:
        out, err = self.communicate(timeout=timeout)
        return Answer(self.returncode, out.decode(), err.decode())


def call(verb: str, pod: NetPod | None = None, **env: str) -> Answer:
    return Call(verb, pod, **env).answer()


def succeed(verb: str, pod: NetPod | None = None, **env: str) -> None:
    answer = call(verb, pod, **env)
    assert answer.code == 0 and (verb == "ADD" or answer.out == ""), f"{verb} {pod}: {answer}"


def least_cpu_time(verb: str, pod: NetPod | None = None) -> float:
    """What a call costs, in seconds of processor time, fork and exec included: wall time would be that of what else the machine does."""
    times = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert call(verb, pod).code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def ctl(*words: str, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run([CTL, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 or not check, f"egressctl {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def shell(text: str) -> str:
    return subprocess.run(["sh", "-c", text], env=ENVIRONMENT, capture_output=True, text=True, timeout=60).stdout


def ip(*batch: str) -> None:
    """Commands of ip(8)."""
    done = subprocess.run(["ip", "-batch", "-"], input="".join(f"{line}\n" for line in batch), env=ENVIRONMENT, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, f"{batch}: {done.stderr}"


# --- system call by system call

TRACEME, CONT, SETOPTIONS, SYSCALL, GET_SYSCALL_INFO = 0, 7, 0x4200, 24, 0x420E
TRACESYSGOOD, EXITKILL = 1, 1 << 20
ENTRY = 1
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long

# By number: system calls that have to do with the process itself only, and those that look at the world but leave no trace there. To be
# killed before one of these is the same as to be killed before the next. None of this is needed on machines without a table: there
# every system call counts.
ITSELF = {"x86_64": {
    3, 5, 8, 9, 10, 11, 12, 13, 14, 25, 28,     # close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask mremap madvise
    39, 79, 96, 102, 158, 186, 201, 202, 218,   # getpid getcwd gettimeofday getuid arch_prctl gettid time futex set_tid_address
    228, 231, 273, 302, 318, 334}}              # clock_gettime exit_group set_robust_list prlimit64 getrandom rseq
LOOKS = {"x86_64": {
    0, 1, 17, 21, 41, 45, 47, 49, 51, 54, 55,   # read (write: see below) pread64 access socket recvfrom recvmsg bind get/setsockopt
    16, 72, 89, 137, 138, 217, 257, 262,        # ioctl fcntl readlink statfs fstatfs getdents64 (openat: see below) newfstatat
    269, 332}}                                  # faccessat statx
BPF_LOOKS = {1, 4, 7, 11, 12, 13, 14, 15, 16, 18, 19, 23, 30, 31}   # commands of bpf(): look-ups, handles, information
WRITE, OPENAT, BPF = {"x86_64": (1, 257, 321)}.get(os.uname().machine, (64, 56, 280))


class Stepper:
    """A program that runs from system call to system call."""

    def __init__(self, words: list, environment: dict[str, str], stdin: bytes = b""):
        self.count, self.code = 0, None
        self._out = os.memfd_create("out")
        source = os.memfd_create("in")
        os.write(source, stdin)
        os.lseek(source, 0, os.SEEK_SET)
        arguments = [str(word) for word in words]
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.dup2(source, 0)
                os.dup2(self._out, 1)
                os.dup2(self._out, 2)
                libc.ptrace(TRACEME, 0, None, None)
                os.execve(arguments[0], arguments, environment)
            finally:
                os._exit(127)
        os.close(source)
        os.waitpid(self.pid, 0)
        self._ptrace(SETOPTIONS, TRACESYSGOOD | EXITKILL)

    @classmethod
    def plugin(cls, verb: str, pod: NetPod | None = None, **env: str) -> Stepper:
        return cls([PLUGIN], plugin_environment(verb, pod, **env), stdin_of(verb, pod))

    @classmethod
    def ctl(cls, *words: str) -> Stepper:
        return cls([CTL, *words], ENVIRONMENT)

    def _ptrace(self, request: int, data: int = 0) -> None:
        if libc.ptrace(request, self.pid, None, data) < 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    def _wait(self, number: int = 0) -> bool:
        """On to the next stop; false when the program has ended."""
        self._ptrace(SYSCALL, number)
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSTOPPED(status):
            stopped = os.WSTOPSIG(status)
            return True if stopped == signal.SIGTRAP | 0x80 else self._wait(0 if stopped == signal.SIGTRAP else stopped)
        self.code = os.waitstatus_to_exitcode(status)
        return False

    def step(self) -> bool:
        """On to the entry of the next system call, which is not done yet; false when the program has ended."""
        if not (self.count == 0 or self._wait()) or not self._wait():
            return False
        self.count += 1
        return True

    def to(self, number: int) -> bool:
        while self.count < number:
            if not self.step():
                return False
        return True

    def system_call(self) -> tuple[int, ...]:
        """Number and arguments of the system call at whose entry the program is."""
        info = ctypes.create_string_buffer(88)
        libc.ptrace(GET_SYSCALL_INFO, self.pid, ctypes.c_void_p(len(info)), ctypes.addressof(info))
        assert info.raw[0] == ENTRY
        return struct.unpack_from("QQQQQQQ", info.raw, 24)

    def is_outside(self) -> bool:
        """Whether the system call has to do with more than the process itself."""
        return self.system_call()[0] not in ITSELF.get(os.uname().machine, ())

    def leaves_a_trace(self) -> bool:
        number, *arguments = self.system_call()
        if number == BPF:
            return arguments[0] not in BPF_LOOKS
        if number == WRITE:
            return arguments[0] > 2
        if number == OPENAT:
            return bool(arguments[2] & (os.O_CREAT | os.O_TRUNC))
        return self.is_outside() and number not in LOOKS.get(os.uname().machine, ())

    def to_next(self, after: int, kind: Callable[[Stepper], bool]) -> bool:
        """On to the first system call of a kind after a number; any kind will do for THOROUGH tests."""
        there = self.to(after + 1)
        while there and not (THOROUGH or kind(self)):
            there = self.step()
        return there

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._out)

    def end(self) -> Answer:
        """Let it run to its end."""
        if self.code is None:
            self._ptrace(CONT)
            while True:
                _, status = os.waitpid(self.pid, 0)
                if not os.WIFSTOPPED(status):
                    break
                self._ptrace(CONT, os.WSTOPSIG(status))
            self.code = os.waitstatus_to_exitcode(status)
        os.lseek(self._out, 0, os.SEEK_SET)
        with os.fdopen(self._out) as out:
            return Answer(self.code, out.read(), "")


def points(start: Callable[[], Stepper]) -> list[int]:
    """Runs a program to its end; the numbers of its system calls that leave a trace. It makes many, and each takes a test a tenth of a
    second: so these are every fifth of them only, unless tests are to be THOROUGH."""
    program, found = start(), []
    while program.step():
        if program.leaves_a_trace():
            found.append(program.count)
    answer = program.end()
    assert answer.code == 0, answer
    return found if THOROUGH else found[::5]


# --- the kernel's state

GATEWAY = "/run/netns/egressclass"


@contextmanager
def in_gateway() -> Iterator[None]:
    """This thread is in the network namespace of the node's gateway."""
    with open("/proc/thread-self/ns/net", "rb") as own, open(GATEWAY, "rb") as other:
        if libc.setns(other.fileno(), 0):
            raise OSError(ctypes.get_errno(), GATEWAY)
        try:
            yield
        finally:
            if libc.setns(own.fileno(), 0):
                os._exit(70)


LOOKUP, UPDATE, DELETE, NEXT_KEY, OBJ_GET, TEST_RUN, INFO = 1, 2, 3, 4, 7, 10, 15
RUN = Path("/run/egressclass")


def pinned(path: str) -> int:
    text = ctypes.create_string_buffer(path.encode())
    return bpf(OBJ_GET, struct.pack("QII", ctypes.addressof(text), 0, 0))[0]


class Map:
    def __init__(self, name: str):
        self.handle = pinned(f"{PINS}/maps/{name}")
        weakref.finalize(self, os.close, self.handle)
        info = ctypes.create_string_buffer(128)     # struct bpf_map_info: type, id, key_size, value_size, ...
        bpf(INFO, struct.pack("IIQ", self.handle, len(info), ctypes.addressof(info)))
        self.key_size, self.value_size = struct.unpack_from("2I", info, 8)

    def get(self, key: bytes) -> bytes | None:
        wanted, value = ctypes.create_string_buffer(key, self.key_size), ctypes.create_string_buffer(self.value_size)
        try:
            bpf(LOOKUP, struct.pack("IIQQQ", self.handle, 0, ctypes.addressof(wanted), ctypes.addressof(value), 0))
        except FileNotFoundError:
            return None
        return value.raw

    def keys(self) -> list[bytes]:
        found, previous, key = [], None, ctypes.create_string_buffer(self.key_size)
        while True:
            try:
                bpf(NEXT_KEY, struct.pack("IIQQ", self.handle, 0, ctypes.addressof(previous) if previous else 0, ctypes.addressof(key)))
            except FileNotFoundError:
                return found
            found.append(key.raw)
            previous = ctypes.create_string_buffer(key.raw, self.key_size)

    def set(self, key: bytes, value: bytes) -> None:
        wanted, entry = ctypes.create_string_buffer(key, self.key_size), ctypes.create_string_buffer(value, self.value_size)
        bpf(UPDATE, struct.pack("IIQQQ", self.handle, 0, ctypes.addressof(wanted), ctypes.addressof(entry), 0))

    def clear(self) -> None:
        for key in self.keys():
            buffer = ctypes.create_string_buffer(key, self.key_size)
            bpf(DELETE, struct.pack("IIQQQ", self.handle, 0, ctypes.addressof(buffer), 0, 0))

    def all(self) -> dict[bytes, bytes]:
        return {key: value for key in self.keys() if (value := self.get(key)) is not None}


class Program:
    """A pinned one, run by the kernel on packets of ours (BPF_PROG_TEST_RUN); where it sends them, they do not go."""

    def __init__(self, name: str):
        self.handle = pinned(f"{PINS}/programs/{name}")
        weakref.finalize(self, os.close, self.handle)

    def run(self, frame: bytes, ifindex: int, mark: int = 0) -> int:
        """As if it came in by that interface, of this thread's network namespace; the mark with which it goes on."""
        data, out = ctypes.create_string_buffer(frame, len(frame)), ctypes.create_string_buffer(len(frame) + 256)
        context, after = (ctypes.create_string_buffer(192) for _ in range(2))       # struct __sk_buff
        struct.pack_into("I", context, 8, mark)
        struct.pack_into("I", context, 40, ifindex)
        bpf(TEST_RUN, struct.pack("IIIIQQIIIIQQIII", self.handle, 0, len(frame), len(out), ctypes.addressof(data), ctypes.addressof(out), 1, 0,
                                  len(context), len(after), ctypes.addressof(context), ctypes.addressof(after), 0, 0, 0))
        return struct.unpack_from("I", after, 8)[0]


class Kernel:
    """Open handles of the maps that pods have entries in: good as long as they stay pinned."""

    def __init__(self) -> None:
        self.attachments, self.endpoints, self.classes = Map("attachments"), Map("endpoints"), Map("classes")

    def traces(self) -> dict:
        """All that attachments have left on the node; empty when nothing."""
        records = RUN / "attachments"
        found = {
            "attachments": {struct.unpack("I", key)[0]: value.hex() for key, value in self.attachments.all().items()},
            "endpoints": {key.hex(): value.hex() for key, value in self.endpoints.all().items()},
            "pins": sorted(name for name in os.listdir(f"{PINS}/links") if not name.startswith("egress0")),
            "records": {file.name: file.read_text() for file in sorted(records.iterdir())} if records.exists() else {}}
        return {kind: value for kind, value in found.items() if value}

    def class_of(self, ifindex: int) -> int | None:
        entry = self.attachments.get(struct.pack("I", ifindex))
        return entry and struct.unpack_from("I", entry, 8)[0]


def programs(ifindex: int) -> list[int]:
    """Programs on the ingress hook of an interface."""
    return query(ifindex)["programs"]


def left_on(ifindex: int, timeout: float = 3) -> list[int]:
    """Programs that stay on the ingress hook. The kernel takes one off some time after the last handle of its link is gone."""
    deadline = time.monotonic() + timeout
    while (found := programs(ifindex)) and time.monotonic() < deadline:
        time.sleep(0.001)
    return found


def ifindex_of(name: str) -> int:
    try:
        return int(Path(f"/sys/class/net/{name}/ifindex").read_text())
    except OSError:
        return 0


def is_up(name: str) -> bool:
    return bool(int(Path(f"/sys/class/net/{name}/flags").read_text(), 0) & 1)


EXPEDITED = Path("/sys/kernel/rcu_expedited")


def own_expedited(node: LightNode) -> None:
    """Gives the node a file in the place of the setting for RCU's grace periods, which is the whole machine's."""
    node.run(f"echo 0 >/run/expedited; mount --bind /run/expedited {EXPEDITED}")


def expedited() -> tuple[str, bool]:
    """Whether grace periods are expedited, and whether that is said to be our doing."""
    return EXPEDITED.read_text().strip(), (RUN / "expedited").exists()


def lock_is_free() -> bool:
    """Nobody holds the node's lock, nor waits for it."""
    for name in "lock", "lock.gate":
        try:
            with (RUN / name).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            return False
    return True
