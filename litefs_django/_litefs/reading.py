"""From the LITEFS dictionary, as a user wrote it, to LiteFSSettings: every mistake found at once."""

from __future__ import annotations

import difflib
import re
import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from litefs_django._litefs import litefs_yml
from litefs_django._litefs.errors import SettingProblem, SettingsError
from litefs_django._litefs.settings import (
    HANDOVER_MODES,
    LEASE_TYPES,
    ClusterConfig,
    ConsulConfig,
    DatabaseConfig,
    HandoverMode,
    LeaseType,
    LiteFSSettings,
    Node,
    is_in_memory_name,
)

T = TypeVar("T")

# What each port is unless LITEFS, or the node, says otherwise.
PORTS = {"HTTP_PORT": 20202, "RAFT_PORT": 20203, "RELAY_PORT": 20204}

# What each key could be, for who has to be told what to write.
EXAMPLES = {
    "NODE": "'web1'",
    "NODES": '{"web1": {"ADDRESS": "10.0.0.1"}}',
    "ADDRESS": "a host name or IP address, like '10.0.0.1'",
    "URL": "a base URL, like 'http://10.0.0.1:8000'",
    "HTTP_PORT": "a port, like 20202",
    "RAFT_PORT": "a port, like 20203",
    "RELAY_PORT": "a port, like 20204",
    "WITNESS": "True or False",
    "LEASE_TTL": "seconds, like 3, or timedelta(seconds=3)",
    "PRIMARY": "the name of a node, like 'web1'",
    "LEADER_ELECTION": " or ".join(map(repr, LEASE_TYPES)),
    "CONSUL": '{"URL": "http://10.0.0.9:8500", "KEY": "litefs/mysite"}',
    "KEY": "a name for this cluster's lease, like 'litefs/mysite'",
    "TTL": "seconds, like 10, or timedelta(seconds=10)",
    "ENABLED": "True or False",
    "MOUNT_PATH": "a path, like '/litefs'",
    "DATA_PATH": "a path, like '/var/lib/litefs'",
    "RUN_PATH": "a path, like '/run/litefs_django/mysite'",
    "RETENTION": "seconds, like 600, or timedelta(minutes=10)",
    "MAX_LAG": "seconds, like 10, or timedelta(seconds=10)",
    "ALLOW_OTHER": "True or False",
    "LITEFS_YML": 'a dict of LiteFS\'s own keys, like {"log": {"format": "json"}}',
    "SECRET": "32 random bytes or more as a str, or a list of them",
    "HANDOVER": " or ".join(map(repr, HANDOVER_MODES)),
    "HANDOVER_TIMEOUT": "seconds, like 20, or timedelta(seconds=20)",
    "WRITES": "a list of paths, like ['/login/callback/*']",
    "READ_YOUR_WRITES_TIMEOUT": "seconds, like 1, or timedelta(seconds=1)",
    "PUBLIC_URL": "a base URL, like 'https://web1.example.com'",
    "BINARY": "the path of a program as a str, like '/usr/local/bin/litefs'",
}


def read_settings(raw: object, databases: Mapping[str, object]) -> LiteFSSettings:
    """LiteFSSettings from LITEFS and from each litefs alias's DATABASES NAME.

    Raises SettingsError with every problem found, however many values are wrong.
    """
    problems: list[SettingProblem] = []
    top = _Section("LITEFS", raw, problems)
    node = top.take("NODE", _text, socket.gethostname(), _this_machine(top.raw.get("NODES")))
    leader_election = cast(LeaseType, top.take("LEADER_ELECTION", _text, "static"))
    ports = {key: top.take(key, _whole, port) for key, port in PORTS.items()}
    nodes = _read_nodes(top, node, ports, is_raft=leader_election == "raft")
    primary = top.take("PRIMARY", _text, None)
    if primary is None and leader_election == "static" and len(nodes) == 1:
        primary = nodes[0].name
    mount_path = top.take("MOUNT_PATH", _path, Path("/litefs"))
    values: dict[str, Any] = {
        "enabled": top.take("ENABLED", _flag, True),
        "mount_path": mount_path,
        "data_path": top.take("DATA_PATH", _path, Path("/var/lib/litefs")),
        "run_path": top.take("RUN_PATH", _path, None),
        "leader_election": leader_election,
        "consul": _read_consul(top),
        "lease_ttl": top.take("LEASE_TTL", _seconds, 3.0),
        "databases": _read_databases(databases, mount_path, problems),
        "retention": top.take("RETENTION", _seconds, 600.0),
        "max_lag": top.take("MAX_LAG", _seconds, 10.0),
        "allow_other": top.take("ALLOW_OTHER", _flag, None),
        "litefs_yml": top.take("LITEFS_YML", _mapping, {}),
        "binary": top.take("BINARY", _text, None),
        "secrets": top.take("SECRET", _secrets, ()),
        "handover": cast(HandoverMode, top.take("HANDOVER", _text, "forward")),
        "handover_timeout": top.take("HANDOVER_TIMEOUT", _seconds, 20.0),
        "writes": top.take("WRITES", _texts, ()),
        "read_your_writes_timeout": top.take("READ_YOUR_WRITES_TIMEOUT", _seconds, 1.0),
    }
    top.refuse_unknown()
    # A node that could not be read is missing from `nodes`: what would follow from that is no news.
    whole = not any(problem.setting.startswith('LITEFS["NODE') for problem in problems)
    cluster = _build(problems, lambda: ClusterConfig(nodes=nodes, node=node, primary=primary)) if whole else None
    stand_in = ClusterConfig(nodes=(Node(name="x", address="localhost"),), node="x", primary=primary and "x")
    settings = _build(problems, lambda: LiteFSSettings(cluster=cluster or stand_in, **values))
    problems += litefs_yml.find_problems(
        values["litefs_yml"],
        is_primary=primary == node if leader_election == "static" else None,
        http_port=cluster.this.http_port if cluster else None,
    )
    if problems or settings is None:
        raise SettingsError(problems)
    return settings


