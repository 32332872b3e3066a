"""LiteFS's transaction files, as far as their names and their ends tell (LiteFS v0.5.14; ltx v0.3)."""

from __future__ import annotations

import os
import re
from bisect import bisect
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

# ltx.FormatFilename: the first and the last TXID of the file.
_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.ltx")
# ltx.Header.PreApplyChecksum: where it stands, and how long a checksum is.
_BEFORE, _CHECKSUM = 40, 8
# ltx.Trailer, at the file's end: the checksum of the database after it, and the file's own, 8 bytes each.
_TRAILER = 16


class LtxFiles:
    """Those of one database; none where there is no such directory.

    A busy node has tens of thousands: they are listed once, as they are when that is needed first.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @cached_property
    def _names(self) -> list[str]:
        """In order. They follow one another; beside a new snapshot those before it may be there for a moment."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if _NAME.fullmatch(name))

    @property
    def last(self) -> int:
        """The last TXID; 0 when there is none."""
        return txids(self._names[-1])[1] if self._names else 0

    def above(self, txid: int) -> Iterator[Path]:
        """What goes on beyond that, the newest first."""
        for name in reversed(self._names):
            if txids(name)[1] <= txid:
                return
            yield self._directory / name

    def ending(self, txid: int) -> Path | None:
        """The one whose last TXID that is."""
        alone = self._directory / f"{txid:016x}-{txid:016x}.ltx"
        if alone.exists():
            return alone
        name = self._holding(txid)
        return self._directory / name if name and txids(name)[1] == txid else None

    def beginning(self, txid: int) -> Path | None:
        """The one whose first TXID that is."""
        name = self._holding(txid)
        return self._directory / name if name and txids(name)[0] == txid else None

    def _holding(self, txid: int) -> str | None:
        place = bisect(self._names, f"{txid:016x}-g")
        return self._names[place - 1] if place else None


def txids(name: str) -> tuple[int, int]:
    """The first and the last TXID, by the file's name."""
    return int(name[:16], 16), int(name[17:33], 16)


def checksum(path: Path) -> str:
    """That of the database after the transaction, as in a Position. Raises OSError."""
    with path.open("rb") as file:
        file.seek(-_TRAILER, os.SEEK_END)
        return file.read(_CHECKSUM).hex()


def checksum_before(path: Path) -> str:
    """That of the database before the transaction. Raises OSError."""
    with path.open("rb") as file:
        file.seek(_BEFORE)
        return file.read(_CHECKSUM).hex()
