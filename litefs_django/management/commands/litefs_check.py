from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from django.core.checks import ERROR, WARNING
from django.core.management.base import BaseCommand, CommandParser

from litefs_django import checks, conf
from litefs_django._litefs import binary
from litefs_django._litefs.settings import LiteFSSettings
from litefs_django.checks.configuration import check_settings
from litefs_django.management.in_use import HINT, not_in_use


class Command(BaseCommand):
    help = (
        "The system checks of `check --deploy --tag litefs`, and what only the running machine can tell. Exits with 1 "
        "when there is an error, with 0 when there are warnings alone."
    )
    # It runs them itself.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--format", choices=["text", "json"], default="text", help="json: one object.")

    def handle(self, *, format: str, verbosity: int, **options: object) -> None:
        findings = list(_findings())
        count = Counter(finding["level"] for finding in findings)
        if format == "json":
            self.stdout.write(
                json.dumps({"errors": count["error"], "warnings": count["warning"], "findings": findings})
            )
        else:
            for finding in findings:
                if verbosity > 0 or finding["level"] != "ok":
                    self._show(finding)
            if verbosity > 0:
                self.stdout.write(f"\n{_counted(count['error'], 'error')}, {_counted(count['warning'], 'warning')}.")
        if count["error"]:
            sys.exit(1)

    def _show(self, finding: dict[str, str]) -> None:
        style = {"ok": self.style.SUCCESS, "warning": self.style.WARNING, "error": self.style.ERROR}[finding["level"]]
        message = f"({finding['id']}) {finding['message']}" if finding["id"] else finding["message"]
        self.stdout.write(f"{style(finding['level'].ljust(7))}  {finding['subject'].ljust(11)}  {message}")
        if finding["hint"]:
            self.stdout.write(f"{'':22}Fix: {finding['hint']}")


def _findings() -> Iterator[dict[str, str]]:
    """What litefs_django._litefs.node.checkup.Finding has, and the id of a system check; "" where there is none."""
    if not conf.is_enabled():
        yield _finding("warning", "settings", not_in_use(), HINT)
        return
    for subject, family in checks.FAMILIES:
        has_said_anything = False
        for message in (message for check in family for message in check(None) if not message.is_silenced()):
            has_said_anything = True
            level = "error" if message.level >= ERROR else "warning" if message.level >= WARNING else "ok"
            yield _finding(level, subject, str(message.msg), str(message.hint or ""), str(message.id))
        if subject == "settings" and check_settings(None):
            return
        if not has_said_anything and (said := _all_is_well(subject, conf.read())):
            yield _finding("ok", subject, said)
    if sys.platform == "linux":
        from litefs_django._litefs.node.checkup import check_up

        for found in check_up(conf.read()):
            yield {**asdict(found), "id": ""}


def _all_is_well(subject: str, settings: LiteFSSettings) -> str:
    """What a family of checks that has nothing to say would say; "" when that is nothing."""
    cluster = settings.cluster
    if subject == "settings":
        elected = {"consul": "elected through Consul", "raft": "elected by the nodes"}
        lease = elected.get(settings.leader_election, repr(cluster.primary))
        return f"{_counted(len(cluster.nodes), 'node')}, this one is {cluster.node!r}; the primary is {lease}"
    if subject == "project":
        return "nothing is kept on one node that the others should see" if len(cluster.nodes) > 1 else ""
    if cluster.this.is_witness and subject in ("machine", "binary"):
        return ""
    if subject == "machine":
        return "FUSE and the right to mount are there"
    if subject == "binary":
        return f"{binary.find(settings.binary)} is LiteFS {binary.VERSION}"
    if subject == "directories":
        paths = "DATA_PATH" if cluster.this.is_witness else "MOUNT_PATH, DATA_PATH"
        return f"{paths} and RUN_PATH can be used by user {os.geteuid()}"
    return ""


def _finding(level: str, subject: str, message: str, hint: str = "", id: str = "") -> dict[str, str]:
    return {"level": level, "subject": subject, "message": message, "hint": hint, "id": id}


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
