"""Clusters, connections and processes for the tests. A cluster starts in 0.1 to 0.3 s: each test has its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from pytest_django import DjangoDbBlocker

from tests.cluster.connections import DjangoConnections, python
from tests.cluster.consul import consul
from tests.cluster.nodes import DATABASE, ConsulCluster, LiteFSNode, StaticCluster


class StartPython(Protocol):
    """`subprocess.Popen` of `connections.python`, with pipes from its outputs."""

    def __call__(self, node: LiteFSNode, code: str, name: str = DATABASE, **options: Any) -> subprocess.Popen[str]: ...


@pytest.fixture
def static_cluster(tmp_path: Path, litefs_binary: Path) -> Iterator[StaticCluster]:
    """Three nodes whose primary never changes."""
    with StaticCluster(3, tmp_path, litefs_binary) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def consul_binary() -> Path:
    return consul()


@pytest.fixture
def consul_cluster(tmp_path: Path, litefs_binary: Path, consul_binary: Path) -> Iterator[ConsulCluster]:
    """Three nodes whose primary can be changed."""
    with ConsulCluster(3, tmp_path, litefs_binary, consul_binary) as cluster:
        yield cluster


@pytest.fixture
def django_connection(django_db_blocker: DjangoDbBlocker) -> Iterator[DjangoConnections]:
    """Opens Django connections on any node; they are closed when the test ends."""
    with django_db_blocker.unblock(), DjangoConnections() as connect:
        yield connect


@pytest.fixture
def start_python() -> Iterator[StartPython]:
    """Starts processes that run code with Django set up on a node; the test's end is theirs at the latest."""
    started: list[subprocess.Popen[str]] = []

    def start(node: LiteFSNode, code: str, name: str = DATABASE, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            **python(node, code, name, **options), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
