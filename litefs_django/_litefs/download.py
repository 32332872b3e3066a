"""A litefs binary that lies elsewhere, on an HTTP server or in a file."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from urllib import request
from urllib.error import HTTPError, URLError

from litefs_django._litefs import binary
from litefs_django._litefs.errors import BinaryError

_SCHEMES = ("https://", "http://", "file://")
# LiteFS has 15 MB.
_MAX_SIZE = 100_000_000
# Seconds: for the server to say anything, for all of it, between two lines of progress.
_SILENCE = 30.0
_DEADLINE = 900.0
_HEARTBEAT = 5.0
_GZIP = b"\x1f\x8b"
_NOTHING = "Nothing was installed."


def download(
    url: str, sha256: str, target: Path, architecture: str | None, progress: Callable[[str], None] = lambda line: None
) -> None:
    """Puts the LiteFS `binary.VERSION` that is at this URL (https, http or file) at `target`, mode 0755.

    It has to have this SHA-256 (64 lower-case hex digits) and to pass `binary.verify`. What stands at `target` is
    replaced at the very end, or not at all. `progress` gets a line every few seconds. Raises BinaryError.
    """
    if not url.lower().startswith(_SCHEMES):
        raise BinaryError(f"{url!r} cannot be downloaded: a URL that begins with {' or '.join(_SCHEMES)} is needed.")
    progress(f"Downloading {url}")
    with binary.replacing(target) as unfinished:
        try:
            digest, start = _save(_chunks(url, progress), unfinished)
        except OSError as error:
            raise BinaryError(f"{unfinished} cannot be written: {error.strerror}. {_NOTHING}") from error
        if digest != sha256:
            raise BinaryError(
                f"{url} has the SHA-256 {digest}, not {sha256}. {_NOTHING} If the hash is from whoever built it, "
                "this is another file: do not use it before you know why."
            )
        if start == _GZIP:
            raise BinaryError(f"{url} is an archive. {_NOTHING} Unpack it, and give the program's own URL and hash.")
        try:
            binary.verify(unfinished, architecture)
        except BinaryError as error:
            raise BinaryError(f"{url} is of no use here. {_NOTHING} {error}") from error


def _save(chunks: Iterator[bytes], path: Path) -> tuple[str, bytes]:
    """Returns the file's SHA-256 and its first bytes, once it is on the disk."""
    sha256 = hashlib.sha256()
    start = b""
    with path.open("xb") as file:
        os.fchmod(file.fileno(), 0o755)
        for chunk in chunks:
            file.write(chunk)
            sha256.update(chunk)
            start = start or chunk[: len(_GZIP)]
        file.flush()
        os.fsync(file.fileno())
    return sha256.hexdigest(), start


def _chunks(url: str, progress: Callable[[str], None]) -> Iterator[bytes]:
    """What the URL answers with, after redirects. Raises BinaryError."""
    try:
        yield from _receive(url, progress)
    except (OSError, HTTPException, ValueError) as error:
        raise BinaryError(
            f"{url} could not be downloaded: {_reason(error)}. {_NOTHING} Try again, or name another copy."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        error.close()
        return f"{error.code} {error.reason} ({error.url})"
    cause = error.reason if isinstance(error, URLError) else error
    return getattr(cause, "strerror", None) or str(cause)


def _receive(url: str, progress: Callable[[str], None]) -> Iterator[bytes]:
    opener = request.OpenerDirector()
    # build_opener would add FTP; HTTPRedirectHandler leaves it and HTTP to choose from.
    for handler in (
        request.ProxyHandler(),
        request.UnknownHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.FileHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    started = reported = time.monotonic()
    received = 0
    with opener.open(url, timeout=_SILENCE) as response:
        declared = response.headers["Content-Length"]
        total = f" of {int(declared) / 1e6:.1f}" if declared else ""
        while chunk := response.read1(1 << 16):
            received += len(chunk)
            if received > _MAX_SIZE:
                raise ValueError(f"it has more than {_MAX_SIZE / 1e6:.0f} MB, and LiteFS has 15")
            if (now := time.monotonic()) > started + _DEADLINE:
                raise TimeoutError(f"it was not there after {_DEADLINE:g} s")
            if now > reported + _HEARTBEAT:
                progress(f"{received / 1e6:.1f}{total} MB")
                reported = now
            yield chunk
    if declared and received != int(declared):
        raise ValueError(f"the answer ended after {received} of {declared} bytes")
