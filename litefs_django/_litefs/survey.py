"""Asks every node of a cluster at once what it is and how far it has come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from litefs_django._litefs.client import Info, LiteFSClient
from litefs_django._litefs.errors import ClientError
from litefs_django._litefs.mount import Position
from litefs_django._litefs.reach import Reach


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
    known = {report.name: report for report in _all_at_once(nodes, names, _ask, timeout)}
    primaries = [name for name, report in known.items() if report.is_primary]

    def ask_again(client: LiteFSClient, name: str) -> NodeReport:
        return replace(known[name], positions=client.positions())

    for again in _all_at_once(nodes, primaries, ask_again, timeout):
        known[again.name] = again
    return list(known.values())


_Ask = Callable[[LiteFSClient, str], NodeReport]


def _all_at_once(nodes: Reach, names: Sequence[str], ask: _Ask, timeout: float) -> list[NodeReport]:
    """Asks each in a thread that nobody waits for longer: looking up a name can take half a minute (resolver(5))."""
    deadline = time.monotonic() + timeout
    answers = [_answer(ask, nodes.client(name, timeout), name) for name in names]
    reports = []
    for name, answer in zip(names, answers, strict=True):
        try:
            reports.append(answer.result(max(0.0, deadline - time.monotonic())))
        except TimeoutError:
            error = f"{nodes.urls[name]}/info did not answer within {timeout:g} s."
            reports.append(NodeReport(name=name, error=error))
    return reports


def _answer(ask: _Ask, client: LiteFSClient, name: str) -> Future[NodeReport]:
    answer: Future[NodeReport] = Future()

    def run() -> None:
        try:
            answer.set_result(ask(client, name))
        except ClientError as error:
            answer.set_result(NodeReport(name=name, error=str(error)))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer


def _ask(client: LiteFSClient, name: str) -> NodeReport:
    return NodeReport(name=name, info=client.info(), lag=client.lag(), positions=client.positions())
