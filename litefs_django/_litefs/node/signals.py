"""Signals and threads wake the main loop through one pipe."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from types import FrameType

# A terminal that is closed sends SIGHUP; without one it asks the application server to reload.
STOP = {signal.SIGTERM, signal.SIGINT} | ({signal.SIGHUP} if os.isatty(0) else set())

# What application servers act on: reload, reopen logs, more or fewer workers.
FORWARDED = {
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGQUIT,
    signal.SIGTTIN,
    signal.SIGTTOU,
} - STOP

_POKE = 0


class Signals:
    """Takes over this process's signals. To be made in the main thread, once."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _note)
        for number in STOP | FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, _note)

    def poke(self) -> None:
        """Ends a `wait`, from any thread."""
        with suppress(BlockingIOError):  # a full pipe wakes it as well
            os.write(self._writer, bytes([_POKE]))

    def wait(self, timeout: float) -> list[int]:
        """The signals that have come, as soon as there are any or somebody pokes; at most `timeout` seconds."""
        select.select([self._reader], [], [], timeout)
        with suppress(BlockingIOError):
            return [number for number in os.read(self._reader, 4096) if number != _POKE]
        return []


def _note(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor has it already."""
