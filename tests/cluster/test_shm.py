"""SQLite's WAL index on LiteFS: a shared map of the -shm file, which must not be shorter than the map."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import StartPython
from tests.cluster.connections import DjangoConnections, create_tables
from tests.cluster.nodes import StaticCluster

pytestmark = pytest.mark.cluster

# What LiteFS leaves when it drops the writes that make the file longer (SQLite first makes it 3 bytes long); that it
# does so is a matter of microseconds, so it is done by hand.
CODE = """
import os
from django.db import connection
from tests.cluster.models import Author
list(Author.objects.all())
os.truncate(f"{connection.place.path}-shm", 3)
other = connection.copy()
other.ensure_connection()
Author.objects.create(name="written")
print(Author.objects.get().name)
"""


def test_a_file_that_was_left_short(
    static_cluster: StaticCluster, start_python: StartPython, django_connection: DjangoConnections
) -> None:
    """A writer would die of SIGBUS; the next connection that is opened makes it whole."""
    connection = django_connection(static_cluster.primary)
    create_tables(connection)
    # Its own map would be shortened, too.
    connection.close()
    process = start_python(static_cluster.primary, CODE)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "written\n"), errors
