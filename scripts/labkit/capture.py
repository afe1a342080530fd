# SPDX-License-Identifier: Apache-2.0
"""Evidence: every packet on an interface, complete or not at all, read back from the pcap file."""
from __future__ import annotations

import re
import signal
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from .process import Process

SNAP = 256          # enough for the headers inside a tunnel; a ring of small slots holds many more packets than one of 64 KiB slots
RING = 32 << 10     # KiB
# link type -> (offset of the EtherType, offset of what follows): Ethernet, Linux cooked 1 and 2
LINKS = {1: (12, 14), 113: (14, 16), 276: (0, 20)}
RAW_IP = 101
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}
FLAGS = "FSRP.U"


class CaptureIncomplete(Exception):
    """tcpdump did not see, or did not write, every packet: nothing may be concluded from the file."""


@dataclass(frozen=True)
class Record:
    """One packet. Ports are None where there are none (ICMP, later fragments, ARP); for ARP src and dst are sender and target."""
    time: float
    src: str
    dst: str
    proto: str              # tcp, udp, icmp, icmp6, arp, or a number
    sport: int | None
    dport: int | None
    info: str               # TCP flags as tcpdump writes them, ICMP "type N", ARP "request" or "reply"
    length: int             # of the frame on the wire
    frame: bytes            # its first SNAP bytes, link header included

    def __str__(self) -> str:
        def end(address: str, port: int | None) -> str:
            return address if port is None else f"{address}:{port}"
        clock = datetime.fromtimestamp(self.time).strftime("%H:%M:%S.%f")
        return f"{clock} {self.proto} {end(self.src, self.sport)} > {end(self.dst, self.dport)} {self.info} length {self.length}"


class Place(Protocol):
    """Where a capture can run: a host, or a pod (which has its host's file system and its own interfaces)."""
    def popen(self, command, **kwargs) -> Process: ...


class Capture:
    """A running tcpdump. Every packet from the constructor's return to the call of stop() is in the file, or stop() raises."""

    def __init__(self, place: Place, interface: str, expression: str, file: Path):
        self.file, self._notes = file, file.with_suffix(".log")
        words = ["tcpdump", "-i", interface, "-n", "-U", "--immediate-mode", "-B", RING, "-s", SNAP, "-Z", "root", "-w", "-", expression]
        # both files are opened here, for a node sees another /run than we do
        with file.open("wb") as pcap, self._notes.open("wb") as notes:
            self.process = place.popen(words, stdout=pcap, stderr=notes)
        self._await(r"listening on")
        self._before = self._counts()

    def _await(self, pattern: str, start: int = 0, timeout: float = 10) -> re.Match:
        """Wait until tcpdump has said something new that matches."""
        deadline = time.monotonic() + timeout
        while True:
            ended = self.process.poll() is not None
            text = self._notes.read_text()
            if found := re.search(pattern, text[start:]):
                return found
            if ended or time.monotonic() > deadline:
                raise CaptureIncomplete(f"{self.file.name}: no '{pattern}' from tcpdump: {text}")
            time.sleep(0.002)

    def _counts(self, number: signal.Signals = signal.SIGUSR1) -> tuple[int, ...]:
        """Ask tcpdump for its counters: written, received by the filter, dropped by the kernel."""
        start = self._notes.stat().st_size
        self.process.tell(number)
        found = self._await(r"(\d+) packets? captured\D+(\d+) packets? received by filter\D+(\d+) packets? dropped by kernel", start)
        return tuple(map(int, found.groups()))

    def stop(self) -> list[Record]:
        """End the capture and return what it holds. tcpdump forgets what is still in its ring when it is told to end; so it first gets
        the time to write all that had arrived at the moment of this call."""
        _, arrived, _ = self._counts()
        deadline = time.monotonic() + 10
        while (counts := self._counts())[0] - self._before[0] < arrived - self._before[1] and time.monotonic() < deadline:
            time.sleep(0.01)
        written, _, dropped = self._counts(signal.SIGINT)
        self.process.wait(10)
        if dropped or counts[0] - self._before[0] < arrived - self._before[1]:
            raise CaptureIncomplete(f"{self.file.name}: {arrived} packets arrived, {written} were written, {dropped} were dropped")
        return self.records()

    def records(self) -> list[Record]:
        return list(read_pcap(self.file))

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *exception) -> None:
        self.process.stop()


def read_pcap(file: Path) -> Iterator[Record]:
    """The packets of a pcap file, IP and ARP ones; other frames are left out."""
    data = file.read_bytes()
    if len(data) < 24:
        raise CaptureIncomplete(f"{file}: not a pcap file")
    order = "<" if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    unit = 1e-9 if b"\x3c\xb2" in data[:4] or b"\xb2\x3c" in data[:4] else 1e-6
    link = struct.unpack(order + "I", data[20:24])[0] & 0xFFFF
    position = 24
    while position < len(data):
        seconds, fraction, kept, length = struct.unpack_from(order + "IIII", data, position)
        position += 16 + kept
        if position > len(data):
            raise CaptureIncomplete(f"{file}: ends in the middle of a packet")
        if record := decode(seconds + fraction * unit, data[position - kept:position], length, link):
            yield record


def decode(when: float, frame: bytes, length: int, link: int = 1) -> Record | None:
    """Read the headers of one frame, down to ports; None when it is neither IP nor ARP."""
    if link == RAW_IP:
        kind, start = {4: 0x0800, 6: 0x86DD}.get(frame[0] >> 4), 0
    else:
        offset, start = LINKS[link]
        kind = int.from_bytes(frame[offset:offset + 2], "big")
    packet = frame[start:]
    if kind == 0x0806:
        names = {1: "request", 2: "reply"}
        return Record(when, socket.inet_ntoa(packet[14:18]), socket.inet_ntoa(packet[24:28]), "arp", None, None,
                      names.get(packet[7], ""), length, frame)
    if kind == 0x0800:
        number, header = packet[9], (packet[0] & 15) * 4
        src, dst = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        first = int.from_bytes(packet[6:8], "big") & 0x1FFF == 0
    elif kind == 0x86DD:
        number, header, first = packet[6], 40, True
        src, dst = socket.inet_ntop(socket.AF_INET6, packet[8:24]), socket.inet_ntop(socket.AF_INET6, packet[24:40])
        while number in (0, 43, 44, 60) and len(packet) >= header + 8:      # extension headers
            first = first and (number != 44 or int.from_bytes(packet[header + 2:header + 4], "big") >> 3 == 0)
            number, header = packet[header], header + (8 if number == 44 else (packet[header + 1] + 1) * 8)
    else:
        return None
    proto, payload = PROTOCOLS.get(number, str(number)), packet[header:]
    sport = dport = None
    info = ""
    if first and number in (6, 17) and len(payload) >= 4:
        sport, dport = struct.unpack_from("!HH", payload)
        if number == 6 and len(payload) > 13:
            info = f"[{''.join(name for bit, name in enumerate(FLAGS) if payload[13] >> bit & 1)}]"
    elif first and number in (1, 58) and payload:
        info = f"type {payload[0]}"
    return Record(when, src, dst, proto, sport, dport, info, length, frame)
