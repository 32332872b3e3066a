from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from litefs_django._litefs.errors import SettingProblem, SettingsError
from litefs_django._litefs.settings import (
    RESERVED_SUFFIXES,
    ClusterConfig,
    ConsulConfig,
    DatabaseConfig,
    LiteFSSettings,
    Node,
    redacted,
)

A = Node(name="a", address="10.0.0.1")
B = Node(name="b", address="10.0.0.2")
CONSUL = ConsulConfig(url="http://10.0.0.9:8500", key="litefs/site")


def settings(**changes: Any) -> LiteFSSettings:
    return LiteFSSettings(**{"cluster": ClusterConfig(nodes=(A, B), node="a", primary="b"), **changes})


def only_problem(error: pytest.ExceptionInfo[SettingsError]) -> SettingProblem:
    (problem,) = error.value.problems
    return problem


class TestNode:
    def test_where_it_answers(self) -> None:
        assert A.http_url == "http://10.0.0.1:20202"
        assert Node(name="a", address="fd00::1", http_port=1).http_url == "http://[fd00::1]:1"

    @pytest.mark.parametrize("name", ["a", "web-1", "web_1.example", "0", "x" * 63])
    def test_names(self, name: str) -> None:
        assert Node(name=name, address="10.0.0.1").name == name

    @pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a/b", "ä", "a\n", "x" * 64, 'a"b'])
    def test_impossible_names(self, name: str) -> None:
        with pytest.raises(SettingsError) as error:
            Node(name=name, address="10.0.0.1")
        assert only_problem(error).code == "E004"
        assert only_problem(error).setting == f'LITEFS["NODES"]["{name}"]'
        assert repr(name) in str(error.value)

    @pytest.mark.parametrize(
        "address", ["10.0.0.1", "::1", "fd00::2", "web1", "web1.example.com", "web1.", "localhost"]
    )
    def test_addresses(self, address: str) -> None:
        assert Node(name="a", address=address).address == address

    @pytest.mark.parametrize(
        "address",
        [
            "",
            "10.0.0",
            "10.0.0.256",
            "1.2.3.4:80",
            "[::1]",
            "http://web1",
            "web1:80",
            "web 1",
            "-web",
            "web..1",
            "w/1",
            "fe80::1%eth0",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "wéb",
            "a\n",
            "x" * 64,
        ],
    )
    def test_unusable_addresses(self, address: str) -> None:
        with pytest.raises(SettingsError) as error:
            Node(name="a", address=address)
        assert only_problem(error).setting == 'LITEFS["NODES"]["a"]["ADDRESS"]'
        assert repr(address) in str(error.value)

    @pytest.mark.parametrize(
        "url", ["http://10.0.0.1:8000", "https://web1.example/", "http://[fd00::1]:8000", "http://a"]
    )
    def test_urls(self, url: str) -> None:
        assert Node(name="a", address="10.0.0.1", url=url).url == url

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "10.0.0.1:8000",
            "ftp://a",
            "http://",
            "http://a:0",
            "http://a:99999",
            "http://a:x",
            "http://a/path",
            "http://a?q",
            "http://a/?",
            "http://a#f",
            "http://a b",
            "http://a\n",
            "http://[::1",
            "http://1.2.3",
        ],
    )
    def test_unusable_urls(self, url: str) -> None:
        with pytest.raises(SettingsError) as error:
            Node(name="a", address="10.0.0.1", url=url)
        assert only_problem(error).setting == 'LITEFS["NODES"]["a"]["URL"]'

    @pytest.mark.parametrize("port", [0, -1, 65536])
    def test_impossible_ports(self, port: int) -> None:
        with pytest.raises(SettingsError) as error:
            Node(name="a", address="10.0.0.1", http_port=port)
        assert only_problem(error).setting == 'LITEFS["NODES"]["a"]["HTTP_PORT"]'

    def test_all_that_is_wrong_is_said_at_once(self) -> None:
        with pytest.raises(SettingsError) as error:
            Node(name="", address="", url="", http_port=0)
        assert len(error.value.problems) == 4


