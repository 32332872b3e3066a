"""LiteFS dies, its mount vanishes, it has no room, or will not have us: what was acknowledged stays."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, transaction

from litefs_django._litefs import write_turn
from litefs_django._litefs.node.gates import CommitGates
from litefs_django._litefs.node_file import HEARTBEAT, NodeFileWriter
from litefs_django._litefs.write_turn import FileLock, gate_path, turn_path
from litefs_django.db.backends.litefs.base import DatabaseWrapper
from litefs_django.db.backends.litefs.place import Gone
from litefs_django.exceptions import CommitOutcomeUnknown
from tests.cluster.conftest import StartPython
from tests.cluster.connections import DjangoConnections, run_python
from tests.cluster.library import AUTHORS, authors, insert_rows, make_library, raw, selected
from tests.cluster.load import Load
from tests.cluster.nodes import DATABASE, LiteFSNode, StaticCluster
from tests.cluster.reads import rows_of
from tests.machine import mount_points, small_disk, wait_until

pytestmark = pytest.mark.cluster

NOBODY = 65534


@pytest.fixture
def node(tmp_path: Path, litefs_binary: Path) -> Iterator[LiteFSNode]:
    """A primary with nobody to replicate to."""
    with StaticCluster(1, tmp_path, litefs_binary) as cluster:
        yield cluster.primary


@pytest.fixture
def connection(node: LiteFSNode, django_connection: DjangoConnections) -> DatabaseWrapper:
    """To a library."""
    connection = django_connection(node, timeout=5)
    make_library(connection)
    return connection


class Supervisor:
    """Plays the supervisor's part in the node file: says when LiteFS is down, and when it serves again."""

    def __init__(self, node: LiteFSNode) -> None:
        self._node = node
        self._file = NodeFileWriter(node.settings.run)
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._beat)

    def __enter__(self) -> Supervisor:
        self._file.mount_is_up()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._has_ended.set()
        self._thread.join()
        self._file.close()

    def kill(self) -> None:
        self._node.kill()
        self._file.mount_is_down()

    def start(self) -> None:
        CommitGates(self._node.settings.run, [DATABASE]).renew()
        self._node.start()
        wait_until(self._node.is_primary, "it is primary again")
        self._file.mount_is_up()

    def say_down(self) -> None:
        """As just before it stops LiteFS, which still serves."""
        self._file.mount_is_down()

    def restart_cleanly(self) -> None:
        """With the commit gate held, as the supervisor does. Connections that are open keep the mount busy."""
        with closing(FileLock(gate_path(self._node.settings.run, DATABASE))) as gate:
            assert gate.acquire(10)
            self._file.mount_is_down()
            self._node.stop()
            self.start()

    def _beat(self) -> None:
        while not self._has_ended.wait(HEARTBEAT):
            self._file.beat()


@pytest.fixture
def supervisor(node: LiteFSNode) -> Iterator[Supervisor]:
    with Supervisor(node) as supervisor:
        yield supervisor


@contextmanager
def at_once(limit: float = 3.0) -> Iterator[None]:
    """Nothing of the ten seconds for which SQLite tries on the mount of a LiteFS that has ended."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < limit


def test_a_litefs_that_ends_while_django_looks_at_the_connection_between_requests(
    connection: DatabaseWrapper, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment cannot be met from outside: that the first look finds nothing wrong is faked."""
    raw(connection)
    monkeypatch.setattr(raw(connection), "has_lost_its_mount", lambda: False)
    supervisor.kill()
    connection.close_if_unusable_or_obsolete()
    assert connection.connection is None
    supervisor.start()
    assert authors(connection).count() == AUTHORS


def new_names(connection: DatabaseWrapper) -> set[str]:
    return set(authors(connection).exclude(name__startswith="a").values_list("name", flat=True))


def create(connection: DatabaseWrapper, name: str = "new") -> None:
    authors(connection).create(name=name)


# LiteFS is killed.


def test_kill_9_of_litefs_loses_nothing_acknowledged(
    node: LiteFSNode, connection: DatabaseWrapper, start_python: StartPython, tmp_path: Path
) -> None:
    """A BEGIN under way waits out the connection's time-out: to SQLite a lock that fails is one that is taken."""
    load = Load(start_python, tmp_path, DATABASE)
    with Supervisor(node) as supervisor:
        load.add(node, 4, timeout=5)
        for _ in range(20):
            load.wait_for_more(15)
            supervisor.kill()
            supervisor.start()
        load.wait_for_more(15)
        load.stop()
    connection.close()
    load.check(connection)


