from __future__ import annotations

import socket
from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from litefs_django._litefs.errors import SettingProblem, SettingsError
from litefs_django._litefs.reading import EXAMPLES, read_settings
from litefs_django._litefs.settings import LEASE_TYPES, LiteFSSettings, Node
from tests.strategies import CONTROL, file_names, litefs_settings, patient

TWO_NODES = {
    "NODE": "a",
    "NODES": {"a": {"ADDRESS": "10.0.0.1"}, "b": {"ADDRESS": "10.0.0.2"}},
    "PRIMARY": "a",
}


def problems(raw: object, databases: dict[str, object] | None = None) -> tuple[SettingProblem, ...]:
    with pytest.raises(SettingsError) as error:
        read_settings(raw, databases or {})
    return error.value.problems


def only(found: tuple[SettingProblem, ...]) -> SettingProblem:
    (problem,) = found
    return problem


class TestDefaults:
    def test_one_node_needs_no_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "laptop")
        it = read_settings({}, {"default": "db.sqlite3"})
        assert it.cluster.nodes == (Node(name="laptop", address="127.0.0.1"),)
        assert it.cluster.this.name == it.cluster.primary == "laptop"
        assert it == LiteFSSettings(cluster=it.cluster, databases=it.databases)

    def test_this_node_is_named_like_the_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "b")
        raw = {key: value for key, value in TWO_NODES.items() if key != "NODE"}
        assert read_settings(raw, {}).cluster.this.name == "b"

    def test_ports_of_all_and_of_one(self) -> None:
        raw = deepcopy(TWO_NODES) | {"HTTP_PORT": 30000}
        raw["NODES"]["b"]["HTTP_PORT"] = 30001  # type: ignore[index]
        assert [node.http_port for node in read_settings(raw, {}).cluster.nodes] == [30000, 30001]


@pytest.mark.parametrize(
    ("value", "seconds"), [(5, 5.0), (2.5, 2.5), (timedelta(minutes=1), 60.0), (timedelta(milliseconds=1500), 1.5)]
)
def test_durations(value: Any, seconds: float) -> None:
    it = read_settings({**TWO_NODES, "RETENTION": value, "MAX_LAG": value}, {})
    assert (it.retention, it.max_lag) == (seconds, seconds)


@pytest.mark.parametrize("value", [-1, 10**10, float("nan"), timedelta(days=-1), timedelta.max])
def test_impossible_durations(value: Any) -> None:
    assert only(problems({**TWO_NODES, "RETENTION": value})).setting == 'LITEFS["RETENTION"]'


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("MAX_LAG", "10s", "Write 10 (seconds) or timedelta(seconds=10)."),
        ("MAX_LAG", "10", "Write 10 (seconds) or timedelta(seconds=10)."),
        ("RETENTION", "1m30.5s", "Write 90.5 (seconds) or timedelta(seconds=90.5)."),
        ("RETENTION", "1h", "Write 3600 (seconds) or timedelta(seconds=3600)."),
        ("RETENTION", "ten", "Write seconds, like 600, or timedelta(minutes=10)."),
        ("RETENTION", True, "Write seconds, like 600, or timedelta(minutes=10)."),
        ("MAX_LAG", -1, "Write seconds, like 10, or timedelta(seconds=10)."),
        ("ENABLED", "false", "Write False."),
        ("ALLOW_OTHER", 1, "Write True."),
        ("ALLOW_OTHER", [], "Write True or False."),
        ("HTTP_PORT", "20203", "Write 20203."),
        ("HTTP_PORT", 20203.0, "Write 20203."),
        ("HTTP_PORT", "web", "Write a port, like 20202."),
        ("NODE", 5, "Write '5'."),
        ("NODE", "", "Write this machine's name (one of: a, b)."),
        (
            "NODE",
            None,
            "An environment variable that is not set gives None. "
            "Write this machine's name (one of: a, b), or leave the key out.",
        ),
        (
            "SECRET",
            None,
            "An environment variable that is not set gives None. "
            "Write 32 random bytes or more as a str, or a list of them.",
        ),
        ("BINARY", Path("/opt/litefs"), "Write '/opt/litefs'."),
        ("MOUNT_PATH", b"/litefs", "Write '/litefs'."),
        ("MOUNT_PATH", 5, "Write '5'."),
        ("MOUNT_PATH", ["/litefs"], "Write a path, like '/litefs'."),
        ("LEADER_ELECTION", [], "Write 'static' or 'raft' or 'consul'."),
        ("NODES", [], 'Write {"web1": {"ADDRESS": "10.0.0.1"}}.'),
        ("LITEFS_YML", "log: {}", 'Write a dict of LiteFS\'s own keys, like {"log": {"format": "json"}}.'),
    ],
)
def test_a_hint_says_what_to_write(key: str, value: Any, hint: str) -> None:
    (problem,) = (it for it in problems({**TWO_NODES, key: value}) if it.setting == f'LITEFS["{key}"]')
    assert problem.hint == hint


