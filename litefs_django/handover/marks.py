"""What is known of a request before its view runs: does it write?"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from django.http import HttpRequest
from django.urls import Resolver404, get_resolver, resolve

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
WRITES, READS = "litefs_writes", "litefs_reads"

# Which marks any view has: the others are not looked for.
in_use: set[str] = set()


def set_on(view: Any, mark: str) -> None:
    """Marks a view function, or a class of views."""
    setattr(view, mark, True)
    in_use.add(mark)


def writes(request: HttpRequest, patterns: tuple[str, ...]) -> bool:
    """Whether the request is to be handed to the primary before its view runs.

    A view is found by the project's own urlconf: one that a later middleware sets is not known yet.
    """
    if request.method in SAFE_METHODS:
        return _matches(patterns)(request.path_info) or _has(request, WRITES)
    return not _has(request, READS)


@lru_cache(maxsize=1)
def _matches(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    if not patterns:
        return lambda path: False
    parts = (".*".join(map(re.escape, pattern.split("*"))) for pattern in patterns)
    expression = re.compile("|".join(parts), re.DOTALL)
    return lambda path: expression.fullmatch(path) is not None


def _has(request: HttpRequest, mark: str) -> bool:
    # Marks are set when the views are imported, which is with the first request.
    _ = get_resolver().url_patterns
    if mark not in in_use:
        return False
    try:
        view = resolve(request.path_info).func
    except Resolver404:
        return False
    # Django's class-based views, and REST framework's.
    classes = (getattr(view, name, None) for name in ("view_class", "cls"))
    return any(getattr(each, mark, False) for each in (view, *classes))
