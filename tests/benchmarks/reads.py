"""What reading costs through this ENGINE, against Django's sqlite3 ENGINE on the same mount.

Both sides alternate in small batches, A B B A, so that whatever else the machine does meets both. A
ratio is one of medians over all batches. `spread` is the lowest and the highest ratio that tenths of
the run give by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from django.db.backends.sqlite3.base import DatabaseWrapper

from tests.benchmarks.sides import OURS, STOCK, Cluster, cluster, connect
from tests.cluster.models import Author, Book
from tests.cluster.nodes import LiteFSNode

AUTHORS = 100
BOOKS = 2_000
MAXIMUM_RATIO = 1.02


def read_row(connection: DatabaseWrapper, number: int) -> None:
    """One query: a row by its primary key."""
    Book.objects.using(connection.alias).get(pk=1 + number % BOOKS)


def read_page(connection: DatabaseWrapper, number: int) -> None:
    """A page of 20 queries between the two calls with which Django begins and ends a request."""
    connection.close_if_unusable_or_obsolete()
    books = Book.objects.using(connection.alias)
    author = Author.objects.using(connection.alias).get(pk=1 + number % AUTHORS)
    assert author.books.exists()
    assert books.filter(pages__gt=300).count()
    assert len(books.select_related("author").order_by("-pk")[:20]) == 20
    assert all(book.author.name for book in books.order_by("title")[:15])
    connection.close_if_unusable_or_obsolete()


def reconnect(connection: DatabaseWrapper, number: int) -> None:
    """A new connection and its first query."""
    connection.close()
    read_row(connection, number)


# Name, what is run, how often in a batch, how many rounds of four batches, the highest ratio allowed.
READS: list[tuple[str, Callable[[DatabaseWrapper, int], None], int, int, float | None]] = [
    ("row by primary key", read_row, 20, 1000, MAXIMUM_RATIO),
    ("page of 20 queries", read_page, 1, 1000, MAXIMUM_RATIO),
    ("connect, first row", reconnect, 2, 300, None),
]


def run() -> list[dict[str, Any]]:
    """One comparison for each kind of read and node. Times are of one operation, in ms."""
    with cluster() as nodes:
        _fill(nodes)
        return [
            {"read": name, "node": role, "peer": STOCK, "target": target, **_compare(nodes, node, read, size, rounds)}
            for role, node in (("primary", nodes.primary), ("replica", nodes.replicas[0]))
            for name, read, size, rounds, target in READS
        ]


def table(figures: list[dict[str, Any]]) -> list[list[str]]:
    """The head and one line per comparison."""
    lines = [["read", "node", f"{OURS} ms", f"{STOCK} ms", "ratio", "spread", "target"]]
    for row in figures:
        low, high = row["spread"]
        lines.append(
            [
                row["read"],
                row["node"],
                f"{row['p50_ms']:.3f}",
                f"{row['peer_p50_ms']:.3f}",
                f"{row['ratio']:.3f}",
                f"{low:.3f}-{high:.3f}",
                f"<= {row['target']}" if row["target"] else "",
            ]
        )
    return lines


def _compare(
    nodes: Cluster, node: LiteFSNode, read: Callable[[DatabaseWrapper, int], None], size: int, rounds: int
) -> dict[str, Any]:
    ours, stock = (connect(node, side, alias) for side, alias in ((OURS, "ours"), (STOCK, "stock")))
    times: dict[DatabaseWrapper, list[float]] = {ours: [], stock: []}
    for connection in times:
        read(connection, 0)
    for start in range(0, rounds * size, size):
        nodes.beat()
        for connection in (ours, stock, stock, ours):
            begin = time.perf_counter()
            for number in range(start, start + size):
                read(connection, number)
            times[connection].append((time.perf_counter() - begin) / size * 1000)
    for connection in times:
        connection.close()
    tenth = 2 * rounds // 10
    ratios = [
        median(times[ours][begin : begin + tenth]) / median(times[stock][begin : begin + tenth])
        for begin in range(0, 2 * rounds, tenth)
    ]
    return {
        "p50_ms": median(times[ours]),
        "peer_p50_ms": median(times[stock]),
        "ratio": median(times[ours]) / median(times[stock]),
        "spread": [min(ratios), max(ratios)],
    }


def _fill(nodes: Cluster) -> None:
    connection = connect(nodes.primary, OURS, "setup")
    authors = Author.objects.using("setup").bulk_create(Author(name=f"author {number}") for number in range(AUTHORS))
    Book.objects.using("setup").bulk_create(
        Book(author=authors[number % AUTHORS], title=f"title {number:04}", pages=number % 700)
        for number in range(BOOKS)
    )
    connection.close()
    nodes.wait_equal()
