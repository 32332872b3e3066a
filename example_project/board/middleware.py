"""A clear page in place of an error when a replica is asked to write."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.deprecation import MiddlewareMixin

from litefs_django import NotPrimaryError


class WriteRefusedMiddleware(MiddlewareMixin):
    """Answers 503 with a link to the primary: nothing was saved, and there it can be."""

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not isinstance(exception, NotPrimaryError):
            return None
        context = {"refused_by": exception.node, "primary": exception.primary}
        return render(request, "board/write_refused.html", context, status=503)
