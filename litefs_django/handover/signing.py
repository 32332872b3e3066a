"""Proof that a request comes from another node, and on whose behalf: pure, with the time as an argument.

A hop is one request on its way from the node that received it to the primary. It carries one header,
HOP, that holds

    base64url(JSON [source, target, scheme, client, issued, valid until]) "." base64url(HMAC-SHA256)

where the HMAC also covers method, target of the request line and Host, which the request carries
itself. The primary's word that it has done nothing, in the header ANSWER, is an HMAC over the hop.
Each purpose has a key of its own (`keys.py`).
"""

from __future__ import annotations

import binascii
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from litefs_django._litefs.keys import derive_key

HOP = "Litefs-Django-Hop"
ANSWER = "Litefs-Django-Answer"

# Seconds for which a hop is valid. The nodes' clocks may differ by as much.
WINDOW = 10.0
# Bytes a second: an ASGI server hands a request on when it has the whole body, which takes its time.
SLOWEST_TRANSFER = 1 << 20

_LONGEST = 2048


class SignatureError(Exception):
    """This is no hop of this cluster, or no longer. The message is safe to log."""


class TooLate(SignatureError):
    """It was one of this cluster, and has waited for too long: on a node that stood still, for instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a hop's signature covers of the request itself: `target` is the path with its query, as on the wire."""

    method: str
    target: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """Which node sends the request to which, and how the client had reached the first: scheme and IP address."""

    source: str
    target: str
    scheme: str
    client: str


class Signer:
    """Signs with the first secret, and accepts each of them. Constant time where it compares."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._hop_keys = [derive_key(secret, "handover 1 hop") for secret in secrets]
        self._answer_keys = [derive_key(secret, "handover 1 answer") for secret in secrets]

    def sign(self, hop: Hop, request: Request, now: float, length: int = 0) -> str:
        """The value of HOP. `length` is the body's, in bytes, as far as it is known."""
        until = now + WINDOW + length / SLOWEST_TRANSFER
        claims = json.dumps([hop.source, hop.target, hop.scheme, hop.client, now, until]).encode()
        return f"{_encode(claims)}.{_encode(_mac(self._hop_keys[0], claims, request))}"

    def verify(self, value: str, request: Request, now: float) -> Hop:
        """The hop that this value of HOP stands for. Raises SignatureError, TooLate among them."""
        if len(value) > _LONGEST:
            raise SignatureError("it is too long")
        head, _, tail = value.partition(".")
        try:
            claims, mac = _decode(head), _decode(tail)
        except ValueError:
            raise SignatureError("it is malformed") from None
        if not any(hmac.compare_digest(mac, _mac(key, claims, request)) for key in self._hop_keys):
            raise SignatureError("its signature does not fit the request")
        source, target, scheme, client, issued, until = json.loads(claims)
        if not issued - WINDOW <= now <= until:
            kind = TooLate if now > until else SignatureError
            raise kind("it is too old, or the nodes' clocks differ by more than 10 s")
        return Hop(source=source, target=target, scheme=scheme, client=client)

    def sign_answer(self, hop: str) -> str:
        """The value of ANSWER: nothing was done of what this value of HOP came with."""
        return _encode(_mac_of(self._answer_keys[0], hop.encode()))

    def is_answer(self, answer: str, hop: str) -> bool:
        """Whether the node that was sent this hop says that it has done nothing."""
        given = answer.encode(errors="surrogatepass")
        return any(
            hmac.compare_digest(given, _encode(_mac_of(key, hop.encode())).encode()) for key in self._answer_keys
        )


def _mac(key: bytes, claims: bytes, request: Request) -> bytes:
    # JSON puts its own frame around each part: none can pass for another.
    covered = json.dumps([request.method, request.target, request.host]).encode()
    return _mac_of(key, claims + b"\n" + covered)


def _mac_of(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    """Raises ValueError for anything but what `_encode` gives."""
    try:
        data = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError(text) from error
    if _encode(data) != text:
        raise ValueError(text)
    return data
