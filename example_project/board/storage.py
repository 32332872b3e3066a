"""Uploaded files as rows of the database: they reach every node as all rows do, and only the primary takes them."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import SuspiciousFileOperation
from django.core.files.base import ContentFile, File
from django.core.files.storage import Storage
from django.db.models.functions import Length
from django.urls import reverse

from board.models import StoredFile
from board.uploads import MAX_SIZE


class DatabaseStorage(Storage):
    """Keeps each file as a StoredFile, at most MAX_SIZE bytes; `board.views.upload` serves it."""

    def _open(self, name: str, mode: str) -> ContentFile[bytes]:
        if mode != "rb":
            raise ValueError(f"{name!r} cannot be opened as {mode!r}, only for reading ('rb').")
        return ContentFile(self._find(name, "content"), name)

    def _save(self, name: str, content: File[bytes]) -> str:
        if content.size > MAX_SIZE:
            raise SuspiciousFileOperation(f"{name!r} has {content.size} bytes; {MAX_SIZE} is the limit.")
        data = b"".join(content.chunks())
        # Another request may have taken the name meanwhile.
        while not StoredFile.objects.get_or_create(name=name, defaults={"content": data})[1]:
            name = self.get_available_name(name)
        return name

    def delete(self, name: str) -> None:
        StoredFile.objects.filter(name=name).delete()

    def exists(self, name: str) -> bool:
        return StoredFile.objects.filter(name=name).exists()

    def size(self, name: str) -> int:
        return self._find(name, Length("content"))

    def url(self, name: str | None) -> str:
        return reverse("upload", args=[name])

    def _find(self, name: str, column: Any) -> Any:
        try:
            return StoredFile.objects.values_list(column, flat=True).get(name=name)
        except StoredFile.DoesNotExist:
            raise FileNotFoundError(name) from None
