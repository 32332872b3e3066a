"""How concurrent writers fare on the primary through this ENGINE, against Django's sqlite3 ENGINE on the same mount.

Every writer writes as fast as it can until the window ends, each through a connection of its own. The
sides take turns, window by window. Latencies are of all writes that succeeded, also of those that were
under way when the window ended (the slowest ones are); throughput and fairness are of what was committed
within it. `throughput_ratio` is the median over the rounds, each side's window against the one beside it.
`slowest_to_mean` is the slowest writer's number of commits to the mean writer's, in the worst window.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

from django.db import transaction
from django.db.utils import OperationalError

from tests.benchmarks.sides import OURS, STOCK, Cluster, cluster, connect
from tests.cluster.models import Author, Book

WINDOW = 4.0
ROUNDS = 5
ROWS = 100
ALIAS = "writer"

MAXIMUM_P99_RATIO = 0.25
MINIMUM_THROUGHPUT_RATIO = 0.9
MINIMUM_SLOWEST_TO_MEAN = 0.8


def create(number: int) -> None:
    """In autocommit: INSERT ... RETURNING."""
    Author.objects.using(ALIAS).create(name=f"{os.getpid()}/{threading.get_ident()}/{number}")


def change(number: int) -> None:
    """In atomic(): reads a row, then writes it."""
    with transaction.atomic(using=ALIAS):
        book = Book.objects.using(ALIAS).get(pk=1 + number % ROWS)
        book.pages += 1
        book.save(update_fields=["pages"])


@dataclass(frozen=True)
class Side:
    """One of the ENGINEs and its OPTIONS. The time-out is Django's default, 5 s, on both sides."""

    name: str
    options: dict[str, str] = field(default_factory=dict)


# What is written, and the peers, the fair one first. For a transaction that reads and then writes Django's
# documentation advises transaction_mode IMMEDIATE; by default it begins DEFERRED, and fails when another was faster.
IMMEDIATE = {"transaction_mode": "IMMEDIATE"}
WRITES: list[tuple[str, Callable[[int], None], list[Side]]] = [
    ("create()", create, [Side(STOCK)]),
    ("atomic(): get(), save()", change, [Side(f"{STOCK} IMMEDIATE", IMMEDIATE), Side(f"{STOCK} DEFERRED")]),
]


@dataclass(frozen=True)
class Crowd:
    """How many write at once."""

    processes: int
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads} threads" if self.threads > 1 else str(self.processes)

    def targets(self) -> dict[str, float]:
        """What is to be reached against the first of the peers."""
        targets: dict[str, float] = {"locked": 0, "slowest_to_mean": MINIMUM_SLOWEST_TO_MEAN}
        if self.processes * self.threads >= 16:
            targets["p99_ratio"] = MAXIMUM_P99_RATIO
        if self.threads == 1:
            targets["throughput_ratio"] = MINIMUM_THROUGHPUT_RATIO
        return targets


CROWDS = [Crowd(1), Crowd(4), Crowd(16), Crowd(50), Crowd(4, 4)]


@dataclass
class Result:
    """What one writer has done in one window. Latencies in ms."""

    latencies: list[float] = field(default_factory=list)
    committed: int = 0
    locked: int = 0


def run() -> list[dict[str, Any]]:
    """One comparison for each kind of write, crowd and peer."""
    with cluster() as nodes:
        with closing(connect(nodes.primary, OURS, ALIAS)):
            author = Author.objects.using(ALIAS).create(name="author")
            Book.objects.using(ALIAS).bulk_create(Book(author=author, title=f"title {row}") for row in range(ROWS))
        return [
            {"write": name, "writers": str(crowd), **comparison}
            for name, write, peers in WRITES
            for crowd in CROWDS
            for comparison in _compare(nodes, write, crowd, peers)
        ]


def table(figures: list[dict[str, Any]]) -> list[list[str]]:
    """The head and one line for each side; a ratio is ours to that line's, its target in brackets."""
    names = ["p50 ms", "p99 ms", "max ms", "writes/s", "locked", "slowest/mean", "p99 ratio", "throughput ratio"]
    lines = [["write", "writers", "side", *names]]
    for row in figures:
        what = [row["write"], row["writers"], OURS]
        if what not in (line[:3] for line in lines):
            lines.append([*what, *_cells(row["ours"]), "", ""])
        ratios = (
            f"{row[key]:.2f}" + (f" ({row['targets'][key]})" if key in row["targets"] else "")
            for key in ("p99_ratio", "throughput_ratio")
        )
        lines.append([*what[:2], row["peer"], *_cells(row["stock"]), *ratios])
    return lines


