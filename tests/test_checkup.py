"""What no machine shows on demand; tests/cluster/test_check_command.py has real nodes."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from litefs_django._litefs.errors import MountError
from litefs_django._litefs.mount import PrimaryDetector
from litefs_django._litefs.node import checkup
from litefs_django._litefs.node.checkup import NodeState
from litefs_django._litefs.reach import Reach
from litefs_django._litefs.reading import read_settings
from tests.test_client import dated, server


@pytest.mark.parametrize(
    ("ahead", "level", "said"),
    [
        (0.0, "ok", "they differ by "),
        (-0.4, "ok", "they differ by "),
        (30.5, "warning", "ahead of this machine's"),
        (-30.5, "warning", "behind this machine's"),
    ],
)
def test_clocks(ahead: float, level: str, said: str) -> None:
    """A server with another clock in place of LiteFS: all nodes of a test have one machine's."""
    with server({"/info": dated(ahead)}) as url:
        (finding,) = checkup._clocks(Reach({"web2": url}), ["web2"])
    assert finding.level == level
    assert said in finding.message
    apart = re.search(r"web2 is (\d+) to (\d+) s ", finding.message)
    assert (apart is not None) is (level != "ok")
    assert apart is None or int(apart[1]) < 30.5 < int(apart[2])


def test_clocks_of_nodes_that_do_not_answer_any_more() -> None:
    with server({}) as url:
        pass
    assert list(checkup._clocks(Reach({"web2": url}), ["web2"])) == []


def test_a_mount_that_is_not_for_this_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lag(self: PrimaryDetector) -> float:
        raise MountError("no") from PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkup, "is_mounted", lambda path: True)
    monkeypatch.setattr(PrimaryDetector, "lag", lag)
    assert checkup._mount_state(tmp_path) == "closed"
    settings = read_settings({"MOUNT_PATH": str(tmp_path)}, {})
    (finding,) = checkup._mount(settings, NodeState(2, "closed", None))
    assert (finding.level, finding.message) == ("error", f"This user may not enter {tmp_path}.")


def test_unmounted_behind_the_supervisor_s_back(tmp_path: Path) -> None:
    """It is mounted again within milliseconds."""
    settings = read_settings({"MOUNT_PATH": str(tmp_path)}, {})
    (finding,) = checkup._mount(settings, NodeState(2, "none", None))
    assert (finding.level, finding.message) == ("error", f"{tmp_path} was unmounted by somebody.")


@pytest.mark.parametrize(
    ("size", "written"), [(0, "0 kB"), (4096, "4 kB"), (34_100_000, "34.1 MB"), (1_234_500_000_000, "1,234.5 GB")]
)
def test_sizes(size: int, written: str) -> None:
    assert checkup._written(size) == written