def test_each_key_has_an_example() -> None:
    """Whatever is wrong with a value, its hint is not empty."""
    for key in [*WRONG, *WRONG_IN_NODE, "URL", "KEY", "TTL"]:
        assert EXAMPLES[key]


def test_an_empty_path() -> None:
    assert "it is empty" in str(only(problems({**TWO_NODES, "MOUNT_PATH": ""})))


@pytest.mark.parametrize("value", ["/srv/litefs", Path("/srv/litefs"), "/srv/litefs/"])
def test_paths(value: Any) -> None:
    assert read_settings({**TWO_NODES, "MOUNT_PATH": value}, {}).mount_path == Path("/srv/litefs")


class TestDatabases:
    @pytest.mark.parametrize(
        "name", ["db.sqlite3", Path("db.sqlite3"), "/litefs/db.sqlite3", Path("/litefs/db.sqlite3")]
    )
    def test_on_the_mount(self, name: object) -> None:
        (database,) = read_settings(TWO_NODES, {"default": name}).databases
        assert (database.alias, database.name) == ("default", "db.sqlite3")

    @pytest.mark.parametrize(
        "name",
        [
            None,
            "",
            5,
            "sub/db",
            "./db",
            "/litefs/sub/db",
            "/litefs",
            "/srv/db",
            "/litefs/../db",
            "..",
            "db-wal",
            "\ud800",
        ],
    )
    def test_elsewhere(self, name: object) -> None:
        problem = only(problems(TWO_NODES, {"default": name}))
        assert (problem.code, problem.setting) == ("E007", 'DATABASES["default"]["NAME"]')
        assert "MOUNT_PATH" in str(problem) or repr(name) in str(problem)

    @pytest.mark.parametrize("name", [":memory:", "file:x?mode=memory&cache=shared", "/srv/mode=memory"])
    def test_in_memory(self, name: str) -> None:
        problem = only(problems(TWO_NODES, {"default": name}))
        assert (problem.code, problem.setting) == ("E007", 'DATABASES["default"]["NAME"]')
        assert "is a database in memory: each process has its own" in problem.message
        assert "test runner" in problem.hint

    def test_two_on_one_file(self) -> None:
        problem = only(problems(TWO_NODES, {"default": "db.sqlite3", "other": Path("/litefs/db.sqlite3")}))
        assert (problem.code, problem.setting) == ("E007", 'DATABASES["other"]["NAME"]')


@pytest.mark.parametrize("raw", [None, [], "x", 5])
def test_litefs_is_a_dictionary(raw: object) -> None:
    problem = only(problems(raw))
    assert (problem.code, problem.setting) == ("E003", "LITEFS")


@pytest.mark.parametrize(
    ("key", "near"),
    [("MOUNTPATH", "MOUNT_PATH"), ("mount_path", "MOUNT_PATH"), ("NODE_S", "NODES"), ("Consul", "CONSUL")],
)
def test_the_nearest_key_is_named(key: str, near: str) -> None:
    problem = only(problems({**TWO_NODES, key: 1}))
    assert (problem.code, problem.setting) == ("E002", f'LITEFS["{key}"]')
    assert problem.hint == f"Did you mean {near!r}?"


