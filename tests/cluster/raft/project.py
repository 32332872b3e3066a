"""The project of these tests on one node: its settings, and the view that writes."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from tests.cluster.project_settings import DATABASES, DEFAULT_AUTO_FIELD, LITEFS, SECRET_KEY, USE_TZ

INSTALLED_APPS = ["litefs_django", "tests.cluster"]
MIDDLEWARE = ["litefs_django.middleware.LiteFSMiddleware"]
ROOT_URLCONF = "tests.cluster.raft.project"
ALLOWED_HOSTS = ["*"]
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
}


@csrf_exempt
def write(request: HttpRequest) -> JsonResponse:
    """Makes a tag, whose name may stand there twice: that it does not is what the tests look at."""
    from tests.cluster.models import Tag

    Tag.objects.create(name=request.POST["name"])
    return JsonResponse({"node": LITEFS["NODE"]})


urlpatterns = [path("write/", write)]

__all__ = ["DATABASES", "DEFAULT_AUTO_FIELD", "LITEFS", "SECRET_KEY", "USE_TZ"]
