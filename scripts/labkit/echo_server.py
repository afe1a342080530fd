#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The server on `outside`: tells every client by which address and port it is seen, and writes that down. Run: echo_server.py LOG.

  TCP, UDP  PORTS      one answer, "ADDRESS PORT\\n", at once (TCP) or to each datagram (UDP)
  TCP, UDP  LONG_PORT  "ADDRESS PORT LINE\\n" to each line or datagram, for as long as the client likes
  HTTP      HTTP_PORT  GET / gives "ADDRESS PORT\\n", GET /bytes/N gives N bytes, POST gives "ADDRESS PORT LENGTH\\n"
Log: one line "TIME PROTO DPORT SOURCE SPORT ADDRESS" per connection or datagram, after the line "# ready". ADDRESS is the one of the
server's that was asked; a datagram's answer comes from there.
"""
import asyncio
import socket
import struct
import sys
import time

PORTS, LONG_PORT, HTTP_PORT = (7001, 7002, 7003, 7004), 7005, 8080
CHUNK = bytes(1 << 16)


def plain(address: str) -> str:
    return address.removeprefix("::ffff:") if "." in address else address


def note(proto: str, port: int, peer: tuple, asked: str) -> str:
    """Log a client; return how it is seen."""
    print(f"{time.time():.6f} {proto} {port} {peer[0]} {peer[1]} {plain(asked)}", file=log)
    return f"{peer[0]} {peer[1]}"


# level, option that asks for it, ancillary message, its layout, where the address is in it (from the kernel, and to it)
PKTINFO = {socket.AF_INET: (socket.IPPROTO_IP, 8, 8, "i4s4s"), socket.AF_INET6: (socket.IPPROTO_IPV6, 49, 50, "16si")}


def datagrams(family: int, port: int) -> None:
    """Answer from the address that was asked: of several, the kernel would take one of its own choice."""
    level, option, kind, layout = PKTINFO[family]
    server = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        server.setsockopt(level, socket.IPV6_V6ONLY, 1)
    server.setsockopt(level, option, 1)
    server.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)      # SO_RCVBUFFORCE: a thousand clients at once
    server.setblocking(False)
    server.bind(("", port))

    def answer() -> None:
        while True:
            try:
                data, notes, _, peer = server.recvmsg(65535, 128)
            except (BlockingIOError, ConnectionError):
                return
            info = next(struct.unpack(layout, value) for *what, value in notes if what == [level, kind])
            asked = info[2] if family == socket.AF_INET else info[0]
            text = note("udp", port, peer, socket.inet_ntop(family, asked)).encode()
            reply = struct.pack(layout, 0, asked, asked) if family == socket.AF_INET else struct.pack(layout, asked, 0)
            line = b" " + data.rstrip(b"\n") if port == LONG_PORT else b""
            try:
                server.sendmsg([text + line + b"\n"], [(level, kind, reply)], 0, peer)
            except OSError as error:
                print(f"answer to {peer}: {error}", file=sys.stderr)
    asyncio.get_running_loop().add_reader(server.fileno(), answer)


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
            seen = note(proto, port, writer.get_extra_info("peername"), writer.get_extra_info("sockname")[0])
            await answer(seen, reader, writer)
            await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            pass        # clients come and go; the log has what counts
        finally:
            writer.close()
    return asyncio.start_server(client, None, port, backlog=1024)     # None: both families


async def main() -> None:
    for port in PORTS:
        await service("tcp", port, once)
    for port in (*PORTS, LONG_PORT):
        for family in socket.AF_INET, socket.AF_INET6:
            datagrams(family, port)
    await service("tcp", LONG_PORT, lines)
    await service("http", HTTP_PORT, http)
    print("# ready", file=log)
    await asyncio.Event().wait()


if __name__ == "__main__":
    log = open(sys.argv[1], "a", buffering=1)
    asyncio.run(main())
