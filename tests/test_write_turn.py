"""The lock under the write turn and the commit gate: whoever ends, however it ends, leaves it free."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from litefs_django._litefs import write_turn
from litefs_django._litefs.write_turn import FileLock, gate_path, turn_path
from tests.machine import wait_until

ROOT = Path(__file__).parents[1]

Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "db.sqlite3.turn"


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    """Starts processes that run code; `lock` and `say` are theirs. Those still running at the end are killed."""
    started = []

    def start(code: str) -> subprocess.Popen[str]:
        prelude = f"""
import os, signal, sys, threading, time
from pathlib import Path
from litefs_django._litefs.write_turn import FileLock
def say(word):
    print(word, flush=True)
lock = FileLock(Path({str(path)!r}))
"""
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", prelude + code],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def hear(process: subprocess.Popen[str], *words: str) -> None:
    assert process.stdout is not None
    for word in words:
        assert process.stdout.readline().strip() == word


def is_free(path: Path) -> bool:
    with closing(FileLock(path)) as lock:
        return lock.acquire(0)


def waiting(path: Path) -> int:
    """How many threads of this process wait for the lock."""
    return len(write_turn._queue(path.stat())._waiters)


def wait_for_waiters(path: Path, count: int) -> None:
    wait_until(lambda: waiting(path) == count, f"{count} threads wait")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "litefs-write-turn"]


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_each_database_has_a_turn_and_a_gate(tmp_path: Path) -> None:
    paths = {of(tmp_path, name) for of in (turn_path, gate_path) for name in ("a.sqlite3", "b.sqlite3")}
    assert len(paths) == 4
    assert {path.parent for path in paths} == {tmp_path}


def test_handles_exclude_each_other(path: Path) -> None:
    with closing(FileLock(path)) as one, closing(FileLock(path)) as two:
        assert one.acquire(0)
        assert one.is_held
        assert not two.acquire(0)
        assert not two.is_held
        one.release()
        assert not one.is_held
        assert two.acquire(0)


def test_releasing_what_is_not_held_changes_nothing(path: Path) -> None:
    with closing(FileLock(path)) as one, closing(FileLock(path)) as two:
        two.release()
        assert one.acquire(0)
        two.release()
        two.release()
        assert not is_free(path)


def test_closing_gives_the_lock_back_and_it_can_be_taken_again(path: Path) -> None:
    lock = FileLock(path)
    assert lock.acquire(0)
    lock.close()
    assert not lock.is_held
    assert is_free(path)
    assert lock.acquire(0)
    assert not is_free(path)
    lock.close()


def test_the_directory_is_made_for_everybody_to_read(path: Path) -> None:
    umask = os.umask(0o022)
    try:
        FileLock(path).close()
    finally:
        os.umask(umask)
    assert path.parent.stat().st_mode & 0o777 == 0o755
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_link_in_place_of_the_file_is_refused(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        FileLock(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(OSError, match="Not a directory"):
        FileLock(tmp_path / "run" / "turn")


def test_a_time_out_is_honoured_and_leaves_nothing(path: Path) -> None:
    with closing(FileLock(path)) as holder, closing(FileLock(path)) as late:
        assert holder.acquire(0)
        started = time.monotonic()
        assert not late.acquire(0.2)
        assert 0.2 <= time.monotonic() - started < 20
        assert not late.is_held
        holder.release()
        wait_for_waiters(path, 0)
        assert is_free(path)
        assert late.acquire(0)


def test_who_timed_out_can_wait_again(path: Path) -> None:
    with closing(FileLock(path)) as holder, closing(FileLock(path)) as late:
        assert holder.acquire(0)
        for _ in range(3):
            assert not late.acquire(0.02)
        timer = threading.Timer(0.1, holder.release)
        timer.start()
        assert late.acquire(30)
        timer.join()


@pytest.mark.parametrize("abandoned", [1, 3])
def test_who_timed_out_and_closed_is_in_nobody_s_way(path: Path, abandoned: int) -> None:
    with closing(FileLock(path)) as holder, closing(FileLock(path)) as next_one:
        assert holder.acquire(0)
        for _ in range(abandoned):
            with closing(FileLock(path)) as late:
                assert not late.acquire(0.02)
        for _ in range(3):
            with ThreadPoolExecutor(1) as pool:
                taken = pool.submit(next_one.acquire, 30)
                holder.release()
                assert taken.result()
                assert not holder.acquire(0.02)
            next_one.release()
            assert holder.acquire(30)


def test_waiters_are_served_in_the_order_they_came(path: Path) -> None:
    served: list[int] = []

    def take(number: int) -> None:
        with closing(FileLock(path)) as lock:
            assert lock.acquire(30)
            served.append(number)

    with closing(FileLock(path)) as holder, ThreadPoolExecutor(20) as pool:
        assert holder.acquire(0)
        for number in range(20):
            pool.submit(take, number)
            wait_for_waiters(path, number + 1)
        holder.release()
    assert served == list(range(20))


def test_a_waiter_that_gives_up_does_not_change_the_order(path: Path) -> None:
    served: list[int] = []

    def take(number: int, timeout: float) -> None:
        with closing(FileLock(path)) as lock:
            if lock.acquire(timeout):
                served.append(number)

    with closing(FileLock(path)) as holder, ThreadPoolExecutor(9) as pool:
        assert holder.acquire(0)
        for number in range(9):
            before = waiting(path)
            if number % 3:
                pool.submit(take, number, 30)
                wait_for_waiters(path, before + 1)
            else:
                pool.submit(take, number, 0.05).result()
        holder.release()
    assert served == [number for number in range(9) if number % 3]


def test_many_threads_take_turns(path: Path) -> None:
    inside: list[int] = []
    taken = [0] * 100
    before = len(threads())

    def work(number: int) -> None:
        with closing(FileLock(path)) as lock:
            for _ in range(10):
                assert lock.acquire(60)
                inside.append(number)
                assert inside == [number]
                taken[number] += 1
                inside.clear()
                lock.release()

    with ThreadPoolExecutor(100) as pool:
        list(pool.map(work, range(100)))
    assert taken == [10] * 100
    assert len(threads()) <= before + 1


def test_threads_of_several_processes_take_turns(path: Path, start: Start) -> None:
    counter = path.with_name("counter")
    path.parent.mkdir()
    counter.write_text("0")
    workers = [
        start(f"""
