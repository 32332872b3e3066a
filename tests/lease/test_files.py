"""What a node keeps on disk of Raft."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from litefs_django._litefs.errors import LeaseError
from litefs_django._litefs.node.lease.files import NAME, Record, RecordFile
from tests.machine import fill_disk, small_disk

RECORD = Record(is_member=True, term=7, vote="10.0.0.2:4321", cluster_id="LFSC0123456789ABCDEF")
# A file of version 1: it stays readable.
OLD = (
    '{"version": 1, "is_member": true, "term": 7, "vote": "10.0.0.2:4321", "cluster_id": "LFSC0123456789ABCDEF", '
    '"sum": "289ee56a7219771b399c9d51efe7bb83a81da2f3d041165e1acbd3358169e018"}'
)


def test_a_node_without_a_file_is_no_member(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "raft")
    assert file.record == Record()
    assert not file.record.is_member
    assert stat.S_IMODE((tmp_path / "raft").stat().st_mode) == 0o700


def test_what_was_stored_is_there_for_the_next_one(tmp_path: Path) -> None:
    file = RecordFile(tmp_path)
    file.store(RECORD)
    assert file.record == RecordFile(tmp_path).record == RECORD
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(OLD)
    assert RecordFile(tmp_path).record == RECORD


@pytest.mark.parametrize("text", ["", "{", "[]", "7", OLD.replace("7,", "8,"), OLD.replace('"sum"', '"some"')])
def test_a_damaged_file_is_not_taken_for_none(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(LeaseError, match=r"raft.json is damaged: .* Remove it"):
        RecordFile(tmp_path)


def test_a_file_of_a_later_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps({"version": 2, "more": 1}))
    with pytest.raises(LeaseError, match="is of version 2, and this release knows version 1"):
        RecordFile(tmp_path)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(LeaseError, match="cannot be read"):
        RecordFile(tmp_path)


@pytest.mark.cluster
def test_a_full_disk_stores_nothing_and_says_so(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk):
        file = RecordFile(disk)
        file.store(Record(term=1))
        fill_disk(disk)
        with pytest.raises(LeaseError, match=r"No space left on device.*cannot vote"):
            file.store(RECORD)
        assert file.record == RecordFile(disk).record == Record(term=1)