class TestCluster:
    def test_members(self) -> None:
        cluster = ClusterConfig(nodes=(A, B), node="b", primary="a")
        assert cluster.this is B
        assert cluster.get("a") is A
        assert cluster.get("c") is None
        assert cluster.get(None) is None

    def test_this_node_is_a_member(self) -> None:
        with pytest.raises(SettingsError) as error:
            ClusterConfig(nodes=(A, B), node="c")
        assert only_problem(error) == SettingProblem(
            "E006", 'LITEFS["NODE"]', "'c' is not one of the nodes in LITEFS[\"NODES\"].", "The nodes are: a, b."
        )

    def test_the_primary_is_a_member(self) -> None:
        with pytest.raises(SettingsError) as error:
            ClusterConfig(nodes=(A, B), node="a", primary="c")
        assert only_problem(error).setting == 'LITEFS["PRIMARY"]'

    def test_there_is_a_member(self) -> None:
        with pytest.raises(SettingsError, match="The nodes are: none"):
            ClusterConfig(nodes=(), node="a")

    def test_a_name_is_used_once(self) -> None:
        with pytest.raises(SettingsError) as error:
            ClusterConfig(nodes=(A, replace(B, name="a")), node="a")
        assert 'LITEFS["NODES"]' in {problem.setting for problem in error.value.problems}

    @pytest.mark.parametrize("other", ["10.0.0.1", "WEB.example"])
    def test_a_port_is_used_once_on_a_machine(self, other: str) -> None:
        first = replace(A, address=other.lower())
        ClusterConfig(nodes=(first, replace(B, address=other, http_port=20203)), node="a")
        with pytest.raises(SettingsError) as error:
            ClusterConfig(nodes=(first, replace(B, address=other)), node="a")
        assert only_problem(error).setting == 'LITEFS["NODES"]["b"]["HTTP_PORT"]'
        assert 'LITEFS["NODES"]["a"]["HTTP_PORT"]' in str(error.value)

    @pytest.mark.parametrize(("url", "port"), [("http://10.0.0.1:20202", 20202), ("https://10.0.0.1", 443)])
    def test_the_application_has_a_port_of_its_own(self, url: str, port: int) -> None:
        with pytest.raises(SettingsError) as error:
            ClusterConfig(nodes=(replace(A, url=url, http_port=port), B), node="a")
        assert only_problem(error).setting == 'LITEFS["NODES"]["a"]["URL"]'


class TestDatabase:
    @pytest.mark.parametrize("name", ["db.sqlite3", "a b", "db-journal.sqlite3", "ü", "x" * 240])
    def test_names(self, name: str) -> None:
        assert DatabaseConfig(alias="default", name=name).name == name

    @pytest.mark.parametrize(
        "name",
        ["", "a/b", ".lag", ".", "..", "a\0b", "a\n", "\ud800", "ü" * 121, *(f"db{end}" for end in RESERVED_SUFFIXES)],
    )
    def test_impossible_names(self, name: str) -> None:
        with pytest.raises(SettingsError) as error:
            DatabaseConfig(alias="default", name=name)
        assert only_problem(error).code == "E007"
        assert only_problem(error).setting == 'DATABASES["default"]["NAME"]'


class TestConsul:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("url", "10.0.0.9:8500"),
            ("url", "http://10.0.0.9:8500/v1"),
            ("key", ""),
            ("key", "/litefs"),
            ("key", "a\0"),
            ("ttl", 9.9),
            ("ttl", 86401.0),
        ],
    )
    def test_what_it_refuses(self, key: str, value: Any) -> None:
        with pytest.raises(SettingsError) as error:
            replace(CONSUL, **{key: value})
        assert only_problem(error).setting == f'LITEFS["CONSUL"]["{key.upper()}"]'

    def test_its_password_is_not_shown(self) -> None:
        assert redacted("http://user:secret@host:1") == "http://...@host:1"
        assert redacted("http:/:sec\nret@host:1") == "...@host:1"
        with pytest.raises(SettingsError) as error:
            ConsulConfig(url="http://:secret@10.0.0.9:8500/v1", key="k")
        assert "secret" not in str(error.value)


