"""The worker's side of `vfs.workers`: limits, a last alarm, and the call itself.

Imported in worker processes, so it imports next to nothing; what a call needs comes with its function.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import threading
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import Any

from vfs import heap
from vfs.confine import confine
from vfs.errors import ReelfsError, WorkerFailed
from vfs.workerfile import WorkerFile

#: Seconds after the deadline at which the kernel ends a worker whose daemon did not (it died, too).
ALARM_SLACK = 5.0
#: Free memory that is kept: a 4K picture as planes, as RGB and as a file.
_KEPT_MEMORY = 64 << 20


#: Bytes that the functions which run in one worker may hold on to from one call for the next.
DEFAULT_KEPT = 128 << 20
_kept = DEFAULT_KEPT
_given_up: tuple[str, ...] = ()


def worker_keeps() -> int:
    """Bytes that may be kept in this worker from one job for the next ones (the setting `workers.kept`).

    What a plugin keeps in the process is bounded by this; elsewhere than in a worker it is the default.
    """
    return _kept


def isolation() -> tuple[str, ...]:
    """What this worker has given up (`vfs.confine`)."""
    return _given_up


def start(memory: int, kept: int = DEFAULT_KEPT, isolate: bool = True) -> None:
    """Limit this process to `memory` bytes of address space and no core dumps; end it with its parent.

    kept: what `worker_keeps` tells. isolate: give up files, network and other processes, as far as the
    kernel can.
    """
    global _kept, _given_up
    _kept = kept
    if isolate:
        _given_up = confine()  # before any other thread is there
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    heap.keep_freed(_KEPT_MEMORY)
    # A worker does one thing at a time, on small arrays: numpy's threads would wait for one another.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # The default action of SIGALRM ends the process in the kernel: it needs no Python, so a decoder that
    # hangs with the interpreter lock held is ended as well.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, name="parent-watch", daemon=True).start()


def _follow_parent() -> None:
    """End this process when the one that started it ends, even in the middle of a call."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def call(
    module: str,
    name: str,
    arguments: tuple[Any, ...],
    deadline: float,
    source: tuple[bytes, int] | None = None,
) -> Any:
    """Run one function, by name. Raises errors of `vfs.errors` and no others (all of them can be pickled).

    source: where the daemon gives the bytes of this job, and how many there are; the function's first
    argument is then the file.
    """
    signal.setitimer(signal.ITIMER_REAL, deadline + ALARM_SLACK)
    try:
        function = getattr(importlib.import_module(module), name)
        if source is None:
            return function(*arguments)
        with WorkerFile(*source) as file:
            return function(file, *arguments)
    except ReelfsError:
        raise
    except BaseException as error:
        raise WorkerFailed(f"{module}.{name}: {type(error).__name__}: {error}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
