"""Sends a request on and streams the answer back, for ASGI: over aiohttp."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp.client_exceptions import (
    ClientConnectorError,
    ClientOSError,
    ConnectionTimeoutError,
    ServerDisconnectedError,
)
from yarl import URL

from litefs_django.handover.exchange import Body
from litefs_django.handover.headers import OCTETS, Headers, packed
from litefs_django.handover.transport import (
    CHUNK,
    IDLE,
    LONGEST_LINE,
    MOST_HEADERS,
    Broken,
    Forwarded,
    NotSent,
    Outgoing,
)

# What aiohttp would add of its own.
_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_NOT_CONNECTED = (ClientConnectorError, ConnectionTimeoutError)

_sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()
_keepers: set[asyncio.Task[None]] = set()


def _after_fork() -> None:
    # A child must not write into its parent's connections.
    _sessions.clear()
    _keepers.clear()


os.register_at_fork(after_in_child=_after_fork)


async def send(outgoing: Outgoing) -> Forwarded:
    """Raises NotSent or Broken; there is no connection left then."""
    try:
        async with asyncio.timeout(outgoing.timeout) as limit:
            response = await _session().request(
                outgoing.method,
                URL(outgoing.url + outgoing.target, encoded=True),
                headers=_in_utf8(outgoing.headers),
                data=_data(outgoing.body, partial(_extend, limit, outgoing.timeout)),
                allow_redirects=False,
                skip_auto_headers=_NOT_ADDED,
                # A stream may be silent for as long as it likes: the kernel finds out whether it still lives.
                timeout=aiohttp.ClientTimeout(total=None, connect=outgoing.connect_timeout),
            )
    except _NOT_CONNECTED as error:
        raise NotSent(str(error)) from error
    except (aiohttp.ClientError, OSError, _Disconnected) as error:
        raise Broken(str(error) or type(error).__name__) from error
    came = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers]
    return Forwarded(_Body(response), response.status, response.reason or "", came)


def _in_utf8(headers: Headers) -> Headers:
    """The headers as aiohttp takes them, which writes all of them in UTF-8."""
    written: Headers = []
    others: Headers = []
    for name, value in headers:
        try:
            written.append((name, value.encode("latin-1").decode()))
        except UnicodeDecodeError:
            others.append((name, value))
    return [*written, (OCTETS, packed(others))] if others else written


class _Disconnected(Exception):
    """In place of those errors after which aiohttp would send a request of an idempotent method again."""


async def _never_again(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except _NOT_CONNECTED:
        raise
    except (ClientOSError, ServerDisconnectedError) as error:
        raise _Disconnected(str(error)) from error


def _session() -> aiohttp.ClientSession:
    """This event loop's, which ends with it."""
    loop = asyncio.get_running_loop()
    session = _sessions.get(loop)
    if session is None:
        session = _sessions[loop] = aiohttp.ClientSession(
            # Any number of streams may be open at once.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_LINE,
            max_headers=MOST_HEADERS,
            middlewares=(_never_again,),
        )
        # Without the context of the request that happens to be the first.
        keeper = loop.create_task(_keep(session), context=Context())
        _keepers.add(keeper)
        keeper.add_done_callback(_keepers.discard)
    return session


async def _keep(session: aiohttp.ClientSession) -> None:
    """Runs until the loop's end, which cancels it."""
    async with session:
        await asyncio.get_running_loop().create_future()


def _extend(limit: asyncio.Timeout, timeout: float) -> None:
    # Not any more when the answer has come before the body's end.
    with suppress(RuntimeError):
        limit.reschedule(asyncio.get_running_loop().time() + timeout)


def _data(body: Body, sends: Callable[[], None]) -> Any:
    """`sends` is called before each part of a large one."""
    if body.data is None or len(body.data) > CHUNK:
        return _chunks(body, sends)
    return body.data or None


async def _chunks(body: Body, sends: Callable[[], None]) -> AsyncIterator[bytes]:
    stream = body.stream if body.data is None else io.BytesIO(body.data)
    assert stream is not None
    while chunk := stream.read(CHUNK):
        sends()
        yield chunk


class _Body(AsyncIterator[bytes]):
    """The answer's body as it arrives. At its end the connection goes back to the pool; closed earlier, it ends."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._loop = asyncio.get_running_loop()

    async def __anext__(self) -> bytes:
        chunk = await self._response.content.readany()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    def close(self) -> None:
        """From any thread."""
        if not self._response.content.is_eof():
            self._loop.call_soon_threadsafe(self._response.close)
