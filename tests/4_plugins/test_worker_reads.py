"""Jobs that read from the daemon: bytes come while the worker computes, and errors are the source's own."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from vfs import workerfeed
from vfs.errors import BadBody, Damaged, Stale, Unavailable, WorkerFailed
from vfs.pytest_plugin import ExpectedLogs
from vfs.workerfeed import Source
from vfs.workers import configure, in_worker, open_workers

sys.path.append(str(Path(__file__).parent))  # a worker imports these by name

from worker_readers import (
    bad_media,
    dies,
    digest,
    digest_expected,
    ends,
    pieces,
    second_of_two,
    spins,
    swallowing,
    tells,
)

LONG = 20.0
DATA = random.Random(5).randbytes(3_000_000)
PIECE = 70_001


def run(function: Any, *args: Any) -> Any:
    async def main() -> Any:
        with trio.fail_after(LONG):
            async with open_workers():
                return await function(*args)

    return trio.run(main)


class Stored:
    """DATA as a store gives it. before: awaited before the piece at an offset. log: ranges asked for."""

    def __init__(self, before: Callable[[int], Any] | None = None, data: bytes = DATA) -> None:
        self.log: list[tuple[int, int]] = []
        self.given = 0
        self._before, self._data = before, data

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes | memoryview]:
        self.log.append((offset, length))
        for at in range(offset, offset + length, PIECE):
            if self._before is not None:
                await self._before(at)
            await trio.lowlevel.checkpoint()
            piece = self._data[at : min(at + PIECE, offset + length)]
            self.given += len(piece)
            yield memoryview(piece)

    def source(self, ahead: int = 0) -> Source:
        return Source(self.stream, len(DATA), ahead)


# -- tests


@pytest.mark.parametrize("chunk", [1_000, 32_768, 999_983, 5_000_000])
def test_reads_in_sequence(chunk: int) -> None:
    stored = Stored()
    assert run(lambda: in_worker(digest, chunk, source=stored.source())) == hashlib.md5(DATA).hexdigest()
    assert len(stored.log) <= 8, "requests grow while reading goes on"
    assert stored.given == len(DATA), "nothing is asked for twice"


@pytest.mark.parametrize("ahead", [0, 1, PIECE + 1, len(DATA)])
def test_what_is_needed_for_sure_is_asked_for_ahead(ahead: int) -> None:
    stored = Stored()
    found = run(lambda: in_worker(digest_expected, source=stored.source(ahead)))
    assert found == hashlib.md5(DATA).hexdigest()
    assert stored.given == len(DATA)
    assert stored.log[0] == (0, ahead or len(DATA))


def test_seeks_anywhere() -> None:
    rng = random.Random(7)
    wanted = [(rng.randrange(len(DATA)), rng.choice([0, 1, 100, 40_000, 300_000])) for _ in range(100)]
    wanted += [(at, 500) for at in range(1_000, 400_000, 9_000)]
    found = run(lambda: in_worker(pieces, wanted, source=Stored().source()))
    assert found == [DATA[offset : offset + length] for offset, length in wanted]


def test_the_end_of_the_file() -> None:
    size = len(DATA)
    assert run(lambda: in_worker(ends, source=Stored().source())) == (size, b"", DATA[-3:], size + 5)


def test_an_empty_source() -> None:
    assert run(lambda: in_worker(digest, 10, source=Source(Stored().stream, 0))) == hashlib.md5().hexdigest()


def test_a_new_position_ends_the_request_before() -> None:
    stored = Stored()
    found = run(lambda: in_worker(second_of_two, 2_500_000, source=stored.source()))
    assert found == DATA[2_500_000:2_500_100]
    assert stored.given < len(DATA)


def test_bytes_are_handed_on_as_they_arrive() -> None:
    """The source ends only after the worker has said (over a pipe of its own) what it got before."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    async def before(at: int) -> None:
        if at >= PIECE:
            await trio.lowlevel.wait_readable(reading)

    path = f"/proc/{os.getpid()}/fd/{writing}"
    stored = Stored(before)
    configure(isolate=False)  # the pipe is reached by a path
    try:
        assert run(lambda: in_worker(tells, path, source=stored.source())) == hashlib.md5(DATA).hexdigest()
    finally:
        configure(isolate=True)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("function", [digest_expected, swallowing])
@pytest.mark.parametrize("error", [Stale("gone"), Unavailable("no answer"), BadBody("other etag")])
def test_an_error_of_the_store_is_the_caller_s(function: Any, error: Exception) -> None:
    """Whatever the function makes of it: a decoder takes the end of its input for the end of the video."""

    async def before(at: int) -> None:
        if at > 500_000:
            raise error

    args = (50_000,) if function is digest else ()
    with pytest.raises(type(error), match=str(error)):
        run(lambda: in_worker(function, *args, source=Stored(before).source()))


