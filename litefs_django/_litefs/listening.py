"""The address that LiteFS's HTTP API listens on: whether it is free, who has it, and who can reach it."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import yaml

from litefs_django._litefs.client import LiteFSClient
from litefs_django._litefs.config import ConfigGenerator, parse
from litefs_django._litefs.errors import ClientError
from litefs_django._litefs.settings import LiteFSSettings

Address = IPv4Address | IPv6Address

# Where no stranger is: RFC 1918, 4193 (ULA) and 6598 (CGNAT), loopback, link-local.
_PRIVATE = tuple(
    map(
        ip_network,
        (
            *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
            *("fc00::/7", "fe80::/10", "::1/128"),
        ),
    )
)
_RESOLVING = 3.0  # seconds; a resolver without a network takes its time
_LISTEN = "0A"  # proc_pid_net(5), TCP_LISTEN of the kernel's tcp_states.h


@dataclass(frozen=True, slots=True)
class Listener:
    """Who has the port. `is_ours`: the LiteFS of this node; `pid` is None where this user may not see it."""

    is_ours: bool
    pid: int | None = None

    def __str__(self) -> str:
        process = f" ({self.pid}{_command(self.pid)})" if self.pid is not None else ""
        if self.is_ours:
            return f"the LiteFS of this node{process}"
        if self.pid is None:
            return "another process (or a LiteFS of this node that hangs: this user may not see which it is)"
        return f"another process{process}"


def host_and_port(settings: LiteFSSettings) -> tuple[str, int]:
    """Where LiteFS of this node will listen. The host is "" for every interface."""
    host, _, port = ConfigGenerator(settings).config["http"]["addr"].rpartition(":")
    return host.strip("[]"), int(port)


def bind_problem(host: str, port: int) -> OSError | None:
    """Why nobody can begin to listen there now; None when somebody can. It is let go at once."""
    try:
        addresses = _resolved(host) if host else [ip_address("0.0.0.0")]
        # As Go does, which takes one, the first of IPv4 if there is any.
        address = min(addresses, key=lambda address: address.version)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((str(address), port))
    except OSError as error:
        return error
    return None


def find_listener(settings: LiteFSSettings) -> Listener | None:
    """Who listens where LiteFS of this node is to; None when nobody does, or nobody can."""
    host, port = host_and_port(settings)
    problem = bind_problem(host, port)
    if problem is None or problem.errno != errno.EADDRINUSE:
        return None
    pid = _listening_process(port)
    if pid is not None and (data_path := _data_path(pid)) is not None:
        return Listener(is_ours=data_path == settings.data_path, pid=pid)
    try:
        info = LiteFSClient(ConfigGenerator(settings).local_url).info()
    except ClientError:
        return Listener(is_ours=False, pid=pid)
    return Listener(is_ours=Path(info.path) == settings.data_path, pid=pid)


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process (proc_pid_stat(5)): it does nothing until another lets it go on."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def public_addresses(host: str) -> list[Address]:
    """The addresses of `host` that strangers may reach. A name that cannot be resolved has none."""
    try:
        return [address for address in _resolved(host) if not _is_private(address)]
    except OSError:
        return []


def _is_private(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in network for network in _PRIVATE)


def _resolved(host: str) -> list[Address]:
    """Raises OSError when there are none, or the resolver does not answer within seconds."""
    with suppress(ValueError):
        return [ip_address(host)]
    found: list[Address] = []
    failed: list[OSError] = []

    def resolve() -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found.extend(ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(_RESOLVING)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(errno.ETIMEDOUT, f"no answer from the resolver within {_RESOLVING:g} s")
    return list(found)


def _listening_process(port: int) -> int | None:
    """The process that listens on this port (proc_pid_net(5)), as far as this user may see."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if os.readlink(descriptor) in sockets:
                        return int(process.name)
    return None


def _command(pid: int) -> str:
    with suppress(OSError):
        return f", {Path(f'/proc/{pid}/comm').read_text().strip()}"
    return ""


def _data_path(pid: int) -> Path | None:
    """data.dir of the `litefs mount -config FILE` that the process is; None when it is something else."""
    with suppress(OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if "mount" in argv and "-config" in argv:
            # Relative to where it was started.
            config = Path(f"/proc/{pid}/cwd", argv[argv.index("-config") + 1])
            return Path(parse(config.read_text("utf-8"))["data"]["dir"])
    return None
