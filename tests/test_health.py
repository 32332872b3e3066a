from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from litefs_django._litefs.client import Info
from litefs_django._litefs.health import HealthChecker
from litefs_django._litefs.mount import Position
from litefs_django._litefs.reading import read_settings
from litefs_django._litefs.survey import NodeReport
from tests.configuring import TWO_NODES
from tests.machine import SECRET

CHECKSUM = "8f2a60e1c0d3b4a5"
AT_10 = Position(10, CHECKSUM)
PRIMARY_INFO = Info(is_primary=True, candidate=True, primary="a", cluster_id="LFSC1", path="/data")
REPLICA_INFO = replace(PRIMARY_INFO, is_primary=False)
PRIMARY = NodeReport(name="a", info=PRIMARY_INFO, lag=0.0, positions={"db": AT_10})
REPLICA = NodeReport(name="b", info=REPLICA_INFO, lag=0.5, positions={"db": AT_10})
SILENT = NodeReport(name="c", error="http://c:1/info did not answer: Connection refused.")


def reasons(*reports: NodeReport, max_lag: float = 10.0, databases: tuple[str, ...] = ("db",)) -> tuple[str, ...]:
    settings = read_settings({"MAX_LAG": max_lag}, {name: name for name in databases})
    verdict = HealthChecker(settings).check(reports)
    assert verdict.is_healthy is not bool(verdict.reasons)
    # What does not say what to do has a hint.
    assert all(problem.hint or "run `manage.py migrate`" in problem.reason for problem in verdict.problems)
    return verdict.reasons


@pytest.mark.parametrize(
    "replica",
    [
        REPLICA,
        replace(REPLICA, lag=10.0),
        # Its clock is behind that of the primary.
        replace(REPLICA, lag=-3.0),
        # Not yet where the primary is, and lagging no more than allowed.
        replace(REPLICA, positions={"db": Position(9, "0" * 16)}),
    ],
)
def test_a_healthy_cluster(replica: NodeReport) -> None:
    assert not reasons(PRIMARY, replica, replace(replica, name="c"))


def test_one_node_can_be_healthy() -> None:
    assert not reasons(PRIMARY)


def without_info(report: NodeReport, **changes: Any) -> NodeReport:
    assert report.info is not None
    return replace(report, info=replace(report.info, **changes))


@pytest.mark.parametrize(
    ("replica", "expected"),
    [
        (without_info(REPLICA, primary=None), "b is not connected to a primary."),
        (without_info(REPLICA, primary="c"), "b follows c, but a is primary."),
        (without_info(REPLICA, cluster_id="LFSC2"), "The nodes belong to different clusters: LFSC1, LFSC2."),
        (replace(REPLICA, lag=None), "b has never been synchronised."),
        (replace(REPLICA, lag=10.1), "b lags 10.1 s behind; allowed are 10 s."),
        (replace(REPLICA, positions={}), "db has not arrived on b."),
        (
            replace(REPLICA, positions={"db": AT_10, "other": AT_10}),
            "other exists on b, but not on a, which is primary.",
        ),
        (
            replace(REPLICA, positions={"db": Position(11, CHECKSUM)}),
            f"db on b is not a copy of that on a: it is at {11:016x}/{CHECKSUM}, the primary's at {AT_10}.",
        ),
        (
            replace(REPLICA, positions={"db": Position(10, "0" * 16)}),
            f"db on b is not a copy of that on a: it is at {10:016x}/{'0' * 16}, the primary's at {AT_10}.",
        ),
        (SILENT, "c: http://c:1/info did not answer: Connection refused."),
    ],
)
def test_what_is_wrong_with_a_replica(replica: NodeReport, expected: str) -> None:
    assert reasons(PRIMARY, replica) == (expected,)


def test_no_primary() -> None:
    assert reasons(REPLICA, replace(REPLICA, name="c")) == ("No node is primary.",)


@pytest.mark.parametrize(
    ("litefs", "hint"),
    [
        ({"PRIMARY": "a"}, 'LITEFS["PRIMARY"]'),
        ({"LEADER_ELECTION": "raft", "SECRET": SECRET}, "RAFT_PORT"),
        ({"LEADER_ELECTION": "consul", "CONSUL": {"URL": "http://10.0.0.9:8500", "KEY": "k"}}, "Consul"),
    ],
)
def test_what_to_do_without_a_primary(litefs: dict[str, Any], hint: str) -> None:
    settings = read_settings({"NODE": "a", "NODES": TWO_NODES["NODES"], **litefs}, {})
    (problem,) = HealthChecker(settings).check([REPLICA]).problems
    assert hint in problem.hint


def test_two_primaries() -> None:
    assert reasons(PRIMARY, replace(PRIMARY, name="b")) == ("More than one node is primary: a, b.",)


def test_a_database_that_nobody_has_made() -> None:
    expected = ("new does not exist yet: run `manage.py migrate` on a.",)
    assert reasons(PRIMARY, REPLICA, databases=("db", "new")) == expected


def test_a_cluster_that_nobody_has_joined_yet_has_no_id() -> None:
    primary, replica = (without_info(report, cluster_id=None) for report in (PRIMARY, REPLICA))
    assert not reasons(primary, replica)


def test_every_reason_is_given() -> None:
    replica = without_info(replace(REPLICA, lag=99.0, positions={}), primary=None)
    assert len(reasons(PRIMARY, replica, SILENT)) == 4
