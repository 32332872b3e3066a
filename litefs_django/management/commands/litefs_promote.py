"""`manage.py litefs_promote [NODE]`: a planned change of primary that loses nothing."""

from __future__ import annotations

from django.core.management.base import BaseCommand, CommandError, CommandParser

from litefs_django import conf
from litefs_django._litefs.errors import SettingsError, SupervisorError
from litefs_django.management.in_use import require_litefs

# Seconds without a word from the supervisor: longer than the longest of its steps.
_TIMEOUT = 30.0


class Command(BaseCommand):
    help = "Makes a node the primary, without losing a write. Run it on the machine of the present primary."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("node", nargs="?", metavar="NODE", help='One of LITEFS["NODES"]. Default: this node.')

    def handle(self, *, node: str | None, verbosity: int, **options: object) -> None:
        require_litefs()
        try:
            settings = conf.read()
        except SettingsError as error:
            raise CommandError(str(error)) from error
        # Linux alone has what it needs.
        from litefs_django._litefs.node.control import ask

        def say(text: str) -> None:
            if verbosity > 0:
                self.stdout.write(text)
                self.stdout.flush()

        try:
            done = ask(settings.run, "promote", say, timeout=_TIMEOUT, node=node or settings.cluster.node)
        except KeyboardInterrupt:
            raise CommandError(
                "Interrupted. litefs_run goes on with the change: see litefs_status.", returncode=130
            ) from None
        except SupervisorError as error:
            raise CommandError(str(error)) from error
        say(self.style.SUCCESS(done))
