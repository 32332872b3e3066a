from __future__ import annotations

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import override_settings

from tests.cluster.connections import python
from tests.cluster.nodes import DATABASE, Cluster, LiteFSNode, StaticCluster
from tests.machine import wait_until

pytestmark = pytest.mark.cluster


def status(node: LiteFSNode, *arguments: str, **litefs: Any) -> tuple[int, str]:
    """Exit code and output of litefs_status on that node."""
    stdout = StringIO()
    with override_settings(LITEFS={**node.litefs, **litefs}):
        try:
            call_command("litefs_status", *arguments, stdout=stdout)
        except SystemExit as end:
            return int(str(end.code)), stdout.getvalue()
    return 0, stdout.getvalue()


def answer(node: LiteFSNode, **litefs: Any) -> dict[str, Any]:
    code, printed = status(node, "--format", "json", **litefs)
    found: dict[str, Any] = json.loads(printed)
    assert code == (0 if found["healthy"] else 1)
    assert found["healthy"] is not bool(found["reasons"])
    return found


def reasons(node: LiteFSNode, **litefs: Any) -> list[str]:
    return list(answer(node, **litefs)["reasons"])


@contextmanager
def open_database(node: LiteFSNode, name: str = DATABASE) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(node.database(name), isolation_level=None, timeout=10)) as connection:
        yield connection


@pytest.fixture
def cluster(static_cluster: StaticCluster) -> StaticCluster:
    """With a database that all nodes hold."""
    with open_database(static_cluster.primary) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (value)")
    static_cluster.wait_equal()
    return static_cluster


def test_a_healthy_cluster(cluster: StaticCluster) -> None:
    for node in cluster.nodes:
        found = answer(node)
        assert found["reasons"] == []
        assert [it["name"] for it in found["nodes"]] == ["node1", "node2", "node3"]
        assert [it["name"] for it in found["nodes"] if it["here"]] == [node.name]
        assert [it["role"] for it in found["nodes"]] == ["primary", "replica", "replica"]
        assert [it["candidate"] for it in found["nodes"]] == [True, False, False]
        assert {it["primary"] for it in found["nodes"]} == {"node1"}
        assert {it["positions"][DATABASE] for it in found["nodes"]} == {str(node.position())}
        assert found["nodes"][0]["lag"] == 0
        # A replica hears from its primary each second.
        assert all(0 < it["lag"] < 5 for it in found["nodes"][1:])
        assert re.fullmatch("LFSC[0-9A-F]{16}", found["nodes"][0]["cluster_id"])
        assert len({it["cluster_id"] for it in found["nodes"]}) == 1


def test_as_a_table(cluster: StaticCluster) -> None:
    code, printed = status(cluster.nodes[1])
    position = re.escape(str(cluster.nodes[0].position()))
    assert code == 0
    assert re.fullmatch(
        r"NODE +ROLE +CANDIDATE +LAG +DATABASE +POSITION\n"
        rf"node1 +primary +yes +db\.sqlite3 +{position}\n"
        rf"node2 \(here\) +replica +no +\d\.\d\d\d s +db\.sqlite3 +{position}\n"
        rf"node3 +replica +no +\d\.\d\d\d s +db\.sqlite3 +{position}\n"
        r"\nLAG is since a replica last heard from its primary: up to 1 s when nothing is written\.\n"
        r"\nHealthy\.\n",
        printed,
    )


def test_each_database_has_its_row(cluster: StaticCluster) -> None:
    with open_database(cluster.primary, "other.sqlite3") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (value)")
    cluster.wait_equal(DATABASE, "other.sqlite3")
    _, printed = status(cluster.nodes[0])
    assert len(re.findall(rf"^ +other\.sqlite3 +{cluster.nodes[0].position('other.sqlite3')}$", printed, re.M)) == 3


