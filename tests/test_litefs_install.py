from __future__ import annotations

import hashlib
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from litefs_django._litefs import binary
from litefs_django._litefs.binary import Requirement
from litefs_django._litefs.errors import BinaryError


def install(*arguments: str, verbosity: int = 1) -> tuple[str, str]:
    """What `manage.py litefs_install` prints on stdout and stderr."""
    stdout, stderr = StringIO(), StringIO()
    call_command("litefs_install", *arguments, verbosity=verbosity, no_color=True, stdout=stdout, stderr=stderr)
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
    def refuse(target: Path, progress: object, architecture: str | None = None) -> None:
        raise AssertionError("nothing is to be built")

    monkeypatch.setattr(binary, "build", refuse)


@pytest.fixture
def configured(settings: Settings, tmp_path: Path) -> Path:
    """LITEFS["BINARY"]; there is nothing yet."""
    settings.LITEFS = {**settings.LITEFS, "BINARY": str(tmp_path / "configured")}
    return tmp_path / "configured"


@pytest.fixture
def published(litefs_binary: Path, tmp_path: Path) -> list[str]:
    """The options that download LiteFS from where somebody has put it."""
    path = tmp_path / "published"
    path.write_bytes(litefs_binary.read_bytes())
    return ["--from-url", path.as_uri(), "--sha256", hashlib.sha256(path.read_bytes()).hexdigest()]


@pytest.fixture
def foreign() -> str:
    """The architecture that this machine has not."""
    return next(name for name in binary.ARCHITECTURES.values() if name != binary.native_architecture())


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
def test_says_that_litefs_is_not_in_use(settings: Settings, installed: Path, litefs_binary: Path) -> None:
    settings.LITEFS = {"ENABLED": False, "BINARY": str(litefs_binary)}
    stdout, stderr = install()
    assert f"LiteFS v0.5.14: {litefs_binary}" in stdout
    assert stderr.startswith('LITEFS["ENABLED"] is False: no LiteFS, the databases are plain files')


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


@pytest.mark.usefixtures("no_build", "requirements")
class TestFromURL:
    def test_where_it_is_found(self, installed: Path, published: list[str], tmp_path: Path) -> None:
        said = f"LiteFS v0.5.14: {installed}\nNothing is missing to run it here.\n"
        other_program(installed)
        assert install(*published) == (f"Downloading {published[1]}\n{said}", "")
        binary.verify(installed)
        # What is there already is not downloaded, whoever wrote the hash in capitals.
        (tmp_path / "published").unlink()
        assert install(*published[:3], published[3].upper()) == (said, "")

    def test_as_the_configured_one(self, configured: Path, published: list[str]) -> None:
        for _ in range(2):
            assert f"LiteFS v0.5.14: {configured}\nNothing" in install(*published)[0]
            binary.verify(configured)

    def test_never_replaces_the_configured_one(self, configured: Path, published: list[str]) -> None:
        before = other_program(configured).read_bytes()
        with pytest.raises(CommandError, match=rf'LITEFS\["BINARY"\] is \'{configured}\', a file of another SHA-256'):
            install(*published)
        assert configured.read_bytes() == before

    def test_not_beside_the_one_of_the_package(self, installed: Path, published: list[str], tmp_path: Path) -> None:
        """It would never be used."""
        other_program(binary.BUNDLED)
        with pytest.raises(CommandError, match=f"came with its own LiteFS, {binary.BUNDLED}, which is used before"):
            install(*published)
        assert not installed.exists()
        (tmp_path / "bin").mkdir()
        out, _ = install(*published, "--directory", str(tmp_path / "bin"))
        assert f"This project uses {binary.BUNDLED} all the same. Set LITEFS" in out

    def test_wrong_hash(self, installed: Path, published: list[str]) -> None:
        with pytest.raises(CommandError, match=r"has the SHA-256 .* Nothing was installed\."):
            install(*published[:2], "--sha256", "0" * 64)
        assert not installed.exists()

    def test_needs_a_hash(self, installed: Path, published: list[str]) -> None:
        for arguments in (published[:2], published[2:]):
            with pytest.raises(CommandError, match="--from-url and --sha256 need each other"):
                install(*arguments)
        for wrong in ("0" * 63, "x" * 64, "sha256:" + "0" * 64):
            with pytest.raises(CommandError, match=f"--sha256 '{wrong}' is not 64 hexadecimal digits"):
                install(*published[:2], "--sha256", wrong)
        assert not installed.exists()


