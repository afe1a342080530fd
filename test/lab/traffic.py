# SPDX-License-Identifier: Apache-2.0
"""What the tests on light_fleet.py send, and how it is seen outside: questions to the echo server, long flows whose losses are counted,
and packets made by hand. All of it runs in the test's own process, on sockets that were opened in a pod (light_fleet.Place): no program
has to start, and a test reads what came back at once."""
from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from labkit.echo_server import HTTP_PORT, LONG_PORT, PORTS
from light_fleet import Place
from pace import patience, rate as paced

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
ICMP = {4: 1, 6: 58}
ECHO = {4: (8, 0), 6: (128, 129)}       # request, reply
SO_MARK, IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DONT, PMTUDISC_DO, PMTUDISC_PROBE = 36, 10, 23, 0, 2, 3


class Seen(NamedTuple):
    """How the echo server saw a client."""
    source: str
    sport: int
    line: str = ""      # what it had sent (LONG_PORT only)

    @classmethod
    def parse(cls, answer: bytes) -> Seen | None:
        words = answer.decode().rstrip("\n").split(" ", 2)
        return cls(words[0], int(words[1]), *words[2:]) if len(words) > 1 else None


def version(address: str) -> int:
    return ip_address(address).version


def opened(place: Place, to: str, proto: str = "udp", *, source: str = "", sport: int = 0, df: bool | None = None,
           mark: int = 0) -> socket.socket:
    """A socket of a place for an address; df: whether datagrams may not be fragmented (left out: the kernel's default)."""
    family = version(to)
    client = place.socket(FAMILIES[family], KINDS[proto])
    if sport:       # else two sockets could get the same port
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if mark:
        client.setsockopt(socket.SOL_SOCKET, SO_MARK, struct.pack("I", mark))
    if df is not None:
        level, option = (socket.IPPROTO_IP, IP_MTU_DISCOVER) if family == 4 else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
        client.setsockopt(level, option, PMTUDISC_DO if df else PMTUDISC_DONT)
    if source or sport:
        client.bind((source, sport))
    return client


def ask(place: Place, to: str, port: int = PORTS[0], proto: str = "tcp", *, source: str = "", sport: int = 0, timeout: float = 2,
        payload: bytes = b"x\n", mark: int = 0) -> Seen | None:
    """One question, one answer; None when none came in time (or the connection was refused)."""
    with opened(place, to, proto, source=source, sport=sport, mark=mark) as client:
        client.settimeout(patience(timeout))
        try:
            client.connect((to, port))
            client.sendall(payload)
            return Seen.parse(client.recv(2048))
        except OSError:
            return None


def silent(place: Place, to: str, port: int = PORTS[0], proto: str = "udp", timeout: float = 0.3, **options) -> bool:
    """Whether nothing comes back. Only as good as the reason for the silence, which the test looks up in the node's counters."""
    return ask(place, to, port, proto, timeout=timeout, **options) is None


def send(place: Place, to: str, port: int = 9, *, count: int = 1, source: str = "", sport: int = 0, payload: bytes = b"x\n",
         mark: int = 0) -> None:
    """Datagrams, and no wait for an answer."""
    with opened(place, to, "udp", source=source, sport=sport, mark=mark) as client:
        for _ in range(count):
            client.sendto(payload, (to, port))


