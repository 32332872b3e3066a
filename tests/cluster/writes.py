"""Every kind of write that Django and sqlite3 know, each on the database of `library`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from django.core.management.color import no_style
from django.db import models, transaction
from django.db.models import F

from litefs_django.db.backends.litefs.base import DatabaseWrapper
from litefs_django.exceptions import NotPrimaryError
from tests.cluster.library import INSERT, Statement, authors, between, books, executed, executed_raw, raw
from tests.cluster.models import Author, Book, Tag

STATEMENTS = [
    INSERT,
    "  insert INTO cluster_author (name) VALUES ('new')",
    "-- a comment\n/* and another */ INSERT INTO cluster_author (name) VALUES ('new')",
    "INSERT OR IGNORE INTO cluster_author (name) VALUES ('a1')",
    "INSERT INTO cluster_author (name) VALUES ('a1') ON CONFLICT (name) DO UPDATE SET name = 'new'",
    "INSERT INTO cluster_author (name) SELECT 'new' || name FROM cluster_author",
    "REPLACE INTO cluster_tag (name) VALUES ('new')",
    "UPDATE cluster_book SET pages = 1",
    "UPDATE cluster_book SET pages = a.id FROM cluster_author a WHERE a.id = author_id",
    "DELETE FROM cluster_book",
    "WITH new (name) AS (VALUES ('new')) INSERT INTO cluster_author (name) SELECT name FROM new",
    "WITH some AS (SELECT id FROM cluster_book) UPDATE cluster_book SET pages = 1 WHERE id IN some",
    "WITH some AS (SELECT id FROM cluster_book) DELETE FROM cluster_book WHERE id IN some",
    "CREATE TABLE new (x)",
    "CREATE TABLE new AS SELECT * FROM cluster_book",
    "CREATE VIEW new AS SELECT * FROM cluster_book",
    "CREATE UNIQUE INDEX new ON cluster_book (pages)",
    "CREATE TRIGGER new AFTER INSERT ON cluster_book BEGIN DELETE FROM cluster_tag; END",
    "CREATE VIRTUAL TABLE new USING fts5(x)",
    "ALTER TABLE cluster_book RENAME TO cluster_novel",
    "ALTER TABLE cluster_book ADD COLUMN isbn TEXT",
    "DROP TABLE cluster_book",
    "DROP INDEX title",
    "REINDEX",
    "ANALYZE",
    "VACUUM",
    "PRAGMA user_version = 3",
    "PRAGMA main.application_id(7)",
    "INSERT INTO cluster_author (name) VALUES ('new') RETURNING id",
    "UPDATE cluster_book SET pages = 1 RETURNING id, pages",
    "DELETE FROM cluster_book RETURNING *",
]


def inside(*blocks: dict[str, bool]) -> Statement:
    """In nested atomic() of these arguments, after a read."""

    def run(connection: DatabaseWrapper) -> None:
        with ExitStack() as stack:
            for block in blocks:
                stack.enter_context(transaction.atomic(using=connection.alias, **block))
            assert authors(connection).exists()
            authors(connection).create(name="new")

    return run


# What a write leaves for the next one to find is of no interest: on a replica it leaves nothing.
WRITES: dict[str, Statement] = {
    "save, new": lambda c: Author(name="new").save(using=c.alias),
    "save, existing": lambda c: authors(c)[0].save(),
    "save, some fields": lambda c: authors(c)[0].save(update_fields=["name"]),
    "create": lambda c: authors(c).create(name="new"),
    "create, related": lambda c: authors(c)[0].books.create(title="new"),
    "bulk_create": lambda c: authors(c).bulk_create(Author(name=f"new{n}") for n in range(3)),
    "bulk_create, batches": lambda c: authors(c).bulk_create([Author(name=f"new{n}") for n in range(5)], 2),
    "bulk_create, ignoring": lambda c: authors(c).bulk_create([Author(name="a1")], ignore_conflicts=True),
    "bulk_create, updating": lambda c: authors(c).bulk_create(
        [Author(name="a1")], update_conflicts=True, update_fields=["name"], unique_fields=["name"]
    ),
    "bulk_update": lambda c: authors(c).bulk_update(authors(c)[:3], ["name"]),
    "update": lambda c: books(c).update(pages=F("pages") + 1),
    "update, nothing": lambda c: books(c).filter(pk=-1).update(pages=1),
    "update, subquery": lambda c: books(c).filter(author__in=authors(c).filter(name="a1")).update(pages=1),
    "delete": lambda c: books(c).filter(pages=1).delete(),
    "delete, nothing": lambda c: books(c).filter(pk=-1)._raw_delete(c.alias),
    "delete, cascade": lambda c: authors(c).filter(name="a1").delete(),
    "delete, object": lambda c: authors(c)[0].delete(),
    "get_or_create": lambda c: authors(c).get_or_create(name="new"),
    "update_or_create, new": lambda c: authors(c).update_or_create(name="new"),
    "update_or_create, existing": lambda c: books(c).update_or_create(title="a1", defaults={"pages": 7}),
    "many to many, add": lambda c: books(c)[0].tags.add(1),
    "many to many, set": lambda c: books(c)[0].tags.set([1]),
    "many to many, remove": lambda c: books(c)[0].tags.remove(1),
    "many to many, clear": lambda c: books(c)[0].tags.clear(),
    "raw query": lambda c: list(authors(c).raw("INSERT INTO cluster_author (name) VALUES ('new') RETURNING *")),
    "flush": lambda c: c.ops.execute_sql_flush(c.ops.sql_flush(no_style(), ["cluster_tag"])),
    "atomic": inside({}),
    "atomic, durable": inside({"durable": True}),
    "atomic, nested": inside({}, {}),
    "atomic, nested without savepoint": inside({}, {"savepoint": False}),
    "BEGIN": between("BEGIN", INSERT, "ROLLBACK"),
    "BEGIN DEFERRED, COMMIT": between("BEGIN DEFERRED", INSERT, "COMMIT"),
    "BEGIN IMMEDIATE": between("BEGIN IMMEDIATE", INSERT, "ROLLBACK"),
    "BEGIN EXCLUSIVE, END": between("BEGIN EXCLUSIVE", "DELETE FROM cluster_book", "END"),
    "SAVEPOINT": between("SAVEPOINT s", INSERT, "RELEASE s"),
    "raw cursor": lambda c: raw(c).cursor().execute(INSERT),
    "raw executemany": lambda c: raw(c).executemany(
        "INSERT INTO cluster_author (name) VALUES (?)", [["new1"], ["new2"]]
    ),
    "raw executescript": lambda c: raw(c).executescript("SELECT 1; UPDATE cluster_book SET pages = 1; SELECT 2;"),
}
WRITES |= {sql: executed(sql) for sql in STATEMENTS}
WRITES |= {f"raw: {sql}": executed_raw(sql) for sql in STATEMENTS}


def write(function: Statement) -> Statement:
    WRITES[function.__name__] = function
    return function


@write
def atomic_that_goes_on_reading(connection: DatabaseWrapper) -> None:
    with transaction.atomic(using=connection.alias):
        for _ in range(3):
            with pytest.raises(NotPrimaryError), transaction.atomic(using=connection.alias):
                authors(connection).create(name="new")
            assert authors(connection).exists()
        authors(connection).create(name="new")


@write
def behind_a_savepoint(connection: DatabaseWrapper) -> None:
    with transaction.atomic(using=connection.alias):
        savepoint = connection.savepoint()
        assert savepoint is not None
        try:
            executed(INSERT)(connection)
        finally:
            connection.savepoint_rollback(savepoint)


@write
def without_autocommit(connection: DatabaseWrapper) -> None:
    connection.set_autocommit(False)
    try:
        assert authors(connection).exists()
        authors(connection).create(name="new")
    finally:
        connection.rollback()
        connection.set_autocommit(True)


@write
def with_parameters(connection: DatabaseWrapper) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO cluster_author (name) VALUES (%s)", ["new"])


@write
def with_named_parameters(connection: DatabaseWrapper) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE cluster_book SET pages = %(pages)s", {"pages": 1})


@write
def by_a_debug_cursor(connection: DatabaseWrapper) -> None:
    connection.force_debug_cursor = True
    try:
        authors(connection).create(name="new")
    finally:
        connection.force_debug_cursor = False


@write
def executemany(connection: DatabaseWrapper) -> None:
    """With an iterator, from which a refusal takes one row: SQLite refuses when it runs the statement."""
    rows: Any = iter([["new1"], ["new2"]])
    try:
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO cluster_author (name) VALUES (%s)", rows)
    except NotPrimaryError:
        assert list(rows) == [["new2"]]
        raise


@write
def executemany_in_atomic(connection: DatabaseWrapper) -> None:
    with transaction.atomic(using=connection.alias):
        executemany(connection)


@write
def trigger_of_a_temporary_table(connection: DatabaseWrapper) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE IF NOT EXISTS bait (x)")
        cursor.execute(
            "CREATE TEMP TRIGGER IF NOT EXISTS hook AFTER INSERT ON bait BEGIN UPDATE cluster_book SET pages = 1; END"
        )
        cursor.execute("INSERT INTO bait VALUES (1)")


@write
def schema_editor_executes(connection: DatabaseWrapper) -> None:
    with connection.schema_editor() as editor:
        editor.execute("CREATE TABLE new (x)")


@write
def schema_editor_adds_a_field(connection: DatabaseWrapper) -> None:
    field = models.IntegerField(default=1)
    field.set_attributes_from_name("year")
    with connection.schema_editor() as editor:
        editor.add_field(Book, field)


@write
def schema_editor_deletes(connection: DatabaseWrapper) -> None:
    with connection.schema_editor() as editor:
        editor.delete_model(Tag)


@write
def raw_executescript_with_a_transaction(connection: DatabaseWrapper) -> None:
    try:
        raw(connection).executescript("BEGIN; DELETE FROM cluster_book; COMMIT;")
    finally:
        raw(connection).rollback()


@write
def raw_with_block(connection: DatabaseWrapper) -> None:
    with raw(connection) as below:
        below.execute("BEGIN")
        below.execute(INSERT)


@write
def raw_implicit_transaction(connection: DatabaseWrapper) -> None:
    raw(connection).isolation_level = "IMMEDIATE"
    try:
        raw(connection).execute(INSERT)
    finally:
        raw(connection).rollback()
        raw(connection).isolation_level = None
