"""What a daemon is doing: the stacks of all trio tasks and threads, as text, for a log (SIGUSR1)."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType

import trio


def dump() -> str:
    """All tasks with their stacks, as a tree, then the threads. Must be called from inside of trio."""
    return "\n".join([*_tasks(trio.lowlevel.current_root_task(), 0), *_threads()])


def _tasks(task: trio.lowlevel.Task | None, depth: int) -> Iterator[str]:
    if task is None:
        return
    indent = "  " * depth
    yield f"{indent}task {task.name}"
    for frame, line in _frames(task.coro):
        yield f"{indent}  {frame.f_code.co_filename}:{line} in {frame.f_code.co_qualname}"
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda t: t.name):
            yield from _tasks(child, depth + 1)


def _frames(coroutine: object) -> Iterator[tuple[FrameType, int]]:
    """From the outermost call to where it waits; what is no coroutine (a running one, Cython's) ends it."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is None:
            return
        yield frame, frame.f_lineno
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)


def _threads() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        yield f"thread {names.get(ident, ident)}"
        for entry in traceback.extract_stack(frame):
            yield f"  {entry.filename}:{entry.lineno} in {entry.name}"
