from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litefs_django._litefs.keys import derive_key
from litefs_django.handover.signing import WINDOW, Hop, Request, SignatureError, Signer

SECRET = "a secret of the cluster that is long enough"
OTHER = "another secret that is just as long as that one"
NOW = 1_800_000_000.0
HOP = Hop(source="web2", target="web1", scheme="https", client="203.0.113.7")
REQUEST = Request(method="POST", target="/a/b?c=d", host="www.example.com")
SIGNER = Signer([SECRET])

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
hops = st.builds(Hop, source=texts, target=texts, scheme=texts, client=texts)
requests = st.builds(Request, method=texts, target=texts, host=texts)


def refused(value: str, request: Request = REQUEST, now: float = NOW, signer: Signer = SIGNER) -> str:
    with pytest.raises(SignatureError) as error:
        signer.verify(value, request, now)
    assert SECRET not in str(error.value)
    return str(error.value)


@given(hops, requests, st.floats(0, 1e10))
def test_what_was_signed_is_found_again(hop: Hop, request: Request, now: float) -> None:
    assert SIGNER.verify(SIGNER.sign(hop, request, now), request, now) == hop


@given(requests, requests)
def test_it_holds_for_one_request_alone(request: Request, other: Request) -> None:
    value = SIGNER.sign(HOP, request, NOW)
    if request == other:
        assert SIGNER.verify(value, other, NOW) == HOP
    else:
        refused(value, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "GET"},
        {"target": "/a/b?c=e"},
        {"target": "/a/b"},
        {"target": "/a/%62?c=d"},
        {"host": "evil.example"},
        # The parts put together would be the same.
        {"method": "POST/a/b?c=d", "target": ""},
    ],
)
def test_another_request(changes: dict[str, Any]) -> None:
    assert refused(SIGNER.sign(HOP, REQUEST, NOW), replace(REQUEST, **changes)) == (
        "its signature does not fit the request"
    )


@pytest.mark.parametrize("field", range(6))
def test_forged_claims(field: int) -> None:
    """Each of them is covered: nodes, scheme, client and times."""
    head, _, mac = SIGNER.sign(HOP, REQUEST, NOW).partition(".")
    claims = json.loads(urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    claims[field] = claims[field] + 60 if isinstance(claims[field], float) else "203.0.113.99"
    forged = urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    refused(f"{forged}.{mac}")


@given(st.integers(0, 300), st.integers(1, 255))
def test_any_changed_byte_is_noticed(position: int, change: int) -> None:
    value = SIGNER.sign(HOP, REQUEST, NOW)
    position %= len(value)
    refused(value[:position] + chr(ord(value[position]) ^ change) + value[position + 1 :])


@given(st.integers(0, 300))
def test_truncated(length: int) -> None:
    value = SIGNER.sign(HOP, REQUEST, NOW)
    refused(value[: length % len(value)])


@given(st.text(max_size=200))
def test_noise(value: str) -> None:
    refused(value)


@pytest.mark.parametrize("value", ["", ".", "a.b", "=.=", "e30.e30", "\x00", "ä.ä", "," * 50, "a" * 5000])
def test_malformed(value: str) -> None:
    refused(value)


def test_two_of_them_joined() -> None:
    """As a WSGI server gives a header that came twice."""
    value = SIGNER.sign(HOP, REQUEST, NOW)
    refused(f"{value},{value}")


def test_the_window() -> None:
    value = SIGNER.sign(HOP, REQUEST, NOW)
    for now in (NOW - WINDOW, NOW, NOW + WINDOW):
        assert SIGNER.verify(value, REQUEST, now) == HOP
    for now in (NOW - WINDOW - 0.1, NOW + WINDOW + 0.1):
        assert "too old" in refused(value, now=now)


def test_the_window_grows_with_the_body() -> None:
    """An ASGI server shows the request when it has the whole body: 1 GiB takes its time."""
    value = SIGNER.sign(HOP, REQUEST, NOW, length=1 << 30)
    assert SIGNER.verify(value, REQUEST, NOW + 1000) == HOP
    refused(value, now=NOW + 1040)


def test_secrets_can_be_changed_one_after_the_other() -> None:
    both = Signer([OTHER, SECRET])
    assert both.verify(SIGNER.sign(HOP, REQUEST, NOW), REQUEST, NOW) == HOP
    assert Signer([OTHER]).verify(both.sign(HOP, REQUEST, NOW), REQUEST, NOW) == HOP
    refused(both.sign(HOP, REQUEST, NOW))
    assert both.is_answer(SIGNER.sign_answer("x"), "x")


def test_answers() -> None:
    hop, other = SIGNER.sign(HOP, REQUEST, NOW), SIGNER.sign(HOP, REQUEST, NOW + 1)
    answer = SIGNER.sign_answer(hop)
    assert SIGNER.is_answer(answer, hop)
    assert not SIGNER.is_answer(answer, other)
    assert not Signer([OTHER]).is_answer(answer, hop)
    for wrong in ("", answer[:-1], f"{answer}a", hop.partition(".")[2], "ä"):
        assert not SIGNER.is_answer(wrong, hop)


def test_each_purpose_has_its_own_key() -> None:
    assert derive_key("s", "handover 1 hop") != derive_key("s", "handover 1 answer")
    assert len(derive_key("s", "handover 1 hop")) == 32


def test_the_derivation_is_hkdf() -> None:
    """RFC 5869's two steps, as the `hmac` module has them one by one."""
    import hashlib
    import hmac

    extracted = hmac.new(b"\0" * 32, b"s", hashlib.sha256).digest()
    info = b"litefs_django handover 1 hop"
    assert derive_key("s", "handover 1 hop") == hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()
