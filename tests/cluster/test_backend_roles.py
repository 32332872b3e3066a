"""A connection that was opened before a role change reads on, and refuses or performs writes by the role it finds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from django.db import transaction

from litefs_django._litefs.write_turn import FileLock, gate_path
from litefs_django.db.backends.litefs import guard
from litefs_django.db.backends.litefs.base import DatabaseWrapper
from litefs_django.db.backends.litefs.locks import Locks
from litefs_django.exceptions import NotPrimaryError
from tests.cluster.conftest import StartPython
from tests.cluster.connections import DjangoConnections, create_tables
from tests.cluster.library import AUTHORS, INSERT, authors, books, insert_rows, make_library, raw, selected
from tests.cluster.load import Load
from tests.cluster.locks import gate, held
from tests.cluster.models import Author
from tests.cluster.nodes import ConsulCluster, LiteFSNode, wait_for
from tests.cluster.reads import QUERIES, rows_of, write_row
from tests.cluster.test_backend_failures import Supervisor

pytestmark = pytest.mark.consul

numbers = itertools.count()


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, litefs_binary: Path, consul_binary: Path
) -> Iterator[ConsulCluster]:
    """Three nodes; each test has a database of its own, and changes the primary."""
    with ConsulCluster(3, tmp_path_factory.mktemp("roles"), litefs_binary, consul_binary) as cluster:
        yield cluster


@pytest.fixture
def name(cluster: ConsulCluster) -> Iterator[str]:
    """A library on all nodes. In the end they hold the same, and no LiteFS has ended."""
    cluster.wait_settled()
    name = f"db{next(numbers)}.sqlite3"
    with DjangoConnections() as connect:
        make_library(connect(cluster.primary, name, alias="maker"))
    cluster.wait_equal(name)
    yield name
    assert len(cluster.answering) == 3, "a node's LiteFS has ended"
    cluster.wait_settled()
    cluster.wait_equal(name)


@pytest.fixture
def here(cluster: ConsulCluster, name: str, django_connection: DjangoConnections) -> DatabaseWrapper:
    """A connection on the primary, opened and used."""
    return used(django_connection(cluster.primary, name, timeout=5))


@pytest.fixture
def there(cluster: ConsulCluster, name: str, django_connection: DjangoConnections) -> DatabaseWrapper:
    """A connection on a replica, opened and used."""
    return used(django_connection(cluster.replicas[0], name, timeout=5))


@pytest.fixture(autouse=True)
def unblocked(django_db_blocker: object) -> Iterator[None]:
    with django_db_blocker.unblock():  # type: ignore[attr-defined]
        yield


def used(connection: DatabaseWrapper) -> DatabaseWrapper:
    assert authors(connection).count() == AUTHORS
    return connection


def node_of(cluster: ConsulCluster, connection: DatabaseWrapper) -> LiteFSNode:
    (node,) = (node for node in cluster.nodes if node.name == connection.alias)
    return node


def make_primary(cluster: ConsulCluster, node: LiteFSNode, *, is_joined_by_all: bool = True) -> None:
    """A node with an open transaction joins the new primary only when that has ended."""
    wait_for(lambda: cluster.request(node), f"{node.name} accepts POST /promote", cluster.nodes)
    wait_for(
        lambda: [each for each in cluster.nodes if each.is_primary()] == [node],
        f"{node.name} is the only primary",
        cluster.nodes,
    )
    if is_joined_by_all:
        cluster.wait_settled()


def promote(cluster: ConsulCluster, connection: DatabaseWrapper) -> None:
    """Makes the connection's node the primary."""
    make_primary(cluster, node_of(cluster, connection))


def demote(cluster: ConsulCluster, connection: DatabaseWrapper, *, is_joined_by_all: bool = True) -> None:
    """Makes another node the primary."""
    other = next(node for node in cluster.nodes if node.name != connection.alias)
    make_primary(cluster, other, is_joined_by_all=is_joined_by_all)


def is_heard_by(connection: DatabaseWrapper) -> bool:
    """Whether it has heard of a supervisor that says that LiteFS serves."""
    return not connection.connection.is_left_behind() and connection.connection.is_known_alive()


def new_names(connection: DatabaseWrapper) -> set[str]:
    return set(authors(connection).exclude(name__startswith="a").values_list("name", flat=True))


def create(connection: DatabaseWrapper, name: str = "new") -> None:
    authors(connection).create(name=name)


def create_in_atomic(connection: DatabaseWrapper) -> None:
    with transaction.atomic(using=connection.alias):
        assert authors(connection).count() == AUTHORS
        create(connection)