def _read_nodes(top: _Section, this: str, ports: Mapping[str, int], *, is_raft: bool) -> tuple[Node, ...]:
    nodes: list[Node] = []
    for name, raw in top.take("NODES", _mapping, {this: {"ADDRESS": "127.0.0.1"}}).items():
        section = _Section(f'{top.path}["NODES"]["{name}"]', raw, top.problems)
        address = section.take("ADDRESS", _text, None)
        url = section.take("URL", _text, None)
        public_url = section.take("PUBLIC_URL", _text, None)
        own = {key: section.take(key, _whole, port) for key, port in ports.items()}
        is_witness = section.take("WITNESS", _flag, False)
        section.refuse_unknown()
        if not isinstance(name, str):
            section.note("E003", "", f"{name!r} is not a str.", "Name each node with a str.")
        elif address is not None:
            values: dict[str, Any] = {
                "name": name,
                "address": address,
                "url": url,
                "public_url": public_url,
                "http_port": own["HTTP_PORT"],
                "raft_port": own["RAFT_PORT"] if is_raft else None,
                "relay_port": own["RELAY_PORT"] if is_raft else None,
                "is_witness": is_witness,
            }
            node = _build(top.problems, lambda: Node(**values))  # noqa: B023
            if node is not None:
                nodes.append(node)
        else:
            section.require("ADDRESS", "Give the host name or IP address that the other nodes reach.")
    return tuple(nodes)


def _read_consul(top: _Section) -> ConsulConfig | None:
    raw = top.take("CONSUL", _mapping, None)
    if raw is None:
        return None
    section = _Section(f'{top.path}["CONSUL"]', raw, top.problems)
    url = section.take("URL", _text, None)
    key = section.take("KEY", _text, None)
    ttl = section.take("TTL", _seconds, 10.0)
    section.refuse_unknown()
    section.require("URL", "Like 'http://10.0.0.9:8500'.")
    section.require("KEY", "A name for this cluster's lease, like 'litefs/mysite'.")
    # Stands in for one that could not be read, so that it is not called missing too.
    x = ConsulConfig(url="http://x", key="x")
    return _build(top.problems, lambda: ConsulConfig(url=url or x.url, key=key or x.key, ttl=ttl)) or x


def _read_databases(
    databases: Mapping[str, object], mount_path: Path, problems: list[SettingProblem]
) -> tuple[DatabaseConfig, ...]:
    found: list[DatabaseConfig] = []
    for alias, raw in databases.items():
        path = Path(str(raw)) if isinstance(raw, (str, Path)) and str(raw) else None
        is_elsewhere = path is not None and path.is_absolute() and path.parent != mount_path
        if path is None or (is_elsewhere and not is_in_memory_name(str(raw))):
            problems.append(
                SettingProblem(
                    "E007",
                    f'DATABASES["{alias}"]["NAME"]',
                    f'{str(raw)!r} is not a file directly on LITEFS["MOUNT_PATH"] {str(mount_path)!r}.',
                    "Give a plain file name like 'db.sqlite3'; it lies on the mount.",
                )
            )
            continue
        name = path.name if path.is_absolute() and not is_in_memory_name(str(raw)) else str(raw)
        database = _build(problems, lambda: DatabaseConfig(alias=alias, name=name))  # noqa: B023
        if database is not None:
            found.append(database)
    return tuple(found)


