"""Connections of this process to nodes that `litefs_run` runs. It needs Django set up."""

from __future__ import annotations

from litefs_django._litefs.reading import read_settings
from litefs_django.db.backends.litefs.base import DatabaseWrapper
from tests.cluster.connections import open_connection
from tests.cluster.run.nodes import DATABASE, SupervisedNode


def connection_to(node: SupervisedNode) -> DatabaseWrapper:
    """A connection of this process to the node's database."""

    class Opened:
        name = node.litefs["NODE"]
        settings = read_settings(node.litefs, {"default": DATABASE})

    return open_connection(Opened(), DATABASE)  # type: ignore[arg-type]
