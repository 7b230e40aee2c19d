"""Pass packets between two interfaces, with a delay and a loss, for kernels without netem.

`wire.py A B SECONDS SHARE` in the namespace of the switch. `wire.py --prepare eth0` on each host before: it lets
the kernel send packets that are complete, with a checksum and no longer than the link allows.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import random
import select
import socket
import struct
import sys
import time

ETH_P_ALL = 3
PACKET_OUTGOING = 4
SIOCETHTOOL = 0x8946
OFFLOADS = {"checksum": 0x17, "segments": 0x1F, "generic segments": 0x24}


def prepare(interface: str) -> None:
    """Switch off what the kernel leaves to the hardware."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in OFFLOADS.values():
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            fcntl.ioctl(control, SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), ctypes.addressof(value)))


def run(names: list[str], delay: float, loss: float) -> None:
    """Pass on packets until the process is ended."""
    ends = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) for _ in names]
    for end, name in zip(ends, names, strict=True):
        end.bind((name, 0))
    chance, on_the_way = random.Random(0), []
    for number in range(2**62):
        wait = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
        for ready in select.select(ends, [], [], wait)[0]:
            packet, address = ready.recvfrom(65536)
            if address[2] != PACKET_OUTGOING and chance.random() >= loss:
                other = ends[1 - ends.index(ready)]
                heapq.heappush(on_the_way, (time.monotonic() + delay, number, packet, other))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            _, _, packet, other = heapq.heappop(on_the_way)
            other.send(packet)


if __name__ == "__main__":
    if sys.argv[1] == "--prepare":
        prepare(sys.argv[2])
    else:
        run(sys.argv[1:3], float(sys.argv[3]), float(sys.argv[4]))
