"""What litefs_check reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: how a thing is, and what to do when it is not well."""

    level: Level
    subject: str
    message: str
    hint: str = ""