counter = Path({str(counter)!r})
def work():
    lock = FileLock({str(path)!r})
    for _ in range(50):
        assert lock.acquire(60)
        value = int(counter.read_text())
        counter.write_text(str(value + 1))
        lock.release()
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""")
        for _ in range(4)
    ]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert counter.read_text() == str(4 * 3 * 50)


def test_two_locks_taken_in_opposite_order_end_in_one_time_out(path: Path) -> None:
    other = path.with_name("other.turn")
    both = threading.Barrier(2)

    def take(first: Path, second: Path, timeout: float) -> bool:
        with closing(FileLock(first)) as one, closing(FileLock(second)) as two:
            assert one.acquire(0)
            both.wait()
            return two.acquire(timeout)

    with ThreadPoolExecutor(2) as pool:
        impatient = pool.submit(take, path, other, 0.1)
        patient = pool.submit(take, other, path, 30)
        assert not impatient.result()
        assert patient.result()


# Who ends while holding or waiting.


def test_a_thread_that_dies_holding_the_lock_frees_it(path: Path) -> None:
    def die() -> None:
        assert FileLock(path).acquire(0)
        local.lock = FileLock(path.with_name("other"))
        assert local.lock.acquire(0)

    local = threading.local()
    thread = threading.Thread(target=die)
    thread.start()
    thread.join()
    assert is_free(path)
    wait_until(lambda: is_free(path.with_name("other")), "the thread's own objects are gone")


def test_a_process_killed_while_it_holds_the_lock_frees_it(path: Path, start: Start) -> None:
    holder = start("assert lock.acquire(0); say('held'); time.sleep(60)")
    hear(holder, "held")
    with closing(FileLock(path)) as lock, ThreadPoolExecutor(1) as pool:
        taken = pool.submit(lock.acquire, 30)
        wait_for_waiters(path, 1)
        holder.kill()
        assert taken.result()


def test_a_process_killed_while_it_waits_is_in_nobody_s_way(path: Path, start: Start) -> None:
    with closing(FileLock(path)) as lock:
        assert lock.acquire(0)
        waiter = start("""
threading.Thread(target=lambda: FileLock(lock.path).acquire(60), daemon=True).start()
say('waits'); lock.acquire(60); say('never')
""")
        hear(waiter, "waits")
        wait_until(lambda: path_waiters(path), "the kernel has it in line")
        waiter.kill()
        waiter.wait()
        assert not path_waiters(path)
        lock.release()
        assert is_free(path)


def path_waiters(path: Path) -> list[str]:
    """Who waits for a lock on the file, in any process (proc_locks(5): '->')."""
    inode = f":{path.stat().st_ino} "
    return [line for line in Path("/proc/locks").read_text().splitlines() if inode in line and "->" in line]


def test_a_forked_child_does_not_keep_its_dead_parent_s_lock(path: Path, start: Start) -> None:
    parent = start("""
