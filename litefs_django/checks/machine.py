"""What LiteFS needs of the machine that is to run it, for the user who runs the check: `check --deploy` alone."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Warning

from litefs_django._litefs.directories import directory_problem
from litefs_django._litefs.errors import BinaryError
from litefs_django.checks.context import is_litefs_mounted, litefs_settings, valid_settings

REQUIRED = (
    ("/dev/fuse", "E010"),
    ("the right to mount", "E011"),
    ("fusermount3", "E012"),
    ("user_allow_other", "E013"),
    ("a name for user", "E040"),
)


def check_machine(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E010 to E013, E016 and E040: what LiteFS needs of this machine, for the user who runs the check."""
    configured = litefs_settings()
    if configured is None:
        return []
    if sys.platform != "linux":
        return [
            Error(
                f"LiteFS runs on Linux only, and this is {sys.platform}.",
                hint='To develop without it set LITEFS["ENABLED"] to False.',
                id="litefs_django.E016",
            )
        ]
    from litefs_django._litefs.binary import missing_requirements
    from litefs_django._litefs.config import ConfigGenerator

    allow_other = ConfigGenerator(configured).is_open_to_others
    return [
        Error(
            f"This machine lacks {requirement.missing}; LiteFS cannot be mounted.",
            hint=requirement.command,
            id="litefs_django." + next(code for what, code in REQUIRED if requirement.missing.startswith(what)),
        )
        for requirement in missing_requirements(os.geteuid() == 0, allow_other)
    ]


def check_binary(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E014 and E015: no litefs binary, or one that does not run here or is of another version."""
    configured = litefs_settings()
    if configured is None:
        return []
    from litefs_django._litefs import binary

    try:
        path = binary.find(configured.binary)
    except BinaryError as error:
        return [Error(str(error), id="litefs_django.E014")]
    try:
        binary.verify(path)
    except BinaryError as error:
        return [Error(str(error), id="litefs_django.E015")]
    return []


def check_directories(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E018: a directory that litefs_run of this user could neither make nor use."""
    configured = valid_settings()
    if configured is None or sys.platform != "linux":
        return []
    paths = {"RUN_PATH": (configured.run, True), "DATA_PATH": (configured.data_path, True)}
    if not configured.cluster.this.is_witness and not is_litefs_mounted(configured):
        paths["MOUNT_PATH"] = (configured.mount_path, False)
    return [
        Error(
            f'LITEFS["{key}"]: {str(path)!r} {problem}.',
            hint="Run this as the user that runs litefs_run. That user needs the directory for itself"
            + (", or a parent to make it in." if is_owned else " or may make it."),
            id="litefs_django.E018",
        )
        for key, (path, is_owned) in paths.items()
        if (problem := directory_problem(path, is_owned=is_owned, may_be_link=key != "MOUNT_PATH"))
    ]


def check_port(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E019: where LiteFS of this node is to listen nobody can, or somebody else does."""
    configured = litefs_settings()
    if configured is None or sys.platform != "linux":
        return []
    from litefs_django._litefs.listening import bind_problem, find_listener, host_and_port

    host, port = host_and_port(configured)
    problem = bind_problem(host, port)
    if problem is None:
        return []
    message, hint = f"{problem.strerror}.", 'Set "ADDRESS" to an address or host name of this machine.'
    if problem.errno == errno.EADDRINUSE:
        listener = find_listener(configured)
        if listener is None or listener.is_ours:
            return []
        message = f"{listener} listens there."
        hint = 'Stop it, or set LITEFS["HTTP_PORT"], or "HTTP_PORT" of this node.'
    elif problem.errno == errno.EADDRNOTAVAIL:
        message = "this machine has no such address."
        hint += ' Behind address translation set LITEFS["LITEFS_YML"] to {"http": {"addr": ":' + str(port) + '"}}.'
    elif problem.errno in (errno.EACCES, errno.EPERM):
        hint = f'User {os.geteuid()} may not: set "HTTP_PORT" to one from 1024.'
    node = configured.cluster.node
    return [
        Error(
            f'LITEFS["NODES"]["{node}"]: LiteFS cannot listen on {host or "every interface"}, port {port}: {message}',
            hint=hint,
            id="litefs_django.E019",
        )
    ]


def check_exposure(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W003: LiteFS's HTTP API, which knows no authentication, where strangers may reach it."""
    configured = litefs_settings()
    if configured is None:
        return []
    from litefs_django._litefs.listening import host_and_port, public_addresses

    host, port = host_and_port(configured)
    if host in ("", "0.0.0.0", "::"):
        where = "on every interface of this machine"
    elif public := public_addresses(host):
        where = f"on {', '.join(sorted(map(str, public)))}, a public address"
    else:
        return []
    return [
        Warning(
            f'LITEFS["NODES"]["{configured.cluster.node}"]: LiteFS listens {where} (port {port}), and knows no '
            "authentication: who reaches it reads and replaces every database.",
            hint="Use an address on a private network. Where a firewall lets only the other nodes through, silence "
            '"litefs_django.W003".',
            id="litefs_django.W003",
        )
    ]


def check_raft_exposure(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W041: the port of Raft, which knows the secret, but is no match for a flood, where strangers may reach it."""
    configured = valid_settings()
    if configured is None or configured.leader_election != "raft":
        return []
    from litefs_django._litefs.listening import public_addresses

    this = configured.cluster.this
    if not (public := public_addresses(this.address)):
        return []
    return [
        Warning(
            f'LITEFS["NODES"]["{this.name}"]: the lease process listens on {", ".join(sorted(map(str, public)))}, a '
            f"public address. Nothing can be read or changed there without the SECRET, but strangers who reach "
            f"RAFT_PORT ({this.raft_port}) can use up its memory, and so keep this node from voting.",
            hint="Use an address on a private network. Where a firewall lets only the other nodes through to it and to "
            f'RELAY_PORT ({this.relay_port}), silence "litefs_django.W041".',
            id="litefs_django.W041",
        )
    ]
