"""Transactions that this node has acknowledged as the primary, and that the cluster does not have.

Replication is asynchronous: what a primary that dies has not sent is not on the next one. When it is back LiteFS drops
it without a word (LiteFS v0.5.14, http/server.go, streamDB; store.go, processLTXStreamFrame). So its LTX files are
linked into DATA_PATH/diverged before it meets the new primary, and are shown until they are dismissed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from litefs_django._litefs.ltx import LtxFiles, checksum, checksum_before, txids
from litefs_django._litefs.mount import Position
from litefs_django._litefs.part_file import sync

DIRECTORY = "diverged"
# LiteFS's name, and when it was modified: two histories may have the same TXIDs.
_KEPT = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.[0-9a-f]+\.ltx")

# What link(2) says where there are no hard links, or the databases lie on a file system of their own.
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}

# Positions by database.
Positions = Mapping[str, Position]


@dataclass(frozen=True, slots=True)
class Diverged:
    """Of one database: how many transactions, the first and the last TXID, and when the last was committed."""

    database: str
    count: int
    first: int
    last: int
    at: float

    def __str__(self) -> str:
        number = "1 transaction" if self.count == 1 else f"{self.count} transactions"
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.at))
        return f"{number} of {self.database} (TXID {self.first:x} to {self.last:x}, until {when})"


def ltx_files(data_path: Path) -> dict[str, LtxFiles]:
    """Those of each database here."""
    return {directory.parent.name: LtxFiles(directory) for directory in data_path.glob("dbs/*/ltx")}


def floors(files: Mapping[str, LtxFiles], mark: Positions | None, starts: Sequence[Positions]) -> dict[str, int]:
    """For each database: up to which TXID the primaries that came after this node had its history.

    `mark` is where its own last reign began, None when it had none that is unsettled; `starts` are where those of later
    primaries began, the newest last. What is above may be this node's alone.
    """
    found: dict[str, int] = {}
    for database, known in files.items():
        if not known.last:
            continue
        lowest = None if mark is None else mark[database].txid if database in mark else 0
        shared = _shared(known, [start[database] for start in starts if database in start], lowest)
        floor = lowest if shared is None else shared
        if floor is not None:
            found[database] = floor
    return found


def _shared(known: LtxFiles, starts: Sequence[Position], lowest: int | None) -> int | None:
    """The least that these starts tell; None when they tell nothing: they are further than this node is.

    One of another history, or of a TXID whose file is gone here, tells `lowest`, if that is known.
    """
    told = []
    for start in starts:
        ltx = known.ending(start.txid)
        if ltx is not None and checksum(ltx) == start.checksum:
            told.append(start.txid)
        elif lowest is not None and (ltx is not None or start.txid < known.last):
            told.append(lowest)
    return min(told, default=None)


def has_been_at(data_path: Path, database: str, position: Position) -> bool:
    """Whether the database's own history goes through that position, as far as it is there still."""
    return _read(checksum, LtxFiles(_ltx(data_path, database)).ending(position.txid)) == position.checksum


def keep(data_path: Path, files: Mapping[str, LtxFiles], floors: Mapping[str, int]) -> None:
    """Keeps what is above these TXIDs, by database: on the disk once it returns. Raises OSError."""
    for database, floor in floors.items():
        directory = data_path / DIRECTORY / database
        above = list(files[database].above(floor))
        if above:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for ltx in above:
            _link(ltx, directory / f"{ltx.stem}.{ltx.stat().st_mtime_ns:x}.ltx")
        for changed in (directory, directory.parent, data_path) if above else ():
            sync(changed)


def _link(ltx: Path, kept: Path) -> None:
    try:
        os.link(ltx, kept)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(ltx, kept)
        sync(kept)


def drop_shared(data_path: Path, databases: Collection[str]) -> None:
    """Drops what the cluster has after all of these databases, which are copies of the primary's. Raises OSError.

    What was kept is in their history when the database was the same after it. Their own LTX file of that tells; where
    LiteFS has removed it meanwhile, what comes next says how the database was before.
    """
    for database in databases:
        kept = sorted(_kept_files(data_path, database), reverse=True)
        if not kept:
            continue
        ltx = LtxFiles(_ltx(data_path, database))
        proved: dict[int, str | None] = {}
        for file in kept:
            first, last = txids(file.name)
            history = _read(checksum, ltx.ending(last)) or _read(checksum_before, ltx.beginning(last + 1))
            if _read(checksum, file) == (history or proved.get(last, "")):
                proved[first - 1] = _read(checksum_before, file)
                file.unlink(missing_ok=True)


def _ltx(data_path: Path, database: str) -> Path:
    return data_path / "dbs" / database / "ltx"


def _read(part: Callable[[Path], str], file: Path | None) -> str | None:
    """None when there is no such file any more, or not the whole of it."""
    if file is not None:
        with suppress(OSError):
            return part(file)
    return None


def kept_databases(data_path: Path) -> set[str]:
    """Those of which something is kept."""
    return {kept.parent.name for kept in _kept_files(data_path)}


def find(data_path: Path) -> list[Diverged]:
    """What is kept; nothing where this user may not look."""
    found: dict[str, list[Path]] = {}
    with suppress(OSError):
        for kept in _kept_files(data_path):
            found.setdefault(kept.parent.name, []).append(kept)
    return [_summed(database, files) for database, files in sorted(found.items())]


def dismiss(data_path: Path) -> list[Diverged]:
    """Removes what is kept, and says what that was. Raises OSError."""
    found = find(data_path)
    for each in found:
        for kept in _kept_files(data_path, each.database):
            if kept.stat().st_mtime <= each.at:
                kept.unlink()
    return found


def _summed(database: str, files: list[Path]) -> Diverged:
    ranges = [txids(kept.name) for kept in files]
    return Diverged(
        database,
        sum(last - first + 1 for first, last in ranges),
        min(first for first, _ in ranges),
        max(last for _, last in ranges),
        max(kept.stat().st_mtime for kept in files),
    )


def _kept_files(data_path: Path, database: str | None = None) -> Iterator[Path]:
    """Of one database, or of all."""
    directory = data_path / DIRECTORY
    directories = directory.glob("*/") if database is None else [directory / database]
    return (file for each in directories for file in each.glob("*.ltx") if _KEPT.fullmatch(file.name))
