"""Visitors who write all the time, one on each node, and remember how each write went."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlencode

PORT = 8000
_PATIENCE = 25.0
_PAUSE = 0.02


class Outcome(Enum):
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"  # 503: nothing was done
    UNKNOWN = "unknown"
    UNSENT = "unsent"  # nobody listened


@dataclass(frozen=True, slots=True)
class Write:
    """One write through `asked`. Times are seconds of CLOCK_BOOTTIME; `by` is the node that acknowledged it."""

    name: str
    asked: str
    began: float
    ended: float
    outcome: Outcome
    by: str = ""
    said: str = ""


def now() -> float:
    """Seconds of CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class Writer:
    """Writes through one node, with the number of this writer in each name; `enter` is called first in its thread."""

    node: str
    number: int
    address: str
    enter: Callable[[], None]
    writes: list[Write] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when its last write has ended."""
        self._is_stopping = True
        self._thread.join(_PATIENCE + 5)
        assert not self._thread.is_alive()

    def tell_stop(self) -> None:
        self._is_stopping = True

    def _run(self) -> None:
        self.enter()
        count = 0
        while not self._is_stopping:
            count += 1
            self.writes.append(write := self._write(f"{self.number}-{self.node}-{count}"))
            time.sleep(_PAUSE if write.outcome is Outcome.ACKNOWLEDGED else 5 * _PAUSE)

    def _write(self, name: str) -> Write:
        began = now()
        connection = http.client.HTTPConnection(self.address, PORT, timeout=_PATIENCE)
        try:
            try:
                connection.connect()
            except OSError as error:
                return Write(name, self.node, began, now(), Outcome.UNSENT, said=repr(error))
            body = urlencode({"name": name})
            connection.request("POST", "/write/", body, {"Content-Type": "application/x-www-form-urlencoded"})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            return Write(name, self.node, began, now(), Outcome.UNKNOWN, said=repr(error))
        finally:
            connection.close()
        if response.status == 200:
            return Write(name, self.node, began, now(), Outcome.ACKNOWLEDGED, by=json.loads(answer)["node"])
        outcome = Outcome.REFUSED if response.status == 503 else Outcome.UNKNOWN
        return Write(name, self.node, began, now(), outcome, said=f"{response.status} {answer[:300]!r}")
