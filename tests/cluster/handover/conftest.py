"""Sites on real clusters: under gunicorn (WSGI) and uvicorn (ASGI)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.handover.site import SERVERS, Site
from tests.cluster.nodes import StaticCluster

StartSite = Callable[..., Site]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    """Each application server in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="module", params=SERVERS)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, litefs_binary: Path
) -> Iterator[Site]:
    """Three nodes whose primary never changes, for all tests of a module: each writes names of its own."""
    directory = tmp_path_factory.mktemp(request.param)
    with (
        StaticCluster(3, directory, litefs_binary) as cluster,
        Site(cluster, request.param, directory, WRITES=["/told/", "/told/a*", "/answer/"]) as site,
    ):
        failed = request.session.testsfailed
        yield site
        # pytest shows it with the failure.
        print(site.logs() if request.session.testsfailed > failed else "")


@pytest.fixture
def start_site(tmp_path: Path, static_cluster: StaticCluster) -> Iterator[StartSite]:
    """A site of this test's own, with the LITEFS keys and the project's settings that it is given."""
    with ExitStack() as stack:

        def start(server: str, settings: dict[str, Any] | None = None, **litefs: Any) -> Site:
            site = Site(static_cluster, server, tmp_path)
            site.configure(settings, **litefs)
            return stack.enter_context(site)

        yield start
