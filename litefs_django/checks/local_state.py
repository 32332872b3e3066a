"""What a project keeps on each machine for itself, where the nodes of a cluster should share it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.cache.backends.filebased import FileBasedCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.files.storage import FileSystemStorage, default_storage
from django.db.models import FileField
from django.utils.module_loading import import_string


def local_caches() -> dict[str, str]:
    """The BACKEND of each cache that is a node's own, by alias. A class that cannot be loaded is Django's to report."""
    return {alias: str(cache["BACKEND"]) for alias, cache in settings.CACHES.items() if _is_local_cache(cache)}


def local_sessions() -> str:
    """What is wrong with sessions under SESSION_ENGINE, as a sentence; "" when all nodes share them."""
    if not apps.is_installed("django.contrib.sessions"):
        return ""
    from django.contrib.sessions.backends import cache, cached_db, file

    try:
        store = import_module(settings.SESSION_ENGINE).SessionStore
    except (ImportError, AttributeError):
        return ""
    if issubclass(store, file.SessionStore):
        return "keeps sessions in files of one node: a visitor is logged in there alone."
    alias = settings.SESSION_CACHE_ALIAS
    if not issubclass(store, (cache.SessionStore, cached_db.SessionStore)) or alias not in local_caches():
        return ""
    where = f'CACHES["{alias}"], which each node has for itself'
    if issubclass(store, cached_db.SessionStore):
        return f"remembers sessions in {where}: who has logged out is still logged in on other nodes."
    return f"keeps sessions in {where}: a visitor is logged in on one node alone."


def local_uploads() -> str:
    """The class of the default storage when it keeps files in a directory of this machine; "" when it does not."""
    try:
        storage = import_string(settings.STORAGES["default"]["BACKEND"])
    except (ImportError, KeyError):
        return ""
    is_local = isinstance(storage, type) and issubclass(storage, FileSystemStorage)
    return f"{storage.__module__}.{storage.__qualname__}" if is_local else ""


def expects_uploads() -> bool:
    """Whether the project says that files will come: MEDIA_ROOT or a location is set, or a model has a FileField."""
    if settings.MEDIA_ROOT or settings.STORAGES.get("default", {}).get("OPTIONS", {}).get("location"):
        return True
    fields = (field for model in apps.get_models() for field in model._meta.get_fields())
    return any(isinstance(field, FileField) and field.storage is default_storage for field in fields)


def _is_local_cache(cache: dict[str, Any]) -> bool:
    try:
        backend = import_string(cache["BACKEND"])
    except (ImportError, KeyError):
        return False
    return isinstance(backend, type) and issubclass(backend, (LocMemCache, FileBasedCache))
