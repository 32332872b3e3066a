from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from litefs_django import conf
from litefs_django._litefs import diverged
from litefs_django._litefs.diverged import Diverged
from litefs_django._litefs.errors import SettingsError, SupervisorError
from litefs_django._litefs.health import HealthChecker, Problem, Verdict
from litefs_django._litefs.reach import reach
from litefs_django._litefs.settings import LiteFSSettings
from litefs_django._litefs.survey import NodeReport, survey
from litefs_django.management.in_use import require_litefs

_HEAD = ("NODE", "ROLE", "CANDIDATE", "LAG", "DATABASE", "POSITION")
_TIMEOUT = 2.0
_CLEAR_SCREEN = "\x1b[H\x1b[J"


class Command(BaseCommand):
    help = (
        "Shows every node of the cluster as seen from this one. Exits with 0 when all is well, with 1 when not. A "
        "replica's lag is the time since it last heard from its primary, up to 1 s when nothing is written."
    )
    # It is wanted most when something is wrong.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--format", choices=["text", "json"], default="text", help="json: one object a line.")
        parser.add_argument("--watch", action="store_true", help="Ask again each second, until Ctrl-C.")
        parser.add_argument(
            "--dismiss", action="store_true", help="Remove what this node alone had as the primary, and was kept aside."
        )

    def handle(self, *, format: str, watch: bool, dismiss: bool, **options: object) -> None:
        require_litefs()
        try:
            settings = conf.read()
        except SettingsError as error:
            raise CommandError(str(error)) from error
        if dismiss:
            self._dismiss(settings.data_path)
            return
        verdict = Verdict((Problem("No node was asked."),))
        try:
            while True:
                verdict = self._show_once(settings, format, watch)
                if not watch:
                    break
                time.sleep(1)
        except KeyboardInterrupt:
            self.stdout.write("")
        if not verdict.is_healthy:
            sys.exit(1)

    def _dismiss(self, data_path: Path) -> None:
        try:
            found = diverged.dismiss(data_path)
        except OSError as error:
            raise CommandError(f"{data_path / diverged.DIRECTORY} cannot be removed: {error.strerror}.") from error
        for each in found:
            self.stdout.write(f"Removed: {each}")
        if not found:
            self.stdout.write("There was nothing to dismiss.")

    def _show_once(self, settings: LiteFSSettings, format: str, watch: bool) -> Verdict:
        reports = survey(reach(settings), [node.name for node in settings.cluster.data_nodes])
        verdict = HealthChecker(settings).check(reports)
        lease = _ask_lease(settings) if settings.leader_election == "raft" else None
        alone = diverged.find(settings.data_path)
        kept = [_diverged_problem(each, settings.data_path / diverged.DIRECTORY) for each in alone]
        verdict = Verdict((*verdict.problems, *_lease_problems(lease), *kept))
        if format == "json":
            answer = _as_dict(reports, verdict, settings.cluster.node)
            text = json.dumps(answer | {"lease": lease, "diverged": [asdict(each) for each in alone]})
        else:
            text = self._as_text(reports, lease, verdict, settings.cluster.node)
            if watch and self.stdout.isatty():
                text = f"{_CLEAR_SCREEN}{time.strftime('%X')}\n{text}"
        self.stdout.write(text)
        self.stdout.flush()
        return verdict

    def _as_text(
        self, reports: Sequence[NodeReport], lease: Mapping[str, Any] | None, verdict: Verdict, this: str
    ) -> str:
        lines = list(_table([_HEAD, *(row for report in reports for row in _rows(report, this))]))
        lines.append("")
        if lease:
            lines += [*_table(list(_lease_rows(lease, this))), ""]
        if any(report.info and not report.is_primary and report.lag is not None for report in reports):
            lines.append("LAG is since a replica last heard from its primary: up to 1 s when nothing is written.\n")
        if verdict.is_healthy:
            lines.append(self.style.SUCCESS("Healthy."))
        else:
            lines.append(self.style.ERROR("Not healthy:"))
            lines.extend(f"- {reason}" for reason in verdict.reasons)
        return "\n".join(lines)