class Flows:
    """Many flows at once, each from a port of its own; they stay open, so that they can be asked again. `to` may be several addresses,
    taken in turn. UDP flows go to LONG_PORT or any other; TCP flows can be asked again only at LONG_PORT."""

    def __init__(self, place: Place, to: str | Iterable[str], count: int, port: int = LONG_PORT, proto: str = "udp", *,
                 sports: Iterable[int] = (), source: str = ""):
        targets = itertools.cycle([to] if isinstance(to, str) else list(to))
        wanted = iter(sports)
        self._poll, self._sockets = select.epoll(), []
        for target, _ in zip(targets, range(count)):
            client = opened(place, target, proto, source=source, sport=next(wanted, 0))
            client.setblocking(False)
            client.connect_ex((target, port))
            self._sockets.append(client)
        self._numbers = {client.fileno(): number for number, client in enumerate(self._sockets)}
        self._await_connections(proto)

    def _await_connections(self, proto: str, timeout: float = 3) -> None:
        if proto != "tcp":
            return
        deadline, waiting = time.monotonic() + patience(timeout), set(self._numbers)
        for handle in waiting:
            self._poll.register(handle, select.EPOLLOUT)
        while waiting and (rest := deadline - time.monotonic()) > 0:
            for handle, _ in self._poll.poll(rest):
                self._poll.unregister(handle)
                waiting.discard(handle)
        for handle in waiting:
            self._poll.unregister(handle)

    def __enter__(self) -> Flows:
        return self

    def __exit__(self, *exception) -> None:
        self._poll.close()
        for client in self._sockets:
            client.close()

    def sport(self, number: int) -> int:
        return self._sockets[number].getsockname()[1]

    BURST = 100     # unanswered at a time: more could overflow a queue on the way, which is no news about the product

    def ask(self, timeout: float = 3, only: Iterable[int] | None = None) -> list[Seen | None]:
        """A line by each of them (or by some), and how each was seen; None for those that had no answer in time."""
        found: list[Seen | None] = [None] * len(self._sockets)
        left, waiting, stopped = list(range(len(found)) if only is None else only)[::-1], set(), 0
        deadline = time.monotonic() + patience(timeout)
        while (left or waiting) and time.monotonic() < deadline:
            while left and len(waiting) < self.BURST + stopped:
                number = left.pop()
                if self._say(self._sockets[number]):
                    waiting.add(self._sockets[number].fileno())
                    self._poll.register(self._sockets[number], select.EPOLLIN)
            answers = self._poll.poll(patience(0.2) if left else deadline - time.monotonic())
            if not answers and left:
                stopped += self.BURST       # those have none to give
            for handle, _ in answers:
                number = self._numbers[handle]
                try:
                    found[number] = Seen.parse(self._sockets[number].recv(2048))
                except OSError:
                    pass
                self._poll.unregister(handle)
                waiting.discard(handle)
        for handle in waiting:
            self._poll.unregister(handle)
        return found

    @staticmethod
    def _say(client: socket.socket) -> bool:
        for _ in range(2):      # the first time it may be told of an ICMP error of before
            try:
                client.send(b"x\n")
                return True
            except OSError:
                pass
        return False


def ask_many(place: Place, to: str | Iterable[str], count: int, port: int = PORTS[0], proto: str = "udp", *, sports: Iterable[int] = (),
             timeout: float = 3, source: str = "") -> list[Seen | None]:
    """`count` flows at once, one question by each; the answers in their order, None for those that had none in time."""
    with Flows(place, to, count, port, proto, sports=sports, source=source) as flows:
        return flows.ask(timeout)


