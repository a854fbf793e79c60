"""What `reelfs index` shows: a bar on a terminal, a line a file elsewhere, and a summary."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

#: Outcomes in the words of the summary.
_WORDS = {
    "made": "indexed",
    "there": "had an index",
    "none needed": "need none",
    "none fits": "fit no known index",
    "unplayable": "unplayable",
}
#: Outcomes that are worth a line even where there is a bar.
_TOLD = ("unplayable", "failed")


class Show(Protocol):
    """Somebody who looks on."""

    def listed(self, count: int) -> None:
        """So many videos were found by now."""

    def running(self, total: int) -> AbstractContextManager[None]:
        """So many of them are looked at while the block runs."""

    def file(self, state: str, key: str, reason: str) -> None:
        """What became of one."""

    def summary(self, outcomes: Mapping[str, int], failed: int, seconds: float) -> None:
        """What became of all, in earlier runs too."""

    def note(self, text: str) -> None:
        """A line behind the summary."""


def showing() -> Show:
    """The one that fits where stdout goes."""
    return Bar() if sys.stdout.isatty() else Lines()


class Lines:
    """For files and pipes: each outcome as it comes."""

    def listed(self, count: int) -> None:
        """Nothing: a listing of a million keys has a thousand pages."""

    @contextmanager
    def running(self, total: int) -> Iterator[None]:
        """How much there is to do."""
        _print(f"{total} videos to look at")
        yield

    def file(self, state: str, key: str, reason: str) -> None:
        """One line."""
        _print(_line(state, key, reason))

    def summary(self, outcomes: Mapping[str, int], failed: int, seconds: float) -> None:
        """One line."""
        _print(_summary(outcomes, failed, seconds))

    def note(self, text: str) -> None:
        """One line."""
        _print(text)


class Bar:
    """For people: how far it is, how fast, and how long it will take; lines for what went wrong."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(),
        )
        self._task = self._progress.add_task("listing", total=None, rate="")

    def listed(self, count: int) -> None:
        """The number, on the bar."""
        self._progress.start()
        self._progress.update(self._task, completed=count)

    @contextmanager
    def running(self, total: int) -> Iterator[None]:
        """The bar, from now on with an end."""
        self._progress.reset(self._task, total=total, description="indexing", rate="")
        with self._progress:
            yield

    def file(self, state: str, key: str, reason: str) -> None:
        """One further."""
        speed = self._progress.tasks[0].speed
        self._progress.update(self._task, advance=1, rate=f"{speed:.1f}/s" if speed else "")
        if state in _TOLD:
            self._progress.console.print(_line(state, key, reason), markup=False, highlight=False)

    def summary(self, outcomes: Mapping[str, int], failed: int, seconds: float) -> None:
        """Below the bar."""
        self._progress.stop()
        _print(_summary(outcomes, failed, seconds))

    def note(self, text: str) -> None:
        """Below that."""
        _print(text)


def _line(state: str, key: str, reason: str) -> str:
    shown = key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)
    return f"{state:<12} {shown}" + (f": {reason}" if reason else "")


def _summary(outcomes: Mapping[str, int], failed: int, seconds: float) -> str:
    parts = [f"{outcomes[state]} {word}" for state, word in _WORDS.items() if outcomes.get(state)]
    parts += [f"{failed} failed, run again to try them once more"] if failed else []
    total = sum(outcomes.values()) + failed
    return f"{total} videos in {seconds:.1f} s: {', '.join(parts) or 'none'}"


def _print(text: str) -> None:
    """A line on stdout, at once: somebody may be following it through a pipe."""
    print(text, flush=True)
