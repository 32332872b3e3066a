"""A Django project for the unit tests: its databases are in memory, nothing is mounted."""

from __future__ import annotations

SECRET_KEY = "only for tests"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "litefs_django",
    "tests.cluster",
]
DATABASES = {"default": {"ENGINE": "litefs_django.db.backends.litefs", "NAME": "db.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LITEFS = {
    "MOUNT_PATH": "/nonexistent/litefs",
    "DATA_PATH": "/nonexistent/litefs-data",
    "RUN_PATH": "/nonexistent/litefs-run",
    "LEADER_ELECTION": "static",
    "NODE": "node1",
    "NODES": {
        "node1": {"ADDRESS": "10.0.0.1", "URL": "http://10.0.0.1:8000"},
        "node2": {"ADDRESS": "10.0.0.2", "URL": "http://10.0.0.2:8000"},
        "node3": {"ADDRESS": "10.0.0.3", "URL": "http://10.0.0.3:8000"},
    },
    "PRIMARY": "node1",
}
MIDDLEWARE: list[str] = []
USE_TZ = True