def ping(place: Place, to: str, *, size: int = 56, timeout: float = 2, ttl: int = 0, df: bool = False, source: str = "") -> str:
    """"reply" to an echo request, "type T code C from ADDRESS" for an ICMP error about it, "" for nothing."""
    family = version(to)
    request, reply = ECHO[family]
    with place.socket(FAMILIES[family], socket.SOCK_RAW, ICMP[family]) as client:
        level = socket.IPPROTO_IP if family == 4 else socket.IPPROTO_IPV6
        if ttl:
            client.setsockopt(level, socket.IP_TTL if family == 4 else socket.IPV6_UNICAST_HOPS, ttl)
        if df:
            client.setsockopt(level, IP_MTU_DISCOVER if family == 4 else IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
        if source:
            client.bind((source, 0))
        number = next(_numbers) & 0xffff
        head = struct.pack("!HH", number, 1)
        try:
            client.sendto(icmp(family, request, 0, head + bytes(size)) if family == 4 else struct.pack("!BBH", request, 0, 0) + head
                          + bytes(size), (to, 0))
        except OSError as error:
            return os.strerror(error.errno)
        deadline = time.monotonic() + patience(timeout)
        while (rest := deadline - time.monotonic()) > 0:
            client.settimeout(rest)
            try:
                data, (sender, *_) = client.recvfrom(65535)
            except TimeoutError:
                return ""
            if family == 4:
                data = data[(data[0] & 15) * 4:]
            if data[0] == reply and data[4:8] == head:
                return "reply"
            inner = data[8:]
            inner = inner[(inner[0] & 15) * 4:] if family == 4 and len(inner) >= 20 else inner[40:]
            if data[0] != request and inner[4:8] == head:
                return f"type {data[0]} code {data[1]} from {sender}"
        return ""


_numbers = itertools.count(os.getpid() & 0x3fff)


def knock(client: Place, server: Place, address: str, proto: str = "tcp", port: int = 8000, timeout: float = 1) -> str | None:
    """Open a flow to a server; the address that the answer comes from, None when none came."""
    family = FAMILIES[version(address)]
    with server.socket(family, KINDS[proto]) as listener, client.socket(family, KINDS[proto]) as caller:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        for end in listener, caller:
            end.settimeout(patience(timeout))
        try:
            if proto == "udp":
                caller.sendto(b"knock", (address, port))
                listener.sendto(b"hello", listener.recvfrom(99)[1])
                return caller.recvfrom(99)[1][0]
            listener.listen()
            caller.connect((address, port))
            with listener.accept()[0] as session:
                session.sendall(b"hello")
                return address if caller.recv(99) == b"hello" else None
        except TimeoutError:
            return None


def transfer(place: Place, to: str, size: int = 200_000, timeout: float = 8) -> tuple[str, int, int]:
    """So many bytes to outside, then as many back: source that it saw, bytes that arrived there, bytes that came back."""
    with opened(place, to, "tcp") as client:
        client.settimeout(patience(timeout))
        client.connect((to, HTTP_PORT))
        client.sendall(b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        source, _, arrived = _body(client).decode().split()
    with opened(place, to, "tcp") as client:
        client.settimeout(patience(timeout))
        client.connect((to, HTTP_PORT))
        client.sendall(b"GET /bytes/%d HTTP/1.0\r\n\r\n" % size)
        return source, int(arrived), len(_body(client))


def _body(client: socket.socket) -> bytes:
    answer = b""
    while data := client.recv(1 << 20):
        answer += data
    return answer.partition(b"\r\n\r\n")[2]


class Stream:
    """A flow that goes on, by TCP or UDP: numbered lines at a rate to LONG_PORT, in a thread of its own, until the block ends. Then
    `seen` has how each line was seen by the server, by number: a UDP flow's losses are those that are missing, and a source that
    changed shows."""

    def __init__(self, place: Place, to: str, proto: str = "tcp", rate: float = 100, *, sport: int = 0, port: int = LONG_PORT):
        self.sent, self.seen, self.error, self.times = 0, {}, "", {}
        self._rate, self._proto = paced(rate), proto
        self._socket = opened(place, to, proto, sport=sport)
        self._socket.settimeout(patience(3))
        self._socket.connect((to, port))
        self._socket.setblocking(False)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def stop(self, grace: float = 0.5) -> None:
        """Send no more, and wait a moment for answers that are on their way."""
        self._end.set()
        self._thread.join(patience(5))
        deadline = time.monotonic() + patience(grace)
        while len(self.seen) < self.sent and not self.error and (rest := deadline - time.monotonic()) > 0:
            self._receive(rest)
        self._socket.close()

    def _run(self) -> None:
        start, self._buffer = time.monotonic(), b""
        while not self._end.is_set() and not self.error:
            wait = start + self.sent / self._rate - time.monotonic()
            if wait > 0:
                self._receive(wait)
                continue
            try:
                self._socket.send(b"%d\n" % self.sent)
            except BlockingIOError:
                self._receive(0.01)
                continue
            except OSError as error:
                self._failed(error)
                continue
            self.times[self.sent] = time.time()
            self.sent += 1

    def _failed(self, error: OSError) -> None:
        if self._proto == "udp" and error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMSGSIZE):
            return      # an ICMP error about an earlier datagram; the flow goes on
        self.error = os.strerror(error.errno)

    def _receive(self, wait: float) -> None:
        if not select.select([self._socket], [], [], wait)[0]:
            return
        try:
            data = self._socket.recv(65536)
        except OSError as error:
            return self._failed(error)
        if not data and self._proto == "tcp":
            self.error = "closed"
            return
        if self._proto == "tcp":
            *lines, self._buffer = (self._buffer + data).split(b"\n")
        else:
            lines = [data]
        for line in lines:
            if found := Seen.parse(line):
                self.seen[int(found.line)] = found

    @property
    def sources(self) -> set[str]:
        return {found.source for found in self.seen.values()}

    @property
    def lost(self) -> list[int]:
        return [number for number in range(self.sent) if number not in self.seen]

    def wait_seen(self, more: int = 1, timeout: float = 3) -> None:
        """Until so many more lines were answered."""
        goal, deadline = len(self.seen) + more, time.monotonic() + patience(timeout)
        while len(self.seen) < goal:
            assert not self.error, self.error
            assert time.monotonic() < deadline, f"{len(self.seen)} of {self.sent} lines were answered"
            time.sleep(0.005)


# --- packets made by hand

def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def packed(address: str) -> bytes:
    return ip_address(address).packed


def pseudo(src: str, dst: str, proto: int, length: int) -> bytes:
    if version(src) == 4:
        return packed(src) + packed(dst) + struct.pack("!BBH", 0, proto, length)
    return packed(src) + packed(dst) + struct.pack("!IHBB", length, 0, 0, proto)


def udp(src: str, dst: str, sport: int, dport: int, payload: bytes = b"x\n") -> bytes:
    length = 8 + len(payload)
    head = struct.pack("!HHHH", sport, dport, length, 0)
    value = checksum(pseudo(src, dst, 17, length) + head + payload) or 0xffff
    return struct.pack("!HHHH", sport, dport, length, value) + payload


def tcp(src: str, dst: str, sport: int, dport: int, flags: int = 2, seq: int = 1, ack: int = 0, payload: bytes = b"") -> bytes:
    """flags: 1 FIN, 2 SYN, 4 RST, 8 PSH, 16 ACK."""
    def head(value: int) -> bytes:
        return struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 64000, value, 0)
    return head(checksum(pseudo(src, dst, 6, 20 + len(payload)) + head(0) + payload)) + payload