def test_where_no_key_is_near_all_are_named() -> None:
    hint = only(problems({**TWO_NODES, "XYZZY": 1})).hint
    assert hint.startswith("The keys are: ")
    assert "MOUNT_PATH" in hint


def test_keys_of_a_node_and_of_consul() -> None:
    raw = {
        "NODE": "a",
        "NODES": {"a": {"ADRESS": "10.0.0.1"}},
        "LEADER_ELECTION": "consul",
        "CONSUL": {"URL": "http://10.0.0.9:8500", "KEYS": "k"},
    }
    found = {(problem.code, problem.setting): problem.hint for problem in problems(raw)}
    assert found.keys() == {
        ("E002", 'LITEFS["NODES"]["a"]["ADRESS"]'),
        ("E005", 'LITEFS["NODES"]["a"]["ADDRESS"]'),
        ("E002", 'LITEFS["CONSUL"]["KEYS"]'),
        ("E005", 'LITEFS["CONSUL"]["KEY"]'),
    }
    assert found["E002", 'LITEFS["NODES"]["a"]["ADRESS"]'] == "Did you mean 'ADDRESS'?"


def test_all_mistakes_are_reported_at_once() -> None:
    raw = {
        **TWO_NODES,
        "NODE": "c",
        "MOUNT_PATH": "litefs",
        "RETENTION": 0,
        "MAX_LAG": "10s",
        "ENABLE": True,
        "LITEFS_YML": {"lease": {"ttl": "1s"}, "exec": "app"},
    }
    assert {(problem.code, problem.setting) for problem in problems(raw, {"default": "a/b"})} == {
        ("E006", 'LITEFS["NODE"]'),
        ("E004", 'LITEFS["MOUNT_PATH"]'),
        ("E004", 'LITEFS["RETENTION"]'),
        ("E003", 'LITEFS["MAX_LAG"]'),
        ("E002", 'LITEFS["ENABLE"]'),
        ("E007", 'DATABASES["default"]["NAME"]'),
        ("E008", 'LITEFS["LITEFS_YML"]["lease"]["ttl"]'),
        ("E008", 'LITEFS["LITEFS_YML"]["exec"]'),
    }


@pytest.mark.parametrize("address", ["10.0.0", None])
def test_one_mistake_in_a_node_is_one_problem(address: Any) -> None:
    """Without its node the cluster would lack its primary, this node and their ports too."""
    raw = {"NODE": "a", "PRIMARY": "a", "NODES": {"a": {"ADDRESS": address, "HTTP_PORT": 1}}}
    raw["LITEFS_YML"] = {"http": {"addr": ":1"}}
    assert only(problems(raw)).setting == 'LITEFS["NODES"]["a"]["ADDRESS"]'


def test_the_names_of_nodes_are_text() -> None:
    raw = {"NODE": "a", "PRIMARY": "a", "NODES": {5: {"ADDRESS": "10.0.0.1"}}}
    assert only(problems(raw)).setting == 'LITEFS["NODES"]["5"]'


@pytest.mark.parametrize(
    "secret",
    [5, "a short password", ["x" * 40, "a short password in a list"], [b"a password in a list of bytes, and long"]],
)
def test_a_secret_is_never_shown(secret: Any) -> None:
    problem = only(problems({**TWO_NODES, "SECRET": secret}))
    assert problem.setting == 'LITEFS["SECRET"]'
    assert "password" not in str(problem)
    assert "in a list" not in str(problem)
    assert "x" * 32 not in repr(read_settings({**TWO_NODES, "SECRET": "x" * 32}, {}))


