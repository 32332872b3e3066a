"""What `python -m tests.package dist` has made: installed in environments of its own, and started."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

import pytest

from litefs_django._litefs import binary
from tests.machine import free_ports
from tests.package import licences

pytestmark = pytest.mark.package

DIST = Path(__file__).parents[2] / "dist"
SDIST = "litefs_django-*.tar.gz"
PURE = "litefs_django-*-py3-none-any.whl"
BUNDLED = "litefs_django/_litefs/bin/"
HERE = platform.machine()
(ELSEWHERE,) = binary.ARCHITECTURES.keys() - {HERE}

SETTINGS = """
INSTALLED_APPS = ["litefs_django"]
LITEFS = {{
    "HTTP_PORT": {port},
    "MOUNT_PATH": "{directory}/mount",
    "DATA_PATH": "{directory}/data",
    "RUN_PATH": "{directory}/run",
}}
DATABASES = {{"default": {{"ENGINE": "litefs_django.db.backends.litefs", "NAME": "db.sqlite3"}}}}
"""
APPLICATION = """
import django
django.setup()
from django.db import connection
with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE t (value)")
    cursor.execute("INSERT INTO t VALUES ('written')")
    cursor.execute("SELECT value, file FROM t, pragma_database_list")
    print(*cursor.fetchone(), sep=" to ")