assert lock.acquire(0)
if not os.fork():
    assert not lock.is_held
    say(os.getpid())
time.sleep(60)
""")
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert not is_free(path)
        parent.kill()
        parent.wait()
        os.kill(child, 0)
        assert is_free(path)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_takes_nothing_from_its_parent(path: Path, start: Start) -> None:
    parent = start("""
assert lock.acquire(0)
child = os.fork()
if not child:
    lock.release(); lock.close()
    assert not lock.acquire(0) and not FileLock(lock.path).acquire(0.05)
    os._exit(7)
assert os.waitpid(child, 0)[1] >> 8 == 7
say('still held' if lock.is_held else 'lost'); sys.stdin.readline()
""")
    hear(parent, "still held")
    assert not is_free(path)


def test_a_forked_child_waits_its_own_turn(path: Path, start: Start) -> None:
    parent = start(
        """
assert lock.acquire(0)
waiter = threading.Thread(target=lambda: FileLock(lock.path).acquire(60), daemon=True)
waiter.start()
while not lock_is_waited_for(): time.sleep(0.001)
child = os.fork()
if not child:
    say('waits')
    assert lock.acquire(60)
    say('taken'); lock.release(); os._exit(0)
sys.stdin.readline(); lock.release()
os.waitpid(child, 0)
""".replace(
            "lock_is_waited_for()",
            "'->' in ''.join(l for l in open('/proc/locks') if f':{os.stat(lock.path).st_ino} ' in l)",
        )
    )
    hear(parent, "waits")
    assert parent.stdin is not None
    parent.stdin.write("\n")
    parent.stdin.flush()
    # The parent's thread took it and died with its handle; then the child.
    hear(parent, "taken")
    assert parent.wait(30) == 0


def test_forks_at_any_moment_do_not_stop_anybody(path: Path, start: Start) -> None:
    parent = start("""
def work():
    mine = FileLock(lock.path)
    while not done.is_set():
        assert mine.acquire(30)
        mine.release()
done = threading.Event()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for _ in range(50):
    child = os.fork()
    if not child:
        os._exit(0 if lock.acquire(30) else 1)
    assert os.waitpid(child, 0)[1] == 0
