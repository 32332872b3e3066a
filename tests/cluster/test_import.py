"""`manage.py litefs_import` on real clusters."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from litefs_django.db.backends.litefs.base import DatabaseWrapper
from tests.cluster.commands import Running, fail, succeed
from tests.cluster.conftest import StartPython
from tests.cluster.connections import DjangoConnections, run_python
from tests.cluster.nodes import DATABASE, ConsulCluster, LiteFSNode, StaticCluster
from tests.cluster.plain import WRITER, make_file, names_in, names_on, write
from tests.machine import fill_disk, small_disk, wait_until

pytestmark = pytest.mark.cluster

# Takes half a second or more to import.
LARGE = 40_000_000


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A file of two names, in a directory of its own."""
    (tmp_path / "in").mkdir()
    return make_file(tmp_path / "in" / "plain.sqlite3", "a", "b")


@pytest.fixture
def cluster(static_cluster: StaticCluster, tmp_path: Path) -> StaticCluster:
    """With a database of one name that all nodes hold."""
    succeed(static_cluster.primary, "litefs_import", "default", make_file(tmp_path / "first", "old"))
    static_cluster.wait_equal()
    return static_cluster


def kept(node: LiteFSNode) -> list[Path]:
    """The copies of what was replaced, the oldest first."""
    return sorted((node.data / "replaced").iterdir())


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_a_new_database(static_cluster: StaticCluster, plain: Path) -> None:
    """As a project of plain SQLite moves: there is nothing to ask about, and nothing to keep."""
    node = static_cluster.primary
    said = succeed(node, "litefs_import", "default", plain)
    assert said == (
        f"{plain} ({plain.stat().st_size:,} bytes, tables: 1, rows: 2) is database 'default' (db.sqlite3) now, "
        f"at {node.position()}, found sound.\n"
    )
    assert kept(node) == []
    static_cluster.wait_equal()
    assert [names_on(each) for each in static_cluster.nodes] == [["a", "b"]] * 3
    write(node, "INSERT INTO t (name) VALUES ('c')")
    static_cluster.wait_equal()
    assert all(each.pid for each in static_cluster.nodes)


def test_replacing_is_asked_about(cluster: StaticCluster, plain: Path) -> None:
    node, position = cluster.primary, cluster.primary.position()
    for answer in ("", "\n", "n\n"):
        error = fail(node, "litefs_import", "default", plain, answer=answer)
        assert error == "CommandError: Nothing was imported. To import without a question use --noinput.\n"
    assert node.position() == position
    assert kept(node) == []
    said = succeed(node, "litefs_import", "default", plain, answer="y\n")
    size = f"{plain.stat().st_size:,} bytes"
    question = (
        f"Replace database 'default' (db.sqlite3), now {size}, on all nodes by {plain} ({size}, tables: 1, rows: 2)?"
    )
    assert said.startswith(f"{question} [y/N] ")
    cluster.wait_equal()
    assert [names_on(each) for each in cluster.nodes] == [["a", "b"]] * 3


def test_what_was_there_is_kept_and_can_come_back(cluster: StaticCluster, plain: Path) -> None:
    node, position = cluster.primary, cluster.primary.position()
    assert position is not None
    said = succeed(node, "litefs_import", "default", plain, "--noinput")
    (copy,) = kept(node)
    assert copy.name == f"db.sqlite3-{position.txid:016x}"
    assert said.endswith(f" What it replaced is kept in {copy}.\n")
    assert names_in(copy) == ["old"]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
    succeed(node, "litefs_import", "default", copy, "--noinput")
    cluster.wait_equal()
    assert [names_on(each) for each in cluster.nodes] == [["old"]] * 3
    # LiteFS does not mind the directory.
    node.stop()
    node.start()
    assert names_on(node) == ["old"]


def test_by_its_file_name_and_without_a_word(cluster: StaticCluster, plain: Path) -> None:
    assert succeed(cluster.primary, "litefs_import", DATABASE, plain, "--noinput", "-v", "0") == ""
    assert names_on(cluster.primary) == ["a", "b"]


