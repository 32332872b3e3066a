"""What the processes of a node print, passed on line by line with its source marked: `app | ...`."""

from __future__ import annotations

import os
import select
import selectors
import threading
from contextlib import suppress
from dataclasses import dataclass, field

# A longer line is passed on in pieces: what never ends its line must not fill the memory.
_LONGEST_LINE = 65536


@dataclass(slots=True)
class _Source:
    mark: bytes
    target: int
    rest: bytes = field(default=b"")


class Output:
    """A thread of its own does the writing: whoever reads our stdout may stop reading at any time.

    What is `hidden` is not passed on: LiteFS logs the URL of its lease service, with the token.
    """

    def __init__(self, stdout: int = 1, stderr: int = 2, hidden: str = "") -> None:
        self._hidden = hidden.encode()
        self._stdout, self._stderr = stdout, stderr
        self._selector = selectors.DefaultSelector()
        self._own = self.open("litefs_run", is_error=True)
        os.set_blocking(self._own, False)
        self._thread = threading.Thread(target=self._run, name="litefs-output", daemon=True)
        self._thread.start()

    def open(self, name: str, *, is_error: bool) -> int:
        """A descriptor to write to; its lines come out on our stdout or stderr. It is the caller's to close."""
        target = self._stderr if is_error else self._stdout
        reader, writer = os.pipe()
        self._selector.register(reader, selectors.EVENT_READ, _Source(f"{name} | ".encode(), target))
        return writer

    def say(self, text: str) -> None:
        """The supervisor's own line. Never blocks: with a full pipe the line is lost."""
        with suppress(BlockingIOError):
            os.write(self._own, f"{text}\n".encode(errors="backslashreplace"))

    def close(self, timeout: float) -> None:
        """Passes on what is left, waiting at most `timeout` seconds for those who still hold a descriptor."""
        os.close(self._own)
        self._thread.join(timeout)

    def _run(self) -> None:
        while self._selector.get_map():
            for key, _ in self._selector.select():
                self._read(key.fd, key.data)

    def _read(self, reader: int, source: _Source) -> None:
        data = os.read(reader, 65536)
        if not data:
            self._selector.unregister(reader)
            os.close(reader)
        *lines, source.rest = (source.rest + data).split(b"\n")
        if source.rest and (not data or len(source.rest) >= _LONGEST_LINE):
            lines.append(source.rest)
            source.rest = b""
        text = b"".join(source.mark + line + b"\n" for line in lines)
        _write(source.target, text.replace(self._hidden, b"...") if self._hidden else text)


def _write(target: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(target, data) :]
        except BlockingIOError:  # our stdout was made non-blocking by someone it is shared with
            select.select([], [target], [])
        except OSError:  # nobody reads it any more
            return
