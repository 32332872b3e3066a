"""`manage.py litefs_promote [NODE]`: a planned change of primary that loses nothing."""

from __future__ import annotations

from django.core.management.base import BaseCommand, CommandError, CommandParser

from litefs_django import conf
from litefs_django._litefs.errors import SettingsError, SupervisorError
from litefs_django.management.in_use import require_litefs


class Command(BaseCommand):
    help = (
        "Makes a node the primary, without losing a write. With Raft run it on any node, with Consul on the machine "
        "of the present primary."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("node", nargs="?", metavar="NODE", help='One of LITEFS["NODES"]. Default: this node.')

    def handle(self, *, node: str | None, verbosity: int, **options: object) -> None:
        require_litefs()
        try:
            settings = conf.read()
        except SettingsError as error:
            raise CommandError(str(error)) from error
        name = node or settings.cluster.node
        if (found := settings.cluster.get(name)) and found.is_witness:
            raise CommandError(f"{name!r} is a witness, which has no data and cannot be the primary: name another.")
        # Linux alone has what it needs.
        from litefs_django._litefs.node.control import SILENCE, ask

        def say(text: str) -> None:
            if verbosity > 0:
                self.stdout.write(text)
                self.stdout.flush()

        try:
            done = ask(settings.run, "promote", say, timeout=SILENCE, node=name)
        except KeyboardInterrupt:
            raise CommandError(
                "Interrupted. litefs_run goes on with the change: see litefs_status.", returncode=130
            ) from None
        except SupervisorError as error:
            raise CommandError(str(error)) from error
        say(self.style.SUCCESS(done))