def _ask_lease(settings: LiteFSSettings) -> dict[str, Any]:
    """What this node's lease process says; `error` alone when it says nothing."""
    # Linux alone has what it needs.
    from litefs_django._litefs.node.control import ask

    try:
        said: dict[str, Any] = ask(settings.run, "status", timeout=_TIMEOUT)["lease"]
    except SupervisorError as error:
        return {"error": str(error)}
    if not said:
        return {"error": "The lease process of this node does not answer."}
    holder = said["state"]["lease"]
    return {
        "holder": holder and holder["node"],
        "left": said["left"],
        "term": said["term"],
        "leader": said["leader"],
        "voters": {name: name in said["reachable"] for name in said["members"]},
        "votes": said["votes"],
    }


def _lease_rows(lease: Mapping[str, Any], this: str) -> Iterator[tuple[str, str]]:
    if "error" in lease:
        yield "LEASE", f"unknown: {lease['error']}"
        return
    yield "LEASE", f"{lease['holder'] or 'nobody'}{_left(lease['left'])}"
    yield "TERM", f"{lease['term']}, led by {lease['leader'] or 'nobody that this node reaches'}"
    reached = (f"{name} {_voter(name, is_there, this)}".rstrip() for name, is_there in lease["voters"].items())
    yield "VOTERS", ", ".join(reached)
    if lease["votes"] != "It votes.":
        yield "VOTES", lease["votes"]


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds >= 0.1:
        return f", for {seconds:.1f} s unless it renews it or gives it back"
    return " until it ran out, and nobody else before a node leads"


def _voter(name: str, is_there: bool, this: str) -> str:
    return "(here)" if name == this else "" if is_there else "(not reached)"


def _lease_problems(lease: Mapping[str, Any] | None) -> Iterator[Problem]:
    if lease and "error" in lease:
        yield Problem(f"The lease cannot be looked at: {lease['error']}")
    for name, is_there in (lease or {}).get("voters", {}).items():
        if not is_there:
            yield Problem(
                f"{name} cannot be reached, to vote.", "Is litefs_run running there, its RAFT_PORT reachable?"
            )


def _diverged_problem(alone: Diverged, directory: Path) -> Problem:
    return Problem(
        f"Not in the cluster: {alone}. This had not been sent when this node stopped being the primary. It is kept in "
        f"{directory / alone.database} until: manage.py litefs_status --dismiss"
    )


def _rows(report: NodeReport, this: str) -> Iterator[tuple[str, ...]]:
    """One row of each database; a node without any has one row."""
    name = f"{report.name} (here)" if report.name == this else report.name
    if report.info is None:
        yield name, "no answer", "", "", "", ""
        return
    lag = "never in sync" if report.lag is None else f"{report.lag:.3f} s"
    node = (
        name,
        "primary" if report.is_primary else "replica",
        "yes" if report.info.candidate else "no",
        "" if report.is_primary else lag,
    )
    databases = [(database, str(position)) for database, position in sorted(report.positions.items())]
    for index, database in enumerate(databases or [("", "")]):
        yield *(node if index == 0 else ("",) * len(node)), *database


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _as_dict(reports: Sequence[NodeReport], verdict: Verdict, this: str) -> dict[str, Any]:
    return {
        "healthy": verdict.is_healthy,
        "reasons": verdict.reasons,
        "nodes": [
            {
                "name": report.name,
                "here": report.name == this,
                "answers": report.info is not None,
                "error": report.error or None,
                "role": None if report.info is None else "primary" if report.is_primary else "replica",
                "primary": report.info and report.info.primary,
                "candidate": report.info and report.info.candidate,
                "cluster_id": report.info and report.info.cluster_id,
                "lag": report.lag,
                "positions": {name: str(position) for name, position in report.positions.items()},
            }
            for report in reports
        ],
    }