@patient
@given(litefs_settings(), st.dictionaries(st.sampled_from(["default", "other"]), file_names))
def test_valid_settings_are_read(raw: dict[str, Any], databases: dict[str, str]) -> None:
    if len(set(databases.values())) == len(databases):
        it = read_settings(raw, databases)
        assert {database.alias: database.name for database in it.databases} == databases
        assert it.cluster.node == raw["NODE"]
        assert [node.name for node in it.cluster.nodes] == list(raw["NODES"])
        assert str(it.mount_path) == raw["MOUNT_PATH"]
        assert it.litefs_yml == raw["LITEFS_YML"]


Corruption = Callable[[dict[str, Any]], str]

junk = [None, b"x", object(), ("a",), {1}]
not_text: SearchStrategy[Any] = st.sampled_from([*junk, 5, True, [], {}])
not_a_flag: SearchStrategy[Any] = st.sampled_from([*junk, 0, 1, "True", []])
not_whole: SearchStrategy[Any] = st.sampled_from([*junk, "1", 1.0, True, []])
not_a_duration: SearchStrategy[Any] = st.sampled_from([*junk, "10s", True, float("nan"), float("inf"), -1, 10**10])
not_a_path = st.one_of(
    st.sampled_from([*junk, 5, True, "", "/", ".", "//x", "/a/../b", "/\ud800"]),
    st.text(min_size=1).filter(lambda text: not text.startswith("/")),
    st.sampled_from(CONTROL).map("/a{}b".format),
)
no_name: SearchStrategy[Any] = st.sampled_from(["no-such-node", "", *junk, 5])
no_url: SearchStrategy[Any] = st.one_of(
    not_text, st.sampled_from(["", "a", "http://", "http://a:0", "http://a/b", "http://a#"])
)
WRONG: dict[str, SearchStrategy[Any]] = {
    "ENABLED": not_a_flag,
    "MOUNT_PATH": not_a_path,
    "DATA_PATH": not_a_path,
    "RUN_PATH": not_a_path,
    "LEADER_ELECTION": st.one_of(not_text, st.text().filter(lambda text: text not in LEASE_TYPES)),
    "NODE": no_name,
    "NODES": st.sampled_from([*junk, [], "a", {"a": None}, {"a": {}}]),
    "PRIMARY": no_name,
    "CONSUL": st.sampled_from([*junk, {}, {"URL": "http://10.0.0.9:8500"}, {"KEY": "k"}, "http://10.0.0.9:8500"]),
    "HTTP_PORT": not_whole,
    "RAFT_PORT": not_whole,
    "RELAY_PORT": not_whole,
    "LEASE_TTL": not_a_duration,
    "RETENTION": st.one_of(not_a_duration, st.sampled_from([0, 0.999])),
    "MAX_LAG": st.one_of(not_a_duration, st.just(0)),
    "ALLOW_OTHER": not_a_flag.filter(lambda value: value is not None),
    "LITEFS_YML": st.sampled_from([*junk, [], "fuse: {}", {"x": 1}, {"exec": "app"}, {"log": {"format": 1}}]),
    "BINARY": st.one_of(not_text, st.just("")),
    "SECRET": st.one_of(
        not_text.filter(lambda value: value != []),
        st.text(max_size=7),
        st.sampled_from([["x" * 32, "short"], ["x" * 32, None], ["x" * 32, b"x" * 32]]),
    ),
    "HANDOVER": st.one_of(not_text, st.sampled_from(["", "proxy"])),
    "HANDOVER_TIMEOUT": st.one_of(not_a_duration, st.just(0)),
    "WRITES": st.sampled_from([None, "/a", [5], ["login"], [""], {"/a"}]),
    "READ_YOUR_WRITES_TIMEOUT": not_a_duration,
}
WRONG_IN_NODE: dict[str, SearchStrategy[Any]] = {
    "ADDRESS": st.one_of(not_text, st.sampled_from(["", "0.0.0.0", "1.2.3", "a:1", "http://a", "a b", "a/b"])),
    "URL": no_url,
    "PUBLIC_URL": no_url,
    "HTTP_PORT": st.one_of(not_whole, st.sampled_from([0, 65536, -1])),
    "RAFT_PORT": not_whole,
    "RELAY_PORT": not_whole,
    "WITNESS": not_a_flag,
}


