"""Turn and gate of a connection's database, as somebody else sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from litefs_django._litefs.write_turn import FileLock, gate_path, turn_path
from litefs_django.db.backends.litefs.base import DatabaseWrapper
from tests.machine import wait_until


@contextmanager
def held(*paths: Path) -> Iterator[None]:
    """Somebody else holds these locks."""
    with ExitStack() as stack:
        for path in paths:
            lock = stack.enter_context(closing(FileLock(path)))
            assert lock.acquire(30)
        yield


def turn(connection: DatabaseWrapper) -> Path:
    return turn_path(connection.place.settings.run, connection.place.path.name)


def gate(connection: DatabaseWrapper) -> Path:
    return gate_path(connection.place.settings.run, connection.place.path.name)


def is_free(path: Path) -> bool:
    with closing(FileLock(path)) as lock:
        return lock.acquire(0)


def assert_free(connection: DatabaseWrapper) -> None:
    """Waits: whoever timed out may be given the lock once more, and gives it back at once."""
    for lock in (turn, gate):
        wait_until(lambda: is_free(lock(connection)), f"the {lock.__name__} is free", timeout=5)  # noqa: B023
