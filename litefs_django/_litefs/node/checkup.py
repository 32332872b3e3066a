"""What only the running machine can tell: this node's LiteFS and supervisor, the other nodes, clocks, disk space.

Nothing here waits for long: whatever may hang, a LiteFS that is stopped above all, is given seconds.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from litefs_django._litefs.directories import real_mount_path
from litefs_django._litefs.errors import ClientError, MountError, SupervisorError
from litefs_django._litefs.health import HealthChecker
from litefs_django._litefs.listening import Listener, bind_problem, find_listener, host_and_port, is_stopped
from litefs_django._litefs.mount import PrimaryDetector
from litefs_django._litefs.node.finding import Finding, Level
from litefs_django._litefs.node.joining import check_joining
from litefs_django._litefs.node.lease_checkup import check_lease
from litefs_django._litefs.node.mounts import is_mounted, unmount_command
from litefs_django._litefs.node_file import NodeFile
from litefs_django._litefs.reach import Reach, reach
from litefs_django._litefs.settings import LiteFSSettings, endpoint, redacted
from litefs_django._litefs.survey import NodeReport, all_at_once, survey

MountState = Literal["none", "answers", "hangs", "dead", "closed"]

_MOUNT_TIMEOUT = 1.0
_CONNECT_TIMEOUT = 2.0
_CLOCKS_DIFFER = 1.0  # seconds; what LiteFS tells is not more exact
_HARDLY_ANY_SPACE = 4 << 20
_LITTLE_SPACE = 64 << 20


@dataclass(frozen=True, slots=True)
class NodeState:
    """This node now. `generation` is the node file's: None without a living supervisor, odd while LiteFS is down."""

    generation: int | None
    mount: MountState
    listener: Listener | None

    @property
    def runs(self) -> bool:
        """Whether anything of the node is there that is meant to serve."""
        return self.generation is not None or self.mount != "none"


def check_up(settings: LiteFSSettings) -> Iterator[Finding]:
    """Looks once, at everything at the same time, and says how each thing is."""
    nodes, cluster = reach(settings), settings.cluster
    generation, mount = NodeFile(settings.run).generation(), _mount_state(settings.mount_path)
    with ThreadPoolExecutor(4) as pool:
        asked = pool.submit(survey, nodes, [node.name for node in cluster.data_nodes])
        found = pool.submit(find_listener, settings)
        joining = pool.submit(_joining_problem, settings)
        lease = pool.submit(lambda: list(check_lease(settings, is_supervised=generation is not None)))
        state = NodeState(generation, mount, found.result())
        reports = [_own(report, settings, state) for report in asked.result()]
        refused = "" if state.runs else joining.result()
    if not cluster.this.is_witness:
        yield from _port(settings, state)
    yield from _supervisor(settings, state)
    if not cluster.this.is_witness:
        yield from _mount(settings, state)
    yield from lease.result()
    if refused:
        yield Finding("error", "cluster", refused, "Until then litefs_run does not start this node.")
    yield from _cluster(settings, nodes, state, reports)
    running = [report.name for report in reports if report.info and report.name != cluster.node]
    yield from _urls(settings, running)
    yield from _clocks(nodes, running)
    yield _disk(settings.data_path)


def _own(report: NodeReport, settings: LiteFSSettings, state: NodeState) -> NodeReport:
    """The report, without what another LiteFS on this node's port has said."""
    if report.name == settings.cluster.node and state.listener and not state.listener.is_ours:
        return NodeReport(name=report.name, error="another LiteFS answers")
    return report


def _joining_problem(settings: LiteFSSettings) -> str:
    """Why litefs_run would not start this node beside the others; "" when it would, and where that cannot be told."""
    try:
        check_joining(settings)
    except SupervisorError as error:
        return str(error)
    except OSError:
        # DATA_PATH is its own user's alone.
        return ""
    return ""


def _mount_state(mount_path: Path) -> MountState:
    """A LiteFS that is stopped is waited for in a thread, which ends with LiteFS or with this process."""
    if not is_mounted(real_mount_path(mount_path)):
        return "none"
    seen: list[MountState] = []

    def look() -> None:
        try:
            # Not the root: the kernel answers for that from its cache.
            PrimaryDetector(mount_path).lag()
            seen.append("answers")
        except MountError as error:
            is_closed = getattr(error.__cause__, "errno", None) in (errno.EACCES, errno.EPERM)
            seen.append("closed" if is_closed else "dead")

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(_MOUNT_TIMEOUT)
    return seen[0] if seen else "hangs"


