"""What LiteFS asks of Consul, and what it understands as an answer: pure.

Source: LiteFS v0.5.14, consul/consul.go, and the client that it uses, hashicorp/consul/api v1.11.0, session.go, kv.go.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ReadLease:
    """GET /v1/kv/KEY: who is primary? 404 is nobody."""


@dataclass(frozen=True, slots=True)
class ReadClusterId:
    """GET /v1/kv/KEY/clusterid. 404 is none."""


@dataclass(frozen=True, slots=True)
class WriteClusterId:
    """PUT /v1/kv/KEY/clusterid. Anything but 200 is a failure; it does not look at the answer."""

    cluster_id: str


@dataclass(frozen=True, slots=True)
class CreateSession:
    """PUT /v1/session/create."""


@dataclass(frozen=True, slots=True)
class AcquireLease:
    """PUT /v1/kv/KEY?acquire=SESSION: "true" when it is primary now."""

    session: str
    value: str


@dataclass(frozen=True, slots=True)
class RenewSession:
    """PUT /v1/session/renew/SESSION: 404 means that the lease is lost; at anything else but 200 it tries again."""

    session: str


@dataclass(frozen=True, slots=True)
class EndSession:
    """PUT /v1/kv/KEY?release=SESSION, and then PUT /v1/session/destroy/SESSION: it is not primary, or not any more."""

    session: str


Request = ReadLease | ReadClusterId | WriteClusterId | CreateSession | AcquireLease | RenewSession | EndSession


def parse(method: str, path: str, query: Mapping[str, str], body: bytes, key: str) -> Request | None:
    """What is asked for; None for what LiteFS does not ask. `key` is the lease's."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    match method, path.removeprefix("/v1/"), dict(query):
        case "GET", name, _ if name == f"kv/{key}":
            return ReadLease()
        case "GET", name, _ if name == f"kv/{key}/clusterid":
            return ReadClusterId()
        case "PUT", name, _ if name == f"kv/{key}/clusterid":
            return WriteClusterId(text) if text else None
        case "PUT", name, {"acquire": session} if name == f"kv/{key}":
            return AcquireLease(session, text)
        case "PUT", name, {"release": session} if name == f"kv/{key}":
            return EndSession(session)
        case "PUT", "session/create", _:
            return CreateSession()
        case "PUT", name, _ if name.startswith("session/renew/"):
            return RenewSession(name.removeprefix("session/renew/"))
        case "PUT", name, _ if name.startswith("session/destroy/"):
            return EndSession(name.removeprefix("session/destroy/"))
    return None


def entry(key: str, value: str, session: str = "") -> str:
    """A key as Consul shows it, in a list."""
    return _list(Key=key, Value=b64encode(value.encode()).decode(), Flags=0, Session=session)


def session_entry(session: str, ttl: float) -> str:
    """A session as Consul shows it, in a list."""
    return _list(ID=session, Name="litefs", TTL=f"{ttl:g}s", Behavior="delete")


def created(session: str) -> str:
    """A new session."""
    return json.dumps({"ID": session})


def _list(**fields: Any) -> str:
    return json.dumps([fields])