def create_in_nested_atomic(connection: DatabaseWrapper) -> None:
    with transaction.atomic(using=connection.alias), transaction.atomic(using=connection.alias):
        create(connection)


def create_without_autocommit(connection: DatabaseWrapper) -> None:
    connection.set_autocommit(False)
    try:
        create(connection)
        connection.commit()
    finally:
        connection.rollback()
        connection.set_autocommit(True)


def insert(connection: DatabaseWrapper) -> None:
    with connection.cursor() as cursor:
        cursor.execute(INSERT)


def insert_by_with(connection: DatabaseWrapper) -> None:
    with connection.cursor() as cursor:
        cursor.execute("WITH one (name) AS (VALUES ('new')) INSERT INTO cluster_author (name) SELECT name FROM one")


def insert_returning(connection: DatabaseWrapper) -> None:
    with connection.cursor() as cursor:
        assert cursor.execute(f"{INSERT} RETURNING name").fetchall() == [("new",)]


def insert_by_hand(connection: DatabaseWrapper) -> None:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN IMMEDIATE")
        try:
            cursor.execute(INSERT)
            cursor.execute("COMMIT")
        except BaseException:
            if raw(connection).in_transaction:  # SQLite itself has ended it where COMMIT failed
                cursor.execute("ROLLBACK")
            raise


def insert_many(connection: DatabaseWrapper) -> None:
    insert_rows(connection, iter([["new"], ["newer"], ["newest"]]))


def insert_many_in_atomic(connection: DatabaseWrapper) -> None:
    with transaction.atomic(using=connection.alias):
        insert_many(connection)


def bulk_create(connection: DatabaseWrapper) -> None:
    authors(connection).bulk_create(Author(name=name) for name in ("new", "newer", "newest"))


def alter(connection: DatabaseWrapper) -> None:
    with connection.schema_editor() as editor:
        editor.execute("CREATE TABLE made (x)")
        editor.execute(INSERT)


WRITES: list[Callable[[DatabaseWrapper], None]] = [
    create,
    create_in_atomic,
    create_in_nested_atomic,
    create_without_autocommit,
    insert,
    insert_by_with,
    insert_returning,
    insert_by_hand,
    insert_many,
    insert_many_in_atomic,
    bulk_create,
    alter,
]
writes = pytest.mark.parametrize("write", WRITES)


@writes
def test_a_replica_s_connection_writes_after_its_node_s_promotion(
    cluster: ConsulCluster, there: DatabaseWrapper, write: Callable[[DatabaseWrapper], None]
) -> None:
    with pytest.raises(NotPrimaryError):
        write(there)
    promote(cluster, there)
    assert authors(there).count() == AUTHORS
    write(there)
    assert "new" in new_names(there)
    assert len(new_names(there)) in (1, 3)
    assert there.connection.is_writable


@writes
def test_a_primary_s_connection_refuses_after_its_node_s_demotion(
    cluster: ConsulCluster, here: DatabaseWrapper, write: Callable[[DatabaseWrapper], None]
) -> None:
    demote(cluster, here)
    for _ in range(3):
        assert authors(here).count() == AUTHORS
        with pytest.raises(NotPrimaryError) as caught:
            write(here)
        assert caught.value.primary == cluster.primary.settings.cluster.this
        assert not raw(here).in_transaction
    with transaction.atomic(using=here.alias), transaction.atomic(using=here.alias):
        assert new_names(here) == set()


