# SPDX-License-Identifier: Apache-2.0
"""A client that goes on until it is killed. client.py KIND ADDRESS PORT INTERVAL

  lines        one TCP connection, a numbered line every INTERVAL; prints the answers of LONG_PORT
  datagrams    one UDP socket, a datagram every INTERVAL; prints the answers
  connections  a new TCP connection every INTERVAL; prints the answers
  push         a UDP server at ADDRESS and PORT: sends "SOURCE PORT" to everybody it has ever heard of, every INTERVAL
  download     one TCP connection that gets an endless file by HTTP, a piece every INTERVAL; prints how much has come
"""
import socket
import sys
import threading
import time

kind, address, port, interval = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])


def say(text: str) -> None:
    print(text.rstrip("\n"), flush=True)


def send_forever(client: socket.socket) -> None:
    number = 0
    while True:
        try:
            client.sendall(b"%d\n" % number)
        except ConnectionRefusedError:      # of a datagram, by ICMP
            pass
        number += 1
        time.sleep(interval)


def lines() -> None:
    client = socket.create_connection((address, port))
    threading.Thread(target=send_forever, args=(client,), daemon=True).start()
    for line in client.makefile():
        say(line)


def datagrams() -> None:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect((address, port))
    threading.Thread(target=send_forever, args=(client,), daemon=True).start()
    while True:
        try:
            say(client.recv(512).decode())
        except ConnectionRefusedError:
            pass


def connections() -> None:
    while True:
        try:
            with socket.create_connection((address, port), timeout=0.5) as client:
                client.sendall(b"?\n")
                if answer := client.recv(512):
                    say(answer.decode())
        except OSError:
            pass
        time.sleep(interval)


def download() -> None:
    client, total = socket.create_connection((address, port)), 0
    client.sendall(b"GET /bytes/1000000000000 HTTP/1.0\r\n\r\n")
    while piece := client.recv(1 << 14):
        total += len(piece)
        say(str(total))
        time.sleep(interval)


def push() -> None:
    server, peers = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), set()
    server.bind((address, port))
    server.settimeout(interval)
    while True:
        try:
            peers.add(server.recvfrom(512)[1])
        except (TimeoutError, ConnectionRefusedError):
            pass
        for peer in peers:
            try:
                server.sendto(f"{peer[0]} {peer[1]}\n".encode(), peer)
            except OSError:
                pass


{"lines": lines, "datagrams": datagrams, "connections": connections, "push": push, "download": download}[kind]()
