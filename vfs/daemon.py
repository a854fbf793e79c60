"""The process behind a mount: opens the source, mounts, answers the kernel, unmounts.

`python -m vfs.daemon` takes its settings as JSON on stdin (nothing of them shows in `ps`) and tells its
parent over descriptor 3, in one line of JSON, that the mount answers or why it does not.

How it ends decides what is left: after a signal or an unmount the folder is free again; after a crash it
says "Transport endpoint is not connected", never an empty folder that programs would take for the truth.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import pyfuse3
import trio

from vfs import errors, fuse_loop, heap, mounting, stacks
from vfs.changes import Changes
from vfs.config import Settings
from vfs.control import Control, socket_path
from vfs.errors import ConfigError, DeadlineExceeded, ReelfsError
from vfs.fuse import Adapter, Look, OpensLayouts
from vfs.fuse_guard import only_cause
from vfs.logs import configure_logging, log_file, prepare_log
from vfs.metricsserver import serve_metrics
from vfs.notify import Notifier
from vfs.readers import Readers
from vfs.storage import credentials
from vfs.telemetry import Status
from vfs.tree import Tree
from vfs.write.session import WriteSession

log = logging.getLogger("vfs.daemon")

#: The descriptor the parent reads from.
READY_DESCRIPTOR = 3
#: Requests answered at one time; pyfuse3's 99 would be used up by hanging reads, and `ls` with them.
MAX_REQUESTS = 1000
#: The longest any operation may take, in deadlines of the store: its own error, with the reason, comes first.
OPERATION_DEADLINES = 1.25
#: A thread that signs a request lets the event loop have its turn after this long: with Python's 5 ms, every
#: answer to the kernel would wait so long while files are sent.
SWITCH_SECONDS = 0.0005
#: Seconds that operations in flight are given when the daemon is told to end.
GRACE = 1.0
#: Free memory that is kept for the next requests: what read-ahead of one reader has under way.
KEPT_MEMORY = 64 << 20
#: Seconds beyond the deadline of the store that a start may take.
START_SECONDS = 30.0


class Source(Protocol):
    """What a mount needs of `vfs.runtime.Runtime`."""

    @property
    def tree(self) -> Tree:
        """Paths to nodes."""

    @property
    def reader(self) -> OpensLayouts:
        """Layouts to bytes."""

    @property
    def status(self) -> Status:
        """Where is counted."""

    @property
    def writing(self) -> WriteSession | None:
        """Writing, where it is enabled."""

    @property
    def readers(self) -> Readers:
        """Who reads is counted there."""

    @property
    def control(self) -> Control:
        """What can be asked of it beside the kernel."""

    @property
    def changes(self) -> Changes:
        """Where it is told what the kernel must not remember any more."""

    async def reload(self) -> None:
        """Read settings and credentials again. Raises ReelfsError: then nothing was changed."""

    async def follow(self) -> None:
        """Take up changes of the source as they happen, until cancelled."""

    async def warm(self) -> None:
        """What can be made ready ahead, once the mount answers."""


OpenSource = Callable[[Settings], AbstractAsyncContextManager[Source]]


async def serve(settings: Settings, *, ready: Callable[[], None], source: OpenSource | None = None) -> None:
    """Mount and answer until unmounted or told to end (SIGTERM, SIGINT).

    ready: called once the mount answers. source: opens what is mounted (default: `vfs.runtime`). Raises
    ConfigError when it cannot be mounted, and what opening the source raises.
    """
    mountpoint = mounting.check(settings)
    sys.setswitchinterval(SWITCH_SECONDS)
    if source is None:
        from vfs.runtime import open_runtime

        source = open_runtime
    async with source(settings) as opened:
        callers = fuse_loop.Callers(settings.deadline * OPERATION_DEADLINES)
        look = Look(
            os.getuid() if settings.uid is None else settings.uid,
            os.getgid() if settings.gid is None else settings.gid,
            settings.umask,
            time.time_ns(),
        )
        root = await opened.tree.root()
        adapter: Adapter
        if opened.writing is not None:
            from vfs.fuse_inbox import InboxAdapter

            adapter = InboxAdapter(
                opened.tree, opened.reader, root, look, opened.status, callers, opened.writing
            )
        else:
            adapter = Adapter(opened.tree, opened.reader, root, look, opened.status, callers)
        watch = fuse_loop.StallWatch(lambda seconds: opened.status.observe("loop_stall_seconds", seconds))
        adapter.count_readers(opened.readers, settings.crawlers.budget)
        opened.changes.listen(adapter.invalidate)
        with _mounted(adapter, mountpoint, settings):
            trio.lowlevel.add_instrument(watch)
            try:
                async with opened.control.serving(socket_path(mountpoint)):
                    await _answer(mountpoint, callers, ready, opened, settings)
            finally:
                trio.lowlevel.remove_instrument(watch)
                if opened.writing is not None:  # what is sent from here on, no kernel looks at
                    opened.writing.drive.changed_behind = lambda key: None
    log.info("%s: unmounted", mountpoint)


@contextmanager
def _mounted(adapter: Adapter, mountpoint: Path, settings: Settings) -> Iterator[None]:
    """Mounted within the block; after an exception the dead mount is left as a sign."""
    before = fuse_loop.open_fuse_descriptors()
    said: list[str] = []
    try:
        with _stderr_in(said):
            pyfuse3.init(adapter, str(mountpoint), mounting.options(settings))
    except RuntimeError as error:
        reason = said[-1] if said else str(error)
        raise ConfigError(f"{mountpoint} could not be mounted: {reason}") from None
    finished = False
    try:
        fuse_loop.install_fast_wait(fuse_loop.fuse_descriptor(before), writable=settings.writes)
        yield
        finished = True
    finally:
        fuse_loop.remove_fast_wait()
        pyfuse3.close(unmount=finished)


@contextmanager
def _stderr_in(lines: list[str]) -> Iterator[None]:
    """Collect what libfuse and fusermount3 write to stderr: it is the only place where they say why."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines += [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]


