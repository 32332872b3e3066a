"""On the primary: transactions, RETURNING, PRAGMAs, what goes past Django, and who holds turn and gate meanwhile."""

from __future__ import annotations

import gc
import itertools
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, NotSupportedError, OperationalError, transaction
from django.db.utils import DatabaseError
from pytest_django import DjangoDbBlocker

from litefs_django._litefs.write_turn import FileLock, InVain
from litefs_django.db.backends.litefs.base import DatabaseWrapper
from tests.cluster.conftest import StartPython
from tests.cluster.connections import DjangoConnections
from tests.cluster.library import AUTHORS, INSERT, Statement, authors, books, insert_rows, make_library, raw
from tests.cluster.locks import assert_free, gate, held, is_free, turn
from tests.cluster.models import Author
from tests.cluster.nodes import LiteFSNode, StaticCluster

pytestmark = pytest.mark.cluster

numbers = itertools.count()


class Kept(Exception):
    """What a block ends with that is to be rolled back."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, litefs_binary: Path) -> Iterator[StaticCluster]:
    """Two nodes; each test has a database of its own."""
    with StaticCluster(2, tmp_path_factory.mktemp("primary"), litefs_binary) as cluster:
        yield cluster
        assert len(cluster.answering) == 2


@pytest.fixture
def node(cluster: StaticCluster) -> LiteFSNode:
    return cluster.nodes[0]


@pytest.fixture
def name() -> str:
    return f"db{next(numbers)}.sqlite3"


@pytest.fixture
def connection(
    cluster: StaticCluster, node: LiteFSNode, name: str, django_connection: DjangoConnections
) -> Iterator[DatabaseWrapper]:
    """To a library; nobody waits long for a lock. In the end both nodes hold the same."""
    connection = django_connection(node, name, timeout=0.1)
    make_library(connection)
    yield connection
    cluster.wait_equal(name)
    assert len(cluster.answering) == 2, "a node's LiteFS has ended"


def names_elsewhere(connection: DatabaseWrapper) -> set[str]:
    """The new authors, as SQLite alone sees them on the same node: what has been committed."""
    with closing(sqlite3.connect(f"file:{connection.place.path}?mode=ro", uri=True)) as other:
        return {name for (name,) in other.execute("SELECT name FROM cluster_author WHERE name NOT LIKE 'a%'")}


def txid(node: LiteFSNode, name: str) -> int:
    position = node.position(name)
    assert position is not None
    return position.txid


def create(connection: DatabaseWrapper, name: str = "new") -> None:
    authors(connection).create(name=name)


@contextmanager
def rolled_back(connection: DatabaseWrapper) -> Iterator[None]:
    with suppress(Kept), transaction.atomic(using=connection.alias):
        yield
        raise Kept


# Transactions.


def test_each_autocommit_write_is_one_transaction(connection: DatabaseWrapper, node: LiteFSNode, name: str) -> None:
    before = txid(node, name)
    create(connection, "one")
    assert names_elsewhere(connection) == {"one"}
    create(connection, "two")
    assert names_elsewhere(connection) == {"one", "two"}
    assert txid(node, name) == before + 2


def test_an_atomic_block_is_one_transaction(connection: DatabaseWrapper, node: LiteFSNode, name: str) -> None:
    before = txid(node, name)
    with transaction.atomic(using=connection.alias):
        create(connection, "one")
        with rolled_back(connection):
            create(connection, "two")
            with transaction.atomic(using=connection.alias):
                create(connection, "three")
        with transaction.atomic(using=connection.alias):
            create(connection, "four")
        assert names_elsewhere(connection) == set()
    assert names_elsewhere(connection) == {"one", "four"}
    assert txid(node, name) == before + 1


def test_a_rolled_back_block_writes_nothing(connection: DatabaseWrapper, node: LiteFSNode, name: str) -> None:
    before = txid(node, name)
    with rolled_back(connection), transaction.atomic(using=connection.alias):
        create(connection)
    assert names_elsewhere(connection) == set()
    assert txid(node, name) == before


def test_without_autocommit(connection: DatabaseWrapper, node: LiteFSNode, name: str) -> None:
    connection.set_autocommit(False)
    assert authors(connection).count() == AUTHORS
    assert is_free(turn(connection))
    create(connection, "one")
    assert not is_free(turn(connection))
    connection.rollback()
    assert is_free(turn(connection))
    create(connection, "two")
    with transaction.atomic(using=connection.alias):
        create(connection, "three")
    assert names_elsewhere(connection) == set()
    connection.commit()
    assert names_elsewhere(connection) == {"two", "three"}
    assert is_free(turn(connection))
    create(connection, "four")
    connection.set_autocommit(True)
    assert names_elsewhere(connection) == {"two", "three", "four"}
    assert is_free(turn(connection))
    create(connection, "five")
    assert "five" in names_elsewhere(connection)


def test_a_commit_by_set_autocommit_waits_for_the_gate(connection: DatabaseWrapper) -> None:
    connection.set_autocommit(False)
    create(connection)
    with held(gate(connection)), pytest.raises(OperationalError, match="database is locked"):
        connection.set_autocommit(True)
    connection.rollback()
    connection.set_autocommit(True)
    assert names_elsewhere(connection) == set()


def test_turn_and_gate_share_one_time_out(
    connection: DatabaseWrapper,
    node: LiteFSNode,
    name: str,
    django_connection: DjangoConnections,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a write has waited for its turn it does not wait for the gate once more."""
    acquire, given = FileLock.acquire, {}

    def note(lock: FileLock, timeout: float, is_in_vain: InVain | None = None) -> bool:
        started = time.monotonic()
        taken = acquire(lock, timeout, is_in_vain)
        given[lock.path] = timeout, time.monotonic() - started
        return taken

    patient = django_connection(node, name, alias="patient", timeout=1)
    patient.ensure_connection()
    with held(gate(connection)), ExitStack() as stack:
        stack.enter_context(held(turn(connection)))
        monkeypatch.setattr(FileLock, "acquire", note)
        timer = threading.Timer(0.2, stack.close)
        timer.start()
        with pytest.raises(OperationalError, match="database is locked"):
            create(patient)
        timer.join()
    (for_turn, waited), (for_gate, _) = given[turn(connection)], given[gate(connection)]
    assert for_turn == 1
    assert 0 <= for_gate <= for_turn - waited + 0.01
    assert_free(connection)


