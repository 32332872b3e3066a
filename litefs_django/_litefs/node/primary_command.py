"""A command that runs only while this node is the primary (`--on-primary`)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from litefs_django._litefs.node.children import Backoff, Child, Children
from litefs_django._litefs.node.description import Command


class PrimaryCommand:
    """Started on promotion, ended on demotion, started again when it ends by itself."""

    def __init__(self, name: str, argv: Command, children: Children, say: Callable[[str], None]) -> None:
        self._name = name
        self._argv = argv
        self._children = children
        self._say = say
        self._backoff = Backoff()
        self._is_wanted = False
        self._has_been_given_up = False
        self.child: Child | None = None

    def keep(self, *, is_primary: bool) -> None:
        """One step towards a command that runs exactly when the node is primary."""
        if self._is_wanted != is_primary:
            self._is_wanted = is_primary
            self._backoff = Backoff()
        if self.child is not None and not self._may_go_on(self.child):
            if self.child.is_gone and self.child.is_running and not self._has_been_given_up:
                self._has_been_given_up = True
                self._say(f"{self._name} cannot be ended: process {self.child.pid} runs on, as another user or hanging")
            self.child.end()
            if self.child.is_gone and not self.child.is_running:
                self._say(f"{self._name} has ended: {self.child.how_it_ended}")
                self._backoff.ended(self.child.started)
                self.child = None
        if self.child is None and is_primary and self._backoff.is_over:
            self._start()

    def _may_go_on(self, child: Child) -> bool:
        return self._is_wanted and child.is_running and not child.is_ending

    def _start(self) -> None:
        try:
            self.child = self._children.start(self._name, self._argv, on_our_death=signal.SIGTERM)
        except OSError as error:
            self._say(f"{self._name} cannot be started: {error}")
            self._backoff.ended(time.monotonic())
        else:
            self._has_been_given_up = False
            self._say(f"{self._name} runs: {' '.join(self._argv)}")
