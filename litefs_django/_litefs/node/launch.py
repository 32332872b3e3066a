"""From settings to a process that is the supervisor: everything that can be refused is refused before."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from litefs_django._litefs import binary, fusermount
from litefs_django._litefs.config import LEASE_KEY, LEASE_URL, ConfigGenerator
from litefs_django._litefs.errors import LiteFSError, SupervisorError
from litefs_django._litefs.listening import bind_problem, find_listener, host_and_port
from litefs_django._litefs.node.claim import PRIVATE, claim, claim_mount_path
from litefs_django._litefs.node.description import Command, LeaseService, NodeDescription
from litefs_django._litefs.node.joining import check_joining
from litefs_django._litefs.node.lease.description import LeaseDescription
from litefs_django._litefs.reach import reach
from litefs_django._litefs.settings import LiteFSSettings, Node

CONFIG = "litefs.yml"
LEASE = "lease.json"
DESCRIPTION = "node.json"


def prepare(
    settings: LiteFSSettings,
    application: Command,
    *,
    on_primary: Sequence[Command] = (),
    migrate: Command = (),
    is_bootstrap: bool = False,
) -> Path:
    """Claims the node's directories for this process and writes litefs.yml and the description, whose path it returns.

    The claims last as long as this process, as the supervisor too; `is_bootstrap` is for the lease process. Raises
    LiteFSError with all that stands in the way.
    """
    nodes = reach(settings)
    litefs = _find_litefs(ConfigGenerator(settings), [application, *on_primary])
    # The kernel lists mounts under their real paths. The last part may be a dead mount, which nobody can resolve.
    mount_path = settings.mount_path.parent.resolve() / settings.mount_path.name
    search_path = os.environ.get("PATH", os.defpath)
    claims = [claim("RUN_PATH", settings.run), claim("DATA_PATH", settings.data_path, PRIVATE)]
    if shutil.which("fusermount3") is None:
        search_path = f"{_install_helper(settings)}:{search_path}"
    claims.append(claim_mount_path(mount_path, search_path))
    check_joining(settings)
    _check_port(settings)
    lease = _prepare_lease(settings, is_bootstrap=is_bootstrap) if settings.leader_election == "raft" else None
    config = ConfigGenerator(settings, lease.url if lease else LEASE_URL)
    config.write(settings.run / CONFIG)
    NodeDescription(
        name=settings.cluster.node,
        primary=settings.cluster.primary,
        mount_path=mount_path,
        run_path=settings.run,
        databases=tuple(database.name for database in settings.databases),
        urls={**nodes.urls, settings.cluster.node: config.local_url},
        identity=nodes.identity,
        lease=lease,
        litefs=(str(litefs), "mount", "-config", str(settings.run / CONFIG), "-no-expand-env"),
        search_path=search_path,
        application=application,
        on_primary=tuple(on_primary),
        migrate=migrate,
        claims=tuple(claims),
    ).write(settings.run / DESCRIPTION)
    for descriptor in (*claims, *((lease.listener,) if lease else ())):
        os.set_inheritable(descriptor, True)
    return settings.run / DESCRIPTION


def prepare_witness(settings: LiteFSSettings, *, is_bootstrap: bool = False) -> Path:
    """As `prepare`, for a node that only votes."""
    nodes = reach(settings)
    claims = [claim("RUN_PATH", settings.run), claim("DATA_PATH", settings.data_path, PRIVATE)]
    lease = _prepare_lease(settings, is_bootstrap=is_bootstrap)
    NodeDescription(
        name=settings.cluster.node,
        primary=None,
        mount_path=settings.mount_path,
        run_path=settings.run,
        databases=(),
        urls=nodes.urls,
        identity=nodes.identity,
        lease=lease,
        litefs=(),
        search_path="",
        application=(),
        on_primary=(),
        migrate=(),
        claims=tuple(claims),
    ).write(settings.run / DESCRIPTION)
    for descriptor in (*claims, lease.listener):
        os.set_inheritable(descriptor, True)
    return settings.run / DESCRIPTION


def _prepare_lease(settings: LiteFSSettings, *, is_bootstrap: bool) -> LeaseService:
    """Writes the lease process's description, and takes the port that it will serve. DATA_PATH has to be claimed."""
    cluster, this, nodes = settings.cluster, settings.cluster.this, reach(settings)
    assert nodes.identity is not None, "with Raft there is one"
    litefs_url = None if this.is_witness else ConfigGenerator(settings).local_url
    _check_raft_ports(this)
    listener = socket.create_server(("127.0.0.1", 0))
    token = secrets.token_urlsafe(32)
    LeaseDescription(
        name=this.name,
        members={node.name: f"{node.address}:{node.raft_port}" for node in cluster.nodes},
        relays={node.name: f"{node.address}:{node.relay_port}" for node in cluster.nodes},
        secrets=settings.secrets,
        urls=nodes.urls if litefs_url is None else {**nodes.urls, this.name: litefs_url},
        identity=nodes.identity,
        ttl=settings.lease_ttl,
        directory=settings.data_path / "raft",
        data_path=settings.data_path,
        is_bootstrap=is_bootstrap,
        listener=listener.fileno(),
        token=token,
        key=LEASE_KEY,
        litefs_url=litefs_url,
        run_path=settings.run,
    ).write(settings.run / LEASE)
    program = (sys.executable, "-P", "-m", "litefs_django._litefs.node.lease", str(settings.run / LEASE))
    port = listener.getsockname()[1]
    return LeaseService(command=program, listener=listener.detach(), port=port, token=token, ttl=settings.lease_ttl)


