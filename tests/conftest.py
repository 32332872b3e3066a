"""The real LiteFS for the tests, and the check that they leave nothing behind."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pytest
from django.conf import settings

from litefs_django import conf
from litefs_django._litefs.errors import BinaryError
from tests.cluster.consul import consul
from tests.configuring import OURS
from tests.machine import SESSION_VARIABLE, fuse_problem, leftover_processes, litefs, mount_points


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of real nodes are skipped where FUSE cannot be mounted; LITEFS_TEST_NO_SKIPS=1 makes that a failure."""
    if not any(item.iter_markers("cluster")) and not any(item.iter_markers("consul")):
        return
    if problem := fuse_problem():
        if os.environ.get("LITEFS_TEST_NO_SKIPS") == "1":
            pytest.fail(f"LITEFS_TEST_NO_SKIPS=1, and {problem}", pytrace=False)
        pytest.skip(problem)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what the tests need, which takes minutes, before the time of the first one runs.

    What cannot be built is the failure of the tests that need it: pytest.exit in a worker of xdist tells nobody why.
    """
    marks = {mark.name for item in session.items for mark in item.iter_markers()}
    if session.config.option.collectonly or fuse_problem():
        return
    with suppress(BinaryError, CalledProcessError):
        if marks & {"cluster", "consul"}:
            litefs()
        if "consul" in marks:
            consul()


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails when the session ends with a mount in its directory or a process that it has started."""
    os.environ[SESSION_VARIABLE] = uuid.uuid4().hex
    # Under nohup it is ignored, and so it would be by all that the tests start.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    directory = tmp_path_factory.getbasetemp()
    yield
    left = [path for path in mount_points() if Path(path).is_relative_to(directory)]
    left += [f"process {process.pid}: {process.cmdline()}" for process in leftover_processes()]
    assert not left, f"The tests have left behind {left}"


@pytest.fixture(scope="session")
def litefs_binary() -> Path:
    """A verified LiteFS v0.5.14."""
    return litefs()


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets LITEFS, and DATABASES without the warning that override_settings gives."""

    def change(litefs: dict[str, Any], **databases: dict[str, Any]) -> None:
        monkeypatch.setattr(settings, "LITEFS", litefs)
        monkeypatch.setattr(settings, "DATABASES", databases or {"default": OURS})
        conf.read.cache_clear()

    yield change
    monkeypatch.undo()
    conf.read.cache_clear()