@patient
@given(raw=litefs_settings(), data=st.data())
def test_any_wrong_value_is_refused_by_its_name(raw: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(WRONG)))
    raw[key] = data.draw(WRONG[key])
    found = problems(raw)
    assert any(problem.setting.startswith(f'LITEFS["{key}"]') for problem in found)
    assert all(problem.hint for problem in found)


@patient
@given(raw=litefs_settings(), data=st.data())
def test_any_wrong_value_of_a_node_is_refused_by_its_name(raw: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(raw["NODES"])))
    key = data.draw(st.sampled_from(sorted(WRONG_IN_NODE)))
    raw["NODES"][name][key] = data.draw(WRONG_IN_NODE[key])
    assert only(problems(raw)).setting == f'LITEFS["NODES"]["{name}"]["{key}"]'


@patient
@given(raw=litefs_settings(), data=st.data())
def test_any_missing_or_misspelt_key_is_refused_by_its_name(raw: dict[str, Any], data: st.DataObject) -> None:
    needed = {"static": "PRIMARY" if len(raw["NODES"]) > 1 else "", "consul": "CONSUL", "raft": "SECRET"}[
        raw["LEADER_ELECTION"]
    ]
    section, path, missing = data.draw(
        st.sampled_from(
            [
                *((node, f'LITEFS["NODES"]["{name}"]', "ADDRESS") for name, node in raw["NODES"].items()),
                *([(raw, "LITEFS", needed)] if needed in raw else []),
                *((raw["CONSUL"], 'LITEFS["CONSUL"]', key) for key in ("URL", "KEY") if "CONSUL" in raw),
            ]
        )
    )
    value = section.pop(missing)
    assert only(problems(raw)).setting == f'{path}["{missing}"]'
    misspelt = missing[:-1] + "X"
    section[misspelt] = value
    assert {problem.setting for problem in problems(raw)} == {f'{path}["{missing}"]', f'{path}["{misspelt}"]'}


@patient
@given(raw=litefs_settings(), data=st.data())
def test_any_overlap_and_port_used_twice_is_refused(raw: dict[str, Any], data: st.DataObject) -> None:
    first, second = data.draw(st.sampled_from([("MOUNT_PATH", "DATA_PATH"), ("MOUNT_PATH", "RUN_PATH")]))
    overlapping = {**raw, second: raw[first] + data.draw(st.sampled_from(["", "/x", "/x/y"]))}
    assert any(problem.setting == f'LITEFS["{second}"]' for problem in problems(overlapping))

    name = data.draw(st.sampled_from(sorted(raw["NODES"])))
    node = raw["NODES"][name]
    twin = {
        **node,
        "HTTP_PORT": node.get("HTTP_PORT", raw.get("HTTP_PORT", 20202)),
        # Ports that no strategy draws.
        "RAFT_PORT": 1,
        "RELAY_PORT": 2,
    }
    nodes = {**raw["NODES"], "twin-of-another": twin}
    assert "HTTP_PORT" in str(only(problems({**raw, "NODES": nodes})))


