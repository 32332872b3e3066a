"""What the system checks and litefs_check say with Raft. On real nodes: tests/cluster/run/test_raft_check.py."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from litefs_django import checks, conf
from litefs_django._litefs import reach
from litefs_django._litefs.node import checkup
from litefs_django._litefs.node.checkup import NodeState
from litefs_django._litefs.node.control import ControlServer
from litefs_django._litefs.node.lease_checkup import check_lease
from litefs_django._litefs.reading import read_settings
from tests.configuring import OURS, Configure, ids, run
from tests.machine import SECRET, free_ports
from tests.test_diverged import keep, write_ltx


def raft(count: int, **this: Any) -> dict[str, Any]:
    """LITEFS of that many nodes; `this` is for the first one."""
    nodes: dict[str, dict[str, Any]] = {
        f"web{number}": {"ADDRESS": f"10.0.0.{number}"} for number in range(1, count + 1)
    }
    nodes["web1"].update(this)
    return {"LEADER_ELECTION": "raft", "SECRET": SECRET, "NODE": "web1", "NODES": nodes, "HANDOVER": "replay"}


class TestExtra:
    """What is not installed is named by all that need it, and nothing ends in ImportError."""

    @pytest.fixture(autouse=True)
    def _not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def find(name: str) -> object:
            return None if name in ("pysyncobj", "aiohttp") else object()

        monkeypatch.setattr(reach, "find_spec", find)

    def test_a_system_check(self, configure: Configure) -> None:
        configure(raft(3))
        (message,) = run()
        assert ids([message]) == ["E050"]
        assert message.msg == (
            "LITEFS[\"LEADER_ELECTION\"]: 'raft' needs aiohttp and pysyncobj, which are not installed here."
        )
        assert message.hint == 'Run: pip install "litefs-django[raft]"'

    @pytest.mark.parametrize(
        "command", [["litefs_run", "true"], ["litefs_status"], ["litefs_migrate", "--check"], ["litefs_config"]]
    )
    def test_commands(self, configure: Configure, command: list[str]) -> None:
        configure(raft(3))
        with pytest.raises(CommandError, match=r'pip install "litefs-django\[raft\]"'):
            call_command(*command)

    @pytest.mark.parametrize("litefs", [{}, {"ENABLED": False, "LEADER_ELECTION": "raft"}])
    def test_who_does_not_use_it_needs_it_not(self, configure: Configure, litefs: dict[str, Any]) -> None:
        configure(litefs)
        assert "E050" not in ids(run())


def test_without_the_extra_it_is_really_one_line(tmp_path: Path) -> None:
    """A Python that has Django and no more."""
    (tmp_path / "project.py").write_text(
        f"SECRET_KEY = 'x'\nINSTALLED_APPS = ['litefs_django']\nLITEFS = {raft(3)!r}\n"
        f"DATABASES = {{'default': {OURS!r}}}\n"
    )
    code = (
        "import sys\n"
        "for name in ('aiohttp', 'cryptography', 'pysyncobj'): sys.modules[name] = None\n"
        "from django.core.management import execute_from_command_line\n"
        "execute_from_command_line(['manage.py', 'litefs_run', '--', 'true'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"DJANGO_SETTINGS_MODULE": "project", "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert 'pip install "litefs-django[raft]"' in done.stderr


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, None),
        (2, "Of 2 none of them may be lost."),
        (3, None),
        (4, "Of 4 1 of them may be lost, as of 3."),
        (5, None),
    ],
)
def test_a_number_of_voters_that_gains_nothing(configure: Configure, count: int, said: str | None) -> None:
    configure(raft(count))
    found = checks.check_voters(None)
    assert [message.msg.partition("each other. ")[2] for message in found] == ([said] if said else [])
    configure({**raft(count), "LEADER_ELECTION": "static", "PRIMARY": "web1"})
    assert checks.check_voters(None) == []


def test_two_nodes_and_a_witness_are_three_voters(configure: Configure) -> None:
    litefs = raft(3)
    litefs["NODES"]["web3"]["WITNESS"] = True
    configure(litefs)
    assert checks.check_voters(None) == []


def test_one_node_with_data_shares_its_caches_with_nobody(configure: Configure) -> None:
    litefs = raft(3)
    configure(litefs)
    assert ids(checks.check_default_caches(None)) == ["W004"]
    for name in ("web2", "web3"):
        litefs["NODES"][name]["WITNESS"] = True
    configure(litefs)
    assert checks.check_default_caches(None) == []


@pytest.mark.parametrize(("address", "expected"), [("8.8.8.8", ["W041"]), ("10.0.0.1", []), ("127.0.0.1", [])])
def test_litefs_is_on_loopback_and_raft_is_not(configure: Configure, address: str, expected: list[str]) -> None:
    configure(raft(3, ADDRESS=address))
    assert checks.check_exposure(None) == []
    found = checks.check_raft_exposure(None)
    assert ids(found) == expected
    for message in found:
        assert "RAFT_PORT (20203)" in message.msg
        assert "RELAY_PORT (20204)" in (message.hint or "")


def test_litefs_that_is_opened_by_litefs_yml_is_exposed(configure: Configure) -> None:
    configure({**raft(3), "LITEFS_YML": {"http": {"addr": ":20202"}}})
    assert ids(checks.check_exposure(None)) == ["W003"]


def test_a_witness_needs_no_litefs(configure: Configure, tmp_path: Path) -> None:
    paths = {"DATA_PATH": str(tmp_path / "data"), "RUN_PATH": str(tmp_path / "run")}
    nowhere = {"MOUNT_PATH": "/proc/nowhere", "BINARY": "/nonexistent"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        this = {"ADDRESS": "127.0.0.1", "HTTP_PORT": port, "WITNESS": True}
        configure({**raft(3, **this), **paths, **nowhere})
        for check in (checks.check_machine, checks.check_binary, checks.check_directories, checks.check_port):
            assert check(None) == [], check
        configure({**raft(3, **{**this, "WITNESS": False}), **paths, **nowhere})
        assert ids([*checks.check_binary(None), *checks.check_port(None)]) == ["E014", "E019"]


def test_a_witness_and_another_node_are_started_differently(configure: Configure) -> None:
    configure(raft(3, WITNESS=True))
    with pytest.raises(CommandError, match=r'a witness \("WITNESS": True\)\. Start it with: litefs_run --witness$'):
        call_command("litefs_run", "true")
    (finding,) = checkup._supervisor(conf.read(), NodeState(None, "none", None))
    assert finding.level == "warning"
    assert "mount" not in finding.message
    assert finding.hint == 'Start it with "manage.py litefs_run --witness".'
    configure(raft(3))
    with pytest.raises(CommandError, match=r'Start it without --witness, or set "WITNESS": True\.'):
        call_command("litefs_run", "--witness")


@pytest.mark.parametrize("arguments", [[], ["web1"]])
def test_a_witness_cannot_be_the_primary(configure: Configure, arguments: list[str]) -> None:
    configure(raft(3, WITNESS=True))
    with pytest.raises(CommandError, match="'web1' is a witness, which has no data and cannot be the primary"):
        call_command("litefs_promote", *arguments)


# What the running machine tells.

STATUS: dict[str, Any] = {
    "leader": "web2",
    "term": 7,
    "members": ["web1", "web2", "web3"],
    "reachable": ["web1", "web2", "web3"],
    "votes": "It votes.",
    "state": {"lease": {"node": "web3"}},
}


@contextmanager
def node(run_path: Path, status: Mapping[str, Any], *, listens: bool = True) -> Iterator[Any]:
    """Settings of a node whose supervisor says this of its lease process."""
    http, *others = free_ports(3)
    with ExitStack() as stack:
        server = ControlServer(run_path, {"status": lambda request, say: {"lease": status}})
        stack.enter_context(closing(server))
        for port in others if listens else ():
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        this = {"ADDRESS": "127.0.0.1", "HTTP_PORT": http, "RAFT_PORT": others[0], "RELAY_PORT": others[1]}
        yield read_settings({**raft(3, **this), "RUN_PATH": str(run_path)}, {})


def found(settings: Any, *, is_supervised: bool = True) -> list[tuple[str, str, str]]:
    findings = list(check_lease(settings, is_supervised=is_supervised))
    assert all(finding.hint for finding in findings if finding.level != "ok")
    return [(finding.level, finding.subject, finding.message) for finding in findings]


def test_all_is_well(tmp_path: Path) -> None:
    with node(tmp_path, STATUS) as settings:
        *ports, lease, voters = found(settings)
    assert [(level, subject, message.partition(" on ")[0]) for level, subject, message in ports] == [
        ("ok", "port", "the lease process listens")
    ] * 2
    assert lease == ("ok", "lease", "web3 holds the lease, web2 leads (term 7).")
    assert voters == ("ok", "voters", "all 3 reach each other from here")


@pytest.mark.parametrize(
    ("reachable", "level"), [(["web1", "web2"], "warning"), (["web1"], "error")], ids=["one", "two"]
)
def test_voters_that_are_not_reached(reachable: list[str], level: str, tmp_path: Path) -> None:
    with node(tmp_path, {**STATUS, "reachable": reachable}) as settings:
        *_, voters = found(settings)
    assert voters[:2] == (level, "voters")
    assert "not reached. Of 3 nodes 1 may be missing." in voters[2]


def test_nobody_leads(tmp_path: Path) -> None:
    status = {**STATUS, "leader": None, "state": {"lease": None}, "votes": "It waits."}
    with node(tmp_path, status) as settings:
        assert ("error", "lease") in {(level, subject) for level, subject, _ in found(settings)}


def test_a_lease_process_that_is_dead(tmp_path: Path) -> None:
    with node(tmp_path, {}, listens=False) as settings:
        said = found(settings)
    assert [level for level, _, _ in said] == ["error"] * 3
    assert said[-1] == ("error", "lease", "The lease process of this node does not answer.")


def test_a_node_that_does_not_run(tmp_path: Path) -> None:
    with node(tmp_path, STATUS, listens=False) as settings:
        assert [(level, message.endswith("is free")) for level, _, message in found(settings, is_supervised=False)] == [
            ("ok", True)
        ] * 2
    with node(tmp_path, STATUS) as settings:
        assert [level for level, _, _ in found(settings, is_supervised=False)] == ["error"] * 2


def test_what_this_node_alone_has(tmp_path: Path) -> None:
    write_ltx(tmp_path, "db.sqlite3", 26)
    keep(tmp_path, {"db.sqlite3": 25})
    settings = read_settings({**raft(3), "DATA_PATH": str(tmp_path), "RUN_PATH": "/run/web1"}, {})
    (kept,) = (it for it in found(settings, is_supervised=False) if it[1] == "diverged")
    assert kept[0] == "warning"
    assert f"kept in {tmp_path}/diverged/db.sqlite3: 1 transaction of db.sqlite3 (TXID 1a to 1a, until 20" in kept[2]


def test_nothing_without_raft() -> None:
    assert list(check_lease(read_settings({}, {}), is_supervised=True)) == []
