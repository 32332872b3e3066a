from __future__ import annotations

from pathlib import Path

from django.core.management.base import BaseCommand, CommandError, CommandParser

from litefs_django import conf
from litefs_django._litefs.config import ConfigGenerator
from litefs_django._litefs.errors import SettingsError


class Command(BaseCommand):
    help = "Prints the litefs.yml of this node, as litefs_run makes it from settings.LITEFS."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--output", type=Path, metavar="FILE", help="Write it there, readable for its owner only.")

    def handle(self, *, output: Path | None, verbosity: int, **options: object) -> None:
        try:
            generator = ConfigGenerator(conf.read())
        except SettingsError as error:
            raise CommandError(str(error)) from error
        if output is None:
            self.stdout.write(generator.render(), ending="")
            return
        try:
            generator.write(output)
        except OSError as error:
            raise CommandError(f"--output {output}: it cannot be written: {error.strerror}.") from error
        if verbosity > 0:
            self.stdout.write(f"Written to {output}.")
