from __future__ import annotations

import re
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litefs_django._litefs.config import render
from litefs_django._litefs.errors import SettingProblem
from litefs_django._litefs.litefs_yml import KEYS, find_problems, parse_duration


def problems(extra: Any, *, is_primary: bool | None = None, http_port: int | None = 20202) -> list[SettingProblem]:
    return find_problems(extra, is_primary=is_primary, http_port=http_port)


def leaves(known: Any = KEYS, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Each key of litefs.yml that holds no others."""
    found: list[tuple[str, ...]] = []
    for key, value in known.items():
        found += leaves(value, (*path, key)) if isinstance(value, dict) else [(*path, key)]
    return found


def at(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def written(path: tuple[str, ...]) -> str:
    return 'LITEFS["LITEFS_YML"]' + "".join(f'["{key}"]' for key in path)


def only(found: list[SettingProblem]) -> SettingProblem:
    (problem,) = found
    assert problem.code == "E008"
    return problem


def test_every_key_of_litefs_is_known() -> None:
    """cmd/litefs/config.go of v0.5.14 has 50 beside those of exec's items."""
    assert len(leaves()) == 50


def test_litefs_knows_every_key(litefs_binary: Path, tmp_path: Path) -> None:
    path = tmp_path / "litefs.yml"
    for key in [*leaves(), ("fuse", "typo")]:
        # No key takes a dictionary: LiteFS never starts, and complains of the key only when it knows none of this name.
        path.write_text(render(at(key, {"a": True})))
        result = subprocess.run([litefs_binary, "mount", "-config", path], capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert ("not found in type" in result.stderr) is (key == ("fuse", "typo")), key


@pytest.mark.parametrize("path", leaves(), ids="-".join)
def test_no_key_takes_just_anything(path: tuple[str, ...]) -> None:
    assert only(problems(at(path, None))).setting == written(path)


@pytest.mark.parametrize(
    ("path", "near"),
    [
        (("fuze",), "fuse"),
        (("lease", "reconnect_delay"), "reconnect-delay"),
        (("http", "ADDR"), "addr"),
        (("proxy", "max-leg"), "max-lag"),
        (("lease", "consul", "lockdelay"), "lock-delay"),
    ],
)
def test_the_nearest_key_is_named(path: tuple[str, ...], near: str) -> None:
    problem = only(problems(at(path, "1s")))
    assert problem.setting == written(path)
    assert problem.hint == f"Did you mean {near!r}?"


def test_where_none_is_near_all_are_named() -> None:
    assert only(problems({"log": {"qqqq": 1}})).hint == "The keys are: format, timestamp, debug."


@pytest.mark.parametrize("path", [(), ("fuse",), ("lease", "consul")])
def test_a_section_is_a_dictionary(path: tuple[str, ...]) -> None:
    assert only(problems(at(path, "text"))).setting == written(path)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("data", "dir"), 'LITEFS["DATA_PATH"]'),
        (("data", "retention"), 'LITEFS["RETENTION"]'),
        (("fuse", "dir"), 'LITEFS["MOUNT_PATH"]'),
        (("fuse", "allow-other"), 'LITEFS["ALLOW_OTHER"]'),
        (("lease", "type"), 'LITEFS["LEADER_ELECTION"]'),
        (("lease", "hostname"), 'LITEFS["NODE"]'),
        (("lease", "advertise-url"), 'LITEFS["NODES"]'),
        (("lease", "consul", "url"), 'LITEFS["CONSUL"]["URL"]'),
        (("lease", "consul", "key"), 'LITEFS["CONSUL"]["KEY"]'),
        (("lease", "consul", "ttl"), 'LITEFS["CONSUL"]["TTL"]'),
        (("lease", "promote"), "acknowledged writes are lost"),
        (("lease", "demote-delay"), "never reads it"),
        (("exec",), "litefs_run"),
    ],
)
@pytest.mark.parametrize("value", [True, "10s", "", 0])
def test_what_the_app_decides_is_refused(path: tuple[str, ...], said: str, value: Any) -> None:
    assert said in str(only(problems(at(path, value))))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("exit-on-error",), False, "without a mount"),
        (("exit-on-error",), "no", "not True or False"),
        (("skip-sync",), 1, "1 is not True or False"),
        (("data", "retention-monitor-interval"), "0", "for ever"),
        (("http", "snapshot-timeout"), "999ms", "too short"),
        (("http", "snapshot-timeout"), 0, "0 is not a duration"),
        (("lease", "reconnect-delay"), "0s", "CPU"),
        (("lease", "reconnect-delay"), "-1s", "not a duration"),
        (("lease", "reconnect-delay"), "300000h", "not a duration"),
        (("lease", "consul", "lock-delay"), "0s", "default"),
        (("lease", "databases"), "db", "not a list"),
        (("lease", "databases"), ["db", 1], "1 is not a str"),
        (("log", "format"), "xml", "'text', 'json'"),
        (("log", "format"), ["text"], "unknown"),
        (("backup", "type"), "s3", "'file', 'litefs-cloud'"),
        (("backup", "type"), "", "unknown"),
        (("backup", "path"), "backups", "absolute"),
        (("backup", "url"), "ftp://x", "http"),
        (("tracing", "path"), "trace.log", "absolute"),
        (("tracing", "max-size"), -1, "not a count"),
        (("tracing", "max-size"), True, "not a count"),
        (("tracing", "max-count"), 2**31, "not a count"),
        (("http", "addr"), "20202", "HOST:PORT"),
        (("http", "addr"), ":0", "HOST:PORT"),
        (("http", "addr"), ":70000", "HOST:PORT"),
        (("http", "addr"), "http://x:1", "HOST:PORT"),
        (("http", "addr"), ":20203", "HTTP_PORT, 20202"),
        (("proxy", "target"), "", "says nothing"),
        (("proxy", "db"), "a\0b", "control character"),
        (("proxy", "db"), "\ud800", "surrogate"),
    ],
)
def test_values_that_litefs_should_not_get(path: tuple[str, ...], value: Any, said: str) -> None:
    problem = only(problems(at(path, value)))
    assert problem.setting == written(path)
    assert said in str(problem)