def test_what_open_connections_see(cluster: StaticCluster, plain: Path, django_connection: DjangoConnections) -> None:
    primary, replica = cluster.nodes[:2]
    connections = [django_connection(primary), django_connection(replica)]
    inside = django_connection(primary, alias="inside")

    def names(connection: DatabaseWrapper) -> list[str]:
        with connection.cursor() as cursor:
            return [name for (name,) in cursor.execute("SELECT name FROM t ORDER BY id").fetchall()]

    assert [names(connection) for connection in connections] == [["old"], ["old"]]
    raw = [connection.connection for connection in connections]
    with inside.cursor() as cursor:
        cursor.execute("BEGIN")
        assert names(inside) == ["old"]
        succeed(primary, "litefs_import", "default", plain, "--noinput")
        cluster.wait_equal()
        # A transaction goes on to see what it began with.
        assert names(inside) == ["old"]
        cursor.execute("COMMIT")
    assert names(inside) == ["a", "b"]
    assert [names(connection) for connection in connections] == [["a", "b"], ["a", "b"]]
    for connection in (connections[0], inside):
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO t (name) VALUES ('c')")
    cluster.wait_equal()
    assert [names(connection) for connection in connections] == [["a", "b", "c", "c"]] * 2
    assert [connection.connection for connection in connections] == raw


