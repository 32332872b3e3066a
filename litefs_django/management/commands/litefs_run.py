"""`manage.py litefs_run [--migrate] [--on-primary CMD ...] -- CMD ...`: runs a node of the cluster."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from litefs_django import conf
from litefs_django._litefs.errors import LiteFSError, SettingsError
from litefs_django._litefs.settings import LiteFSSettings
from litefs_django.management.in_use import not_in_use


class Command(BaseCommand):
    """Loads the project once, to read and check its settings; then this process becomes the supervisor."""

    help = "Runs LiteFS and, once it is synchronised, the application server; ends with the latter's exit code."
    # The databases are not there before LiteFS is.
    requires_system_checks: list[str] = []

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        usage = "%(prog)s [--migrate] [--on-primary CMD ...] [OPTIONS] -- CMD ..."
        parser = super().create_parser(prog_name, subcommand, usage=usage, **kwargs)
        refuse = parser.error

        def error(message: str) -> None:
            hint = "" if "--" in sys.argv else '. Put "--" before the command, whose options are not litefs_run\'s'
            refuse(f"{message}{hint}")

        parser.error = error  # type: ignore[method-assign]
        return parser

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--migrate",
            action="store_true",
            help="Before the application starts, migrate on the primary; on a replica wait for its migrations.",
        )
        parser.add_argument(
            "--on-primary",
            action="extend",
            nargs="+",
            default=[],
            metavar="CMD",
            help="A command line, as one argument, that runs only while this node is the primary.",
        )
        parser.add_argument(
            "--bootstrap",
            action="store_true",
            help="With Raft, begin without the members that do not answer: their disks are lost for good.",
        )
        parser.add_argument(
            "--witness",
            action="store_true",
            help="With Raft, vote and hold no data, as LITEFS has it for this node; there is no CMD.",
        )
        parser.add_argument("command", nargs="*", metavar="CMD", help="The application server and its arguments.")

    def handle(
        self,
        *,
        migrate: bool,
        on_primary: list[str],
        bootstrap: bool,
        witness: bool,
        command: list[str],
        **options: Any,
    ) -> None:
        commands = [_split(line) for line in on_primary]
        if not command and not witness:
            raise CommandError(
                'It needs the command to run: "manage.py litefs_run -- gunicorn mysite.wsgi".', returncode=2
            )
        if not conf.is_enabled():
            if witness:
                raise CommandError('--witness needs LiteFS, and LITEFS["ENABLED"] is False.')
            self._run_plainly(command, migrate=migrate, has_commands=bool(commands), options=options)
        if sys.platform != "linux":
            raise CommandError(
                'LiteFS runs on Linux only. To develop without it set LITEFS["ENABLED"] to False.', returncode=1
            )
        from litefs_django._litefs.node.launch import become_supervisor, prepare, prepare_witness

        try:
            settings = conf.read()
            self._check_kind(settings, command, is_witness=witness, is_bootstrap=bootstrap)
            if witness:
                description = prepare_witness(settings, is_bootstrap=bootstrap)
            else:
                description = prepare(
                    settings,
                    tuple(command),
                    on_primary=commands,
                    migrate=_manage(options, "litefs_migrate") if migrate else (),
                    is_bootstrap=bootstrap,
                )
        except SettingsError as error:
            raise CommandError(f"The settings cannot work:\n{error}") from error
        except (LiteFSError, OSError) as error:
            raise CommandError(str(error)) from error
        become_supervisor(description)

    def _check_kind(
        self, settings: LiteFSSettings, command: list[str], *, is_witness: bool, is_bootstrap: bool
    ) -> None:
        this = settings.cluster.this
        where = f'LITEFS["NODES"]["{this.name}"]'
        if is_witness != this.is_witness:
            raise CommandError(
                f'{where}: this node is a witness ("WITNESS": True). Start it with: litefs_run --witness'
                if this.is_witness
                else f'{where}: this node is not a witness. Start it without --witness, or set "WITNESS": True.'
            )
        if is_witness and command:
            raise CommandError("--witness runs no command.")
        if is_bootstrap and settings.leader_election != "raft":
            raise CommandError(
                f'--bootstrap is for LITEFS["LEADER_ELECTION"] "raft", and it is {settings.leader_election!r}.'
            )

    def _run_plainly(self, command: list[str], *, migrate: bool, has_commands: bool, options: dict[str, Any]) -> None:
        """LITEFS["ENABLED"] is False: the command alone, as its own parent would start it."""
        if has_commands:
            raise CommandError(
                '--on-primary needs LiteFS, and LITEFS["ENABLED"] is False. Start these commands yourself, beside it.'
            )
        self.stderr.write(not_in_use(), style_func=str)
        if migrate and (code := subprocess.call(_manage(options, "litefs_migrate"))):
            raise CommandError("The migrations have failed.", returncode=code)
        self.stdout.flush()
        try:
            if os.name == "nt":  # exec would leave the terminal to two processes
                sys.exit(subprocess.call(command))
            os.execvp(command[0], command)
        except OSError as error:
            raise CommandError(f"{command[0]!r} cannot be started: {error.strerror}.", returncode=127) from error


def _split(line: str) -> tuple[str, ...]:
    try:
        argv = tuple(shlex.split(line))
    except ValueError as error:
        raise CommandError(f"--on-primary {line!r} cannot be read: {error}.") from error
    if not argv:
        raise CommandError("--on-primary needs a command.")
    return argv


def _manage(options: dict[str, Any], *arguments: str) -> tuple[str, ...]:
    """Another command of this project, started as this one was."""
    script = Path(sys.argv[0])
    is_own = script.suffix == ".py" and script.name != "__main__.py"
    program = [str(script.absolute())] if is_own else ["-m", "django"]
    # --settings is in DJANGO_SETTINGS_MODULE already.
    path = ["--pythonpath", options["pythonpath"]] if options.get("pythonpath") else []
    return (sys.executable, *program, *arguments, *path)
