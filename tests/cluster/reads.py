"""Every kind of query, and of what else a replica must not refuse, each as a function of a connection.

The database is that of `library`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from django.db import models, transaction
from django.db.models import Case, Count, Exists, F, OuterRef, Q, Subquery, Value, When, Window
from django.db.models.functions import RowNumber, Upper

from litefs_django.db.backends.litefs.base import DatabaseWrapper
from tests.cluster.library import AUTHORS, INSERT, Statement, authors, between, books, executed, executed_raw, raw
from tests.cluster.models import Author, Book

QUERIES: dict[str, Callable[[models.QuerySet[Author]], Any]] = {
    "all": lambda q: q,
    "order_by": lambda q: q.order_by("-name"),
    "exists": lambda q: q.filter(Exists(Book.objects.using(q.db).filter(author=OuterRef("pk")))),
    "annotated exists": lambda q: q.annotate(has=Exists(Book.objects.using(q.db).filter(author=OuterRef("pk")))),
    "subquery": lambda q: q.annotate(
        title=Subquery(Book.objects.using(q.db).filter(author=OuterRef("pk")).values("title")[:1])
    ),
    "in": lambda q: q.filter(pk__in=Book.objects.using(q.db).values("author")),
    "union": lambda q: q.filter(pk__lt=9).union(q.filter(pk__gte=9)),
    "union all": lambda q: q.filter(pk__lt=9).union(q.filter(pk__gte=9), all=True),
    "intersection": lambda q: q.intersection(q.filter(pk__gt=0)),
    "difference": lambda q: q.difference(q.filter(pk__lt=0)),
    "count": lambda q: q.annotate(count=Count("books")).filter(count=1),
    "case": lambda q: q.annotate(kind=Case(When(pk__lt=9, then=Value("low")), default=Upper("name"))),
    "window": lambda q: q.annotate(row=Window(RowNumber(), order_by="name")),
    "distinct": lambda q: q.filter(Q(books__pages__gte=0)).distinct(),
    "prefetch": lambda q: q.prefetch_related("books"),
    "values": lambda q: q.values("pk", "books__title"),
    "values_list": lambda q: q.values_list("pk", "name"),
    "flat": lambda q: q.values_list("pk", flat=True),
    "named": lambda q: q.values_list("pk", "name", named=True),
    "only": lambda q: q.only("name"),
    "raw": lambda q: q.raw("SELECT * FROM cluster_author WHERE EXISTS (SELECT 1 FROM cluster_book)"),
}


def rows_of(kind: str, connection: DatabaseWrapper) -> Iterator[Any]:
    """The query's rows, fetched two by two."""
    query = QUERIES[kind](authors(connection))
    yield from query.iterator() if kind == "raw" else query.iterator(chunk_size=2)


def write_row(row: Any, connection: DatabaseWrapper) -> None:
    """Saves the object, or updates the one that the row is of."""
    if isinstance(row, Author):
        row.save()
    else:
        key = row["pk"] if isinstance(row, dict) else row[0] if isinstance(row, tuple) else row
        authors(connection).filter(pk=key).update(name=F("name"))


READS: dict[str, Statement] = {}


def read(function: Statement) -> Statement:
    READS[function.__name__] = function
    return function


@read
def every_kind_of_query(connection: DatabaseWrapper) -> None:
    for kind in QUERIES:
        assert len(list(rows_of(kind, connection))) == AUTHORS


@read
def aggregates(connection: DatabaseWrapper) -> None:
    assert books(connection).aggregate(sum=models.Sum("pages"))["sum"] == AUTHORS * (AUTHORS + 1) // 2
    assert books(connection).filter(pages__gt=1).exists()
    assert len(authors(connection).in_bulk([1, 2])) == 2


@read
def get_or_create_of_what_is_there(connection: DatabaseWrapper) -> None:
    assert authors(connection).get_or_create(name="a1")[1] is False


@read
def relations(connection: DatabaseWrapper) -> None:
    book = books(connection).select_related("author").prefetch_related("tags").get(title="a1")
    assert book.author.name == "a1"
    assert not book.tags.all()


@read
def explanations(connection: DatabaseWrapper) -> None:
    assert "cluster_author" in authors(connection).explain()
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {INSERT}")
        assert cursor.execute(f"EXPLAIN {INSERT}").fetchall()


