"""Django's own test suite on a real LiteFS primary: `python tests/django_suite.py [--stock] [LABEL ...]`.

Runs it through this ENGINE, then what failed through Django's sqlite3 ENGINE on the same mount: whole
packages, since some tests fail only after others; with `--stock` everything that was run before. Ends
with status 1 if anything fails through this ENGINE alone. The tests come from the sdist of the Django
that is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import django

ROOT = Path(__file__).parents[1]
# Run as a file, Python would look for `tests` beside it.
sys.path.insert(0, str(ROOT))

from tests.cluster.nodes import LiteFSNode, StaticCluster  # noqa: E402
from tests.machine import built_once, fuse_problem, litefs  # noqa: E402

OURS = "litefs_django.db.backends.litefs"
STOCK = "django.db.backends.sqlite3"

# As unittest prints them; the name of a class stands for its setUpClass.
_FAILED = re.compile(r"^(?:FAIL|ERROR|UNEXPECTED SUCCESS): \w+ \(([\w.]+)\)")
_RAN = re.compile(r"^Ran (\d+) tests? in ")
_OUTCOME = re.compile(r"^(?:OK|FAILED)(?: \((.*)\))?$")
_SKIPPED = re.compile(r"\bskipped=(\d+)")


@dataclass(frozen=True)
class Outcome:
    """What one run of the suite gave."""

    ran: int
    skipped: int
    failed: frozenset[str]

    def __str__(self) -> str:
        return f"{self.ran} run, {len(self.failed)} failed, {self.skipped} skipped"


def main(arguments: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s [--stock] [LABEL ...]")
    parser.add_argument("--stock", action="store_true", help="run all of it through Django's sqlite3 ENGINE, too")
    parser.add_argument("labels", nargs="*", metavar="LABEL", help="as for Django's runtests.py")
    options = parser.parse_args(arguments)
    if problem := fuse_problem():
        print(problem)
        return 1
    with tempfile.TemporaryDirectory(prefix="litefs-django-suite-") as directory:
        suite = _unpacked_suite(Path(directory))
        with StaticCluster(1, Path(directory), litefs()) as cluster:
            ours = _run(suite, cluster.primary, OURS, options.labels)
            packages = sorted({name.partition(".")[0] for name in ours.failed})
            stock = None
            if options.stock or packages:
                stock = _run(suite, cluster.primary, STOCK, options.labels if options.stock else packages)
    print(f"\nDjango {django.get_version()} with {OURS}: {ours}")
    if stock is None:
        return 0
    print(f"{'The same' if options.stock else ', '.join(packages)} with {STOCK} on the same mount: {stock}")
    for name in sorted(ours.failed & stock.failed):
        print(f"  fails with both: {name}")
    only_ours = sorted(ours.failed - stock.failed)
    for name in only_ours:
        print(f"  fails with {OURS} alone: {name}")
    return 1 if only_ours else 0


def _unpacked_suite(directory: Path) -> Path:
    """The directory of runtests.py, from the sdist, which is downloaded once."""
    version = django.get_version()
    with tarfile.open(built_once(f"django-{version}.tar.gz", lambda target: _download(version, target))) as sdist:
        sdist.extractall(directory, filter="data")
    return next(directory.glob("*/tests/runtests.py")).parent


def _download(version: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "django", "--dest", directory]
        subprocess.run([*pip, f"django=={version}"], check=True)
        (sdist,) = Path(directory).iterdir()
        shutil.move(sdist, target)


def _run(suite: Path, node: LiteFSNode, engine: str, labels: Iterable[str]) -> Outcome:
    """Runs the suite, passing its output through. Raises SystemExit when it does not come to its end."""
    runtests = [sys.executable, "runtests.py", "--settings=tests.django_suite_settings", "--parallel=1", "--noinput"]
    with subprocess.Popen(
        [*runtests, *labels],
        cwd=suite,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "LITEFS_TEST_LITEFS": json.dumps(node.litefs),
            "LITEFS_TEST_ENGINE": engine,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # What is read is passed on at once: half an hour of dots is one line.
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        output = bytearray()
        try:
            while chunk := process.stdout.read(1 << 16):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
                output += chunk
        except BaseException:
            # After Ctrl-C subprocess would leave it running, on a mount that is gone.
            process.kill()
            raise
    ran, skipped, failed = -1, 0, set()
    for line in output.decode(errors="replace").splitlines():
        if match := _FAILED.match(line):
            failed.add(match[1])
        elif match := _RAN.match(line):
            ran = int(match[1])
        elif ran >= 0 and (match := _OUTCOME.match(line)):
            skipped = int(found[1]) if (found := _SKIPPED.search(match[1] or "")) else 0
    if ran < 0 or bool(failed) != bool(process.returncode):
        raise SystemExit(f"Django's runtests.py with {engine} broke off with status {process.returncode}.")
    return Outcome(ran, skipped, frozenset(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
