"""What the two ways to send a request on have in common: what is sent, what comes back, what can go wrong."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase

from litefs_django.handover.exchange import Body
from litefs_django.handover.headers import Headers, response_headers
from litefs_django.handover.signing import ANSWER

# Seconds to connect to a node, at most. Nothing has been sent then, so that it can be tried again.
CONNECT_TIMEOUT = 2.0
# Seconds that an unused connection may have waited: servers close theirs after 2 s and more, and a request that meets
# the end of one may or may not have been seen.
IDLE = 1.0
# Bytes read and written at a time: all of a body that is ever in memory.
CHUNK = 1 << 18
# Bytes of a line, and lines, of an answer's head. Servers set their applications no limit of either.
LONGEST_LINE = 1 << 16
MOST_HEADERS = 2000

# A header's value that goes on in the next line, which HTTP/1.1 forbids.
_FOLD = re.compile(r"\r?\n[ \t]+")


class NotSent(Exception):
    """No connection: the primary has not seen the request."""


class Broken(Exception):
    """The connection broke, or time was up, after something was sent: the request may have been served."""


class ClientGone(Exception):
    """The client has not sent its whole body. What the primary was sent is incomplete, and of no use to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A request to another node.

    `timeout` is how many seconds each send, and the answer's beginning, may take, `connect_timeout` the connection.
    """

    url: str
    method: str
    target: str
    headers: Headers = field(repr=False)
    body: Body = field(repr=False)
    timeout: float
    connect_timeout: float


class Forwarded(StreamingHttpResponse):
    """The primary's response, as it came: each header, several of one name too, and the body as it arrives.

    `answer` is our own header ANSWER, which does not go on to the client.
    """

    def __init__(
        self, body: Iterator[bytes] | AsyncIterator[bytes], status: int, reason: str, headers: list[tuple[str, str]]
    ) -> None:
        self.answer = next((value for name, value in headers if name.lower() == ANSWER.lower()), None)
        self.came = response_headers((name, _FOLD.sub(" ", value)) for name, value in headers)
        super().__init__(body, status=status, reason=reason)
        del self.headers["Content-Type"]
        for name, value in self.came:
            self.headers[name] = value
        # The primary has logged it.
        self._has_been_logged = True

    def items(self) -> list[tuple[str, str]]:
        """What Django's handlers send."""
        names = {name.lower() for name, _ in self.came}
        return [*self.came, *((name, value) for name, value in super().items() if name.lower() not in names)]


def let_go(response: HttpResponseBase) -> None:
    """Closes what the response has open. Its own close() would also tell Django that the request is over."""
    for close in response._resource_closers:  # type: ignore[attr-defined]
        close()