def _cells(side: dict[str, Any]) -> list[str]:
    times = (f"{side[key]:.1f}" for key in ("p50_ms", "p99_ms", "max_ms"))
    return [*times, f"{side['writes_per_s']:.0f}", str(side["locked"]), f"{side['slowest_to_mean']:.2f}"]


def _compare(nodes: Cluster, write: Callable[[int], None], crowd: Crowd, peers: list[Side]) -> Iterator[dict[str, Any]]:
    sides = [Side(OURS), *peers]
    windows: list[list[list[Result]]] = [[] for _ in sides]
    for number in range(ROUNDS):
        for index in range(len(sides)) if number % 2 else reversed(range(len(sides))):
            windows[index].append(_window(nodes, write, crowd, sides[index]))
    ours = _figures(windows[0])
    for peer, beside in zip(peers, windows[1:], strict=True):
        stock = _figures(beside)
        yield {
            "peer": peer.name,
            "ours": ours,
            "stock": stock,
            "p99_ratio": ours["p99_ms"] / stock["p99_ms"],
            "throughput_ratio": median(map(_throughput_ratio, windows[0], beside)),
            "targets": crowd.targets() if peer is peers[0] else {},
        }


def _figures(windows: list[list[Result]]) -> dict[str, Any]:
    writers = [writer for window in windows for writer in window]
    latencies = sorted(latency for writer in writers for latency in writer.latencies)
    return {
        "p50_ms": median(latencies),
        "p99_ms": latencies[len(latencies) * 99 // 100],
        "max_ms": latencies[-1],
        "writes": len(latencies),
        "writes_per_s": sum(map(_committed, windows)) / (len(windows) * WINDOW),
        "locked": sum(writer.locked for writer in writers),
        "slowest_to_mean": min(map(_slowest_to_mean, windows)),
    }


def _committed(window: list[Result]) -> int:
    return sum(writer.committed for writer in window)


def _throughput_ratio(ours: list[Result], stock: list[Result]) -> float:
    return _committed(ours) / max(_committed(stock), 1)


def _slowest_to_mean(window: list[Result]) -> float:
    return min(writer.committed for writer in window) * len(window) / max(_committed(window), 1)


def _window(nodes: Cluster, write: Callable[[int], None], crowd: Crowd, side: Side) -> list[Result]:
    """Lets the crowd write for a while, each process a fork of this one."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(crowd.processes * crowd.threads)
    node = nodes.primary

    def write_in_thread(_: int) -> Result:
        with closing(connect(node, side.name, ALIAS, **side.options)):
            Book.objects.using(ALIAS).first()
            ready.wait(60)
            return _write_for_a_while(write)

    def write_in_process(sender: Connection) -> None:
        with ThreadPoolExecutor(crowd.threads) as pool:
            sender.send(list(pool.map(write_in_thread, range(crowd.threads))))

    processes, receivers = [], []
    for _ in range(crowd.processes):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=write_in_process, args=(sender,), daemon=True)
        process.start()
        sender.close()
        processes.append(process)
        receivers.append(receiver)
    results: list[Result] = []
    for process, receiver in zip(processes, receivers, strict=True):
        while not receiver.poll(0.25):
            nodes.beat()
        # EOFError here means that this writer has failed: its traceback stands above.
        results += receiver.recv()
        process.join()
    return results


def _write_for_a_while(write: Callable[[int], None]) -> Result:
    result = Result()
    # Not all of them on the same row.
    number = os.getpid()
    now = time.perf_counter()
    end = now + WINDOW
    while now < end:
        begin = now
        number += 1
        try:
            write(number)
        except OperationalError as error:
            if "locked" not in str(error):
                raise
            result.locked += 1
            now = time.perf_counter()
            continue
        now = time.perf_counter()
        result.latencies.append((now - begin) * 1000)
        result.committed += now <= end
    return result
