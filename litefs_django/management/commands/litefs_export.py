"""`manage.py litefs_export NAME FILE`: a checked copy of one database."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError, CommandParser

from litefs_django._litefs.part_file import PartFile
from litefs_django.db.backends.litefs.base import DatabaseWrapper
from litefs_django.management.copying import (
    CopyError,
    check,
    copy,
    explaining,
    find_database,
    in_words,
    is_confirmed,
    no_commits,
    open_plainly,
    snapshot,
    warm,
)
from litefs_django.management.progress import Progress


class Command(BaseCommand):
    help = "Copies a database to a plain SQLite file, on any node, while the site runs."
    # A copy is wanted most when something is wrong.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", metavar="NAME", help="The database's alias in DATABASES, or its file name.")
        parser.add_argument("file", type=Path, metavar="FILE", help="Where the copy goes; readable for its owner only.")
        parser.add_argument(
            "--noinput", "--no-input", action="store_false", dest="interactive", help="Replace FILE without asking."
        )

    def handle(self, *, name: str, file: Path, interactive: bool, verbosity: int, **options: object) -> None:
        database = find_database(name)
        with explaining(f"{file} was not written."):
            target = _find_place(database, file)
        is_there = target.exists()
        if is_there and interactive and not is_confirmed(f"{file} exists. Replace it"):
            raise CommandError(f"{file} is as it was. Choose another name, or replace it with --noinput.")
        unchanged = f"{file} {'is as it was' if is_there else 'was not made'}."
        with explaining(unchanged), Progress(self.stdout, verbosity) as progress:
            said = _export(database, target, progress)
        if verbosity > 0:
            self.stdout.write(f"{file}: {said}")


def _find_place(database: DatabaseWrapper, file: Path) -> Path:
    """Where FILE really lies. Raises CopyError when nothing can be put there."""
    target = file.resolve()
    settings = database.get_litefs_settings()
    for key, path in (("MOUNT_PATH", settings.mount_path), ("DATA_PATH", settings.data_path)):
        if target.is_relative_to(path.resolve()):
            raise CopyError(f'{file} lies in LITEFS["{key}"], which is LiteFS\'s own: choose another place.')
    if not target.parent.is_dir():
        raise CopyError(f"There is no directory {target.parent}.")
    if target.exists() and not target.is_file():
        raise CopyError(f"{file} exists and is not a file: choose another name.")
    return target


def _export(database: DatabaseWrapper, target: Path, progress: Progress) -> str:
    """Puts a checked copy at `target`, and says what it is."""
    place = database.place
    name = f"database {database.alias!r} ({place.path.name})"
    if place.detector.device() is not None and not place.path.exists():
        raise CopyError(f"There is no {name} on node {place.settings.cluster.node!r} yet.")
    database.ensure_connection()
    with PartFile(target) as part:
        warm(place.path, progress)
        with ExitStack() as stack:
            with no_commits(database):
                taken = stack.enter_context(snapshot(database))
            lag = place.detector.lag()
            copy(taken.connection, part.path, progress, "Copying")
        progress.step("Checking")
        with closing(open_plainly(part.path, "mode=ro")) as copied:
            check(copied, f"The {name}")
        progress.step("Writing")
        size = in_words(part.path.stat().st_size)
        part.put(target)
    if lag:
        state = f"a replica that heard from its primary {lag:.1f} s before"
    else:
        state = "the primary" if lag == 0 else "a replica that has never heard from a primary"
    return f"{name} at {taken.position}, from {place.settings.cluster.node!r}, {state}; {size}, found sound."
