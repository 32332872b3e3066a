"""The steps of a request's course, without a cluster. With one: tests/cluster/handover."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.http.response import HttpResponseBase
from django.test import RequestFactory, override_settings

from litefs_django import conf
from litefs_django.handover import course as module
from litefs_django.handover import signing
from litefs_django.handover.course import Look, Pause, Send, course
from litefs_django.handover.signing import ANSWER, HOP, Signer
from litefs_django.handover.transport import Forwarded, NotSent
from tests.machine import SECRET

NODES = {name: {"ADDRESS": name, "URL": f"http://{name}:8000"} for name in ("web1", "web2", "web3")}

urlpatterns: list[Any] = []


@pytest.fixture(autouse=True)
def _on_a_replica(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_answered", {})
    litefs = {
        "NODE": "web1",
        "NODES": NODES,
        "PRIMARY": "web2",
        "SECRET": SECRET,
        "MOUNT_PATH": "/litefs",
        "DATA_PATH": "/var/lib/litefs",
    }
    with override_settings(LITEFS=litefs, ROOT_URLCONF=__name__):
        yield


def begin() -> module.Steps[HttpResponseBase]:
    return course(RequestFactory().post("/", {"text": "x"}))


def answer_of(steps: module.Steps[HttpResponseBase], name: str, value: str, status: int = 200) -> object:
    """What comes of it when the node answers with this header."""
    try:
        return steps.send(Forwarded(iter(()), status, "", [(name, value)]))
    except StopIteration as end:
        return end.value


def forward(steps: module.Steps[HttpResponseBase]) -> None:
    """To web2, as LiteFS says."""
    assert isinstance(next(steps), Look)
    assert isinstance(steps.send(conf.get_settings().cluster.get("web2")), Send)
    assert isinstance(answer_of(steps, "X", "done"), Forwarded)


def unreachable(steps: module.Steps[HttpResponseBase]) -> HttpResponseBase:
    """What comes of it when web2 is the primary and takes no connection."""
    step = next(steps)
    while True:
        try:
            if isinstance(step, Send):
                step = steps.throw(NotSent("Connection refused"))
            else:
                time.sleep(step.seconds if isinstance(step, Pause) else 0)
                step = steps.send(conf.get_settings().cluster.get("web2"))
        except StopIteration as end:
            response: HttpResponseBase = end.value
            return response


def test_who_has_just_answered_is_sent_the_next_request_without_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    forward(begin())
    sent = next(begin())
    assert isinstance(sent, Send)
    assert sent.outgoing.url == "http://web2:8000"
    monkeypatch.setattr(module, "FRESH", 0.0)
    assert isinstance(next(begin()), Look)


def test_one_that_is_not_the_primary_any_more_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    forward(begin())
    steps = begin()
    sent = next(steps)
    assert isinstance(sent, Send)
    nothing_done = Signer((SECRET,)).sign_answer(dict(sent.outgoing.headers)[HOP])
    assert isinstance(answer_of(steps, ANSWER, nothing_done), Pause)
    assert isinstance(steps.send(None), Look)


def test_a_body_that_can_be_sent_but_once_is_not_sent_without_a_look() -> None:
    forward(begin())
    with override_settings(FILE_UPLOAD_MAX_MEMORY_SIZE=0):
        assert isinstance(next(begin()), Look)


@pytest.mark.parametrize("window", [10.0, 0.0])
def test_one_that_is_said_to_come_too_late(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, window: float
) -> None:
    """It has waited on a node that stood still, and is sent again; or else the clocks differ."""
    monkeypatch.setattr(signing, "WINDOW", window)
    forward(begin())
    steps = begin()
    sent = next(steps)
    assert isinstance(sent, Send)
    nothing_done = Signer((SECRET,)).sign_answer(dict(sent.outgoing.headers)[HOP])
    answer = answer_of(steps, ANSWER, nothing_done, status=403)
    if window:
        assert isinstance(answer, HttpResponseBase)
        assert answer.status_code == 503
        assert "'web2': its clock is more than 10 s ahead of this node's, 'web1'" in caplog.messages[0]
    else:
        assert isinstance(answer, Pause)


def test_why_nobody_was_reached_is_logged(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.LITEFS = {**settings.LITEFS, "HANDOVER_TIMEOUT": 0.01}
    assert unreachable(begin()).status_code == 503
    assert caplog.messages[0] == (
        "POST / found no primary for 0.01 s; web2 takes no connection at http://web2:8000 (Connection refused)"
    )