@pytest.mark.usefixtures("requirements")
class TestDirectory:
    @pytest.mark.usefixtures("installed")
    def test_builds_there_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> None:
        (tmp_path / "bin").mkdir()
        target = other_program(tmp_path / "bin" / "litefs")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
        assert install("--directory", str(tmp_path / "bin"))[0].endswith(
            f"LiteFS v0.5.14: {target}\nNothing is missing to run it here.\n"
        )
        binary.verify(target)
        request.getfixturevalue("no_build")
        install("--directory", str(tmp_path / "bin"))

    @pytest.mark.usefixtures("no_build", "installed")
    def test_tells_when_nothing_looks_there(
        self, published: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "bin").mkdir()
        out, _ = install(*published, "--directory", "bin")
        target = tmp_path / "bin" / "litefs"
        assert f"does not find it there. Set LITEFS[\"BINARY\"] to '{target}'" in out
        binary.verify(target)

    @pytest.mark.usefixtures("no_build")
    def test_not_against_the_setting(
        self, configured: Path, published: list[str], tmp_path: Path, settings: Settings
    ) -> None:
        (tmp_path / "bin").mkdir()
        with pytest.raises(CommandError, match=f"this project would not use '{tmp_path}/bin/litefs'"):
            install(*published, "--directory", str(tmp_path / "bin"))
        assert not list((tmp_path / "bin").iterdir())
        settings.LITEFS = {**settings.LITEFS, "BINARY": str(tmp_path / "bin" / "litefs")}
        # Named by hand it is replaced.
        other_program(tmp_path / "bin" / "litefs")
        install(*published, "--directory", str(tmp_path / "bin"))
        binary.verify(tmp_path / "bin" / "litefs")

    @pytest.mark.usefixtures("no_build", "installed")
    def test_that_is_not_there(self, published: list[str], tmp_path: Path) -> None:
        with pytest.raises(CommandError, match=f"{tmp_path}/missing is not a directory that this user may write to"):
            install(*published, "--directory", str(tmp_path / "missing"))


@pytest.mark.usefixtures("installed")
class TestArchitecture:
    def test_of_another_machine_needs_a_directory(self, installed: Path, foreign: str) -> None:
        with pytest.raises(CommandError, match=f"--arch {foreign} is not this machine's: say with --directory"):
            install("--arch", foreign)
        assert not installed.exists()

    def test_of_another_machine(
        self, configured: Path, published: list[str], foreign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its program is a header alone: a whole one is proved with the wheels. BINARY is no concern of this one."""
        (tmp_path / "bin").mkdir()
        arguments = ["--arch", foreign, "--directory", str(tmp_path / "bin")]
        with pytest.raises(CommandError, match=f"is not a program for Linux on {foreign}"):
            install(*published, *arguments)
        header = bytearray((tmp_path / "published").read_bytes()[:64])
        header[18:20] = {"amd64": 62, "arm64": 183}[foreign].to_bytes(2, "little")
        (tmp_path / "published").write_bytes(header)
        published[3] = hashlib.sha256(header).hexdigest()
        out, _ = install(*published, *arguments)
        assert out.endswith(
            f"LiteFS for linux/{foreign}: {tmp_path}/bin/litefs\n"
            "It cannot run here, so that its version was not asked. It is a program for that machine.\n"
        )
        assert install(*published, *arguments, verbosity=0) == ("", "")

        # Without a hash nothing says what it is: it is built.
        built = []
        monkeypatch.setattr(binary, "build", lambda target, progress, architecture: built.append(architecture))
        install(*arguments)
        assert built == [foreign]

    @pytest.mark.usefixtures("no_build", "requirements")
    def test_of_this_machine(self, installed: Path, published: list[str]) -> None:
        install(*published, "--arch", str(binary.native_architecture()))
        binary.verify(installed)