def icmp(family: int, kind: int, code: int, rest: bytes, src: str = "", dst: str = "") -> bytes:
    """rest: the four bytes after the checksum, then the body. IPv6 needs the addresses for its checksum."""
    head = struct.pack("!BBH", kind, code, 0)
    extra = pseudo(src, dst, 58, 4 + len(rest)) if family == 6 else b""
    return struct.pack("!BBH", kind, code, checksum(extra + head + rest)) + rest


_crc32c = [0] * 256
for _i in range(256):
    _c = _i
    for _ in range(8):
        _c = _c >> 1 ^ (0x82f63b78 if _c & 1 else 0)
    _crc32c[_i] = _c


def sctp(sport: int, dport: int, tag: int, chunks: bytes) -> bytes:
    def crc(data: bytes) -> int:
        value = 0xffffffff
        for byte in data:
            value = value >> 8 ^ _crc32c[(value ^ byte) & 0xff]
        return value ^ 0xffffffff
    head = struct.pack("!HHI", sport, dport, tag)
    return head + struct.pack("<I", crc(head + bytes(4) + chunks)) + chunks


def ip_packet(src: str, dst: str, proto: int, payload: bytes, *, ttl: int = 64, ident: int = 0, offset: int = 0, more: bool = False,
              df: bool = False, options: bytes = b"") -> bytes:
    """A packet; with an offset (in bytes) or `more`, a fragment of one. IPv6 fragments get their header from `ident`."""
    if version(src) == 4:
        words = 5 + len(options) // 4
        flags = (0x4000 if df else 0) | (0x2000 if more else 0) | offset // 8
        def head(value: int) -> bytes:
            return struct.pack("!BBHHHBBH4s4s", 0x40 | words, 0, words * 4 + len(payload), ident, flags, ttl, proto, value, packed(src),
                               packed(dst)) + options
        return head(checksum(head(0))) + payload
    if offset or more:
        payload = struct.pack("!BBHI", proto, 0, offset | more, ident) + payload
        proto = 44
    return struct.pack("!IHBB", 6 << 28, len(payload), proto, ttl) + packed(src) + packed(dst) + payload