class _Section:
    """One dictionary of the settings: takes keys out of it and notes what is wrong with them."""

    def __init__(self, path: str, raw: object, problems: list[SettingProblem]) -> None:
        self.path = path
        self.problems = problems
        self.known: list[str] = []
        self.raw: Mapping[Any, Any] = {}
        if isinstance(raw, Mapping):
            self.raw = raw
        else:
            self.note("E003", "", f"{raw!r} is not a dictionary.", "Write a dict, {...}.")

    def note(self, code: str, key: str, message: str, hint: str) -> None:
        path = f'{self.path}["{key}"]' if key else self.path
        self.problems.append(SettingProblem(code, path, message, hint))

    def take(self, key: str, convert: Callable[[object], T], default: Any, example: str = "") -> Any:
        example = example or EXAMPLES[key]
        self.known.append(key)
        if key not in self.raw:
            return default
        try:
            return convert(self.raw[key])
        except TypeError as error:
            # What should have been a dictionary may hold a secret.
            shown = "The value" if convert in (_mapping, _secrets) else repr(self.raw[key])
            self.note("E003", key, f"{shown} is not {error}.", _what_to_write(self.raw[key], convert, example))
        except ValueError as error:
            self.note("E004", key, f"{self.raw[key]!r} is not {error}.", f"Write {example}.")
        return default

    def require(self, key: str, hint: str) -> None:
        if key not in self.raw:
            self.note("E005", key, "is missing.", hint)

    def refuse_unknown(self) -> None:
        for key in self.raw:
            if key in self.known:
                continue
            near = difflib.get_close_matches(str(key).upper(), self.known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The keys are: {', '.join(self.known)}."
            self.note("E002", str(key), "is not a known key.", hint)


def _build(problems: list[SettingProblem], make: Callable[[], T]) -> T | None:
    try:
        return make()
    except SettingsError as error:
        problems.extend(error.problems)
        return None


def _this_machine(nodes: object) -> str:
    """What NODE could be."""
    if not isinstance(nodes, Mapping) or not nodes:
        return EXAMPLES["NODE"]
    return f"this machine's name (one of: {', '.join(map(str, nodes))})"


def _what_to_write(value: object, convert: Callable[[Any], object], example: str) -> str:
    """The hint for a value of the wrong type: what was meant, where that can be told, else an example."""
    if value is None:
        # Few can do without a secret.
        otherwise = "" if convert is _secrets else ", or leave the key out"
        return f"An environment variable that is not set gives None. Write {example}{otherwise}."
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if convert is _flag and text.lower() in ("true", "false", "1", "0", "on", "off", "yes", "no"):
        return f"Write {text.lower() in ('true', '1', 'on', 'yes')}."
    if convert is _seconds and (seconds := _meant_seconds(text)) is not None:
        return f"Write {seconds} (seconds) or timedelta(seconds={seconds})."
    if convert is _whole and re.fullmatch(r"[0-9]{1,5}(\.0)?", text):
        return f"Write {text.removesuffix('.0')}."
    if convert in (_text, _path) and text and isinstance(value, (bytes, Path, int)) and not isinstance(value, bool):
        return f"Write {text!r}."
    return f"Write {example}."


def _meant_seconds(text: str) -> str | None:
    """The number in "10", "10s" or "1m30s"; None in anything else."""
    try:
        seconds = litefs_yml.parse_duration(text if text[-1:].isalpha() else f"{text}s")
    except ValueError:
        return None
    return f"{seconds.normalize():f}"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a str")
    if not value:
        raise ValueError("allowed: it must not be empty")
    return value


def _secrets(value: object) -> tuple[str, ...]:
    secrets = (value,) if isinstance(value, str) else value
    if not isinstance(secrets, (list, tuple)) or not all(isinstance(secret, str) for secret in secrets):
        raise TypeError("a str, or a list of str")
    return tuple(secrets)


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
        raise TypeError("a list of str")
    return tuple(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("True or False")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("a whole number (int)")
    return value


def _path(value: object) -> Path:
    if not isinstance(value, (str, Path)):
        raise TypeError("a path (str or pathlib.Path)")
    if not str(value):
        raise ValueError("a path: it is empty")
    return Path(value)


def _seconds(value: object) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError("a duration (a number of seconds or a timedelta)")
    # LiteFS counts in nanoseconds in 63 bits, which is 292 years; NaN fails every comparison.
    if not 0 <= value <= 10 * 365 * 86400:
        raise ValueError("a duration in seconds between 0 and ten years")
    return float(value)


def _mapping(value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError("a dictionary")
    return value
