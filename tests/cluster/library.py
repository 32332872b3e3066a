"""A small database, and what is run on it: each statement is a function of a connection to it.

It holds authors a0, a1, ... with one book each, of the author's name as its title, and two tags.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, cast

from django.db.models import QuerySet

from litefs_django.db.backends.litefs.base import DatabaseWrapper
from tests.cluster.connections import create_tables
from tests.cluster.models import Author, Book, Tag

Statement = Callable[[DatabaseWrapper], object]

AUTHORS = 30
INSERT = "INSERT INTO cluster_author (name) VALUES ('new')"


def make_library(connection: DatabaseWrapper) -> None:
    """The tables and their rows, and an index named `title`."""
    create_tables(connection)
    made = Author.objects.using(connection.alias).bulk_create(Author(name=f"a{n}") for n in range(AUTHORS))
    Book.objects.using(connection.alias).bulk_create(Book(author=a, title=a.name, pages=a.pk) for a in made)
    Tag.objects.using(connection.alias).bulk_create([Tag(name="sea"), Tag(name="sky")])
    executed("CREATE INDEX title ON cluster_book (title)")(connection)


def authors(connection: DatabaseWrapper) -> QuerySet[Author]:
    return Author.objects.using(connection.alias)


def books(connection: DatabaseWrapper) -> QuerySet[Book]:
    return Book.objects.using(connection.alias)


def raw(connection: DatabaseWrapper) -> sqlite3.Connection:
    """The sqlite3 connection beneath Django's."""
    connection.ensure_connection()
    below: sqlite3.Connection = connection.connection
    return below


def insert_rows(connection: DatabaseWrapper, rows: Iterable[list[str]]) -> int:
    """Authors of these names, by executemany(); their count as the cursor has it."""
    with connection.cursor() as cursor:
        # django-stubs would have a sequence, sqlite3 and Django take any iterable.
        cursor.executemany("INSERT INTO cluster_author (name) VALUES (%s)", cast(Any, rows))
        return int(cursor.rowcount)


def selected(connection: DatabaseWrapper) -> Any:
    """A cursor that gives all authors, none of them fetched yet."""
    cursor = connection.cursor()
    cursor.execute("SELECT * FROM cluster_author")
    return cursor


def executed(sql: str) -> Statement:
    """By a cursor of Django's, nothing fetched."""

    def run(connection: DatabaseWrapper) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    return run


def executed_raw(sql: str) -> Statement:
    """By the sqlite3 connection, nothing fetched."""
    return lambda connection: raw(connection).execute(sql)


def between(begin: str, statement: str, end: str) -> Statement:
    """In a transaction by hand."""

    def run(connection: DatabaseWrapper) -> None:
        with connection.cursor() as cursor:
            cursor.execute(begin)
            try:
                cursor.execute(statement)
            finally:
                cursor.execute(end)

    return run
