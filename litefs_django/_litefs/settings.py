"""The entities: what a cluster is, as values that are valid once they exist.

Each validates itself on construction and raises SettingsError with every problem it has.
`litefs_django._litefs.reading` builds them from the LITEFS dictionary, `config.py` turns them into
litefs.yml. They import nothing of the rest.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from litefs_django._litefs.errors import SettingProblem, SettingsError

LeaseType = Literal["static", "raft", "consul"]
LEASE_TYPES: tuple[LeaseType, ...] = get_args(LeaseType)
HandoverMode = Literal["forward", "redirect", "replay"]
HANDOVER_MODES: tuple[HandoverMode, ...] = get_args(HandoverMode)

# A file of these names belongs to LiteFS (its special files beside each database).
RESERVED_SUFFIXES = ("-journal", "-wal", "-shm", "-pos", "-lock")

_NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
# Control characters, and the halves of surrogate pairs that stand for bytes which are not UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


_SECRET = 'Make one for the cluster: python -c "import secrets; print(secrets.token_urlsafe(32))".'


class _Problems(list[SettingProblem]):
    """Collects what is wrong, to be raised together."""

    def note(self, code: str, setting: str, message: str, hint: str) -> None:
        self.append(SettingProblem(code, setting, message, hint))

    def raise_any(self) -> None:
        if self:
            raise SettingsError(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of the cluster.

    `name` is what LiteFS calls its hostname and writes into `.primary`; `address` a host name or
    IP address that the other nodes reach, without a port; `url` the application server's own base
    URL, if known; `public_url` the one at which visitors reach this node and no other, if they can;
    `http_port` where LiteFS's HTTP API listens. With Raft, and else None, `raft_port` and `relay_port` are where the
    lease processes and relays of the nodes talk to each other; a witness votes and has no data.
    """

    name: str
    address: str
    url: str | None = None
    public_url: str | None = None
    http_port: int = 20202
    raft_port: int | None = None
    relay_port: int | None = None
    is_witness: bool = False

    def __post_init__(self) -> None:
        problems = _Problems()
        where = f'LITEFS["NODES"]["{self.name}"]'
        if not _NODE_NAME.fullmatch(self.name):
            problems.note(
                "E004",
                where,
                f"{self.name!r} cannot be a node's name.",
                "Use 1 to 63 letters, digits, '.', '_' or '-', beginning and ending with a letter or digit.",
            )
        if not _is_host(self.address):
            problems.note(
                "E004",
                f'{where}["ADDRESS"]',
                f"{self.address!r} is not an address.",
                "Give a host name or an IP address that the other nodes reach, without scheme, port or brackets.",
            )
        for key, url, hint in (
            ("URL", self.url, "Give the application server's base URL, like 'http://10.0.0.1:8000'."),
            ("PUBLIC_URL", self.public_url, "Give the base URL that visitors use, like 'https://web1.example.com'."),
        ):
            if url is not None and (reason := url_problem(url)):
                problems.note("E004", f'{where}["{key}"]', f"{url!r} {reason}.", hint)
        for key, port in self._ports().items():
            check_port(problems, f'{where}["{key}"]', port)
        problems.raise_any()

    def _ports(self) -> dict[str, int]:
        """By the key that says which."""
        ports = {"HTTP_PORT": self.http_port, "RAFT_PORT": self.raft_port, "RELAY_PORT": self.relay_port}
        return {key: port for key, port in ports.items() if port is not None}

    @property
    def http_url(self) -> str:
        """Where the node's LiteFS HTTP API answers, but with Raft."""
        return f"http://{self.host_and_port}"

    @property
    def local_url(self) -> str:
        """Where it answers with Raft: on its own machine alone."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def relay_url(self) -> str:
        """Where the node's relay answers."""
        return f"https://{self._host}:{self.relay_port}"

    @property
    def host_and_port(self) -> str:
        """ADDRESS:HTTP_PORT, an IPv6 address in brackets."""
        return f"{self._host}:{self.http_port}"

    @property
    def _host(self) -> str:
        """The address as a URL has it."""
        return f"[{self.address}]" if ":" in self.address else self.address

    def listens_on(self) -> Iterable[tuple[int, str]]:
        """Each (port, setting that names it) that this node's address carries."""
        for key, port in self._ports().items():
            yield port, f'LITEFS["NODES"]["{self.name}"]["{key}"]'
        if self.url is not None:
            host, port = endpoint(self.url)
            if host == self.address.lower():
                yield port, f'LITEFS["NODES"]["{self.name}"]["URL"]'


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """All nodes, which one this is, and (static lease) which one is the primary."""

    nodes: tuple[Node, ...]
    node: str
    primary: str | None = None

    def __post_init__(self) -> None:
        problems = _Problems()
        names = [node.name for node in self.nodes]
        known = f"The nodes are: {', '.join(sorted(names)) or 'none'}."
        if self.node not in names:
            problems.note("E006", 'LITEFS["NODE"]', f'{self.node!r} is not one of the nodes in LITEFS["NODES"].', known)
        if self.primary is not None and self.primary not in names:
            problems.note("E006", 'LITEFS["PRIMARY"]', f"no node is named {self.primary!r}.", known)
        if len(set(names)) != len(names):
            problems.note("E006", 'LITEFS["NODES"]', f"a name is used twice in {names}.", "Name each node once.")
        used: dict[tuple[str, int], str] = {}
        for node in self.nodes:
            for port, setting in node.listens_on():
                first = used.setdefault((node.address.lower(), port), setting)
                if first != setting:
                    problems.note(
                        "E006",
                        setting,
                        f"port {port} of {node.address} is used by {first} as well.",
                        "Give each its own port.",
                    )
        problems.raise_any()

    @property
    def this(self) -> Node:
        """The node that this process runs on."""
        return next(node for node in self.nodes if node.name == self.node)

    @property
    def data_nodes(self) -> tuple[Node, ...]:
        """All nodes that have the databases: all but witnesses."""
        return tuple(node for node in self.nodes if not node.is_witness)

    @property
    def others(self) -> tuple[Node, ...]:
        """All nodes with data but this one."""
        return tuple(node for node in self.data_nodes if node.name != self.node)

    def get(self, name: str | None) -> Node | None:
        """The node of that name, None when there is none."""
        return next((node for node in self.nodes if node.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseConfig:
    """One database on the mount: Django's alias and the bare file name."""

    alias: str
    name: str

    def __post_init__(self) -> None:
        if reason := database_name_problem(self.name):
            setting = f'DATABASES["{self.alias}"]["NAME"]'
            hint = "Give a plain file name like 'db.sqlite3'; it lies directly on LITEFS[\"MOUNT_PATH\"]."
            if is_in_memory_name(self.name):
                hint += " Django's test runner makes its databases in memory by itself, whatever NAME is."
            raise SettingsError([SettingProblem("E007", setting, f"{self.name!r} {reason}.", hint)])


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsulConfig:
    """Where LiteFS keeps its lease with LEADER_ELECTION = "consul". `ttl` is in seconds."""

    url: str
    key: str
    ttl: float = 10.0

    def __post_init__(self) -> None:
        problems = _Problems()
        if reason := url_problem(self.url):
            # A path makes LiteFS register itself in Consul's catalogue and exit when that fails.
            problems.note(
                "E004", 'LITEFS["CONSUL"]["URL"]', f"{redacted(self.url)!r} {reason}.", "Like 'http://10.0.0.9:8500'."
            )
        if not self.key or UNPRINTABLE.search(self.key) or self.key.startswith("/"):
            problems.note(
                "E004",
                'LITEFS["CONSUL"]["KEY"]',
                f"{self.key!r} cannot be a key.",
                "Give a name for this cluster's lease, without a leading '/', like 'litefs/mysite'.",
            )
        if not 10 <= self.ttl <= 86400:
            problems.note(
                "E004",
                'LITEFS["CONSUL"]["TTL"]',
                f"{self.ttl!r} seconds is outside of what Consul takes for a session.",
                "Use 10 to 86400 seconds.",
            )
        problems.raise_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteFSSettings:
    """The whole of `LITEFS`, valid. Durations are in seconds.

    `allow_other` None means: on when the supervisor is root (others may then open the mount).
    `litefs_yml` holds extra litefs.yml keys, checked by `ConfigGenerator`. `secrets` are what the nodes
    alone share: the first one signs and connects, each is accepted; `writes` are paths in which `*` stands for
    anything.
    """

    cluster: ClusterConfig
    enabled: bool = True
    mount_path: Path = Path("/litefs")
    data_path: Path = Path("/var/lib/litefs")
    run_path: Path | None = None
    leader_election: LeaseType = "static"
    consul: ConsulConfig | None = None
    lease_ttl: float = 3.0
    databases: tuple[DatabaseConfig, ...] = ()
    retention: float = 600.0
    max_lag: float = 10.0
    allow_other: bool | None = None
    litefs_yml: Mapping[str, Any] = field(default_factory=dict)
    binary: str | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)
    handover: HandoverMode = "forward"
    handover_timeout: float = 20.0
    writes: tuple[str, ...] = ()
    read_your_writes_timeout: float = 1.0

    def __post_init__(self) -> None:
        if self.run_path is None:
            digest = hashlib.sha256(str(self.mount_path).encode(errors="surrogatepass")).hexdigest()[:12]
            object.__setattr__(self, "run_path", Path("/run/litefs_django") / digest)
        problems = _Problems()
        self._check_paths(problems)
        self._check_lease(problems)
        self._check_databases(problems)
        self._check_handover(problems)
        if self.retention < 1:
            problems.note(
                "E004",
                'LITEFS["RETENTION"]',
                f"{self.retention!r} would break replication: LiteFS makes its snapshot time-out of it.",
                "Give 1 second or more; LiteFS's own default is 600.",
            )
        if self.max_lag <= 0:
            problems.note("E004", 'LITEFS["MAX_LAG"]', f"{self.max_lag!r} is not above 0.", "Give seconds, like 10.")
        problems.raise_any()

    @property
    def run(self) -> Path:
        """RUN_PATH, always set."""
        assert self.run_path is not None
        return self.run_path

    def handover_problems(self) -> list[SettingProblem]:
        """What the middleware lacks to hand requests over; nothing where there is one node alone."""
        problems = _Problems()
        if len(self.cluster.data_nodes) < 2:
            return problems
        if self.handover == "forward" and not self.secrets:
            problems.note(
                "E030",
                'LITEFS["SECRET"]',
                "is missing, and LiteFSMiddleware signs with it what it forwards.",
                'Make one for all nodes: python -c "import secrets; print(secrets.token_urlsafe(32))".',
            )
        for node in self.cluster.data_nodes:
            for mode, key, url in (("forward", "URL", node.url), ("redirect", "PUBLIC_URL", node.public_url)):
                if self.handover == mode and url is None:
                    problems.note(
                        "E031",
                        f'LITEFS["NODES"]["{node.name}"]["{key}"]',
                        f'is missing, and LITEFS["HANDOVER"] is {mode!r}.',
                        "Give the base URL at which that node's application server is reached, like "
                        "'http://10.0.0.1:8000'.",
                    )
        return problems

    def _check_paths(self, problems: _Problems) -> None:
        paths = {"MOUNT_PATH": self.mount_path, "DATA_PATH": self.data_path, "RUN_PATH": self.run}
        for key, path in paths.items():
            # Two slashes at the beginning are kept by pathlib: the same directory under another name.
            if not re.match("/[^/]", str(path)) or ".." in path.parts or UNPRINTABLE.search(str(path)):
                problems.note(
                    "E004",
                    f'LITEFS["{key}"]',
                    f"{str(path)!r} is not an absolute path of a directory of its own.",
                    "Give an absolute path without '..', like '/litefs'.",
                )
        for (key, path), (other_key, other) in combinations(paths.items(), 2):
            # What LiteFS keeps and what we keep may lie in one another, but each is locked by itself.
            may_nest = (key, other_key) == ("DATA_PATH", "RUN_PATH") and path != other
            if not may_nest and (path.is_relative_to(other) or other.is_relative_to(path)):
                problems.note(
                    "E006",
                    f'LITEFS["{other_key}"]',
                    f'{str(other)!r} and LITEFS["{key}"] {str(path)!r} overlap.',
                    "Keep them in separate directories: the mount shows LiteFS's databases and nothing else.",
                )

    def _check_lease(self, problems: _Problems) -> None:
        if self.leader_election not in LEASE_TYPES:
            problems.note(
                "E004",
                'LITEFS["LEADER_ELECTION"]',
                f"{self.leader_election!r} is not a kind of leader election.",
                f"Use one of: {', '.join(repr(kind) for kind in LEASE_TYPES)}.",
            )
        if self.leader_election == "static" and self.cluster.primary is None:
            problems.note(
                "E005",
                'LITEFS["PRIMARY"]',
                "a static lease needs to know which node is the primary.",
                'Name one of LITEFS["NODES"].',
            )
        if self.leader_election == "consul":
            if self.consul is None:
                problems.note(
                    "E005",
                    'LITEFS["CONSUL"]',
                    "is missing, and LITEFS[\"LEADER_ELECTION\"] is 'consul'.",
                    'Give {"URL": "http://10.0.0.9:8500", "KEY": "litefs/mysite"}.',
                )
        elif self.consul is not None:
            problems.note(
                "E006",
                'LITEFS["CONSUL"]',
                f'is set, but LITEFS["LEADER_ELECTION"] is {self.leader_election!r}.',
                "Remove it, or set LITEFS[\"LEADER_ELECTION\"] to 'consul'.",
            )

        if self.leader_election in ("raft", "consul") and self.cluster.primary is not None:
            problems.note(
                "E006",
                'LITEFS["PRIMARY"]',
                f"{self.cluster.primary!r} is set, but with {self.leader_election!r} the nodes elect their primary.",
                "Remove it, or set LITEFS[\"LEADER_ELECTION\"] to 'static'.",
            )
        if self.leader_election == "raft":
            self._check_raft(problems)
        elif witness := next((node for node in self.cluster.nodes if node.is_witness), None):
            problems.note(
                "E006",
                f'LITEFS["NODES"]["{witness.name}"]["WITNESS"]',
                f"is True, and LITEFS[\"LEADER_ELECTION\"] is {self.leader_election!r}: only with 'raft' nodes vote.",
                "Remove it.",
            )

    def _check_raft(self, problems: _Problems) -> None:
        if not self.secrets:
            problems.note("E005", 'LITEFS["SECRET"]', "is missing, and with 'raft' the nodes talk under it.", _SECRET)
        if self.lease_ttl <= 1.2:
            problems.note(
                "E004",
                'LITEFS["LEASE_TTL"]',
                f"{self.lease_ttl!r} leaves a primary no time to leave before another one may follow.",
                "Give more than 1.2 seconds, like 3.",
            )
        if not self.cluster.data_nodes:
            problems.note("E006", 'LITEFS["NODES"]', "are all witnesses.", "Witnesses vote, and have no data.")

    def _check_handover(self, problems: _Problems) -> None:
        if any(len(secret.encode(errors="surrogatepass")) < 32 for secret in self.secrets):
            problems.note("E004", 'LITEFS["SECRET"]', "is shorter than 32 bytes.", _SECRET)
        if self.handover not in HANDOVER_MODES:
            problems.note(
                "E004",
                'LITEFS["HANDOVER"]',
                f"{self.handover!r} is not a way to hand a request over.",
                f"Use one of: {', '.join(repr(mode) for mode in HANDOVER_MODES)}.",
            )
        if self.handover_timeout <= 0:
            problems.note(
                "E004", 'LITEFS["HANDOVER_TIMEOUT"]', f"{self.handover_timeout!r} is not above 0.", "Give seconds."
            )
        for pattern in self.writes:
            if not pattern.startswith(("/", "*")):
                problems.note(
                    "E004",
                    'LITEFS["WRITES"]',
                    f"{pattern!r} is not the beginning of a path.",
                    "Begin with '/'; '*' stands for anything, as in '/login/callback/*'.",
                )

    def _check_databases(self, problems: _Problems) -> None:
        aliases: dict[str, str] = {}
        for database in self.databases:
            first = aliases.setdefault(database.name, database.alias)
            if first != database.alias:
                problems.note(
                    "E007",
                    f'DATABASES["{database.alias}"]["NAME"]',
                    f'{database.name!r} is the file of DATABASES["{first}"] too.',
                    "Give each alias a file of its own.",
                )


def is_in_memory_name(name: str) -> bool:
    """Whether Django's sqlite3 backend takes this NAME for a database in memory."""
    return name == ":memory:" or "mode=memory" in name


def database_name_problem(name: str) -> str:
    """Why LiteFS cannot hold a database of this file name; "" when it can."""
    if is_in_memory_name(name):
        return "is a database in memory: each process has its own, and it ends with the process"
    if not name or "/" in name or UNPRINTABLE.search(name):
        return "is not a plain file name, and LiteFS has no subdirectories"
    if name.startswith("."):
        return "begins with '.', which LiteFS keeps for its own files"
    if suffix := next((suffix for suffix in RESERVED_SUFFIXES if name.endswith(suffix)), None):
        return f"ends with {suffix!r}, which LiteFS keeps for its own files"
    if len(name.encode()) > 240:
        return "is longer than 240 bytes"
    return ""


def check_port(problems: _Problems, setting: str, port: int) -> None:
    """Notes a port that no server can listen on."""
    if not 1 <= port <= 65535:
        problems.note("E004", setting, f"{port!r} is not a port.", "Use 1 to 65535.")


def endpoint(url: str) -> tuple[str | None, int]:
    """Host and port that a URL without `url_problem` leads to."""
    parts = urlsplit(url)
    return parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


def redacted(url: str) -> str:
    """The URL without a password that it may carry, however it is mistyped."""
    return re.sub("(https?://)?.*@", r"\1...@", url, flags=re.DOTALL)


def _is_host(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        # All digits and dots is a mistyped IPv4 address, not a name.
        return bool(_HOST_NAME.fullmatch(address)) and not re.fullmatch(r"[\d.]+", address)
    return "%" not in address and not ip.is_unspecified and not ip.is_multicast


def url_problem(url: str) -> str:
    """Why this is not the base URL of a server; "" when it is."""
    if UNPRINTABLE.search(url) or " " in url:
        return "holds a space or a control character"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text may hold a part of the password
        return "is not a URL"
    if parts.scheme not in ("http", "https"):
        return "does not begin with http:// or https://"
    if not parts.hostname or not _is_host(parts.hostname) or port == 0:
        return "has no usable host and port"
    if parts.path not in ("", "/") or "?" in url or "#" in url:
        return "has a path, query or fragment"
    return ""
