"""The request loop without a mount: the faster wait, the stall watch, the callers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyfuse3
import pytest
import trio

from vfs import fuse_loop
from vfs.fuse_loop import CALLER_INTERVAL, Callers, FastWait, StallWatch, being_ended


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


class Original:
    """Stands for pyfuse3's own function; counts and does what a test wants."""

    def __init__(self, *answers: bool, then: Any = None) -> None:
        self.answers, self.calls, self.then = list(answers), 0, then

    async def __call__(self) -> bool:
        self.calls += 1
        if self.then is not None:
            self.then()
        return self.answers.pop(0) if self.answers else True


class Clock:
    """Time that passes by `step` at each look."""

    def __init__(self, step: float = 1e-6) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_what_is_readable_is_taken_without_waiting_and_others_get_their_turn(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.write(write, b"x")
    original = Original()

    async def main() -> None:
        wait = FastWait(read, original, Clock())
        for _ in range(1 + fuse_loop.TURN_REQUESTS):
            assert await wait()
        assert (original.calls, wait.fast) == (1, fuse_loop.TURN_REQUESTS)
        assert await wait()
        assert original.calls == 2

    trio.run(main)


def test_a_turn_ends_by_time_too(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.write(write, b"x")
    original = Original()

    async def main() -> None:
        wait = FastWait(read, original, Clock(step=fuse_loop.TURN_SECONDS))
        for _ in range(5):
            assert await wait()
        assert original.calls == 5

    trio.run(main)


def test_nothing_to_read_joins_the_queue_after_a_short_spin(pipe: tuple[int, int]) -> None:
    read, write = pipe
    original = Original(then=lambda: os.write(write, b"x"))

    async def main() -> None:
        wait = FastWait(read, original, Clock())
        assert await wait()
        os.read(read, 10)
        assert await wait()
        assert (original.calls, wait.fast) == (2, 0)

    trio.run(main)


def test_who_lets_it_wait_is_not_spun_for_a_while(pipe: tuple[int, int]) -> None:
    read, write = pipe
    original, clock = Original(then=lambda: os.write(write, b"x")), Clock()

    async def looks() -> int:
        before = clock.now
        assert await wait()
        os.read(read, 10)
        return round((clock.now - before) / clock.step)

    async def main() -> None:
        assert await looks() < 5, "the first has no turn to spin in"
        assert await looks() > 20
        for _ in range(fuse_loop.SPIN_PAUSE):
            assert await looks() < 5
        assert await looks() > 20

    wait = FastWait(read, original, clock)
    trio.run(main)


def test_a_request_that_was_taken_back_is_not_read(pipe: tuple[int, int]) -> None:
    """Readable when asked, gone a moment later: a blocking read would hold up the mount."""
    read, write = pipe
    calls: list[int] = []

    def later() -> None:
        calls.append(1)
        if len(calls) == 3:
            os.write(write, b"x")

    original = Original(then=later)

    async def main() -> None:
        assert await FastWait(read, original, Clock())()
        assert original.calls == 3

    trio.run(main)


def test_the_end_of_the_session_is_passed_on(pipe: tuple[int, int]) -> None:
    original = Original(False)

    async def main() -> None:
        assert not await FastWait(pipe[0], original, Clock())()

    trio.run(main)


def test_it_is_installed_for_known_versions_only(
    monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    private: Any = pyfuse3
    original = private._wait_fuse_readable
    assert pyfuse3.__version__.startswith(fuse_loop.KNOWN_VERSIONS)
    assert not fuse_loop.install_fast_wait(None)
    monkeypatch.setattr(pyfuse3, "__version__", "9.0.0")
    assert not fuse_loop.install_fast_wait(pipe[0])
    assert private._wait_fuse_readable is original
    monkeypatch.undo()
    try:
        assert fuse_loop.install_fast_wait(pipe[0])
        assert fuse_loop.install_fast_wait(pipe[0])
        assert private._wait_fuse_readable.original is original
    finally:
        fuse_loop.remove_fast_wait()
    assert private._wait_fuse_readable is original


def test_long_steps_of_the_loop_are_reported(expected_logs: Callable[[str], None]) -> None:
    expected_logs("the event loop stood still")
    seen: list[float] = []

    async def main() -> None:
        watch = StallWatch(seen.append)
        trio.lowlevel.add_instrument(watch)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert watch.longest < fuse_loop.STALL_LOGGED
        before = len(seen)
        time.sleep(fuse_loop.STALL_LOGGED + 0.05)  # the fault itself
        await trio.lowlevel.checkpoint()
        assert len(seen) == before + 1
        assert watch.longest == seen[-1] > fuse_loop.STALL_LOGGED

    trio.run(main)


SLEEPER = "import time; print(1, flush=True); time.sleep(60)"


def blocked_with(number: int, how: str) -> subprocess.Popen[bytes]:
    """A stopped process with a pending signal; a stopped one does not act on it until it goes on."""
    prepare = {
        "default": "pass",
        "ignored": f"signal.signal({number}, signal.SIG_IGN)",
        "blocked": f"signal.pthread_sigmask(signal.SIG_BLOCK, [{number}])",
    }[how]
    code = f"import signal; {prepare}; {SLEEPER}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    process.send_signal(number)
    return process


@pytest.mark.parametrize(
    ("number", "how", "ending"),
    [
        (signal.SIGINT, "default", True),
        (signal.SIGTERM, "default", True),
        (signal.SIGINT, "ignored", False),
        (signal.SIGTERM, "blocked", False),
        (signal.SIGUSR1, "default", False),
    ],
)
def test_who_is_being_ended(number: int, how: str, ending: bool) -> None:
    process = blocked_with(number, how)
    try:
        assert being_ended(process.pid) is ending
    finally:
        process.kill()
        process.wait()
    assert not being_ended(process.pid)


def test_nobody_is_not_being_ended() -> None:
    assert not being_ended(0)
    assert not being_ended(os.getpid())


def test_operations_of_a_dying_caller_are_cancelled_the_others_go_on() -> None:
    process = blocked_with(signal.SIGINT, "default")

    async def main() -> None:
        callers = Callers(limit=100.0)
        added = {pid: callers.add(pid, 2.0, trio.CancelScope()) for pid in (process.pid, os.getpid(), 0)}

        def cancelled() -> list[int]:
            return [pid for pid, waiting in added.items() if waiting.scope.cancel_called]

        now = time.monotonic()
        callers.check(now)
        assert cancelled() == []
        callers.check(now + CALLER_INTERVAL)
        assert cancelled() == [process.pid]
        assert not added[process.pid].overdue
        callers.check(now + 199.0)
        assert cancelled() == [process.pid]
        callers.check(now + 201.0)
        assert cancelled() == list(added)
        assert all(waiting.overdue for waiting in added.values())
        for waiting in added.values():
            callers.remove(waiting)
        assert len(callers) == 0

    try:
        trio.run(main)
    finally:
        process.kill()
        process.wait()
