"""How a database on the mount is opened: mode=ro on a replica, mode=rw on the primary, never as a plain file."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from django.core.exceptions import ImproperlyConfigured

from litefs_django._litefs.errors import MountError
from litefs_django._litefs.mount import WRITABLE, PrimaryDetector
from litefs_django._litefs.node_file import NodeFile
from litefs_django._litefs.settings import LiteFSSettings, database_name_problem
from litefs_django.db.backends.litefs.guard import Connection
from litefs_django.db.backends.litefs.place import Gone, Place, Role

# Bytes of the first block of SQLite's WAL index, which is all that opening maps (sqlite.org/walformat.html).
_SHM_SIZE = 32768

# One reader, and its map, for all connections of a process.
_node_file = lru_cache(maxsize=None)(NodeFile)


def place_of(alias: str, name: str | Path, settings: LiteFSSettings) -> Place:
    """Where the database of this NAME lies. Raises ImproperlyConfigured when LiteFS cannot hold it."""
    path = settings.mount_path / name
    if path.parent != settings.mount_path or (reason := database_name_problem(path.name)):
        where = 'is not on LITEFS["MOUNT_PATH"]' if path.parent != settings.mount_path else reason
        raise ImproperlyConfigured(f"NAME of database {alias!r}: {str(name)!r} {where}. Give a plain file name.")
    return Place(
        alias=alias,
        path=path,
        settings=settings,
        detector=PrimaryDetector(settings.mount_path),
        node_file=_node_file(settings.run),
    )


def opening_parameters(place: Place) -> dict[str, Any]:
    """What sqlite3.connect() needs for a guarded connection in this node's role; makes a new database first.

    Raises Gone when LiteFS does not serve here, or the database has not arrived; OperationalError when this user
    may not enter the mount. A database is only ever made by name on a directory that the kernel lists as LiteFS's
    mount, and opened without leave to make it: SQLite would make a plain file in a directory that is not mounted.
    """
    generation = place.node_file.generation()
    node = place.settings.cluster.node
    if generation is not None and generation & 1:
        raise Gone(f"LiteFS is down on node {node!r}; litefs_run is about to start it again.")
    device = _mounted_device(place)
    try:
        status = os.stat(place.path)
        is_primary = bool(status.st_mode & WRITABLE)
        is_empty = status.st_size == 0
        if is_empty and not is_primary:
            raise _not_arrived(place)
    except FileNotFoundError:
        is_primary = is_empty = _make(place, device)
    except OSError as error:
        raise _no_answer(place, error) from error
    mode = "rw" if is_primary else "ro"
    return {
        "database": f"file:{quote(str(place.path))}?mode={mode}",
        "uri": True,
        "factory": partial(
            _connect, place=place, is_writable=is_primary, device=device, generation=generation, is_empty=is_empty
        ),
    }


def _connect(*args: Any, place: Place, device: int, **kwargs: Any) -> Connection:
    try:
        return _open(*args, place=place, device=device, **kwargs)
    except (sqlite3.OperationalError, OSError) as error:
        if place.role(device) is not Role.GONE:
            raise
        raise Gone(f"LiteFS ended while {place.path} was being opened.") from error


def _open(*args: Any, place: Place, is_empty: bool, **kwargs: Any) -> Connection:
    connection = Connection(*args, place=place, **kwargs)
    try:
        # SQLite opens the -shm file at the first read, by its path.
        sqlite3.Cursor(connection).execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        if connection.role() is Role.GONE:
            if place.detector.device() is None:
                place.path.with_name(f"{place.path.name}-shm").unlink(missing_ok=True)
            raise Gone(f"LiteFS ended while {place.path} was being opened.")
        if is_empty:
            connection.make_wal()
        _complete_shm(place.path.with_name(f"{place.path.name}-shm"))
    except BaseException:
        connection.close()
        raise
    return connection


def _complete_shm(path: Path) -> None:
    """Makes the -shm file as long as what SQLite has mapped of it.

    LiteFS drops what SQLite writes to it while it writes there itself: at a change of role, and for each transaction
    that a replica gets (v0.5.14, db.go: WriteSHMAt, updateSHM). If that is how SQLite has just made it longer, whoever
    touches the rest would die of SIGBUS. Nobody makes it shorter while a connection is open.
    """
    with suppress(FileNotFoundError):
        if os.stat(path).st_size < _SHM_SIZE:
            os.truncate(path, _SHM_SIZE)


def _mounted_device(place: Place) -> int:
    mount_path = place.settings.mount_path
    device = place.detector.device()
    if device is not None:
        return device
    try:
        os.stat(mount_path)
    except PermissionError as error:
        raise sqlite3.OperationalError(
            f"This user may not enter {mount_path}: LiteFS serves only the user who started it unless "
            'LITEFS["ALLOW_OTHER"] is True.'
        ) from error
    except OSError as error:
        raise _no_answer(place, error) from error
    raise Gone(
        f"No LiteFS is mounted at {mount_path} on node {place.settings.cluster.node!r}: start it with "
        "'manage.py litefs_run'. No file was made there."
    )


def _no_answer(place: Place, error: OSError) -> Gone:
    return Gone(f"LiteFS does not answer at {place.path}: {error.strerror}.")


def _not_arrived(place: Place) -> Gone:
    primary = place.detector.primary_name()
    source = f"from the primary {primary!r}" if primary else "from a primary, and none is known now"
    return Gone(
        f"Database {place.alias!r} ({place.path.name}) has not arrived on node {place.settings.cluster.node!r} yet: "
        f"it comes {source}."
    )


def _make(place: Place, device: int) -> bool:
    """Makes the database's empty file on the primary, and returns True; raises OperationalError elsewhere."""
    settings = place.settings
    try:
        if not place.detector.is_primary(place.path.name):
            raise _not_arrived(place)
        directory = os.open(settings.mount_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.fstat(directory).st_dev != device:
                raise Gone(f"LiteFS ended while {place.path} was being made.")
            os.close(os.open(place.path.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666, dir_fd=directory))
        finally:
            os.close(directory)
    except MountError as error:
        raise Gone(str(error)) from error
    except OSError as error:
        raise _no_answer(place, error) from error
    return True
