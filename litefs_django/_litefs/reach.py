"""Where each node's LiteFS answers this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from litefs_django._litefs.client import LiteFSClient, Peer
from litefs_django._litefs.errors import SettingProblem
from litefs_django._litefs.identity import Identity
from litefs_django._litefs.settings import LiteFSSettings


@dataclass(frozen=True, slots=True)
class Reach:
    """`urls` of all nodes that have data, by name: LiteFS's own, or with an `identity` the other nodes' relays."""

    urls: Mapping[str, str]
    identity: Identity | None = None

    def client(self, name: str, timeout: float = 2.0) -> LiteFSClient:
        """Asks that node's LiteFS. Raises KeyError when there is no such node."""
        url = self.urls[name]
        peer = Peer(name, self.identity) if self.identity is not None and url.startswith("https:") else None
        return LiteFSClient(url, timeout, peer)


def reach(settings: LiteFSSettings) -> Reach:
    """As the settings have it."""
    nodes = settings.cluster.data_nodes
    if settings.leader_election != "raft":
        return Reach({node.name: node.http_url for node in nodes})
    # What comes with the extra "raft".
    from litefs_django._litefs.certificates import issue

    this = settings.cluster.this
    urls = {node.name: node.local_url if node == this else node.relay_url for node in nodes}
    return Reach(urls, issue(this.name, settings.secrets))


def missing_extra(settings: LiteFSSettings) -> SettingProblem | None:
    """What is to be installed before nodes of these settings can reach each other; None when all is there."""
    if settings.leader_election != "raft":
        return None
    missing = [name for name in ("aiohttp", "cryptography", "pysyncobj") if find_spec(name) is None]
    if not missing:
        return None
    return SettingProblem(
        "E050",
        'LITEFS["LEADER_ELECTION"]',
        f"'raft' needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed here.",
        'Run: pip install "litefs-django[raft]"',
    )
