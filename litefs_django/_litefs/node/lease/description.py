"""What the supervisor tells the lease process of its node."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from litefs_django._litefs.identity import Identity
from litefs_django._litefs.part_file import write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseDescription:
    """One node's lease process.

    `members` and `relays` are the addresses of all nodes by name, `urls` and `identity` say where each node's LiteFS
    answers (Reach); `directory` is for the Raft file, `data_path` is LiteFS's; `listener` is the descriptor on which
    the API is served, `token` what LiteFS shows there, `key` the lease's name; `litefs_url` is where LiteFS answers,
    None for a witness; `run_path` holds the node file and the control socket.
    """

    name: str
    members: Mapping[str, str]
    relays: Mapping[str, str]
    secrets: tuple[str, ...] = field(repr=False)
    urls: Mapping[str, str]
    identity: Identity
    ttl: float
    directory: Path
    data_path: Path
    is_bootstrap: bool
    listener: int
    token: str = field(repr=False)
    key: str
    litefs_url: str | None
    run_path: Path

    def write(self, path: Path) -> None:
        """Puts it there as one step, readable for its owner only: it holds secrets."""
        write_whole(path, json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, path: Path) -> LeaseDescription:
        """The description that `write` put there."""
        fields = json.loads(path.read_text("utf-8"))
        fields |= {key: Path(fields[key]) for key in ("directory", "data_path", "run_path")}
        return cls(**fields | {"identity": Identity(**fields["identity"]), "secrets": tuple(fields["secrets"])})
