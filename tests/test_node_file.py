"""The node file, as the supervisor writes and connections read it."""

from __future__ import annotations

import os
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from litefs_django._litefs import node_file
from litefs_django._litefs.node_file import NAME, STALE_NS, LeaseWords, NodeFile, NodeFileWriter, boottime_ns


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time that both sides see, in ns. It stands still, however long a test takes."""
    now = [boottime_ns()]
    monkeypatch.setattr(node_file, "boottime_ns", lambda: now[0])
    return now


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[NodeFileWriter]:
    writer = NodeFileWriter(tmp_path)
    yield writer
    writer.close()


def test_no_file(tmp_path: Path) -> None:
    assert NodeFile(tmp_path).generation() is None


def test_generations(writer: NodeFileWriter, tmp_path: Path) -> None:
    reader = NodeFile(tmp_path)
    first = reader.generation()
    assert first is not None
    assert first % 2 == 1, "LiteFS is down until it serves"
    seen = [first]
    for change in (writer.mount_is_up, writer.mount_is_down) * 3:
        change()
        generation = reader.generation()
        assert generation is not None
        assert generation == NodeFile(tmp_path).generation()
        seen.append(generation)
    # Odd while LiteFS is down, and the same for nobody who has opened under another mount.
    assert [generation % 2 for generation in seen] == [1, 0, 1, 0, 1, 0, 1]
    assert len({generation for generation in seen if generation % 2 == 0}) == 3
    assert seen == sorted(seen)


def test_said_twice(writer: NodeFileWriter, tmp_path: Path) -> None:
    writer.mount_is_up()
    generation = NodeFile(tmp_path).generation()
    writer.mount_is_up()
    assert NodeFile(tmp_path).generation() == generation
    writer.mount_is_down()
    writer.mount_is_down()
    assert NodeFile(tmp_path).generation() == (generation or 0) + 1


def test_stale_heartbeat(clock: list[int], tmp_path: Path) -> None:
    writer, reader = NodeFileWriter(tmp_path), NodeFile(tmp_path)
    writer.mount_is_up()
    generation = reader.generation()
    assert generation is not None
    clock[0] += STALE_NS - 1
    assert reader.generation() == generation
    clock[0] += 1
    assert reader.generation() is None
    # A supervisor that only was suspended.
    writer.beat()
    assert reader.generation() == generation
    writer.close()


def test_next_supervisor(clock: list[int], tmp_path: Path) -> None:
    """Its file replaces the old one, which is looked for at most once a second, and its generations are its own."""
    NodeFileWriter(tmp_path).mount_is_up()
    reader = NodeFile(tmp_path)
    before = reader.generation()
    clock[0] += STALE_NS
    assert reader.generation() is None
    NodeFileWriter(tmp_path).mount_is_up()
    assert reader.generation() is None
    clock[0] += STALE_NS - 1
    assert reader.generation() is None
    third = NodeFileWriter(tmp_path)
    third.mount_is_up()
    clock[0] += 1
    after = reader.generation()
    assert after is not None
    assert before is not None
    assert after > before
    assert after % 2 == 0


def test_closed(writer: NodeFileWriter, tmp_path: Path) -> None:
    writer.mount_is_up()
    reader = NodeFile(tmp_path)
    assert reader.generation() is not None
    writer.close()
    assert not (tmp_path / NAME).exists()
    generation = reader.generation()
    assert generation is not None, "who still maps it"
    assert generation % 2 == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 23, b"\0" * 24, b"\1" * 4096])
def test_foreign_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert NodeFile(tmp_path).generation() is None


def test_every_user_may_read_it(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        writer = NodeFileWriter(tmp_path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == [NAME]
    writer.close()


def test_read_while_written(writer: NodeFileWriter, tmp_path: Path) -> None:
    """No reader ever sees a torn word: a generation is the last one or the next."""
    reader = NodeFile(tmp_path)
    first = reader.generation()
    assert first is not None
    done = threading.Event()
    seen: list[int | None] = []

    def read() -> None:
        while not done.is_set():
            seen.append(reader.generation())

    thread = threading.Thread(target=read)
    thread.start()
    deadline = time.monotonic() + 10
    while len(set(seen)) < 20 and time.monotonic() < deadline:
        writer.mount_is_up()
        writer.mount_is_down()
        time.sleep(0)
    done.set()
    thread.join()
    last = NodeFile(tmp_path).generation()
    assert last is not None
    assert all(generation is not None and first <= generation <= last for generation in seen)


class TestLease:
    def test_until_its_deadline(self, writer: NodeFileWriter, clock: list[int], tmp_path: Path) -> None:
        reader, lease = NodeFile(tmp_path), LeaseWords(tmp_path)
        assert not reader.is_leased(), "nobody has said so"
        lease.set_deadline(clock[0] / 1e9 + 3)
        assert abs(writer.deadline - clock[0] - 3_000_000_000) < 1000
        assert reader.is_leased()
        clock[0] = writer.deadline - 1
        assert reader.is_leased()
        clock[0] += 1
        assert not reader.is_leased()
        lease.set_deadline(clock[0] / 1e9 + 3)
        assert reader.is_leased()
        lease.set_deadline(0)
        assert writer.deadline == 0
        assert not reader.is_leased()

    def test_it_goes_on_while_the_supervisor_is_dead(
        self, writer: NodeFileWriter, clock: list[int], tmp_path: Path
    ) -> None:
        """LiteFS dies with its supervisor, and the lease process too: a stale heartbeat alone ends nothing."""
        reader = NodeFile(tmp_path)
        LeaseWords(tmp_path).set_deadline(clock[0] / 1e9 + 10)
        assert reader.is_leased()
        clock[0] += STALE_NS * 2
        assert reader.generation() is None
        assert reader.is_leased()

    def test_that_of_the_next_supervisor_is_found(self, clock: list[int], tmp_path: Path) -> None:
        """The old file is mapped still, and its lease is over."""
        first = NodeFileWriter(tmp_path)
        LeaseWords(tmp_path).set_deadline(clock[0] / 1e9 + 1)
        reader = NodeFile(tmp_path)
        assert reader.is_leased()
        second = NodeFileWriter(tmp_path)
        clock[0] += STALE_NS * 2
        second.beat()
        LeaseWords(tmp_path).set_deadline(clock[0] / 1e9 + 3)
        assert reader.is_leased()
        assert (first.deadline < second.deadline) is True
        second.close()

    def test_nobody_says(self, clock: list[int], tmp_path: Path) -> None:
        assert not NodeFile(tmp_path).is_leased()
        with pytest.raises(OSError, match=NAME):
            LeaseWords(tmp_path)

    def test_a_file_of_the_release_before_is_refused(self, tmp_path: Path) -> None:
        """It had three words, and its deadline was a name for nothing."""
        now = boottime_ns()
        words = struct.Struct("=4Q").pack(0x4C46_444A_0001_0018, now, 2, now + 10**12)
        (tmp_path / NAME).write_bytes(words)
        reader = NodeFile(tmp_path)
        assert reader.generation() is None
        assert not reader.is_leased()
