from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from litefs_django._litefs.config import ConfigGenerator, format_duration, parse, render
from litefs_django._litefs.errors import SettingsError
from litefs_django._litefs.litefs_yml import parse_duration
from litefs_django._litefs.reading import read_settings
from litefs_django._litefs.settings import ClusterConfig, LiteFSSettings, Node
from tests.strategies import awkward, litefs_settings, patient

NODES = {"web1": {"ADDRESS": "10.0.0.1"}, "web2": {"ADDRESS": "fd00::2", "HTTP_PORT": 20300}}

# LiteFS reads its configuration and checks it, listens, and then finds that a file stands where it would make its data
# directory. It ends before it has made or mounted anything.
STOPPED = "ERROR: cannot open store: mkdir /dev/null: not a directory"


def generate(**litefs: Any) -> ConfigGenerator:
    return ConfigGenerator(read_settings({"NODES": NODES, **litefs}, {}))


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


def run_litefs(binary: Path, text: str, directory: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    path = directory / "litefs.yml"
    path.write_text(text, encoding="utf-8")
    return subprocess.run(
        [binary, "mount", "-config", path, *flags],
        env={},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


class TestLease:
    def test_static_names_the_primary_on_every_node(self) -> None:
        expected = {"type": "static", "hostname": "web2", "advertise-url": "http://[fd00::2]:20300"}
        primary = generate(LEADER_ELECTION="static", PRIMARY="web2", NODE="web2")
        replica = generate(LEADER_ELECTION="static", PRIMARY="web2", NODE="web1")
        assert primary.config["lease"] == {**expected, "candidate": True}
        assert replica.config["lease"] == {**expected, "candidate": False}

    def test_consul_names_this_node(self) -> None:
        consul = {"URL": "http://10.0.0.9:8500", "KEY": "litefs/site", "TTL": 12.5}
        generator = generate(LEADER_ELECTION="consul", CONSUL=consul, NODE="web1")
        assert generator.config["lease"] == {
            "type": "consul",
            "hostname": "web1",
            "advertise-url": "http://10.0.0.1:20202",
            "candidate": True,
            "reconnect-delay": "100ms",
            "consul": {"url": "http://10.0.0.9:8500", "key": "litefs/site", "ttl": "12.5s"},
        }

    def test_raft_is_asked_as_consul_is_and_litefs_stays_on_loopback(self) -> None:
        settings = read_settings(
            {"NODES": NODES, "NODE": "web2", "LEADER_ELECTION": "raft", "SECRET": "x" * 32, "LEASE_TTL": 2.5}, {}
        )
        generator = ConfigGenerator(settings, "http://:token@127.0.0.1:4321")
        assert generator.config["http"] == {"addr": "127.0.0.1:20300"}
        assert generator.local_url == "http://127.0.0.1:20300"
        assert generator.config["lease"] == {
            "type": "consul",
            "hostname": "web2",
            "advertise-url": "http://127.0.0.1:20300",
            "candidate": True,
            "reconnect-delay": "100ms",
            "consul": {"url": "http://:token@127.0.0.1:4321", "key": "litefs", "ttl": "2.5s"},
        }

    @pytest.mark.parametrize(
        ("address", "url"),
        [
            (None, "http://10.0.0.1:20202"),
            (":20202", "http://127.0.0.1:20202"),
            ("0.0.0.0:20202", "http://127.0.0.1:20202"),
            ("[::]:20202", "http://127.0.0.1:20202"),
            ("192.168.1.7:20202", "http://192.168.1.7:20202"),
        ],
    )
    def test_where_it_answers_on_its_own_machine(self, address: str | None, url: str) -> None:
        extra = {"http": {"addr": address}} if address else {}
        assert generate(PRIMARY="web1", NODE="web1", LITEFS_YML=extra).local_url == url

    def test_extra_keys_join_it(self) -> None:
        extra = {"lease": {"reconnect-delay": "50ms", "consul": {"lock-delay": "1ms"}, "candidate": False}}
        consul = {"URL": "http://10.0.0.9:8500", "KEY": "k"}
        lease = generate(LEADER_ELECTION="consul", CONSUL=consul, NODE="web1", LITEFS_YML=extra).config["lease"]
        assert lease["reconnect-delay"] == "50ms"
        assert lease["consul"] == {"url": "http://10.0.0.9:8500", "key": "k", "ttl": "10s", "lock-delay": "1ms"}
        assert lease["candidate"] is False


def test_the_rest() -> None:
    config = generate(
        PRIMARY="web1", NODE="web2", MOUNT_PATH="/m", DATA_PATH="/d", RETENTION=90, ALLOW_OTHER=False
    ).config
    del config["lease"]
    assert config == {
        "fuse": {"dir": "/m", "allow-other": False},
        "data": {"dir": "/d", "retention": "90s"},
        "http": {"addr": "[fd00::2]:20300"},
    }


def test_the_api_can_be_opened_to_every_interface() -> None:
    config = generate(PRIMARY="web1", NODE="web2", LITEFS_YML={"http": {"addr": ":20300"}}).config
    assert config["http"] == {"addr": ":20300"}


@pytest.mark.parametrize(("user", "expected"), [(0, True), (1000, False)])
def test_the_mount_of_root_is_open_to_others(monkeypatch: pytest.MonkeyPatch, user: int, expected: bool) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert generate(PRIMARY="web1", NODE="web1").config["fuse"]["allow-other"] is expected
    assert generate(PRIMARY="web1", NODE="web1", ALLOW_OTHER=not expected).is_open_to_others is not expected


def test_unchecked_extra_keys_are_refused() -> None:
    """LiteFSSettings itself does not look into litefs_yml."""
    cluster = ClusterConfig(nodes=(Node(name="a", address="10.0.0.1"),), node="a", primary="a")
    with pytest.raises(SettingsError, match=r'LITEFS\["LITEFS_YML"\]\["exec"\]'):
        ConfigGenerator(LiteFSSettings(cluster=cluster, litefs_yml={"exec": "app"}))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(600.0, "600s"), (0.5, "0.5s"), (10.25, "10.25s"), (1e-9, "0.000000001s"), (3e8, "300000000s"), (100, "100s")],
)
def test_durations_are_those_of_go(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
    assert float(parse_duration(text)) == seconds


class TestWrite:
    def test_only_the_owner_reads_it(self, tmp_path: Path) -> None:
        path = tmp_path / "litefs.yml"
        path.write_text("old")
        path.chmod(0o644)
        generator = generate(PRIMARY="web1", NODE="web1")
        generator.write(path)
        assert path.read_text() == generator.render()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["litefs.yml"]

    def test_a_failure_leaves_the_old_file_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A disk that fills up between the two steps cannot be had on demand."""
        path = tmp_path / "litefs.yml"
        path.write_text("old")

        def fail(descriptor: int) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            generate(PRIMARY="web1", NODE="web1").write(path)
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["litefs.yml"]


configs = st.recursive(
    st.one_of(st.booleans(), st.integers(), awkward, st.text(st.characters(exclude_categories=["Cs"])))
    | st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
    lambda children: st.dictionaries(st.from_regex("[a-z]+(-[a-z]+)?", fullmatch=True), children, max_size=4),
).filter(lambda value: isinstance(value, dict))


@patient
@given(configs)
def test_what_is_rendered_is_read_again(config: dict[str, Any]) -> None:
    assert parse(render(config)) == config


@patient
@given(litefs_settings())
def test_whole_settings_are_read_again(raw: dict[str, Any]) -> None:
    generator = ConfigGenerator(read_settings(raw, {}))
    text = generator.render()
    assert parse(text) == generator.config
    assert "$" not in text


@patient
@given(data=st.data())
def test_litefs_accepts_all_valid_settings(data: st.DataObject, litefs_binary: Path, scratch: Path) -> None:
    loopback = st.builds("127.{}.{}.1".format, st.integers(0, 255), st.integers(0, 255))
    raw = data.draw(litefs_settings(this_address=loopback, data_root="/dev/null", files=scratch))
    generator = ConfigGenerator(read_settings(raw, {}))
    result = run_litefs(litefs_binary, generator.render(), scratch)
    assume("address already in use" not in result.stderr)
    assert result.stderr.splitlines()[-1] == STOPPED
    assert result.returncode == 1


@patient
@given(text=awkward | st.text(st.characters(exclude_categories=["Cs"]), min_size=1), expands=st.booleans())
def test_each_text_arrives_in_litefs_as_it_is(text: str, expands: bool, litefs_binary: Path, scratch: Path) -> None:
    config = {
        "data": {"dir": "/dev/null/data"},
        "http": {"addr": "127.0.0.1:0"},
        "lease": {"type": "static", "hostname": text, "advertise-url": "x"},
        "log": {"format": "json"},
    }
    result = run_litefs(litefs_binary, render(config), scratch, *([] if expands else ["-no-expand-env"]))
    *log, last = result.stderr.strip().split("\n")
    assert last == STOPPED
    said = [json.loads(line)["msg"] for line in log]
    assert f"Using static primary: primary=true hostname={text} advertise-url=x" in said


# The tests above can tell a litefs.yml that is accepted from one that is not.
@pytest.mark.parametrize(
    "wrong", [{"fuse": {"dri": "/x"}}, {"lease": {"type": "raft"}}, {"data": {"retention": 0}}, {"exec": {"a": 1}}]
)
def test_litefs_refuses_what_is_wrong(wrong: dict[str, Any], litefs_binary: Path, scratch: Path) -> None:
    base = {"data": {"dir": "/dev/null/data"}, "lease": {"type": "static"}, "http": {"addr": "127.0.0.1:0"}}
    assert run_litefs(litefs_binary, render(base), scratch).stderr.splitlines()[-1] == STOPPED
    assert run_litefs(litefs_binary, render({**base, **wrong}), scratch).returncode == 2