def _check_raft_ports(this: Node) -> None:
    for key, port in (("RAFT_PORT", this.raft_port), ("RELAY_PORT", this.relay_port)):
        assert port is not None
        if problem := bind_problem(this.address, port):
            raise SupervisorError(
                f'LITEFS["NODES"]["{this.name}"]: {this.address} port {port} cannot be listened on '
                f'({problem.strerror}). "ADDRESS" has to be this machine\'s, and "{key}" free.'
            )


def _install_helper(settings: LiteFSSettings) -> Path:
    """Where our fusermount3 lies. Raises SupervisorError when it can run from neither directory (noexec)."""
    for directory in (settings.run / "bin", settings.data_path / "bin"):
        fusermount.install_helper(directory)
        if _is_executable(directory / "fusermount3"):
            return directory
    raise SupervisorError(
        f"fusermount3 is missing, and nothing can be executed in {settings.run} and {settings.data_path} (noexec). "
        "Install the package fuse3."
    )


def _is_executable(program: Path) -> bool:
    # access(2) with X_OK says no on a file system that is mounted noexec.
    return os.access(program, os.X_OK)


def become_supervisor(description: Path) -> NoReturn:
    """Replaces this process by the supervisor, which imports nothing from the project's directories."""
    package = str(Path(__file__).parents[3])
    if os.path.abspath(sys.path[0]) == package:
        # -P leaves out the script's or the current directory, and that is where litefs_django lies.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), package]))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "litefs_django._litefs.node", str(description)])


def _find_litefs(config: ConfigGenerator, commands: Sequence[Command]) -> Path:
    """The verified binary. Raises SupervisorError with everything that this machine lacks."""
    missing = [_missing_command(argv[0]) for argv in commands if shutil.which(argv[0]) is None]
    problems = [
        f"{requirement.missing} is missing; what mends it: {requirement.command}"
        for requirement in binary.missing_requirements(os.geteuid() == 0, config.is_open_to_others)
    ]
    litefs = Path()
    try:
        litefs = binary.find(config.settings.binary)
        binary.verify(litefs)
    except LiteFSError as error:
        problems.append(str(error))
    if problems:
        missing += ["LiteFS cannot run here:", *(f"- {problem}" for problem in problems)]
    if missing:
        raise SupervisorError("\n".join(missing))
    return litefs


def _missing_command(name: str) -> str:
    said = f"There is no command {name!r}"
    if os.path.dirname(name):
        return f"{said}."
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return f"{said} on PATH. Write {str(beside)!r}, or activate that virtual environment."
    return f"{said} on PATH. Is it installed, and its virtual environment active?"


def _check_port(settings: LiteFSSettings) -> None:
    """Raises SupervisorError when somebody listens where LiteFS is to: LiteFS itself would not say who."""
    if (listener := find_listener(settings)) is not None:
        host, port = host_and_port(settings)
        raise SupervisorError(
            f'LITEFS["NODES"]["{settings.cluster.node}"]: LiteFS cannot listen on {host or "every interface"}, port '
            f'{port}: {listener} listens there. Stop it, or set "HTTP_PORT" of this node.'
        )
