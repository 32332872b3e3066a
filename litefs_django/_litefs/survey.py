"""Asks every node of a cluster at once what it is and how far it has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from litefs_django._litefs.client import Info, LiteFSClient
from litefs_django._litefs.errors import ClientError
from litefs_django._litefs.mount import Position
from litefs_django._litefs.settings import Node


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


def survey(nodes: Sequence[Node], timeout: float = 2.0) -> list[NodeReport]:
    """One report of each node, in their order; a node is given `timeout` seconds for each of its answers.

    A primary's positions are read after all others': no replica that follows it can seem to be ahead of it.
    """
    with ThreadPoolExecutor(len(nodes)) as pool:
        reports = list(pool.map(lambda node: _ask(node, timeout), nodes))
        return list(pool.map(lambda node, report: _ask_again(node, report, timeout), nodes, reports))


def _ask(node: Node, timeout: float) -> NodeReport:
    client = LiteFSClient(node.http_url, timeout)
    try:
        return NodeReport(name=node.name, info=client.info(), lag=client.lag(), positions=client.positions())
    except ClientError as error:
        return NodeReport(name=node.name, error=str(error))


def _ask_again(node: Node, report: NodeReport, timeout: float) -> NodeReport:
    if not report.is_primary:
        return report
    try:
        return replace(report, positions=LiteFSClient(node.http_url, timeout).positions())
    except ClientError as error:
        return NodeReport(name=node.name, error=str(error))