done.set()
for thread in threads: thread.join()
say('done')
""")
    hear(parent, "done")
    assert is_free(path)


class Interrupt(Exception):
    """What a signal handler raises, as Ctrl-C does."""


@pytest.fixture
def interrupting() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("interrupting")
def test_an_interrupted_wait_leaves_nothing(path: Path) -> None:
    def wait(lock: FileLock) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        lock.acquire(30)

    with closing(FileLock(path)) as holder, closing(FileLock(path)) as late:
        assert holder.acquire(0)
        with pytest.raises(Interrupt):
            wait(late)
        assert not late.is_held
        holder.release()
        wait_for_waiters(path, 0)
        assert is_free(path)


@pytest.mark.usefixtures("interrupting")
def test_waits_interrupted_as_they_end_leave_nothing(path: Path) -> None:
    with closing(FileLock(path)) as late:
        for _ in range(100):
            holder = FileLock(path)
            assert holder.acquire(30)
            timer = threading.Timer(0.002, holder.close)
            timer.start()
            with suppress(Interrupt):
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.004))
                late.acquire(30)
                signal.setitimer(signal.ITIMER_REAL, 0)
            timer.join()
            late.release()
            with closing(FileLock(path)) as other:
                assert other.acquire(5)


# A lock file that somebody removes.


def test_a_removed_lock_file_is_made_anew(path: Path) -> None:
    with closing(FileLock(path)) as early, closing(FileLock(path)) as also_early:
        path.unlink()
        assert early.acquire(0)
        assert path.exists()
        assert not also_early.acquire(0)
        assert not is_free(path)


def test_the_holder_of_a_removed_lock_file_holds_up_nobody(path: Path) -> None:
    """Not even in its own process, where somebody still waits for it."""
    with closing(FileLock(path)) as holder, closing(FileLock(path)) as waiter, ThreadPoolExecutor(1) as pool:
        assert holder.acquire(0)
        taken = pool.submit(waiter.acquire, 30)
        wait_for_waiters(path, 1)
        path.unlink()
        with closing(FileLock(path)) as other, closing(FileLock(path)) as late:
            assert other.acquire(0)
            assert not late.acquire(0.1)
        assert not taken.done()
        holder.release()
        assert taken.result()


def test_a_wait_in_vain_ends(path: Path) -> None:
    """And the lock goes to the next one."""
    with closing(FileLock(path)) as holder, closing(FileLock(path)) as waiter, ThreadPoolExecutor(2) as pool:
        assert holder.acquire(0)
        ended = threading.Event()
        taken = pool.submit(waiter.acquire, 30, ended.is_set)
        wait_for_waiters(path, 1)
        with closing(FileLock(path)) as other:
            next_one = pool.submit(other.acquire, 30, lambda: False)
            wait_for_waiters(path, 2)
            ended.set()
            assert not taken.result(5)
            assert holder.is_held
            holder.release()
            assert next_one.result(5)
            other.release()
        assert is_free(path)


def test_who_waits_for_a_removed_lock_file_takes_the_new_one(path: Path, start: Start) -> None:
    with closing(FileLock(path)) as holder, closing(FileLock(path)) as waiter, ThreadPoolExecutor(1) as pool:
        assert holder.acquire(0)
        taken = pool.submit(waiter.acquire, 30)
        wait_for_waiters(path, 1)
        path.unlink()
        later = start("assert lock.acquire(0); say('held'); time.sleep(60)")
        hear(later, "held")
        holder.release()
        wait_until(lambda: path_waiters(path), "it waits for the new one")
        assert not taken.done()
        later.kill()
        assert taken.result()
        assert not is_free(path)


def test_a_removed_directory_is_made_anew(path: Path) -> None:
    with closing(FileLock(path)) as lock:
        path.unlink()
        path.parent.rmdir()
        assert lock.acquire(0)
        assert not is_free(path)


# Nothing is left.


def test_no_descriptor_is_left(path: Path) -> None:
    def use() -> None:
        with closing(FileLock(path)) as holder, ThreadPoolExecutor(5) as pool:
            assert holder.acquire(30)
            locks = [FileLock(path) for _ in range(5)]
            assert not any(pool.map(lambda lock: lock.acquire(0.01), locks))
            waits = [pool.submit(lock.acquire, 30) for lock in locks[:1]]
            holder.release()
            assert all(wait.result() for wait in waits)
            for lock in locks:
                lock.close()
        wait_for_waiters(path, 0)

    use()
    before = descriptors()
    for _ in range(20):
        use()
    wait_until(lambda: descriptors() <= before, "all descriptors are closed")


def test_the_helper_thread_ends_when_nobody_waits_any_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_turn, "IDLE", 0.05)
    wait_for_a_turn(path)
    queue = write_turn._queue(path.stat())
    wait_until(lambda: queue._thread is None, "the helper thread has ended")
    # And another one comes when it is needed.
    wait_for_a_turn(path)


def wait_for_a_turn(path: Path) -> None:
    with closing(FileLock(path)) as holder, closing(FileLock(path)) as waiter, ThreadPoolExecutor(1) as pool:
        assert holder.acquire(30)
        taken = pool.submit(waiter.acquire, 30)
        wait_for_waiters(path, 1)
        holder.release()
        assert taken.result()


def test_no_thread_is_started_while_nobody_waits(path: Path, start: Start) -> None:
    process = start("""
for _ in range(100):
    assert lock.acquire(30)
    assert not FileLock(lock.path).acquire(0)
    lock.release()
say(threading.active_count())
""")
    hear(process, "1")


def test_a_thread_that_cannot_be_started_is_an_error_and_no_dead_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fake: a machine out of threads, or an interpreter that is shutting down.
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with closing(FileLock(path)) as holder, closing(FileLock(path)) as waiter:
        assert holder.acquire(0)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(RuntimeError):
                waiter.acquire(30)
        assert not waiting(path)
    wait_for_a_turn(path)


def test_a_process_ends_while_its_threads_wait(path: Path, start: Start) -> None:
    with closing(FileLock(path)) as lock:
        assert lock.acquire(0)
        process = start("""
threading.Thread(target=lambda: lock.acquire(60), daemon=True).start()
while '->' not in ''.join(l for l in open('/proc/locks') if f':{os.stat(lock.path).st_ino} ' in l): time.sleep(0.001)
""")
        assert process.wait(30) == 0