def test_kill_9_of_litefs_without_a_supervisor(
    node: LiteFSNode, connection: DatabaseWrapper, start_python: StartPython, tmp_path: Path
) -> None:
    """Who had the turn may hang for ten seconds, once for each kill; all others wait out their time-out and go on."""
    load = Load(start_python, tmp_path, DATABASE)
    load.add(node, 4, timeout=5)
    for _ in range(5):
        load.wait_for_more(15)
        node.kill()
        node.start()
        wait_until(node.is_primary, "it is primary again")
    load.wait_for_more(15)
    load.stop()
    connection.close()
    load.check(connection)


# The node file.


def test_a_request_can_begin_and_end_while_litefs_is_down(supervisor: Supervisor, connection: DatabaseWrapper) -> None:
    connection.settings_dict["CONN_MAX_AGE"] = None
    connection.close()
    assert authors(connection).count() == AUTHORS
    supervisor.kill()
    with at_once():
        connection.close_if_unusable_or_obsolete()
        with pytest.raises(OperationalError):
            authors(connection).count()
        connection.close_if_unusable_or_obsolete()
    supervisor.start()
    with at_once():
        connection.close_if_unusable_or_obsolete()
        assert authors(connection).count() == AUTHORS


def test_the_next_statement_finds_the_new_mount(supervisor: Supervisor, connection: DatabaseWrapper) -> None:
    create(connection, "before")
    for n in range(3):
        supervisor.kill()
        for _ in range(2):
            with at_once(), pytest.raises(OperationalError, match="LiteFS is down on node 'node1'"):
                authors(connection).count()
            with at_once(), pytest.raises(OperationalError, match="LiteFS is down on node 'node1'"):
                create(connection)
            with at_once(), pytest.raises(OperationalError), transaction.atomic(using=connection.alias):
                create(connection)
        supervisor.start()
        with at_once():
            assert authors(connection).count() == AUTHORS + 1 + n
            create(connection, f"later{n}")
    assert new_names(connection) == {"before", "later0", "later1", "later2"}


STATEMENTS: dict[str, Callable[[DatabaseWrapper], object]] = {
    "read": lambda c: authors(c).count(),
    "iterate": lambda c: len(list(authors(c).iterator(chunk_size=2))),
    "create": create,
    "atomic": lambda c: in_atomic(c),
    "nested": lambda c: in_nested_atomic(c),
    "executemany": lambda c: insert_rows(c, iter([["x"], ["y"]])),
    "autocommit off": lambda c: without_autocommit(c),
    "pragma": lambda c: c.cursor().execute("PRAGMA user_version = 3"),
    "by hand": lambda c: by_hand(c),
}


def in_atomic(connection: DatabaseWrapper) -> None:
    with transaction.atomic(using=connection.alias):
        authors(connection).count()
        create(connection)


def in_nested_atomic(connection: DatabaseWrapper) -> None:
    with transaction.atomic(using=connection.alias), transaction.atomic(using=connection.alias):
        create(connection)


def without_autocommit(connection: DatabaseWrapper) -> None:
    connection.set_autocommit(False)
    create(connection)
    connection.commit()
    connection.set_autocommit(True)


def by_hand(connection: DatabaseWrapper) -> None:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN IMMEDIATE")
        create(connection)
        cursor.execute("COMMIT")


@pytest.mark.parametrize("kind", STATEMENTS)
def test_everything_outside_a_transaction_goes_on_by_itself(
    supervisor: Supervisor, connection: DatabaseWrapper, kind: str
) -> None:
    connection.cursor().close()
    supervisor.kill()
    supervisor.start()
    with at_once():
        STATEMENTS[kind](connection)


@pytest.mark.parametrize(("is_up_again", "has_iteration"), [(False, False), (True, False), (True, True)])
def test_a_transaction_ends_at_once_and_the_next_one_works(
    node: LiteFSNode, supervisor: Supervisor, connection: DatabaseWrapper, is_up_again: bool, has_iteration: bool
) -> None:
    rows = rows_of("all", connection)
    if has_iteration:
        # It keeps the connection of before.
        next(rows)
    with at_once(), pytest.raises(OperationalError), transaction.atomic(using=connection.alias):  # noqa: PT012
        create(connection, "lost")
        supervisor.kill()
        if is_up_again:
            supervisor.start()
        with (
            pytest.raises(OperationalError, match="ended during this transaction"),
            transaction.atomic(using=connection.alias),
        ):
            create(connection, "lost too")
        connection.needs_rollback = False
        raise_for(connection)
    if not is_up_again:
        supervisor.start()
    with at_once():
        in_atomic(connection)
    assert new_names(connection) == {"new"}
    with closing(FileLock(turn_path(node.settings.run, DATABASE))) as lock:
        assert lock.acquire(0)
    del rows


