"""What is kept of LTX files, and what is dropped again. On real ones: tests/cluster/run/test_raft.py."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from litefs_django._litefs import diverged
from litefs_django._litefs.ltx import LtxFiles, txids
from litefs_django._litefs.mount import Position


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    """Two databases with the transactions 1 to 5."""
    for name in ("a", "b"):
        for txid in range(1, 6):
            write_ltx(tmp_path, name, txid)
    return tmp_path


def ltx_file(data_path: Path, name: str, txid: int) -> Path:
    return data_path / "dbs" / name / "ltx" / f"{txid:016x}-{txid:016x}.ltx"


def write_ltx(data_path: Path, name: str, txid: int, history: int = 0, *, before: int = 0) -> None:
    """A file of its own, with as much of header and trailer as is read of LiteFS's."""
    file = ltx_file(data_path, name, txid)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    checksums = (bytes.fromhex(it.checksum) for it in (position(txid - 1, before), position(txid, history)))
    file.write_bytes(bytes(40) + f"{name} {txid}".encode().join(checksums) + bytes(8))


def position(txid: int, history: int = 0) -> Position:
    return Position(txid, f"{0x8000000000000000 | history << 8 | txid:016x}")


def keep(data_path: Path, floors: dict[str, int]) -> None:
    diverged.keep(data_path, diverged.ltx_files(data_path), floors)


def summary(data_path: Path) -> list[tuple[str, int, int, int]]:
    return [(it.database, it.count, it.first, it.last) for it in diverged.find(data_path)]


def test_files_are_found_by_their_ends(tmp_path: Path) -> None:
    for first, last in ((1, 4), (5, 5), (6, 8), (9, 9)):
        (tmp_path / f"{first:016x}-{last:016x}.ltx").touch()
    (tmp_path / "note.ltx").touch()
    files = LtxFiles(tmp_path)
    assert (files.last, LtxFiles(tmp_path / "none").last) == (9, 0)
    assert [txids(file.name) for file in files.above(6)] == [(9, 9), (6, 8)]
    found = [(files.beginning(txid), files.ending(txid)) for txid in range(11)]
    begins, ends = (
        [txid for txid, of in enumerate(column) if of and txid in txids(of.name)] for column in zip(*found, strict=True)
    )
    assert (begins, ends) == ([1, 5, 6, 9], [4, 5, 8, 9])


def test_what_is_above_the_floor_is_kept(data_path: Path) -> None:
    for _ in range(2):  # the second time it is the same
        keep(data_path, {"a": 3, "b": 5})
        assert summary(data_path) == [("a", 2, 4, 5)]


