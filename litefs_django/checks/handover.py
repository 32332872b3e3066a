"""What the middleware needs to hand requests over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning

from litefs_django import conf
from litefs_django.checks.context import node_count, valid_settings

MIDDLEWARE = "litefs_django.middleware.LiteFSMiddleware"
MAY_COME_FIRST = ("django_prometheus.middleware.PrometheusBeforeMiddleware",)
SESSIONS_ELSEWHERE = tuple(f"django.contrib.sessions.backends.{kind}" for kind in ("cache", "file", "signed_cookies"))


def check_handover(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E030 and E031: what LITEFS lacks for it. E032: another middleware that stands before it."""
    configured = valid_settings()
    if configured is None or MIDDLEWARE not in settings.MIDDLEWARE:
        return []
    found: list[CheckMessage] = [
        Error(f"{problem.setting}: {problem.message}", hint=problem.hint, id=f"litefs_django.{problem.code}")
        for problem in configured.handover_problems()
    ]
    earlier = settings.MIDDLEWARE[: settings.MIDDLEWARE.index(MIDDLEWARE)]
    before = [name for name in earlier if name not in MAY_COME_FIRST]
    if before:
        found.append(
            Error(
                f"MIDDLEWARE: {before[0]!r} stands before {MIDDLEWARE!r}, so that what it writes is not handed over.",
                hint="Let LiteFSMiddleware be the first; only django_prometheus's PrometheusBeforeMiddleware may come "
                "before it.",
                id="litefs_django.E032",
            )
        )
    return found


def check_missing_middleware(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W031: a cluster without it, whose replicas cannot answer a request that writes."""
    if not (count := node_count()) or not conf.has_databases() or MIDDLEWARE in settings.MIDDLEWARE:
        return []
    return [
        Warning(
            f'MIDDLEWARE: {MIDDLEWARE!r} is not in it, and LITEFS["NODES"] has {count}: a request that writes ends on '
            "a replica in NotPrimaryError.",
            hint="Put it first.",
            id="litefs_django.W031",
        )
    ]


def check_saved_sessions(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W030: sessions that make every request a write."""
    if valid_settings() is None or MIDDLEWARE not in settings.MIDDLEWARE:
        return []
    if not settings.SESSION_SAVE_EVERY_REQUEST or settings.SESSION_ENGINE in SESSIONS_ELSEWHERE:
        return []
    return [
        Warning(
            "SESSION_SAVE_EVERY_REQUEST: True makes every request with a session one for the primary.",
            hint="Leave it at False.",
            id="litefs_django.W030",
        )
    ]
