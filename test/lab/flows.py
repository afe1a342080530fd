# SPDX-License-Identifier: Apache-2.0
"""Traffic of many pods that goes on while a test changes things, all of it in one thread: each Track is an open UDP flow (numbered
datagrams, answered), an open TCP connection (numbered lines, answered), and new UDP flows all the time (a datagram each). Both ends are
here, so a track knows when each number was sent, with which source it arrived, and whether the answer came back.

    with Traffic(fleet.outside, {"web": Track(pod, ADDRESS, PORT)}) as traffic:
        ...
    assert traffic["web"].datagrams.lost() == [] and traffic["web"].fresh.sources(since=when) == {EGRESS_IP}
"""
from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pace
from light_fleet import Place, family_of
from pace import patience
from traffic import opened
from wire import server

DATAGRAM_RATE, LINE_RATE, FRESH_RATE = 200, 50, 25
OPEN, FRESH = 0, 1      # kinds of datagrams


@dataclass
class Journal:
    """What was sent and how it fared; times are those of time.time(), numbers those of the sender."""
    sent: list[float] = field(default_factory=list)
    seen: dict[int, str] = field(default_factory=dict)      # number -> the source with which it arrived
    answered: set[int] = field(default_factory=set)
    error: str = ""                                         # of a connection: how it ended

    def between(self, since: float = 0, until: float = float("inf")) -> list[int]:
        return [number for number, when in enumerate(self.sent) if since <= when < until]

    def lost(self, since: float = 0, until: float = float("inf")) -> list[int]:
        """Numbers that were sent then and have no answer."""
        return [number for number in self.between(since, until) if number not in self.answered]

    def sources(self, since: float = 0, until: float = float("inf")) -> set[str]:
        """With which sources the numbers of that time have arrived; "" stands for those that have not."""
        return {self.seen.get(number, "") for number in self.between(since, until)}

    def last(self, source: str) -> float:
        """When the last one was sent that has arrived with this source; 0: none has."""
        return max((self.sent[number] for number, found in self.seen.items() if found == source), default=0)

    def first(self, source: str) -> float:
        """When the first one was sent that has arrived with this source."""
        return min((self.sent[number] for number, found in self.seen.items() if found == source), default=float("inf"))


@dataclass
class Track:
    place: Place
    address: str        # of outside
    port: int           # of this track alone
    datagram_rate: int = DATAGRAM_RATE
    line_rate: int = LINE_RATE
    fresh_rate: int = FRESH_RATE
    datagrams: Journal = field(default_factory=Journal)
    lines: Journal = field(default_factory=Journal)
    fresh: Journal = field(default_factory=Journal)

    def untouched(self, source: str) -> list[str]:
        """What a change has done to a track that it should not have; empty when nothing."""
        found = []
        for name, journal in (("datagrams", self.datagrams), ("lines", self.lines), ("new flows", self.fresh)):
            if lost := journal.lost():
                found.append(f"{len(lost)} of {len(journal.sent)} {name} were lost: {lost[:5]}..., {self._when(journal, lost)}")
            if others := journal.sources() - {source, ""}:
                found.append(f"{name} came from {others}")
        if self.lines.error:
            found.append(f"the connection ended: {self.lines.error}")
        return [f"{self.place.name} to {self.address}:{self.port}: {line}" for line in found]

    @staticmethod
    def _when(journal: Journal, lost: list[int]) -> str:
        return f"sent from {journal.sent[lost[0]]:.3f} to {journal.sent[lost[-1]]:.3f}"


