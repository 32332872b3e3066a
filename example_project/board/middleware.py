"""A clear page in place of an error when a replica is asked to write."""

from __future__ import annotations

from django.contrib.sessions.exceptions import SessionInterrupted
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils.deprecation import MiddlewareMixin

from litefs_django import NotPrimaryError


class WriteRefusedMiddleware(MiddlewareMixin):
    """Answers 503 with a link to the primary: nothing was saved, and there it can be."""

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        return _page(request, exception) if isinstance(exception, NotPrimaryError) else None


class WriteRefusedSessionMiddleware(SessionMiddleware):
    """Django's, with the same page where the session is what cannot be saved.

    It is saved after the view, where no `process_exception` is asked. Django makes 500 of a refused new session, and
    400 of one that was there: SessionInterrupted, raised for UpdateError, raised for NotPrimaryError.
    """

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        try:
            return super().process_response(request, response)
        except (NotPrimaryError, SessionInterrupted) as error:
            refused: BaseException | None = error
            while refused is not None and not isinstance(refused, NotPrimaryError):
                refused = refused.__context__
            if refused is None:
                raise
            return _page(request, refused)


def _page(request: HttpRequest, refused: NotPrimaryError) -> HttpResponse:
    context = {"refused_by": refused.node, "primary": refused.primary}
    return render(request, "board/write_refused.html", context, status=503)
