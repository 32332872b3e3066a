from __future__ import annotations

import os
import signal
import threading
from io import StringIO

import pytest
from django.core.management.base import OutputWrapper

from litefs_django.management.progress import Progress


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def steps(stream: StringIO, verbosity: int = 1) -> str:
    with Progress(OutputWrapper(stream), verbosity) as progress:
        progress.step("Copying", 1, 3)
        progress.step("Copying", 1, 3)
        progress.step("Checking")
    return stream.getvalue()


def test_on_a_terminal() -> None:
    """One line, drawn when it changes, and gone at the end."""
    assert steps(Terminal()) == "\r\rCopying 33 %" + f"\r{' ' * 12}\rChecking ..." + f"\r{' ' * 12}\r"


def test_elsewhere() -> None:
    assert steps(StringIO()) == ""
    assert steps(Terminal(), verbosity=0) == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_waits_for_the_next_step(number: int) -> None:
    before = signal.getsignal(number)
    with Progress(OutputWrapper(StringIO()), 1) as progress:
        progress.step("Copying", 1, 3)
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            progress.step("Copying", 2, 3)
    assert signal.getsignal(number) == before


def test_what_is_done_is_not_interrupted() -> None:
    with Progress(OutputWrapper(StringIO()), 1) as progress:
        os.kill(os.getpid(), signal.SIGINT)
        progress.step("Importing", 3, 3)
        with pytest.raises(KeyboardInterrupt):
            progress.step("Checking")


def test_in_a_thread() -> None:
    """Which gets no signals."""
    shown: list[str] = []
    thread = threading.Thread(target=lambda: shown.append(steps(Terminal())))
    thread.start()
    thread.join()
    assert "Checking ..." in shown[0]
