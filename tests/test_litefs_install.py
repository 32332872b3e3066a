from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from litefs_django._litefs import binary
from litefs_django._litefs.binary import Requirement
from litefs_django._litefs.errors import BinaryError


def install(verbosity: int = 1) -> tuple[str, str]:
    """What `manage.py litefs_install` prints on stdout and stderr."""
    stdout, stderr = StringIO(), StringIO()
    call_command("litefs_install", verbosity=verbosity, no_color=True, stdout=stdout, stderr=stderr)
    return stdout.getvalue(), stderr.getvalue()


def other_program(path: Path) -> Path:
    """A script stands in for another release of LiteFS."""
    path.write_text("#!/bin/sh\necho LiteFS v0.5.11, commit=63eab52\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def requirements(monkeypatch: pytest.MonkeyPatch) -> list[Requirement]:
    """What this machine is made to lack: nothing."""
    missing: list[Requirement] = []
    monkeypatch.setattr(binary, "missing_requirements", lambda is_root, allow_other: missing)
    return missing


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a built binary goes; no LiteFS is in the package or installed."""
    monkeypatch.setattr(binary, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(binary, "installed_path", lambda: tmp_path / "installed")
    return tmp_path / "installed"


@pytest.fixture
def no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(target: Path, progress: object) -> None:
        raise AssertionError("nothing is to be built")

    monkeypatch.setattr(binary, "build", refuse)


@pytest.fixture
def configured(settings: Settings, tmp_path: Path) -> Path:
    """LITEFS["BINARY"]; there is nothing yet."""
    settings.LITEFS = {**settings.LITEFS, "BINARY": str(tmp_path / "configured")}
    return tmp_path / "configured"


@pytest.mark.usefixtures("no_build", "requirements")
def test_finds_the_configured_one(configured: Path, litefs_binary: Path) -> None:
    configured.symlink_to(litefs_binary)
    said = f"LiteFS v0.5.14: {configured}\nNothing is missing to run it here.\n"
    assert install() == (said, "")
    # Again: nothing changes.
    assert install() == (said, "")
    assert install(verbosity=0) == ("", "")


@pytest.mark.usefixtures("requirements")
def test_builds_the_configured_one_that_is_missing(configured: Path) -> None:
    first, *_, found, missing = install()[0].splitlines()
    assert first.startswith("Building LiteFS v0.5.14 for linux/")
    assert (found, missing) == (f"LiteFS v0.5.14: {configured}", "Nothing is missing to run it here.")
    binary.verify(configured)


@pytest.mark.usefixtures("no_build")
def test_never_replaces_the_configured_one(configured: Path) -> None:
    before = other_program(configured).read_bytes()
    with pytest.raises(CommandError, match=rf"{configured} is not LiteFS v0\.5\.14: .* printed 'LiteFS v0\.5\.11") as e:
        install()
    assert e.value.returncode == 1
    assert configured.read_bytes() == before


@pytest.mark.usefixtures("no_build")
def test_never_replaces_the_one_of_the_package(installed: Path) -> None:
    other_program(binary.BUNDLED)
    with pytest.raises(CommandError, match=f"{binary.BUNDLED} is not LiteFS"):
        install()


def test_builds_where_it_is_found_again(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requirements: list[Requirement]
) -> None:
    requirements.append(Requirement("fusermount3", "apt-get install fuse3"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    on_path = other_program(tmp_path / "bin" / "litefs")
    assert binary.find(None) == on_path
    for _ in range(2):
        assert install()[0].endswith(
            f"LiteFS v0.5.14: {installed}\nTo run it here, this is missing:\n- fusermount3: apt-get install fuse3\n"
        )
        assert binary.find(None) == installed
        binary.verify(installed)
        # What a build of ours once left there is replaced.
        other_program(installed)


def test_failed_build(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    def fail(target: Path, progress: object) -> None:
        raise BinaryError("there is no Go")

    monkeypatch.setattr(binary, "build", fail)
    with pytest.raises(CommandError, match="there is no Go") as caught:
        install()
    assert caught.value.returncode == 1


@pytest.mark.usefixtures("no_build", "requirements")
def test_works_while_other_settings_are_wrong(settings: Settings, installed: Path, litefs_binary: Path) -> None:
    """As where an image is built, which is none of the NODES."""
    installed.symlink_to(litefs_binary)
    settings.LITEFS = {**settings.LITEFS, "NODE": "build-machine"}
    stdout, stderr = install()
    assert stdout.startswith(f"LiteFS v0.5.14: {installed}\n")
    assert 'LITEFS["BINARY"] and LITEFS["ALLOW_OTHER"] are not read' in stderr
    assert "build-machine" in stderr


@pytest.mark.usefixtures("no_build", "configured")
@pytest.mark.parametrize(
    ("uid", "setting", "asked"),
    [(0, None, (True, True)), (0, False, (True, False)), (1000, None, (False, False)), (1000, True, (False, True))],
)
def test_asks_for_what_this_supervisor_needs(
    configured: Path,
    litefs_binary: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    uid: int,
    setting: bool | None,
    asked: tuple[bool, bool],
) -> None:
    configured.symlink_to(litefs_binary)
    settings.LITEFS = {**settings.LITEFS} if setting is None else {**settings.LITEFS, "ALLOW_OTHER": setting}
    monkeypatch.setattr("os.geteuid", lambda: uid)
    seen = []

    def missing_requirements(is_root: bool, allow_other: bool) -> list[Requirement]:
        seen.append((is_root, allow_other))
        return []

    monkeypatch.setattr(binary, "missing_requirements", missing_requirements)
    install()
    assert seen == [asked]
