"""What can go wrong on LiteFS's side. Never raised bare: each message names the thing, its value and the fix.

LiteFSError
 +-- SettingsError     LITEFS or DATABASES cannot work as written; carries every problem found
 +-- BinaryError       no usable litefs binary, or it cannot be built
 +-- ClientError       a LiteFS HTTP API did not answer, or answered with an error
 +-- LeaseError        the lease process cannot start or go on
 +-- MountError        the mount is not there, is not LiteFS's, or cannot be read
 +-- SupervisorError   the supervisor cannot start or go on, or does not do what it was asked for
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LiteFSError(Exception):
    """Root of everything that `litefs_django._litefs` raises on purpose."""


@dataclass(frozen=True, slots=True)
class SettingProblem:
    """One mistake in the settings.

    `code` is the stable id of its system check without the app label ("E004"), `setting` the
    path as the user writes it (`LITEFS["MOUNT_PATH"]`), `message` says what is wrong with which
    value, `hint` what is allowed.
    """

    code: str
    setting: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.message} {self.hint}".rstrip()


class SettingsError(LiteFSError):
    """Every mistake found in the settings, at once."""

    def __init__(self, problems: Sequence[SettingProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class BinaryError(LiteFSError):
    """No usable litefs binary, or it cannot be built."""


class ClientError(LiteFSError):
    """A LiteFS HTTP API did not answer, or answered with an error: then `status` is its HTTP status."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class LeaseError(LiteFSError):
    """The lease process cannot start or go on; started again it may."""


class MountError(LiteFSError):
    """The mount is not there, is not LiteFS's, or cannot be read."""


class SupervisorError(LiteFSError):
    """The supervisor cannot start or go on, or does not do what it was asked for."""
