"""One connection in several hands: threads, functions that SQLite calls, signals. Turn and gate stay in order."""

from __future__ import annotations

import gc
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.db import ProgrammingError, transaction

from litefs_django.db.backends.litefs import guard
from litefs_django.db.backends.litefs.base import DatabaseWrapper
from tests.cluster.connections import DjangoConnections
from tests.cluster.library import INSERT, authors, make_library, raw
from tests.cluster.locks import gate, held, is_free, turn
from tests.cluster.models import Tag
from tests.cluster.nodes import StaticCluster
from tests.machine import wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture
def connection(tmp_path: Path, litefs_binary: Path, django_connection: DjangoConnections) -> Iterator[DatabaseWrapper]:
    """To a library on a primary; any thread may use it."""
    with StaticCluster(1, tmp_path, litefs_binary) as cluster:
        connection = django_connection(cluster.primary)
        make_library(connection)
        connection.inc_thread_sharing()
        yield connection
        connection.close()


def new_names(connection: DatabaseWrapper) -> set[str]:
    return set(authors(connection).exclude(name__startswith="a").values_list("name", flat=True))


def are_free(connection: DatabaseWrapper) -> tuple[bool, bool]:
    return is_free(turn(connection)), is_free(gate(connection))


def insert_tag(connection: DatabaseWrapper, function: str) -> None:
    """By a function that SQLite calls meanwhile."""
    raw(connection).execute(f"INSERT INTO cluster_tag (name) SELECT {function}()")


def test_threads_that_share_a_connection_write_one_after_the_other(connection: DatabaseWrapper) -> None:
    has_begun, may_end = threading.Event(), threading.Event()
    seen: list[tuple[bool, bool]] = []

    def wait() -> str:
        has_begun.set()
        may_end.wait(30)
        return "first"

    def look() -> str:
        seen.append(are_free(connection))
        return "second"

    raw(connection).create_function("wait", 0, wait)
    raw(connection).create_function("look", 0, look)
    threads = [threading.Thread(target=insert_tag, args=[connection, name]) for name in ("wait", "look")]
    threads[0].start()
    assert has_begun.wait(30)
    threads[1].start()
    may_end.set()
    for thread in threads:
        thread.join()
    assert seen == [(False, False)]
    assert are_free(connection) == (True, True)
    assert Tag.objects.using(connection.alias).filter(name__in=["first", "second"]).count() == 2


def test_the_next_writer_begins_while_a_commit_is_checked(
    connection: DatabaseWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the gate: it cannot commit, and the supervisor cannot change the role."""
    seen: list[tuple[bool, bool]] = []
    confirm = guard.Connection._confirm

    def look(self: guard.Connection) -> None:
        seen.append(are_free(connection))
        confirm(self)

    monkeypatch.setattr(guard.Connection, "_confirm", look)
    with transaction.atomic(using=connection.alias):
        authors(connection).create(name="new")
        assert are_free(connection) == (False, True)
    assert seen == [(True, False)]
    assert are_free(connection) == (True, True)


def test_a_thread_that_ends_leaves_the_transaction_of_another(connection: DatabaseWrapper) -> None:
    has_written, may_end = threading.Event(), threading.Event()

    def write() -> None:
        raw(connection).execute(INSERT)
        has_written.set()
        may_end.wait(30)

    thread = threading.Thread(target=write)
    thread.start()
    assert has_written.wait(30)
    with transaction.atomic(using=connection.alias):
        authors(connection).create(name="one")
        may_end.set()
        thread.join()
        gc.collect()
        authors(connection).create(name="two")
    assert new_names(connection) == {"new", "one", "two"}


def test_a_thread_may_roll_back_what_another_has_begun(connection: DatabaseWrapper) -> None:
    below = raw(connection)
    below.execute("BEGIN IMMEDIATE")
    below.execute(INSERT)
    thread = threading.Thread(target=below.rollback)
    thread.start()
    thread.join()
    assert are_free(connection) == (True, True)
    assert new_names(connection) == set()


def test_a_function_that_writes_inside_a_write_commits_with_it(connection: DatabaseWrapper) -> None:
    seen: list[tuple[bool, bool]] = []

    def write() -> str:
        raw(connection).execute(INSERT)
        seen.append(are_free(connection))
        return "outer"

    raw(connection).create_function("write", 0, write)
    insert_tag(connection, "write")
    assert seen == [(False, False)]
    assert are_free(connection) == (True, True)
    assert new_names(connection) == {"new"}


def test_a_signal_after_the_turn_was_taken_gives_it_back(
    connection: DatabaseWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake moment: the exception of a signal's handler comes between the turn and BEGIN."""
    below: Any = raw(connection)
    take_turn = below._take_turn

    def take_and_be_interrupted(**options: Any) -> None:
        take_turn(**options)
        raise KeyboardInterrupt

    monkeypatch.setattr(below, "_take_turn", take_and_be_interrupted)
    for write in ("BEGIN IMMEDIATE", INSERT):
        with pytest.raises(KeyboardInterrupt):
            below.execute(write)
        assert are_free(connection) == (True, True)


def test_a_connection_closed_inside_atomic_leaves_no_lock(connection: DatabaseWrapper) -> None:
    with pytest.raises(ProgrammingError, match="closed"), transaction.atomic(using=connection.alias):  # noqa: PT012
        authors(connection).create(name="lost")
        connection.close()
        assert are_free(connection) == (True, True)
        authors(connection).create(name="lost, too")
    authors(connection).create(name="new")
    assert new_names(connection) == {"new"}


def test_threads_that_share_a_connection_wait_for_the_gate_together(connection: DatabaseWrapper) -> None:
    done: list[int] = []

    def write(number: int) -> None:
        with suppress(sqlite3.OperationalError):
            raw(connection).execute(f"INSERT INTO cluster_tag (name) VALUES ('t{number}')")
            done.append(number)

    threads = [threading.Thread(target=write, args=[number]) for number in range(8)]
    with held(gate(connection)):
        for thread in threads:
            thread.start()
        wait_until(lambda: not is_free(turn(connection)), "a thread has the turn")
        assert not done
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(8))
    assert are_free(connection) == (True, True)
