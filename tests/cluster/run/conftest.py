"""Nodes that `manage.py litefs_run` runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.cluster.consul import ConsulAgent
from tests.cluster.run.nodes import SupervisedNode, elected_nodes, static_nodes


class StartNodes(Protocol):
    """Makes nodes of a static cluster, the first of them the primary; their processes and mounts end with the test."""

    def __call__(self, count: int, **litefs: Any) -> list[SupervisedNode]: ...


@pytest.fixture
def start_nodes(tmp_path: Path, litefs_binary: Path) -> Iterator[StartNodes]:
    with ExitStack() as stack:

        def make(count: int, **litefs: Any) -> list[SupervisedNode]:
            nodes = static_nodes(count, tmp_path, litefs_binary, **litefs)
            return [stack.enter_context(node) for node in nodes]

        yield make


@pytest.fixture
def node(start_nodes: StartNodes) -> SupervisedNode:
    """A cluster of one node, not started."""
    return start_nodes(1)[0]


@pytest.fixture
def consul_nodes(tmp_path: Path, litefs_binary: Path, consul_binary: Path) -> Iterator[list[SupervisedNode]]:
    """Two nodes that elect their primary, not started; their Consul runs."""
    with running_consul(tmp_path, consul_binary) as lease:
        yield from _entered(elected_nodes(2, tmp_path, litefs_binary, lease))


@pytest.fixture
def three_consul_nodes(tmp_path: Path, litefs_binary: Path, consul_binary: Path) -> Iterator[list[SupervisedNode]]:
    """Three nodes as a user has them: with LiteFS's own delays."""
    with running_consul(tmp_path, consul_binary) as lease:
        yield from _entered(elected_nodes(3, tmp_path, litefs_binary, lease))


@contextmanager
def running_consul(directory: Path, binary: Path) -> Iterator[dict[str, Any]]:
    """What LITEFS says of a Consul of its own."""
    agent = ConsulAgent(directory / "consul", binary)
    try:
        agent.start()
        yield {"LEADER_ELECTION": "consul", "CONSUL": {"URL": agent.url, "KEY": "litefs"}}
    finally:
        agent.clean_up()


def _entered(nodes: list[SupervisedNode]) -> Iterator[list[SupervisedNode]]:
    with ExitStack() as stack:
        yield [stack.enter_context(node) for node in nodes]
