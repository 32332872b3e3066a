"""`LITEFS["LITEFS_YML"]`: which keys of litefs.yml a project may add, and with which values.

Source: LiteFS v0.5.14, cmd/litefs/config.go (the keys and their types: LiteFS exits with 2 at any
other) and cmd/litefs/mount_linux.go (what it refuses later, and what it takes but should not).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from litefs_django._litefs.errors import SettingProblem
from litefs_django._litefs.settings import UNPRINTABLE, redacted, url_problem

CODE = "E008"

# What is wrong with a value, and what to do about it; None when nothing is.
Complaint = tuple[str, str]
Check = Callable[[Any], Complaint | None]

_LISTEN_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]*):([0-9]{1,5})")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_SECONDS = {
    **{"ns": Decimal("1e-9"), "us": Decimal("1e-6"), "µs": Decimal("1e-6"), "μs": Decimal("1e-6")},
    **{"ms": Decimal("1e-3"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)},
}
_LONGEST = 10 * 365 * 86400


def parse_duration(text: str) -> Decimal:
    """Seconds from a Go duration like "1m30s". Raises ValueError, also for a negative one.

    Source: Go, time.ParseDuration. It counts in nanoseconds and drops what is smaller.
    """
    if text == "0":
        return Decimal(0)
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a Go duration")
    seconds: Decimal = sum((Decimal(number) * _UNIT_SECONDS[unit] for number, unit in parts), Decimal(0))
    return seconds.quantize(Decimal("1e-9"), rounding="ROUND_DOWN") if seconds < _LONGEST else seconds


def _text(value: Any) -> Complaint | None:
    if not isinstance(value, str):
        return f"{value!r} is not a str.", "Write text in quotes."
    if UNPRINTABLE.search(value):
        return f"{value!r} holds a control character or half of a surrogate pair.", "Write printable text."
    return None


def _secret(value: Any) -> Complaint | None:
    if _text(value):
        return "is not a str of printable characters.", "Write text in quotes; strip() what is read from a file."
    return None


def _filled(value: Any) -> Complaint | None:
    return _text(value) or (None if value else ("'' says nothing.", "Give a value or leave the key out."))


def _texts(value: Any) -> Complaint | None:
    if not isinstance(value, (list, tuple)):
        return f"{value!r} is not a list.", "Write a list of texts, like ['/static/*']."
    return next((complaint for item in value if (complaint := _filled(item))), None)


def _flag(value: Any) -> Complaint | None:
    return (
        None
        if isinstance(value, bool)
        else (f"{value!r} is not True or False.", "Write True or False, without quotes.")
    )


def _count(value: Any) -> Complaint | None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        return f"{value!r} is not a count.", "Write an int of 0 or more."
    return None


def _path(value: Any) -> Complaint | None:
    complaint = _filled(value)
    if complaint or value.startswith("/"):
        return complaint
    return f"{value!r} is not an absolute path.", "LiteFS would take it from wherever it happens to be started."


def _url(value: Any) -> Complaint | None:
    if isinstance(value, str) and value and (reason := url_problem(value)):
        return f"{redacted(value)!r} {reason}.", "Give a base URL, like 'https://backup.example.com'."
    return _filled(value)


def _listen_address(value: Any) -> Complaint | None:
    if complaint := _text(value):
        return complaint
    match = _LISTEN_ADDRESS.fullmatch(value)
    if match is None or not 1 <= int(match[1]) <= 65535:
        return f"{value!r} is not an address to listen on.", "Write 'HOST:PORT', or ':PORT' for every interface."
    return None


def _one_of(*allowed: str) -> Check:
    def check(value: Any) -> Complaint | None:
        # Compared by type too: a list is not hashable, and True equals no text.
        if isinstance(value, str) and value in allowed:
            return None
        return f"{value!r} is unknown to LiteFS.", f"Use one of: {', '.join(map(repr, allowed))}."

    return check


def _duration(*, least: str = "0s", because: str = "") -> Check:
    """A Go duration of at least `least`; `because` says what a shorter one would do."""

    def check(value: Any) -> Complaint | None:
        try:
            seconds = parse_duration(value) if isinstance(value, str) else None
        except ValueError:
            seconds = None
        if seconds is None or seconds > _LONGEST:
            return f"{value!r} is not a duration.", "Write it as Go does, a str with units like '10m' or '1.5s'."
        if seconds < parse_duration(least):
            return f"{value!r} is too short: {because}.", f"Use {least!r} or more."
        return None

    return check


def _decided_by(setting: str) -> Check:
    return lambda value: ("comes from elsewhere in the settings.", f"Set {setting} instead.")


def _refused(reason: str, hint: str) -> Check:
    return lambda value: (reason, hint)


def _only_true(value: Any) -> Complaint | None:
    if value is False:
        return "False would keep a LiteFS that failed running, without a mount.", "Leave it out."
    return _flag(value)


# Each key of litefs.yml.
KEYS: Mapping[str, Any] = {
    "exit-on-error": _only_true,
    "skip-sync": _flag,
    "strict-verify": _flag,
    "exec": _refused("the application is not LiteFS's to start.", "Run `manage.py litefs_run -- COMMAND`."),
    "data": {
        "dir": _decided_by('LITEFS["DATA_PATH"]'),
        "compress": _flag,
        "retention": _decided_by('LITEFS["RETENTION"]'),
        "retention-monitor-interval": _duration(least="1s", because="0 turns retention off, and files stay for ever"),
    },
    "fuse": {
        "dir": _decided_by('LITEFS["MOUNT_PATH"]'),
        "allow-other": _decided_by('LITEFS["ALLOW_OTHER"]'),
        "debug": _flag,
    },
    "http": {
        "addr": _listen_address,
        "snapshot-timeout": _duration(least="1s", because="no replica could receive a snapshot in that time"),
    },
    "proxy": {
        "addr": _listen_address,
        "target": _filled,
        "db": _filled,
        "max-lag": _duration(),
        "debug": _flag,
        "passthrough": _texts,
        "always-forward": _texts,
        "primary-redirect-timeout": _duration(),
        "read-timeout": _duration(),
        "read-header-timeout": _duration(),
        "write-timeout": _duration(),
        "idle-timeout": _duration(),
    },
    "lease": {
        "type": _decided_by('LITEFS["LEADER_ELECTION"]'),
        "hostname": _decided_by('LITEFS["NODE"]'),
        "advertise-url": _decided_by('"ADDRESS" and "HTTP_PORT" in LITEFS["NODES"]'),
        "candidate": _flag,
        "promote": _refused(
            "a LiteFS that promotes itself takes over in the middle of commits, and acknowledged writes are lost.",
            "Leave it out.",
        ),
        "reconnect-delay": _duration(least="1ms", because="LiteFS would spend a whole CPU on trying"),
        "demote-delay": _refused("LiteFS v0.5.14 never reads it.", "Leave it out."),
        "databases": _texts,
        "consul": {
            "url": _decided_by('LITEFS["CONSUL"]["URL"]'),
            "key": _decided_by('LITEFS["CONSUL"]["KEY"]'),
            "ttl": _decided_by('LITEFS["CONSUL"]["TTL"]'),
            "lock-delay": _duration(least="1ns", because="LiteFS takes 0 for its default of 1 s"),
        },
    },
    "backup": {
        "type": _one_of("file", "litefs-cloud"),
        "path": _path,
        "url": _url,
        "cluster": _text,
        "auth-token": _secret,
    },
    "log": {"format": _one_of("text", "json"), "timestamp": _flag, "debug": _flag},
    "tracing": {"enabled": _flag, "path": _path, "max-size": _count, "max-count": _count, "compress": _flag},
}

# (section, key that it does nothing or fails without)
_NEEDED = (
    ("proxy", "addr", "LiteFS starts its proxy only with 'addr', 'target' and 'db'."),
    ("proxy", "target", "LiteFS starts its proxy only with 'addr', 'target' and 'db'."),
    ("proxy", "db", "LiteFS starts its proxy only with 'addr', 'target' and 'db'."),
    ("backup", "type", "Use 'file' or 'litefs-cloud'."),
    ("tracing", "path", "LiteFS traces nothing until it has a file to write to."),
)


def find_problems(extra: Mapping[Any, Any], *, is_primary: bool | None, http_port: int | None) -> list[SettingProblem]:
    """Every mistake in LITEFS_YML of the node that listens on `http_port`, None when that is not known.

    `is_primary` says whether a static lease makes the node the primary; None with a lease that is elected.
    """
    problems = list(_walk(extra, KEYS, ()))
    return problems or list(_contradictions(extra, is_primary, http_port))


def setting(*keys: object) -> str:
    """The path of a litefs.yml key as the user writes it."""
    return 'LITEFS["LITEFS_YML"]' + "".join(f'["{key}"]' for key in keys)


def _walk(values: Any, known: Mapping[str, Any], path: tuple[object, ...]) -> Iterator[SettingProblem]:
    if not isinstance(values, Mapping):
        yield SettingProblem(CODE, setting(*path), f"{values!r} is not a dictionary.", "Write a dict.")
        return
    for key, value in values.items():
        here = (*path, key)
        if key not in known:
            near = difflib.get_close_matches(str(key).replace("_", "-").lower(), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The keys are: {', '.join(known)}."
            yield SettingProblem(CODE, setting(*here), "is not a key of litefs.yml.", hint)
        elif isinstance(known[key], Mapping):
            yield from _walk(value, known[key], here)
        elif complaint := known[key](value):
            yield SettingProblem(CODE, setting(*here), *complaint)


def _contradictions(
    extra: Mapping[str, Any], is_primary: bool | None, http_port: int | None
) -> Iterator[SettingProblem]:
    """What is wrong between values that are each right."""
    yield from _missing(extra)
    yield from _lease_contradictions(extra.get("lease", {}), is_primary)
    if http_port is not None:
        yield from _port_contradictions(extra, http_port)


def _missing(extra: Mapping[str, Any]) -> Iterator[SettingProblem]:
    for section, key, hint in _NEEDED:
        if section in extra and key not in extra[section]:
            yield SettingProblem(CODE, setting(section, key), "is missing.", hint)
    backup = extra.get("backup", {})
    if backup.get("type") == "file" and "path" not in backup:
        yield SettingProblem(CODE, setting("backup", "path"), "is missing.", "Give the directory of the backups.")


def _lease_contradictions(lease: Mapping[str, Any], is_primary: bool | None) -> Iterator[SettingProblem]:
    if is_primary is not None and "candidate" in lease:
        yield SettingProblem(
            CODE,
            setting("lease", "candidate"),
            "a static lease has one candidate, its primary.",
            'Set LITEFS["PRIMARY"] instead.',
        )
    is_candidate = lease.get("candidate", True) if is_primary is None else is_primary
    if lease.get("databases") and is_candidate:
        yield SettingProblem(
            CODE,
            setting("lease", "databases"),
            "LiteFS filters databases only on a node that can never be primary.",
            "Leave it out here" + (', or set "candidate" to False beside it.' if is_primary is None else "."),
        )


def _port_contradictions(extra: Mapping[str, Any], http_port: int) -> Iterator[SettingProblem]:
    for section, is_wanted, hint in (
        ("http", True, 'The other nodes look for it there: set LITEFS["HTTP_PORT"], or "HTTP_PORT" of the node.'),
        ("proxy", False, "Give the proxy a port of its own."),
    ):
        address = extra.get(section, {}).get("addr")
        if address is not None and (int(address.rpartition(":")[2]) == http_port) != is_wanted:
            wanted = "must be" if is_wanted else "must not be"
            yield SettingProblem(
                CODE, setting(section, "addr"), f"the port of {address!r} {wanted} HTTP_PORT, {http_port}.", hint
            )