async def _answer(
    mountpoint: Path,
    callers: fuse_loop.Callers,
    ready: Callable[[], None],
    opened: Source,
    settings: Settings,
) -> None:
    """Answer the kernel until the session ends."""
    async with trio.open_nursery() as nursery:
        requests, notifier = trio.CancelScope(), Notifier()
        await nursery.start(_obey_signals, requests, opened.reload, notifier)
        nursery.start_soon(callers.run)
        nursery.start_soon(_announce, mountpoint, ready, opened, notifier, settings)
        with requests:
            await pyfuse3.main(max_tasks=MAX_REQUESTS)
        nursery.cancel_scope.cancel()


async def _announce(
    mountpoint: Path, ready: Callable[[], None], opened: Source, notifier: Notifier, settings: Settings
) -> None:
    """Ask the mount something from outside of the event loop; say that it is ready when it answers."""
    await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
    mounting.tune(mounting.device_of(mountpoint))  # not earlier: the kernel's INIT sets its own values
    # What exists by now stays: collections need not look at it again.
    gc.collect()
    gc.freeze()
    log.info("%s: mounted", mountpoint)
    ready()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.run, opened.status.line)
        nursery.start_soon(opened.follow)
        if settings.metrics.listen:
            nursery.start_soon(serve_metrics, settings.metrics.listen, opened.status)
        await opened.warm()


