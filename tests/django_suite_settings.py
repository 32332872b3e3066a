"""Settings for Django's own test suite on one node: see `django_suite.py`."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path

# The suite's own settings for SQLite: some tests assert what stands there.
globals().update((name, value) for name, value in vars(import_module("test_sqlite")).items() if name.isupper())

LITEFS = json.loads(os.environ["LITEFS_TEST_LITEFS"])


def _database(alias: str) -> dict[str, object]:
    mount = Path(LITEFS["MOUNT_PATH"])
    return {
        "ENGINE": os.environ["LITEFS_TEST_ENGINE"],
        "NAME": str(mount / f"{alias}.sqlite3"),
        "TEST": {"NAME": str(mount / f"test_{alias}.sqlite3")},
    }


DATABASES = {"default": _database("default"), "other": _database("other")}
