"""What a long command shows while it works, and where it may be interrupted."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any, Self

from django.core.management.base import OutputWrapper


class Progress:
    """In its block Ctrl-C and SIGTERM take effect in `step` alone, as KeyboardInterrupt: what is whole is never cut.

    On a terminal each step is drawn; elsewhere nothing is.
    """

    def __init__(self, stream: OutputWrapper, verbosity: int) -> None:
        self._stream = stream
        self._is_drawn = verbosity > 0 and stream.isatty()
        self._shown = ""
        self._is_interrupted = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may ask for signals, and gets them.
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._draw("")

    def step(self, what: str, done: int = 0, total: int = 0) -> None:
        """Shows what is being done; raises KeyboardInterrupt when that was asked for, unless all of it is done."""
        if self._is_interrupted and (done < total or not total):
            raise KeyboardInterrupt
        self._draw(f"{what} {done * 100 // total} %" if total else f"{what} ...")

    def _draw(self, text: str) -> None:
        if self._is_drawn and text != self._shown:
            self._stream.write(f"\r{' ' * len(self._shown)}\r{text}", ending="")
            self._stream.flush()
            self._shown = text

    def _note(self, *args: object) -> None:
        self._is_interrupted = True
