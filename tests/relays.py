"""Two relays beside each other. `python -m tests.relays NAME MEMBERS PORT` is one as a process of its own.

A process reads lines from its stdin: `holder NAME` says who holds the lease, `cut NAME` cuts. It answers each with one
line: what its ports are, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

from litefs_django._litefs.certificates import issue
from litefs_django._litefs.node.relay import Relay
from tests.machine import SECRET, free_ports

ROOT = Path(__file__).parents[1]

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Relays:
    """`web1` asks, `web2` holds the lease; its LiteFS is `serve`."""

    def __init__(self, asking: Relay, answering: Relay, members: dict[str, str], holders: dict[str, str]) -> None:
        self.asking = asking
        self.answering = answering
        self.members = members
        # Who holds the lease, as each of the two has heard.
        self.holders = holders
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(
        self, address: tuple[str, int] | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As the LiteFS of web1."""
        reader, writer = await asyncio.open_connection(*(address or ("127.0.0.1", self.asking.ports["web2"])))
        self.writers.append(writer)
        return reader, writer

    @property
    def address(self) -> tuple[str, int]:
        """Where the relay of web2 waits for others."""
        host, _, port = self.members["web2"].rpartition(":")
        return host, int(port)


@asynccontextmanager
async def relays(
    serve: Serve,
    *,
    silence: float = 60.0,
    secrets: tuple[Sequence[str], Sequence[str]] = ((SECRET,), (SECRET,)),
    host: str = "127.0.0.1",
    control: Path = Path("/nonexistent"),
) -> AsyncIterator[Relays]:
    """Both, and a LiteFS."""
    members = {f"web{number}": f"{host}:{port}" for number, port in enumerate(free_ports(2), start=1)}
    holders = {"web1": "web2", "web2": "web2"}
    async with AsyncExitStack() as stack:
        litefs = await asyncio.start_server(_closing(serve), "127.0.0.1", 0)
        stack.callback(litefs.close)
        both = []
        for name, accepted in zip(members, secrets, strict=True):
            relay = Relay(
                issue(name, tuple(accepted)),
                members,
                litefs=litefs.sockets[0].getsockname(),
                control=control,
                holds=lambda member, name=name: holders[name] == member,  # type: ignore[misc]
                silence=silence,
            )
            await relay.start()
            stack.push_async_callback(relay.close)
            both.append(relay)
        found = Relays(both[0], both[1], members, holders)
        yield found
        for writer in found.writers:
            writer.transport.abort()


def _closing(serve: Serve) -> Serve:
    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort() if writer.is_closing() else writer.close()

    return run


class RelayProcess:
    """One relay in a process; as a context manager it is there and ends."""

    def __init__(self, name: str, members: dict[str, str], litefs_port: int) -> None:
        self._arguments = [name, json.dumps(members), str(litefs_port)]
        self.ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.relays", *self._arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ports = self.tell("holder", "")
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()  # it ends with its stdin
        assert error[0] or self._process.returncode == 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, command: str, name: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command} {name}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


async def _run(name: str, members: dict[str, str], litefs_port: int) -> None:
    holder = ""
    relay = Relay(
        issue(name, (SECRET,)),
        members,
        litefs=("127.0.0.1", litefs_port),
        control=Path("/nonexistent"),
        holds=lambda member: member == holder,
    )
    await relay.start()
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, told = line.rstrip("\n").split(" ")
        if command == "holder":
            holder = told
        else:
            relay.cut(told)
        sys.stdout.write(json.dumps(relay.ports) + "\n")
        sys.stdout.flush()
    await relay.close()


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])))