@pytest.mark.parametrize("statement", [create, lambda c: in_atomic(c, create)])
def test_a_write_waits_once_in_line_and_for_who_does_not_stand_there(
    connection: DatabaseWrapper,
    node: LiteFSNode,
    name: str,
    django_connection: DjangoConnections,
    statement: Statement,
) -> None:
    """What it has waited for its turn SQLite does not wait once more."""
    patient = django_connection(node, name, alias="patient", timeout=2)
    patient.ensure_connection()
    with closing(sqlite3.connect(node.database(name), isolation_level=None)) as outsider, ExitStack() as stack:
        outsider.execute("BEGIN IMMEDIATE")
        stack.enter_context(held(turn(connection)))
        timer = threading.Timer(1.5, stack.close)
        timer.start()
        started = time.monotonic()
        with pytest.raises(OperationalError, match="database is locked"):
            statement(patient)
        waited = time.monotonic() - started
        timer.join()
        outsider.execute("ROLLBACK")
    # Twice would be 3.5.
    assert 1.5 <= waited < 3
    assert raw(patient).execute("PRAGMA busy_timeout").fetchone() == (2000,)
    statement(patient)
    assert_free(connection)


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("BEGIN", "COMMIT"),
        ("BEGIN", "END"),
        ("BEGIN IMMEDIATE", "COMMIT"),
        ("/* now */ begin/**/immediate", ";commit"),
        ("BEGIN EXCLUSIVE", "END TRANSACTION"),
        ("SAVEPOINT s", "RELEASE s"),
        ("SAVEPOINT s", "COMMIT"),
    ],
)
@pytest.mark.parametrize("is_raw", [False, True])
def test_transactions_by_hand(connection: DatabaseWrapper, begin: str, end: str, is_raw: bool) -> None:
    with connection.cursor() as cursor:
        execute = raw(connection).execute if is_raw else cursor.execute
        for ending in ("ROLLBACK", end):
            execute(begin)
            assert is_free(turn(connection)) == ("immediate" not in begin.lower() and "EXCLUSIVE" not in begin)
            execute(INSERT)
            assert not is_free(turn(connection))
            assert names_elsewhere(connection) == set()
            execute(ending)
            assert is_free(turn(connection))
        execute(begin)
        execute("UPDATE cluster_author SET name = 'newer' WHERE name = 'new'")
        with held(gate(connection)), pytest.raises((OperationalError, sqlite3.OperationalError), match="locked"):
            execute(end)
        assert names_elsewhere(connection) == {"new"}
        execute(end)
    assert names_elsewhere(connection) == {"newer"}
    assert_free(connection)


