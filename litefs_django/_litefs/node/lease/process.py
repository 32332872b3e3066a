"""The lease process: Raft in a thread of its own, HTTP API and relay in the main one. It ends when either does."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from urllib.parse import urlsplit

from aiohttp import web

from litefs_django._litefs.client import LiteFSClient
from litefs_django._litefs.errors import ClientError, LiteFSError
from litefs_django._litefs.mount import Position
from litefs_django._litefs.node.control import NAME as CONTROL
from litefs_django._litefs.node.lease.description import LeaseDescription
from litefs_django._litefs.node.lease.divergence import Divergence
from litefs_django._litefs.node.lease.raft import LeaderElection
from litefs_django._litefs.node.lease.server import LeaseServer
from litefs_django._litefs.node.relay import Relay
from litefs_django._litefs.node_file import LEASE_HEARTBEAT, LeaseWords
from litefs_django._litefs.reach import Reach

logger = logging.getLogger(__name__)

# The exit status of one that had started and can go on no more: the next one may.
ANEW = 3
# Seconds for this node's LiteFS to say how far its databases are.
_PATIENCE = 0.15


def run(description: LeaseDescription) -> int | str:
    """Returns what to exit with: 0 after SIGTERM or SIGINT, ANEW, or why it cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("pysyncobj").setLevel(logging.CRITICAL)
    try:
        return asyncio.run(_serve(description))
    except LiteFSError as error:
        return str(error)


async def _serve(description: LeaseDescription) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    followers: list[Callable[[], None]] = []

    def tell_change() -> None:
        with suppress(RuntimeError):  # the loop has ended
            for follow in followers:
                loop.call_soon_threadsafe(follow)

    election = LeaderElection(
        description.name,
        description.members,
        secrets=description.secrets,
        ttl=description.ttl,
        directory=description.directory,
        is_bootstrap=description.is_bootstrap,
        on_change=tell_change,
    )
    client = LiteFSClient(description.litefs_url, timeout=_PATIENCE) if description.litefs_url else None
    nodes = Reach(description.urls, description.identity)
    divergence = Divergence(description.name, description.data_path, description.directory, nodes)
    relay = _relay(description, election, divergence)
    words = LeaseWords(description.run_path)
    server = LeaseServer(
        election,
        key=description.key,
        token=description.token,
        positions=lambda: _positions(client),
        begin=divergence.begin,
        publish=words.set_deadline,
        relay=relay,
    )
    followers.append(server.on_change)

    async def follow_lease() -> None:
        # A process that starts goes through all grants of before. What it has missed is told by the state at the end.
        await server.wait_until_current()
        followers.append(lambda: divergence.on_change(election.state))
        divergence.on_change(election.state)

    def end(error: BaseException | None = None) -> None:
        if not ended.done():
            ended.set_result(None) if error is None else ended.set_exception(error)

    def take_part() -> None:
        error = None
        try:
            election.run()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(end, error)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    async with AsyncExitStack() as stack:
        await relay.start()
        stack.push_async_callback(relay.close)
        runner = web.AppRunner(server.application, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        listener = socket.socket(fileno=description.listener)
        await web.SockSite(runner, listener, shutdown_timeout=0.1).start()
        threading.Thread(target=take_part, name="litefs-raft", daemon=True).start()
        stack.callback(election.stop)
        if client is not None:
            following = asyncio.create_task(follow_lease())
            following.add_done_callback(partial(_pass_on, end))
            stack.callback(following.cancel)
        return await _beat_until(ended, words)


def _pass_on(end: Callable[[BaseException], None], task: asyncio.Task[None]) -> None:
    """What has ended a task ends the process."""
    if not task.cancelled() and (error := task.exception()) is not None:
        end(error)


async def _beat_until(ended: asyncio.Future[None], words: LeaseWords) -> int:
    """What to exit with when it has ended."""
    while not ended.done():
        words.beat()
        await asyncio.wait([ended], timeout=LEASE_HEARTBEAT)
    if error := ended.exception():
        logger.error("%s", error, exc_info=None if isinstance(error, LiteFSError) else error)
        return ANEW
    return 0


def _relay(description: LeaseDescription, election: LeaderElection, divergence: Divergence) -> Relay:
    def holds(member: str) -> bool:
        lease = election.state.lease
        if lease is None or lease.node != member:
            return False
        return member == description.name or divergence.may_follow(lease.grant)

    parts = urlsplit(description.litefs_url or "")
    return Relay(
        description.identity,
        description.relays,
        litefs=(parts.hostname or "", parts.port or 0),
        control=description.run_path / CONTROL,
        holds=holds,
    )


def _positions(client: LiteFSClient | None) -> dict[str, Position] | None:
    if client is None:
        return None
    try:
        return client.positions()
    except ClientError:
        return None
