"""What `manage.py litefs_run` tells the supervisor, which never loads Django or the project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from litefs_django._litefs.part_file import write_whole

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDescription:
    """One node, ready to be run. Commands are argument lists; paths are absolute.

    `name` is this node's; `is_elected` says that the lease can go to another node; `urls` are those of each node's
    LiteFS HTTP API, by name; `search_path` is the PATH under which LiteFS finds fusermount3; `migrate` is the command
    that returns with 0 when all migrations are here, empty without --migrate; `claims` the descriptors that hold this
    node's directories against a second supervisor.
    """

    name: str
    is_elected: bool
    mount_path: Path
    run_path: Path
    databases: tuple[str, ...]
    urls: Mapping[str, str]
    litefs: Command
    search_path: str
    application: Command
    on_primary: tuple[Command, ...]
    migrate: Command
    claims: tuple[int, ...]

    @property
    def other_urls(self) -> dict[str, str]:
        """`urls` without this node's."""
        return {name: url for name, url in self.urls.items() if name != self.name}

    def write(self, path: Path) -> None:
        """Puts it there as one step, readable for its owner only: commands may carry secrets."""
        write_whole(path, json.dumps(asdict(self), default=str, indent=1))

    @classmethod
    def read(cls, path: Path) -> NodeDescription:
        """The description that `write` put there."""
        raw: dict[str, Any] = {key: _frozen(value) for key, value in json.loads(path.read_text("utf-8")).items()}
        raw |= {key: Path(raw[key]) for key in ("mount_path", "run_path")}
        return cls(**raw)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