def fragments(src: str, dst: str, proto: int, payload: bytes, *, size: int = 1280, ident: int = 0x1234, ttl: int = 64) -> list[bytes]:
    """The fragments of a packet, in order; `size`: of the payload of each but the last."""
    size -= size % 8
    return [ip_packet(src, dst, proto, payload[at:at + size], ident=ident, offset=at, more=at + size < len(payload), ttl=ttl)
            for at in range(0, len(payload), size)]


def ethernet(src_mac: str, dst_mac: str, packet: bytes, kind: int = 0) -> bytes:
    kind = kind or (0x0800 if packet[0] >> 4 == 4 else 0x86dd)
    return bytes.fromhex(dst_mac.replace(":", "")) + bytes.fromhex(src_mac.replace(":", "")) + struct.pack("!H", kind) + packet


@dataclass
class Wire:
    """A pod's interface, for whole frames: an AF_PACKET socket, as whoever has CAP_NET_RAW in a pod can open one."""
    place: Place
    interface: str = "eth0"

    def __enter__(self) -> Wire:
        self._socket = self.place.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind((self.interface, 0))
        self.mac = self._socket.getsockname()[4].hex(":")
        return self

    def __exit__(self, *exception) -> None:
        self._socket.close()

    def send(self, packets: bytes | Iterable[bytes], to_mac: str, *, mac: str = "", kind: int = 0) -> None:
        """IP packets, in frames from this interface's address (or from another) to one."""
        for packet in [packets] if isinstance(packets, bytes) else packets:
            self._socket.send(ethernet(mac or self.mac, to_mac, packet, kind))

    def send_frame(self, frame: bytes) -> None:
        self._socket.send(frame)


def raw(place: Place, packets: bytes | Iterable[bytes], *, mark: int = 0) -> None:
    """IP packets of whatever content by a raw socket (IPPROTO_RAW), which routes them by their destination."""
    packets = [packets] if isinstance(packets, bytes) else list(packets)
    for family in {packet[0] >> 4 for packet in packets}:
        with place.socket(FAMILIES[family], socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
            if family == 6:
                sender.setsockopt(socket.IPPROTO_IPV6, 36, 1)       # IPV6_HDRINCL
            if mark:
                sender.setsockopt(socket.SOL_SOCKET, SO_MARK, struct.pack("I", mark))
            for packet in packets:
                if packet[0] >> 4 == family:
                    offset, size = (16, 4) if family == 4 else (24, 16)
                    sender.sendto(packet, (str(ip_address(packet[offset:offset + size])), 0))


class Sink:
    """Whatever arrives at a place for a protocol number, on a raw socket: (source, payload behind the IP header)."""

    def __init__(self, place: Place, proto: int, family: int = 4):
        self._family, self._socket = family, place.socket(FAMILIES[family], socket.SOCK_RAW, proto)

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *exception) -> None:
        self._socket.close()

    def take(self, timeout: float = 1) -> Iterator[tuple[str, bytes]]:
        """What comes, until nothing has come for so long."""
        self._socket.settimeout(patience(timeout))
        while True:
            try:
                data, (source, *_) = self._socket.recvfrom(65535)
            except TimeoutError:
                return
            yield source, data[(data[0] & 15) * 4:] if self._family == 4 else data

    def first(self, timeout: float = 1) -> tuple[str, bytes] | None:
        return next(self.take(timeout), None)

    def answer(self, to: str, payload: bytes) -> None:
        self._socket.sendto(payload, (to, 0))


def shares(found: Collection[Seen | None]) -> dict[str, int]:
    """source -> how many; "" for those without an answer."""
    counts: dict[str, int] = {}
    for seen in found:
        key = seen.source if seen else ""
        counts[key] = counts.get(key, 0) + 1
    return counts
