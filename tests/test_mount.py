"""What needs no LiteFS; tests/cluster/test_mount.py has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litefs_django._litefs.errors import MountError
from litefs_django._litefs.mount import Position, PrimaryDetector, litefs_devices

CHECKSUM = "8f2a60e1c0d3b4a5"


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_positions_are_written_as_litefs_does(txid: int, checksum: int) -> None:
    text = f"{txid:016x}/{checksum:016x}"
    assert Position.parse(text + "\n") == Position(txid, f"{checksum:016x}")
    assert str(Position.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "1/2", f"{0:016x}", f"{0:016x}/", f"{0:015x}/{CHECKSUM}", f"{'x' * 16}/{CHECKSUM}"]
)
def test_nothing_else_is_a_position(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a LiteFS position|invalid literal"):
        Position.parse(text)


def test_positions_are_ordered() -> None:
    assert Position(9, CHECKSUM) < Position(10, CHECKSUM)


def test_a_plain_directory_is_not_a_mount(tmp_path: Path) -> None:
    detector = PrimaryDetector(tmp_path)
    assert detector.device() is None
    assert tmp_path.stat().st_dev not in litefs_devices()
    with pytest.raises(MountError, match=str(tmp_path)):
        detector.lag()
    with pytest.raises(MountError, match="not a LiteFS mount"):
        detector.is_primary("db.sqlite3")
    assert detector.position("db.sqlite3") is None
    assert detector.primary_name() is None


def test_a_missing_directory_is_not_a_mount(tmp_path: Path) -> None:
    assert PrimaryDetector(tmp_path / "missing").device() is None
