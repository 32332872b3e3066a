"""A Django project on one node of a test's cluster, for processes of its own: see `connections.python`."""

from __future__ import annotations

import json
import os

SECRET_KEY = "only for tests"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "litefs_django",
    "tests.cluster",
]
LITEFS = json.loads(os.environ["LITEFS_TEST_LITEFS"])
DATABASES = {
    "default": {
        "ENGINE": "litefs_django.db.backends.litefs",
        "NAME": os.environ["LITEFS_TEST_DATABASE"],
        "OPTIONS": json.loads(os.environ.get("LITEFS_TEST_OPTIONS", "{}")),
    }
}
# It answers no requests.
SILENCED_SYSTEM_CHECKS = ["litefs_django.W031"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
