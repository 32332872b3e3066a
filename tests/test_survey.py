"""What no LiteFS does on demand; tests/cluster/test_status.py has real ones."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from litefs_django._litefs.settings import Node
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
        (report,) = survey([Node(name="a", address="127.0.0.1", http_port=urlsplit(url).port or 0)])
    assert report.info is None
    assert report.error.startswith(f"{url}/debug/vars answered 500 ")
