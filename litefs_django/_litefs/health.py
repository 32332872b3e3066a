"""One verdict on a cluster, and its reasons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from litefs_django._litefs.survey import NodeReport


@dataclass(frozen=True, slots=True)
class Verdict:
    """A cluster is healthy when there is no reason why it is not. Each reason is a sentence."""

    reasons: tuple[str, ...]

    @property
    def is_healthy(self) -> bool:
        return not self.reasons


class HealthChecker:
    """Judges what the nodes of a cluster said.

    `max_lag` is in seconds, `databases` are the file names that the project uses.
    """

    def __init__(self, max_lag: float, databases: Iterable[str] = ()) -> None:
        self.max_lag = max_lag
        self.databases = tuple(databases)

    def check(self, reports: Sequence[NodeReport]) -> Verdict:
        return Verdict(tuple(self._reasons(reports)))

    def _reasons(self, reports: Sequence[NodeReport]) -> Iterator[str]:
        for report in reports:
            if report.info is None:
                yield f"{report.name}: {report.error}"
        cluster_ids = sorted({report.info.cluster_id for report in reports if report.info and report.info.cluster_id})
        if len(cluster_ids) > 1:
            yield f"The nodes belong to different clusters: {', '.join(cluster_ids)}."

        primaries = [report for report in reports if report.is_primary]
        if not primaries:
            yield "No node is primary."
        elif len(primaries) > 1:
            yield f"More than one node is primary: {', '.join(report.name for report in primaries)}."
        else:
            (primary,) = primaries
            yield from (
                f"{name} does not exist yet: run `manage.py migrate` on {primary.name}."
                for name in self.databases
                if name not in primary.positions
            )
            for report in reports:
                if report.info is not None and report is not primary:
                    yield from self._replica_reasons(report, report.info.primary, primary)

    def _replica_reasons(self, replica: NodeReport, follows: str | None, primary: NodeReport) -> Iterator[str]:
        if follows is None:
            yield f"{replica.name} is not connected to a primary."
        elif follows != primary.name:
            yield f"{replica.name} follows {follows}, but {primary.name} is primary."
        if replica.lag is None:
            yield f"{replica.name} has never been synchronised."
        elif replica.lag > self.max_lag:
            yield f"{replica.name} lags {replica.lag:.1f} s behind; allowed are {self.max_lag:g} s."
        for name in sorted(primary.positions.keys() | replica.positions.keys()):
            here, there = replica.positions.get(name), primary.positions.get(name)
            if here is None:
                yield f"{name} has not arrived on {replica.name}."
            elif there is None:
                yield f"{name} exists on {replica.name}, but not on {primary.name}, which is primary."
            elif here.txid > there.txid or (here.txid == there.txid and here != there):
                yield (
                    f"{name} on {replica.name} is not a copy of that on {primary.name}: "
                    f"it is at {here}, the primary's at {there}."
                )
