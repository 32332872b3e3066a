"""Keeps LiteFS running: mounts, notices its end, unmounts, starts it again. Nothing here blocks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from litefs_django._litefs.errors import SupervisorError
from litefs_django._litefs.node.children import Backoff, Child, Children
from litefs_django._litefs.node.description import NodeDescription
from litefs_django._litefs.node.gates import CommitGates
from litefs_django._litefs.node.lease_process import LeaseProcess
from litefs_django._litefs.node.mounts import is_mounted, unmount_command
from litefs_django._litefs.node.observer import Observer, View
from litefs_django._litefs.node_file import NodeFileWriter

_GRACE = 1.0  # seconds; LiteFS stops within a few ms unless its lease service hangs
_UNMOUNT_PAUSE = 1.0


class LiteFSProcess:
    """One LiteFS after the other, and what the node file says of the mount.

    `wake` is called from another thread when the mount has changed; `lease` is there with Raft.
    """

    def __init__(
        self,
        node: NodeDescription,
        children: Children,
        node_file: NodeFileWriter,
        gates: CommitGates,
        say: Callable[[str], None],
        wake: Callable[[], None],
        lease: LeaseProcess | None,
    ) -> None:
        self._node = node
        self._children = children
        self._node_file = node_file
        self._gates = gates
        self._say = say
        self._wake = wake
        self._lease = lease
        self._backoff = Backoff()
        self._next_unmount = 0.0
        self._litefs: Child | None = None
        self._handle = -1  # a pidfd: no other process can get its number
        self._unmounting: Child | None = None
        self._observer: Observer | None = None
        self.mounts = 0  # how often a mount has come up
        self._is_up = False
        self._was_synced = False

    @property
    def view(self) -> View:
        """What the mount last said; nothing while LiteFS is down."""
        return self._observer.seen if self._observer and self._is_up else View()

    @property
    def seen_at(self) -> float:
        """When `view` was seen, by time.monotonic()."""
        return self._observer.seen_at if self._observer else 0.0

    @property
    def is_running(self) -> bool:
        return self._litefs is not None

    def keep(self) -> None:
        """One step towards a LiteFS that serves its mount. Raises SupervisorError when there will be none."""
        ended = self._notice_end()
        if not self.mounts and ended is not None and ended > 0:
            raise SupervisorError("LiteFS refuses to start; its lines above say why.")
        if self._litefs is None:
            may_start = self._lease is None or self._lease.may_litefs_start
            if may_start and self._backoff.is_over and self._unmounted() and self._gates.renew():
                self._start()
        elif self._is_up and not is_mounted(self._node.mount_path):
            # No commit is confirmed any more, for nothing answers on the path.
            self._node_file.mount_is_down()
            if not self._litefs.is_ending:
                self._say(f"{self._node.mount_path} was unmounted by somebody: LiteFS is started again")
            self._litefs.end(_GRACE)
        elif self._observer is not None and self._observer.seen.serves:
            self._was_synced = self._was_synced or self._observer.seen.is_synced
            if not self._is_up:
                self._is_up = True
                self.mounts += 1
                self._node_file.mount_is_up()
                self._say(f"LiteFS serves {self._node.mount_path}")

    def may_be_primary(self) -> bool:
        """Whether it runs, and its mount does not say that it is none. Blocks for as long as the mount hangs."""
        observer = self._observer
        return observer is not None and observer.may_be_primary()

    def kill(self) -> None:
        """Ends it at once, from any thread."""
        with suppress(OSError):  # it has ended
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def stop(self) -> Iterator[str]:
        """Stops LiteFS and unmounts. Yields what it waits for.

        Commits must have been held off: LiteFS loses what it is told to stop in the middle of.
        """
        self._node_file.mount_is_down()
        if self._observer is not None:
            self._observer.stop()  # LiteFS unmounts, and fails while a file is open
        if self._litefs is not None:
            if not self._was_synced:
                # Until it has found its cluster LiteFS ignores SIGTERM (cmd/litefs/main.go); it has no
                # lease and no writers yet.
                self._say("LiteFS has not found its cluster yet, and heeds no SIGTERM until then: it is killed")
                self._litefs.send(signal.SIGKILL)
            while self._litefs is not None:
                self._litefs.end(_GRACE)
                yield "waits for LiteFS to stop"
                if self._notice_end() == 1:
                    self._say("another process has files open on the mount: it is taken away under it")
        give_up = time.monotonic() + _UNMOUNT_PAUSE
        while not self._unmounted() and time.monotonic() < give_up:
            yield f"waits for {self._node.mount_path} to be unmounted"

    def _start(self) -> None:
        try:
            self._litefs = self._children.start(
                "litefs", self._node.litefs, on_our_death=signal.SIGKILL, search_path=self._node.search_path
            )
        except OSError as error:
            if not self.mounts:
                raise SupervisorError(f"LiteFS cannot be started: {error}.") from error
            self._say(f"LiteFS cannot be started: {error}")
            self._backoff.ended(time.monotonic())
            return
        if self._lease is not None:
            self._handle = os.pidfd_open(self._litefs.pid)
        self._was_synced = False
        self._observer = Observer(self._node.mount_path, self._node.databases, self._wake)

    def _notice_end(self) -> int | None:
        """The exit code of a LiteFS that has ended since the last call, negative for a signal."""
        if self._litefs is None or self._litefs.returncode is None:
            return None
        self._node_file.mount_is_down()
        if self._lease is not None:
            self._lease.litefs_has_ended()
        litefs, self._litefs = self._litefs, None
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)
        self._is_up = False
        if self._observer is not None:
            self._observer.stop()
            self._observer = None
        self._backoff.ended(litefs.started)
        self._say(f"LiteFS has ended: {litefs.how_it_ended}")
        return litefs.returncode

    def _unmounted(self) -> bool:
        """Takes a step towards no mount of LiteFS's being there, and says whether that is so."""
        if self._unmounting is not None:
            if self._unmounting.is_running:
                return False
            if self._unmounting.returncode:
                self._next_unmount = time.monotonic() + _UNMOUNT_PAUSE
            self._unmounting = None
        if not is_mounted(self._node.mount_path):
            return True
        if time.monotonic() >= self._next_unmount:
            try:
                self._unmounting = self._children.start(
                    "fusermount3",
                    unmount_command(self._node.mount_path),
                    on_our_death=signal.SIGKILL,
                    search_path=self._node.search_path,
                )
            except OSError as error:
                self._say(f"{self._node.mount_path} cannot be unmounted: {error}")
                self._next_unmount = time.monotonic() + _UNMOUNT_PAUSE
        return False