def test_before_the_first_migration(static_cluster: StaticCluster) -> None:
    with override_settings(DATABASE_ROUTERS=[]):
        found = answer(static_cluster.nodes[0])
    assert all(not node["positions"] for node in found["nodes"])


def test_a_busy_cluster_is_healthy(cluster: StaticCluster) -> None:
    """Each node is asked at another moment: what was written between is no divergence."""
    done = threading.Event()

    def write() -> None:
        with open_database(cluster.primary) as connection:
            while not done.is_set():
                connection.execute("INSERT INTO t VALUES (1)")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = [answer(cluster.nodes[1]) for _ in range(20)]
    finally:
        done.set()
        writer.join()
    assert [it["reasons"] for it in found] == [[]] * 20
    assert len({it["nodes"][0]["positions"][DATABASE] for it in found}) > 1


def test_a_replica_that_is_gone(cluster: StaticCluster) -> None:
    gone = cluster.nodes[2]
    gone.kill()
    said = f"http://127.0.0.1:{gone.http_port}/info did not answer: Connection refused."
    assert reasons(cluster.nodes[0]) == [f"node3: {said}"]
    _, printed = status(cluster.nodes[0])
    assert re.search(r"^node3 +no answer$", printed, re.M)


def test_a_replica_that_hangs(cluster: StaticCluster) -> None:
    hanging = cluster.nodes[2]
    hanging.pause()
    said = f"http://127.0.0.1:{hanging.http_port}/info did not answer within 2 s."
    assert reasons(cluster.nodes[0]) == [f"node3: {said}"]


def test_a_primary_that_is_gone(cluster: StaticCluster) -> None:
    cluster.nodes[0].kill()
    first, second = reasons(cluster.nodes[1])
    assert first.startswith("node1: ")
    assert second == "No node is primary."


def test_a_primary_that_hangs(cluster: StaticCluster) -> None:
    """LiteFS's replicas wait for it for ever, without a word."""
    cluster.nodes[0].pause()

    def lag() -> float:
        return float(min(node["lag"] for node in answer(cluster.nodes[1])["nodes"][1:]))

    wait_until(lambda: lag() > 3, "the lag of both replicas grows")


def test_a_replica_that_was_never_synchronised(tmp_path: Path, litefs_binary: Path) -> None:
    cluster = StaticCluster(2, tmp_path, litefs_binary)
    primary, replica = cluster.nodes
    try:
        replica.start()
        wait_until(lambda: not reasons(replica)[0].startswith("node2"), "the replica answers")
        assert [node["lag"] for node in answer(replica)["nodes"]] == [None, None]
        _, printed = status(replica)
        assert re.search(r"^node2 \(here\) +replica +no +never in sync$", printed, re.M)
        primary.start()
        wait_until(lambda: not any("node2" in it for it in reasons(replica)), "the replica has caught up")
    finally:
        cluster.clean_up()


def test_a_replica_that_a_reader_keeps_behind(cluster: StaticCluster) -> None:
    """LiteFS applies nothing while somebody reads. That is lag, and healthy while it is allowed."""
    with open_database(cluster.nodes[1]) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM t").fetchall()
        with open_database(cluster.primary) as writer:
            writer.execute("INSERT INTO t VALUES (1)")

        wait_until(lambda: answer(cluster.nodes[0])["nodes"][1]["lag"] > 2, "the replica lags")
        found = answer(cluster.nodes[0])
        assert found["reasons"] == []
        behind, here = (found["nodes"][index]["positions"][DATABASE] for index in (1, 0))
        assert behind < here
        (reason,) = reasons(cluster.nodes[0], MAX_LAG=2)
        assert re.fullmatch(r"node2 lags \d+\.\d s behind; allowed are 2 s\.", reason)
    wait_until(lambda: not reasons(cluster.nodes[0], MAX_LAG=2), "the replica has caught up")


