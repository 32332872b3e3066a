"""litefs_check on real nodes: each run is a process, as its user starts it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from litefs_django._litefs import listening
from tests.cluster.commands import run
from tests.cluster.nodes import LiteFSNode, StaticCluster
from tests.cluster.plain import write
from tests.cluster.run.conftest import StartNodes, start_nodes
from tests.machine import free_ports, wait_until

__all__ = ["start_nodes"]

pytestmark = pytest.mark.cluster

# A command is given a few seconds; on a busy machine Python alone takes some of them.
PROMPTLY = 20.0

Findings = list[dict[str, str]]


def check(node: Any, **litefs: Any) -> tuple[int, Findings]:
    """The exit code and what was found; every finding is complete."""
    changed = _Changed(node, litefs)
    since = time.monotonic()
    code, printed, errors = run(changed, "litefs_check", "--format", "json")  # type: ignore[arg-type]
    assert time.monotonic() - since < PROMPTLY
    assert errors == ""
    answer = json.loads(printed)
    found: Findings = answer["findings"]
    levels = [finding["level"] for finding in found]
    assert (answer["errors"], answer["warnings"]) == (levels.count("error"), levels.count("warning"))
    assert code == (1 if answer["errors"] else 0)
    assert all(finding.keys() == {"level", "subject", "message", "hint", "id"} for finding in found)
    assert all(finding["hint"] or finding["level"] == "ok" or finding["id"] for finding in found)
    return code, found


class _Changed:
    """A node with other settings."""

    def __init__(self, node: Any, litefs: dict[str, Any]) -> None:
        self.litefs = {**node.litefs, **litefs}


def of(found: Findings, subject: str) -> dict[str, str]:
    """The one finding on this subject."""
    (finding,) = (it for it in found if it["subject"] == subject)
    return finding


def level(found: Findings, subject: str) -> str:
    return of(found, subject)["level"]


def errors_in(found: Findings) -> list[str]:
    return [finding["message"] for finding in found if finding["level"] == "error"]


@pytest.fixture
def cluster(static_cluster: StaticCluster, litefs_binary: Path) -> StaticCluster:
    """With a database that all nodes hold; each node knows its binary."""
    for node in static_cluster.nodes:
        node.litefs = {**node.litefs, "BINARY": str(litefs_binary)}
    write(static_cluster.primary, "PRAGMA journal_mode = WAL")
    write(static_cluster.primary, "CREATE TABLE t (value)")
    static_cluster.wait_equal()
    return static_cluster


def test_before_a_node_has_ever_run(tmp_path: Path, litefs_binary: Path) -> None:
    node = StaticCluster(2, tmp_path / "new", litefs_binary).nodes[0]
    code, found = check(node, BINARY=str(litefs_binary))
    assert code == 0
    for subject in ("machine", "binary", "directories", "port", "disk"):
        assert level(found, subject) == "ok", subject
    assert level(found, "supervisor") == "warning"
    assert "does not run" in of(found, "supervisor")["message"]
    assert of(found, "port")["message"] == f"127.0.0.1, port {node.http_port} is free"
    assert level(found, "node2") == "warning"
    assert not [it for it in found if it["subject"] in ("mount", "cluster", "clocks")]
    assert not (tmp_path / "new").exists()


def test_a_healthy_cluster(start_nodes: StartNodes) -> None:
    nodes = start_nodes(3)
    for node in nodes:
        node.start("--migrate")
    for node in nodes:
        node.wait_for_line("app | ", timeout=90)
    for node in nodes:
        code, found = check(node)
        assert (code, errors_in(found)) == (0, [])
        for subject in ("machine", "binary", "directories", "supervisor", "mount", "cluster", "clocks", "disk"):
            assert level(found, subject) == "ok", subject
        assert of(found, "supervisor")["message"] == "litefs_run is alive and LiteFS is up"
        pid = node.litefs_process().pid
        assert of(found, "port")["message"].startswith(f"the LiteFS of this node ({pid}, litefs")
        assert of(found, "mount")["message"].endswith(f"answers, served by process {pid}")
        others = {other.litefs["NODE"]: level(found, other.litefs["NODE"]) for other in nodes if other is not node}
        assert set(others.values()) == {"ok"}
        # One machine has one clock.
        assert re.match(r"they differ by [01]\.\d s at most", of(found, "clocks")["message"])
        assert "whose databases take" in of(found, "disk")["message"]


def test_the_urls_of_nodes_that_run(cluster: StaticCluster) -> None:
    """Whoever listens there could be its application; where nobody does no request can be handed over."""
    first, second, third = cluster.nodes
    third.kill()
    ports = dict(zip(first.litefs["NODES"], free_ports(3), strict=True))
    with socket.create_server(("127.0.0.1", ports[second.name])):
        nodes = {
            name: {**member, "URL": f"http://127.0.0.1:{ports[name]}"} for name, member in first.litefs["NODES"].items()
        }
        assert not [it for it in check(first, NODES=nodes)[1] if it["subject"] == "handover"]
        found = of(check(second, NODES=nodes)[1], "handover")
    assert found["level"] == "warning"
    assert found["message"].startswith(
        f'LITEFS["NODES"]["{first.name}"]["URL"]: no connection is taken at {nodes[first.name]["URL"]} '
        "(Connection refused)"
    )


def test_its_text(cluster: StaticCluster) -> None:
    cluster.nodes[2].kill()
    node = cluster.nodes[0]
    code, printed, errors = run(node, "litefs_check")
    assert (code, errors) == (1, "")
    where = f"127.0.0.1:{cluster.nodes[2].http_port}"
    assert f"error    node3        http://{where}/info did not answer: Connection refused.\n" in printed
    assert (
        f"{'':22}Fix: Is litefs_run running there, with the same settings, and may this machine reach {where}?\n"
        in printed
    )
    assert re.search(r"^1 error, \d warnings\.$", printed, re.M)
    assert "\x1b[" not in printed
    _, quiet, _ = run(node, "litefs_check", "--verbosity=0")
    assert all(line.startswith(("error", "warning", " ")) for line in quiet.splitlines())


def test_a_node_that_is_down(cluster: StaticCluster) -> None:
    gone = cluster.nodes[2]
    gone.kill()
    _, found = check(cluster.nodes[1])
    assert errors_in(found) == [f"http://127.0.0.1:{gone.http_port}/info did not answer: Connection refused."]
    # And on that machine: what was left behind.
    _, found = check(gone)
    assert errors_in(found) == [f"{gone.mount} is the mount of a LiteFS that has ended."]
    assert str(gone.mount) in of(found, "mount")["hint"]
    assert [level(found, name) for name in ("node1", "node2")] == ["ok", "ok"]


def test_a_primary_that_is_down(cluster: StaticCluster) -> None:
    primary = cluster.nodes[0]
    primary.kill()
    primary.unmount()
    _, found = check(cluster.nodes[1])
    assert "No node is primary." in errors_in(found)
    # There it is known that it does not run, and only that.
    code, found = check(primary)
    assert code == 0
    assert level(found, "supervisor") == level(found, "cluster") == "warning"
    assert of(found, "cluster")["message"] == "No node is primary."


@pytest.mark.parametrize("index", [0, 2], ids=["primary", "replica"])
def test_a_litefs_that_is_stopped(cluster: StaticCluster, index: int) -> None:
    node = cluster.nodes[index]
    node.pause()
    _, found = check(node)
    said = of(found, "mount")
    assert said["level"] == "error"
    assert said["message"] == f"LiteFS does not answer on {node.mount} within 1 s: process {node.pid} is stopped."
    assert said["hint"] == f"Let it go on with: kill -CONT {node.pid}"
    assert level(found, "port") == "ok"
    _, found = check(cluster.nodes[1])
    assert f"http://127.0.0.1:{node.http_port}/info did not answer within 2 s." in errors_in(found)
    node.resume()
    wait_until(lambda: not errors_in(check(node)[1]), "it goes on")


def test_checks_do_not_wait_for_a_stopped_litefs(cluster: StaticCluster) -> None:
    node = cluster.nodes[1]
    node.pause()
    code, _, errors = run(node, "check", "--deploy", "--tag", "litefs")
    assert code == 0, errors
    node.resume()


def test_another_cluster(cluster: StaticCluster, tmp_path: Path, litefs_binary: Path) -> None:
    with StaticCluster(1, tmp_path / "other", litefs_binary) as other:
        (stranger,) = other.nodes
        nodes = {**cluster.nodes[0].litefs["NODES"], "node3": stranger.litefs["NODES"]["node1"]}
        _, found = check(cluster.nodes[0], NODES=nodes)
        errors = errors_in(found)
        assert errors[0].startswith("The nodes belong to different clusters: LFSC")
        assert errors[1] == "More than one node is primary: node1, node3."


def test_the_data_of_another_cluster(cluster: StaticCluster) -> None:
    """Before such a node is started."""
    node = cluster.nodes[2]
    node.stop()
    own = (node.data / "clusterid").read_text().strip()
    assert "cluster" not in [it["subject"] for it in check(node)[1] if it["level"] == "error"]
    (node.data / "clusterid").write_text("LFSC0000000000000000\n")
    code, found = check(node)
    assert code == 1
    (error,) = errors_in(found)
    assert f"'{node.data}' is of the cluster LFSC0000000000000000, and node1 of {own}." in error


def test_a_second_primary_before_it_is_started(cluster: StaticCluster) -> None:
    node = cluster.nodes[2]
    node.stop()
    _, found = check(node, PRIMARY="node3")
    assert any("'node1' is the primary of the cluster that runs" in error for error in errors_in(found))


def test_a_port_that_another_program_has(cluster: StaticCluster) -> None:
    node = cluster.nodes[2]
    node.stop()
    with socket.create_server(("127.0.0.1", node.http_port)):
        code, found = check(node)
    assert code == 1
    (error,) = (it for it in found if it["id"] == "litefs_django.E019")
    assert re.search(
        rf"port {node.http_port}: another process \({os.getpid()}, .+\) listens there\.$", error["message"]
    )


def test_a_port_that_another_litefs_has(cluster: StaticCluster) -> None:
    node, other = cluster.nodes[1], cluster.nodes[2]
    node.stop()
    nodes = {name: dict(it) for name, it in node.litefs["NODES"].items()}
    nodes["node2"]["HTTP_PORT"], nodes["node3"]["HTTP_PORT"] = other.http_port, node.http_port
    code, found = check(node, NODES=nodes)
    assert code == 1
    (error,) = (it for it in found if it["id"] == "litefs_django.E019")
    assert f"another process ({other.pid}, litefs" in error["message"]


def test_a_port_whose_process_is_another_user_s(cluster: StaticCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root sees every process: that none can be seen is made up here. Then LiteFS is asked whose it is."""
    monkeypatch.setattr(listening, "_listening_process", lambda port: None)
    node, other = cluster.nodes[:2]
    own = listening.find_listener(node.settings)
    assert own is not None
    assert own.is_ours
    assert str(own) == "the LiteFS of this node"
    elsewhere = listening.find_listener(replace(node.settings, data_path=other.data))
    assert elsewhere is not None
    assert not elsewhere.is_ours
    node.pause()
    # Its last threads stop a moment later.
    said = "another process (or a LiteFS of this node that hangs"
    wait_until(lambda: str(listening.find_listener(node.settings)).startswith(said), said)