class Traffic:
    """A context manager; at the end of its block all sockets are closed. Once it has stopped, the tracks tell what was."""

    def __init__(self, outside: Place, tracks: dict[str, Track]):
        self.tracks = tracks
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._sockets: list[socket.socket] = []
        self._connections: dict[str, socket.socket] = {}
        self._due: list[list] = []      # next time, interval, function
        self._closing: list[tuple[float, socket.socket]] = []
        self._end, self._sending, self._error = threading.Event(), True, None
        self._busy = 0.0                # when a packet was handled last
        self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        for track in tracks.values():
            self._serve(outside, track)
        for name, track in tracks.items():
            self._open(name, track)

    def __getitem__(self, name: str) -> Track:
        return self.tracks[name]

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Send no more, and wait for answers that are on their way, or in our own queues: on a busy machine this thread is late. What has
        none when nothing comes any more is lost."""
        if not self._sending:
            return
        self._sending, now, quiet = False, time.time(), patience(0.4)
        self._busy = time.monotonic()
        while time.monotonic() < self._busy + quiet and time.time() < now + patience(5) and any(
                journal.lost(now - quiet) for track in self.tracks.values() for journal in (track.datagrams, track.lines, track.fresh)):
            time.sleep(0.01)

    def __exit__(self, kind, *exception) -> None:
        self.stop()
        self._end.set()
        os.write(self._wake[1], b".")
        self._thread.join(patience(5))
        for used in self._sockets:
            used.close()
        self._poll.close()
        for handle in self._wake:
            os.close(handle)
        if self._error and kind is None:
            raise self._error

    # --- both ends

    def _register(self, used: socket.socket, handler: Callable[[], None]) -> socket.socket:
        used.setblocking(False)
        self._handlers[used.fileno()] = handler
        self._poll.register(used, select.EPOLLIN)
        self._sockets.append(used)
        return used

    def _drop(self, used: socket.socket) -> None:
        self._poll.unregister(used)
        self._sockets.remove(used)
        used.close()

    def _serve(self, outside: Place, track: Track) -> None:
        datagrams, listener = server(outside, track.address, track.port), server(outside, track.address, track.port, "tcp")

        def on_datagram() -> None:
            data, peer = datagrams.recvfrom(64)
            kind, number = struct.unpack("!II", data)
            (track.fresh if kind == FRESH else track.datagrams).seen[number] = peer[0]
            try:
                datagrams.sendto(data, peer)
            except OSError:
                pass        # an ICMP error, about an answer to somebody who is gone

        def on_connection() -> None:
            accepted, peer = listener.accept()
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def on_line() -> None:
                try:
                    data = accepted.recv(4096)
                    accepted.send(data)
                except OSError:
                    data = b""
                if not data:
                    return self._drop(accepted)
                for at in range(0, len(data), 4):
                    track.lines.seen[int.from_bytes(data[at:at + 4], "big")] = peer[0]
            self._register(accepted, on_line)
        self._register(datagrams, on_datagram)
        self._register(listener, on_connection)

    def _open(self, name: str, track: Track) -> None:
        sender = opened(track.place, track.address, "udp")
        sender.connect((track.address, track.port))

        def on_answer() -> None:
            try:
                track.datagrams.answered.add(struct.unpack("!II", sender.recv(64))[1])
            except OSError:
                pass
        self._register(sender, on_answer)
        self._every(track.datagram_rate, lambda: self._datagram(sender, OPEN, track.datagrams))
        if track.fresh_rate:
            self._every(track.fresh_rate, lambda: self._new_flow(track))
        if track.line_rate:
            self._connect(track)

    def _connect(self, track: Track) -> None:
        client = opened(track.place, track.address, "tcp")
        client.settimeout(patience(3))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))    # else the kernel goes on after close()
        client.connect((track.address, track.port))
        closed = threading.Event()

        def end(error: str) -> None:
            if not closed.is_set():
                closed.set()
                track.lines.error = error
                self._drop(client)

        def on_line() -> None:
            try:
                data = client.recv(4096)
            except OSError as error:
                return end(os.strerror(error.errno))
            if not data:
                return end("closed")
            for at in range(0, len(data), 4):
                track.lines.answered.add(int.from_bytes(data[at:at + 4], "big"))

        def send() -> None:
            if closed.is_set():
                return
            try:
                client.send(len(track.lines.sent).to_bytes(4, "big"))
            except BlockingIOError:
                return
            except OSError as error:
                return end(os.strerror(error.errno))
            track.lines.sent.append(time.time())
        self._register(client, on_line)
        self._every(track.line_rate, send)

    @staticmethod
    def _datagram(sender: socket.socket, kind: int, journal: Journal) -> None:
        number = len(journal.sent)
        journal.sent.append(time.time())
        try:
            sender.send(struct.pack("!II", kind, number))
        except OSError:
            pass        # an ICMP error about an earlier one; this one was not sent, and counts as lost

    def _new_flow(self, track: Track) -> None:
        sender = opened(track.place, track.address, "udp")
        sender.connect((track.address, track.port))

        def on_answer() -> None:
            try:
                track.fresh.answered.add(struct.unpack("!II", sender.recv(64))[1])
            except OSError:
                pass
        self._register(sender, on_answer)
        self._datagram(sender, FRESH, track.fresh)
        self._closing.append((time.monotonic() + patience(2), sender))      # a late answer must not find it closed

    # --- the loop

    def _every(self, per_second: int, function: Callable[[], None]) -> None:
        self._due.append([time.monotonic(), 1 / pace.rate(pace.rate(per_second)), function])     # slow, and one thread for all

    def _run(self) -> None:
        with suppress(PermissionError):     # a machine that is busy with something else is not to look like a loss
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -19)
        try:
            self._poll.register(self._wake[0], select.EPOLLIN)
            while not self._end.is_set():
                now = time.monotonic()
                if self._sending:
                    for entry in self._due:
                        while entry[0] <= now:
                            entry[0] += entry[1]
                            entry[2]()
                while self._closing and self._closing[0][0] < now:
                    if (sender := self._closing.pop(0)[1]) in self._sockets:
                        self._drop(sender)
                wait = min(entry[0] for entry in self._due) - time.monotonic() if self._sending else 0.01
                if ready := self._poll.poll(max(wait, 0)):
                    self._busy = time.monotonic()
                for handle, _ in ready:
                    if handle != self._wake[0]:
                        self._handlers[handle]()
        except BaseException as error:      # noqa: BLE001: for the test's thread
            self._error = error
