"""Hypothesis strategies: LITEFS dictionaries as a user could write them, all of them valid."""

from __future__ import annotations

import string
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from litefs_django._litefs.settings import LEASE_TYPES, RESERVED_SUFFIXES

# For tests that draw whole settings, on a machine that does other things too.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# What no setting may hold.
CONTROL = "".join(map(chr, range(32))) + "\x7f"

# Looks like another type in YAML, or like a variable to LiteFS.
awkward = st.sampled_from(
    ["on", "no", "null", "~", "1", "1e3", "0x1f", "1_000", "2026-01-01", "$HOME", "${A == B}", "$$"]
)
texts = awkward | st.text(st.characters(exclude_characters=CONTROL, exclude_categories=["Cs"]), min_size=1, max_size=8)
seconds = st.integers(1, 10**8) | st.floats(1, 1e8) | st.timedeltas(timedelta(seconds=1), timedelta(days=1000))
go_durations = st.builds(
    "2s{}{}".format, st.sampled_from(["1", "90", "1.5", ".25", "2."]), st.sampled_from(["ms", "s", "m", "h"])
)
ports = st.integers(1024, 65535)
file_names = texts.map(lambda text: "x" + text.replace("/", "_")).filter(
    lambda name: not name.endswith(RESERVED_SUFFIXES)
)
words = st.text(string.ascii_letters + string.digits, min_size=1, max_size=5)
node_names = st.builds("{}{}".format, words, st.sampled_from(["", "-1", ".example", "_a", "0"])) | st.just("on")
_byte = st.integers(0, 255)
addresses = (
    st.builds("10.{}.{}.{}".format, _byte, _byte, _byte)
    | st.builds("fd00::{:x}".format, st.integers(1, 65535))
    | st.builds("{}x.example".format, words)
)
_flags = st.booleans()
_patterns = st.lists(texts, max_size=2)
_paths = st.builds("/x/{}".format, file_names)


def paths(root: str) -> SearchStrategy[str]:
    """An absolute path under `root`."""
    return st.lists(file_names, max_size=2).map(lambda parts: "/".join([root, *parts]))


def _section(needed: dict[str, SearchStrategy[Any]], **optional: SearchStrategy[Any]) -> SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(needed, optional={key.replace("_", "-"): value for key, value in optional.items()})


# The sections of litefs.yml that are the same on each node.
_SECTIONS = {
    "data": _section({}, compress=_flags, retention_monitor_interval=go_durations),
    "fuse": _section({}, debug=_flags),
    "proxy": _section(
        # Ports below those of `ports`.
        {"addr": st.builds(":{}".format, st.integers(1, 1023)), "target": texts, "db": file_names},
        max_lag=go_durations,
        debug=_flags,
        passthrough=_patterns,
        always_forward=_patterns,
        primary_redirect_timeout=go_durations,
        read_timeout=go_durations,
        read_header_timeout=go_durations,
        write_timeout=go_durations,
        idle_timeout=go_durations,
    ),
    "log": _section({}, format=st.sampled_from(["text", "json"]), timestamp=_flags, debug=_flags),
}


def _sections(
    http_port: int, is_static: bool, is_candidate: bool, files: Path | None
) -> dict[str, SearchStrategy[Any]]:
    """Those that depend on the node. What LiteFS would write to at once lies in `files`."""
    path = _paths if files is None else st.just(str(files))
    lease = {"reconnect_delay": go_durations, "consul": _section({}, lock_delay=go_durations)}
    any_node = _section({}, **lease) if is_candidate else _section({}, databases=_patterns, **lease)
    never = _section({"candidate": st.just(False)}, databases=_patterns, **lease)
    return {
        "http": _section({}, addr=st.just(f":{http_port}"), snapshot_timeout=go_durations),
        "lease": any_node if is_static else any_node | never,
        "backup": _section({"type": st.just("file"), "path": path})
        | _section({"type": st.just("litefs-cloud")}, url=st.builds("https://b{}".format, words), cluster=texts),
        "tracing": _section(
            {"path": path.map("{}.trace".format)},
            enabled=_flags,
            max_size=st.integers(0, 1000),
            max_count=st.integers(0, 1000),
            compress=_flags,
        ),
        **_SECTIONS,
    }


