from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from litefs_django import conf
from litefs_django._litefs.errors import SettingsError
from litefs_django._litefs.health import HealthChecker, Problem, Verdict
from litefs_django._litefs.reach import reach
from litefs_django._litefs.settings import LiteFSSettings
from litefs_django._litefs.survey import NodeReport, survey
from litefs_django.management.in_use import require_litefs

_HEAD = ("NODE", "ROLE", "CANDIDATE", "LAG", "DATABASE", "POSITION")
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

    def handle(self, *, format: str, watch: bool, **options: object) -> None:
        require_litefs()
        try:
            settings = conf.read()
        except SettingsError as error:
            raise CommandError(str(error)) from error
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

    def _show_once(self, settings: LiteFSSettings, format: str, watch: bool) -> Verdict:
        reports = survey(reach(settings), [node.name for node in settings.cluster.data_nodes])
        verdict = HealthChecker(settings).check(reports)
        if format == "json":
            text = json.dumps(_as_dict(reports, verdict, settings.cluster.node))
        else:
            text = self._as_text(reports, verdict, settings.cluster.node)
            if watch and self.stdout.isatty():
                text = f"{_CLEAR_SCREEN}{time.strftime('%X')}\n{text}"
        self.stdout.write(text)
        self.stdout.flush()
        return verdict

    def _as_text(self, reports: Sequence[NodeReport], verdict: Verdict, this: str) -> str:
        lines = list(_table([_HEAD, *(row for report in reports for row in _rows(report, this))]))
        lines.append("")
        if any(report.info and not report.is_primary and report.lag is not None for report in reports):
            lines.append("LAG is since a replica last heard from its primary: up to 1 s when nothing is written.\n")
        if verdict.is_healthy:
            lines.append(self.style.SUCCESS("Healthy."))
        else:
            lines.append(self.style.ERROR("Not healthy:"))
            lines.extend(f"- {reason}" for reason in verdict.reasons)
        return "\n".join(lines)


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