def test_settings_that_have_changed_since(cluster: StaticCluster) -> None:
    node = cluster.nodes[1]
    nodes = {**node.litefs["NODES"], "node2": {"ADDRESS": "127.0.0.2", "HTTP_PORT": node.http_port}}
    _, found = check(node, NODES=nodes)
    assert level(found, "port") == "warning"
    assert "LiteFS runs, but does not listen on 127.0.0.2" in of(found, "port")["message"]


def test_a_litefs_that_cannot_be_started_again(start_nodes: StartNodes, tmp_path: Path) -> None:
    (node,) = start_nodes(1)
    mine = tmp_path / "litefs"
    shutil.copy(node.litefs["BINARY"], mine)
    node.litefs["BINARY"] = str(mine)
    node.start_and_wait()
    litefs = node.litefs_process()
    (tmp_path / "broken").write_text("#!/bin/sh\n[ $1 = version ] && echo 'LiteFS v0.5.14, commit=x' && exit\nexit 1\n")
    (tmp_path / "broken").chmod(0o755)
    (tmp_path / "broken").replace(mine)
    litefs.kill()
    node.wait_for(lambda: not node.is_up(), "the node file says that LiteFS is down")
    _, found = check(node)
    assert level(found, "supervisor") == "error"
    assert "litefs_run is alive, but LiteFS is down" in of(found, "supervisor")["message"]