def test_an_error_at_the_first_byte_costs_no_worker() -> None:
    async def before(at: int) -> None:
        raise Stale("gone")

    with pytest.raises(Stale, match="gone"):
        run(lambda: in_worker(digest, 10, source=Stored(before).source(ahead=10)))


def test_a_source_that_ends_early_is_an_error() -> None:
    stored = Stored(data=DATA[:100_000])
    with pytest.raises(BadBody, match="ended at 100000"):
        run(lambda: in_worker(digest_expected, source=stored.source()))


def test_an_error_of_the_function_is_the_function_s() -> None:
    with pytest.raises(Damaged, match="no such box"):
        run(lambda: in_worker(bad_media, source=Stored().source()))


def test_a_death_is_one_error(expected_logs: ExpectedLogs) -> None:
    expected_logs("died")

    async def body() -> Any:
        with pytest.raises(WorkerFailed, match="died"):
            await in_worker(dies, source=Stored().source(ahead=len(DATA)))
        return await in_worker(digest, 9_999, source=Stored().source())

    assert run(body) == hashlib.md5(DATA).hexdigest()


def test_a_hang_is_one_error(expected_logs: ExpectedLogs) -> None:
    expected_logs("overran")

    async def body() -> Any:
        await in_worker(os.getpid)
        with pytest.raises(WorkerFailed, match="no result within"):
            await in_worker(spins, source=Stored().source(ahead=len(DATA)), deadline=0.5)
        return await in_worker(digest, 9_999, source=Stored().source())

    assert run(body) == hashlib.md5(DATA).hexdigest()


def test_waiting_for_the_source_is_no_time_of_the_job() -> None:
    """Forty waits of 50 ms, with half a second to compute in."""

    async def before(at: int) -> None:
        await trio.sleep(0.05)

    async def body() -> Any:
        await in_worker(os.getpid)
        return await in_worker(digest_expected, source=Stored(before).source(), deadline=0.5)

    assert run(body) == hashlib.md5(DATA).hexdigest()


def test_a_source_that_stalls_lets_others_work() -> None:
    """One worker; the first job's source stands still until the second job is through."""
    others_done, half_way = trio.Event(), trio.Event()
    results: list[str] = []

    async def before(at: int) -> None:
        if at >= 1_000_000:
            half_way.set()
            await others_done.wait()

    stored = Stored(before)

    async def stalling() -> None:
        results.append(await in_worker(digest_expected, source=stored.source(ahead=len(DATA))))

    async def body() -> None:
        await in_worker(os.getpid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stalling)
            await half_way.wait()
            for _ in range(3):
                assert await in_worker(abs, -1) == 1
            others_done.set()

    configure(processes=1)
    try:
        run(body)
    finally:
        configure(processes=2)
    assert results == [hashlib.md5(DATA).hexdigest()]


def test_cancelling_ends_the_stream() -> None:
    under_way, ended = trio.Event(), trio.Event()

    async def before(at: int) -> None:
        if at > 1_000_000:
            under_way.set()
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

    async def job() -> None:
        await in_worker(digest_expected, source=Stored(before).source(ahead=len(DATA)))

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(job)
            await under_way.wait()
            nursery.cancel_scope.cancel()
        assert ended.is_set()

    run(body)


def test_jobs_of_a_kind_go_to_one_worker_and_leave_the_other_free() -> None:
    async def body() -> None:
        found: dict[str, set[int]] = {"a": set(), "b": set()}

        async def one(kind: str) -> None:
            found[kind].add(await in_worker(os.getpid, affinity=kind))

        for _ in range(4):
            async with trio.open_nursery() as nursery:
                for kind in "aaabbb":
                    nursery.start_soon(one, kind)
        assert len(found["a"]) == len(found["b"]) == 1
        assert found["a"] != found["b"]

    run(body)


STRANGER = """
import os, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(bytes.fromhex(sys.argv[1]))
    sys.exit(len(connection.recv(1)))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_a_process_of_another_user_is_turned_away() -> None:
    async def main() -> int:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as worker:
            listener.bind("")
            listener.listen(1)
            listener.setblocking(False)
            name = listener.getsockname()
            with subprocess.Popen([sys.executable, "-c", STRANGER, name.hex()]) as stranger:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(accept_one, listener)
                    told = await trio.to_thread.run_sync(stranger.wait)
                    worker.connect(name)
            return told

    async def accept_one(listener: socket.socket) -> None:
        async with await workerfeed._accepted(listener) as connection:
            assert connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4)

    assert trio.run(main) == 0
