"""Clusters of Raft nodes, each on a host of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.raft.cluster import RaftCluster
from tests.cluster.raft.network import network_problem

MakeCluster = Callable[..., RaftCluster]


@pytest.fixture
def make_cluster(request: pytest.FixtureRequest, tmp_path: Path, litefs_binary: Path) -> Iterator[MakeCluster]:
    """Makes a cluster, not started, with `count` nodes and RaftCluster's options."""
    if problem := network_problem():
        if os.environ.get("LITEFS_TEST_NO_SKIPS") == "1":
            pytest.fail(f"LITEFS_TEST_NO_SKIPS=1, and {problem}", pytrace=False)
        pytest.skip(problem)
    clusters = []
    failed = request.session.testsfailed

    def make(count: int = 3, **options: Any) -> RaftCluster:
        clusters.append(RaftCluster(count, tmp_path, litefs_binary, **options))
        return clusters[-1]

    yield make
    # pytest shows it with the failure.
    print(*(cluster.output() for cluster in clusters if request.session.testsfailed > failed))


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Iterator[RaftCluster]:
    """Three nodes through each of which somebody writes."""
    with make_cluster() as cluster:
        yield cluster