# Content as an application leaves it that did not close its connection.
UNCLOSED = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 5")
connection.executescript(sys.argv[2])
os._exit(0)
"""


def unclosed(path: Path, script: str) -> None:
    subprocess.run([sys.executable, "-c", UNCLOSED, path, script], check=True)


def in_wal_mode(path: Path) -> None:
    make_file(path, "a", "b", before="PRAGMA journal_mode = WAL")
    assert contents(path.parent).keys() == {path.name}


def with_a_wal(path: Path) -> None:
    make_file(path, "a", before="PRAGMA journal_mode = WAL")
    unclosed(path, "INSERT INTO t (name) VALUES ('b')")
    assert path.with_name(f"{path.name}-wal").stat().st_size > 0


KINDS: dict[str, Callable[[Path], object]] = {
    "pages of 512 bytes": lambda path: make_file(path, "a", "b", before="PRAGMA page_size = 512"),
    "pages of 8 kB": lambda path: make_file(path, "a", "b", before="PRAGMA page_size = 8192"),
    "pages of 64 kB, WAL": lambda path: make_file(
        path, "a", "b", before="PRAGMA page_size = 65536; PRAGMA journal_mode = WAL"
    ),
    "auto_vacuum": lambda path: make_file(path, "a", "b", before="PRAGMA auto_vacuum = FULL"),
    "checks by a function of Django": lambda path: make_file(
        path,
        "a",
        "b",
        after="CREATE TABLE checked (x CHECK (x REGEXP 'a')); CREATE INDEX y ON checked (x) WHERE x IS NOT NULL",
    ),
    "tables of an extension": lambda path: make_file(
        path, "a", "b", after="CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f VALUES ('y')"
    ),
    "names that want quoting": lambda path: make_file(path, "a", "b", after='CREATE TABLE "x""; y" (z)'),
    "WAL mode": in_wal_mode,
    "WAL not written back": with_a_wal,
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_kinds_of_files(cluster: StaticCluster, tmp_path: Path, make: Callable[[Path], object]) -> None:
    """All are turned into what LiteFS can carry, and stay themselves as they were."""
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "it's 100 % [plain]?#.sqlite3"
    make(file)
    before = contents(file.parent)
    succeed(cluster.primary, "litefs_import", "default", file, "--noinput")
    # Readers of a WAL note themselves in the index of it.
    changed = {name for name, content in contents(file.parent).items() if before.get(name) != content}
    assert changed <= {f"{file.name}-shm"}
    assert contents(file.parent).keys() == before.keys()
    for _ in range(2):
        cluster.wait_equal()
        for node in cluster.nodes:
            assert names_on(node)[:2] == ["a", "b"]
            with closing(sqlite3.connect(f"file:{node.database()}?mode=ro", uri=True)) as connection:
                assert connection.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
                assert connection.execute("PRAGMA page_size").fetchall() == [(4096,)]
        # What the replicas of LiteFS's own /import do not survive.
        write(cluster.primary, "INSERT INTO t (name) VALUES ('c')")
    assert len(kept(cluster.primary)) == 1


def damage(path: Path) -> None:
    make_file(path, "a", "b")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = 'CREATE INDEX t_name ON t (id)' WHERE name = 't_name'")


def cut_short(path: Path) -> None:
    make_file(path, "a", size=400_000)
    os.truncate(path, 200_000)


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a directory": (lambda path: path.mkdir(), " is not a file."),
    "a pipe": (os.mkfifo, " is not a file."),
    "missing": (lambda path: None, ": No such file or directory."),
    "empty": (lambda path: path.touch(), " is empty."),
    "another kind": (lambda path: path.write_text("hello" * 1000), " is not a SQLite database."),
    "only the header": (lambda path: path.write_bytes(b"SQLite format 3\0"), " is damaged; SQLite "),
    "a broken upload": (cut_short, " is damaged; SQLite says: database disk image is malformed."),
    "a damaged index": (damage, " is damaged; SQLite finds: row 1 missing from index t_name;"),
    "no tables": (lambda path: unclosed(path, "PRAGMA user_version = 1"), " has no tables."),
    "another encoding": (
        lambda path: make_file(path, "a", before="PRAGMA encoding = 'UTF-16le'"),
        " is in UTF-16le, and has to be in UTF-8: convert it with sqlite3's .dump.",
    ),
    "a journal": (
        lambda path: unclosed(make_file(path, size=400_000), "BEGIN; UPDATE t SET filler = 1"),
        " was left in the middle of a write.",
    ),
}


def refused(node: LiteFSNode, file: Path, reason: str, position: object) -> None:
    """The import fails for this reason, and changes nothing."""
    before = contents(file.parent)
    error = fail(node, "litefs_import", "default", file, "--noinput")
    assert f"{file}{reason}" in error
    assert error.endswith(" Nothing was imported.\n")
    assert contents(file.parent) == before
    assert node.position() == position
    assert kept(node) == []


@pytest.mark.parametrize(("make", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_files_that_are_refused(
    cluster: StaticCluster, tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "plain.sqlite3"
    make(file)
    refused(cluster.primary, file, reason, cluster.primary.position())
    write(cluster.primary, "INSERT INTO t (name) VALUES ('new')")
    cluster.wait_equal()
    assert [names_on(node) for node in cluster.nodes] == [["old", "new"]] * 3


def test_a_refused_file_makes_no_database(static_cluster: StaticCluster, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    refused(static_cluster.primary, tmp_path / "empty", " is empty.", None)
    assert not static_cluster.primary.database().exists()


def test_litefs_own_file(cluster: StaticCluster) -> None:
    """Beside it lies a WAL that SQLite would not find."""
    node = cluster.primary
    refused(node, node.data / "dbs" / DATABASE / "database", " is LiteFS's own and lacks what", node.position())


def test_on_a_replica(cluster: StaticCluster, plain: Path) -> None:
    replica = cluster.nodes[1]
    error = fail(replica, "litefs_import", "default", plain, "--noinput")
    assert error == (
        "CommandError: 'node2' is not the primary. The primary is 'node1' (127.0.0.1). "
        "Run litefs_import on the primary, with FILE there. Nothing was imported.\n"
    )
    assert not (replica.data / "replaced").exists()


def test_no_litefs(cluster: StaticCluster, plain: Path) -> None:
    node = cluster.primary
    for end in (node.kill, node.unmount):
        end()
        assert f"No LiteFS is mounted at {node.mount}" in fail(node, "litefs_import", "default", plain)
    assert list(node.mount.iterdir()) == []


def test_data_path_that_cannot_be_written(cluster: StaticCluster, plain: Path) -> None:
    node = cluster.primary
    shutil.rmtree(node.data / "replaced")
    (node.data / "replaced").write_text("in the way")
    error = fail(node, "litefs_import", "default", plain, "--noinput")
    assert f"{node.data / 'replaced'} cannot be made (File exists)" in error


def test_while_somebody_else_writes(cluster: StaticCluster, plain: Path) -> None:
    """Without the backend, in a transaction that does not end."""
    with closing(sqlite3.connect(cluster.primary.database(), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        error = fail(cluster.primary, "litefs_import", "default", plain, "--noinput")
    assert error == "CommandError: The database is locked. Nothing was imported.\n"
    assert kept(cluster.primary) == []


@pytest.fixture
def on_a_small_disk(tmp_path: Path, litefs_binary: Path) -> Iterator[StaticCluster]:
    """As `cluster`, with 8 MB for the primary's LiteFS."""
    if os.geteuid():
        pytest.skip("only root may mount a small disk")
    cluster = StaticCluster(3, tmp_path, litefs_binary)
    with small_disk(cluster.nodes[0].data), cluster:
        succeed(cluster.primary, "litefs_import", "default", make_file(tmp_path / "first", "old"))
        cluster.wait_equal()
        yield cluster


