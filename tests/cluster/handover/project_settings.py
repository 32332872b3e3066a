"""The project of these tests on one node, behind gunicorn or uvicorn: see `site.py`."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.cluster.project_settings import DATABASES, DEFAULT_AUTO_FIELD, LITEFS, SECRET_KEY, USE_TZ

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "litefs_django",
    "tests.cluster",
]
MIDDLEWARE = [
    "litefs_django.middleware.LiteFSMiddleware",
    "tests.cluster.handover.views.answers_at_once",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "tests.cluster.handover.views.WritesBefore",
]
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
ROOT_URLCONF = "tests.cluster.handover.urls"
ALLOWED_HOSTS = ["127.0.0.1", "www.example.com"]
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "table": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache_table"},
}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"
SESSION_ENGINE = "django.contrib.sessions.backends.db"
REST_FRAMEWORK = {"DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"]}
STATIC_URL = "static/"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "LOG {levelname} {name} {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {"django": {"handlers": [], "propagate": True}},
}
# What one test changes.
_changes = json.loads(os.environ.get("LITEFS_TEST_SETTINGS", "{}"))
DATABASES["default"]["ATOMIC_REQUESTS"] = _changes.pop("ATOMIC_REQUESTS", False)
DATABASES["default"]["CONN_MAX_AGE"] = _changes.pop("CONN_MAX_AGE", 0)
if _changes.pop("OTHER_DATABASE", False):
    DATABASES["other"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": f"other-{LITEFS['NODE']}.sqlite3"}
if _changes.pop("SECOND_DATABASE", False):
    DATABASES["second"] = {"ENGINE": "litefs_django.db.backends.litefs", "NAME": "second.sqlite3"}
TEMPLATES[0]["DIRS"] = _changes.pop("TEMPLATE_DIRS", [])
globals().update(_changes)

__all__ = ["DATABASES", "DEFAULT_AUTO_FIELD", "LITEFS", "SECRET_KEY", "USE_TZ"]
