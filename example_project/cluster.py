"""Three nodes of the message board on this machine, on real LiteFS.

python example_project/cluster.py           runs them until Ctrl-C
python example_project/cluster.py --check   plays a scenario through HTTP; exits 1 when anything differs

With --asgi each node runs uvicorn, else gunicorn.

Where LiteFS cannot run, one plain node runs in its place. Nothing is left behind: no process, no
mount, no directory.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from nodes import MANAGE, Node, NodeError, cluster, mounts_under, plain_node
from scenario import Scenario, find_primary

# What a node that was killed stays away, so that one can watch the others.
AWAY_SECONDS = 20
PR_SET_PDEATHSIG = 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Three nodes of the message board on this machine, on real LiteFS.")
    parser.add_argument("--check", action="store_true", help="play a scenario through HTTP, then stop")
    parser.add_argument("--asgi", action="store_true", help="run uvicorn in the place of gunicorn")
    options = parser.parse_args()
    check: bool = options.check
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, hang_up)
    end_with_tox()

    directory = Path(tempfile.mkdtemp(prefix="litefs-example-"))
    nodes = cluster(directory, is_async=options.asgi, show=not check)
    done = False
    try:
        if not can_run_litefs(nodes[0]):
            if check:
                raise NodeError("\nLiteFS cannot run here (see above), so there is nothing to check.")
            nodes = [plain_node(directory, is_async=options.asgi)]
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
    say_at_last(nodes, check=check, done=done)
    return 0 if done else 1


def interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends this program as Ctrl-C does."""
    raise KeyboardInterrupt


def hang_up(number: int, frame: FrameType | None) -> None:
    """So does SIGHUP, which says that nobody reads the output any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(nowhere, output)
    raise KeyboardInterrupt


def end_with_tox() -> None:
    """tox hands Ctrl-C on, and no SIGTERM: then it is gone, and this program would go on without it."""
    if sys.platform == "linux" and "TOX_ENV_NAME" in os.environ:
        tox = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGHUP), 0, 0, 0)
        if os.getppid() != tox:  # it ended before it could be noticed
            os.kill(os.getpid(), signal.SIGHUP)


def can_run_litefs(node: Node) -> bool:
    """Builds LiteFS where there is none. When it cannot run here, says what is missing and what mends it."""
    if subprocess.run([*MANAGE, "litefs_install"], env=node.environment).returncode != 0:
        return False
    try:
        node.manage("check", "--deploy", "--tag=litefs")
    except NodeError as error:
        print(error)
        return False
    return True


def serve(nodes: list[Node], directory: Path) -> bool:
    """Until Ctrl-C, which is the way to end it. Raises NodeError when a node ends by itself."""
    print(plain_welcome(nodes[0]) if len(nodes) == 1 else welcome(nodes, directory), flush=True)
    back_at: dict[Node, float] = {}
    try:
        while True:
            for node in nodes:
                if node.was_killed():
                    print(f"{node.name} was killed: it is started again in {AWAY_SECONDS} s.", flush=True)
                    back_at[node] = time.monotonic() + AWAY_SECONDS
                if time.monotonic() > back_at.get(node, float("inf")):
                    del back_at[node]
                    node.start()
            time.sleep(0.2)
    except KeyboardInterrupt:
        print("\nStopping.", flush=True)
        return True


def clean_up(nodes: list[Node], directory: Path) -> bool:
    """Stops the nodes, all at once, and removes what they had. Whether every one ended cleanly."""
    # A second Ctrl-C must not leave half of it running; each node has its own time limit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with ThreadPoolExecutor() as pool:
        clean = all([*pool.map(stop, nodes)])
    for mount in mounts_under(directory):
        print(f"{mount} was still mounted.")
        subprocess.run(["umount", "--lazy", mount] if os.geteuid() == 0 else ["fusermount3", "-uz", mount])
        clean = False
    shutil.rmtree(directory)
    return clean


def say_at_last(nodes: list[Node], *, check: bool, done: bool) -> None:
    """After a check that failed, what the nodes said; after Ctrl-C, what to make of tox's last line."""
    if check and not done:
        for node in nodes:
            print("".join(node.output), end="")
    elif done and not check and "TOX_ENV_NAME" in os.environ:
        print("Stopped. After Ctrl-C tox says 'evaluation failed', as it always does then: it is no error.")


def stop(node: Node) -> bool:
    """Whether it ended cleanly; if not, says what it did."""
    try:
        node.stop()
    except NodeError as error:
        print(error)
        return False
    return True


def welcome(nodes: list[Node], directory: Path) -> str:
    primary = find_primary(nodes)
    one, other = (node for node in nodes if node is not primary)
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
  - Kill {primary.name}, with all that it runs: kill -9 {primary.pid}
    Another node is the primary within about three seconds: go on posting on the others, and see who it is at the foot
    of the pages. A post that was under way may end in a page that says that it is not known whether it was saved.
    {primary.name} is started again after {AWAY_SECONDS} s, and follows.

Ctrl-C stops everything and removes the directory, and so does: kill {os.getpid()}
"""


def plain_welcome(site: Node) -> str:
    return f"""
LiteFS cannot run here (see above), so this is one plain node on SQLite, without replicas:

  {site.url}/

Ctrl-C stops it and removes its database, and so does: kill {os.getpid()}
"""


if __name__ == "__main__":
    sys.exit(main())
