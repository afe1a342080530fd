# SPDX-License-Identifier: Apache-2.0
"""What traffic.py has not: servers that belong to a test, taps with a filter, what a kernel has learned about a path, and the errors that
it queues for a socket."""
from __future__ import annotations

import ctypes
import errno
import select
import socket
import struct
import subprocess
import time
from functools import cache
from typing import NamedTuple

from labkit.capture import Record
from light_fleet import Place, Tap, family_of
from pace import patience
from traffic import ECHO, FAMILIES, KINDS, icmp

# what the socket module of Python 3.11 does not name: linux/in.h, in6.h, asm-generic/socket.h
IP_RECVERR, IP_MTU, IPV6_MTU, IPV6_RECVERR = 11, 14, 24, 25
SO_RCVBUFFORCE, SO_ATTACH_FILTER = 33, 26
LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}


def server(place: Place, address: str, port: int, proto: str = "udp", timeout: float = 3) -> socket.socket:
    """A socket that listens on an address of a host or pod, with room for a lot."""
    made = place.socket(FAMILIES[family_of(address)], KINDS[proto])
    made.settimeout(patience(timeout))
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
    if proto == "tcp":
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    if proto == "tcp":
        made.listen(1024)
    return made


def family(of: socket.socket) -> int:
    return 6 if of.family == socket.AF_INET6 else 4


def path_mtu(connected: socket.socket) -> int:
    """What the kernel believes about the path of a connected socket."""
    return connected.getsockopt(LEVEL[family(connected)], IP_MTU if connected.family == socket.AF_INET else IPV6_MTU)


def route_mtu(place, address: str) -> int:
    """What the route cache of a host or pod says; 0: nothing was learned."""
    words = place.run(f"ip route get {address}").stdout.split()
    return int(words[words.index("mtu") + 1]) if "mtu" in words else 0


class IcmpError(NamedTuple):
    error: int      # errno: EHOSTUNREACH, ECONNREFUSED, EMSGSIZE
    kind: int       # ICMP type
    code: int
    info: int       # the MTU of EMSGSIZE
    sender: str     # of the ICMP packet


def queue_errors(client: socket.socket) -> None:
    """From here on, icmp_error() has them."""
    client.setsockopt(LEVEL[family(client)], IP_RECVERR if client.family == socket.AF_INET else IPV6_RECVERR, 1)


def icmp_error(client: socket.socket, timeout: float = 2) -> IcmpError | None:
    """The next ICMP error about something that the socket had sent; None when none comes. Errors of its own kernel do not count."""
    deadline = time.monotonic() + patience(timeout)
    poll = select.poll()
    poll.register(client, select.POLLERR)
    while (rest := deadline - time.monotonic()) > 0:
        if not poll.poll(rest * 1000):
            break
        try:
            _, notes, _, _ = client.recvmsg(2048, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except (BlockingIOError, TimeoutError):     # which of them, depends on whether the socket has a timeout
            continue
        for level, _, data in notes:
            number, origin, kind, code, _, info, _ = struct.unpack_from("IBBBBII", data)       # sock_extended_err, then a sockaddr
            if level in LEVEL.values() and origin in (2, 3):
                at = 20 if client.family == socket.AF_INET else 24
                sender = socket.inet_ntop(client.family, data[at:at + (4 if client.family == socket.AF_INET else 16)])
                return IcmpError(number, kind, code, info, sender)
    return None


def refused(client: socket.socket, timeout: float = 2) -> bool:
    """Whether a connected UDP socket hears that nobody listens at the port that it has sent to."""
    client.settimeout(patience(timeout))
    try:
        client.recv(2048)
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        pass
    return False


def forget_error(client: socket.socket) -> None:
    """An ICMP error about an earlier datagram waits in the socket, and the next send() would have it."""
    client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def too_long(client: socket.socket, payload: bytes) -> bool:
    """Whether the kernel refuses to send a datagram because it knows that it is too long for its path."""
    forget_error(client)
    try:
        client.send(payload)
    except OSError as error:
        if error.errno == errno.EMSGSIZE:
            return True
        raise
    return False


def echo(src: str, dst: str, number: int, sequence: int = 1, data: bytes = bytes(56), *, reply: bool = False) -> bytes:
    """An ICMP or ICMPv6 echo, without its IP header."""
    return icmp(family_of(src), ECHO[family_of(src)][reply], 0, struct.pack("!HH", number, sequence) + data, src, dst)


def packet_of(record: Record) -> bytes:
    """A captured packet (as much as was kept of it) from its IP header on."""
    return record.frame[14:]


def is_fragment(packet: bytes) -> bool:
    if packet[0] >> 4 == 4:
        return struct.unpack_from("!H", packet, 6)[0] & 0x3FFF != 0
    return packet[6] == 44


@cache
def _compiled(expression: str) -> bytes:
    """The program for a filter of tcpdump."""
    listed = subprocess.run(["tcpdump", "-y", "EN10MB", "-ddd", expression], capture_output=True, text=True, check=True).stdout.split("\n")
    return b"".join(struct.pack("HBBI", *map(int, line.split())) for line in listed[1:] if line)


class Filtered(Tap):
    """A tap for what a filter of tcpdump lets through: for where a lot goes by."""

    def __init__(self, place: Place, expression: str, interface: str = "eth0"):
        super().__init__(place, interface)
        program = ctypes.create_string_buffer(code := _compiled(expression), len(code))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(program)))
        self.discard()

    def __enter__(self) -> Filtered:
        return self

    def __exit__(self, *exception) -> None:
        self.close()