@read
def in_transactions(connection: DatabaseWrapper) -> None:
    with transaction.atomic(using=connection.alias, durable=True), transaction.atomic(using=connection.alias):
        assert authors(connection).select_for_update().count() == AUTHORS
    connection.set_autocommit(False)
    assert authors(connection).count() == AUTHORS
    connection.commit()
    connection.set_autocommit(True)


@read
def in_transactions_by_hand(connection: DatabaseWrapper) -> None:
    for begin, end in (
        ("BEGIN", "COMMIT"),
        ("BEGIN IMMEDIATE", "ROLLBACK"),
        ("BEGIN EXCLUSIVE", "END"),
        ("SAVEPOINT s", "RELEASE s"),
    ):
        between(begin, "SELECT * FROM cluster_author", end)(connection)


@read
def statements(connection: DatabaseWrapper) -> None:
    for using in (executed, executed_raw):
        for sql in (
            "SELECT 1",
            " -- a comment\nSELECT name FROM cluster_author /* INSERT */",
            "VALUES (1), (2)",
            "WITH some AS (SELECT * FROM cluster_author) SELECT count(*) FROM some",
            "WITH RECURSIVE n (x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM n LIMIT 9) SELECT * FROM n",
            "PRAGMA table_info(cluster_author)",
            "PRAGMA user_version",
            "PRAGMA journal_mode",
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = NORMAL",
            "PRAGMA cache_size = -4000",
            "PRAGMA integrity_check",
            "PRAGMA foreign_key_check",
            "PRAGMA foreign_keys = OFF",
            "PRAGMA foreign_keys = ON",
            "ATTACH ':memory:' AS scratch",
            "CREATE TABLE scratch.x AS SELECT * FROM cluster_author",
            "UPDATE scratch.x SET name = ''",
            "DETACH scratch",
        ):
            using(sql)(connection)


@read
def temporary_tables(connection: DatabaseWrapper) -> None:
    for using in (executed, executed_raw):
        for sql in (
            "CREATE TEMP TABLE mine (id INTEGER PRIMARY KEY, name TEXT)",
            "INSERT INTO mine (name) SELECT name FROM cluster_author",
            "INSERT INTO temp.mine (name) VALUES ('new') RETURNING id",
            "WITH one AS (SELECT 1 AS id) DELETE FROM mine WHERE id IN one",
            "CREATE INDEX temp.by_name ON mine (name)",
            "UPDATE mine SET name = upper(name)",
            "REPLACE INTO mine (id, name) VALUES (3, 'third')",
        ):
            using(sql)(connection)
        with connection.cursor() as cursor:
            count = "SELECT count(*) FROM mine JOIN cluster_author a ON mine.name = upper(a.name)"
            assert cursor.execute(count).fetchone() == (AUTHORS - 2,)
        raw(connection).executescript("DELETE FROM mine; DROP TABLE mine;")


@read
def executemany_into_a_temporary_table(connection: DatabaseWrapper) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE mine (x)")
        rows: Any = ([number] for number in range(3))
        cursor.executemany("INSERT INTO mine VALUES (%s)", rows)
        raw(connection).executemany("UPDATE mine SET x = x + ?", [[1], [2]])
        assert cursor.execute("SELECT sum(x) FROM mine").fetchone() == (12,)
        cursor.execute("DROP TABLE mine")


@read
def temporary_tables_in_atomic(connection: DatabaseWrapper) -> None:
    with transaction.atomic(using=connection.alias):
        temporary_tables(connection)


@read
def introspection(connection: DatabaseWrapper) -> None:
    assert "cluster_book" in connection.introspection.table_names()
    with connection.cursor() as cursor:
        connection.introspection.get_table_description(cursor, "cluster_book")
        assert "title" in connection.introspection.get_constraints(cursor, "cluster_book")
    connection.check_constraints()
    assert connection.is_usable()


@read
def past_django(connection: DatabaseWrapper) -> None:
    with raw(connection) as connected:
        assert connected.execute("SELECT count(*) FROM cluster_author").fetchone() == (AUTHORS,)
    connected.create_function("seven", 0, lambda: 7)
    assert connected.execute("SELECT seven()").fetchone() == (7,)
    assert any("cluster_author" in line for line in connected.iterdump())
    with connected.blobopen("cluster_author", "name", 2, readonly=True) as blob:
        assert blob.read() == b"a1"
    with closing(sqlite3.connect(":memory:")) as copy:
        connected.backup(copy)
        assert copy.execute("SELECT count(*) FROM cluster_author").fetchone() == (AUTHORS,)
