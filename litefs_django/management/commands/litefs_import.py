"""`manage.py litefs_import NAME FILE`: makes a SQLite file the content of a database, on all nodes."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from litefs_django._litefs.errors import LiteFSError
from litefs_django._litefs.judge import Kind
from litefs_django._litefs.mount import Position
from litefs_django._litefs.part_file import PartFile
from litefs_django.db.backends.litefs.base import DatabaseWrapper
from litefs_django.exceptions import CommitOutcomeUnknown
from litefs_django.management.copying import (
    CopyError,
    Snapshot,
    backup,
    check,
    copy,
    count_rows,
    explaining,
    find_database,
    in_words,
    is_confirmed,
    open_plainly,
    snapshot,
)
from litefs_django.management.progress import Progress

# How much of the disk an import takes, in sizes of FILE: the copy that is checked, LiteFS's WAL, LTX file and database.
_ROOM = 4


class Command(BaseCommand):
    help = "Replaces a database by a SQLite file, on the primary; the replicas follow. The old content is kept."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", metavar="NAME", help="The database's alias in DATABASES, or its file name.")
        parser.add_argument("file", type=Path, metavar="FILE", help="The SQLite file. It is not changed.")
        parser.add_argument(
            "--noinput", "--no-input", action="store_false", dest="interactive", help="Replace without asking."
        )

    def handle(self, *, name: str, file: Path, interactive: bool, verbosity: int, **options: object) -> None:
        database = find_database(name)
        name = f"database {database.alias!r} ({database.place.path.name})"
        with ExitStack() as stack:
            with explaining("Nothing was imported."):
                directory = _find_directory(database)
                size = _size_of_file(database, file)
                replaced = _size_of_content(database)
                _check_room(directory, _ROOM * size + replaced)
                with Progress(self.stdout, verbosity) as progress:
                    content = _stage(file, stack.enter_context(_part(directory, database, "import")), progress)
                stack.enter_context(closing(content.connection))
                question = f"Replace {name}, now {in_words(replaced)}, on all nodes by {file} ({content})"
                if replaced and interactive and not is_confirmed(question):
                    raise CommandError("Nothing was imported. To import without a question use --noinput.")
                with Progress(self.stdout, verbosity) as progress:
                    source = _with_page_size(database, content.connection, directory, stack, progress)
                    done = _replace(database, source, directory if replaced else None, stack, progress)
            kept = f" What it replaced is kept in {done.kept}." if done.kept else ""
            with explaining(f"{file} was imported.{kept}"), Progress(self.stdout, verbosity) as progress:
                _verify(content, done, progress)
        if verbosity > 0:
            self.stdout.write(f"{file} ({content}) is {name} now, at {done.new.position}, found sound.{kept}")


@dataclass(frozen=True, slots=True)
class _Content:
    """A checked copy of FILE."""

    connection: sqlite3.Connection
    size: int
    rows: dict[str, int]

    def __str__(self) -> str:
        return f"{in_words(self.size)}, tables: {len(self.rows)}, rows: {sum(self.rows.values()):,}"


@dataclass(frozen=True, slots=True)
class _Done:
    """What an import has done. `kept` is the file that holds what was replaced; None when there was nothing."""

    old: Position
    new: Snapshot
    kept: Path | None


def _find_directory(database: DatabaseWrapper) -> Path:
    """Where copies are kept. Raises CopyError on a node that is not the primary, and when it cannot be written to."""
    place = database.place
    if place.detector.device() is None:
        raise CopyError(f"No LiteFS is mounted at {place.settings.mount_path}: start it with 'manage.py litefs_run'.")
    if not place.detector.is_primary(place.path.name):
        this, primary = place.settings.cluster.node, place.not_primary().primary
        said = f"The primary is {primary.name!r} ({primary.url or primary.address})." if primary else "None is known."
        raise CopyError(f"{this!r} is not the primary. {said} Run litefs_import on the primary, with FILE there.")
    directory = place.settings.data_path / "replaced"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise CopyError(
            f"{directory} cannot be made ({error.strerror}): run litefs_import as the user that runs litefs_run."
        ) from error
    return directory


def _size_of_file(database: DatabaseWrapper, file: Path) -> int:
    """FILE's size in bytes. Raises CopyError for what is no file, or not to be read as one."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CopyError(f"{file} is not a file.")
    settings = database.get_litefs_settings()
    if file.resolve().is_relative_to(settings.data_path.resolve() / "dbs"):
        raise CopyError(f"{file} is LiteFS's own and lacks what its WAL holds: take a copy with litefs_export.")
    return status.st_size


def _part(directory: Path, database: DatabaseWrapper, purpose: str) -> PartFile:
    return PartFile(directory / f"{database.place.path.name}-{purpose}")


