"""A Django project on SQLite, highly available through unmodified LiteFS.

Importing this imports nothing: the supervisor, which never loads Django, lives in this package too.
The public names load when they are first used (PEP 562).
"""

from __future__ import annotations

__all__ = ["CommitOutcomeUnknown", "NotPrimaryError", "is_primary", "position", "primary", "wait_for"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from litefs_django.exceptions import CommitOutcomeUnknown, NotPrimaryError
    from litefs_django.node import is_primary, position, primary, wait_for
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name[0].isupper():
            from litefs_django import exceptions as module
        else:
            from litefs_django import node as module

        return getattr(module, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