def raise_for(connection: DatabaseWrapper) -> None:
    """Any further statement of the block ends it."""
    authors(connection).count()


@pytest.mark.parametrize("has_written", [True, False])
def test_without_autocommit_a_rollback_gets_a_new_connection(
    supervisor: Supervisor, connection: DatabaseWrapper, has_written: bool
) -> None:
    connection.set_autocommit(False)
    assert authors(connection).count() == AUTHORS
    if has_written:
        create(connection, "lost")
    supervisor.kill()
    supervisor.start()
    if has_written:
        with at_once(), pytest.raises(OperationalError, match="ended during this transaction"):
            connection.commit()
        connection.rollback()
    with at_once():
        create(connection)
        connection.commit()
    connection.set_autocommit(True)
    assert new_names(connection) == {"new"}


def test_a_restart_behind_the_gate_leaves_no_commit_in_doubt(
    node: LiteFSNode, supervisor: Supervisor, connection: DatabaseWrapper, start_python: StartPython, tmp_path: Path
) -> None:
    load = Load(start_python, tmp_path, DATABASE, size=1 << 20)
    load.add(node, 8, timeout=10)
    for _ in range(3):
        load.wait_for_more()
        supervisor.restart_cleanly()
    load.wait_for_more()
    load.stop()
    # What was in flight fails, and none of it was a commit.
    assert not load.outcomes("unknown")
    connection.close()
    load.check(connection)


def test_without_a_supervisor_each_request_looks_for_the_mount(node: LiteFSNode, connection: DatabaseWrapper) -> None:
    connection.close()
    connection.settings_dict["CONN_MAX_AGE"] = None
    connection.ensure_connection()
    below = connection.connection
    connection.close_if_unusable_or_obsolete()
    assert connection.connection is below
    node.kill()
    with at_once():
        connection.close_if_unusable_or_obsolete()
        assert connection.connection is None
        with pytest.raises(OperationalError):
            authors(connection).count()
    node.start()
    with at_once():
        connection.close_if_unusable_or_obsolete()
        create(connection)
    node.kill()
    node.start()
    with at_once():
        connection.close_if_unusable_or_obsolete()
        assert new_names(connection) == {"new"}


def test_without_a_supervisor_one_read_hangs_and_no_more(node: LiteFSNode, connection: DatabaseWrapper) -> None:
    assert authors(connection).count() == AUTHORS
    node.kill()
    node.start()
    with pytest.raises(OperationalError):
        authors(connection).count()
    with at_once():
        assert authors(connection).count() == AUTHORS
        in_atomic(connection)


ITERATIONS: dict[str, Callable[[DatabaseWrapper], Iterator[Any]]] = {
    "cursor": lambda c: iter(selected(c)),
    "fetchone": lambda c: iter(selected(c).fetchone, None),
    "ORM": lambda c: authors(c).iterator(chunk_size=2),
    "sqlite3's cursor": lambda c: iter(raw(c).execute("SELECT * FROM cluster_author")),
}


@pytest.mark.parametrize("is_up_again", [False, True])
def test_rows_that_are_fetched_one_by_one_without_a_supervisor(
    node: LiteFSNode, connection: DatabaseWrapper, django_connection: DjangoConnections, is_up_again: bool
) -> None:
    """More of them than are read ahead, and on a new mount, of which the kernel has nothing in memory."""
    with transaction.atomic(using=connection.alias):
        insert_rows(connection, ([f"{n} " + "x" * 3000] for n in range(1000)))
    connection.close()
    node.stop()
    node.start()
    wait_until(node.is_primary, "it is primary again")
    opened = {kind: django_connection(node, alias=kind) for kind in ITERATIONS}
    iterations = {kind: iterate(opened[kind]) for kind, iterate in ITERATIONS.items()}
    for rows in iterations.values():
        next(rows)
    node.kill()
    if is_up_again:
        node.start()
    for kind, rows in iterations.items():
        with at_once(), pytest.raises((OperationalError, Gone), match="LiteFS on node 'node1' has ended"):
            list(rows)
        # The connection knows, too.
        assert opened[kind].connection.is_left_behind()


