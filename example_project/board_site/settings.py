"""The settings of a message board that runs on a LiteFS cluster, or on plain SQLite for development.

`DEBUG=1 python manage.py runserver` needs nothing else: with DEBUG there is no LiteFS. On a machine of
a cluster the environment says which node this is:

    NODE                its name, one of those in LITEFS_NODES
    LITEFS_NODES        the cluster as JSON: {"web1": {"ADDRESS": "10.0.0.1", "URL": "http://10.0.0.1:8000"}, ...}
    LITEFS_SECRET       32 random bytes or more, the same on every node, by which they know each other
    LITEFS_MOUNT_PATH   where the databases appear (default: /litefs)
    LITEFS_DATA_PATH    where LiteFS keeps its own files (default: /var/lib/litefs)
    LITEFS_RUN_PATH     lock files and the like (default: a directory in /run)
    SECRET_KEY          the same on every node, so that a session made on one is valid on all
    ALLOWED_HOSTS       comma-separated host names under which the site is reached

Anywhere: DATABASE_NAME for another file than db.sqlite3, ASGI=1 under uvicorn.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

DEBUG = os.environ.get("DEBUG") == "1"
SECRET_KEY = "not a secret: for development on one machine" if DEBUG else os.environ["SECRET_KEY"]
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "localhost,127.0.0.1").split(",")

# A machine of a cluster that lacks its environment is to fail, not to serve an empty plain file.
LITEFS: dict[str, object] = {"ENABLED": False}
if not DEBUG:
    LITEFS = {
        "NODE": os.environ["NODE"],
        "NODES": json.loads(os.environ["LITEFS_NODES"]),
        "LEADER_ELECTION": "raft",
        "SECRET": os.environ["LITEFS_SECRET"],
        "MOUNT_PATH": os.environ.get("LITEFS_MOUNT_PATH", "/litefs"),
        "DATA_PATH": os.environ.get("LITEFS_DATA_PATH", "/var/lib/litefs"),
    }
    if "LITEFS_RUN_PATH" in os.environ:
        LITEFS["RUN_PATH"] = os.environ["LITEFS_RUN_PATH"]

DATABASES = {
    "default": {
        "ENGINE": "litefs_django.db.backends.litefs",
        # On the LiteFS mount; beside manage.py when LiteFS is off.
        "NAME": os.environ.get("DATABASE_NAME", "db.sqlite3"),
        # Opening a connection costs more than a query, so gunicorn's workers keep theirs. Under ASGI Django opens
        # a new one for each request.
        "CONN_MAX_AGE": 0 if "ASGI" in os.environ else None,
    }
}

# Django's default cache is in each process's memory: what one node stores or deletes the others do not see.
CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}

INSTALLED_APPS = [
    "board",
    "litefs_django",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.humanize",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    # What has to be written goes to the primary from here, before anything else runs.
    "litefs_django.middleware.LiteFSMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "board_site.urls"
WSGI_APPLICATION = "board_site.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "board.node.context",
            ],
        },
    },
]

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "message-list"
LOGOUT_REDIRECT_URL = "message-list"

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

STORAGES = {
    # What visitors upload lies in the database, so that every node has it.
    "default": {"BACKEND": "board.storage.DatabaseStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

STATIC_URL = "static/"
# WhiteNoise serves the apps' static files as they are: no collectstatic for so small a site.
WHITENOISE_USE_FINDERS = True
