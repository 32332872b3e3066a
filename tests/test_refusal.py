from __future__ import annotations

import sys

import pytest

from litefs_django._litefs.settings import Node
from litefs_django.exceptions import NotPrimaryError
from litefs_django.management.refusal import line, say_where_to_write

THIS, PRIMARY = Node(name="web2", address="10.0.0.2"), Node(name="web1", address="10.0.0.1")


def refused(primary: Node | None = PRIMARY) -> NotPrimaryError:
    return NotPrimaryError("It cannot be written.", "default", THIS, primary)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["manage.py", "createsuperuser"], "python manage.py createsuperuser"),
        (["/srv/site/manage.py", "loaddata", "a b.json"], "python manage.py loaddata 'a b.json'"),
        (["/lib/django/__main__.py", "flush"], "python -m django flush"),
        (["/usr/bin/django-admin", "clearsessions"], "django-admin clearsessions"),
    ],
)
def test_where_to_run_it(arguments: list[str], command: str) -> None:
    said = line(refused(), arguments)
    assert said == ("Node 'web2' is a replica, and only the primary 'web1' (10.0.0.1) writes. Run it there: " + command)


def test_no_primary() -> None:
    said = line(refused(None), ["manage.py", "x"])
    assert said.startswith("Nothing was written: node 'web2' is not the primary, and no primary is known now.")


def test_other_errors_are_told_as_ever(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: seen.append(error))
    monkeypatch.setattr(sys, "argv", ["manage.py", "x"])
    say_where_to_write()
    say_where_to_write()
    other, wrapped = ValueError("x"), ValueError("y")
    wrapped.__cause__ = refused()
    for error in (other, wrapped, refused()):
        sys.excepthook(type(error), error, None)
    assert seen == [other]
    assert capsys.readouterr().err.count("Run it there: python manage.py x\n") == 2
    monkeypatch.setattr(sys, "argv", ["manage.py", "x", "--traceback"])
    sys.excepthook(ValueError, wrapped, None)
    assert seen == [other, wrapped]
