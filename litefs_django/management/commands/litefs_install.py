from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError, CommandParser

from litefs_django import conf
from litefs_django._litefs import binary
from litefs_django._litefs.download import download
from litefs_django._litefs.errors import BinaryError, SettingsError
from litefs_django.management.in_use import HINT, not_in_use


@dataclass(frozen=True, slots=True)
class Order:
    """What the options ask for. `foreign` is the architecture when it is not this machine's."""

    configured: str | None
    directory: str | None
    foreign: str | None
    url: str | None
    sha256: str | None

    @property
    def target(self) -> Path:
        """Where it is installed, as an absolute path."""
        if self.directory is not None:
            # The name under which it is found on PATH.
            return Path(os.path.abspath(self.directory)) / "litefs"
        return binary.installed_path() if self.configured is None else Path(self.configured).absolute()


class Command(BaseCommand):
    help = (
        f"Finds LiteFS {binary.VERSION}, or builds or downloads it, and tells what else this machine lacks to run it."
    )
    # They may complain of the very thing that this installs.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--from-url", metavar="URL", help="Download it from there (https, http, file).")
        parser.add_argument("--sha256", metavar="HASH", help="The SHA-256 of what is at URL: needed with --from-url.")
        parser.add_argument(
            "--arch",
            choices=sorted(binary.ARCHITECTURES.values()),
            help="The machine that it is for, if not this one: needs --directory.",
        )
        parser.add_argument("--directory", metavar="DIR", help="Install it as DIR/litefs, for this machine or others.")

    def handle(
        self,
        *,
        verbosity: int,
        from_url: str | None,
        sha256: str | None,
        arch: str | None,
        directory: str | None,
        **options: object,
    ) -> None:
        if not conf.is_enabled():
            self.stderr.write(self.style.WARNING(f"{not_in_use()} {HINT}"))
        configured, allow_other = self._read_settings()
        foreign = arch if arch != binary.native_architecture() else None
        order = Order(configured, directory, foreign, from_url, sha256 and sha256.lower())
        try:
            _refuse_contradictions(order)
            path = _carry_out(order, self._say if verbosity else lambda line: None)
        except BinaryError as error:
            raise CommandError(str(error)) from error
        if verbosity and foreign:
            self._say(self.style.SUCCESS(f"LiteFS for linux/{foreign}: {path}"))
            self._say("It cannot run here, so that its version was not asked. It is a program for that machine.")
        elif verbosity:
            self._say(self.style.SUCCESS(f"LiteFS {binary.VERSION}: {path}"))
            self._tell_what_is_used(path, configured)
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

    def _tell_what_is_used(self, installed: Path, configured: str | None) -> None:
        try:
            used = binary.find(configured)
            instead = "" if used.samefile(installed) else f"uses {used} all the same"
        except BinaryError:
            instead = "does not find it there"
        if instead:
            self._say(f'This project {instead}. Set LITEFS["BINARY"] to {str(installed)!r} to change that.')

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


def _refuse_contradictions(order: Order) -> None:
    if (order.url is None) != (order.sha256 is None):
        raise CommandError("--from-url and --sha256 need each other: without the hash anything could be downloaded.")
    if order.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", order.sha256):
        raise CommandError(f"--sha256 {order.sha256!r} is not 64 hexadecimal digits, as sha256sum prints them.")
    if order.directory is None:
        if order.foreign is not None:
            raise CommandError(
                f"--arch {order.foreign} is not this machine's: say with --directory where to put what cannot run here."
            )
        if order.url is not None and order.configured is None and binary.BUNDLED.exists():
            raise CommandError(
                f"This package came with its own LiteFS, {binary.BUNDLED}, which is used before any other. "
                'To use another set LITEFS["BINARY"] to its path; to put one elsewhere give --directory.'
            )
    elif order.configured is not None and not order.foreign and os.path.abspath(order.configured) != str(order.target):
        raise CommandError(
            f'LITEFS["BINARY"] is {order.configured!r}: this project would not use {str(order.target)!r}. '
            "Leave out --directory to install it there, or change the setting."
        )


def _carry_out(order: Order, progress: Callable[[str], None]) -> Path:
    """A verified binary. One that is configured or came with the package is never replaced, unless --directory
    names its place. Raises BinaryError.
    """
    if order.url is not None and order.sha256 is not None:
        _download(order, order.url, order.sha256, progress)
    elif order.directory is None:
        return _find_or_build(order, progress)
    elif order.foreign is not None or not _is_usable(order.target):
        # Of what cannot be run here it is not known what it is: it is built in any case.
        binary.build(order.target, progress, order.foreign)
    return order.target


def _download(order: Order, url: str, sha256: str, progress: Callable[[str], None]) -> None:
    target = order.target
    if _has_hash(target, sha256):
        binary.verify(target, order.foreign)
    elif order.directory is None and order.configured is not None and os.path.exists(order.configured):
        raise BinaryError(
            f'LITEFS["BINARY"] is {order.configured!r}, a file of another SHA-256 than {sha256}; it is not replaced. '
            "Remove it first, or leave out --from-url to go on using it."
        )
    else:
        download(url, sha256, target, order.foreign, progress)


def _has_hash(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _find_or_build(order: Order, progress: Callable[[str], None]) -> Path:
    try:
        found = binary.find(order.configured)
    except BinaryError:
        found = None
    if found is not None:
        try:
            binary.verify(found)
        except BinaryError:
            if order.configured is not None or found == binary.BUNDLED:
                raise
        else:
            return found
    binary.build(order.target, progress)
    return order.target


def _is_usable(path: Path) -> bool:
    try:
        binary.verify(path)
    except BinaryError:
        return False
    return True
