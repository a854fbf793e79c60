"""Who reads: programs by name and process, what they read, and which of them are crawlers.

Thumbnailers, indexers and media scanners open every file of a library, mostly to look at its head, its tail
and one frame. For them nothing is read ahead, and of one open file only `crawlers.budget` bytes are fetched:
then EDQUOT, with the reason in the notes of the path. What is cached they may read as anyone.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from vfs.errors import OverBudget
from vfs.spans import Layout

#: Processes remembered, and programs that have a name of their own in metrics: a hostile user may start any.
MAX_PROCESSES = 256
MAX_PROGRAMS = 40
#: A process that did nothing for so long may have ended, and its number be another's.
FORGET_SECONDS = 60.0
OTHER = "other"


@dataclass(slots=True)
class Process:
    """One reader. pid: as the kernel tells it (a thread's). path: what it read last. last: monotonic."""

    pid: int
    program: str
    crawler: bool
    opened: int = 0
    reads: int = 0
    bytes: int = 0
    path: str = ""
    last: float = 0.0


class Readers:
    """The processes that use a mount. patterns: of crawlers' names. names: of a process, from its pid."""

    def __init__(
        self,
        patterns: Sequence[str] = (),
        *,
        names: Callable[[int], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.patterns = tuple(patterns)
        self.by_program: dict[str, float] = {}
        self.crawled: dict[str, float] = {}
        self.refused: dict[str, float] = {}
        self._names = names or program_of
        self._clock = clock
        self._known: OrderedDict[int, Process] = OrderedDict()

    def opened(self, pid: int, path: str) -> Process:
        """A process opens a file."""
        now, process = self._clock(), self._known.get(pid)
        if process is None or now - process.last > FORGET_SECONDS:
            name = self._names(pid)
            process = self._known[pid] = Process(pid, name, self.is_crawler(name))
            if len(self._known) > MAX_PROCESSES:
                self._known.popitem(last=False)
        self._known.move_to_end(pid)
        process.opened += 1
        process.path, process.last = path, now
        if process.crawler:
            self._count(self.crawled, process.program, 1)
        return process

    def read(self, pid: int, length: int) -> None:
        """It got so many bytes."""
        process = self._known.get(pid)
        if process is None:
            return
        process.reads += 1
        process.bytes += length
        process.last = self._clock()
        self._count(self.by_program, process.program, length)

    def over(self, process: Process) -> None:
        """It was refused more."""
        self._count(self.refused, process.program, 1)

    def is_crawler(self, name: str) -> bool:
        """Whether the name of a program fits one of the patterns; the kernel cuts names at 15 bytes."""
        return any(
            fnmatchcase(name.lower(), p.lower()[:15] if "*" not in p else p.lower()) for p in self.patterns
        )

    def busy(self, seconds: float = FORGET_SECONDS) -> list[dict[str, Any]]:
        """Who read within the last seconds, the most recent first."""
        now = self._clock()
        return [
            {
                "pid": p.pid,
                "program": p.program,
                "crawler": p.crawler,
                "opened": p.opened,
                "reads": p.reads,
                "bytes": p.bytes,
                "path": p.path,
                "idle_seconds": round(now - p.last, 1),
            }
            for p in reversed(self._known.values())
            if now - p.last <= seconds
        ]

    def _count(self, table: dict[str, float], program: str, by: float) -> None:
        name = program if program in table or len(table) < MAX_PROGRAMS else OTHER
        table[name] = table.get(name, 0) + by


def program_of(pid: int) -> str:
    """The name of the program of a process or thread, `?` where it cannot be seen from here."""
    try:
        leader = Path(f"/proc/{pid}/status").read_bytes()
        tgid = next(line.split()[1] for line in leader.splitlines() if line.startswith(b"Tgid:"))
        return Path(f"/proc/{int(tgid)}/comm").read_bytes().rstrip(b"\n").decode("utf-8", "replace") or "?"
    except (OSError, StopIteration, ValueError):
        return "?"


class Reads(Protocol):
    """The part of the reader that is used here."""

    async def read(self, layout: Layout, offset: int, length: int, /) -> Any:
        """Bytes of a layout."""

    def plan(self, layout: Layout, offset: int, length: int, /) -> Any:
        """What that would fetch."""


class ProbeHandle:
    """An open file of a crawler: exact reads, within its budget."""

    def __init__(self, reader: Reads, layout: Layout, budget: int, refused: Callable[[], object]) -> None:
        self._reader = reader
        self._layout = layout
        self._left = budget
        self._refused = refused

    async def read(self, offset: int, length: int, /) -> Any:
        """Bytes, short only at the end. Raises OverBudget."""
        needed = self._reader.plan(self._layout, offset, length).fetched_bytes
        if needed > self._left:
            self._refused()
            raise OverBudget("a crawler has read its share of this file (`crawlers.budget`)")
        self._left -= needed
        return await self._reader.read(self._layout, offset, length)

    def close(self) -> None:
        """Nothing is read ahead."""