print(*(line for line in open("/proc/self/mountinfo") if "fuse litefs" in line))
"""


def only(pattern: str) -> Path:
    (path,) = DIST.glob(pattern)
    return path


def wheel_for(machine: str) -> Path:
    """The one that brings LiteFS; its name has all its platforms."""
    return only(f"litefs_django-*-py3-none-manylinux*.musllinux_1_1_{machine}.whl")


def run(*command: str | Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """What it prints; a failure shows all of it."""
    result = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=cwd,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def unpack(wheel: Path, target: Path, system: str, machine: str) -> Path:
    """Installs a wheel as pip would on that machine, without what it depends on. Returns its LiteFS."""
    options = ["--platform", f"{system}_{machine}", "--only-binary", ":all:", "--no-deps", "--target", str(target)]
    run(sys.executable, "-m", "pip", "install", "--quiet", *options, wheel)
    return target / BUNDLED / "litefs"


class Site:
    """A virtual environment with a distribution in it, from the registry with all it depends on, and a project."""

    def __init__(self, directory: Path, requirement: str) -> None:
        self.directory = directory
        self.python = directory / "venv" / "bin" / "python"
        run(sys.executable, "-m", "venv", directory / "venv")
        run(self.python, "-m", "pip", "install", "--quiet", requirement)
        (directory / "settings.py").write_text(SETTINGS.format(port=free_ports(1)[0], directory=directory))
        (directory / "application.py").write_text(APPLICATION)
        # Without this test's Python, nor a Go of the machine's own beside it.
        outer = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        self._environment = outer | {"DJANGO_SETTINGS_MODULE": "settings", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

    def manage(self, *arguments: str | Path) -> str:
        return run(self.python, "-m", "django", *arguments, environment=self._environment, cwd=self.directory)

    def shows_that_it_runs(self) -> None:
        """With the real LiteFS, mounted by the supervisor and written to by an application."""
        said = self.manage("litefs_run", "--", self.python, "application.py")
        assert f"written to {self.directory}/mount/db.sqlite3" in said
        assert re.search(rf" {self.directory}/mount .* - fuse litefs ", said)


class TestContents:
    def test_there_are_no_others(self) -> None:
        expected = {only(SDIST), only(PURE), wheel_for(HERE), wheel_for(ELSEWHERE)}
        assert set(DIST.glob("litefs_django-*")) == expected

    def test_only_a_wheel_for_one_machine_brings_litefs(self) -> None:
        pure = {name for name in ZipFile(only(PURE)).namelist() if ".dist-info/" not in name}
        assert "litefs_django/_litefs/build/go.sum" in pure
        assert not [name for name in pure if name.startswith(BUNDLED)]
        with tarfile.open(only(SDIST)) as sdist:
            assert not [name for name in sdist.getnames() if f"/{BUNDLED}" in name]
        for machine in binary.ARCHITECTURES:
            names = {name for name in ZipFile(wheel_for(machine)).namelist() if ".dist-info/" not in name}
            assert names - pure == {f"{BUNDLED}litefs", f"{BUNDLED}LICENSES.txt"}
            assert pure <= names

    @pytest.mark.parametrize("machine", binary.ARCHITECTURES)
    def test_the_licences_of_34_modules_and_of_go(self, machine: str) -> None:
        text = ZipFile(wheel_for(machine)).read(f"{BUNDLED}LICENSES.txt").decode()
        introduction, *sections = text.split(f"\n{'=' * 100}\n")
        names = introduction.split("\n\n")[1].splitlines()
        assert len(names) == 35
        assert sum(re.fullmatch(r"\S+ v\S+", name) is not None for name in names) == 34
        for name in names:
            assert any(re.match(rf"{re.escape(name)}: (LICENSE|COPYING)", section) for section in sections)
        assert sum("Mozilla Public License, version 2.0" in section for section in sections) == 6

    def test_a_module_without_a_licence_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = licences._texts
        monkeypatch.setattr(licences, "_texts", lambda path: {} if "lumberjack" in path.name else texts(path))
        program = unpack(wheel_for(HERE), tmp_path, "manylinux_2_17", HERE)
        with pytest.raises(SystemExit, match=r"lumberjack\.v2 v2\.0\.0 has no licence in /"):
            licences.licences(program, binary.ARCHITECTURES[HERE])


class TestInstalled:
    @pytest.mark.cluster
    def test_a_wheel_with_litefs_needs_nothing_else(self, tmp_path: Path) -> None:
        site = Site(tmp_path, str(wheel_for(HERE)))
        (bundled,) = (tmp_path / "venv").glob(f"lib/python3.*/site-packages/{BUNDLED}litefs")
        assert site.manage("litefs_install").startswith(f"LiteFS {binary.VERSION}: {bundled}\n")
        site.shows_that_it_runs()

    @pytest.mark.cluster
    @pytest.mark.timeout(900)
    @pytest.mark.parametrize("pattern", [PURE, SDIST])
    def test_without_litefs_it_is_built(self, tmp_path: Path, pattern: str) -> None:
        site = Site(tmp_path, f"{only(pattern)}[build]")
        said = site.manage("litefs_install")
        assert f"LiteFS {binary.VERSION}: {tmp_path}/venv/bin/litefs-{binary.VERSION}\n" in said
        site.shows_that_it_runs()

    def test_on_musl(self, tmp_path: Path) -> None:
        """No Python of musl is to be had: pip takes the wheel for one, and its LiteFS runs without any C library."""
        program = unpack(wheel_for(HERE), tmp_path, "musllinux_1_1", HERE)
        binary.verify(program)
        if os.geteuid():
            pytest.skip("only root can show a program nothing but itself")
        assert f"LiteFS {binary.VERSION}," in run("chroot", program.parent, "/litefs", "version")

    def test_the_other_machines_is_refused_here(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(tmp_path)]
        result = subprocess.run([*command, wheel_for(ELSEWHERE)], check=False, capture_output=True, text=True)
        assert result.returncode == 1
        assert "is not a supported wheel on this platform" in result.stderr
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("system", ["manylinux_2_17", "musllinux_1_1"])
    def test_on_the_other_machine(self, tmp_path: Path, system: str) -> None:
        program = unpack(wheel_for(ELSEWHERE), tmp_path, system, ELSEWHERE)
        binary.verify(program, binary.ARCHITECTURES[ELSEWHERE])
        emulator = shutil.which(f"qemu-{ELSEWHERE}-static")
        if emulator is None:
            said = f"qemu-{ELSEWHERE}-static is missing: apt-get install qemu-user-static"
            if os.environ.get("LITEFS_TEST_NO_SKIPS") == "1":
                pytest.fail(said)
            pytest.skip(said)
        assert f"LiteFS {binary.VERSION}," in run(emulator, program, "version")