async def _obey_signals(
    requests: trio.CancelScope,
    reload: Callable[[], Awaitable[None]],
    notifier: Notifier,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """SIGHUP reads settings and credentials again; SIGUSR1 writes tasks and stacks into the log; SIGTERM and
    SIGINT end the session: what is in flight gets a moment, then its caller an error."""
    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    with trio.open_signal_receiver(*wanted) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                await _reload(reload, notifier)
            elif number == signal.SIGUSR1:
                log.info("SIGUSR1: what runs now\n%s", stacks.dump())
            else:
                log.info("%s: unmounting", signal.Signals(number).name)
                notifier.stopping()
                pyfuse3.terminate()
                await trio.sleep(GRACE)
                requests.cancel()


async def _reload(reload: Callable[[], Awaitable[None]], notifier: Notifier) -> None:
    notifier.reloading()
    log.info("SIGHUP: reloading settings and credentials")
    try:
        await reload()
    except ReelfsError as error:
        log.error("SIGHUP: nothing was changed: %s", error)
    notifier.ready()


# -- the process ------------------------------------------------------------------------------------------


def run(settings: Settings, *, ready: Callable[[], None], source: OpenSource | None = None) -> None:
    """`serve`, from outside of trio. Raises ReelfsError; other exceptions are crashes."""
    credentials.withdraw()
    heap.keep_freed(KEPT_MEMORY)
    try:
        trio.run(lambda: serve(settings, ready=ready, source=source))
    except BaseException as error:
        known = only_cause(error)
        if known is None or known is error:
            raise
        raise known from None


def start(settings: Mapping[str, Any], foreground: bool = False) -> None:
    """Mount as `Settings.to_dict` says; returns when the mount answers, or with `foreground` when it ended.

    Raises the error that kept it from being mounted.
    """
    checked = Settings.from_dict(settings)
    if foreground:
        configure_logging(checked, foreground=True)
        run(checked, ready=Notifier().ready)
        return
    mounting.check(checked)
    _detach(checked)


def _detach(settings: Settings) -> None:
    """Start the daemon and wait for its line.

    It takes a session of its own only when it is mounted: an automount holds up whoever looks at the
    mountpoint, but for the process group of the mount(8) that it waits for.
    """
    settings_read, settings_write = os.pipe()
    ready_read, ready_write = os.pipe()
    log_path = log_file(settings)
    prepare_log(log_path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    command = [sys.executable, "-P", "-m", "vfs.daemon"]
    try:
        pid = os.posix_spawn(
            sys.executable,
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, settings_read, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log_path), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, ready_write, READY_DESCRIPTOR),
            ],
        )
    finally:
        os.close(settings_read)
        os.close(ready_write)
    try:
        with suppress(BrokenPipeError), open(settings_write, "w", encoding="ascii") as pipe:
            json.dump(settings.to_dict(), pipe)
        line = _line(ready_read, settings.deadline + START_SECONDS)
    except BaseException:
        os.kill(pid, signal.SIGTERM)
        raise
    finally:
        os.close(ready_read)
    _judge(line, pid, log_path)


def _line(descriptor: int, seconds: float) -> bytes:
    """What the daemon says, up to the end of its line or of itself. Raises DeadlineExceeded."""
    said, until = b"", time.monotonic() + seconds
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while not said.endswith(b"\n"):
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise DeadlineExceeded(f"the mount did not answer within {seconds:.0f} s")
        part = os.read(descriptor, 65536)
        if not part:
            break
        said += part
    return said


def _judge(line: bytes, pid: int, log_path: Path) -> None:
    """Raise what the daemon says went wrong; nothing when it is ready."""
    try:
        answer = json.loads(line)
    except ValueError:
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        raise ReelfsError(f"the daemon ended before it mounted (status {code}); see {log_path}") from None
    if "error" in answer:
        os.waitpid(pid, 0)
        kind = getattr(errors, answer["kind"], ReelfsError)
        raise kind(answer["error"])


def main(source: OpenSource | None = None) -> int:
    """The detached daemon. Exit status: 0 unmounted, 1 an error that was reported, 2 a crash."""
    with open(0, encoding="ascii", closefd=False) as stdin:
        given = json.load(stdin)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.set_inheritable(READY_DESCRIPTOR, False)
    os.chdir("/")
    report = _Report(READY_DESCRIPTOR)
    try:
        settings = Settings.from_dict(given)
        configure_logging(settings, foreground=False)

        def ready() -> None:
            if os.getpgrp() != os.getpid():
                os.setsid()
            report.say({"ready": True})

        run(settings, ready=ready, source=source)
    except ReelfsError as error:
        log.error("%s", error)
        report.say({"error": str(error), "kind": type(error).__name__})
        return 1
    except BaseException as error:
        log.critical("the daemon crashed", exc_info=error)
        report.say({"error": f"internal error: {error!r}", "kind": "ReelfsError"})
        return 2
    return 0


class _Report:
    """One line to the parent, once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def say(self, answer: Mapping[str, Any]) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        try:
            os.write(descriptor, json.dumps(answer).encode() + b"\n")
        except BrokenPipeError:
            log.info("nobody waited for the mount to be ready")
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
