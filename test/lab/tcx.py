#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""TCX hooks by the kernel's own word, since Debian's bpftool is older than they are.

  tcx.py query IFINDEX          ids of the ingress programs, in the order in which they run, and of their links: JSON
  tcx.py attach IFINDEX PIN     attach a program that passes everything on, and pin its link
  tcx.py detach NAME dev IFACE  take off a program that the interface itself holds
"""
import ctypes
import json
import os
import socket
import struct
import sys

PROG_LOAD, OBJ_PIN, PROG_DETACH, PROG_FD_BY_ID, INFO_BY_FD, PROG_QUERY, LINK_CREATE = 5, 6, 9, 13, 15, 16, 28
SCHED_CLS, TCX_INGRESS = 3, 46
SYSCALL = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    buffer = ctypes.create_string_buffer(attributes.ljust(144, b"\0"), 144)
    result = libc.syscall(SYSCALL, command, buffer, 144)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command}): {os.strerror(ctypes.get_errno())}")
    return result, buffer.raw


def query(ifindex: int) -> dict:
    room = 64
    programs, links = (ctypes.c_uint32 * room)(), (ctypes.c_uint32 * room)()
    _, answer = bpf(PROG_QUERY, struct.pack("IIIIQIIQQQQ", ifindex, TCX_INGRESS, 0, 0, ctypes.addressof(programs), room, 0, 0,
                                            ctypes.addressof(links), 0, 0))
    count = struct.unpack_from("I", answer, 24)[0]
    return {"programs": programs[:count], "links": links[:count]}


def attach(ifindex: int, pin: str) -> None:
    code = struct.pack("BBhi", 0xb7, 0, 0, -1) + struct.pack("BBhi", 0x95, 0, 0, 0)       # r0 = TCX_NEXT; exit
    instructions, text = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    program, _ = bpf(PROG_LOAD, struct.pack("IIQQ", SCHED_CLS, 2, ctypes.addressof(instructions), ctypes.addressof(text)))
    link, _ = bpf(LINK_CREATE, struct.pack("IIII", program, ifindex, TCX_INGRESS, 0))
    path = ctypes.create_string_buffer(pin.encode())
    bpf(OBJ_PIN, struct.pack("QII", ctypes.addressof(path), link, 0))


def name_of(program: int) -> str:
    info = ctypes.create_string_buffer(256)
    bpf(INFO_BY_FD, struct.pack("IIQ", program, 256, ctypes.addressof(info)))
    return info.raw[64:80].rstrip(b"\0").decode()


def detach(name: str, ifindex: int) -> None:
    programs = [bpf(PROG_FD_BY_ID, struct.pack("II", number, 0))[0] for number in query(ifindex)["programs"]]
    program, = (program for program in programs if name_of(program) == name)
    bpf(PROG_DETACH, struct.pack("IIII", ifindex, program, TCX_INGRESS, 0))


if __name__ == "__main__":
    if sys.argv[1] == "query":
        print(json.dumps(query(int(sys.argv[2]))))
    elif sys.argv[1] == "detach":
        detach(sys.argv[2], socket.if_nametoindex(sys.argv[4]))
    else:
        attach(int(sys.argv[2]), sys.argv[3])
