"""On the primary every kind of write is done, also while the rows that it writes are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from django.db import transaction

from litefs_django.db.backends.litefs.base import DatabaseWrapper
from tests.cluster.connections import DjangoConnections
from tests.cluster.library import AUTHORS, make_library
from tests.cluster.nodes import StaticCluster
from tests.cluster.reads import QUERIES, READS, rows_of, write_row
from tests.cluster.writes import WRITES

pytestmark = pytest.mark.cluster


@pytest.fixture
def connection(static_cluster: StaticCluster, django_connection: DjangoConnections) -> Iterator[DatabaseWrapper]:
    """To a library on the primary; in the end all nodes hold the same."""
    connection = django_connection(static_cluster.primary)
    make_library(connection)
    yield connection
    static_cluster.wait_equal()


@pytest.mark.parametrize("kind", [kind for kind in WRITES if kind != "atomic_that_goes_on_reading"])
def test_a_write_is_done(connection: DatabaseWrapper, kind: str) -> None:
    WRITES[kind](connection)


@pytest.mark.parametrize("kind", READS)
def test_a_read_is_done(connection: DatabaseWrapper, kind: str) -> None:
    READS[kind](connection)


@pytest.mark.parametrize("kind", QUERIES)
@pytest.mark.parametrize("is_atomic", [False, True])
def test_rows_are_written_while_they_are_read(connection: DatabaseWrapper, kind: str, is_atomic: bool) -> None:
    seen = 0
    with transaction.atomic(using=connection.alias) if is_atomic else nullcontext():
        for row in rows_of(kind, connection):
            write_row(row, connection)
            seen += 1
    assert seen == AUTHORS
