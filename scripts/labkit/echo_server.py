#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The server on `outside`: tells every client by which address and port it is seen, and writes that down. Run: echo_server.py LOG.

  TCP, UDP  PORTS      one answer, "ADDRESS PORT\\n", at once (TCP) or to each datagram (UDP)
  TCP       LONG_PORT  "ADDRESS PORT LINE\\n" to each line, for as long as the client likes
  HTTP      HTTP_PORT  GET / gives "ADDRESS PORT\\n", GET /bytes/N gives N bytes, POST gives "ADDRESS PORT LENGTH\\n"
Log: one line "TIME PROTO DPORT SOURCE SPORT" per connection or datagram, after the line "# ready".
"""
import asyncio
import socket
import sys
import time

PORTS, LONG_PORT, HTTP_PORT = (7001, 7002, 7003, 7004), 7005, 8080
CHUNK = bytes(1 << 16)


def note(proto: str, port: int, peer: tuple) -> str:
    """Log a client; return how it is seen."""
    print(f"{time.time():.6f} {proto} {port} {peer[0]} {peer[1]}", file=log)
    return f"{peer[0]} {peer[1]}"


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, port: int):
        self.port = port

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer: tuple) -> None:
        self.transport.sendto(f"{note('udp', self.port, peer)}\n".encode(), peer)


async def once(seen: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"{seen}\n".encode())
    writer.write_eof()
    await asyncio.wait_for(reader.read(-1), 10)     # closing with unread data would reset, and could destroy the answer


async def lines(seen: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async for line in reader:
        writer.write(f"{seen} ".encode() + line)


async def http(seen: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
    body, size = f"{seen}\n".encode(), 0
    if method == "POST":
        length = left = int(fields.get("content-length", 0))
        while left and (data := await reader.read(min(left, len(CHUNK)))):
            left -= len(data)
        body = f"{seen} {length - left}\n".encode()
    elif path.startswith("/bytes/"):
        body, size = b"", int(path.removeprefix("/bytes/"))
    writer.write(f"HTTP/1.0 200 OK\r\nContent-Length: {len(body) + size}\r\nConnection: close\r\n\r\n".encode() + body)
    while size > 0:
        writer.write(CHUNK[:size])
        size -= len(CHUNK)
        await writer.drain()


def service(proto: str, port: int, answer):
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(note(proto, port, writer.get_extra_info("peername")), reader, writer)
            await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            pass        # clients come and go; the log has what counts
        finally:
            writer.close()
    return asyncio.start_server(client, None, port, backlog=1024)     # None: both families


async def main() -> None:
    loop = asyncio.get_running_loop()
    for port in PORTS:
        await service("tcp", port, once)
        for family in socket.AF_INET, socket.AF_INET6:
            datagrams = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            datagrams.bind(("", port))
            await loop.create_datagram_endpoint(lambda port=port: Datagrams(port), sock=datagrams)
    await service("tcp", LONG_PORT, lines)
    await service("http", HTTP_PORT, http)
    print("# ready", file=log)
    await asyncio.Event().wait()


if __name__ == "__main__":
    log = open(sys.argv[1], "a", buffering=1)
    asyncio.run(main())
