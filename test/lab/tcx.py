#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""TCX hooks by the kernel's own word, since Debian's bpftool is older than they are.

  tcx.py query IFINDEX          ids of the ingress programs, in the order in which they run, and of their links: JSON
  tcx.py attach IFINDEX PIN     attach a program that passes everything on, and pin its link
"""
import ctypes
import json
import os
import struct
import sys

PROG_LOAD, OBJ_PIN, PROG_QUERY, LINK_CREATE = 5, 6, 16, 28
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


if __name__ == "__main__":
    if sys.argv[1] == "query":
        print(json.dumps(query(int(sys.argv[2]))))
    else:
        attach(int(sys.argv[2]), sys.argv[3])
