from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from litefs_django import conf
from litefs_django._litefs import binary
from litefs_django._litefs.errors import BinaryError, SettingsError


class Command(BaseCommand):
    help = f"Finds LiteFS {binary.VERSION} or builds it, and tells what else this machine lacks to run it."
    # They may complain of the very thing that this installs.
    requires_system_checks = []

    def handle(self, *, verbosity: int, **options: object) -> None:
        configured, allow_other = self._read_settings()
        try:
            path = _find_or_build(configured, self._say if verbosity else lambda line: None)
        except BinaryError as error:
            raise CommandError(str(error)) from error
        if verbosity:
            self._say(self.style.SUCCESS(f"LiteFS {binary.VERSION}: {path}"))
            self._tell_what_is_missing(allow_other)

    def _read_settings(self) -> tuple[str | None, bool | None]:
        """BINARY and ALLOW_OTHER. Where an image is built the other settings may not be right yet."""
        try:
            settings = conf.read()
        except SettingsError as error:
            warning = f'LITEFS has mistakes, so that LITEFS["BINARY"] and LITEFS["ALLOW_OTHER"] are not read:\n{error}'
            self.stderr.write(self.style.WARNING(warning))
            return None, None
        return settings.binary, settings.allow_other

    def _tell_what_is_missing(self, allow_other: bool | None) -> None:
        is_root = os.geteuid() == 0
        missing = binary.missing_requirements(is_root, is_root if allow_other is None else allow_other)
        self._say("To run it here, this is missing:" if missing else "Nothing is missing to run it here.")
        for requirement in missing:
            self._say(f"- {requirement.missing}: {requirement.command}")

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        # A build takes a minute: what it says is wanted at once, in a log too.
        self.stdout.flush()


def _find_or_build(configured: str | None, progress: Callable[[str], None]) -> Path:
    """A verified binary. One that is configured or came with the package is never replaced. Raises BinaryError."""
    target = binary.installed_path() if configured is None else Path(configured).absolute()
    try:
        found = binary.find(configured)
    except BinaryError:
        found = None
    if found is not None:
        try:
            binary.verify(found)
        except BinaryError:
            if configured is not None or found == binary.BUNDLED:
                raise
        else:
            return found
    binary.build(target, progress)
    return target
