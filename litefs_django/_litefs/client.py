"""LiteFS's HTTP API (LiteFS v0.5.14, http/server.go, store.go). It knows no authentication."""

from __future__ import annotations

import json
import re
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from typing import Any, TypeVar
from urllib.parse import urlsplit

from litefs_django._litefs.errors import ClientError
from litefs_django._litefs.identity import QUESTION, Identity, peer_name
from litefs_django._litefs.mount import Position

T = TypeVar("T")

# About 600 bytes of each database stand in /debug/vars, 3 kB of metrics in /metrics.
MAX_BODY = 16 << 20

# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED (openssl, x509_vfy.h).
_OF_TIME = {9, 10}

_METRIC = re.compile(rb"^(litefs_is_primary|litefs_lag_seconds) (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Info:
    """What GET /info says of a node.

    `primary` is the name of the node that this one is, or is about to be, connected to: None when there is none;
    `cluster_id` is None until the first primary has chosen one; `path` is LiteFS's data directory. `node_id` is
    another at each start of its LiteFS.
    """

    is_primary: bool
    candidate: bool
    primary: str | None
    cluster_id: str | None
    path: str
    node_id: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """The node `name`, behind its relay, as the node of `identity` asks it."""

    name: str
    identity: Identity


class LiteFSClient:
    """One node's API. Thread-safe: each call has a connection of its own, and knows no proxy.

    With a `peer` the URL is https and its relay's, which answers questions alone. Each call raises ClientError when
    LiteFS does not answer as it should within `timeout` seconds.
    """

    def __init__(self, base_url: str, timeout: float = 2.0, peer: Peer | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self.timeout = timeout
        self._peer = peer

    def info(self) -> Info:
        headers, body = self._request("GET", "/info")
        try:
            answer = json.loads(body)
            return Info(
                is_primary=_typed(answer["isPrimary"], bool),
                candidate=_typed(answer["candidate"], bool),
                primary=_typed(answer["primary"]["hostname"], str) or None,
                cluster_id=_typed(answer.get("clusterID", ""), str) or None,
                path=_typed(answer["path"], str),
                node_id=headers.get("Litefs-Id", ""),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self._foreign("/info") from error

    def hand_off(self, node_id: str) -> None:
        """Asks this primary to give its lease to the node, which has to be connected. It demotes itself then.

        A commit that is in flight at that moment is lost, though acknowledged, and ends this LiteFS: hold the
        commit gates. It returns when LiteFS has taken the request, milliseconds before it acts on it; within 5 s
        LiteFS may still fail to, and stays the primary (store.go, processHandoff). A ClientError with a status means
        that it does nothing.
        """
        self._request("POST", f"/handoff?nodeID={node_id}")

    def positions(self) -> dict[str, Position]:
        """How far each database has come on this node, by file name. One without any transaction is left out."""
        answer = self._json("/debug/vars")
        try:
            positions = {
                _typed(name, str): Position.parse(f"{database['txid']}/{database['checksum']}")
                for name, database in answer["store"]["dbs"].items()
            }
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self._foreign("/debug/vars") from error
        return {name: position for name, position in positions.items() if position.txid}

    def lag(self) -> float | None:
        """Seconds since this node was last up to date; 0.0 on the primary, None when it never was.

        It compares the clocks of two machines, in whole milliseconds. LiteFS also reports 0 for a replica that was
        never synchronised (store.go, Lag); one that is 0 ms behind does not stay so.
        """
        for pause in (0, 0.001, 0.002, 0.004, 0.008):
            time.sleep(pause)
            metrics = dict(_METRIC.findall(self._request("GET", "/metrics")[1]))
            try:
                is_primary, lag = (float(metrics[name]) for name in (b"litefs_is_primary", b"litefs_lag_seconds"))
            except (KeyError, ValueError) as error:
                raise self._foreign("/metrics") from error
            if is_primary or lag:
                return 0.0 if is_primary else lag
        return None

    def clock_offset(self) -> tuple[float, float]:
        """The least and the most that the node's clock is ahead of this machine's, in seconds.

        LiteFS tells whole seconds (the header Date of RFC 9110), so they are a second and the request's time apart.
        """
        before = time.time()
        headers, _ = self._request("GET", "/info")
        after = time.time()
        try:
            said = parsedate_to_datetime(headers["Date"]).timestamp()
        except (TypeError, ValueError) as error:
            raise self._foreign("/info") from error
        return said - after, said + 1 - before

    def _json(self, path: str) -> Any:
        try:
            return json.loads(self._request("GET", path)[1])
        except ValueError as error:
            raise self._foreign(path) from error

    def _request(self, method: str, path: str) -> tuple[HTTPMessage, bytes]:
        url = self.base_url + path
        deadline = time.monotonic() + self.timeout
        connection = self._connection()
        try:
            self._connect(connection)
            # The relays keep both ends until LiteFS ends its own.
            connection.request(method, path, headers={"Connection": "close"})
            response = connection.getresponse()
            body = self._body(response, url, deadline)
        except ssl.SSLCertVerificationError as error:
            is_of_time = error.verify_code in _OF_TIME
            what = "of another time: compare the clocks" if is_of_time else "that is not of this SECRET"
            raise ClientError(f"{url} shows a certificate {what}.") from error
        except TimeoutError as error:
            raise ClientError(f"{url} did not answer within {self.timeout:g} s.") from error
        except (OSError, HTTPException) as error:
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ClientError(f"{url} did not answer: {said}.") from error
        finally:
            connection.close()
        if response.status != 200:
            said = body[:200].decode(errors="replace").strip()
            raise ClientError(f"{url} answered {response.status} {response.reason}. {said}".rstrip(), response.status)
        return response.headers, body

    def _connection(self) -> HTTPConnection:
        parts = urlsplit(self.base_url)
        if self._peer is None:
            return HTTPConnection(parts.hostname or "", parts.port, timeout=self.timeout)
        context = self._peer.identity.connecting(QUESTION)
        return HTTPSConnection(parts.hostname or "", parts.port, timeout=self.timeout, context=context)

    def _connect(self, connection: HTTPConnection) -> None:
        connection.connect()
        if self._peer is not None:
            assert isinstance(connection.sock, ssl.SSLSocket)
            if (found := peer_name(connection.sock)) != self._peer.name:
                raise ConnectionError(f"there is {found}, and not {self._peer.name}")

    def _body(self, response: HTTPResponse, url: str, deadline: float) -> bytes:
        body = bytearray()
        while chunk := response.read1(1 << 16):
            body += chunk
            if len(body) > MAX_BODY:
                raise ClientError(f"{url} answered with more than {MAX_BODY} bytes.")
            if time.monotonic() > deadline:
                raise TimeoutError
        return bytes(body)

    def _foreign(self, path: str) -> ClientError:
        return ClientError(f"{self.base_url}{path} answered with something that is not from LiteFS v0.5.14.")


def _typed(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not {kind}")
    return value
