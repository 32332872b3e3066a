"""What a member does with what another says."""

from __future__ import annotations

from typing import Any

import pytest

from litefs_django._litefs.node.lease.transport import Hello, _is_forgotten, _is_news, disagreement

MEMBERS = {"web1": "10.0.0.1:1", "web2": "10.0.0.2:1", "web3": "10.0.0.3:1"}
OURS = Hello(members=MEMBERS, ttl=3.0, cluster_id="LFSC1", term=0, is_known=True)
LOG = [(b"", index, 1) for index in range(5, 9)]


@pytest.mark.parametrize(
    ("theirs", "complaint"),
    [
        ({}, ""),
        ({"cluster_id": ""}, ""),
        ({"term": 9, "is_known": False}, ""),
        ({"members": MEMBERS | {"web4": "10.0.0.4:1"}}, ""),
        ({"members": {"web1": "10.0.0.1:1", "web2": "10.0.0.2:1"}}, ""),
        ({"members": MEMBERS | {"web3": "10.0.0.9:1"}}, ""),
        ({"members": {"web1": "10.0.0.1:1"}}, "differ by more than one node: web2, web3. Change one at a time"),
        ({"ttl": 2.5}, 'LITEFS["LEASE_TTL"] is 2.5 s there, 3 s here'),
        ({"cluster_id": "LFSC2"}, "another cluster: LFSC2 there, LFSC1 here"),
        ({"version": 2}, "speaks version 2, this node version 1"),
    ],
)
def test_members_talk_when_they_agree(theirs: dict[str, Any], complaint: str) -> None:
    said = {"members": MEMBERS, "ttl": 3.0, "cluster_id": "LFSC1", "version": 1, **theirs}
    assert complaint in disagreement(OURS, said)
    assert bool(complaint) == bool(disagreement(OURS, said))


def append(*entries: tuple[int, int], before: tuple[int, int] = (4, 1)) -> dict[str, Any]:
    return {
        "prevLogIdx": before[0],
        "prevLogTerm": before[1],
        "commit_index": 8,
        "entries": [(b"", index, term) for index, term in entries],
    }


def test_entries_that_are_here_are_no_news() -> None:
    assert not _is_news(append((6, 1), (7, 1), before=(5, 1)), LOG)


def test_what_ends_where_the_log_ends_is_left_as_a_heartbeat() -> None:
    message = append((7, 1), (8, 1), before=(6, 1))
    assert _is_news(message, LOG)
    assert message == append(before=(8, 1))


@pytest.mark.parametrize(
    ("before", "is_forgotten"),
    [
        ((7, 1), False),
        pytest.param((7, 2), True, id="another one in place of what was applied"),
        pytest.param((8, 2), False, id="another one in place of what was not"),
        pytest.param((4, 2), False, id="before all that is here"),
        pytest.param((9, 2), False, id="after all that is here"),
        pytest.param((None, None), False, id="the leader has nothing so far on"),
    ],
)
def test_a_leader_that_has_forgotten_is_known_by_it(before: tuple[int, int], is_forgotten: bool) -> None:
    assert _is_forgotten(append(before=before), LOG, applied=7) == is_forgotten


def test_what_is_new_of_a_message_is_left() -> None:
    message = append((7, 1), (8, 1), (9, 1), before=(6, 1))
    assert _is_news(message, LOG)
    assert message == append((9, 1), before=(8, 1))


def test_what_contradicts_the_log_is_left() -> None:
    message = append((7, 1), (8, 2), before=(6, 1))
    assert _is_news(message, LOG)
    assert message == append((8, 2), before=(7, 1))


@pytest.mark.parametrize("message", [append(), append((4, 1), before=(3, 1)), append((9, 2), before=(8, 1))])
def test_other_messages_stay_as_they_are(message: dict[str, Any]) -> None:
    before = dict(message)
    assert _is_news(message, LOG)
    assert message == before


def test_a_chunk_of_a_snapshot_commits_nothing() -> None:
    message = {"serialized": (b"", True, False), "commit_index": 8}
    assert _is_news(message, LOG)
    assert message["commit_index"] == 0
