"""Nodes that `manage.py litefs_run` runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.cluster.consul import ConsulAgent
from tests.cluster.run.nodes import SupervisedNode, static_nodes
from tests.machine import free_ports


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
    ports = free_ports(2)
    members = {f"node{n}": {"ADDRESS": "127.0.0.1", "HTTP_PORT": port} for n, port in enumerate(ports, 1)}
    with ExitStack() as stack:
        agent = ConsulAgent(tmp_path / "consul", consul_binary)
        stack.callback(agent.clean_up)
        agent.start()
        litefs = {
            "LEADER_ELECTION": "consul",
            "CONSUL": {"URL": agent.url, "KEY": "litefs"},
            "LITEFS_YML": {"lease": {"reconnect-delay": "100ms", "consul": {"lock-delay": "1ms"}}},
            "NODES": members,
        }
        yield [
            stack.enter_context(SupervisedNode({**litefs, "NODE": name}, tmp_path / name, litefs_binary))
            for name in members
        ]