def test_where_there_are_no_links_it_is_copied(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    keep(data_path, {"a": 3})
    assert summary(data_path) == [("a", 2, 4, 5)]
    diverged.drop_shared(data_path, {"a"})
    assert summary(data_path) == []


def test_what_the_cluster_has_is_dropped(data_path: Path) -> None:
    keep(data_path, {"a": 2, "b": 4})
    # The third stays as it is, the fourth came again, the fifth is another's, and what was kept outlives its name.
    write_ltx(data_path, "a", 4)
    write_ltx(data_path, "a", 5, history=1)
    diverged.drop_shared(data_path, {"a"})
    assert summary(data_path) == [("a", 1, 5, 5), ("b", 1, 5, 5)], "of b it is not known yet"


def test_what_is_gone_from_litefs_stays_kept(data_path: Path) -> None:
    keep(data_path, {"a": 4})
    ltx_file(data_path, "a", 5).unlink()
    diverged.drop_shared(data_path, {"a"})
    assert summary(data_path) == [("a", 1, 5, 5)]


def test_what_litefs_has_removed_since_is_known_by_what_came_after(data_path: Path) -> None:
    keep(data_path, {"a": 1, "b": 1})
    for txid in (2, 3):
        ltx_file(data_path, "a", txid).unlink()
        ltx_file(data_path, "b", txid).unlink()
    for txid in (4, 5):
        write_ltx(data_path, "b", txid, history=1, before=1)
    diverged.drop_shared(data_path, {"a", "b"})
    assert summary(data_path) == [("b", 4, 2, 5)], "b has had another history since 3"


def test_what_cannot_be_compared_stays_and_hinders_nothing(data_path: Path) -> None:
    keep(data_path, {"a": 1, "b": 3})
    third, *_ = (data_path / diverged.DIRECTORY / "a").glob(f"{3:016x}-*")
    third.unlink()
    third.write_bytes(b"cut short")
    (third.parent / "x.ltx").touch()
    diverged.drop_shared(data_path, {"a", "b"})
    assert summary(data_path) == [("a", 1, 3, 3)]


def test_a_name_that_looks_like_a_pattern(tmp_path: Path) -> None:
    write_ltx(tmp_path, "a[1]", 1)
    keep(tmp_path, {"a[1]": 0})
    assert summary(tmp_path) == [("a[1]", 1, 1, 1)]
    diverged.drop_shared(tmp_path, {"a[1]"})
    assert summary(tmp_path) == []


def test_two_divergences_at_the_same_txid_are_both_kept(data_path: Path) -> None:
    keep(data_path, {"a": 4})
    write_ltx(data_path, "a", 5, history=1)
    keep(data_path, {"a": 4})
    assert summary(data_path) == [("a", 2, 5, 5)]


def test_dismissed_is_gone(data_path: Path) -> None:
    assert diverged.dismiss(data_path) == []
    keep(data_path, {"a": 3})
    assert [it.count for it in diverged.dismiss(data_path)] == [2]
    assert summary(data_path) == []
    assert ltx_file(data_path, "a", 5).exists()


def test_files_that_are_not_litefs_s_are_left_alone(data_path: Path) -> None:
    ltx_file(data_path, "a", 6).with_suffix(".ltx.tmp").touch()
    (data_path / "dbs" / "a" / "ltx" / "note.ltx").touch()
    keep(data_path, {"a": 5})
    assert summary(data_path) == []


# Up to where the primaries that came later had this node's history. Here it ends at 5.
@pytest.mark.parametrize(
    ("mark", "starts", "floor"),
    [
        pytest.param(None, [position(5)], 5, id="a replica that was as far"),
        pytest.param(None, [position(3)], 3, id="a replica that was further than the one that won"),
        pytest.param(None, [position(8)], None, id="a replica that was behind"),
        pytest.param(None, [position(3, history=1)], None, id="a replica that has missed too much to tell"),
        pytest.param(None, [position(3), position(9)], 3, id="a replica that has missed a primary, and is behind now"),
        pytest.param(None, [position(3), position(4, history=1)], 3, id="a replica that has missed another history"),
        pytest.param(2, [position(4)], 4, id="a primary that had not sent the last one"),
        pytest.param(2, [position(5)], 5, id="a primary that had sent all"),
        pytest.param(2, [position(4), position(9)], 4, id="the second one after it says nothing new"),
        pytest.param(2, [position(4), position(3)], 3, id="the second one after it was not as far"),
        pytest.param(2, [position(4, history=1)], 2, id="one of another history, as far as its own reign"),
        pytest.param(2, [], 2, id="nobody knows any more"),
        pytest.param(2, [position(9)], 2, id="all it is told lies ahead"),
    ],
)
def test_the_floor(data_path: Path, mark: int | None, starts: list[Position], floor: int | None) -> None:
    marked = None if mark is None else {"a": position(mark)}
    found = diverged.floors(diverged.ltx_files(data_path), marked, [{"a": start} for start in starts])
    assert found.get("a") == floor


def test_a_database_that_was_made_in_this_reign_is_kept_whole(data_path: Path) -> None:
    assert diverged.floors(diverged.ltx_files(data_path), {"a": position(2)}, [{"a": position(5)}]) == {"a": 5, "b": 0}
