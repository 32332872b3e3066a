"""What the judge of a history finds."""

from __future__ import annotations

from typing import Any

from tests.cluster.raft.history import REPLICATION, judge
from tests.cluster.raft.writers import Outcome, Write

FAILURE = (10.0, 20.0)


def write(name: str, by: str, began: float, **fields: Any) -> Write:
    values = {"ended": began + 0.5, "outcome": Outcome.ACKNOWLEDGED, **fields}
    return Write(name=name, asked="node3", began=began, by=by, **values)


OLD, NEW = write("old", "node1", 9.0), write("new", "node2", 12.0)


def wrong(*writes: Write, rows: str = "old new") -> list[str]:
    return [said.partition(":")[0] for said in judge([OLD, *writes, NEW], rows.split(), [FAILURE]).wrong]


def test_nothing_is_wrong() -> None:
    verdict = judge([OLD, NEW], ["old", "new"], [FAILURE])
    assert (verdict.wrong, verdict.lost) == ([], [])


def test_what_the_old_primary_had_to_itself_may_be_lost() -> None:
    shortly_before = write("lost", "node1", FAILURE[0] - REPLICATION)
    meanwhile = write("lost too", "node1", 11.0)
    verdict = judge([OLD, shortly_before, meanwhile, NEW], ["old", "new"], [FAILURE])
    assert (verdict.wrong, verdict.lost) == ([], [shortly_before, meanwhile])


def test_an_old_primary_acknowledges_beside_the_new_one() -> None:
    assert wrong(write("late", "node1", NEW.ended + 0.1)) == ["acknowledged by an old primary"]
    assert wrong(write("late", "node1", NEW.ended - 0.1)) == []


def test_the_new_primary_loses_what_it_has_acknowledged() -> None:
    assert wrong(write("lost", "node2", FAILURE[1] + 0.1)) == ["lost without a failure"]


def test_a_loss_long_before_the_failure() -> None:
    assert wrong(write("lost", "node1", FAILURE[0] - REPLICATION - 0.6)) == ["lost without a failure"]


def test_a_write_that_is_there_twice() -> None:
    assert wrong(rows="old old new") == ["there 2 times"]


def test_a_write_that_was_refused_and_done() -> None:
    refused = write("refused", "", 11.0, outcome=Outcome.REFUSED)
    unknown = write("unknown", "", 11.0, outcome=Outcome.UNKNOWN)
    assert wrong(refused, unknown, rows="old refused unknown new") == ["refused, and there"]


def test_a_write_that_overtakes_an_earlier_one() -> None:
    assert wrong(rows="new old") == ["committed after a later one"]
