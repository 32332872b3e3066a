"""On a replica every write is refused with NotPrimaryError, and no read is.

2,000 writes are tried, of every kind; the position of every node stays what it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
from django.db import NotSupportedError, OperationalError, transaction
from pytest_django import DjangoDbBlocker

from litefs_django.db.backends.litefs.base import DatabaseWrapper
from litefs_django.exceptions import NotPrimaryError
from tests.cluster.connections import DjangoConnections, run_python
from tests.cluster.library import AUTHORS, Statement, authors, books, executed, executed_raw, make_library, raw
from tests.cluster.nodes import LiteFSNode, StaticCluster, wait_for
from tests.cluster.reads import QUERIES, READS, rows_of, write_row
from tests.cluster.writes import WRITES

pytestmark = pytest.mark.cluster

# On two replicas.
TIMES = -(-2000 // (2 * len(WRITES)))


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, litefs_binary: Path, django_db_blocker: DjangoDbBlocker
) -> Iterator[StaticCluster]:
    """Three nodes whose database holds some rows; nothing of this module changes it."""
    with StaticCluster(3, tmp_path_factory.mktemp("cluster"), litefs_binary) as cluster:
        with django_db_blocker.unblock(), DjangoConnections() as connect:
            make_library(connect(cluster.primary))
        cluster.wait_equal()
        yield cluster


@pytest.fixture
def unchanged(cluster: StaticCluster) -> Iterator[None]:
    """The position of each node is the same after the test."""
    before = {node.name: node.position() for node in cluster.nodes}
    assert len(set(before.values())) == 1
    yield
    assert {node.name: node.position() for node in cluster.nodes} == before


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("kind", WRITES)
def test_a_write_is_refused(cluster: StaticCluster, django_connection: DjangoConnections, kind: str) -> None:
    for node in cluster.replicas:
        connection = django_connection(node)
        for _ in range(TIMES):
            with pytest.raises(NotPrimaryError) as caught:
                WRITES[kind](connection)
            assert caught.value.alias == connection.alias
            assert caught.value.node == node.settings.cluster.this
            assert caught.value.primary == cluster.primary.settings.cluster.this
            assert not connection.in_atomic_block
            assert not raw(connection).in_transaction
            assert authors(connection).count() == books(connection).count() == AUTHORS


@pytest.mark.usefixtures("unchanged")
def test_writes_are_refused_in_threads(cluster: StaticCluster, django_connection: DjangoConnections) -> None:
    def try_all(node: LiteFSNode) -> set[str]:
        with closing(django_connection(node)) as connection:
            return {kind for kind in WRITES if not is_refused(WRITES[kind], connection)}

    with ThreadPoolExecutor(8) as threads:
        assert set().union(*threads.map(try_all, cluster.replicas * 4)) == set()


def is_refused(statement: Statement, connection: DatabaseWrapper) -> bool:
    try:
        statement(connection)
    except NotPrimaryError:
        return True
    return False


@pytest.mark.usefixtures("unchanged")
def test_a_write_is_refused_in_a_project_of_its_own(cluster: StaticCluster) -> None:
    code = """
from tests.cluster.models import Author
from litefs_django.exceptions import NotPrimaryError
try:
    Author.objects.create(name="new")
except NotPrimaryError as error:
    print(error.alias, error.node.name, error.primary.name)
