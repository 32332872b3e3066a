"""What `manage.py litefs_run` tells the supervisor, which never loads Django or the project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from litefs_django._litefs.identity import Identity
from litefs_django._litefs.part_file import write_whole
from litefs_django._litefs.reach import Reach

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseService:
    """This node's lease process: `command` starts it, with the descriptor `listener`, on which it serves `port` of
    loopback for who has the `token`; `ttl` is LEASE_TTL in seconds.
    """

    command: Command
    listener: int
    port: int
    token: str = field(repr=False)
    ttl: float

    @property
    def url(self) -> str:
        """As LiteFS takes it, which shows the password as its token."""
        return f"http://:{self.token}@127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDescription:
    """One node, ready to be run. Commands are argument lists; paths are absolute.

    `name` is this node's; `primary` is the fixed primary's, None when it is elected; `urls` and `identity` say where
    each node's LiteFS answers (Reach); `lease` is there with Raft; `litefs` is empty for a witness; `search_path`
    is the PATH under which LiteFS finds fusermount3; `migrate` is the command that returns with 0 when all migrations
    are here, empty without --migrate; `claims` the descriptors that hold this node's directories against a second
    supervisor.
    """

    name: str
    primary: str | None
    mount_path: Path
    run_path: Path
    databases: tuple[str, ...]
    urls: Mapping[str, str]
    identity: Identity | None
    lease: LeaseService | None
    litefs: Command
    search_path: str
    application: Command
    on_primary: tuple[Command, ...]
    migrate: Command
    claims: tuple[int, ...]

    @property
    def is_elected(self) -> bool:
        """Whether the lease can go to another node."""
        return self.primary is None

    @property
    def reach(self) -> Reach:
        return Reach(self.urls, self.identity)

    @property
    def others(self) -> list[str]:
        """The names in `urls` but this node's."""
        return [name for name in self.urls if name != self.name]

    def write(self, path: Path) -> None:
        """Puts it there as one step, readable for its owner only: commands may carry secrets."""
        write_whole(path, json.dumps(asdict(self), default=str, indent=1))

    @classmethod
    def read(cls, path: Path) -> NodeDescription:
        """The description that `write` put there."""
        raw: dict[str, Any] = {key: _frozen(value) for key, value in json.loads(path.read_text("utf-8")).items()}
        raw |= {key: Path(raw[key]) for key in ("mount_path", "run_path")}
        raw["identity"] = raw["identity"] and Identity(**raw["identity"])
        raw["lease"] = raw["lease"] and LeaseService(**raw["lease"] | {"command": tuple(raw["lease"]["command"])})
        return cls(**raw)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