@pytest.mark.parametrize(
    ("key", "value"),
    [("auth-token", "sekret\n"), ("auth-token", b"sekret"), ("url", "https://user:sekret@host\n")],
)
def test_secrets_are_not_shown(key: str, value: Any) -> None:
    assert "sekret" not in str(only(problems(at(("backup", key), value))))


@pytest.mark.parametrize(
    ("section", "value", "missing"),
    [
        ("proxy", {"target": "localhost:8000", "addr": ":1"}, ["db"]),
        ("proxy", {}, ["addr", "target", "db"]),
        ("backup", {}, ["type"]),
        ("backup", {"type": "file"}, ["path"]),
        ("tracing", {"max-size": 1}, ["path"]),
    ],
)
def test_what_a_section_needs(section: str, value: dict[str, Any], missing: list[str]) -> None:
    found = problems({section: value})
    assert [problem.setting for problem in found] == [written((section, key)) for key in missing]


def test_the_proxy_has_a_port_of_its_own() -> None:
    proxy = {"addr": ":20202", "target": "localhost:8000", "db": "db.sqlite3"}
    assert only(problems({"proxy": proxy})).setting == written(("proxy", "addr"))
    assert not problems({"proxy": proxy}, http_port=20203)
    # The port is wrong itself, and reported.
    assert not problems({"proxy": proxy, "http": {"addr": ":1"}}, http_port=None)


@pytest.mark.parametrize("is_primary", [True, False])
def test_a_static_lease_decides_who_is_a_candidate(is_primary: bool) -> None:
    problem = only(problems({"lease": {"candidate": is_primary}}, is_primary=is_primary))
    assert 'LITEFS["PRIMARY"]' in problem.hint


@pytest.mark.parametrize(
    ("lease", "is_primary", "is_allowed"),
    [
        ({"databases": ["a"]}, True, False),
        ({"databases": ["a"]}, False, True),
        ({"databases": ["a"]}, None, False),
        ({"databases": ["a"], "candidate": True}, None, False),
        ({"databases": ["a"], "candidate": False}, None, True),
        ({"databases": []}, True, True),
    ],
)
def test_a_candidate_holds_every_database(lease: dict[str, Any], is_primary: bool | None, is_allowed: bool) -> None:
    found = problems({"lease": lease}, is_primary=is_primary)
    assert is_allowed or only(found).setting == written(("lease", "databases"))
    assert bool(found) is not is_allowed


def test_all_mistakes_are_reported_at_once() -> None:
    extra = {"fuze": {}, "log": {"format": "xml"}, "lease": {"consul": {"ttl": "1s"}}}
    assert len(problems(extra)) == 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", "0"),
        ("1h2m3s", "3723"),
        ("1.5s", "1.5"),
        (".5m", "30"),
        ("1.s", "1"),
        ("100ms", "0.1"),
        ("5µs", "0.000005"),
        ("5μs5us", "0.00001"),
        ("1.9ns", "0.000000001"),
    ],
)
def test_go_durations(text: str, seconds: str) -> None:
    assert parse_duration(text) == Decimal(seconds)


@given(st.text("0123456789.smhn-+ e٣", max_size=8))
def test_nothing_else_is_a_duration(text: str) -> None:
    number = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)"
    if text != "0" and not re.fullmatch(rf"({number}(ns|ms|m|s|h))+", text):
        with pytest.raises(ValueError, match="not a Go duration"):
            parse_duration(text)
    else:
        assert parse_duration(text) >= 0
