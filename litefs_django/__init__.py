"""A Django project on SQLite, highly available through unmodified LiteFS.

Importing this imports nothing: the supervisor, which never loads Django, lives in this package too.
The public names load when they are first used (PEP 562).
"""

from __future__ import annotations

__all__ = ["CommitOutcomeUnknown", "NotPrimaryError"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from litefs_django.exceptions import CommitOutcomeUnknown, NotPrimaryError
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from litefs_django import exceptions

        return getattr(exceptions, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
