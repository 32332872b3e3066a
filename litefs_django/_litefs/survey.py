"""Asks every node of a cluster at once what it is and how far it has come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TypeVar

from litefs_django._litefs.client import Info, LiteFSClient
from litefs_django._litefs.errors import ClientError
from litefs_django._litefs.mount import Position
from litefs_django._litefs.reach import Reach

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What one node said. `info` is None when it did not answer; `error` then says why.

    `lag` is in seconds, None when the node was never synchronised.
    """

    name: str
    error: str = ""
    info: Info | None = None
    lag: float | None = None
    positions: Mapping[str, Position] = field(default_factory=dict)

    @property
    def is_primary(self) -> bool:
        return self.info is not None and self.info.is_primary


def survey(nodes: Reach, names: Sequence[str], timeout: float = 2.0) -> list[NodeReport]:
    """One report of each of these nodes, in their order, within `timeout` seconds.

    A primary has as long for a second answer: its positions are read after all others', so that no replica that
    follows it can seem to be ahead of it.
    """
    known = {report.name: report for report in _reports(nodes, names, _ask, timeout)}
    primaries = [name for name, report in known.items() if report.is_primary]

    def ask_again(client: LiteFSClient, name: str) -> NodeReport:
        return replace(known[name], positions=client.positions())

    for again in _reports(nodes, primaries, ask_again, timeout):
        known[again.name] = again
    return list(known.values())


_Ask = Callable[[LiteFSClient, str], NodeReport]


def _reports(nodes: Reach, names: Sequence[str], ask: _Ask, timeout: float) -> list[NodeReport]:
    clients = {name: nodes.client(name, timeout) for name in names}

    def report(name: str) -> NodeReport:
        try:
            return ask(clients[name], name)
        except ClientError as error:
            return NodeReport(name=name, error=str(error))

    def late(name: str) -> NodeReport:
        return NodeReport(name=name, error=f"{nodes.urls[name]}/info did not answer within {timeout:g} s.")

    return all_at_once(names, report, timeout, late)


def all_at_once(names: Sequence[str], ask: Callable[[str], T], timeout: float, late: Callable[[str], T]) -> list[T]:
    """What is found about each, in their order; `late` says so of one that takes longer than `timeout` seconds.

    Each is asked in a thread that nobody waits for longer: looking up a name can take half a minute (resolver(5)).
    """
    deadline = time.monotonic() + timeout
    answers = [_answer(ask, name) for name in names]
    found = []
    for name, answer in zip(names, answers, strict=True):
        try:
            found.append(answer.result(max(0.0, deadline - time.monotonic())))
        except TimeoutError:
            found.append(late(name))
    return found


def _answer(ask: Callable[[str], T], name: str) -> Future[T]:
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask(name))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer


def _ask(client: LiteFSClient, name: str) -> NodeReport:
    return NodeReport(name=name, info=client.info(), lag=client.lag(), positions=client.positions())
