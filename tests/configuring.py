"""Settings for tests of the system checks, and what the checks say of them."""

from __future__ import annotations

from collections.abc import Callable

from django.core import checks as django_checks
from django.core.checks import CheckMessage

from litefs_django import checks, conf

OURS = {"ENGINE": conf.ENGINE, "NAME": "db.sqlite3"}
ONE_NODE = {"NODE": "a", "NODES": {"a": {"ADDRESS": "10.0.0.1"}}}
TWO_NODES = {"NODE": "a", "PRIMARY": "a", "NODES": {"a": {"ADDRESS": "10.0.0.1"}, "b": {"ADDRESS": "10.0.0.2"}}}

Check = Callable[..., list[CheckMessage]]
# The fixture of this name, in lower case.
Configure = Callable[..., None]


def ids(messages: list[CheckMessage]) -> list[str]:
    return [str(message.id).removeprefix("litefs_django.") for message in messages]


def run(*, deploy: bool = False) -> list[CheckMessage]:
    return django_checks.run_checks(tags=[checks.TAG], include_deployment_checks=deploy)
