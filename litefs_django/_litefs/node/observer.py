"""What the mount says of this node, seen from a thread: a LiteFS that hangs must not stop the supervisor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from litefs_django._litefs.errors import MountError
from litefs_django._litefs.mount import PrimaryDetector

# How late a change of role is seen.
INTERVAL = 0.2
_INTERVAL_UNTIL_MOUNTED = 0.01


@dataclass(frozen=True, slots=True)
class View:
    """One look at the mount. `primary` is the node that this one follows, or last tried to."""

    serves: bool = False
    is_synced: bool = False
    is_primary: bool = False
    primary: str | None = None


class Observer:
    """Watches one mount, from LiteFS's start to its end.

    `seen` is the last view, `seen_at` its time.monotonic(). MOUNT_PATH was empty before: what has a `.lag` there
    is LiteFS.
    """

    def __init__(self, mount_path: Path, databases: Sequence[str], on_change: Callable[[], None]) -> None:
        self.seen = View()
        self.seen_at = 0.0
        self._detector = PrimaryDetector(mount_path)
        self._database = next(iter(databases), None)
        self._on_change = on_change
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="litefs-observer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Lets go of the mount, unless LiteFS hangs: then at its end."""
        self._stopped.set()
        self._thread.join(0.1)

    def may_be_primary(self) -> bool:
        """Asks the mount, which may hang; what does not serve, though it runs, may be anything."""
        view = self._look()
        return view.is_primary or not view.serves

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL if self.seen.serves else _INTERVAL_UNTIL_MOUNTED):
            view = self._look()
            has_changed = view != self.seen
            self.seen, self.seen_at = view, time.monotonic()
            if has_changed:
                self._on_change()

    def _look(self) -> View:
        try:
            lag = self._detector.lag()
            # LiteFS names nobody between two attempts to connect.
            primary = self._detector.primary_name() or (None if lag == 0.0 else self.seen.primary)
            if self._database is None:
                is_primary = primary is None and lag == 0.0
            else:
                is_primary = self._detector.is_primary(self._database)
        except (MountError, ValueError):
            return View()
        return View(serves=True, is_synced=lag is not None, is_primary=is_primary, primary=primary)
