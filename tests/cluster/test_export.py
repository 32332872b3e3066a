"""`manage.py litefs_export` on real clusters."""

from __future__ import annotations

import os
import re
import resource
import signal
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from litefs_django._litefs.part_file import PartFile
from tests.cluster.commands import Running, fail, run, succeed
from tests.cluster.conftest import StartPython
from tests.cluster.nodes import DATABASE, LiteFSNode, StaticCluster
from tests.cluster.plain import WRITER, make_file, names_in, write
from tests.machine import fill_disk, small_disk

pytestmark = pytest.mark.cluster


def files(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty directory."""
    directory = tmp_path / "out"
    directory.mkdir()
    return directory


@pytest.fixture
def cluster(static_cluster: StaticCluster, tmp_path: Path) -> StaticCluster:
    """With a database of two names that all nodes hold."""
    succeed(static_cluster.primary, "litefs_import", "default", make_file(tmp_path / "plain", "a", "b"))
    static_cluster.wait_equal()
    return static_cluster


def grow(cluster: StaticCluster, size: int) -> None:
    write(cluster.primary, f"INSERT INTO t (filler) VALUES (zeroblob({size}))")
    cluster.wait_equal()


@pytest.mark.parametrize(("index", "role"), [(0, "the primary"), (1, "a replica that heard from its primary")])
def test_a_copy(cluster: StaticCluster, out: Path, index: int, role: str) -> None:
    node, file = cluster.nodes[index], out / "copy.sqlite3"
    said = succeed(node, "litefs_export", "default", file)
    assert said.startswith(
        f"{file}: database 'default' (db.sqlite3) at {node.position()}, from {node.name!r}, {role}"
    ), said
    assert said.endswith(f"; {file.stat().st_size:,} bytes, found sound.\n")
    assert names_in(file) == ["a", "b"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    # One file is all of it, and reading it makes no other.
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchall() == [("delete",)]
    assert files(out) == ["copy.sqlite3"]


def test_by_its_file_name_and_without_a_word(cluster: StaticCluster, out: Path) -> None:
    assert succeed(cluster.primary, "litefs_export", DATABASE, out / "copy", "-v", "0") == ""
    assert names_in(out / "copy") == ["a", "b"]


def test_the_position_is_the_copys_own(cluster: StaticCluster, out: Path, start_python: StartPython) -> None:
    """While four processes write, one name a transaction: so the names tell the position."""
    position = cluster.primary.position()
    assert position is not None
    writers = [start_python(cluster.primary, WRITER) for _ in range(4)]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
        threading.Thread(target=writer.stdout.read, daemon=True).start()
    for count, node in enumerate([*cluster.nodes] * 3):
        file = out / f"copy{count}"
        said = succeed(node, "litefs_export", "default", file)
        (txid,) = re.findall(r" at (\w{16})/", said)
        assert len(names_in(file)) - 2 == int(txid, 16) - position.txid > 0


def test_an_existing_file_is_asked_about(cluster: StaticCluster, out: Path) -> None:
    file = out / "copy"
    file.write_text("precious")
    for answer in ("", "\n", "n\n"):
        error = fail(cluster.primary, "litefs_export", "default", file, answer=answer)
        assert error == f"CommandError: {file} is as it was. Choose another name, or replace it with --noinput.\n"
        assert file.read_text() == "precious"
    assert f"{file} exists. Replace it? [y/N] " in succeed(
        cluster.primary, "litefs_export", "default", file, answer="y\n"
    )
    assert names_in(file) == ["a", "b"]
    file.write_text("precious")
    succeed(cluster.primary, "litefs_export", "default", file, "--noinput")
    assert names_in(file) == ["a", "b"]
    assert files(out) == ["copy"]


def test_a_link_stays_a_link(cluster: StaticCluster, out: Path) -> None:
    (out / "latest").symlink_to("monday")
    succeed(cluster.primary, "litefs_export", "default", out / "latest")
    assert (out / "latest").is_symlink()
    assert names_in(out / "monday") == ["a", "b"]


def refused(node: LiteFSNode, file: Path, reason: str) -> None:
    """The export fails for this reason, and neither FILE nor its directory is changed."""
    before = file.read_bytes() if file.is_file() else None
    there = files(file.parent) if file.parent.is_dir() else None
    error = fail(node, "litefs_export", "default", file, "--noinput")
    assert reason in error
    assert error.endswith(f"{file} {'was not made' if before is None else 'is as it was'}.\n") or "written" in error
    assert (file.read_bytes() if file.is_file() else None) == before
    assert (files(file.parent) if file.parent.is_dir() else None) == there


def test_places_where_no_copy_can_be(cluster: StaticCluster, out: Path) -> None:
    node = cluster.primary
    refused(node, node.mount / "copy", 'lies in LITEFS["MOUNT_PATH"]')
    refused(node, node.data / "copy", 'lies in LITEFS["DATA_PATH"]')
    refused(node, out / "nowhere" / "copy", f"There is no directory {out / 'nowhere'}.")
    refused(node, out, "exists and is not a file")
    (out / "in the way").mkdir()
    refused(node, out / "in the way", "exists and is not a file")


def test_a_damaged_database(cluster: StaticCluster, out: Path) -> None:
    with closing(sqlite3.connect(cluster.primary.database(), isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = 'CREATE INDEX t_name ON t (id)' WHERE name = 't_name'")
    (out / "copy").write_text("precious")
    refused(
        cluster.primary, out / "copy", "The database 'default' (db.sqlite3) is damaged; SQLite finds: row 1 missing"
    )


def test_no_room(cluster: StaticCluster, out: Path) -> None:
    """Files that may not grow stand for a disk that is full: SQLite gets the same kind of error."""
    grow(cluster, 3_000_000)
    file = out / "copy"
    file.write_text("precious")
    code, _, error = run(
        cluster.nodes[1],
        "litefs_export",
        "default",
        file,
        "--noinput",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )
    assert code == 1
    assert error.endswith(f"{file} is as it was.\n")
    assert file.read_text() == "precious"
    assert files(out) == ["copy"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk(cluster: StaticCluster, tmp_path: Path) -> None:
    grow(cluster, 3_000_000)
    with small_disk(tmp_path / "disk"):
        file = tmp_path / "disk" / "copy"
        file.write_text("precious")
        filler = fill_disk(file.parent, 1_000_000)
        for node in cluster.nodes[:2]:
            refused(node, file, "database or disk is full")
        filler.unlink()
        succeed(cluster.primary, "litefs_export", "default", file, "--noinput")
        assert names_in(file) == ["a", "b"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_interrupted(cluster: StaticCluster, out: Path, number: int) -> None:
    grow(cluster, 60_000_000)
    node, file = cluster.nodes[1], out / "copy"
    file.write_text("precious")
    part = PartFile(file).path
    with Running(node, "litefs_export", "default", file, "--noinput") as export:
        export.wait_until(lambda: part.stat().st_size > 1_000_000, "part of the copy is there")
        export.signal(number)
        code, said = export.end()
    assert file.read_text() == "precious"
    if number == signal.SIGKILL:
        assert files(out) == [part.name, "copy"]
    else:
        assert (code, said) == (130, f"CommandError: Interrupted. {file} is as it was.\n")
        assert files(out) == ["copy"]
    succeed(node, "litefs_export", "default", file, "--noinput")
    assert names_in(file) == ["a", "b"]
    assert files(out) == ["copy"]


def test_litefs_dies(cluster: StaticCluster, out: Path) -> None:
    grow(cluster, 60_000_000)
    node, file = cluster.nodes[1], out / "copy"
    part = PartFile(file).path
    with Running(node, "litefs_export", "default", file) as export:
        export.wait_until(lambda: part.exists(), "it has begun")
        node.kill()
        code, said = export.end()
    assert (code, said.endswith(f" {file} was not made.\n")) == (1, True), said
    assert files(out) == []


def test_two_of_one_file(cluster: StaticCluster, out: Path) -> None:
    with PartFile(out / "copy"):
        refused(cluster.primary, out / "copy", f"{out / 'copy'}: another process is making it just now.")
    succeed(cluster.primary, "litefs_export", "default", out / "copy")


def test_nothing_to_copy(static_cluster: StaticCluster, out: Path) -> None:
    for node in static_cluster.nodes:
        refused(node, out / "copy", f"There is no database 'default' (db.sqlite3) on node {node.name!r} yet.")
        assert not node.database().exists()


def test_no_litefs(cluster: StaticCluster, out: Path) -> None:
    node = cluster.nodes[1]
    node.kill()
    refused(node, out / "copy", "Transport endpoint is not connected")
    node.unmount()
    refused(node, out / "copy", f"No LiteFS is mounted at {node.mount} on node 'node2'")
    assert files(node.mount) == []


def test_replication_goes_on_afterwards(cluster: StaticCluster, out: Path) -> None:
    succeed(cluster.nodes[1], "litefs_export", "default", out / "copy")
    write(cluster.primary, "INSERT INTO t (name) VALUES ('c')")
    cluster.wait_equal()
