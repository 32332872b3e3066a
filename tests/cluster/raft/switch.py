"""A network of network namespaces, in one process: all of it is gone when this process is.

Each host has a TUN device in a namespace of its own. This process carries the packets from one to another, so that it
can lose and delay them in each direction, which netem could not everywhere: kernels are built without it. Arguments:
how many hosts. It prints the descriptors of their namespaces, and then takes faults on stdin, one JSON object a line,
each of which replaces the last one and is answered with "done".
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

CLONE_NEWNET = 0x40000000
NETWORK = "10.77.0"

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_DEVICE = "node"
_IPV4 = 4


def address(host: int) -> str:
    """That of the host with this number, from 1."""
    return f"{NETWORK}.{host}"


class Switch:
    """Carries the packets of `count` hosts."""

    def __init__(self, count: int) -> None:
        self.namespaces: list[int] = []
        self._hosts: list[int] = []
        self._cut: set[tuple[int, int]] = set()
        self._delay = self._loss = 0.0
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._sent = 0
        for host in range(1, count + 1):
            self._add(host)

    def _add(self, host: int) -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "No network namespace can be made")
        self.namespaces.append(os.open("/proc/self/ns/net", os.O_RDONLY))
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN_NO_PI))
        self._hosts.append(tun)
        for command in (
            f"address add {address(host)}/24 dev {_DEVICE}",
            f"link set {_DEVICE} up",
            "link set lo up",
        ):
            subprocess.run(["ip", *command.split()], check=True)

    def change(self, faults: dict[str, Any]) -> None:
        """`cut` are the directions in which nothing comes through; `delay` is in seconds, `loss` from 0 to 1."""
        self._cut = {(origin, target) for origin, target in faults["cut"]}
        self._delay, self._loss = faults["delay"], faults["loss"]

    def run(self) -> None:
        """Until stdin ends."""
        ready = selectors.DefaultSelector()
        for number, tun in enumerate(self._hosts, 1):
            ready.register(tun, selectors.EVENT_READ, number)
        ready.register(sys.stdin, selectors.EVENT_READ, 0)
        while True:
            left = max(0.0, self._under_way[0][0] - time.monotonic()) if self._under_way else None
            for key, _ in ready.select(left):
                if key.data:
                    self._read(key.data)
                elif not (line := sys.stdin.readline()):
                    return
                else:
                    self.change(json.loads(line))
                    print("done", flush=True)
            while self._under_way and self._under_way[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(self._under_way)
                self._write(target, packet)

    def _read(self, origin: int) -> None:
        with suppress(BlockingIOError):
            for _ in range(64):
                self._carry(origin, os.read(self._hosts[origin - 1], 1 << 16))

    def _carry(self, origin: int, packet: bytes) -> None:
        if packet[0] >> 4 != _IPV4:
            return
        target = packet[19]  # the last byte of its destination
        if not 0 < target <= len(self._hosts) or (origin, target) in self._cut or random.random() < self._loss:
            return
        if not self._delay:
            self._write(target, packet)
            return
        self._sent += 1
        heapq.heappush(self._under_way, (time.monotonic() + self._delay, self._sent, target, packet))

    def _write(self, target: int, packet: bytes) -> None:
        with suppress(BlockingIOError):
            os.write(self._hosts[target - 1], packet)


if __name__ == "__main__":
    switch = Switch(int(sys.argv[1]))
    print(*switch.namespaces, flush=True)
    switch.run()
