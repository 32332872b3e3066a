"""The supervisor's control socket: RUN_PATH/control, for its own user and root.

One request per connection, each message one line of JSON:

    -> {"version": 1, "request": "promote", "node": "web2"}
    <- {"says": "waits for web2 to catch up"}           any number of these
    <- {"done": "web2 is the primary now."}             or {"error": "..."}, and the end

The requests, and what `done` holds: `status`, a dictionary (Supervisor._status); `promote` with the `node`, a sentence,
once it is true; `stop`, a sentence, as soon as the node has begun to stop. With Raft another node's supervisor asks
through the relays; a `promote` is then `forwarded`, and is not passed on once more.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from litefs_django._litefs.errors import LiteFSError, SupervisorError
from litefs_django._litefs.identity import CONTROL, peer_name
from litefs_django._litefs.reach import Reach

NAME = "control"
VERSION = 1
# Seconds without a word from a supervisor that changes the role: longer than the longest of its steps.
SILENCE = 30.0

_LONGEST = 64 << 10
# Seconds for a client to say what it wants, and to take an answer.
_PATIENCE = 5.0
_AT_ONCE = 8
_QUEUE = 64  # with less, a burst of clients is refused by the kernel

Say = Callable[[str], None]
Handler = Callable[[Mapping[str, Any], Say], Any]


class ControlServer:
    """Answers requests, each in a thread of its own. `handlers` raise LiteFSError for what they refuse."""

    def __init__(self, run_path: Path, handlers: Mapping[str, Handler]) -> None:
        self.path = run_path / NAME
        self._handlers = handlers
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self._is_closed = False
        self._listener = socket.socket(socket.AF_UNIX)
        # One of a supervisor that was killed.
        self.path.unlink(missing_ok=True)
        with address_of(self.path) as address:
            self._listener.bind(address)
        self.path.chmod(0o600)
        self._listener.listen(_QUEUE)
        threading.Thread(target=self._serve, name="litefs-control", daemon=True).start()

    def close(self) -> None:
        """Takes the socket away; who is being answered is answered."""
        self._is_closed = True
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                if self._is_closed:
                    return
                time.sleep(0.1)  # no descriptor is free
                continue
            client.settimeout(_PATIENCE)
            if self._places.acquire(blocking=False):
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()
            else:
                client.close()

    def _answer(self, client: socket.socket) -> None:
        try:
            # A client that does not listen any more does not stop what it has asked for.
            with closing(client), suppress(OSError):
                _send(client, self._outcome(client))
        finally:
            self._places.release()

    def _outcome(self, client: socket.socket) -> dict[str, Any]:
        try:
            request = _read_request(client)
            handler = self._handlers.get(str(request.get("request")))
            if request.get("version") != VERSION or handler is None:
                raise SupervisorError("This litefs_run does not know that request: is it of another release?")
            return {"done": handler(request, lambda text: _say(client, text))}
        except LiteFSError as error:
            return {"error": str(error)}


def _read_request(client: socket.socket) -> Mapping[str, Any]:
    line = _read_line(client)  # first: who is closed upon with something unread does not get the answer
    _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user not in (0, os.geteuid()):
        raise SupervisorError(f"User {user} may not ask this litefs_run.")
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise SupervisorError("A request is one line of JSON, an object.")
    return request


def _read_line(client: socket.socket) -> bytes:
    """All of it within _PATIENCE: who sends byte by byte must not keep a place."""
    deadline = time.monotonic() + _PATIENCE
    line = b""
    while b"\n" not in line and len(line) < _LONGEST:
        client.settimeout(max(0.001, deadline - time.monotonic()))
        received = client.recv(_LONGEST - len(line))
        if not received:
            break
        line += received
    client.settimeout(_PATIENCE)
    return line.partition(b"\n")[0]


def _say(client: socket.socket, text: str) -> None:
    # Without waiting for one who does not read: commits may be held off meanwhile.
    with suppress(OSError):
        client.send(_encoded({"says": text}), socket.MSG_DONTWAIT)


def _send(client: socket.socket, message: Mapping[str, Any]) -> None:
    client.sendall(_encoded(message))


def _encoded(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def ask(run_path: Path, request: str, say: Say = lambda text: None, *, timeout: float, **arguments: Any) -> Any:
    """What the supervisor of the node with this RUN_PATH has done. `say` gets what it says meanwhile.

    Raises SupervisorError with its reason when it refuses, and when there is no supervisor, or it is silent for
    `timeout` seconds.
    """
    path = run_path / NAME
    try:
        with closing(socket.socket(socket.AF_UNIX)) as server:
            server.settimeout(timeout)
            with address_of(path) as address:
                server.connect(address)
            return _converse(server, {"request": request, **arguments}, say)
    except (FileNotFoundError, ConnectionRefusedError):
        raise SupervisorError(
            f"No litefs_run runs here: nothing listens on {path}. Run this on the machine, and with the settings, of "
            "the node that it is for."
        ) from None
    except PermissionError:
        raise SupervisorError(f"{path} is for root and the user that runs litefs_run: be one of them.") from None
    except (OSError, ValueError, KeyError) as error:
        raise SupervisorError(f"litefs_run has not answered on {path}: {error}.") from error


def ask_node(nodes: Reach, name: str, request: str, say: Say, *, timeout: float, **arguments: Any) -> Any:
    """As `ask`, of another node's supervisor, through its relay."""
    assert nodes.identity is not None
    if name not in nodes.urls:
        raise SupervisorError(f'{name} is not one of LITEFS["NODES"] here: are they the same on all nodes?')
    parts = urlsplit(nodes.urls[name])
    try:
        with (
            closing(socket.create_connection((parts.hostname, parts.port), timeout)) as connection,
            nodes.identity.connecting(CONTROL).wrap_socket(connection) as server,
        ):
            if (found := peer_name(server)) != name:
                raise ConnectionError(f"there is {found}")
            return _converse(server, {"request": request, **arguments}, say)
    except (OSError, ValueError, KeyError) as error:
        raise SupervisorError(f"litefs_run of {name} has not answered at {parts.netloc}: {error}.") from error


def ask_primary(nodes: Reach, primary: str, name: str, say: Say) -> str:
    """Has the primary's supervisor make that node the primary. Returns what is true then; raises SupervisorError."""
    say(f"asks {primary}, the primary")
    return str(ask_node(nodes, primary, "promote", say, timeout=SILENCE, node=name, forwarded=True))


def _converse(server: socket.socket, request: Mapping[str, Any], say: Say) -> Any:
    _send(server, {"version": VERSION, **request})
    with server.makefile("rb") as lines:
        for line in lines:
            answer = json.loads(line)
            if "done" in answer:
                return answer["done"]
            if "error" in answer:
                raise SupervisorError(answer["error"])
            say(answer["says"])
    raise SupervisorError("litefs_run ended before it was done. Look at litefs_status for what is true now.")


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """The path of a socket by its directory's descriptor: an address holds 107 bytes and no more (unix(7))."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
