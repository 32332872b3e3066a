from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

import litefs_django
from litefs_django import exceptions, node
from litefs_django.handover import course


def modules_after(code: str) -> set[str]:
    """What a fresh Python has imported beyond what it starts with."""
    program = f"import sys; before = set(sys.modules); {code}; import json; print(json.dumps(sorted(seen - before)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


def test_they_are_these() -> None:
    """Each is promised to stay: semantic versioning."""
    assert litefs_django.__all__ == [
        "CommitOutcomeUnknown",
        "NotPrimaryError",
        "is_primary",
        "position",
        "primary",
        "wait_for",
    ]


@pytest.mark.parametrize("name", litefs_django.__all__)
def test_each_can_be_used(name: str) -> None:
    module = exceptions if name[0].isupper() else node
    assert getattr(litefs_django, name) is getattr(module, name)
    assert name in dir(litefs_django)


def test_there_are_no_others() -> None:
    with pytest.raises(AttributeError, match="module 'litefs_django' has no attribute 'Nothing'"):
        litefs_django.Nothing  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_imports_nothing() -> None:
    """The supervisor, which never loads Django, imports it too."""
    assert modules_after("import litefs_django; seen = set(sys.modules)") - {"__future__"} == {"litefs_django"}


def test_litefs_own_side_imports_no_django() -> None:
    code = "import litefs_django._litefs.config, litefs_django._litefs.health; seen = set(sys.modules)"
    assert not {name for name in modules_after(code) if name.partition(".")[0] in ("django", "asgiref")}


def test_the_names_load_when_they_are_used() -> None:
    code = "import litefs_django; litefs_django.NotPrimaryError; seen = set(sys.modules)"
    assert {"litefs_django.exceptions", "django"} <= modules_after(code)


def test_the_logger_that_is_documented() -> None:
    documented = logging.getLogger("litefs_django.handover")
    assert course.logger.parent is documented
