"""How fast a stream goes through two relays, each a process of its own, against a TCP connection without them."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median
from typing import Any

from tests.machine import free_ports
from tests.relays import RelayProcess

MEGABYTES = 500
ROUNDS = 5
MINIMUM = 120.0
PIECE = os.urandom(1_000_000)


def run() -> list[dict[str, Any]]:
    """The two in turn; MB/s are medians over the rounds."""
    sides: dict[str, Callable[[int], AbstractContextManager[int]]] = {"two relays": _relayed, "TCP": nullcontext}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            with socket.create_server(("127.0.0.1", 0)) as listener, side(listener.getsockname()[1]) as port:
                rates[name].append(_rate(listener, port))
    return [
        {
            "stream": "through two relays",
            "peer": "TCP",
            "mb_per_s": median(rates["two relays"]),
            "peer_mb_per_s": median(rates["TCP"]),
            "target": MINIMUM,
        }
    ]


def table(figures: list[dict[str, Any]]) -> list[list[str]]:
    """The head and one line."""
    lines = [["stream", "MB/s", "TCP MB/s", "target"]]
    for figure in figures:
        rates = (f"{figure[key]:.0f}" for key in ("mb_per_s", "peer_mb_per_s"))
        lines.append([figure["stream"], *rates, f">= {figure['target']:.0f}"])
    return lines


def _rate(listener: socket.socket, port: int) -> float:
    """Of one stream to this port that arrives at the listener, in MB/s."""
    sender = threading.Thread(target=_send, args=(listener,))
    sender.start()
    buffer = bytearray(len(PIECE))
    count = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        begun = time.monotonic()
        while received := connection.recv_into(buffer):
            count += received
        took = time.monotonic() - begun
    sender.join()
    assert count == MEGABYTES * len(PIECE)
    return count / took / 1e6


def _send(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        for _ in range(MEGABYTES):
            connection.sendall(PIECE)


@contextmanager
def _relayed(port: int) -> Iterator[int]:
    members = {f"web{number}": f"127.0.0.1:{free}" for number, free in enumerate(free_ports(2), start=1)}
    with RelayProcess("web1", members, 1) as asking, RelayProcess("web2", members, port) as answering:
        for relay in (asking, answering):
            relay.tell("holder", "web2")
        yield asking.ports["web2"]
