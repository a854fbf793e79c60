"""Worker processes: one that dies, hangs or is told to stop costs one error and leaves nothing behind."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from vfs.errors import Damaged, WorkerFailed
from vfs.pytest_plugin import ExpectedLogs
from vfs.workerproc import worker_keeps
from vfs.workers import configure, in_thread, in_worker, open_workers

#: Far more than anything here takes; a test that waits this long has failed.
LONG = 20.0
PID = "__import__('os').getpid()"


def run(function: Any, *args: Any) -> Any:
    async def main() -> Any:
        with trio.fail_after(LONG):
            async with open_workers():
                return await function(*args)

    return trio.run(main)


def wait_for_end(pid: int) -> bool:
    """True when the process has ended, or ends in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], LONG)[0])
    finally:
        os.close(descriptor)


def test_runs_elsewhere_and_keeps_the_process() -> None:
    async def body() -> tuple[int, int]:
        return await in_worker(os.getpid), await in_worker(os.getpid)

    first, second = run(body)
    assert first == second != os.getpid()
    assert wait_for_end(first)


def test_works_without_a_scope_and_leaves_no_process() -> None:
    async def main() -> int:
        return await in_worker(os.getpid)

    assert wait_for_end(trio.run(main))


def test_one_death_is_one_error(expected_logs: ExpectedLogs) -> None:
    expected_logs("died")

    async def body() -> int:
        with pytest.raises(WorkerFailed, match="died"):
            await in_worker(signal.raise_signal, signal.SIGKILL)
        return await in_worker(os.getpid)

    assert run(body) > 0


def test_killed_while_idle_costs_nothing() -> None:
    async def body() -> int:
        pid = await in_worker(os.getpid)
        os.kill(pid, signal.SIGKILL)
        assert await trio.to_thread.run_sync(wait_for_end, pid)
        return await in_worker(os.getpid)

    assert run(body) > 0


def test_deadline_kills_the_process(expected_logs: ExpectedLogs) -> None:
    expected_logs("overran")

    async def body() -> tuple[int, float]:
        pid = await in_worker(os.getpid)
        began = trio.current_time()
        with pytest.raises(WorkerFailed, match=r"within 0\.3 s"):
            await in_worker(time.sleep, 1000.0, deadline=0.3)
        return pid, trio.current_time() - began

    pid, took = run(body)
    assert wait_for_end(pid)
    assert took < 30


def test_cancelling_kills_the_process() -> None:
    async def body() -> int:
        pid = await in_worker(os.getpid)
        with trio.move_on_after(0.2):
            await in_worker(time.sleep, 1000.0)
        return pid

    assert wait_for_end(run(body))


def test_errors_of_reelfs_pass_with_their_text() -> None:
    async def body() -> None:
        with pytest.raises(Damaged, match="no such box"):
            await in_worker(exec, "from vfs.errors import Damaged; raise Damaged('no such box')")

    run(body)


@pytest.mark.parametrize(
    "code", ["1 / 0", "raise MemoryError", "raise SystemExit(3)", "import no_such_thing"]
)
def test_other_exceptions_become_worker_failed(code: str) -> None:
    async def body() -> int:
        with pytest.raises(WorkerFailed):
            await in_worker(exec, code)
        return await in_worker(os.getpid)

    assert run(body) > 0


def test_memory_is_limited() -> None:
    async def body() -> None:
        with pytest.raises(WorkerFailed, match="MemoryError"):
            await in_worker(bytearray, 2 << 30)
        assert await in_worker(eval, "__import__('resource').getrlimit(4)") == (0, 0)

    configure(memory=1 << 30)
    try:
        run(body)
    finally:
        configure(memory=4 << 30)


def test_what_a_worker_may_keep_is_told_to_it() -> None:
    configure(kept=7 << 20)
    try:
        assert run(in_worker, worker_keeps) == 7 << 20
    finally:
        configure(kept=worker_keeps())
    assert run(in_worker, worker_keeps) == worker_keeps() == 128 << 20


def test_at_most_so_many_processes_and_waiting_is_not_counted() -> None:
    """Five calls of 0.3 s in one worker with a deadline of 1.2 s each: the last waits longer than that."""
    pids: set[int] = set()

    async def one() -> None:
        pids.add(await in_worker(eval, f"__import__('time').sleep(0.3) or {PID}", deadline=1.2))

    async def body() -> None:
        await in_worker(os.getpid)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)

    configure(processes=1)
    try:
        run(body)
    finally:
        configure(processes=2)
    assert len(pids) == 1


def test_worker_imports_neither_the_loop_nor_the_media_library() -> None:
    async def body() -> list[str]:
        code = "[m for m in ('trio', 'av', 'pyfuse3', 'boto3', 'pytest') if m in __import__('sys').modules]"
        found: list[str] = await in_worker(eval, code)
        return found

    assert run(body) == []


def test_an_undrained_decoder_with_frame_threads_costs_one_error_at_most() -> None:
    """PyAV 18 hangs the process, interpreter lock held, when such a context is dropped (its issue 1849)."""
    code = """if True:
        import av, numpy
        out = av.CodecContext.create("libx264", "w")
        out.width, out.height, out.pix_fmt = 320, 240, "yuv420p"
        out.time_base = __import__("fractions").Fraction(1, 30)
        packets = []
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(numpy.full((360, 320), i, numpy.uint8), format="yuv420p")
            frame.pts = i
            packets += out.encode(frame)
        packets += out.encode(None)
        context = av.CodecContext.create("h264", "r")
        context.thread_type, context.thread_count = "FRAME", 4
        for packet in packets[:10]:
            context.decode(packet)
        del context
    """

    async def body() -> int:
        with contextlib.suppress(WorkerFailed):
            await in_worker(exec, code, {}, deadline=4.0)
        return await in_worker(os.getpid)

    assert run(body) > 0


PROGRAM = """
import sys, trio
from vfs.workers import in_worker, open_workers
with open("imports.txt", "a") as log:
    log.write(__name__ + "\\n")

async def main():
    async with open_workers():
        await in_worker(exec, sys.argv[1])

if __name__ == "__main__":
    trio.run(main)
"""


def start_program(folder: Path, code: str, *, as_module: bool) -> subprocess.Popen[bytes]:
    (folder / "program.py").write_text(PROGRAM)
    how = ["-m", "program"] if as_module else ["program.py"]
    return subprocess.Popen([sys.executable, *how, code], cwd=folder, stdout=subprocess.PIPE)


@pytest.mark.parametrize("as_module", [True, False])
def test_main_module_is_not_run_again_in_the_worker(tmp_path: Path, as_module: bool) -> None:
    with start_program(tmp_path, "pass", as_module=as_module) as program:
        assert program.wait(LONG) == 0
    assert (tmp_path / "imports.txt").read_text().split() == ["__main__"]


def test_worker_ends_when_the_daemon_is_killed(tmp_path: Path) -> None:
    code = "import os, time; os.write(1, b'%d\\n' % os.getpid()); time.sleep(99)"
    daemon = start_program(tmp_path, code, as_module=True)
    assert daemon.stdout is not None
    with daemon.stdout:
        worker = int(daemon.stdout.readline())
    daemon.kill()
    daemon.wait(LONG)
    assert wait_for_end(worker)


def test_in_thread_returns_the_result() -> None:
    assert trio.run(in_thread, abs, -3) == 3
