"""One verdict on a cluster, and its reasons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from litefs_django._litefs.settings import LeaseType, LiteFSSettings
from litefs_django._litefs.survey import NodeReport

_NO_PRIMARY: dict[LeaseType, str] = {
    "static": 'Start the node that LITEFS["PRIMARY"] names.',
    "raft": "Most of the voters have to run, and to reach each other on RAFT_PORT.",
    "consul": "Do the nodes reach Consul? LiteFS's log says.",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a cluster is not healthy, as a sentence, and what to do about it."""

    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A cluster is healthy when there is no problem with it."""

    problems: tuple[Problem, ...]

    @property
    def is_healthy(self) -> bool:
        return not self.problems

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(problem.reason for problem in self.problems)


class HealthChecker:
    """Judges what the nodes of a cluster with these settings said."""

    def __init__(self, settings: LiteFSSettings) -> None:
        self._settings = settings

    def check(self, reports: Sequence[NodeReport]) -> Verdict:
        return Verdict(tuple(self._problems(reports)))

    def _problems(self, reports: Sequence[NodeReport]) -> Iterator[Problem]:
        for report in reports:
            if report.info is None:
                yield Problem(f"{report.name}: {report.error}", "Is litefs_run running there, and its port reachable?")
        cluster_ids = sorted({report.info.cluster_id for report in reports if report.info and report.info.cluster_id})
        if len(cluster_ids) > 1:
            yield Problem(
                f"The nodes belong to different clusters: {', '.join(cluster_ids)}.",
                "A node replicates only within its cluster. Stop the one that does not belong, move its DATA_PATH away "
                "(what only it holds is in there) and start it again.",
            )

        primaries = [report for report in reports if report.is_primary]
        if not primaries:
            yield Problem("No node is primary.", _NO_PRIMARY[self._settings.leader_election])
        elif len(primaries) > 1:
            yield Problem(
                f"More than one node is primary: {', '.join(report.name for report in primaries)}.",
                'Stop all but the one whose data counts, and give each node the same LITEFS["PRIMARY"].',
            )
        else:
            (primary,) = primaries
            yield from (
                Problem(f"{database.name} does not exist yet: run `manage.py migrate` on {primary.name}.")
                for database in self._settings.databases
                if database.name not in primary.positions
            )
            for report in reports:
                if report.info is not None and report is not primary:
                    yield from self._replica_problems(report, report.info.primary, primary)

    def _replica_problems(self, replica: NodeReport, follows: str | None, primary: NodeReport) -> Iterator[Problem]:
        log = f"LiteFS's log on {replica.name} says why."
        if follows is None:
            yield Problem(f"{replica.name} is not connected to a primary.", log)
        elif follows != primary.name:
            yield Problem(f"{replica.name} follows {follows}, but {primary.name} is primary.", log)
        if replica.lag is None:
            yield Problem(f"{replica.name} has never been synchronised.", log)
        elif replica.lag > self._settings.max_lag:
            yield Problem(
                f"{replica.name} lags {replica.lag:.1f} s behind; allowed are {self._settings.max_lag:g} s.",
                f"A long read on {replica.name} holds replication up, and so does a primary that hangs; clocks that "
                "differ look the same.",
            )
        for name in sorted(primary.positions.keys() | replica.positions.keys()):
            here, there = replica.positions.get(name), primary.positions.get(name)
            if here is None:
                yield Problem(f"{name} has not arrived on {replica.name}.", log)
            elif there is None:
                yield Problem(
                    f"{name} exists on {replica.name}, but not on {primary.name}, which is primary.",
                    f"If it is wanted, export it there (litefs_export) before {replica.name} is started again.",
                )
            elif here.txid > there.txid or (here.txid == there.txid and here != there):
                yield Problem(
                    f"{name} on {replica.name} is not a copy of that on {primary.name}: "
                    f"it is at {here}, the primary's at {there}.",
                    f"Start {replica.name} again: LiteFS then takes the primary's copy, and what only {replica.name} "
                    "has is lost. Export it there before (litefs_export) if it may count.",
                )
