from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import pytest
from django.conf import settings
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed
from django.http import HttpResponse

from litefs_django.checks import check_handover, check_missing_middleware, check_saved_sessions
from litefs_django.checks.handover import MIDDLEWARE
from litefs_django.middleware import LiteFSMiddleware
from tests.configuring import ONE_NODE, OURS, TWO_NODES, Configure, ids

LITEFS: dict[str, Any] = {
    **TWO_NODES,
    "SECRET": "x" * 32,
    "NODES": {
        name: {**node, "URL": f"http://{node['ADDRESS']}:8000", "PUBLIC_URL": f"https://{name}.example"}
        for name, node in cast(dict[str, dict[str, str]], TWO_NODES["NODES"]).items()
    },
}


@pytest.fixture(autouse=True)
def middleware(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(LITEFS, default={**OURS, "CONN_MAX_AGE": None})
    monkeypatch.setattr(settings, "MIDDLEWARE", [MIDDLEWARE, "other.Middleware"])


def only() -> CheckMessage:
    (message,) = [*check_handover(None), *check_saved_sessions(None)]
    return message


def test_nothing_is_wrong() -> None:
    assert check_handover(None) == []


@pytest.mark.parametrize(
    ("mode", "missing", "code"),
    [("forward", "SECRET", "E030"), ("forward", "URL", "E031"), ("redirect", "PUBLIC_URL", "E031")],
)
def test_what_a_mode_needs(configure: Configure, mode: str, missing: str, code: str) -> None:
    litefs: dict[str, Any] = deepcopy(LITEFS) | {"HANDOVER": mode}
    del (litefs if missing == "SECRET" else litefs["NODES"]["b"])[missing]
    configure(litefs)
    assert ids([only()]) == [code]
    assert f'["{missing}"]' in only().msg
    with pytest.raises(ImproperlyConfigured, match=missing):
        LiteFSMiddleware(HttpResponse)


def test_replay_needs_nothing_and_one_node_neither(configure: Configure) -> None:
    configure({**TWO_NODES, "HANDOVER": "replay"})
    assert check_handover(None) == []
    configure(ONE_NODE)
    assert check_handover(None) == []


def test_where_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    before = "django_prometheus.middleware.PrometheusBeforeMiddleware"
    monkeypatch.setattr(settings, "MIDDLEWARE", [before, MIDDLEWARE])
    assert check_handover(None) == []
    monkeypatch.setattr(settings, "MIDDLEWARE", [before, "other.Middleware", MIDDLEWARE])
    assert ids([only()]) == ["E032"]
    assert "'other.Middleware'" in only().msg


def test_a_cluster_without_it(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_missing_middleware(None) == []
    monkeypatch.setattr(settings, "MIDDLEWARE", ["other.Middleware"])
    (message,) = check_missing_middleware(None)
    assert ids([message]) == ["W031"]
    assert 'LITEFS["NODES"] has 2' in message.msg
    configure(ONE_NODE)
    assert check_missing_middleware(None) == []


def test_sessions_that_are_always_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "SESSION_SAVE_EVERY_REQUEST", True)
    assert ids([only()]) == ["W030"]
    monkeypatch.setattr(settings, "SESSION_ENGINE", "django.contrib.sessions.backends.signed_cookies")
    assert check_handover(None) == []


def test_it_is_not_used(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    configure({**TWO_NODES, "ENABLED": False})
    assert check_handover(None) == []
    with pytest.raises(MiddlewareNotUsed):
        LiteFSMiddleware(HttpResponse)
    configure(TWO_NODES, default={**OURS, "NAME": ":memory:"})
    with pytest.raises(MiddlewareNotUsed):
        LiteFSMiddleware(HttpResponse)
    configure(TWO_NODES)
    monkeypatch.setattr(settings, "MIDDLEWARE", ["other.Middleware"])
    assert check_handover(None) == []
