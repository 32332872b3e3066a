from __future__ import annotations

from pathlib import Path

from django.core.management.base import BaseCommand, CommandError, CommandParser

from litefs_django import conf
from litefs_django._litefs.config import ConfigGenerator
from litefs_django._litefs.errors import SettingsError
from litefs_django.management.in_use import require_litefs


class Command(BaseCommand):
    help = "Prints the litefs.yml of this node, as litefs_run makes it from settings.LITEFS."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--output", type=Path, metavar="FILE", help="Write it there, readable for its owner only.")

    def handle(self, *, output: Path | None, verbosity: int, **options: object) -> None:
        require_litefs()
        try:
            generator = ConfigGenerator(conf.read())
        except SettingsError as error:
            raise CommandError(str(error)) from error
        if output is None:
            self.stdout.write(generator.render(), ending="")
            return
        target = output.resolve()
        if target.exists() and not target.is_file():
            raise CommandError(f"--output {output}: it cannot be written: it is not a file.")
        try:
            generator.write(target)
        except OSError as error:
            raise CommandError(f"--output {output}: it cannot be written: {error.strerror}.") from error
        if verbosity > 0:
            self.stdout.write(f"Written to {output}.")
