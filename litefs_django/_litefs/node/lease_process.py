"""Keeps this node's lease process running, and tells it when LiteFS has ended. Nothing here blocks."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from typing import Any

from litefs_django._litefs.errors import SupervisorError
from litefs_django._litefs.node.children import Backoff, Child, Children
from litefs_django._litefs.node.description import LeaseService
from litefs_django._litefs.node.lease.timing import Progress
from litefs_django._litefs.node_file import NodeFileWriter, boottime_ns

_GRACE = 1.0
# Seconds for an answer, each of which it gives within one; and between two attempts.
_PATIENCE = 1.0
_PAUSE = 0.1
# Seconds that it may be silent before it is ended: far more than any machine is busy for, and than a stop that is over
# soon.
_HUNG = 30.0


class LeaseProcess:
    """One lease process after the other.

    `node_file` is what it writes to; `wake` is called from another thread when LiteFS may be started.
    """

    def __init__(
        self,
        service: LeaseService,
        children: Children,
        say: Callable[[str], None],
        node_file: NodeFileWriter,
        wake: Callable[[], None],
    ) -> None:
        self._service = service
        self._children = children
        self._say = say
        self._node_file = node_file
        self._wake = wake
        self._backoff = Backoff()
        self._child: Child | None = None
        self._progress = Progress(_HUNG)
        self._telling: threading.Thread | None = None

    @property
    def may_litefs_start(self) -> bool:
        """Whether the lease of a LiteFS that has ended is given back, or over. A new one could be taken for it."""
        return self._telling is None or not self._telling.is_alive()

    def keep(self) -> None:
        """One step towards a lease process that runs. Raises SupervisorError when there will be none."""
        child = self._child
        if child is not None and child.returncode is not None:
            self._child = None
            self._backoff.ended(child.started)
            self._say(f"the lease process has ended: {child.how_it_ended}")
            # What ends one that has taken part may not end the next.
            if child.returncode > 0 and not self._node_file.lease_beat:
                raise SupervisorError("The lease process refuses to start; its lines above say why.")
        if self._child is None:
            if self._backoff.is_over:
                self._start()
        elif self._progress.is_stalled(beat := self._node_file.lease_beat, time.monotonic(), is_due=beat > 0):
            if not self._child.is_ending:
                self._say("the lease process hangs: it is ended")
            self._child.end(_GRACE)

    def _start(self) -> None:
        self._progress = Progress(_HUNG)
        try:
            self._child = self._children.start(
                "lease",
                self._service.command,
                on_our_death=signal.SIGKILL,
                descriptors=(self._service.listener,),
            )
        except OSError as error:
            self._say(f"the lease process cannot be started: {error}")
            self._backoff.ended(time.monotonic())

    def litefs_has_ended(self) -> None:
        """Has the lease given back: nobody has to wait for it to expire."""
        self._telling = threading.Thread(target=self._tell, name="litefs-left", daemon=True)
        self._telling.start()

    def _tell(self) -> None:
        """Until it has heard, or nothing is left to give back."""
        while True:
            until = boottime_ns() + int(_PATIENCE * 1e9)
            if (
                self._ask("PUT", f"/litefs_django/left?until={until}") is not None
                or boottime_ns() > self._node_file.deadline
            ):
                break
            # From then on it does not believe this request, should it be stopped with it.
            time.sleep(max(_PAUSE, (until - boottime_ns()) / 1e9))
        self._wake()

    def status(self) -> dict[str, Any]:
        """What it says of the lease (LeaseServer); empty when it does not answer."""
        answer = self._ask("GET", "/litefs_django/status")
        return {} if answer is None else json.loads(answer)

    def _ask(self, method: str, path: str) -> bytes | None:
        """The answer, None when there was none, or it does not know."""
        connection = HTTPConnection("127.0.0.1", self._service.port, timeout=_PATIENCE)
        try:
            connection.request(method, path, headers={"X-Consul-Token": self._service.token})
            response = connection.getresponse()
            body = response.read()
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()
        return body if response.status == 200 else None

    def stop(self) -> Iterator[str]:
        """Ends it, after LiteFS, whose lease is given back first. Yields what it waits for."""
        give_up = time.monotonic() + _PATIENCE
        while not self.may_litefs_start and time.monotonic() < give_up:
            yield "gives the lease back"
        while self._child is not None and not self._child.is_gone:
            self._child.end(_GRACE)
            yield "waits for the lease process to end"