@pytest.mark.filterwarnings("ignore:savepoint")  # deprecated by Django, and still there
def test_savepoints_by_hand(connection: DatabaseWrapper) -> None:
    with transaction.atomic(using=connection.alias):
        create(connection, "one")
        kept = transaction.savepoint(using=connection.alias)
        create(connection, "two")
        dropped = transaction.savepoint(using=connection.alias)
        create(connection, "three")
        transaction.savepoint_rollback(dropped, using=connection.alias)
        assert not is_free(turn(connection))
        transaction.savepoint_commit(kept, using=connection.alias)
    assert names_elsewhere(connection) == {"one", "two"}


def write_around_a_savepoint(connection: DatabaseWrapper) -> None:
    with transaction.atomic(using=connection.alias):
        create(connection, "one")
        with rolled_back(connection):
            create(connection, "two")
        assert not is_free(turn(connection))


def test_a_block_that_rolled_back_to_a_savepoint_still_commits_in_order(connection: DatabaseWrapper) -> None:
    with held(gate(connection)), pytest.raises(OperationalError, match="database is locked"):
        write_around_a_savepoint(connection)
    assert names_elsewhere(connection) == set()
    assert_free(connection)


def test_hooks_run_after_turn_and_gate_are_given_back(connection: DatabaseWrapper) -> None:
    seen: list[bool] = []

    def hook() -> None:
        seen.append(is_free(turn(connection)) and is_free(gate(connection)))
        create(connection, "by hook")

    with transaction.atomic(using=connection.alias):
        create(connection)
        transaction.on_commit(hook, using=connection.alias)
    assert seen == [True]
    assert names_elsewhere(connection) == {"new", "by hook"}


# Turn and gate.


def test_reads_and_nested_blocks_take_neither(connection: DatabaseWrapper) -> None:
    with held(turn(connection), gate(connection)):
        assert authors(connection).count() == AUTHORS
        assert len(list(authors(connection).iterator(chunk_size=2))) == AUTHORS
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA foreign_keys")
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("WITH a AS (SELECT 1) SELECT * FROM a")
            cursor.execute("EXPLAIN QUERY PLAN DELETE FROM cluster_author")
            cursor.execute("BEGIN")
            cursor.execute("SELECT * FROM cluster_author")
            cursor.execute("SAVEPOINT s")
            cursor.execute("ROLLBACK TO s")
            cursor.execute("RELEASE s")
            cursor.execute("COMMIT")
    with transaction.atomic(using=connection.alias):
        create(connection, "one")
        with held(gate(connection)):
            with transaction.atomic(using=connection.alias):
                create(connection, "two")
                authors(connection).bulk_create(Author(name=f"many{n}") for n in range(3))
            with rolled_back(connection):
                create(connection, "three")
            list(authors(connection).raw("UPDATE cluster_author SET name = 'four' WHERE name = 'one' RETURNING *"))
    assert names_elsewhere(connection) == {"two", "four", "many0", "many1", "many2"}


WAITING: dict[str, Statement] = {
    "create": create,
    "update": lambda c: books(c).update(pages=1),
    "atomic": lambda c: in_atomic(c, create),
    "table": lambda c: raw(c).execute("CREATE TABLE new (x)"),
    "executemany": lambda c: raw(c).executemany("INSERT INTO cluster_tag (name) VALUES (?)", [["x"]]),
    "executescript": lambda c: raw(c).executescript("SELECT 1; DELETE FROM cluster_book;"),
    "with": lambda c: raw(c).execute("WITH a AS (SELECT 1) DELETE FROM cluster_book WHERE id IN a"),
    "pragma": lambda c: raw(c).execute("PRAGMA user_version = 3"),
    "vacuum": lambda c: raw(c).execute("VACUUM"),
    "deferred": lambda c: raw(c).executescript("BEGIN; SELECT 1; DELETE FROM cluster_book; COMMIT;"),
}