def test_no_room(on_a_small_disk: StaticCluster, tmp_path: Path) -> None:
    node, position = on_a_small_disk.primary, on_a_small_disk.primary.position()
    file = make_file(tmp_path / "large", "new", size=3_000_000)
    error = fail(node, "litefs_import", "default", file, "--noinput")
    assert re.search(rf"The disk of {node.data}/replaced has \d\.\d MB free, and this needs 1\d\.\d MB\.", error)
    assert error.endswith(" Nothing was imported.\n")
    assert (node.position(), kept(node)) == (position, [])


@pytest.mark.parametrize("left", [0, 500_000], ids=["nothing can be kept", "what is kept finds room"])
def test_a_disk_that_fills_up_meanwhile(on_a_small_disk: StaticCluster, tmp_path: Path, left: int) -> None:
    """While the question waits for its answer."""
    cluster, node, position = on_a_small_disk, on_a_small_disk.primary, on_a_small_disk.primary.position()
    file = make_file(tmp_path / "large", "new", size=1_200_000)
    with Running(node, "litefs_import", "default", file, stdin=subprocess.PIPE) as importing:
        importing.wait_for_question("[y/N] ")
        filler = fill_disk(node.data, left)
        code, said = importing.end_with_answer("y\n")
    assert code == 1
    assert said.endswith(" Nothing was imported.\n")
    assert "disk is full" in said or "No space left" in said
    assert (node.position(), kept(node)) == (position, [])
    filler.unlink()
    assert node.pid, "LiteFS has ended"
    write(node, "INSERT INTO t (name) VALUES ('after')")
    cluster.wait_equal()
    assert [names_on(each) for each in cluster.nodes] == [["old", "after"]] * 3
    succeed(node, "litefs_import", "default", file, "--noinput")
    cluster.wait_equal()
    assert [names_on(each) for each in cluster.nodes] == [["new"]] * 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_interrupted(cluster: StaticCluster, tmp_path: Path, number: int) -> None:
    """While the new content is on its way into the WAL."""
    node, position = cluster.primary, cluster.primary.position()
    assert position is not None
    file = make_file(tmp_path / "large", "new", size=LARGE)
    with Running(node, "litefs_import", "default", file, "--noinput") as importing:
        importing.wait_until((node.data / "replaced" / f"db.sqlite3-{position.txid:016x}").exists, "it imports")
        importing.signal(number)
        code, said = importing.end()
    assert node.position() == position
    assert names_on(node) == ["old"]
    if number != signal.SIGKILL:
        assert (code, said) == (130, "CommandError: Interrupted. Nothing was imported.\n")
        assert kept(node) == []
    write(node, "INSERT INTO t (name) VALUES ('after')")
    cluster.wait_equal()
    assert [names_on(each) for each in cluster.nodes] == [["old", "after"]] * 3
    succeed(node, "litefs_import", "default", file, "--noinput")
    cluster.wait_equal()
    assert [names_on(each) for each in cluster.nodes] == [["new"]] * 3
    # Copies alone: the killed one's is whole, and its other file has been taken over.
    assert all(names_in(copy)[0] == "old" for copy in kept(node))


