"""What a node keeps on disk of Raft: its term, its vote, and LiteFS's cluster id. The log is in memory (DESIGN.md)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from litefs_django._litefs.errors import LeaseError
from litefs_django._litefs.part_file import write_whole

NAME = "raft.json"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`vote` is the address of the node that was voted for in `term`.

    `is_member` is False until this node may vote for the first time: it has never done so, or has lost what it had.
    """

    is_member: bool = False
    term: int = 0
    vote: str | None = None
    cluster_id: str = ""


class RecordFile:
    """The record on disk, in `directory`, which is made. Raises LeaseError when it cannot be used as it is."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            text = self.path.read_text("utf-8")
        except FileNotFoundError:
            text = None
        except (OSError, ValueError) as error:
            raise LeaseError(f"{self.path} cannot be read: {error}.") from error
        self.record = Record() if text is None else self._parse(text)

    def store(self, record: Record) -> None:
        """Returns when it is on the disk. Raises LeaseError when it is not, or may not be."""
        content = asdict(record)
        try:
            write_whole(self.path, json.dumps({"version": VERSION, **content, "sum": _sum(content)}))
        except OSError as error:
            raise LeaseError(f"{self.path} cannot be written ({error}): this node cannot vote.") from error
        self.record = record

    def _parse(self, text: str) -> Record:
        try:
            content = json.loads(text)
            version, checksum = content.pop("version"), content.pop("sum", None)
            if version == VERSION and checksum == _sum(content):
                return Record(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged() from error
        if version == VERSION:
            raise self._damaged()
        raise LeaseError(f"{self.path} is of version {version!r}, and this release knows version {VERSION}.")

    def _damaged(self) -> LeaseError:
        return LeaseError(
            f"{self.path} is damaged: what this node has voted for is lost. Remove it; the node then votes again once "
            "a leader, or all other members, have told it where they are."
        )


def _sum(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