def in_atomic(connection: DatabaseWrapper, statement: Statement) -> None:
    with transaction.atomic(using=connection.alias):
        statement(connection)


@pytest.mark.parametrize("kind", WAITING)
@pytest.mark.parametrize("lock", [turn, gate])
def test_a_write_waits_for_the_time_out_and_is_then_locked_out(
    connection: DatabaseWrapper, kind: str, lock: Callable[[DatabaseWrapper], Path]
) -> None:
    statement = WAITING[kind]
    with held(lock(connection)):
        started = time.monotonic()
        with pytest.raises((OperationalError, sqlite3.OperationalError), match=r"^database is locked$"):
            statement(connection)
        assert 0.1 <= time.monotonic() - started < 5
        raw(connection).rollback()
    assert books(connection).exists()
    assert_free(connection)
    statement(connection)
    assert_free(connection)


def test_a_waiting_write_goes_on_when_the_lock_is_free(
    connection: DatabaseWrapper, node: LiteFSNode, name: str, django_connection: DjangoConnections
) -> None:
    patient = django_connection(node, name, alias="patient", timeout=30)
    patient.inc_thread_sharing()
    with ThreadPoolExecutor(1) as pool, transaction.atomic(using=connection.alias):
        create(connection)

        def write() -> None:
            with patient.cursor() as cursor:
                cursor.execute("INSERT INTO cluster_tag (name) SELECT name FROM cluster_author WHERE name = 'new'")

        waiting = pool.submit(write)
    waiting.result()
    with patient.cursor() as cursor:
        assert cursor.execute("SELECT count(*) FROM cluster_tag").fetchone() == (3,)


def test_a_failed_statement_leaves_no_lock(connection: DatabaseWrapper) -> None:
    for wrong in (
        "INSERT INTO absent VALUES (1)",
        "INSERT INTO cluster_author (name) VALUES ('a1')",
        "DROP TABLE absent",
    ):
        with pytest.raises(DatabaseError), connection.cursor() as cursor:
            cursor.execute(wrong)
        assert_free(connection)


def test_lock_files_that_are_removed_and_cannot_be_made_again(connection: DatabaseWrapper, node: LiteFSNode) -> None:
    insert_rows(connection, [["before"]])
    turn(connection).unlink()
    run, away = node.settings.run, node.settings.run.with_name("away")
    run.rename(away)
    run.touch()
    try:
        with pytest.raises(OperationalError, match=r"Writes are refused, .* cannot be opened \(Not a directory\)"):
            insert_rows(connection, [["during"]])
    finally:
        run.unlink()
        away.rename(run)
    insert_rows(connection, [["later"]])
    assert names_elsewhere(connection) == {"before", "later"}


def test_a_closed_or_forgotten_connection_leaves_no_lock(
    connection: DatabaseWrapper, node: LiteFSNode, name: str, django_connection: DjangoConnections
) -> None:
    for end in (lambda c: c.close(), lambda c: setattr(c, "connection", None)):
        other = django_connection(node, name, alias="other")
        with other.cursor() as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            cursor.execute(INSERT)
        del cursor
        assert not is_free(turn(connection))
        end(other)
        gc.collect()
        assert is_free(turn(connection))
    assert names_elsewhere(connection) == set()


def test_a_dying_thread_leaves_no_lock(
    connection: DatabaseWrapper, node: LiteFSNode, name: str, django_connection: DjangoConnections
) -> None:
    def die() -> None:
        other = DjangoConnections()(node, name, alias="dying")
        other.cursor().execute("BEGIN IMMEDIATE")
        other.cursor().execute(INSERT)
        assert not is_free(turn(connection))

    thread = threading.Thread(target=die)
    thread.start()
    thread.join()
    # Django's wrappers are cycles.
    gc.collect()
    create(connection)
    assert names_elsewhere(connection) == {"new"}


def test_two_databases_in_opposite_order_end_in_one_time_out(
    node: LiteFSNode, django_db_blocker: DjangoDbBlocker
) -> None:
    names = [f"db{next(numbers)}.sqlite3" for _ in range(2)]
    both = threading.Barrier(2)

    def write(first: str, second: str, timeout: float) -> None:
        with django_db_blocker.unblock(), DjangoConnections() as connect:
            one, two = connect(node, first, alias=first), connect(node, second, alias=second, timeout=timeout)
            one.ensure_connection()
            two.ensure_connection()
            both.wait()
            with transaction.atomic(using=first):
                both.wait()
                with transaction.atomic(using=second), two.cursor() as cursor:
                    cursor.execute("CREATE TABLE t (x)")

    with ThreadPoolExecutor(2) as pool:
        impatient = pool.submit(write, names[0], names[1], 0.2)
        patient = pool.submit(write, names[1], names[0], 30)
        with pytest.raises(OperationalError, match="database is locked"):
            impatient.result()
        patient.result()