def test_litefs_dies(cluster: StaticCluster, tmp_path: Path) -> None:
    node, position = cluster.primary, cluster.primary.position()
    assert position is not None
    file = make_file(tmp_path / "large", "new", size=LARGE)
    copy = node.data / "replaced" / f"db.sqlite3-{position.txid:016x}"
    with Running(node, "litefs_import", "default", file, "--noinput") as importing:
        importing.wait_until(copy.exists, "it imports")
        node.kill()
        code, said = importing.end()
    assert code == 1
    assert "It is not known whether the commit to database 'default' happened" in said
    assert said.endswith(f" What was there before is kept in {copy}.\n")
    cluster.start()
    cluster.wait_equal()
    assert [names_on(each) for each in cluster.nodes] == [["old"]] * 3
    assert names_in(copy) == ["old"]


# A LiteFS that ends right behind the commit, which cannot be hit on purpose, is stood in for by an error.
LITEFS_ENDS = """
from django.core.management import CommandError, call_command
from django.db import OperationalError
from litefs_django.management.commands import litefs_import
taken = litefs_import.snapshot
def snapshot(database):
    litefs_import.snapshot = ends
    return taken(database)
def ends(database):
    raise OperationalError("LiteFS ended.")
litefs_import.snapshot = snapshot
try:
    call_command("litefs_import", "default", {file!r}, interactive=False)
except CommandError as error:
    print(error)
"""


def test_litefs_dies_after_the_commit(cluster: StaticCluster, plain: Path) -> None:
    said = run_python(cluster.primary, LITEFS_ENDS.format(file=str(plain)))
    (copy,) = kept(cluster.primary)
    assert said == f"The import was committed, but then: LiteFS ended. What was there before is kept in {copy}.\n"
    assert names_in(copy) == ["old"]
    assert names_on(cluster.primary) == ["a", "b"]


def test_no_acknowledged_write_is_lost(cluster: StaticCluster, tmp_path: Path, start_python: StartPython) -> None:
    """Three imports under three writers: what was acknowledged is in the database, or in what was kept before it."""
    node = cluster.primary
    files = [make_file(tmp_path / f"file{number}", f"file{number}", size=3_000_000) for number in range(3)]
    said: list[str] = []
    for _ in range(3):
        output = start_python(node, WRITER).stdout
        assert output is not None
        threading.Thread(target=said.extend, args=(output,), daemon=True).start()
    for count, file in enumerate(files, 1):
        wait_until(lambda: said and len(said) > 200 * count, "they write")  # noqa: B023
        succeed(node, "litefs_import", "default", file, "--noinput")
    wait_until(lambda: len(said) > 1000, "they go on to write")
    acknowledged = {line.split()[1] for line in list(said) if line.startswith("wrote ")}
    copies = [names_in(copy) for copy in kept(node)]
    assert [copy[0] for copy in copies] == ["old", "file0", "file1"]
    assert acknowledged <= set().union(*copies, names_on(node))
    assert acknowledged & set(names_on(node))
    assert not [line for line in said if "Unknown" in line]
    wait_until(lambda: all(each.position() for each in cluster.nodes), "all have it")
    assert [names_on(each)[0] for each in cluster.nodes] == ["file2"] * 3


@pytest.mark.consul
def test_a_change_of_the_primary(consul_cluster: ConsulCluster, tmp_path: Path) -> None:
    """In mid-import. Nothing is in the middle of a commit then, and so nothing is harmed."""
    first, second = consul_cluster.nodes[:2]
    succeed(first, "litefs_import", "default", make_file(tmp_path / "first", "old"))
    consul_cluster.wait_equal()
    position = first.position()
    assert position is not None
    file = make_file(tmp_path / "large", "new", size=LARGE)
    with Running(first, "litefs_import", "default", file, "--noinput") as importing:
        importing.wait_until((first.data / "replaced" / f"db.sqlite3-{position.txid:016x}").exists, "it imports")
        consul_cluster.promote(second)
        code, said = importing.end()
    assert code == 1
    assert "Database 'default' cannot be written on node 'node1'. It has lost the primary's role meanwhile." in said
    assert said.endswith(" Nothing was imported.\n")
    assert kept(first) == []
    succeed(second, "litefs_import", "default", file, "--noinput")
    consul_cluster.wait_equal()
    assert [names_on(node) for node in consul_cluster.nodes] == [["new"]] * 3