class TestLiteFSSettings:
    def test_defaults(self) -> None:
        it = settings()
        assert (it.mount_path, it.data_path) == (Path("/litefs"), Path("/var/lib/litefs"))
        assert it.run.parent == Path("/run/litefs_django")
        assert it.run == settings(mount_path=Path("/litefs")).run != settings(mount_path=Path("/other")).run
        assert (it.retention, it.max_lag, it.allow_other) == (600.0, 10.0, None)

    def test_they_are_frozen(self) -> None:
        with pytest.raises(FrozenInstanceError):
            settings().mount_path = Path("/x")  # type: ignore[misc]

    @pytest.mark.parametrize("key", ["mount_path", "data_path", "run_path"])
    @pytest.mark.parametrize("path", ["litefs", "/", "//", "//litefs", "/a/../b", "/a\nb", "/a\ud800", "."])
    def test_impossible_paths(self, key: str, path: str) -> None:
        with pytest.raises(SettingsError) as error:
            settings(**{key: Path(path)})
        assert ("E004", f'LITEFS["{key.upper()}"]') in {(it.code, it.setting) for it in error.value.problems}

    @pytest.mark.parametrize(
        ("mount", "data", "run", "named"),
        [
            ("/a", "/a", "/r", "DATA_PATH"),
            ("/a", "/a/b", "/r", "DATA_PATH"),
            ("/a/b", "/a", "/r", "DATA_PATH"),
            ("/m", "/d", "/m/run", "RUN_PATH"),
            ("/r/m", "/d", "/r", "RUN_PATH"),
        ],
    )
    def test_overlapping_paths(self, mount: str, data: str, run: str, named: str) -> None:
        with pytest.raises(SettingsError) as error:
            settings(mount_path=Path(mount), data_path=Path(data), run_path=Path(run))
        assert only_problem(error).code == "E006"
        assert only_problem(error).setting == f'LITEFS["{named}"]'

    @pytest.mark.parametrize(("data", "run"), [("/d", "/d/run"), ("/r/d", "/r")])
    def test_litefs_own_files_may_lie_with_ours(self, data: str, run: str) -> None:
        assert settings(mount_path=Path("/m"), data_path=Path(data), run_path=Path(run)).run == Path(run)

    @pytest.mark.parametrize(
        ("changes", "code", "key"),
        [
            ({"leader_election": "zookeeper"}, "E004", "LEADER_ELECTION"),
            ({"cluster": ClusterConfig(nodes=(A, B), node="a")}, "E005", "PRIMARY"),
            ({"consul": CONSUL}, "E006", "CONSUL"),
            ({"leader_election": "consul", "consul": CONSUL}, "E006", "PRIMARY"),
            ({"retention": 0.0}, "E004", "RETENTION"),
            ({"retention": 0.9}, "E004", "RETENTION"),
            ({"max_lag": 0.0}, "E004", "MAX_LAG"),
            ({"secrets": ("x" * 31,)}, "E004", "SECRET"),
            ({"secrets": ("x" * 32, "x" * 31)}, "E004", "SECRET"),
            ({"handover": "proxy"}, "E004", "HANDOVER"),
            ({"handover_timeout": 0.0}, "E004", "HANDOVER_TIMEOUT"),
            ({"writes": ("login/",)}, "E004", "WRITES"),
        ],
    )
    def test_what_it_refuses(self, changes: dict[str, Any], code: str, key: str) -> None:
        with pytest.raises(SettingsError) as error:
            settings(**changes)
        assert (only_problem(error).code, only_problem(error).setting) == (code, f'LITEFS["{key}"]')

    def test_consul_needs_to_be_described(self) -> None:
        cluster = ClusterConfig(nodes=(A, B), node="a")
        assert settings(cluster=cluster, leader_election="consul", consul=CONSUL).consul is CONSUL
        with pytest.raises(SettingsError) as error:
            settings(cluster=cluster, leader_election="consul")
        assert only_problem(error).setting == 'LITEFS["CONSUL"]'

    def test_a_file_belongs_to_one_alias(self) -> None:
        databases = tuple(DatabaseConfig(alias=alias, name="db.sqlite3") for alias in ("default", "other"))
        with pytest.raises(SettingsError) as error:
            settings(databases=databases)
        assert only_problem(error).setting == 'DATABASES["other"]["NAME"]'
        assert 'DATABASES["default"]' in str(error.value)


def test_a_problem_reads_as_one_line() -> None:
    assert str(SettingProblem("E004", 'LITEFS["X"]', "1 is wrong.", "Use 2.")) == 'LITEFS["X"]: 1 is wrong. Use 2.'
    assert str(SettingProblem("E004", 'LITEFS["X"]', "1 is wrong.", "")) == 'LITEFS["X"]: 1 is wrong.'