def test_threads_write_side_by_side(
    connection: DatabaseWrapper, node: LiteFSNode, name: str, django_db_blocker: DjangoDbBlocker
) -> None:
    def write(number: int) -> None:
        with django_db_blocker.unblock(), DjangoConnections() as connect:
            mine = connect(node, name, alias=f"thread{number}", timeout=30)
            for n in range(5):
                create(mine, f"{number}-{n}")
                with transaction.atomic(using=mine.alias):
                    create(mine, f"{number}-{n}-atomic")
                    authors(mine).filter(name=f"{number}-{n}").update(name=f"{number}-{n}-updated")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(names_elsewhere(connection)) == 80


# executemany.


def rows(connection: DatabaseWrapper) -> Iterator[list[str]]:
    """Rows whose making uses the connection that they are written to."""
    for n in range(3):
        seen = authors(connection).count()
        create(connection, f"between{n}")
        with transaction.atomic(using=connection.alias):
            books(connection).update(pages=seen)
        yield [f"row{n}-{seen}"]


@pytest.mark.parametrize("is_atomic", [False, True])
def test_executemany_with_an_iterator_that_uses_the_connection(connection: DatabaseWrapper, is_atomic: bool) -> None:
    with ExitStack() as stack:
        if is_atomic:
            stack.enter_context(transaction.atomic(using=connection.alias))
        assert insert_rows(connection, rows(connection)) == 3
        assert is_free(turn(connection)) == (not is_atomic)
    # Each row has seen the row before it, and what was written between them.
    made = {f"row{n}-{AUTHORS + 2 * n}" for n in range(3)}
    assert names_elsewhere(connection) == made | {"between0", "between1", "between2"}


def test_executemany_under_an_implicit_transaction(connection: DatabaseWrapper) -> None:
    connection.set_autocommit(False)
    insert_rows(connection, ([f"row{n}"] for n in range(3)))
    assert names_elsewhere(connection) == set()
    connection.commit()
    connection.set_autocommit(True)
    assert names_elsewhere(connection) == {"row0", "row1", "row2"}


def test_an_iterator_that_fails_leaves_the_rows_before_it(connection: DatabaseWrapper) -> None:
    def failing() -> Iterator[list[str]]:
        yield ["row0"]
        yield ["row1"]
        raise Kept

    with pytest.raises(Kept):
        insert_rows(connection, failing())
    assert names_elsewhere(connection) == {"row0", "row1"}
    assert_free(connection)


def test_a_row_that_fails_leaves_the_rows_before_it(connection: DatabaseWrapper) -> None:
    with pytest.raises(IntegrityError):
        insert_rows(connection, [["row0"], ["a1"], ["row1"]])
    assert names_elsewhere(connection) == {"row0"}
    assert_free(connection)


# RETURNING, as plain sqlite3 does it.

RETURNING = "INSERT INTO cluster_author (name) VALUES ('r1'), ('r2'), ('r3') RETURNING name"

FETCHES: dict[str, Callable[[Any], Any]] = {
    "none": lambda cursor: None,
    "one": lambda cursor: cursor.fetchone(),
    "two, then the rest": lambda cursor: (cursor.fetchmany(2), cursor.fetchall(), cursor.fetchone(), cursor.fetchall()),
    "one by one": lambda cursor: [cursor.fetchone() for _ in range(5)],
    "all": lambda cursor: cursor.fetchall(),
    "arraysize": lambda cursor: cursor.fetchmany(),
    "iterated": list,
    "partly iterated": lambda cursor: (next(iter(cursor)), cursor.fetchone()),
    "described": lambda cursor: (cursor.description, cursor.rowcount, cursor.lastrowid),
    "used again": lambda cursor: (
        cursor.fetchone(),
        cursor.execute("SELECT 7").fetchall(),
        cursor.fetchone(),
        cursor.execute("DELETE FROM cluster_author WHERE name = 'r1' RETURNING name").fetchone(),
        cursor.execute("SELECT count(*) FROM cluster_author WHERE name LIKE 'r%'").fetchone(),
    ),
}