class TestRaft:
    RAFT: dict[str, Any] = {
        "LEADER_ELECTION": "raft",
        "NODE": "web1",
        "NODES": {f"web{number}": {"ADDRESS": f"10.0.0.{number}"} for number in (1, 2, 3)},
        "SECRET": "x" * 32,
    }

    def test_what_the_nodes_are(self) -> None:
        nodes = {**self.RAFT["NODES"], "web3": {"ADDRESS": "10.0.0.3", "WITNESS": True, "RELAY_PORT": 7}}
        it = read_settings({**self.RAFT, "NODES": nodes, "RAFT_PORT": 5, "SECRET": ["y" * 32, "x" * 32]}, {})
        assert it.secrets == ("y" * 32, "x" * 32)
        assert it.lease_ttl == 3.0
        assert [(node.http_port, node.raft_port, node.relay_port) for node in it.cluster.nodes] == [
            (20202, 5, 20204),
            (20202, 5, 20204),
            (20202, 5, 7),
        ]
        assert [node.name for node in it.cluster.data_nodes] == ["web1", "web2"]
        assert [node.name for node in it.cluster.others] == ["web2"]
        assert it.cluster.this.local_url == "http://127.0.0.1:20202"
        assert it.cluster.this.relay_url == "https://10.0.0.1:20204"

    def test_without_it_its_ports_are_nobody_s(self) -> None:
        """A static cluster may have LiteFS on any of them."""
        static = {**self.RAFT, "LEADER_ELECTION": "static", "PRIMARY": "web1", "HTTP_PORT": 20203}
        assert {node.raft_port for node in read_settings(static, {}).cluster.nodes} == {None}

    @pytest.mark.parametrize(
        ("changes", "code", "setting"),
        [
            ({"SECRET": []}, "E005", 'LITEFS["SECRET"]'),
            ({"SECRET": "x" * 31}, "E004", 'LITEFS["SECRET"]'),
            ({"SECRET": ["x" * 32, "x" * 31]}, "E004", 'LITEFS["SECRET"]'),
            ({"LEASE_TTL": 1.2}, "E004", 'LITEFS["LEASE_TTL"]'),
            ({"LEASE_TTL": "3s"}, "E003", 'LITEFS["LEASE_TTL"]'),
            ({"PRIMARY": "web1"}, "E006", 'LITEFS["PRIMARY"]'),
            ({"CONSUL": {"URL": "http://10.0.0.9:8500", "KEY": "k"}}, "E006", 'LITEFS["CONSUL"]'),
            ({"HTTP_PORT": 20203}, "E006", 'LITEFS["NODES"]["web1"]["RAFT_PORT"]'),
            ({"RELAY_PORT": 20203}, "E006", 'LITEFS["NODES"]["web1"]["RELAY_PORT"]'),
            ({"RELAY_PORT": 20202}, "E006", 'LITEFS["NODES"]["web1"]["RELAY_PORT"]'),
            ({"RAFT_PORT": 0}, "E004", 'LITEFS["NODES"]["web1"]["RAFT_PORT"]'),
            ({"RELAY_PORT": 65536}, "E004", 'LITEFS["NODES"]["web1"]["RELAY_PORT"]'),
            ({"NODES": {"web1": {"ADDRESS": "10.0.0.1", "WITNESS": True}}}, "E006", 'LITEFS["NODES"]'),
            ({"LEASE_TLL": 3}, "E002", 'LITEFS["LEASE_TLL"]'),
        ],
    )
    def test_what_is_refused(self, changes: dict[str, Any], code: str, setting: str) -> None:
        found = problems({**self.RAFT, **changes})
        assert (found[0].code, found[0].setting) == (code, setting)
        assert len({(problem.code, problem.setting.rpartition("[")[2]) for problem in found}) == 1
        assert found[0].hint

    def test_a_secret_is_needed(self) -> None:
        without = {key: value for key, value in self.RAFT.items() if key != "SECRET"}
        assert only(problems(without)).code == "E005"

    def test_an_application_server_on_a_port_of_ours(self) -> None:
        nodes = {"web1": {"ADDRESS": "10.0.0.1", "URL": "http://10.0.0.1:20204"}}
        assert only(problems({**self.RAFT, "NODES": nodes})).setting == 'LITEFS["NODES"]["web1"]["URL"]'

    @pytest.mark.parametrize("kind", ["static", "consul"])
    def test_without_it_nobody_is_a_witness(self, kind: str) -> None:
        lease = {"PRIMARY": "web1"} if kind == "static" else {"CONSUL": {"URL": "http://10.0.0.9:8500", "KEY": "k"}}
        nodes = {**self.RAFT["NODES"], "web2": {"ADDRESS": "10.0.0.2", "WITNESS": True}}
        problem = only(problems({**self.RAFT, **lease, "LEADER_ELECTION": kind, "NODES": nodes}))
        assert (problem.code, problem.setting) == ("E006", 'LITEFS["NODES"]["web2"]["WITNESS"]')
