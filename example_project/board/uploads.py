"""What visitors may upload, and what a browser is told of it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any
from uuid import uuid4

from django.core.exceptions import ValidationError
from django.core.files.base import File
from django.template.defaultfilters import filesizeformat

# Each file is read and written whole, and a write keeps the other writers waiting.
MAX_SIZE = 1024 * 1024
# What a browser may show as a part of this site. SVG is not among them: it can hold scripts.
_IMAGE_TYPES = {
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}


def validate_size(file: File[bytes]) -> None:
    if file.size > MAX_SIZE:
        raise ValidationError(f"This file has {filesizeformat(file.size)}; {filesizeformat(MAX_SIZE)} is the limit.")


def unique_name(instance: Any, name: str) -> str:
    """The visitor's name for it in a directory of its own, so that no name is ever given twice."""
    return f"{uuid4().hex}/{name}"


def image_type(name: str) -> str | None:
    """The content type of a picture that is to be shown; None: only to be downloaded."""
    return _IMAGE_TYPES.get(PurePosixPath(name).suffix.lower())
