"""Small applications for the supervisor to run."""

from __future__ import annotations

import sys

# Says that it runs and which signals it gets. SIGTERM ends it with the exit code given.
IDLE = """
import os, signal, sys, time
def note(number, frame):
    os.write(1, f"got {signal.Signals(number).name}\\n".encode())
    if number == signal.SIGTERM:
        sys.exit(int(sys.argv[1]) if sys.argv[1:] else 0)
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, note)
print("application runs", flush=True)
while True:
    time.sleep(60)
"""

# Processes that write through the ORM until SIGTERM; each prints the names that were acknowledged. Arguments: how many,
# and bytes that each transaction writes besides, so that it is committing most of the time.
WRITERS = """
import multiprocessing, os, signal, sys, time
import django
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole, whatever the other processes say
stopping = []
signal.signal(signal.SIGTERM, lambda *args: stopping.append(1))
def write():
    django.setup()
    from django.contrib.auth.models import Group
    from django.contrib.sessions.models import Session
    from django.db import DatabaseError, transaction
    from django.utils import timezone
    size = int(sys.argv[2]) if sys.argv[2:] else 0
    def create(name):
        if not size:
            Group.objects.create(name=name)
            return
        with transaction.atomic():
            Group.objects.create(name=name)
            Session.objects.update_or_create(
                session_key=str(os.getpid()),
                defaults={"session_data": os.urandom(size // 2).hex(), "expire_date": timezone.now()},
            )
    for count in range(10 ** 9):
        if stopping:
            break
        name = f"{os.getpid()}-{count}"
        try:
            create(name)
        except DatabaseError as error:
            say("failed", type(error).__name__, error)
            time.sleep(0.1)
        else:
            say("wrote", name)
if __name__ == "__main__":
    processes = [multiprocessing.get_context("fork").Process(target=write) for _ in range(int(sys.argv[1]))]
    for process in processes:
        process.start()
    while not stopping and any(process.is_alive() for process in processes):
        time.sleep(0.05)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in processes))
"""

# Prints all that the writers have written.
WRITTEN = """
import django
django.setup()
from django.contrib.auth.models import Group
for name in Group.objects.values_list("name", flat=True):
    print("has", name)
"""

# Reads all the time through one connection; says when it gets another and when it is refused, and after how long.
READER = """
import time
import django
django.setup()
from django.contrib.auth.models import Group
from django.db import DatabaseError, connection
seen = None
while True:
    started = time.monotonic()
    try:
        count = Group.objects.count()
    except DatabaseError as error:
        print(f"refused after {time.monotonic() - started:.3f} s:", error, flush=True)
    else:
        if connection.connection is not seen:
            seen = connection.connection
            print(f"connected after {time.monotonic() - started:.3f} s, groups: {count}", flush=True)
    time.sleep(0.002)
"""


def python(code: str, *arguments: str) -> list[str]:
    """A command that runs this code."""
    return [sys.executable, "-c", code, *arguments]