@pytest.mark.parametrize("kind", FETCHES)
@pytest.mark.parametrize("is_raw", [False, True])
def test_returning_is_committed_however_it_is_fetched(
    connection: DatabaseWrapper, tmp_path: Path, kind: str, is_raw: bool
) -> None:
    with closing(sqlite3.connect(tmp_path / "plain", isolation_level=None)) as plain:
        plain.execute("CREATE TABLE cluster_author (id INTEGER PRIMARY KEY, name)")
        plain.executemany("INSERT INTO cluster_author (name) VALUES (?)", [[f"a{n}"] for n in range(AUTHORS)])
        expected = FETCHES[kind](plain.execute(RETURNING))
    cursor = raw(connection).cursor() if is_raw else connection.create_cursor()
    cursor.execute(RETURNING)
    assert names_elsewhere(connection) == {"r1", "r2", "r3"}
    assert is_free(turn(connection))
    if kind != "described":
        assert FETCHES[kind](cursor) == expected
    else:
        description, _, lastrowid = FETCHES[kind](cursor)
        assert (description, lastrowid) == (expected[0], expected[2])
    cursor.close()
    assert names_elsewhere(connection) >= {"r2", "r3"}


def test_a_raw_cursor_goes_on_with_next(connection: DatabaseWrapper) -> None:
    cursor = raw(connection).execute(RETURNING)
    assert [next(cursor), next(cursor), next(cursor)] == [("r1",), ("r2",), ("r3",)]
    with pytest.raises(StopIteration):
        next(cursor)


def test_rows_are_made_by_the_row_factory(connection: DatabaseWrapper) -> None:
    below = raw(connection)
    below.row_factory = sqlite3.Row
    assert [dict(row) for row in below.execute(RETURNING)] == [{"name": f"r{n}"} for n in (1, 2, 3)]


def test_returning_inside_a_transaction(connection: DatabaseWrapper) -> None:
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        cursor.execute(RETURNING)
        assert cursor.fetchone() == ("r1",)
        assert cursor.fetchall() == [("r2",), ("r3",)]
    assert names_elsewhere(connection) == {"r1", "r2", "r3"}


# PRAGMAs.

REFUSED = [
    "PRAGMA journal_mode = DELETE",
    "PRAGMA journal_mode=memory",
    "PRAGMA journal_mode('truncate')",
    "PRAGMA main.journal_mode = OFF",
    'PRAGMA "main"."journal_mode" = "persist"',
    "pragma\n/* x */ JOURNAL_MODE -- y\n = delete;",
    ";PRAGMA journal_mode = DELETE",
    "\ufeffPRAGMA journal_mode = DELETE",
    "EXPLAIN PRAGMA journal_mode = DELETE",
    "EXPLAIN QUERY PLAN PRAGMA journal_mode = DELETE",
    "PRAGMA page_size = 512",
    "PRAGMA page_size(8192)",
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA main.locking_mode = exclusive",
    "EXPLAIN PRAGMA locking_mode = EXCLUSIVE",
]


@pytest.mark.parametrize("pragma", REFUSED)
def test_what_litefs_cannot_carry_is_refused_whichever_way_it_comes(connection: DatabaseWrapper, pragma: str) -> None:
    below = raw(connection)
    message = re.compile("is refused: it is")
    with pytest.raises(NotSupportedError, match=message), connection.cursor() as cursor:
        cursor.execute(pragma)
    with pytest.raises(sqlite3.NotSupportedError, match=message):
        below.execute(pragma)
    for script in (pragma, f"SELECT 1; {pragma}; SELECT 2;"):
        with pytest.raises(sqlite3.NotSupportedError, match=message):
            below.executescript(script)
    with pytest.raises(NotSupportedError, match=message), transaction.atomic(using=connection.alias):
        connection.cursor().execute(pragma)
    for executemany in (below.executemany, connection.cursor().executemany):
        with pytest.raises((sqlite3.NotSupportedError, NotSupportedError), match=message):
            executemany(pragma, [[]])
    modes = [below.execute(f"PRAGMA {name}").fetchone() for name in ("journal_mode", "page_size", "locking_mode")]
    assert modes == [("wal",), (4096,), ("normal",)]
    create(connection)
    assert names_elsewhere(connection) == {"new"}


