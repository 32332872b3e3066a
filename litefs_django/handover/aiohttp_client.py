"""Sends a request on and streams the answer back, for ASGI: over aiohttp."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextvars import Context
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
from litefs_django.handover.transport import CHUNK, CONNECT_TIMEOUT, IDLE, Broken, Forwarded, NotSent, Outgoing

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
    headers = [(name, value.encode("latin-1").decode("utf-8", "replace")) for name, value in outgoing.headers]
    try:
        async with asyncio.timeout(outgoing.timeout):
            response = await _session().request(
                outgoing.method,
                URL(outgoing.url + outgoing.target, encoded=True),
                headers=headers,
                data=_data(outgoing.body),
                allow_redirects=False,
                skip_auto_headers=_NOT_ADDED,
            )
    except _NOT_CONNECTED as error:
        raise NotSent(str(error)) from error
    except (aiohttp.ClientError, OSError, _Disconnected) as error:
        raise Broken(str(error) or type(error).__name__) from error
    came = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers]
    return Forwarded(_Body(response), response.status, response.reason or "", came)


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
            # A stream may be silent for as long as it likes: aiohttp has the kernel find out whether it still lives.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
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


def _data(body: Body) -> Any:
    if body.data is None or len(body.data) > CHUNK:
        return _chunks(body)
    return body.data or None


async def _chunks(body: Body) -> AsyncIterator[bytes]:
    if body.data is not None:
        for start in range(0, len(body.data), CHUNK):
            yield body.data[start : start + CHUNK]
        return
    assert body.stream is not None
    while chunk := body.stream.read(CHUNK):
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
