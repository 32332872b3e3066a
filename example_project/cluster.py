"""Three nodes of the message board on this machine, on real LiteFS.

python example_project/cluster.py           runs them until Ctrl-C
python example_project/cluster.py --check   plays a scenario through HTTP; exits 1 when anything differs

Where LiteFS cannot run, one plain node runs in its place. Nothing is left behind: no process, no
mount, no directory.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from nodes import MANAGE, Node, NodeError, cluster, mounts_under, plain_node
from scenario import Scenario


def main() -> int:
    parser = argparse.ArgumentParser(description="Three nodes of the message board on this machine, on real LiteFS.")
    parser.add_argument("--check", action="store_true", help="play a scenario through HTTP, then stop")
    check: bool = parser.parse_args().check
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)

    directory = Path(tempfile.mkdtemp(prefix="litefs-example-"))
    nodes = cluster(directory, show=not check)
    done = False
    try:
        if not can_run_litefs(nodes[0]):
            if check:
                raise NodeError("\nLiteFS cannot run here (see above), so there is nothing to check.")
            nodes = [plain_node(directory)]
        for node in nodes:
            node.start()
        for node in nodes:
            node.wait_until_it_answers()
        done = Scenario(nodes).play() if check else serve(nodes, directory)
    except NodeError as error:
        print(error)
    except KeyboardInterrupt:
        print("\nInterrupted.")
    finally:
        done = clean_up(nodes, directory) and done
    if check and not done:
        for node in nodes:
            print("".join(node.output), end="")
    return 0 if done else 1


def interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP end this program as Ctrl-C does."""
    raise KeyboardInterrupt


def can_run_litefs(node: Node) -> bool:
    """Builds LiteFS where there is none. When it cannot run here, says what is missing and what mends it."""
    if subprocess.run([*MANAGE, "litefs_install"]).returncode != 0:
        return False
    try:
        node.manage("check", "--deploy", "--tag=litefs")
    except NodeError as error:
        print(error)
        return False
    return True


def serve(nodes: list[Node], directory: Path) -> bool:
    """Until Ctrl-C, which is the way to end it, or until a node ends by itself."""
    print(plain_welcome(nodes[0]) if len(nodes) == 1 else welcome(nodes, directory), flush=True)
    try:
        while all(node.is_running() for node in nodes):
            time.sleep(0.2)
    except KeyboardInterrupt:
        print("\nStopping.", flush=True)
        return True
    return False


def clean_up(nodes: list[Node], directory: Path) -> bool:
    """Stops the nodes, replicas first, and removes what they had. Whether every one ended cleanly."""
    # A second Ctrl-C must not leave half of it running; each node has its own time limit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    clean = True
    for node in reversed(nodes):
        try:
            node.stop()
        except NodeError as error:
            print(error)
            clean = False
    for mount in mounts_under(directory):
        print(f"{mount} was still mounted.")
        subprocess.run(["umount", "--lazy", mount] if os.geteuid() == 0 else ["fusermount3", "-uz", mount])
        clean = False
    shutil.rmtree(directory)
    return clean


def welcome(nodes: list[Node], directory: Path) -> str:
    primary, one, other = nodes
    password = secrets.token_hex(4)
    superuser = {"USERNAME": "admin", "EMAIL": "admin@example.com", "PASSWORD": password}
    primary.manage("createsuperuser", "--noinput", **{f"DJANGO_SUPERUSER_{key}": superuser[key] for key in superuser})
    return f"""
Three nodes with LiteFS are running in {directory}:

  {primary.name}  {primary.url}/   the primary: it writes
  {one.name}  {one.url}/   a replica
  {other.name}  {other.url}/   a replica

Try this:
  - Sign up on {one.name} and post a message, with a picture if you like. Only the primary writes, so {one.name} hands
    that over to {primary.name}; you do not notice. It is on {other.name} at once, and you are logged in there too.
  - Look at the foot of each page: node, role, position, lag.
  - Look into Django's admin on any node: {other.url}/admin/ (user admin, password {password}).
  - End {primary.name}'s LiteFS with: kill -9 {primary.pids()["litefs"]}
    It comes back by itself, with every message.

Ctrl-C stops everything and removes the directory.
"""


def plain_welcome(site: Node) -> str:
    return f"""
LiteFS cannot run here (see above), so this is one plain node on SQLite, without replicas:

  {site.url}/

Ctrl-C stops it and removes its database.
"""


if __name__ == "__main__":
    sys.exit(main())
