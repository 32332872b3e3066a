"""What no LiteFS does on demand; tests/cluster/test_status.py has real ones."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from litefs_django._litefs.reach import Reach
from litefs_django._litefs.survey import survey
from tests.test_client import INFO, server

METRICS = b"litefs_is_primary 1\nlitefs_lag_seconds 0\n"
VARS = b'{"store": {"dbs": {"db": {"txid": "000000000000000a", "checksum": "8f2a60e1c0d3b4a5"}}}}'


def test_a_primary_that_ends_between_its_answers() -> None:
    asked = []

    def variables(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        if len(asked) > 1:
            handler.send_error(500)
            return
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(VARS)

    info = INFO.replace(b'"isPrimary": false', b'"isPrimary": true')
    with server({"/info": info, "/metrics": METRICS, "/debug/vars": variables}) as url:
        (report,) = survey(Reach({"a": url}), ["a"])
    assert report.info is None
    assert report.error.startswith(f"{url}/debug/vars answered 500 ")


def test_a_name_that_is_looked_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a name server that does not answer. The other nodes' answers count all the same."""
    real, is_over = socket.getaddrinfo, threading.Event()

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "silent.example":
            is_over.wait()
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with server({"/info": INFO, "/metrics": METRICS, "/debug/vars": VARS}) as url:
        nodes = Reach({"a": "http://silent.example:20202", "b": url})
        first, second = survey(nodes, ["a", "b"], timeout=2.0)
    is_over.set()
    assert first.error == "http://silent.example:20202/info did not answer within 2 s."
    assert second.info is not None
