"""What only the running machine can tell of Raft: this node's lease process, its ports, and whom it reaches."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import Any

from litefs_django._litefs import diverged
from litefs_django._litefs.errors import SupervisorError
from litefs_django._litefs.listening import bind_problem
from litefs_django._litefs.node.control import ask
from litefs_django._litefs.node.finding import Finding
from litefs_django._litefs.settings import LiteFSSettings

_TIMEOUT = 4.0  # seconds; a supervisor gives LiteFS and the lease process one each


def check_lease(settings: LiteFSSettings, *, is_supervised: bool) -> Iterator[Finding]:
    """Nothing without Raft. `is_supervised`: whether this node's supervisor is alive."""
    if settings.leader_election != "raft":
        return
    status, error = _ask(settings) if is_supervised else ({}, "")
    yield from _ports(settings, is_supervised=is_supervised)
    if status:
        yield from _lease(status)
        yield from _members(settings.cluster.node, status)
    elif error:
        yield Finding("warning", "lease", error, "Run this as the user that runs litefs_run, or as root.")
    elif is_supervised:
        yield Finding(
            "error",
            "lease",
            "The lease process of this node does not answer.",
            "litefs_run starts it again when it ends, and its output says why it did.",
        )
    for alone in diverged.find(settings.data_path):
        yield Finding(
            "warning",
            "diverged",
            f"Not in the cluster, and kept in {settings.data_path / diverged.DIRECTORY / alone.database}: {alone}.",
            "Look in the application's logs what they were about, then: manage.py litefs_status --dismiss",
        )


def _ask(settings: LiteFSSettings) -> tuple[Mapping[str, Any], str]:
    """What the lease process says of itself, and why that cannot be told."""
    try:
        return ask(settings.run, "status", timeout=_TIMEOUT)["lease"] or {}, ""
    except SupervisorError as error:
        return {}, str(error)


def _ports(settings: LiteFSSettings, *, is_supervised: bool) -> Iterator[Finding]:
    this = settings.cluster.this
    for key, port in (("RAFT_PORT", this.raft_port), ("RELAY_PORT", this.relay_port)):
        assert port is not None
        where = f"{this.address}, port {port} ({key})"
        problem = bind_problem(this.address, port)
        is_taken = problem is not None and problem.errno == errno.EADDRINUSE
        if is_taken and is_supervised:
            yield Finding("ok", "port", f"the lease process listens on {where}")
        elif problem is None and is_supervised:
            yield Finding(
                "error",
                "port",
                f"Nobody listens on {where}: the other nodes look for this one there.",
                "If the settings have changed since, restart litefs_run.",
            )
        elif problem is None:
            yield Finding("ok", "port", f"{where} is free")
        elif is_taken:
            yield Finding("error", "port", f"{where} is another process's.", f'Stop it, or set "{key}" of this node.')
        else:
            yield Finding("error", "port", f"{where}: {problem.strerror}.", '"ADDRESS" has to be this machine\'s.')


def _lease(status: Mapping[str, Any]) -> Iterator[Finding]:
    holder = status["state"]["lease"]
    if status["leader"] is None:
        yield Finding(
            "error",
            "lease",
            f"No node leads (term {status['term']}): nobody can become the primary, or stay it. {status['votes']}",
            "Most of the nodes have to run, and to reach each other on RAFT_PORT.",
        )
        return
    held = f"{holder['node']} holds the lease" if holder else "nobody holds the lease"
    votes = "" if status["votes"] == "It votes." else f" {status['votes']}"
    yield Finding("ok", "lease", f"{held}, {status['leader']} leads (term {status['term']}).{votes}")


def _members(this: str, status: Mapping[str, Any]) -> Iterator[Finding]:
    members, reachable = status["members"], set(status["reachable"])
    silent = [name for name in members if name != this and name not in reachable]
    if silent:
        borne = (len(members) - 1) // 2
        yield Finding(
            "warning" if len(silent) <= borne else "error",
            "voters",
            f"{', '.join(silent)}: not reached. Of {len(members)} nodes {borne} may be missing.",
            "Is litefs_run running there, with the same NODES, SECRET and LEASE_TTL? Its output names what differs.",
        )
    elif len(members) > 1:
        yield Finding("ok", "voters", f"all {len(members)} reach each other from here")