def _port(settings: LiteFSSettings, state: NodeState) -> Iterator[Finding]:
    """A port that is another's, or where nobody can listen, is a system check's to report (E019)."""
    host, port = host_and_port(settings)
    where = f"{host or 'every interface'}, port {port}"
    if state.listener is not None:
        if state.listener.is_ours:
            yield Finding("ok", "port", f"{state.listener} listens on {where}")
    elif state.mount == "answers":
        yield Finding(
            "warning",
            "port",
            f"LiteFS runs, but does not listen on {where}: the other nodes look for it there.",
            "If the settings have changed since, restart litefs_run.",
        )
    elif bind_problem(host, port) is None:
        yield Finding("ok", "port", f"{where} is free")


def _supervisor(settings: LiteFSSettings, state: NodeState) -> Iterator[Finding]:
    subject, is_witness = "supervisor", settings.cluster.this.is_witness
    if is_witness and state.runs:
        yield Finding("ok", subject, "litefs_run is alive; this node is a witness")
    elif is_witness:
        yield Finding(
            "warning",
            subject,
            f"This node, {settings.cluster.node!r}, a witness, does not run: no litefs_run.",
            'Start it with "manage.py litefs_run --witness".',
        )
    elif not state.runs:
        yield Finding(
            "warning",
            subject,
            f"This node, {settings.cluster.node!r}, does not run: no litefs_run, and no LiteFS on "
            f"{settings.mount_path}.",
            'Start it with "manage.py litefs_run -- COMMAND".',
        )
    elif state.generation is None:
        yield Finding(
            "warning",
            subject,
            f"No litefs_run looks after this node: {settings.run / 'node'} is missing, old or not this user's to read.",
            'Start LiteFS with "manage.py litefs_run", which restarts it and tells connections of it.',
        )
    elif state.generation & 1:
        yield Finding(
            "error",
            subject,
            "litefs_run is alive, but LiteFS is down, or does not serve its mount yet.",
            "litefs_run starts it again, and its output says why it ended.",
        )
    else:
        yield Finding("ok", subject, "litefs_run is alive and LiteFS is up")


def _mount(settings: LiteFSSettings, state: NodeState) -> Iterator[Finding]:
    path, subject, supervised = settings.mount_path, "mount", state.generation is not None
    if state.mount == "answers":
        pid = state.listener.pid if state.listener and state.listener.is_ours else None
        by = f", served by process {pid}" if pid is not None else ""
        yield Finding("ok", subject, f"LiteFS is mounted on {path} and answers{by}")
    elif state.mount == "hangs":
        pid = state.listener.pid if state.listener and state.listener.is_ours else None
        message = f"LiteFS does not answer on {path} within {_MOUNT_TIMEOUT:g} s"
        hint = "End its process with SIGKILL: litefs_run starts LiteFS again."
        if pid is not None and is_stopped(pid):
            message += f": process {pid} is stopped"
            hint = f"Let it go on with: kill -CONT {pid}"
        yield Finding("error", subject, f"{message}.", hint)
    elif state.mount == "dead":
        hint = "litefs_run takes it away" + ("." if supervised else f" when it starts; or: {_unmount(path)}")
        yield Finding("error", subject, f"{path} is the mount of a LiteFS that has ended.", hint)
    elif state.mount == "closed":
        yield Finding(
            "error",
            subject,
            f"This user may not enter {path}.",
            'LiteFS serves only the user who started it unless LITEFS["ALLOW_OTHER"] is True.',
        )
    elif supervised and state.generation is not None and not state.generation & 1:
        yield Finding("error", subject, f"{path} was unmounted by somebody.", "litefs_run starts LiteFS again.")


def _unmount(path: Path) -> str:
    return " ".join(unmount_command(path))


def _cluster(
    settings: LiteFSSettings, nodes: Reach, state: NodeState, reports: Sequence[NodeReport]
) -> Iterator[Finding]:
    """Before this node runs nobody knows whether the cluster should: what it lacks then is a warning."""
    this = settings.cluster.node
    answering = [report for report in reports if report.info is not None]
    level: Level = "error" if state.runs or any(report.is_primary for report in answering) else "warning"
    for report in reports:
        if report.info is not None:
            if report.name != this:
                yield Finding("ok", report.name, _described(report))
        elif report.name != this:
            address = urlsplit(nodes.urls[report.name]).netloc
            hint = f"Is litefs_run running there, with the same settings, and may this machine reach {address}?"
            yield Finding(level, report.name, report.error, hint)
        elif state.mount == "answers" and (state.listener is None or state.listener.is_ours):
            yield Finding("error", f"{this} (here)", report.error, "LiteFS's log says why.")
    if not answering:
        return
    problems = HealthChecker(settings).check(answering).problems
    for problem in problems:
        yield Finding(level, "cluster", problem.reason, problem.hint)
    if not problems:
        yield Finding("ok", "cluster", "the nodes that answer belong together and are in sync")


