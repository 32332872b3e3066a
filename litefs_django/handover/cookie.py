"""Read-your-writes: a cookie that tells a browser's next request how far the databases must have come.

It is signed by Django (SECRET_KEY, which is the same on all nodes), so that nobody can make a node wait.
"""

from __future__ import annotations

from collections.abc import Mapping

from django.conf import settings
from django.core import signing
from django.http import HttpRequest
from django.http.response import HttpResponseBase

NAME = "litefs_position"
# Seconds. A replica that is further behind than this is not healthy.
MAX_AGE = 300

_SALT = "litefs_django.handover.cookie"


def read(request: HttpRequest) -> dict[str, int]:
    """The TXID of each alias; {} when there is no cookie, and for one that is forged, too old or of another site."""
    value = request.COOKIES.get(NAME)
    if value is None:
        return {}
    try:
        found = signing.loads(value, salt=_SALT, max_age=MAX_AGE)
    except (signing.BadSignature, ValueError):
        return {}
    return {alias: txid for alias, txid in found.items() if isinstance(txid, int)} if isinstance(found, dict) else {}


def write(response: HttpResponseBase, positions: Mapping[str, int], *, is_secure: bool) -> None:
    """Sets the cookie."""
    response.set_cookie(
        NAME,
        signing.dumps(dict(positions), salt=_SALT),
        max_age=MAX_AGE,
        # As far as the session's: a node that a redirect leads to may have a host name of its own.
        domain=settings.SESSION_COOKIE_DOMAIN,
        secure=is_secure,
        httponly=True,
        samesite="Lax",
    )
