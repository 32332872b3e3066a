"""Our own answers where a request could not be handed over: a short page, or JSON for who prefers it.

A project replaces the page by a template `litefs_django/503.html` (or of another status), or
`litefs_django/error.html` for all of them. Its context: status, title, message.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import Context, Engine, TemplateDoesNotExist, loader
from django.utils.cache import add_never_cache_headers, patch_vary_headers

RETRY_AFTER = "2"


@dataclass(frozen=True, slots=True)
class Answer:
    """`can_be_tried_again` only where nothing was saved, and nothing can have been: Retry-After says so."""

    status: int
    title: str
    message: str
    can_be_tried_again: bool = False

    def response(self, request: HttpRequest) -> HttpResponse:
        context = {"status": self.status, "title": self.title, "message": self.message}
        response: HttpResponse
        if request.get_preferred_type(["text/html", "application/json"]) == "application/json":
            response = JsonResponse(context, status=self.status)
        else:
            response = HttpResponse(_page(context), status=self.status)
        if self.can_be_tried_again:
            response["Retry-After"] = RETRY_AFTER
        patch_vary_headers(response, ["Accept"])
        add_never_cache_headers(response)
        return response


MALFORMED = Answer(400, "Bad request", "The request is malformed.")
INCOMPLETE = Answer(400, "Bad request", "The request's body did not arrive as a whole.")
FORGED = Answer(403, "Forbidden", "This request claims to come from another node, and does not.")
LATE = Answer(403, "Too late", "This request comes from another node, and too late.")
LENGTH_REQUIRED = Answer(411, "Length required", "Send the request again with a Content-Length.")
PARTLY_SAVED = Answer(
    500,
    "Only a part was saved",
    "This server could not save everything, and what it has saved stays. Look at what is there before you try again.",
)
NOT_AVAILABLE = Answer(
    503,
    "Not saved",
    "Nothing can be saved at this moment, and nothing was. Please try again in a few seconds.",
    can_be_tried_again=True,
)
UNKNOWN = Answer(
    504,
    "It is not known whether this was saved",
    "The server that saves did not answer in time. Look at what is there before you try again.",
)
LOOP = Answer(508, "Loop detected", "A request for another node has come here.")


def _page(context: dict[str, object]) -> str:
    # Without the request no context processor runs: one that asks the database would fail again.
    names = [f"litefs_django/{context['status']}.html", "litefs_django/error.html"]
    try:
        page: str = loader.select_template(names).render(context)
    except TemplateDoesNotExist:
        # The project does not look for templates in applications.
        page = Engine(app_dirs=True).get_template(names[1]).render(Context(context))
    return page
