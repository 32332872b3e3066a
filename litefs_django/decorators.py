"""What a view says of itself, for `litefs_django.middleware.LiteFSMiddleware`.

Each takes a view function or a class of views, sync or async: as `@writes`, or `writes(view)` in urls.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from inspect import iscoroutine
from typing import Any, TypeVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.utils.decorators import method_decorator

from litefs_django.handover import marks, note

View = TypeVar("View", bound=Callable[..., Any])


def writes(view: View) -> View:
    """The view writes on GET too: a replica hands the request to the primary at once, not when it tries to write."""
    return _marked(view, marks.WRITES)


def reads(view: View) -> View:
    """The view only reads, on POST too, like a search: a replica answers by itself."""
    return _marked(view, marks.READS)


def handles_not_primary(view: View) -> View:
    """Inside this function a write on a replica is a NotPrimaryError, and the request is not handed over for it."""
    if isinstance(view, type):
        decorated: Any = method_decorator(handles_not_primary, name="dispatch")(view)
        return decorated  # type: ignore[no-any-return]
    return _around(view, note.handling)  # type: ignore[no-any-return]


def _marked(view: View, mark: str) -> View:
    # A function may be used elsewhere without the mark.
    marked: Any = view if isinstance(view, type) else _around(view, nullcontext)
    marks.set_on(marked, mark)
    return marked  # type: ignore[no-any-return]


def _around(view: Any, context: Callable[[], AbstractContextManager[None]]) -> Any:
    async def awaited(answer: Any) -> Any:
        with context():
            return await answer

    def around(*args: Any, **kwargs: Any) -> Any:
        with context():
            answer = view(*args, **kwargs)
        # A class of async views answers through a plain dispatch().
        return awaited(answer) if iscoroutine(answer) else answer

    wrapper = wraps(view)(around)
    return markcoroutinefunction(wrapper) if iscoroutinefunction(view) else wrapper
