from __future__ import annotations

import sys
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from django.contrib.sessions.backends import cached_db
from django.core.cache.backends.locmem import LocMemCache
from django.core.files.storage import FileSystemStorage
from django.db import models
from django.test import override_settings
from django.test.utils import isolate_apps

from litefs_django import checks
from tests.configuring import ONE_NODE, TWO_NODES, Configure, ids

LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
FILES = "django.core.cache.backends.filebased.FileBasedCache"


class OwnLocMem(LocMemCache):
    pass


class TestCaches:
    @pytest.mark.parametrize("backend", [LOCMEM, FILES, "tests.test_checks_project.OwnLocMem"])
    def test_of_one_node(self, configure: Configure, backend: str) -> None:
        configure(TWO_NODES)
        with override_settings(CACHES={"default": {"BACKEND": backend, "LOCATION": "x"}}):
            (message,) = checks.check_caches(None)
            assert checks.check_default_caches(None) == []
            configure(ONE_NODE)
            assert checks.check_caches(None) == []
        assert ids([message]) == ["W004"]
        assert message.msg.startswith(f'CACHES["default"]["BACKEND"]: \'{backend}\' ')

    @pytest.mark.parametrize(
        "backend",
        [
            "django.core.cache.backends.dummy.DummyCache",
            "django.core.cache.backends.db.DatabaseCache",
            "django.core.cache.backends.redis.RedisCache",
            "django.core.cache.backends.memcached.PyMemcacheCache",
            "no.such.Cache",
        ],
    )
    def test_of_all_nodes(self, configure: Configure, backend: str) -> None:
        configure(TWO_NODES)
        with override_settings(CACHES={"default": {"BACKEND": backend, "LOCATION": "x"}}):
            assert checks.check_caches(None) == []

    def test_of_django_by_default(self, configure: Configure) -> None:
        """Nobody has said that the project uses it."""
        configure(TWO_NODES)
        assert checks.check_caches(None) == []
        assert ids(checks.check_default_caches(None)) == ["W004"]
        configure(ONE_NODE)
        assert checks.check_default_caches(None) == []


class OwnSessions(cached_db.SessionStore):
    pass


class TestSessions:
    BACKENDS = "django.contrib.sessions.backends"

    @pytest.mark.parametrize(
        ("engine", "said"),
        [
            ("cached_db", "who has logged out is still logged in on other nodes."),
            ("cache", "a visitor is logged in on one node alone."),
            ("file", "a visitor is logged in there alone."),
        ],
    )
    def test_of_one_node(self, configure: Configure, engine: str, said: str) -> None:
        configure(TWO_NODES)
        with override_settings(SESSION_ENGINE=f"{self.BACKENDS}.{engine}"):
            (message,) = checks.check_sessions(None)
            configure(ONE_NODE)
            assert checks.check_sessions(None) == []
        assert ids([message]) == ["W005"]
        assert message.msg.endswith(said)

    def test_a_subclass(self, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
        module = ModuleType("own_sessions")
        module.SessionStore = OwnSessions  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "own_sessions", module)
        configure(TWO_NODES)
        with override_settings(SESSION_ENGINE="own_sessions"):
            assert ids(checks.check_sessions(None)) == ["W005"]

    @pytest.mark.parametrize("engine", ["cached_db", "cache"])
    @pytest.mark.parametrize("alias", ["shared", "missing"])
    def test_in_a_shared_cache(self, configure: Configure, engine: str, alias: str) -> None:
        configure(TWO_NODES)
        shared = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://x"}
        with override_settings(
            SESSION_ENGINE=f"{self.BACKENDS}.{engine}",
            SESSION_CACHE_ALIAS=alias,
            CACHES={"default": {"BACKEND": LOCMEM}, "shared": shared},
        ):
            assert checks.check_sessions(None) == []

    @pytest.mark.parametrize("engine", [f"{BACKENDS}.db", f"{BACKENDS}.signed_cookies", "no.such.engine"])
    def test_without_a_cache(self, configure: Configure, engine: str) -> None:
        configure(TWO_NODES)
        with override_settings(SESSION_ENGINE=engine):
            assert checks.check_sessions(None) == []

    def test_of_a_project_without_sessions(self, configure: Configure) -> None:
        configure(TWO_NODES)
        with override_settings(SESSION_ENGINE=f"{self.BACKENDS}.file", INSTALLED_APPS=["litefs_django"]):
            assert checks.check_sessions(None) == []


class OwnFiles(FileSystemStorage):
    pass


class TestUploads:
    FILES = "django.core.files.storage.FileSystemStorage"

    @pytest.mark.parametrize("backend", [FILES, "tests.test_checks_project.OwnFiles"])
    @pytest.mark.parametrize("where", ["root", "location"])
    def test_on_one_node(self, configure: Configure, backend: str, where: str) -> None:
        configure(TWO_NODES)
        options = {"OPTIONS": {"location": "/srv/media"}} if where == "location" else {}
        with override_settings(
            MEDIA_ROOT="/srv/media" if where == "root" else "", STORAGES={"default": {"BACKEND": backend, **options}}
        ):
            (message,) = checks.check_uploads(None)
            assert checks.check_default_uploads(None) == []
            configure(ONE_NODE)
            assert checks.check_uploads(None) == []
        assert ids([message]) == ["W006"]
        assert message.msg.startswith('STORAGES["default"]: ')

    def test_a_model_with_files(self, configure: Configure) -> None:
        configure(TWO_NODES)
        with isolate_apps("tests.cluster"):

            class Upload(models.Model):
                file = models.FileField()

                class Meta:
                    app_label = "cluster"

                def __str__(self) -> str:
                    return str(self.file)

            with patch("litefs_django.checks.local_state.apps", Upload._meta.apps):
                assert ids(checks.check_uploads(None)) == ["W006"]
                assert checks.check_default_uploads(None) == []

    def test_where_none_are_expected(self, configure: Configure) -> None:
        configure(TWO_NODES)
        assert checks.check_uploads(None) == []
        assert ids(checks.check_default_uploads(None)) == ["W006"]
        configure(ONE_NODE)
        assert checks.check_default_uploads(None) == []

    @pytest.mark.parametrize("backend", ["django.core.files.storage.InMemoryStorage", "no.such.Storage"])
    def test_elsewhere(self, configure: Configure, backend: str) -> None:
        configure(TWO_NODES)
        with override_settings(MEDIA_ROOT="/srv/media", STORAGES={"default": {"BACKEND": backend}}):
            assert checks.check_uploads(None) == []

    @pytest.mark.parametrize("storages", [{}, {"default": {}}])
    def test_without_one(self, configure: Configure, storages: dict[str, Any]) -> None:
        configure(TWO_NODES)
        with override_settings(STORAGES=storages):
            assert checks.check_uploads(None) == checks.check_default_uploads(None) == []
