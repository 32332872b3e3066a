"""`manage.py litefs_migrate [--check]`: migrations where they are to run, and waiting for them everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, OperationalError, connections
from django.db.migrations.executor import MigrationExecutor

from litefs_django import conf
from litefs_django._litefs.errors import ClientError, MountError, SettingsError
from litefs_django._litefs.reach import Reach, reach
from litefs_django._litefs.settings import ClusterConfig
from litefs_django.db.backends.litefs.base import DatabaseWrapper
from litefs_django.db.backends.litefs.place import Role

_PAUSE = 0.5
# Seconds that --check gives another node: one that is in sync has a transaction within milliseconds.
_SETTLING = 1.0


class Command(BaseCommand):
    help = "Migrates the databases on LiteFS as the primary; on a replica waits until the migrations have arrived."
    # As migrate's own, which runs those of its database.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--check",
            action="store_true",
            help="Change nothing and do not wait: exit with 1 when this node, or another, lacks migrations.",
        )
        parser.add_argument(
            "--timeout",
            type=float,
            default=300.0,
            metavar="SECONDS",
            help="How long a replica waits for the migrations. Default: 300.",
        )

    def handle(self, *, check: bool, timeout: float, verbosity: int, **options: object) -> None:
        if not timeout >= 0:
            raise CommandError(f"--timeout {timeout:g}: give 0 or more seconds.")
        self._verbosity = verbosity
        self._stdout, self._stderr = options.get("stdout"), options.get("stderr")
        aliases = [alias for alias in connections if connections.settings[alias]["ENGINE"] == conf.ENGINE]
        if not aliases:
            raise CommandError(f"No database in DATABASES has the ENGINE {conf.ENGINE!r}.")
        if not conf.is_enabled():
            for alias in aliases:
                self._call_migrate(alias, check_unapplied=check)
            return
        try:
            cluster = conf.read().cluster
        except SettingsError as error:
            raise CommandError(str(error)) from error
        if check:
            self._check([cast(DatabaseWrapper, connections[alias]) for alias in aliases], cluster)
            return
        deadline = time.monotonic() + timeout
        for alias in aliases:
            self._migrate_or_wait(alias, deadline, timeout)

    def _migrate_or_wait(self, alias: str, deadline: float, timeout: float) -> None:
        """Raises CommandError when the migrations are not here by `deadline`, on the monotonic clock."""
        said = ""
        while reason := self._migrate_or_look(cast(DatabaseWrapper, connections[alias])):
            if time.monotonic() > deadline:
                raise CommandError(f"Not within {timeout:g} s: {reason}")
            if reason != said:
                said = reason
                self._say(f"Waits: {reason}")
            # It may be of a LiteFS that has ended, and Django's schema editor does not leave its atomic() when the
            # check of constraints at its end fails: only a new one is in no block.
            connections[alias].close()
            del connections[alias]
            time.sleep(_PAUSE)
        self._say(f"Database {alias!r} has all migrations.")

    def _migrate_or_look(self, database: DatabaseWrapper) -> str:
        """Why this node has not all migrations yet; "" when it has."""
        return self._migrate(database) if _is_primary(database) else _missing_here(database)

    def _migrate(self, database: DatabaseWrapper) -> str:
        """Migrates as the primary. Returns why to look again: LiteFS or this node's role has changed under it."""
        opened = database.connection
        try:
            self._call_migrate(database.alias)
        except DatabaseError as error:
            if opened.role() is Role.PRIMARY and not opened.is_left_behind():
                raise
            return f"database {database.alias!r} was being migrated when: {error}"
        return ""

    def _call_migrate(self, alias: str, *, check_unapplied: bool = False) -> None:
        call_command(
            "migrate",
            database=alias,
            interactive=False,
            check_unapplied=check_unapplied,
            skip_checks=False,
            verbosity=self._verbosity,
            # Not ours: wrapped twice, each piece of a line ends with one of its own.
            stdout=self._stdout,
            stderr=self._stderr,
        )

    def _check(self, databases: list[DatabaseWrapper], cluster: ClusterConfig) -> None:
        """Ends with exit code 1 unless this node, and each other one that answers, has all migrations."""
        lacking: list[str] = []
        here = []
        for database in databases:
            if reason := _missing_here(database):
                lacking.append(f"{cluster.node}: {reason}")
            if (reached := _reached(database)) is not None:
                here.append(_Here(database.place.path.name, reached, lacks=bool(reason)))
        silent = []
        nodes = reach(conf.get_settings())
        for node in cluster.others:
            try:
                lacking += _missing_there(node.name, nodes, here)
            except ClientError as error:
                silent.append(node.name)
                self.stderr.write(self.style.WARNING(f"{node.name} is left out: {error}"))
        for line in lacking:
            self.stdout.write(line)
        if lacking:
            sys.exit(1)
        said = f"All nodes that answer have them ({', '.join(silent)} did not)." if silent else "All nodes have them."
        self._say(said)

    def _say(self, line: str) -> None:
        if self._verbosity > 0:
            self.stdout.write(line)
            # It may be long before the next one.
            self.stdout.flush()


@dataclass(frozen=True, slots=True)
class _Here:
    """A database as this node has it: its file name, the TXID that it has reached, and whether it lacks migrations."""

    name: str
    reached: int
    lacks: bool

    def why_missing(self, txid: int) -> str:
        """Why a node that has reached this TXID lacks migrations; "" when it need not."""
        if self.lacks and txid <= self.reached:
            return f"{self.name} is no further than that of this node."
        return f"{self.name} is behind that of this node." if txid < self.reached else ""


def _reached(database: DatabaseWrapper) -> int | None:
    """The TXID of the database on this node, 0 where there is none; None when LiteFS does not answer."""
    try:
        position = database.place.detector.position(database.place.path.name)
    except MountError:
        return None
    return position.txid if position else 0


def _missing_there(name: str, nodes: Reach, here: Sequence[_Here]) -> list[str]:
    """What that node lacks, as its positions tell. Raises ClientError when it does not answer."""
    deadline = time.monotonic() + _SETTLING
    while True:
        there = nodes.client(name).positions()
        txids = {name: position.txid for name, position in there.items()}
        reasons = [reason for it in here if (reason := it.why_missing(txids.get(it.name, 0)))]
        if not reasons or any(it.lacks for it in here) or time.monotonic() > deadline:
            return [f"{name}: {reason}" for reason in reasons]
        time.sleep(0.02)


def _is_primary(database: DatabaseWrapper) -> bool:
    """Whether the database can be opened here and this node may write to it."""
    try:
        database.ensure_connection()
        return database.place.detector.is_primary(database.place.path.name)
    except (OperationalError, MountError):
        return False


def _missing_here(database: DatabaseWrapper) -> str:
    """Why this node has not all migrations of this release; "" when it has. Makes no database."""
    place = database.place
    name = f"database {database.alias!r} ({place.path.name})"
    try:
        is_mounted = place.detector.device() is not None
        if is_mounted and place.detector.is_primary(place.path.name):
            source = "litefs_migrate applies them."
        else:
            primary = place.detector.primary_name() or "none is known now"
            source = f"they come from the primary ({primary}) once it is migrated with this release."
        if is_mounted and not place.path.exists():
            return f"{name} is not here, and lacks all migrations; {source}"
        executor = MigrationExecutor(database)
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except (OperationalError, MountError) as error:
        return str(error)
    if not plan:
        return ""
    (first, _), *others = plan
    more = f" and {len(others)} more" if others else ""
    return f"{name} lacks {first.app_label}.{first.name}{more}; {source}"