def test_kill_9_without_a_supervisor_loses_nothing_acknowledged(
    node: LiteFSNode, connection: DatabaseWrapper, start_python: StartPython, tmp_path: Path
) -> None:
    """Each writer may hang for ten seconds once per kill."""
    load = Load(start_python, tmp_path, DATABASE)
    load.add(node, 4, timeout=5)
    for _ in range(5):
        load.wait_for_more(15)
        node.kill()
        node.start()
    load.wait_for_more(15)
    load.stop()
    connection.close()
    load.check(connection)


@pytest.mark.parametrize("path_of", [turn_path, gate_path])
@pytest.mark.parametrize("write", [create, lambda c: in_atomic(c)])
def test_who_waits_for_a_writer_that_litefs_has_left_behind(
    node: LiteFSNode,
    supervisor: Supervisor,
    connection: DatabaseWrapper,
    path_of: Callable[[Path, str], Path],
    write: Callable[[DatabaseWrapper], object],
) -> None:
    """The test plays that writer: its statement hangs for ten seconds, with the turn, and with the gate in a COMMIT."""
    path = path_of(node.settings.run, DATABASE)

    def kill() -> None:
        wait_until(lambda: write_turn._queue(path.stat())._waiters, "it waits")
        supervisor.kill()

    with closing(FileLock(path)) as hanging, ThreadPoolExecutor(1) as pool:
        assert hanging.acquire(10)
        killed = pool.submit(kill)
        with at_once(), pytest.raises(OperationalError, match=r"LiteFS is down|ended during this transaction"):
            write(connection)
        killed.result()
        supervisor.start()
        with at_once():
            write(connection)
        assert hanging.is_held
    assert new_names(connection) == {"new"}


# The mount vanishes.


def test_no_file_is_made_where_the_mount_was(
    node: LiteFSNode, connection: DatabaseWrapper, start_python: StartPython, tmp_path: Path
) -> None:
    load = Load(start_python, tmp_path, DATABASE)
    load.add(node, 4, timeout=5)
    for _ in range(3):
        load.wait_for_more()
        failed = len(load.outcomes("failed"))
        node.unmount()
        assert str(node.mount) not in mount_points()
        wait_until(lambda before=failed: len(load.outcomes("failed")) > before + 8, "writers notice")  # type: ignore[misc]
        assert list(node.mount.iterdir()) == []
        node.kill()
        node.start()
    load.wait_for_more()
    load.stop()
    assert any("No LiteFS is mounted at" in why for why in load.reasons())
    connection.close()
    load.check(connection)


@pytest.mark.parametrize("has_read", [True, False])
def test_an_open_connection_makes_no_file_where_the_mount_was(
    node: LiteFSNode, connection: DatabaseWrapper, django_connection: DjangoConnections, has_read: bool
) -> None:
    connection.close()
    other = django_connection(node, alias="other")
    other.ensure_connection()
    if has_read:
        assert authors(other).count() == AUTHORS
    node.unmount()
    for statement in (lambda: authors(other).count(), lambda: create(other), lambda: in_atomic(other)):
        with suppress(OperationalError):
            statement()
        assert list(node.mount.iterdir()) == []
    other.close()
    assert list(node.mount.iterdir()) == []


def test_a_connection_to_a_directory_without_mount_is_refused(
    node: LiteFSNode, connection: DatabaseWrapper, tmp_path: Path
) -> None:
    connection.close()
    node.kill()
    with pytest.raises(OperationalError, match="Transport endpoint is not connected"):
        connection.ensure_connection()
    node.unmount()
    for make in (
        lambda: None,
        lambda: (node.mount / DATABASE).touch(),
        lambda: shutil.copy(__file__, node.mount / DATABASE),
    ):
        make()
        before = sorted(os.listdir(node.mount))
        with pytest.raises(OperationalError, match=r"No LiteFS is mounted at .*litefs_run"):
            connection.ensure_connection()
        assert sorted(os.listdir(node.mount)) == before
    (node.mount / DATABASE).unlink()


# No room.