def _urls(settings: LiteFSSettings, running: Sequence[str]) -> Iterator[Finding]:
    """Whether requests could be handed to these nodes."""
    if settings.handover != "forward" or settings.cluster.this.is_witness:
        return
    urls = {node.name: node.url for node in settings.cluster.nodes if node.url and node.name in running}

    def connect(name: str) -> str:
        try:
            socket.create_connection(endpoint(urls[name]), _CONNECT_TIMEOUT).close()
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def late(name: str) -> str:
        return f"no answer within {_CONNECT_TIMEOUT:g} s"

    problems = all_at_once(list(urls), connect, _CONNECT_TIMEOUT, late)
    for name, problem in zip(urls, problems, strict=True):
        if problem:
            yield Finding(
                "warning",
                "handover",
                f'LITEFS["NODES"]["{name}"]["URL"]: no connection is taken at {redacted(urls[name])} ({problem}), so '
                "no request can be handed to it.",
                "It has to be the application server of that node itself, running, and reached from this machine.",
            )


def _described(report: NodeReport) -> str:
    assert report.info is not None
    if report.is_primary:
        return "answers, is the primary"
    lag = "never in sync" if report.lag is None else f"heard from its primary {report.lag:.1f} s ago"
    return f"answers, is a replica, {lag}"


def _clocks(nodes: Reach, names: Sequence[str]) -> Iterator[Finding]:
    """How far the clocks of these nodes and this machine's are apart, as exactly as LiteFS tells."""

    def ask(name: str) -> tuple[float, float] | None:
        with suppress(ClientError):
            return nodes.client(name).clock_offset()
        return None

    if not names:
        return
    with ThreadPoolExecutor(len(names)) as pool:
        offsets = list(pool.map(ask, names))
    known = [(name, offset) for name, offset in zip(names, offsets, strict=True) if offset is not None]
    wrong = [(name, least, most) for name, (least, most) in known if least > _CLOCKS_DIFFER or most < -_CLOCKS_DIFFER]
    for name, least, most in wrong:
        nearest, furthest = sorted((abs(least), abs(most)))
        yield Finding(
            "warning",
            "clocks",
            f"The clock of {name} is {nearest:.0f} to {furthest:.0f} s {'ahead of' if least > 0 else 'behind'} "
            "this machine's: the lag of replicas, which compares clocks, is off by that.",
            "Synchronise the clocks of all nodes (NTP).",
        )
    if known and not wrong:
        furthest = max(abs(bound) for _, offset in known for bound in offset)
        yield Finding("ok", "clocks", f"they differ by {furthest:.1f} s at most; LiteFS tells no more exactly")


def _disk(data_path: Path) -> Finding:
    """The space of DATA_PATH beside the size of the databases in it."""
    existing = next(path for path in (data_path, *data_path.parents) if os.path.exists(path))
    room = os.statvfs(existing)
    free = room.f_bavail * room.f_frsize
    size = _databases_size(data_path)
    message = f"{_written(free)} free for DATA_PATH {data_path}"
    if size:
        message += f", whose databases take {_written(size)}"
    if free < _HARDLY_ANY_SPACE:
        return Finding("error", "disk", f"{message}: commits are about to fail.", "Make room, or move DATA_PATH.")
    if free < max(2 * size, _LITTLE_SPACE):
        return Finding(
            "warning",
            "disk",
            f"{message}: that is little.",
            f"Have {_written(max(2 * size, _LITTLE_SPACE))} free: what rewrites a database (VACUUM, a migration, a "
            "copy from the primary) takes up to twice its size for as long as RETENTION.",
        )
    return Finding("ok", "disk", message)


def _databases_size(data_path: Path) -> int:
    """In bytes; 0 where there are none, and where this user may not look."""
    with suppress(OSError):
        return sum(path.stat().st_size for path in (data_path / "dbs").glob("*/database"))
    return 0


def _written(size: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1000:.0f} kB"
