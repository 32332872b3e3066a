"""From LiteFSSettings to the litefs.yml of this node."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from litefs_django._litefs import litefs_yml
from litefs_django._litefs.errors import SettingsError
from litefs_django._litefs.settings import LiteFSSettings

# The lease's name where the lease process keeps it.
LEASE_KEY = "litefs"
# In place of the lease process's port and token, which are other ones at each start.
LEASE_URL = "http://:made-by-litefs_run@127.0.0.1:1"

_HEADER = "# Made by litefs_django from settings.LITEFS: change it there.\n"


class ConfigGenerator:
    """Makes litefs.yml for `settings.cluster.this`.

    `lease_url` is where this node's lease process answers with Raft, which only litefs_run knows. Raises SettingsError
    when `settings.litefs_yml` cannot work.
    """

    def __init__(self, settings: LiteFSSettings, lease_url: str = LEASE_URL) -> None:
        self.settings = settings
        self._lease_url = lease_url
        cluster = settings.cluster
        if problems := litefs_yml.find_problems(
            settings.litefs_yml,
            is_primary=cluster.node == cluster.primary if settings.leader_election == "static" else None,
            http_port=cluster.this.http_port,
        ):
            raise SettingsError(problems)

    @cached_property
    def config(self) -> dict[str, Any]:
        """litefs.yml as a dictionary of dictionaries; what LiteFS defaults to is left out."""
        settings = self.settings
        base = {
            "fuse": {"dir": str(settings.mount_path), "allow-other": self.is_open_to_others},
            "data": {"dir": str(settings.data_path), "retention": format_duration(settings.retention)},
            # LiteFS's HTTP API knows no authentication: one interface, and not all of them as by default.
            "http": {"addr": self._http_address},
            "lease": self._lease(),
        }
        return _merged(base, settings.litefs_yml)

    @property
    def is_open_to_others(self) -> bool:
        """Whether other users may open the mount: ALLOW_OTHER, or else whether this process is root."""
        allowed = self.settings.allow_other
        return os.geteuid() == 0 if allowed is None else allowed

    @property
    def local_url(self) -> str:
        """Where this node's LiteFS HTTP API answers on this machine."""
        host, _, port = self.config["http"]["addr"].rpartition(":")
        return f"http://{'127.0.0.1' if host in ('', '0.0.0.0', '[::]') else host}:{port}"

    def render(self) -> str:
        """The text of litefs.yml; the same with and without LiteFS's -no-expand-env."""
        return render(self.config)

    def write(self, path: Path) -> None:
        """Puts litefs.yml there as one step, readable for its owner only. Raises OSError."""
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(self.render())
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    @property
    def _is_raft(self) -> bool:
        return self.settings.leader_election == "raft"

    @property
    def _http_address(self) -> str:
        this = self.settings.cluster.this
        return f"127.0.0.1:{this.http_port}" if self._is_raft else this.host_and_port

    def _lease(self) -> dict[str, Any]:
        cluster, consul = self.settings.cluster, self.settings.consul
        if self._is_raft:
            ttl = format_duration(self.settings.lease_ttl)
            consul_api = {"url": self._lease_url, "key": LEASE_KEY, "ttl": ttl}
            return consul_lease(cluster.node, cluster.this.local_url, consul_api)
        if consul is not None:
            return consul_lease(
                cluster.node,
                cluster.this.http_url,
                {"url": consul.url, "key": consul.key, "ttl": format_duration(consul.ttl)},
            )
        primary = cluster.get(cluster.primary)
        assert primary is not None, "a static lease has a primary: LiteFSSettings sees to it"
        return static_lease(primary.name, primary.http_url, is_primary=primary.name == cluster.node)


def static_lease(hostname: str, advertise_url: str, *, is_primary: bool) -> dict[str, Any]:
    """The lease section where the primary never changes. Name and URL are the primary's, on every node."""
    return {"type": "static", "hostname": hostname, "advertise-url": advertise_url, "candidate": is_primary}


def consul_lease(hostname: str, advertise_url: str, consul: Mapping[str, str]) -> dict[str, Any]:
    """The lease section where something that speaks Consul's API keeps the lease. Name and URL are this node's."""
    return {
        "type": "consul",
        "hostname": hostname,
        "advertise-url": advertise_url,
        "candidate": True,
        # LiteFS's own 1 s is how long a replica reads nothing new after each change of primary, and nobody can be
        # handed the role.
        "reconnect-delay": "100ms",
        "consul": dict(consul),
    }


def format_duration(seconds: float) -> str:
    """A Go duration, to the nanosecond."""
    return f"{Decimal(repr(seconds)):.9f}".rstrip("0").rstrip(".") + "s"


def render(config: Mapping[str, Any]) -> str:
    """YAML in which each text is quoted: no "on", "0x1" or "1_000" arrives as another type.

    LiteFS expands $NAME in the whole file before it reads it, and knows no escape: each $ is written as
    YAML's own \\x24 (keys hold none).
    """
    text = yaml.dump(dict(config), Dumper=_QuotingDumper, sort_keys=False, default_flow_style=False, width=1 << 20)
    return _HEADER + text.replace("$", r"\x24")


def parse(text: str) -> dict[str, Any]:
    """What `render` was given."""
    return dict(yaml.safe_load(text))


class _QuotingDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        for key, _ in node.value:
            key.style = None
        return node


def _represent_text(dumper: _QuotingDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


_QuotingDumper.add_representer(str, _represent_text)
_QuotingDumper.add_multi_representer(str, _represent_text)


def _merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `extra` on top, dictionary by dictionary."""
    result = dict(base)
    for key, value in extra.items():
        if isinstance(value, Mapping):
            result[key] = _merged(result.get(key, {}), value)
        else:
            result[key] = list(value) if isinstance(value, tuple) else value
    return result
