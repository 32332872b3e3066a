"""`python -m tests.package DIRECTORY`: the sdist, the wheel without LiteFS, and a wheel with it for each machine.

Made from the files that git knows or would add, in a copy: the checkout stays as it is. Distributions of this
project in DIRECTORY are replaced at the very end, or not at all.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from litefs_django._litefs import binary
from tests.package.licences import licences

ROOT = Path(__file__).parents[2]
# LiteFS is static: it needs neither C library. pip of Python 3.11 and later knows all of these (PEP 600, PEP 656).
PLATFORMS = "manylinux_2_17_{0}.manylinux2014_{0}.musllinux_1_1_{0}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.package", description=__doc__)
    parser.add_argument("directory", type=Path, help="where to put them, for example dist")
    directory: Path = parser.parse_args().directory
    with tempfile.TemporaryDirectory(prefix="litefs-package-") as temporary:
        work = Path(temporary)
        made = work / "made"
        copy_sources(work / "source")
        report("Making the sdist, and a wheel from it")
        run("build", "--outdir", str(made), str(work / "source"))
        (sdist,) = made.glob("*.tar.gz")
        for machine, architecture in binary.ARCHITECTURES.items():
            # A tree of its own: setuptools would take what it finds in another's build/.
            shutil.unpack_archive(sdist, work / machine)
            (tree,) = (work / machine).iterdir()
            make_wheel(tree, machine, architecture, made)
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("litefs_django-*"):
            old.unlink()
        for new in sorted(made.iterdir()):
            shutil.copy(new, directory)
            report(f"{directory / new.name}: {new.stat().st_size / 1e6:.1f} MB")


def report(line: str) -> None:
    print(line, flush=True)


def copy_sources(target: Path) -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def make_wheel(tree: Path, machine: str, architecture: str, target: Path) -> None:
    """Puts LiteFS and its licences into this unpacked sdist, and makes its wheel."""
    place = tree / binary.BUNDLED.relative_to(ROOT)
    place.parent.mkdir()
    binary.build(place, report, architecture)
    place.with_name("LICENSES.txt").write_text(licences(place, architecture), encoding="utf-8")
    run("build", "--wheel", "--outdir", str(tree / "dist"), str(tree))
    (wheel,) = (tree / "dist").iterdir()
    run("wheel", "tags", "--remove", "--platform-tag", PLATFORMS.format(machine), str(wheel))
    (wheel,) = (tree / "dist").iterdir()
    wheel.rename(target / wheel.name)


def run(module: str, *arguments: str) -> None:
    """Silent unless it fails."""
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        sys.exit(f"{shlex.join(command)}:\n{result.stdout}")


if __name__ == "__main__":
    main()
