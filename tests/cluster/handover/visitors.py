"""Visitors who write on any node, and look on any other whether it is there."""

from __future__ import annotations

import http.client
import random
import threading
import time
from dataclasses import dataclass, field

from tests.cluster.handover.site import Browser, Site


@dataclass
class Seen:
    """What all of them have met."""

    acknowledged: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    missed: list[tuple[str, str]] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    requests: int = 0
    slowest: float = 0.0


class Visitors:
    """They come until `stop()`, or until there have been so many requests."""

    def __init__(self, site: Site, requests: int, count: int = 8) -> None:
        self.site = site
        self.seen = Seen()
        self._most = requests
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._come, args=(number,)) for number in range(count)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def is_done(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> Seen:
        """Waits for them."""
        for thread in self._threads:
            thread.join()
        return self.seen

    def cut_short(self) -> None:
        self._most = 0

    def _come(self, number: int) -> None:
        chance = random.Random(number)
        browser = Browser()
        count = 0
        while self.seen.requests < self._most:
            name = f"visitor {number} {count}"
            count += 1
            self._write(browser, chance, name)
            # Another browser would not have to see it, this one has.
            for _ in range(chance.randrange(3)):
                self._read(browser, chance, self._last(number))

    def _last(self, number: int) -> str | None:
        return next((name for name in reversed(self.seen.acknowledged) if name.startswith(f"visitor {number} ")), None)

    def _write(self, browser: Browser, chance: random.Random, name: str) -> None:
        node = chance.choice(self.site.nodes)
        way = chance.randrange(4)
        began = time.monotonic()
        try:
            if way == 0:
                status = browser.get(node, f"/write/in_atomic/?name={name.replace(' ', '%20')}").status
            elif way == 1:
                status = browser.get(node, "/session/").status
            else:
                status = browser.post(node, "/post/", {"name": name}).status
        except (OSError, http.client.HTTPException):
            status = 0
        with self._lock:
            self._count(status, began)
            if way != 1:
                (self.seen.acknowledged if status == 200 else self.seen.unknown).append(name)

    def _read(self, browser: Browser, chance: random.Random, name: str | None) -> None:
        if name is None:
            return
        node = chance.choice(self.site.nodes)
        began = time.monotonic()
        try:
            reply = browser.get(node, f"/has/?name={name.replace(' ', '%20')}")
        except (OSError, http.client.HTTPException):
            with self._lock:
                self._count(0, began)
            return
        with self._lock:
            self._count(reply.status, began)
            if reply.status == 200 and not reply.json["has"]:
                self.seen.missed.append((name, reply.json["node"]))

    def _count(self, status: int, began: float) -> None:
        self.seen.requests += 1
        self.seen.statuses[status] = self.seen.statuses.get(status, 0) + 1
        self.seen.slowest = max(self.seen.slowest, time.monotonic() - began)