def test_a_database_that_is_not_in_wal_mode_works_as_it_is(
    cluster: StaticCluster, node: LiteFSNode, name: str, django_connection: DjangoConnections
) -> None:
    """As other tools make it. That it stays so is said to whoever sets WAL, as many a project does."""
    with closing(sqlite3.connect(node.database(name))) as plain:
        plain.execute("CREATE TABLE cluster_author (id INTEGER PRIMARY KEY, name TEXT)")
    connection = django_connection(node, name)
    create(connection)
    cluster.wait_equal(name)
    assert authors(django_connection(cluster.nodes[1], name)).get().name == "new"
    setting = django_connection(node, name, alias="setting", init_command="PRAGMA journal_mode = WAL")
    with pytest.raises(NotSupportedError, match=r"it is 'delete', .*leave the PRAGMA out \(of OPTIONS\['init_command"):
        setting.ensure_connection()


def test_pragmas_that_change_nothing_are_let_through(connection: DatabaseWrapper) -> None:
    below = raw(connection)
    with held(turn(connection), gate(connection)):
        for pragma in (
            "journal_mode = WAL",
            "journal_mode('wal')",
            "main.journal_mode=wal",
            "page_size = 4096",
            "locking_mode = NORMAL",
        ):
            below.execute(f"PRAGMA {pragma}")
            below.executescript(f"PRAGMA {pragma};")