@st.composite
def litefs_ymls(
    draw: DrawFn, http_port: int, is_static: bool, is_candidate: bool, files: Path | None
) -> dict[str, Any]:
    """LITEFS_YML of a node, a few sections of it."""
    found: dict[str, Any] = draw(_section({}, exit_on_error=st.just(True), skip_sync=_flags, strict_verify=_flags))
    sections = _sections(http_port, is_static, is_candidate, files)
    for key in draw(st.lists(st.sampled_from(sorted(sections)), max_size=3, unique=True)):
        found[key] = draw(sections[key])
    return found


# With Raft, all or none: one alone could be another's default.
_three_ports: SearchStrategy[dict[str, int]] = st.just({}) | st.lists(ports, min_size=3, max_size=3, unique=True).map(
    lambda found: dict(zip(("HTTP_PORT", "RAFT_PORT", "RELAY_PORT"), found, strict=True))
)


@st.composite
def _nodes(draw: DrawFn, this_address: SearchStrategy[str], is_raft: bool) -> dict[str, Any]:
    """NODES, this one first. No two share an address."""
    found: dict[str, Any] = {}
    own = draw(this_address)
    others = draw(st.lists(addresses, max_size=3, unique=True))
    for address in [own, *(address for address in others if address != own)]:
        name = draw(node_names.filter(lambda name: name not in found))
        found[name] = draw(
            st.fixed_dictionaries(
                {"ADDRESS": st.just(address)},
                optional={
                    **({} if is_raft else {"HTTP_PORT": ports}),
                    "URL": st.builds("https://{}.test:{}".format, words, ports),
                    "PUBLIC_URL": st.builds("https://{}.example".format, words),
                },
            )
        )
        if is_raft:
            found[name].update(draw(_three_ports))
            found[name].update(draw(st.sampled_from([{}, {"WITNESS": len(found) > 1}])))
    return found


_secret = st.text(min_size=32, max_size=50)
_secrets = _secret | st.lists(_secret, min_size=1, max_size=3)
_OPTIONAL = st.fixed_dictionaries(
    {},
    optional={
        "ENABLED": st.just(True),
        "HTTP_PORT": ports,
        "RUN_PATH": paths("/run"),
        "RETENTION": seconds,
        "MAX_LAG": seconds,
        "ALLOW_OTHER": _flags,
        "BINARY": texts,
        "SECRET": _secrets,
        "HANDOVER": st.sampled_from(["forward", "redirect", "replay"]),
        "HANDOVER_TIMEOUT": seconds,
        "WRITES": st.lists(st.builds("/{}".format, texts), max_size=2),
        "READ_YOUR_WRITES_TIMEOUT": seconds,
    },
)
_CONSUL = st.fixed_dictionaries(
    {"URL": st.builds("http://c{}:{}".format, words, ports), "KEY": st.builds("k{}".format, texts)},
    optional={"TTL": st.floats(10, 86400)},
)


@st.composite
def litefs_settings(
    draw: DrawFn,
    this_address: SearchStrategy[str] = addresses,
    data_root: str = "/data",
    files: Path | None = None,
) -> dict[str, Any]:
    """A valid LITEFS. `this_address`, `data_root` and `files` are for a LiteFS that is really run with it."""
    kind = draw(st.sampled_from(LEASE_TYPES))
    members = draw(_nodes(this_address, kind == "raft"))
    this, *_ = members
    is_static = kind == "static"
    primary = draw(st.sampled_from(sorted(members)))
    raw = {
        "NODE": this,
        "NODES": members,
        "MOUNT_PATH": draw(paths("/mount")),
        "DATA_PATH": draw(paths(data_root)),
        "LEADER_ELECTION": kind,
        **({"PRIMARY": primary} if is_static else {}),
        **({"CONSUL": draw(_CONSUL)} if kind == "consul" else {}),
        **draw(_OPTIONAL),
    }
    if kind == "raft":
        raw.pop("HTTP_PORT", None)
        raw |= draw(_three_ports)
        raw |= draw(st.fixed_dictionaries({"SECRET": _secrets}, optional={"LEASE_TTL": st.floats(1.3, 1e4)}))
    port = members[this].get("HTTP_PORT", raw.get("HTTP_PORT", 20202))
    raw["LITEFS_YML"] = draw(litefs_ymls(port, is_static, not is_static or primary == this, files))
    return raw
