from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from litefs_django._litefs.part_file import PartFile


def test_it_is_put_in_place(tmp_path: Path) -> None:
    (tmp_path / "whole").write_text("precious")
    with PartFile(tmp_path / "whole") as part:
        assert part.path.parent == tmp_path
        assert part.path.read_bytes() == b""
        assert stat.S_IMODE(part.path.stat().st_mode) == 0o600
        part.path.write_text("new")
        assert (tmp_path / "whole").read_text() == "precious"
        part.put(tmp_path / "whole")
        assert (tmp_path / "whole").read_text() == "new"
    assert os.listdir(tmp_path) == ["whole"]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_it_goes_with_its_block(tmp_path: Path, error: type[BaseException] | None) -> None:
    def fill() -> None:
        with PartFile(tmp_path / "whole") as part:
            part.path.write_text("half")
            if error is not None:
                raise error

    if error is None:
        fill()
    else:
        with pytest.raises(error):
            fill()
    assert os.listdir(tmp_path) == []


def test_one_at_a_time(tmp_path: Path) -> None:
    with PartFile(tmp_path / "whole") as part:
        part.path.write_text("half")
        with (
            pytest.raises(OSError, match=r"another process is making it just now: .*whole"),
            PartFile(tmp_path / "whole"),
        ):
            pass
        assert part.path.read_text() == "half"


def test_that_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    target = tmp_path / "whole"
    code = (
        "import sys, time; from pathlib import Path; from litefs_django._litefs.part_file import PartFile\n"
        f"with PartFile(Path({str(target)!r})) as part:\n"
        "    part.path.write_text('half'); print('begun', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(OSError, match="another process"), PartFile(target):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with PartFile(target) as part:
        assert part.path.read_bytes() == b""
    assert os.listdir(tmp_path) == []


def test_the_lock_outlives_those_of_sqlite(tmp_path: Path) -> None:
    """Closing a file drops all POSIX locks that the process has on it."""
    with PartFile(tmp_path / "whole") as part:
        part.path.open("rb").close()
        with pytest.raises(OSError, match="another process"), PartFile(tmp_path / "whole"):
            pass


def test_links_are_not_followed(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "whole")
    (tmp_path / "other").write_text("precious")
    part.path.symlink_to("other")
    with pytest.raises(OSError, match="symbolic"), part:
        pass
    assert (tmp_path / "other").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be lain in wait for here")
def test_what_another_user_has_put_there_is_not_written_to(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "whole")
    part.path.write_text("theirs")
    os.chown(part.path, 65534, 65534)
    with pytest.raises(OSError, match=r"\.whole\.litefs_part is not a file of this user alone: remove it"), part:
        pass
    assert part.path.read_text() == "theirs"


def test_a_file_with_another_name_is_not_written_to(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "whole")
    (tmp_path / "other").write_text("precious")
    part.path.hardlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="not a file of this user alone"), part:
        pass
    assert (tmp_path / "other").read_text() == "precious"


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), PartFile(tmp_path / "nowhere" / "whole"):
        pass