"""
    node = cluster.replicas[0]
    assert run_python(node, code).split() == ["default", node.name, cluster.primary.name]


@pytest.mark.usefixtures("unchanged")
def test_a_restore_is_refused(cluster: StaticCluster, django_connection: DjangoConnections) -> None:
    """A backup is written by its source's connection: where that is plain sqlite3, SQLite's error is all there is."""
    target = django_connection(cluster.replicas[0])
    with pytest.raises(NotPrimaryError):
        raw(django_connection(cluster.primary)).backup(raw(target))
    with closing(sqlite3.connect(":memory:")) as empty, pytest.raises(sqlite3.OperationalError, match="readonly"):
        empty.backup(raw(target))


@pytest.mark.usefixtures("unchanged")
def test_a_database_on_the_mount_is_attached_read_only(
    cluster: StaticCluster, django_connection: DjangoConnections
) -> None:
    for node in (cluster.primary, cluster.replicas[0]):
        path = node.database()
        with django_connection(node).cursor() as cursor:
            for file in (str(path), f"file:{path}", f"file:{path}?mode=rwc", str(path.with_name("new.sqlite3"))):
                with pytest.raises(NotSupportedError, match="read-only"):
                    cursor.execute("ATTACH %s AS other", [file])
                with pytest.raises(NotSupportedError, match="read-only"):
                    cursor.execute(f"/* ? */ ATTACH DATABASE '{file}' AS other")
            with pytest.raises(NotSupportedError, match="an expression"):
                cursor.execute(f"ATTACH '{path}' || '' AS other")
            cursor.execute("ATTACH %s AS other", [f"file:{path}?mode=ro"])
            with pytest.raises(OperationalError):
                cursor.execute("UPDATE other.cluster_book SET pages = 1")
            assert cursor.execute("SELECT max(pages) FROM other.cluster_book").fetchone() == (AUTHORS,)
        assert not path.with_name("new.sqlite3").exists()


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("kind", QUERIES)
@pytest.mark.parametrize("is_atomic", [False, True])
def test_iteration_goes_on_after_each_refusal(
    cluster: StaticCluster, django_connection: DjangoConnections, kind: str, is_atomic: bool
) -> None:
    connection = django_connection(cluster.replicas[0])
    seen = 0
    with transaction.atomic(using=connection.alias) if is_atomic else nullcontext():
        for row in rows_of(kind, connection):
            with pytest.raises(NotPrimaryError):
                write_row(row, connection)
            connection.needs_rollback = False
            seen += 1
    assert seen == AUTHORS


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("kind", READS)
def test_a_read_is_not_refused(cluster: StaticCluster, django_connection: DjangoConnections, kind: str) -> None:
    for node in cluster.replicas:
        connection = django_connection(node)
        for _ in range(3):
            READS[kind](connection)


@pytest.mark.usefixtures("unchanged")
def test_vacuum_into_another_file(cluster: StaticCluster, django_connection: DjangoConnections, tmp_path: Path) -> None:
    connection = django_connection(cluster.replicas[0])
    with connection.cursor() as cursor:
        cursor.execute("VACUUM INTO %s", [str(tmp_path / "copy")])
    with closing(sqlite3.connect(tmp_path / "copy")) as copy:
        assert copy.execute("SELECT count(*) FROM cluster_author").fetchone() == (AUTHORS,)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("using", [executed, executed_raw])
@pytest.mark.parametrize("change", ["journal_mode = DELETE", "page_size = 512", "locking_mode = EXCLUSIVE"])
def test_what_litefs_cannot_carry_is_refused(
    cluster: StaticCluster, django_connection: DjangoConnections, using: Callable[[str], Statement], change: str
) -> None:
    for node in cluster.nodes:
        connection = django_connection(node)
        connection.ensure_connection()
        with pytest.raises((NotSupportedError, sqlite3.NotSupportedError), match=change.split()[0]):
            using(f"PRAGMA {change}")(connection)


def test_a_database_that_has_not_arrived_is_a_clear_error(
    cluster: StaticCluster, django_connection: DjangoConnections
) -> None:
    connection = django_connection(cluster.replicas[0], "absent.sqlite3")
    with pytest.raises(OperationalError, match=r"absent\.sqlite3.*has not arrived.*node1"):
        connection.ensure_connection()
    assert not [node for node in cluster.nodes if node.database("absent.sqlite3").exists()]


def test_a_fixed_primary_is_named_while_it_is_away(
    static_cluster: StaticCluster, django_connection: DjangoConnections
) -> None:
    make_library(django_connection(static_cluster.primary))
    static_cluster.wait_equal()
    primary, replica = static_cluster.nodes[:2]
    connection = django_connection(replica)
    connection.ensure_connection()
    primary.kill()
    wait_for(lambda: replica.detector.primary_name() is None, "the primary is named no more", [replica])
    with pytest.raises(NotPrimaryError, match=r"The primary is 'node1'\. It does not answer now\.") as caught:
        authors(connection).create(name="new")
    assert caught.value.primary == primary.settings.cluster.this