@pytest.mark.parametrize(
    "write", [create_in_atomic, create_in_nested_atomic, create_without_autocommit, insert_by_hand]
)
def test_a_demotion_right_after_a_commit_is_found_by_the_next_one(
    cluster: ConsulCluster,
    here: DatabaseWrapper,
    write: Callable[[DatabaseWrapper], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a supervisor speaks a transaction begins unasked then. The first of these writes ends in its COMMIT."""
    monkeypatch.setattr(guard, "_CONFIRMED_NS", 1 << 60)
    node = cluster.primary
    with Supervisor(node):
        wait_for(lambda: is_heard_by(here), "the connection hears the supervisor", cluster.nodes)
        assert authors(here).filter(name="a0").update(name="a0") == 1
        position = node.position(here.settings_dict["NAME"])
        demote(cluster, here)
        with monkeypatch.context() as patched:
            patched.setattr(guard.Connection, "_find_primary", None)
            with pytest.raises(NotPrimaryError):
                write(here)
        for _ in range(2):
            with pytest.raises(NotPrimaryError):
                write(here)
            assert not raw(here).in_transaction
        assert new_names(here) == set()
    assert node.position(here.settings_dict["NAME"]) == position


def test_a_commit_that_waits_for_the_change_is_refused(
    cluster: ConsulCluster, here: DatabaseWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not of unknown outcome, as one that LiteFS refuses can be: nothing of it was written."""
    are_held, is_committing = Event(), Event()
    take_gate = Locks.take_gate

    def say_so(*args: Any) -> bool:
        is_committing.set()
        return take_gate(*args)

    def change_meanwhile() -> None:
        with held(gate(here)):
            are_held.set()
            assert is_committing.wait(30)
            demote(cluster, here, is_joined_by_all=False)

    monkeypatch.setattr(Locks, "take_gate", say_so)
    with Supervisor(cluster.primary), ThreadPoolExecutor(1) as pool:
        wait_for(lambda: is_heard_by(here), "the connection hears the supervisor", cluster.nodes)
        changing = pool.submit(change_meanwhile)
        assert are_held.wait(30)
        with pytest.raises(NotPrimaryError) as refused:
            create_in_atomic(here)
        changing.result()
        assert "meanwhile" not in str(refused.value), "COMMIT was tried"
        assert new_names(here) == set()


@writes
def test_a_primary_s_connection_writes_when_its_node_is_primary_again(
    cluster: ConsulCluster, here: DatabaseWrapper, write: Callable[[DatabaseWrapper], None]
) -> None:
    demote(cluster, here)
    with pytest.raises(NotPrimaryError):
        write(here)
    promote(cluster, here)
    write(here)
    assert "new" in new_names(here)


def test_atomic_blocks_that_only_read_are_never_refused(
    cluster: ConsulCluster, here: DatabaseWrapper, there: DatabaseWrapper
) -> None:
    def read(connection: DatabaseWrapper) -> None:
        with transaction.atomic(using=connection.alias, durable=True):
            assert authors(connection).count() == AUTHORS
            with transaction.atomic(using=connection.alias):
                assert books(connection).count() == AUTHORS

    for change in (demote, promote, demote):
        change(cluster, here)
        read(here)
        read(there)


def test_a_cursor_that_stays_open_writes_after_the_promotion(cluster: ConsulCluster, there: DatabaseWrapper) -> None:
    with there.cursor() as cursor:
        assert cursor.execute("SELECT count(*) FROM cluster_author").fetchone() == (AUTHORS,)
        promote(cluster, there)
        cursor.execute(INSERT)
        assert cursor.execute("SELECT count(*) FROM cluster_author").fetchone() == (AUTHORS + 1,)


def test_executemany_repeats_and_loses_no_row(cluster: ConsulCluster, there: DatabaseWrapper) -> None:
    promote(cluster, there)
    assert insert_rows(there, ([f"row{n}"] for n in range(5))) == 5
    assert new_names(there) == {f"row{n}" for n in range(5)}


def test_a_block_begun_on_a_replica_does_not_write_after_the_promotion(
    cluster: ConsulCluster, there: DatabaseWrapper
) -> None:
    """Its connection cannot write; run again it gets one that can. It has not read before: see below."""
    with (  # noqa: PT012
        pytest.raises(NotPrimaryError, match="became the primary during this transaction"),
        transaction.atomic(using=there.alias),
    ):
        promote(cluster, there)
        create(there)
    create_in_atomic(there)
    assert new_names(there) == {"new"}


def test_a_transaction_by_hand_can_be_run_again_after_the_promotion(
    cluster: ConsulCluster, there: DatabaseWrapper
) -> None:
    promote(cluster, there)
    with there.cursor() as cursor:
        cursor.execute("BEGIN")
        assert cursor.execute("SELECT count(*) FROM cluster_author").fetchone() == (AUTHORS,)
        with pytest.raises(NotPrimaryError, match="run it again"):
            cursor.execute(INSERT)
        cursor.execute("ROLLBACK")
        cursor.execute("BEGIN")
        cursor.execute(INSERT)
        cursor.execute("COMMIT")
    assert new_names(there) == {"new"}


@pytest.mark.parametrize("begin", ["atomic", "autocommit off", "by hand", "savepoint"])
@pytest.mark.parametrize("has_written", [True, False])
def test_a_transaction_open_at_the_demotion_says_that_nothing_was_written(
    cluster: ConsulCluster, here: DatabaseWrapper, begin: str, has_written: bool
) -> None:
    with ExitStack() as stack, pytest.raises(NotPrimaryError):  # noqa: PT012
        if begin == "atomic":
            stack.enter_context(transaction.atomic(using=here.alias))
        elif begin == "autocommit off":
            here.set_autocommit(False)
        else:
            stack.enter_context(here.cursor()).execute("SAVEPOINT s" if begin == "savepoint" else "BEGIN IMMEDIATE")
        assert authors(here).count() == AUTHORS
        if has_written:
            create(here)
        demote(cluster, here, is_joined_by_all=False)
        if not has_written:
            create(here)
        if begin == "atomic":
            stack.close()
        elif begin == "autocommit off":
            here.commit()
        else:
            here.cursor().execute("RELEASE s" if begin == "savepoint" else "COMMIT")
    if begin == "autocommit off":
        here.rollback()
        here.set_autocommit(True)
    elif begin != "atomic":
        raw(here).rollback()
    assert new_names(here) == set()
    with pytest.raises(NotPrimaryError):
        create(here)
    promote(cluster, here)
    create(here)
    assert new_names(here) == {"new"}


# Rows that are written while they are read.


def test_iterations_go_on_across_the_promotion(cluster: ConsulCluster, there: DatabaseWrapper) -> None:
    # SQLite has given out all rows: while a SELECT is open LiteFS does not make its node the primary.
    iterations = {kind: iter(list(rows_of(kind, there))) for kind in QUERIES}
    iterations["iterator"] = authors(there).iterator()
    seen = dict.fromkeys(iterations, 0)
    for kind, rows in iterations.items():
        for row in itertools.islice(rows, 3):
            with pytest.raises(NotPrimaryError):
                write_row(row, there)
            seen[kind] += 1
    promote(cluster, there)
    for kind, rows in iterations.items():
        for row in rows:
            write_row(row, there)
            seen[kind] += 1
    assert set(seen.values()) == {AUTHORS}


def test_an_open_iteration_delays_the_promotion_and_no_more(cluster: ConsulCluster, there: DatabaseWrapper) -> None:
    rows = rows_of("all", there)
    next(rows)
    node = node_of(cluster, there)
    wait_for(lambda: cluster.request(node), f"{node.name} accepts POST /promote", cluster.nodes)
    # With the last two rows, which are fetched together, the SELECT ends.
    for row in itertools.islice(rows, AUTHORS - 3):
        with pytest.raises(NotPrimaryError):
            write_row(row, there)
    assert len(list(rows)) == 2
    wait_for(node.is_primary, f"{node.name} is primary", cluster.nodes)
    create(there)


def test_iterations_go_on_across_the_demotion(cluster: ConsulCluster, here: DatabaseWrapper) -> None:
    iterations = {kind: rows_of(kind, here) for kind in QUERIES}
    iterations["cursor"] = iter(selected(here))
    seen = dict.fromkeys(iterations, 0)
    for kind, rows in iterations.items():
        for row in itertools.islice(rows, 3):
            write_row(row, here)
            seen[kind] += 1
    demote(cluster, here, is_joined_by_all=False)
    for kind, rows in iterations.items():
        for row in rows:
            with pytest.raises(NotPrimaryError):
                write_row(row, here)
            seen[kind] += 1
    assert set(seen.values()) == {AUTHORS}


# Under load.


def change(cluster: ConsulCluster, node: LiteFSNode, name: str) -> None:
    """Makes `node` the primary as a supervisor does: while commits are held off, and when it has them all."""
    old = cluster.primary
    with closing(FileLock(gate_path(old.settings.run, name))) as lock:
        assert lock.acquire(10)
        cluster.wait_equal(name)
        wait_for(lambda: cluster.request(node), f"{node.name} accepts POST /promote", cluster.nodes)
        wait_for(lambda: not old.is_primary(), f"{old.name} is not primary any more", cluster.nodes)
    cluster.wait_settled()


def test_role_changes_under_load_lose_nothing(
    cluster: ConsulCluster,
    start_python: StartPython,
    tmp_path: Path,
    django_connection: DjangoConnections,
) -> None:
    name = f"db{next(numbers)}.sqlite3"
    create_tables(django_connection(cluster.primary, name, alias="maker"))
    cluster.wait_equal(name)
    load = Load(start_python, tmp_path, name)
    for node in cluster.nodes:
        load.add(node, 2, timeout=20)
    for node in itertools.islice(itertools.cycle(cluster.nodes), 9):
        load.wait_for_more()
        if not node.is_primary():
            change(cluster, node, name)
    load.wait_for_more()
    load.stop()
    assert len(cluster.answering) == 3, "a node's LiteFS has ended"
    assert not load.outcomes("unknown")
    assert not load.reasons()
    assert load.outcomes("refused")
    cluster.wait_equal(name)
    for node in cluster.nodes:
        load.check(django_connection(node, name, alias=f"reader {node.name}"))
