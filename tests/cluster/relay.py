"""A network between two interfaces that can be slow, lose packets, be cut in one direction or both, and translate
addresses: Ethernet frames, carried by hand.  ``relay.py A B``; commands come by stdin, a line each::

    cut up|down|both|none     loss SHARE     delay SECONDS     nat INSIDE OUTSIDE
"""

from __future__ import annotations

import array
import fcntl
import heapq
import random
import select
import socket
import struct
import sys
import time

FEATURES = (0x1F, 0x25, 0x2C, 0x17)  # ETHTOOL_STSO, SUFO or SGSO, SGRO, STXCSUM: of frames that are carried by hand all is done by hand
IGNORE_OUTGOING = (263, 23)  # SOL_PACKET, PACKET_IGNORE_OUTGOING


def plain(interface: str) -> None:
    """No work is left to a card that is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_:
        for feature in FEATURES:
            value = array.array("I", [feature, 0])
            try:
                fcntl.ioctl(any_, 0x8946, struct.pack("16sP16x", interface.encode(), value.buffer_info()[0]))
            except OSError:
                pass


def opened(interface: str) -> socket.socket:
    plain(interface)
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    one.bind((interface, 3))
    one.setblocking(False)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    one.setsockopt(*IGNORE_OUTGOING, 1)
    return one


def _summed(check: bytes, before: bytes, after: bytes) -> bytes:
    """A checksum after some words were exchanged (RFC 1624)."""
    total = ~int.from_bytes(check, "big") & 0xFFFF
    for n in (0, 2):
        total += (~int.from_bytes(before[n : n + 2], "big") & 0xFFFF) + int.from_bytes(after[n : n + 2], "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def translated(frame: bytearray, before: bytes, after: bytes, source: bool) -> bytes:
    """With another address, where the sender (``source``) or the receiver has that one."""
    kind = frame[12:14]
    if kind == b"\x08\x06":  # ARP
        for at in (28, 38):
            if frame[at : at + 4] == before:
                frame[at : at + 4] = after
    elif kind == b"\x08\x00":
        at = 26 if source else 30
        if frame[at : at + 4] == before:
            frame[at : at + 4] = after
            frame[24:26] = _summed(bytes(frame[24:26]), before, after)
            upper = 14 + (frame[14] & 15) * 4 + 16
            if frame[23] == 6:  # TCP
                frame[upper : upper + 2] = _summed(bytes(frame[upper : upper + 2]), before, after)
    return bytes(frame)


def main(a: str, b: str) -> None:
    ends = opened(a), opened(b)
    cut: set[int] = set()  # directions: 0 from a to b ("up"), 1 back ("down")
    loss, delay, count = 0.0, 0.0, 0
    nat: tuple[bytes, bytes] | None = None
    waiting: list[tuple[float, int, int, bytes]] = []
    print("ready", flush=True)
    while True:
        left = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for one in select.select([*ends, sys.stdin], [], [], left)[0]:
            if one is sys.stdin:
                words = sys.stdin.readline().split()
                match words:
                    case []:
                        return
                    case ["cut", what]:
                        cut = {"up": {0}, "down": {1}, "both": {0, 1}, "none": set()}[what]
                    case ["loss", share]:
                        loss = float(share)
                    case ["delay", seconds]:
                        delay = float(seconds)
                    case ["nat", inside, outside]:
                        nat = socket.inet_aton(inside), socket.inet_aton(outside)
                print("done", flush=True)
                continue
            way = ends.index(one)
            try:
                while frame := one.recv(65535):
                    if way in cut or random.random() < loss:
                        continue
                    if nat is not None:
                        inside, outside = nat
                        frame = translated(bytearray(frame), *((inside, outside, True) if way == 0 else (outside, inside, False)))
                    count += 1
                    heapq.heappush(waiting, (time.monotonic() + delay, count, 1 - way, frame))
            except BlockingIOError:
                pass
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, to, frame = heapq.heappop(waiting)
            try:
                ends[to].send(frame)
            except OSError:  # too large, or the interface is going
                pass


if __name__ == "__main__":
    main(*sys.argv[1:])
