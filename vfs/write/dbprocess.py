"""Looking at a database in a process of its own: one folder, no network, bounded memory, a deadline.

A database is untrusted, and SQLite needs files beside it, which the processes for decoding do not have. So
each look is a short process that gives up everything else (`vfs.confine`), and is killed at its deadline.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import trio

from vfs.confine import confine
from vfs.errors import Damaged, ReelfsError, WorkerFailed
from vfs.write import databases
from vfs.write.databases import Snapshot, Unfinished

#: Address space of the process: SQLite's page cache has 2 MiB, a check keeps a bit for every page.
MEMORY = 2 << 30
_ERRORS = {kind.__name__: kind for kind in (Damaged, Unfinished)}
_PR_SET_PDEATHSIG = 1
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "LC_ALL", "LANG")


async def snapshot(database: str, wal: str | None, journal: str | None, out: str) -> Snapshot:
    """See `databases.snapshot`; all of them in one folder. Raises WorkerFailed past its deadline."""
    size, merged = await _run("snapshot", [database, wal, journal, out])
    return Snapshot(size, merged)


async def check(database: str) -> None:
    """See `databases.check`."""
    await _run("check", [database])


async def _run(function: str, paths: Sequence[str | None]) -> Any:
    seconds = databases.seconds(sum(os.path.getsize(path) for path in paths[:3] if path is not None))
    told = json.dumps({"function": function, "paths": paths, "seconds": seconds})
    command = [sys.executable, "-P", "-c", f"from {__name__} import main; main()"]
    said = b""
    with trio.move_on_after(seconds) as scope:
        done = await trio.run_process(
            command,
            stdin=told.encode(),
            capture_stdout=True,
            stderr=subprocess.DEVNULL,
            check=False,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},  # no keys
        )
        said = done.stdout
    if scope.cancelled_caught:
        raise WorkerFailed(f"a database was not looked through within {seconds:g} s")
    try:
        result, kind, text = json.loads(said)
    except ValueError:
        raise WorkerFailed("the process that looks through a database died") from None
    if kind:
        raise _ERRORS.get(kind, ReelfsError)(text)
    return result


def main() -> None:
    """The process's side: what to do comes on standard input, what came of it goes to standard output."""
    told = json.load(sys.stdin)
    paths = told["paths"]
    _limit(int(told["seconds"]), os.path.dirname(paths[0]))
    try:
        if told["function"] == "check":
            databases.check(*paths)
            answer: Any = None, "", ""
        else:
            made = databases.snapshot(*paths)
            answer = (made.size, made.merged), "", ""
    except ReelfsError as error:
        answer = None, type(error).__name__, str(error)
    json.dump(answer, sys.stdout)


def _limit(seconds: int, folder: str) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # it ends with who started it
    confine(folder)
