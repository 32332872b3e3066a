"""What LiteFS asks, and is answered."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litefs_django._litefs.node.lease.candidates import is_behind, should_wait
from litefs_django._litefs.node.lease.requests import (
    AcquireLease,
    CreateSession,
    EndSession,
    ReadClusterId,
    ReadLease,
    RenewSession,
    Request,
    WriteClusterId,
    created,
    entry,
    parse,
    session_entry,
)
from litefs_django._litefs.node.lease.transport import Hello, Positions

KEY = "litefs/mysite"


@pytest.mark.parametrize(
    ("method", "path", "query", "body", "request_"),
    [
        ("GET", f"/v1/kv/{KEY}", {}, b"", ReadLease()),
        ("GET", f"/v1/kv/{KEY}/clusterid", {}, b"", ReadClusterId()),
        ("PUT", f"/v1/kv/{KEY}/clusterid", {}, b"LFSC1", WriteClusterId("LFSC1")),
        ("PUT", "/v1/session/create", {}, b'{"TTL":"3s"}', CreateSession()),
        ("PUT", f"/v1/kv/{KEY}", {"acquire": "s1"}, b'{"hostname":"a"}', AcquireLease("s1", '{"hostname":"a"}')),
        ("PUT", "/v1/session/renew/s1", {}, b"", RenewSession("s1")),
        ("PUT", f"/v1/kv/{KEY}", {"release": "s1"}, b"", EndSession("s1")),
        ("PUT", "/v1/session/destroy/s1", {}, b"", EndSession("s1")),
    ],
)
def test_what_litefs_asks(method: str, path: str, query: dict[str, str], body: bytes, request_: Request) -> None:
    assert parse(method, path, query, body, KEY) == request_
    assert parse("DELETE", path, query, body, KEY) is None
    assert parse(method, path.replace("/v1/", "/v2/"), query, body, KEY) is None


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", f"/v1/kv/{KEY}", b"{}"),
        ("PUT", f"/v1/kv/{KEY}/clusterid", b""),
        ("PUT", f"/v1/kv/{KEY}/clusterid", b"\xff"),
        ("GET", "/v1/kv/litefs", b""),
        ("GET", "/v1/session/create", b""),
    ],
)
def test_what_it_does_not_ask(method: str, path: str, body: bytes) -> None:
    assert parse(method, path, {}, body, KEY) is None


def test_answers() -> None:
    assert json.loads(entry("k", "value", "s1")) == [{"Key": "k", "Value": "dmFsdWU=", "Flags": 0, "Session": "s1"}]
    assert json.loads(session_entry("s1", 3.0)) == [{"ID": "s1", "Name": "litefs", "TTL": "3s", "Behavior": "delete"}]
    assert json.loads(created("s1")) == {"ID": "s1"}


def hello(positions: Positions | None, grants: int = 1) -> Hello:
    return Hello(members={}, ttl=3.0, cluster_id="", term=0, is_known=True, positions=positions, grants=grants)


@pytest.mark.parametrize(
    ("mine", "peers", "waits"),
    [
        ({}, [], False),
        ({"a": 5}, [hello({"a": 5})], False),
        ({"a": 5}, [hello({"a": 6})], True),
        ({"a": 5}, [hello({"a": 4}), hello({"a": 6})], True),
        ({"a": 5, "b": 5}, [hello({"a": 6, "b": 4})], False),
        ({"a": 5, "b": 5}, [hello({"a": 6, "b": 4}), hello({"a": 6, "b": 6})], True),
        ({}, [hello({"a": 1})], True),
        ({"a": 5}, [hello({})], False),
        ({"a": 5}, [hello(None)], False),
        ({"a": 5}, [hello({"a": 4}, grants=0)], True),
    ],
)
def test_who_waits_for_whom(mine: Positions, peers: list[Hello], waits: bool) -> None:
    assert should_wait(mine, peers, 1) is waits


positions = st.dictionaries(st.sampled_from("ab"), st.integers(0, 3))


@given(st.lists(positions, min_size=1, max_size=5))
def test_somebody_does_not_wait(nodes: list[Positions]) -> None:
    def waits(index: int) -> bool:
        others = [hello(node) for other, node in enumerate(nodes) if other != index]
        return should_wait(nodes[index], others, 1)

    going = [index for index in range(len(nodes)) if not waits(index)]
    assert going
    if any(not any(is_behind(node, other) for other in nodes) for node in nodes):
        assert all(not is_behind(nodes[index], other) for index in going for other in nodes)