def test_two_clusters_by_mistake(tmp_path: Path, litefs_binary: Path) -> None:
    with StaticCluster(1, tmp_path / "a", litefs_binary) as one, StaticCluster(1, tmp_path / "b", litefs_binary) as two:
        (first,), (second,) = one.nodes, two.nodes
        nodes = {
            "node1": {"ADDRESS": "127.0.0.1", "HTTP_PORT": first.http_port},
            "node2": {"ADDRESS": "127.0.0.1", "HTTP_PORT": second.http_port},
        }
        found = reasons(first, NODES=nodes)
    assert found[0].startswith("The nodes belong to different clusters: LFSC")
    assert found[1] == "More than one node is primary: node1, node2."


def test_a_foreign_node_is_not_connected(cluster: StaticCluster, tmp_path: Path, litefs_binary: Path) -> None:
    """A node whose settings name another primary."""
    lonely = StaticCluster(2, tmp_path / "lonely", litefs_binary).nodes[1]
    try:
        lonely.start()
        nodes = {**cluster.nodes[0].litefs["NODES"], "lonely": {"ADDRESS": "127.0.0.1", "HTTP_PORT": lonely.http_port}}
        expected = {"lonely has never been synchronised.", f"{DATABASE} has not arrived on lonely."}
        wait_until(lambda: expected <= set(reasons(cluster.nodes[0], NODES=nodes)), "it is missing")
    finally:
        lonely.clean_up()


class Watching:
    """litefs_status --watch on a terminal of its own."""

    def __init__(self, node: LiteFSNode, *arguments: str) -> None:
        self._terminal, end = pty.openpty()
        options = python(node, "")
        options["args"][1:] = ["-m", "django", "litefs_status", "--watch", *arguments]
        options["env"]["TERM"] = "xterm"
        self.process = subprocess.Popen(
            **{**options, "stdin": end}, stdout=end, stderr=subprocess.PIPE, start_new_session=True
        )
        os.close(end)
        self.printed = ""

    def __enter__(self) -> Watching:
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._reader.join()
        os.close(self._terminal)

    def _read(self) -> None:
        # A terminal whose programs have all ended gives EIO.
        try:
            while data := os.read(self._terminal, 65536):
                self.printed += data.decode()
        except OSError:
            pass

    def interrupt(self) -> int:
        """The exit code after Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=20)
        assert errors == ""
        return self.process.returncode


CLEAR = "\x1b[H\x1b[J"


def test_watching(cluster: Cluster) -> None:
    with Watching(cluster.nodes[0]) as watching:
        wait_until(lambda: watching.printed.count(CLEAR) >= 2, "it draws twice", context=lambda: watching.printed)
        screen = watching.printed.split(CLEAR)[1]
        assert screen.count("node1 (here)") == 1
        assert "\x1b[32;1mHealthy.\x1b[0m" in screen
        cluster.nodes[2].kill()
        wait_until(lambda: "\x1b[31;1mNot healthy:\x1b[0m" in watching.printed, "it notices")
        cluster.nodes[2].start()
        wait_until(lambda: "Healthy." in watching.printed.split("Not healthy:")[-1], "it notices again")
        assert watching.interrupt() == 0
        assert "Traceback" not in watching.printed


def test_watching_without_colour_ends_as_the_last_look_was(cluster: Cluster) -> None:
    cluster.nodes[2].kill()
    with Watching(cluster.nodes[0], "--no-color") as watching:
        wait_until(lambda: "Not healthy:" in watching.printed, "it draws")
        assert watching.interrupt() == 1
        assert "\x1b[" not in watching.printed.replace(CLEAR, "")


def test_a_program_reads_a_line_each_second(cluster: Cluster) -> None:
    with Watching(cluster.nodes[0], "--format", "json") as watching:
        wait_until(lambda: watching.printed.count("\n") >= 2, "it prints two lines")
        assert watching.interrupt() == 0
        assert all(json.loads(line)["healthy"] for line in watching.printed.splitlines() if line.startswith("{"))