def test_a_full_disk_is_said_and_writes_go_on_when_there_is_room(
    tmp_path: Path, litefs_binary: Path, django_connection: DjangoConnections
) -> None:
    cluster = StaticCluster(1, tmp_path, litefs_binary)
    (node,) = cluster.nodes
    with small_disk(node.data), cluster:
        connection = django_connection(node)
        make_library(connection)
        filler = node.data / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(8 << 20))
        for _ in range(2):
            with pytest.raises(OperationalError, match=f"The disk is full: LiteFS cannot write to {node.data}"):
                fill(connection)
            with pytest.raises(OperationalError, match="The disk is full"), transaction.atomic(using=connection.alias):
                fill(connection)
        assert authors(connection).count() >= AUTHORS
        filler.unlink()
        assert node.pid, "LiteFS has ended"
        create(connection, "room")
        in_atomic(connection)
        assert {"room", "new"} <= new_names(connection)
        connection.close()
        node.kill()
        node.start()
        wait_until(node.is_primary, "it is primary again")
        assert {"room", "new"} <= new_names(connection)


def fill(connection: DatabaseWrapper) -> None:
    for n in itertools.count():
        create(connection, f"a{n} {connection.in_atomic_block} {time.monotonic_ns()}")


# Other users.

AS_NOBODY = f"""
import os, tests.cluster.models, litefs_django.db.backends.litefs.opening
from django.db import OperationalError, connection
from litefs_django.db.backends.litefs import cursor
from tests.cluster.models import Author
# What is read late is read now: nobody else may enter the directory of this Python's packages.
import django.db.models.sql.compiler
try:
    Author.objects.count()
except OperationalError:
    pass
connection.close()
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
"""
NOBODY_WRITES = (
    AS_NOBODY
    + """
Author.objects.create(name=f"nobody {os.getpid()}")
with connection.cursor() as cursor:
    cursor.execute("BEGIN IMMEDIATE")
    Author.objects.create(name=f"nobody, too {os.getpid()}")
    cursor.execute("COMMIT")
print(Author.objects.count())
"""
)
NOBODY_IS_REFUSED = (
    AS_NOBODY
    + """
try:
    Author.objects.create(name="refused")
except OperationalError as error:
    print(error)
"""
)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody may enter, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="litefs-test-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@as_root
def test_another_user_reads_and_writes(
    open_directory: Path, litefs_binary: Path, django_connection: DjangoConnections
) -> None:
    with StaticCluster(1, open_directory, litefs_binary) as cluster:
        (node,) = cluster.nodes
        connection = django_connection(node)
        make_library(connection)
        assert run_python(node, NOBODY_WRITES) == f"{AUTHORS + 2}\n"
        for lock in node.settings.run.glob("*"):
            lock.unlink()
        message = run_python(node, NOBODY_IS_REFUSED)
        assert "Writes are refused, since the lock file" in message
        assert "Permission denied" in message
        assert 'LITEFS["RUN_PATH"]' in message
        create(connection)
        assert authors(connection).count() == AUTHORS + 3
        assert run_python(node, NOBODY_WRITES) == f"{AUTHORS + 5}\n"


@as_root
def test_a_mount_that_is_not_for_others_is_said_so(open_directory: Path, litefs_binary: Path) -> None:
    (other,) = StaticCluster(1, open_directory, litefs_binary).nodes
    node = LiteFSNode({**other.litefs, "ALLOW_OTHER": False}, open_directory / "mine", litefs_binary)
    try:
        node.start()
        message = run_python(node, NOBODY_IS_REFUSED)
        assert f"This user may not enter {node.mount}" in message
        assert 'LITEFS["ALLOW_OTHER"]' in message
    finally:
        node.clean_up()


# What cannot be made to happen by the real thing, at the moment at which it would have to.


@pytest.mark.parametrize("who", ["node", "supervisor"])
def test_a_commit_that_litefs_does_not_outlive_is_unknown(
    node: LiteFSNode, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """A fake moment: LiteFS is killed between SQLite's COMMIT and its check.

    Also where it is known that no other connection can be opened: that error does not take the place of this one.
    """
    litefs: LiteFSNode | Supervisor = request.getfixturevalue(who)
    connection: DatabaseWrapper = request.getfixturevalue("connection")
    below: Any = raw(connection)
    confirm = below._confirm

    def kill_first() -> None:
        if node.pid:
            litefs.kill()
        confirm()

    monkeypatch.setattr(below, "_confirm", kill_first)
    hooks: list[int] = []
    with pytest.raises(CommitOutcomeUnknown) as caught, transaction.atomic(using=connection.alias):  # noqa: PT012
        create(connection)
        transaction.on_commit(lambda: hooks.append(1), using=connection.alias)
    assert caught.value.alias == connection.alias
    assert not hooks
    with closing(FileLock(turn_path(node.settings.run, DATABASE))) as lock:
        assert lock.acquire(0)
    litefs.start()
    connection.close_if_unusable_or_obsolete()
    assert new_names(connection) <= {"new"}