def test_a_supervisor_that_was_killed(start_nodes: StartNodes) -> None:
    (node,) = start_nodes(1)
    node.start_and_wait()
    litefs = node.litefs_process()
    node.kill()
    litefs.wait(20)
    wait_until(lambda: node.node_file.generation() is None, "the node file is old")
    _, found = check(node)
    assert level(found, "supervisor") == "warning"
    assert "No litefs_run looks after this node" in of(found, "supervisor")["message"]
    assert level(found, "mount") == "error"


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_disk_space(tmp_path: Path, litefs_binary: Path) -> None:
    cluster = StaticCluster(1, tmp_path / "nodes", litefs_binary)
    (node,) = cluster.nodes
    with small_disk(node.data, 150 << 20), cluster:
        write(node, "PRAGMA journal_mode = WAL")
        write(node, "CREATE TABLE t (value)")
        assert level(check(node, BINARY=str(litefs_binary))[1], "disk") == "ok"
        write_rows(node, 40)
        finding = of(check(node)[1], "disk")
        assert finding["level"] == "warning"
        assert re.search(r"whose databases take 4\d\.\d MB: that is little", finding["message"])
        with (node.data / "filler").open("wb") as filler:
            free = shutil.disk_usage(node.data).free
            filler.write(b"x" * (free - (2 << 20)))
        finding = of(check(node)[1], "disk")
        assert finding["level"] == "error"
        assert "commits are about to fail" in finding["message"]


def write_rows(node: LiteFSNode, megabytes: int) -> None:
    write(
        node,
        "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < "
        f"{megabytes * 125}) SELECT randomblob(8000) FROM n",
    )


def test_wrong_settings_alone_are_reported(cluster: StaticCluster) -> None:
    code, found = check(cluster.nodes[0], MAX_LAG="10s")
    assert code == 1
    (finding,) = found
    assert finding["id"] == "litefs_django.E003"
    assert finding["hint"] == "Write 10 (seconds) or timedelta(seconds=10)."


def test_without_litefs(cluster: StaticCluster) -> None:
    code, found = check(cluster.nodes[0], ENABLED=False)
    assert code == 0
    assert [finding["level"] for finding in found] == ["warning"]