def test_a_pragma_that_writes_is_a_write(connection: DatabaseWrapper, node: LiteFSNode, name: str) -> None:
    before = txid(node, name)
    for pragma in ("user_version = 3", "application_id(7)", "main.user_version = 4"):
        raw(connection).execute(f"PRAGMA {pragma}")
    assert txid(node, name) == before + 3
    raw(connection).execute("PRAGMA optimize")
    raw(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert raw(connection).execute("PRAGMA user_version").fetchone() == (4,)
    assert is_free(turn(connection))


def test_a_database_of_the_mount_is_not_attached_for_writing(
    connection: DatabaseWrapper, node: LiteFSNode, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(node.mount)
    own = connection.place.path
    for file in (
        own,
        f"file:{own}",
        f"file://{own}?mode=rw",
        link / own.name,
        f"{tmp_path}/../{tmp_path.name}/link/{own.name}",
    ):
        with pytest.raises(NotSupportedError, match=r"ATTACH of .* is refused"), connection.cursor() as cursor:
            cursor.execute("ATTACH %s AS other", [str(file)])
        with pytest.raises(sqlite3.NotSupportedError, match=r"ATTACH of .* is refused"):
            raw(connection).executescript(f";ATTACH '{file}' AS other")
    with connection.cursor() as cursor:
        cursor.execute("ATTACH %s AS other", [f"file:{own}?mode=ro"])
        assert cursor.execute("SELECT count(*) FROM other.cluster_author").fetchone() == (AUTHORS,)
        cursor.execute("DETACH other")


# Past Django.


def test_executescript(connection: DatabaseWrapper) -> None:
    raw(connection).executescript("""
        -- a comment with a ; in it
        CREATE TABLE log (x);
        CREATE TRIGGER hook AFTER INSERT ON cluster_tag BEGIN
            INSERT INTO log VALUES ('a;b'); INSERT INTO log VALUES (new.name);
        END;
        ;;
        INSERT INTO cluster_tag (name) VALUES ('x;y') RETURNING *;
        BEGIN; INSERT INTO cluster_author (name) VALUES ('one'); COMMIT;
        BEGIN; INSERT INTO cluster_author (name) VALUES ('two'); ROLLBACK;
        INSERT INTO cluster_author (name) VALUES ('three') -- without its semicolon
    """)
    assert raw(connection).execute("SELECT * FROM log").fetchall() == [("a;b",), ("x;y",)]
    assert names_elsewhere(connection) == {"one", "three"}
    raw(connection).executescript("-- nothing")
    raw(connection).executescript("")
    assert is_free(turn(connection))


def test_executescript_commits_what_was_begun(connection: DatabaseWrapper) -> None:
    connection.set_autocommit(False)
    create(connection)
    raw(connection).executescript("SELECT 1;")
    assert names_elsewhere(connection) == {"new"}
    connection.set_autocommit(True)


def test_a_with_block_commits_or_rolls_back(connection: DatabaseWrapper) -> None:
    below = raw(connection)
    with below:
        below.execute("BEGIN")
        below.execute(INSERT)
    assert names_elsewhere(connection) == {"new"}
    with suppress(Kept), below:
        below.execute("BEGIN IMMEDIATE")
        below.execute("DELETE FROM cluster_author")
        raise Kept
    assert authors(connection).count() == AUTHORS + 1
    assert is_free(turn(connection))


def test_backup_into_a_database_of_the_mount(
    connection: DatabaseWrapper, cluster: StaticCluster, node: LiteFSNode, django_connection: DjangoConnections
) -> None:
    copy = f"db{next(numbers)}.sqlite3"
    target = django_connection(node, copy, alias="copy", timeout=0.1)
    target.ensure_connection()
    with held(turn(target)), pytest.raises(sqlite3.OperationalError, match="database is locked"):
        raw(connection).backup(raw(target))
    raw(connection).backup(raw(target))
    assert authors(target).count() == AUTHORS
    assert raw(target).execute("PRAGMA journal_mode").fetchone() == ("wal",)
    cluster.wait_equal(copy)


def test_a_blob_is_written_inside_a_transaction(connection: DatabaseWrapper) -> None:
    with pytest.raises(sqlite3.NotSupportedError, match="atomic"):
        raw(connection).blobopen("cluster_tag", "name", 1)
    with transaction.atomic(using=connection.alias):
        with raw(connection).blobopen("cluster_tag", "name", 1) as blob:
            blob.write(b"SEA")
        assert not is_free(turn(connection))
    with raw(connection).blobopen("cluster_tag", "name", 1, readonly=True) as blob:
        assert blob.read() == b"SEA"


def test_the_isolation_level_of_sqlite3(connection: DatabaseWrapper) -> None:
    below = raw(connection)
    below.isolation_level = "EXCLUSIVE"
    assert below.isolation_level == "EXCLUSIVE"
    below.execute(INSERT)
    assert below.in_transaction
    assert names_elsewhere(connection) == set()
    below.isolation_level = None
    assert not below.in_transaction
    assert names_elsewhere(connection) == {"new"}
    assert is_free(turn(connection))


# Made by several at once.


def test_several_processes_make_a_database_at_once(
    cluster: StaticCluster, node: LiteFSNode, name: str, start_python: StartPython
) -> None:
    code = """
import sys
from django.db import connection
from tests.cluster.models import Tag
sys.stdin
with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE IF NOT EXISTS cluster_tag (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT)")
for n in range(5):
    Tag.objects.create(name=str(n))
"""
    processes = [start_python(node, code, name, timeout=30) for _ in range(4)]
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    cluster.wait_equal(name)
    for each in cluster.nodes:
        with closing(sqlite3.connect(f"file:{each.database(name)}?mode=ro", uri=True)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert connection.execute("SELECT count(*) FROM cluster_tag").fetchone() == (20,)


def test_a_forked_child_changes_nothing_for_its_parent(
    connection: DatabaseWrapper, node: LiteFSNode, name: str, start_python: StartPython
) -> None:
    """A child may not use its parent's connection (SQLite forbids it); whatever it does, the parent does not notice."""
    code = """
import os, warnings
from django.db import connection, connections, transaction
from tests.cluster.locks import assert_free, gate, held, is_free, turn
from tests.cluster.models import Author
warnings.simplefilter("ignore", DeprecationWarning)

def fork(what):
    child = os.fork()
    if not child:
        try:
            what()
        finally:
            os._exit(0)
    os.waitpid(child, 0)

def of_its_own():
    connections["default"].connection = None
    connections["default"].close()
    Author.objects.create(name="child")

with transaction.atomic():
    Author.objects.create(name="parent")
    fork(lambda: None)
    print("forked", flush=True)
    fork(connection.connection.close)
    fork(lambda: setattr(connection, "connection", None))
    Author.objects.create(name="parent too")
fork(of_its_own)
assert Author.objects.filter(name__contains="parent").count() == 2
Author.objects.create(name="parent again")
"""
    process = start_python(node, code, name, timeout=30)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert names_elsewhere(connection) == {"parent", "parent too", "parent again", "child"}