def _stage(file: Path, part: PartFile, progress: Progress) -> _Content:
    """Copies FILE and checks the copy: what is checked is what is imported. Raises CopyError for what cannot be."""
    _copy_file(file, part.path, progress)
    connection = open_plainly(part.path, "mode=ro")
    try:
        progress.step(f"Checking {file.name}")
        check(connection, str(file))
        (encoding,) = connection.execute("PRAGMA encoding").fetchone()
        if encoding != "UTF-8":
            # Connections that are open go on in theirs, and fail at every statement.
            raise CopyError(f"{file} is in {encoding}, and has to be in UTF-8: convert it with sqlite3's .dump.")
        rows = count_rows(connection)
        if not rows:
            raise CopyError(f"{file} has no tables.")
        return _Content(connection, part.path.stat().st_size, rows)
    except BaseException:
        connection.close()
        raise


def _copy_file(file: Path, path: Path, progress: Progress) -> None:
    with file.open("rb") as opened:
        header = opened.read(100)
    if header[:16] != b"SQLite format 3\0":
        raise CopyError(f"{file} is {'not a SQLite database' if header else 'empty'}.")
    # In WAL mode, and nobody has it open: as it lies there it is whole, and stays so without files beside it.
    is_at_rest = 2 in header[18:20] and not file.with_name(f"{file.name}-wal").exists()
    try:
        with closing(open_plainly(file, f"mode=ro{'&immutable=1' if is_at_rest else ''}")) as original:
            original.execute("BEGIN")
            original.execute("SELECT count(*) FROM sqlite_master").fetchone()
            copy(original, path, progress, f"Copying {file.name}")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
            raise CopyError(
                f"{file} was left in the middle of a write. Reading it would repair it, and it is not to be changed "
                "here: open it once with sqlite3, or import a copy that you have opened."
            ) from error
        raise CopyError(f"{file}: {error}.") from error
    except sqlite3.DatabaseError as error:
        raise CopyError(f"{file} is damaged; SQLite says: {error}.") from error


def _size_of_content(database: DatabaseWrapper) -> int:
    """The database's size in bytes; 0 when it holds nothing yet."""
    if not database.place.path.exists():
        return 0
    with database.cursor() as cursor:
        tables = cursor.execute("SELECT count(*) FROM sqlite_master").fetchone()
        pages = cursor.execute("PRAGMA page_count").fetchone()
        size = cursor.execute("PRAGMA page_size").fetchone()
    return int(pages[0] * size[0]) if tables[0] else 0


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise CopyError(f"The disk of {directory} has {in_words(free)} free, and this needs {in_words(needed)}.")


def _with_page_size(
    database: DatabaseWrapper, content: sqlite3.Connection, directory: Path, stack: ExitStack, progress: Progress
) -> sqlite3.Connection:
    """The content in pages of the database's size, which LiteFS does not let change."""
    with database.cursor() as cursor:
        (wanted,) = cursor.execute("PRAGMA page_size").fetchone()
    if content.execute("PRAGMA page_size").fetchone()[0] == wanted:
        return content
    progress.step(f"Converting to pages of {wanted} bytes")
    part = stack.enter_context(_part(directory, database, "converted"))
    content.execute(f"PRAGMA page_size = {wanted}")
    content.execute("VACUUM INTO ?", [str(part.path)])
    return stack.enter_context(closing(open_plainly(part.path, "mode=ro")))


def _replace(
    database: DatabaseWrapper, source: sqlite3.Connection, keep_in: Path | None, stack: ExitStack, progress: Progress
) -> _Done:
    """Imports under the write turn and the commit gate: nobody writes between what is kept and what comes."""
    kept: Path | None = None
    is_committed = False

    def exchange() -> _Done:
        nonlocal kept, is_committed
        with snapshot(database) as old:
            if keep_in is not None:
                kept = _keep(database, old, keep_in, progress)
        backup(source, database.connection, progress, "Importing")
        is_committed = True
        try:
            return _Done(old.position, stack.enter_context(snapshot(database)), kept)
        except (CopyError, LiteFSError, DatabaseError) as error:
            raise CommitOutcomeUnknown(f"The import was committed, but then: {error}", database.alias) from error

    try:
        done: _Done = database.connection.run(Kind.WRITE, exchange)
    except CommitOutcomeUnknown as error:
        raise CommandError(f"{error} What was there before is kept in {kept}." if kept else str(error)) from error
    except BaseException:
        if kept is not None and not is_committed:
            kept.unlink()
        raise
    return done


def _keep(database: DatabaseWrapper, old: Snapshot, directory: Path, progress: Progress) -> Path:
    target = directory / f"{database.place.path.name}-{old.position.txid:016x}"
    with _part(directory, database, "kept") as part:
        copy(old.connection, part.path, progress, "Keeping what is there")
        part.put(target)
    return target


def _verify(content: _Content, done: _Done, progress: Progress) -> None:
    """Raises CopyError unless the database holds what was imported."""
    if done.new.position.txid <= done.old.txid:
        raise CopyError(f"LiteFS's position did not move on: it is {done.new.position}.")
    progress.step("Checking the database")
    check(done.new.connection, "What was imported")
    if count_rows(done.new.connection) != content.rows:
        raise CopyError("The tables do not have the rows of the imported file.")
